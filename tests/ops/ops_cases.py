"""Inputs shared by the op's tests, and the backends that can run here."""

from __future__ import annotations

import pytest
import torch

from mrt.ops import native

NATIVE_CPU = native.fallback_reason("cpu") is None
NATIVE_CUDA = torch.cuda.is_available() and native.fallback_reason("cuda") is None
needs_native = pytest.mark.skipif(not NATIVE_CPU, reason=f"no C++ kernels: {native.fallback_reason('cpu')}")
needs_cuda = pytest.mark.skipif(not NATIVE_CUDA, reason="needs a GPU and the CUDA kernels")

BACKENDS = [
    pytest.param("cpu", "python", id="python"),
    pytest.param("cpu", "cpu", id="cpu", marks=needs_native),
    pytest.param("cuda", "cuda", id="cuda", marks=needs_cuda),
]

# Largest error compared with float64, as a share of the array's largest value. Measured for the usual sizes:
# 2e-15, 8e-7, 5e-4 and 4e-3. The last two are one rounding of the output or of value's gradient (arithmetic
# is in float32).
TOLERANCE = {torch.float64: 1e-13, torch.float32: 3e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
# Of gradients that are float32 where value and the output's gradient have 16 bits: nothing is rounded to 16
# bits on the way. Measured: 6e-6.
UNROUNDED = 1e-5


def tolerance_of(grad: torch.Tensor, value_dtype: torch.dtype) -> float:
    """The largest error of a gradient in a call with values of this dtype, as in ``TOLERANCE``."""
    rounded = grad.dtype == value_dtype or grad.dtype != torch.float32
    return TOLERANCE[grad.dtype] if rounded else UNROUNDED


def relative_error(actual: torch.Tensor, expected: torch.Tensor, floor: float = 1e-3) -> float:
    """Largest difference as a share of the largest expected magnitude, or of ``floor`` if that is less."""
    if expected.numel() == 0:
        return 0.0
    scale = expected.abs().max().clamp(min=floor).cpu()
    return ((actual.double().cpu() - expected.cpu()).abs().max() / scale).item()


def use_backend(monkeypatch: pytest.MonkeyPatch, device: str, backend: str) -> None:
    monkeypatch.setattr(native, "requested", backend)
    monkeypatch.setitem(native._chosen, device, backend)


def make_case(
    *,
    batch=2,
    heads=2,
    dim=8,
    queries=5,
    shapes=((4, 6), (2, 3)),
    points=3,
    spread=1.5,
    dtype=torch.float64,
    value_dtype=None,
    device="cpu",
    seed=0,
):
    """(value, reference_points, sampling_offsets, attention_logits): leaves that require a gradient.

    Points are not near cell borders.
    """
    generator = torch.Generator().manual_seed(seed)
    levels, cells = len(shapes), sum(height * width for height, width in shapes)
    sizes = torch.tensor([(width, height) for height, width in shapes], dtype=torch.float64)
    references = torch.rand(batch, queries, levels, 2, generator=generator, dtype=torch.float64)
    shape = batch, queries, heads, levels, points, 2
    offsets = spread * torch.randn(shape, generator=generator, dtype=torch.float64)
    where = references[:, :, None, :, None] * sizes[:, None] - 0.5 + offsets
    share = where - where.floor()
    offsets = offsets + (share.clamp(0.1, 0.9) - share)
    value = torch.randn(batch, cells, heads, dim, generator=generator, dtype=torch.float64)
    logits = torch.randn(batch, queries, heads, levels * points, generator=generator, dtype=torch.float64)
    tensors = (value.to(value_dtype or dtype), references.to(dtype), offsets.to(dtype), logits.to(dtype))
    return tuple(tensor.to(device).requires_grad_() for tensor in tensors)


def plain_inputs(case, shapes):
    """Leaves for the same sampling by the plain op: (value, sampling_locations, attention_weights)."""
    value, references, offsets, logits = (tensor.detach() for tensor in case)
    sizes = torch.tensor([(width, height) for height, width in shapes]).to(offsets)[:, None]
    locations = references[:, :, None, :, None] + offsets / sizes
    weights = logits.softmax(-1).unflatten(-1, offsets.shape[3:5])
    return tuple(tensor.clone().requires_grad_() for tensor in (value, locations, weights))
