"""What every section of the settings is: checked, frozen, and able to say which stages its settings reach.
Needs no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    from mrt.config import Config

Fraction = Annotated[float, Field(ge=0, le=1)]
OpenFraction = Annotated[float, Field(gt=0, lt=1)]

# Kinds of stage, as far as settings are concerned; "fair" stands for the baselines: fair source-only and
# oracles.
KINDS = ("source", "mae", "teach", "fair")
ADAPTING = ("mae", "teach", "fair")


def without_defaults(section: Section, values: dict[str, Any], *keys: str) -> dict[str, Any]:
    """``values`` without those of ``keys`` that are the section's defaults: so a new setting leaves what was
    trained before as it is.
    """
    return {
        key: value
        for key, value in values.items()
        if key not in keys or getattr(section, key) != type(section).model_fields[key].default
    }


class Section(BaseModel):
    """A section of the settings: ``[name]`` in a preset, ``--set name.key=value`` on the command line.

    Attributes:
        reaches: kinds of stage (:data:`KINDS`) whose result the section's settings can change.
        reaches_of: the same for single settings that reach other stages than their section.
        optional: settings for which the word "none" means that there is no value.
        words: names of losses in the log -> what the progress view calls them; "" for those it leaves out.
        panels: for the report: title of a panel of losses -> names in the log -> labels of the curves. A name
            without its domain stands for the mean of both domains.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    reaches: ClassVar[tuple[str, ...]] = KINDS
    reaches_of: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    optional: ClassVar[tuple[str, ...]] = ()
    words: ClassVar[Mapping[str, str]] = {}
    panels: ClassVar[Mapping[str, Mapping[str, str]]] = {}

    @classmethod
    def reach(cls, key: str) -> tuple[str, ...]:
        """The kinds of stage whose result a setting can change."""
        return cls.reaches_of.get(key, cls.reaches)

    def acting(self, kind: str, config: Config) -> dict[str, Any]:
        """The settings that can change the result of a kind of stage, as plain values.

        Sections override this to leave out settings that others switch off, so that an ablation trains equal
        stages once.
        """
        return {key: value for key, value in self.model_dump(mode="json").items() if kind in self.reach(key)}

    def reads(self, kind: str, config: Config, data_root: Path) -> dict[str, str]:
        """What a kind of stage reads beside the data sets, by setting: a digest of its content.

        It counts in the digests of an ablation, and a run that goes on has to find it as it was.

        Raises:
            MrtError: it is not there.
        """
        return {}

    def idle(self) -> tuple[str, ...]:
        """Settings that others of the section keep from having any effect."""
        return ()

    def warning(self, kind: str, config: Config) -> str | None:
        """What is on in a kind of stage and yet can do nothing there, in words; None if all can."""
        return None

    def problem(self, config: Config) -> str | None:
        """What is wrong with the section beside the others, in words; None if nothing is."""
        return None
