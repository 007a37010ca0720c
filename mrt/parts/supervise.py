"""Supervision: the detection loss on labelled images (L_sup; paper, section 3.1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from mrt.data.loader import Batch
from mrt.domains import SOURCE
from mrt.parts.base import Labels, Needs, Part

if TYPE_CHECKING:
    from mrt.config import Config


class Supervise(Part):
    """The labelled images' own boxes are what the detector has to find in them."""

    name = "supervise"

    def needs(self, config: Config) -> Needs:
        """The labelled images, through the whole detector."""
        return Needs(detect=frozenset({SOURCE}))

    def label(
        self, number: int, batch: Mapping[str, Batch], labels: Mapping[str, Labels]
    ) -> Mapping[str, Labels]:
        """Those that came with the images."""
        return {**labels, SOURCE: Labels(batch[SOURCE].targets)}
