"""Prototypes: are classes apart from each other, and are the two domains together?"""

from __future__ import annotations

import numpy as np

from mrt.evaluate.unlabelled.estimate import Estimate
from mrt.evaluate.unlabelled.looks import FLOOR, Look, Looks

FEW = 3.0  # objects with which a class counts half


def prototypes(looks: Looks, least: float = FLOOR) -> Estimate:
    """The mean distance between prototypes of different classes, over the mean distance between the source's
    and the target's prototype of the same class. The larger, the better the classes are told apart, compared
    with how far the domains are from each other.

    A class's prototype is the mean of the decoder's queries of its objects, weighted by their scores. In both
    means a class counts n / (n + 3), where n is the geometric mean of the sums of its scores in source and
    target: what is seen once or twice tells little, and may not move the value when it is found first. With
    less than two classes that both domains have an object of, there is no value.

    Source: after the prototypical distance ratio of Yu et al. (DAS, NeurIPS 2024, see
    :mod:`mrt.evaluate.unlabelled.stability`), there of a Faster R-CNN's region features; the formula is ours.
    """
    classes, size = looks.plain.scores.shape[2], looks.plain.queries.shape[2]
    of_source, images = _sums(looks.source, least), len(looks.plain)
    source = _means(of_source.mean(0), classes, size)
    many = _weights(of_source.sum(0), classes)

    def reduce(sums: np.ndarray) -> np.ndarray:
        target = _means(sums, classes, size)  # (..., C, d), NaN where there is no object
        number = np.sqrt(many * _weights(images * sums, classes))
        counts = number / (number + FEW)
        there = counts > 0
        known = np.nan_to_num(target)
        squares = (known**2).sum(-1)
        products = known @ np.swapaxes(known, -1, -2)
        apart = np.sqrt((squares[..., :, None] + squares[..., None, :] - 2 * products).clip(0))
        pairs = counts[..., :, None] * counts[..., None, :] * ~np.eye(classes, dtype=bool)
        moved = np.linalg.norm(known - np.nan_to_num(source), axis=-1)
        with np.errstate(divide="ignore", invalid="ignore"):
            between = (pairs * apart).sum((-1, -2)) / pairs.sum((-1, -2))
            across = np.where(there, counts * moved, 0).sum(-1) / counts.sum(-1)
            return np.where(across > 0, between / across, np.nan)

    return Estimate(_sums(looks.plain, least), reduce)


def _sums(look: Look, least: float) -> np.ndarray:
    """(N, C * (d + 1)): of each image and class the sum of the scores, and of scores times queries."""
    images, _, classes = look.scores.shape
    best = look.scores.max(2)
    weights = np.where(best >= least, best, 0)[..., None] * np.eye(classes)[look.scores.argmax(2)]
    sums = np.einsum("nqc,nqd->ncd", weights, look.queries.astype(np.float64))
    return np.concatenate([weights.sum(1)[..., None], sums], axis=2).reshape(images, -1)


def _weights(sums: np.ndarray, classes: int) -> np.ndarray:
    """(..., C) sums of scores from what :func:`_sums` gives."""
    return sums.reshape(*sums.shape[:-1], classes, -1)[..., 0]


def _means(sums: np.ndarray, classes: int, size: int) -> np.ndarray:
    """(..., C, d) from what :func:`_sums` gives; NaN for a class without an object."""
    table = sums.reshape(*sums.shape[:-1], classes, size + 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(table[..., :1] > 0, table[..., 1:] / table[..., :1], np.nan)
