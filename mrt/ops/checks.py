"""Checks of the op's arguments.

The same functions check real and fake tensors, so both raise the same errors for the same input.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral

import torch
from torch import Tensor

MAX_LEVELS = 16  # as in csrc/ms_deform_attn.h, like the next
MAX_CELLS = 2**31 - 2  # kernels index an image's cells with 32 bits
INTEGERS = (int, torch.SymInt, Integral)
VALUE_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def check_plain(
    value: Tensor,
    spatial_shapes: Sequence[Sequence[int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> None:
    """Check the arguments of :func:`mrt.ops.ms_deform_attn`.

    Raises:
        ValueError: a shape, a device or a level size does not fit.
        TypeError: a dtype does not fit.
    """
    op = "ms_deform_attn"
    levels = _check_value(op, value, spatial_shapes)
    batch, _, heads, _ = value.shape
    if sampling_locations.dim() != 6:
        raise ValueError(
            f"{op}: sampling_locations must have 6 dimensions (N, Q, M, L, P, 2), "
            f"got shape {tuple(sampling_locations.shape)}"
        )
    queries, points = sampling_locations.shape[1], sampling_locations.shape[4]
    shape = batch, queries, heads, levels, points
    _check_like(op, value, "sampling_locations", sampling_locations, "(N, Q, M, L, P, 2)", (*shape, 2))
    _check_like(op, value, "attention_weights", attention_weights, "(N, Q, M, L, P)", shape)
    _check_points(op, points)


def check_fused(
    value: Tensor,
    spatial_shapes: Sequence[Sequence[int]],
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
) -> None:
    """Check the arguments of :func:`mrt.ops.ms_deform_attn_fused`; raises as :func:`check_plain`."""
    op = "ms_deform_attn_fused"
    levels = _check_value(op, value, spatial_shapes)
    batch, _, heads, _ = value.shape
    if sampling_offsets.dim() != 6:
        raise ValueError(
            f"{op}: sampling_offsets must have 6 dimensions (N, Q, M, L, P, 2), "
            f"got shape {tuple(sampling_offsets.shape)}"
        )
    queries, points = sampling_offsets.shape[1], sampling_offsets.shape[4]
    shape = batch, queries, heads, levels, points, 2
    given = sampling_offsets.dtype if _of_16_bits(value, sampling_offsets, attention_logits) else None
    _check_like(op, value, "sampling_offsets", sampling_offsets, "(N, Q, M, L, P, 2)", shape, given)
    _check_like(op, value, "reference_points", reference_points, "(N, Q, L, 2)", (batch, queries, levels, 2))
    shape = batch, queries, heads, levels * points
    _check_like(op, value, "attention_logits", attention_logits, "(N, Q, M, L*P)", shape, given)
    _check_points(op, points)


def check_grad_output(op: str, value: Tensor, queries: int, grad_output: Tensor) -> None:
    """Check that a gradient has the shape, dtype and device of the op's output."""
    batch, _, heads, dim = value.shape
    expected = batch, queries, heads * dim
    alike = grad_output.dtype == value.dtype and grad_output.device == value.device
    if tuple(grad_output.shape) != expected or not alike:
        raise ValueError(
            f"{op}: grad_output must be {value.dtype} of shape (N, Q, M*D) = {expected} on {value.device}, "
            f"got {grad_output.dtype} of shape {tuple(grad_output.shape)} on {grad_output.device}"
        )


def _check_value(op: str, value: Tensor, spatial_shapes: Sequence[Sequence[int]]) -> int:
    if value.dim() != 4:
        raise ValueError(f"{op}: value must have 4 dimensions (N, S, M, D), got shape {tuple(value.shape)}")
    if value.dtype not in VALUE_DTYPES:
        raise TypeError(f"{op}: value must be float32, bfloat16, float16 or float64, got {value.dtype}")
    if value.shape[2] < 1 or value.shape[3] < 1:
        raise ValueError(
            f"{op}: value (N, S, M, D) needs at least one head and one channel, "
            f"got shape {tuple(value.shape)}"
        )
    if isinstance(spatial_shapes, Tensor):
        raise TypeError(
            f"{op}: spatial_shapes must be a sequence of (H, W) integers, got a tensor; "
            "pass spatial_shapes.tolist()"
        )
    if not 1 <= len(spatial_shapes) <= MAX_LEVELS:
        given = len(spatial_shapes)
        raise ValueError(f"{op}: spatial_shapes must name 1 to {MAX_LEVELS} levels, got {given}")
    cells = 0
    for shape in spatial_shapes:
        if not _is_size(shape):
            given = tuple(shape) if hasattr(shape, "__len__") else shape
            raise ValueError(
                f"{op}: every entry of spatial_shapes must be (H, W), two integers of at least 1, got {given}"
            )
        cells += shape[0] * shape[1]
    if value.shape[1] > MAX_CELLS:
        raise ValueError(
            f"{op}: value (N, S, M, D) may have at most {MAX_CELLS} cells an image, got S = {value.shape[1]}"
        )
    if cells != value.shape[1]:
        levels = [tuple(shape) for shape in spatial_shapes]
        raise ValueError(
            f"{op}: spatial_shapes {levels} hold {cells} cells, "
            f"but value (N, S, M, D) has S = {value.shape[1]}"
        )
    return len(spatial_shapes)


def _is_size(shape: object) -> bool:
    """Whether this is (H, W) of a level.

    Tensors are not accepted: reading one from a GPU would wait for it.
    """
    if not hasattr(shape, "__len__") or len(shape) != 2:
        return False
    height, width = shape
    return isinstance(height, INTEGERS) and isinstance(width, INTEGERS) and height >= 1 and width >= 1


def _of_16_bits(value: Tensor, offsets: Tensor, logits: Tensor) -> bool:
    """Whether offsets and logits are both of one 16-bit dtype, as a linear layer gave them."""
    narrow = offsets.dtype in (torch.bfloat16, torch.float16) and value.dtype != torch.float64
    return narrow and offsets.dtype == logits.dtype


def _check_like(
    op: str,
    value: Tensor,
    name: str,
    tensor: Tensor,
    names: str,
    expected: tuple[int, ...],
    dtype: torch.dtype | None = None,
) -> None:
    if tensor.shape != expected:
        raise ValueError(f"{op}: {name} must have shape {names} = {expected}, got {tuple(tensor.shape)}")
    dtype = dtype or (torch.float64 if value.dtype == torch.float64 else torch.float32)
    if tensor.dtype != dtype:
        raise TypeError(
            f"{op}: {name} must be {dtype} where value is {value.dtype}, got {tensor.dtype} "
            f"(16-bit locations miss their cell); pass {name}.to({dtype})"
        )
    if tensor.device != value.device:
        raise ValueError(f"{op}: {name} is on {tensor.device}, but value is on {value.device}")


def _check_points(op: str, points: int) -> None:
    if points < 1:
        raise ValueError(f"{op}: there must be at least one sampling point per level, got P = {points}")
