"""Pseudo labels with dynamic thresholds (L_unsup; paper, section 3.2).

The teacher looks at the weakly augmented target images; what it is sure of is what the student has to find in
the strongly augmented ones. How sure it must be of a class follows how sure the student is of it on the
source.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mrt.adapt.pseudo_labels import LabelCount, PendingLabels, pseudo_labels
from mrt.adapt.thresholds import DynamicThresholds, LabelLimit
from mrt.data.loader import Batch
from mrt.domains import SOURCE, TARGET
from mrt.evaluate.labels import as_pseudo_labels, label_quality
from mrt.losses import Judged, matched_confidences
from mrt.models.interface import DetectorOutput
from mrt.parts.base import Labels, Look, Moment, Needs, Part, Site
from mrt.parts.source_record import CONFIDENCES

if TYPE_CHECKING:
    from mrt.config import Config
    from mrt.data.dataset import DetectionDataset
    from mrt.evaluate.coco import Metrics


class PseudoLabels(Part):
    """The teacher labels target images.

    Attributes:
        thresholds: of each class. limit: raises them where a class gets too many labels (``most_labels``), or
            None. count: labels of each class since the last epoch's end.
    """

    name = "pseudo_labels"
    limit: LabelLimit | None = None

    def is_on(self, config: Config) -> bool:
        """``teacher.pseudo_labels``."""
        return config.teacher.pseudo_labels

    def needs(self, config: Config) -> Needs:
        """Target images in two views, the strong one through the whole student."""
        return Needs(detect=frozenset({TARGET}), target=True, strong=True)

    def begin(self, site: Site) -> None:
        """All thresholds begin at ``teacher.threshold_start``."""
        settings, device = site.config.teacher, site.world.device
        alone = settings.dynamic and site.config.method.source_free
        self.remembered = self._remembered() if alone else None
        self.thresholds = DynamicThresholds(
            len(site.classes),
            settings.threshold_alpha,
            settings.threshold_gamma,
            settings.threshold_start,
            settings.threshold_min,
            settings.threshold_max,
            enabled=settings.dynamic and (self.remembered is not None or not alone),
            device=device,
        )
        self.limit = self._limit()
        self.count = LabelCount(len(site.classes), device)

    def _limit(self) -> LabelLimit | None:
        """``teacher.most_labels`` times the source's objects of each class, if they are known; else it is
        said that nothing is limited.
        """
        site, ratio = self.site, self.site.config.teacher.most_labels
        objects = [site.source_objects.get(name, 0.0) for name in site.classes]
        if not ratio:
            return None
        if not any(objects):
            site.say(
                "it is not known how many objects of each class the source's images have: "
                f"teacher.most_labels = {ratio:g} limits nothing"
            )
            return None
        return LabelLimit(ratio * torch.tensor(objects))

    @property
    def in_force(self) -> Tensor:
        """(C,) the thresholds, raised where there would be too many labels."""
        values = self.thresholds.values
        return values if self.limit is None else torch.maximum(values, self.limit.values().to(values))

    def _settle(self) -> None:
        """Let the limit take in the labels of the steps so far, of all processes."""
        if self.limit is not None:
            self.limit.settle(self.site.world.sum)

    def _remembered(self) -> tuple[Tensor, Tensor] | None:
        """The source's confidences that the weights have on record, and their labels; None without a record,
        which is said.
        """
        site = self.site
        known = site.source.get(CONFIDENCES, {})
        labels = [label for label, name in enumerate(site.classes) if name in known]
        if not labels:
            site.say(
                "the weights have no record of how sure they were of their source's objects (older mrt wrote "
                "none): every threshold stays at teacher.threshold_start = "
                f"{site.config.teacher.threshold_start:g}"
            )
            return None
        values = [float(known[site.classes[label]]) for label in labels]
        return torch.tensor(values).to(site.world.device), torch.tensor(labels).to(site.world.device)

    def start(self) -> None:
        """Write down what the untouched teacher would teach."""
        self._snapshot(0)

    def before_step(self, batches: Sequence[Mapping[str, Batch]], look: Look, moment: Moment) -> None:
        """The teacher looks at every target image; nobody waits for it yet."""
        settings, self.found = self.site.config.teacher, {}
        self.pending = []
        self._settle()
        values = self.in_force
        possible = None if self.limit is None else self.thresholds.values
        for batch in batches:
            output = look(batch[TARGET].images, batch[TARGET].mask)
            last = output.logits[-1], output.boxes[-1]
            self.pending.append(
                PendingLabels(*last, values, settings.nms_iou, settings.ignore_above, possible)
            )

    def label(
        self, number: int, batch: Mapping[str, Batch], labels: Mapping[str, Labels]
    ) -> Mapping[str, Labels]:
        """What the teacher is sure of; waited for when it is first asked for."""
        if number not in self.found:
            self.found[number] = self.pending[number].result()
            self.count.add(self.found[number])
            if self.limit is not None:
                self.limit.add(*self.pending[number].possible, images=len(self.found[number]))
        with_boxes, on_host = self.site.config.teacher.box_loss, self.pending[number].on_host
        return {**labels, TARGET: Labels(self.found[number], with_boxes, on_host=on_host)}

    def judged(self, judged: Mapping[str, Judged]) -> Mapping[str, float]:
        """Note how sure the student is of the source's objects, for the thresholds."""
        self.record(judged)
        if TARGET not in judged:
            return {}
        matches = judged[TARGET].matches
        return {"pseudo_labels": sum(matches.counts) / len(matches.counts)}

    def record(self, judged: Mapping[str, Judged]) -> None:
        """The confidences of the source's matched queries."""
        if SOURCE in judged:
            self.thresholds.record(*matched_confidences(judged[SOURCE].logits, judged[SOURCE].matches))

    def after_epoch(self, done: int, numbers: Mapping[str, float]) -> dict[str, Any]:
        """Move the thresholds; how many labels of each class an image got."""
        site = self.site
        self._move()
        self._settle()
        values = self.in_force.tolist()
        count = self.count.read(site.world.sum)
        return {
            **self._snapshot(done),
            "thresholds": dict(zip(site.classes, [round(value, 6) for value in values], strict=True)),
            "labels_per_image": dict(zip(site.classes, [round(value, 4) for value in count], strict=False)),
        }

    def _move(self) -> Tensor:
        """Move the thresholds: by what the source's images have shown or, where there are none, by what the
        weights have on record; classes without a record keep theirs.
        """
        if self.remembered is None:
            return self.thresholds.update(self.site.world.sum)
        before, (confidences, known) = self.thresholds.values, self.remembered
        self.thresholds.record(confidences, known)
        moved = self.thresholds.update(self.site.world.sum)
        self.thresholds.values = before.index_copy(0, known, moved[known])
        return self.thresholds.values

    def _snapshot(self, done: int) -> Mapping[str, float]:
        if self.site.snapshots is None:
            return {}
        nms_iou = self.site.config.teacher.nms_iou

        def find(output: DetectorOutput) -> list[dict[str, Tensor]]:
            return pseudo_labels(output.logits[-1], output.boxes[-1], self.in_force, nms_iou)

        return self.site.snapshots.take(done, self.header(), find)

    def measured(self, network: str, metrics: Metrics, dataset: DetectionDataset) -> dict[str, Any]:
        """How good the teacher's labels would be on validation images."""
        if network != "teacher":
            return {}
        guesses = as_pseudo_labels(
            metrics.detections, self.in_force.tolist(), self.site.config.teacher.nms_iou
        )
        return {"pseudo_labels": label_quality(guesses, dataset).to_dict()}

    def facts(self, done: int) -> dict[str, Any]:
        """The thresholds by class."""
        return {"thresholds": dict(zip(self.site.classes, self.in_force.tolist(), strict=True))}

    def header(self) -> dict[str, Any]:
        """The last thresholds: predicting begins with them."""
        values = self.in_force.tolist()
        return {
            "thresholds": dict(zip(self.site.classes, [round(value, 6) for value in values], strict=True))
        }

    def recall(self, header: Mapping[str, Any]) -> None:
        """The thresholds that a teacher had; those that are limited find themselves again."""
        if self.limit is not None:
            return
        told = header.get("thresholds", {})
        values = [
            told.get(name, value)
            for name, value in zip(self.site.classes, self.thresholds.values.tolist(), strict=True)
        ]
        self.thresholds.values = self.thresholds.values.new_tensor(values)

    def state_dict(self) -> dict[str, Any]:
        """Thresholds, and what was counted in the epoch so far by all processes together."""
        state = self.thresholds.state_dict()
        state["record"] = self.site.world.sum(state["record"])
        found = {"thresholds": state, "label_count": self.site.world.sum(self.count.counts.clone())}
        self._settle()
        if self.limit is not None:
            found["limit"] = self.limit.state_dict()
        return found

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The first process goes on with the sum over all, the others begin to count anew."""
        thresholds = state["thresholds"]
        if not self.site.world.main:
            thresholds = {**thresholds, "record": torch.zeros_like(thresholds["record"])}
        self.thresholds.load_state_dict(thresholds)
        if self.limit is not None and "limit" in state:
            self.limit.load_state_dict(state["limit"])
        if self.site.world.main and "label_count" in state:
            self.count.counts = state["label_count"].to(self.count.counts.device)
