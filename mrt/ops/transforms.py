"""The kernels under ``torch.func``: ``vmap`` extends the batch, other transforms need plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._C._functorch import TransformType, get_interpreter_stack
from torch.autograd import forward_ad

from mrt.ops import native

OPS = ("ms_deform_attn", "ms_deform_attn_backward", "ms_deform_attn_fused", "ms_deform_attn_fused_backward")


def differentiating() -> bool:
    """Whether ``torch.func.grad``, ``vjp``, ``jacrev``, ``jvp`` or forward-mode differentiation is active.

    These do not support custom operators: PyTorch (2.11 to 2.14) raises an error without a remedy in the
    first three, and silently assumes zero tangents in the last two. Plain PyTorch operators differentiate
    properly, or raise an error.
    """
    if torch.compiler.is_compiling():
        return False
    levels = get_interpreter_stack() or ()
    return forward_ad._current_level >= 0 or any(level.key() == TransformType.Grad for level in levels)


def none() -> bool:
    """Whether code is neither compiled nor transformed by ``torch.func`` or forward-mode differentiation.

    Only then can autograd functions written in Python be used.
    """
    return not torch.compiler.is_compiling() and not get_interpreter_stack() and forward_ad._current_level < 0


def under_autocast(tensor: Tensor) -> bool:
    """Whether autocast is on for the tensor's device. (For "meta", PyTorch would raise an error.)"""
    return not tensor.is_meta and torch.is_autocast_enabled(tensor.device.type)


def _joined(op):
    """The rule of ``torch.vmap`` for ``op``.

    N is the first dimension of every tensor and result, so B mapped batches of N are one batch of B*N.
    """

    def stacked(arg, dim, size: int):
        if not isinstance(arg, Tensor):
            return arg
        return arg.expand(size, *arg.shape) if dim is None else arg.movedim(dim, 0)

    def rule(info, in_dims, *args):
        stacks = [stacked(*pair, info.batch_size) for pair in zip(args, in_dims, strict=True)]
        results = op(*(stack.flatten(0, 1) if isinstance(stack, Tensor) else stack for stack in stacks))
        split = stacks[0].shape[:2]  # (B, N); the first argument is a tensor
        if isinstance(results, Tensor):
            return results.unflatten(0, split), 0
        return tuple(result.unflatten(0, split) for result in results), (0,) * len(results)

    return rule


if native.load_error is None:
    for _name in OPS:
        torch.library.register_vmap(f"mrt::{_name}", _joined(getattr(torch.ops.mrt, _name).default))
