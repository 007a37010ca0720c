"""Points on borders, far outside and not finite, and extreme logits, for every backend and dtype.

They are compared with the PyTorch reference in float64.
"""

from __future__ import annotations

import math

import pytest
import torch
from golden import assert_close
from hypothesis import given, settings
from hypothesis import strategies as st
from ops_cases import BACKENDS, TOLERANCE, make_case, relative_error, use_backend

from mrt.ops import ms_deform_attn_fused, native, reference

# Worst of 40,000 random cases: 2e-14 and 4.2e-6. Float32 is looser than in ops_cases because a
# one-column map of 9 rows multiplies the rounding of a location by 9.
ODD_TOLERANCE = TOLERANCE | {torch.float32: 1e-5}
# In cells: for a point so near to a line through cell centres, either of the two one-sided gradients is
# right.
EDGE = 1e-3
ONE_CELL, TALL, WIDE = (1, 1), (9, 1), (1, 7)
level = st.one_of(st.sampled_from([ONE_CELL, TALL, WIDE]), st.tuples(st.integers(1, 6), st.integers(1, 6)))
levels = st.lists(level, min_size=1, max_size=6)
# N, Q, M, D, P
sizes = st.tuples(*(st.integers(*bounds) for bounds in ((0, 3), (0, 9), (1, 3), (1, 70), (1, 5))))
NOWHERE = (math.nan, math.inf, -math.inf, 1e30, -1e30, 3e9, -40.0)


def odd_inputs(sizes, shapes, *, fused, dtype, seed):
    """(value, ...) for one of the ops, with numbers in the range of all dtypes.

    Two thirds of the points are ordinary.
    """
    batch, queries, heads, dim, points = sizes
    options = {"batch": batch, "queries": queries, "heads": heads, "dim": dim, "points": points}
    case = make_case(**options, shapes=shapes, seed=seed)
    value, references, _, logits = (tensor.detach() for tensor in case)
    generator = torch.Generator().manual_seed(seed)
    extent = torch.tensor([(width, height) for height, width in shapes], dtype=torch.float64)[:, None]
    shape = (batch, queries, heads, len(shapes), points, 2)
    # In cells; 0 is the centre of the first.
    cells = torch.rand(shape, generator=generator, dtype=torch.float64) * (extent + 3) - 2
    kind = torch.randint(0, 9, shape, generator=generator)
    cells = torch.where(kind == 0, cells.round(), cells)  # on a line through centres, also at -1 and W
    cells = torch.where(kind == 1, cells.floor() + 0.5, cells)  # on a border between cells, or of the map
    chosen = torch.randint(0, len(NOWHERE), shape, generator=generator)
    nowhere = torch.tensor(NOWHERE, dtype=torch.float64)[chosen]
    cells = torch.where(kind == 2, nowhere, cells)
    extreme = torch.randint(0, 6, logits.shape, generator=generator)
    logits = torch.where(extreme == 0, -math.inf, torch.where(extreme == 1, logits * 60, logits))
    # Not all may be -inf: see below.
    logits[..., 0] = torch.where(extreme[..., 0] == 0, 1e30, logits[..., 0].nan_to_num(neginf=0))
    if fused:  # half of the queries have their centre in the middle, from where edges are reached exactly
        references[:, ::2] = 0.5
        offsets = cells - (references[:, :, None, :, None] * extent - 0.5)
        inputs = (references, offsets, logits)
    else:
        inputs = ((cells + 0.5) / extent, logits.softmax(-1).unflatten(-1, cells.shape[3:5]))
    point_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    return value.to(dtype), *(tensor.to(point_dtype) for tensor in inputs)


