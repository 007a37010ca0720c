"""Intervals over images: the same results as pycocotools, also on resampled sets, and plausible intervals."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from made_up import CLASSES, annotations_of, dataset_of, detections_of

from mrt.errors import MrtError
from mrt.evaluate.bootstrap import confidence_intervals, draw, estimates, paired_differences
from mrt.evaluate.coco import score
from mrt.evaluate.matching import average_precision, match

IMAGES = 40


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    annotations = annotations_of(IMAGES, crowds=0.15)
    return annotations, dataset_of(tmp_path_factory.mktemp("set"), annotations, IMAGES)


def test_every_image_once_gives_pycocotools_figures(made):
    annotations, dataset = made
    for skill in (0.5, 1.5):
        detections = detections_of(annotations, IMAGES, skill=skill)
        expected, found = score(detections, dataset), confidence_intervals(detections, dataset, samples=3)
        for name in ("AP", "AP50", "AP75"):
            assert found[name]["value"] == pytest.approx(getattr(expected, name), abs=1e-6)
        for name, values in expected.per_class.items():
            value = None if values.AP50 is None else pytest.approx(values.AP50, abs=1e-6)
            assert found[f"AP50 {name}"]["value"] == value
    assert found["AP50 train"] == {"value": None, "low": None, "high": None}, "detections, but no object"


def test_a_draw_gives_what_pycocotools_finds_on_a_set_with_copies(made, tmp_path):
    """Makes a real set of each draw: an image that was drawn k times is in it k times."""
    annotations, dataset = made
    detections = detections_of(annotations, IMAGES)
    found = estimates(match(detections, dataset), samples=4, seed=5)
    for sample, weights in enumerate(draw(IMAGES, 4, 5), start=1):
        ids = np.repeat(np.arange(1, IMAGES + 1), weights)
        copies, drawn = [], []
        for n, old in enumerate(ids, 1):
            copies += [{**item, "image_id": n} for item in annotations if item["image_id"] == old]
            drawn.append(dataclasses.replace(detections[old - 1], image_id=n))
        (folder := tmp_path / str(sample)).mkdir()
        expected = score(drawn, dataset_of(folder, copies, IMAGES))
        for name in ("AP", "AP50", "AP75"):
            assert found[name][sample] == pytest.approx(getattr(expected, name), abs=1e-6)
        for name in CLASSES[:3]:
            assert found[f"AP50 {name}"][sample] == pytest.approx(expected.per_class[name].AP50, abs=1e-6)


def test_the_seed_decides_and_a_higher_level_is_wider(made):
    annotations, dataset = made
    matches = match(detections_of(annotations, IMAGES), dataset)
    first = confidence_intervals(matches, samples=200, seed=1)
    assert first == confidence_intervals(matches, samples=200, seed=1)
    assert first != confidence_intervals(matches, samples=200, seed=2)
    wide = confidence_intervals(matches, samples=200, seed=1, level=0.99)
    for name in ("AP", "AP50", "AP50 car"):
        inner, outer = first[name], wide[name]
        assert outer["low"] < inner["low"] < inner["value"] < inner["high"] < outer["high"]


def test_every_draw_has_as_many_images():
    drawn = draw(7, 50, 0)
    assert drawn.shape == (50, 7) and (drawn.sum(axis=1) == 7).all() and drawn.max() > 1
    assert draw(1, 3, 0).tolist() == [[1]] * 3


def test_pairs_are_closer_than_their_parts(made):
    """Both detectors have the same hard images, so their difference varies less than each of them."""
    annotations, dataset = made
    first = detections_of(annotations, IMAGES)
    second = [dataclasses.replace(item, boxes=item.boxes + 1.5) for item in first]
    before, after = match(first, dataset), match(second, dataset)
    pair = paired_differences(before, after, samples=300)["AP"]
    alone = confidence_intervals(before, samples=300)["AP"]
    assert pair["value"] == pytest.approx(score(second, dataset).AP - score(first, dataset).AP, abs=1e-6)
    assert pair["low"] < pair["value"] < pair["high"]
    assert pair["high"] - pair["low"] < alone["high"] - alone["low"]
    nothing = paired_differences(before, before, samples=20)["AP50"]
    assert nothing == {"value": 0, "low": 0, "high": 0}


def test_pairs_need_the_same_images(made, tmp_path):
    annotations, dataset = made
    other = dataset_of(tmp_path, annotations_of(3), 3)
    with pytest.raises(MrtError, match="same images"):
        paired_differences(match(detections_of(annotations, IMAGES), dataset), match([], other))


def test_nothing_found_and_nothing_to_find(tmp_path):
    (tmp_path / "empty").mkdir()
    car = {"image_id": 1, "category_id": 2, "bbox": [10, 10, 40, 40], "iscrowd": 0}
    found = confidence_intervals([], dataset_of(tmp_path, [car], 2), samples=50)
    assert found["AP50"] == found["AP50 car"] == {"value": 0, "low": 0, "high": 0}
    assert found["AP50 bus"]["value"] is None
    nothing = dataset_of(tmp_path / "empty", [], 2)
    assert set(confidence_intervals(detections_of([], 2), nothing, samples=5)["AP"].values()) == {None}


def test_an_ignored_detection_is_neither_hit_nor_miss():
    hits, ignored = np.array([[False], [True]]), np.array([[True], [False]])
    arguments = (np.array([0, 0]), np.ones((1, 1), dtype=np.int32), np.array([1]))
    assert average_precision(np.array([0.9, 0.5]), hits, ignored, *arguments) == 1
    assert average_precision(np.array([0.9, 0.5]), hits, ~ignored & ignored, *arguments) == 0.5
