"""Damaged small files of a run: a report is made, or one message names the file; never another exception."""

from __future__ import annotations

import copy
import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tiny_world import CLASSES

from mrt.engine.kept import standing
from mrt.errors import MrtError
from mrt.report import collect, looking, page, write_report
from mrt.report.page import Grid, Plot
from mrt.report.stored import read_evaluations, read_metrics, read_result, read_selection, read_snapshots
from mrt.report.study import Study

EVALUATION, RESULT = "eval-hazy-val-teacher.json", "result-val-01234567.json"
CHOICE = "selection.json"
LOGS = ("metrics.jsonl", "pseudo_labels.jsonl")
FILES = (EVALUATION, RESULT, CHOICE, *LOGS, "run.json", "config.json")
ODD = (
    *(
        None,
        True,
        -1,
        0,
        10**400,
        -(10**30),
        1e308,
        float("nan"),
        float("inf"),
        0.5,
        [],
        {},
        "",
        "0",
        [1],
        {"a": 1},
    ),
    *([[]], {"": {}}, "\x1b[31m", "a" * 100_000, "\ud800", [None] * 5, "NaN", "teach", "target"),
)


@pytest.fixture(scope="module")
def folder(runs, tmp_path_factory) -> Path:
    """A run with every small file, and no weights."""
    folder = tmp_path_factory.mktemp("damaged") / "adapted"
    folder.mkdir()
    for name in (*LOGS, "run.json", "config.json"):
        shutil.copy(runs / "adapted" / name, folder / name)
    facts = json.loads((folder / "run.json").read_text())
    for key in ("sha256", "schema", "config_sha256", "logs"):  # as an earlier mrt wrote it, without checksums
        facts.pop(key, None)
    (folder / "run.json").write_text(json.dumps(facts))
    metrics: dict[str, Any] = {"AP": 12.26, "AP50": 34.56, "AP75": None, "num_images": 3, "num_boxes": 9}
    metrics["per_class"] = {name: {"AP": 1.0, "AP50": 30.0, "AP75": None, "num_boxes": 3} for name in CLASSES}
    found = {"network": "teacher", "split": "val", "metrics": metrics}
    bounds = {"figures": {"AP50": {"low": 30.0, "high": 40.0}}}
    record = {**found, "data": "hazy", "sha256": "ab", "last": True, "intervals": bounds, "domain": "haze"}
    (folder / EVALUATION).write_text(json.dumps([record]))
    (folder / RESULT).write_text(json.dumps({**found, "data": {"name": "hazy", "sha256": "ab"}, "node": "a"}))
    signals = {"boxes": {"value": 0.5, "infinite": False}, "count-drift": {"value": None, "infinite": True}}
    pick = {"candidate": "one", "beyond_noise": True}
    choice = {"base": "last teacher", "images": {"from": "hazy train", "number": 8}, "picks": {"boxes": pick}}
    names = [{"name": name, "epoch": None, "signals": signals} for name in ("one", "last teacher")]
    choice |= {"candidates": names, "standing": standing(folder)}
    (folder / CHOICE).write_text(json.dumps(choice))
    return folder


@pytest.fixture
def fast(monkeypatch):
    """Figures and pages are made, but neither drawn nor written."""
    dot = Image.new("RGB", (1, 1))
    monkeypatch.setattr(Study, "plot", lambda self, *a: Plot(a[0], a[2], a[3], "<svg/>", self.out / "a.png"))
    monkeypatch.setattr(Study, "grid", lambda self, *a: Grid(*a, self.out / "a.png"))
    monkeypatch.setattr(looking, "picture_of", lambda *_: dot)
    monkeypatch.setattr("mrt.report.sections.provenance", dict)  # it asks git
    monkeypatch.setattr("mrt.report.write_text", lambda *_: None)
    monkeypatch.setattr(page, "write_text", lambda *_: None)


