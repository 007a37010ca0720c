from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torchvision.ops import box_convert, generalized_box_iou, sigmoid_focal_loss

from mrt.losses import DetectionLoss, HungarianMatcher, class_agnostic, count_boxes
from mrt.losses.criterion import Piece, SetCriterion
from mrt.losses.detection import Share


def random_batch(counts, layers=2, queries=12, classes=3):
    logits = torch.randn(layers, len(counts), queries, classes, requires_grad=True)
    boxes = (torch.rand(layers, len(counts), queries, 4) * 0.5 + 0.2).requires_grad_()
    targets = [
        {"labels": torch.randint(0, classes, (n,)), "boxes": torch.rand(n, 4) * 0.5 + 0.2} for n in counts
    ]
    return logits, boxes, targets


def layer_by_layer(logits, boxes, targets, matches, alpha, gamma) -> dict[str, torch.Tensor]:
    """The same losses with loops and torchvision's functions."""
    losses = {name: torch.zeros(()) for name in ("class", "box", "giou")}
    for layer, image in [(a, b) for a in range(len(logits)) for b in range(len(targets))]:
        query, target = matches.pairs(layer, image)
        onehot = torch.zeros_like(logits[layer, image])
        onehot[query, targets[image]["labels"][target]] = 1
        predicted, truth = boxes[layer, image, query], targets[image]["boxes"][target]
        losses["class"] += sigmoid_focal_loss(logits[layer, image], onehot, alpha, gamma, reduction="sum")
        losses["box"] += (predicted - truth).abs().sum()
        corners = [box_convert(b, "cxcywh", "xyxy") for b in (predicted, truth)]
        losses["giou"] += (1 - generalized_box_iou(*corners).diag()).sum()
    return {name: value / len(logits) for name, value in losses.items()}


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.4, 1.5)])
def test_equals_the_plain_loops(alpha: float, gamma: float) -> None:
    logits, boxes, targets = random_batch([3, 0, 14])  # the last image has more boxes than queries
    losses, matches = DetectionLoss(HungarianMatcher(), 3, alpha, gamma)(logits, boxes, targets)
    expected = layer_by_layer(logits, boxes, targets, matches, alpha, gamma)
    for name, value in losses.items():
        torch.testing.assert_close(value, expected[name] / 17)
    found = torch.autograd.grad(sum(losses.values()), (logits, boxes))
    wanted = torch.autograd.grad(sum(expected.values()) / 17, (logits, boxes))
    torch.testing.assert_close(found, wanted)


def test_divisor() -> None:
    logits, boxes, targets = random_batch([3, 1])
    loss = DetectionLoss(HungarianMatcher(), 3)
    own, _ = loss(logits, boxes, targets)
    for number in (8, torch.tensor(8.0)):
        given, _ = loss(logits, boxes, targets, num_boxes=number)
        torch.testing.assert_close(given["giou"], own["giou"] * count_boxes(targets) / 8)


def test_without_boxes_only_the_class_learns() -> None:
    logits, boxes, targets = random_batch([3, 1])
    losses, _ = DetectionLoss(HungarianMatcher(), 3)(logits, boxes, targets, with_boxes=False)
    assert set(losses) == {"class"}
    assert torch.autograd.grad(losses["class"], boxes, allow_unused=True) == (None,)


def test_no_boxes_at_all_still_teaches_background() -> None:
    logits, boxes, targets = random_batch([0, 0])
    losses, _ = DetectionLoss(HungarianMatcher(), 3)(logits, boxes, targets)
    assert losses["box"] == 0 and losses["giou"] == 0
    gradients = torch.autograd.grad(sum(losses.values()), (logits, boxes))
    assert (gradients[0] > 0).all() and not gradients[1].any()


def test_proposals_of_a_two_stage_detector() -> None:
    logits, boxes, targets = random_batch([3, 2], layers=1, queries=40, classes=1)
    targets[0]["labels"], targets[1]["labels"] = torch.tensor([0, 4, 7]), torch.tensor([2, 2])
    agnostic = class_agnostic(targets)
    losses, matches = DetectionLoss(HungarianMatcher(), 1)(logits, boxes, agnostic)
    assert matches.query.shape == (1, 5) and torch.isfinite(sum(losses.values()))
    assert targets[0]["labels"].tolist() == [0, 4, 7]  # the detector's own targets are left alone


