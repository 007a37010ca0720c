from __future__ import annotations

import torch
from torchvision.ops import box_convert, box_iou, generalized_box_iou

from mrt.boxes import cxcywh_to_xyxy, giou, iou, xyxy_to_cxcywh


def random_corners(*shape: int) -> torch.Tensor:
    return cxcywh_to_xyxy(torch.rand(*shape, 4, dtype=torch.float64))


def test_conversions_agree_with_torchvision() -> None:
    boxes = torch.rand(3, 5, 4)
    torch.testing.assert_close(cxcywh_to_xyxy(boxes), box_convert(boxes, "cxcywh", "xyxy"))
    torch.testing.assert_close(xyxy_to_cxcywh(cxcywh_to_xyxy(boxes)), boxes)


def test_overlaps_agree_with_torchvision_and_broadcast() -> None:
    a, b = random_corners(2, 6), random_corners(7)
    for ours, theirs in ((iou, box_iou), (giou, generalized_box_iou)):
        table = ours(a[:, :, None], b)
        assert table.shape == (2, 6, 7)
        for row in range(2):
            torch.testing.assert_close(table[row], theirs(a[row], b))


def test_generalised_iou_gradient() -> None:
    a, b = random_corners(6).requires_grad_(), random_corners(6).requires_grad_()
    assert torch.autograd.gradcheck(giou, (a, b))


def test_boxes_without_area_stay_finite() -> None:
    point = torch.full((1, 4), 0.5, requires_grad=True)
    for overlap in (iou, giou):
        value = overlap(point, point.detach())
        assert value == 0
        assert torch.isfinite(torch.autograd.grad(value.sum(), point)[0]).all()
