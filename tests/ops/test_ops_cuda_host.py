"""The CUDA host file, which otherwise only a GPU executes, over the emulated kernels (emulator/host.cpp)."""

from __future__ import annotations

import ctypes

import pytest
import torch
from cuda_emulator import COMPILER, build_host, objects_of
from ops_cases import TOLERANCE, make_case, plain_inputs, relative_error
from test_ops_as_given import product_of, taken_from

from mrt.ops import reference

pytestmark = pytest.mark.skipif(COMPILER is None, reason="the emulator needs g++")
SHAPES = ((3, 9), (2, 3))
FLAT = [3, 9, 2, 3]
CELLS = 33
FAST, GENERIC, TILES = 128, 256, 256  # threads of a block


@pytest.fixture(scope="module")
def host(libraries, emulator_folder):
    return build_host(emulator_folder, list(objects_of(emulator_folder).values()))


def launches(host) -> list[tuple[int, int]]:
    """(images in the grid's y, threads of a block) of the launches since the last ``emulated_begin``."""
    sizes = (ctypes.c_int64 * 48)()
    count = host.emulated_launches(sizes, 16)
    return [(sizes[3 * i + 1], sizes[3 * i + 2]) for i in range(count)]


def case_of(fused=True, **options):
    sizes = {"batch": 2, "heads": 2, "dim": 32, "queries": 7, "points": 4, "shapes": SHAPES} | options
    case = make_case(**sizes, dtype=torch.float32, spread=2)
    return [tensor.detach() for tensor in (case if fused else plain_inputs(case, sizes["shapes"]))]


