"""What a run tells: numbers to files (JSONL and TensorBoard), progress to whoever watches."""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from mrt.engine.facts import require_own_log
from mrt.errors import MrtError
from mrt.files import not_written, replacing, write_text
from mrt.plain import quoted
from mrt.seal import Prefix

if TYPE_CHECKING:
    from mrt.engine.loggers import Loggers

LOG, SNAPSHOTS = "metrics.jsonl", "pseudo_labels.jsonl"
LOGS = (LOG, SNAPSHOTS)  # files of a run that grow
SNAPSHOT_NEEDS: Mapping[str, type] = {"stage": str, "step": int}  # what a line must have
NEEDS: Mapping[str, type] = {**SNAPSHOT_NEEDS, "kind": str}


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


class Board:
    """Scalars for TensorBoard, written at once and in this thread, so that what goes wrong is told here."""

    def __init__(self, folder: Path) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        name = f"events.out.tfevents.{int(time.time()):010d}.{platform.node()}.{os.getpid()}"
        self._path, self._event = folder / name, Event
        try:
            self._file = self._path.open("wb")
        except OSError as error:
            raise not_written(self._path, error) from error
        self._writer = RecordWriter(self._file)
        self._write(Event(wall_time=time.time(), file_version="brain.Event:2"))

    def add_scalar(self, tag: str, value: float, step: int, walltime: float | None = None) -> None:
        """A point of the curve ``tag``."""
        from torch.utils.tensorboard.summary import scalar

        when = time.time() if walltime is None else walltime
        self._write(self._event(wall_time=when, step=step, summary=scalar(tag, value)))

    def _write(self, event: Any) -> None:
        try:
            self._writer.write(event.SerializeToString())
        except OSError as error:
            raise not_written(self._path, error) from error

    def flush(self) -> None:
        """Hand everything to the system."""
        try:
            self._writer.flush()
        except OSError as error:
            raise not_written(self._path, error) from error

    def close(self) -> None:
        self._writer.close()


class RunLog:
    """Appends numbers to ``metrics.jsonl`` and TensorBoard events in a run's folder.

    Each line holds ``stage``, ``kind`` ("train", "epoch" or "eval"), ``step``, ``time`` (Unix seconds) and
    the numbers. A log that does not write (``active=False``, every process but the first) takes the same
    calls. Where a run goes on, the events are written anew from the lines that are left
    (:func:`take_back`), so that both say the same. ``loggers`` get what is new.
    """

    def __init__(self, folder: Path, active: bool = True, loggers: Loggers | None = None) -> None:
        self._file = self._board = None
        self._loggers = loggers
        if active:
            before = read_log(folder / LOG, whole=False)
            for events in folder.glob("events.out.tfevents.*"):
                events.unlink()
            try:
                self._file = (folder / LOG).open("a", encoding="utf-8")
            except OSError as error:
                raise not_written(folder / LOG, error) from error
            self._path = folder / LOG
            self._board = Board(folder)
            for line in before:
                self._draw(line)

    def write(self, stage: str, kind: str, step: int, numbers: dict[str, Any]) -> None:
        """One line of the file; every plain number of it to TensorBoard as ``stage/name``."""
        if self._file is None:
            return
        line = {"stage": stage, "kind": kind, "step": step, "time": round(time.time(), 3), **_finite(numbers)}
        try:
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
        except OSError as error:
            raise not_written(self._path, error) from error
        self._draw({**line, **numbers}, new=True)
        self._board.flush()

    def sync(self) -> None:
        """Let what is written outlast a loss of power."""
        if self._file is not None:
            try:
                os.fsync(self._file.fileno())
            except OSError as error:
                raise not_written(self._path, error) from error

    def _draw(self, line: Mapping[str, Any], new: bool = False) -> None:
        """The numbers of a line to TensorBoard and, of a new one, to where else they go."""
        tag = "/".join([line["stage"], *([line["network"]] if "network" in line else [])])
        numbers = {
            name: value for name, value in line.items() if name not in ("stage", "kind", "step", "time")
        }
        found = dict(_scalars(numbers))
        for name, value in found.items():
            self._board.add_scalar(f"{tag}/{name}", value, line["step"], walltime=line.get("time"))
        if new and self._loggers is not None:
            finite = {name: value for name, value in found.items() if math.isfinite(value)}
            self._loggers.add(tag, finite, line["step"], line["time"])

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._loggers is not None:
            self._loggers.close(failed=kind is not None)
        if self._file is not None:
            with contextlib.suppress(OSError):  # whatever could not be written has been told
                self._file.close()
            with contextlib.suppress(OSError):
                self._board.close()


def append_line(path: Path, line: Mapping[str, Any]) -> None:
    """Append a line of JSON to a file; RunFailed or MrtError where that cannot be done."""
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise not_written(path, error) from error


