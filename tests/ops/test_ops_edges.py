"""Points at no finite place, levels of one cell, and empty inputs, on every backend of this machine."""

from __future__ import annotations

import math

import pytest
import torch
from golden import assert_close
from ops_cases import BACKENDS, make_case, plain_inputs, use_backend

from mrt.ops import ms_deform_attn, ms_deform_attn_fused

SHAPES = ((4, 6), (2, 3))
NOWHERE = [math.nan, math.inf, -math.inf, 1e30, -1e30, 1e9, 3e9, -40.0]


@pytest.mark.parametrize("device, backend", BACKENDS)
@pytest.mark.parametrize("where", NOWHERE)
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("fused", [False, True])
def test_a_point_that_is_nowhere_adds_nothing(monkeypatch, device, backend, where, axis, fused):
    use_backend(monkeypatch, device, backend)
    case = make_case(dtype=torch.float32, device=device)
    inputs = case if fused else plain_inputs(case, SHAPES)
    points, op = inputs[-2], ms_deform_attn_fused if fused else ms_deform_attn
    with torch.no_grad():
        points[0, 1, 1, 0, 2, axis] = where
    output = op(inputs[0], SHAPES, *inputs[1:])
    output.square().sum().backward()
    assert output.isfinite().all() and all(tensor.grad.isfinite().all() for tensor in inputs)
    assert (points.grad[0, 1, 1, 0, 2] == 0).all()
    # The same with a finite point far outside, which leaves the other points.
    others = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    with torch.no_grad():
        others[-2][0, 1, 1, 0, 2] = -100.0
    expected = op(others[0], SHAPES, *others[1:])
    expected.square().sum().backward()
    assert_close(output, expected.detach().cpu())
    for mine, other in zip(inputs, others, strict=True):
        assert_close(mine.grad, other.grad.cpu())


@pytest.mark.parametrize("device, backend", BACKENDS)
def test_nonfinite_reference_points_silence_their_level(monkeypatch, device, backend):
    """A fully masked level has valid ratio 0, so reference points are infinite or NaN (mae.npz, case B)."""
    use_backend(monkeypatch, device, backend)
    case = make_case(dtype=torch.float32, device=device)
    with torch.no_grad():
        case[1][1, 2, 1] = math.nan
        case[1][0, 0, 0, 1] = math.inf
    output = ms_deform_attn_fused(case[0], SHAPES, *case[1:])
    output.square().sum().backward()
    assert output.isfinite().all() and all(tensor.grad.isfinite().all() for tensor in case)
    assert (case[1].grad[1, 2, 1] == 0).all() and (case[2].grad[1, 2, :, 1] == 0).all()


@pytest.mark.parametrize("device, backend", BACKENDS)
@pytest.mark.parametrize("batch, queries", [(0, 3), (2, 0), (0, 0)])
def test_nothing_to_do(monkeypatch, device, backend, batch, queries):
    use_backend(monkeypatch, device, backend)
    case = make_case(batch=batch, queries=queries, dtype=torch.float32, device=device)
    output = ms_deform_attn_fused(case[0], SHAPES, *case[1:])
    assert output.shape == (batch, queries, 16)
    output.sum().backward()
    assert all(tensor.grad is not None and (tensor.grad == 0).all() for tensor in case)


@pytest.mark.parametrize("device, backend", BACKENDS)
def test_levels_of_one_cell(monkeypatch, device, backend):
    """A level of one cell gives the cell's value at its centre, half of it half a cell away, then nothing."""
    use_backend(monkeypatch, device, backend)
    value = torch.tensor([2.0, 10.0], device=device).view(1, 2, 1, 1)
    centre = torch.full((1, 1, 2, 2), 0.5, device=device)
    offsets = torch.zeros(1, 1, 1, 2, 3, 2, device=device)
    offsets[0, 0, 0, :, 1, 0] = 0.5
    offsets[0, 0, 0, :, 2, 1] = 1.0
    logits = torch.zeros(1, 1, 1, 6, device=device)
    output = ms_deform_attn_fused(value, [(1, 1), (1, 1)], centre, offsets, logits)
    assert_close(output, [[[(1 + 0.5 + 0) * (2 + 10) / 6]]])


@pytest.mark.parametrize("device, backend", BACKENDS)
def test_cell_centres_and_corners(monkeypatch, device, backend):
    """(x + 1/2) / W is the centre of cell x; the map's corner gives a quarter of its cell (zero padding)."""
    use_backend(monkeypatch, device, backend)
    value = torch.arange(1.0, 7.0, device=device).view(1, 6, 1, 1)  # 2 rows of 3
    locations = torch.tensor([[0.5 / 3, 0.25], [2.5 / 3, 0.75], [0.0, 0.0], [1.0, 1.0]], device=device)
    locations, weights = locations.view(1, 4, 1, 1, 1, 2), torch.ones(1, 4, 1, 1, 1, device=device)
    output = ms_deform_attn(value, [(2, 3)], locations, weights)
    assert_close(output.flatten(), [1.0, 6.0, 0.25, 1.5])


@pytest.mark.parametrize("device, backend", BACKENDS)
def test_a_point_outside_does_not_read_the_map(monkeypatch, device, backend):
    """NaN in a cell affects only the points that touch this cell."""
    use_backend(monkeypatch, device, backend)
    value = torch.ones(1, 6, 1, 4, device=device)
    value[0, 0] = math.nan
    locations = torch.tensor([[0.5, 0.5], [-3.0, -3.0], [2.5 / 3, 1.2], [0.5 / 3, 0.25]], device=device)
    locations, weights = locations.view(1, 4, 1, 1, 1, 2), torch.ones(1, 4, 1, 1, 1, device=device)
    output = ms_deform_attn(value, [(2, 3)], locations, weights)
    assert output[0, :, 0].isnan().tolist()[1:] == [False, False, True]
