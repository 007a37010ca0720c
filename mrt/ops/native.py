"""The compiled kernels: loading, registration in PyTorch (fake tensors, gradients), choice of a backend."""

from __future__ import annotations

import ctypes
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from mrt.errors import MrtError
from mrt.ops.checks import check_fused, check_grad_output, check_plain

Shapes = Sequence[int]  # H0, W0, H1, W1, ...
SETTING = "MRT_OPS_BACKEND"


def _load() -> tuple[str | None, tuple[str, ...]]:
    """Load ``mrt/_C*.so``; returns why that failed, or None, and what :func:`code_of` says of it."""
    libraries = sorted(Path(__file__).resolve().parent.parent.glob("_C*.so"))
    if not libraries:
        return "the extension mrt/_C was not built", ()
    try:
        torch.ops.load_library(libraries[-1])
    except OSError as error:
        # PyTorch's error names only the file; its cause, from the system's loader, gives the reason.
        return f"{libraries[-1].name} could not be loaded ({error.__cause__ or error})", ()
    return None, code_of(libraries[-1])


def code_of(library: Path) -> tuple[str, ...]:
    """The GPUs that a binary has code for, as its build recorded them; empty if it did not.

    "sm_80" stands for machine code, "compute_90" for code that the driver translates.
    """
    recorded = getattr(ctypes.CDLL(str(library)), "mrt_cuda_code", None)
    if recorded is None:
        return ()
    recorded.restype = ctypes.c_char_p
    return tuple(recorded().decode().split(","))


load_error, cuda_code = _load()
requested = os.environ.get(SETTING, "auto").strip().lower() or "auto"
_chosen: dict[str, str] = {}  # device type -> backend
_verdicts: dict[int, str | None] = {}  # of _no_code_for, by GPU
_announced = False


def build_hint() -> str:
    """How to get missing kernels: build them in this source tree, or if this is none, in another."""
    if Path(__file__).resolve().parents[2].joinpath("csrc").is_dir():
        return (
            "With a C++ compiler at hand, for CUDA also nvcc: make clean build "
            "(or: pip install --no-build-isolation -e .)"
        )
    return (
        "Kernels for this machine are built from mrt's sources, with a C++ compiler at hand, for CUDA also "
        "nvcc:\npip install --no-build-isolation --no-deps --force-reinstall CHECKOUT_OR_TAR_GZ"
    )


def _has_kernel(device_type: str) -> bool:
    key = {"cpu": "CPU", "meta": "CPU", "cuda": "CUDA"}.get(device_type)
    if load_error is not None or key is None:
        return False
    return torch._C._dispatch_has_kernel_for_dispatch_key("mrt::ms_deform_attn", key)


def runs_on(code: str, capability: tuple[int, int]) -> bool:
    """Whether a GPU of this compute capability can run code for, say, "sm_80", "sm_90a" or "compute_90".

    Machine code runs on GPUs of the same generation that are not older, code for translation on all that are
    not older. A suffix (a: this GPU only; f: its family) restricts both.
    """
    found = re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", code)
    if found is None:
        return True  # unknown here: CUDA will say
    kind, major, minor, suffix = found[1], int(found[2]), int(found[3]), found[4]
    if suffix == "a":
        return capability == (major, minor)
    if kind == "compute" and not suffix:
        return capability >= (major, minor)
    return capability[0] == major and capability[1] >= minor


def _gpu(index: int) -> tuple[str, int, int] | None:
    """A GPU's name and compute capability; None where there is none, and only a fake tensor claims so."""
    if not torch.cuda.is_available():
        return None
    return torch.cuda.get_device_name(index), *torch.cuda.get_device_capability(index)


def _no_code_for(index: int) -> str | None:
    """Why the CUDA kernels cannot run on this GPU; None if they can, or if that is unknown."""
    if index not in _verdicts:
        gpu = _gpu(index) if cuda_code else None
        if gpu is None:
            return None
        name, major, minor = gpu
        reason = (
            f"the extension was built for {', '.join(cuda_code)}, but {name} is sm_{major}{minor} "
            f"(where it is built, set TORCH_CUDA_ARCH_LIST={major}.{minor})"
        )
        _verdicts[index] = None if any(runs_on(code, (major, minor)) for code in cuda_code) else reason
    return _verdicts[index]


