"""What the user sees: messages, tables, progress. Under ``torchrun`` only the first process talks, but each reports its own errors."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.table import Table

from mrt.engine.report import Watcher
from mrt.errors import Interrupted, MrtError, ProcessLost

from .launch import STARTED

RANK = int(os.environ.get("RANK", "0"))
PLAIN_WIDTH = 200  # of tables in a pipe or a file, where there is no terminal to ask
SECONDS_BETWEEN_LINES = 10.0
SHOWN = {
    "total": "loss",
    "source/class": "class",
    "source/box": "box",
    "target/mae": "mae",
    "pseudo_labels": "pseudo labels",
}  # of a step's


def _console(stream: str) -> Console:
    width = None if getattr(sys, stream).isatty() else PLAIN_WIDTH
    return Console(stderr=stream == "stderr", width=width, highlight=False, markup=False, emoji=False)


def say(text: str = "", style: str | None = None) -> None:
    """One message on standard output."""
    if RANK == 0:
        _console("stdout").print(text, style=style, soft_wrap=True)


def show_error(error: Exception) -> None:
    """One clear message on standard error, without a traceback.

    A stop that was asked for reaches every process; the one that the user started tells of it: mrt, or the first under torchrun.
    """
    if isinstance(error, Interrupted) and not isinstance(error, ProcessLost) and (RANK or STARTED in os.environ):
        return
    console = _console("stderr")
    message, hint = (error.message, error.hint) if isinstance(error, MrtError) else (str(error) or type(error).__name__, None)
    where = f"mrt (process {RANK}): " if RANK else "mrt: "
    console.print(where, style="bold red", end="", soft_wrap=True)
    console.print(message, soft_wrap=True)
    if hint:
        console.print(hint, style="cyan", soft_wrap=True)


def show_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], caption: str | None = None, text_columns: int = 1
) -> None:
    """A table on standard output; all but the first ``text_columns`` columns are numbers, flush right."""
    if RANK != 0:
        return
    console = _console("stdout")
    table = Table(header_style="bold")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index < text_columns else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    console.print(title, style="bold", soft_wrap=True)
    console.print(table)
    if caption:
        console.print(caption, soft_wrap=True)


def figure(value: float | None, std: float | None = None) -> str:
    """43.21 -> "43.2"; with a standard deviation "43.2 ± 1.0"; "-" where there is no number."""
    if value is None:
        return "-"
    return f"{value:.1f}" + (f" ± {std:.1f}" if std is not None else "")


def clock(seconds: float) -> str:
    """75 -> "1:15", 3700 -> "1:01:40"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


@contextmanager
def watching() -> Iterator[Watcher]:
    """A watcher for the engine: bars in a terminal, a line now and then elsewhere, nothing in processes other than the first."""
    if RANK != 0:
        yield Watcher()
    elif sys.stdout.isatty():
        with BarWatcher() as watcher:
            yield watcher
    else:
        yield LineWatcher()


def _numbers(numbers: dict[str, float]) -> str:
    """The few numbers worth a glance; metrics.jsonl has them all."""
    return "  ".join(f"{word} {numbers[name]:.3g}" for name, word in SHOWN.items() if name in numbers)


class LineWatcher(Watcher):
    """Progress as plain lines: at the start, every ten seconds, at the end."""

    def __init__(self) -> None:
        self._tasks: list[dict] = []

    def begin(self, task: str, total: int, done: int = 0) -> None:
        now = time.monotonic()
        self._tasks.append({"task": task, "total": total, "done": done, "first": done, "start": now, "spoken": now, "numbers": {}})

    def advance(self, n: int = 1, **numbers: float) -> None:
        if not self._tasks:
            return
        task, now = self._tasks[-1], time.monotonic()
        task["done"] += n
        task["numbers"].update(numbers)
        if now - task["spoken"] >= SECONDS_BETWEEN_LINES and task["done"] < task["total"]:
            task["spoken"] = now
            each = (now - task["start"]) / max(task["done"] - task["first"], 1)
            left = clock(each * (task["total"] - task["done"]))
            say(f"{task['task']}: {task['done']}/{task['total']}, {left} left, {each:.3g} s each  {_numbers(task['numbers'])}".rstrip())

    def end(self) -> None:
        if self._tasks:
            task = self._tasks.pop()
            took = time.monotonic() - task["start"]
            say(f"{task['task']}: {task['done']}/{task['total']} in {clock(took)}  {_numbers(task['numbers'])}".rstrip())

    def say(self, text: str) -> None:
        say(text)


class BarWatcher(Watcher):
    """Progress bars with the time left; a finished bar becomes one line."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            TextColumn("{task.fields[numbers]}", style="dim"),
            console=Console(highlight=False, markup=False, emoji=False),
            transient=True,
            speed_estimate_period=120,
        )
        self._running: list[tuple[int, str, float, dict[str, float]]] = []

    def __enter__(self) -> BarWatcher:
        self._progress.start()
        self._starting = self._progress.add_task("starting", total=None, numbers="")
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def begin(self, task: str, total: int, done: int = 0) -> None:
        self._progress.update(self._starting, visible=False)
        handle = self._progress.add_task(task, total=total, completed=done, numbers="")
        self._running.append((handle, task, time.monotonic(), {}))

    def advance(self, n: int = 1, **numbers: float) -> None:
        if self._running:
            handle, _, _, latest = self._running[-1]
            latest.update(numbers)
            self._progress.update(handle, advance=n, numbers=_numbers(latest))

    def end(self) -> None:
        if self._running:
            handle, task, start, latest = self._running.pop()
            bar = next(bar for bar in self._progress.tasks if bar.id == handle)
            self.say(f"{task}: {bar.completed:.0f}/{bar.total:.0f} in {clock(time.monotonic() - start)}  {_numbers(latest)}".rstrip())
            self._progress.remove_task(handle)

    def say(self, text: str) -> None:
        self._progress.console.print(text, soft_wrap=True)
