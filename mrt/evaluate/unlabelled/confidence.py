"""Mean confidence: how sure the detector is of what it finds."""

from __future__ import annotations

import numpy as np

from mrt.evaluate.unlabelled.estimate import Estimate, ratio
from mrt.evaluate.unlabelled.looks import FLOOR, Looks


def confidence(looks: Looks, least: float = FLOOR) -> Estimate:
    """The mean score of the objects with a score of at least ``least``.

    Source: average confidence, Guillory et al., *Predicting with confidence on unseen distributions*, ICCV
    2021 (there of classifiers). A detector that finds little but is sure of it scores high: see ``found``.
    """
    return _mean_of_best(looks, least, lambda best: best)


def entropy(looks: Looks, least: float = FLOOR) -> Estimate:
    """The mean binary entropy, in nats, of the best class of the objects with a score of at least ``least``.

    0 where every score is 1, 0.69 where every score is a half. Source: entropy as a measure of what is not
    yet adapted, Vu et al., *ADVENT*, CVPR 2019 (there of segmentation).
    """

    def of(best: np.ndarray) -> np.ndarray:
        best = best.clip(1e-7, 1 - 1e-7)
        return -(best * np.log(best) + (1 - best) * np.log(1 - best))

    return _mean_of_best(looks, least, of)


def found(looks: Looks, least: float = FLOOR) -> Estimate:
    """Expected number of objects per image: the sum of the scores of at least ``least``."""
    best = looks.plain.scores.max(2).astype(np.float64)
    return ratio((best * (best >= least)).sum(1), np.ones(len(best)))


def _mean_of_best(looks: Looks, least: float, function) -> Estimate:
    best = looks.plain.scores.max(2).astype(np.float64)
    counts = best >= least
    return ratio((function(best) * counts).sum(1), counts.sum(1))
