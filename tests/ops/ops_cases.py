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

# Largest error compared with float64, as a share of the array's largest value, beyond one rounding of each
# 16-bit number: arithmetic is in float32, and only results are rounded. Measured for the usual sizes: 2e-15,
# 8e-7, and 6e-6 where value has 16 bits (of all gradients).
TOLERANCE = {torch.float64: 1e-13, torch.float32: 3e-6, torch.float16: 1e-5, torch.bfloat16: 1e-5}
ROUNDING = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}  # as a share of each number


def relative_error(
    actual: torch.Tensor, expected: torch.Tensor, floor: float = 1e-3, roundings: int = 1
) -> float:
    """Largest difference as a share of the largest expected magnitude, or of ``floor`` if that is less.

    What each number of a 16-bit ``actual`` may lose by being rounded is no difference.
    """
    if expected.numel() == 0:
        return 0.0
    expected = expected.double().cpu()
    scale = expected.abs().max().clamp(min=floor)
    difference = (actual.double().cpu() - expected).abs()
    difference = difference - roundings * ROUNDING.get(actual.dtype, 0.0) * expected.abs()
    return (difference.max().clamp(min=0.0) / scale).item()  # NaN stays


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
