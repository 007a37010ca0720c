"""Deformable DETR: image to classes and boxes of a fixed number of queries, in two halves (extract, detect) that share features."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mrt.errors import MrtError
from mrt.models.backbone import Backbone
from mrt.models.position import Shapes, encoder_reference_points, sine_encoding, unpadded_geometry, valid_ratios
from mrt.models.transformer import DeformableTransformer, flatten_levels


@dataclass
class Features:
    """What the backbone half gives, for a batch of B padded images.

    Attributes:
        maps: the backbone's maps, (B, channels, h, w) each.
        levels: projected maps, (B, d, h, w) each; L of them.
        masks: (B, h, w) bool per level, True = padding.
        positions: (B or 1, S, d) sine encoding, without the level embedding.
        shapes: (h, w) per level; their areas sum to S.
        valid_ratios: (B or 1, L, 2), x share first.
        reference_points: (B or 1, S, L, 2) of the encoder.
        padded: False when no image has padding, so masks need not be looked at.
    """

    maps: list[Tensor]
    levels: list[Tensor]
    masks: list[Tensor]
    positions: Tensor
    shapes: Shapes
    valid_ratios: Tensor
    reference_points: Tensor
    padded: bool

    def tokens(self) -> Tensor:
        """The levels' cells one after the other: (B, S, d)."""
        return flatten_levels(self.levels)

    def token_mask(self) -> Tensor | None:
        """(B, S) bool, True = padding; None when nothing is padded."""
        return torch.cat([mask.flatten(1) for mask in self.masks], dim=1) if self.padded else None


@dataclass
class DetectorOutput:
    """What the detector says of B images, after each of its decoder layers.

    Attributes:
        logits: (layers, B, Q, C). boxes: (layers, B, Q, 4) cx, cy, w, h in [0, 1], float32.
        memory: (B, S, d) the encoder's output. queries: (B, Q, d) after the last decoder layer.
        features: what it was computed from.
        proposal_logits, proposal_boxes: (B, S, 1) and (B, S, 4) of the two-stage encoder's candidates (object or not), else None.
    """

    logits: Tensor
    boxes: Tensor
    memory: Tensor
    queries: Tensor
    features: Features
    proposal_logits: Tensor | None = None
    proposal_boxes: Tensor | None = None


