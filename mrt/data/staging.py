"""Making a prepared set in parallel, and either completely or not at all. Needs no torch."""

from __future__ import annotations

import multiprocessing
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from mrt.data.card import CARD_NAME, UNPACKED
from mrt.errors import MrtError, RunFailed

Progress = Callable[[int, int], None]  # called with (done, total)
Result = TypeVar("Result")


def available_cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_name(name: str) -> None:
    """MrtError unless a set can have this name: a plain folder name that is not hidden."""
    if not name or Path(name).name != name or name.startswith("."):
        raise MrtError(f"name is {name!r}, expected a plain folder name such as 'foggy'")
    if name == UNPACKED:
        raise MrtError(
            f"name is {name!r}: that folder of the data root is for archives' files",
            "Give the set another name.",
        )


@contextmanager
def staged(root: Path, name: str, overwrite: bool = False) -> Iterator[Path]:
    """A work folder beside ``root/name`` that takes its place if the block succeeds, else is removed.

    A process that is killed leaves a hidden ``.NAME.*.partial`` folder, which no command takes for a set; the
    next run for the same name removes it.

    Raises:
        MrtError: the output exists (and ``overwrite`` is not set, or it is not a set), or cannot be written.
        RunFailed: a worker died.
    """
    target = root / name
    check_output(root, name, overwrite)
    try:
        root.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(root, name)
        check_output(root, name, overwrite)  # an old set may be back
        work = Path(tempfile.mkdtemp(prefix=f".{name}.{os.getpid()}.", suffix=".partial", dir=root))
        try:
            yield work
            work.chmod(0o755)
            check_output(root, name, overwrite)  # another process may have made it in the meantime
            _put_in_place(work, target)
        except BaseException:
            shutil.rmtree(work, ignore_errors=True)
            raise
    except OSError as error:
        raise MrtError(
            f"{target} cannot be written: {error.strerror or error}",
            "Choose another folder, or make room on the disk.",
        ) from error
    except BrokenProcessPool:
        raise RunFailed(
            f"{target}: a worker process ended, perhaps for want of memory; try fewer workers"
        ) from None


def check_output(root: Path, name: str, overwrite: bool) -> None:
    """MrtError if ``root/name`` must not be written: it exists, and is not to be replaced or is not a set."""
    check_name(name)
    target = root / name
    if target.exists() and not overwrite:
        raise MrtError(
            f"{target} exists already",
            "Give another name, or overwrite it with --overwrite (overwrite=True).",
        )
    is_set = (target / CARD_NAME).is_file()
    if target.exists() and not is_set and not (target.is_dir() and not any(target.iterdir())):
        raise MrtError(
            f"{target} is not a data set and will not be overwritten",
            "Give another name, or remove it yourself.",
        )


def _remove_abandoned(root: Path, name: str) -> None:
    """Remove what killed processes left for this name; put back a set that one of them had moved aside."""
    ours = re.compile(rf"\.{re.escape(name)}\.(\d+)\.[^.]+\.(?:partial|old)")
    for folder in sorted(root.iterdir()):
        left = ours.fullmatch(folder.name)
        if left and not _alive(int(left[1])):
            if (folder / "old").is_dir() and not (root / name).exists():
                os.replace(folder / "old", root / name)
            shutil.rmtree(folder, ignore_errors=True)


def _alive(process: int) -> bool:
    if sys.platform == "win32":  # there the question would end it
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def run_parallel(function: Callable[[Any], Result], jobs: Sequence[Any], workers: int) -> Iterator[Result]:
    """Results in the order of the jobs, whatever the number of processes.

    Function and jobs must be picklable.
    """
    if workers == 1 or len(jobs) < 8:
        yield from map(function, jobs)
        return
    # Forking is quick and makes no demands on the caller's script, but it is only safe while nothing else
    # runs in this process.
    alone = sys.platform == "linux" and threading.active_count() == 1 and "torch" not in sys.modules
    context = multiprocessing.get_context("fork" if alone else "spawn")
    with ProcessPoolExecutor(min(workers, len(jobs)), context, _start_worker, (os.getpid(),)) as pool:
        try:
            yield from pool.map(function, jobs, chunksize=max(1, min(8, len(jobs) // (2 * workers))))
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _start_worker(parent: int) -> None:
    """Leave ctrl-c to the parent, and end when it ends, even if it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def counted(results: Iterable[Result], total: int, on_progress: Progress | None) -> Iterator[Result]:
    """The results, telling ``on_progress`` of each."""
    for done, result in enumerate(results, start=1):
        if on_progress is not None:
            on_progress(done, total)
        yield result


def _put_in_place(work: Path, target: Path) -> None:
    """Rename the finished folder to its name; an old one is moved aside first and removed last."""
    if not target.exists():
        os.replace(work, target)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.{os.getpid()}.", suffix=".old", dir=target.parent))
    os.replace(target, aside / "old")
    try:
        os.replace(work, target)
    except OSError:
        os.replace(aside / "old", target)
        raise
    shutil.rmtree(aside, ignore_errors=True)
