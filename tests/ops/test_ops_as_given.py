"""Offsets and logits as a model has them: slices of one product, with 16 bits under autocast.

Kernels read them where they are and write gradients of the same dtype; locations are computed in float32.
"""

from __future__ import annotations

import pytest
import torch
from ops_cases import (
    BACKENDS,
    TOLERANCE,
    make_case,
    needs_native,
    relative_error,
    use_backend,
)
from torch.utils._python_dispatch import TorchDispatchMode

from mrt.ops import ms_deform_attn_fused, native, reference

SHAPES = ((9, 13), (5, 7), (3, 4))
FLAT = [9, 13, 5, 7, 3, 4]
CELLS = 164
# Queries, heads, D, P: in place on a CPU and fast on a GPU; tiles; several passes over channels; parts of
# vectors.
SIZES = [(7, 3, 32, 4), (CELLS, 2, 16, 4), (11, 2, 130, 4), (9, 3, 5, 3)]


def product_of(offsets: torch.Tensor, logits: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """(N, Q, M*L*P*3): offsets and logits of a query beside each other, as one linear layer gives them."""
    return torch.cat((offsets.flatten(2), logits.flatten(2)), -1).to(dtype)


def taken_from(product: torch.Tensor, like: tuple[torch.Tensor, torch.Tensor]) -> list[torch.Tensor]:
    """The slices of :func:`product_of`, in the shapes of ``like``."""
    sizes = [tensor[0, 0].numel() for tensor in like]
    return [
        part.unflatten(-1, each.shape[2:]) for part, each in zip(product.split(sizes, -1), like, strict=True)
    ]


def inputs_of(size, dtype, value_dtype):
    queries, heads, dim, points = size
    sizes = {"queries": queries, "heads": heads, "dim": dim, "points": points, "shapes": SHAPES}
    value, references, *rest = (
        t.detach() for t in make_case(**sizes, batch=2, dtype=torch.float32, spread=2)
    )
    product = product_of(*rest, dtype)
    return value.to(value_dtype), references, product, rest


@pytest.mark.parametrize("device, backend", BACKENDS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("fixed", [True, False], ids=["fixed references", "references that learn"])
def test_slices_of_one_product(monkeypatch, device, backend, size, dtype, fixed):
    """Against float64 on the same rounded numbers; a 16-bit gradient is rounded once, at the end."""
    use_backend(monkeypatch, device, backend)
    value, references, product, like = inputs_of(size, dtype, dtype)
    ours = [tensor.to(device, copy=True) for tensor in (value, references, product)]
    exact = [tensor.double() for tensor in (value, references, product)]
    for tensor in (*ours, *exact):
        tensor.requires_grad_(not fixed or tensor is not ours[1])
    output = ms_deform_attn_fused(ours[0], SHAPES, ours[1], *taken_from(ours[2], like))
    expected = reference.ms_deform_attn_fused(exact[0], SHAPES, exact[1], *taken_from(exact[2], like))
    upstream = torch.randn_like(expected).to(dtype)
    output.backward(upstream.to(device))
    expected.backward(upstream.double())
    assert output.dtype == ours[2].grad.dtype == dtype
    assert relative_error(output, expected) <= TOLERANCE[dtype]
    assert relative_error(ours[0].grad, exact[0].grad) <= TOLERANCE[dtype]
    for mine, theirs in zip(*(taken_from(each.grad, like) for each in (ours[2], exact[2])), strict=True):
        assert relative_error(mine, theirs) <= TOLERANCE[dtype]
    assert (ours[1].grad is None) == fixed
    if not fixed:  # from the offsets' gradients before these are rounded
        assert ours[1].grad.dtype == torch.float32
        assert relative_error(ours[1].grad, exact[1].grad) <= TOLERANCE[dtype]


@needs_native
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("value_dtype", [torch.float32, torch.bfloat16])
def test_the_same_bits_as_from_copies_in_float32(size, dtype, value_dtype):
    value, references, product, like = inputs_of(size, dtype, value_dtype)
    backward = torch.ops.mrt.ms_deform_attn_fused_backward.default
    upstream = torch.randn(*product.shape[:2], size[1] * size[2]).to(value_dtype)
    given = taken_from(product, like)
    copies = [part.float().contiguous() for part in given]
    assert not any(part.is_contiguous() for part in given)
    theirs = backward(upstream, value, FLAT, references, *copies)
    for skip in (False, True):
        mine = backward(upstream, value, FLAT, references, *given, False, skip)
        assert torch.equal(mine[0], theirs[0])
        assert mine[1].numel() == 0 if skip else torch.equal(mine[1], theirs[1])
        for one, other in zip(mine[2:], theirs[2:], strict=True):
            assert one.is_contiguous() and torch.equal(one, other.to(dtype))
    mine = native.ms_deform_attn_fused(value, FLAT, references, *given)
    assert torch.equal(mine, native.ms_deform_attn_fused(value, FLAT, references, *copies))


class Copies(TorchDispatchMode):
    """Every op that makes a tensor of at least a product's size, by name."""

    def __init__(self, numbers: int) -> None:
        super().__init__()
        self.numbers, self.seen = numbers, []

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        results = function(*arguments, **(keywords or {}))
        for tensor in results if isinstance(results, tuple) else [results]:
            if isinstance(tensor, torch.Tensor) and tensor.numel() >= self.numbers and not tensor._is_view():
                self.seen.append(function.name())
        return results


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_is_copied_on_the_way(dtype):
    """Under autocast too: from the product to the kernels and, backward, one copy that joins the slices."""
    value, references, product, like = inputs_of((50, 2, 32, 4), dtype, dtype)
    value, product = value.requires_grad_(), product.requires_grad_()
    with Copies(like[1].numel()) as copies, torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        output = ms_deform_attn_fused(value, SHAPES, references, *taken_from(product, like))
        upstream = torch.ones_like(output)
        output.backward(upstream)
    made = [name.removeprefix("aten::") for name in copies.seen if "ones_like" not in name]
    forward, backward = "mrt::ms_deform_attn_fused", "mrt::ms_deform_attn_fused_backward"
    assert made.count(forward) == 1 and made.count(backward) == 3, (
        made
    )  # value's, offsets', logits' gradients
    others = {name for name in made if not name.startswith("mrt")}
    assert not {"_to_copy", "clone", "contiguous"} & others, others


@needs_native
def test_rows_that_overlap_or_repeat():
    """Rows of stride 0, N or Q of one, and layouts that are no rows at all."""
    value, references, product, like = inputs_of((7, 3, 32, 4), torch.float32, torch.float32)
    offsets, logits = taken_from(product, like)

    def same(value, references, offsets, logits):
        mine = native.ms_deform_attn_fused(value, FLAT, references, offsets, logits)
        theirs = native.ms_deform_attn_fused(
            value, FLAT, references, offsets.contiguous(), logits.contiguous()
        )
        assert torch.equal(mine, theirs)

    same(value[:1], references[:1], offsets[:1], logits[:1])
    same(value, references[:, :1], offsets[:, 3:4], logits[:, 3:4])
    same(value, references, offsets[:1, :1].expand_as(offsets), logits[:, :1].expand_as(logits))
    same(value, references, offsets[:1].expand_as(offsets), logits.flip(1).flip(1))
    same(value, references, offsets.transpose(0, 1).contiguous().transpose(0, 1), logits)
    same(value, references[:, ::2], offsets[:, ::2], logits[:, ::2])
    wide = torch.empty(*offsets.shape[:-1], 4)[..., ::2].copy_(offsets)
    same(value, references, wide, logits)
    heads = torch.empty(*logits.shape[:2], 6, logits.shape[3])[:, :, ::2].copy_(logits)
    same(value, references, offsets, heads)
