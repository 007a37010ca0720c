"""``mrt label`` on the command line."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from command_line import mrt, refused
from tiny_set import write_set

from mrt.config import load_config

CODE = """
def label(image, classes):
    width, height = image.size
    boxes = [[0, 0, width / 2, height], [1, 1, 9, 9], [5, 5, 5, 9]]
    return {"boxes": boxes, "labels": ["Car.", "dog", "bus"], "scores": [0.75, 0.5, 0.9]}

def fails(image, classes):
    return {}["boxes"]

def returns_nothing(image, classes):
    pass

calls = []

def stopped(image, classes):
    calls.append(image)
    if len(calls) == 3:
        raise KeyboardInterrupt
    return []

def corners(image, classes):
    return {"boxes": [[30, 20, 9, 9]], "labels": [0], "scores": [0.5]}
"""


@pytest.fixture(autouse=True)
def mine(somewhere, monkeypatch) -> Path:
    """A file of labellers in the working folder."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    file = somewhere / "mine.py"
    file.write_text(CODE)
    return file


def files() -> set[str]:
    return {path.name for path in Path().iterdir()} - {"mine.py", "__pycache__", "config"}


def test_a_function_labels_a_set(worlds):
    result = mrt("label synthetic-foggy --with mine.py:label", "--data-root", worlds)
    assert result.exit_code == 0, result.output
    said = " ".join(result.stdout.split())
    assert "label synthetic-foggy train: 4/4" in said and "car │ 4 │ 0.75" in said
    assert "rider │ 0 │ -" in said and "4 images: 4 boxes with a score of 0.05 or more" in said
    assert "of other names than the classes: 'dog' (4)" in said
    assert "cannot be used: no area inside the image (4)" in said
    assert "Written to synthetic-foggy-labels.json" in said
    more = f"--set teacher.labels=synthetic-foggy-labels.json --data-root {worlds}"
    assert f"Adapt with them: mrt adapt --target synthetic-foggy {more}" in said
    assert files() == {"synthetic-foggy-labels.json"}
    content = json.loads(Path("synthetic-foggy-labels.json").read_text())
    assert content["info"]["labeller"] == "mine.py:label" and len(content["images"]) == 4
    message = refused("label synthetic-foggy --with mine.py:label", "--data-root", worlds)
    assert "synthetic-foggy-labels.json: exists already" in message and "--out" in message


def test_another_split_is_part_of_the_next_command(worlds):
    result = mrt("label synthetic-foggy --with mine.py:label --split val --limit 1", "--data-root", worlds)
    assert "teacher.labels=synthetic-foggy-labels.json data.target_split=val" in " ".join(
        result.stdout.split()
    )


def test_the_score_that_is_named_is_the_settings(worlds):
    result = mrt("label synthetic-foggy --with mine.py:label --limit 1", "--data-root", worlds)
    default = load_config("small").teacher.labels_score
    assert f"Labels count there from a score of {default:g} on; --set teacher.labels_score=" in result.stdout


def test_options(worlds):
    words = ["--classes", "car", "lorry", "--out", "new/some.json", "--data-root", worlds]
    command = "label synthetic-foggy --with mine.py:label --split val --limit 1 --threshold 0.8"
    result = mrt(command, *words)
    assert result.exit_code == 0, result.output
    assert "No class of synthetic-foggy: lorry (it has person, rider, car" in result.stdout
    assert "Nothing was found: a lower --threshold" in result.stdout
    assert "Adapt with them" not in result.stdout, "there is nothing to adapt with"
    content = json.loads(Path("new/some.json").read_text())
    assert [item["name"] for item in content["categories"]] == ["car", "lorry"]
    assert len(content["images"]) == 1 and content["annotations"] == []
    assert content["info"]["split"] == "val" and content["info"]["threshold"] == 0.8


def test_a_detector_labels_a_set(worlds, runs):
    command = "label synthetic-foggy --detector small-source --threshold 0 --device cpu --classes car,lamp"
    result = mrt(command, "--data-root", worlds, "--run-root", runs)
    assert result.exit_code == 0, result.output
    assert "small-source does not know lamp: no boxes of that" in result.stdout
    assert json.loads(Path("synthetic-foggy-labels.json").read_text())["annotations"]


def test_a_set_without_classes_or_labels(somewhere):
    pixels = np.zeros((30, 40, 3), np.uint8)
    write_set(Path("data/camera"), {1: pixels}, [], (), labelled=False)
    message = refused("label camera --with mine.py:label")
    assert "camera: has no class names of its own" in message and "--classes car,person" in message
    result = mrt("label camera --with mine.py:label --classes car,person")
    more = "--init small-source --set teacher.labels=camera-labels.json"  # there is no other source detector
    assert result.exit_code == 0 and f"mrt adapt --target camera {more}" in result.stdout


