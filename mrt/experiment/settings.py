"""The settings of a new run, or of one that goes on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mrt.config import AUTO, Config, load_config, preset_names
from mrt.errors import MrtError
from mrt.experiment.places import run_folder
from mrt.plain import quoted

PRESET_OF_TARGET = {"foggy": "city2foggy", "cityscapes": "sim2city", "bdd100k": "city2bdd"}
PRESET_OF_TARGET |= {f"synth-{world}": f"synth2{world}" for world in ("foggy", "night", "rain")}
PRESET_OF_SOURCE = {"cityscapes": "city2foggy", "sim10k": "sim2city", "synth-clear": "synth2foggy"}
SYNTHETIC = "synthetic-"
OWN = "own"  # the preset for data sets that have no preset of their own


def choose_preset(source: str | None, target: str | None) -> str:
    """The preset for a pair of data sets, "own" if they have none.

    Without names, it is that of the paper's first benchmark.
    """
    name = target or source
    if name is None:
        return "city2foggy"
    if Path(name).name.startswith(SYNTHETIC):
        return "small"
    return (PRESET_OF_TARGET if target else PRESET_OF_SOURCE).get(name, OWN)


def resolve(preset: str | None, overrides: Sequence[str] | None, options: dict[str, Any]) -> Config:
    """The configuration of a new run.

    Args:
        preset: name or file; None: the one for the data sets.
        overrides: the values of ``--set``, which take precedence.
        options: dotted key -> value, of settings that have an option of their own; None: the preset's value.
    """
    source, target = options.get("data.source"), options.get("data.target")
    base = preset or choose_preset(source, target)
    if preset is None and base == OWN and source is None and not options.get("method.source_free"):
        raise MrtError(
            f"--target {target}: no preset is made for this data set, "
            "and no labelled set was named to adapt from",
            "name it: --source SET (settings for your own data are taken then), "
            f"or choose a preset: {', '.join(preset_names())}",
        )
    return load_config(base, overrides or (), _given(options))


# What a run that goes on keeps, whatever is allowed: its network, what it has learned from, and how its steps
# are counted.
KEPT = (
    *("preset", "init", "seed", "schema", "model.", "method.plugins", "method.source_free"),
    *("data.source", "data.target", "data.source_split", "data.target_split", "data.classes"),
    *("data.class_map", "engine.batch_size", "teacher.labels", "retrain.parts", "retrain.source"),
    *("pretrain.steps_per_epoch", "mae_stage.steps_per_epoch", "teach.steps_per_epoch", "mae.use"),
)


def resolve_started(
    folder: Path, overrides: Sequence[str] | None, options: dict[str, Any], allow_change: bool = False
) -> tuple[Config, dict[str, list[Any]]]:
    """The configuration of a run that is continued, and which of its settings are others than before: dotted
    key -> [before, now].

    Args:
        allow_change: whether they may be.

    Raises:
        MrtError: there is no such run, its settings are not what it wrote, or the options ask for something
            else.
    """
    from mrt.engine.facts import SETTINGS, is_run, stored_settings

    if not is_run(folder):
        from mrt.engine.folder import require_run

        require_run(folder)
    path = folder / SETTINGS
    stored, asked = stored_settings(folder), load_config(path, overrides or (), _given(options))
    if asked.engine.accumulate == AUTO:  # what fitted when the run began
        engine = asked.engine.model_copy(update={"accumulate": stored.engine.accumulate})
        asked = asked.model_copy(update={"engine": engine})
    gone = stored.teacher.labels
    if gone and Path(gone).is_absolute() and not Path(gone).exists():
        raise MrtError(
            f"{folder}: its teacher.labels are gone: {gone}",
            "put the file back: a run keeps what it learns from",
        )
    changed = _differences(stored.plain(), asked.plain())
    if not changed:
        return stored, {}
    kept = [
        key
        for key in changed
        if any(key == name or (name[-1] == "." and key.startswith(name)) for name in KEPT)
    ]
    words = ", ".join(f"{key} = {old!r} -> {new!r}" for key, (old, new) in changed.items())
    if kept:
        raise MrtError(
            f"{folder}: a run that goes on cannot have another {', '.join(kept)} ({words})",
            f"drop those options, or start another run from its weights: --name NEW --init {quoted(folder)}",
        )
    if not allow_change:
        sections = list(dict.fromkeys(key.partition(".")[0] for key in changed))
        raise MrtError(
            f"{folder}: a run keeps its settings, but [{'], ['.join(sections)}] would change ({words})",
            "drop those options; or add --allow-change, and run.json records the change; or start another "
            "run with --name",
        )
    return asked, changed


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> dict[str, list[Any]]:
    """What differs between nested settings: dotted key -> [old, new]."""
    found: dict[str, list[Any]] = {}
    for key in [*old, *(key for key in new if key not in old)]:
        before, now = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(now, Mapping) and (prefix + key) != "data.class_map":
            found |= _differences(before, now, f"{prefix}{key}.")
        elif before != now:
            found[prefix + key] = [before, now]
    return found


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
    allow_change: bool = False,
) -> tuple[Config, Path, dict[str, list[Any]]]:
    """The configuration and the folder of a new run or, with ``resume``, of one that is continued, and which
    of that one's settings are changed.

    Without ``name``, the run is named after its ``kind``.
    """
    if resume and name and preset in preset_names():
        path = run_folder(run_root, name) / "config.json"
        if path.is_file() and (before := load_config(path).preset) != preset:
            raise MrtError(
                f"--preset {preset}: the run was started with {before}",
                "leave out --preset: a run keeps its own",
            )
    if allow_change and not resume:
        raise MrtError(
            "--allow-change: only a run that goes on has settings to change",
            "add --resume or --resume-from CHECKPOINT, and --name to say which",
        )
    if resume and name:
        folder = run_folder(run_root, name)
    else:
        config = resolve(preset, overrides, options | {"init": init})
        folder = run_folder(run_root, name or default_name(kind, config))
    if not resume:
        from mrt.engine.loggers import require_loggers

        require_loggers(config.engine.loggers)
        return config, folder, {}
    config, changed = resolve_started(folder, overrides, options, allow_change)
    if init is not None and config.init is not None:
        there = str(Path(init).resolve()) if Path(init).exists() else init
        if there != config.init:
            raise MrtError(
                f"--init {init}: the run was started from {config.init}",
                "leave out --init: a run that goes on has its weights; or start another one with --name",
            )
    return config, folder, changed


def _given(options: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if value is not None}


def default_name(kind: str, config: Config) -> str:
    """A run's name: ``city2foggy-adapt``, then data sets that are not the preset's, then any seed but 0."""
    usual = load_config(config.preset).data if config.preset in preset_names() else config.data
    asked = [config.data.source] if kind == "source" else [config.data.source, config.data.target]
    unusual = [Path(name).name for name in asked if name not in (usual.source, usual.target)]
    return "-".join([config.preset, kind, *unusual]) + (f"-seed{config.seed}" if config.seed else "")
