"""Soft distillation (Kay et al., ALDI++) as somebody outside mrt would write it, from docs/extending.md."""

from typing import ClassVar

import torch

from mrt.parts.base import Labels, Needs, Part
from mrt.section import Section


class SoftConfig(Section):
    """``[soft]``."""

    reaches: ClassVar[tuple[str, ...]] = ("teach",)
    top: int = 100


class Soft(Part):
    """The student has to find what the teacher found, as sure as the teacher is."""

    name = "soft"
    settings = SoftConfig
    stages = ("teach",)

    def needs(self, config) -> Needs:
        return Needs(detect=frozenset({"target"}), target=True, strong=True)

    def before_step(self, batches, look, moment) -> None:
        self.outputs = [look(batch["target"].images, batch["target"].mask) for batch in batches]

    def label(self, number, batch, labels):
        output, targets = self.outputs[number], []
        for logits, boxes in zip(output.logits[-1], output.boxes[-1], strict=True):
            scores = logits.sigmoid()
            best = scores.amax(-1).topk(min(self.site.config.soft.top, len(scores)))
            scores = scores[best.indices]
            targets.append(
                {
                    "boxes": boxes[best.indices],
                    "labels": scores.argmax(-1),
                    "probabilities": scores,
                    "weights": best.values,
                }
            )
        sure = torch.stack([target["weights"] for target in targets]).sum().item()
        return {**labels, "target": Labels(targets, num_boxes=sure)}
