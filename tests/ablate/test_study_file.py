"""A table's rows from a file of the user's own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mrt.ablate import METHODS, check_study, find_study, require_same_study, title_of
from mrt.ablate.studies import row_config
from mrt.config import load_config
from mrt.errors import MrtError

RESULTS = Path(__file__).parents[2] / "docs" / "results"

FILE = """
title = "when does the autoencoder help"
preset = "synth2foggy"
base = "plain"
set = { "teach.epochs" = 6, mae = { weight = 2.0 } }

[[row]]
name = "plain"
method = "teacher"
set = { teacher = { threshold_start = 0.3 } }

[[row]]
name = "own"
set = { "teach.epochs" = 7 }
note = "longer"
paper = 51.2

[[row]]
name = "oracle"
end = "oracle-target"
"""


@pytest.fixture
def write(tmp_path):
    def to(text: str) -> str:
        (tmp_path / "rows.toml").write_text(text)
        return str(tmp_path / "rows.toml")

    return to


def test_rows_are_what_the_file_says(write):
    study = find_study(write(FILE))
    assert (study.title, study.base, study.preset) == (
        "when does the autoencoder help",
        "plain",
        "synth2foggy",
    )
    assert study.settings == {"teach.epochs": 6, "mae.weight": 2.0}
    plain, own, oracle = study.rows
    assert plain.settings == {**METHODS["teacher"], "teacher.threshold_start": 0.3} and plain.end == "teach"
    assert (own.note, own.paper, oracle.end) == ("longer", 51.2, "oracle-target")
    check_study(study, "rows.toml", study.preset)

    def epochs(row, *overrides):
        return row_config(row, study.preset, overrides, study.settings).teach.epochs

    assert [epochs(plain), epochs(own)] == [6, 7]
    assert [epochs(plain, "teach.epochs=2"), epochs(own, "teach.epochs=2")] == [2, 7], "a row's own win"


def test_the_least_that_a_file_can_say(write):
    study = find_study(write('[[row]]\nname = "one"\n'))
    assert (study.title, study.base, study.preset, dict(study.settings)) == ("rows", "one", None, {})


@pytest.mark.parametrize(
    "text, words",
    [
        ("row = 1", ["rows.toml: row", "list"]),
        ("", ["rows.toml: row", "Field required"]),
        ("[[row", ["rows.toml: not TOML"]),
        ('[[row]]\nname = ""', ["row 1: name"]),
        ('[[row]]\nname = "a"\nsettings = {}\nmetod = "x"', ["row 'a': metod", "Extra"]),
        ('[[row]]\nname = "a"\n[[row]]\nname = "a"', ["row 'a'", "two of this name"]),
        ('[[row]]\nname = "a"\nmethod = "teachr"', ["row 'a': method = 'teachr'", "did you mean teacher?"]),
        ('[[row]]\nname = "a"\nend = "oracle"', ["row 'a': end = 'oracle'", "oracle-target"]),
        ('base = "b"\n[[row]]\nname = "a"', ["rows.toml: base = 'b'", "there are: a"]),
        ('[[row]]\nname = "a"\nset = { seed = 3 }', ["row 'a': seed", "--seeds 0 1 2"]),
        ('set = { preset = "small" }\n[[row]]\nname = "a"', ["rows.toml: preset", "top of the file"]),
        (
            '[[row]]\nname = "a"\nset = { "teach.epochs" = 1, teach = { epochs = 2 } }',
            ["row 'a': teach.epochs", "given twice"],
        ),
        ('[[row]]\nname = "a"\nset = { "teach.epoch" = 1 }', ["row 'a'", "teach.epoch", "teach.epochs"]),
        ('[[row]]\nname = "a"\nset = { "teach.epochs" = "x" }', ["row 'a'", "teach.epochs"]),
        ("x = " + "[" * 5000, ["rows.toml", "too deep"]),
        ('preset = "dmo"\n[[row]]\nname = "a"', ["row 'a'", "dmo"]),
    ],
)
def test_what_is_wrong_in_a_file_is_told(write, text, words):
    name = write(text)
    with pytest.raises(MrtError) as raised:
        study = find_study(name)
        check_study(study, name, study.preset or "small")
    told = str(raised.value)
    assert all(word in told for word in words) and "rows.toml" in told, told


def test_another_studys_table_is_not_written_over(write, tmp_path):
    study = find_study(write(FILE))
    require_same_study(tmp_path / "rows", study)
    (tmp_path / "rows.json").write_text(json.dumps({"title": f"{title_of(study)}, preset small"}))
    require_same_study(tmp_path / "rows", study)
    (tmp_path / "rows.json").write_text(json.dumps({"title": "Ablation: blood, preset small"}))
    with pytest.raises(
        MrtError, match=r"rows\.json: is another study's table: Ablation: blood[\s\S]*--name NAME"
    ):
        require_same_study(tmp_path / "rows", study)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(MrtError, match=r"--study .*none\.toml: No such file"):
        find_study(str(tmp_path / "none.toml"))


@pytest.mark.parametrize(
    "file", sorted(RESULTS.rglob("*.toml")), ids=lambda file: f"{file.parent.name}-{file.stem}"
)
def test_every_study_of_the_results_can_be_run(file):
    """Each documented table: its rows fit their preset, and what is no table is a preset."""
    if "[[row]]" not in file.read_text():
        load_config(file)
        return
    study = find_study(str(file))
    check_study(study, file, study.preset or "own-small")
