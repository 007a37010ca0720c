"""The interface between the engine and a detector. A new detector is one class (docs/extending.md)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mrt import plugins
from mrt.errors import MrtError
from mrt.losses import SetCriterion
from mrt.models.backbone import Backbone
from mrt.models.position import (
    SpatialShapes,
    encoder_reference_points,
    sine_encoding,
    unpadded_geometry,
    valid_ratios,
)
from mrt.models.transformer import flatten_levels


@dataclass
class Features:
    """Features of a batch of B padded images, computed by the backbone half of a detector.

    Attributes:
        maps: the backbone's maps, (B, channels, h, w) each.
        levels: the L projected maps, (B, d, h, w) each.
        masks: (B, h, w) bool per level, True = padding.
        positions: (B, S, d) sine encoding, without the level embedding.
        spatial_shapes: (h, w) per level; their areas sum to S.
        valid_ratios: (B, L, 2), the fraction of each map's width and height that is image.
        reference_points: (B, S, L, 2) of the encoder.
        padded: False when no image has padding. Then all masks are False, and positions, valid ratios and
            reference points have only one row, which holds for every image.
    """

    maps: list[Tensor]
    levels: list[Tensor]
    masks: list[Tensor]
    positions: Tensor
    spatial_shapes: SpatialShapes
    valid_ratios: Tensor
    reference_points: Tensor
    padded: bool

    @property
    def shapes(self) -> SpatialShapes:
        """``spatial_shapes``, by the word that what judges the models knows."""
        return self.spatial_shapes

    def tokens(self) -> Tensor:
        """The cells of all levels, one level after the other: (B, S, d)."""
        return flatten_levels(self.levels)

    def token_mask(self) -> Tensor | None:
        """(B, S) bool, True = padding; None when nothing is padded."""
        return torch.cat([mask.flatten(1) for mask in self.masks], dim=1) if self.padded else None

    def rows(self, rows: slice) -> Features:
        """The features of some of the images."""
        if rows == slice(0, len(self.levels[0])):
            return self
        lists = {name: [part[rows] for part in getattr(self, name)] for name in ("maps", "levels", "masks")}
        cut = replace(self, **lists)
        if self.padded:
            for name in ("positions", "valid_ratios", "reference_points"):
                setattr(cut, name, getattr(self, name)[rows])
        return cut


@dataclass
class EncoderInput:
    """One pass through the encoder.

    Attributes:
        features: of the images.
        token_mask: (B, S) bool, True = the cell's value is set to zero; None: of no cell.
        reference_points: (B or 1, S, L, 2), around which each cell samples.
    """

    features: Features
    token_mask: Tensor | None
    reference_points: Tensor

    @classmethod
    def of(cls, features: Features) -> EncoderInput:
        """The whole images, without their padding."""
        return cls(features, features.token_mask(), features.reference_points)


@dataclass
class DetectorOutput:
    """Detections in B images, after each decoder layer.

    Attributes:
        logits: (layers, B, Q, C).
        boxes: (layers, B, Q, 4) cx, cy, w, h in [0, 1], float32.
        memory: (B, S, d) the encoder's output.
        queries: (B, Q, d) after the last decoder layer.
        features: the features from which it was computed.
        proposal_logits, proposal_boxes: (B, S, 1) and (B, S, 4) of the two-stage encoder's candidates (object
            or not); None without two stages.
    """

    logits: Tensor
    boxes: Tensor
    memory: Tensor
    queries: Tensor
    features: Features
    proposal_logits: Tensor | None = None
    proposal_boxes: Tensor | None = None

    def rows(self, rows: slice) -> DetectorOutput:
        """The output for some of the images."""
        if rows == slice(0, len(self.queries)):
            return self
        names = ("memory", "queries", "proposal_logits", "proposal_boxes")
        cut = {name: None if (value := getattr(self, name)) is None else value[rows] for name in names}
        features = self.features.rows(rows)
        return DetectorOutput(self.logits[:, rows], self.boxes[:, rows], features=features, **cut)


class Detector(nn.Module):
    """What the engine needs of a detector. The methods with a body here suit most detectors.

    Attributes:
        kind: its name in the setting ``model.detector`` and in the header of weights files.
        decodes_with_targets: whether :meth:`decode` needs targets in training. Then the step waits for the
            teacher's labels before it, time that the student's passes would have hidden.
        class_heads: what the names of its weights with a row for each class begin with. Where weights of
            other classes are taken, these rows go by the classes' names.
        arguments: of the constructor, except the backbone; a weights file stores them to build the detector
            again.
        backbone, num_classes, hidden_dim (d), num_levels (L): parts of the method read the sizes of their own
            networks from these.
    """

    kind: ClassVar[str] = ""
    decodes_with_targets: ClassVar[bool] = False
    class_heads: ClassVar[tuple[str, ...]] = ("class_embed.",)
    arguments: dict[str, Any]
    backbone: Backbone
    num_classes: int
    hidden_dim: int
    num_levels: int

    @classmethod
    def from_settings(cls, model: Any, backbone: Backbone, num_classes: int) -> Self:
        """Build a new detector.

        Args:
            model: the section ``[model]`` of the settings (:class:`mrt.config.ModelConfig`).
            backbone: made from ``model.backbone`` by :func:`mrt.models.backbone.build_backbone`.
            num_classes: C.
        """
        raise NotImplementedError

    def extract(self, images: Tensor, padding_mask: Tensor | None = None) -> Features:
        """Backbone, projections and geometry.

        Args:
            images: (B, 3, H, W), normalised.
            padding_mask: (B, H, W) bool, True = padding; None if no image has any.
        """
        raise NotImplementedError

    def encode_many(self, inputs: Sequence[EncoderInput]) -> list[Tensor]:
        """The memory (B, S, d) of each input. All images have the same size, so one pass can encode all."""
        raise NotImplementedError

    def decode(
        self, features: Features, memory: Tensor, targets: Sequence[dict[str, Tensor]] | None = None
    ) -> DetectorOutput:
        """Decoder and heads, on the memory of whole images.

        Args:
            features: of the images.
            memory: (B, S, d), from :meth:`encode_many`.
            targets: boxes and labels of the images, for detectors that add queries made from them in training
                (denoising, :attr:`decodes_with_targets`). None for other detectors.
        """
        raise NotImplementedError

    def criterion(self, loss: Any) -> SetCriterion:
        """The detection loss. ``loss`` is that section of the settings (:class:`mrt.config.LossConfig`)."""
        return SetCriterion(loss, self.num_classes)

    def parts(self) -> dict[str, list[str]]:
        """The names in the state dict that belong to the "backbone", the "encoder" and the "decoder".

        Selective retraining distinguishes these three. Other names belong to none of them.
        """
        names = list(self.state_dict())
        return {part: [name for name in names if part in name] for part in ("backbone", "encoder", "decoder")}

    def compile_regions(self) -> list[nn.Module]:
        """The layers that ``engine.compile`` compiles one by one; equal ones share their compiled code."""
        return []

    def learning_rate_groups(self) -> dict[str, list[str]]:
        """Names of the parameters whose learning rate is scaled; all others have the full learning rate.

        The groups are "backbone" (``engine.backbone_lr_scale``) and "sampling"
        (``engine.sampling_lr_scale``).
        """
        return {"backbone": [name for name, _ in self.named_parameters() if name.startswith("backbone.")]}

    def set_dropout(self, dropout: float) -> None:
        """Change the dropout rate of every layer outside the backbone."""
        self.arguments["dropout"] = dropout
        set_dropout(self, dropout)

    def set_checkpointing(self, enable: bool) -> None:
        """Keep fewer activations and recompute them in the backward pass: less memory, more time."""
        self.backbone.set_checkpointing(enable)

    def forward(self, images: Tensor, padding_mask: Tensor | None = None) -> DetectorOutput:
        """Images to detections; arguments as in :meth:`extract`."""
        return self.detect(self.extract(images, padding_mask))

    def encode(self, features: Features) -> Tensor:
        """The memory (B, S, d) of whole images."""
        return self.encode_many([EncoderInput.of(features)])[0]

    def detect(self, features: Features) -> DetectorOutput:
        """Encoder, decoder and heads."""
        return self.decode(features, self.encode(features))


def find_detector(kind: str) -> type[Detector]:
    """The class of a kind of detector.

    Raises:
        MrtError: there is no such kind.
    """
    from mrt.models.detector import DeformableDETR

    known: dict[str, type[Detector]] = {DeformableDETR.kind: DeformableDETR}
    for plugin in plugins.everywhere() if kind not in known else ():
        known |= plugin.detectors
    if kind not in known:
        raise MrtError(
            f"detector {kind!r}: there is none of that kind (there are: {', '.join(known)})",
            "name the plug-in that defines it: --set method.plugins=[my_detector.py] in training, "
            f"{plugins.VARIABLE}=my_detector.py before any command",
        )
    return known[kind]


def make_features(
    maps: list[Tensor], levels: list[Tensor], images: Tensor, padding_mask: Tensor | None, hidden_dim: int
) -> Features:
    """Features with the geometry of the images.

    Args:
        maps, levels: see :class:`Features`.
        images, padding_mask: as given to :meth:`Detector.extract`.
        hidden_dim: channels of the position encoding.
    """
    spatial_shapes = tuple((level.shape[-2], level.shape[-1]) for level in levels)
    if padding_mask is not None and _surely_unpadded(padding_mask):
        padding_mask = None
    if padding_mask is None:
        positions, ratios, references, masks = unpadded_geometry(spatial_shapes, hidden_dim, images.device)
        masks = [mask.expand(images.shape[0], -1, -1) for mask in masks]
        return Features(maps, levels, masks, positions, spatial_shapes, ratios, references, padded=False)
    masks = [
        F.interpolate(padding_mask[:, None].float(), size=shape)[:, 0].bool() for shape in spatial_shapes
    ]
    positions = torch.cat([sine_encoding(mask, hidden_dim).flatten(1, 2) for mask in masks], dim=1)
    ratios = valid_ratios(masks)
    references = encoder_reference_points(spatial_shapes, ratios)
    return Features(maps, levels, masks, positions, spatial_shapes, ratios, references, padded=True)


def _surely_unpadded(mask: Tensor) -> bool:
    """Whether a mask on the CPU is empty.

    It is not checked on other devices, where that would wait for the device; pass ``None`` there if nothing
    is padded.
    """
    return mask.device.type == "cpu" and not torch.compiler.is_compiling() and not bool(mask.any())


def set_dropout(module: nn.Module, dropout: float) -> None:
    """Set the rate of every dropout layer and attention inside ``module``, except in a backbone."""
    for name, child in module.named_modules():
        if name.startswith("backbone"):
            continue
        if isinstance(child, nn.Dropout):
            child.p = dropout
        elif isinstance(child, nn.MultiheadAttention):
            child.dropout = dropout
