"""Where data and runs are, what they are called, and whether they are there."""

from __future__ import annotations

import difflib
import os
import shlex
from collections.abc import Collection, Sequence
from pathlib import Path

from mrt import remembered
from mrt.config import Config, Settings
from mrt.errors import MrtError
from mrt.plain import one_line

SHIPPED = "small-source"  # a detector that comes with mrt, for an example
MOST_NAMED = 8  # runs of a message
LONGEST_NAME = 200  # bytes of a folder's name, to which others are added while it is written
TAKEN = {"ablate": "ablate", "reports": "report", "eval": "eval"}  # folders of the run root that are no runs


def find_roots(data_root: Path | None, run_root: Path | None) -> Settings:
    """The data root and the run root: from the option, else from the environment, else ./data and ./runs.

    If there is no ./data folder, the data root is the last one given to `mrt prepare-data --data-root`.
    """
    if data_root is None and "MRT_DATA_ROOT" not in os.environ and not Path("data").is_dir():
        data_root = remembered.data_root()
    given = {"data_root": data_root, "run_root": run_root}
    return Settings(**{name: path for name, path in given.items() if path is not None})


def root_words(roots: Settings) -> list[str]:
    """The options with which another command finds the same roots; none where it finds them by itself."""
    usual = find_roots(None, None)
    words = [] if roots.data_root == usual.data_root else ["--data-root", str(roots.data_root)]
    return words + ([] if roots.run_root == usual.run_root else ["--run-root", str(roots.run_root)])


def run_folder(root: Path, name: str) -> Path:
    """The folder ``root/name``.

    Raises:
        MrtError: the name leads out of the root or to the root itself, is hidden or unprintable, lies in
            another run's folder, or a file is in the way.
    """
    path = Path(name)
    if not name.strip() or not path.parts or path.is_absolute() or ".." in path.parts:
        raise MrtError(
            f"--name {name}: not a folder below the run root {root}",
            "name a folder there, such as --name mine; another place for all runs is --run-root",
        )
    odd = next((part for part in path.parts if part.startswith(".") or part != part.strip()), None)
    if odd is not None:
        raise MrtError(
            f"--name {name}: {odd!r} begins with a dot, or begins or ends with a space",
            "such folders are hidden or overlooked: choose another name",
        )
    if one_line(name) != name or any(len(part.encode()) > LONGEST_NAME for part in path.parts):
        what = "is too long" if one_line(name) == name else "has characters that cannot be seen"
        raise MrtError(f"--name {one_line(name)}: {what}", "choose another name")
    if name in TAKEN:
        raise MrtError(
            f"--name {name}: mrt {TAKEN[name]} keeps other things in a folder of that name",
            "choose another name",
        )
    folder = root / path
    other = next((place for place in map(root.joinpath, path.parents) if (place / "run.json").exists()), None)
    if other is not None:
        raise MrtError(
            f"--name {name}: lies in the folder of another run, {other}",
            f"choose a name outside of it, such as --name {'-'.join(path.parts)}",
        )
    file = next((place for place in (folder, *folder.parents) if place.exists() and not place.is_dir()), None)
    if file is not None:
        raise MrtError(
            f"{folder}: cannot be a run's folder, because {file} is a file",
            "choose another --name or --run-root",
        )
    return folder


def find_run(name: str, run_root: Path) -> str:
    """A run's folder by its path, else by its name in the run root; other names are returned unchanged."""
    below = run_root / name
    return str(below) if not Path(name).exists() and below.exists() else name


def run_names(run_root: Path) -> list[str]:
    """The runs of a run root by name, those in folders of it too."""
    folders = sorted(Path(run_root).glob("*")) + sorted(Path(run_root).glob("*/*"))
    return [str(folder.relative_to(run_root)) for folder in folders if (folder / "run.json").is_file()]


