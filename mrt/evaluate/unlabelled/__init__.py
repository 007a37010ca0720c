"""Signals of how good a detector is on images without labels; one file for each kind.

    looks       the forward passes that everything is computed from
    estimate    what a signal is: a row per image and a function of their mean, so that it has an interval
    pairs       which objects of two looks are the same
    confidence  mean confidence, entropy, expected objects
    atc         average thresholded confidence: estimated precision
    stability   boxes and classes under small changes of weights; agreement with another view, with a partner
    prototypes  distances of classes over distance of domains
    drift       objects per image and their classes against the source's

How well each of them tells better detectors from worse ones is measured in docs/results/selection.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mrt.evaluate.unlabelled import atc, confidence, drift, prototypes, stability
from mrt.evaluate.unlabelled.estimate import Estimate, interval, ratio
from mrt.evaluate.unlabelled.looks import Look, Looks, Truth, look, shaken
from mrt.signals import JUDGES


@dataclass(frozen=True)
class Signal:
    """A signal as commands and tables know it.

    Attributes:
        name: on the command line. words: in a table's note.
        function: from :class:`Looks` to an estimate.
        needs: fields of :class:`Looks` that must be there.
        high: whether a larger value speaks for the detector.
    """

    name: str
    words: str
    function: Callable[[Looks], Estimate]
    needs: tuple[str, ...] = ()
    high: bool = True

    @property
    def judges(self) -> bool:
        """Whether it ranks detectors; others are shown beside."""
        return self.name in JUDGES

    def of(self, looks: Looks) -> Estimate | None:
        """Its estimate; None where something that it needs was not looked at."""
        return None if any(getattr(looks, name) is None for name in self.needs) else self.function(looks)


_SOURCE = ("source", "truth")
SIGNALS = {
    signal.name: signal
    for signal in (
        Signal("confidence", "mean score of what is found", confidence.confidence),
        Signal("entropy", "mean entropy of the scores", confidence.entropy, high=False),
        Signal("found", "expected objects per image", confidence.found),
        Signal("atc", "estimated precision (average thresholded confidence)", atc.atc, _SOURCE),
        Signal("boxes", "overlap of boxes when weights change a little", stability.boxes, ("shaken",)),
        Signal("flatness", "the same for boxes and classes", stability.flatness, ("shaken",)),
        Signal("views", "agreement with another view of the images", stability.views, ("view",)),
        Signal("partner", "agreement of teacher and student", stability.partner, ("partner",)),
        Signal(
            "prototypes", "distance of classes over distance of domains", prototypes.prototypes, ("source",)
        ),
        Signal(
            "count-drift",
            "|log2| of objects per image over the source's",
            drift.count_drift,
            ("boxes_per_image",),
            high=False,
        ),
        Signal(
            "class-drift",
            "distance of class shares from the source's",
            drift.class_drift,
            ("boxes_per_image",),
            high=False,
        ),
    )
}

__all__ = [
    "SIGNALS",
    "Estimate",
    "Look",
    "Looks",
    "Signal",
    "Truth",
    "interval",
    "look",
    "ratio",
    "shaken",
]
