"""Drift: does the detector find as many objects, of the same classes, as the source has?"""

from __future__ import annotations

import numpy as np

from mrt.evaluate.unlabelled.estimate import Estimate
from mrt.evaluate.unlabelled.looks import SHOWN, Looks


def count_drift(looks: Looks, least: float = SHOWN) -> Estimate:
    """The absolute logarithm (base 2) of objects per image over labelled source objects per image.

    0: as many; 1: twice as many, or half. Infinite where nothing is found.
    """
    expected = float(looks.boxes_per_image.sum())

    def reduce(means: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore"):
            return np.abs(np.log2(means.sum(-1) / expected))

    return Estimate(_by_class(looks, least), reduce)


def class_drift(looks: Looks, least: float = SHOWN) -> Estimate:
    """The total variation distance between the class shares of what is found and of the labelled source
    objects: 0 for the same shares, 1 for no class in common. None where nothing is found.

    A target may really have other objects than the source: a large value alone is no fault.
    """
    expected = looks.boxes_per_image / looks.boxes_per_image.sum()

    def reduce(means: np.ndarray) -> np.ndarray:
        total = means.sum(-1, keepdims=True)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.abs(means / total - expected).sum(-1) / 2

    return Estimate(_by_class(looks, least), reduce)


def _by_class(looks: Looks, least: float) -> np.ndarray:
    """(N, C) objects of each image."""
    scores = looks.plain.scores
    there = (scores.max(2) >= least)[..., None]
    return (np.eye(scores.shape[2])[scores.argmax(2)] * there).sum(1)
