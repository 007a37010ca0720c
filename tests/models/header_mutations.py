"""Descriptions in weights files as a stranger might write them: changed in values, structure and text."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors.torch import save

from mrt.models.backbone import build_backbone
from mrt.models.detector import DeformableDETR
from mrt.models.digest import SHA256, TEXT, TEXT_SHA256, content_digest
from mrt.models.sealed import _text_digest
from mrt.models.weights import save_weights

SIZES = {
    "num_classes": 2,
    "hidden_dim": 16,
    "num_heads": 2,
    "num_encoder_layers": 1,
    "num_decoder_layers": 2,
    "feedforward_dim": 16,
    "num_levels": 2,
    "num_points": 2,
    "num_queries": 5,
    "dropout": 0.0,
}
METADATA = {
    "classes": ["car", "bus"],
    "network": "student",
    "config": {"data": {"sides": [64], "max_size": 128, "target": "hazy"}, "method": {"plugins": []}},
    "thresholds": {"car": 0.3, "bus": 0.4},
    "source": {"confidences": {"car": 0.5}, "boxes_per_image": {"car": 1.5}},
    "run": {"command": "adapt", "data": {"target": {"name": "hazy", "sha256": {"val": "ab" * 32}}}},
}
HOSTILE: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    2,
    3,
    7,
    16,
    2**31,
    2**31 - 1,
    -(2**31),
    10**9,
    10**18,
    10**30,
    0.5,
    1.5,
    -0.0,
    1e308,
    float("nan"),
    float("inf"),
    float("-inf"),
    "",
    " ",
    "1",
    "nan",
    "none",
    "grid",
    "stem",
    "resnet18",
    "vit_7b",
    "../../etc/passwd",
    "\x1b[31mred",
    "\ud800",
    "a" * 5000,
    [],
    {},
    [[]],
    [1, "a", None],
    {"a": {"b": {}}},
    {"": None},
)


def small_file(path: Path, **options: Any) -> DeformableDETR:
    """Write a small detector of mrt; returns it."""
    torch.manual_seed(0)
    backbone = build_backbone("test_efficientnet", weights="checkpoint", levels=2)
    detector = DeformableDETR(backbone, **{**SIZES, **options}).eval()
    save_weights(path, detector, METADATA)
    return detector


def content(text: str, tensors: dict[str, torch.Tensor], sealed: bool) -> bytes:
    """A file with that description, with checksums that fit it or without any."""
    metadata = {TEXT: text}
    if sealed:
        metadata |= {TEXT_SHA256: _text_digest(text), SHA256: content_digest(text, tensors)}
    return save(tensors, metadata)


def mutations(header: dict[str, Any], seed: int, number: int) -> Iterator[str]:
    """Changed descriptions as text; some are no JSON."""
    random = Random(seed)
    plain = json.dumps(header)
    for _ in range(number):
        kind = random.random()
        if kind < 0.8:
            changed = copy.deepcopy(header)
            for _ in range(random.choice((1, 1, 1, 2, 3))):
                _change(changed, random)
            yield json.dumps(changed)
        elif kind < 0.9:
            depth = random.choice((30, 900, 5000, 100_000))
            opened, closed = random.choice((("[", "]"), ('{"a":', "}")))
            inner = opened * depth + "0" + closed * depth
            yield plain.replace('"slim": false', f'"slim": {inner}', 1)
        else:
            yield _edited(plain, random)


def _change(tree: dict[str, Any], random: Random) -> None:
    places = list(_places(tree))
    node, key = random.choice(places)
    how = random.randrange(5)
    if how == 0:
        del node[key]
    elif how == 1 and isinstance(node, dict):
        node[f"{key}{random.choice('_x. ')}"] = node.pop(key)
    elif how == 2:
        other, name = random.choice(places)
        node[key] = copy.deepcopy(other[name] if _has(other, name) else None)
    else:
        node[key] = copy.deepcopy(random.choice(HOSTILE))


def _has(node: Any, key: Any) -> bool:
    return key in node if isinstance(node, dict) else key < len(node)


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in list(items):
        yield tree, key
        yield from _places(value)


def _edited(text: str, random: Random) -> str:
    letters = list(text)
    for _ in range(random.choice((1, 1, 2, 5))):
        place = random.randrange(len(letters))
        how = random.randrange(3)
        if how == 0:
            del letters[place]
        elif how == 1:
            letters[place] = random.choice('0123456789{}[]",:eE-+.NaInfty\\ \x00\u2028é')
        else:
            letters[place:place] = letters[place : place + random.randrange(1, 40)]
    return "".join(letters)