class BoxHead(nn.Module):
    """Three linear layers with ReLU between: (..., d) -> (..., 4). Its last layer starts at zero."""

    def __init__(self, hidden_dim: int, size_bias: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(hidden_dim, hidden_dim), nn.Linear(hidden_dim, hidden_dim), nn.Linear(hidden_dim, 4)])
        nn.init.zeros_(self.layers[-1].weight)
        nn.init.zeros_(self.layers[-1].bias)
        nn.init.constant_(self.layers[-1].bias[2:], size_bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers[2](F.relu(self.layers[1](F.relu(self.layers[0](x)))))


class DeformableDETR(nn.Module):
    """Deformable DETR with optional iterative box refinement and two-stage queries.

    Args:
        backbone: see :func:`mrt.models.backbone.build_backbone`.
        num_classes: C, classes 0 .. C-1 (no background class: sigmoid focal loss).
        hidden_dim, num_heads, num_encoder_layers, num_decoder_layers, feedforward_dim, num_points, dropout: the transformer's sizes.
        num_levels: feature levels; fewer than the backbone's maps uses the coarsest, more adds maps by stride-2 convolutions.
        num_queries: Q. With ``two_stage`` the Q best proposals.
        box_refine: each layer has its own heads and corrects the boxes of the one before.
        two_stage: queries start from proposals of the encoder.
        proposal_content: what a two-stage query holds besides its position: "position": nothing more, as in Deformable DETR;
            "features": the encoder's features of its proposal too (classes are learned sooner).
        query_init: where reference points start without ``two_stage``: "learned" (random) or "grid".
        class_prior: initial score of every class.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        num_classes: int,
        hidden_dim: int = 256,
        num_heads: int = 8,
        num_encoder_layers: int = 6,
        num_decoder_layers: int = 6,
        feedforward_dim: int = 1024,
        num_levels: int = 4,
        num_points: int = 4,
        num_queries: int = 300,
        dropout: float = 0.1,
        box_refine: bool = False,
        two_stage: bool = False,
        proposal_content: str = "position",
        query_init: str = "learned",
        class_prior: float = 0.01,
    ) -> None:
        super().__init__()
        if hidden_dim % 4 or num_levels < 1 or num_queries < 1 or num_classes < 1 or num_decoder_layers < 1:
            raise MrtError(
                f"hidden_dim {hidden_dim}, num_levels {num_levels}, num_queries {num_queries}, num_classes {num_classes}, "
                f"num_decoder_layers {num_decoder_layers} cannot make a detector",
                "hidden_dim must be a multiple of 4, the others at least 1.",
            )
        if proposal_content not in ("position", "features"):
            raise MrtError(f'proposal_content is "{proposal_content}"', 'Choose "position" or "features".')
        self.arguments = {
            "num_classes": num_classes,
            "hidden_dim": hidden_dim,
            "num_heads": num_heads,
            "num_encoder_layers": num_encoder_layers,
            "num_decoder_layers": num_decoder_layers,
            "feedforward_dim": feedforward_dim,
            "num_levels": num_levels,
            "num_points": num_points,
            "num_queries": num_queries,
            "dropout": dropout,
            "box_refine": box_refine,
            "two_stage": two_stage,
            "proposal_content": proposal_content,
            "query_init": query_init,
            "class_prior": class_prior,
        }
        self.num_classes, self.hidden_dim, self.num_levels, self.num_queries = num_classes, hidden_dim, num_levels, num_queries
        self.box_refine, self.two_stage, self.proposal_content = box_refine, two_stage, proposal_content
        self.backbone = backbone
        self.input_proj = _input_projections(backbone.channels, hidden_dim, num_levels)
        self.transformer = DeformableTransformer(
            hidden_dim,
            num_heads,
            num_encoder_layers,
            num_decoder_layers,
            feedforward_dim,
            num_levels,
            num_points,
            dropout,
            two_stage=two_stage,
            query_init=query_init,
            num_queries=num_queries,
        )
        if not two_stage:
            self.query_embed = nn.Embedding(num_queries, 2 * hidden_dim)
        prior = math.log(class_prior / (1 - class_prior))
        first_size = 0.0 if two_stage else -2.0
        if box_refine:
            self.class_embed = nn.ModuleList(_class_head(hidden_dim, num_classes, prior) for _ in range(num_decoder_layers))
            sizes = [first_size] + [0.0] * (num_decoder_layers - 1)
            self.bbox_embed = nn.ModuleList(BoxHead(hidden_dim, size) for size in sizes)
        else:
            self.class_embed = _class_head(hidden_dim, num_classes, prior)
            self.bbox_embed = BoxHead(hidden_dim, first_size)
        if two_stage:
            self.proposal_class_embed = _class_head(hidden_dim, 1, prior)
            self.proposal_bbox_embed = BoxHead(hidden_dim, 0.0)

    def set_dropout(self, dropout: float) -> None:
        """Change the dropout rate of every layer."""
        self.arguments["dropout"] = dropout
        set_dropout(self, dropout)

    def set_checkpointing(self, enable: bool) -> None:
        """Keep fewer activations of backbone and encoder, and compute them again in the backward pass: less memory, more time."""
        self.backbone.set_checkpointing(enable)
        self.transformer.encoder.checkpointing = enable

    def forward(self, images: Tensor, padding_mask: Tensor | None = None) -> DetectorOutput:
        """(B, 3, H, W) normalised images, (B, H, W) bool mask (True = padding; None = no padding) -> detections."""
        return self.detect(self.extract(images, padding_mask))

    def extract(self, images: Tensor, padding_mask: Tensor | None = None) -> Features:
        """Backbone, projections and geometry; arguments as in :meth:`forward`."""
        maps = self.backbone(images)
        used = maps[-min(self.num_levels, len(maps)) :]
        levels = []
        for index, projection in enumerate(self.input_proj):
            levels.append(projection(used[index] if index < len(used) else used[-1] if index == len(used) else levels[-1]))
        shapes = tuple((level.shape[-2], level.shape[-1]) for level in levels)
        if padding_mask is not None and _surely_unpadded(padding_mask):
            padding_mask = None
        if padding_mask is None:
            positions, ratios, references, masks = unpadded_geometry(shapes, self.hidden_dim, images.device)
            masks = [mask.expand(images.shape[0], -1, -1) for mask in masks]
            return Features(maps, levels, masks, positions, shapes, ratios, references, padded=False)
        masks = [F.interpolate(padding_mask[:, None].float(), size=shape)[:, 0].bool() for shape in shapes]
        positions = torch.cat([sine_encoding(mask, self.hidden_dim).flatten(1, 2) for mask in masks], dim=1)
        ratios = valid_ratios(masks)
        references = encoder_reference_points(shapes, ratios)
        return Features(maps, levels, masks, positions, shapes, ratios, references, padded=True)

    def encode(self, features: Features) -> Tensor:
        """Memory (B, S, d)."""
        return self.transformer.encode(
            features.tokens(), features.positions, features.shapes, features.reference_points, features.token_mask()
        )

    def detect(self, features: Features) -> DetectorOutput:
        """Encoder, decoder and heads."""
        return self.decode(features, self.encode(features))

    def decode(self, features: Features, memory: Tensor) -> DetectorOutput:
        """Decoder and heads, from the memory (B, S, d) of :meth:`encode`."""
        mask, shapes, ratios = features.token_mask(), features.shapes, features.valid_ratios
        proposal_logits = proposal_boxes = None
        if self.two_stage:
            candidates, anchors, valid = self.transformer.propose(memory, shapes, ratios, mask)
            proposal_logits = self.proposal_class_embed(candidates)
            unplaced = self.proposal_bbox_embed(candidates).float() + anchors
            proposal_boxes = unplaced.sigmoid()
            ranking = proposal_logits[..., 0].detach().float().masked_fill(~valid, -torch.inf)
            # An exported program always has all its queries: their number would otherwise be one more unknown of its shapes.
            count = self.num_queries if torch.compiler.is_exporting() else min(self.num_queries, ranking.shape[1])
            chosen = ranking.topk(count, dim=1).indices
            references = proposal_boxes.detach().gather(1, chosen[..., None].expand(-1, -1, 4))
            position, content = self.transformer.queries_of_proposals(references)
            if self.proposal_content == "features":
                content = content + candidates.gather(1, chosen[..., None].expand(-1, -1, self.hidden_dim))
        else:
            position, content = self.query_embed.weight.expand(memory.shape[0], -1, -1).chunk(2, -1)
            references = self.transformer.reference_points(position).float().sigmoid()
        hidden, boxes = self.transformer.decoder(
            content, position, references, memory, shapes, ratios, mask, self._refine if self.box_refine else None
        )
        if self.box_refine:
            logits = torch.stack([head(queries) for head, queries in zip(self.class_embed, hidden, strict=True)])
            boxes = torch.stack(boxes)
        else:
            logits, boxes = self.class_embed(hidden), _placed(self.bbox_embed(hidden), references)
        return DetectorOutput(logits, boxes, memory, hidden[-1], features, proposal_logits, proposal_boxes)

    def _refine(self, layer: int, queries: Tensor, references: Tensor) -> Tensor:
        return _placed(self.bbox_embed[layer](queries), references)


def _placed(change: Tensor, references: Tensor) -> Tensor:
    """Boxes (..., 4) in [0, 1]: ``change`` relative to reference points (..., 2) or boxes (..., 4), in logit space, float32."""
    start = references.float().clamp(1e-5, 1 - 1e-5).logit()
    if start.shape[-1] == 2:
        start = F.pad(start, (0, 2))
    return (change.float() + start).sigmoid()


def _surely_unpadded(mask: Tensor) -> bool:
    """Whether a mask is known to be empty without waiting for an accelerator: on a device, give ``None`` for no padding instead."""
    return mask.device.type == "cpu" and not torch.compiler.is_compiling() and not bool(mask.any())


def _class_head(hidden_dim: int, num_classes: int, prior: float) -> nn.Linear:
    head = nn.Linear(hidden_dim, num_classes)
    nn.init.constant_(head.bias, prior)
    return head


def _input_projections(channels: Sequence[int], hidden_dim: int, num_levels: int) -> nn.ModuleList:
    """A 1x1 convolution per backbone map in use, then 3x3 of stride 2 for further levels; each with group norm."""
    convolutions = [nn.Conv2d(count, hidden_dim, 1) for count in channels[-min(num_levels, len(channels)) :]]
    for extra in range(num_levels - len(channels)):
        convolutions.append(nn.Conv2d(channels[-1] if extra == 0 else hidden_dim, hidden_dim, 3, stride=2, padding=1))
    for convolution in convolutions:
        nn.init.xavier_uniform_(convolution.weight)
        nn.init.zeros_(convolution.bias)
    groups = math.gcd(32, hidden_dim)
    return nn.ModuleList(nn.Sequential(convolution, nn.GroupNorm(groups, hidden_dim)) for convolution in convolutions)


def set_dropout(module: nn.Module, dropout: float) -> None:
    """Set the rate of every dropout layer and attention inside ``module``, backbones excepted."""
    for name, child in module.named_modules():
        if name.startswith("backbone"):
            continue
        if isinstance(child, nn.Dropout):
            child.p = dropout
        elif isinstance(child, nn.MultiheadAttention):
            child.dropout = dropout
