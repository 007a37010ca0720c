from __future__ import annotations

import torch

from mrt.adapt import pseudo_labels

HERE, NEARBY, ELSEWHERE = [0.3, 0.3, 0.2, 0.2], [0.301, 0.3, 0.2, 0.2], [0.7, 0.7, 0.2, 0.2]


def logits_of(*scores: list[float]) -> torch.Tensor:
    return torch.tensor(scores).logit()[None]


def test_suppression_ignores_the_class() -> None:
    logits = logits_of([0.6, 0.1], [0.1, 0.8], [0.7, 0.1])
    (found,) = pseudo_labels(logits, torch.tensor([[HERE, NEARBY, ELSEWHERE]]), torch.tensor([0.3, 0.3]))
    assert found["labels"].tolist() == [1, 0]
    torch.testing.assert_close(found["boxes"], torch.tensor([NEARBY, ELSEWHERE]))
    torch.testing.assert_close(found["scores"], torch.tensor([0.8, 0.7]))


def test_each_class_has_its_threshold() -> None:
    logits = logits_of([0.4, 0.1], [0.1, 0.4])
    (found,) = pseudo_labels(logits, torch.tensor([[HERE, ELSEWHERE]]), torch.tensor([0.3, 0.45]))
    assert found["labels"].tolist() == [0]
    assert set(found) == {"scores", "labels", "boxes"}


def test_unsure_detections_are_reported_as_ignored() -> None:
    logits = logits_of([0.6, 0.1], [0.2, 0.1], [0.1, 0.21], [0.19, 0.05], [0.12, 0.08]).repeat(3, 1, 1)
    logits[1] = logits_of(*[[0.01, 0.01]] * 5)
    boxes = torch.tensor([[ELSEWHERE, HERE, NEARBY, NEARBY, ELSEWHERE]]).repeat(3, 1, 1)
    found = pseudo_labels(logits, boxes, torch.tensor([0.3, 0.3]), ignore_above=0.15)
    assert [len(image["labels"]) for image in found] == [1, 0, 1]
    for image in (found[0], found[2]):
        assert image["ignore_labels"].tolist() == [1, 0]  # the second of class 0 overlaps the first
        torch.testing.assert_close(image["ignore_boxes"], torch.tensor([NEARBY, HERE]))
    assert found[1]["ignore_boxes"].shape == (0, 4) and found[1]["ignore_labels"].dtype == torch.int64


def test_nothing_passes_and_nothing_is_learnt_through() -> None:
    logits, boxes = torch.full((2, 4, 3), -9.0, requires_grad=True), torch.rand(2, 4, 4, requires_grad=True)
    logits.data[0, 0, 0] = torch.nan
    for image in pseudo_labels(logits, boxes, torch.full((3,), 0.3)):
        assert image["boxes"].shape == (0, 4) and image["labels"].shape == (0,)
        assert not image["boxes"].requires_grad


def test_half_precision() -> None:
    thresholds = torch.tensor([0.3, 0.3], dtype=torch.float64)
    logits, boxes = logits_of([0.8, 0.1]).bfloat16(), torch.tensor([[HERE]]).bfloat16()
    (found,) = pseudo_labels(logits, boxes, thresholds)
    assert found["boxes"].dtype == found["scores"].dtype == torch.float32
