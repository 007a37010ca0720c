"""Positions: the sine encoding, valid ratios of padded maps, and reference points at the centres of cells."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

SpatialShapes = tuple[tuple[int, int], ...]


def sine_encoding(mask: Tensor, dim: int, temperature: float = 10000.0) -> Tensor:
    """Sine position encoding, where positions are relative to the part of a map that is not padding.

    Source: Deformable DETR. Positions are those of cell centres, in [0, 1], times 2 pi.

    Args:
        mask: (B, h, w) bool, True = padding.
        dim: number of channels, a multiple of 4; the first half encodes y, the second x.
        temperature: base of the geometric series of wavelengths.

    Returns:
        (B, h, w, dim) float32.
    """
    valid = (~mask).float()
    rows, columns = valid.cumsum(1), valid.cumsum(2)
    y = (rows - 0.5) / (rows[:, -1:] + 1e-6) * (2 * math.pi)
    x = (columns - 0.5) / (columns[:, :, -1:] + 1e-6) * (2 * math.pi)
    return torch.cat((_sines(y, dim // 2, temperature), _sines(x, dim // 2, temperature)), dim=-1)


def _sines(angle: Tensor, dim: int, temperature: float) -> Tensor:
    """(...) -> (..., dim): sin and cos side by side for each of dim / 2 frequencies, highest first."""
    exponent = torch.arange(dim // 2, dtype=torch.float32, device=angle.device) * (2 / dim)
    phase = angle[..., None] / temperature**exponent
    return torch.stack((phase.sin(), phase.cos()), dim=-1).flatten(-2)


def encode_boxes(boxes: Tensor, dim: int, temperature: float = 10000.0) -> Tensor:
    """Sine encoding of (..., n) numbers in [0, 1], ``dim`` channels each: (..., n * dim).

    Two-stage proposals use it.
    """
    return _sines(boxes * (2 * math.pi), dim, temperature).flatten(-2)


def valid_ratios(masks: Sequence[Tensor]) -> Tensor:
    """The fractions of each map's width and height that are image.

    They are read from the first row and column of the masks.

    Args:
        masks: per level (B, h, w) bool, True = padding.

    Returns:
        (B, L, 2) float32, width first.
    """
    shares = [
        torch.stack(((~mask[:, 0]).float().mean(1), (~mask[:, :, 0]).float().mean(1)), dim=-1)
        for mask in masks
    ]
    return torch.stack(shares, dim=1)


def cell_centres(spatial_shapes: SpatialShapes, ratios: Tensor) -> Tensor:
    """Centres of the cells as fractions of the valid part of their own level: (B, S, 2), x first.

    Args:
        spatial_shapes: (h, w) per level.
        ratios: (B, L, 2) from :func:`valid_ratios`.
    """
    points = []
    for level, (h, w) in enumerate(spatial_shapes):
        rows = torch.arange(h, dtype=torch.float32, device=ratios.device) + 0.5
        y = rows / (ratios[:, level, 1, None] * h)
        columns = torch.arange(w, dtype=torch.float32, device=ratios.device) + 0.5
        x = columns / (ratios[:, level, 0, None] * w)
        grid = x[:, None, :].expand(-1, h, w), y[:, :, None].expand(-1, h, w)
        points.append(torch.stack(grid, dim=-1).flatten(1, 2))
    return torch.cat(points, dim=1)


def encoder_reference_points(spatial_shapes: SpatialShapes, ratios: Tensor) -> Tensor:
    """Each cell's centre on every level, as fractions of the padded maps: (B, S, L, 2), x first.

    A valid ratio of 0 gives points that are not finite; in the attention such points contribute nothing.
    """
    return cell_centres(spatial_shapes, ratios)[:, :, None] * ratios[:, None]


def level_sizes(spatial_shapes: SpatialShapes, device: torch.device) -> Tensor:
    """(L, 2) float32 (w, h) of each level in cells.

    They are cached on the device, so that no layer waits for a copy to it.
    """
    if torch.compiler.is_compiling():
        return torch.tensor([(w, h) for h, w in spatial_shapes], dtype=torch.float32, device=device)
    return _kept_level_sizes(spatial_shapes, device)


@lru_cache(maxsize=64)
def _kept_level_sizes(spatial_shapes: SpatialShapes, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.tensor([(w, h) for h, w in spatial_shapes], dtype=torch.float32, device=device)


def unpadded_geometry(
    spatial_shapes: SpatialShapes, dim: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, ...]]:
    """Geometry of maps without padding.

    It is the same for every image, so it is cached for the last few sets of shapes.

    Returns:
        Sine encoding (1, S, dim), valid ratios (1, L, 2) (all 1), encoder reference points (1, S, L, 2),
        masks per level (1, h, w) (all False). Callers must not write into them.
    """
    if torch.compiler.is_compiling():
        return _unpadded_geometry(spatial_shapes, dim, device)
    return _kept_geometry(spatial_shapes, dim, device)


@lru_cache(maxsize=4)
def _kept_geometry(
    spatial_shapes: SpatialShapes, dim: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, ...]]:
    # No inference tensors: they could not be saved for the backward pass of a later call.
    with torch.inference_mode(False), torch.no_grad():
        return _unpadded_geometry(spatial_shapes, dim, device)


def _unpadded_geometry(
    spatial_shapes: SpatialShapes, dim: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, ...]]:
    masks = tuple(torch.zeros((1, h, w), dtype=torch.bool, device=device) for h, w in spatial_shapes)
    encoding = torch.cat([sine_encoding(mask, dim).flatten(1, 2) for mask in masks], dim=1)
    ratios = torch.ones((1, len(spatial_shapes), 2), device=device)
    return encoding, ratios, encoder_reference_points(spatial_shapes, ratios), masks
