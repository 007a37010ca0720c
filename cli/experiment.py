"""Running experiments from the terminal, in one process or several, and continuing after interruptions."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from mrt.errors import Diverged, Interrupted, MrtError, RunFailed

if TYPE_CHECKING:
    from mrt.experiment import Experiment


def carry_out(
    plan: Experiment,
    ctx: typer.Context,
    data_root: Path | None,
    run_root: Path | None,
    *,
    gpus: int | None,
    profile: int,
    dry_run: bool,
) -> bool:
    """Train what a command asks for, or print its settings.

    Args:
        data_root, run_root: as the options were given.

    Returns:
        Whether a run was trained by this process.
    """
    from . import launch
    from .console import fitted, say, watching

    if dry_run:
        plan.require_labels(prepared=False)
        check_weights(plan)
        if plan.assumed:
            typer.echo(fitted(f"Not said, so taken: {plan.assumed}.", "stderr"), err=True)
        for text in plan.config.warnings(*plan.stages):
            typer.echo(fitted(text, "stderr"), err=True)
        say(plan.config.to_json().rstrip())
        return False
    if plan.assumed and launch.STARTED not in os.environ:
        say(f"Not said, so taken: {plan.assumed}.")
    start = plan.starting_weights()
    if gpus is not None and launch.needed(gpus, plan.config, ctx):
        with resumable(f"{plan.words} --gpus {gpus}", plan.folder, data_root, run_root):
            launch.start(gpus, ctx)
        return False
    with watching() as watcher, resumable(plan.words, plan.folder, data_root, run_root):
        plan.run(start, watcher, profile)
    say(f"Written to {plan.folder}. {what_next(plan, data_root)}")
    return True


def what_next(plan: Experiment, data_root: Path | None) -> str:
    """A message with a command to use the finished run.

    It evaluates the run on the target, else on the source, if one of them has boxes to measure with that were
    not learned from; else it shows what the run finds in the target's images, or the source's.

    Args:
        data_root: as the option was given.
    """
    from mrt.data.registry import find_dataset
    from mrt.engine.facts import read_facts
    from mrt.engine.labels import SOURCE, class_map_for, split_to_measure

    classes = read_facts(plan.folder)["classes"]
    data, more = plan.config.data, [] if data_root is None else ["--data-root", str(data_root)]
    learned = {data.target: data.target_split if plan.oracle else None}
    learned |= {data.source: data.source_split} if SOURCE in (plan.oracle or SOURCE) else {}
    look = None
    for name in dict.fromkeys([data.target, *([] if plan.source_free else [data.source])]):
        try:
            card = find_dataset(name, plan.roots.data_root)
        except MrtError:
            continue
        seen = [learned[name]] if learned.get(name) else []
        usual = data.validation_split
        if split_to_measure(card, classes, class_map_for(plan.config, card), usual, seen):
            where = ["--data", name] if name != data.target else []
            words = ["mrt", "eval", str(plan.folder), *where, *more]
            return f"Evaluate it: {shlex.join(words)}"
        look = look or card
    words = ["mrt", "predict", str(plan.folder), *([str(look.folder)] if look else [])]
    return f"See what it finds: {shlex.join(words)}{'' if look else ' PHOTOS'}"


def check_weights(plan: Experiment) -> None:
    """MrtError if the weights named for a new run do not fit it. Weights on the hub are not downloaded."""
    from mrt.experiment import require_detector
    from mrt.models.hub import hub_name

    where = plan.named_weights()
    if where is None or (hub_name(where) is not None and not Path(where).exists()):
        return
    require_detector(where, plan.roots.run_root)

    from mrt.engine.load import describe, require_fit

    require_fit(plan.config.model, describe(where), where)


def require_one_process(command: str) -> None:
    """MrtError under torchrun, for a command whose runs follow one another in one process."""
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise MrtError(
            f"mrt {command}: runs in one process, but WORLD_SIZE is {os.environ['WORLD_SIZE']}",
            "several processes train one run: torchrun ... -m mrt_cli pretrain-source, or adapt",
        )


@contextmanager
def resumable(command: str, folder: Path, data_root: Path | None, run_root: Path | None) -> Iterator[None]:
    """Adds the command that continues the run to the message of an interruption or of a failure of the
    machine.

    ``data_root`` and ``run_root`` are as the options were given.
    """
    from mrt.engine.facts import is_run
    from mrt.experiment import find_roots

    from .app import explain
    from .console import RANK
    from .launch import STARTED

    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        told = explain(error)
        there = is_run(folder) or (folder / "checkpoints" / "last.pt").is_file()
        # Of the processes of --gpus the first tells it, but for a stop, which is told by their parent.
        silent = STARTED in os.environ and (isinstance(told, Interrupted) or RANK != 0)
        how = told.how if isinstance(told, Diverged) else ["--resume"]
        if not isinstance(told, RunFailed) or silent or not there or not how:
            raise
        gpus = ["--gpus", os.environ[STARTED]] if STARTED in os.environ else []
        words = ["mrt", *command.split(), *gpus, *how]
        words += ["--name", str(folder.relative_to(find_roots(None, run_root).run_root))]
        for option, path in (("--data-root", data_root), ("--run-root", run_root)):
            words += [option, str(path)] if path is not None else []
        stopped = isinstance(error, KeyboardInterrupt)
        what = "stopped at once; the run goes on from its last checkpoint" if stopped else str(told)
        go_on = "go back with" if isinstance(told, Diverged) else "continue with"
        kind = RunFailed if isinstance(told, Diverged) else type(told)
        raise kind(f"{what}\n{go_on}: {shlex.join(words)}") from None


@contextmanager
def repeatable(command: str) -> Iterator[None]:
    """Adds to the message of an interruption that repeating the command continues from there."""
    try:
        yield
    except (Interrupted, KeyboardInterrupt) as error:
        what = str(error) or "stopped"
        raise Interrupted(f"{what}\nrepeat the mrt {command} command to go on from there") from None
