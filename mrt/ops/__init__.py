"""Multi-scale deformable attention with three backends: CUDA and C++ kernels from ``csrc/``, plain PyTorch.

``MRT_OPS_BACKEND`` (read when this module is imported) overrides the choice: ``auto`` (default), ``python``
(never the kernels), ``cpu`` or ``cuda`` (the kernels or an error; tensors on other devices as in ``auto``).

``torch.vmap`` works with the kernels; inside ``torch.func.grad`` and similar transforms the PyTorch path is
taken. The kernels have no second derivative and raise an error; the PyTorch path has one since PyTorch 2.13.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mrt.ops import native, reference, transforms
from mrt.ops.checks import check_fused, check_plain
from mrt.ops.native import backend, fallback_reason, without_kernels

__all__ = ["backend", "fallback_reason", "ms_deform_attn", "ms_deform_attn_fused", "without_kernels"]


def ms_deform_attn(
    value: Tensor,
    spatial_shapes: Sequence[Sequence[int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """Weighted sum of bilinear samples from several feature maps.

    This is equation 2 of Deformable DETR without its linear layers. A sampling point that is not finite, or
    one or more cells outside its map, contributes nothing and receives zero gradient, and so does its weight:
    even if the weight, or the output's gradient, is NaN.

    Args:
        value: (N, S, M, D) features of M heads, D channels each; the S cells are the flattened levels, one
            after another. float32, bfloat16, float16 (arithmetic in float32) or float64.
        spatial_shapes: (H, W) of each of the L levels, plain integers; their areas sum to S.
        sampling_locations: (N, Q, M, L, P, 2), (x, y) as shares of the level, (0, 0) its top left corner;
            float32 (float64 if value is).
        attention_weights: (N, Q, M, L, P), same dtype as the locations.

    Returns:
        (N, Q, M*D), dtype of ``value``.

    Raises:
        ValueError, TypeError: a shape, device or dtype does not fit; the message states what was given and
            what is expected.
    """
    if transforms.under_autocast(value):
        sampling_locations = _to_float32(value, sampling_locations)
        attention_weights = _to_float32(value, attention_weights)
    check_plain(value, spatial_shapes, sampling_locations, attention_weights)
    if backend(value) == "python" or transforms.differentiating():
        return reference.ms_deform_attn(value, spatial_shapes, sampling_locations, attention_weights)
    sides = [side for shape in spatial_shapes for side in shape]
    return native.ms_deform_attn(value, sides, sampling_locations, attention_weights)


def ms_deform_attn_fused(
    value: Tensor,
    spatial_shapes: Sequence[Sequence[int]],
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
) -> Tensor:
    """:func:`ms_deform_attn` that includes an attention layer's softmax and location arithmetic.

    Samples level l at ``reference_points * (W, H) - 0.5 + sampling_offsets`` cells, with softmax over all L*P
    logits of a head.

    Args:
        value, spatial_shapes: as in :func:`ms_deform_attn`.
        reference_points: (N, Q, L, 2), (x, y) as shares of the level; float32 (float64 for a float64 value),
            like the two below. These may also both be bfloat16 or both float16, as a linear layer gave them:
            all arithmetic is in float32, and only their gradients are rounded.
        sampling_offsets: (N, Q, M, L, P, 2), (x, y) in cells of the level.
        attention_logits: (N, Q, M, L*P). A point with -inf has no weight, as in ``torch.softmax``; if all
            logits of a head are -inf, or one is inf or NaN, all its weights are NaN for this query: its
            output too, unless all its points are outside, and all its logits' gradients (to mask a query,
            mask the output or use large finite logits).

    Returns:
        (N, Q, M*D), dtype of ``value``.

    Raises:
        ValueError, TypeError: as :func:`ms_deform_attn`.
    """
    if transforms.under_autocast(value):
        reference_points = _to_float32(value, reference_points)
        if sampling_offsets.dtype != attention_logits.dtype or value.dtype == torch.float64:
            sampling_offsets = _to_float32(value, sampling_offsets)
            attention_logits = _to_float32(value, attention_logits)
    check_fused(value, spatial_shapes, reference_points, sampling_offsets, attention_logits)
    if backend(value) == "python" or transforms.differentiating():
        return reference.ms_deform_attn_fused(
            value, spatial_shapes, reference_points, sampling_offsets, attention_logits
        )
    shapes = [side for shape in spatial_shapes for side in shape]
    return native.ms_deform_attn_fused(value, shapes, reference_points, sampling_offsets, attention_logits)


def _to_float32(value: Tensor, tensor: Tensor) -> Tensor:
    """Cast 16-bit outputs of linear layers to float32, as autocast does for its own float32 ops."""
    half = tensor.dtype in (torch.bfloat16, torch.float16)
    return tensor.float() if half and value.dtype != torch.float64 else tensor
