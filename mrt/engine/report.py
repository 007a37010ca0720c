"""What a run tells: numbers to files (JSONL and TensorBoard), progress to whoever watches."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import TracebackType
from typing import Any


class Watcher:
    """Somebody who watches a run; this one is silent. The command line shows progress bars instead."""

    def begin(self, task: str, total: int, done: int = 0) -> None:
        """A task of ``total`` steps starts, ``done`` of them already made in an earlier run."""

    def advance(self, n: int = 1, **numbers: float) -> None:
        """``n`` more steps are made; ``numbers`` are the latest losses and rates, given now and then."""

    def end(self) -> None:
        """The task is over."""

    def say(self, text: str) -> None:
        """One line worth reading."""


class RunLog:
    """Appends numbers to ``metrics.jsonl`` and TensorBoard events in a run's folder.

    Each line holds ``stage``, ``kind`` ("train", "epoch" or "eval"), ``step``, ``time`` (Unix seconds) and the numbers.
    A log that does not write (``active=False``, every process but the first) takes the same calls.
    """

    def __init__(self, folder: Path, active: bool = True) -> None:
        self._file = self._board = None
        if active:
            from torch.utils.tensorboard import SummaryWriter

            self._file = (folder / "metrics.jsonl").open("a", encoding="utf-8")
            self._board = SummaryWriter(str(folder))

    def write(self, stage: str, kind: str, step: int, numbers: dict[str, Any]) -> None:
        """One line of the file; every plain number of it to TensorBoard as ``stage/name``."""
        if self._file is None:
            return
        line = {"stage": stage, "kind": kind, "step": step, "time": round(time.time(), 3), **numbers}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        for name, value in _scalars(numbers):
            self._board.add_scalar(f"{stage}/{name}", value, step)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._file is not None:
            self._file.close()
            self._board.close()


def _scalars(numbers: dict[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    found = []
    for name, value in numbers.items():
        if isinstance(value, dict):
            found += _scalars(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            found.append((prefix + name, float(value)))
    return found
