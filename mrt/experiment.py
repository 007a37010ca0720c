"""From a user's options to a checked experiment.

It has roots, preset, configuration, run folder and starting weights. The command line and the Python
functions of :mod:`mrt.api` both use this module, so that both do the same. It does not import torch.
"""

from __future__ import annotations

import difflib
import os
import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mrt import remembered
from mrt.ablate.studies import METHODS
from mrt.config import AUTO, Config, Settings, load_config, preset_names
from mrt.errors import MrtError
from mrt.plain import one_line, quoted

PRESET_OF_TARGET = {"foggy": "city2foggy", "cityscapes": "sim2city", "bdd100k": "city2bdd"}
PRESET_OF_TARGET |= {f"synth-{world}": f"synth2{world}" for world in ("foggy", "night", "rain")}
PRESET_OF_SOURCE = {"cityscapes": "city2foggy", "sim10k": "sim2city", "synth-clear": "synth2foggy"}
SYNTHETIC = "synthetic-"
OWN = "own"  # the preset for data sets that have no preset of their own
STAGES = ("mae", "teach")
FREE = "source-free"  # the method that needs no source images
# The method of a preset that is made for another than its settings say.
USUAL = {OWN: "limited", "own-small": "limited"}
OTHER_WEIGHTS = (
    "Or begin with other weights: --set model.weights=FILE (a detector's, or a backbone's), or "
    "--init RUN_OR_WEIGHTS."
)
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


def _targets(roots: Settings) -> str:
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


def starting_weights(kind: str, config: Config, root: Path, more: Sequence[str] = ()) -> str:
    """The weights from which `mrt adapt` starts.

    Teaching alone starts from the run of `--stage mae` if there is one; everything else as in
    :func:`source_weights`.

    Args:
        kind: of the run, as in its name: "adapt", "mae", "teach", or "teach-METHOD".
        config: of the run.
        root: the folder of all runs.
        more: options of the roots, for the command of a message.
    """
    stage, _, method = kind.partition("-")
    refined = root / default_name("mae" + (f"-{method}" if method else ""), config)
    if stage == "teach" and (refined / "student.safetensors").is_file():
        return str(refined)
    return source_weights(config, root, more)


def source_weights(config: Config, root: Path, more: Sequence[str] = ()) -> str:
    """The source weights from which adaptation starts.

    They are the configuration's ``init``, else the run that ``mrt pretrain-source`` writes by default.
    """
    if config.init is not None:
        return config.init
    folder = root / default_name("source", config)
    if folder.is_dir():
        return str(folder)
    if config.method.source_free:
        raise MrtError(
            "adaptation without source images starts from a detector that was trained with them, "
            "and none was named",
            "name it with --init RUN_OR_WEIGHTS",
        )
    words = ["mrt", "pretrain-source", "--preset", config.preset, "--source", config.data.source]
    words += [*(["--seed", str(config.seed)] if config.seed else []), *more]
    raise MrtError(
        f"adaptation starts from a source detector, and there is none in {folder}",
        f"name one with --init RUN_OR_WEIGHTS, or train it: {shlex.join(words)}",
    )


