"""Progress as plain lines, and as a live view that a narrow terminal can redraw."""

from __future__ import annotations

import io
import os
import pty
import re
import subprocess
import sys
import textwrap
import time

import pytest
from mrt_cli import watchers
from mrt_cli.watchers import LineWatcher, LiveWatcher, Task, flow, short, sparkline
from rich.console import Console

SOURCE_LOSSES = ("class", "box", "giou", "proposal_class", "domain", "domain_encoder")
NUMBERS = {f"source/{name}": 0.5 for name in SOURCE_LOSSES}
NUMBERS |= {"target/class": 0.25, "target/mae": 4.5, "total": 11.5, "grad_norm": 15.0, "lr": 2e-4}
NUMBERS |= {"pseudo_labels": 1.5, "images_per_second": 37.0}
CLASSES = ("person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle")
FACTS = {"epoch": 0, "epochs": 2, "thresholds": dict.fromkeys(CLASSES, 0.3)}
FACTS |= {"retraining": ["next after epoch 1"]}
AGAIN = {"retraining": ["backbone+encoder after epoch 1"]}


def teach(watcher) -> None:
    """The engine's calls for two epochs of two steps, with an evaluation in between."""
    watcher.begin("teach", 4)
    watcher.epoch(FACTS)
    watcher.advance()
    watcher.advance(1, **NUMBERS)
    thresholds = dict.fromkeys(CLASSES, 0.35)
    watcher.epoch({**FACTS, "epoch": 1, "thresholds": thresholds, **AGAIN})
    watcher.begin("evaluate on fog val", 1)
    watcher.advance()
    watcher.end()
    watcher.measured("student", {"AP50": 30.5})
    watcher.measured("teacher", {"AP50": None})
    watcher.say("student on fog val: AP50 30.5 [not markup] " + "a long message " * 8)
    watcher.advance(1, **{**NUMBERS, "total": 9.25})


def unfolded(text: str) -> list[str]:
    """Lines, none as long as 160 columns, put together again where they go on indented."""
    assert max(map(len, text.splitlines())) < 160
    return text.replace("\n  ", " ").splitlines()


def test_lines(capsys, monkeypatch):
    monkeypatch.setattr(watchers, "SECONDS_BETWEEN_LINES", 0.0)
    watcher = LineWatcher()
    teach(watcher)
    watcher.advance()
    watcher.end()
    watcher.end()
    lines = unfolded(capsys.readouterr().out)
    assert lines[0] == "teach: 1/4, epoch 1/2"
    assert re.match(r"teach: 2/4, epoch 1/2, \d+:\d\d left, 37.0 images/s; source loss: class", lines[1])
    assert "; source loss: class 0.500, box L1 0.500, GIoU 0.500, domain 0.500; " in lines[1]
    assert "target loss: class 0.250, reconstruction 4.500; step: total loss 11.5, " in lines[1]
    assert "total loss 11.5, gradient norm 15.0, learning rate 2.0e-04, pseudo" in lines[1]
    assert lines[2].startswith("teach: epoch 1/2 done; thresholds: person 0.35, rider 0.35,")
    assert "backbone+encoder after epoch 1" in lines[2]
    # There is no line for an evaluation within the stage.
    assert lines[3].startswith("student on fog val: AP50 30.5 [not markup]")
    assert lines[4].startswith("teach: 3/4, epoch 2/2") and "total loss 9.250" in lines[4]
    assert lines[5].startswith("teach: 4/4 in 0:0") and len(lines) == 6


def test_a_line_every_ten_seconds_and_the_last_ap(capsys):
    watcher = LineWatcher()
    teach(watcher)
    watcher.epoch({"epoch": 2, "epochs": 2, **AGAIN})
    lines = unfolded(capsys.readouterr().out)
    assert len(lines) == 3, "an epoch, a message, an epoch"
    assert lines[2] == (
        "teach: epoch 2/2 done; retraining: backbone+encoder after epoch 1; AP50: "
        "teacher - (epoch 1), student 30.5 (epoch 1)"
    )


def test_a_stage_does_not_show_the_ap_of_the_one_before(capsys):
    watcher = LineWatcher()
    teach(watcher)
    watcher.end()
    watcher.begin("teach", 4)
    watcher.epoch(FACTS)
    watcher.epoch({**FACTS, "epoch": 1, **AGAIN})
    assert unfolded(capsys.readouterr().out)[-1].endswith("backbone+encoder after epoch 1")


