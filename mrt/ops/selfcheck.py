"""Whether the compiled kernels compute the same as plain PyTorch: a quick check of an installation.

``python -m mrt.ops.selfcheck [DEVICE]`` prints every comparison and ends with exit code 1 if one fails;
``mrt doctor`` prints a summary.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mrt.errors import MrtError
from mrt.ops import native, reference

# By value's dtype: the largest error, as relative_error() counts it. Arithmetic is in float32 for all but
# float64, and 16-bit results are rounded once, which is no error.
LIMITS = {torch.float64: 1e-11, torch.float32: 1e-5, torch.bfloat16: 1e-5, torch.float16: 1e-5}
CHECKED = (torch.float32, torch.bfloat16)
ROUNDING = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}  # as a share of each number
SMALLEST = 1e-3  # differences are relative to the array's largest value, but at least to this


class Size(NamedTuple):
    """The sizes of one case; letters as in :func:`mrt.ops.ms_deform_attn`."""

    name: str
    levels: tuple[tuple[int, int], ...]  # (H, W)
    batch: int  # N
    heads: int  # M
    channels: int  # D
    queries: int  # Q
    points: int  # P


SIZES = (
    # Every cell is a query: the kernel copies the maps.
    Size("encoder", ((8, 12), (4, 6)), batch=2, heads=2, channels=32, queries=120, points=4),
    # Few queries: the kernel reads the maps in place.
    Size("decoder", ((16, 24), (8, 12)), batch=1, heads=4, channels=32, queries=7, points=4),
    # Rows that are shorter than a vector register.
    Size("odd", ((5, 7), (3, 2), (1, 1)), batch=2, heads=3, channels=5, queries=4, points=3),
)


class Agreement(NamedTuple):
    """The result of one case.

    ``error`` is the largest :func:`relative_error` of the output and the gradients; ``limit`` is the largest
    one allowed.
    """

    case: str
    dtype: torch.dtype  # of value and the output
    error: float
    limit: float

    @property
    def ok(self) -> bool:
        """Whether the error is within its limit; NaN never is."""
        return self.error <= self.limit


def selfcheck(device: str = "cpu", seed: int = 0) -> list[Agreement]:
    """Compare the kernels for ``device`` ("cpu" or "cuda") with the PyTorch path in float64.

    Compared are outputs and all gradients of both ops. The global random state does not change. It takes some
    tens of milliseconds on a CPU.

    Raises:
        MrtError: there are no kernels for the device, or ``MRT_OPS_BACKEND=python`` is set.
    """
    reason = native.fallback_reason(device)
    if reason is not None:
        raise MrtError(f"there are no kernels for {device} to check: {reason}", native.build_hint())
    generator = torch.Generator().manual_seed(seed)
    found = []
    with torch.enable_grad():
        for size in SIZES:
            fused = _inputs(size, generator)
            shape = size.batch, size.queries, size.heads * size.channels
            upstream = torch.randn(shape, generator=generator, dtype=torch.float64)
            for op, inputs in (("ms_deform_attn_fused", fused), ("ms_deform_attn", _plain(size, *fused))):
                value, points = inputs[0], [tensor.float() for tensor in inputs[1:]]
                for dtype in CHECKED:
                    limit = LIMITS[dtype]
                    given = [value.to(dtype), *points, upstream.to(dtype)]
                    error = _difference(op, size.levels, given, device)
                    case = f"{op}, {size.name}, {str(dtype).removeprefix('torch.')}"
                    found.append(Agreement(case, dtype, error, limit))
    return found


def _inputs(size: Size, generator: torch.Generator) -> tuple[Tensor, ...]:
    """Random (value, reference_points, sampling_offsets, attention_logits) in float64.

    Some points lie outside the maps. All are at least a tenth of a cell away from the lines between cell
    centres: gradients are discontinuous there, and rounding would decide the side.
    """

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    n, q, m, levels, p = size.batch, size.queries, size.heads, len(size.levels), size.points
    references = torch.rand(n, q, levels, 2, generator=generator, dtype=torch.float64)
    start = references[:, :, None, :, None] * _widths(size) - 0.5
    cells = start + 2 * normal(n, q, m, levels, p, 2)
    cells = cells.floor() + (cells - cells.floor()) * 0.8 + 0.1
    value = normal(n, sum(height * width for height, width in size.levels), m, size.channels)
    return value, references, cells - start, normal(n, q, m, levels * p)


def _plain(
    size: Size, value: Tensor, references: Tensor, offsets: Tensor, logits: Tensor
) -> tuple[Tensor, ...]:
    """The inputs of the plain op for the same sampling: (value, sampling_locations, attention_weights)."""
    locations = references[:, :, None, :, None] + offsets / _widths(size)
    return value, locations, logits.softmax(-1).unflatten(-1, offsets.shape[3:5])


def _widths(size: Size) -> Tensor:
    """(L, 1, 2): width and height of each level."""
    return torch.tensor([(width, height) for height, width in size.levels], dtype=torch.float64)[:, None]


def _difference(op: str, levels: Sequence[tuple[int, int]], given: Sequence[Tensor], device: str) -> float:
    """The largest relative error of the kernels against float64 on the same inputs.

    The last of ``given`` is the output's gradient.
    """
    flat = [side for level in levels for side in level]
    actual = _results(getattr(native, op), flat, [tensor.to(device) for tensor in given])
    expected = _results(getattr(reference, op), levels, [tensor.double() for tensor in given])
    return max(map(relative_error, actual, expected), key=lambda error: (math.isnan(error), error))


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """The largest difference, as a share of the largest expected number or of ``SMALLEST`` if that is less.

    Of a 16-bit number, what it may lose by being rounded once is no difference. NaN if a number is NaN; 0 for
    empty tensors.

    Args:
        actual: a result of any shape and dtype, on any device.
        expected: what it should be, in float64.
    """
    if expected.numel() == 0:
        return 0.0
    difference = (actual.double() - expected.to(actual.device)).abs().cpu()
    expected = expected.abs().cpu()
    difference = (difference - ROUNDING.get(actual.dtype, 0.0) * expected).clamp(min=0.0)
    return (difference.max() / expected.max().clamp(min=SMALLEST)).item()


def _results(function, levels, given: Sequence[Tensor]) -> list[Tensor]:
    """The output and the gradient of every input."""
    value, *points = (tensor.detach().clone().requires_grad_() for tensor in given[:-1])
    output = function(value, levels, *points)
    return [output.detach(), *torch.autograd.grad(output, (value, *points), given[-1])]


def main(words: Sequence[str]) -> int:
    """Print every comparison. Returns the exit code: 0 if all agree, 1 if not, 2 without kernels."""
    try:
        found = selfcheck(*words[:1])
    except MrtError as error:
        print(f"{error.message}\n{error.hint or ''}".rstrip(), file=sys.stderr)
        return 2
    for row in found:
        state = "ok" if row.ok else "WRONG"
        print(f"{state:6}{row.case:42}differs by {row.error:.1e}, may by {row.limit:.0e}")
    return 0 if all(row.ok for row in found) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
