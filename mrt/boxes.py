"""Box geometry that ``torchvision.ops`` does not have.

Boxes are ``cxcywh`` (centre, size) as fractions of the image unless a name says ``xyxy``.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Avoids 0 / 0 for boxes without area. For comparison, a pixel of a 4000 x 4000 image has 6e-8.
_SMALLEST_AREA = 1e-10


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """(..., 4) centre-size boxes to corner boxes, same unit."""
    cx, cy, w, h = boxes.unbind(-1)
    return torch.stack((cx - 0.5 * w, cy - 0.5 * h, cx + 0.5 * w, cy + 0.5 * h), dim=-1)


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """(..., 4) corner boxes to centre-size boxes, same unit."""
    x0, y0, x1, y1 = boxes.unbind(-1)
    return torch.stack(((x0 + x1) * 0.5, (y0 + y1) * 0.5, x1 - x0, y1 - y0), dim=-1)


def iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU of ``xyxy`` boxes, element by element with broadcasting: (..., 4), (..., 4) -> (...).

    It is 0 for two empty boxes.
    """
    return _overlap(a, b)[0]


def giou(a: Tensor, b: Tensor) -> Tensor:
    """Generalised IoU of ``xyxy`` boxes, element by element with broadcasting: (..., 4), (..., 4) -> (...).

    Unlike ``torchvision.ops.generalized_box_iou``, this broadcasts over any leading dimensions, so that one
    call computes the costs of all decoder layers and images. Source: Rezatofighi et al., CVPR 2019, algorithm
    1.
    """
    ratio, union = _overlap(a, b)
    (ax0, ay0, ax1, ay1), (bx0, by0, bx1, by1) = a.unbind(-1), b.unbind(-1)
    hull_width = torch.maximum(ax1, bx1) - torch.minimum(ax0, bx0)
    hull_height = torch.maximum(ay1, by1) - torch.minimum(ay0, by0)
    hull = hull_width * hull_height
    return ratio - (hull - union) / hull.clamp(min=_SMALLEST_AREA)


def _overlap(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and the area of the union.

    They are computed coordinate by coordinate, because reductions over an axis of two are several times
    slower.
    """
    (ax0, ay0, ax1, ay1), (bx0, by0, bx1, by1) = a.unbind(-1), b.unbind(-1)
    width = torch.minimum(ax1, bx1) - torch.maximum(ax0, bx0)
    height = torch.minimum(ay1, by1) - torch.maximum(ay0, by0)
    intersection = width.clamp(min=0) * height.clamp(min=0)
    union = (ax1 - ax0) * (ay1 - ay0) + (bx1 - bx0) * (by1 - by0) - intersection
    return intersection / union.clamp(min=_SMALLEST_AREA), union
