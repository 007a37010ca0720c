"""Quality of pseudo labels where true labels are known. Only for analysis: training never uses it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torchvision.ops import box_iou, nms

from mrt.data.dataset import DetectionDataset, ImageRecord
from mrt.evaluate.coco import ImageDetections, NotFinite, require_finite

IOU = 0.5


@dataclass(frozen=True)
class LabelQuality:
    """Precision and recall of labels in per cent; ``None`` where there are no labels, or no boxes.

    ``num_labels``: labels that count (not those on crowds and ignored objects). ``num_boxes``: true boxes.
    ``per_class`` has the same four values for each class.
    """

    precision: float | None
    recall: float | None
    num_labels: int
    num_boxes: int
    per_class: dict[str, dict[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dict(vars(self))


def label_quality(labels: Sequence[ImageDetections], dataset: DetectionDataset) -> LabelQuality:
    """Judge labels of some of the dataset's images against its boxes.

    In the order of decreasing scores, a label is right if it overlaps a true box of its class that no earlier
    label has matched, with IoU of at least 0.5. A wrong one is not counted if half of it lies in a crowd or
    an ignored object. Only the given images count.

    Raises:
        NotFinite: a score or box is NaN or infinite.
    """
    require_finite(labels, dataset)
    records = {record.image_id: record for record in dataset.records}
    counts = np.zeros((3, len(dataset.classes)), dtype=np.int64)  # right labels, judged labels, boxes
    for image in labels:
        record = records[image.image_id]
        counts[2] += np.bincount(record.labels.numpy(), minlength=len(dataset.classes))
        right, judged = _judge(image, record)
        counts[0] += np.bincount(image.labels[right], minlength=len(dataset.classes))
        counts[1] += np.bincount(image.labels[judged], minlength=len(dataset.classes))
    return LabelQuality(
        **_shares(*counts.sum(1)),
        per_class={name: _shares(*counts[:, i]) for i, name in enumerate(dataset.classes)},
    )


def _judge(image: ImageDetections, record: ImageRecord) -> tuple[np.ndarray, np.ndarray]:
    """Which labels are right, and which count at all: (n,) bool each."""
    right = np.zeros(len(image.labels), dtype=bool)
    judged = np.ones(len(image.labels), dtype=bool)
    boxes = torch.as_tensor(np.asarray(image.boxes), dtype=torch.float32).reshape(-1, 4)
    overlaps = box_iou(boxes, record.boxes).numpy()
    overlaps[np.asarray(image.labels)[:, None] != record.labels.numpy()[None]] = 0
    inside = _inside(boxes, record.ignore_boxes)
    for index in np.argsort(-np.asarray(image.scores), kind="stable"):
        best = int(overlaps[index].argmax()) if overlaps.shape[1] else -1
        if best >= 0 and overlaps[index, best] >= IOU:
            right[index] = True
            overlaps[:, best] = 0
        else:
            judged[index] = not (inside[index] >= 0.5).any()
    return right, judged


def _inside(boxes: torch.Tensor, others: torch.Tensor) -> np.ndarray:
    """(n, m) share of each box (n, 4) that lies in each other box (m, 4)."""
    starts = torch.maximum(boxes[:, None, :2], others[None, :, :2])
    ends = torch.minimum(boxes[:, None, 2:], others[None, :, 2:])
    area = (boxes[:, 2:] - boxes[:, :2]).prod(-1).clamp(min=1e-6)
    return ((ends - starts).clamp(min=0).prod(-1) / area[:, None]).numpy()


def _shares(right: int, labels: int, boxes: int) -> dict[str, Any]:
    return {
        "precision": float(100 * right / labels) if labels else None,
        "recall": float(100 * right / boxes) if boxes else None,
        "num_labels": int(labels),
        "num_boxes": int(boxes),
    }


def as_pseudo_labels(
    detections: Sequence[ImageDetections], thresholds: Sequence[float], nms_iou: float
) -> list[ImageDetections]:
    """The pseudo labels among a teacher's detections, as :func:`mrt.adapt.pseudo_labels.pseudo_labels`.

    Detections are (query, class) pairs. All entries of a query have exactly the same box, so the best of
    equal boxes is the query's best class. (Only 100 pairs are stored, so labels after those are missed.)

    Raises:
        NotFinite: a score, box or threshold is NaN or infinite.
    """
    limits = np.asarray(thresholds)
    kept = []
    for found in detections:
        for name, values in (("scores", found.scores), ("boxes", found.boxes), ("thresholds", limits)):
            if not np.isfinite(values).all():
                raise NotFinite(f"image {found.image_id}: {name} of its detections are not finite")
        order = np.argsort(-found.scores, kind="stable")
        _, first = np.unique(found.boxes[order], axis=0, return_index=True)
        best = order[np.sort(first)]
        best = best[found.scores[best] > limits[found.labels[best]]]
        boxes, scores = (torch.as_tensor(part[best]).float() for part in (found.boxes, found.scores))
        best = best[nms(boxes, scores, nms_iou).numpy()]
        scores, labels, boxes = (part[best] for part in (found.scores, found.labels, found.boxes))
        kept.append(ImageDetections(found.image_id, scores, labels, boxes))
    return kept
