"""A newcomer with photos of their own, who reads nothing but what mrt prints.

Every command that a message suggests is run as it is printed, and has to work.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from command_line import mrt as run
from command_line import refused, too_long
from PIL import Image
from short_presets import short_presets
from tiny_set import write_set

# Commands in messages stand at the end of a line, after a colon or an arrow, or on a line of their own.
COMMANDS = "adapt|assess|demo|doctor|eval|export|label|predict|prepare-data|pretrain-source|report|select"
SUGGESTED = re.compile(rf"(?:: |-> |^)(mrt (?:{COMMANDS})(?: .*)?)$")
# What a message leaves open, as these tests fill it in.
OPEN = {"PHOTOS": ["photos"], "FOLDER": ["photos"]}
SMALL = ["--train", "4", "--val", "2", "--test", "2", "--size", "96x64", "--workers", "1"]


def mrt(command: str, *more: object):
    """Run ``mrt``; what it prints where there is no terminal stays below 160 columns."""
    result = run(command, *more)
    assert too_long(result.output) == []
    return result


@pytest.fixture(autouse=True)
def short(monkeypatch, tmp_path_factory):
    """The presets with an epoch of a step each; no setting has to be given for that."""
    from mrt.config import reading

    folder = short_presets(reading.PRESETS, tmp_path_factory.mktemp("presets"))
    monkeypatch.setattr(reading, "PRESETS", folder)


@pytest.fixture
def photos(somewhere) -> Path:
    """A folder with five photos, two of them below another one."""
    folder = somewhere / "photos"
    random = np.random.default_rng(0)
    for name in ("street.jpg", "square.png", "IMG_0001.JPG", "trip/bridge.jpg", "trip/hill.jpg"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.full((90, 120, 3), random.integers(60, 200, 3), np.uint8)
        x, y = random.integers(0, 60, 2)
        pixels[y : y + 30, x : x + 50] = random.integers(0, 255, 3)
        Image.fromarray(pixels).save(folder / name)
    return folder


def suggestions(text: str) -> list[list[str]]:
    """The commands that a message suggests, as words without the first."""
    lines = [line.strip() for line in text.splitlines() if not line.startswith("mrt: mrt ")]  # its title
    return [shlex.split(found[1].rstrip("."))[1:] for line in lines if (found := SUGGESTED.search(line))]


def test_suggested_commands_are_found():
    text = "Done. See what it finds: mrt predict 'runs/a b' PHOTOS\n  -> mrt doctor\nmrt: no such set"
    assert suggestions(text) == [["predict", "runs/a b", "PHOTOS"], ["doctor"]]
    assert suggestions("put it back; mrt doctor RUN says more\nwith mrt label, too") == []


def test_boxes_on_own_photos_in_three_commands_and_four_flags(photos, somewhere):
    """Only the first command has to be known; each of the others is what the one before it suggests."""
    words = ["prepare-data", "custom", "--raw", "photos", "--name", "camera"]
    typed = []
    while words[0] != "predict":
        typed.append(words)
        result = mrt(*words)
        assert result.exit_code == 0, result.output
        (words,) = suggestions(result.output)
    typed.append(words)
    result = mrt(*words)
    assert result.exit_code == 0, result.output
    flags = [word for command in typed for word in command if word.startswith("-")]
    assert len(typed) == 3 and len(flags) == 4, typed
    drawn, given = (
        {path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.*g")}
        | {path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.JPG")}
        for folder in (Path("predictions"), photos)
    )
    assert drawn == given and len(given) == 5
    assert "camera: its split train, 5 images" in result.stdout
    assert not suggestions(result.output)


def test_every_suggested_command_works(photos, somewhere):
    """A walk with mistakes: what each message suggests is run, and what that suggests, to the end."""
    walk = [
        ("adapt", 2),
        ("predict small-source", 2),
        ("predict photos/street.jpg", 2),
        ("adapt --target camera", 2),
        ("adapt --target camera --method mrt --init small-source", 2),
        ("adapt --target camera --set mae.mask_ratio=3", 2),
        ("adapt --target camera --source else", 2),
        ("adapt --target camera --init small-source --name mine", 0),
        ("eval mine", 2),
        ("eval small-source --data camera", 2),
        ("eval small-source", 2),
        ("report mine --quick", 0),
        ("adapt --target synthetic-night", 2),
        ("adapt --target synthetic-foggy", 0),
        ("doctor", 0),
    ]
    done: list[list[str]] = []
    said: dict[str, str] = {}
    for command, code in walk:
        result = mrt(command)
        said[command] = result.output
        assert result.exit_code == code, f"{command}\n{result.output}"
        left = suggestions(result.output)
        while left:
            words = _as_typed(left.pop(0))
            if words in done:
                continue
            done.append(words)
            # Another command of the walk may have asked for the same run before.
            another = ["--name", f"run-{len(done)}"] if words[0] == "adapt" else []
            result = mrt(*words, *another)
            assert result.exit_code == 0, (
                f"mrt {command}\nsuggested\nmrt {shlex.join(words)}\n{result.output}"
            )
            left += suggestions(result.output)
    _unlabelled_report(said["report mine --quick"], somewhere)
    named = {words[0] for words in done}
    assert named >= {"prepare-data", "predict", "adapt", "eval"}, done


def test_a_single_photo_is_enough(photos, somewhere):
    """The batch is as large as the set; what is suggested works for three photos as it does for one."""
    for number, name in ((1, "one"), (3, "three")):
        (somewhere / name).mkdir()
        for index in range(number):
            shutil.copy(photos / "street.jpg", somewhere / name / f"{index}.jpg")
        (words,) = suggestions(mrt(f"prepare-data custom --raw {name} --name {name}-photo").output)
        result = mrt(*words, "--set", "engine.accumulate=1")
        assert result.exit_code == 0, result.output
        smaller = "engine.batch_size 1, for one-photo has only 1 image to learn from"
        assert (smaller in " ".join(result.stdout.split())) == (number == 1)
    named = refused("adapt --target one-photo --init small-source --name x --set engine.batch_size=2")
    assert "1 images do not fill a batch: 2 images at a time" in named
    assert "--set engine.batch_size=1" in named


@pytest.mark.parametrize(
    ("command", "size"),
    [
        ("pretrain-source --source few", 3),
        ("pretrain-source --source few --oracle source+target --target many", 8),
        ("pretrain-source --source few --oracle target --target many", 5),
        ("pretrain-source --source few --match-compute --target many", 3),
        ("adapt --source few --target many", 3),
        ("adapt --target many --method source-free", 5),
        ("adapt --source few --target many --set engine.batch_size=8 engine.accumulate=4", 8),
        ("adapt --source few --target many --set engine.accumulate=2", 6),
    ],
)
def test_a_batch_is_no_larger_than_the_smallest_set(command, size, somewhere):
    """Of sets that share batches; a batch that was named stays; each part of an accumulated one is filled."""
    pixels = np.zeros((30, 40, 3), np.uint8)
    box = {"image_id": 1, "category_id": 1, "bbox": [2, 2, 20, 20], "area": 400, "iscrowd": 0}
    for name, number in (("few", 3), ("many", 5)):
        images = dict.fromkeys(range(1, number + 1), pixels)
        write_set(Path("data") / name, images, [box], ("car",))
    (somewhere / "eight.toml").write_text("[engine]\nbatch_size = 8\n")
    result = mrt(command, "--preset", "eight.toml", "--dry-run")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["engine"]["batch_size"] == size
    assert (f"engine.batch_size {size}, for " in " ".join(result.stderr.split())) == (size < 8), result.stderr


def test_images_in_the_place_of_the_detector(photos, somewhere):
    """Each is told in the right order, as a command that works."""
    assert mrt("prepare-data custom --raw photos --name camera").exit_code == 0
    for words, what in (
        ("predict photos", "photos: is a folder"),
        ("predict photos small-source", "photos: is a folder"),
        ("predict camera small-source", "camera: is a prepared set"),
        ("predict photos/street.jpg small-source", "photos/street.jpg: is an image"),
    ):
        result = mrt(words)
        assert (result.exit_code, what in result.output) == (2, True), result.output
        (typed,) = suggestions(result.output)
        result = mrt(*_as_typed(typed), "--save", "none")
        assert result.exit_code == 0, result.output
    assert "did you mean small-source" in refused("predict small-sorce photos")


def test_hints_find_a_run_that_is_elsewhere(photos, somewhere):
    """What is suggested after --run-root works without it, or has it; names with blanks are one word."""
    assert mrt("prepare-data custom --raw photos --name camera").exit_code == 0
    trained = mrt("adapt --target camera --init small-source --run-root", "my runs", "--name", "mine")
    assert trained.exit_code == 0, trained.output
    for command in ("eval mine", "label camera --detector small-source --classes car"):
        result = mrt(command, "--run-root", "my runs")
        (typed,) = suggestions(result.output)
        more = ["--name", "labelled"] if typed[0] == "adapt" else []
        result = mrt(*typed, *more)
        assert result.exit_code == 0, f"{command} suggested {typed}\n{result.output}"
    for command in ("assess mime", "select mime mine", "eval mime", "predict mime photos", "export mime"):
        more = ["--format", "safetensors"] if "export" in command else []
        assert "did you mean mine?" in refused(command, "--run-root", "my runs", *more), command
    assert "did you mean my runs/mine?" in refused("predict", "my runs/mime", "photos")
    (somewhere / "my runs" / "mine" / "teacher.safetensors").unlink()
    said = refused("predict", "my runs/mine", "photos")
    assert "mrt doctor 'my runs/mine'" in said and "my runs/mine/student.safetensors" in said


def test_photos_that_have_moved_are_told_before_anything_is_made(photos, somewhere):
    """What is suggested makes the set again; no run is begun."""
    assert mrt("prepare-data custom --raw photos --name camera").exit_code == 0
    photos.rename(somewhere / "elsewhere")
    for command in (
        "adapt --target camera --init small-source",
        "predict small-source camera",
        "label camera --detector small-source --classes car",
    ):
        said = refused(command)
        assert f"data set 'camera': its images are gone: {photos}" in said, command
        assert "mrt prepare-data custom --raw FOLDER --name camera --overwrite --data-root data" in said
    assert not Path("runs").exists() and not Path("predictions").exists()
    again = "prepare-data custom --raw elsewhere --name camera --overwrite --data-root data"
    assert mrt(again).exit_code == 0
    Path("data/camera/train.json").unlink()
    assert "its annotations are gone: data/camera/train.json" in refused("predict small-source camera")


def _as_typed(words: list[str]) -> list[str]:
    """A suggested command with what it leaves open, in sizes of a test, and without the internet."""
    typed = [word for given in words for word in OPEN.get(given, [given])]
    if typed[:2] == ["prepare-data", "synthetic"]:
        typed += SMALL
    if "coco" in typed:  # which would be downloaded
        typed = ["small-source" if word == "coco" else word for word in typed]
    if typed[0] == "pretrain-source" and "--init" not in typed:
        typed += ["--dry-run"]
    return typed


def _unlabelled_report(said: str, where: Path) -> None:
    """It takes the split that there is, says so, and claims no labels."""
    assert "Not said, so taken: data set camera, split train." in said
    page = (where / "runs" / "mine" / "report.md").read_text()
    explained = "| † | uses target labels, to look at only |"  # among the words, whether it is used or not
    assert "†" not in page.replace(explained, "") and "Uses target labels" not in page
    shutil.rmtree(where / "data")
    assert "No data set 'camera'" in refused("eval mine")
