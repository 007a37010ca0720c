"""A tiny prepared set on disk."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from mrt.data.card import DatasetCard, coco_categories, describe_split, write_card


@pytest.fixture
def make_set(tmp_path):
    """make_set(name, {image_id: (H, W, 3) uint8}, annotations without ids, classes) -> DatasetCard with one split "train"."""

    def make(name, images, annotations, classes, **card_fields):
        folder = tmp_path / name
        (folder / "images").mkdir(parents=True)
        entries = []
        for image_id, pixels in images.items():
            file_name = f"{image_id:04}.png"
            Image.fromarray(pixels).save(folder / "images" / file_name)
            entries.append({"id": image_id, "file_name": file_name, "height": pixels.shape[0], "width": pixels.shape[1]})
        numbered = [{"id": index, **annotation} for index, annotation in enumerate(annotations, start=1)]
        coco = {"images": entries, "annotations": numbered, "categories": coco_categories(classes)}
        (folder / "train.json").write_text(json.dumps(coco))
        split, sizes = describe_split(folder, "train.json", "images")
        card = DatasetCard(name, "clear", tuple(classes), {"train": split}, dict(sizes), folder=folder, **card_fields)
        write_card(card)
        return card

    return make


@pytest.fixture
def small_set(make_set):
    """Seven images of mixed sizes with 0..2 boxes each, classes car and person."""
    rng = np.random.default_rng(0)
    images = {i: rng.integers(0, 256, (24 + 4 * (i % 3), 40, 3), dtype=np.uint8) for i in range(1, 8)}
    annotations = [
        {"image_id": i, "category_id": 1 + n, "bbox": [2 + i, 3, 10, 8 + n], "area": 80, "iscrowd": 0} for i in images for n in range(i % 3)
    ]
    return make_set("small", images, annotations, ["car", "person"])
