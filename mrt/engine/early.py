"""A stage that ends before its last epoch: what was seen, what becomes of the run, which teacher counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from mrt.engine.folder import note_end
from mrt.engine.kept import restore_teacher
from mrt.engine.report import LOG, read_log
from mrt.engine.watch import sight_of
from mrt.errors import RunFailed

if TYPE_CHECKING:
    from mrt.engine.loop import Run
    from mrt.engine.prepare import Stage


@dataclass(frozen=True)
class Ended:
    """A stage that ends before its last epoch: why, after which epoch, and which epoch's teacher counts."""

    why: str
    epoch: int
    teacher: int


def replay(stage: Stage, run: Run) -> None:
    """See again what the run's log has of this stage's epochs."""
    done = stage.learner.step // stage.steps_per_epoch
    if done and stage.learner.world.main:
        lines = read_log(run.folder / LOG, lambda _: None)
        stage.watch.replay((line for line in lines if line["stage"] == stage.plan.name), done)


def watch(stage: Stage, run: Run, facts: Mapping[str, Any]) -> dict[str, Any]:
    """What watching says of the epoch that is over, for the log."""
    sight = sight_of(facts)
    if sight is None or not stage.learner.world.main:
        return {}
    alarms = stage.watch.see(sight)
    for alarm in alarms:
        run.watcher.say(f"Warning: epoch {sight.epoch}: {alarm.text}")
    return {"alarms": sorted(stage.watch.active)} if stage.watch.active else {}


def ended(stage: Stage, run: Run, done: int) -> Ended | None:
    """Whether a stage ends now, by what watching has seen; the same in every process.

    Raises:
        RunFailed: it is to stop when it collapses.
    """
    engine, seen, found = stage.learner.config.engine, stage.watch, None
    if seen.active and engine.on_collapse == "stop":
        found = Ended(f"stopped by engine.on_collapse: {', '.join(sorted(seen.active))}", done, done)
    elif seen.active and engine.on_collapse == "restore":
        back = seen.best if seen.active == {"falling"} else seen.good
        found = Ended(f"collapse: {', '.join(sorted(seen.active))}", done, back)
    elif engine.patience and seen.stale() >= engine.patience and done < stage.learner.stage.epochs:
        found = Ended(f"no rise of prototypes in {engine.patience} epochs", done, seen.best or done)
    found = stage.learner.world.share(found)
    if found is not None and engine.on_collapse == "stop" and found.why.startswith("stopped"):
        raise RunFailed(
            f"{stage.plan.name}: {found.why} after epoch {done}. The state is in {run.last}; to go on all "
            "the same: --resume --set engine.on_collapse=warn --allow-change. Which epoch's teacher to take: "
            "mrt select, if engine.keep_teachers kept them"
        )
    return found


def end(stage: Stage, run: Run, how: Ended) -> None:
    """Take the teacher that counts, and say that the stage ends before its last epoch."""
    text = f"{stage.plan.name} ends after epoch {how.epoch} of {stage.learner.stage.epochs}: {how.why}"
    if how.teacher != how.epoch:
        number = restore_teacher(run.folder, stage.learner, stage.plan.name, how.teacher)
        how = replace(how, teacher=number)
        where = f"after epoch {how.teacher}" if how.teacher else "before the first"
        text += f"; the teacher is the one {where} again"
        run.back = number
    if stage.learner.world.main:
        run.watcher.say(text)
        note_end(run.folder, stage.plan.name, asdict(how))
