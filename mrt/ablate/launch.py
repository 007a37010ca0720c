"""Getting work done: in this process, in several local ones (one per GPU if asked), or as jobs of a cluster.

Whoever does it, work begins when what it needs is done, a failure stops only what needs it, and stopping
loses nothing: repeating the command goes on from there.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from mrt.ablate.work import LogWatcher, Work, do_work, outcome_file, reason_of, work_on
from mrt.data.staging import available_cores
from mrt.engine.report import Watcher
from mrt.errors import Interrupted, MrtError, RunFailed
from mrt.files import write_text

POLL = 0.2  # seconds between looks at what runs
KILLED = getattr(signal, "SIGKILL", 9)  # Windows has no such signal
PATIENCE = 60  # seconds that a stopped process has to save its state
GENERIC = (
    "timeout_min",
    "mem_gb",
    "nodes",
    "cpus_per_task",
    "gpus_per_node",
)  # submitit's words; others are sbatch's
DAY = 24 * 60  # minutes


@dataclass(frozen=True)
class Failure:
    """Why a piece of work has no result, and where its log is."""

    reason: str
    log: str | None = None


class Launcher(Protocol):
    """Starts work elsewhere. A handle is whatever it likes."""

    slots: int

    def start(self, work: Work, file: Path, log: Path) -> Any: ...

    def ended(self, handle: Any) -> str | None:
        """None while it runs; then "" or what is known of a bad end."""

    def stop(self, handles: Sequence[Any]) -> None: ...

    def log(self, handle: Any, log: Path) -> Path:
        """Where the log of a job is."""
        return log


def run_here(
    works: Sequence[Work], logs: Path, watcher: Watcher, after: Callable[[], None] = lambda: None
) -> dict[str, Failure]:
    """Do the works one after the other in this process; returns the failures by name.

    Args:
        after: called after each piece of work that was done.
    """
    failures: dict[str, Failure] = {}
    for number, work in enumerate(works, start=1):
        watcher.say(f"[{number}/{len(works)}] {_heading(work)}")
        if (lost := _lost(work, failures)) is not None:
            failures[work.name] = lost
            continue
        log = logs / f"{work.name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a", encoding="utf-8") as file:
            try:
                do_work(
                    work,
                    _Both(watcher, LogWatcher(lambda text, file=file: print(text, file=file, flush=True))),
                )
            except Interrupted:
                raise
            except Exception as error:
                print(
                    f"failed: {error}"
                    if isinstance(error, (MrtError, RunFailed))
                    else traceback.format_exc(),
                    file=file,
                )
                failures[work.name] = Failure(reason_of(error), str(log))
                watcher.say(f"failed: {reason_of(error)}")
            else:
                after()
    return failures


def run_with(
    launcher: Launcher,
    works: Sequence[Work],
    logs: Path,
    watcher: Watcher,
    after: Callable[[], None] = lambda: None,
) -> dict[str, Failure]:
    """Let a launcher do the works, as many at a time as it has slots; returns the failures by name.

    Args:
        after: called after each piece of work that was done.

    Raises:
        Interrupted: the user stopped it; what ran was asked to save its state and to end.
    """
    logs.mkdir(parents=True, exist_ok=True)
    waiting, running, failures = list(works), {}, {}
    done: set[str] = set()
    names = {work.name for work in works}
    began: dict[str, float] = {}
    watcher.begin("ablation", len(works))
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        while waiting or running:
            for work in [item for item in waiting if (names & set(item.needs)) <= (done | failures.keys())]:
                lost = _lost(work, failures)
                if lost is None and len(running) >= launcher.slots:
                    continue
                waiting.remove(work)
                if lost is not None:
                    failures[work.name] = lost
                    watcher.advance()
                    continue
                file, log = logs / f"{work.name}.json", logs / f"{work.name}.log"
                outcome_file(file).unlink(missing_ok=True)
                write_text(file, work.to_json())
                began[work.name] = time.monotonic()
                running[work.name] = work, file, log, launcher.start(work, file, log)
                watcher.say(f"started: {_heading(work)}")
            for name, (work, file, log, handle) in list(running.items()):
                end = launcher.ended(handle)
                if end is None:
                    continue
                del running[name]
                watcher.advance()
                reason = _outcome(file, end)
                if reason is None:
                    done.add(name)
                    after()
                    watcher.say(f"done in {_minutes(time.monotonic() - began[name])}: {_heading(work)}")
                else:
                    failures[name] = Failure(reason, str(launcher.log(handle, log)))
                    watcher.say(f"failed: {_heading(work)}: {reason}")
            time.sleep(POLL)
    except KeyboardInterrupt:
        watcher.say(f"Stopping {len(running)} at work; their states are saved.")
        launcher.stop([handle for *_, handle in running.values()])
        raise Interrupted("stopped") from None
    finally:
        signal.signal(signal.SIGTERM, before)
        watcher.end()
    return failures


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _heading(work: Work) -> str:
    """What a piece of work is, for whoever watches."""
    what = {"given": "measure", "source": "stage 1", "mae": "stage 2", "teach": "stage 3"}.get(
        work.kind, work.kind
    )
    more = f" and {len(work.titles) - 1} more" if len(work.titles) > 1 else ""
    return f"{what} for {work.titles[0]}{more} ({work.name})"


def _lost(work: Work, failures: Mapping[str, Failure]) -> Failure | None:
    """The failure of what a piece of work needs."""
    for name in work.needs:
        if name in failures:
            cause = failures[name]
            return Failure(
                cause.reason
                if cause.reason.startswith("needs ")
                else f"needs {name}, which failed: {cause.reason}",
                cause.log,
            )
    return None


def _outcome(file: Path, end: str) -> str | None:
    """Why a piece of work failed, by what it wrote or else by how its process ended; None when it is done."""
    path = outcome_file(file)
    if path.is_file():
        return json.loads(path.read_text(encoding="utf-8"))["failed"]
    return end or "its process ended without a word"


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


class _Both(Watcher):
    """Tells two watchers."""

    def __init__(self, *watchers: Watcher) -> None:
        self.watchers = watchers

    def begin(self, task: str, total: int, done: int = 0) -> None:
        for watcher in self.watchers:
            watcher.begin(task, total, done)

    def advance(self, n: int = 1, **numbers: float) -> None:
        for watcher in self.watchers:
            watcher.advance(n, **numbers)

    def end(self) -> None:
        for watcher in self.watchers:
            watcher.end()

    def say(self, text: str) -> None:
        for watcher in self.watchers:
            watcher.say(text)


class LocalProcesses:
    """Processes of this machine, which share its cores; with ``gpus``, one for each of these GPUs.

    Args:
        jobs: how many at a time.
        gpus: names of devices as CUDA_VISIBLE_DEVICES has them; none leaves the GPUs to all.
    """

    def __init__(self, jobs: int, gpus: Sequence[str] = ()) -> None:
        self.slots, self.threads = jobs, max(1, available_cores() // jobs)
        self._free = list(gpus)
        self._with_gpus = bool(gpus)

    def start(self, work: Work, file: Path, log: Path) -> tuple[subprocess.Popen, str | None]:
        gpu = self._free.pop(0) if self._with_gpus else None
        own = {} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu}
        environment = {"OMP_NUM_THREADS": str(self.threads), **os.environ, **own}
        with log.open("a", encoding="utf-8") as out:
            # -P: a folder called mrt in the working directory is not the package. A session of its own:
            # Ctrl-C reaches this process only.
            words = [sys.executable, "-P", "-m", "mrt.ablate.work", str(file)]
            process = subprocess.Popen(
                words, stdout=out, stderr=subprocess.STDOUT, env=environment, start_new_session=True
            )
        return process, gpu

    def ended(self, handle: tuple[subprocess.Popen, str | None]) -> str | None:
        process, gpu = handle
        code = process.poll()
        if code is None:
            return None
        if gpu is not None:
            self._free.append(gpu)
        if code < 0:
            memory = " (often the system's answer to too little memory)" if -code == KILLED else ""
            return f"its process was ended by {signal.Signals(-code).name}{memory}"
        return f"its process ended with exit code {code}" if code else ""

    def stop(self, handles: Sequence[tuple[subprocess.Popen, str | None]]) -> None:
        for process, _ in handles:
            process.terminate()
        end = time.monotonic() + PATIENCE
        for process, _ in handles:
            try:
                process.wait(max(0.1, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()

    def log(self, handle: Any, log: Path) -> Path:
        return log


class Resumable:
    """The work of a file as a job that submitit can put back into the queue when its time is over."""

    def __call__(self, path: str) -> str | None:
        return work_on(path)

    def checkpoint(self, path: str) -> Any:
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(Resumable(), path)


class Submitit:
    """Jobs of a cluster, by submitit: "slurm", or "local" for processes that behave like jobs.

    Args:
        jobs: how many may be queued or running at a time.
        options: sbatch's (partition, time, ...) or submitit's (:data:`GENERIC`), as texts.
    """

    def __init__(self, cluster: str, logs: Path, jobs: int, options: Mapping[str, str]) -> None:
        try:
            import submitit
        except ImportError:
            raise MrtError(
                f"--launcher {cluster}: needs submitit", "pip install 'mrt-detection[slurm]'"
            ) from None
        self.slots = jobs
        try:
            self.executor = submitit.AutoExecutor(folder=logs / "jobs" / "%j", cluster=cluster)
            if cluster == "local" and "timeout_min" not in options:
                self.executor.update_parameters(timeout_min=DAY)  # else two minutes
            self.executor.update_parameters(
                name="mrt-ablate", **{_submitit_name(key): _number(text) for key, text in options.items()}
            )
        except (AssertionError, NameError, RuntimeError) as error:
            words = [line for line in str(error).split("\n") if line]
            raise MrtError(
                f"--launcher {cluster}: {words[0] if words else error}", "see --slurm in docs/experiments.md"
            ) from None

    def start(self, work: Work, file: Path, log: Path) -> Any:
        return self.executor.submit(Resumable(), str(file))

    def ended(self, handle: Any) -> str | None:
        if not handle.done():
            return None
        error = handle.exception()
        return "" if error is None else str(error).strip().split("\n")[-1]

    def stop(self, handles: Sequence[Any]) -> None:
        for handle in handles:
            handle.cancel()

    def log(self, handle: Any, log: Path) -> Path:
        return handle.paths.stdout


def _submitit_name(key: str) -> str:
    plain = key.replace("-", "_")
    return plain if plain in GENERIC else f"slurm_{plain}"


def _number(text: str) -> Any:
    return int(text) if text.isdigit() else text


def visible_gpus(wanted: int) -> list[str]:
    """The first GPUs that this process may use, as CUDA_VISIBLE_DEVICES has them; MrtError for too few."""
    import torch

    there = torch.cuda.device_count()
    if there < wanted:
        raise MrtError(
            f"--gpus {wanted}: torch sees {there or 'none'} on this machine",
            "run mrt doctor; or several trials on the CPU: --jobs 2",
        )
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return (named or [str(number) for number in range(there)])[:wanted]
