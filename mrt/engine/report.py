"""What a run tells: numbers to files (JSONL and TensorBoard), progress to whoever watches."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from mrt.files import write_text


class Watcher:
    """Somebody who watches a run; this one is silent. The command line shows a live view instead. Tasks may
    lie in one another.
    """

    def begin(self, task: str, total: int, done: int = 0) -> None:
        """A task of ``total`` steps starts, ``done`` of them already made in an earlier run."""

    def advance(self, n: int = 1, **numbers: float) -> None:
        """``n`` more steps are made; ``numbers`` are the latest losses and rates, given now and then."""

    def epoch(self, facts: Mapping[str, Any]) -> None:
        """How the stage stands after an epoch, and before its first one.

        ``facts``: "epoch" (how many are over) of "epochs", and what the parts of the method tell
        (:meth:`mrt.parts.base.Part.facts`): by title, numbers by name or a list of texts, such as
        "thresholds" by class.
        """

    def measured(self, network: str, figures: Mapping[str, Any]) -> None:
        """A network ("teacher", "student") was measured on validation images: what
        ``mrt.evaluate.coco.Metrics.to_dict`` gives.
        """

    def end(self) -> None:
        """The task is over."""

    def say(self, text: str) -> None:
        """One line worth reading."""


class RunLog:
    """Appends numbers to ``metrics.jsonl`` and TensorBoard events in a run's folder.

    Each line holds ``stage``, ``kind`` ("train", "epoch" or "eval"), ``step``, ``time`` (Unix seconds) and
    the numbers. A log that does not write (``active=False``, every process but the first) takes the same
    calls. Where a run goes on, the events are written anew from the lines that are left
    (:func:`forget_later_lines`), so that both say the same.
    """

    def __init__(self, folder: Path, active: bool = True) -> None:
        self._file = self._board = None
        if active:
            from torch.utils.tensorboard import SummaryWriter

            before = read_log(folder / "metrics.jsonl")
            for events in folder.glob("events.out.tfevents.*"):
                events.unlink()
            self._file = (folder / "metrics.jsonl").open("a", encoding="utf-8")
            self._board = SummaryWriter(str(folder))
            for line in before:
                self._draw(line)

    def write(self, stage: str, kind: str, step: int, numbers: dict[str, Any]) -> None:
        """One line of the file; every plain number of it to TensorBoard as ``stage/name``."""
        if self._file is None:
            return
        line = {"stage": stage, "kind": kind, "step": step, "time": round(time.time(), 3), **_finite(numbers)}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        self._draw({**line, **numbers})

    def _draw(self, line: Mapping[str, Any]) -> None:
        """The numbers of a line to TensorBoard."""
        tag = "/".join([line["stage"], *([line["network"]] if "network" in line else [])])
        numbers = {
            name: value for name, value in line.items() if name not in ("stage", "kind", "step", "time")
        }
        for name, value in _scalars(numbers):
            self._board.add_scalar(f"{tag}/{name}", value, line["step"], walltime=line["time"])

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
            self._board.close()


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a run's ``metrics.jsonl``; none where there is no such file. A line that was cut short is
    left out.
    """
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        with contextlib.suppress(json.JSONDecodeError):
            lines.append(json.loads(text))
    return lines


def forget_later_lines(path: Path, earlier: Collection[str], stage: str, step: int) -> None:
    """Take out of a run's ``metrics.jsonl`` what came after the checkpoint it goes on from, and a line that
    was cut short.

    Args:
        earlier: stages that were finished before ``stage``. step: of the checkpoint.
    """
    if not path.is_file():
        return
    kept = [
        line
        for line in read_log(path)
        if line["stage"] in earlier or (line["stage"] == stage and line["step"] <= step)
    ]
    write_text(path, "".join(json.dumps(line) + "\n" for line in kept))


def _finite(value: Any) -> Any:
    """JSON has no infinities: null instead (fp16's first gradient norms)."""
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _scalars(numbers: Mapping[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    found = []
    for name, value in numbers.items():
        if isinstance(value, dict):
            found += _scalars(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            found.append((prefix + name, float(value)))
    return found
