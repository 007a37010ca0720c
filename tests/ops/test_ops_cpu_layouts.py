"""Features of the C++ kernels: reading value in place, slices divided among threads, 16-bit conversion."""

from __future__ import annotations

import pytest
import torch
from ops_cases import make_case, needs_native
from test_ops_agreement import compare

from mrt.ops import native

SHAPES = ((16, 32), (8, 16))  # 640 cells
FLAT = [16, 32, 8, 16]
pytestmark = needs_native


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def fused_results(case, shapes=FLAT):
    output = native.ms_deform_attn_fused(case[0], shapes, *case[1:])
    upstream = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
    return [output.detach(), *torch.autograd.grad(output, case, upstream)]


@pytest.mark.parametrize("dim", [8, 16, 32, 64, 128, 24])
@pytest.mark.parametrize("queries", [11, 300])  # 11 * 2 * 4 points are fewer than 640 cells, 300 * 2 * 4 more
def test_few_queries_and_many(dim, queries):
    case = make_case(batch=2, heads=3, dim=dim, queries=queries, points=4, shapes=SHAPES, spread=4)
    compare(case, SHAPES, fused=True, value_dtype=torch.float32)


def test_rows_in_place_and_copied_give_the_same_bits():
    """For three queries alone the map is read in place; with 400 more of zero gradient it is copied."""

    def with_more(tensor: torch.Tensor) -> torch.Tensor:
        return torch.cat((tensor, tensor.new_zeros(2, 400, *tensor.shape[2:])), 1)

    case = make_case(batch=2, heads=2, dim=32, queries=3, points=4, shapes=SHAPES, dtype=torch.float32)
    few = [tensor.detach() for tensor in case]
    many = [few[0], *map(with_more, few[1:])]
    upstream = torch.randn(2, 3, 64, generator=torch.Generator().manual_seed(0))
    backward = torch.ops.mrt.ms_deform_attn_fused_backward.default
    flags = [False] * (len(backward._schema.arguments) - 6)  # `deterministic`
    alone = backward(upstream, few[0], FLAT, *few[1:], *flags)
    among = backward(with_more(upstream), many[0], FLAT, *many[1:], *flags)
    assert torch.equal(alone[0], among[0])
    assert all(torch.equal(one, other[:, :3]) for one, other in zip(alone[1:], among[1:], strict=True))
    output = native.ms_deform_attn_fused(few[0], FLAT, *few[1:])
    assert torch.equal(output, native.ms_deform_attn_fused(many[0], FLAT, *many[1:])[:, :3])


@pytest.mark.parametrize("value_dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("heads, dim", [(1, 32), (2, 130), (1, 5)])
def test_a_slice_divided_among_threads(threads, value_dtype, heads, dim):
    case = make_case(batch=1, heads=heads, dim=dim, queries=641, points=4, shapes=SHAPES)
    threads(5)
    compare(case, SHAPES, fused=True, value_dtype=value_dtype)


def test_as_many_threads_give_the_same_bits_again(threads):
    """Any number of threads up to the number of slices gives the same bits.

    With more threads, value's gradient is summed in another order.
    """
    case = make_case(batch=1, heads=3, dim=32, queries=2000, points=4, shapes=SHAPES, dtype=torch.float32)
    results = {}
    for count in (1, 2, 3, 7):
        threads(count)
        results[count] = fused_results(case)
        assert all(map(torch.equal, results[count], fused_results(case))), count
    for count in (2, 3):
        assert all(map(torch.equal, results[1], results[count])), count
    for index in (0, 2, 3, 4):  # all but value's gradient
        assert torch.equal(results[1][index], results[7][index])
    error = (results[1][1] - results[7][1]).abs().max() / results[1][1].abs().max()
    assert error <= 2e-6  # measured: 2e-7, a rounding or two of float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dim", [1, 64])  # read one by one, and in whole vectors
def test_every_16_bit_number_is_read_and_written_right(dtype, dim):
    """Each of the 65,536 numbers is a map of one cell, sampled at its centre with weight one."""
    numbers = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    value = numbers.view(-1, 1, 1, dim)
    where = torch.full((len(value), 1, 1, 1, 1, 2), 0.5)
    output = native.ms_deform_attn(value, [1, 1], where, torch.ones(len(value), 1, 1, 1, 1))
    assert torch.equal(output.flatten().nan_to_num(7.0), numbers.nan_to_num(7.0))
    assert torch.equal(output.flatten().isnan(), numbers.isnan())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dim", [1, 64])
def test_rounding_to_16_bits_is_pytorchs(dtype, dim):
    """Finite floats of all sizes, also half-way between two 16-bit numbers, as weights of a cell of ones."""
    bits = torch.randint(-(2**31), 2**31, (100_000,), generator=torch.Generator().manual_seed(0))
    half_way = (bits >> 16 << 16) + torch.tensor([0x8000, 0x1000, 0x3000, 0x7FFF]).repeat(25_000)
    large, small = [65504.0, 65519.996, 65520.0, 3.4e38, 3.3953e38], [2.0**-14, 6.1e-5]
    edges = torch.tensor([*large, *small, 2.0**-24, 2.0**-25, 1.5 * 2.0**-25, 0.0])
    weights = torch.cat((bits.int().view(torch.float32), half_way.int().view(torch.float32), edges, -edges))
    weights = weights[weights.isfinite()].view(1, -1, 1, 1, 1)
    where = torch.full((*weights.shape, 2), 0.5)
    output = native.ms_deform_attn(torch.ones(1, 1, 1, dim, dtype=dtype), [1, 1], where, weights)
    assert torch.equal(output, weights.view(1, -1, 1).expand_as(output).to(dtype))
