"""NaN in the teacher's output, in scores or in labels from outside becomes neither label nor threshold."""

from __future__ import annotations

import pytest
import torch

from mrt.adapt.fusion import fuse
from mrt.adapt.pseudo_labels import pseudo_labels
from mrt.adapt.thresholds import DynamicThresholds
from mrt.errors import MrtError

NAN = float("nan")


def output():
    logits = torch.full((2, 4, 3), -2.0)
    logits[:, :, 1] = torch.tensor([2.0, 1.5, 1.0, -1.0])
    centres = torch.tensor([0.2, 0.4, 0.6, 0.8])
    boxes = torch.stack((centres, centres, torch.full((4,), 0.1), torch.full((4,), 0.1)), -1).repeat(2, 1, 1)
    return logits, boxes


@pytest.mark.parametrize("value", [NAN, float("inf")])
def test_a_box_that_is_not_finite_is_no_label_and_not_ignored(value):
    logits, boxes = output()
    expected = pseudo_labels(logits, boxes, torch.full((3,), 0.5), ignore_above=0.1)
    assert [len(image["boxes"]) for image in expected] == [3, 3]
    boxes[0, 1, 2], boxes[1, 3, 0] = value, value
    found = pseudo_labels(logits, boxes, torch.full((3,), 0.5), ignore_above=0.1)
    assert [len(image["boxes"]) for image in found] == [2, 3]
    assert [len(image["ignore_boxes"]) for image in found] == [1, 0]
    assert all(image[key].isfinite().all() for image in found for key in ("boxes", "ignore_boxes", "scores"))


def test_scores_that_are_not_finite_are_no_labels():
    logits, boxes = output()
    logits[0, 0, 2] = NAN
    found = pseudo_labels(logits, boxes, torch.full((3,), 0.5), ignore_above=0.0)
    assert [len(image["boxes"]) for image in found] == [2, 3] and len(found[0]["ignore_boxes"]) == 1


def test_thresholds_stay_numbers():
    thresholds, plain = (DynamicThresholds(2, start=0.3) for _ in range(2))
    thresholds.record(torch.tensor([0.8, NAN, 0.6, float("inf")]), torch.tensor([0, 0, 1, 1]))
    plain.record(torch.tensor([0.8, 0.6]), torch.tensor([0, 1]))
    assert thresholds.count.tolist() == [1, 1]
    assert torch.equal(thresholds.update(), plain.update())
    state = thresholds.state_dict()
    for name in ("values", "record"):
        broken = {**state, name: torch.full_like(state[name], NAN)}
        with pytest.raises(MrtError, match="not finite"):
            plain.load_state_dict(broken)


@pytest.mark.parametrize("place", ["scores", "boxes"])
def test_fusion_leaves_out_what_is_not_finite(place):
    def side(scores, boxes):
        return {
            "scores": torch.tensor(scores),
            "boxes": torch.tensor(boxes),
            "labels": torch.zeros(len(scores), dtype=torch.int64),
        }

    box, other = [0.3, 0.3, 0.2, 0.2], [0.8, 0.8, 0.2, 0.2]
    teacher, outside = side([0.9, 0.7], [box, other]), side([0.8, 0.5], [box, other])
    outside[place][1] = NAN
    found, count = fuse(teacher, outside)
    assert dict(count) == {"agreed": 1, "teacher_alone": 1}
    assert all(found[name].isfinite().all() for name in ("boxes", "scores", "confidences"))
