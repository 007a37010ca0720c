"""Prototypes: are classes apart from each other, and are the two domains together?"""

from __future__ import annotations

import numpy as np

from mrt.evaluate.unlabelled.estimate import Estimate
from mrt.evaluate.unlabelled.looks import FLOOR, Look, Looks


def prototypes(looks: Looks, least: float = FLOOR) -> Estimate:
    """The mean distance between prototypes of different classes, over the mean distance between the source's
    and the target's prototype of the same class. The larger, the better the classes are told apart, compared
    with how far the domains are from each other.

    A class's prototype is the mean of the decoder's queries of its objects, weighted by their scores. Classes
    that either domain has no object of are left out; with less than two classes there is no value.

    Source: after the prototypical distance ratio of Yu et al. (DAS, NeurIPS 2024, see
    :mod:`mrt.evaluate.unlabelled.stability`), there of a Faster R-CNN's region features; the formula is ours.
    """
    classes, size = looks.plain.scores.shape[2], looks.plain.queries.shape[2]
    source = _means(_sums(looks.source, least).mean(0), classes, size)

    def reduce(sums: np.ndarray) -> np.ndarray:
        target = _means(sums, classes, size)  # (..., C, d), NaN where there is no object
        there = ~np.isnan(target[..., 0]) & ~np.isnan(source[..., 0])
        known = np.nan_to_num(target)
        squares = (known**2).sum(-1)
        products = known @ np.swapaxes(known, -1, -2)
        apart = np.sqrt((squares[..., :, None] + squares[..., None, :] - 2 * products).clip(0))
        pairs = there[..., :, None] & there[..., None, :] & ~np.eye(classes, dtype=bool)
        moved = np.linalg.norm(target - source, axis=-1)
        with np.errstate(divide="ignore", invalid="ignore"):
            between = np.where(pairs, apart, 0).sum((-1, -2)) / pairs.sum((-1, -2))
            across = np.where(there, moved, 0).sum(-1) / there.sum(-1)
            return np.where(across > 0, between / across, np.nan)

    return Estimate(_sums(looks.plain, least), reduce)


def _sums(look: Look, least: float) -> np.ndarray:
    """(N, C * (d + 1)): of each image and class the sum of the scores, and of scores times queries."""
    images, _, classes = look.scores.shape
    best = look.scores.max(2)
    weights = np.where(best >= least, best, 0)[..., None] * np.eye(classes)[look.scores.argmax(2)]
    sums = np.einsum("nqc,nqd->ncd", weights, look.queries.astype(np.float64))
    return np.concatenate([weights.sum(1)[..., None], sums], axis=2).reshape(images, -1)


def _means(sums: np.ndarray, classes: int, size: int) -> np.ndarray:
    """(..., C, d) from what :func:`_sums` gives; NaN for a class without an object."""
    table = sums.reshape(*sums.shape[:-1], classes, size + 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(table[..., :1] > 0, table[..., 1:] / table[..., :1], np.nan)
