"""The teacher's pseudo labels of a few fixed target images, after every epoch of teaching: ``pseudo_labels.jsonl`` in the run's folder.

Each line holds ``stage``, ``step``, ``epoch`` (0: before the first step), ``thresholds`` by class, and ``images``: for each its
``image_id``, ``file``, and the labels' ``scores``, ``classes`` (names) and ``boxes`` (xyxy in pixels of the file). No target label is read
for it, and no random number is drawn: a run with snapshots is the run without.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch

from mrt.adapt.pseudo_labels import pseudo_labels
from mrt.boxes import cxcywh_to_xyxy
from mrt.data.dataset import DetectionDataset, SampleKey
from mrt.data.loader import collate
from mrt.engine.step import Learner

SNAPSHOTS = "pseudo_labels.jsonl"


def spread_evenly(total: int, count: int) -> list[int]:
    """``count`` of ``total`` indices (or all, if there are fewer), each in the middle of an equal share."""
    count = min(count, total)
    return [(2 * number + 1) * total // (2 * count) for number in range(count)]


class LabelSnapshots:
    """Writes the lines.

    Args:
        folder: of the run.
        dataset: target training images as they are evaluated, unlabelled.
        classes: names by label.
        count: images, spread evenly over the set.
        batch: of so many images at a time.
    """

    def __init__(self, folder: Path, dataset: DetectionDataset, classes: Sequence[str], count: int, batch: int) -> None:
        self.path, self.dataset, self.classes, self.batch = folder / SNAPSHOTS, dataset, list(classes), batch
        self.chosen = spread_evenly(len(dataset), count)

    @torch.inference_mode()
    def take(self, stage: str, learner: Learner, epoch: int) -> None:
        """Append what the teacher thinks now, with the thresholds of now."""
        settings, device = learner.config.teacher, learner.world.device
        images = []
        for start in range(0, len(self.chosen), self.batch):
            indices = self.chosen[start : start + self.batch]
            batch = collate([self.dataset[SampleKey(index, "snapshot")] for index in indices]).to(device)
            with learner.precision:
                output = learner.teacher.module(batch.images, batch.padding_mask)
            labels = pseudo_labels(output.logits[-1], output.boxes[-1], learner.thresholds.values, settings.nms_iou)
            images += [self._describe(index, found) for index, found in zip(indices, labels, strict=True)]
        thresholds = {name: round(value, 6) for name, value in zip(self.classes, learner.thresholds.values.tolist(), strict=True)}
        line = {"stage": stage, "step": learner.step, "epoch": epoch, "thresholds": thresholds, "images": images}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

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