def check(host, inputs, shapes=SHAPES, *, upstream=None, flags=(False,)):
    """Compare output and gradients with the reference in float64; returns the launches."""
    name = "ms_deform_attn_fused" if len(inputs) == 4 else "ms_deform_attn"
    flat = [side for shape in shapes for side in shape]
    exact = [tensor.double().requires_grad_() for tensor in inputs]
    expected = getattr(reference, name)(exact[0], shapes, *exact[1:])
    if upstream is None:
        upstream = torch.randn_like(expected).to(inputs[0].dtype)
    expected.backward(upstream.double())
    host.emulated_begin(1)
    output = getattr(host.ops, name)(inputs[0], flat, *inputs[1:])
    grads = getattr(host.ops, name + "_backward")(upstream, inputs[0], flat, *inputs[1:], *flags)
    skipped = len(flags) > 1 and flags[1]
    # A device and a stream for each pass, and for the references' gradient.
    asked = 2 + (len(inputs) == 4 and not skipped)
    assert host.emulated_guards() == host.emulated_streams() == asked
    dtype = inputs[0].dtype
    assert output.dtype == dtype and output.is_contiguous()
    assert relative_error(output, expected.detach()) <= TOLERANCE[dtype]
    for place, (given, mine, theirs) in enumerate(zip(inputs, grads, exact, strict=True)):
        assert mine.dtype == given.dtype and mine.is_contiguous()
        if skipped and place == 1:
            assert mine.shape == (*given.shape[:2], 0, 2)
        else:
            assert relative_error(mine, theirs.grad) <= TOLERANCE[dtype], place
    return launches(host)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_every_dtype(host, dtype, fused):
    value, *points = case_of(fused)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    seen = check(host, [value.to(dtype), *(tensor.to(wide) for tensor in points)])
    assert seen[0] == ((1, GENERIC) if dtype == torch.float64 else (2, FAST))
    assert len(seen) == 2 + fused


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("queries, dim", [(7, 32), (CELLS, 16), (7, 24)])
@pytest.mark.parametrize("value_dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_slices_of_one_product(host, dtype, value_dtype, queries, dim, skip):
    """Read where they are: no strided tensor makes a fast call generic, and 16-bit gradients come rounded."""
    value, references, *rest = case_of(queries=queries, dim=dim)
    given = taken_from(product_of(*rest, dtype), rest)
    assert not any(part.is_contiguous() for part in given)
    seen = check(host, [value.to(value_dtype), references, *given], flags=(False, skip))
    fast = dim != 24
    assert seen[0][0] == (2 if fast else 1)
    tiles = queries == CELLS
    assert len(seen) == 2 + tiles + (not skip)  # forward, backward, the references' gradient


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("queries", [7, CELLS])
def test_deterministic(host, dtype, queries):
    """Generic kernels and integer sums, for 16-bit points too; the same bits in any order."""
    value, references, *rest = case_of(queries=queries, dim=16)
    given = taken_from(product_of(*rest, dtype), rest)
    inputs = [value.to(dtype), references, *given]
    seen = check(host, inputs, flags=(True, True))
    assert [threads for _, threads in seen] == [FAST if queries == 7 else TILES, GENERIC, GENERIC, GENERIC]
    upstream = torch.randn(2, queries, 32).to(dtype)
    runs = []
    for seed in (1, 2):
        host.emulated_begin(seed)
        backward = host.ops.ms_deform_attn_fused_backward
        runs.append(backward(upstream, inputs[0], FLAT, *inputs[1:], True, True))
    assert all(map(torch.equal, *runs))


def moved(tensor: torch.Tensor, how: str) -> torch.Tensor:
    """The same numbers in another layout; between them lies NaN."""
    if how == "misaligned":
        return tensor.new_full((tensor.numel() + 1,), torch.nan)[1:].view(tensor.shape).copy_(tensor)
    if how == "transposed":
        return tensor.transpose(0, 1).contiguous().transpose(0, 1)
    if how == "every second":
        room = tensor.new_full((*tensor.shape[:-1], 2 * tensor.shape[-1]), torch.nan)
        return room[..., ::2].copy_(tensor)
    return tensor.new_full((tensor.shape[0], tensor.shape[1], *tensor[0, 0].shape, 2), torch.nan)[
        ..., 0
    ].copy_(tensor)


@pytest.mark.parametrize("how", ["misaligned", "transposed", "every second", "apart"])
@pytest.mark.parametrize("place", ["value", "references", "points", "weights", "grad_output"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_strange_layouts(host, place, how, dtype):
    """Any tensor, strided or misaligned: it is copied, or left to the generic kernels."""
    value, references, *rest = case_of(queries=CELLS, dim=16)
    inputs = [value.to(dtype), references, *(tensor.to(dtype) for tensor in rest)]
    upstream = torch.randn(2, CELLS, 32).to(dtype)
    if place == "grad_output":
        seen = check(host, inputs, upstream=moved(upstream, how), flags=(False, True))
        assert len(seen) == (2 if how == "misaligned" else 3)
        return
    index = ("value", "references", "points", "weights").index(place)
    inputs[index] = moved(inputs[index], how)
    seen = check(host, inputs, upstream=upstream, flags=(False, True))
    generic = how == "misaligned" and place != "weights"  # weights are read one by one
    assert seen[0] == ((1, GENERIC) if generic else (2, TILES))


@pytest.mark.parametrize("batch, queries", [(0, 3), (2, 0), (0, 0)])
@pytest.mark.parametrize("dim", [32, 24])
@pytest.mark.parametrize("flags", [(False, False), (False, True), (True, False)])
def test_nothing_to_do(host, batch, queries, dim, flags):
    value, references, *rest = case_of(batch=batch, queries=queries, dim=dim)
    for dtype in (torch.float32, torch.bfloat16):
        points = [tensor.to(dtype) for tensor in rest]
        host.emulated_begin(0)
        output = host.ops.ms_deform_attn_fused(value.to(dtype), FLAT, references, *points)
        assert output.shape == (batch, queries, 2 * dim) and output.dtype == dtype
        backward = host.ops.ms_deform_attn_fused_backward
        grads = backward(output, value.to(dtype), FLAT, references, *points, *flags)
        assert [grad.dtype for grad in grads] == [dtype, torch.float32, dtype, dtype]
        assert all((grad == 0).all() for grad in grads)


@pytest.mark.soak
@pytest.mark.parametrize("batch", [65535, 65536])
def test_more_images_than_a_grid_has_room_for(host, batch):
    """Fast up to 65,535 images, the limit of a grid's second side."""
    value, references = torch.randn(batch, 1, 1, 16), torch.full((batch, 1, 1, 2), 0.5)
    offsets, logits = torch.zeros(batch, 1, 1, 1, 4, 2), torch.zeros(batch, 1, 1, 4)
    host.emulated_begin(0)
    output = host.ops.ms_deform_attn_fused(value, [1, 1], references, offsets, logits)
    assert torch.allclose(output, value.view(batch, 1, 16), rtol=0, atol=1e-6)
    assert launches(host)[0][0] == (batch if batch == 65535 else 1)


def test_it_refuses_what_does_not_fit(host):
    value, references, offsets, logits = case_of()
    fused = host.ops.ms_deform_attn_fused
    for wrong in (
        (value, references, offsets.bfloat16(), logits),
        (value, references, offsets.bfloat16(), logits.half()),
        (value, references.bfloat16(), offsets, logits),
        (value.double(), references.double(), offsets.bfloat16(), logits.bfloat16()),
        (value, references, offsets[:, :3], logits),
    ):
        with pytest.raises(RuntimeError, match="does not fit"):
            fused(wrong[0], FLAT, *wrong[1:])
