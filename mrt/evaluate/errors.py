"""How much each kind of error costs: the error split of TIDE (Bolya et al., ECCV 2020, arXiv 2008.08115).

Every false positive and every object that was not found has one kind, by IoU thresholds of 0.5 (foreground)
and 0.1 (background):

- class: overlaps an object of another class by 0.5 or more;
- localisation: overlaps an object of its class by 0.1 to 0.5;
- both: neither of these, but overlaps something by more than 0.1;
- duplicate: overlaps an object of its class by 0.5 or more that a better detection has found already;
- background: overlaps nothing by more than 0.1;
- missed: an object that was not found, and that neither a class nor a localisation error would find.

A kind's dAP is the AP50 gained if only its errors were fixed. Fixing means: a class or localisation error
becomes a hit if it is the best-scored one of an object that was not found, and is removed otherwise; "both",
duplicates and background are removed; missed objects do not count. Two more figures are the gains if all
false positives were removed, and if no object counted that was not found. The order of the tests and the
treatment of several errors at one object are those of the authors' toolbox. The kinds' dAP do not sum to
100 - AP50, because fixing one kind changes what another costs.

As in COCO, detections of crowds and ignored objects are not errors and have no kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask

from mrt.data.dataset import DetectionDataset
from mrt.evaluate.coco import ImageDetections
from mrt.evaluate.matching import Matches, average_precision, match

KINDS = ("class", "localisation", "both", "duplicate", "background", "missed")
CLASS, LOCALISATION, BOTH, DUPLICATE, BACKGROUND, MISSED = range(len(KINDS))
FOREGROUND, BACKDROP = 0.5, 0.1


@dataclass(frozen=True)
class ErrorSplit:
    """Per cent of AP50; ``None`` where the split has no object.

    ``gains`` and ``counts``: dAP and number of mistakes of each kind, by name. ``false_positives`` and
    ``false_negatives``: dAP if there were none; ``num_false_positives`` and ``num_false_negatives``: how many
    there are.
    """

    AP50: float | None
    gains: dict[str, float | None]
    counts: dict[str, int]
    false_positives: float | None
    false_negatives: float | None
    num_false_positives: int
    num_false_negatives: int

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON."""
        kinds = {name: {"dAP": self.gains[name], "count": self.counts[name]} for name in KINDS}
        return {
            "AP50": self.AP50,
            **kinds,
            "false_positives": {"dAP": self.false_positives, "count": self.num_false_positives},
            "false_negatives": {"dAP": self.false_negatives, "count": self.num_false_negatives},
        }


def split_errors(
    detections: Sequence[ImageDetections] | Matches, dataset: DetectionDataset | None = None
) -> ErrorSplit:
    """The error split of detections of the dataset's images, or of their :class:`Matches`."""
    matches = detections if isinstance(detections, Matches) else match(detections, dataset)
    hits, found = matches.hits[:, 0], matches.found[:, 0]
    false = ~hits & ~matches.ignored[:, 0]
    kinds, objects = _kinds(matches, false)
    mended = _mended(kinds, objects, found)
    nearly = np.zeros(len(found), dtype=bool)
    nearly[objects[mended]] = True
    missed = ~found & ~nearly
    everything = _count(matches, np.ones(len(found), dtype=bool))

    def precision(keep: np.ndarray, hits: np.ndarray, labels: np.ndarray, counts: np.ndarray) -> float | None:
        values = []
        once = np.ones((1, len(matches.image_ids)), dtype=np.int32)
        for label in np.flatnonzero(everything):
            rows = keep & (labels == label)
            ignored = np.zeros((int(rows.sum()), 1), dtype=bool)
            scores, images, number = matches.scores[rows], matches.images[rows], counts[label : label + 1]
            ap = average_precision(scores, hits[rows, None], ignored, images, once, number)
            # NaN: a class without a hit, whose misses do not count. Its precision is 0.
            values.append(100 * float(np.nan_to_num(ap[0, 0])))
        return sum(values) / len(values) if values else None

    counting, labels = hits | false, matches.labels
    now = precision(counting, hits, labels, everything)

    def gain(value: float | None) -> float | None:
        return None if value is None or now is None else value - now

    gains = {}
    for kind in (CLASS, LOCALISATION, BOTH, DUPLICATE, BACKGROUND):
        mine = kinds == kind
        better = mended & mine
        moved = labels.copy()
        moved[better] = matches.object_labels[objects[better]]
        gains[KINDS[kind]] = gain(precision(counting & ~(mine & ~mended), hits | better, moved, everything))
    gains[KINDS[MISSED]] = gain(precision(counting, hits, labels, everything - _count(matches, missed)))
    numbers = np.bincount(kinds[false], minlength=len(KINDS))
    numbers[MISSED] = missed.sum()
    return ErrorSplit(
        AP50=now,
        gains=gains,
        counts={name: int(number) for name, number in zip(KINDS, numbers, strict=True)},
        false_positives=gain(precision(hits, hits, labels, everything)),
        false_negatives=gain(precision(counting, hits, labels, _count(matches, found))),
        num_false_positives=int(false.sum()),
        num_false_negatives=int((~found).sum()),
    )


def _count(matches: Matches, which: np.ndarray) -> np.ndarray:
    return np.bincount(matches.object_labels[which], minlength=len(matches.classes))


def _kinds(matches: Matches, false: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each false positive's kind, and the object that belongs to a class or localisation error; -1: none."""
    kinds, objects = np.full(len(false), -1), np.full(len(false), -1)
    rows_of, objects_of = (
        _by_image(images, len(matches.image_ids)) for images in (matches.images, matches.object_images)
    )
    found = matches.found[:, 0]
    for rows, there in zip(rows_of, objects_of, strict=True):
        rows = rows[false[rows]]
        if not len(rows):
            continue
        kinds[rows] = BACKGROUND
        if not len(there):
            continue
        overlap = mask.iou(_xywh(matches.boxes[rows]), _xywh(matches.object_boxes[there]), [0] * len(there))
        same = matches.labels[rows][:, None] == matches.object_labels[there]
        own, other = overlap * same, overlap * ~same
        tests = [
            (own.max(1) >= BACKDROP) & (own.max(1) <= FOREGROUND),
            other.max(1) >= FOREGROUND,
            (own * found[there]).max(1) >= FOREGROUND,
            overlap.max(1) <= BACKDROP,
        ]
        kind = np.select(tests, [LOCALISATION, CLASS, DUPLICATE, BACKGROUND], BOTH)
        kinds[rows] = kind
        candidates = [there[own.argmax(1)], there[other.argmax(1)]]
        objects[rows] = np.select([kind == LOCALISATION, kind == CLASS], candidates, -1)
    return kinds, objects


def _by_image(images: np.ndarray, number: int) -> list[np.ndarray]:
    """Rows by image, in order."""
    order = np.argsort(images, kind="stable")
    return np.split(order, np.cumsum(np.bincount(images, minlength=number))[:-1])


def _xywh(boxes: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1))


def _mended(kinds: np.ndarray, objects: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Class and localisation errors that become hits: the first, and so best-scored, of each object."""
    candidates = np.flatnonzero(objects >= 0)
    candidates = candidates[~found[objects[candidates]]]
    _, first = np.unique(objects[candidates], return_index=True)
    mended = np.zeros(len(kinds), dtype=bool)
    mended[candidates[first]] = True
    return mended
