"""Gradients of both ops against finite differences in float64, on every backend this machine has."""

from __future__ import annotations

import pytest
import torch
from ops_cases import BACKENDS, make_case, needs_native, plain_inputs, use_backend

from mrt.ops import ms_deform_attn, ms_deform_attn_fused

SHAPES = ((3, 4), (2, 1), (1, 1))


@pytest.mark.parametrize("device, backend", BACKENDS)
def test_plain(monkeypatch, device, backend):
    use_backend(monkeypatch, device, backend)
    inputs = plain_inputs(make_case(shapes=SHAPES, dim=3, queries=2, points=2, device=device), SHAPES)
    assert torch.autograd.gradcheck(
        lambda value, locations, weights: ms_deform_attn(value, SHAPES, locations, weights), inputs, fast_mode=True, nondet_tol=1e-12
    )


@pytest.mark.parametrize("device, backend", BACKENDS)
@pytest.mark.parametrize("dim, points", [(3, 2), (35, 1), (2, 7)], ids=["small", "two passes over channels", "two blocks of points"])
def test_fused(monkeypatch, device, backend, dim, points):
    use_backend(monkeypatch, device, backend)
    inputs = make_case(shapes=SHAPES, dim=dim, queries=2, points=points, device=device)
    assert torch.autograd.gradcheck(
        lambda value, *points: ms_deform_attn_fused(value, SHAPES, *points), inputs, fast_mode=True, nondet_tol=1e-12
    )


@needs_native
@pytest.mark.parametrize("fused", [False, True])
def test_second_derivative_is_refused(monkeypatch, fused):
    use_backend(monkeypatch, "cpu", "cpu")
    case = make_case()
    if fused:
        inputs = case
        output = ms_deform_attn_fused(case[0], ((4, 6), (2, 3)), *case[1:])
    else:
        inputs = plain_inputs(case, ((4, 6), (2, 3)))
        output = ms_deform_attn(inputs[0], ((4, 6), (2, 3)), *inputs[1:])
    grads = torch.autograd.grad(output.square().sum(), inputs, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        sum(grad.square().sum() for grad in grads).backward()
