"""A plug-in: at most so many pseudo labels of a class as the source has objects of it, times a ratio.

    mrt adapt ... --set method.plugins=[docs/results/blood/ceiling.py] ceiling.ratio=1.5

The best-scored labels of a batch stay. Counting begins with the stage.
"""

import dataclasses
from typing import ClassVar

import torch
from pydantic import Field

from mrt.parts.base import Part
from mrt.section import Section

OF_LABELS = ("boxes", "labels", "scores", "confidences", "weights", "probabilities")


class CeilingConfig(Section):
    """``[ceiling]``."""

    reaches: ClassVar[tuple[str, ...]] = ("teach",)
    ratio: float = Field(0.0, ge=0, description="labels of a class an image, in source objects; 0: no limit")


class Ceiling(Part):
    """Drops the worst labels of classes that have too many."""

    name = "ceiling"
    settings = CeilingConfig
    stages = ("teach",)

    def is_on(self, config) -> bool:
        return config.ceiling.ratio > 0

    def begin(self, site) -> None:
        self.site = site
        self.objects = torch.zeros(len(site.classes), dtype=torch.float64)  # of the source so far, by class
        self.images = 0

    def label(self, number, batch, labels):
        if "source" in labels:
            for image in labels["source"].targets:
                count = torch.bincount(image["labels"].cpu(), minlength=len(self.objects))
                self.objects += count[: len(self.objects)]
                self.images += 1
        if "target" not in labels or not self.images:
            return labels
        targets = labels["target"].targets
        most = (self.site.config.ceiling.ratio * self.objects / self.images * len(targets)).ceil().long()
        classes = torch.cat([image["labels"] for image in targets])
        scores = torch.cat([image["scores"] for image in targets])
        kept = torch.zeros_like(classes, dtype=torch.bool)
        for label in classes.unique().tolist():
            mine = (classes == label).nonzero().flatten()
            best = scores[mine].argsort(descending=True, stable=True)
            kept[mine[best[: most[label]]]] = True
        few = [
            {name: value[keep] if name in OF_LABELS else value for name, value in image.items()}
            for image, keep in zip(
                targets, kept.split([len(image["labels"]) for image in targets]), strict=True
            )
        ]
        return {**labels, "target": dataclasses.replace(labels["target"], targets=few, on_host=None)}

    def state_dict(self):
        return {"objects": self.objects, "images": self.images}

    def load_state_dict(self, state) -> None:
        self.objects, self.images = state["objects"], state["images"]
