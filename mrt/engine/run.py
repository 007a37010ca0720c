"""Carrying out plans, one stage after the other, in a run's folder."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mrt import failures
from mrt.config import Config
from mrt.engine import build, checkpoint, distributed, fitting, store
from mrt.engine.data import classes_of, find_cards
from mrt.engine.diagnosis import broken, left_by
from mrt.engine.facts import is_run, read_facts
from mrt.engine.folder import (
    begin_run,
    changed_plugins,
    finish_stage,
    forget_left,
    open_run,
    record_change,
    record_resumption,
    remove_leftovers,
    require_run,
    require_same_data,
    require_same_reads,
    require_unchanged,
    save_networks,
    settle_change,
    unfinish_stages,
)
from mrt.engine.kept import forget_later_teachers
from mrt.engine.labels import require_labels
from mrt.engine.load import source_record
from mrt.engine.loggers import Loggers, require_loggers
from mrt.engine.loop import Run, evaluate, run_stage
from mrt.engine.plan import Plan
from mrt.engine.prepare import leave_behind, open_workshop, prepare, take_over
from mrt.engine.report import LOGS, RunLog, Watcher, take_back, wrong_logs
from mrt.engine.saver import require_finite
from mrt.engine.stopping import Notice
from mrt.engine.store import DAMAGED
from mrt.engine.validation import validation
from mrt.errors import MrtError, RunFailed
from mrt.lock import RunLock
from mrt.models.sealed import is_name
from mrt.plain import quoted
from mrt.seal import Prefix

CHECKPOINTS = "checkpoints"  # the folder of a run's


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
    changes: Mapping[str, Any] | None = None,
) -> Path:
    """Run the plans one after the other, each from what the one before left.

    Args:
        command: what goes on record: "command", "init" (where the weights start), and what else resuming must
            not change.
        resume: continue the run in ``folder``, whose own configuration counts.
        from_checkpoint: with ``resume``: the name of a file in its folder "checkpoints" to go on from, rather
            than the last one. What the run did after that checkpoint is forgotten.
        watcher: is told how it goes. profile: steps of each stage to profile (:mod:`mrt.engine.profiling`).
        changes: with ``resume``: "config", the settings that the run goes on with instead of its own, and
            "settings", which of them are others: dotted key -> [before, now].

    Returns:
        ``folder``.
    """
    folder, watcher = Path(folder), watcher or Watcher()
    data_root, changes = Path(data_root), changes or {}
    with contextlib.ExitStack() as held, failures.machine_failures(), Notice(watcher.say) as notice:
        resumed, lock = None, None
        if resume:
            require_run(folder)
            if distributed.is_first():
                lock = held.enter_context(RunLock(folder, watcher.say))
                remove_leftovers(folder)
            config, command = open_run(folder, command)
            if from_checkpoint is None and not changes and _is_complete(folder, plans, watcher):
                watcher.say(f"{folder}: is finished; nothing is left to do")
                return folder
            resumed = _start(folder, config, command, from_checkpoint)
            resumed.lock = lock
        return _carry_out(
            plans, config, folder, command, data_root, resumed, watcher, profile, changes, held, notice
        )


def _is_complete(folder: Path, plans: Sequence[Plan], watcher: Watcher) -> bool:
    """Whether all stages of a run are done and what they have left is as it was written."""
    facts = read_facts(folder)
    if not {plan.name for plan in plans} <= set(facts["finished"]):
        return False
    logs = wrong_logs(folder, facts.get("logs", {}), whole=True)
    left = facts.get("left", {})
    wrong = [f"{folder / name}: {what}" for name, what in logs.items()]
    wrong += [reason for name in left_by(folder, facts) if (reason := broken(folder / name, left.get(name)))]
    if wrong and any((folder / CHECKPOINTS).glob("*.pt")):
        for text in wrong:
            watcher.say(f"Warning: {text}")
        watcher.say("It is written again from the last checkpoint.")
        return False
    if wrong:
        raise MrtError(
            "\n".join(wrong), f"the run has no checkpoint to write it from again; mrt doctor {quoted(folder)}"
        )
    return True


@dataclass
class Resumed:
    """A run that goes on.

    Attributes:
        config, command: its own. facts: ``run.json``.
        found: the checkpoint; None where it was killed before its first.
        back: whether somebody chose an earlier one. lock: on the folder, in the first process.
    """

    config: Config
    command: dict[str, Any]
    facts: dict[str, Any]
    found: store.Found | None
    back: bool
    lock: RunLock | None = None

    def take_state(self) -> dict[str, Any] | None:
        """What is in the checkpoint, in the schema of now. It is not kept here: it is large."""
        if self.found is None:
            return None
        state = checkpoint.upgrade(self.found.state)
        self.found.state = {name: state[name] for name in ("stage", "step")}
        return state


def _start(folder: Path, config: Config, command: dict[str, Any], name: str | None) -> Resumed:
    """Where a run goes on.

    Raises:
        MrtError: its checkpoints are gone, or not what was written, or another run's.
    """
    facts, checkpoints = read_facts(folder), folder / CHECKPOINTS
    found = store.newest(checkpoints) if name is None else store.named(checkpoints, name)
    if found is None and (facts["finished"] or facts.get("checkpoints")):
        done = f"; done already: {', '.join(facts['finished'])}" if facts["finished"] else ""
        networks = [file for file in ("teacher", "student") if (folder / f"{file}.safetensors").is_file()]
        raise MrtError(
            f"{folder}: has no checkpoint to go on from (there were some){done}",
            f"start another run from it, with --init {quoted(folder)}"
            if networks
            else f"put its {CHECKPOINTS} back, or start another run with --name",
        )
    whose = found.facts.get("run") if found else None
    if whose is not None and facts.get("id") is not None and whose != facts["id"]:
        raise MrtError(
            f"{found.path}: is a checkpoint of another run",
            "put this run's back, or go on from another one with --resume-from",
        )
    return Resumed(config, command, facts, found, name is not None)


def _carry_out(
    plans: Sequence[Plan],
    config: Config,
    folder: Path,
    command: dict[str, Any],
    data_root: Path,
    resumed: Resumed | None,
    watcher: Watcher,
    profile: int,
    changes: Mapping[str, Any],
    held: contextlib.ExitStack,
    notice: Notice,
) -> Path:
    state = None
    if resumed is not None:
        config, command = changes.get("config", resumed.config), resumed.command
        state = resumed.take_state()
    plans = [plan.active(config) for plan in plans]
    cards = find_cards(plans, config, data_root)
    require_unchanged(cards, config)
    if resumed is not None:
        require_same_data(folder, cards)
    require_loggers(config.engine.loggers)
    require_labels(config, cards, {domain for plan in plans for domain in plan.labelled})
    if resumed is not None:
        classes, source = list(resumed.facts["classes"]), resumed.facts.get("source", {})
    else:
        classes, source = classes_of(config, cards, command["init"]), source_record(command["init"])
    odd = [name for name in classes if not is_name(name)]
    if odd:
        raise MrtError(
            f"{odd[0]!a}: is no name of a class: it is blank or has control characters",
            "give it another name in the data set (mrt prepare-data makes it anew)",
        )
    if config.engine.patience and len(classes) < 2 and any(plan.kind == "teach" for plan in plans):
        raise MrtError(
            "engine.patience: prototypes compare classes, and this detector has one",
            "set it to 0; with engine.keep_teachers mrt select chooses afterwards",
        )
    reads = {key: digest for plan in plans for key, digest in plan.reads(config, data_root).items()}
    if resumed is not None:
        require_same_reads(folder, config, reads)
    for plan in plans:
        for part in plan.parts:
            part.check(config, cards, classes, data_root)
    with distributed.joined(config.engine.device, config.engine.timeout) as world:
        if resumed is not None:
            _require_one_checkpoint(resumed, world)
        build.use_machine(config, world.device)
        config = fitting.settle(
            config,
            plans,
            cards,
            classes,
            world,
            command["init"],
            folder,
            watcher if world.main else Watcher(),
        )
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
        if state is not None:
            try:
                checkpoint.restore_checkpoint(state, stage.learner, stage.streams, strict=bool(changes))
            except MrtError as error:
                raise MrtError(f"{resumed.found.path}: {error.message}", error.hint) from error
            total = plans[begin].settings.epochs * stage.steps_per_epoch
            if stage.learner.step > total:
                raise MrtError(
                    f"{plans[begin].name}: {stage.learner.step} steps are done, its epochs have {total}",
                    "take more epochs, or an earlier checkpoint with --resume-from",
                )
        measure, lock = validation(shop), None
        if world.main and resumed is not None:
            lock = resumed.lock
            _go_back(folder, resumed, names, begin, watcher, world.device, changes, stage.steps_per_epoch)
        elif world.main:
            lock = begin_run(
                folder,
                config.model_copy(update={"init": command["init"]}),
                command,
                cards,
                shop.classes,
                world.device,
                {"source": source, "reads": reads, "plan": names},
                watcher.say,
            )
            held.callback(lock.release)
        world.wait()
        checkpoints = store.Checkpoints(
            folder / CHECKPOINTS,
            config.engine.keep_checkpoints,
            background=world.device.type == "cuda",
            is_there=None if lock is None else lambda: lock.is_there() and is_run(folder),
        )
        own = own_of(state, world) if state is not None else None
        if state is not None:  # whatever has been drawn since
            checkpoint.restore_process(state["random"], world, config.seed, state["step"])
        state = None
        loggers = None
        if world.main and config.engine.loggers:
            started, settings = read_facts(folder).get("started"), config.model_dump(mode="json")
            loggers = Loggers(config.engine.loggers, folder, started, settings, watcher.say)
        with RunLog(folder, active=world.main, loggers=loggers) as log:
            run = Run(folder, config, log, watcher, checkpoints, notice, shop.classes, measure, profile, own)
            for number, plan in enumerate(plans[begin:], begin):
                if number > begin:
                    stage = prepare(plan, shop, first=False)
                if world.rank and (number > begin or own is None):
                    # Masks and dropout differ between processes.
                    checkpoint.seed_everything(config.seed + 1_000_003 * world.rank + max(0, plan.number - 1))
                epochs = run_stage(stage, run)
                shop.before = {part.name: part for part in plan.parts}
                if world.main:
                    checkpoints.require_there()
                    require_finite(stage, run)
                    forget_left(folder)
                    save_networks(folder, config, shop.classes, stage.learner)
                    for part in plan.parts:
                        part.finish(folder)
                    if len(plans) == 1:
                        leave_behind(plan, shop)
                evaluate(stage, run, epochs)
                if world.main:
                    log.sync()
                    checkpoints.require_there()
                    finish_stage(folder, plan.name)
                world.wait()
    return folder


def _require_one_checkpoint(resumed: Resumed, world: distributed.World) -> None:
    """RunFailed in every process if they go on from different checkpoints: one could not read the newest."""
    found = resumed.found
    mine = (found.path.name, found.state.get("stage"), found.state.get("step")) if found else ("none",)
    everyone = world.gather(mine)
    if any(one != everyone[0] for one in everyone):
        words = "; ".join(f"process {rank}: {one[0]}" for rank, one in enumerate(everyone))
        raise RunFailed(f"the processes would go on from different checkpoints ({words}): try again")


def own_of(state: Mapping[str, Any], world: distributed.World) -> dict[str, Any]:
    """What this process kept for itself in a checkpoint. What was counted by processes that there are no more
    is left out.
    """
    kept = state.get("own", [])
    if len(kept) == world.size:
        return dict(kept[world.rank])
    return {"due": bool(kept and kept[0].get("due"))}


def _go_back(
    folder: Path,
    resumed: Resumed,
    names: Sequence[str],
    begin: int,
    watcher: Watcher,
    device: torch.device,
    changes: Mapping[str, Any],
    steps_per_epoch: int,
) -> None:
    """Bring the folder of a run that goes on to how it was at its checkpoint; say what is not as usual."""
    found = resumed.found
    if found is not None:
        for path, reason in found.damaged.items():
            watcher.say(f"Warning: {reason}")
            watcher.say(f"Going on from {found.path.name}; the damaged file is kept as {path.name}{DAMAGED}.")
        store.set_aside(found.damaged)
        store.go_back(found, names[begin + 1 :])
    settle_change(folder)
    if changes:
        step = {name: found.state[name] for name in ("stage", "step")} if found else {}
        record_change(folder, changes["config"], step, changes["settings"])
    record_resumption(folder, device)
    for name in changed_plugins(folder, resumed.config):
        watcher.say(f"{name}: the plug-in is not the one that the run was started with")
    unfinish_stages(folder, names[begin:])
    stage, step = (found.state["stage"], found.state["step"]) if found else ("", 0)
    steps = steps_per_epoch if stage == names[begin] else 1
    forget_later_teachers(folder, stage, step // steps, names[begin + 1 :] if found else names)
    recorded = found.facts.get("logs") if found else {name: Prefix.of(Path()).to_dict() for name in LOGS}
    for text in take_back(folder, recorded, names[:begin], stage, step):
        watcher.say(f"Warning: {text}")
