"""Progress of a run: a live view in a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

from mrt.engine.report import Watcher
from mrt.plain import one_line, visible

from .console import clock, figure, fitted, say

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions
    from rich.text import Text

SECONDS_BETWEEN_LINES = 10.0
FRAMES_PER_SECOND = 4
BAR = (8, 40)  # its least and greatest width
LABEL = 12  # width of the live view's first column
MOST_SHOWN = 16  # more numbers of a kind would fill the screen

TALL = 36  # lines of a terminal with room for curves
NAME, MOST_BLOCKS = 26, 72  # of a curve's line
MOST_CURVES, MOST_POINTS = 6, 512  # shown, and kept of each
MOST_EVENTS = 5  # of what happened lately
SPARKS = "▁▂▃▄▅▆▇█"

# Numbers of a step that belong to no part of the method, in plainer words than in metrics.jsonl.
WORDS = {"total": "total loss", "grad_norm": "gradient norm", "lr": "learning rate"}
ELSEWHERE = ("images_per_second",)  # shown with the progress
DRIVES = "gradient_share/"  # numbers of which part drives, by part


@cache
def words() -> dict[str, str]:
    """Names of losses -> what they are called here; "" for those that only the log shows."""
    from mrt.config import loss_words

    return loss_words()


def drivers() -> dict[str, str]:
    """What the parts that drive are called here."""
    from mrt.config import DRIVERS

    return DRIVERS


def called(name: str) -> str:
    """What a number is called here: a plug-in's by its own name."""
    return words().get(name, WORDS.get(name, one_line(name).replace("_", " ")))


@dataclass
class Task:
    """Progress of something that takes a while: steps done, latest numbers and, of a training stage, epochs.

    Another thread may read it at any time, so dicts are replaced and never changed.
    """

    name: str
    total: int
    done: int
    start: float = field(default_factory=time.monotonic)
    numbers: dict[str, float] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    steps: int = 0  # since the first one, which is slower than the rest
    working: float = 0.0  # seconds they took
    paused: float = 0.0  # seconds that went to other tasks within this one: evaluation at the ends of epochs
    epochs: int = 0  # that ended in this process, unlike those before a resume
    curves: dict[str, tuple[float, ...]] = field(default_factory=dict)  # of the step's own numbers
    _since: float | None = None

    def advance(self, n: int, numbers: Mapping[str, float]) -> None:
        now = time.monotonic()
        if self._since is not None:
            self.steps += n
            self.working += now - self._since
        self.done, self._since = self.done + n, now
        if numbers:  # the shares are looked at now and then only: the last ones stay
            new = any(key.startswith(DRIVES) for key in numbers)
            kept = {} if new else {k: value for k, value in self.numbers.items() if k.startswith(DRIVES)}
            self.numbers = {**kept, **numbers}
            own = {key: value for key, value in numbers.items() if "/" not in key}
            grown = {key: (*self.curves.get(key, ()), value)[-MOST_POINTS:] for key, value in own.items()}
            self.curves = {**self.curves, **grown}

    def pause(self, seconds: float) -> None:
        """Do not count ``seconds`` that another task took since the last step."""
        self.paused += seconds
        if self._since is not None:
            self._since += seconds

    def learn(self, facts: Mapping[str, Any]) -> None:
        """Store the facts that :meth:`Watcher.epoch` received."""
        self.epochs += bool(self.facts)  # the first call describes the start of the stage
        self.facts = dict(facts)

    @property
    def left(self) -> float | None:
        """Seconds to the end, with the pauses to come; None before the second step."""
        if not self.steps:
            return None
        ends = max(self.facts.get("epochs", 0) - 1 - self.facts.get("epoch", 0), 0)
        return self.working / self.steps * (self.total - self.done) + self.paused / max(self.epochs, 1) * ends

    def progress(self) -> list[str]:
        """Steps, epochs, time left, and speed."""
        words = [f"{self.done}/{self.total}"]
        if epochs := self.facts.get("epochs"):
            words.append(f"epoch {max(-(-self.done * epochs // self.total), 1)}/{epochs}")
        if self.left is not None:
            words.append(f"{clock(self.left)} left")
            each = self.working / self.steps
            if "images_per_second" in self.numbers:
                words.append(f"{self.numbers['images_per_second']:.1f} images/s")
            else:
                words.append(f"{each:.2g} s each" if each >= 0.1 else f"{1 / max(each, 1e-9):.0f} per second")
        return words

    def losses(self) -> Iterator[tuple[str, list[str]]]:
        """The step's numbers in groups: the losses of each domain, and the step itself."""
        numbers = self.numbers
        usual = list(words())
        for domain in ("source", "target"):
            names = [key.partition("/")[2] for key in numbers if key.startswith(f"{domain}/")]
            shown = [
                name
                for name in sorted(names, key=lambda name: usual.index(name) if name in usual else len(usual))
                if called(name)
            ]
            if shown:
                yield (
                    f"{domain} loss",
                    [f"{called(name)} {short(numbers[f'{domain}/{name}'])}" for name in shown],
                )
        driving = {
            key.removeprefix(DRIVES): value for key, value in numbers.items() if key.startswith(DRIVES)
        }
        if len(driving) > 1:
            order = sorted(driving, key=driving.__getitem__, reverse=True)
            yield (
                "gradient of",
                [f"{drivers().get(name, one_line(name))} {100 * driving[name]:.0f} %" for name in order],
            )
        rest = [name for name in numbers if "/" not in name and name not in (*WORDS, *ELSEWHERE)]
        items = []
        for name in [*(name for name in WORDS if name in numbers), *rest]:
            items.append(f"{called(name)} {f'{numbers[name]:.1e}' if name == 'lr' else short(numbers[name])}")
        if items:
            yield "step", items

    def standing(self) -> dict[str, list[str]]:
        """What the parts of the method tell after an epoch, by title."""
        told = {title: value for title, value in self.facts.items() if title not in ("epoch", "epochs")}
        return {
            one_line(title): by_name(value) if isinstance(value, Mapping) else [one_line(v) for v in value]
            for title, value in told.items()
        }


