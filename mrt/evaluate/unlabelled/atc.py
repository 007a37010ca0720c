"""Average thresholded confidence: how many of the target's objects are right, by a threshold that labelled
source images calibrate.
"""

from __future__ import annotations

import numpy as np

from mrt.evaluate.unlabelled.estimate import Estimate, ratio
from mrt.evaluate.unlabelled.looks import FLOOR, Look, Looks, Truth
from mrt.evaluate.unlabelled.pairs import box_iou


def atc(looks: Looks, least: float = FLOOR) -> Estimate:
    """The share of the target's objects with a score above the threshold of :func:`calibrate`: an estimate of
    the precision of the objects with a score of at least ``least``.

    Source: Garg et al., *Leveraging unlabeled data to predict out-of-distribution performance*, ICLR 2022,
    equation 2 (there of classifiers, for which accuracy stands where precision stands here).
    """
    threshold = calibrate(looks.source, looks.truth, least)
    best = looks.plain.scores.max(2)
    return ratio((best > threshold).sum(1), (best >= least).sum(1))


def calibrate(source: Look, truth: list[Truth] | tuple[Truth, ...], least: float = FLOOR) -> float:
    """The score above which lie as many of the source's objects, in share, as are right.

    An object is right when it overlaps a labelled one of its class by at least half that no better object
    has taken.
    """
    scores, right = [], 0
    for image, there in enumerate(truth):
        objects = source.objects(image, least)
        scores.append(objects.scores)
        overlap = box_iou(objects.boxes, there.boxes)
        overlap = np.where(objects.labels[:, None] == there.labels[None], overlap, 0.0)
        for row in overlap:  # the best object first
            if row.size and row.max() >= 0.5:
                overlap[:, row.argmax()] = 0.0
                right += 1
    every = np.sort(np.concatenate(scores))[::-1]
    if not len(every):
        return 1.0
    return float(every[right]) if right < len(every) else float(np.nextafter(every[-1], 0))
