"""The loop that every stage runs: steps, learning rate, logging, end of epoch, checkpoints, and stopping without loss."""

from __future__ import annotations

import math
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from mrt.adapt.retrain import restore
from mrt.config import Config, MaeConfig, StageConfig
from mrt.data.loader import Batch, on_device
from mrt.engine import checkpoint
from mrt.engine.distributed import World
from mrt.engine.profiling import StepProfiler
from mrt.engine.report import RunLog, Watcher
from mrt.engine.snapshots import LabelSnapshots
from mrt.engine.step import Learner, training_step
from mrt.errors import Interrupted, RunFailed

ADVICE = "The run's last checkpoint is from before it. Start a new run with a lower learning rate, or without fp16."
LABEL_ALARM = 1.5  # pseudo labels per image, as a multiple of the source's boxes per image, that hint at an explosion


class Stream:
    """Batches without end from a loader, shuffled anew for each pass, that can go on from any position.

    Args:
        loader: from :func:`mrt.data.loader.build_loader`.
        position: batches already taken from the beginning of the stage (not those that are only on their way to the device).
        device: where they are wanted.
    """

    def __init__(self, loader: DataLoader, position: int = 0, device: torch.device | None = None) -> None:
        loader.sampler.set_epoch(0)
        self.loader, self.position, self.length = loader, position, len(loader)
        self.device = device or torch.device("cpu")
        self._batches: Iterator[Batch] | None = None

    def __next__(self) -> Batch:
        for _ in range(2):
            if self._batches is None:
                epoch, done = divmod(self.position, self.length)
                self.loader.sampler.set_epoch(epoch, done * self.loader.batch_size)
                self._batches = on_device(self.loader, self.device)
            batch = next(self._batches, None)
            if batch is not None:
                self.position += 1
                return batch
            self._batches = None
        raise RunFailed("the data loader gave no batch: there are fewer images than the batch size")


@dataclass
class Run:
    """A run folder that is being written, and who watches.

    Attributes:
        evaluate: called at the end of an epoch with the learner; returns numbers to log, by name of the evaluated network.
        snapshots: records the teacher's pseudo labels of a few images after each epoch of teaching; one process has them.
        profile: steps of each stage to profile.
    """

    folder: Path
    config: Config
    log: RunLog
    watcher: Watcher
    facts: dict[str, Any] = field(default_factory=dict)
    evaluate: Callable[[Learner], dict[str, Any]] | None = None
    snapshots: LabelSnapshots | None = None
    profile: int = 0
    stopping: bool = False

    @property
    def last(self) -> Path:
        """The checkpoint that ``--resume`` continues."""
        return self.folder / "checkpoints" / "last.pt"


class StopSignals:
    """While inside, Ctrl-C and SIGTERM ask the run to stop after the current step; a second Ctrl-C stops at once.

    Of several processes (``alone=False``) each is asked by the launcher, which also does so when one of them has died: then there is no
    next step and nothing to save, so nothing is promised.
    """

    def __init__(self, run: Run, alone: bool = True) -> None:
        self.run, self.alone, self.previous = run, alone, {}

    def __enter__(self) -> None:
        try:
            self.previous = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}
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


def mae_weight(settings: MaeConfig, epoch: int, teaching: bool) -> float:
    """lambda_mask in an epoch (from 0): constant in the MAE stage, decaying in the teaching stage (method.md, masked autoencoder)."""
    if not teaching or settings.decay == "none":
        return settings.weight
    if settings.decay == "hard":
        return settings.weight if epoch < settings.decay_epoch else 0.0
    return settings.weight * max(0.0, 1.0 - epoch / max(1, settings.decay_epoch))


