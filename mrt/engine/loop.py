"""The loop that every stage runs: steps, learning rate, logging, end of epoch, checkpoints, and stopping
without loss.
"""

from __future__ import annotations

import json
import math
import signal
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from mrt.config import Config, StageConfig
from mrt.data.loader import Batch
from mrt.engine.checkpoint import keep_numbered, save_checkpoint, synchronise_statistics
from mrt.engine.learner import Learner, training_step
from mrt.engine.prepare import Stage
from mrt.engine.profiling import StepProfiler
from mrt.engine.report import RunLog, Watcher
from mrt.errors import Interrupted, MrtError, RunFailed
from mrt.parts.base import Moment, Part

ADVICE = (
    "The run's last checkpoint is from before it. Start a new run with a lower learning rate, or "
    "without fp16."
)


@dataclass
class Run:
    """A run folder that is being written, and who watches.

    Attributes:
        evaluate: called at the end of an epoch with the learner; returns numbers to log, by name of the
            evaluated network.
        profile: steps of each stage to profile.
    """

    folder: Path
    config: Config
    log: RunLog
    watcher: Watcher
    evaluate: Callable[[Learner], dict[str, Any]] | None = None
    profile: int = 0
    stopping: bool = False

    @property
    def last(self) -> Path:
        """The checkpoint that ``--resume`` continues."""
        return self.folder / "checkpoints" / "last.pt"