def places(value: Any, where: tuple = ()) -> list[tuple]:
    """The places of all values in a JSON value, from the outside in."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [where, *(place for key, item in inner for place in places(item, (*where, key)))]


def changed(value: Any, chance: random.Random) -> Any:
    """The value with one of its parts replaced, taken away, moved or doubled."""
    value = copy.deepcopy(value)
    place = chance.choice(places(value))
    if not place:
        return copy.deepcopy(chance.choice(ODD))
    holder = value
    for key in place[:-1]:
        holder = holder[key]
    way, key = chance.random(), place[-1]
    if way < 0.2:
        del holder[key]
    elif way < 0.3 and isinstance(holder, dict):
        holder[chance.choice(("", "a", "teach", "\x1b"))] = holder.pop(key)
    elif way < 0.35 and isinstance(holder, list):
        holder.append(holder[key])
    else:
        holder[key] = copy.deepcopy(chance.choice(ODD))
    return value


def damage(path: Path, content: bytes, chance: random.Random) -> None:
    """Write the file with one damage: cut, a byte changed, or a value of it changed."""
    way = chance.random()
    if way < 0.15:
        content = content[: chance.randrange(len(content))]
    elif way < 0.3:
        at = chance.randrange(len(content))
        content = content[:at] + bytes([chance.randrange(256)]) + content[at + 1 :]
    elif path.name in LOGS:
        lines = content.splitlines()
        at = chance.randrange(len(lines))
        lines[at] = json.dumps(changed(json.loads(lines[at]), chance)).encode()
        content = b"\n".join(lines) + b"\n"
    else:
        content = json.dumps(changed(json.loads(content), chance)).encode()
    path.write_bytes(content)


def mutate(folder: Path, world: Path, names: tuple[str, ...], count: int, seed: int) -> tuple[int, int]:
    """Damage the files in turns; returns how many reports were made, and how many refused."""
    chance, made, refused = random.Random(seed), 0, 0
    for number in range(count):
        path = folder / names[number % len(names)]
        content = path.read_bytes()
        damage(path, content, chance)
        try:
            write_report([folder], folder / "out", data_root=world, images=1, quick=True)
            made += 1
        except MrtError as error:
            refused += 1
            message = error.message
            named = path.name in message or str(folder) in message
            assert named or path.name == "config.json", message  # whose settings may name what is not there
            assert len(message) < 2000 and "Traceback" not in message
        except Exception as error:
            raise AssertionError(f"{path.name}, number {number}: {path.read_bytes()[:3000]!r}") from error
        finally:
            path.write_bytes(content)
    return made, refused


def test_the_undamaged_run_has_a_report(folder, world, fast):
    write_report([folder], folder / "out", data_root=world, images=1, quick=True)


def test_damaged_files_are_refused_or_make_no_difference(folder, world, fast):
    made, refused = mutate(folder, world, FILES, 120, seed=1)
    assert made > 15 and refused > 40


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(2, 12))
def test_many_damaged_files(folder, world, fast, seed):
    mutate(folder, world, FILES, 900, seed)


READERS = {
    EVALUATION: read_evaluations,
    RESULT: read_result,
    CHOICE: lambda path: read_selection(path.parent),
    "metrics.jsonl": read_metrics,
    "pseudo_labels.jsonl": lambda path: read_snapshots(path, CLASSES),
}


@pytest.mark.parametrize("name", READERS)
def test_readers_give_plain_numbers_or_one_message(folder, tmp_path, name):
    content, path, chance = (folder / name).read_bytes(), tmp_path / name, random.Random(7)
    path.write_bytes(content)
    assert READERS[name](path)
    for _ in range(200):
        damage(path, content, chance)
        try:
            READERS[name](path)
        except MrtError as error:
            assert (error.message.startswith(f"{path}") and error.hint is not None) or "JSON" in error.message
            assert len(error.message) < 1000 and "\x1b" not in error.message


@pytest.mark.parametrize(
    ("name", "edit", "message"),
    [
        (EVALUATION, lambda v: v[0]["metrics"].update(AP50="34"), r"0.metrics.AP50 = '34': input should be"),
        (
            EVALUATION,
            lambda v: v[0]["metrics"].update(AP50=1e9),
            r"0.metrics.AP50 = 1000000000.0: input should",
        ),
        (EVALUATION, lambda v: v[0].pop("metrics"), r"0.metrics: field required"),
        (EVALUATION, lambda v: v.clear(), r"its content = \[\]: list should have at least 1 item"),
        (RESULT, lambda v: v["data"].update(name=3), r"data.name = 3: input should be a valid string"),
        (RESULT, lambda v: v["metrics"].update(AP=float("nan")), r"metrics.AP = nan"),
        (
            CHOICE,
            lambda v: v["picks"]["boxes"].update(candidate=1),
            r"picks.boxes.candidate = 1: input should",
        ),
        (CHOICE, lambda v: v["candidates"].pop(), r"candidates = .*: list should have at least 2 items"),
    ],
)
def test_a_message_names_the_field_and_the_value(folder, tmp_path, name, edit, message):
    value = json.loads((folder / name).read_text())
    edit(value)
    (tmp_path / name).write_text(json.dumps(value))
    with pytest.raises(MrtError, match=f"{name}: {message}") as error:
        READERS[name](tmp_path / name)
    assert error.value.hint


def test_a_cut_last_line_of_a_log_is_left_out(folder, tmp_path):
    content = (folder / "metrics.jsonl").read_bytes()
    (tmp_path / "metrics.jsonl").write_bytes(content[:-5])
    assert read_metrics(tmp_path / "metrics.jsonl") == read_metrics(folder / "metrics.jsonl")[:-1]


def test_what_no_run_can_say_is_refused(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "run")
    facts = json.loads((folder / "run.json").read_text())
    for change in (
        {"classes": []},
        {"classes": ["a", "a"]},
        {"command": "eval"},
        {"data": {"here": facts["data"]["source"]}},
    ):
        (tmp_path / "run" / "run.json").write_text(json.dumps(facts | change))
        with pytest.raises(MrtError, match=next(iter(change))):
            collect.load_run(tmp_path / "run")


def test_a_flipped_digit_of_a_stored_figure_is_refused(tmp_path):
    """It is JSON as before, and every number plausible."""
    from mrt.report.stored import read_evaluations
    from mrt.seal import with_checksum

    metrics = {"AP": 10.0, "AP50": 31.5, "AP75": 3.0, "APs": None, "APm": None, "APl": None, "AR100": 20.0}
    metrics |= {"per_class": {}, "num_images": 3, "num_boxes": 4}
    record = {"network": "teacher", "data": "foggy", "split": "val", "sha256": "0" * 64, "metrics": metrics}
    path = tmp_path / "eval-foggy-val-teacher.json"
    path.write_text(json.dumps([with_checksum(record)], indent=1))
    assert read_evaluations(path) == [record]
    path.write_text(path.read_text().replace("31.5", "39.5"))
    with pytest.raises(MrtError, match="checksum does not fit"):
        read_evaluations(path)
    path.write_text(json.dumps([record]))  # of an earlier mrt: it has none
    assert read_evaluations(path) == [record]
