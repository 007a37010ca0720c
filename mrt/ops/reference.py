"""Multi-scale deformable attention in plain PyTorch: the reference for the kernels, and their fallback."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def ms_deform_attn(
    value: Tensor,
    spatial_shapes: Sequence[Sequence[int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """Equation 2 of Deformable DETR through ``grid_sample``; shapes as in :func:`mrt.ops.ms_deform_attn`."""
    sizes = _sizes(spatial_shapes, sampling_locations)
    return _sample(value, spatial_shapes, sampling_locations * sizes - 0.5, attention_weights)


def ms_deform_attn_fused(
    value: Tensor,
    spatial_shapes: Sequence[Sequence[int]],
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
) -> Tensor:
    """Softmax, location arithmetic and sampling; shapes as in :func:`mrt.ops.ms_deform_attn_fused`."""
    sizes = _sizes(spatial_shapes, reference_points)
    cells = reference_points[:, :, None, :, None, :] * sizes - 0.5 + sampling_offsets
    weights = attention_logits.to(cells.dtype).softmax(-1).unflatten(-1, sampling_offsets.shape[3:5])
    return _sample(value, spatial_shapes, cells, weights)


def _sizes(spatial_shapes: Sequence[Sequence[int]], like: Tensor) -> Tensor:
    """(L, 1, 2): the (width, height) of every level, to broadcast over its points."""

    def size(height: int, width: int) -> Tensor:
        return torch.stack((like.new_full((), width), like.new_full((), height)))

    return torch.stack([size(*shape) for shape in spatial_shapes])[:, None]


def _sample(value: Tensor, spatial_shapes: Sequence[Sequence[int]], cells: Tensor, weights: Tensor) -> Tensor:
    """Sum of bilinear samples at ``cells`` (N, Q, M, L, P, 2): (x, y), 0 is the first cell's centre."""
    batch, _, heads, dim = value.shape
    queries, points = cells.shape[1], cells.shape[4]
    if batch == 0 or queries == 0:
        zero = (value.sum() + (cells.sum() + weights.sum()).to(value.dtype)) * 0  # connects the gradients
        return zero + value.new_zeros(batch, queries, heads * dim)
    maps = value.to(cells.dtype).split([height * width for height, width in spatial_shapes], dim=1)
    output = None
    for level, (height, width) in enumerate(spatial_shapes):
        size = cells.new_full((2,), width)
        size[1] = height
        # Queries last: with P last, the product with the weights and the sum would loop over rows of only P
        # numbers.
        level_cells = cells[:, :, :, level].permute(0, 2, 3, 1, 4).flatten(0, 1)  # (N*M, P, Q, 2)
        # Points a cell or more outside, infinite or NaN contribute nothing and have zero gradient. The
        # comparison is False for NaN.
        inside = ((level_cells > -1) & (level_cells < size)).all(-1, keepdim=True)
        grid = torch.where(inside, (level_cells + 0.5) * (2 / size) - 1, -3.0)
        level_map = maps[level].permute(0, 2, 3, 1).reshape(batch * heads, dim, height, width)
        # (N*M, D, P, Q)
        sampled = F.grid_sample(level_map, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        level_weights = weights[:, :, :, level].permute(0, 2, 3, 1).reshape(batch * heads, 1, points, queries)
        # Whatever their weight, NaN included.
        level_weights = torch.where(inside[:, None, :, :, 0], level_weights, 0.0)
        part = (sampled * level_weights).sum(-2)
        output = part if output is None else output + part
    return output.view(batch, heads * dim, queries).transpose(1, 2).to(value.dtype).contiguous()