@dataclass(frozen=True)
class Experiment:
    """A run as a user asked for it, with all its settings.

    Attributes:
        command: of mrt, as in ``run.json``: "adapt" or "pretrain-source".
        words: the command with the options that must be repeated to resume, e.g. "adapt --method +mae".
        config: its settings.
        folder: where it is written.
        roots: the folders of data and runs.
        kind: of the run, as in its default name: "adapt", "mae", "teach-+mae", "source", "fair", ...
        init: the weights that the user named, None for the default ones.
        resume: whether it continues an existing run.
        from_checkpoint: the checkpoint file from which it continues; None: the last.
        changed: settings that are others than when it was started: dotted key -> [before, now].
        stages: of "adapt".
        match_compute, oracle: of "pretrain-source".
        assumed: the defaults that were chosen for the user, in words; "" if there are none.
    """

    command: str
    words: str
    config: Config
    folder: Path
    roots: Settings
    kind: str
    init: str | None = None
    resume: bool = False
    from_checkpoint: str | None = None
    changed: Mapping[str, list[Any]] | None = None
    stages: tuple[str, ...] = ()
    match_compute: bool = False
    oracle: str | None = None
    assumed: str = ""

    @property
    def source_free(self) -> bool:
        """Whether no source images are needed."""
        return self.command == "adapt" and self.config.method.source_free

    def starting_weights(self) -> str | None:
        """The weights from which training starts.

        None stands for the initial weights of ``[model]``, or for those of a run that is continued.

        Raises:
            MrtError: the run exists already, a data set does not exist or has no labels, or there are no
                weights to start from.
        """
        from mrt.models.hub import hub_name

        data = self.config.data
        if not self.resume:
            require_new(self.folder)
        needs_target = self.command == "adapt" or self.match_compute or self.oracle
        needed = [*([] if self.source_free else [data.source]), *([data.target] if needs_target else [])]
        require_data(needed, self.roots.data_root)
        self.require_labels()
        if self.resume:
            return None
        if self.init or (self.command == "pretrain-source" and not self.match_compute):
            start = self.init
        elif self.command == "adapt":
            start = starting_weights(self.kind, self.config, self.roots.run_root, root_words(self.roots))
        else:
            start = source_weights(self.config, self.roots.run_root, root_words(self.roots))
        if start is not None:
            require_detector(start, self.roots.run_root)
        elif hub_name(self.config.model.weights) is not None and not Path(self.config.model.weights).exists():
            try:
                require_detector(self.config.model.weights, self.roots.run_root)
            except MrtError as error:
                raise MrtError(error.message, f"{error.hint}\n{OTHER_WEIGHTS}") from None
        return start

    def require_labels(self, *, prepared: bool = True) -> None:
        """Raise MrtError for a data set without labels, or for what is read beside it and is not there.

        ``prepared=False`` skips what is not there yet.
        """
        domains = [] if self.source_free else (self.oracle or "source").split("+")
        require_labels(self.config, domains, self.roots.data_root, prepared=prepared)
        for stage in self.stages:
            try:
                for section in self.config.sections().values():
                    section.reads(stage, self.config, self.roots.data_root)
            except MrtError:
                if prepared:
                    raise

    def named_weights(self) -> str | None:
        """The starting weights that options or settings name, without looking for those of another run."""
        if self.resume:
            return None
        adapts = self.command == "adapt" or self.match_compute
        return self.init or (self.config.init if adapts else None)

    def run(self, start: str | None, watcher: Any = None, profile: int = 0) -> Path:
        """Train from ``start``, the result of :meth:`starting_weights`; returns the run's folder."""
        from mrt.engine import stages

        changes = {"config": self.config, "settings": self.changed} if self.changed else None
        how = {"resume": self.resume, "from_checkpoint": self.from_checkpoint, "changes": changes}
        how |= {"profile": profile}
        common = {"init": start, "data_root": self.roots.data_root, "watcher": watcher, **how}
        if self.command == "adapt":
            return stages.adapt(self.config, self.folder, stages=self.stages, **common)
        return stages.pretrain_source(
            self.config, self.folder, match_compute=self.match_compute, oracle=self.oracle, **common
        )