def run_stage(name: str, learner: Learner, streams: Mapping[str, Stream], run: Run, steps_per_epoch: int, source_boxes: float) -> None:
    """Run a stage from ``learner.step`` to its end.

    Args:
        name: "pretrain", "mae" or "teach"; names the log lines and the checkpoint.
        learner: what is trained, possibly part of the way.
        streams: batches by domain.
        run: where to write.
        steps_per_epoch: optimiser steps.
        source_boxes: labelled boxes per source image, to notice pseudo labels that explode.

    Raises:
        Interrupted: stopped by a signal, after writing a checkpoint.
        RunFailed: a loss or gradient that is not finite; the last checkpoint is from before it.
    """
    stage, engine = learner.stage, learner.config.engine
    total = stage.epochs * steps_per_epoch
    rates = [group["lr"] for group in learner.optimiser.param_groups]
    meter, speed = Meter(learner), Speed(learner.world.size)
    run.watcher.begin(name, total, learner.step)
    run.watcher.epoch(_standing(learner, run, learner.step // steps_per_epoch))
    if run.snapshots is not None and learner.parts.teach and learner.step == 0:
        run.snapshots.take(name, learner, 0)
    profiler = StepProfiler(run.folder, name, run.profile if learner.world.main else 0, run.watcher)
    with StopSignals(run, alone=learner.world.size == 1), profiler:
        while learner.step < total:
            epoch = learner.step // steps_per_epoch
            factor = learning_rate(stage, learner.step, steps_per_epoch, engine.warmup_steps)
            for group, rate in zip(learner.optimiser.param_groups, rates, strict=True):
                group["lr"] = rate * factor
            batches = [{domain: next(stream) for domain, stream in streams.items()} for _ in range(engine.accumulate)]
            meter.add(
                training_step(learner, batches, mae_weight(learner.config.mae, epoch, learner.parts.teach), _reversal(learner, total))
            )
            speed.add(batches)
            ends = learner.step % steps_per_epoch == 0
            numbers: dict[str, float] = {}
            stopping = learner.world.any(run.stopping)
            if ends or stopping or learner.step % engine.log_every == 0:
                numbers = {**meter.read(), "lr": stage.lr * factor, "images_per_second": speed.read()}
                run.log.write(name, "train", learner.step, {"epoch": epoch, **numbers})
            run.watcher.advance(1, **numbers)
            profiler.step()
            if ends:
                _end_epoch(name, learner, streams, run, epoch + 1, source_boxes, numbers, rates)
                speed.restart()
            if stopping:
                save_checkpoint(name, learner, streams, run, rates)
                run.watcher.end()
                raise Interrupted(f"stopped at step {learner.step} of {total} of stage {name}; the state is in {run.last}")
    run.watcher.end()


class Meter:
    """Means of the losses since they were last read, over steps and processes; nothing is copied to the host in between."""

    def __init__(self, learner: Learner) -> None:
        self.learner = learner
        self._forget()

    def _forget(self) -> None:
        self._sums: dict[tuple[str, ...], Tensor] = {}  # steps that report the same tensors are summed in one go
        self._numbers: Counter[str] = Counter()
        self._counts: Counter[str] = Counter()

    def add(self, seen: Mapping[str, Tensor | float]) -> None:
        """One step's losses: scalars on the device, or plain numbers."""
        tensors = {name: value for name, value in seen.items() if isinstance(value, Tensor)}
        if tensors:
            self._sums[tuple(tensors)] = self._sums.get(tuple(tensors), 0) + torch.stack(list(tensors.values())).double()
        self._numbers.update({name: value for name, value in seen.items() if name not in tensors})
        self._counts.update(seen.keys())

    def read(self) -> dict[str, float]:
        """The means by name.

        Raises:
            RunFailed: one of them is not finite; all are printed. (A gradient scaler looks after infinite gradients itself.)
        """
        totals: Counter[str] = Counter()
        for names, sums in self._sums.items():
            totals.update(dict(zip(names, sums.tolist(), strict=True)))
        totals.update(self._numbers)
        values = self.learner.world.mean_of_numbers([total / self._counts[name] for name, total in totals.items()])
        means = dict(zip(totals, values, strict=True))
        self._forget()
        excused = ("grad_norm",) if self.learner.scaler.is_enabled() else ()
        if not all(math.isfinite(value) for name, value in means.items() if name not in excused):
            shown = ", ".join(f"{name} {value:.4g}" for name, value in means.items())
            raise RunFailed(f"a loss or gradient is not finite: {shown}. {ADVICE}")
        return means


class Speed:
    """Images per second, those of all domains and processes together; what happens between epochs is left out."""

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
        """The mean since the last reading. Where a GPU computes, read it after the :class:`Meter`, which waits for the GPU."""
        rate = self._images * self.processes / (time.perf_counter() - self._since)
        self.restart()
        return rate


def _reversal(learner: Learner, total: int) -> float:
    settings = learner.config.domain
    return settings.reversal * (min(1.0, learner.step / (settings.ramp * total)) if settings.ramp else 1.0)


def _standing(learner: Learner, run: Run, done: int) -> dict[str, Any]:
    """What :meth:`Watcher.epoch` is told when ``done`` epochs are over."""
    facts: dict[str, Any] = {"epoch": done, "epochs": learner.stage.epochs}
    if learner.parts.teach:
        facts["thresholds"] = dict(zip(run.facts["classes"], learner.thresholds.values.tolist(), strict=True))
    every = learner.config.retrain.every
    due = (done // every + 1) * every if learner.reinit and every else learner.stage.epochs
    return facts | ({"next_retraining": due} if due < learner.stage.epochs else {})


def _end_epoch(
    name: str,
    learner: Learner,
    streams: Mapping[str, Stream],
    run: Run,
    done: int,
    source_boxes: float,
    numbers: Mapping[str, float],
    rates: list,
) -> None:
    """Thresholds, selective retraining, log, checkpoint and evaluation; ``done`` epochs are over."""
    facts: dict[str, Any] = {"epoch": done}
    if learner.parts.teach:
        thresholds = learner.thresholds.update(learner.world.sum)
        facts["thresholds"] = dict(zip(run.facts["classes"], [round(value, 6) for value in thresholds.tolist()], strict=True))
        labels = learner.label_count.read(learner.world.sum)
        facts["labels_per_image"] = {name: round(value, 4) for name, value in zip(run.facts["classes"], labels, strict=False)}
        if run.snapshots is not None:
            run.snapshots.take(name, learner, done)
        if numbers.get("pseudo_labels", 0.0) > LABEL_ALARM * source_boxes:
            run.watcher.say(
                f"Warning: {numbers['pseudo_labels']:.1f} pseudo labels per image, the source has {source_boxes:.1f} boxes: "
                "the teacher may be running away. Raise teacher.threshold_min."
            )
    settings = learner.config.retrain
    if learner.reinit and settings.every and done % settings.every == 0 and done < learner.stage.epochs:
        restore(learner.student.detector, learner.reinit)
        facts["retrained"] = len(learner.reinit)
        run.watcher.say(f"epoch {done}: selective retraining put {settings.parts} back to where teaching began")
    run.log.write(name, "epoch", learner.step, facts)
    run.watcher.epoch(_standing(learner, run, done) | ({"retrained": settings.parts} if "retrained" in facts else {}))
    save_checkpoint(name, learner, streams, run, rates)
    keep = learner.config.engine.keep_checkpoints
    if keep and learner.world.main:
        _keep_numbered(run, name, done, keep)
    every = learner.config.engine.eval_every
    if run.evaluate is not None and every and done % every == 0 and done < learner.stage.epochs and not learner.world.any(run.stopping):
        for network, metrics in run.evaluate(learner).items():
            run.log.write(name, "eval", learner.step, {"epoch": done, "network": network, **metrics})


def save_checkpoint(name: str, learner: Learner, streams: Mapping[str, Stream], run: Run, rates: list[float]) -> None:
    """Write everything needed to go on from here (every process' random state, too)."""
    states = learner.world.gather(checkpoint.random_state())
    _average_statistics(learner)
    thresholds = learner.thresholds.state_dict()
    thresholds["record"] = learner.world.sum(thresholds["record"])
    label_count = learner.world.sum(learner.label_count.counts.clone())
    if not learner.world.main:
        return
    optimiser = learner.optimiser.state_dict()
    for group, rate in zip(optimiser["param_groups"], rates, strict=True):
        group["lr"] = rate  # the base rate: the schedule is a function of the step
    checkpoint.save(
        run.last,
        {
            "stage": name,
            "step": learner.step,
            "student": learner.student.state_dict(),
            "teacher": learner.teacher.state_dict() if learner.teacher is not None else None,
            "optimiser": optimiser,
            "scaler": learner.scaler.state_dict(),
            "thresholds": thresholds,
            "label_count": label_count,
            "reinit": learner.reinit,
            "positions": {domain: stream.position for domain, stream in streams.items()},
            "random": states,
        },
    )


def restore_checkpoint(state: Mapping[str, Any], learner: Learner, streams: Mapping[str, Stream]) -> None:
    """Undo :func:`save_checkpoint`, with as many processes as then or another number.

    The streams count batches of all processes together, so the same images follow in the same order. Processes beyond those that saved
    draw their dropout and masks from a fresh seed.
    """
    learner.student.load_state_dict(state["student"])
    if learner.teacher is not None:
        learner.teacher.load_state_dict(state["teacher"])
    learner.optimiser.load_state_dict(state["optimiser"])
    learner.scaler.load_state_dict(state["scaler"])
    thresholds = state["thresholds"]
    if not learner.world.main:  # the first process keeps the sum over all
        thresholds = {**thresholds, "record": torch.zeros_like(thresholds["record"])}
    learner.thresholds.load_state_dict(thresholds)
    if learner.world.main and "label_count" in state:
        learner.label_count.counts = state["label_count"].to(learner.world.device)
    learner.reinit = {key: value.to(learner.world.device) for key, value in state["reinit"].items()}
    learner.step = state["step"]
    for domain, stream in streams.items():
        stream.position = state["positions"][domain]
    restore_random_state(state["random"], learner.world, learner.config.seed, learner.step)


def restore_random_state(states: Sequence[dict[str, Any]], world: World, seed: int, step: int) -> None:
    """This process' random state of those that were saved; one that there was not then gets a state of its own."""
    if world.rank < len(states):
        checkpoint.restore_random_state(states[world.rank])
    else:
        checkpoint.seed_everything(seed + 1_000_003 * world.rank + 7919 * step)


def _average_statistics(learner: Learner) -> None:
    """The same batch-norm statistics in every process (each has seen its own share of the images)."""
    if learner.world.size > 1:
        networks = [learner.student, *([learner.teacher.module] if learner.teacher is not None else [])]
        for buffer in (buffer for network in networks for buffer in network.buffers() if buffer.is_floating_point()):
            buffer.copy_(learner.world.mean(buffer.clone()))


def _keep_numbered(run: Run, name: str, done: int, keep: int) -> None:
    copy = run.last.with_name(f"{name}-{done:04d}.pt")
    copy.unlink(missing_ok=True)
    shutil.copyfile(run.last, copy)
    for old in sorted(run.last.parent.glob(f"{name}-*.pt"))[:-keep]:
        old.unlink()
