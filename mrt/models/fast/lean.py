"""Operations that keep fewer activations for the backward pass than the PyTorch operations they consist of.

Compiled code and ``torch.func`` use the PyTorch operations instead. Second derivatives raise an error.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mrt.models.fast.precision import autocast_dtype
from mrt.ops import transforms


class _FeedForward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor, p: float
    ) -> Tensor:
        weight1 = weight1.to(x.dtype)
        hidden = _hidden(x, weight1, bias1)
        if p:
            hidden = F.dropout(hidden, p)
        ctx.p = p
        ctx.save_for_backward(x, hidden, weight1, weight2)
        return _product(hidden, weight2, bias2)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, hidden, weight1, weight2 = ctx.saved_tensors
        rows, hidden = gradient.flatten(0, -2), hidden.flatten(0, -2)
        # Dropout scales what it keeps by 1/(1 - p). Scaling the matrix is cheaper: it is smaller than the
        # activations.
        inner = rows @ (weight2 / (1 - ctx.p)).to(rows.dtype)
        inner = torch.ops.aten.threshold_backward(inner, hidden, 0)
        of_x = (inner @ weight1).view_as(x)
        return of_x, inner.mT @ x.flatten(0, -2), inner.sum(0), rows.mT @ hidden, rows.sum(0), None


def _hidden(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """relu of the linear layer, computed inside the matrix product's kernel."""
    rows = torch._addmm_activation(bias.to(x.dtype), x.flatten(0, -2), weight.to(x.dtype).mT)
    return rows.unflatten(0, x.shape[:-1])


def _product(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.linear(x, weight.to(x.dtype), bias.to(x.dtype))


def feed_forward(x: Tensor, first: nn.Linear, second: nn.Linear, p: float = 0.0) -> Tensor:
    """``second(dropout(relu(first(x)), p))`` of x (..., B, d).

    Of the wide hidden activations only the input of ``second`` is kept for the backward pass. Where it is
    above 0, the value was neither negative nor dropped, so the result of relu and the mask of dropout are not
    needed. In 16 bits with dropout this saves three fifths of the memory, and two passes over the hidden
    activations.

    Both layers must have biases. Their hooks are not called.
    """
    if not transforms.none() or x.dtype != (autocast_dtype(x) or first.weight.dtype):
        return second(F.dropout(F.relu(first(x)), p))
    if torch.is_grad_enabled():
        return _FeedForward.apply(x, first.weight, first.bias, second.weight, second.bias, p)
    return _product(F.dropout(_hidden(x, first.weight, first.bias), p), second.weight, second.bias)


class _LinearOfSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, first: Tensor, second: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        weight = weight.to(autocast_dtype(weight) or weight.dtype)
        ctx.save_for_backward(first, second, weight)
        return F.linear(first + second, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        first, second, weight = ctx.saved_tensors
        total = gradient @ weight
        rows = gradient.flatten(0, -2)
        of_weight = rows.mT @ (first + second).to(gradient.dtype).flatten(0, -2)
        return total.sum_to_size(first.shape), total.sum_to_size(second.shape), of_weight, rows.sum(0)


def linear_of_sum(first: Tensor, second: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``linear(first + second, weight, bias)``.

    The backward pass adds the two again instead of keeping their sum.

    Args:
        first, second: (..., in), of shapes that can be added. This only saves memory if other operations keep
            both of them anyway.
        weight: (out, in).
        bias: (out,).
    """
    if not torch.is_grad_enabled() or not transforms.none():
        return F.linear(first + second, weight, bias)
    return _LinearOfSum.apply(first, second, weight, bias)
