"""The detectors to choose among."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mrt.engine.facts import is_run, read_facts
from mrt.engine.kept import kept_teachers
from mrt.engine.load import describe, find_weights
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
        if path.is_dir() and is_run(path):
            found += _of_run(path, "" if len(places) == 1 else f"{path.name} ", stages)
        else:
            found.append(Candidate(path.name or str(place), find_weights(place)))
    if len(found) == 1:
        raise MrtError(
            f"{places[0]}: holds one detector, so there is nothing to choose among",
            "name several runs or weights files, or keep teachers while training: "
            "mrt adapt ... --set engine.keep_teachers=20",
        )
    if len(found) > MOST:
        raise MrtError(f"{len(found)} detectors, more than {MOST}", "name fewer runs")
    return _require_alike(_with_own_names(found))


def _of_run(run: Path, before: str, stages: Sequence[str]) -> list[Candidate]:
    """The kept teachers of a run and its last detector; of one that was stopped, the kept ones alone."""
    facts = read_facts(run)
    kept = [
        Candidate(f"{before}epoch {epoch}", file, run, stage, epoch, last=False)
        for (stage, epoch), file in kept_teachers(run).items()
        if stage in stages
    ]
    if kept and kept[-1].stage not in facts["finished"]:
        return [*kept[:-1], replace(kept[-1], last=True)]
    last = find_weights(run)
    ended = facts.get("ended", {}).get(kept[-1].stage if kept else "", {})
    network = "teacher" if last.name.startswith("teacher") else "student"
    student = run / "student.safetensors"
    apart = ended.get("teacher") != ended.get("epoch")  # the teacher went back, the student did not
    partner = student if network == "teacher" and student.is_file() and not apart else None
    others = [one for one in kept if one.epoch != _last_epoch(one, ended)]
    return [*others, Candidate(f"{before}last {network}", last, run, partner=partner)]


def _last_epoch(kept: Candidate, ended: Mapping[str, int]) -> int | None:
    """The epoch whose teacher a run's last weights are."""
    if ended:
        return ended["teacher"]
    config = read_metadata(kept.file).get("config", {}) if is_ours(kept.file) else {}
    return config.get(kept.stage, {}).get("epochs")


def _with_own_names(found: Sequence[Candidate]) -> list[Candidate]:
    """The same, those of one name called by their paths."""
    names = Counter(one.name for one in found)
    named = [replace(one, name=str(one.file)) if names[one.name] > 1 else one for one in found]
    twice = [name for name, count in Counter(one.name for one in named).items() if count > 1]
    if twice:
        raise MrtError(f"{twice[0]}: named twice", "name each run and weights file once")
    return named


def _require_alike(found: list[Candidate]) -> list[Candidate]:
    """MrtError unless all detect the same classes."""
    first = describe(found[0].file).classes
    for other in found[1:]:
        if (classes := describe(other.file).classes) != first:
            raise MrtError(
                f"{other.file}: detects {', '.join(classes)}; {found[0].file} detects {', '.join(first)}",
                "compare detectors of the same classes in the same order",
            )
    return found
