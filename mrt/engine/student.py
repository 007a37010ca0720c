"""The student: the detector and what MRT hangs on it, with one forward pass for everything a step needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from mrt.data.loader import Batch
from mrt.models.detector import DeformableDETR, DetectorOutput, Features
from mrt.models.discriminators import Discriminators
from mrt.models.mae import MaskedAutoencoder, MaskedFeatures, Reconstruction, random_masks

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
        images: dict[str, tuple[Tensor, Tensor | None]],
        detect: Sequence[str] = (SOURCE,),
        judge: bool = False,
        rebuild: Sequence[str] = (),
        mask_ratio: float = 0.8,
        on_detections: Callable[[dict[str, DetectorOutput]], None] | None = None,
    ) -> Passes:
        """One pass over both domains.

        Args:
            images: by domain: images (B, 3, H, W) and padding mask (B, H, W), None where nothing is padded.
            detect: domains whose images go through the whole detector.
            judge: whether the discriminators judge those domains.
            rebuild: domains whose features are masked and rebuilt.
            mask_ratio: share of cells that is masked.
            on_detections: called with the detections of all domains as soon as they are queued, before discriminators and rebuilding, so
                that matching may run beside those.

        Domains of one image size share a pass, the encoder's masked pass included (it mixes nothing between images); others are computed
        one after the other, so that no domain's padding depends on the other's images.
        """
        passes = Passes()
        outputs: list[tuple[dict[str, slice], DetectorOutput]] = []
        masked: dict[str, tuple[MaskedFeatures, Tensor]] = {}
        for names in _groups(images):
            bounds = _bounds({name: len(images[name][0]) for name in names})
            features = self.detector.extract(torch.cat([images[name][0] for name in names]), _join_masks([images[name] for name in names]))
            wanted = [name for name in names if name in detect]
            hidden = {}
            for name in names:
                if name in rebuild and self.mae is not None:
                    mine = _cut(features, bounds[name])
                    masks = random_masks(mine.shapes, len(images[name][0]), mask_ratio, device=images[name][0].device)
                    hidden[name] = self.mae.mask(mine, masks)
            seen = _cut(features, slice(None) if wanted == names else bounds[wanted[0]]) if wanted else None
            memory, *memories = self._encode(seen, list(hidden.values()))
            masked |= {name: (hidden[name], rows) for name, rows in zip(hidden, memories, strict=True)}
            if seen is not None:
                output = self.detector.decode(seen, memory)
                rows = bounds if wanted == names else {wanted[0]: slice(None)}
                outputs.append((rows, output))
                passes.detections |= {name: _cut_output(output, rows[name]) for name in wanted}
        if on_detections is not None:
            on_detections(passes.detections)
        for rows, output in outputs if judge and self.discriminators is not None else ():
            verdict = self.discriminators(output)
            passes.domains |= {name: {key: value[mine] for key, value in verdict.items()} for name, mine in rows.items()}
        for name, (what, memory) in masked.items():
            passes.reconstructions[name] = self.mae.rebuild(self.detector, what, memory)
        return passes

    def _encode(self, seen: Features | None, hidden: Sequence[MaskedFeatures]) -> list[Tensor | None]:
        """The encoder's memory of whole images (None where there are none) and of each domain's masked ones, in one pass."""
        whole = [] if seen is None else [(seen, seen.reference_points, seen.token_mask())]
        parts = whole + [(what.features, what.reference_points, what.token_mask) for what in hidden]
        if not parts:
            return [None]
        tokens = [features.tokens() for features, _, _ in parts]
        sizes = [len(part) for part in tokens]
        references = [points.expand(size, -1, -1, -1) for (_, points, _), size in zip(parts, sizes, strict=True)]
        positions = [features.positions for features, _, _ in parts]
        if any(len(position) > 1 for position in positions):
            positions = [torch.cat([position.expand(size, -1, -1) for position, size in zip(positions, sizes, strict=True)])]
        masks = [mask for _, _, mask in parts]
        if any(mask is not None for mask in masks):
            none = [torch.zeros(part.shape[:2], dtype=torch.bool, device=part.device) for part in tokens]
            masks = [torch.cat([zeros if mask is None else mask for mask, zeros in zip(masks, none, strict=True)])]
        memory = self.detector.transformer.encode(torch.cat(tokens), positions[0], parts[0][0].shapes, torch.cat(references), masks[0])
        return ([] if whole else [None]) + list(memory.split(sizes))


def views(batch: Batch, strong: bool) -> tuple[Tensor, Tensor | None]:
    """The batch's images (the strongly augmented ones if asked for and there) and its padding mask, None where nothing is padded."""
    return (batch.strong_images if strong and batch.strong_images is not None else batch.images), batch.mask


def _join_masks(images: Sequence[tuple[Tensor, Tensor | None]]) -> Tensor | None:
    """One padding mask for several batches of the same size; None where none has padding."""
    if all(mask is None for _, mask in images):
        return None
    none = [torch.zeros((len(pixels), *pixels.shape[2:]), dtype=torch.bool, device=pixels.device) for pixels, _ in images]
    return torch.cat([zeros if mask is None else mask for (_, mask), zeros in zip(images, none, strict=True)])


def _groups(images: dict[str, tuple[Tensor, Tensor | None]]) -> list[list[str]]:
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
