"""From the detector's last layer to detections in pixels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mrt.boxes import cxcywh_to_xyxy


@torch.no_grad()
def top_pairs(logits: Tensor, boxes: Tensor, k: int = 100) -> tuple[Tensor, Tensor, Tensor]:
    """The ``k`` best (query, class) pairs of each image; a query may appear under several classes.

    Args:
        logits: (B, Q, C) of the last decoder layer.
        boxes: (B, Q, 4) cx, cy, w, h in [0, 1].

    Returns:
        (B, k) scores, highest first; (B, k) int64 labels; (B, k, 4) boxes x0, y0, x1, y1 as fractions of the
        image, not clipped.
    """
    classes = logits.shape[-1]
    scores = logits.float().sigmoid().flatten(1)
    scores, chosen = scores.topk(min(k, scores.shape[1]), dim=1)
    queries = torch.div(chosen, classes, rounding_mode="floor")
    corners = cxcywh_to_xyxy(boxes.float()).gather(1, queries[..., None].expand(-1, -1, 4))
    return scores, chosen % classes, corners


def top_detections(
    logits: Tensor, boxes: Tensor, image_sizes: Sequence[tuple[int, int]], k: int = 100
) -> list[dict[str, Tensor]]:
    """:func:`top_pairs`, with boxes in pixels.

    Args:
        logits, boxes, k: as for :func:`top_pairs`.
        image_sizes: (H, W) per image; the boxes are scaled to these sizes.

    Returns:
        Per image {"scores": (k,) highest first, "labels": (k,) int64, "boxes": (k, 4) x0, y0, x1, y1 in
        pixels, not clipped}.
    """
    scores, labels, corners = top_pairs(logits, boxes, k)
    sizes = torch.tensor([(w, h, w, h) for h, w in image_sizes], dtype=corners.dtype)
    corners = corners * sizes.to(corners.device, non_blocking=True)[:, None]
    return [{"scores": s, "labels": c, "boxes": b} for s, c, b in zip(scores, labels, corners, strict=True)]
