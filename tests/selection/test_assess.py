"""A detector against the one it started from: what is said of them, and which images to label."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mrt.evaluate.unlabelled import SIGNALS, Look, Looks
from mrt.selection.assess import AFTER, BEFORE, compare, disagreement, suggest, telling, verdict
from mrt.selection.candidates import Candidate
from mrt.selection.looking import Measured

LEFT, RIGHT = (0.0, 0.0, 0.4, 0.4), (0.5, 0.5, 0.9, 0.9)
CLASSES = ["car", "person"]


def a_look(*images: list[tuple[tuple[float, ...], int, float]], queries=None) -> Look:
    most = max(1, *map(len, images))
    scores = np.zeros((len(images), most, 2), dtype=np.float32)
    boxes = np.zeros((len(images), most, 4), dtype=np.float32)
    for number, objects in enumerate(images):
        for place, (box, label, score) in enumerate(objects):
            scores[number, place, label], boxes[number, place] = score, box
    shape = (len(images), most, 2)
    return Look(scores, boxes, np.zeros(shape, np.float32) if queries is None else queries.astype(np.float32))


def measured(plain: Look, **looks: Look) -> Measured:
    seen = Looks(plain, boxes_per_image=np.array([1.0, 1.0]), **looks)
    known = {name: found for name, signal in SIGNALS.items() if (found := signal.of(seen)) is not None}
    return Measured(Candidate("one", Path("one")), seen, known, 1.0)


def test_disagreement_is_what_only_one_finds():
    one = a_look([(LEFT, 0, 0.9), (RIGHT, 1, 0.8)], [(LEFT, 0, 0.9)], [])
    two = a_look([(LEFT, 0, 0.7)], [(LEFT, 1, 0.6)], [(LEFT, 0, 0.2)])
    assert disagreement(one, two).tolist() == pytest.approx([0.8, 0.9 + 0.6, 0.0]), "0.2 is not shown"


def few_and_many(images: int = 30) -> tuple[Measured, Measured]:
    """Before: a quarter of the images have an object, and the view does not agree; after: two in each."""
    before = a_look(*([(LEFT, 0, 0.5)] if number % 4 == 0 else [] for number in range(images)))
    moved = a_look(*([(RIGHT, 0, 0.5)] for _ in range(images)))
    after = a_look(*([(LEFT, 0, 0.9), (RIGHT, 1, 0.8)] for _ in range(images)))
    return measured(before, view=moved), measured(after, view=after)


def test_a_better_detector_is_told_from_a_worse_one():
    before, after = few_and_many()
    found = compare(before, after, CLASSES)
    assert found["objects_per_image"] == {
        BEFORE: {"car": pytest.approx(8 / 30), "person": 0.0},
        AFTER: {"car": 1.0, "person": 1.0},
    }
    for name in ("confidence", "views", "count-drift", "class-drift", "entropy"):
        assert found["signals"][name]["better"] == AFTER, name
    assert "better" not in found["signals"]["found"], "it judges nothing"
    words = verdict(found, {"car": 1.0, "person": 1.0})
    assert words[0] == "What can be seen without labels speaks for the adapted detector."
    backwards = compare(after, before, CLASSES)
    assert verdict(backwards, {})[0].endswith("speaks for the detector before adaptation.")
    same = compare(after, after, CLASSES)
    assert verdict(same, {})[0] == "What can be seen without labels does not tell the two apart."


def test_a_collapsed_detector_is_not_to_be_used():
    _, healthy = few_and_many()
    nothing = measured(a_look(*([] for _ in range(30))))
    words = verdict(compare(healthy, nothing, CLASSES), {"car": 1.0, "person": 1.0})
    assert words[0].startswith("Do not use it: it finds 0.00") and any(
        "far from the source" in w for w in words
    )
    cars = measured(a_look(*([(LEFT, 0, 0.9)] for _ in range(30))))
    words = verdict(compare(healthy, cars, CLASSES), {"car": 1.0, "person": 1.0})
    assert any("100% of them are car: one class may have taken over" in line for line in words)


def test_telling_images_come_first_and_not_twice():
    """Six images: two sure ones, and two pairs of near-duplicates that are unsure."""
    unsure, sure = [(LEFT, 0, 0.5), (RIGHT, 1, 0.5)], [(LEFT, 0, 0.999)]
    queries = np.zeros((6, 2, 2))
    for image, place in enumerate([(0, 0), (5, 5), (0, 0.01), (5, 5.01), (9, 9), (1, 1)]):
        queries[image] = place
    plain = a_look(unsure, unsure, unsure, unsure, sure, sure, queries=queries)
    after = measured(plain)
    values = telling(after)
    assert values[:4].min() > values[4:].max()
    assert sorted(suggest(after, None, 2)) in ([0, 1], [0, 3], [1, 2]), "one of each pair"
    assert len(suggest(after, None, 6)) == len(set(suggest(after, None, 6))) == 6
    before = measured(a_look([], [], [], [], [], [(RIGHT, 1, 0.9)], queries=queries[:, :1]))
    assert telling(after, before)[5] == pytest.approx(values[5] + 0.999 + 0.9, abs=1e-3)
