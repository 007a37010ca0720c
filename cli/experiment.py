"""From a command's options to a checked experiment: roots, preset, configuration, run folder, and the command that continues it."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mrt.config import Config, Settings, load_config, preset_names
from mrt.errors import Interrupted, MrtError, ProcessLost

PRESET_OF_TARGET = {"foggy": "city2foggy", "cityscapes": "sim2city", "bdd100k": "city2bdd"}
PRESET_OF_SOURCE = {"cityscapes": "city2foggy", "sim10k": "sim2city"}
SYNTHETIC = "synthetic-"


def find_roots(data_root: Path | None, run_root: Path | None) -> Settings:
    """The data and run root: the option, else the environment, else ./data and ./runs.

    Where there is no ./data folder, the data root that `mrt prepare-data --data-root` was last given is used.
    """
    from . import remembered

    if data_root is None and "MRT_DATA_ROOT" not in os.environ and not Path("data").is_dir():
        data_root = remembered.data_root()
    given = {"data_root": data_root, "run_root": run_root}
    return Settings(**{name: path for name, path in given.items() if path is not None})


def choose_preset(source: str | None, target: str | None) -> str:
    """The preset made for a pair of data sets; nothing given means the paper's first benchmark."""
    name = target or source
    if name is None:
        return "city2foggy"
    if Path(name).name.startswith(SYNTHETIC):
        return "demo"
    table = PRESET_OF_TARGET if target else PRESET_OF_SOURCE
    if name not in table:
        kind = "target" if target else "source"
        raise MrtError(
            f"--{kind} {name}: no preset is made for this data set", f"choose whose settings to use: --preset {' or '.join(preset_names())}"
        )
    return table[name]


def resolve(preset: str | None, overrides: Sequence[str] | None, options: dict[str, Any]) -> Config:
    """The configuration of a new run.

    Args:
        preset: name or file; None: the one made for the data sets.
        overrides: the values of ``--set``; they win.
        options: dotted key -> value of options that have a name of their own; None: the preset's value.
    """
    base = preset or choose_preset(options.get("data.source"), options.get("data.target"))
    return load_config(base, overrides or (), _given(options))


def resolve_started(folder: Path, overrides: Sequence[str] | None, options: dict[str, Any]) -> Config:
    """The configuration of a run that is to be continued: its own. MrtError if the options ask for something else."""
    path = folder / "config.json"
    if not path.is_file():
        raise MrtError(f"{folder}: no run to continue", "start it without --resume, or name it with --name")
    stored, asked = load_config(path), load_config(path, overrides or (), _given(options))
    if asked != stored:
        old, new = stored.model_dump(), asked.model_dump()
        sections = [key for key in old if old[key] != new[key]]
        raise MrtError(
            f"{folder}: a run keeps its settings, but [{'], ['.join(sections)}] would change",
            "drop those options, or start another run with --name",
        )
    return stored


def configure(
    kind: str,
    preset: str | None,
    overrides: Sequence[str] | None,
    options: dict[str, Any],
    *,
    init: str | None = None,
    name: str | None,
    resume: bool,
    run_root: Path,
) -> tuple[Config, Path]:
    """The configuration and the folder of a run that begins or, with ``resume``, goes on; without ``name``, ``kind`` gives it one."""
    if resume and name:
        folder = run_folder(run_root, name)
    else:
        config = resolve(preset, overrides, options | {"init": init})
        folder = run_folder(run_root, name or default_name(kind, config))
    return resolve_started(folder, overrides, options) if resume else config, folder


def _given(options: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if value is not None}


def default_name(kind: str, config: Config) -> str:
    """A run's name: ``city2foggy-adapt``, then data sets that are not the preset's own, then ``-seed3`` for any seed but 0."""
    usual = load_config(config.preset).data if config.preset in preset_names() else config.data
    asked = [config.data.source] if kind == "source" else [config.data.source, config.data.target]
    unusual = [Path(name).name for name in asked if name not in (usual.source, usual.target)]
    return "-".join([config.preset, kind, *unusual]) + (f"-seed{config.seed}" if config.seed else "")


