"""Tiles and their merging, compared with sahi's results."""

from __future__ import annotations

import numpy as np
import pytest

from mrt.predict.tiles import merge, tile_boxes


def test_tiles_cover_the_image_and_stay_inside():
    covered = np.zeros((333, 517), bool)
    for x0, y0, x1, y1 in tile_boxes(333, 517, 100, 0.2):
        assert 0 <= x0 < x1 <= 517 and 0 <= y0 < y1 <= 333 and x1 - x0 == y1 - y0 == 100
        covered[y0:y1, x0:x1] = True
    assert covered.all()
    assert tile_boxes(90, 60, 100, 0.2) == [(0, 0, 60, 90)]


@pytest.mark.parametrize("overlap", [0.0, 0.2, 0.5, 0.9])
def test_tiles_are_those_of_sahi(overlap):
    slicing = pytest.importorskip("sahi.slicing")
    random = np.random.default_rng(0)
    for _ in range(30):
        height, width, side = (int(n) for n in random.integers(20, 900, 3))
        theirs = slicing.get_slice_bboxes(height, width, side, side, False, overlap, overlap)
        assert [list(box) for box in tile_boxes(height, width, side, overlap)] == theirs


@pytest.mark.parametrize("agnostic", [False, True])
def test_merging_is_that_of_sahi(agnostic):
    combine = pytest.importorskip("sahi.postprocess.combine")
    from sahi.prediction import ObjectPrediction

    random = np.random.default_rng(1)
    merged = 0
    for count in [*range(1, 30), 60, 120]:
        corners = random.integers(0, 60, (count, 2))
        boxes = np.concatenate([corners, corners + random.integers(5, 40, (count, 2))], 1).astype(np.float32)
        scores = random.permutation(np.linspace(0.1, 0.99, count)).astype(np.float32)
        labels = random.integers(0, 3, count)
        objects = []
        for box, score, label in zip(boxes.tolist(), scores.tolist(), labels.tolist(), strict=True):
            classes = {"category_id": label, "category_name": str(label)}
            objects.append(ObjectPrediction(bbox=box, score=score, full_shape=[200, 200], **classes))
        options = {"match_threshold": 0.5, "match_metric": "IOS", "class_agnostic": agnostic}
        theirs = combine.GreedyNMMPostprocess(**options)(objects)
        expected = [(round(item.score.value, 5), item.category.id, *item.bbox.to_xyxy()) for item in theirs]
        found, kept = merge(boxes, scores, np.zeros_like(labels) if agnostic else labels)
        pairs = zip(found, kept, strict=True)
        got = [(round(float(scores[i]), 5), int(labels[i]), *box.tolist()) for box, i in pairs]
        expected, got = sorted(expected), sorted(got)
        np.testing.assert_allclose(got, expected, atol=1e-4)
        merged += count - len(got)
    assert merged > 100


def test_merging_nothing():
    boxes, kept = merge(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))
    assert boxes.shape == (0, 4) and kept.shape == (0,)
