"""The loop that every stage runs: steps, learning rate, logging, end of epoch, and stopping without loss."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mrt.config import Config, StageConfig
from mrt.engine import early
from mrt.engine.checkpoint import require_plain_parts, synchronise_statistics
from mrt.engine.data import share_bad
from mrt.engine.learner import Learner, training_step
from mrt.engine.meter import Meter, Speed, diverged, image_ids
from mrt.engine.prepare import Stage
from mrt.engine.profiling import StepProfiler
from mrt.engine.report import RunLog, Watcher
from mrt.engine.saver import Saver
from mrt.engine.stopping import Notice, StopSignals
from mrt.engine.store import Checkpoints
from mrt.errors import Interrupted, MrtError, Unstable
from mrt.parts.base import Moment, Part


@dataclass
class Run:
    """A run folder that is being written, and who watches.

    Attributes:
        checkpoints: where they are written.
        classes: that are detected.
        evaluate: called at the end of an epoch with the learner; returns numbers to log, by name of the
            evaluated network.
        profile: steps of each stage to profile.
        notice: says when a checkpoint is asked for.
        own: what this process had kept in the checkpoint that the run goes on from
            (:func:`mrt.engine.run.own_of`).
        stopping: asked for by a signal: to save and end.
        back: the epoch whose teacher a stage that ended early went back to.
    """

    folder: Path
    config: Config
    log: RunLog
    watcher: Watcher
    checkpoints: Checkpoints
    notice: Notice
    classes: list[str] = field(default_factory=list)
    evaluate: Callable[[Learner], dict[str, Any]] | None = None
    profile: int = 0
    own: Mapping[str, Any] | None = None
    stopping: bool = False
    back: int | None = None

    @property
    def last(self) -> Path:
        """The checkpoint that ``--resume`` continues."""
        return self.checkpoints.last


def learning_rate(stage: StageConfig, step: int, steps_per_epoch: int, warmup_steps: int) -> float:
    """The factor on every group's base rate at a step (from 0) of the stage."""
    total = stage.epochs * steps_per_epoch
    ramp = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
    if stage.schedule == "step":
        return ramp * (0.1 if step // steps_per_epoch >= stage.lr_drop else 1.0)
    if stage.schedule == "linear":
        return ramp * min(1.0, (total - step) / max(1.0, 0.4 * total))
    return ramp


def run_stage(stage: Stage, run: Run) -> int:
    """Run a stage from ``stage.learner.step`` to its end; returns how many epochs it had.

    Args:
        stage: of :func:`mrt.engine.prepare.prepare`, possibly part of the way.
        run: where to write.

    Raises:
        Interrupted: stopped by a signal, after writing a checkpoint.
        RunFailed: a loss or gradient that is not finite; the last checkpoint is from before it.
    """
    learner, name, steps_per_epoch = stage.learner, stage.plan.name, stage.steps_per_epoch
    settings, engine = learner.stage, learner.config.engine
    total = settings.epochs * steps_per_epoch
    rates = [group["lr"] for group in learner.optimiser.param_groups]
    meter, speed = Meter(learner, stage, run.checkpoints.folder), Speed(learner.world.size)
    saver = Saver(stage, run, rates, meter)
    run.watcher.begin(name, total, learner.step)
    run.watcher.epoch(_standing(learner, learner.step // steps_per_epoch))
    if learner.step == 0:
        require_plain_parts(learner)
        for part in learner.method:
            part.start()
        if engine.on_collapse == "restore":
            saver.keep_teacher(0)
    run.back = None
    due = saver.restore()
    early.replay(stage, run)
    ended = None
    if learner.step and learner.step % steps_per_epoch == 0:  # it may have been killed before it was kept
        saver.keep_teacher(learner.step // steps_per_epoch)
        ended = early.ended(stage, run, learner.step // steps_per_epoch)
    profiler = StepProfiler(run.folder, name, run.profile if learner.world.main else 0, run.watcher)
    with StopSignals(run, alone=learner.world.size == 1), saver, profiler:
        if due and learner.step < total and ended is None:
            evaluate(stage, run, learner.step // steps_per_epoch)
        while learner.step < total and ended is None:
            epoch = learner.step // steps_per_epoch
            factor = learning_rate(settings, learner.step, steps_per_epoch, engine.warmup_steps)
            for group, rate in zip(learner.optimiser.param_groups, rates, strict=True):
                group["lr"] = rate * factor
            batches = [
                {domain: next(stream) for domain, stream in stage.streams.items()}
                for _ in range(engine.accumulate)
            ]
            try:
                seen = training_step(learner, batches, Moment(learner.step, total, epoch))
            except Unstable as error:
                text = f"{error}{meter.images_of(image_ids(batches))}"
                raise diverged(text, learner, run.checkpoints.folder) from None
            meter.add(seen, batches)
            speed.add(batches)
            ends = learner.step % steps_per_epoch == 0
            numbers: dict[str, float] = {}
            stopping, saving = learner.world.any_of([run.stopping, saver.is_due(run.notice.asked)])
            if ends or learner.step % engine.log_every == 0:
                numbers = {**meter.read(), "lr": settings.lr * factor, "images_per_second": speed.read()}
                run.log.write(name, "train", learner.step, {"epoch": epoch, **numbers})
            run.watcher.advance(1, **numbers)
            profiler.step()
            if stopping or saving:
                run.notice.asked = False
            if ends:
                ended = _end_epoch(stage, run, epoch + 1, numbers, saver)
                speed.restart()
            elif stopping or saving:
                saver.save()
            if stopping:
                saver.finish()
                run.watcher.end()
                raise Interrupted(
                    f"stopped at step {learner.step} of {total} of stage {name}; the state is in {run.last}"
                )
    if ended is not None:
        early.end(stage, run, ended)
    run.watcher.end()
    return learner.step // steps_per_epoch


def _told(part: Part, told: Any, facts: Mapping[str, Any]) -> dict[str, Any]:
    """What a part tells of an epoch; MrtError where it cannot be logged."""
    try:
        plain = json.loads(json.dumps(told)) if isinstance(told, dict) else None
    except (TypeError, ValueError):
        plain = None
    if plain is None:
        raise MrtError(
            f"part {part.name!r}, after_epoch(): gave {told!r}", "it has to give a dict of plain values"
        )
    twice = [name for name in plain if name in facts]
    if twice:
        raise MrtError(
            f"part {part.name!r}, after_epoch(): {twice[0]!r} is told already", "choose another name"
        )
    return plain


def _standing(learner: Learner, done: int) -> dict[str, Any]:
    """What :meth:`Watcher.epoch` is told when ``done`` epochs are over."""
    facts: dict[str, Any] = {"epoch": done, "epochs": learner.stage.epochs}
    for part in learner.method:
        facts |= part.facts(done)
    return facts


def _end_epoch(
    stage: Stage, run: Run, done: int, numbers: Mapping[str, float], saver: Saver
) -> early.Ended | None:
    """What parts do, log, checkpoint and evaluation; ``done`` epochs are over.

    Returns:
        Whether the stage ends here.
    """
    learner, name, engine = stage.learner, stage.plan.name, stage.learner.config.engine
    facts: dict[str, Any] = {"epoch": done}
    for part in learner.method:
        facts |= _told(part, part.after_epoch(done, numbers), facts)
    facts |= early.watch(stage, run, facts)
    share_bad(stage.streams, learner.world)
    bad = {file for stream in stage.streams.values() for file in stream.bad}
    if bad:
        facts["replaced_images"] = len(bad)
    run.log.write(name, "epoch", learner.step, facts)
    run.watcher.epoch(_standing(learner, done))
    synchronise_statistics(learner)
    due = bool(engine.eval_every and done % engine.eval_every == 0) and run.evaluate is not None
    saver.save(done, due)
    ended = early.ended(stage, run, done)
    # The last epoch's comes when the weights are written; a run that goes on for more epochs needs it here.
    if due and done < learner.stage.epochs and ended is None and not learner.world.any(run.stopping):
        evaluate(stage, run, done)
    return ended


def evaluate(stage: Stage, run: Run, done: int) -> None:
    """Measure the networks, and log it. A run that stopped before this was over does it when it goes on.

    A teacher that went back is logged with the epoch that it is of.

    Raises:
        Diverged: they find what is not finite.
    """
    learner = stage.learner
    try:
        measured = run.evaluate(learner) if run.evaluate else {}
    except Unstable as error:
        raise diverged(str(error), learner, run.checkpoints.folder) from None
    for network, metrics in measured.items():
        epoch = run.back if network == "teacher" and run.back is not None else done
        line = {"epoch": epoch, "network": network, **metrics}
        run.log.write(stage.plan.name, "eval", learner.step, line)