def run(op, arguments, shapes, upstream):
    """Output and gradients; ``shapes`` are in the form that ``op`` takes."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in arguments]
    output = op(leaves[0], shapes, *leaves[1:])
    return output.detach(), *torch.autograd.grad(output, leaves, upstream)


@pytest.mark.parametrize("device, backend", BACKENDS)
@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(sizes, levels, st.booleans(), st.sampled_from(list(TOLERANCE)), st.integers(0, 1000))
def test_odd_points(device, backend, sizes, shapes, fused, dtype, seed):
    inputs = odd_inputs(sizes, shapes, fused=fused, dtype=dtype, seed=seed)
    arguments = [tensor.to(device) for tensor in inputs]
    upstream = torch.randn(*arguments[1].shape[:2], sizes[2] * sizes[3]).to(device, dtype)
    name = "ms_deform_attn_fused" if fused else "ms_deform_attn"
    flat = [side for shape in shapes for side in shape]
    double = [tensor.double() for tensor in arguments]
    exact = run(getattr(reference, name), double, shapes, upstream.double())
    if backend == "python":
        mine = run(getattr(reference, name), arguments, shapes, upstream)
    else:
        mine = run(getattr(native, name), arguments, flat, upstream)
    output, grad_value, *grad_points = mine
    assert output.dtype == grad_value.dtype == dtype
    assert all(grad.dtype == arguments[1].dtype for grad in grad_points)
    assert all(tensor.isfinite().all() for tensor in mine)
    # If all points are outside or just at a map's border, outputs are rounding errors. So errors are compared
    # with the magnitude of values, about 1. The points' gradients are rounded to 16 bits nowhere.
    tolerance = ODD_TOLERANCE[arguments[1].dtype]
    for what, ours, theirs, most in (
        ("output", output, exact[0], ODD_TOLERANCE[dtype]),
        ("value", grad_value, exact[1], ODD_TOLERANCE[dtype]),
        ("weights", grad_points[-1], exact[-1], tolerance),
    ):
        assert relative_error(ours, theirs, floor=1.0) <= most, what
    off_edge, inside, extent = clear_of_edges(arguments, shapes, fused)
    by_points, exact_by_points = grad_points[-2], exact[-2]
    assert relative_error(by_points[off_edge], exact_by_points[off_edge], floor=1.0) <= tolerance, "points"
    assert (by_points[~inside & off_edge] == 0).all(), "a point outside has no gradient"
    if fused:
        # With either one-sided gradient, a reference point's gradient is the sum of those of its points,
        # times the size of the level in cells.
        summed = (by_points.double() * extent).sum((2, 4))
        assert relative_error(grad_points[0], summed, floor=1.0) <= tolerance, "references"


def clear_of_edges(arguments, shapes, fused):
    """Which points (N, Q, M, L, P, 2) are on no line through cell centres, and which are inside their map.

    The third result is the levels' (W, H).
    """
    where = arguments[-2].double()
    extent = where.new_tensor([(width, height) for height, width in shapes])[:, None]
    cells = where * extent - 0.5
    if fused:
        cells = arguments[1].double()[:, :, None, :, None] * extent - 0.5 + where
    off_edge = ((cells - cells.round()).abs() > EDGE) | ~cells.isfinite() | (cells.abs() > 100)
    inside = (cells > -1) & (cells < extent)
    off_edge, inside = (mask.all(-1, keepdim=True).expand_as(cells) for mask in (off_edge, inside))
    return off_edge, inside, extent


@pytest.mark.parametrize("device, backend", BACKENDS)
@pytest.mark.parametrize("points", [1, 3, 4, 8])  # two levels: 2 to 16 logits, in full and partial vectors
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_logits_of_one_head_that_are_all_alike(monkeypatch, device, backend, points, dtype):
    """The dtype's lowest number acts like any other finite one; all -inf, or a NaN, gives NaN (softmax).

    Outputs of other heads and queries are not affected.
    """
    use_backend(monkeypatch, device, backend)
    shapes, case = ((4, 6), (2, 3)), make_case(points=points, dtype=dtype, device=device)
    value, references, offsets, logits = (tensor.detach() for tensor in case)
    logits[0, 1, 1] = 0
    even = ms_deform_attn_fused(value, shapes, references, offsets, logits)
    for alike in (torch.finfo(dtype).min, torch.finfo(dtype).max, -1e30):
        logits[0, 1, 1] = alike
        output = ms_deform_attn_fused(value, shapes, references, offsets, logits)
        assert_close(output, even.cpu(), rel=TOLERANCE[dtype], what=f"all {alike}")
    for masked in (slice(None), 0, -1):  # all -inf; one NaN
        logits[0, 1, 1] = -math.inf if masked == slice(None) else 0
        logits[0, 1, 1, masked] = -math.inf if masked == slice(None) else math.nan
        leaves = [tensor.clone().requires_grad_() for tensor in (value, references, offsets, logits)]
        output = ms_deform_attn_fused(leaves[0], shapes, *leaves[1:])
        output.sum().backward()
        expected = torch.zeros(2, 5, 2, 8, dtype=torch.bool)
        expected[0, 1, 1] = True
        assert torch.equal(output.isnan().view(2, 5, 2, 8).cpu(), expected)
        assert torch.equal(leaves[3].grad.isnan().any(-1).cpu(), expected.any(-1))
        assert leaves[0].grad[1].isfinite().all() and leaves[0].grad[0, :, 0].isfinite().all()
