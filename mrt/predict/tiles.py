"""Large images in tiles, as in sahi (Akyon et al., Slicing Aided Hyper Inference, ICIP 2022).

With the same rules, metrics can be compared with those of sahi.
"""

from __future__ import annotations

import numpy as np

from mrt.errors import MrtError

# Two boxes of a class are one object if their intersection is so much of the smaller box (sahi's default).
MATCH = 0.5


def tile_boxes(height: int, width: int, side: int, overlap: float) -> list[tuple[int, int, int, int]]:
    """(x0, y0, x1, y1) in pixels of square tiles that cover an image, row by row.

    Neighbours share ``int(overlap * side)`` pixels; the last of a row or column is moved back into the image,
    so it may share more. An image that is no larger than a tile is one tile.

    Args:
        height, width: of the image in pixels.
        side: of a tile in pixels.
        overlap: share of the side, from 0 to below 1.

    Raises:
        MrtError: a side below 1, or an overlap outside [0, 1).
    """
    if side < 1 or not 0 <= overlap < 1:
        raise MrtError(
            f"tiles of {side} pixels with overlap {overlap} cannot be cut",
            "a tile has at least 1 pixel, overlap is in [0, 1)",
        )
    rows, columns = (_starts(length, side, int(overlap * side)) for length in (height, width))
    return [(x, y, min(x + side, width), min(y + side, height)) for y in rows for x in columns]


def _starts(length: int, side: int, shared: int) -> list[int]:
    starts = [0]
    while starts[-1] + side < length:
        starts.append(min(starts[-1] + side - shared, max(length - side, 0)))
    return starts


def merge(boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Boxes of several tiles as boxes of one image: greedy non-maximum merging within each class.

    In the order of decreasing scores, a box is merged with those that it overlaps by at least half of the
    smaller one. This must hold for the original boxes, and for the box after the merges before. Its score
    stays.

    Args:
        boxes: (n, 4) xyxy.
        scores: (n,).
        labels: (n,); all the same if classes do not matter.

    Returns:
        The merged boxes (m, 4), and the indices (m,) of the boxes that they have score and class of, by
        decreasing score.

    Raises:
        ValueError: a box or score is not finite: it would overlap nothing.
    """
    if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
        raise ValueError("boxes and scores to merge must be finite")
    kept_boxes, kept = [], []
    order = np.lexsort((boxes[:, 3], boxes[:, 2], boxes[:, 1], boxes[:, 0], -scores))
    left = list(order)
    while left:
        best, *rest = left
        overlaps = _over_smaller(boxes[best], boxes[rest])
        pairs = zip(rest, overlaps, strict=True)
        same = [labels[i] == labels[best] and overlap >= MATCH for i, overlap in pairs]
        grown = boxes[best].copy()
        for index in (i for i, mine in zip(rest, same, strict=True) if mine):
            if _over_smaller(grown, boxes[[index]])[0] >= MATCH:
                grown[:2] = np.minimum(grown[:2], boxes[index, :2])
                grown[2:] = np.maximum(grown[2:], boxes[index, 2:])
        kept_boxes.append(grown)
        kept.append(best)
        left = [i for i, mine in zip(rest, same, strict=True) if not mine]
    return np.array(kept_boxes, dtype=boxes.dtype).reshape(-1, 4), np.array(kept, dtype=np.int64)


def _over_smaller(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(n,) intersection of a box (4,) with others (n, 4), as a share of the smaller of the two areas."""
    sides = np.clip(np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2]), 0, None)
    smaller = np.minimum(np.prod(box[2:] - box[:2]), np.prod(others[:, 2:] - others[:, :2], axis=1))
    return np.prod(sides, axis=1) / np.maximum(smaller, 1e-9)
