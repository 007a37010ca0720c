"""What reaches the terminal: no control characters of names, and names of runs that are safe."""

from __future__ import annotations

import json
import os
from types import SimpleNamespace

import pytest
from command_line import refused
from mrt_cli import console, watchers
from rich.console import Console

from mrt.errors import MrtError, RunFailed
from mrt.experiment import run_folder

EVIL = "a\x1b[2J\x1b[31m\u202egpj.exe\r\x07\x9b"
SHOWN = r"a\x1b[2J\x1b[31m\u202egpj.exe\x0d\x07\x9b"


def plain(text: str) -> bool:
    return not any(letter in text for letter in "\x1b\r\x07\x9b\u202e")


def test_messages_and_tables_show_control_characters_as_escapes(capsys):
    console.say(EVIL)
    console.show_table(EVIL, ["", EVIL], [[EVIL, EVIL]], caption=EVIL)
    console.show_error(MrtError(EVIL, EVIL))
    console.show_error(RunFailed(EVIL))
    out, err = capsys.readouterr()
    assert plain(out) and plain(err)
    assert out.count(SHOWN) == 6 and err.count(SHOWN) == 3
    console.say("two\nlines")
    assert capsys.readouterr().out == "two\nlines\n"


@pytest.mark.parametrize("width", [40, 60, 80, 130, 200])
def test_a_wide_table_goes_on_below_and_breaks_no_number(capsys, monkeypatch, width):
    monkeypatch.setattr(console, "PLAIN_WIDTH", width)
    names = [f"signal-{number}" for number in range(12)]
    rows = [[title, *(f"{number}.125 *" for number in range(12))] for title in ("a rather long name", "b")]
    console.show_table("Title", ["", *names], rows, caption="below")
    out = capsys.readouterr().out
    assert all(out.count(f"{name} ") == 1 for name in names), "each heading once, in one piece"
    assert all(out.count(f" {number}.125 *") == 2 for number in range(12))
    tables = out.count("┏")
    assert all(len(line) <= width for line in out.splitlines()) and (tables == 1) == (width >= 200)
    cells = "".join(line.split("│")[1].strip() for line in out.splitlines() if line.startswith("│"))
    assert cells.replace(" ", "").count("aratherlongname") == tables, "each part has the names of the rows"
    assert out.startswith("Title\n") and out.endswith("below\n")


def test_text_gives_way_before_a_number_does(capsys, monkeypatch):
    monkeypatch.setattr(console, "PLAIN_WIDTH", 40)
    rows = [["count-drift", "the last teacher of a run", "-0.200 to +0.300"]]
    console.show_table("T", ["signal", "picks", "interval"], rows, text_columns=2)
    out = capsys.readouterr().out
    assert "-0.200 to +0.300" in out and all(len(line) <= 40 for line in out.splitlines())


def test_a_number_wider_than_the_terminal_is_folded_all_the_same(capsys, monkeypatch):
    monkeypatch.setattr(console, "PLAIN_WIDTH", 30)
    console.show_table("T", ["", "value"], [["row", "x" * 50]])
    out = capsys.readouterr().out
    assert out.count("x") == 50 and all(len(line) <= 30 for line in out.splitlines())


def test_names_that_cannot_be_encoded_are_shown(capsys):
    console.say("a\udcff.png")
    assert capsys.readouterr().out == "a\\udcff.png\n"


@pytest.mark.parametrize("kind", ["lines", "live"])
def test_watchers_show_control_characters_as_escapes(capsys, kind, monkeypatch):
    monkeypatch.setattr(watchers, "SECONDS_BETWEEN_LINES", 0.0)
    live = Console(force_terminal=False, width=400, highlight=False, markup=False, emoji=False)
    watcher = watchers.LineWatcher() if kind == "lines" else watchers.LiveWatcher(live)
    watcher.begin(EVIL, 3)
    facts = {"epoch": 0, "epochs": 2, "thresholds": {EVIL: 0.5, "two\nlines": 0.1}, EVIL: [EVIL]}
    watcher.epoch(facts)
    watcher.advance(1, **{f"source/{EVIL}": 1.0, "total": 2.0})
    watcher.measured(EVIL, {"AP50": 1.0})
    watcher.epoch({**facts, "epoch": 1})
    if kind == "live":
        live.print(watcher)
    watcher.say(EVIL)
    watcher.end()
    out = capsys.readouterr().out
    assert plain(out) and SHOWN in out and "two\nlines" not in out


