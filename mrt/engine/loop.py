"""The loop that every stage runs: steps, learning rate, logging, end of epoch, checkpoints, and stopping
without loss.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shlex
import signal
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from mrt.config import Config, StageConfig
from mrt.data.loader import Batch
from mrt.engine import early
from mrt.engine.checkpoint import require_plain_parts, state_of, synchronise_statistics
from mrt.engine.data import share_bad
from mrt.engine.facts import LAST, PREVIOUS, read_facts
from mrt.engine.folder import note_checkpoints
from mrt.engine.kept import keep_teacher
from mrt.engine.learner import Learner, training_step
from mrt.engine.prepare import Stage
from mrt.engine.profiling import StepProfiler
from mrt.engine.report import LOG, RunLog, Watcher, logs_now
from mrt.engine.shares import LOOKED_AT
from mrt.engine.store import Checkpoints
from mrt.errors import Diverged, Interrupted, MrtError, RunFailed, Unstable
from mrt.host import wide
from mrt.parts.base import Moment, Part

ADVICE = (
    "No weight has changed since, and no checkpoint was written. Go on from before it went wrong with a "
    "lower learning rate{how}; or skip such steps (--on-nonfinite skip 10); or train without fp16."
)
MOST_NAMED = 8  # images in a message
SECONDS = 60.0  # in a minute


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


class Notice:
    """While inside, SIGUSR1, with which clusters announce the end of a job's time, asks for a checkpoint; if
    it is nobody else's (such as submitit's). SIGTERM ends what is done before and after the steps as Ctrl-C
    does; within them :class:`StopSignals` has both.
    """

    def __init__(self, say: Callable[[str], Any]) -> None:
        self.asked = False
        self._say, self._before, self._ended = say, None, None

    def __enter__(self) -> Notice:
        number = getattr(signal, "SIGUSR1", None)
        with contextlib.suppress(ValueError):  # not the main thread: signals are somebody else's
            if number is not None and signal.getsignal(number) in (signal.SIG_DFL, signal.SIG_IGN):
                self._before = signal.signal(number, self._ask)
        with contextlib.suppress(ValueError):
            if "WORLD_SIZE" not in os.environ and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
                self._ended = signal.signal(signal.SIGTERM, self._end)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGUSR1, self._before)
        if self._ended is not None:
            signal.signal(signal.SIGTERM, self._ended)

    def _end(self, _number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt  # outside of the steps nothing waits to be saved

    def _ask(self, _number: int, _frame: FrameType | None) -> None:
        self.asked = True
        self._say("Asked for a checkpoint: the state is saved after the next step.")


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


def require_finite(stage: Stage, run: Run) -> None:
    """Raise Diverged if a weight of the student is not finite: the last step may have done that unseen."""
    fine = torch.stack([value.detach().isfinite().all() for value in stage.learner.student.parameters()])
    if not bool(fine.all()):
        raise diverged(
            "the last step made weights that are not finite", stage.learner, run.checkpoints.folder
        )


class Saver:
    """Writes a stage's checkpoints, and says when one is due.

    Args:
        rates: the base learning rate of each group of the optimiser.
    """

    def __init__(self, stage: Stage, run: Run, rates: Sequence[float], meter: Meter) -> None:
        self.stage, self.run, self.rates, self.meter = stage, run, rates, meter
        self._every = stage.learner.config.engine.checkpoint_minutes * SECONDS
        self._since = time.monotonic()

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.finish()
            return
        with contextlib.suppress(Exception):  # whatever went wrong before is told
            self.finish()

    def is_due(self, asked: bool) -> bool:
        """Whether it is time for a checkpoint in the middle of an epoch."""
        return asked or (
            self._every > 0
            and self.stage.learner.world.main
            and time.monotonic() - self._since >= self._every
        )

    def restore(self) -> bool:
        """Take back what this process kept in the checkpoint that the run goes on from.

        Returns:
            Whether the evaluation of the epoch that ended there is still to be made.
        """
        own, self.run.own = self.run.own or {}, None
        self.meter.load_state_dict(own.get("meter", {}))
        learner = self.stage.learner
        failures = own.get("failures")
        if failures and learner.allowed:
            learner.failures = torch.tensor(failures, device=learner.world.device)
            learner.failed = torch.tensor(own["failed"], device=learner.world.device)
        return bool(own.get("due"))

    def save(self, ended: int | None = None, due: bool = False) -> None:
        """Write a checkpoint.

        Args:
            ended: epochs that are over, at the end of one. due: whether an evaluation comes next.

        Raises:
            RunFailed: something is not finite, so the state is not worth keeping; or it cannot be written.
        """
        learner, stage, run = self.stage.learner, self.stage, self.run
        self.meter.require_finite()
        require_finite(stage, run)
        if learner.world.main:
            run.checkpoints.require_there()
        if learner.world.main and not (run.folder / LOG).is_file():
            raise RunFailed(f"{run.folder / LOG}: has been removed while it was written")
        failures = 0 if learner.failures is None else int(learner.failures)
        own = {
            "meter": self.meter.state_dict(),
            "due": due,
            "failures": failures,
            "failed": int(learner.failed) if failures else 0,
        }
        state = state_of(stage.plan.name, learner, stage.streams, self.rates, own)
        self._since = time.monotonic()
        if state is None:
            return
        run.log.sync()
        facts = {
            "run": read_facts(run.folder).get("id"),
            "stage": stage.plan.name,
            "step": learner.step,
            "order": stage.plan.number * 10**10 + learner.step,
            "logs": logs_now(run.folder),
        }
        if ended is not None:
            facts["epoch"] = ended
        first = not run.last.is_file()
        run.checkpoints.write(state, facts, ended)
        if ended is not None:
            self.keep_teacher(ended)
        if first:
            run.checkpoints.wait()
            note_checkpoints(run.folder)

    def keep_teacher(self, ended: int) -> None:
        """Keep the teacher of an epoch, if that is wanted."""
        run, learner = self.run, self.stage.learner
        if learner.world.main:
            keep_teacher(
                run.folder,
                run.config,
                run.classes,
                learner,
                self.stage.plan.name,
                ended,
                self.stage.watch.best,
            )

    def finish(self) -> None:
        """Return when all checkpoints are on disk."""
        self.run.checkpoints.wait()


class Meter:
    """Means of the losses since they were last read, over steps and processes; nothing is copied to the host
    in between.

    Args:
        stage: whose images are named where something is not finite. checkpoints: the folder of the run's.
    """

    def __init__(
        self, learner: Learner, stage: Stage | None = None, checkpoints: Path = Path("checkpoints")
    ) -> None:
        self.learner, self.stage, self.checkpoints = learner, stage, checkpoints
        self._forget()

    def _forget(self) -> None:
        self._sums: dict[
            tuple[str, ...], Tensor
        ] = {}  # steps that report the same tensors are summed in one go
        self._numbers: Counter[str] = Counter()
        self._counts: Counter[str] = Counter()
        self._skipped: dict[tuple[str, ...], Tensor] = {}  # of each sum, steps that are not in it
        self._recent: list[tuple[int, Mapping[str, Any], dict[str, list[int]]]] = []

    def add(
        self, seen: Mapping[str, Tensor | float], batches: Sequence[Mapping[str, Batch]] | None = None
    ) -> None:
        """One step's losses: scalars on the device, or plain numbers; and the images it was made from."""
        tensors = {name: value for name, value in seen.items() if isinstance(value, Tensor)}
        if tensors:
            names, values = tuple(tensors), torch.stack(list(tensors.values()))
            values = values.to(wide(values.device))
            if self.learner.allowed:  # a step that was skipped is not in the means
                fine = values.isfinite().all()
                values = torch.where(fine, values, torch.zeros_like(values))
                self._skipped[names] = self._skipped.get(names, 0) + (~fine).long()
            self._sums[names] = self._sums.get(names, 0) + values
        self._numbers.update({name: float(value) for name, value in seen.items() if name not in tensors})
        self._counts.update(seen.keys())
        self._recent.append((self.learner.step, seen, image_ids(batches or ())))

    def state_dict(self) -> dict[str, Any]:
        """What was seen since the last reading, in this process."""
        return {
            "sums": [[list(names), sums.cpu()] for names, sums in self._sums.items()],
            "skipped": [[list(names), number.cpu()] for names, number in self._skipped.items()],
            "numbers": dict(self._numbers),
            "counts": dict(self._counts),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where :meth:`state_dict` was called; nothing for an empty one."""
        device = self.learner.world.device
        self._forget()
        self._sums = {tuple(names): sums.to(device, wide(device)) for names, sums in state.get("sums", ())}
        self._skipped = {tuple(names): number.to(device) for names, number in state.get("skipped", ())}
        self._numbers.update(state.get("numbers", {}))
        self._counts.update(state.get("counts", {}))

    def require_finite(self) -> None:
        """Raise RunFailed if more steps than are allowed had a loss or gradient that is not finite.

        Every process has to call this at the same time.
        """
        failures = 0 if self.learner.failures is None else int(self.learner.failures)  # everywhere the same
        if failures > self.learner.allowed:
            self.read()

    def read(self) -> dict[str, float]:
        """The means by name.

        Raises:
            RunFailed: one of them is not finite, or a step's were not; all are printed, with the images of
                that step. (A gradient scaler looks after infinite gradients itself.)
        """
        totals: Counter[str] = Counter()
        counts = Counter(self._counts)
        for names, sums in self._sums.items():
            totals.update(dict(zip(names, sums.tolist(), strict=True)))
            if skipped := int(self._skipped.get(names, 0)):
                counts.subtract(dict.fromkeys(names, skipped))
        totals.update(self._numbers)
        values = self.learner.world.mean_of_numbers(
            [total / max(counts[name], 1) for name, total in totals.items()]
        )
        means = dict(zip(totals, values, strict=True))
        recent = self._recent
        self._forget()
        excused = ("grad_norm",) if self.learner.scaler.is_enabled() else ()
        failed, failures = (
            int(value or 0) for value in (self.learner.failed, self.learner.failures)
        )  # in every process the same
        finite = all(math.isfinite(value) for name, value in means.items() if name not in excused)
        if failures > self.learner.allowed or not finite:
            message = self._message(means, failed, failures, recent)
            raise diverged(message, self.learner, self.checkpoints)
        if self.learner.allowed:
            means["skipped_steps"] = float(failures)
        return means

    def _message(
        self, means: Mapping[str, float], failed: int, failures: int, recent: Sequence[tuple]
    ) -> str:
        """What is not finite, since when, and in which images."""
        since = f" since step {failed}" if failed else ""
        shown, images = means, ""
        for _, seen, ids in recent:
            values = {name: float(value) for name, value in seen.items()}
            if not all(map(math.isfinite, values.values())):
                shown, images = values, self.images_of(ids)
                break
        named = [name for name in shown if not name.startswith(LOOKED_AT)]
        order = sorted(named, key=lambda name: math.isfinite(shown[name]))  # the culprits first
        losses = ", ".join(f"{name} {shown[name]:.4g}" for name in order)
        more = f" ({failures} steps; {self.learner.allowed} may be skipped)" if self.learner.allowed else ""
        return f"a loss or gradient is not finite{since}{more}: {losses}.{images}"

    def images_of(self, ids: Mapping[str, Sequence[int]]) -> str:
        """The images of a step, in words."""
        words = []
        for domain, wanted in ids.items():
            stream = self.stage.streams.get(domain) if self.stage is not None else None
            names = _files(stream.loader.dataset, wanted) if stream else [str(one) for one in wanted]
            rest = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
            words.append(f"{domain}: {', '.join(names[:MOST_NAMED])}{rest}")
        return f" Images of that step: {'; '.join(words)}." if words else ""


def diverged(message: str, learner: Learner, checkpoints: Path) -> Diverged:
    """The error for a run whose numbers are not finite, with how to go on from before that."""
    sections = learner.config.sections().items()
    where = next((name for name, section in sections if section is learner.stage), "teach")
    how = ["--set", f"{where}.lr={learner.stage.lr / 2:.1g}", "--allow-change"]
    if (checkpoints / PREVIOUS).is_file():
        how = ["--resume-from", PREVIOUS.removesuffix(".pt"), *how]
    else:
        how = ["--resume", *how] if (checkpoints / LAST).is_file() else []
    return Diverged(f"{message}\n{ADVICE.format(how=f' ({shlex.join(how)})' if how else '')}", how)


def image_ids(batches: Sequence[Mapping[str, Batch]]) -> dict[str, list[int]]:
    """The images of a step's micro-batches, by domain."""
    found: dict[str, list[int]] = {}
    for micro_batch in batches:
        for domain, batch in micro_batch.items():
            found.setdefault(domain, []).extend(target["image_id"] for target in batch.targets)
    return found


def _files(dataset: Any, image_ids: Sequence[int]) -> list[str]:
    """The files of images, by their ids; in each of several joined sets, if more than one has an id."""
    while hasattr(dataset, "dataset"):
        dataset = dataset.dataset
    parts = getattr(dataset, "parts", [dataset])
    names: dict[int, list[str]] = {}
    for part in parts:
        for record in getattr(part, "records", ()):
            names.setdefault(record.image_id, []).append(str(record.path))
    return [" or ".join(names.get(one, [f"image {one}"])) for one in image_ids]


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