def plan_adaptation(
    *,
    target: str | None = None,
    source: str | None = None,
    preset: str | None = None,
    stage: Sequence[str] | None = None,
    method: str | None = None,
    init: str | None = None,
    class_map: Mapping[str, str] | None = None,
    resume: bool = False,
    resume_from: str | None = None,
    allow_change: bool = False,
    name: str | None = None,
    overrides: Sequence[str] | None = None,
    settings: Mapping[str, Any] | None = None,
    seed: int | None = None,
    device: str | None = None,
    amp: str | None = None,
    data_root: Path | None = None,
    run_root: Path | None = None,
) -> Experiment:
    """Plan stages 2 and 3 for ``mrt adapt``, whose help explains the arguments.

    Args:
        stage: "mae", "teach" or both.
        method: one of :data:`mrt.ablate.studies.METHODS`; None: that of the preset, by its settings or
            :data:`USUAL`.
        class_map: the source's names for classes that have another name in the target.
        resume_from: one of the run's checkpoints to continue from.
        allow_change: whether a run that is continued may have other settings.
        overrides: texts ``section.key=value``.
        settings: the same as a mapping.

    Raises:
        MrtError: an argument or a setting does not fit.
    """
    resume = resume or resume_from is not None
    if method is not None and method not in METHODS:
        raise MrtError(f"--method {method}: unknown method", f"choose {', '.join(METHODS)}")
    if target is None and preset is None and not (resume and name):
        raise MrtError("mrt adapt: adapt to what?", _targets(find_roots(data_root, run_root)))
    for item in stage or ():
        if item not in STAGES:
            raise MrtError(
                f"--stage {item}: unknown stage", "stages are mae and teach; without --stage both run"
            )
    chosen = tuple(item for item in STAGES if item in (stage or STAGES))
    roots = find_roots(data_root, run_root)
    init = find_run(init, roots.run_root) if init else None
    given = {
        "data.source": source,
        "data.target": target,
        "seed": seed,
        "engine.device": device,
        "engine.amp": amp,
    }
    given["data.class_map"] = dict(class_map or {}) or None
    given |= METHODS.get(method, {}) | dict(settings or {})
    taken = Taken()
    if not (resume and name) and preset is None and target is not None:
        named = {key for key in given if given[key] is not None} | _named_by(overrides)
        if not {"data.source", "method.source_free"} & named and choose_preset(None, target) == OWN:
            taken = _take_source(target, init, method, roots)
            method = taken.method or method
            given |= {**METHODS.get(method, {}), **taken.settings, **dict(settings or {})}
    free = given.get("method.source_free") or _says(overrides, "method.source_free", "true")
    own = choose_preset(given["data.source"], target) == OWN
    usual = USUAL.get(preset or (OWN if own else ""))
    if usual and method is None and not free and not (resume and name):
        method = usual
        words = {**taken.words, "method": f"method {usual}, as real photographs were measured with"}
        taken = replace(taken, words=words)
        given |= {**METHODS[usual], **dict(settings or {})}
    network = _network_of(init, roots) if init and preset is None and not resume and (free or own) else {}
    given["method.source_free"] = free or None
    given = {**network, **given}
    part = method.replace("+", "teacher-") if method else ""  # of the run's name
    trained = chosen[0] if len(chosen) == 1 else "" if part else "adapt"
    kind = "-".join(word for word in (trained, part) if word)
    config, folder, changed = configure(
        *(kind, preset, overrides, given),
        init=init,
        name=name,
        resume=resume,
        run_root=roots.run_root,
        allow_change=allow_change,
    )
    if config.method.source_free:
        if source is not None:
            raise MrtError(
                f"--source {source}: there are no source images (method.source_free)", "leave out --source"
            )
        if "mae" in (stage or ()):
            raise MrtError(
                "--stage mae: learns from source images, and there are none (method.source_free)",
                "leave out --stage: teaching is all there is",
            )
        chosen = ("teach",)
    fewer = ""
    if not resume:
        domains = ("target",) if config.method.source_free else ("source", "target")
        config, fewer = _batch_that_fits(config, domains, {*given, *_named_by(overrides)}, roots)
    words = "adapt" + (f" --method {method}" if method else "")
    words += "".join(f" --stage {item}" for item in dict.fromkeys(stage or ()))
    asked = {"target": target} if config.method.source_free else {"source": source, "target": target}
    assumed = _assumed(config, preset, resume, asked, taken.words, init if network else None, fewer)
    return Experiment(
        *("adapt", words, config, folder, roots, kind, init, resume, resume_from, changed),
        stages=chosen,
        assumed=assumed,
    )


