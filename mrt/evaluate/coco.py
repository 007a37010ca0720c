"""COCO evaluation of anything that can predict boxes: average precision by pycocotools.

All figures are per cent, as papers print them. Boxes are compared in the pixels of the original images.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mrt.data.dataset import DetectionDataset
from mrt.data.loader import Batch
from mrt.errors import MrtError

MAX_DETECTIONS = 100
NAMED = 3  # images that an error names
AREAS = {"all": 0, "small": 1, "medium": 2, "large": 3}  # COCO's: small below 32x32 pixels, large from 96x96

Predict = Callable[[Batch], Sequence[dict[str, torch.Tensor]]]


class NotFinite(MrtError):
    """Detections with a score or box that is NaN or infinite: they are never scored.

    Every comparison with NaN is false, so such boxes would count as hits.
    """


@dataclass(frozen=True)
class ImageDetections:
    """Detections in one image, best first.

    Arrays of n: ``scores``, ``labels`` from 0, ``boxes`` (n, 4) xyxy in pixels of the original image.
    """

    image_id: int
    scores: np.ndarray
    labels: np.ndarray
    boxes: np.ndarray


@dataclass(frozen=True)
class ClassMetrics:
    """One class in per cent; ``None`` where there is no ground truth (``num_boxes`` 0)."""

    AP: float | None
    AP50: float | None
    AP75: float | None
    num_boxes: int


@dataclass(frozen=True)
class Metrics:
    """COCO metrics in per cent.

    Means are over the classes with ground truth; ``None`` if no class has any. ``APs``, ``APm``, ``APl``:
    small, medium, large objects. ``AR100``: mean recall with 100 detections an image. ``detections`` are
    those that were evaluated, in the order of evaluation.
    """

    AP: float | None
    AP50: float | None
    AP75: float | None
    APs: float | None
    APm: float | None
    APl: float | None
    AR100: float | None
    per_class: dict[str, ClassMetrics]
    num_images: int
    num_boxes: int
    detections: list[ImageDetections] = field(default_factory=list, repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON, without the detections."""
        summary = {name: getattr(self, name) for name in (*SUMMARY, "num_images", "num_boxes")}
        return summary | {"per_class": {name: dict(vars(values)) for name, values in self.per_class.items()}}

    def rows(self) -> list[dict[str, Any]]:
        """One row per class, then one for all classes, with the same keys: for a CSV file or a table."""
        rows = [{"class": name, **vars(values)} for name, values in self.per_class.items()]
        means = {"AP": self.AP, "AP50": self.AP50, "AP75": self.AP75}
        return [*rows, {"class": "all", **means, "num_boxes": self.num_boxes}]


SUMMARY = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR100")


def evaluate(
    predict: Predict,
    loader: Iterable[Batch],
    dataset: DetectionDataset,
    progress: Callable[[int, int], None] | None = None,
) -> Metrics:
    """Run ``predict`` over the loader and score it against the dataset's labels.

    Args:
        predict: batch -> one dict per image with ``scores`` (n,), ``labels`` (n,) from 0 and ``boxes`` (n, 4)
            xyxy in pixels of ``target["original_size"]``.
        loader: batches of ``dataset``, each image at least once (repeats count once).
        progress: called with (images done, images in all).
    """
    return score(collect(predict, loader, len(dataset), progress), dataset)


