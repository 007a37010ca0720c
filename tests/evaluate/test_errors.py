"""The error split on constructed cases of each kind, and compared with recordings of the authors' toolbox."""

from __future__ import annotations

import json

import numpy as np
import pytest
from golden import GOLDEN
from made_up import annotations_of, dataset_of, detections_of

from mrt.evaluate.coco import ImageDetections, score
from mrt.evaluate.errors import KINDS, split_errors

OBJECT = [20, 20, 60, 60]  # xyxy, of class 1 (car)
AWAY = [150, 20, 190, 60]


def split(tmp_path, objects, found):
    """objects: (label, xyxy[, crowd]); found: (score, label, xyxy), all in one image."""
    annotations = []
    for label, (x0, y0, x1, y1), *crowd in objects:
        box = {"bbox": [x0, y0, x1 - x0, y1 - y0], "iscrowd": int(bool(crowd))}
        annotations.append({"image_id": 1, "category_id": label + 1, **box})
    dataset = dataset_of(tmp_path, annotations, 1)
    scores = np.array([score for score, _, _ in found], dtype=float)
    labels = np.array([label for _, label, _ in found], dtype=np.int64)
    boxes = np.array([box for _, _, box in found], dtype=float).reshape(-1, 4)
    return split_errors([ImageDetections(1, scores, labels, boxes)], dataset)


def kinds(result):
    return {name: count for name, count in result.counts.items() if count}


@pytest.mark.parametrize(
    ("kind", "found"),
    [
        ("class", (0.9, 2, OBJECT)),
        ("localisation", (0.9, 1, [40, 20, 80, 60])),  # IoU 1/3
        ("both", (0.9, 2, [40, 20, 80, 60])),
        ("background", (0.9, 1, AWAY)),
        ("background", (0.9, 1, [56, 20, 96, 60])),  # IoU 1/19
    ],
)
def test_each_kind_of_false_positive(tmp_path, kind, found):
    """The object itself is found later, so fixing removes the false positive: from precision 1/2 to 1."""
    result = split(tmp_path, [(1, OBJECT)], [found, (0.5, 1, OBJECT)])
    assert kinds(result) == {kind: 1} and result.num_false_positives == 1 and result.num_false_negatives == 0
    other = kind in ("class", "both")  # false positives of a class without objects cost nothing
    assert pytest.approx(100 if other else 50) == result.AP50
    assert result.gains[kind] == result.false_positives == pytest.approx(0 if other else 50)


def test_a_duplicate_is_the_one_with_the_lower_score(tmp_path):
    result = split(tmp_path, [(1, OBJECT), (1, AWAY)], [(0.9, 1, OBJECT), (0.8, 1, OBJECT), (0.7, 1, AWAY)])
    assert kinds(result) == {"duplicate": 1}
    assert pytest.approx((51 * 1 + 50 * 2 / 3) / 101 * 100) == result.AP50
    assert result.gains["duplicate"] == pytest.approx(100 - result.AP50)


@pytest.mark.parametrize(
    ("kind", "found"), [("class", (0.9, 2, OBJECT)), ("localisation", (0.9, 1, [40, 20, 80, 60]))]
)
def test_mending_finds_an_object_that_was_not(tmp_path, kind, found):
    result = split(tmp_path, [(1, OBJECT), (2, AWAY)], [found, (0.5, 2, AWAY)])
    assert kinds(result) == {kind: 1}, "an object that an error nearly found is not missed"
    assert result.num_false_negatives == 1
    assert result.gains[kind] == pytest.approx(100 - result.AP50) and result.gains["missed"] == 0


def test_of_two_mistakes_at_one_object_only_the_better_becomes_a_hit(tmp_path):
    result = split(tmp_path, [(1, OBJECT)], [(0.9, 1, [40, 20, 80, 60]), (0.8, 1, [0, 20, 40, 60])])
    assert result.AP50 == 0 and result.gains["localisation"] == pytest.approx(100), "the other one vanishes"


def test_missed_objects_do_not_count_when_mended(tmp_path):
    result = split(tmp_path, [(1, OBJECT), (1, AWAY)], [(0.9, 1, OBJECT)])
    assert kinds(result) == {"missed": 1}
    assert result.gains["missed"] == result.false_negatives == pytest.approx(100 - result.AP50)


def test_crowds_are_neither_hit_nor_miss(tmp_path):
    found = [(0.9, 1, AWAY), (0.8, 1, [150, 20, 170, 60]), (0.7, 1, OBJECT)]
    result = split(tmp_path, [(1, OBJECT), (1, AWAY, "crowd")], found)
    assert kinds(result) == {} and pytest.approx(100) == result.AP50 and result.num_false_positives == 0
    lonely = split(tmp_path, [(1, AWAY, "crowd")], [(0.9, 1, OBJECT)])
    assert lonely.AP50 is None and lonely.gains["background"] is None and kinds(lonely) == {"background": 1}


def test_nothing_found(tmp_path):
    result = split(tmp_path, [(1, OBJECT)], [])
    assert result.AP50 == 0 and kinds(result) == {"missed": 1}
    assert result.gains["missed"] == 0, "there is no precision to gain"


def test_the_split_starts_from_the_headline_and_adds_up(tmp_path):
    annotations = annotations_of(30, seed=7, crowds=0.1)
    dataset, detections = dataset_of(tmp_path, annotations, 30), detections_of(annotations, 30)
    result, metrics = split_errors(detections, dataset), score(detections, dataset)
    assert pytest.approx(metrics.AP50, abs=1e-6) == result.AP50
    assert sum(result.counts[name] for name in KINDS if name != "missed") == result.num_false_positives > 0
    assert all(result.counts[name] > 0 and result.gains[name] > 0 for name in KINDS)
    assert result.false_positives >= max(result.gains[name] for name in ("both", "duplicate", "background"))
    assert 0 < result.counts["missed"] < result.num_false_negatives
    plain = json.loads(json.dumps(result.to_dict()))
    assert plain["class"] == {"dAP": result.gains["class"], "count": result.counts["class"]}
    assert plain["false_negatives"]["count"] > 0


def test_recorded_from_the_authors_toolbox(tmp_path):
    recorded = json.loads((GOLDEN / "tide.json").read_text())
    annotations = [
        {"image_id": image, "category_id": category, "bbox": box, "iscrowd": 0}
        for image, category, *box in recorded["annotations"]
    ]
    dataset = dataset_of(tmp_path, annotations, recorded["images"])
    rows = np.array(recorded["detections"])
    detections = []
    for image in set(rows[:, 0]):
        own = rows[rows[:, 0] == image]
        detections.append(ImageDetections(int(image), own[:, 2], own[:, 1].astype(int), own[:, 3:]))
    result = split_errors(detections, dataset).to_dict()
    expected = recorded["split"]
    assert result["AP50"] == pytest.approx(expected["AP50"], abs=1e-6)
    for name, values in expected.items():
        if name != "AP50":
            assert result[name]["dAP"] == pytest.approx(values["dAP"], abs=1e-6), name
            assert result[name]["count"] == values.get("count", result[name]["count"]), name