# What torch.compiler.assume_constant_result sets (which would import torch._dynamo, too, and take a second):
# torch.compile calls the function instead of compiling it.
_no_code_for._dynamo_marked_constant = True


def fallback_reason(device: str) -> str | None:
    """Why tensors on ``device`` ("cpu", "cuda", "cuda:1", ...) take the PyTorch path; None if they do not.

    "cuda" is the current GPU.
    """
    if requested == "python":
        return f"{SETTING}=python"
    device_type, _, index = device.partition(":")
    if not _has_kernel(device_type):
        return load_error or f"the extension was built without kernels for {device_type}"
    if device_type != "cuda" or not (index or torch.cuda.is_available()):
        return None
    return _no_code_for(int(index) if index else torch.cuda.current_device())


def choose(device_type: str, setting: str) -> str:
    """The backend for a device under a value of ``MRT_OPS_BACKEND``.

    Raises:
        MrtError: the value is unknown, or it requires kernels that are missing.
    """
    if setting not in ("auto", "python", "cpu", "cuda"):
        raise MrtError(
            f"{SETTING}={setting} is not a backend",
            f"Set {SETTING} to auto, python, cpu or cuda, or unset it.",
        )
    if setting == "python":
        return "python"
    if _has_kernel(device_type):
        return "cuda" if device_type == "cuda" else "cpu"
    if setting == device_type:
        raise _missing(setting, fallback_reason(device_type))
    return "python"


def _missing(setting: str, reason: str | None) -> MrtError:
    return MrtError(f"{SETTING}={setting}, but {reason}", f"{build_hint()}\nOr unset {SETTING}.")


def backend(tensor: Tensor) -> str:
    """The implementation for this tensor: ``"cuda"`` or ``"cpu"`` for kernels, ``"python"`` for PyTorch's.

    A fallback to ``"python"`` that was not requested is reported once, on stderr, with the reason.

    Raises:
        MrtError: ``MRT_OPS_BACKEND`` is unknown, or requires kernels that are missing or not for this GPU.
    """
    device_type = tensor.device.type
    chosen = _chosen.get(device_type)
    if chosen is None:
        chosen = _chosen[device_type] = choose(device_type, requested)
    if chosen == "cuda" and _no_code_for(tensor.device.index) is not None:
        if requested == "cuda":
            raise _missing(requested, _no_code_for(tensor.device.index))
        chosen = "python"
    if chosen == "python" and not _announced and not torch.compiler.is_compiling():
        _announce(str(tensor.device))
    return chosen


@contextmanager
def without_kernels() -> Iterator[None]:
    """Use the PyTorch path on every device within this context: to export programs without mrt's own op.

    It affects the whole process, not only the current thread.
    """
    kept = dict(_chosen)
    _chosen.update(dict.fromkeys(("cpu", "cuda", "meta"), "python"))
    try:
        yield
    finally:
        _chosen.clear()
        _chosen.update(kept)


def _announce(device: str) -> None:
    global _announced
    _announced = True
    if requested != "python":
        hint = f". {build_hint()}" if device.partition(":")[0] in ("cpu", "cuda") else ""
        reason = f"{fallback_reason(device)}{hint}"
        print(f"mrt: deformable attention runs on the slower PyTorch path: {reason}", file=sys.stderr)


def _pairs(shapes: Shapes) -> list[Sequence[int]]:
    if len(shapes) % 2:
        raise ValueError(f"spatial_shapes must be a flat list H0, W0, H1, W1, ..., got {len(shapes)} numbers")
    return [shapes[i : i + 2] for i in range(0, len(shapes), 2)]


def _output(value: Tensor, queries: int) -> Tensor:
    return value.new_empty(value.shape[0], queries, value.shape[2] * value.shape[3])


