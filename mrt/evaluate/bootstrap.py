"""Confidence intervals: percentile bootstrap over images, also of paired differences between detectors.

Images are drawn with replacement, as many as there are, and average precision is recalculated from the
matches (Efron and Tibshirani, *An Introduction to the Bootstrap*, 1993, chapter 13). The intervals show how
much the metrics depend on the choice of test images, not on training: for that, train with several seeds.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import numpy as np

from mrt.data.dataset import DetectionDataset
from mrt.errors import MrtError
from mrt.evaluate.coco import ImageDetections
from mrt.evaluate.matching import Matches, average_precision, match

SAMPLES, LEVEL = 1000, 0.95

# By metric, "AP50" or "AP50 car": (1 + samples,) per cent; the first is with every image once.
Estimates = Mapping[str, np.ndarray]


def confidence_intervals(
    detections: Sequence[ImageDetections] | Matches,
    dataset: DetectionDataset | None = None,
    *,
    samples: int = SAMPLES,
    seed: int = 0,
    level: float = LEVEL,
) -> dict[str, dict[str, float | None]]:
    """AP50, AP, AP75 and each class's AP50 ("AP50 car") in per cent, with a percentile interval.

    Args:
        detections: of the dataset's images, or what :func:`mrt.evaluate.matching.match` made of them.
        samples: how often the images are drawn.
        seed: of the draws; the same seed and images give the same draws.
        level: share of the draws that lie in the interval.

    Returns:
        By metric {"value", "low", "high"}; ``None`` where there is no object. A draw without an object of a
        class leaves that class out.
    """
    matches = detections if isinstance(detections, Matches) else match(detections, dataset)
    return intervals(estimates(matches, samples, seed), level)


def paired_differences(
    first: Matches, second: Matches, *, samples: int = SAMPLES, seed: int = 0, level: float = LEVEL
) -> dict[str, dict[str, float | None]]:
    """``second`` minus ``first``, with intervals over the same draws of images for both.

    Arguments and result are as in :func:`confidence_intervals`.

    Raises:
        MrtError: they were not evaluated on the same images.
    """
    before, after = (estimates(matches, samples, seed) for matches in (first, second))
    return differences(first, second, before, after, level)


def differences(
    first: Matches, second: Matches, before: Estimates, after: Estimates, level: float = LEVEL
) -> dict[str, dict]:
    """:func:`paired_differences` from the estimates of both, made with the same samples and seed."""
    if not np.array_equal(first.image_ids, second.image_ids):
        raise MrtError(
            "a paired difference needs detections of the same images",
            "evaluate both runs on the same data set and split",
        )
    return intervals({name: after[name] - before[name] for name in before if name in after}, level)


def estimates(matches: Matches, samples: int = SAMPLES, seed: int = 0) -> dict[str, np.ndarray]:
    """By metric (1 + samples,) per cent: with every image once, then for each draw; NaN without objects."""
    images, classes = len(matches.image_ids), len(matches.classes)
    weights = np.concatenate([np.ones((1, images), dtype=np.int32), draw(images, samples, seed)])
    objects = np.zeros((images, classes), dtype=np.int32)
    np.add.at(objects, (matches.object_images, matches.object_labels), 1)
    counts = weights @ objects
    found = np.empty((len(weights), matches.hits.shape[1], classes))
    for label in range(classes):
        rows = matches.labels == label
        parts = (part[rows] for part in (matches.scores, matches.hits, matches.ignored, matches.images))
        found[:, :, label] = 100 * average_precision(*parts, weights, counts[:, label])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the mean over no class is NaN, which is intended
        means = {"AP50": found[:, 0], "AP": found.reshape(len(found), -1), "AP75": found[:, 5]}
        overall = {name: np.nanmean(values, axis=1) for name, values in means.items()}
    return overall | {f"AP50 {name}": found[:, 0, label] for label, name in enumerate(matches.classes)}


def draw(images: int, samples: int, seed: int) -> np.ndarray:
    """How often each image is in each of the samples: (samples, images), every row's sum is ``images``."""
    picked = np.random.default_rng(seed).integers(images, size=(samples, images), dtype=np.int32)
    rows = np.arange(samples, dtype=np.int64)[:, None] * images
    counts = np.bincount((picked + rows).ravel(), minlength=samples * images)
    return counts.reshape(samples, images).astype(np.int32)


def intervals(values: Estimates, level: float = LEVEL) -> dict[str, dict[str, float | None]]:
    """Each figure's value and percentile interval."""
    found: dict[str, dict[str, float | None]] = {}
    for name, (value, *draws) in values.items():
        there = np.asarray(draws)[~np.isnan(draws)]
        known = not np.isnan(value)
        low, high = None, None
        if known and len(there):
            low, high = np.quantile(there, [(1 - level) / 2, (1 + level) / 2]).tolist()
        found[name] = {"value": float(value) if known else None, "low": low, "high": high}
    return found
