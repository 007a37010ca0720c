"""When a stage's checkpoints are written, and that they are worth it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from mrt.engine.checkpoint import state_of
from mrt.engine.facts import read_facts
from mrt.engine.folder import note_checkpoints
from mrt.engine.kept import keep_teacher
from mrt.engine.meter import Meter, diverged
from mrt.engine.prepare import Stage
from mrt.engine.report import LOG, logs_now
from mrt.errors import RunFailed

if TYPE_CHECKING:
    from mrt.engine.loop import Run

SECONDS = 60.0  # in a minute


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
