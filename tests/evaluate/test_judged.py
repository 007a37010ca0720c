"""Hits, misses, duplicates and false boxes of an image, and that they look different."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mrt.data.dataset import ImageRecord
from mrt.evaluate.coco import ImageDetections
from mrt.evaluate.draw import COLOURS
from mrt.evaluate.judged import DUPLICATE, FALSE, HIT, IGNORED, draw_judged, judge, legend

CAR, PERSON = 0, 1
A, B, C = (10, 10, 50, 50), (60, 10, 90, 40), (10, 60, 40, 90)


def record(*objects: tuple[tuple, int], ignored: tuple = ()) -> ImageRecord:
    boxes = torch.tensor([box for box, _ in objects], dtype=torch.float32).reshape(-1, 4)
    spared = torch.tensor([box for box, _ in ignored], dtype=torch.float32).reshape(-1, 4)
    labels = [torch.tensor([label for _, label in some], dtype=torch.int64) for some in (objects, ignored)]
    return ImageRecord(
        1, Path("a.png"), (100, 100), boxes, labels[0], torch.ones(len(boxes)), spared, labels[1]
    )


def found(*detections: tuple[tuple, int, float]) -> ImageDetections:
    boxes = np.array([box for box, _, _ in detections], dtype=float).reshape(-1, 4)
    labels = np.array([label for _, label, _ in detections], dtype=int)
    return ImageDetections(1, np.array([score for _, _, score in detections]), labels, boxes)


def moved(box: tuple, by: float) -> tuple:
    return tuple(value + by for value in box)


def test_each_kind_by_hand():
    truth = record((A, CAR), (B, PERSON), (C, CAR))
    boxes = found(
        (A, CAR, 0.9), (moved(A, 8), CAR, 0.8), (B, CAR, 0.7), (moved(C, 50), CAR, 0.6), (C, CAR, 0.2)
    )
    verdict = judge(boxes, truth, 0.3)
    assert verdict.kinds == [HIT, FALSE, FALSE, FALSE], "8 pixels off: overlap 0.47"
    assert verdict.missed.tolist() == [1, 2] and str(verdict) == "hits 1, missed 2, false 3"
    twice = judge(found((moved(A, 5), CAR, 0.8), (A, CAR, 0.9), (moved(A, 1), CAR, 0.5)), truth, 0.3)
    assert twice.kinds == [HIT, DUPLICATE, DUPLICATE] and twice.scores.tolist() == [0.9, 0.8, 0.5]
    assert twice.hidden.tolist() == [False, False, True], "it nearly covers the best one"
    assert str(twice) == "hits 1, missed 2, false 0, duplicates 2 (1 of them not drawn)"


def test_ignored_objects_make_no_false_box():
    truth = record((A, CAR), ignored=((B, CAR),))
    inside = (65, 15, 80, 30)
    assert judge(found((inside, CAR, 0.9)), truth, 0.3).kinds == [IGNORED]
    assert judge(found((inside, PERSON, 0.9)), truth, 0.3).kinds == [FALSE], "of another class"
    assert str(judge(found(), record(), 0.3)) == "hits 0, missed 0, false 0"


@pytest.mark.parametrize("kind", [HIT, FALSE, DUPLICATE])
def test_lines_tell_kinds_apart(kind):
    """A hit's line is whole, the others' have gaps; a missed object has corners alone."""
    image, label = Image.new("RGB", (100, 100), (90, 90, 90)), CAR
    truth = record((A, CAR))
    detections = {
        HIT: found((A, CAR, 0.9)),
        FALSE: found((C, CAR, 0.9)),
        DUPLICATE: found((A, CAR, 0.95), (moved(A, 5), CAR, 0.9)),
    }[kind]
    verdict = judge(detections, truth, 0.3)
    assert verdict.kinds[-1] == kind
    drawn = np.asarray(draw_judged(image, verdict, truth, ["car", "person"], scale=4))
    x0, _, x1, y1 = (4 * int(value) for value in verdict.boxes[-1])
    side = (drawn[y1 - 1 : y1 + 2, x0 + 8 : x1 - 8] == np.array(COLOURS[label])).all(-1).any(0)
    assert side.all() if kind == HIT else 0.3 < side.mean() < 0.9


def test_a_missed_object_has_corners():
    image, truth = Image.new("RGB", (100, 100), (90, 90, 90)), record((A, PERSON))
    drawn = np.asarray(draw_judged(image, judge(found(), truth, 0.3), truth, ["car", "person"], scale=4))
    side = (drawn[199:202, 40:200] == np.array(COLOURS[PERSON])).all(-1).any(0)
    assert side[:30].any() and side[-30:].any() and not side[60:100].any()
    assert drawn.shape[0] > 400, "the words stand below"
    assert legend(900, 0.3).size[0] == 900
