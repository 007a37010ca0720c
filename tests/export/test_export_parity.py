"""Which detections count as the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from mrt.export.parity import ParityFailed, Tensors, Tolerance, compare, compare_tensors, pick, table_row
from mrt.predict.detector import Detector
from mrt.predict.network import Preprocessing

CLASSES = ("car", "person")
PICTURE = Image.new("RGB", (200, 100))


class Fixed:
    """A network that finds the same in every image."""

    def __init__(self, scores, labels, boxes) -> None:
        order = np.argsort(-np.asarray(scores), kind="stable")
        self.found = [np.asarray(part)[order] for part in (scores, labels, boxes)]

    def __call__(self, images):
        return tuple(np.stack([part] * len(images)) for part in self.found)


def detector(scores, labels, boxes, classes=CLASSES) -> Detector:
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
    network = Fixed(np.asarray(scores, np.float32), np.asarray(labels, np.int64), boxes)
    return Detector(network, classes, Preprocessing(100, 200))


def many(count: int = 300, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0.05, 0.45, (count, 2))
    scores, labels = rng.uniform(0.02, 0.9, count), rng.integers(0, 2, count)
    return [scores, labels, np.hstack([corners, corners + rng.uniform(0.1, 0.5, (count, 2))])]


def check(mine, theirs, **options):
    return compare(detector(*mine), detector(*theirs), [PICTURE, PICTURE], "test", **options)


def test_the_same_is_the_same_whatever_the_order():
    scores, labels, boxes = many()
    other = np.random.default_rng(1).permutation(300)
    found = check([scores, labels, boxes], [scores[other], labels[other], boxes[other]])
    assert found.ok and (found.compared, found.missing, found.different) == (400, 0, 0)
    assert found.score == 0 and found.box < 1e-4
    assert found.objects == 2 * int((scores >= 0.3).sum())


def test_differences_within_the_tolerance_are_measured():
    scores, labels, boxes = many()
    found = check([scores, labels, boxes], [scores + 1e-4, labels, boxes + 2e-4])
    assert found.ok and found.score == pytest.approx(1e-4, rel=1e-2)
    assert found.box == pytest.approx(0.04, rel=1e-2)


FIRST = np.arange(300) == 0


@pytest.mark.parametrize(
    ("change", "missing", "different"),
    [
        (lambda s, c, b: (s + np.where(FIRST, 1e-3, 0), c, b), 0, 2),  # a score
        (lambda s, c, b: (s, np.where(FIRST, 1 - c, c), b), 2, 0),  # a class
        (lambda s, c, b: (s, c, b + np.where(FIRST, 2e-3, 0)[:, None]), 0, 2),  # a box, by 0.4 pixels
        (lambda s, c, b: (s, c, b + np.where(FIRST, -0.05, 0)[:, None] * [0, 0, 1, 1]), 0, 2),
    ],
)
def test_a_single_detection_that_differs_is_noticed_on_both_sides(change, missing, different):
    scores, labels, boxes = many()
    scores[0] = 0.95
    changed = detector(*change(scores, labels, boxes))
    found = compare(detector(scores, labels, boxes), changed, [PICTURE], "test")
    assert not found.ok and (found.missing, found.different) == (missing, different)
    assert table_row(found)[-1] == "NO"


def test_a_detection_that_is_gone_is_missing_and_one_too_many_is_too():
    scores, labels, boxes = many()
    best = int(scores.argmax())
    fewer = [np.delete(part, best, axis=0) for part in (scores, labels, boxes)]
    for mine, theirs in (([scores, labels, boxes], fewer), (fewer, [scores, labels, boxes])):
        found = compare(detector(*mine), detector(*theirs), [PICTURE], "test")
        assert not found.ok and (found.missing, found.different) == (1, 0)


def test_two_on_the_same_place_are_not_one():
    scores, labels, boxes = many(40)
    twice = [np.concatenate([part, part[:1]]) for part in (scores, labels, boxes)]
    found = compare(detector(*twice), detector(scores, labels, boxes), [PICTURE], "test")
    assert (found.missing, found.different) == (1, 0)


def test_ties_at_the_end_of_the_list_are_no_difference():
    scores, labels, boxes = many(320)
    # Any 280 of these may be in the list, and any 80 among the best.
    scores[20:] = np.linspace(0.01, 0.01 - 1e-5, 300)
    order = np.concatenate([np.arange(20), 20 + np.random.default_rng(0).permutation(300)])
    mine = [part[order[:300]] for part in (scores, labels, boxes)]
    theirs = [np.concatenate([part[order[:20]], part[order[40:]]]) for part in (scores, labels, boxes)]
    found = check(mine, theirs)
    assert found.ok and found.compared == 2 * 2 * 20


def test_slivers_at_the_border_are_no_difference():
    scores, labels, boxes = many(30)
    boxes[0] = (0.5, 0.2, 0.5 + 1e-6, 0.8)
    other = boxes.copy()
    other[0] = (0.5, 0.2, 0.5, 0.8)  # no box at all
    assert check([scores, labels, boxes], [scores, labels, other]).ok


def test_nothing_proves_nothing():
    empty = [np.zeros(0), np.zeros(0, np.int64), np.zeros((0, 4))]
    assert not check(empty, empty).ok
    broken = [np.full(300, np.nan), *many()[1:]]
    assert not check(broken, broken).ok and not check(many(), broken).ok
    assert not check(many(5), empty).ok and not check(empty, many(5)).ok


def test_classes_are_compared_by_name():
    scores, labels, boxes = many()
    theirs = detector(scores, 2 - labels, boxes, ("bicycle", "person", "car"))
    assert compare(detector(scores, labels, boxes), theirs, [PICTURE], "test").ok
    others = detector(scores, labels, boxes, ("class 1", "class 2"))
    assert not compare(detector(scores, labels, boxes), others, [PICTURE], "test").ok
    assert compare(detector(scores, labels, boxes), others, [PICTURE], "test", same_order=True).ok


def test_a_failure_shows_the_table():
    found = check(many(), many(seed=3))
    error = ParityFailed("x as onnx", [found], Tensors(3, ["a"]), Tolerance())
    for word in ("nothing was written", "1 of 4 tensors have other values: a", "missing"):
        assert word in str(error)
    assert str(found.missing) in str(error)


def test_tensors_are_compared_bit_by_bit():
    ones = torch.ones(2)
    ours = {"same": ones, "other": ones, "turned": torch.ones(2, 3), "gone": torch.ones(1)}
    theirs = {"same": ones.clone(), "other": ones + 1e-7, "turned": torch.ones(3, 2), "new": torch.ones(1)}
    assert compare_tensors(ours, theirs) == Tensors(1, ["other"])


def test_images_are_picked_evenly():
    assert pick(3, 8) == [0, 1, 2] and pick(100, 4) == [12, 37, 62, 87]
