"""Which objects of two looks at an image are the same ones."""

from __future__ import annotations

import numpy as np
from scipy.optimize import linear_sum_assignment

from mrt.evaluate.unlabelled.estimate import Estimate, ratio
from mrt.evaluate.unlabelled.looks import SHOWN, Look, Objects


def box_iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(n, m) intersection over union of xyxy boxes (n, 4) and (m, 4); 0 where both are empty."""
    corner = np.maximum(first[:, None, :2], second[None, :, :2])
    other = np.minimum(first[:, None, 2:], second[None, :, 2:])
    common = (other - corner).clip(0).prod(2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).clip(0).prod(1) for boxes in (first, second)]
    union = areas[0][:, None] + areas[1][None] - common
    return np.divide(common, union, out=np.zeros_like(common), where=union > 0)


def overlap_of_matched(
    first: Objects, second: Objects, classes: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The one-to-one matching of the objects of two looks with the largest sum of overlaps.

    Args:
        classes: objects of different classes do not overlap.

    Returns:
        Overlaps (k,), places in the first look and in the second, of the pairs that overlap at all.
    """
    overlap = box_iou(first.boxes, second.boxes)
    if classes:
        overlap = np.where(first.labels[:, None] == second.labels[None], overlap, 0.0)
    rows, columns = linear_sum_assignment(-overlap)
    there = overlap[rows, columns] > 0
    rows, columns = rows[there], columns[there]
    return overlap[rows, columns], rows, columns


def agreement(first: Look, second: Look, *, classes: bool, least: float = SHOWN) -> Estimate:
    """Overlap of matched objects, over the larger number of objects: 1 where both looks find the same, 0
    where nothing that one finds is found by the other. Images in which neither finds anything do not count.

    Args:
        classes: objects of different classes do not match.
        least: least score of an object.
    """
    sums, counts = np.zeros(len(first)), np.zeros(len(first))
    for image in range(len(first)):
        one, two = first.objects(image, least), second.objects(image, least)
        sums[image] = overlap_of_matched(one, two, classes)[0].sum()
        counts[image] = max(len(one.scores), len(two.scores))
    return ratio(sums, counts)