def detectors(run_root: Path | None) -> str:
    """The detectors that can be named, in words."""
    from mrt.engine.whereabouts import shipped_names

    runs = run_names(find_roots(None, run_root).run_root)
    here = f"runs are {_first(runs)}; " if runs else ""
    return f"{here}{', '.join(shipped_names())} come with mrt; coco is downloaded"


def _first(runs: Sequence[str]) -> str:
    """The names, of many the first ones."""
    more = len(runs) - MOST_NAMED
    return ", ".join(runs[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def targets(roots: Settings) -> str:
    """What can be adapted to, in words."""
    from mrt.data.registry import prepared_sets

    names = [card.name for card in prepared_sets(roots.data_root)]
    if names:
        return f"name a prepared set with --target ({', '.join(names)}), or a --preset"
    words = ["mrt", "prepare-data", "custom", "--raw", "FOLDER", "--name", "camera", *root_words(roots)]
    return f"name a data set with --target, or a --preset; your own images become one: {shlex.join(words)}"


def require_detector(name: str, run_root: Path, which: str = "auto") -> str:
    """What to load for a detector's name: :func:`find_run`, and whether it is there.

    A model of the Hugging Face hub is downloaded. Nothing heavy is imported.

    Raises:
        MrtError: there is no such detector; runs and names that could have been meant are listed.
    """
    from mrt.engine.whereabouts import require_there

    return require_there(find_run(name, run_root), which, run_names(run_root))


def require_named(name: str, run_root: Path) -> str:
    """:func:`find_run`, and whether there is anything of that name; what it holds is for others to look at.

    Raises:
        MrtError: nothing is there, nor a model to download; what could have been meant is listed.
    """
    from mrt.engine.whereabouts import may_be_one, not_there

    found = find_run(name, run_root)
    if not (Path(found).exists() or may_be_one(found)):
        raise not_there(name, run_names(run_root))
    return found


def require_run(name: str, run_root: Path) -> Path:
    """The folder of a run: :func:`find_run`, and whether it is one.

    Raises:
        MrtError: it is not; runs that could have been meant are listed.
    """
    folder, runs = Path(find_run(name, run_root)), run_names(run_root)
    if not (folder / "run.json").is_file():
        near = difflib.get_close_matches(name, runs, n=1)
        hints = [f"did you mean {near[0]}?"] if near else []
        there = f"runs in {run_root}: {_first(runs)}" if runs else f"{run_root} has no runs"
        raise MrtError(f"{name}: not a run folder (no run.json)", " ".join([*hints, there]))
    return folder


def require_new(folder: Path) -> None:
    """Raise MrtError if ``folder`` already holds a run, or something else.

    With torchrun, every process checks this before the first one begins to write.
    """
    from mrt.engine.facts import require_absent

    require_absent(folder)


def require_data(names: Sequence[str], data_root: Path) -> None:
    """Raise MrtError if data sets are not prepared; it says how to prepare each."""
    from mrt.data.registry import find_dataset

    errors = []
    for name in dict.fromkeys(names):
        try:
            find_dataset(name, data_root)
        except MrtError as error:
            errors.append(error)
    if errors:
        hints = [error.hint for error in errors if error.hint]
        raise MrtError("\n".join(error.message for error in errors), "\n".join(hints) or None)


def require_labels(
    config: Config, domains: Collection[str], data_root: Path, *, prepared: bool = True
) -> None:
    """Check that the data sets whose labels are used for training have labels.

    Args:
        config: names the data sets.
        domains: the domains whose labels are used, of "source" and "target".
        data_root: the folder of the data sets.
        prepared: False skips data sets that are not prepared yet.

    Raises:
        MrtError: a data set has no labels, or no box that counts.
    """
    if not domains:
        return
    from mrt.data.registry import find_dataset
    from mrt.engine import labels

    names = {labels.SOURCE: config.data.source, labels.TARGET: config.data.target}
    cards = {}
    for domain in {labels.SOURCE, *domains}:
        try:
            cards[domain] = find_dataset(names[domain], data_root)
        except MrtError:
            if prepared:
                raise
            return
    labels.require_labels(config, cards, domains)
