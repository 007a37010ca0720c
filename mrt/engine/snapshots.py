"""The teacher's pseudo labels of a few fixed target images, after every epoch of teaching:
``pseudo_labels.jsonl`` in the run's folder.

Each line holds ``stage``, ``step``, ``epoch`` (0: before the first step), ``thresholds`` by class,
``agreement`` (how far the student finds the same), ``prototypes`` (how far classes are apart, compared with
the domains; see :meth:`LabelSnapshots.take` for both), and ``images``: for each its ``image_id``, ``file``,
and the labels' ``scores``, ``classes`` (names) and ``boxes`` (xyxy in pixels of the file). No label is read
for it, and no random number is drawn: a run with snapshots is the run without.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mrt.boxes import cxcywh_to_xyxy
from mrt.data.dataset import DetectionDataset, SampleKey, UnreadableImage
from mrt.data.loader import Batch, collate
from mrt.engine.compiling import uncompiled
from mrt.engine.learner import Learner
from mrt.engine.report import SNAPSHOTS, append_line
from mrt.evaluate.unlabelled.looks import Look, Looks, Objects
from mrt.evaluate.unlabelled.pairs import overlap_of_matched
from mrt.evaluate.unlabelled.prototypes import prototypes
from mrt.models.interface import DetectorOutput


def spread_evenly(total: int, count: int) -> list[int]:
    """``count`` of ``total`` indices (or all, if there are fewer), each in the middle of an equal share."""
    count = min(count, total)
    return [(2 * number + 1) * total // (2 * count) for number in range(count)]


class LabelSnapshots:
    """Writes the lines.

    Args:
        folder: of the run.
        dataset: target training images as they are evaluated, unlabelled. source: the same of the source;
            None where there are none.
        classes: names by label. stage: its name. learner: whose teacher is asked.
        count: images of each, spread evenly over the set.
        batch: of so many images at a time.
    """

    def __init__(
        self,
        folder: Path,
        dataset: DetectionDataset,
        source: DetectionDataset | None,
        classes: Sequence[str],
        stage: str,
        learner: Learner,
        count: int,
        batch: int,
    ) -> None:
        self.path, self.dataset, self.classes, self.stage, self.batch = (
            folder / SNAPSHOTS,
            dataset,
            list(classes),
            stage,
            batch,
        )
        self.learner, self.source = learner, source
        self.chosen = spread_evenly(len(dataset), count)
        self.of_source = spread_evenly(len(source), count) if source is not None else []

    @torch.inference_mode()
    def take(
        self,
        epoch: int,
        facts: Mapping[str, Any],
        find: Callable[[DetectorOutput], Sequence[dict[str, Tensor]]],
    ) -> dict[str, float]:
        """Append what is found in the images now.

        Args:
            epoch: epochs that are over. facts: for the line, such as "thresholds".
            find: from the teacher's output to labels per image: "scores", "labels" and "boxes" (n, 4) cxcywh.

        Returns:
            What is seen of the teacher without labels; what has no value is left out. ``agreement``: how far
            the student finds the same: overlap of matched objects of the same class, over the larger number
            of objects. ``prototypes``: the mean distance of classes over the mean distance of the domains
            (:func:`mrt.evaluate.unlabelled.prototypes.prototypes`).
        """
        images, overlaps, objects, seen = [], 0.0, 0, []
        student = self.learner.student.detector
        training = student.training
        for indices, batch in self._batches(self.dataset, self.chosen):
            with self.learner.precision, uncompiled():
                output = self.learner.teacher.module(batch.images, batch.mask)
                found = find(output)
                student.eval()
                theirs = find(student(batch.images, batch.mask))
                student.train(training)
            seen.append(_look(output))
            images += [self._describe(index, labels) for index, labels in zip(indices, found, strict=True)]
            for one, other in zip(found, theirs, strict=True):
                first, second = _objects(one), _objects(other)
                overlaps += float(overlap_of_matched(first, second, classes=True)[0].sum())
                objects += max(len(first.scores), len(second.scores))
        numbers = {
            "agreement": round(overlaps / objects, 4) if objects else None,
            "prototypes": self._prototypes(seen),
        }
        line = {"stage": self.stage, "step": self.learner.step, "epoch": epoch, **facts}
        append_line(self.path, {**line, **numbers, "images": images})
        return {name: value for name, value in numbers.items() if value is not None}

    def _prototypes(self, target: Sequence[Look]) -> float | None:
        """See :meth:`take`; None without source images, or where less than two classes are found in both."""
        source = []
        if self.source is not None and target:
            for _, batch in self._batches(self.source, self.of_source):
                with self.learner.precision, uncompiled():
                    source.append(_look(self.learner.teacher.module(batch.images, batch.mask)))
        if not source:
            return None
        value = prototypes(Looks(_joined(target), source=_joined(source))).value
        return round(value, 4) if math.isfinite(value) else None

    def _batches(self, dataset: DetectionDataset, chosen: Sequence[int]) -> Iterator[tuple[list[int], Batch]]:
        """Chosen images in batches; those that cannot be read, which training replaces, are left out."""
        for start in range(0, len(chosen), self.batch):
            samples = {}
            for index in chosen[start : start + self.batch]:
                with suppress(UnreadableImage):
                    samples[index] = dataset[SampleKey(index, "snapshot")]
            if samples:
                yield list(samples), collate(list(samples.values())).to(self.learner.world.device)

    def _describe(self, index: int, labels: dict[str, torch.Tensor]) -> dict:
        record = self.dataset.records[index]
        height, width = record.size
        boxes = cxcywh_to_xyxy(labels["boxes"].cpu()) * torch.tensor([width, height, width, height])
        return {
            "image_id": record.image_id,
            "file": record.path.name,
            "scores": [round(score, 4) for score in labels["scores"].tolist()],
            "classes": [self.classes[label] for label in labels["labels"].tolist()],
            "boxes": [[round(value, 1) for value in box] for box in boxes.tolist()],
        }


def _look(output: DetectorOutput) -> Look:
    """The last layer's queries."""
    scores = output.logits[-1].float().sigmoid()
    boxes = cxcywh_to_xyxy(output.boxes[-1].float())
    return Look(*(part.float().cpu().numpy() for part in (scores, boxes, output.queries)))


def _joined(looks: Sequence[Look]) -> Look:
    return Look(
        *(np.concatenate([getattr(one, name) for one in looks]) for name in ("scores", "boxes", "queries"))
    )


def _objects(labels: dict[str, Tensor]) -> Objects:
    scores, classes, boxes = (labels[name].float().cpu().numpy() for name in ("scores", "labels", "boxes"))
    corners = cxcywh_to_xyxy(torch.from_numpy(boxes)).numpy()
    return Objects(scores, classes.astype(int), corners, scores[:, None])
