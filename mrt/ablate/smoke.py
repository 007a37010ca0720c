"""``--smoke``: a few images and steps, to see in a minute or two that a comparison runs from end to end."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from mrt.data.card import describe_split, is_ignored, read_json, write_card
from mrt.data.registry import find_dataset
from mrt.errors import MrtError
from mrt.files import write_text

IMAGES = 8  # of each split
# Every part of the method still takes place: two epochs of teaching, so that thresholds move and retraining
# happens once.
SETTINGS = {
    **{f"{stage}.steps_per_epoch": 2 for stage in ("pretrain", "mae_stage", "teach")},
    "pretrain.epochs": 1,
    "mae_stage.epochs": 1,
    "teach.epochs": 2,
    "mae.decay_epoch": 1,
    "retrain.every": 1,
    "data.sides": [64],
    "data.source_sides": [64],
    "data.max_size": 128,
    "data.cache": "none",
    "engine.batch_size": 2,
    "engine.accumulate": 1,
    "engine.workers": 0,
    "engine.eval_every": 0,
}


def shrink(names: Iterable[str], data_root: Path, folder: Path) -> Path:
    """Sets of the same names with the first images of each split that have boxes; returns their data root."""
    for name in dict.fromkeys(names):
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise MrtError(
                f"--smoke: {name} is a path", "name data sets below the data root, e.g. with --data-root"
            )
        card = find_dataset(name, data_root)
        small = folder / name
        splits = {}
        for split, part in card.splits.items():
            coco = read_json(card.annotations_path(split))
            with_boxes = {item["image_id"] for item in coco["annotations"] if not is_ignored(item)}
            first = sorted(coco["images"], key=lambda image: image["id"] not in with_boxes)[
                :IMAGES
            ]  # else there may be none to learn from
            kept = {image["id"] for image in first}
            coco["images"] = [image for image in coco["images"] if image["id"] in kept]
            coco["annotations"] = [item for item in coco["annotations"] if item["image_id"] in kept]
            write_text(small / f"{split}.json", json.dumps(coco))
            facts, _ = describe_split(
                small, f"{split}.json", str(card.images_root(split).absolute()), part.skipped
            )
            splits[split] = facts
        write_card(replace(card, splits=splits, image_sizes={}), small)
    return folder
