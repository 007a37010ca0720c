"""Soft distillation: all that the teacher believes of a target image is what the student has to believe, with
no threshold (ALDI++, Kay et al., Align and Distill, 2024, section 4: soft targets instead of pseudo labels).

ALDI++ distils Faster R-CNN: on the same proposals and regions of teacher and student. A DETR has queries
instead, which are no fixed places: the teacher's best queries are matched with the student's as objects are,
by class and box, weighted by how sure the teacher is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from mrt.data.loader import Batch
from mrt.domains import TARGET
from mrt.host import HostCopy
from mrt.parts.base import Labels, Look, Moment, Needs, Part

if TYPE_CHECKING:
    from mrt.config import Config


class Distill(Part):
    """The teacher's scores and boxes are soft labels of target images."""

    name = "distill"

    def is_on(self, config: Config) -> bool:
        """``distill.enabled``."""
        return config.distill.enabled

    def needs(self, config: Config) -> Needs:
        """Target images in two views, the strong one through the whole student."""
        return Needs(detect=frozenset({TARGET}), target=True, strong=True)

    @torch.no_grad()
    def before_step(self, batches: Sequence[Mapping[str, Batch]], look: Look, moment: Moment) -> None:
        """The teacher looks at every target image; nobody waits for it yet."""
        settings = self.site.config.distill
        self.soft = []
        for batch in batches:
            output = look(batch[TARGET].images, batch[TARGET].mask)
            logits, boxes = output.logits[-1].float(), output.boxes[-1].float()
            probabilities = (logits / settings.temperature).sigmoid()
            sure = probabilities.amax(-1)
            best = sure.topk(min(settings.top, sure.shape[1]), dim=1)
            rows = best.indices[..., None]
            probabilities = probabilities.take_along_dim(rows, 1)
            targets = [
                {
                    "boxes": box,
                    "labels": row.argmax(-1),
                    "scores": weight,
                    "probabilities": row,
                    "weights": weight,
                }
                for box, row, weight in zip(
                    boxes.take_along_dim(rows, 1), probabilities, best.values, strict=True
                )
            ]
            self.soft.append((targets, HostCopy(best.values.sum())))

    def label(
        self, number: int, batch: Mapping[str, Batch], labels: Mapping[str, Labels]
    ) -> Mapping[str, Labels]:
        """The teacher's best queries. They count as many objects as their probabilities add up to."""
        targets, count = self.soft[number]
        return {**labels, TARGET: Labels(targets, self.site.config.distill.boxes, count.result().item())}