class StopSignals:
    """While inside, Ctrl-C and SIGTERM ask the run to stop after the current step; a second Ctrl-C stops at
    once.

    Of several processes (``alone=False``) each is asked by the launcher, which also does so when one of them
    has died: then there is no next step and nothing to save, so nothing is promised.
    """

    def __init__(self, run: Run, alone: bool = True) -> None:
        self.run, self.alone, self.previous = run, alone, {}

    def __enter__(self) -> None:
        try:
            self.previous = {
                number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)
            }
        except ValueError:  # not the main thread: signals are somebody else's
            self.previous = {}

    def __exit__(self, *_: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def _ask(self, number: int, _frame: FrameType | None) -> None:
        if self.run.stopping and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.run.stopping = True
        more = "; the state will be saved. (Ctrl-C again stops at once.)" if self.alone else "."
        self.run.watcher.say(f"Stopping after this step{more}")


def learning_rate(stage: StageConfig, step: int, steps_per_epoch: int, warmup_steps: int) -> float:
    """The factor on every group's base rate at a step (from 0) of the stage."""
    total = stage.epochs * steps_per_epoch
    ramp = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
    if stage.schedule == "step":
        return ramp * (0.1 if step // steps_per_epoch >= stage.lr_drop else 1.0)
    if stage.schedule == "linear":
        return ramp * min(1.0, (total - step) / max(1.0, 0.4 * total))
    return ramp


def run_stage(stage: Stage, run: Run) -> None:
    """Run a stage from ``stage.learner.step`` to its end.

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
    meter, speed = Meter(learner), Speed(learner.world.size)
    run.watcher.begin(name, total, learner.step)
    run.watcher.epoch(_standing(learner, learner.step // steps_per_epoch))
    if learner.step == 0:
        for part in learner.method:
            part.start()
    profiler = StepProfiler(run.folder, name, run.profile if learner.world.main else 0, run.watcher)
    with StopSignals(run, alone=learner.world.size == 1), profiler:
        while learner.step < total:
            epoch = learner.step // steps_per_epoch
            factor = learning_rate(settings, learner.step, steps_per_epoch, engine.warmup_steps)
            for group, rate in zip(learner.optimiser.param_groups, rates, strict=True):
                group["lr"] = rate * factor
            batches = [
                {domain: next(stream) for domain, stream in stage.streams.items()}
                for _ in range(engine.accumulate)
            ]
            meter.add(training_step(learner, batches, Moment(learner.step, total, epoch)))
            speed.add(batches)
            ends = learner.step % steps_per_epoch == 0
            numbers: dict[str, float] = {}
            stopping = learner.world.any(run.stopping)
            if ends or stopping or learner.step % engine.log_every == 0:
                numbers = {**meter.read(), "lr": settings.lr * factor, "images_per_second": speed.read()}
                run.log.write(name, "train", learner.step, {"epoch": epoch, **numbers})
            run.watcher.advance(1, **numbers)
            profiler.step()
            if ends:
                _end_epoch(stage, run, epoch + 1, numbers, rates)
                speed.restart()
            if stopping:
                save_checkpoint(run.last, name, learner, stage.streams, rates)
                run.watcher.end()
                raise Interrupted(
                    f"stopped at step {learner.step} of {total} of stage {name}; the state is in {run.last}"
                )
    run.watcher.end()


class Meter:
    """Means of the losses since they were last read, over steps and processes; nothing is copied to the host
    in between.
    """

    def __init__(self, learner: Learner) -> None:
        self.learner = learner
        self._forget()

    def _forget(self) -> None:
        self._sums: dict[
            tuple[str, ...], Tensor
        ] = {}  # steps that report the same tensors are summed in one go
        self._numbers: Counter[str] = Counter()
        self._counts: Counter[str] = Counter()

    def add(self, seen: Mapping[str, Tensor | float]) -> None:
        """One step's losses: scalars on the device, or plain numbers."""
        tensors = {name: value for name, value in seen.items() if isinstance(value, Tensor)}
        if tensors:
            self._sums[tuple(tensors)] = (
                self._sums.get(tuple(tensors), 0) + torch.stack(list(tensors.values())).double()
            )
        self._numbers.update({name: value for name, value in seen.items() if name not in tensors})
        self._counts.update(seen.keys())

    def read(self) -> dict[str, float]:
        """The means by name.

        Raises:
            RunFailed: one of them is not finite, or a step's were not; all are printed. (A gradient scaler
                looks after infinite gradients itself.)
        """
        totals: Counter[str] = Counter()
        for names, sums in self._sums.items():
            totals.update(dict(zip(names, sums.tolist(), strict=True)))
        totals.update(self._numbers)
        values = self.learner.world.mean_of_numbers(
            [total / self._counts[name] for name, total in totals.items()]
        )
        means = dict(zip(totals, values, strict=True))
        self._forget()
        excused = ("grad_norm",) if self.learner.scaler.is_enabled() else ()
        failed = int(self.learner.failed or 0)  # in every process the same
        if failed or not all(math.isfinite(value) for name, value in means.items() if name not in excused):
            order = sorted(means, key=lambda name: math.isfinite(means[name]))  # the culprits first
            shown = ", ".join(f"{name} {means[name]:.4g}" for name in order)
            since = f" since step {failed}" if failed else ""
            raise RunFailed(f"a loss or gradient is not finite{since}: {shown}. {ADVICE}")
        return means


class Speed:
    """Images per second, those of all domains and processes together; what happens between epochs is left
    out.
    """

    def __init__(self, processes: int) -> None:
        self.processes = processes
        self.restart()

    def restart(self) -> None:
        """Measure from now on."""
        self._since, self._images = time.perf_counter(), 0

    def add(self, batches: Sequence[Mapping[str, Batch]]) -> None:
        """A step's micro-batches, by domain, of this process."""
        self._images += sum(len(batch.targets) for micro_batch in batches for batch in micro_batch.values())

    def read(self) -> float:
        """The mean since the last reading. Where a GPU computes, read it after the :class:`Meter`, which
        waits for the GPU.
        """
        rate = self._images * self.processes / (time.perf_counter() - self._since)
        self.restart()
        return rate


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


def _end_epoch(stage: Stage, run: Run, done: int, numbers: Mapping[str, float], rates: list[float]) -> None:
    """What parts do, log, checkpoint and evaluation; ``done`` epochs are over."""
    learner, name, engine = stage.learner, stage.plan.name, stage.learner.config.engine
    facts: dict[str, Any] = {"epoch": done}
    for part in learner.method:
        facts |= _told(part, part.after_epoch(done, numbers), facts)
    run.log.write(name, "epoch", learner.step, facts)
    run.watcher.epoch(_standing(learner, done))
    synchronise_statistics(learner)
    save_checkpoint(run.last, name, learner, stage.streams, rates)
    if engine.keep_checkpoints and learner.world.main:
        keep_numbered(run.last, name, done, engine.keep_checkpoints)
    due = engine.eval_every and done % engine.eval_every == 0 and done < learner.stage.epochs
    if run.evaluate is not None and due and not learner.world.any(run.stopping):
        for network, metrics in run.evaluate(learner).items():
            run.log.write(name, "eval", learner.step, {"epoch": done, "network": network, **metrics})