@dataclass(frozen=True)
class Taken:
    """What was taken because it was not said: settings by dotted key, a method, and words by what they are
    about.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    words: Mapping[str, str] = field(default_factory=dict)
    method: str | None = None


def _take_source(target: str, init: str | None, method: str | None, roots: Settings) -> Taken:
    """Where a set of one's own is adapted from if nobody said it: the set that the starting weights learned
    from, else no images at all; without such weights the one labelled set that there is.

    Raises:
        MrtError: no such target, or nothing to choose; it says what would do.
    """
    from mrt.data.registry import find_dataset, prepared_sets

    card = find_dataset(target, roots.data_root)
    labelled = [other.name for other in prepared_sets(roots.data_root) if other.labelled]
    labelled = [name for name in labelled if name != card.name]
    command = ["mrt", "adapt", "--target", target, *(["--method", method] if method else [])]
    more = root_words(roots)
    if init is not None:
        source = _trained_on(init, roots)
        if source in labelled:
            return Taken({"data.source": source}, {"source": f"source {source}, which {init} learned from"})
        if method is None:
            return Taken({}, {"source": f"method {FREE}, for no source set was named"}, FREE)
        hint = f"without source images: {shlex.join([*command[:4], '--init', init, '--method', FREE, *more])}"
        raise MrtError(
            f"--method {method}: learns from labelled source images too, and none were named",
            f"name them with --source ({_listed(labelled)}); {hint}",
        )
    trained = [name for name in labelled if (roots.run_root / f"{OWN}-source-{name}").is_dir()]
    choices = ((trained, "of which there is a source detector"), (labelled, "the only labelled set here"))
    for names, why in choices:
        if len(names) == 1:
            return Taken({"data.source": names[0]}, {"source": f"source {names[0]}, {why}"})
    if trained:
        hint = f"there are source detectors of {_listed(trained)}; for example: "
        hint += shlex.join([*command, "--source", trained[0], *more])
    elif labelled:
        hint = f"there are {_listed(labelled)}; a source detector is trained first, for example: "
        hint += shlex.join(["mrt", "pretrain-source", "--source", labelled[0], *more])
    else:
        hint = "no labelled set is prepared; from weights alone, such as those of rendered streets: "
        hint += shlex.join([*command[:4], "--init", SHIPPED, *more])
    raise MrtError(
        f"--target {target}: no labelled set was named to adapt from, and this target has no preset",
        f"name it with --source; {hint}",
    )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "no labelled set is prepared"


def _named_by(overrides: Sequence[str] | None) -> set[str]:
    """The settings that ``--set`` names."""
    return {text.partition("=")[0].strip() for text in overrides or ()}


def _is_here(init: str, roots: Settings) -> bool:
    """Whether weights can be looked at: no for a model on the hub, which would have to be downloaded.

    Raises:
        MrtError: there are no such weights.
    """
    from mrt.models.hub import hub_name

    if hub_name(init) is not None and not Path(init).exists():
        return False
    require_detector(init, roots.run_root)
    return True


def _trained_on(init: str, roots: Settings) -> str | None:
    """The set that weights learned from, if they say so."""
    if not _is_here(init, roots):
        return None
    from mrt.engine.load import trained_on

    return trained_on(init)


def _network_of(init: str, roots: Settings) -> dict[str, Any]:
    """The settings of weights' network and of the images that it takes; none of what is not here."""
    if not _is_here(init, roots):
        return {}
    from mrt.engine.load import settings_of

    return settings_of(init)


def _says(overrides: Sequence[str] | None, key: str, value: str) -> bool:
    """Whether ``--set`` gives a setting this value."""
    pairs = [text.partition("=") for text in overrides or ()]
    return any((name.strip(), given.strip()) == (key, value) for name, _, given in pairs)


