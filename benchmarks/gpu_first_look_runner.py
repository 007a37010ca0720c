"""Runs steps in their order, each surviving the failure of those before it, and keeps what they find.

A step that fails is recorded with the end of its traceback. A step for which too little time is left, or a
package is missing, is skipped and the record says so. A kernel that reads beyond its memory leaves a CUDA
context in which nothing works any more, and one that never ends leaves a process that waits for ever; then
the process is replaced by a new one, which goes on with the next step.
"""

from __future__ import annotations

import gc
import importlib
import math
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

OK, FAILED, SKIPPED, RUNNING = "ok", "failed", "skipped", "running"
FRAMES = 4  # of a traceback, the last ones
RESTARTS = 6  # at most
PATIENCE = 20.0  # seconds that a step which is told to stop has until the process is replaced
REPOSITORY = Path(__file__).resolve().parents[1]


class NotHere(Exception):
    """What a step needs does not exist on this machine; its text says what."""


class OutOfTime(Exception):
    """A step took longer than it may."""


@dataclass(frozen=True)
class Step:
    """One step.

    Attributes:
        name: unique.
        run: does it; may return a line that sums it up.
        least: seconds; with less time left it is not begun.
        most: seconds after which it is stopped.
        needs: modules; where one cannot be imported for lack of a package, the step is skipped.
        gpu_only: whether a dry run leaves it out.
    """

    name: str
    run: Callable[[Look], str | None]
    least: float = 5.0
    most: float = 60.0
    needs: tuple[str, ...] = ()
    gpu_only: bool = False


@dataclass
class Look:
    """What is known while the steps run.

    Attributes:
        device: "cuda", or "cpu" in a dry run.
        deadline: time.time() at which all has to be over.
        steps: a record of each step that was begun or skipped.
        checks: comparisons, each with its error and its limit.
        figures: what was measured.
        notes: further lines for the reader.
        restarts: how often the process was replaced.
    """

    device: str
    dry_run: bool
    deadline: float
    steps: list[dict[str, Any]] = field(default_factory=list)
    checks: list[dict[str, Any]] = field(default_factory=list)
    figures: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    restarts: int = 0

    KEPT = ("steps", "checks", "figures", "notes", "restarts")

    def left(self) -> float:
        """Seconds."""
        return self.deadline - time.time()

    def most(self, seconds: float) -> float:
        """So many seconds, or what is left; ten times as many in a dry run, whose machine may be busy."""
        return min(seconds * (10 if self.dry_run else 1), max(self.left(), 1.0))

    def check(self, name: str, error: float, limit: float, **more: Any) -> None:
        """Record a comparison: it is right if ``error`` is at most ``limit``, which NaN never is."""
        found = {"step": self._now(), "name": name, "error": finite(error), "limit": limit}
        self.checks.append({**found, "ok": bool(error <= limit), **more})

    def figure(self, name: str, unit: str, measured: float, **more: Any) -> None:
        """Record a measurement, under the name by which benchmarks.gpu_first_look_report knows its goal."""
        found = {"step": self._now(), "name": name, "unit": unit, "measured": finite(measured)}
        self.figures.append({**found, **more})

    def note(self, text: str) -> None:
        self.notes.append(text)

    def kept(self) -> dict[str, Any]:
        """What a process that goes on needs."""
        return {name: getattr(self, name) for name in self.KEPT}

    def restore(self, kept: Mapping[str, Any]) -> None:
        """Go on from :meth:`kept`. A step that was running then has ended its process."""
        for name in self.KEPT:
            setattr(self, name, kept[name])
        for record in self.steps:
            if record["state"] == RUNNING:
                record |= {"state": FAILED, "why": "the process ended, or was ended, in this step"}

    def _now(self) -> str:
        return self.steps[-1]["name"] if self.steps else ""


def finite(number: float) -> float | str:
    """The number, as text where JSON has none for it."""
    return float(number) if math.isfinite(number) else str(number)


def run_steps(
    steps: Sequence[Step],
    look: Look,
    save: Callable[[], None],
    *,
    restart: Callable[[], None] | None = None,
    dead: Callable[[], bool] | None = None,
) -> None:
    """Run what is not recorded yet.

    Args:
        save: writes the report; called before and after each step.
        restart: replaces this process by one that goes on; it does not return. None: nothing is replaced.
        dead: whether the device answers no more.
    """
    dead = dead or (lambda: device_is_dead(look.device))
    done = {record["name"] for record in look.steps}
    for step in steps:
        if step.name in done:
            continue
        record: dict[str, Any] = {"name": step.name, "state": RUNNING, "seconds": 0.0}
        look.steps.append(record)
        why, lost = reason_to_skip(step, look), False
        if why is not None:
            record |= {"state": SKIPPED, "why": why}
        else:
            save()
            with watched(step, look, record, save, restart):
                run_one(step, look, record)
                tidy(look.device)
                lost = record["state"] == FAILED and dead()
        print(line_of(record), flush=True)
        save()
        if lost:
            record["why"] += "; the device answers no more, a new process goes on"
            save()
            if restart is not None and look.restarts < RESTARTS:
                look.restarts += 1
                save()
                restart()


