from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_set import write_set

from mrt.adapt.pseudo_labels import pseudo_labels
from mrt.data.dataset import DetectionDataset
from mrt.evaluate.coco import ImageDetections
from mrt.evaluate.labels import as_pseudo_labels, label_quality
from mrt.models.postprocess import top_detections


def found(image_id, *rows):
    """(score, label, box) rows."""
    scores, labels, boxes = zip(*rows, strict=True) if rows else ((), (), ())
    boxes = np.array(boxes, dtype=float).reshape(-1, 4)
    return ImageDetections(image_id, np.array(scores), np.array(labels, dtype=int), boxes)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    boxes = [
        (1, 1, [0, 0, 20, 20], 0),
        (1, 1, [40, 0, 20, 20], 0),
        (1, 2, [0, 30, 20, 10], 0),
        (2, 1, [60, 20, 30, 30], 1),
    ]
    annotations = [
        {"image_id": i, "category_id": c, "bbox": box, "area": 400, "ignore": ignore}
        for i, c, box, ignore in boxes
    ]
    pictures = {number: np.zeros((50, 100, 3), np.uint8) for number in (1, 2)}
    card = write_set(tmp_path_factory.mktemp("set") / "s", pictures, annotations, ["car", "bus"])
    return DetectionDataset(card, "train")


def test_right_wrong_twice_and_ignored(dataset):
    right, twice = (0.9, 0, [1, 0, 21, 20]), (0.8, 0, [0, 0, 20, 20])
    wrong_class, ignored = (0.7, 1, [40, 0, 60, 20]), (0.6, 0, [62, 22, 72, 32])
    quality = label_quality([found(1, twice, right, wrong_class), found(2, ignored)], dataset)
    assert (quality.num_labels, quality.num_boxes) == (3, 3)
    assert quality.precision == pytest.approx(100 / 3) and quality.recall == pytest.approx(100 / 3)
    assert quality.per_class["bus"] == {"precision": 0.0, "recall": 0.0, "num_labels": 1, "num_boxes": 1}
    assert quality.per_class["car"]["precision"] == 50.0


def test_nothing_to_divide_by(dataset):
    quality = label_quality([found(2)], dataset)
    assert (quality.precision, quality.recall, quality.num_boxes) == (None, None, 0)


def test_detections_give_the_labels_that_training_would_have_used():
    torch.manual_seed(0)
    logits, boxes = torch.randn(2, 30, 3), torch.rand(2, 30, 4) * 0.5 + 0.2
    thresholds = torch.tensor([0.3, 0.6, 0.5])
    expected = pseudo_labels(logits, boxes, thresholds, nms_iou=0.3)
    listed = top_detections(logits, boxes, [(1, 1)] * 2)
    parts = [[item[key].numpy() for key in ("scores", "labels", "boxes")] for item in listed]
    detections = [ImageDetections(number, *arrays) for number, arrays in enumerate(parts)]
    for mine, theirs in zip(as_pseudo_labels(detections, thresholds.tolist(), 0.3), expected, strict=True):
        assert 0 < len(mine.scores) < 30
        np.testing.assert_array_equal(mine.scores, theirs["scores"].numpy())
        np.testing.assert_array_equal(mine.labels, theirs["labels"].numpy())