def plan_pretraining(
    *,
    source: str | None = None,
    target: str | None = None,
    preset: str | None = None,
    match_compute: bool = False,
    augment: str | None = None,
    ema: bool = False,
    oracle: str | None = None,
    init: str | None = None,
    resume: bool = False,
    resume_from: str | None = None,
    allow_change: bool = False,
    name: str | None = None,
    overrides: Sequence[str] | None = None,
    settings: Mapping[str, Any] | None = None,
    seed: int | None = None,
    device: str | None = None,
    amp: str | None = None,
    data_root: Path | None = None,
    run_root: Path | None = None,
) -> Experiment:
    """Plan stage 1 or a baseline for ``mrt pretrain-source``, whose help explains the arguments.

    Args:
        resume_from: one of the run's checkpoints to continue from.
        allow_change: whether a run that is continued may have other settings.
        overrides: texts ``section.key=value``.
        settings: the same as a mapping.

    Raises:
        MrtError: an argument or a setting does not fit.
    """
    resume = resume or resume_from is not None
    if oracle not in (None, "target", "source+target"):
        raise MrtError(f"--oracle {oracle}: expected target or source+target")
    if augment not in (None, "weak", "strong"):
        raise MrtError(f"--augment {augment}: expected weak or strong")
    roots = find_roots(data_root, run_root)
    init = find_run(init, roots.run_root) if init else None
    given = {
        "data.source": source,
        "data.target": target,
        "seed": seed,
        "engine.device": device,
        "engine.amp": amp,
    }
    trained = ("mae_stage", "teach") if match_compute else ("pretrain",)
    given |= {f"{stage}.augment": augment for stage in trained}
    given |= {"pretrain.ema": ema or None} | dict(settings or {})
    own = preset is None and choose_preset(source, target) == OWN
    network = _network_of(init, roots) if init and own and not resume else {}
    given = {**network, **given}
    baselines = ["fair"] if match_compute else []
    if oracle:
        baselines.append(f"oracle-{oracle.replace('+', '-')}")
    kind = "-".join(baselines) or "source"
    config, folder, changed = configure(
        *(kind, preset, overrides, given),
        init=init if resume else None,
        name=name,
        resume=resume,
        run_root=roots.run_root,
        allow_change=allow_change,
    )
    fewer = ""
    if not resume:
        domains = ("source", "target") if match_compute else (oracle or "source",)
        config, fewer = _batch_that_fits(config, domains, {*given, *_named_by(overrides)}, roots)
    words = "pretrain-source" + (" --match-compute" if match_compute else "")
    words += f" --oracle {oracle}" if oracle else ""
    asked = {"source": source, **({"target": target} if match_compute or oracle else {})}
    assumed = _assumed(config, preset, resume, asked, network=init if network else None, fewer=fewer)
    return Experiment(
        "pretrain-source",
        words,
        config,
        folder,
        roots,
        kind,
        init,
        resume,
        resume_from,
        changed,
        match_compute=match_compute,
        oracle=oracle,
        assumed=assumed,
    )


def _assumed(
    config: Config,
    preset: str | None,
    resume: bool,
    asked: Mapping[str, str | None],
    taken: Mapping[str, str] | None = None,
    network: str | None = None,
    fewer: str = "",
) -> str:
    """The defaults of a new run, e.g. "preset own (settings for your own data), source cityscapes".

    Args:
        asked: "source" and "target" as they were given. taken: words for what was taken in their place.
        network: the weights whose network and image sizes are taken.
        fewer: words for a batch that is smaller than the preset's.
    """
    if resume:
        return ""
    taken = dict(taken or {})
    words = []
    if not preset:
        note = " (settings for your own data)" if config.preset == OWN else ""
        words.append(f"preset {config.preset}{note}")
    for domain, name in asked.items():
        if name is None and domain not in taken:
            words.append(f"{domain} {getattr(config.data, domain)}")
    words += taken.values()
    words += [f"the network and image sizes of {network}"] if network else []
    words += [fewer] if fewer else []
    return ", ".join(words)


def _batch_that_fits(
    config: Config, domains: Sequence[str], named: Collection[str], roots: Settings
) -> tuple[Config, str]:
    """The configuration of a new run with a batch that its smallest set can fill, and words for it; the same
    configuration and no words where the batch was named, or is filled, or a set is not there yet.

    Args:
        domains: what there are batches of: "source", "target", or "source+target" of both as one set.
        named: the settings that the user gave.
    """
    from mrt.data.registry import find_dataset

    engine, data = config.engine, config.data
    times = 1 if engine.accumulate == AUTO else engine.accumulate
    if "engine.batch_size" in named:
        return config, ""
    images = {}
    for domain in domains:
        names, number = {}, 0
        for part in domain.split("+"):
            name = getattr(data, part)
            try:
                split = find_dataset(name, roots.data_root).split(getattr(data, f"{part}_split"))
            except MrtError:  # told where the set is needed
                return config, ""
            names[name] = None
            number += split.num_images
        images[" and ".join(names)] = number
    fewest = min(images, key=images.__getitem__)
    number = images[fewest]
    if not number or engine.batch_size // times <= number:
        return config, ""
    size = number * times
    what = f"{fewest} has only {number} image{'' if number == 1 else 's'} to learn from"
    smaller = config.model_copy(update={"engine": engine.model_copy(update={"batch_size": size})})
    return smaller, f"engine.batch_size {size}, for {what}"
