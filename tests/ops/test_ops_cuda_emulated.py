"""The CUDA kernels' sources, compiled for the CPU, compared with the PyTorch reference in float64.

emulator/machine.h explains which errors this can detect.
"""

from __future__ import annotations

import math

import pytest
import torch
from cuda_emulator import COMPILER, Emulated
from ops_cases import TOLERANCE, make_case, plain_inputs, relative_error
from test_ops_large import linux_only, zeros

from mrt.ops import reference

pytestmark = pytest.mark.skipif(COMPILER is None, reason="the emulator needs g++")
PYRAMID = ((9, 13), (5, 7), (3, 4), (1, 2), (1, 1))


@pytest.fixture(params=["sm_80", "sm_90"])
def library(request, libraries):
    return libraries[request.param]


def cells(shapes) -> int:
    return sum(height * width for height, width in shapes)


def encoder_case(shapes, *, spread, batch=2, heads=3, dim=32, seed=0):
    """Every cell is a query with points around itself; points are not near cell borders."""
    options = {"batch": batch, "heads": heads, "dim": dim, "points": 4, "spread": 0, "seed": seed}
    case = make_case(queries=cells(shapes), shapes=shapes, **options)
    value, references, offsets, logits = (tensor.detach() for tensor in case)

    def centres(height: int, width: int) -> torch.Tensor:
        x, y = (torch.arange(width) + 0.5) / width, (torch.arange(height) + 0.5) / height
        return torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).view(-1, 2)

    every = torch.cat([centres(*shape) for shape in shapes]).double()
    references = every[None, :, None].expand_as(references).contiguous()
    generator = torch.Generator().manual_seed(seed)
    offsets = spread * torch.randn(offsets.shape, generator=generator, dtype=torch.float64)
    sizes = torch.tensor([(width, height) for height, width in shapes], dtype=torch.float64)[:, None]
    where = references[:, :, None, :, None] * sizes - 0.5 + offsets
    offsets += (where - where.floor()).clamp(0.1, 0.9) - (where - where.floor())
    return value, references, offsets, logits


def compare(library, inputs, shapes, *, fused=True, dtype=torch.float32, deterministic=False, seed=0):
    """Compare output and gradients in ``dtype`` with the reference in float64 on the same rounded numbers.

    Returns:
        The sizes of the launches, of the forward pass and of the backward pass.
    """
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    value, *points = inputs if fused else plain_inputs(inputs, shapes)
    ours = [value.detach().to(dtype), *(tensor.detach().to(wide) for tensor in points)]
    exact = [tensor.double().requires_grad_() for tensor in ours]
    op = reference.ms_deform_attn_fused if fused else reference.ms_deform_attn
    expected = op(exact[0], shapes, *exact[1:])
    upstream = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    expected.backward(upstream.double())
    emulated = Emulated(library, ours[0], shapes, *([None] if not fused else []), *ours[1:], seed=seed)
    assert relative_error(emulated.forward(), expected.detach()) <= TOLERANCE[dtype], "output"
    launches = emulated.launches
    for mine, theirs in zip(emulated.backward(upstream, deterministic), exact, strict=True):
        assert relative_error(mine, theirs.grad) <= TOLERANCE[dtype]
    return launches, emulated.launches


