"""The teacher's pseudo labels of a few fixed target images, after every epoch of teaching:
``pseudo_labels.jsonl`` in the run's folder.

Each line holds ``stage``, ``step``, ``epoch`` (0: before the first step), ``thresholds`` by class,
``agreement`` (how far the student finds the same, see :meth:`LabelSnapshots.take`), and ``images``: for each
its ``image_id``, ``file``, and the labels' ``scores``, ``classes`` (names) and ``boxes`` (xyxy in pixels of
the file). No target label is read for it, and no random number is drawn: a run with snapshots is the run
without.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mrt.boxes import cxcywh_to_xyxy
from mrt.data.dataset import DetectionDataset, SampleKey, UnreadableImage
from mrt.data.loader import collate
from mrt.engine.compiling import uncompiled
from mrt.engine.learner import Learner
from mrt.engine.report import SNAPSHOTS, append_line
from mrt.evaluate.unlabelled.looks import Objects
from mrt.evaluate.unlabelled.pairs import overlap_of_matched
from mrt.models.interface import DetectorOutput


def spread_evenly(total: int, count: int) -> list[int]:
    """``count`` of ``total`` indices (or all, if there are fewer), each in the middle of an equal share."""
    count = min(count, total)
    return [(2 * number + 1) * total // (2 * count) for number in range(count)]


class LabelSnapshots:
    """Writes the lines.

    Args:
        folder: of the run.
        dataset: target training images as they are evaluated, unlabelled.
        classes: names by label. stage: its name. learner: whose teacher is asked.
        count: images, spread evenly over the set.
        batch: of so many images at a time.
    """

    def __init__(
        self,
        folder: Path,
        dataset: DetectionDataset,
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
        self.learner = learner
        self.chosen = spread_evenly(len(dataset), count)

    @torch.inference_mode()
    def take(
        self,
        epoch: int,
        facts: Mapping[str, Any],
        find: Callable[[DetectorOutput], Sequence[dict[str, Tensor]]],
    ) -> float | None:
        """Append what is found in the images now.

        Args:
            epoch: epochs that are over. facts: for the line, such as "thresholds".
            find: from the teacher's output to labels per image: "scores", "labels" and "boxes" (n, 4) cxcywh.

        Returns:
            How far the student finds the same (:func:`mrt.evaluate.unlabelled.pairs.agreement`): overlap of
            matched objects of the same class, over the larger number of objects. None where neither finds
            anything.
        """
        images, overlaps, objects = [], 0.0, 0
        student = self.learner.student.detector
        training = student.training
        for start in range(0, len(self.chosen), self.batch):
            indices = self.chosen[start : start + self.batch]
            samples = {}
            for index in indices:
                with suppress(UnreadableImage):  # training replaces it, and says so
                    samples[index] = self.dataset[SampleKey(index, "snapshot")]
            if not samples:
                continue
            batch = collate(list(samples.values())).to(self.learner.world.device)
            with self.learner.precision, uncompiled():
                found = find(self.learner.teacher.module(batch.images, batch.mask))
                student.eval()
                theirs = find(student(batch.images, batch.mask))
                student.train(training)
            images += [self._describe(index, labels) for index, labels in zip(samples, found, strict=True)]
            for one, other in zip(found, theirs, strict=True):
                first, second = _objects(one), _objects(other)
                overlaps += float(overlap_of_matched(first, second, classes=True)[0].sum())
                objects += max(len(first.scores), len(second.scores))
        agreement = round(overlaps / objects, 4) if objects else None
        line = {"stage": self.stage, "step": self.learner.step, "epoch": epoch, **facts}
        append_line(self.path, {**line, "agreement": agreement, "images": images})
        return agreement

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


def _objects(labels: dict[str, Tensor]) -> Objects:
    scores, classes, boxes = (labels[name].float().cpu().numpy() for name in ("scores", "labels", "boxes"))
    corners = cxcywh_to_xyxy(torch.from_numpy(boxes)).numpy()
    return Objects(scores, classes.astype(int), corners, scores[:, None])
