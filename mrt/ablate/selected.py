"""Beside a trial's last teacher: the one that a signal takes among those that were kept (``--select-by``).

The choice is made as ``mrt select --by`` makes it, on images of the target that the run adapted to, without
their labels; only then is the chosen teacher measured. What choosing by that signal gains or costs stands in
the table, seed by seed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mrt.engine.report import Watcher
from mrt.errors import MrtError

KEEP = 1000  # teachers of a stage: all of them


def require_signal(name: str) -> None:
    """MrtError unless a signal of this name judges detectors one by one."""
    from mrt.evaluate.unlabelled import SIGNALS

    judges = [key for key, signal in SIGNALS.items() if signal.judges and "partner" not in signal.needs]
    if name not in judges:
        raise MrtError(f"--select-by {name}: no such signal", f"choose one of {', '.join(judges)}")


def require_teachers(folder: Path) -> None:
    """MrtError if a run that has ended kept fewer than two teachers of its teaching."""
    from mrt.engine.kept import kept_teachers

    if sum(stage == "teach" for stage, _ in kept_teachers(folder)) < 2:
        raise MrtError(
            f"{folder}: was trained without keeping a teacher of each epoch, so there is nothing to select",
            f"delete {folder} and repeat the command, which trains it again and keeps them; or leave out "
            "--select-by",
        )


def select(folder: Path, by: str, limit: int, device: str, data_root: Path, watcher: Watcher) -> dict:
    """What a signal takes among a run's teachers.

    Args:
        folder: of a run that is trained. by: the signal. limit: images that are looked at.

    Returns:
        ``by``; ``file`` of the chosen weights; ``epoch`` (None: the last); ``difference`` of the signal to
        that of the last teacher, and whether it is ``beyond_noise``; ``images``: from where, and how many.
    """
    from mrt import selection
    from mrt.api import choose_device

    require_teachers(folder)
    candidates = selection.find_candidates([folder])
    images = selection.images_for(candidates[-1], limit=limit, data_root=data_root)
    measured = [
        selection.measure(
            one,
            images,
            data_root=data_root,
            signals=[by],
            limit=limit,
            device=choose_device(device),
            watcher=watcher,
        )
        for one in candidates
    ]
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
    }
