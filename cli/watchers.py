"""Progress of a run: a live view in a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mrt.engine.report import Watcher

from .console import clock, figure, say

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions
    from rich.text import Text

SECONDS_BETWEEN_LINES = 10.0
FRAMES_PER_SECOND = 4
BAR = (8, 40)  # its least and greatest width
LABEL = 12  # width of the live view's first column
CLASSES_SHOWN = 16  # thresholds of more classes would fill the screen

# A step's numbers, by their names in metrics.jsonl and TensorBoard, in plainer words. "proposal_..." and the
# parts of "domain" appear only in those files.
WORDS = {
    "class": "class",
    "box": "box L1",
    "giou": "GIoU",
    "domain": "domain",
    "mae": "reconstruction",
    "total": "total loss",
    "grad_norm": "gradient norm",
    "lr": "learning rate",
    "pseudo_labels": "pseudo labels per image",
}


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
    retrained: str = ""
    steps: int = 0  # since the first one, which is slower than the rest
    working: float = 0.0  # seconds they took
    paused: float = 0.0  # seconds that went to other tasks within this one: evaluation at the ends of epochs
    epochs: int = 0  # that ended in this process, unlike those before a resume
    _since: float | None = None

    def advance(self, n: int, numbers: Mapping[str, float]) -> None:
        now = time.monotonic()
        if self._since is not None:
            self.steps += n
            self.working += now - self._since
        self.done, self._since = self.done + n, now
        self.numbers = dict(numbers) or self.numbers

    def pause(self, seconds: float) -> None:
        """Do not count ``seconds`` that another task took since the last step."""
        self.paused += seconds
        if self._since is not None:
            self._since += seconds

    def learn(self, facts: Mapping[str, Any]) -> None:
        """Store the facts that :meth:`Watcher.epoch` received."""
        self.epochs += bool(self.facts)  # the first call describes the start of the stage
        self.facts = dict(facts)
        if "retrained" in facts:
            self.retrained = f"{facts['retrained']} after epoch {facts['epoch']}"

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
        for domain in ("source", "target"):
            named = {name: f"{domain}/{name}" for name in WORDS}
            items = [f"{WORDS[name]} {short(numbers[key])}" for name, key in named.items() if key in numbers]
            if items:
                yield f"{domain} loss", items
        items = []
        for name in ("total", "grad_norm", "lr", "pseudo_labels"):
            if name in numbers:
                shown = f"{numbers[name]:.1e}" if name == "lr" else short(numbers[name])
                items.append(f"{WORDS[name]} {shown}")
        if items:
            yield "step", items

    def retraining(self) -> list[str]:
        """What selective retraining did last, and when it is due again."""
        due = f"next after epoch {self.facts['next_retraining']}" if "next_retraining" in self.facts else ""
        return [text for text in (self.retrained, due) if text]

    def thresholds(self) -> list[str]:
        """The threshold of each class; only the lowest where there are too many."""
        values = list(self.facts.get("thresholds", {}).items())
        rest = len(values) - CLASSES_SHOWN
        if rest > 0:
            values = sorted(values, key=lambda item: item[1])[:CLASSES_SHOWN]
        more = [f"and {rest} higher ones"] if rest > 0 else []
        return [f"{name} {value:.2f}" for name, value in values] + more


def short(value: float) -> str:
    """A number in about the same width for all values, so that a line does not jump: 0.123, 12.3, 1.2e+04."""
    size = abs(value)
    return f"{value:.3f}" if size < 10 else f"{value:.1f}" if size < 1000 else f"{value:.1e}"


def latest(measured: Mapping[str, tuple[float | None, int | None]]) -> list[str]:
    """The last AP50 of each network."""
    return [
        f"{network} {figure(value)}" + (f" (epoch {epoch})" if epoch else "")
        for network, (value, epoch) in sorted(measured.items(), reverse=True)
    ]


class TaskWatcher(Watcher):
    """Keeps the running tasks, which can be nested, and each network's last AP50 with its epoch.

    Another thread may read both at any time, so they are replaced and never changed.
    """

    def __init__(self) -> None:
        self.tasks: list[Task] = []
        self.measurements: dict[str, tuple[float | None, int | None]] = {}

    def begin(self, task: str, total: int, done: int = 0) -> None:
        self.tasks = [*self.tasks, Task(task, total, done)]

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
            parts = {
                "thresholds": task.thresholds(),
                "retraining": task.retraining(),
                "AP50": latest(self.measurements),
            }
            told = [f"{label}: {', '.join(items)}" for label, items in parts.items() if items]
            say("; ".join([f"{task.name}: epoch {facts['epoch']}/{facts['epochs']} done", *told]))


class LiveWatcher(TaskWatcher):
    """A few lines at the bottom of the terminal, redrawn four times a second; messages scroll above them.

    To avoid a deadlock of the two threads, the drawing thread takes no lock of the run, and a message from a
    signal handler that interrupts another message is printed after it.
    """

    def __init__(self, console: Console | None = None) -> None:
        from rich.console import Console
        from rich.live import Live

        super().__init__()
        self._idle = time.monotonic()
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
            self._live.console.print(text, soft_wrap=True)

    def end(self) -> None:
        self._idle = time.monotonic()
        super().end()

    def say(self, text: str) -> None:
        self._unsaid.append(text)
        if self._speaking:
            return
        self._speaking = True
        try:
            while self._unsaid:
                self._live.console.print(self._unsaid.popleft(), soft_wrap=True)
        finally:
            self._speaking = False

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        """The view as lines that fit the width: if the terminal wrapped one, redrawing would fail."""
        from rich.text import Text

        width = options.max_width - 1
        lines = [
            line
            for task in self.tasks
            for line in self._task_lines(task, width, ascii_only=options.ascii_only)
        ]
        for line in lines or [Text(f"preparing  {clock(time.monotonic() - self._idle)}", style="dim")]:
            line.truncate(width, overflow="ellipsis")
            line.no_wrap = True
            yield line

    def _task_lines(self, task: Task, width: int, ascii_only: bool) -> Iterator[Text]:
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
            more = {
                "thresholds": task.thresholds(),
                "retraining": task.retraining(),
                "last AP50": latest(self.measurements),
            }
            groups |= {label: items for label, items in more.items() if items}
        for label, items in groups.items():
            for number, row in enumerate(flow(items, width - LABEL)):
                text = Text((label if number == 0 else "").ljust(LABEL), style="cyan")
                yield text.append(row, style="default")


def flow(items: Sequence[str], width: int) -> list[str]:
    """Items in lines of at most ``width`` characters; no item is broken, a longer one has its own line."""
    rows: list[str] = []
    for item in items:
        if rows and len(rows[-1]) + 2 + len(item) <= width:
            rows[-1] += "  " + item
        else:
            rows.append(item)
    return rows