def reason_to_skip(step: Step, look: Look) -> str | None:
    """Why a step is not begun; None if it is."""
    if step.gpu_only and look.dry_run:
        return "needs a GPU; left out of a dry run"
    if look.left() < step.least:
        return f"no time: {max(0.0, look.left()):.0f} s left, it takes at least {step.least:.0f}"
    for name in step.needs:
        missing = missing_package(name)
        if missing is not None:
            return f"needs {name}, which needs the package {missing}: not installed here"
    return None


def missing_package(module: str) -> str | None:
    """The package for lack of which a module of ours cannot be imported.

    None if it can be, and if it is broken otherwise: then the step fails, and its record says how.
    """
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        name = (error.name or str(error)).split(".")[0]
        return None if name in ("mrt", "benchmarks") else name
    except Exception:
        return None
    return None


def run_one(step: Step, look: Look, record: dict[str, Any]) -> None:
    """Run one step, and write into its record how it ended."""
    begin, before = time.time(), len(look.checks)
    try:
        with limited(look.most(step.most)):
            summary = step.run(look)
            if look.device == "cuda":
                torch.cuda.synchronize()  # an error of a kernel comes to light in its own step
        record["state"] = OK
        if summary:
            record["summary"] = summary
    except NotHere as error:
        record |= {"state": SKIPPED, "why": str(error)}
    except (Exception, SystemExit) as error:  # whatever it is, the next step is to run
        record |= {"state": FAILED, **described(error)}
    wrong = [check["name"] for check in look.checks[before:] if not check["ok"]]
    if wrong:
        text = f"{len(wrong)} of {len(look.checks) - before} comparisons are wrong, the first: {wrong[0]}"
        record |= {"state": FAILED, "why": "; ".join(filter(None, (text, record.get("why"))))}
    record["seconds"] = round(time.time() - begin, 2)


def described(error: BaseException) -> dict[str, Any]:
    """An error in one line, and the last frames of its traceback."""
    text = " ".join(str(error).split()) or "no message"
    frames = traceback.extract_tb(error.__traceback__)[-FRAMES:]
    places = [f"{_short(frame.filename)}:{frame.lineno} {frame.name}" for frame in frames]
    return {"why": f"{type(error).__name__}: {text[:400]}", "traceback": places}


def _short(filename: str) -> str:
    path = Path(filename)
    return str(path.relative_to(REPOSITORY)) if path.is_relative_to(REPOSITORY) else "/".join(path.parts[-3:])


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise :class:`OutOfTime` in here after so many seconds (in the main thread, between Python's words)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(*_: object) -> None:
        raise OutOfTime(f"it took more than {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def watched(
    step: Step,
    look: Look,
    record: dict[str, Any],
    save: Callable[[], None],
    restart: Callable[[], None] | None,
) -> Iterator[None]:
    """Replace the process if the step inside has not ended long after it should: it waits for a kernel."""
    if restart is None:
        yield
        return
    seconds = look.most(step.most) + PATIENCE

    def give_up() -> None:
        why = f"it did not end within {seconds:.0f} s and could not be stopped: a kernel that never ends?"
        record.update(state=FAILED, why=why, seconds=round(seconds, 2))
        print(line_of(record), flush=True)
        look.restarts += 1
        save()
        if look.restarts > RESTARTS:
            os._exit(1)
        restart()

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def replace_process() -> None:
    """Start this program again in the place of this process, to go on."""
    signal.setitimer(signal.ITIMER_REAL, 0)  # it would outlive this process, and end the next
    words = [word for word in sys.orig_argv[1:] if word != "--go-on"]
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *words, "--go-on"])


def device_is_dead(device: str) -> bool:
    """Whether a GPU answers no more in this process."""
    if device != "cuda":
        return False
    try:
        torch.cuda.synchronize()
        return torch.ones(2, device=device).sum().item() != 2
    except RuntimeError:
        return True


def tidy(device: str) -> None:
    """Free what a step has left, and undo the settings that it may have changed."""
    torch.use_deterministic_algorithms(False)
    torch.set_float32_matmul_precision("highest")
    gc.collect()
    if device == "cuda":
        if "torch._dynamo" in sys.modules:
            torch._dynamo.reset()  # compiled layers hold memory
        try:
            torch.cuda.set_sync_debug_mode("default")
            torch.cuda.empty_cache()
        except RuntimeError:  # the device is dead, which is found out elsewhere
            pass


def line_of(record: Mapping[str, Any]) -> str:
    """A step's record as one line."""
    what = record.get("why") or record.get("summary", "")
    return f"{record['state']:8}{record['seconds']:7.1f} s  {record['name']}" + (f": {what}" if what else "")
