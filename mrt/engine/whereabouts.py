"""Where a named detector is, answered before anything heavy is imported: this module needs no torch."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Iterable
from pathlib import Path

from mrt.data.card import file_sha256
from mrt.engine.facts import is_run, read_facts
from mrt.errors import MrtError
from mrt.models.hub import ALIASES, PREFIX, fetch, hub_name
from mrt.plain import quoted

SHIPPED = Path(__file__).parent.parent / "weights"
MODEL = "config.json"  # in a folder of a Hugging Face model
EXPORT_CARD = "export.json"  # in a folder that mrt export has written
WEIGHTS = (".safetensors", ".pth", ".pt", ".bin")  # what files of weights are called
NETWORKS = ("teacher", "student")
NAMED = 8  # runs of a message
WITHOUT = "Without a connection there are those that come with mrt, which know eight kinds of road users: {}."


def shipped_names() -> list[str]:
    """The detectors that come with mrt."""
    return sorted(file.stem for file in SHIPPED.glob("*.safetensors"))


def not_there(where: str | Path, runs: Iterable[str] = ()) -> MrtError:
    """The error for a name that is no detector's, with the names that there are.

    Args:
        runs: names of runs that could have been meant.
    """
    runs, shipped = list(runs), shipped_names()
    near = difflib.get_close_matches(str(where), [*runs, *shipped, *ALIASES, *_beside(where)], n=1)
    names = [f"did you mean {near[0]}?"] if near else []
    if runs:
        more = f" and {len(runs) - NAMED} more" if len(runs) > NAMED else ""
        names.append(f"runs: {', '.join(runs[:NAMED])}{more};")
    names.append(f"shipped with mrt: {', '.join(shipped) or 'none'};")
    names.append(f"downloaded when named: {', '.join(ALIASES)}, {PREFIX}OWNER/NAME")
    return MrtError(
        f"{where}: no run folder, weights file or shipped weights of that name",
        " ".join(names),
    )


def _beside(where: str | Path) -> list[str]:
    """The paths in the folder in which a path should have been, where that may be a detector's."""
    folder = Path(where).parent
    if folder == Path() or not folder.is_dir():
        return []
    return [str(path) for path in sorted(folder.iterdir())[:1000] if may_be_one(path)]


def networks(which: str) -> tuple[str, ...]:
    """The networks of a run that "auto", "teacher" or "student" stand for, the first choice first.

    Raises:
        MrtError: another word.
    """
    if which == "auto":
        return NETWORKS
    if which not in NETWORKS:
        raise MrtError(f"which = {which!r}: no network of a run", f"choose auto, {' or '.join(NETWORKS)}")
    return (which,)


def of_run(folder: Path, which: str = "auto", *, whole: bool = True) -> Path:
    """The weights file of a run's folder: the teacher's first.

    Args:
        which: "auto", "teacher" or "student".
        whole: whether the file has to be, byte for byte, what the run wrote.

    Raises:
        MrtError: the run has no such weights, or not as it wrote them.
    """
    wanted = networks(which)
    left = read_facts(folder).get("left", {})
    for name in wanted:
        file = folder / f"{name}.safetensors"
        if file.name in left and file.is_file():
            if whole and file_sha256(file) != left[file.name]:
                raise MrtError(
                    f"{file}: is not the file that this run wrote",
                    f"put it back; mrt doctor {quoted(folder)} says what else is wrong",
                )
            break
    gone = f"{wanted[0]}.safetensors"
    if gone in left and not (folder / gone).is_file():
        student = folder / "student.safetensors"
        other = which == "auto" and student.name in left and student.is_file()
        raise MrtError(
            f"{folder / gone}: missing: the run had written it",
            f"put it back; mrt doctor {quoted(folder)} says how else"
            + (f". The student is there, and can be named instead: {student}" if other else ""),
        )
    for name in wanted:
        if (folder / f"{name}.safetensors").is_file():
            return folder / f"{name}.safetensors"
    raise MrtError(
        f"{folder}: has no {' or '.join(wanted)} weights yet",
        f"let the run finish a stage: {resuming(folder)}",
    )


def resuming(folder: Path) -> str:
    """The command that goes on with a run."""
    facts, place = read_facts(folder), folder.resolve()
    stages = facts.get("stages") or []
    words = ["mrt", facts["command"], *(["--stage", *stages] if len(stages) == 1 else [])]
    words += ["--match-compute"] if facts.get("match_compute") else []
    words += ["--oracle", facts["oracle"]] if facts.get("oracle") else []
    return shlex.join([*words, "--resume", "--name", place.name, "--run-root", _short(place.parent)])


def _short(path: Path) -> str:
    """A path as it is shortest to type: from the working folder, where it lies below it."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def may_be_one(where: str | Path) -> bool:
    """Whether a path or a name can be a detector's, by its looks: nothing is opened or downloaded."""
    path = Path(where)
    if path.is_dir():
        return is_run(path) or any((path / name).is_file() for name in (EXPORT_CARD, MODEL))
    if path.is_file():
        return path.suffix.lower() in WEIGHTS
    return (SHIPPED / f"{where}.safetensors").is_file() or hub_name(str(where)) is not None


def require_there(where: str, which: str = "auto", runs: Iterable[str] = ()) -> str:
    """What to load for a named detector: ``where`` itself, or the folder that a model of the Hugging Face hub
    was downloaded to. Content is looked at by whoever loads it.

    Args:
        which: network of a run: "auto", "teacher" or "student".
        runs: names of runs that could have been meant.

    Raises:
        MrtError: nothing of that kind there, or it cannot be downloaded.
    """
    networks(which)
    path = Path(where)
    if path.is_dir():
        if is_run(path) and not (path / EXPORT_CARD).is_file():
            of_run(path, which, whole=False)
        return where
    if path.is_file() or (SHIPPED / f"{where}.safetensors").is_file():
        return where
    if hub_name(where) is not None:
        try:
            return str(fetch(where))
        except MrtError as error:
            raise MrtError(
                error.message, f"{error.hint}\n{WITHOUT.format(', '.join(shipped_names()))}"
            ) from None
    raise not_there(where, runs)