@pytest.mark.parametrize("width", [50, 80, 140])
def test_the_live_view_fits(width):
    watcher = LiveWatcher(Console(width=width, force_terminal=True, file=io.StringIO()))
    console = Console(width=width, record=True, file=io.StringIO(), markup=False, highlight=False)
    console.print(watcher)
    assert "preparing" in console.export_text()
    teach(watcher)
    watcher.begin("evaluate on a data set with a long name", 200)
    console.print(watcher)
    text = console.export_text()
    assert max(map(len, text.splitlines())) < width and len(text.splitlines()) <= 22
    for word in ("epoch 2/2", "class 0.500", "reconstruction 4.500", "gradient norm 15.0"):
        assert word in text
    for word in ("learning rate 2.0e-04", "pseudo labels per image 1.500", "student 30.5 (epoch 1)"):
        assert word in text
    for word in (*(f"{name} 0.35" for name in CLASSES), "backbone+encoder after epoch 1"):
        assert word in text
    assert "37.0 images/s" in text and "proposal" not in text


def test_the_view_survives_what_nobody_began():
    with LiveWatcher(Console(force_terminal=True, file=io.StringIO())) as watcher:
        watcher.advance(1, total=1.0)
        watcher.epoch(FACTS)
        watcher.measured("student", {"AP50": 1.0})
        watcher.end()
        watcher.say("still here")


def test_a_message_in_the_middle_of_a_message_is_told_after_it():
    """Ctrl-C may come during a message: printing at once could wait forever for the drawing thread."""

    class Interrupted(io.StringIO):
        def write(self, text: str) -> int:
            if "first" in text:
                watcher.say("from the signal handler")
                assert "handler" not in self.getvalue()
            return super().write(text)

    watcher = LiveWatcher(Console(file=Interrupted()))
    watcher.say("first")
    watcher.say("last")
    assert watcher._live.console.file.getvalue() == "first\nfrom the signal handler\nlast\n"


def test_the_time_left_counts_pauses_apart_from_steps(monkeypatch):
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    task = Task("teach", total=30, done=0)
    task.learn({"epoch": 0, "epochs": 3})
    for step in range(10):
        now += 50.0 if step == 0 else 2.0  # the first step is slow
        task.advance(1, {})
    assert task.left == pytest.approx(2.0 * 20)
    task.learn({"epoch": 1, "epochs": 3})
    now += 7.0
    task.pause(7.0)
    # One more evaluation within the stage; the last one comes after it.
    assert task.left == pytest.approx(2.0 * 20 + 7.0)
    now += 2.0
    task.advance(1, {})
    assert task.left == pytest.approx(2.0 * 19 + 7.0)


def test_items_flow_without_being_broken():
    assert flow(["aa", "bb", "cc"], 6) == ["aa  bb", "cc"]
    assert flow(["a longer one", "b"], 5) == ["a longer one", "b"] and flow([], 5) == []
    shown = [short(value) for value in (0.1234, -2.0, 12.345, 12345.0)]
    assert shown == ["0.123", "-2.000", "12.3", "1.2e+04"]
    many = Task("teach", 1, 0, facts={"thresholds": {f"class{n}": n / 100 for n in range(80)}})
    shown = many.standing()["thresholds"]
    assert shown[-1] == "and 64 higher ones" and shown[0] == "class0 0.00"


def test_what_a_plug_in_tells_is_shown_as_well():
    task = Task(
        "teach", 4, 2, numbers={"target/class": 0.25, "target/my_loss": 1.5, "total": 2.0, "far_boxes": 3.0}
    )
    assert dict(task.losses()) == {
        "target loss": ["class 0.250", "my loss 1.500"],
        "step": ["total loss 2.000", "far boxes 3.000"],
    }
    task.learn({"epoch": 1, "epochs": 2, "queue": {"long": 7.0}, "mood": ["calm"]})
    assert task.standing() == {"queue": ["long 7.00"], "mood": ["calm"]}


SCRIPT = """
import sys, time
sys.path.insert(0, {tests!r})
from mrt_cli.console import say, watching
from test_watchers import teach
with watching() as watcher:
    for _ in range(3):
        teach(watcher)
        time.sleep(0.3)
        print("printed by somebody else")
        print("warned", file=sys.stderr)
        watcher.end()
say("over")
"""