def read_log(path: Path, say: Callable[[str], Any] | None = None, whole: bool = True) -> list[dict[str, Any]]:
    """The lines of a run's ``metrics.jsonl``; none where there is no such file.

    A last line that was cut short is left out: it was being written when its process was killed.

    Args:
        say: is told of damaged lines, which are then left out.
        whole: without ``say``: compare it with what the run has on record of it, too.

    Raises:
        MrtError: a line is damaged, or not one of a run's log, or the log is not what the run wrote, and
            there is no ``say``.
    """
    if say is None and whole:
        require_own_log(path)
    try:
        content = path.read_bytes() if path.is_file() else b""
    except OSError as error:
        raise MrtError(f"{path}: cannot be read: {error.strerror}") from None
    lines, damaged = [], []
    *texts, rest = content.split(b"\n")
    for number, text in enumerate([*texts, *([rest] if rest else [])], start=1):
        try:
            line = json.loads(text.decode("utf-8"))
            problem = _problem(line, SNAPSHOT_NEEDS if path.name == SNAPSHOTS else NEEDS)
        except (ValueError, RecursionError) as error:
            if number > len(texts):
                continue
            problem = f"not readable ({error})"
        if problem:
            damaged.append(f"line {number}: {problem}")
        else:
            lines.append(line)
    if damaged and say is None:
        raise MrtError(
            f"{path}: {damaged[0]}" + (f" (and {len(damaged) - 1} more)" if len(damaged) > 1 else ""),
            f"mrt doctor {quoted(path.parent)} --mend takes damaged lines out",
        )
    if damaged:
        say(f"{path}: {len(damaged)} damaged lines are left out, the first: {damaged[0]}")
    return lines


def _problem(line: Any, needs: Mapping[str, type]) -> str | None:
    """Why something is no line of a log."""
    if not isinstance(line, dict):
        return "not an object"
    for name, kinds in needs.items():
        if not isinstance(line.get(name), kinds) or isinstance(line[name], bool):
            return f"{name} = {str(line.get(name))[:40]!r}"
    if line["step"] < 0:
        return f"step = {line['step']}"
    for name in ("time", "lr", "AP50", "AP", "images_per_second", "epoch", "total", "grad_norm"):
        value = line.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
            return f"{name} = {str(value)[:40]!r}"
    if isinstance(line.get("time"), (int, float)) and not 0 <= line["time"] < 1e11:
        return f"time = {line['time']}"
    if not isinstance(line.get("epoch", 0), int):
        return f"epoch = {line['epoch']!r}"
    if line.get("kind") == "eval" and not isinstance(line.get("network"), str):
        return f"network = {str(line.get('network'))[:40]!r}"
    for name in ("thresholds", "labels_per_image", "per_class"):
        value, plain = line.get(name), name != "per_class"
        if value is not None and not (
            isinstance(value, dict)
            and all(isinstance(item, (int, float) if plain else dict) for item in value.values())
        ):
            return f"{name} = {str(value)[:40]!r}"
    return None


def logs_now(folder: Path) -> dict[str, Any]:
    """How long a run's logs are and what is in them, by file name: :meth:`mrt.seal.Prefix.to_dict`."""
    return {name: Prefix.of(folder / name).to_dict() for name in LOGS}


def wrong_logs(folder: Path, recorded: Mapping[str, Any], whole: bool = False) -> dict[str, str]:
    """What is wrong with logs whose beginnings (``whole``: whose all) are on record, by file name."""
    found = {}
    for name in LOGS:
        prefix = Prefix.from_dict(recorded.get(name))
        problem = prefix.check(folder / name, whole) if prefix else None
        if problem:
            found[name] = problem
    return found


def take_back(
    folder: Path, recorded: Mapping[str, Any] | None, earlier: Collection[str], stage: str, step: int
) -> list[str]:
    """Take out of a run's logs what came after the checkpoint it goes on from.

    Args:
        recorded: the logs as they were then (:func:`logs_now`); None: a checkpoint of an earlier mrt.
        earlier: stages that were finished before ``stage``. step: of the checkpoint.

    Returns:
        What is wrong with the logs, in words. What can be read of them is kept.
    """
    said: list[str] = []
    wrong = wrong_logs(folder, recorded or {})
    for name in LOGS:
        path = folder / name
        if not path.is_file():
            if name in wrong:
                said.append(f"{path}: {wrong[name]}; what it said is lost")
            continue
        prefix = Prefix.from_dict((recorded or {}).get(name))
        if prefix is not None and name not in wrong:
            if path.stat().st_size > prefix.bytes:
                with path.open("rb") as file:
                    content = file.read(prefix.bytes)
                with replacing(path) as file:
                    file.write(content)
            continue
        if name in wrong:
            said.append(f"{path}: {wrong[name]}; the lines that can be read are kept")
        kept = [
            line
            for line in read_log(path, said.append)
            if line["stage"] in earlier or (line["stage"] == stage and line["step"] <= step)
        ]
        write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
    return said


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
