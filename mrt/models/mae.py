"""The masked-autoencoder branch: the student sees a fifth of the target image's cells and rebuilds a backbone map from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mrt.errors import MrtError
from mrt.models.attention import MSDeformAttn
from mrt.models.detector import DeformableDETR, Features
from mrt.models.position import cell_centres, encoder_reference_points, valid_ratios
from mrt.models.precision import as_products_take_it
from mrt.models.transformer import Decoder

PUBLISHED_GRID = (21, 42)  # cells of stride 32 in a 666 x 1332 image, which the published runs were built for


def random_masks(
    shapes: Sequence[tuple[int, int]],
    batch: int,
    ratio: float,
    generator: torch.Generator | None = None,
    device: torch.device | str = "cpu",
) -> list[Tensor]:
    """Independent random masks, one per level: (batch, h, w) bool, each cell True (masked) with probability ``ratio``."""
    return [torch.rand((batch, h, w), generator=generator, device=device) < ratio for h, w in shapes]


@dataclass
class Reconstruction:
    """What the branch gives for the loss.

    Attributes:
        prediction: (B, C, h, w) rebuilt map. target: the backbone's own map, same shape, detached.
        mask: (B, h, w) True where the cell was masked. padding: (B, h, w) True where it is padding.
        memory: (B, S, d) the encoder's output of the masked pass.
    """

    prediction: Tensor
    target: Tensor
    mask: Tensor
    padding: Tensor
    memory: Tensor


@dataclass
class MaskedFeatures:
    """What the encoder sees in the masked pass, and what the branch needs to rebuild from its memory.

    Attributes:
        features: of the whole image. masks: per level (B, h, w), as drawn; ``hidden`` with padding, where that stays masked.
        token_mask: (B, S) True = value zeroed. valid_ratios: (B or 1, L, 2). reference_points: (B or 1, S, L, 2).
    """

    features: Features
    masks: list[Tensor]
    hidden: list[Tensor]
    token_mask: Tensor
    valid_ratios: Tensor
    reference_points: Tensor


class MaskedAutoencoder(nn.Module):
    """Auxiliary decoder over the cells of one backbone map (MRT, section 3.2).

    Args:
        hidden_dim, num_heads, num_points, num_levels, feedforward_dim, dropout: as the detector's transformer.
        num_layers: decoder layers.
        out_channels: channels of the map to rebuild.
        variant: what visible cells enter the decoder as. "published": a learned embedding per position; "paper": the encoder's output,
            placed by the sine encoding.
        valid_ratios: "padding": shares of the real image; "mask": read from the random masks, as the published code does (a mask whose
            first row or column is full then makes sampling points non-finite, which the op lets add nothing).
        image_size: (h, w) of the grid that the learned embedding is made for; it is interpolated to any other. Default: the published
            runs' 21 x 42. Of no effect with variant "paper".
        level: which backbone map is rebuilt: 0, 1, 2 for C3, C4, C5.
        keep_padding: padding cells stay masked in the masked pass (paper); the published code forgets them. Default: as the variant did.
    """

    def __init__(
        self,
        hidden_dim: int,
        num_heads: int,
        num_points: int,
        num_levels: int,
        feedforward_dim: int,
        num_layers: int = 2,
        out_channels: int = 2048,
        *,
        variant: str = "published",
        valid_ratios: str = "padding",
        image_size: tuple[int, int] | None = None,
        level: int = 2,
        keep_padding: bool | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if variant not in ("published", "paper"):
            raise MrtError(f'mae variant is "{variant}"', 'Choose "published" or "paper".')
        if valid_ratios not in ("padding", "mask"):
            raise MrtError(f'mae valid_ratios is "{valid_ratios}"', 'Choose "padding" or "mask".')
        self.variant, self.valid_ratios, self.level = variant, valid_ratios, level
        self.keep_padding = variant == "paper" if keep_padding is None else keep_padding
        self.grid = tuple(image_size or PUBLISHED_GRID)
        decoder = Decoder(
            num_layers,
            hidden_dim=hidden_dim,
            num_levels=num_levels,
            num_heads=num_heads,
            num_points=num_points,
            feedforward_dim=feedforward_dim,
            dropout=dropout,
        )
        self.layers = decoder.layers
        self.mask_query = nn.Embedding(1, hidden_dim)
        if variant == "published":
            self.query_embed = nn.Embedding(self.grid[0] * self.grid[1], 2 * hidden_dim)
            self.reference_points = nn.Linear(hidden_dim, 2)
        self.output_proj = nn.Linear(hidden_dim, out_channels)
        self._reset_parameters()

    def _reset_parameters(self) -> None:
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1 and "embed" not in name and "mask_query" not in name:
                nn.init.xavier_uniform_(parameter)
        for module in self.modules():
            if isinstance(module, MSDeformAttn):
                module.reset_parameters()
        for projection in (self.output_proj, getattr(self, "reference_points", None)):
            if projection is not None:
                nn.init.zeros_(projection.bias)

    def forward(self, detector: DeformableDETR, features: Features, masks: Sequence[Tensor]) -> Reconstruction:
        """A masked pass through the detector's encoder, then the rebuilding.

        Args:
            detector: whose encoder learns from this.
            features: of :meth:`DeformableDETR.extract`.
            masks: per level (B, h, w) bool, of :func:`random_masks`.
        """
        masked = self.mask(features, masks)
        inputs = (features.tokens(), features.positions, features.shapes, masked.reference_points, masked.token_mask)
        return self.rebuild(detector, masked, detector.transformer.encode(*inputs))

    def mask(self, features: Features, masks: Sequence[Tensor]) -> MaskedFeatures:
        """What the masked pass zeroes and where it looks; arguments as in :meth:`forward`."""
        hidden = list(masks)
        if self.keep_padding and features.padded:
            hidden = [mask | padding for mask, padding in zip(masks, features.masks, strict=True)]
        token_mask = torch.cat([mask.flatten(1) for mask in hidden], dim=1)
        ratios, references = features.valid_ratios, features.reference_points
        if self.valid_ratios == "mask":
            ratios = valid_ratios(masks)
            references = encoder_reference_points(features.shapes, ratios)
        return MaskedFeatures(features, list(masks), hidden, token_mask, ratios, references)

    def rebuild(self, detector: DeformableDETR, masked: MaskedFeatures, memory: Tensor) -> Reconstruction:
        """The map from the memory (B, S, d) of the masked pass."""
        features = masked.features
        index = self.level - (len(features.maps) - min(len(features.maps), len(features.levels)))
        if not 0 <= index < len(features.levels) or not 0 <= self.level < len(features.maps):
            raise MrtError(
                f"mae level is {self.level}, but of {len(features.maps)} backbone maps {len(features.levels)} levels are in use",
                "Choose the index of a backbone map the detector looks at (2 is C5).",
            )
        sizes = [h * w for h, w in features.shapes]
        if self.variant == "published":
            position, content = self._embedding(features.shapes[index]).expand(memory.shape[0], -1, -1).chunk(2, -1)
            points = self.reference_points(position).float().sigmoid()
        else:
            position = features.positions.split(sizes, dim=1)[index] + detector.transformer.level_embed[index]
            content = memory.split(sizes, dim=1)[index]
            points = cell_centres(features.shapes, features.valid_ratios).split(sizes, dim=1)[index]
            points = points.expand(memory.shape[0], -1, -1)
        position, content, seen = (as_products_take_it(x) for x in (position, content, memory))
        queries = torch.where(masked.hidden[index].flatten(1)[..., None], self.mask_query.weight.to(content.dtype), content)
        points = points[:, :, None] * masked.valid_ratios[:, None]
        for layer in self.layers:
            queries = layer(queries, position, points, seen, features.shapes, masked.token_mask)
        prediction = self.output_proj(queries).transpose(1, 2).unflatten(2, features.shapes[index])
        return Reconstruction(prediction, features.maps[self.level].detach(), masked.masks[index], features.masks[index], memory)

    def _embedding(self, shape: tuple[int, int]) -> Tensor:
        """The learned embedding (1, h * w, 2d) for a grid of any shape."""
        weight = self.query_embed.weight
        if shape == self.grid:
            return weight[None]
        grid = weight.T.unflatten(1, self.grid)[None]
        return F.interpolate(grid, size=shape, mode="bilinear", align_corners=False).flatten(2).transpose(1, 2)
