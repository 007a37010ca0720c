"""NaN and infinite weights, logits and gradients: one rule for every backend, the CUDA kernels' sources too.

A point outside its map adds nothing and has zero gradient, whatever its weight. A head whose softmax is NaN
has NaN as its output if one of its points is inside, and NaN as the gradients of all its logits.
"""

from __future__ import annotations

import math

import pytest
import torch
from cuda_emulator import COMPILER, Emulated
from ops_cases import BACKENDS, make_case, plain_inputs, use_backend

from mrt.ops import ms_deform_attn, ms_deform_attn_fused

SHAPES = ((5, 6), (2, 3))
CELLS = 36
OUTSIDE = (-40.0, math.nan, math.inf, 1e30)  # in cells for the fused op, as a share for the plain one
BAD = (math.nan, math.inf, -math.inf)
EMULATED = pytest.mark.skipif(COMPILER is None, reason="the emulator needs g++")
RUNNERS = [
    *(pytest.param(("call", *each.values), id=each.id, marks=each.marks) for each in BACKENDS),
    pytest.param(("emulated", "cpu", ""), id="emulated", marks=EMULATED),
    pytest.param(("emulated", "cpu", "deterministic"), id="emulated-deterministic", marks=EMULATED),
]
# dim 32: the fast CUDA kernels, whole registers on a CPU; 24: the generic ones. As many queries as cells:
# tiles.
SIZES = [(32, 7), (32, CELLS), (24, 7)]


@pytest.fixture(params=RUNNERS)
def run(request, monkeypatch):
    """run(inputs, upstream) -> the output and the gradients of all inputs; 4 inputs: the fused op."""
    how, device, backend = request.param

    def call(inputs, upstream):
        use_backend(monkeypatch, device, backend)
        op = ms_deform_attn if len(inputs) == 3 else ms_deform_attn_fused
        leaves = [tensor.detach().to(device, copy=True).requires_grad_() for tensor in inputs]
        output = op(leaves[0], SHAPES, *leaves[1:])
        grads = torch.autograd.grad(output, leaves, upstream.to(device))
        return [tensor.detach().cpu() for tensor in (output, *grads)]

    if how == "call":
        return call
    return on_emulator(request.getfixturevalue("libraries")["sm_90"], backend == "deterministic")


def on_emulator(library, deterministic):
    """The fixture's function for the emulated kernels."""

    def run(inputs, upstream):
        value, *points = inputs
        kernels = Emulated(library, value, SHAPES, *([None] if len(points) == 2 else []), *points)
        return [kernels.forward(), *kernels.backward(upstream, deterministic)]

    return run


def same(mine, theirs, what):
    torch.testing.assert_close(mine.float(), theirs.float(), rtol=1e-5, atol=1e-5, msg=what)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dim, queries", SIZES)
def test_a_weight_outside_counts_for_nothing(run, dim, queries, dtype):
    """Results are those of weight zero, also where the output's gradient is NaN and no point is inside."""
    case = make_case(batch=2, heads=2, dim=dim, queries=queries, points=4, shapes=SHAPES, dtype=torch.float32)
    value, where, weights = (tensor.detach().clone() for tensor in plain_inputs(case, SHAPES))
    value, upstream = value.to(dtype), torch.randn(2, queries, 2, dim, dtype=torch.float32).to(dtype)
    lonely = torch.zeros(2, queries, 2, dtype=torch.bool)  # heads of queries without a point inside
    lonely[0, 1, 1] = lonely[1, 3, 0] = True
    chosen = torch.rand(weights.shape, generator=torch.Generator().manual_seed(1)) < 0.2
    chosen |= lonely[..., None, None]
    axis = torch.arange(chosen.sum()) % 2
    where[chosen] = torch.where(
        axis[:, None] == torch.arange(2),
        torch.tensor(OUTSIDE).repeat(len(axis))[: len(axis), None],
        where[chosen],
    )
    zeros, bad = weights.masked_fill(chosen, 0.0), weights.clone()
    bad[chosen] = torch.tensor(BAD).repeat(len(axis))[: len(axis)]
    broken = upstream.clone()
    broken[lonely] = torch.tensor([math.nan, math.inf]).repeat_interleave(dim).view(2, dim).to(dtype)
    mine = run((value, where, bad), broken.flatten(2))
    theirs = run((value, where, zeros), upstream.masked_fill(lonely[..., None], 0.0).flatten(2))
    for name, one, other in zip(("output", "value", "locations", "weights"), mine, theirs, strict=True):
        assert one.isfinite().all(), name
        same(one, other, name)
    assert (mine[2][chosen] == 0).all() and (mine[3][chosen] == 0).all()
    assert (mine[0].view(2, queries, 2, dim)[lonely] == 0).all() and (mine[3][~chosen] != 0).any()


@pytest.mark.parametrize("bad", [math.nan, math.inf, "all -inf"])
@pytest.mark.parametrize("dim, queries", SIZES)
def test_a_softmax_that_is_nan(run, dim, queries, bad):
    case = make_case(batch=2, heads=2, dim=dim, queries=queries, points=4, shapes=SHAPES, dtype=torch.float32)
    value, references, offsets, logits = (tensor.detach().clone() for tensor in case)
    nowhere, inside = (0, 1, 1), (1, 2, 0)  # heads of queries with no point inside, and with one
    offsets[nowhere] = torch.tensor(OUTSIDE)[:, None].expand(2, 4, 2)
    offsets[inside] = math.inf
    offsets[inside][1, 2] = torch.tensor([0.9, 1.1]) - references[1, 2, 1] * torch.tensor([3.0, 2.0])
    upstream = torch.randn(2, queries, 2, dim)
    good = run((value, references, offsets, logits), upstream.flatten(2))
    for item in (nowhere, inside):
        if bad == "all -inf":
            logits[item] = -math.inf
        else:
            logits[item][3] = bad
    output, grad_value, grad_references, grad_offsets, grad_logits = run(
        (value, references, offsets, logits), upstream.flatten(2)
    )
    output = output.view(2, queries, 2, dim)
    assert (output[nowhere] == 0).all() and output[inside].isnan().all()
    assert (grad_offsets[nowhere] == 0).all() and grad_logits[nowhere].isnan().all()
    assert grad_offsets[inside][1, 2].isnan().all() and grad_logits[inside].isnan().all()
    assert (grad_offsets[inside][0] == 0).all() and (grad_offsets[inside][1, [0, 1, 3]] == 0).all()
    assert grad_references[1, 2, 1].isnan().all() and grad_value[1, :, 0].isnan().any()
    # All else is as it was.
    for tensor in (output, grad_offsets, grad_logits, grad_references, grad_value):
        tensor[1, 2, ...] = 0 if tensor is not grad_value else tensor[1, 2]
    grad_logits[nowhere] = good[4][nowhere]
    good[0] = good[0].view(2, queries, 2, dim)
    for mine, theirs, what in ((output, good[0], "output"), (grad_offsets, good[3], "offsets")):
        theirs[1, 2] = 0
        same(mine, theirs, what)
    good[4][1, 2] = 0
    same(grad_logits, good[4], "logits")
    same(grad_value[0], good[1][0], "value")
    same(grad_value[1, :, 1], good[1][1, :, 1], "value")
