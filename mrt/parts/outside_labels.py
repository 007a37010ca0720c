"""Labels from outside: what another labeller says of the target's images (``teacher.labels``), alone or fused
with what the teacher finds.

A frozen foundation model that was never adapted labels some targets better than an adapted teacher (DINO
Teacher, Lavoie et al., CVPR 2025); fused with the teacher's they are better still (VFM-SFOD). docs/labels.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mrt.adapt.fusion import OUTCOMES, fuse
from mrt.data.card import DatasetCard
from mrt.data.dataset import DetectionDataset
from mrt.data.loader import Batch
from mrt.data.outside import read_labels
from mrt.domains import TARGET
from mrt.host import HostCopy, to_device, wide
from mrt.losses import Judged
from mrt.parts.base import Labels, Look, Moment, Needs, Part, Site
from mrt.parts.settings import decayed

if TYPE_CHECKING:
    from mrt.config import Config

KEYS = ("boxes", "labels", "scores", "ignore_boxes", "ignore_labels")


class OutsideLabels(Part):
    """The target's images come with labels of somebody else's.

    Attributes:
        weight: of the labels at this step, beside the teacher's 1.
        counts: (5,) of this epoch: how often each of :data:`mrt.adapt.fusion.OUTCOMES` came out, and images.
    """

    name = "outside_labels"

    def is_on(self, config: Config) -> bool:
        """``teacher.labels``."""
        return config.teacher.labels is not None

    def needs(self, config: Config) -> Needs:
        """Target images as pseudo labels need them."""
        return Needs(detect=frozenset({TARGET}), target=True, strong=True)

    def check(
        self, config: Config, cards: Mapping[str, DatasetCard], classes: Sequence[str], data_root: Path
    ) -> None:
        """Read the labels."""
        settings, data = config.teacher, config.data
        self.fused = settings.pseudo_labels
        self.given = read_labels(
            settings.labels,
            cards[TARGET],
            data.target_split,
            classes,
            data.class_map,
            data_root=data_root,
            lowest=settings.labels_score,
        )

    def annotate(self, domain: str, dataset: DetectionDataset) -> DetectionDataset:
        """The target's images with these labels. Alone, they are all there is to learn from an image."""
        return dataset.with_labels(self.given, keep_uncovered=self.fused) if domain == TARGET else dataset

    def begin(self, site: Site) -> None:
        """Say what there is, and what is left out."""
        for note in self.given.notes:
            site.say(note)
        images, boxes = len(self.given.images), self.given.boxes()
        how = "fused with the teacher's" if self.fused else "instead of the teacher's"
        site.say(
            f"labels from outside, {how}: {boxes} on {images} target images ({site.config.teacher.labels})"
        )
        self._forget()

    def _forget(self) -> None:
        self.counts = torch.zeros(
            len(OUTCOMES) + 1, dtype=torch.float64
        )  # on the host, where they are counted

    def _summed(self) -> Tensor:
        """The counts of all processes together."""
        device = self.site.world.device
        return self.site.world.sum(self.counts.to(device, wide(device), copy=True))

    def before_step(self, batches: Sequence[Mapping[str, Batch]], look: Look | None, moment: Moment) -> None:
        """The weight decays by epoch. The labels' way to the host begins before anything is computed."""
        settings = self.site.config.teacher
        self.outside = [_Copied(batch[TARGET].targets) for batch in batches] if self.fused else []
        self.weight = decayed(
            settings.labels_weight, settings.labels_decay, settings.labels_decay_epoch, moment.epoch
        )

    def label(
        self, number: int, batch: Mapping[str, Batch], labels: Mapping[str, Labels]
    ) -> Mapping[str, Labels]:
        """The labels that came with the images, fused with those of the parts before."""
        settings, images = self.site.config.teacher, batch[TARGET].targets
        if TARGET not in labels:
            targets = [{key: image[key] for key in KEYS} for image in images]
            return {**labels, TARGET: Labels(targets, settings.box_loss)}
        if not self.weight:
            return labels
        before, outside = labels[TARGET], self.outside[number].result()
        teacher = before.on_host if before.on_host is not None else _Copied(before.targets).result()
        fused, counted = [], Counter(images=0)
        for mine, theirs, image in zip(teacher, outside, images, strict=True):
            if not image["covered"]:  # nobody but the teacher has looked at it
                fused.append(_alone(mine))
                continue
            target, count = fuse(
                mine,
                theirs,
                iou=settings.labels_iou,
                weight=self.weight,
                alone=settings.labels_alone,
            )
            counted += count + Counter(images=1)
            fused.append(target)
        self.counts += torch.tensor([counted[name] for name in (*OUTCOMES, "images")])
        return {
            **labels,
            TARGET: Labels(_on_device(fused, batch[TARGET].images.device), labels[TARGET].with_boxes),
        }

    def judged(self, judged: Mapping[str, Judged]) -> Mapping[str, float]:
        """Labels per image, which the teacher's part counts where it is on."""
        if self.fused or TARGET not in judged:
            return {}
        counts = judged[TARGET].matches.counts
        return {"pseudo_labels": sum(counts) / len(counts)}

    def after_epoch(self, done: int, numbers: Mapping[str, float]) -> dict[str, Any]:
        """How often the two agreed, per image; nothing where the labels are alone."""
        *counts, images = self._summed().tolist()
        self._forget()
        if not images:
            return {}
        shares = {name: round(count / images, 4) for name, count in zip(OUTCOMES, counts, strict=True)}
        return {"outside_labels": shares}

    def facts(self, done: int) -> dict[str, Any]:
        """The weight of the labels in the epoch to come, where it changes."""
        settings = self.site.config.teacher
        if not self.fused or settings.labels_decay == "none":
            return {}
        weight = decayed(settings.labels_weight, settings.labels_decay, settings.labels_decay_epoch, done)
        return {"labels from outside": {"weight": weight}}

    def state_dict(self) -> dict[str, Any]:
        """What was counted in the epoch so far by all processes together."""
        return {"counts": self._summed()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The first process goes on with the sum over all, the others begin to count anew."""
        self._forget()
        if self.site.world.main:
            self.counts = state["counts"].to(self.counts)


class _Copied:
    """Targets that are on their way to the host; each kind of tensor is copied at once."""

    def __init__(self, targets: Sequence[Mapping[str, Tensor]]) -> None:
        self.sizes = {key: [len(target[key]) for target in targets if key in target] for key in KEYS}
        self.there = [[key for key in KEYS if key in target] for target in targets]
        self.copies = {
            key: HostCopy(torch.cat([target[key] for target in targets if key in target]))
            for key, sizes in self.sizes.items()
            if sizes
        }

    def result(self) -> list[dict[str, Tensor]]:
        """The targets."""
        rows = {key: iter(copy.result().split(self.sizes[key])) for key, copy in self.copies.items()}
        return [{key: next(rows[key]) for key in keys} for keys in self.there]


def _on_device(targets: Sequence[dict[str, Tensor]], device: torch.device) -> list[dict[str, Tensor]]:
    """Targets with the same keys, on a device; each kind of tensor is copied at once."""
    moved: list[dict[str, Tensor]] = [{} for _ in targets]
    for key in targets[0]:
        rows = to_device(torch.cat([target[key] for target in targets]), device)
        for target, part in zip(moved, rows.split([len(target[key]) for target in targets]), strict=True):
            target[key] = part
    return moved


def _alone(target: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A teacher's target with every key of a fused one."""
    none = target["boxes"][:0]
    return {
        "boxes": target["boxes"],
        "labels": target["labels"],
        "scores": target["scores"],
        "confidences": torch.ones_like(target["scores"]),
        "ignore_boxes": target.get("ignore_boxes", none),
        "ignore_labels": target.get("ignore_labels", target["labels"][:0]),
    }
