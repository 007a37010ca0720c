"""Multi-scale deformable attention: each query samples a few points around its reference on every level."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mrt.errors import MrtError
from mrt.models.fast.lean import linear_of_sum
from mrt.models.fast.precision import autocast_dtype
from mrt.models.position import SpatialShapes, level_sizes
from mrt.ops import ms_deform_attn_fused


class MSDeformAttn(nn.Module):
    """Deformable DETR, equations 2 and 3. Parameter names are those of its published checkpoints.

    Args:
        hidden_dim: channels d, a multiple of ``num_heads``.
        num_levels: feature levels L.
        num_heads: attention heads M.
        num_points: sampling points P per head and level.
    """

    def __init__(self, hidden_dim: int, num_levels: int, num_heads: int, num_points: int) -> None:
        super().__init__()
        if hidden_dim % num_heads:
            raise MrtError(
                f"hidden_dim {hidden_dim} is not a multiple of num_heads {num_heads}",
                "Choose sizes that divide.",
            )
        self.num_levels, self.num_heads, self.num_points = num_levels, num_heads, num_points
        points = num_heads * num_levels * num_points
        self.sampling_offsets = nn.Linear(hidden_dim, points * 2)
        self.attention_weights = nn.Linear(hidden_dim, points)
        self.value_proj = nn.Linear(hidden_dim, hidden_dim)
        self.output_proj = nn.Linear(hidden_dim, hidden_dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise: the M heads sample in M directions, point p at p cells from the centre, all equally."""
        angle = torch.arange(self.num_heads, dtype=torch.float32) * (2 * math.pi / self.num_heads)
        direction = torch.stack((angle.cos(), angle.sin()), dim=-1)
        direction = direction / direction.abs().amax(-1, keepdim=True)
        distance = torch.arange(1, self.num_points + 1, dtype=torch.float32)
        offsets = direction[:, None, None] * distance[None, None, :, None]
        offsets = offsets.expand(self.num_heads, self.num_levels, self.num_points, 2)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(offsets.flatten())
        nn.init.zeros_(self.sampling_offsets.weight)
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for projection in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def forward(
        self,
        query: Tensor,
        position: Tensor,
        reference_points: Tensor,
        tokens: Tensor,
        spatial_shapes: SpatialShapes,
        token_mask: Tensor | None = None,
    ) -> Tensor:
        """Attend.

        Args:
            query: (B, Q, d) content of the queries.
            position: (B or 1, Q, d), added to the content to choose sampling points and weights.
            reference_points: (B, Q, L, 2) points or (B, Q, L, 4) boxes (cx, cy, w, h), as fractions of the
                padded maps.
            tokens: (B, S, d) cells of all levels.
            spatial_shapes: (h, w) per level, sum of h * w = S.
            token_mask: (B, S) bool, True = the cell's value is set to zero, because it is padding or hidden
                by the masked autoencoder.

        Returns:
            (B, Q, d).
        """
        value = self.value_proj(tokens)
        if token_mask is not None:
            value = value.masked_fill(token_mask[..., None], 0.0)
        offsets, logits = self.choose(query, position)
        offsets = offsets.unflatten(-1, (self.num_heads, self.num_levels, self.num_points, 2))
        if reference_points.shape[-1] == 4:
            offsets = _boxes_to_cells(offsets, reference_points[..., 2:], spatial_shapes)
        logits = logits.unflatten(-1, (self.num_heads, self.num_levels * self.num_points))
        exact = torch.promote_types(value.dtype, torch.float32)  # positions are never 16-bit, features may be
        if (
            autocast_dtype(value) is None
        ):  # under autocast the op converts them itself, and keeps the 16-bit ones
            offsets, logits = offsets.to(exact), logits.to(exact)
        sampled = ms_deform_attn_fused(
            value.unflatten(-1, (self.num_heads, -1)),
            spatial_shapes,
            reference_points[..., :2].to(exact),
            offsets,
            logits,
        )
        return self.output_proj(sampled)

    def choose(self, query: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        """Sampling offsets (B, Q, M * L * P * 2) and logits of the attention weights (B, Q, M * L * P)."""
        # One matrix product for both, which reads the queries once.
        weight = torch.cat((self.sampling_offsets.weight, self.attention_weights.weight))
        bias = torch.cat((self.sampling_offsets.bias, self.attention_weights.bias))
        sizes = self.sampling_offsets.out_features, self.attention_weights.out_features
        return linear_of_sum(query, position, weight, bias).split(sizes, -1)


def _boxes_to_cells(offsets: Tensor, sizes: Tensor, spatial_shapes: SpatialShapes) -> Tensor:
    """Convert offsets in units of a reference box's half size divided by P into cells.

    Args:
        offsets: (B, Q, M, L, P, 2).
        sizes: (B, Q, L, 2) of the boxes, as fractions of the map.
        spatial_shapes: (h, w) per level.
    """
    scale = sizes * level_sizes(spatial_shapes, sizes.device) * (0.5 / offsets.shape[-2])
    return offsets * scale[:, :, None, :, None]
