"""Beside a trial's last teacher: the one that a signal takes among those that were kept (``--select-by``).

The choice is made as ``mrt select --by`` makes it, on images of the target that the run adapted to, without
their labels; only then is the chosen teacher measured. What choosing by that signal gains or costs stands in
the table, seed by seed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mrt.config import Config
from mrt.engine.report import Watcher
from mrt.errors import MrtError

KEEP = 1000  # teachers of a stage: all of them


def require_epochs(config: Config) -> None:
    """MrtError if a trial's teaching has too few epochs, or too many, to choose among."""
    from mrt.selection.candidates import MOST

    if not 2 <= config.teach.epochs <= MOST:
        raise MrtError(
            f"--select-by: teach.epochs={config.teach.epochs}, and a teacher of each epoch is looked at",
            f"take 2 to {MOST} epochs, or leave out --select-by",
        )


def require_teachers(folder: Path) -> None:
    """MrtError if a run, trained or begun, has not kept the teacher of each epoch of its teaching."""
    from mrt.engine.facts import read_facts, stored_settings
    from mrt.engine.kept import kept_teachers
    from mrt.engine.report import LOG, read_log

    lines = read_log(folder / LOG, lambda _: None)
    over = {line["epoch"] for line in lines if line["kind"] == "epoch" and line["stage"] == "teach"}
    there = {epoch for stage, epoch in kept_teachers(folder) if stage == "teach"}
    config = stored_settings(folder)
    goes_on = "teach" not in read_facts(folder)["finished"]
    few = goes_on and config.engine.keep_teachers < config.teach.epochs
    if over - there or few:
        raise MrtError(
            f"{folder}: was trained without keeping the teacher of each epoch, so there is no choice",
            f"delete {folder} and repeat the command, which trains it again and keeps them; or leave out "
            "--select-by",
        )


def select(folder: Path, by: str, device: str, data_root: Path, watcher: Watcher) -> dict[str, Any]:
    """What a signal takes among a run's teachers, on as many images as ``mrt select`` looks at.

    Args:
        folder: of a run that is trained. by: the signal.

    Returns:
        ``by``; ``file`` of the chosen weights; ``epoch`` (None: the last); ``difference`` of the signal to
        that of the last teacher, and whether it is ``beyond_noise``; ``images``: from where, and how many;
        ``among``: how many teachers.

    Raises:
        MrtError: the signal cannot be computed of this run, or its teachers were not kept.
    """
    from mrt import selection
    from mrt.api import choose_device

    require_teachers(folder)
    candidates = selection.find_candidates([folder])
    images = selection.images_for(candidates[-1], data_root=data_root)
    measured = selection.measure_all(
        candidates,
        images,
        data_root=data_root,
        signals=[by],
        device=choose_device(device),
        watcher=watcher,
    )
    if not any(by in one.estimates for one in measured):
        raise MrtError(
            f"--select-by {by}: cannot be computed for {folder}",
            "choose another signal: this one needs the source's labelled images (docs/trust.md)",
        )
    ranking = selection.rank(measured)
    taken = selection.choose(ranking, by)
    chosen = next(one for one in candidates if one.name == taken)
    pick: Mapping[str, Any] = ranking["picks"].get(by, {})
    return {
        "by": by,
        "file": str(chosen.file),
        "epoch": chosen.epoch,
        "difference": pick.get("difference"),
        "beyond_noise": pick.get("beyond_noise", False),
        "images": {"from": images.origin, "number": len(images)},
        "among": len(candidates),
    }
