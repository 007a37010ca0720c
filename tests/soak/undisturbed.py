"""Runs that are disturbed, in processes forked from this one (which has loaded torch already), and the
comparison with a run that was not.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mrt.engine.load import load_detector
from mrt.lock import NAME

TIMES = ("time", "images_per_second")  # what may differ in a log


def report(name: str, counts: dict[str, Any]) -> None:
    """Print counts, and keep them in the folder that MRT_SOAK_REPORT names."""
    text = json.dumps(counts, indent=1)
    print(f"{name}: {text}")
    if folder := os.environ.get("MRT_SOAK_REPORT"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / f"{name}.json").write_text(text + "\n")


def fork(work: Callable[[], Any], log: Path) -> int:
    """Do ``work`` in a child, whose output goes to ``log`` and whose exit code is 0, or 1 after an exception
    (its traceback is in the log), or what it exits with. Returns the child's process id.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 1)
        os.dup2(file, 2)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
        signal.signal(signal.SIGINT, signal.default_int_handler)
        torch.set_num_threads(1)  # the parent's other threads are not there
        work()
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)


def ended(child: int, seconds: float) -> int | None:
    """The exit code of a child (negative: a signal's number) if it ends in so many seconds, else None."""
    end = time.monotonic() + seconds
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= end:
            return None
        time.sleep(0.002)


def kill(child: int) -> None:
    """kill -9."""
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def disturbed(
    work: Callable[[], Any], log: Path, rng: random.Random, seconds: float, most: int, has: Callable[[], bool]
) -> list[bool]:
    """Do ``work`` in children that are killed at random instants, until one comes to its end.

    Args:
        seconds: that it takes undisturbed. most: kills. has: whether a first checkpoint is there.

    Returns:
        For each kill, whether there was a checkpoint already.
    """
    kills: list[bool] = []
    while True:
        child = fork(work, log)
        wait = rng.uniform(0, seconds) if len(kills) < most else 300.0
        code = ended(child, wait)
        if code is None:
            kill(child)
            assert len(kills) < most, f"{log}: does not end"
            kills.append(has())
            continue
        assert code == 0, log.read_text()
        return kills


def numbers(line: dict[str, Any]) -> dict[str, Any]:
    """A line of a log without times."""
    return {key: value for key, value in line.items() if key not in TIMES}


def lines(path: Path) -> list[dict[str, Any]]:
    return [numbers(json.loads(line)) for line in path.read_text().splitlines()]


def scalars(folder: Path) -> dict[str, list[tuple[int, str]]]:
    """What TensorBoard shows of a run, but for times."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(folder)).Reload()
    return {
        name: [(event.step, repr(event.value)) for event in board.Scalars(name)]
        for name in board.Tags()["scalars"]
        if name.rpartition("/")[2] not in TIMES
    }


def assert_same_run(run: Path, whole: Path) -> None:
    """Weights, log, label snapshots and TensorBoard are those of an undisturbed run but for times, and
    nothing unfinished lies about.
    """
    names = [sorted(file.name for file in folder.glob("*.safetensors")) for folder in (run, whole)]
    assert names[0] == names[1]
    for network in ("student", "teacher"):
        if f"{network}.safetensors" in names[0]:
            ours, theirs = (load_detector(folder, which=network)[0].state_dict() for folder in (run, whole))
            assert all(torch.equal(value, ours[key]) for key, value in theirs.items()), network
    assert lines(run / "metrics.jsonl") == lines(whole / "metrics.jsonl")
    snapshots = [folder / "pseudo_labels.jsonl" for folder in (run, whole)]
    assert snapshots[0].exists() == snapshots[1].exists()
    if snapshots[0].exists():
        assert snapshots[0].read_bytes() == snapshots[1].read_bytes()
    assert scalars(run) == scalars(whole)
    hidden = [str(file) for file in run.rglob(".*") if file.name != NAME]
    assert hidden == []
