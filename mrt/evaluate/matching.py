"""Matches of detections with objects, and average precision from these, for intervals and error splits.

The matching is that of pycocotools; average precision is calculated as in ``COCOeval.accumulate``, but for
many weightings of the images at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mrt.data.dataset import DetectionDataset
from mrt.evaluate.coco import ImageDetections, NotFinite, each_once, run_pycocotools

RECALLS = np.linspace(0, 1, 101)  # where COCO samples precision
CELLS = 4_000_000  # of the largest array that average_precision makes


@dataclass(frozen=True)
class Matches:
    """All detections and objects of a split, matched at COCO's ten IoU thresholds (0.50, 0.55, ... 0.95).

    The n detections are ordered by image as in ``image_ids``, best first in each, at most 100 of a class in
    an image: ``images`` (n,) indices into ``image_ids``, ``labels`` (n,), ``scores`` (n,), ``boxes`` (n, 4)
    xyxy, ``hits`` and ``ignored`` (n, 10) bool. The m objects are those that count, neither crowds nor
    ignored: ``object_images``, ``object_labels`` (m,), ``object_boxes`` (m, 4), ``found`` (m, 10) bool.
    """

    classes: tuple[str, ...]
    image_ids: np.ndarray
    images: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    boxes: np.ndarray
    hits: np.ndarray
    ignored: np.ndarray
    object_images: np.ndarray
    object_labels: np.ndarray
    object_boxes: np.ndarray
    found: np.ndarray

    def __post_init__(self) -> None:
        if not (np.isfinite(self.scores).all() and np.isfinite(self.boxes).all()):
            raise NotFinite("matches of detections whose scores or boxes are not finite", "Leave these out.")


def match(detections: Sequence[ImageDetections], dataset: DetectionDataset) -> Matches:
    """Match detections to the split's objects of all sizes, as COCO does.

    Raises:
        MrtError: the set has no labels, or a detection is for an image that is not in it.
        NotFinite: a score or box is NaN or infinite.
    """
    listed = sorted(each_once(detections, dataset), key=lambda item: item.image_id)
    run = run_pycocotools(listed, dataset, areas=["all"])
    image_ids = np.array(run.params.imgIds, dtype=np.int64)
    number = sum(len(item.scores) for item in listed)
    thresholds = len(run.params.iouThrs)
    objects = run.cocoGt.dataset["annotations"]
    hits, ignored = np.zeros((number, thresholds), dtype=bool), np.zeros((number, thresholds), dtype=bool)
    kept, found = np.zeros(number, dtype=bool), np.zeros((len(objects), thresholds), dtype=bool)
    for cell in run.evalImgs:  # one per class and image; ids count from 1
        if cell is not None:
            rows = np.asarray(cell["dtIds"], dtype=np.int64) - 1
            kept[rows], ignored[rows] = True, cell["dtIgnore"].T
            hits[rows] = ((cell["dtMatches"] > 0) & ~cell["dtIgnore"]).T
            found[np.asarray(cell["gtIds"], dtype=np.int64) - 1] = (cell["gtMatches"] > 0).T

    def joined(name: str, empty: tuple[int, ...]) -> np.ndarray:
        return np.concatenate([np.empty(empty), *(getattr(item, name) for item in listed)])

    places = np.searchsorted(image_ids, [item.image_id for item in listed])
    owners = np.repeat(places, [len(item.scores) for item in listed]).astype(np.int64)
    labels, scores = joined("labels", (0,)).astype(np.int64), joined("scores", (0,))
    boxes = joined("boxes", (0, 4))
    order = np.lexsort((-scores, owners))
    order = order[kept[order]]
    counted = np.array([not item["iscrowd"] for item in objects], dtype=bool)
    corners = np.array([item["bbox"] for item in objects], dtype=float).reshape(-1, 4)
    corners[:, 2:] += corners[:, :2]
    return Matches(
        tuple(dataset.classes),
        image_ids,
        owners[order],
        labels[order],
        scores[order],
        boxes[order],
        hits[order],
        ignored[order],
        np.searchsorted(image_ids, [item["image_id"] for item in objects])[counted],
        np.array([item["category_id"] - 1 for item in objects], dtype=np.int64)[counted],
        corners[counted],
        found[counted],
    )


def average_precision(
    scores: np.ndarray,
    hits: np.ndarray,
    ignored: np.ndarray,
    images: np.ndarray,
    weights: np.ndarray,
    objects: np.ndarray,
) -> np.ndarray:
    """COCO's average precision of one class, as a fraction, for many weightings of the images at once.

    An image of weight k counts as if it were in the set k times. (Its copies have equal scores; the order of
    hits and misses among these does not change the envelope, so the result is that of a set with k copies.)

    Args:
        scores: (n,) of the class's detections, in the order of their images.
        hits, ignored: (n, thresholds) bool.
        images: (n,) each detection's image.
        weights: (samples, images) whole numbers.
        objects: (samples,) number of objects under each weighting.

    Returns:
        (samples, thresholds); NaN where there is no object.

    Raises:
        NotFinite: a score is NaN or infinite.
    """
    if not np.isfinite(scores).all():
        raise NotFinite("average precision of scores that are not finite", "Leave these detections out.")
    order = np.argsort(-scores, kind="stable")
    hits, ignored, images = hits[order], ignored[order], images[order]
    result = np.zeros((len(weights), hits.shape[1]))
    step = max(1, CELLS // max(1, len(order)))
    for start in range(0, len(weights), step):
        part = slice(start, start + step)
        result[part] = _average_precision(hits, ignored, weights[part][:, images], objects[part])
    result[objects == 0] = np.nan
    return result


def _average_precision(
    hits: np.ndarray, ignored: np.ndarray, each: np.ndarray, objects: np.ndarray
) -> np.ndarray:
    """As :func:`average_precision`, of detections sorted by score; ``each`` (samples, n): their weights."""
    samples = np.arange(len(each))[:, None]
    seen = np.cumsum(each, axis=1, dtype=np.int64)
    needed = _needed(objects)
    result = np.zeros((len(each), hits.shape[1]))
    for threshold in range(hits.shape[1]):
        places = np.flatnonzero(hits[:, threshold])  # the maxima of precision are at hits
        if not len(places):
            continue
        true, counted = np.cumsum(each[:, places], axis=1, dtype=np.int64), seen[:, places]
        skipped = np.flatnonzero(ignored[:, threshold])
        if len(skipped):
            before = np.cumsum(each[:, skipped], axis=1, dtype=np.int64)
            before = np.concatenate([np.zeros_like(before[:, :1]), before], axis=1)
            counted = counted - before[:, np.searchsorted(skipped, places)]
        precision = true / np.maximum(counted, 1)
        envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        envelope = np.concatenate([envelope, np.zeros_like(envelope[:, :1])], axis=1)  # beyond the last hit
        # One search for all samples: offsets make their rows one increasing sequence.
        apart = samples * (max(true[:, -1].max(), needed.max()) + 1)
        first = np.searchsorted((true + apart).ravel(), (needed + apart).ravel())
        first = first.reshape(needed.shape) - samples * len(places)
        result[:, threshold] = np.take_along_axis(envelope, first, axis=1).mean(axis=1)
    return result


def _needed(objects: np.ndarray) -> np.ndarray:
    """How many hits reach each of the 101 recalls (samples, 101), by the same division as in pycocotools."""
    total = np.maximum(objects, 1)[:, None]
    hits = np.ceil(RECALLS * total)
    hits += hits / total < RECALLS
    hits -= (hits - 1) / total >= RECALLS
    return hits.astype(np.int64)
