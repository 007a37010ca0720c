"""Weighted box fusion of two labellers (Solovyev et al., Weighted boxes fusion, 2021), with what a detector
that learns from both has to know: where they agree, and where they contradict each other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

Alone = Literal["weigh", "keep", "ignore"]
OUTCOMES = ("agreed", "teacher_alone", "outside_alone", "conflict")


@dataclass
class _Cluster:
    """A box, or one of each labeller that are the same object."""

    label: int
    mass: np.ndarray  # (2,) sum of weight times score, by labeller
    best: np.ndarray  # (2,) the highest score, by labeller
    sum: np.ndarray  # (4,) of weight times score times corners

    @property
    def box(self) -> np.ndarray:
        """(4,) xyxy."""
        return self.sum / self.mass.sum()

    @property
    def owners(self) -> tuple[bool, bool]:
        return bool(self.mass[0]), bool(self.mass[1])


def fuse(
    teacher: Mapping[str, Tensor],
    outside: Mapping[str, Tensor],
    *,
    iou: float = 0.55,
    weight: float = 1.0,
    alone: Alone = "keep",
) -> tuple[dict[str, Tensor], Counter[str]]:
    """The labels of one image that two labellers give together.

    Boxes of one class that overlap by more than ``iou`` are one object if one is the teacher's and one the
    other's, the surest first. Their box is the mean of both, weighted by score times the labeller's weight:
    they **agreed**, it is a label. **Conflict**: an object of one, where the other says another class; it is
    neither object nor background. What only one has seen is as ``alone`` says.

    Args:
        teacher, outside: ``boxes`` (n, 4) cxcywh, ``labels`` (n,), ``scores`` (n,), on the host; optional
            ``ignore_boxes`` (m, 4) with ``ignore_labels`` (m,).
        weight: of the outside labels; the teacher's is 1. At 0 they are not looked at.
        alone: "keep": a label, whose confidence is 1 or, where the other labeller weighs more, the quotient
            of the weights; "weigh": a label with the confidence of its labeller's share of the weights,
            1 / (1 + w) or w / (1 + w), by which weighted box fusion lowers its score; "ignore": neither
            object nor background.

    Returns:
        ``boxes``, ``labels``, ``scores``, ``confidences``, ``ignore_boxes`` and ``ignore_labels``, and how
        often each of :data:`OUTCOMES` came out.
    """
    count: Counter[str] = Counter()
    weights = np.array([1.0, weight])
    rows: list[tuple[np.ndarray, int, float, float]] = []
    ignored: list[tuple[np.ndarray, int]] = []
    clusters = _clusters(teacher, outside, weights, iou)
    for cluster in clusters:
        score = float((weights * cluster.best).sum() / weights.sum())
        if all(cluster.owners):
            count["agreed"] += 1
            rows.append((cluster.box, cluster.label, score, 1.0))
            continue
        owner = cluster.owners.index(True)
        if any(
            other.label != cluster.label
            and other.owners[1 - owner]
            and _iou(cluster.box, other.box[None])[0] > iou
            for other in clusters
        ):
            count["conflict"] += 1
            ignored.append((cluster.box, cluster.label))
            continue
        count[OUTCOMES[1 + owner]] += 1
        if alone == "ignore":
            ignored.append((cluster.box, cluster.label))
        else:
            against = weights.sum() if alone == "weigh" else weights.max()
            confidence = float(weights[owner] / against)
            rows.append((cluster.box, cluster.label, score, confidence))
    boxes = _back([row[0] for row in rows])
    values = torch.tensor([row[1:] for row in rows], dtype=torch.float32).reshape(-1, 3)
    given = [side for side in (teacher, outside if weight else {}) if "ignore_boxes" in side]
    result = {
        "boxes": boxes,
        "labels": values[:, 0].long(),
        "scores": values[:, 1],
        "confidences": values[:, 2],
        "ignore_boxes": torch.cat(
            [_back([row[0] for row in ignored]), *(side["ignore_boxes"] for side in given)]
        ),
        "ignore_labels": torch.cat(
            [
                torch.tensor([row[1] for row in ignored], dtype=torch.int64),
                *(side["ignore_labels"] for side in given),
            ]
        ),
    }
    return result, count


def _clusters(
    teacher: Mapping[str, Tensor], outside: Mapping[str, Tensor], weights: np.ndarray, iou: float
) -> list[_Cluster]:
    """Clusters in the order of their surest box."""
    entries = []
    for owner, side in enumerate((teacher, outside)):
        if not weights[owner]:
            continue
        scores = side["scores"].double().numpy() * weights[owner]
        for corners, label, mass, score in zip(
            _corners(side["boxes"]), side["labels"].tolist(), scores, side["scores"].tolist(), strict=True
        ):
            if np.isfinite(mass) and np.isfinite(corners).all():  # others could neither be sorted nor overlap
                entries.append((mass, owner, label, corners, score))
    entries.sort(key=lambda entry: -entry[0])  # stable: of equal ones the teacher's first
    clusters: list[_Cluster] = []
    for mass, owner, label, corners, score in entries:
        mass = max(mass, 1e-12)  # a score of 0 is still a box
        rivals = [cluster for cluster in clusters if cluster.label == label and not cluster.owners[owner]]
        overlaps = _iou(corners, np.stack([cluster.box for cluster in rivals])) if rivals else np.zeros(1)
        if rivals and overlaps.max() > iou:
            home = rivals[int(overlaps.argmax())]
        else:
            home = _Cluster(label, np.zeros(2), np.zeros(2), np.zeros(4))
            clusters.append(home)
        home.mass[owner] += mass
        home.best[owner] = max(home.best[owner], score)
        home.sum = home.sum + mass * corners
    return clusters


def _corners(boxes: Tensor) -> np.ndarray:
    """(n, 4) cxcywh -> xyxy, float64."""
    values = boxes.double().numpy()
    return np.concatenate((values[:, :2] - values[:, 2:] / 2, values[:, :2] + values[:, 2:] / 2), axis=1)


def _back(corners: list[np.ndarray]) -> Tensor:
    """xyxy -> (n, 4) cxcywh, float32."""
    values = np.stack(corners) if corners else np.zeros((0, 4))
    both = np.concatenate(((values[:, :2] + values[:, 2:]) / 2, values[:, 2:] - values[:, :2]), axis=1)
    return torch.from_numpy(both).float()


def _iou(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(4,) xyxy against (n, 4): (n,)."""
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    shared = np.clip(sides, 0, None).prod(1)
    areas = (box[2:] - box[:2]).prod() + (others[:, 2:] - others[:, :2]).prod(1)
    return shared / np.maximum(areas - shared, 1e-12)
