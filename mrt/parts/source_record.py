"""What only labelled images can tell, kept for whoever adapts the detector without them (source-free).

It goes into the header of the weights: how sure the detector was of its objects, and how many there were.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mrt.domains import SOURCE
from mrt.host import wide
from mrt.losses import Judged, matched_confidences
from mrt.parts.base import Part, Site

HEADER = "source"  # its entry in the metadata of weights
CONFIDENCES, BOXES = "confidences", "boxes_per_image"


class SourceRecord(Part):
    """Counts in every epoch what the detector finds in the labelled images; the last whole epoch counts.

    Attributes:
        counts: (3, C + 1) of this epoch: the sum of the matched queries' confidences by predicted class,
            their number, and the labelled boxes by class; the last column holds the labelled images.
        last: the same of the last whole epoch.
    """

    name = "source_record"

    def begin(self, site: Site) -> None:
        """Nothing is counted yet."""
        self._forget()
        self.last: Tensor | None = None

    def _forget(self) -> None:
        self.counts = torch.zeros(
            (3, len(self.site.classes) + 1),
            dtype=wide(self.site.world.device),
            device=self.site.world.device,
        )

    @torch.no_grad()
    def judged(self, judged: Mapping[str, Judged]) -> Mapping[str, float]:
        """Count a micro-batch of the labelled images. Nothing is waited for."""
        if SOURCE not in judged:
            return {}
        matches = judged[SOURCE].matches
        scores, labels = matched_confidences(judged[SOURCE].logits, matches)
        scores = scores.to(self.counts)
        finite = scores.isfinite()  # those of a step that is left out are not
        self.counts[0].index_add_(0, labels, torch.where(finite, scores, 0.0))
        self.counts[1].index_add_(0, labels, finite.to(self.counts))
        ones = self.counts.new_ones(()).expand(len(matches.labels))
        self.counts[2].index_add_(0, matches.labels, ones)
        self.counts[:, -1] += len(matches.counts)
        return {}

    def after_epoch(self, done: int, numbers: Mapping[str, float]) -> dict[str, Any]:
        """Keep the epoch's counts of all processes."""
        self.last = self.site.world.sum(self.counts)
        self._forget()
        return {}

    def header(self) -> dict[str, Any]:
        """``{"source": {"confidences": ..., "boxes_per_image": ...}}`` by class; nothing without an epoch.

        A class that no query was matched as has no confidence there. Where there were no labelled images,
        what the starting weights had on record.
        """
        if self.last is None or not self.last[0, -1]:
            return {HEADER: dict(self.site.source)} if self.site.source else {}
        (sums, matched, boxes), images = self.last[:, :-1].tolist(), self.last[0, -1].item()
        classes = self.site.classes
        return {
            HEADER: {
                CONFIDENCES: {
                    name: round(total / count, 6)
                    for name, total, count in zip(classes, sums, matched, strict=True)
                    if count
                },
                BOXES: {name: round(count / images, 6) for name, count in zip(classes, boxes, strict=True)},
            }
        }

    def state_dict(self) -> dict[str, Any]:
        """This epoch's counts of all processes together, and the last epoch's."""
        return {"counts": self.site.world.sum(self.counts.clone()), "last": self.last}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The first process goes on with the sum over all, the others begin to count anew."""
        if self.site.world.main:
            self.counts = state["counts"].to(self.counts)
        else:
            self._forget()
        self.last = None if state["last"] is None else state["last"].to(self.counts)
