from __future__ import annotations

import itertools

import pytest
import torch

from mrt.errors import RunFailed
from mrt.losses import HungarianMatcher, matched_confidences


def random_batch(counts, layers=2, queries=12, classes=3):
    logits = torch.randn(layers, len(counts), queries, classes)
    boxes = torch.rand(layers, len(counts), queries, 4) * 0.5 + 0.2
    targets = [
        {"labels": torch.randint(0, classes, (n,)), "boxes": torch.rand(n, 4) * 0.5 + 0.2} for n in counts
    ]
    return logits, boxes, targets


def test_pairs_have_the_lowest_total_cost() -> None:
    logits, boxes, targets = random_batch([3], layers=1, queries=5)
    matcher = HungarianMatcher()
    matches = matcher(logits, boxes, targets)
    owner = torch.zeros(3, dtype=torch.long)
    costs = matcher.costs(logits, boxes, owner, targets[0]["labels"], targets[0]["boxes"])[0]
    choices = itertools.permutations(range(5), 3)
    best = min(sum(costs[t, q] for t, q in enumerate(queries)) for queries in choices)
    torch.testing.assert_close(costs[matches.target[0], matches.query[0]].sum(), best)


def test_images_without_boxes_and_more_boxes_than_queries() -> None:
    logits, boxes, targets = random_batch([0, 15, 0, 2])
    matches = HungarianMatcher()(logits, boxes, targets)
    assert matches.query.shape == matches.target.shape == (2, 12 + 2)
    assert matches.image.tolist() == [1] * 12 + [3] * 2
    assert matches.counts == (0, 15, 0, 2)
    query, target = matches.pairs(1, 1)
    assert query.tolist() == list(range(12)) and len(set(target.tolist())) == 12 and int(target.max()) < 15
    query, target = matches.pairs(0, 3)
    assert sorted(target.tolist()) == [0, 1]
    assert matches.pairs(0, 0)[0].tolist() == []


def test_every_layer_is_matched_as_if_alone() -> None:
    logits, boxes, targets = random_batch([4, 2], layers=3)
    together = HungarianMatcher()(logits, boxes, targets)
    for layer in range(3):
        alone = HungarianMatcher()(logits[layer : layer + 1], boxes[layer : layer + 1], targets)
        assert torch.equal(alone.query[0], together.query[layer])
        assert torch.equal(alone.target[0], together.target[layer])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_output_is_named(value: float) -> None:
    logits, boxes, targets = random_batch([0, 2, 1])
    boxes[1, 2, 5] = value
    with pytest.raises(RunFailed, match="decoder layer 1, image 2"):
        HungarianMatcher()(logits, boxes, targets)


def test_half_precision_outputs() -> None:
    logits, boxes, targets = random_batch([3, 2])
    matches = HungarianMatcher()(logits.bfloat16(), boxes.bfloat16(), targets)
    assert matches.query.shape == (2, 5)


def test_recorded_confidences_are_the_last_layers_best_class() -> None:
    logits, boxes, targets = random_batch([2, 1])
    logits.requires_grad_()
    matches = HungarianMatcher()(logits, boxes, targets)
    scores, labels = matched_confidences(logits[-1], matches)
    assert not scores.requires_grad
    for score, label, image, query in zip(scores, labels, matches.image, matches.query[-1], strict=True):
        own = logits[-1, image, query]
        assert label == own.argmax() and score == own.sigmoid().max()