def test_mixed_precision_gives_float32_losses() -> None:
    logits, boxes, targets = random_batch([3, 2])
    logits, boxes, loss = logits.bfloat16(), boxes.bfloat16(), DetectionLoss(HungarianMatcher(), 3)
    exact, _ = loss(logits.float(), boxes.float(), targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half, _ = loss(logits, boxes, targets)
    for name, value in half.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, exact[name])


def test_wrong_number_of_classes() -> None:
    logits, boxes, targets = random_batch([1])
    with pytest.raises(ValueError, match="3 class columns"):
        DetectionLoss(HungarianMatcher(), 4)(logits, boxes, targets)


@pytest.mark.parametrize("labelled", [True, False])
def test_ignored_regions_are_not_background(labelled: bool) -> None:
    logits, boxes, targets = random_batch([1, 0], layers=2, queries=6)
    with torch.no_grad():
        boxes[:] = torch.tensor([0.2, 0.2, 0.1, 0.1])
        boxes[:, :, 4] = torch.tensor([0.7, 0.7, 0.2, 0.2])
        boxes[0, 0, 5] = torch.tensor([0.7, 0.7, 0.2, 0.2])
    targets[0]["boxes"] = torch.tensor([[0.7, 0.7, 0.2, 0.2]])
    targets[0]["ignore_boxes"] = targets[1]["ignore_boxes"] = torch.tensor([[0.7, 0.72, 0.2, 0.2]])
    if labelled:
        targets[0]["ignore_labels"] = targets[1]["ignore_labels"] = torch.tensor([2])
    losses, matches = DetectionLoss(HungarianMatcher(), 3)(logits, boxes, targets)
    gradient = torch.autograd.grad(losses["class"], logits)[0]
    spared = torch.zeros(2, 2, 6, dtype=torch.bool)
    spared[:, :, 4] = spared[0, 0, 5] = True
    layers = torch.arange(2)[:, None]
    spared[layers, matches.image, matches.query] = False  # a matched query learns all its columns
    assert spared.sum() == 3
    assert torch.equal(gradient[..., 2] == 0, spared)
    assert torch.equal((gradient[..., :2] == 0).all(-1), torch.zeros_like(spared) if labelled else spared)


def test_ignore_labels_may_be_missing_from_some_images() -> None:
    logits, boxes, targets = random_batch([1, 2, 1])
    targets[0] |= {"ignore_boxes": boxes[0, 0, :2].detach()}
    targets[1] |= {"ignore_boxes": boxes[0, 1, :3].detach(), "ignore_labels": torch.tensor([0, 1, 2])}
    targets[2] |= {"ignore_boxes": torch.zeros(0, 4), "ignore_labels": torch.zeros(0, dtype=torch.long)}
    plain = [{key: target[key] for key in ("labels", "boxes")} for target in targets]
    with_regions, _ = DetectionLoss(HungarianMatcher(), 3)(logits, boxes, targets)
    without, _ = DetectionLoss(HungarianMatcher(), 3)(logits, boxes, plain)
    assert with_regions["class"] < without["class"] and with_regions["giou"] == without["giou"]


def test_pieces_with_different_numbers_of_queries_are_judged_as_each_by_itself() -> None:
    """A detector that proposes its queries has fewer of them where images are small."""
    settings = SimpleNamespace(class_weight=2, box_weight=5, giou_weight=2, focal_alpha=0.25, focal_gamma=2)
    pieces = []
    for domain, queries in (("source", 12), ("target", 7)):
        logits, boxes, targets = random_batch([2, 1], queries=queries)
        output = SimpleNamespace(logits=logits, boxes=boxes, proposal_logits=None)
        pieces.append(Piece(output, targets, {domain: Share(2)}))
    criterion = SetCriterion(settings, num_classes=3)
    losses, judged = criterion.start(pieces).finish()
    assert {name: len(found.logits[0]) for name, found in judged.items()} == {"source": 12, "target": 7}
    alone = [loss for piece in pieces for loss in criterion.start([piece]).finish()[0]]
    assert [(one.domain, one.name) for one in losses] == [(one.domain, one.name) for one in alone]
    for one, other in zip(losses, alone, strict=True):
        torch.testing.assert_close(one.value, other.value)
