"""Selective retraining (paper, section 3.4): now and then parts of the student go back to the weights with
which teaching began.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from mrt.adapt.retrain import kept_words, restore
from mrt.models.interface import Detector
from mrt.parts.base import Moment, Needs, Part, Site

if TYPE_CHECKING:
    from mrt.config import Config


class Retrain(Part):
    """Every ``retrain.every`` epochs, but never after the last.

    Attributes:
        weights: what the named weights and buffers go back to; empty where nothing ever does.
    """

    name = "retrain"

    def is_on(self, config: Config) -> bool:
        """``retrain.every``."""
        return bool(config.retrain.every)

    def needs(self, config: Config) -> Needs:
        """The weights it goes back to, unless they are those that teaching begins with."""
        other = config.retrain.source != "mae"
        return Needs(kept=frozenset({config.retrain.source}) if other else frozenset())

    def begin(self, site: Site) -> None:
        """Take the weights that teaching begins with, the source's, or random ones (paper, table 6)."""
        self.weights: dict[str, Tensor] = {}
        if site.target:
            state = site.detector.state_dict()
            other = site.kept.get(site.config.retrain.source, state)
            names = going_back(site.detector, site.config.retrain.parts)
            self.weights = {name: other[name].detach().to(state[name].device, copy=True) for name in names}

    def holds_teacher(self, moment: Moment) -> bool:
        """In the first ``retrain.hold`` epochs after a return."""
        settings = self.site.config.retrain
        return (
            bool(self.weights)
            and settings.every <= moment.epoch
            and moment.epoch % settings.every < settings.hold
        )

    def after_epoch(self, done: int, numbers: Mapping[str, float]) -> dict[str, Any]:
        """Put the weights back where it is time; the optimiser keeps its moments."""
        settings = self.site.config.retrain
        if not self.weights or done % settings.every or done >= self.site.stage.epochs:
            return {}
        restore(self.site.detector, self.weights)
        self.site.say(f"epoch {done}: selective retraining put {settings.parts} back to where teaching began")
        return {"retrained": len(self.weights)}

    def facts(self, done: int) -> dict[str, Any]:
        """What was put back last, and when it is due again."""
        settings, last = self.site.config.retrain, self.site.stage.epochs
        if not self.weights:
            return {}
        before = min(done, last - 1) // settings.every * settings.every
        due = (done // settings.every + 1) * settings.every
        told = [f"{settings.parts} after epoch {before}"] if before else []
        told += [f"next after epoch {due}"] if due < last else []
        return {"retraining": told} if told else {}

    def state_dict(self) -> dict[str, Any]:
        """The weights it goes back to."""
        return {"weights": self.weights}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave."""
        device = next(self.site.detector.parameters()).device
        self.weights = {key: value.to(device) for key, value in state["weights"].items()}


def going_back(detector: Detector, parts: str) -> list[str]:
    """Names in a detector's state dict that go back when ``parts`` are retrained: all but those of the parts
    that are kept.

    Args:
        parts: see :func:`mrt.adapt.retrain.kept_words`.
    """
    keep = kept_words(parts)
    if keep is None:
        return []
    kept = {name for part, names in detector.parts().items() if part in keep for name in names}
    return [name for name in detector.state_dict() if name not in kept]
