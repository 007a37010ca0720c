"""Operations that keep less for their backward pass than the PyTorch ones they are made of. Compiled code decides that for itself."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


class _ReluDropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, p: float) -> Tensor:
        ctx.p = p
        output = F.dropout(F.relu(x), p)
        ctx.save_for_backward(output)
        return output

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        (output,) = ctx.saved_tensors
        return torch.ops.aten.threshold_backward(gradient, output, 0).mul_(1 / (1 - ctx.p)), None


def relu_dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """``dropout(relu(x))``, keeping for the backward pass its result alone: an entry above 0 was neither negative nor dropped.

    The next layer keeps that anyway, so relu's own result and dropout's mask, three fifths of what a feed-forward network keeps, are
    spared.
    """
    if not training or p == 0 or torch.compiler.is_compiling():
        return F.dropout(F.relu(x), p, training)
    return _ReluDropout.apply(x, p)


class _LinearOfSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, first: Tensor, second: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(first, second, weight)
        return F.linear(first + second, weight, bias)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        first, second, weight = ctx.saved_tensors
        total = gradient @ weight.to(gradient.dtype)
        rows = gradient.flatten(0, -2)
        of_weight = rows.mT @ (first + second).to(gradient.dtype).flatten(0, -2)
        return total.sum_to_size(first.shape), total.sum_to_size(second.shape), of_weight, rows.sum(0)


def linear_of_sum(first: Tensor, second: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``linear(first + second, weight, bias)``, adding the two up again in the backward pass instead of keeping their sum.

    Args:
        first, second: (..., in), of shapes that can be added. Something else should keep them anyway, or nothing is spared.
        weight: (out, in). bias: (out,).
    """
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return F.linear(first + second, weight, bias)
    return _LinearOfSum.apply(first, second, weight, bias)