def by_name(values: Mapping[str, float]) -> list[str]:
    """Numbers with their names, such as thresholds of classes; only the lowest of too many."""
    items = list(values.items())
    rest = len(items) - MOST_SHOWN
    if rest > 0:
        items = sorted(items, key=lambda item: item[1])[:MOST_SHOWN]
    more = [f"and {rest} higher ones"] if rest > 0 else []
    return [f"{one_line(name)} {value:.2f}" for name, value in items] + more


def sparkline(values: Sequence[float], width: int) -> str:
    """Numbers over time as a line of at most ``width`` blocks, from the least to the greatest; each block is
    the mean of its part. Numbers that are not finite count as the least.
    """
    finite = [value if math.isfinite(value) else math.nan for value in values]
    known = [value for value in finite if not math.isnan(value)]
    if not known or width < 1:
        return ""
    low, high = min(known), max(known)
    filled = [low if math.isnan(value) else value for value in finite]
    count = min(width, len(filled))
    parts = [
        filled[number * len(filled) // count : (number + 1) * len(filled) // count] for number in range(count)
    ]
    means = [sum(part) / len(part) for part in parts]
    top = len(SPARKS) - 1
    return "".join(SPARKS[round(top * (mean - low) / (high - low)) if high > low else 0] for mean in means)


def short(value: float) -> str:
    """A number in about the same width for all values, so that a line does not jump: 0.123, 12.3, 1.2e+04."""
    size = abs(value)
    return f"{value:.3f}" if size < 10 else f"{value:.1f}" if size < 1000 else f"{value:.1e}"


def latest(measured: Mapping[str, tuple[float | None, int | None]]) -> list[str]:
    """The last AP50 of each network."""
    return [
        f"{one_line(network)} {figure(value)}" + (f" (epoch {epoch})" if epoch else "")
        for network, (value, epoch) in sorted(measured.items(), reverse=True)
    ]


class TaskWatcher(Watcher):
    """Keeps the running tasks, which can be nested, and each network's last AP50 within the outermost, with
    its epoch.

    Another thread may read both at any time, so they are replaced and never changed.
    """

    def __init__(self) -> None:
        words()  # loaded before the first task's time is taken
        self.tasks: list[Task] = []
        self.measurements: dict[str, tuple[float | None, int | None]] = {}

    def begin(self, task: str, total: int, done: int = 0) -> None:
        if not self.tasks:
            self.measurements = {}  # of another stage, or of another run
        self.tasks = [*self.tasks, Task(one_line(task), total, done)]

    def advance(self, n: int = 1, **numbers: float) -> None:
        if self.tasks:
            self.tasks[-1].advance(n, numbers)

    def epoch(self, facts: Mapping[str, Any]) -> None:
        if self.tasks:
            self.tasks[-1].learn(facts)

    def measured(self, network: str, figures: Mapping[str, Any]) -> None:
        epoch = self.tasks[-1].facts.get("epoch") if self.tasks else None
        self.measurements = {**self.measurements, network: (figures.get("AP50"), epoch)}

    def end(self) -> None:
        if self.tasks:
            *self.tasks, task = self.tasks
            took = time.monotonic() - task.start
            if self.tasks:
                self.tasks[-1].pause(took)
            else:
                loss = f"  {WORDS['total']} {short(task.numbers['total'])}" if "total" in task.numbers else ""
                self.say(f"{task.name}: {task.done}/{task.total} in {clock(took)}{loss}")

    def say(self, text: str) -> None:
        say(text)


class LineWatcher(TaskWatcher):
    """Progress as plain lines: every ten seconds, after each epoch, at the end."""

    def __init__(self) -> None:
        super().__init__()
        self._spoken = time.monotonic()

    def begin(self, task: str, total: int, done: int = 0) -> None:
        super().begin(task, total, done)
        self._spoken = time.monotonic()

    def advance(self, n: int = 1, **numbers: float) -> None:
        super().advance(n, **numbers)
        now = time.monotonic()
        due = now - self._spoken >= SECONDS_BETWEEN_LINES
        if self.tasks and due and self.tasks[-1].done < self.tasks[-1].total:
            self._spoken, task = now, self.tasks[-1]
            groups = [f"{label}: {', '.join(items)}" for label, items in task.losses()]
            say("; ".join([f"{task.name}: {', '.join(task.progress())}", *groups]))

    def epoch(self, facts: Mapping[str, Any]) -> None:
        super().epoch(facts)
        if self.tasks and self.tasks[-1].epochs:
            task = self.tasks[-1]
            parts = {**task.standing(), "AP50": latest(self.measurements)}
            told = [f"{label}: {', '.join(items)}" for label, items in parts.items() if items]
            say("; ".join([f"{task.name}: epoch {facts['epoch']}/{facts['epochs']} done", *told]))


class LiveWatcher(TaskWatcher):
    """A few lines at the bottom of the terminal, redrawn four times a second; messages scroll above them. A
    tall terminal also shows curves, and what happened lately: ends of epochs, evaluations, messages.

    To avoid a deadlock of the two threads, the drawing thread takes no lock of the run, and a message from a
    signal handler that interrupts another message is printed after it.
    """

    def __init__(self, console: Console | None = None) -> None:
        from rich.console import Console
        from rich.live import Live

        super().__init__()
        self._idle = time.monotonic()
        self.events: tuple[str, ...] = ()
        self._unsaid: deque[str] = deque()
        self._speaking = False
        self._live = Live(
            console=console or Console(highlight=False, markup=False, emoji=False),
            get_renderable=lambda: self,
            refresh_per_second=FRAMES_PER_SECOND,
            transient=True,
        )

    def __enter__(self) -> LiveWatcher:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()
        for text in self._unsaid:  # messages of a signal handler that arrived while the last one ended
            self._live.console.print(visible(text), soft_wrap=True)

    def end(self) -> None:
        self._idle = time.monotonic()
        super().end()

    def epoch(self, facts: Mapping[str, Any]) -> None:
        super().epoch(facts)
        if self.tasks and self.tasks[-1].epochs:
            self._happened(f"epoch {facts.get('epoch')}/{facts.get('epochs')} done")

    def measured(self, network: str, figures: Mapping[str, Any]) -> None:
        super().measured(network, figures)
        self._happened(f"{network}: AP50 {figure(figures.get('AP50'))}")

    def _happened(self, text: str) -> None:
        event = f"{time.strftime('%H:%M:%S')}  {one_line(text.strip())}"
        self.events = (*self.events, event)[-MOST_EVENTS:]

    def say(self, text: str) -> None:
        self._happened(text)
        self._unsaid.append(text)
        if self._speaking:
            return
        self._speaking = True
        try:
            while self._unsaid:
                self._live.console.print(fitted(visible(self._unsaid.popleft())), soft_wrap=True)
        finally:
            self._speaking = False

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        """The view as lines that fit the width: if the terminal wrapped one, redrawing would fail."""
        from rich.text import Text

        width = options.max_width - 1
        lines = [
            line
            for task in self.tasks
            for line in self._task_lines(task, width, options.ascii_only, tall=console.height >= TALL)
        ]
        if lines and console.height >= TALL:
            for number, event in enumerate(self.events):
                text = Text(("lately" if number == 0 else "").ljust(LABEL), style="cyan")
                lines.append(text.append(event, style="default"))
        for line in lines or [Text(f"preparing  {clock(time.monotonic() - self._idle)}", style="dim")]:
            line.truncate(width, overflow="ellipsis")
            line.no_wrap = True
            yield line

    def _task_lines(self, task: Task, width: int, ascii_only: bool, tall: bool = False) -> Iterator[Text]:
        from rich.text import Text

        numbers = "  ".join(task.progress())
        room = min(BAR[1], width - len(task.name) - len(numbers) - 4)
        head = Text(task.name, style="bold")
        if room >= BAR[0]:
            full = min(room * task.done // max(task.total, 1), room)
            line = "-" if ascii_only else "━"
            head.append("  ").append(line * full, style="green")
            head.append(line * (room - full), style="bright_black")
        yield head.append("  ").append(numbers, style="not bold")
        groups = dict(task.losses())
        if "epochs" in task.facts:
            more = {**task.standing(), "last AP50": latest(self.measurements)}
            groups |= {label: items for label, items in more.items() if items}
        for label, items in groups.items():
            for number, row in enumerate(flow(items, width - LABEL)):
                text = Text((label if number == 0 else "").ljust(LABEL), style="cyan")
                yield text.append(row, style="default")
        if tall and not ascii_only:
            yield from self._curves(task, width)

    def _curves(self, task: Task, width: int) -> Iterator[Text]:
        """The step's numbers over time, where a tall terminal has room for them."""
        from rich.text import Text

        curves = {
            key: values
            for key, values in task.curves.items()
            if key not in (*ELSEWHERE, "lr") and len(values) > 1
        }
        for key, values in list(curves.items())[:MOST_CURVES]:
            text = Text("over time".ljust(LABEL), style="cyan")
            name, ends = called(key), f"  {short(values[0])} -> {short(values[-1])}"
            line = sparkline(values, min(width - LABEL - NAME - len(ends), MOST_BLOCKS))
            yield (
                text.append(name[:NAME].ljust(NAME), style="default").append(line, style="green").append(ends)
            )


def flow(items: Sequence[str], width: int) -> list[str]:
    """Items in lines of at most ``width`` characters; no item is broken, a longer one has its own line."""
    rows: list[str] = []
    for item in items:
        if rows and len(rows[-1]) + 2 + len(item) <= width:
            rows[-1] += "  " + item
        else:
            rows.append(item)
    return rows
