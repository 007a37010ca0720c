"""What the user sees: messages, tables, progress.

Under ``torchrun`` only the first process talks, but each reports its own errors.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

from mrt.engine.report import Watcher
from mrt.errors import Interrupted, MrtError, ProcessLost
from mrt.plain import visible

from .launch import STARTED

_COMMAND = re.compile(r"(?:^|: |-> |\$ )\s*(?:mrt|make|pip install) -?[a-z]")
RANK = int(os.environ.get("RANK", "0"))
BORDER = 3  # letters beside a column's own: a blank on either side, a line
LEAST_TEXT = 20  # letters that a column of text keeps when it is folded
PLAIN = 159  # columns of prose in a pipe or a file, where there is no terminal to ask
PLAIN_WIDTH = 159  # of tables there


def _console(stream: str) -> Console:
    width = None if getattr(sys, stream).isatty() else PLAIN_WIDTH
    return Console(stderr=stream == "stderr", width=width, highlight=False, markup=False, emoji=False)


def say(text: str = "", style: str | None = None, wrap: bool = False) -> None:
    """One message on standard output; control characters in it are shown as escapes.

    ``wrap`` breaks lines between words: for prose, not for text to copy.
    """
    if RANK == 0:
        shown = visible(text) if wrap else fitted(visible(text))
        _console("stdout").print(shown, style=style, soft_wrap=not wrap)


def fold(text: str, indent: int, stream: str = "stdout") -> str:
    """Prose in lines that fit the terminal (159 columns where there is none), each but the first indented.

    Lines break between words only: a path or a word that is longer keeps its line.
    """
    width = shutil.get_terminal_size((PLAIN, 24)).columns if getattr(sys, stream).isatty() else PLAIN
    if len(text) <= width - indent:
        return text
    lines = textwrap.wrap(text, max(width - indent, 20), break_long_words=False, break_on_hyphens=False)
    return f"\n{'':{indent}}".join(lines)


def fitted(text: str, stream: str = "stdout", before: int = 0) -> str:
    """A message whose long lines break between words. Lines with a command stay whole, to be copied. Where
    there is no terminal, what a line goes on with is indented.

    Args:
        stream: where it will be shown. before: letters that stand before its first line.
    """
    lines = ("x" * before + text).split("\n")  # blanks would be dropped before a word longer than the line
    indent = 0 if getattr(sys, stream).isatty() else 2
    shown = "\n".join(line if _COMMAND.search(line) else fold(line, indent, stream) for line in lines)
    return shown[before:]


def show_error(error: Exception) -> None:
    """One clear message on standard error, without a traceback.

    A stop that the user asked for reaches every process, but only the one that the user started reports it:
    mrt, or the first process under torchrun.
    """
    stopped = isinstance(error, Interrupted) and not isinstance(error, ProcessLost)
    if stopped and (RANK or STARTED in os.environ):
        return
    console = _console("stderr")
    message, hint = str(error) or type(error).__name__, None
    if isinstance(error, MrtError):
        message, hint = error.message, error.hint
    where = f"mrt (process {RANK}): " if RANK else "mrt: "
    console.print(where, style="bold red", end="", soft_wrap=True)
    console.print(fitted(visible(message), "stderr", len(where)), soft_wrap=True)
    if hint:
        console.print(fitted(visible(hint), "stderr"), style="cyan", soft_wrap=True)


def show_table(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    caption: str | None = None,
    text_columns: int = 1,
) -> None:
    """A table on standard output; all but the first ``text_columns`` columns are numbers, flush right.

    Numbers are never broken: where they do not fit beside each other, the table goes on below, each part
    with the columns of text.
    """
    if RANK != 0:
        return
    console = _console("stdout")
    shown = [list(map(visible, row)) for row in (columns, *rows)]
    console.print(visible(title), style="bold", soft_wrap=True)
    for part in parts_that_fit(shown, text_columns, console.width):
        table = Table(header_style="bold")
        for index in part:
            text = index < text_columns
            widest = max(cell_len(row[index]) for row in shown)
            whole = not text and widest + BORDER + text_columns * (BORDER + 1) < console.width
            table.add_column(
                shown[0][index], justify="left" if text else "right", overflow="fold", no_wrap=whole
            )
        for row in shown[1:]:
            table.add_row(*(row[index] for index in part))
        console.print(table)
    if caption:
        console.print(fitted(visible(caption)), soft_wrap=True)


def parts_that_fit(rows: Sequence[Sequence[str]], text_columns: int, width: int) -> list[list[int]]:
    """The columns of a table in parts, none wider than ``width`` letters if that can be: the first
    ``text_columns``, which may be folded, and some of the others, which may not.
    """
    widest = [max(cell_len(row[index]) for row in rows) + BORDER for index in range(len(rows[0]))]
    texts = list(range(text_columns))
    start = 1 + sum(min(widest[index], LEAST_TEXT + BORDER) for index in texts)
    parts, taken = [list(texts)], start
    for index in range(text_columns, len(widest)):
        if taken + widest[index] > width and len(parts[-1]) > len(texts):
            parts.append(list(texts))
            taken = start
        parts[-1].append(index)
        taken += widest[index]
    return parts


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
    """A watcher for the engine: a live view in a terminal, elsewhere a line from time to time.

    Processes other than the first show nothing.
    """
    from .watchers import LineWatcher, LiveWatcher

    if RANK != 0:
        yield Watcher()
    elif sys.stdout.isatty() and os.environ.get("TERM") != "dumb":
        with LiveWatcher() as watcher:
            yield watcher
    else:
        yield LineWatcher()
