"""Stability: does the detector say the same when its weights, its view or its twin change a little?"""

from __future__ import annotations

import numpy as np

from mrt.evaluate.unlabelled.estimate import Estimate, ratio
from mrt.evaluate.unlabelled.looks import SHOWN, Looks
from mrt.evaluate.unlabelled.pairs import agreement, overlap_of_matched


def boxes(looks: Looks, least: float = SHOWN) -> Estimate:
    """Box stability: the mean overlap of boxes with those of the detector with slightly changed weights.

    Source: BoS, Yang et al., *Bounding box stability against feature dropout reflects detector
    generalization across environments*, ICLR 2024. There features are dropped out; here weights change
    (:func:`mrt.evaluate.unlabelled.looks.shaken`), because our detectors are trained without dropout, and a
    box without a partner counts as 0.
    """
    return agreement(looks.plain, looks.shaken, classes=False, least=least)


def flatness(looks: Looks, least: float = SHOWN) -> Estimate:
    """Flatness: overlap times likeness of the class scores, of objects matched with those of the detector
    with slightly changed weights; 1 where nothing changes.

    The likeness is 1 - half of the sum of absolute differences of the scores of all classes, at least 0.
    Source: after the flatness index score of Yu et al., *Towards unsupervised model selection for domain
    adaptive object detection* (DAS), NeurIPS 2024, which measures how much classes and boxes move when the
    weights do; the formula is ours.
    """
    sums, counts = np.zeros(len(looks.plain)), np.zeros(len(looks.plain))
    for image in range(len(looks.plain)):
        one, two = looks.plain.objects(image, least), looks.shaken.objects(image, least)
        overlap, rows, columns = overlap_of_matched(one, two, classes=False)
        moved = np.abs(one.probabilities[rows] - two.probabilities[columns]).sum(1) / 2
        sums[image] = (overlap * (1 - moved).clip(0)).sum()
        counts[image] = max(len(one.scores), len(two.scores))
    return ratio(sums, counts)


def views(looks: Looks, least: float = SHOWN) -> Estimate:
    """Agreement with what is found in the mirrored, smaller, paler and darker image: overlap of objects of
    the same class, over their number.

    Source: consistency under augmentation, as in Jeong et al., *Consistency-based semi-supervised learning
    for object detection*, NeurIPS 2019, here as a measure and not a loss.
    """
    return agreement(looks.plain, looks.view, classes=True, least=least)


def partner(looks: Looks, least: float = SHOWN) -> Estimate:
    """Agreement of teacher and student (or of two other detectors): as :func:`views`, on the plain images."""
    return agreement(looks.plain, looks.partner, classes=True, least=least)