@pytest.mark.parametrize("levels", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("dim", [16, 32, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_fast_decoder(libraries, dtype, dim, levels):
    """Few queries at random places. Their number and that of heads divide nothing: 11 and 3."""
    shapes = PYRAMID[:levels]
    options = {"batch": 2, "heads": 3, "dim": dim, "queries": 11, "points": 4, "spread": 2, "seed": levels}
    case = make_case(shapes=shapes, **options)
    fused, library = (levels + dim // 16) % 2 == 0, libraries["sm_90" if levels % 2 else "sm_80"]
    forward, backward = compare(library, case, shapes, fused=fused, dtype=dtype, seed=levels)
    # The fast kernels have images along y, and small blocks.
    assert forward[0][1:] == backward[0][1:] == (2, 128)
    assert len(backward) == 1 + fused  # and the gradient of the reference points


@pytest.mark.parametrize("spread", [0.5, 2, 8])
@pytest.mark.parametrize("dim", [16, 32, 64])
def test_fast_encoder(library, dim, spread):
    case = encoder_case(PYRAMID[:4], spread=spread, dim=dim)
    forward, backward = compare(library, case, PYRAMID[:4], seed=dim)
    assert forward[0][1:] == (2, 256) and [launch[1:] for launch in backward[:2]] == [(2, 256)] * 2
    assert backward[1][0] == 2 * 2 + 1 * 1 + 1 + 1  # tiles of 8 x 8 queries


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dim, levels, fused", [(16, 5, True), (32, 3, False), (64, 2, True), (32, 1, True)])
def test_fast_encoder_in_16_bits(libraries, dtype, dim, levels, fused):
    case = encoder_case(PYRAMID[:levels], spread=2, dim=dim, batch=1)
    compare(libraries["sm_90"], case, PYRAMID[:levels], fused=fused, dtype=dtype)


def test_contributions_outside_the_window(libraries):
    """A map wider than the tiles' 32 x 32 window, and offsets that leave it."""
    shapes = ((6, 70), (3, 35))
    compare(libraries["sm_90"], encoder_case(shapes, spread=20, batch=1, heads=1), shapes)


def test_as_many_queries_as_cells_that_are_not_the_cells(libraries):
    """Tiles only change the order of work: random reference points give correct results too."""
    case = make_case(batch=2, heads=2, dim=32, queries=cells(PYRAMID), shapes=PYRAMID, points=4, spread=3)
    compare(libraries["sm_80"], case, PYRAMID)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dim, points, levels", [(8, 4, 4), (40, 1, 2), (32, 5, 5), (33, 9, 4)])
def test_generic(libraries, dtype, dim, points, levels):
    case = make_case(batch=2, heads=3, dim=dim, queries=11, shapes=PYRAMID[:levels], points=points, spread=2)
    forward, backward = compare(libraries["sm_80"], case, PYRAMID[:levels], fused=points != 1, dtype=dtype)
    assert forward[0][1:] == (1, 256) and backward[0][1:] == (1, 256)


def test_double_is_generic(libraries):
    case = encoder_case(PYRAMID[:4], spread=2, batch=1)
    forward, _ = compare(libraries["sm_80"], case, PYRAMID[:4], dtype=torch.float64)
    assert forward[0][1:] == (1, 256)


def test_misaligned_tensors_are_generic(libraries):
    """A slice of a larger tensor can be contiguous without the alignment for 16-byte loads."""
    shapes = PYRAMID[:2]
    case = make_case(batch=1, heads=1, dim=32, queries=5, shapes=shapes, points=4)
    value, *points = (tensor.float() for tensor in case)
    shifted = torch.empty(value.numel() + 1)[1:].view(value.shape).copy_(value)
    emulated = Emulated(libraries["sm_80"], shifted, shapes, *points)
    exact = [tensor.double() for tensor in points]
    expected = reference.ms_deform_attn_fused(value.double(), shapes, *exact)
    assert relative_error(emulated.forward(), expected) <= TOLERANCE[torch.float32]
    assert emulated.launches[0][1:] == (1, 256)


@pytest.mark.parametrize("shapes", [((1, 1),), ((1, 1), (1, 1), (1, 1)), ((1, 40), (40, 1))])
def test_narrow_levels(library, shapes):
    compare(library, encoder_case(shapes, spread=1, heads=1), shapes)
    compare(library, make_case(batch=1, heads=1, dim=16, queries=3, shapes=shapes, points=4), shapes)


def test_points_on_borders(libraries):
    """On cell centres, map edges and a cell outside.

    Only the output and value's gradient are compared, because the other gradients are discontinuous there.
    """
    shapes = ((4, 6), (2, 3))
    steps = torch.tensor([-1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 5.0, 5.5, 6.0, 6.5])
    where = torch.cartesian_prod(steps, steps)[:, None].expand(100, 4, 2)  # in cells
    locations = torch.stack([(where + 0.5) / torch.tensor([w, h]) for h, w in shapes], 1)
    locations = locations[None, :, None].contiguous()
    weights = torch.rand(1, 100, 1, 2, 4)
    for dim in (32, 24):
        value = torch.randn(1, 30, 1, dim)
        exact = value.double().requires_grad_()
        expected = reference.ms_deform_attn(exact, shapes, locations.double(), weights.double())
        expected.sum().backward()
        emulated = Emulated(libraries["sm_90"], value, shapes, None, locations, weights)
        assert relative_error(emulated.forward(), expected.detach()) <= 3e-6
        for deterministic in (False, True):
            grad_value = emulated.backward(torch.ones_like(expected).float(), deterministic)[0]
            assert relative_error(grad_value, exact.grad) <= 3e-6


@pytest.mark.parametrize("queries", ["decoder", "encoder"])
@pytest.mark.parametrize("dim", [32, 24])
@pytest.mark.parametrize("where", [math.nan, math.inf, -math.inf, 1e30, 3e9, -40.0])
def test_points_that_are_nowhere(libraries, where, dim, queries):
    """They contribute nothing and get zero gradient; NaN in a cell affects only points that touch the cell.

    This includes cell 0.
    """
    shapes = ((5, 6), (2, 3))
    case = make_case(batch=2, heads=2, dim=dim, shapes=shapes, points=4)
    if queries == "encoder":
        case = encoder_case(shapes, spread=1, dim=dim)
    value, references, offsets, logits = (tensor.detach().float() for tensor in case)
    offsets[0, 1, 1, 0, 2, 0] = where
    offsets[1, 0, 0, 1, :, 1] = where
    value[0, 0] = value[1, 34] = math.nan
    emulated = Emulated(libraries["sm_90"], value, shapes, references, offsets, logits)
    output = emulated.forward()
    exact = [tensor.double().requires_grad_() for tensor in (value, references, offsets, logits)]
    expected = reference.ms_deform_attn_fused(exact[0], shapes, *exact[1:])
    torch.testing.assert_close(output, expected.float(), equal_nan=True, rtol=1e-4, atol=1e-5)
    upstream = torch.randn(output.shape)
    expected.backward(upstream.double())
    assert not expected.isnan().all()
    for deterministic in (False, True):
        grads = emulated.backward(upstream, deterministic)
        assert (grads[2][0, 1, 1, 0, 2] == 0).all() and (grads[2][1, 0, 0, 1] == 0).all()
        for mine, theirs in zip(grads, exact, strict=True):
            torch.testing.assert_close(mine, theirs.grad.float(), equal_nan=True, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dim", [32, 24])
@pytest.mark.parametrize("queries", [7, cells(PYRAMID[:2])])
def test_odd_logits_stay_in_their_item(libraries, dim, queries):
    case = make_case(batch=1, heads=2, dim=dim, queries=queries, shapes=PYRAMID[:2], points=4)
    value, references, offsets, logits = (tensor.detach().float() for tensor in case)
    logits[0, 1, 0, 3] = math.nan
    logits[0, 2, 1, 0] = math.inf
    logits[0, 3, 1, 5] = -math.inf
    offsets[0, 1, 0, 1, 2] = math.inf  # beside the NaN logit
    emulated = Emulated(libraries["sm_90"], value, PYRAMID[:2], references, offsets, logits)
    output = emulated.forward().view(queries, 2, dim)
    bad = torch.zeros(queries, 2, dtype=torch.bool)
    bad[1, 0] = bad[2, 1] = True
    assert torch.equal(output.isnan().all(-1), bad) and torch.equal(output.isnan().any(-1), bad)
    *_, grad_offsets, grad_logits = emulated.backward(torch.ones(1, queries, 2 * dim))
    assert torch.equal(grad_logits[0].isnan().any(-1), bad)
    assert (grad_offsets[0, 1, 0, 1, 2] == 0).all()  # a point at no finite place, for every weight


@pytest.mark.parametrize("batch, queries", [(0, 3), (2, 0), (0, 0)])
@pytest.mark.parametrize("dim", [32, 24])
def test_nothing_to_do(libraries, batch, queries, dim):
    case = make_case(batch=batch, queries=queries, heads=2, dim=dim, shapes=PYRAMID[:2], points=4)
    case = [tensor.detach().float() for tensor in case]
    emulated = Emulated(libraries["sm_90"], case[0], PYRAMID[:2], *case[1:])
    assert emulated.forward().shape == (batch, queries, 2 * dim)
    for deterministic in (False, True):
        grads = emulated.backward(torch.zeros(batch, queries, 2 * dim), deterministic)
        assert all((grad == 0).all() for grad in grads)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("scale", [1e-3, 1e4])
def test_deterministic(libraries, dtype, fused, scale):
    """As exact as sums of floats: fixed-point numbers of 61 bits lose less than 1e-12 (sums.cuh)."""
    value, references, offsets, logits = encoder_case(PYRAMID[:3], spread=1, batch=1, heads=2, dim=16)
    case = (value * scale, references, offsets, logits)
    compare(libraries["sm_90"], case, PYRAMID[:3], fused=fused, dtype=dtype, deterministic=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_deterministic_is_bit_equal_in_any_order(libraries, dtype):
    case = [t.float() for t in encoder_case(PYRAMID[:3], spread=1, batch=2, heads=2, dim=16)]
    case[0] = case[0].to(dtype)
    upstream = torch.randn(2, cells(PYRAMID[:3]), 32).to(dtype)
    results = {True: [], False: []}
    for seed in range(5):
        emulated = Emulated(libraries["sm_90"], case[0], PYRAMID[:3], *case[1:], seed=seed)
        for deterministic, runs in results.items():
            runs.append(emulated.backward(upstream, deterministic))
    first, *others = results[True]
    assert all(all(map(torch.equal, first, other)) for other in others)
    if dtype == torch.float32:  # the test would notice a change of order: floats add up to another sum
        assert not all(torch.equal(results[False][0][0], run[0]) for run in results[False][1:])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("where", ["grad_output", "logits"])
def test_deterministic_shows_what_is_not_finite(libraries, where, bad):
    """Fixed-point sums cannot be NaN, so the kernel sets the slice (one head of one image) to NaN."""
    case = [t.float() for t in encoder_case(PYRAMID[:2], spread=0.1, batch=2, heads=2, dim=16)]
    upstream = torch.randn(2, cells(PYRAMID[:2]), 2, 16)
    (upstream if where == "grad_output" else case[3])[1, 3, 0, 5] = bad
    emulated = Emulated(libraries["sm_90"], case[0], PYRAMID[:2], *case[1:])
    grad = emulated.backward(upstream.flatten(2), deterministic=True)[0]
    assert grad[1, :, 0].isnan().all() and grad[1, :, 1].isfinite().all() and grad[0].isfinite().all()


@linux_only
@pytest.mark.parametrize("dim", [64, 66])
def test_offsets_past_2_to_the_31(libraries, dim):
    """The third image begins more than 2^31 elements after value's start.

    Only pages that are read use memory.
    """
    height, width, heads = 2**9, 2**13 - 1, 8  # fast for 64: just less than 2^31 elements an image
    value = zeros(2 * height * width * heads * dim).view(torch.bfloat16).view(4, height * width, heads, dim)
    value[2, -1, -1] = torch.arange(dim)
    value[2, 0, 0] = 3
    first, last = [0.5 / width, 0.5 / height], [1 - 0.5 / width, 1 - 0.5 / height]
    locations = torch.tensor([first, last], dtype=torch.float32)
    locations = locations.view(1, 2, 1, 1, 1, 2).expand(4, 2, heads, 1, 4, 2)
    weights = torch.full((4, 2, heads, 1, 4), 0.25)
    emulated = Emulated(libraries["sm_90"], value, [(height, width)], None, locations, weights)
    output = emulated.forward().view(4, 2, heads, dim)[2].float()
    assert emulated.launches[0][1] == (4 if dim == 64 else 1)
    # Locations near 1 are off by 2^-24 of the map's width, here 2^-11 cells; the map is 0 elsewhere.
    torch.testing.assert_close(output[0, 0], torch.full((dim,), 3.0), rtol=0.01, atol=0)
    torch.testing.assert_close(output[1, -1], torch.arange(dim).float(), rtol=0.01, atol=0)
    assert output[0, 1:].abs().max() == 0 == output[1, :-1].abs().max()
