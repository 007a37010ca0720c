"""A run as a user asked for it: settings, folder, starting weights, and how to train it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mrt.ablate.studies import METHODS
from mrt.config import Config, Settings
from mrt.errors import MrtError
from mrt.experiment.places import (
    find_roots,
    find_run,
    require_data,
    require_detector,
    require_labels,
    require_new,
    root_words,
    targets,
)
from mrt.experiment.settings import OWN, choose_preset, configure, default_name
from mrt.experiment.taken import Taken, assumed_words, batch_that_fits, network_of, take_source

STAGES = ("mae", "teach")
# The method of a preset that is made for another than its settings say.
USUAL = {OWN: "limited", "own-small": "limited"}
OTHER_WEIGHTS = (
    "Or begin with other weights: --set model.weights=FILE (a detector's, or a backbone's), or "
    "--init RUN_OR_WEIGHTS."
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
            :data:`mrt.experiment.plan.USUAL`.
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
        raise MrtError("mrt adapt: adapt to what?", targets(find_roots(data_root, run_root)))
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
            taken = take_source(target, init, method, roots)
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
    network = network_of(init, roots) if init and preset is None and not resume and (free or own) else {}
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
        config, fewer = batch_that_fits(config, domains, {*given, *_named_by(overrides)}, roots)
    words = "adapt" + (f" --method {method}" if method else "")
    words += "".join(f" --stage {item}" for item in dict.fromkeys(stage or ()))
    asked = {"target": target} if config.method.source_free else {"source": source, "target": target}
    assumed = assumed_words(config, preset, resume, asked, taken.words, init if network else None, fewer)
    return Experiment(
        *("adapt", words, config, folder, roots, kind, init, resume, resume_from, changed),
        stages=chosen,
        assumed=assumed,
    )


def _named_by(overrides: Sequence[str] | None) -> set[str]:
    """The settings that ``--set`` names."""
    return {text.partition("=")[0].strip() for text in overrides or ()}


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
    network = network_of(init, roots) if init and own and not resume else {}
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
        config, fewer = batch_that_fits(config, domains, {*given, *_named_by(overrides)}, roots)
    words = "pretrain-source" + (" --match-compute" if match_compute else "")
    words += f" --oracle {oracle}" if oracle else ""
    asked = {"source": source, **({"target": target} if match_compute or oracle else {})}
    assumed = assumed_words(config, preset, resume, asked, network=init if network else None, fewer=fewer)
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
