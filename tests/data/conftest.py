"""A tiny prepared set on disk."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_set import write_set


@pytest.fixture
def make_set(tmp_path):
    """make_set(name, {image_id: (H, W, 3) uint8}, annotations without ids, classes) -> DatasetCard.

    It has one split, "train".
    """
    return lambda name, *content, **card_fields: write_set(tmp_path / name, *content, **card_fields)


@pytest.fixture
def small_set(make_set):
    """Seven images of mixed sizes with 0..2 boxes each, classes car and person."""
    rng = np.random.default_rng(0)
    images = {i: rng.integers(0, 256, (24 + 4 * (i % 3), 40, 3), dtype=np.uint8) for i in range(1, 8)}
    annotations = [
        {"image_id": i, "category_id": 1 + n, "bbox": [2 + i, 3, 10, 8 + n], "area": 80, "iscrowd": 0}
        for i in images
        for n in range(i % 3)
    ]
    return make_set("small", images, annotations, ["car", "person"])
