"""Deformable DETR: classes and boxes of a fixed number of queries from an image.

It works in two halves: ``extract`` computes features of the image, ``detect`` finds objects in them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mrt.errors import MrtError
from mrt.models.backbone import Backbone
from mrt.models.interface import Detector, DetectorOutput, EncoderInput, Features, make_features
from mrt.models.transformer import DeformableTransformer


class BoxHead(nn.Module):
    """Three linear layers with ReLU between: (..., d) -> (..., 4). Its last layer starts at zero."""

    def __init__(self, hidden_dim: int, size_bias: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            [nn.Linear(hidden_dim, hidden_dim), nn.Linear(hidden_dim, hidden_dim), nn.Linear(hidden_dim, 4)]
        )
        nn.init.zeros_(self.layers[-1].weight)
        nn.init.zeros_(self.layers[-1].bias)
        nn.init.constant_(self.layers[-1].bias[2:], size_bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers[2](F.relu(self.layers[1](F.relu(self.layers[0](x)))))


class DeformableDETR(Detector):
    """Deformable DETR with optional iterative box refinement and two-stage queries.

    Args:
        backbone: see :func:`mrt.models.backbone.build_backbone`.
        num_classes: C, classes 0 .. C-1. There is no background class, because the loss is a sigmoid focal
            loss.
        hidden_dim, num_heads, num_encoder_layers, num_decoder_layers, feedforward_dim, num_points, dropout:
            sizes of the transformer.
        num_levels: feature levels. If fewer than the backbone's maps, the coarsest maps are used; if more,
            convolutions of stride 2 add maps.
        num_queries: Q. With ``two_stage``, these are the Q best proposals.
        box_refine: each decoder layer has heads of its own and corrects the boxes of the layer before.
        two_stage: queries start from proposals of the encoder.
        proposal_content: what a two-stage query starts with besides its position. "position": nothing, as in
            Deformable DETR; "features": the encoder's features of its proposal, too, which makes it learn
            classes sooner.
        query_init: where reference points start without ``two_stage``: "learned" (random) or "grid".
        class_prior: initial score of every class.
    """

    kind = "deformable_detr"

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
        arguments = dict(locals())
        for name in ("self", "backbone", "__class__"):
            del arguments[name]
        super().__init__()
        if hidden_dim % 4 or num_levels < 1 or num_queries < 1 or num_classes < 1 or num_decoder_layers < 1:
            raise MrtError(
                f"hidden_dim {hidden_dim}, num_levels {num_levels}, num_queries {num_queries}, "
                f"num_classes {num_classes}, num_decoder_layers {num_decoder_layers} cannot make a detector",
                "hidden_dim must be a multiple of 4, the others at least 1.",
            )
        if proposal_content not in ("position", "features"):
            raise MrtError(f'proposal_content is "{proposal_content}"', 'Choose "position" or "features".')
        self.arguments = arguments
        self.num_classes, self.hidden_dim = num_classes, hidden_dim
        self.num_levels, self.num_queries = num_levels, num_queries
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
            self.class_embed = nn.ModuleList(
                _class_head(hidden_dim, num_classes, prior) for _ in range(num_decoder_layers)
            )
            sizes = [first_size] + [0.0] * (num_decoder_layers - 1)
            self.bbox_embed = nn.ModuleList(BoxHead(hidden_dim, size) for size in sizes)
        else:
            self.class_embed = _class_head(hidden_dim, num_classes, prior)
            self.bbox_embed = BoxHead(hidden_dim, first_size)
        if two_stage:
            self.proposal_class_embed = _class_head(hidden_dim, 1, prior)
            self.proposal_bbox_embed = BoxHead(hidden_dim, 0.0)

    @classmethod
    def from_settings(cls, model: Any, backbone: Backbone, num_classes: int) -> DeformableDETR:
        """Build the detector from the section ``[model]`` of the settings."""
        sizes = model.model_dump(exclude={"detector", "backbone", "weights", "freeze"})
        return cls(backbone, num_classes=num_classes, **sizes)

    def set_checkpointing(self, enable: bool) -> None:
        """Keep fewer activations of backbone and encoder and recompute them in the backward pass.

        This takes less memory and more time.
        """
        super().set_checkpointing(enable)
        self.transformer.encoder.checkpointing = enable

    def compile_regions(self) -> list[nn.Module]:
        """The backbone's body and every layer of the transformer."""
        return [self.backbone.body, *self.transformer.encoder.layers, *self.transformer.decoder.layers]

    def learning_rate_groups(self) -> dict[str, list[str]]:
        """The backbone, and the parameters that choose the sampling points of attention (method.md)."""
        groups = super().learning_rate_groups()
        sampling = [name for name in sampling_names(self) if name not in groups["backbone"]]
        return groups | {"sampling": sampling}

    def extract(self, images: Tensor, padding_mask: Tensor | None = None) -> Features:
        """Backbone, projections and geometry; see :meth:`Detector.extract`."""
        maps = self.backbone(images)
        used = maps[-min(self.num_levels, len(maps)) :]
        levels = []
        for index, projection in enumerate(self.input_proj):
            if index < len(used):
                levels.append(projection(used[index]))
            elif index == len(used):
                levels.append(projection(used[-1]))
            else:
                levels.append(projection(levels[-1]))
        return make_features(maps, levels, images, padding_mask, self.hidden_dim)

    def encode_many(self, inputs: Sequence[EncoderInput]) -> list[Tensor]:
        """All inputs in one pass, which is possible because the encoder treats every image by itself."""
        tokens = [item.features.tokens() for item in inputs]
        # The tensors' shape, not len(), which would fix the number of images in an exported program.
        sizes = [part.shape[0] for part in tokens]
        sized = list(zip(inputs, sizes, strict=True))
        references = [item.reference_points.expand(size, -1, -1, -1) for item, size in sized]
        positions = inputs[0].features.positions
        if any(item.features.padded for item in inputs):
            each = [item.features.positions.expand(size, -1, -1) for item, size in sized]
            positions = torch.cat(each) if len(each) > 1 else each[0]
        masks = [item.token_mask for item in inputs]
        if any(mask is not None for mask in masks):
            none = [torch.zeros(part.shape[:2], dtype=torch.bool, device=part.device) for part in tokens]
            filled = [empty if mask is None else mask for mask, empty in zip(masks, none, strict=True)]
            masks = [torch.cat(filled)]
        spatial_shapes = inputs[0].features.spatial_shapes
        if len(inputs) > 1:
            tokens, references = [torch.cat(tokens)], [torch.cat(references)]
        memory = self.transformer.encode(tokens[0], positions, spatial_shapes, references[0], masks[0])
        return list(memory.split(sizes)) if len(inputs) > 1 else [memory]

    def decode(
        self, features: Features, memory: Tensor, targets: Sequence[dict[str, Tensor]] | None = None
    ) -> DetectorOutput:
        """Decoder and heads, on the memory (B, S, d) of whole images; targets are ignored."""
        mask, spatial_shapes, ratios = features.token_mask(), features.spatial_shapes, features.valid_ratios
        proposal_logits = proposal_boxes = None
        if self.two_stage:
            candidates, anchors, valid = self.transformer.propose(memory, spatial_shapes, ratios, mask)
            proposal_logits = self.proposal_class_embed(candidates)
            unplaced = self.proposal_bbox_embed(candidates).float() + anchors
            proposal_boxes = unplaced.sigmoid()
            ranking = proposal_logits[..., 0].detach().float().masked_fill(~valid, -torch.inf)
            places = ranking.shape[1]
            # In an exported program for images of any size always all, or its shapes would have an unknown.
            open_size = torch.compiler.is_exporting() and not isinstance(places, int)
            count = self.num_queries if open_size else min(self.num_queries, places)
            chosen = ranking.topk(count, dim=1).indices
            references = proposal_boxes.detach().gather(1, chosen[..., None].expand(-1, -1, 4))
            position, content = self.transformer.queries_of_proposals(references)
            if self.proposal_content == "features":
                content = content + candidates.gather(1, chosen[..., None].expand(-1, -1, self.hidden_dim))
        else:
            position, content = self.query_embed.weight.expand(memory.shape[0], -1, -1).chunk(2, -1)
            references = self.transformer.reference_points(position).float().sigmoid()
        hidden, boxes = self.transformer.decoder(
            content,
            position,
            references,
            memory,
            spatial_shapes,
            ratios,
            mask,
            self._refine if self.box_refine else None,
        )
        if self.box_refine:
            heads = zip(self.class_embed, hidden, strict=True)
            logits = torch.stack([head(queries) for head, queries in heads])
            boxes = torch.stack(boxes)
        else:
            logits, boxes = self.class_embed(hidden), _placed(self.bbox_embed(hidden), references)
        return DetectorOutput(logits, boxes, memory, hidden[-1], features, proposal_logits, proposal_boxes)

    def _refine(self, layer: int, queries: Tensor, references: Tensor) -> Tensor:
        return _placed(self.bbox_embed[layer](queries), references)


