"""Gradients of both ops compared with finite differences in float64, on every backend of this machine."""

from __future__ import annotations

import itertools

import pytest
import torch
from ops_cases import BACKENDS, make_case, plain_inputs, use_backend

from mrt.ops import ms_deform_attn, ms_deform_attn_fused

SHAPES = ((3, 4), (2, 1), (1, 1))
SIX_LEVELS = ((1, 6), (5, 1), (2, 2), (1, 1), (1, 2), (2, 1))
CASES = [
    pytest.param(SHAPES, 1, 1, 3, 2, id="small"),
    pytest.param(SHAPES, 2, 2, 35, 1, id="two passes over channels"),
    pytest.param(SHAPES, 2, 1, 2, 7, id="two blocks of points"),
    pytest.param(((1, 1),), 1, 3, 1, 1, id="one cell, one channel, one point"),
    pytest.param(SIX_LEVELS, 1, 2, 16, 4, id="six levels, whole vectors"),
]


def op_and_inputs(fused, shapes, batch, heads, dim, points, device):
    sizes = {"shapes": shapes, "batch": batch, "heads": heads, "dim": dim, "queries": 2, "points": points}
    case = make_case(**sizes, device=device, spread=1.0)
    op = ms_deform_attn_fused if fused else ms_deform_attn
    return lambda value, *points: op(value, shapes, *points), case if fused else plain_inputs(case, shapes)


# nondet_tol: the GPU sums value's gradient in no fixed order; 1e-12 is 4,000 roundings of a number near 1.
# Other tolerances are gradcheck's defaults.
@pytest.mark.parametrize("device, backend", BACKENDS)
@pytest.mark.parametrize("shapes, batch, heads, dim, points", CASES)
@pytest.mark.parametrize("fused", [False, True])
def test_gradcheck(monkeypatch, device, backend, fused, shapes, batch, heads, dim, points):
    use_backend(monkeypatch, device, backend)
    op, inputs = op_and_inputs(fused, shapes, batch, heads, dim, points, device)
    assert torch.autograd.gradcheck(op, inputs, fast_mode=True, nondet_tol=1e-12)


@pytest.mark.parametrize("device, backend", BACKENDS)
@pytest.mark.parametrize("fused", [False, True])
def test_gradcheck_of_every_entry(monkeypatch, device, backend, fused):
    """The whole Jacobian, not only its product with a random vector; also a batch of gradients at once."""
    use_backend(monkeypatch, device, backend)
    op, inputs = op_and_inputs(fused, SHAPES, 2, 2, 3, 2, device)
    assert torch.autograd.gradcheck(op, inputs, nondet_tol=1e-12, check_batched_grad=True)


@pytest.mark.parametrize("device, backend", BACKENDS)
@pytest.mark.parametrize("fused", [False, True])
def test_frozen_inputs_change_no_other_gradient(monkeypatch, device, backend, fused):
    use_backend(monkeypatch, device, backend)
    op, inputs = op_and_inputs(fused, SHAPES, 2, 2, 3, 2, device)
    every = torch.autograd.grad(op(*inputs).sin().sum(), inputs)
    for wanted in itertools.product([False, True], repeat=len(inputs)):
        leaves = [tensor.detach().requires_grad_(asked) for tensor, asked in zip(inputs, wanted, strict=True)]
        output = op(*leaves)
        assert output.requires_grad == any(wanted)
        if any(wanted):
            output.sin().sum().backward()
        for leaf, asked, expected in zip(leaves, wanted, every, strict=True):
            assert (leaf.grad is not None) == asked
            if asked:
                torch.testing.assert_close(leaf.grad, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("device, backend", BACKENDS)
def test_an_upstream_gradient_need_not_be_contiguous(monkeypatch, device, backend):
    """The gradient from ``sum`` is an expanded scalar, that from a transposition a strided tensor."""
    use_backend(monkeypatch, device, backend)
    op, inputs = op_and_inputs(True, SHAPES, 2, 2, 3, 2, device)
    upstream = torch.randn(2, 6, 2, dtype=torch.float64, device=device).transpose(1, 2)
    for strided in (upstream, upstream[:1, :1, :1].expand_as(upstream)):
        mine = torch.autograd.grad(op(*inputs), inputs, strided)
        expected = torch.autograd.grad(op(*inputs), inputs, strided.contiguous())
        for one, other in zip(mine, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
