"""Made-up annotations and detections with every kind of mistake, and a set of them on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from mrt.data.card import DatasetCard, SplitCard
from mrt.data.dataset import DetectionDataset
from mrt.evaluate.coco import ImageDetections

CLASSES = ("person", "car", "bus", "train")  # there is no train
WIDTH, HEIGHT = 256, 128


def dataset_of(
    folder: Path, annotations: list[dict[str, Any]], images: int, classes: tuple[str, ...] = CLASSES
) -> DetectionDataset:
    """A labelled split; its images are never opened."""
    coco = {
        "images": [
            {"id": i, "file_name": f"{i}.png", "height": HEIGHT, "width": WIDTH} for i in range(1, images + 1)
        ],
        "annotations": [
            {"id": n, "area": a["bbox"][2] * a["bbox"][3], **a} for n, a in enumerate(annotations, 1)
        ],
        "categories": [{"id": n, "name": name} for n, name in enumerate(classes, 1)],
    }
    (folder / "val.json").write_text(json.dumps(coco))
    return DetectionDataset(
        DatasetCard("set", "", classes, {"val": SplitCard("val.json", ".")}, folder=folder), "val"
    )


def annotations_of(images: int, seed: int = 0, crowds: float = 0.0) -> list[dict[str, Any]]:
    """0 to 8 objects an image, close enough to overlap; a share of ``crowds`` are ignored regions."""
    rng = np.random.default_rng(seed)
    made = []
    for image in range(1, images + 1):
        for _ in range(rng.integers(0, 9)):
            w, h = rng.uniform(10, 70, 2)
            x, y = rng.uniform(0, WIDTH - w), rng.uniform(0, HEIGHT - h)
            crowd = int(rng.random() < crowds)
            category = int(rng.integers(1, 4))
            entry = {"image_id": image, "category_id": category, "bbox": [x, y, w, h], "iscrowd": crowd}
            made.append(entry)
    return made


def detections_of(
    annotations: list[dict[str, Any]], images: int, seed: int = 1, skill: float = 1.0, number: int = 30
) -> list[ImageDetections]:
    """Objects found well, badly, twice, with a wrong name or not at all, and false ones; scores all differ.

    Args:
        skill: larger finds objects more precisely. number: at most so many detections an image.
    """
    rng = np.random.default_rng(seed)
    made = []
    for image in range(1, images + 1):
        rows = []
        for item in (item for item in annotations if item["image_id"] == image):
            x, y, w, h = item["bbox"]
            for _ in range(rng.choice([0, 1, 1, 2])):
                off = rng.normal(0, 0.15 / skill, 4) * [w, h, w, h]
                x0, y0, x1, y1 = np.array([x, y, x + w, y + h]) + off
                label = item["category_id"] - 1 if rng.random() < 0.8 else rng.integers(0, len(CLASSES))
                rows.append((rng.random() ** 0.5, label, min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)))
        for _ in range(rng.integers(0, 6)):
            x, y, w, h = rng.uniform(0, 180), rng.uniform(0, 80), *rng.uniform(8, 60, 2)
            rows.append((rng.random() ** 2, rng.integers(0, len(CLASSES)), x, y, x + w, y + h))
        table = np.array(sorted(rows, reverse=True)[:number]).reshape(-1, 6)
        made.append(ImageDetections(image, table[:, 0], table[:, 1].astype(np.int64), table[:, 2:]))
    return made