def _fresh(tensor: Tensor) -> Tensor:
    return tensor.new_empty(tensor.shape)


def _fake_plain(value, spatial_shapes, sampling_locations, attention_weights) -> Tensor:
    check_plain(value, _pairs(spatial_shapes), sampling_locations, attention_weights)
    return _output(value, sampling_locations.shape[1])


def _fake_plain_backward(
    grad_output, value, spatial_shapes, sampling_locations, attention_weights, deterministic=False
):
    check_plain(value, _pairs(spatial_shapes), sampling_locations, attention_weights)
    check_grad_output("ms_deform_attn_backward", value, sampling_locations.shape[1], grad_output)
    return _fresh(value), _fresh(sampling_locations), _fresh(attention_weights)


def _fake_fused(value, spatial_shapes, reference_points, sampling_offsets, attention_logits) -> Tensor:
    check_fused(value, _pairs(spatial_shapes), reference_points, sampling_offsets, attention_logits)
    return _output(value, sampling_offsets.shape[1])


def _fake_fused_backward(
    grad_output,
    value,
    spatial_shapes,
    reference_points,
    sampling_offsets,
    attention_logits,
    deterministic=False,
    skip_references=False,
):
    check_fused(value, _pairs(spatial_shapes), reference_points, sampling_offsets, attention_logits)
    check_grad_output("ms_deform_attn_fused_backward", value, sampling_offsets.shape[1], grad_output)
    references = reference_points
    if skip_references:  # nothing, but with N and Q
        references = references.new_empty(*references.shape[:2], 0, 2)
    return _fresh(value), _fresh(references), _fresh(sampling_offsets), _fresh(attention_logits)


def _save(ctx, inputs, output) -> None:
    value, ctx.spatial_shapes, *points = inputs
    ctx.save_for_backward(value, *points)


def _gradient(backward, ctx, grad_output: Tensor, *flags: bool) -> tuple:
    value, *points = ctx.saved_tensors
    flags = (torch.are_deterministic_algorithms_enabled(), *flags)
    grad_value, *grads = backward(grad_output, value, ctx.spatial_shapes, *points, *flags)
    return grad_value, None, *grads


def _plain_gradient(ctx, grad_output: Tensor):
    return _gradient(torch.ops.mrt.ms_deform_attn_backward.default, ctx, grad_output)


def _fused_gradient(ctx, grad_output: Tensor):
    wanted = ctx.needs_input_grad[2]  # of the reference points: an encoder's never move
    backward = torch.ops.mrt.ms_deform_attn_fused_backward.default
    value, shapes, references, *others = _gradient(backward, ctx, grad_output, not wanted)
    return value, shapes, references if wanted else None, *others


def _no_second_gradient(ctx, *grads):
    raise RuntimeError(
        "mrt.ops: the kernels of deformable attention have no second derivative; "
        "to differentiate twice, set MRT_OPS_BACKEND=python (and have PyTorch 2.13 or newer)"
    )


if load_error is None:
    ms_deform_attn = torch.ops.mrt.ms_deform_attn.default
    ms_deform_attn_fused = torch.ops.mrt.ms_deform_attn_fused.default
    for _name, _fake in (
        ("mrt::ms_deform_attn", _fake_plain),
        ("mrt::ms_deform_attn_backward", _fake_plain_backward),
        ("mrt::ms_deform_attn_fused", _fake_fused),
        ("mrt::ms_deform_attn_fused_backward", _fake_fused_backward),
    ):
        torch.library.register_fake(_name, _fake)
    torch.library.register_autograd("mrt::ms_deform_attn", _plain_gradient, setup_context=_save)
    torch.library.register_autograd("mrt::ms_deform_attn_fused", _fused_gradient, setup_context=_save)
    for _name in ("mrt::ms_deform_attn_backward", "mrt::ms_deform_attn_fused_backward"):
        torch.library.register_autograd(_name, _no_second_gradient)

if requested in ("auto", "python"):
    _chosen.update({device_type: choose(device_type, requested) for device_type in ("cpu", "cuda", "meta")})
