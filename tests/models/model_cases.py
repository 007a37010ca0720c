"""Shared by the model tests: the tiny sizes of the golden numbers, and small detectors of our own."""

from __future__ import annotations

import re

import torch
from golden import GOLDEN

from mrt.models.backbone import build_backbone
from mrt.models.detector import DeformableDETR, Features
from mrt.models.position import encoder_reference_points, valid_ratios
from mrt.models.transformer import DeformableTransformer, flatten_levels

SHAPES = ((12, 20), (6, 10), (3, 5), (2, 3))  # the goldens' levels
SMALL = {
    "num_classes": 3,
    "hidden_dim": 32,
    "num_heads": 4,
    "num_encoder_layers": 1,
    "num_decoder_layers": 2,
    "feedforward_dim": 64,
    "num_points": 2,
    "num_queries": 12,
    "dropout": 0.0,
}
HEAD = re.compile(r"(class_embed|bbox_embed)\.\d+\.(.*)")


def tensors(golden, prefix: str) -> dict[str, torch.Tensor]:
    """The arrays whose names begin with ``prefix``, without it."""
    return {
        key[len(prefix) :]: torch.from_numpy(golden[key]) for key in golden.files if key.startswith(prefix)
    }


def per_level(golden, prefix: str) -> list[torch.Tensor]:
    return [torch.from_numpy(golden[f"{prefix}{level}"]) for level in range(len(SHAPES))]


def golden_transformer(golden) -> DeformableTransformer:
    transformer = DeformableTransformer(32, 4, 2, 2, 64, 4, 4, 0.0)
    weights = {
        key: value for key, value in tensors(golden, "sd/").items() if not key.startswith("mae_decoder.")
    }
    transformer.load_state_dict(weights)
    return transformer


def golden_features(
    golden, masks: list[torch.Tensor], levels: list[torch.Tensor], target: torch.Tensor | None = None
) -> Features:
    ratios = valid_ratios(masks)
    positions = flatten_levels(per_level(golden, "in/pos."))
    references = encoder_reference_points(SHAPES, ratios)
    padded = any(bool(mask.any()) for mask in masks)
    return Features([target] * 3, levels, masks, positions, SHAPES, ratios, references, padded)


def small_backbone(**options):
    """A ResNet-18 without downloads."""
    return build_backbone("resnet18", **{"weights": "none", **options})


def small_detector(backbone=None, **options) -> DeformableDETR:
    return DeformableDETR(backbone or small_backbone(), **{**SMALL, **options})


def images_and_masks(sizes: list[tuple[int, int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Random images of the given (h, w), zero-padded to the largest, and their padding mask."""
    height, width = max(h for h, _ in sizes), max(w for _, w in sizes)
    images = torch.zeros(len(sizes), 3, height, width)
    masks = torch.ones(len(sizes), height, width, dtype=torch.bool)
    for image, mask, (h, w) in zip(images, masks, sizes, strict=True):
        image[:, :h, :w] = torch.randn(3, h, w)
        mask[:h, :w] = False
    return images, masks


def random_state(name: str) -> dict[str, torch.Tensor]:
    """Random values for each key of a golden list; the six layers share one head."""
    state, shared = {}, {}
    for line in (GOLDEN / name).read_text().splitlines():
        if line.startswith("#"):
            continue
        key, shape, _ = line.split("\t")
        value = torch.rand(tuple(int(side) for side in shape.strip("()").split(",") if side.strip()))
        head = HEAD.fullmatch(key)
        state[key] = shared.setdefault(head.groups(), value) if head else value
    return state


def official(state: dict[str, torch.Tensor], columns: int = 91) -> dict[str, torch.Tensor]:
    """The same weights with the names of an official Deformable DETR checkpoint."""
    ours, theirs = "backbone.intermediate_getter.", "backbone.0.body."
    renamed = {key.replace(ours, theirs): value for key, value in state.items()}
    for key, value in renamed.items():
        if key.startswith("class_embed"):
            renamed[key] = torch.randn(columns, *value.shape[1:])
    shared = {}
    for key in list(renamed):
        head = HEAD.fullmatch(key)
        if head and head.group(1) == "class_embed":
            renamed[key] = shared.setdefault(head.group(2), renamed[key])
    return renamed
