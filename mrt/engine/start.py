"""Where a run's weights start: at a run, a weights file or a shipped name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mrt.config import Config
from mrt.engine.facts import is_run, read_facts, stored_settings
from mrt.errors import MrtError


def starting_point(config: Config, init: str | None, how: Mapping[str, Any]) -> str | None:
    """Where adaptation starts: at ``init``, else at ``config.init``.

    Args:
        how: of the run; with "resume" the run itself knows where it started.

    Raises:
        MrtError: neither names anything.
    """
    if how.get("resume"):
        return init
    if not (init or config.init):
        raise MrtError(
            "adaptation needs a detector that was trained on the source, and none was given",
            f"train one with: mrt pretrain-source --preset {config.preset}\n"
            "or name one with --init RUN_OR_WEIGHTS",
        )
    return absolute(init or config.init)


def stored(config: Config, folder: Path, how: Mapping[str, Any]) -> Config:
    """The configuration that counts: a run that goes on keeps its own."""
    if not how.get("resume") or not is_run(folder):
        return config
    return (how.get("changes") or {}).get("config") or stored_settings(folder)


def absolute(init: str | None) -> str | None:
    """A path that still means the same when the run is continued from another folder; names of shipped
    weights stay.
    """
    return str(Path(init).resolve()) if init and Path(init).exists() else init or None


def run_of(stage: str | None, start: str | None) -> dict[str, Any] | None:
    """What ``run.json`` says of ``start`` where it is a run of that stage of adaptation alone; else None."""
    if stage is None or start is None or not (Path(start) / "run.json").is_file():
        return None
    facts = read_facts(Path(start))
    return facts if (facts["command"], facts.get("stages")) == ("adapt", [stage]) else None


def source_of(start: str, stage: str | None) -> str:
    """The source-trained weights that a starting point comes from: itself, or what started the run of the
    ``stage`` before that it is.
    """
    return (run_of(stage, start) or {}).get("init") or start
