"""The detectors to choose among."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mrt.engine.facts import is_run
from mrt.engine.kept import kept_teachers
from mrt.engine.load import find_weights
from mrt.errors import MrtError
from mrt.models.weights import is_ours, read_metadata

MOST = 200  # candidates of one command


@dataclass(frozen=True)
class Candidate:
    """One detector.

    Attributes:
        name: as tables call it: "epoch 3", "last teacher"; with several runs the run's name before it.
        file: of the weights.
        run: the run's folder; None for other weights.
        epoch: epochs of ``stage`` that were over; None for a run's last weights.
        last: it is a run's last detector, or the only one of its kind.
        partner: weights of the run's student of the same moment.
    """

    name: str
    file: Path
    run: Path | None = None
    stage: str | None = None
    epoch: int | None = None
    last: bool = True
    partner: Path | None = None


def find_candidates(places: Sequence[str | Path], stages: Sequence[str] = ("teach",)) -> list[Candidate]:
    """The detectors of runs (their teachers that were kept, and the last one) and of weights files.

    Args:
        places: run folders, weights files, shipped names.
        stages: of which kept teachers count.

    Raises:
        MrtError: no detector there, or nothing to choose among.
    """
    found: list[Candidate] = []
    for place in places:
        path = Path(place)
        before = "" if len(places) == 1 else f"{path.name or path} "
        if not (path.is_dir() and is_run(path)):
            found.append(Candidate(before.strip() or str(place), find_weights(place)))
            continue
        last = find_weights(path)
        network = "teacher" if last.name.startswith("teacher") else "student"
        student = path / "student.safetensors"
        partner = student if network == "teacher" and student.is_file() else None
        for (stage, epoch), file in kept_teachers(path).items():
            if stage in stages and not _is_of_the_end(file, stage, epoch):
                found.append(Candidate(f"{before}epoch {epoch}", file, path, stage, epoch, last=False))
        found.append(Candidate(f"{before}last {network}", last, path, partner=partner))
    names = [candidate.name for candidate in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise MrtError(f"{twice}: named twice", "name each run and weights file once")
    if len(found) == 1:
        raise MrtError(
            f"{places[0]}: holds one detector, so there is nothing to choose among",
            "name several runs or weights files, or keep teachers while training: "
            "mrt adapt ... --set engine.keep_teachers=20",
        )
    if len(found) > MOST:
        raise MrtError(f"{len(found)} detectors, more than {MOST}", "name fewer runs")
    return found


def _is_of_the_end(file: Path, stage: str, epoch: int) -> bool:
    """Whether a kept teacher is that of the stage's last epoch, which the run's last weights are, too."""
    config = read_metadata(file).get("config", {}) if is_ours(file) else {}
    return config.get(stage, {}).get("epochs") == epoch
