"""Costs that are not finite are an error, or with ``skip_nonfinite`` a loss that is not finite either."""

from __future__ import annotations

import pytest
import torch

from mrt.errors import Unstable
from mrt.losses import HungarianMatcher
from mrt.losses.detection import DetectionLoss

NAN, INF = float("nan"), float("inf")


def batch(counts=(2, 0, 3), queries=6):
    torch.manual_seed(0)
    logits, boxes = (
        torch.randn(2, len(counts), queries, 3),
        torch.rand(2, len(counts), queries, 4) * 0.5 + 0.2,
    )
    targets = [{"labels": torch.randint(0, 3, (n,)), "boxes": torch.rand(n, 4) * 0.5 + 0.2} for n in counts]
    return logits, boxes, targets


def skipping():
    matcher = HungarianMatcher()
    matcher.skip_nonfinite = True
    return matcher


def test_by_default_it_is_an_error():
    logits, boxes, targets = batch()
    logits[0, 2, 1, :] = NAN
    with pytest.raises(Unstable, match="decoder layer 0, image 2"):
        HungarianMatcher()(logits, boxes, targets)


@pytest.mark.parametrize("every", [True, False])
@pytest.mark.parametrize(
    ("part", "value"), [("logits", NAN), ("logits", INF), ("logits", -INF), ("boxes", NAN), ("targets", NAN)]
)
def test_skipping_gives_pairs_and_a_loss_that_is_not_finite(part, value, every):
    logits, boxes, targets = batch()
    which = slice(None) if every else 4
    if part == "targets":
        targets[2]["boxes"][1, 0] = value
    else:
        {"logits": logits, "boxes": boxes}[part][1, 2, which] = value
    matches = skipping()(logits, boxes, targets)
    for layer in range(2):
        for image, count in enumerate((2, 0, 3)):
            queries, boxes_of = matches.pairs(layer, image)
            assert len(set(queries.tolist())) == count and sorted(boxes_of.tolist()) == list(range(count))
    losses, _ = DetectionLoss(skipping(), 3)(logits, boxes, targets)
    assert not torch.stack(list(losses.values())).sum().isfinite()


def test_finite_costs_give_the_same_pairs():
    given = batch()
    plain, other = HungarianMatcher()(*given), skipping()(*given)
    assert torch.equal(plain.query, other.query) and torch.equal(plain.target, other.target)
    assert HungarianMatcher.skip_nonfinite is False