class Screen:
    """The part of a terminal that rich uses: text, line feeds, cursor up, and erasing lines."""

    def __init__(self, width: int) -> None:
        self.width, self.lines, self.row, self.column = width, [""], 0, 0

    def feed(self, text: str) -> None:
        for part in re.findall(r"\x1b\[[?0-9;]*[A-Za-z]|\r|\n|[^\x1b\r\n]+", text):
            if part == "\r":
                self.column = 0
            elif part == "\n":
                self.row, self.column = self.row + 1, 0
                self.lines += [""] * (self.row + 1 - len(self.lines))
            elif part.startswith("\x1b"):
                if part.endswith("A"):
                    self.row = max(self.row - int(part[2:-1] or 1), 0)
                elif part.endswith("K"):
                    self.lines[self.row] = ""
            else:
                for letter in part:
                    if self.column == self.width:
                        self.feed("\r\n")
                    line = self.lines[self.row].ljust(self.column)
                    self.lines[self.row] = line[: self.column] + letter + line[self.column + 1 :]
                    self.column += 1


@pytest.mark.parametrize("width", [80, 140])
def test_messages_scroll_by_in_a_real_terminal(width):
    """In a pseudo terminal: messages are complete and in order, and nothing of the view is left."""
    leader, follower = pty.openpty()
    environment = os.environ | {"COLUMNS": str(width), "LINES": "40", "TERM": "xterm-256color"}
    for name in ("RANK", "NO_COLOR", "CI"):
        environment.pop(name, None)
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT.format(tests=os.path.dirname(__file__))],
        stdin=follower,
        stdout=follower,
        stderr=follower,
        env=environment,
    )
    os.close(follower)
    output = b""
    while True:
        try:
            part = os.read(leader, 65536)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        output += part
    os.close(leader)
    assert process.wait() == 0, output.decode()
    assert output.count(b"person 0.35") >= 3, "the view was drawn"
    screen = Screen(width)
    screen.feed(output.decode())
    lines = [line.rstrip() for line in screen.lines if line.strip()]
    message = "student on fog val: AP50 30.5 [not markup] " + "a long message " * 8
    told = textwrap.wrap(message, width)  # between words
    once = [*told, "printed by somebody else", "warned", "teach: 3/4 in 0:00  total loss 9.250"]
    assert lines == once * 3 + ["over"]


def test_the_parts_that_drive_are_shown_until_they_are_looked_at_again():
    task = Task("teach", 4, 2)
    looked = {"gradient_share/source": 0.25, "gradient_share/rebuild": 0.7, "gradient_share/mine": 0.05}
    task.advance(1, {"total": 2.0, **looked, "gradient_cosine/rebuild": -0.1, "loss_share/rebuild": 0.9})
    task.advance(1, {"total": 1.0})
    assert dict(task.losses()) == {
        "gradient of": ["autoencoder 70 %", "source labels 25 %", "mine 5 %"],
        "step": ["total loss 1.000"],
    }
    task.advance(1, {"total": 1.0, "gradient_share/source": 0.5, "gradient_share/target": 0.5})
    assert dict(task.losses())["gradient of"] == ["source labels 50 %", "target labels 50 %"]
    alone = Task("pretrain", 4, 2)
    alone.advance(1, {"total": 2.0, "gradient_share/source": 1.0})
    assert list(dict(alone.losses())) == ["step"]


def test_curves_of_a_tall_terminal():
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7], 8) == "▁▂▃▄▅▆▇█"
    assert sparkline([0, 0, 7, 7], 2) == "▁█" and sparkline([3.0] * 5, 10) == "▁▁▁▁▁"
    assert sparkline([1.0, float("nan"), 2.0], 3) == "▁▁█" and sparkline([], 5) == ""
    for height, there in ((50, True), (24, False)):
        console = Console(file=io.StringIO(), width=80, height=height, force_terminal=True)
        watcher = LiveWatcher(console)
        watcher.begin("teach", 4)
        for total in (9.0, 6.0, 3.0):
            watcher.advance(1, total=total, lr=1e-4)
        console.print(watcher)
        shown = console.file.getvalue()
        assert ("█" in shown and "9.000 -> 3.000" in shown) is there
        assert all(len(re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", line)) < 80 for line in shown.splitlines())


def test_what_happened_lately_in_a_tall_terminal():
    for height, there in ((50, True), (24, False)):
        console = Console(file=io.StringIO(), width=80, height=height, force_terminal=True)
        watcher = LiveWatcher(console)
        for number in range(4):
            watcher.say(f"\nmessage {number}")
        teach(watcher)
        assert len(watcher.events) == watchers.MOST_EVENTS
        told = [event.split("  ", 1)[1] for event in watcher.events]
        assert told[:4] == ["message 3", "epoch 1/2 done", "student: AP50 30.5", "teacher: AP50 -"]
        console.file.seek(0)
        console.file.truncate()
        console.print(watcher)
        shown = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", console.file.getvalue()).splitlines()
        assert any(line.startswith("lately") and "message 3" in line for line in shown) is there
        assert all(len(line) < 80 for line in shown)
