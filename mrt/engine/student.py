"""The student: the detector and what MRT hangs on it, with one forward pass for everything a step needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from mrt.data.loader import Batch
from mrt.models.detector import DeformableDETR, DetectorOutput, Features
from mrt.models.discriminators import Discriminators
from mrt.models.mae import MaskedAutoencoder, Reconstruction, random_masks

SOURCE, TARGET = "source", "target"


@dataclass
class Passes:
    """What one forward pass produced, by domain ("source", "target").

    Attributes:
        detections: the detector's outputs.
        domains: the three discriminators' logits (keys "backbone", "encoder", "decoder").
        reconstructions: what the masked autoencoder rebuilt.
    """

    detections: dict[str, DetectorOutput] = field(default_factory=dict)
    domains: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    reconstructions: dict[str, Reconstruction] = field(default_factory=dict)


class Student(nn.Module):
    """Detector, masked autoencoder and discriminators under one roof, so that one wrapped call sees every parameter.

    Args:
        detector: the network that is kept in the end.
        mae: the masked-autoencoder branch, where the stage has one.
        discriminators: the domain discriminators, where the stage has them.
    """

    def __init__(
        self, detector: DeformableDETR, mae: MaskedAutoencoder | None = None, discriminators: Discriminators | None = None
    ) -> None:
        super().__init__()
        self.detector, self.mae, self.discriminators = detector, mae, discriminators

    def forward(
        self,
        images: dict[str, tuple[Tensor, Tensor]],
        detect: Sequence[str] = (SOURCE,),
        judge: bool = False,
        rebuild: Sequence[str] = (),
        mask_ratio: float = 0.8,
    ) -> Passes:
        """One pass over both domains.

        Args:
            images: by domain: images (B, 3, H, W) and padding mask (B, H, W).
            detect: domains whose images go through the whole detector.
            judge: whether the discriminators judge those domains.
            rebuild: domains whose features are masked and rebuilt.
            mask_ratio: share of cells that is masked.

        Domains of one image size share a pass; others are computed one after the other, so that no domain's padding
        depends on the other's images.
        """
        passes = Passes()
        for names in _groups(images):
            features = self.detector.extract(torch.cat([images[name][0] for name in names]), torch.cat([images[name][1] for name in names]))
            bounds = _bounds({name: len(images[name][0]) for name in names})
            wanted = [name for name in names if name in detect]
            if wanted:
                whole = wanted == names
                span = slice(None) if whole else bounds[wanted[0]]
                output = self.detector.detect(_cut(features, span))
                verdict = self.discriminators(output) if judge and self.discriminators is not None else None
                for name in wanted:
                    rows = bounds[name] if whole else slice(None)
                    passes.detections[name] = _cut_output(output, rows)
                    if verdict is not None:
                        passes.domains[name] = {key: value[rows] for key, value in verdict.items()}
            for name in names:
                if name in rebuild and self.mae is not None:
                    mine = _cut(features, bounds[name])
                    masks = random_masks(mine.shapes, len(images[name][0]), mask_ratio, device=images[name][0].device)
                    passes.reconstructions[name] = self.mae(self.detector, mine, masks)
        return passes


def views(batch: Batch, strong: bool) -> tuple[Tensor, Tensor]:
    """The batch's images (the strongly augmented ones if asked for and there) and its padding mask."""
    return (batch.strong_images if strong and batch.strong_images is not None else batch.images), batch.padding_mask


def _groups(images: dict[str, tuple[Tensor, Tensor]]) -> list[list[str]]:
    shapes: dict[tuple[int, ...], list[str]] = {}
    for name, (pixels, _) in images.items():
        shapes.setdefault(tuple(pixels.shape[1:]), []).append(name)
    return list(shapes.values())


def _bounds(counts: dict[str, int]) -> dict[str, slice]:
    bounds, start = {}, 0
    for name, count in counts.items():
        bounds[name] = slice(start, start + count)
        start += count
    return bounds


def _cut(value: Any, rows: slice) -> Any:
    """The given images of anything made of batch-first tensors (lists, dataclasses, None); other values as they are."""
    if rows == slice(None) or value is None:
        return value
    if isinstance(value, Tensor):
        return value if len(value) == 1 else value[rows]  # one row stands for all images
    if isinstance(value, list):
        return [_cut(item, rows) for item in value]
    if isinstance(value, Features):
        return replace(value, **{item.name: _cut(getattr(value, item.name), rows) for item in fields(value)})
    return value


def _cut_output(output: DetectorOutput, rows: slice) -> DetectorOutput:
    if rows == slice(None):
        return output
    layered = ("logits", "boxes")  # (layers, images, ...)
    parts = {item.name: getattr(output, item.name) for item in fields(output)}
    return replace(output, **{name: value[:, rows] if name in layered else _cut(value, rows) for name, value in parts.items()})
