"""Fusing two labellers, against cases computed by hand."""

from __future__ import annotations

import pytest
import torch

from mrt.adapt.fusion import fuse


def side(*rows: tuple) -> dict[str, torch.Tensor]:
    """Rows of x0, y0, x1, y1, label, score."""
    values = torch.tensor(rows, dtype=torch.float32).reshape(-1, 6)
    corners = values[:, :4]
    boxes = torch.cat(((corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]), 1)
    return {"boxes": boxes, "labels": values[:, 4].long(), "scores": values[:, 5]}


def corners(boxes: torch.Tensor) -> list[list[float]]:
    return torch.cat((boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2), 1).tolist()


CAR = (0.1, 0.1, 0.5, 0.3)
NEAR = (0.1, 0.1, 0.46, 0.3)  # IoU with it 0.9


@pytest.mark.parametrize(
    "weight, right, score", [(1.0, (0.5 * 0.4 + 0.46 * 0.8) / 1.2, 0.6), (3.0, None, 0.7)]
)
def test_what_both_have_seen_is_a_label_between_their_boxes(weight, right, score):
    found, count = fuse(side((*CAR, 2, 0.4)), side((*NEAR, 2, 0.8)), weight=weight)
    right = (0.5 * 0.4 + 0.46 * 0.8 * weight) / (0.4 + 0.8 * weight) if right is None else right
    assert corners(found["boxes"])[0] == pytest.approx([0.1, 0.1, right, 0.3], abs=1e-6)
    assert found["labels"].tolist() == [2] and found["scores"].item() == pytest.approx(score)
    assert found["confidences"].tolist() == [1.0] and not len(found["ignore_boxes"])
    assert count == {"agreed": 1}


def test_a_contradiction_is_neither_object_nor_background():
    found, count = fuse(side((*CAR, 2, 0.9)), side((*NEAR, 3, 0.8)), alone="keep")
    assert not len(found["labels"]) and count == {"conflict": 2}
    assert sorted(found["ignore_labels"].tolist()) == [2, 3] and len(found["ignore_boxes"]) == 2


def test_a_third_opinion_against_two_that_agree_is_ignored_for_its_class_only():
    found, count = fuse(side((*CAR, 2, 0.9), (*CAR, 3, 0.5)), side((*NEAR, 2, 0.8)), alone="keep")
    assert found["labels"].tolist() == [2] and found["ignore_labels"].tolist() == [3]
    assert count == {"agreed": 1, "conflict": 1}


def test_two_objects_of_one_labeller_do_not_contradict_each_other():
    """A rider on a bicycle."""
    found, count = fuse(side((*CAR, 0, 0.9), (*NEAR, 1, 0.8)), side(), alone="keep")
    assert sorted(found["labels"].tolist()) == [0, 1] and count == {"teacher_alone": 2}


@pytest.mark.parametrize(
    "alone, labels, confidences, ignored",
    [
        ("ignore", [], [], [2, 5]),
        ("keep", [2, 5], [1 / 3, 1.0], []),
        ("weigh", [2, 5], [0.25, 0.75], []),
    ],
)
def test_what_one_has_seen_alone(alone, labels, confidences, ignored):
    far = (0.6, 0.6, 0.9, 0.9)
    found, count = fuse(side((*CAR, 2, 0.6)), side((*far, 5, 0.2)), weight=3.0, alone=alone)
    order = found["labels"].argsort()
    assert found["labels"][order].tolist() == labels
    assert found["confidences"][order].tolist() == pytest.approx(confidences)
    assert sorted(found["ignore_labels"].tolist()) == ignored
    assert count == {"teacher_alone": 1, "outside_alone": 1}


def test_a_weight_of_nothing_leaves_the_teachers_labels():
    teacher = side((*CAR, 2, 0.6))
    found, _ = fuse(teacher, side((*NEAR, 3, 0.9)), weight=0.0, alone="weigh")
    assert torch.allclose(found["boxes"], teacher["boxes"]) and found["confidences"].tolist() == [1.0]


def test_labels_that_lose_their_weight_fade():
    far = (0.6, 0.6, 0.9, 0.9)
    for weight in (1.0, 0.5, 0.1):
        found, _ = fuse(side((*CAR, 2, 0.6)), side((*far, 5, 0.9)), weight=weight, alone="keep")
        assert dict(zip(found["labels"].tolist(), found["confidences"].tolist(), strict=True)) == {
            2: 1.0,
            5: pytest.approx(weight),
        }


def test_what_was_ignored_before_stays_ignored():
    crowd = torch.tensor([[0.5, 0.5, 0.1, 0.1]])
    teacher = side((*CAR, 2, 0.6)) | {"ignore_boxes": crowd, "ignore_labels": torch.tensor([1])}
    found, _ = fuse(teacher, side(), alone="keep")
    assert found["ignore_labels"].tolist() == [1] and torch.equal(found["ignore_boxes"], crowd)


def test_neighbours_of_one_labeller_stay_two_objects():
    """A crowd: the teacher's two overlap each other, and the other labeller has seen one of them."""
    found, count = fuse(side((*CAR, 2, 0.6), (*NEAR, 2, 0.4)), side((*CAR, 2, 0.8)), iou=0.5)
    assert len(found["labels"]) == 2 and count == {"agreed": 1, "teacher_alone": 1}
    order = found["scores"].argsort()
    assert corners(found["boxes"][order])[1] == pytest.approx(CAR) and corners(found["boxes"][order])[
        0
    ] == pytest.approx(NEAR)
    alone, _ = fuse(side((*CAR, 2, 0.6), (*NEAR, 2, 0.4)), side(), iou=0.5)
    assert corners(alone["boxes"]) == [pytest.approx(CAR), pytest.approx(NEAR)]


def test_nothing_and_nothing_is_nothing():
    found, count = fuse(side(), side())
    assert all(len(value) == 0 for value in found.values()) and not count
