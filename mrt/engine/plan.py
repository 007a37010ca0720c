"""What a stage is, before there is any data or network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from mrt import plugins
from mrt.config import Config, StageConfig
from mrt.domains import SOURCE
from mrt.engine.learner import needs_of
from mrt.errors import MrtError
from mrt.parts.base import Needs, Part

KIND_OF = {"pretrain": "source"}  # stages whose settings know them by another name (mrt.section.KINDS)


@dataclass(frozen=True)
class Average:
    """An EMA teacher is kept (``teacher.ema``).

    Attributes:
        ahead: updates by which its warm-up is ahead: one that starts from a trained detector must not forget
            it quickly.
    """

    ahead: int = 0


@dataclass(frozen=True)
class Plan:
    """One stage of a run.

    Attributes:
        name: in logs and checkpoints. number: 0, 1 or 2; where its random numbers come from.
        settings: its length, rate and augmentation.
        parts: of the method, in their order. Those that the settings switch off fall away, those of plug-ins
            join (:meth:`active`).
        labels: whose labels supervise it: "source", "target" or "source+target"; "" where none do, and no
            labelled images are needed.
        teacher: the average that is kept, if one is.
        images: sizes and crops: "varied" (``data.source_sides``), or "whole" (``data.sides``).
        pass_over: what an epoch is one pass over: the "labelled" images, or the "smaller" of both domains,
            whether or not both are used: so baselines, oracles and ablations take the steps that adaptation
            takes.
        follows: the stage before, where this one may also be a run of its own and then takes over where a run
            of that stage alone ended.
        leads: whether a run of this stage alone can be taken over so.
        plugs: whether parts of plug-ins join.
    """

    name: str
    number: int
    settings: StageConfig
    parts: Sequence[Part]
    labels: str = SOURCE
    teacher: Average | None = None
    images: Literal["varied", "whole"] = "whole"
    pass_over: Literal["labelled", "smaller"] = "smaller"
    follows: str | None = None
    leads: bool = False
    plugs: bool = True

    def active(self, config: Config) -> Plan:
        """The plan with the parts that the settings want.

        Raises:
            MrtError: two of them have one name.
        """
        more = [
            part()
            for name in config.method.plugins
            for part in plugins.load(name).parts
            if self.plugs and self.name in part.stages
        ]
        parts = [part for part in [*self.parts, *more] if part.is_on(config)]
        for part in more:
            if any(part.name == other.name for other in parts if other is not part):
                raise MrtError(
                    f"method.plugins: two parts of a stage are called {part.name!r}", "give one another name"
                )
        return replace(self, parts=parts)

    def needs(self, config: Config) -> Needs:
        """What its parts ask for together."""
        return needs_of(self.parts, config)

    def reads(self, config: Config, data_root: Path) -> dict[str, str]:
        """What it reads beside the data sets: digests by setting; MrtError for what is not there."""
        sections = config.sections().values()
        return {
            key: digest
            for section in sections
            for key, digest in section.reads(self.kind, config, data_root).items()
        }

    @property
    def kind(self) -> str:
        """What settings call it: one of :data:`mrt.section.KINDS`."""
        return "fair" if not self.plugs else KIND_OF.get(self.name, self.name)

    @property
    def labelled(self) -> list[str]:
        """The domains whose labels it learns from."""
        return self.labels.split("+") if self.labels else []