def run_folder(root: Path, name: str) -> Path:
    """``root/name``, refusing names that lead out of the root."""
    path = Path(name)
    if not name.strip() or path.is_absolute() or ".." in path.parts:
        raise MrtError(f"--name {name}: not a folder below the run root {root}", "choose another place for all runs with --run-root")
    folder = root / path
    file = next((place for place in (folder, *folder.parents) if place.exists() and not place.is_dir()), None)
    if file is not None:
        raise MrtError(f"{folder}: cannot be a run's folder, because {file} is a file", "choose another --name or --run-root")
    return folder


def find_run(name: str, run_root: Path) -> str:
    """A run's folder by its path, else by its name under the run root; anything else is left to the engine."""
    below = run_root / name
    return str(below) if not Path(name).exists() and below.exists() else name


def require_one_process(command: str) -> None:
    """MrtError under torchrun, for a command whose runs follow one another in one process."""
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise MrtError(
            f"mrt {command}: runs in one process, but WORLD_SIZE is {os.environ['WORLD_SIZE']}",
            "several processes train one run: torchrun ... -m mrt_cli pretrain-source, or adapt",
        )


def require_new(folder: Path) -> None:
    """MrtError if there is a run in ``folder`` already. Under torchrun every process asks before the first one begins to write."""
    if folder.exists() and any(folder.iterdir()):
        raise MrtError(f"{folder}: exists already", "continue it with --resume, or choose another name with --name")


def require_data(names: Sequence[str], data_root: Path) -> None:
    """MrtError for the first data set that is not prepared; it says which ``mrt prepare-data`` to run."""
    from mrt.data.registry import find_dataset

    for name in names:
        find_dataset(name, data_root)


def starting_weights(kind: str, config: Config, root: Path) -> str:
    """Where `mrt adapt` starts: teaching alone from the run of `--stage mae` where there is one, else as `source_weights`.

    Args:
        kind: of the run, as its name has it: "adapt", "mae", "teach", or "teach-METHOD".
    """
    stage, _, method = kind.partition("-")
    refined = root / default_name("mae" + (f"-{method}" if method else ""), config)
    if stage == "teach" and (refined / "student.safetensors").is_file():
        return str(refined)
    return source_weights(config, root)


def source_weights(config: Config, root: Path) -> str:
    """Where adaptation starts: the configuration's ``init``, else the run that ``mrt pretrain-source`` writes by default."""
    if config.init is not None:
        return config.init
    folder = root / default_name("source", config)
    if folder.is_dir():
        return str(folder)
    seed = f" --seed {config.seed}" if config.seed else ""
    raise MrtError(
        f"adaptation starts from a source detector, and there is none in {folder}",
        f"train it: mrt pretrain-source --preset {config.preset} --source {config.data.source}{seed}\n"
        "or name one with --init RUN_OR_WEIGHTS",
    )


@contextmanager
def resumable(command: str, folder: Path, data_root: Path | None, run_root: Path | None) -> Iterator[None]:
    """Adds to an interruption the command that continues the run; the roots are the options as they were given."""
    from .launch import STARTED

    try:
        yield
    except (Interrupted, KeyboardInterrupt) as error:
        if STARTED in os.environ or not (folder / "checkpoints" / "last.pt").is_file():
            raise
        words = ["mrt", *command.split(), "--resume", "--name", str(folder.relative_to(find_roots(None, run_root).run_root))]
        for option, path in (("--data-root", data_root), ("--run-root", run_root)):
            words += [option, str(path)] if path is not None else []
        what = str(error) or "stopped at once; the run goes on from its last checkpoint"
        kind = ProcessLost if isinstance(error, ProcessLost) else Interrupted
        raise kind(f"{what}\ncontinue with: {shlex.join(words)}") from None


@contextmanager
def repeatable(command: str) -> Iterator[None]:
    """Adds to an interruption that the same command goes on from there."""
    try:
        yield
    except (Interrupted, KeyboardInterrupt) as error:
        raise Interrupted(f"{str(error) or 'stopped'}\nrepeat the mrt {command} command to go on from there") from None