def test_ctrl_c_says_how_to_go_on(worlds, mine):
    command = "label synthetic-foggy --with mine.py:stopped"
    result = mrt(command, "--data-root", worlds)
    assert result.exit_code == 1
    said = " ".join(result.stderr.split())
    assert "stopped after 2 of 4 images; they are kept in synthetic-foggy-labels.json.part" in said
    assert "repeat the mrt label command to go on from there" in said
    other = refused(command, "--threshold", "0.2", "--data-root", worlds)
    assert "is of another question: threshold was 0.05, and is 0.2 now" in other
    assert "delete it to begin anew, or choose another --out (what was found in 2 images is in it)" in other
    assert files() == {"synthetic-foggy-labels.json.part"}
    again = mrt(command, "--data-root", worlds)  # a fresh import counts from 0
    assert again.exit_code == 0, again.output
    assert "4 images (2 of them in an earlier run): 0 boxes" in again.stdout
    assert files() == {"synthetic-foggy-labels.json"}


def test_an_error_of_the_function_is_one_line_and_a_file(worlds, mine):
    message = refused("label synthetic-foggy --with mine.py:fails --out a.json", "--data-root", worlds)
    assert message.startswith("mrt: mine.py:fails, image ")
    assert "000000.jpg: KeyError: 'boxes' (mine.py, line 8) the traceback is in a.json.error.txt" in message
    assert files() == {"a.json.error.txt"}
    assert 'return {}["boxes"]' in Path("a.json.error.txt").read_text()
    mine.write_text(CODE.replace('{}["boxes"]', "[]"))
    assert (
        mrt("label synthetic-foggy --with mine.py:fails --out a.json", "--data-root", worlds).exit_code == 0
    )
    assert files() == {"a.json"}, "the report of the error is gone with it"


def test_boxes_of_another_kind_are_guessed_at(worlds):
    result = mrt("label synthetic-foggy --with mine.py:corners", "--data-root", worlds)
    assert "are they x, y, width, height?" in result.stdout


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("", ["Missing argument 'SET'"]),
        ("synthetic-foggy", ["by what?", "--with FILE.py:FUNCTION, or a detector with --detector coco"]),
        ("synthetic-foggy --with mine.py:label --detector coco", ["exclude each other"]),
        ("synthetic-fogy --with mine.py:label", ["No data set 'synthetic-fogy'", "'synthetic-foggy'"]),
        ("synthetic-foggy --with mine.py:label --split dev", ["no split 'dev'", "train, val, test"]),
        ("synthetic-foggy --with mine.py:label --classes car,,bus", ["--classes", "a name is empty"]),
        ("synthetic-foggy --with mine.py:label --classes car,car", ["'car' is given twice"]),
        ("synthetic-foggy --with mine.py:label --threshold 2", ["--threshold 2: a score lies between"]),
        ("synthetic-foggy --with mine.py:label --threshold x", ["--threshold", "valid number"]),
        ("synthetic-foggy --with mine.py:label --limit 0", ["--limit"]),
        ("synthetic-foggy --with mine.py:label --out .", ["is a folder", "--out"]),
        ("synthetic-foggy --with mine.py:label --device cuda", ["--device cuda: is for --detector"]),
        ("synthetic-foggy --with mien.py:label", ["mien.py: no such file", "did you mean mine.py?"]),
        ("synthetic-foggy --with mine.py:labl", ["no function 'labl'", "did you mean 'label'?"]),
        ("synthetic-foggy --with mine.py:calls", ["calls is no function but a list of 0"]),
        ("synthetic-foggy --with mine.py", ["names no function", "--with mine.py:label"]),
        ("synthetic-foggy --with no_module_w:label", ["there is no module 'no_module_w'"]),
        (
            "synthetic-foggy --with mine.py:returns_nothing",
            ["image 000000.jpg: returned nothing (None)", "expected: a dict with boxes (n, 4)"],
        ),
        ("synthetic-foggy --detector no-such-run", ["no-such-run: no run folder"]),
        ("synthetic-foggy --detector small-source --device tpu:9", ["device"]),
        ("synthetic-foggy --detector small-source --classes cat", ["finds none of the classes cat"]),
    ],
)
def test_bad_input_is_one_message_and_nothing_is_written(words, expected, worlds, runs):
    message = refused(f"label {words}", "--data-root", worlds, "--run-root", runs)
    for word in expected:
        assert word in message, message
    assert files() == set()
