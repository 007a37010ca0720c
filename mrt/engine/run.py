"""Carrying out plans, one stage after the other, in a run's folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mrt.config import Config
from mrt.engine import build, checkpoint, distributed
from mrt.engine.data import classes_of, find_cards
from mrt.engine.folder import (
    begin_run,
    changed_plugins,
    finish_stage,
    open_run,
    read_facts,
    record_resumption,
    require_same_data,
    require_same_reads,
    save_networks,
    unfinish_stages,
)
from mrt.engine.labels import require_labels
from mrt.engine.load import source_record
from mrt.engine.loop import Run, run_stage
from mrt.engine.plan import Plan
from mrt.engine.prepare import leave_behind, open_workshop, prepare, take_over
from mrt.engine.report import RunLog, Watcher, forget_later_lines
from mrt.engine.snapshots import SNAPSHOTS
from mrt.engine.validation import validation
from mrt.errors import MrtError


def carry_out(
    plans: Sequence[Plan],
    config: Config,
    folder: Path,
    command: dict[str, Any],
    *,
    data_root: Path,
    resume: bool = False,
    from_checkpoint: str | None = None,
    watcher: Watcher | None = None,
    profile: int = 0,
) -> Path:
    """Run the plans one after the other, each from what the one before left.

    Args:
        command: what goes on record: "command", "init" (where the weights start), and what else resuming must
            not change.
        resume: continue the run in ``folder``, whose own configuration counts.
        from_checkpoint: with ``resume``: the name of a file in its folder "checkpoints" to go on from, rather
            than the last one. What the run did after that checkpoint is forgotten.
        watcher: is told how it goes. profile: steps of each stage to profile (:mod:`mrt.engine.profiling`).

    Returns:
        ``folder``.
    """
    folder, watcher = Path(folder), watcher or Watcher()
    state: dict[str, Any] | None = None
    if resume:
        config, command = open_run(folder, command)
        state = checkpoint.find(folder / "checkpoints", from_checkpoint)
        finished = read_facts(folder)["finished"]
        if state is None and finished:
            raise MrtError(
                f"{folder}: has no checkpoint to go on from; done already: {', '.join(finished)}",
                f"start another run from it, with --init {folder}",
            )
    plans = [plan.active(config) for plan in plans]
    cards = find_cards(plans, config, Path(data_root))
    if resume:
        require_same_data(folder, cards)
    require_labels(config, cards, {domain for plan in plans for domain in plan.labelled})
    if resume:
        told = read_facts(folder)
        classes, source = list(told["classes"]), told.get("source", {})
    else:
        classes, source = classes_of(config, cards, command["init"]), source_record(command["init"])
    reads = {key: digest for plan in plans for key, digest in plan.reads(config, Path(data_root)).items()}
    if resume:
        require_same_reads(folder, config, reads)
    for plan in plans:
        for part in plan.parts:
            part.check(config, cards, classes, Path(data_root))
    with distributed.joined(config.engine.device, config.engine.timeout) as world:
        build.use_machine(config, world.device)
        checkpoint.seed_everything(config.seed)  # the same weights in every process
        watcher = watcher if world.main else Watcher()
        shop = open_workshop(
            config, world, cards, classes, plans, command["init"], state is not None, folder, watcher
        )
        shop.source = source
        names = [plan.name for plan in plans]
        begin = names.index(state["stage"]) if state and state["stage"] in names else 0
        if state is None:
            take_over(plans[0], shop)
        # Before the folder is made: what does not fit leaves no trace.
        stage = prepare(plans[begin], shop, first=state is None)
        evaluate = validation(shop)
        if world.main and resume:
            record_resumption(folder, world.device)
            for name in changed_plugins(folder, config):
                watcher.say(f"{name}: the plug-in is not the one that the run was started with")
            if from_checkpoint is not None:
                checkpoint.go_back(folder / "checkpoints", from_checkpoint, names[begin + 1 :])
            _forget(folder, names[:begin], names[begin:], state)
        elif world.main:
            begin_run(
                folder,
                config.model_copy(update={"init": command["init"]}),
                command,
                cards,
                shop.classes,
                world.device,
                {"source": source, "reads": reads},
            )
        world.wait()
        with RunLog(folder, active=world.main) as log:
            run = Run(folder, config, log, watcher, evaluate, profile)
            for number, plan in enumerate(plans[begin:], begin):
                if number > begin:
                    stage = prepare(plan, shop, first=False)
                if state is not None:
                    checkpoint.restore_checkpoint(state, stage.learner, stage.streams)
                    state = None
                elif world.rank:  # masks and dropout differ between processes
                    checkpoint.seed_everything(config.seed + 1_000_003 * world.rank + max(0, plan.number - 1))
                run_stage(stage, run)
                shop.before = {part.name: part for part in plan.parts}
                if world.main:
                    save_networks(folder, config, shop.classes, stage.learner)
                    for part in plan.parts:
                        part.finish(folder)
                    if len(plans) == 1:
                        leave_behind(plan, shop)
                    finish_stage(folder, plan.name)
                for network, numbers in (evaluate(stage.learner) if evaluate else {}).items():
                    log.write(
                        plan.name,
                        "eval",
                        stage.learner.step,
                        {"epoch": plan.settings.epochs, "network": network, **numbers},
                    )
                world.wait()
    return folder


def _forget(folder: Path, earlier: Sequence[str], again: Sequence[str], state: dict[str, Any] | None) -> None:
    """Take out of the run's logs what came after the checkpoint it goes on from; without one, everything.

    Args:
        earlier: stages that were over before it. again: those that are to come.
    """
    unfinish_stages(folder, again)
    stage, step = (state["stage"], state["step"]) if state else ("", 0)
    for file in ("metrics.jsonl", SNAPSHOTS):
        forget_later_lines(folder / file, earlier, stage, step)
