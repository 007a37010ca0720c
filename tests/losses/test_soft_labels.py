"""Soft labels and weights of labels, against cases computed by hand."""

from __future__ import annotations

import math

import pytest
import torch

from mrt.losses import DetectionLoss, HungarianMatcher, class_agnostic

ALPHA, GAMMA = 0.25, 2.0


def loss_of(columns: int = 2) -> DetectionLoss:
    return DetectionLoss(HungarianMatcher(), columns, ALPHA, GAMMA)


def logit(score: float) -> float:
    return math.log(score / (1 - score))


def soft_focal(p: float, s: float) -> float:
    entropy = -ALPHA * p * math.log(s) - (1 - ALPHA) * (1 - p) * math.log(1 - s)
    return abs(p - s) ** GAMMA * entropy


def target(boxes, labels, **more) -> dict:
    found = {"boxes": torch.tensor(boxes), "labels": torch.tensor(labels)}
    return found | {key: torch.tensor(value) for key, value in more.items()}


TWO = [[0.3, 0.3, 0.2, 0.2], [0.7, 0.7, 0.2, 0.2]]


def test_a_soft_label_asks_for_its_probabilities():
    """Two queries, one soft label on the first: its scores against 0.6 and 0.3, the other against nothing."""
    scores = [[0.5, 0.2], [0.1, 0.4]]
    logits = torch.tensor([[[[logit(s) for s in row] for row in scores]]])
    label = target([TWO[0]], [0], probabilities=[[0.6, 0.3]])
    losses, _ = loss_of()(logits, torch.tensor([[TWO]]), [label])
    expected = soft_focal(0.6, 0.5) + soft_focal(0.3, 0.2) + soft_focal(0.0, 0.1) + soft_focal(0.0, 0.4)
    assert losses["class"].item() == pytest.approx(expected, rel=1e-5)


def test_where_probabilities_are_certain_it_is_the_focal_loss_and_where_they_are_met_it_is_zero():
    logits = torch.randn(3, 2, 5, 2, requires_grad=True)
    boxes = torch.rand(3, 2, 5, 4) * 0.5 + 0.2
    hard = [target(TWO, [0, 1]), target(TWO[:1], [1])]
    soft = [{**item, "probabilities": torch.eye(2)[item["labels"]]} for item in hard]
    plain, _ = loss_of()(logits, boxes, hard)
    same, _ = loss_of()(logits, boxes, soft)
    mixed, _ = loss_of()(logits, boxes, [hard[0], soft[1]])
    assert same["class"].item() == pytest.approx(plain["class"].item(), rel=1e-5)
    assert mixed["class"].item() == pytest.approx(plain["class"].item(), rel=1e-5)
    asked = torch.tensor([[0.7, 0.2]])
    met = asked.logit()[None, None].clone().requires_grad_()
    found, _ = loss_of()(met, torch.tensor([[TWO[:1]]]), [target(TWO[:1], [0]) | {"probabilities": asked}])
    (slope,) = torch.autograd.grad(found["class"], met)
    assert found["class"].item() == pytest.approx(0, abs=1e-10) and slope.abs().max() < 1e-6


def test_weights_count_in_box_losses_and_decide_who_is_matched():
    """One query between two labels: the heavier one gets it, and its distance counts by its weight."""
    query = torch.tensor([[[[0.5, 0.5, 0.2, 0.2]]]])
    logits = torch.zeros(1, 1, 1, 2)
    near_and_far = [[0.45, 0.5, 0.2, 0.2], [0.6, 0.5, 0.2, 0.2]]
    for weights, chosen, distance in (([1.0, 1.0], 0, 0.05), ([0.1, 1.0], 1, 0.1), ([0.5, 0.4], 0, 0.025)):
        losses, matches = loss_of()(
            logits, query, [target(near_and_far, [0, 0], weights=weights)], num_boxes=1
        )
        assert matches.target.tolist() == [[chosen]], weights
        assert losses["box"].item() == pytest.approx(distance, rel=1e-4), weights


def test_labels_without_weights_are_whole_beside_those_that_have_some():
    boxes = torch.tensor([[[[0.4, 0.3, 0.2, 0.2]], [[0.4, 0.3, 0.2, 0.2]]]])
    targets = [target(TWO[:1], [0]), target(TWO[:1], [0], weights=[0.25])]
    losses, _ = loss_of()(torch.zeros(1, 2, 1, 2), boxes, targets, num_boxes=1)
    assert losses["box"].item() == pytest.approx(0.1 + 0.025, rel=1e-5)


def test_a_proposal_is_as_much_an_object_as_its_surest_class():
    label = target(TWO, [0, 1], probabilities=[[0.6, 0.3], [0.1, 0.2]], weights=[0.6, 0.2])
    (one,) = class_agnostic([label])
    assert torch.allclose(one["probabilities"], torch.tensor([[0.6], [0.2]]))
    assert one["labels"].tolist() == [0, 0] and one["weights"] is label["weights"]
