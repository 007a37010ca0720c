"""Writing a tiny prepared set to disk, for tests."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mrt.data.card import DatasetCard, coco_categories, describe_split, write_card


def write_set(
    folder: Path,
    images: Mapping[int, np.ndarray],
    annotations: Sequence[dict[str, Any]],
    classes: Sequence[str],
    **card_fields: Any,
) -> DatasetCard:
    """A set named like its folder with one split "train".

    Images are given by id, (H, W, 3) uint8; COCO annotations without ids.
    """
    (folder / "images").mkdir(parents=True)
    entries = []
    for image_id, pixels in images.items():
        file_name = f"{image_id:04}.png"
        Image.fromarray(pixels).save(folder / "images" / file_name)
        height, width = pixels.shape[:2]
        entries.append({"id": image_id, "file_name": file_name, "height": height, "width": width})
    numbered = [{"id": index, **annotation} for index, annotation in enumerate(annotations, start=1)]
    coco = {"images": entries, "annotations": numbered, "categories": coco_categories(classes)}
    (folder / "train.json").write_text(json.dumps(coco))
    split, sizes = describe_split(folder, "train.json", "images")
    card = DatasetCard(
        folder.name, "clear", tuple(classes), {"train": split}, dict(sizes), folder=folder, **card_fields
    )
    write_card(card)
    return card