def collect(
    predict: Predict,
    loader: Iterable[Batch],
    total: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> list[ImageDetections]:
    """The predictions for every image of the loader, on the host.

    Under several processes: collect on each, gather, then :func:`score`.
    """
    collected: list[ImageDetections] = []
    for batch in loader:
        for target, found in zip(batch.targets, predict(batch), strict=True):
            scores, labels, boxes = (
                found[name].detach().float().cpu().numpy() for name in ("scores", "labels", "boxes")
            )
            order = np.argsort(-scores, kind="stable")
            labels = labels[order].astype(np.int64)
            image_id = int(target["image_id"])
            collected.append(ImageDetections(image_id, scores[order], labels, boxes[order]))
        if progress:
            progress(len(collected), total)
    return collected


def score(detections: Sequence[ImageDetections], dataset: DetectionDataset) -> Metrics:
    """Average precision of collected detections.

    Crowds and ignored objects are neither hits nor misses: a detection that lies in one is not counted as
    false.

    Raises:
        MrtError: the set has no labels, or a detection is for an image that is not in it.
        NotFinite: a score or box is NaN or infinite.
    """
    once = each_once(detections, dataset)
    run = run_pycocotools(once, dataset)
    with contextlib.redirect_stdout(io.StringIO()):
        run.accumulate()
    # Precision (10 IoUs, 101 recalls, classes, 4 areas) and recall (10, classes, 4) with 100 detections an
    # image; -1: no ground truth.
    precision, recall = run.eval["precision"][..., 0], run.eval["recall"][..., 0]
    counts = np.bincount(
        np.concatenate([record.labels.numpy() for record in dataset.records]), minlength=len(dataset.classes)
    )
    per_class = {
        name: ClassMetrics(
            AP=_mean(precision[:, :, index, 0]),
            AP50=_mean(precision[0, :, index, 0]),
            AP75=_mean(precision[5, :, index, 0]),
            num_boxes=int(counts[index]),
        )
        for index, name in enumerate(dataset.classes)
    }
    return Metrics(
        AP=_mean(precision[:, :, :, 0]),
        AP50=_mean(precision[0, :, :, 0]),
        AP75=_mean(precision[5, :, :, 0]),
        APs=_mean(precision[:, :, :, AREAS["small"]]),
        APm=_mean(precision[:, :, :, AREAS["medium"]]),
        APl=_mean(precision[:, :, :, AREAS["large"]]),
        AR100=_mean(recall[:, :, 0]),
        per_class=per_class,
        num_images=len(dataset.records),
        num_boxes=int(counts.sum()),
        detections=once,
    )


def each_once(detections: Sequence[ImageDetections], dataset: DetectionDataset) -> list[ImageDetections]:
    """One entry for each image: the last, where an image was seen more than once.

    Raises:
        MrtError: the set has no labels, or a detection is for an image that is not in it.
        NotFinite: a score or box is NaN or infinite.
    """
    if not dataset.labelled:
        raise MrtError(
            f"{dataset.card.name}/{dataset.split} has no labels to evaluate against",
            "Choose a labelled set or split with --data.",
        )
    once = {found.image_id: found for found in detections}
    unknown = once.keys() - {record.image_id for record in dataset.records}
    if unknown:
        name = f"{dataset.card.name}/{dataset.split}"
        raise MrtError(f"detections for image {min(unknown)}, which is not in {name}")
    require_finite(list(once.values()), dataset)
    return list(once.values())


def require_finite(detections: Sequence[ImageDetections], dataset: DetectionDataset) -> None:
    """NotFinite if a score or box is NaN or infinite; it says in how many images, and in which first."""
    broken = [
        found.image_id
        for found in detections
        if not (np.isfinite(found.scores).all() and np.isfinite(found.boxes).all())
    ]
    if not broken:
        return
    files = {record.image_id: record.path.name for record in dataset.records}
    first = ", ".join(files.get(image, f"image {image}") for image in broken[:NAMED])
    raise NotFinite(
        f"the detector's output is not finite (NaN or infinite scores or boxes) on {len(broken)} of "
        f"{len(detections)} images of {dataset.card.name}/{dataset.split}: {first}"
        f"{', ...' if len(broken) > NAMED else ''}",
        "Its training diverged, or its weights file is damaged: take other weights.",
    )


def run_pycocotools(
    detections: Sequence[ImageDetections], dataset: DetectionDataset, areas: Sequence[str] = tuple(AREAS)
) -> COCOeval:
    """Run pycocotools up to matching, without accumulation.

    Its detections have the ids 1, 2, ... in the given order, image after image.

    Args:
        detections: at most one entry for each image of the set.
        areas: ranges of object sizes to match in, of :data:`AREAS`.
    """
    ground_truth = dataset.coco_ground_truth()

    def row_of(found: ImageDetections) -> np.ndarray:
        ids, sizes = np.full(len(found.scores), found.image_id), found.boxes[:, 2:] - found.boxes[:, :2]
        return np.column_stack((ids, found.boxes[:, :2], sizes, found.scores, found.labels + 1))

    rows = [row_of(found) for found in detections if len(found.scores)]
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        reference, results = COCO(), COCO()
        reference.dataset = ground_truth
        reference.createIndex()
        if rows:
            results = reference.loadRes(np.concatenate(rows).astype(np.float64))
        else:
            results.dataset = {**ground_truth, "annotations": []}
            results.createIndex()
        run = COCOeval(reference, results, "bbox")
        run.params.imgIds = sorted(record.image_id for record in dataset.records)
        run.params.catIds = list(range(1, len(dataset.classes) + 1))
        run.params.maxDets = [MAX_DETECTIONS]
        run.params.areaRng = [run.params.areaRng[AREAS[name]] for name in areas]
        run.params.areaRngLbl = list(areas)
        run.evaluate()
    return run


def _mean(values: np.ndarray) -> float | None:
    """Mean, in per cent, of the values that are not -1."""
    valid = values[values != -1]
    return float(valid.mean() * 100) if valid.size else None