def _placed(change: Tensor, references: Tensor) -> Tensor:
    """Boxes (..., 4) in [0, 1], float32.

    Args:
        change: (..., 4) in logit space, relative to the references.
        references: (..., 2) points or (..., 4) boxes in [0, 1].
    """
    start = references.float().clamp(1e-5, 1 - 1e-5).logit()
    if start.shape[-1] == 2:
        start = F.pad(start, (0, 2))
    return (change.float() + start).sigmoid()


def _class_head(hidden_dim: int, num_classes: int, prior: float) -> nn.Linear:
    head = nn.Linear(hidden_dim, num_classes)
    nn.init.constant_(head.bias, prior)
    return head


def _input_projections(channels: Sequence[int], hidden_dim: int, num_levels: int) -> nn.ModuleList:
    """A 1x1 convolution per backbone map in use, then 3x3 ones of stride 2; each with a group norm."""
    convolutions = [nn.Conv2d(count, hidden_dim, 1) for count in channels[-min(num_levels, len(channels)) :]]
    for extra in range(num_levels - len(channels)):
        inputs = channels[-1] if extra == 0 else hidden_dim
        convolutions.append(nn.Conv2d(inputs, hidden_dim, 3, stride=2, padding=1))
    for convolution in convolutions:
        nn.init.xavier_uniform_(convolution.weight)
        nn.init.zeros_(convolution.bias)
    groups = math.gcd(32, hidden_dim)
    return nn.ModuleList(
        nn.Sequential(convolution, nn.GroupNorm(groups, hidden_dim)) for convolution in convolutions
    )


def sampling_names(module: nn.Module) -> list[str]:
    """Names of the parameters that choose the sampling points of attention: offsets and reference points."""
    words = ("reference_points", "sampling_offsets")
    return [name for name, _ in module.named_parameters() if any(word in name for word in words)]
