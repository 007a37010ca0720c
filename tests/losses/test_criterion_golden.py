"""Compares each case of the recorded criterion: losses, total, gradients, matches, recorded confidences."""

from __future__ import annotations

import pytest
import torch
from golden import assert_close, load_golden

from mrt.adapt import DynamicThresholds
from mrt.losses import (
    SOURCE,
    TARGET,
    DetectionLoss,
    HungarianMatcher,
    domain_loss,
    matched_confidences,
    reconstruction_loss,
)

# case: (domain or None, with annotations, image boxes kept, weight of the box losses, with MAE)
CASES = {
    "plain": (None, True, True, 1.0, False),
    "source": (SOURCE, True, True, 1.0, False),
    "target_cls_only": (TARGET, True, True, 0.0, False),
    "target_mae": (TARGET, True, True, 0.0, True),
    "target_mae_box": (TARGET, True, True, 1.0, True),
    "mae_only": (None, False, True, 0.0, True),
    "all_empty": (TARGET, True, False, 0.0, True),
    "plain_empty": (None, True, False, 1.0, False),
}
WEIGHTS = {"class": 2.0, "box": 5.0, "giou": 2.0, "domain": 1.0, "mae": 1.0}
NAMES = {
    "class": "loss_class",
    "box": "loss_boxes",
    "giou": "loss_giou",
    "domain": "loss_domain",
    "domain_backbone": "loss_domain_bac",
    "domain_encoder": "loss_domain_enc",
    "domain_decoder": "loss_domain_dec",
    "mae": "loss_mae",
}


def targets_of(data, boxes_kept: bool = True) -> list[dict]:
    count = None if boxes_kept else 0
    return [
        {
            "labels": torch.from_numpy(data[f"in/anno.{i}.labels"])[:count],
            "boxes": torch.from_numpy(data[f"in/anno.{i}.boxes"])[:count],
        }
        for i in range(3)
    ]


@pytest.mark.parametrize(
    ("case", "with_boxes"),
    [
        *((case, True) for case in CASES),
        *((case, False) for case, facts in CASES.items() if facts[1] and not facts[3]),
    ],
)
def test_case(case: str, with_boxes: bool) -> None:
    domain, annotated, boxes_kept, box_weight, with_mae = CASES[case]
    data = load_golden("criterion")
    names = ("logits_all", "boxes_all", "domain_bac_all", "domain_enc_all", "domain_dec_all", "mae_output.0")
    tensors = {name: torch.from_numpy(data[f"in/{name}"]).requires_grad_() for name in names}
    thresholds = DynamicThresholds(9)
    losses, matches = {}, None
    if annotated:
        loss = DetectionLoss(HungarianMatcher(), num_classes=9)
        targets = targets_of(data, boxes_kept)
        losses, matches = loss(tensors["logits_all"], tensors["boxes_all"], targets, with_boxes=with_boxes)
    if domain is not None:
        predictions = {
            "backbone": tensors["domain_bac_all"],
            "encoder": tensors["domain_enc_all"].squeeze(1),
            "decoder": tensors["domain_dec_all"].squeeze(1),
        }
        losses |= domain_loss(predictions, domain)
    if with_mae:
        losses["mae"] = reconstruction_loss(tensors["mae_output.0"], torch.from_numpy(data["in/features.0"]))
    weights = WEIGHTS | {"box": 5.0 * box_weight, "giou": 2.0 * box_weight}
    total = sum(weights[name] * value for name, value in losses.items() if name in weights)
    total.backward()

    for name, value in losses.items():
        assert_close(value, data[f"{case}/loss/{NAMES[name]}"], what=name)
    expected = {key.removeprefix(f"{case}/loss/") for key in data.files if key.startswith(f"{case}/loss/")}
    if with_boxes:
        assert {NAMES[name] for name in losses} == expected
    assert_close(total, data[f"{case}/total"], what="total")
    for name, tensor in tensors.items():
        if f"{case}/grad/{name}" in data:
            gradient = torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
            assert_close(gradient, data[f"{case}/grad/{name}"], what=f"gradient of {name}")
    for layer in range(3 if annotated else 0):
        for image in range(3):
            query, gt = matches.pairs(layer, image)
            assert query.tolist() == data[f"{case}/match.layer{layer}.img{image}.query"].tolist()
            assert gt.tolist() == data[f"{case}/match.layer{layer}.img{image}.gt"].tolist()
    if domain == SOURCE:  # only the source's confidences are recorded
        thresholds.record(*matched_confidences(tensors["logits_all"][-1], matches))
    assert_close(thresholds.sum, data[f"{case}/recorded_sum"], what="recorded sum")
    assert thresholds.count.tolist() == data[f"{case}/recorded_count"].tolist()


def test_cost_matrix() -> None:
    data = load_golden("criterion")
    logits, boxes = torch.from_numpy(data["in/logits_all"]), torch.from_numpy(data["in/boxes_all"])
    targets = targets_of(data)
    labels, truth = torch.cat([t["labels"] for t in targets]), torch.cat([t["boxes"] for t in targets])
    owner = torch.tensor([0] * 4 + [2] * 3)
    costs = HungarianMatcher().costs(logits, boxes, owner, labels, truth)
    assert_close(costs[0, :4].T, data["plain/cost.layer0.img0"])
    assert_close(costs[0, 4:].T, data["plain/cost.layer0.img2"])
