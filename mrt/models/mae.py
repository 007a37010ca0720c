"""The masked-autoencoder branch.

The student reconstructs a backbone map from a fifth of a target image's cells.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mrt.errors import MrtError
from mrt.models.attention import MSDeformAttn
from mrt.models.detector import DeformableDETR, sampling_names
from mrt.models.fast.precision import as_products_take_it
from mrt.models.interface import EncoderInput, Features
from mrt.models.position import cell_centres, encoder_reference_points, valid_ratios
from mrt.models.transformer import Decoder

PUBLISHED_GRID = (21, 42)  # cells of stride 32 in a 666 x 1332 image, the size in the published runs


def random_masks(
    spatial_shapes: Sequence[tuple[int, int]],
    batch: int,
    ratio: float,
    generator: torch.Generator | None = None,
    device: torch.device | str = "cpu",
) -> list[Tensor]:
    """Independent random masks, one per level: (batch, h, w) bool.

    Each cell is True (masked) with probability ``ratio``.
    """
    return [torch.rand((batch, h, w), generator=generator, device=device) < ratio for h, w in spatial_shapes]


class ChannelStatistics(nn.Module):
    """Running mean and variance of a map's channels, by which a map is normalised.

    Maps are taken in by :meth:`add` and count from the next :meth:`update` on, so that it makes no difference
    into how many batches and processes a step's images are divided. Only what is normalised before the first
    update has nothing but the maps that were added before it (in all processes).

    Attributes:
        share: gives the sum of a tensor over all processes (in place, or as a new tensor).
        mean, var: (C,), of the cells so far: their plain average over the first ``1 / MOMENTUM`` updates,
            then an exponential one.
        updates: (), how many there were.
        added: (2 C + 1,), what was added since: per channel the sums of the distance from ``mean`` and of its
            square, and the number of cells.
    """

    MOMENTUM = 0.01
    LEAST = 1e-3  # of the channels' mean variance: what hardly ever moves is not blown up

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.share: Callable[[Tensor], Tensor] = _alone
        self._known = False
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("var", torch.ones(channels))
        self.register_buffer("updates", torch.zeros(()))
        self.register_buffer("added", torch.zeros(2 * channels + 1, dtype=torch.float64))

    def _apply(self, function: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        """As of every module; but on Apple's GPUs, which have no float64, sums are kept in float32."""
        try:
            return super()._apply(function, recurse)
        except TypeError:
            self.added = self.added.float()
            return super()._apply(function, recurse)

    @torch.no_grad()
    def add(self, features: Tensor, padding: Tensor | None = None) -> None:
        """Take in a map (B, C, h, w), without its padding cells (B, h, w; True = padding)."""
        wide = self.added.dtype
        distance = features.to(wide) - self.mean[:, None, None]
        counted = torch.ones_like(distance[:, :1]) if padding is None else (~padding)[:, None].to(wide)
        distance = distance * counted
        self.added += torch.cat(
            [distance.sum((0, 2, 3)), (distance * distance).sum((0, 2, 3)), counted.sum()[None]]
        )

    @torch.no_grad()
    def update(self) -> None:
        """Let what was added count from now on; every process has to call this."""
        total = self.share(self.added.clone())
        cells = total[-1]
        mean, var = (value.float() for value in self._of(total, self.mean))
        weight = (1 / (self.updates + 1)).clamp(min=self.MOMENTUM) * (cells > 0)
        shift = mean - self.mean
        self.var.copy_((1 - weight) * self.var + weight * var + weight * (1 - weight) * shift * shift)
        self.mean += weight * shift
        self.updates += cells > 0
        self.added.zero_()

    def forward(self, features: Tensor) -> Tensor:
        """The map (B, C, h, w) with mean 0 and variance 1 in each channel, in float32.

        A channel's variance counts as at least ``LEAST`` of the channels' mean.
        """
        mean, var = self.mean, self.var
        if not self._known:  # asked until it is: a GPU is waited for in the first step only
            self._known = bool(self.updates > 0)
        if not self._known:
            added = self.share(self.added.clone()) if self.training else self.added
            first = (value.float() for value in self._of(added, self.mean))
            mean, var = (
                torch.where(added[-1] > 0, new, old) for new, old in zip(first, (mean, var), strict=True)
            )
        var = var.clamp(min=torch.finfo(var.dtype).tiny).maximum(self.LEAST * var.mean())
        return (features.float() - mean[:, None, None]) * var.rsqrt()[:, None, None]

    @staticmethod
    def _of(added: Tensor, about: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of what was added, whose distances are from ``about``."""
        first, second = added[:-1].chunk(2)
        cells = added[-1].clamp(min=1)
        shift = first / cells
        return about + shift, (second / cells - shift * shift).clamp(min=0)


def _alone(total: Tensor) -> Tensor:
    return total


@dataclass
class Reconstruction:
    """The branch's output, from which the loss is computed.

    Attributes:
        prediction: (B, C, h, w), the reconstructed map.
        target: (B, C, h, w), the backbone's own map, detached; normalised, where that is asked for.
        mask: (B, h, w), True where the cell was masked.
        padding: (B, h, w), True where the cell is padding.
        memory: (B, S, d), the encoder's output in the masked pass.
    """

    prediction: Tensor
    target: Tensor
    mask: Tensor
    padding: Tensor
    memory: Tensor


@dataclass
class MaskedFeatures(EncoderInput):
    """The encoder's input in the masked pass, and what the branch needs to reconstruct the map.

    Attributes:
        masks: per level (B, h, w), as drawn.
        hidden: ``masks``, and padding where padding stays masked.
        valid_ratios: (B or 1, L, 2).
    """

    masks: list[Tensor]
    hidden: list[Tensor]
    valid_ratios: Tensor


class MaskedAutoencoder(nn.Module):
    """Auxiliary decoder over the cells of one backbone map (MRT, section 3.2).

    Args:
        hidden_dim, num_heads, num_points, num_levels, feedforward_dim, dropout: as in the detector's
            transformer.
        num_layers: decoder layers.
        out_channels: channels of the map to reconstruct.
        variant: the decoder's input for visible cells. "published": a learned embedding per position;
            "paper": the encoder's output, with the sine encoding as its position.
        valid_ratios: "padding": from the padding of the images; "mask": from the random masks, as in the
            published code. Then a mask whose first row or column is full makes sampling points non-finite;
            such points contribute nothing.
        image_size: (h, w) of the grid for which the learned embedding is made; it is interpolated to other
            grids. Default: 21 x 42, as in the published runs. Has no effect with variant "paper".
        level: the backbone map to reconstruct: 0, 1, 2 for C3, C4, C5.
        keep_padding: padding cells stay masked in the masked pass, as in the paper. The published code does
            not mask them. Default: as the variant does.
        normalise: the map is normalised by :class:`ChannelStatistics` before it is reconstructed, so that an
            error of 1 means that nothing is explained, whatever the backbone.

    Attributes:
        statistics: of the map; None without ``normalise``.
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
        normalise: bool = False,
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
        self.statistics = ChannelStatistics(out_channels) if normalise else None
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

    def forward(
        self, detector: DeformableDETR, features: Features, masks: Sequence[Tensor]
    ) -> Reconstruction:
        """A masked pass through the detector's encoder, then the reconstruction.

        Args:
            detector: its encoder learns from this.
            features: from :meth:`DeformableDETR.extract`.
            masks: per level (B, h, w) bool, from :func:`random_masks`.
        """
        masked = self.mask(features, masks)
        tokens, references = features.tokens(), masked.reference_points
        memory = detector.transformer.encode(
            tokens, features.positions, features.spatial_shapes, references, masked.token_mask
        )
        return self.rebuild(detector, masked, memory)

    def compile_regions(self) -> list[nn.Module]:
        """The decoder's layers."""
        return list(self.layers)

    def learning_rate_groups(self) -> dict[str, list[str]]:
        """The parameters that choose sampling points learn at the detector's lower rate for these."""
        return {"sampling": sampling_names(self)}

    def mask(self, features: Features, masks: Sequence[Tensor]) -> MaskedFeatures:
        """The encoder's input in the masked pass; arguments as in :meth:`forward`."""
        hidden = list(masks)
        if self.keep_padding and features.padded:
            hidden = [mask | padding for mask, padding in zip(masks, features.masks, strict=True)]
        token_mask = torch.cat([mask.flatten(1) for mask in hidden], dim=1)
        ratios, references = features.valid_ratios, features.reference_points
        if self.valid_ratios == "mask":
            ratios = valid_ratios(masks)
            references = encoder_reference_points(features.spatial_shapes, ratios)
        return MaskedFeatures(features, token_mask, references, list(masks), hidden, ratios)

    def rebuild(self, detector: DeformableDETR, masked: MaskedFeatures, memory: Tensor) -> Reconstruction:
        """Reconstruct the map from the memory (B, S, d) of the masked pass."""
        features = masked.features
        index = self.level - (len(features.maps) - min(len(features.maps), len(features.levels)))
        if not 0 <= index < len(features.levels) or not 0 <= self.level < len(features.maps):
            raise MrtError(
                f"mae level is {self.level}, but of {len(features.maps)} backbone maps "
                f"{len(features.levels)} levels are in use",
                "Choose the index of a backbone map the detector looks at (2 is C5).",
            )
        sizes = [h * w for h, w in features.spatial_shapes]
        if self.variant == "published":
            embedding = self._embedding(features.spatial_shapes[index])
            position, content = embedding.expand(memory.shape[0], -1, -1).chunk(2, -1)
            points = self.reference_points(position).float().sigmoid()
        else:
            position = features.positions.split(sizes, dim=1)[index] + detector.transformer.level_embed[index]
            content = memory.split(sizes, dim=1)[index]
            points = cell_centres(features.spatial_shapes, features.valid_ratios).split(sizes, dim=1)[index]
            points = points.expand(memory.shape[0], -1, -1)
        position, content, seen = (as_products_take_it(x) for x in (position, content, memory))
        hidden = masked.hidden[index].flatten(1)[..., None]
        queries = torch.where(hidden, self.mask_query.weight.to(content.dtype), content)
        points = points[:, :, None] * masked.valid_ratios[:, None]
        for layer in self.layers:
            queries = layer(queries, position, points, seen, features.spatial_shapes, masked.token_mask)
        prediction = self.output_proj(queries).transpose(1, 2).unflatten(2, features.spatial_shapes[index])
        target = features.maps[self.level].detach()
        if self.statistics is not None:
            if self.training:
                self.statistics.add(target, features.masks[index] if features.padded else None)
            target = self.statistics(target)
        return Reconstruction(prediction, target, masked.masks[index], features.masks[index], memory)

    def _embedding(self, shape: tuple[int, int]) -> Tensor:
        """The learned embedding (1, h * w, 2d) for a grid of any shape."""
        weight = self.query_embed.weight
        if shape == self.grid:
            return weight[None]
        grid = weight.T.unflatten(1, self.grid)[None]
        grid = F.interpolate(grid, size=shape, mode="bilinear", align_corners=False)
        return grid.flatten(2).transpose(1, 2)