@pytest.mark.parametrize(
    "name",
    [
        *(".", "./", "a/..", "..", "../a", "", " ", "/a", ".hidden", "a/.hidden", ".a.1234.partial", "a /b"),
        *("a\x1b[31m", "a\nb", "a\u202eb", "a" * 300, "mine/checkpoints", "mine/a/b", "ablate", "reports"),
        "a\x00b",
    ],
)
def test_names_that_no_run_can_have(tmp_path, name):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "run.json").write_text("{}")
    with pytest.raises(MrtError) as error:
        run_folder(tmp_path, name)
    assert error.value.message.startswith("--name") and error.value.hint
    assert plain(error.value.message.replace(name, "")) or name


@pytest.mark.parametrize(
    "name", ["mine", "new", "group/new", "ablate/nodes/teach-0", "city2foggy-adapt", "犬", "a.b"]
)
def test_names_that_a_run_can_have(tmp_path, name):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "run.json").write_text("{}")
    assert run_folder(tmp_path, name) == tmp_path / name


def test_a_bad_name_is_one_message(worlds, somewhere):
    told = refused("pretrain-source --preset small", "--data-root", worlds, "--name", ".")
    assert "--name .: not a folder below the run root" in told
    assert not (somewhere / "runs").exists()


def test_a_report_of_evil_titles_is_plain(runs, worlds, somewhere):
    from command_line import mrt

    evil = "<script>alert(1)</script> |`x` [a](https://evil.example) \x1b[31m"
    result = mrt(
        "report --quick --data-root", worlds, f"{evil}={runs / 'small-source'}", "--out", somewhere / "out"
    )
    assert result.exit_code == 0, result.output
    page, text = ((somewhere / "out" / f"report.{kind}").read_text() for kind in ("html", "md"))
    assert "<script" not in page and "\x1b" not in page + text
    assert (
        "&lt;script&gt;alert(1)&lt;/script&gt; \\|\\`x\\` \\[a\\](https\\://evil.example) \\\\x1b\\[31m"
        in text
    )
    assert "<script" not in text
    assert json.loads((somewhere / "out" / "report.json").read_text())["runs"]


def test_prose_breaks_between_words_and_paths_do_not_break(monkeypatch):
    monkeypatch.setattr(console.shutil, "get_terminal_size", lambda fallback: os.terminal_size((40, 24)))
    monkeypatch.setattr("sys.stdout", SimpleNamespace(isatty=lambda: True))
    path = "/home/somebody/with-a-long/path-to/photos"
    lines = console.fold(f"what was found there is of many words, in {path}", 10).splitlines()
    assert max(len(line) for line in lines if path not in line) <= 40 - 10 + 10
    assert lines[-1] == f"{'':10}{path}" and all(line.startswith(" " * 10) for line in lines[1:])
    monkeypatch.setattr("sys.stdout", SimpleNamespace(isatty=lambda: False))
    assert max(map(len, console.fold("word " * 100, 30).splitlines())) < 160


@pytest.mark.parametrize("length", [60, 74, 75, 76, 150, 158, 159, 300])
def test_a_long_path_at_the_beginning_of_a_message_is_whole(length, monkeypatch):
    path = "/" + "a" * length
    for terminal in (False, True):
        monkeypatch.setattr(console.sys.stderr, "isatty", lambda terminal=terminal: terminal, raising=False)
        monkeypatch.setenv("COLUMNS", "80")
        assert console.fitted(f"{path}: no such file", "stderr", 5).startswith(path)


def test_messages_in_a_terminal_break_between_words_but_commands_stay_whole(monkeypatch):
    monkeypatch.setattr(console.shutil, "get_terminal_size", lambda fallback: os.terminal_size((30, 24)))
    text = "a message of more than thirty letters\ndo this: mrt predict runs/with-a-long-name photos/holidays"
    assert console.fitted(text) == text, "where there is no terminal, lines may be longer"
    assert max(map(len, console.fitted("many words " * 40).split("\n"))) < 160
    monkeypatch.setattr("sys.stdout", SimpleNamespace(isatty=lambda: True))
    first, second, command = console.fitted(text).split("\n")
    assert (first, second) == ("a message of more than thirty", "letters")
    assert command == text.split("\n")[1]
