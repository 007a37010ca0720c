"""From pictures to a set on disk: ids, counts, warnings; completely or not at all."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
import zipfile
from pathlib import Path

import pytest

from mrt.data.card import read_card
from mrt.data.convert.raw import RawFiles
from mrt.data.convert.recipe import Picture, Recipe, Skipped, Split, Thing, clip_box, prepare
from mrt.errors import MrtError


def convert(job: int) -> Picture | Skipped:
    if job == 3:
        return Skipped("image missing", "3.png")
    if job == 5:
        raise MrtError("5.json: not valid JSON")
    things = [Thing("car", (1, 2, 3.25, 4), 13.0), Thing("person", (0, 0, 2, 2), 4.0, ignored=True)]
    return Picture(
        f"{min(job, 8)}.png",
        64,
        48,
        things if job % 2 else (),
        {"box without area": 1} if job == 1 else {},
        {"beta": 0.02},
    )


def recipe(jobs: list[int], **more) -> Recipe:
    return Recipe(
        "fog",
        ("person", "car"),
        {"train": Split(Path("/raw/images"), jobs, convert, {"no labels": 2})},
        "made up",
        **more,
    )


def test_what_is_written(tmp_path):
    seen = []
    card, warnings = prepare(
        recipe([1, 2, 3, 7], expected={"train": {"images": 4, "car": 2, "person": 1}}),
        tmp_path,
        "s",
        on_progress=lambda *n: seen.append(n),
    )
    assert read_card(tmp_path / "s") == card and card.details["warnings"] == warnings
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    split = card.split("train")
    assert (split.num_images, split.num_boxes, split.num_ignored, split.num_empty) == (3, 2, 2, 1)
    assert split.skipped == {"no labels": 2, "image missing": 1, "box without area": 1}
    assert warnings == [
        "train: 1 left out: image missing, the first is 3.png",
        "train: 3 images instead of the official 4",
        "train: 0 boxes of person instead of the official 1",
    ]
    coco = json.loads((tmp_path / "s" / "train.json").read_text())
    assert coco["images"][0] == {"id": 1, "file_name": "1.png", "width": 64, "height": 48, "beta": 0.02}
    assert [a["id"] for a in coco["annotations"]] == [1, 2, 3, 4]
    assert coco["annotations"][0] == {
        "id": 1,
        "image_id": 1,
        "category_id": 2,
        "bbox": [1, 2, 3.25, 4],
        "area": 13,
        "iscrowd": 0,
    }
    assert coco["annotations"][1]["iscrowd"] == 1
    assert coco["categories"] == [{"id": 1, "name": "person"}, {"id": 2, "name": "car"}]


def test_images_below_the_data_root_are_named_relative_to_the_set(tmp_path):
    split = Split(tmp_path / "unpacked" / "x.tgz", [1], convert)
    card, _ = prepare(Recipe("d", ("person", "car"), {"train": split}, "x"), tmp_path, "s")
    assert card.split("train").images == "../unpacked/x.tgz"
    outside, _ = prepare(recipe([1]), tmp_path, "t")
    assert outside.split("train").images == "/raw/images"


def test_the_same_image_twice_is_taken_once(tmp_path):
    card, warnings = prepare(recipe([1, 8, 9, 10]), tmp_path, "s", workers=1)
    assert card.split("train").num_images == 2 and card.split("train").skipped["image listed twice"] == 2
    assert "image listed twice" in warnings[0]


def test_a_split_of_which_nothing_is_there_is_a_warning(tmp_path):
    _, warnings = prepare(
        recipe([1], expected={"train": {"images": 1}, "val": {"images": 500}}), tmp_path, "s"
    )
    assert warnings == ["val: nothing found of the official 500 images"]


@pytest.mark.parametrize(
    ("jobs", "words"), [([], "no images to convert"), ([3], "none of the 1 images"), ([1, 5], "5.json")]
)
def test_nothing_is_left_of_what_fails(tmp_path, jobs, words):
    with pytest.raises(MrtError, match=words):
        prepare(recipe(jobs), tmp_path, "s")
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_exists_stays(tmp_path):
    prepare(recipe([1]), tmp_path, "s")
    with pytest.raises(MrtError, match="exists already"):
        prepare(recipe([1, 2]), tmp_path, "s")
    assert prepare(recipe([1, 2]), tmp_path, "s", overwrite=True)[0].split("train").num_images == 2
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("precious")
    with pytest.raises(MrtError, match="not a data set"):
        prepare(recipe([1]), tmp_path, "mine", overwrite=True)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["mine", "s"]


def test_a_killed_conversion_leaves_nothing_that_looks_finished(tmp_path):
    code = textwrap.dedent("""
        import sys, time
        from pathlib import Path
        from mrt.data.convert.recipe import Picture, Recipe, Split, prepare
        def slow(job):
            time.sleep(0.2)
            return Picture(f"{job}.png", 8, 8)
        recipe = Recipe("d", ("a",), {"train": Split(Path("/raw"), list(range(100)), slow)}, "x")
        tell = lambda done, total: print(done, flush=True)
        prepare(recipe, Path(sys.argv[1]), "s", workers=1, on_progress=tell)
    """)
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"1\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    left = list(tmp_path.iterdir())
    assert len(left) == 1 and left[0].name.startswith(".s.") and left[0].suffix == ".partial"
    prepare(recipe([1]), tmp_path, "s")  # clears what was abandoned
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_one_clear_error(tmp_path, monkeypatch):
    write = Path.write_text

    def full(path: Path, text: str, **options) -> int:
        if path.name == "train.json":
            return write(Path("/dev/full"), text, **options)
        return write(path, text, **options)

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(MrtError, match="No space left"):
        prepare(recipe([1]), tmp_path, "s")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((1, 2, 5, 9), ((1, 2, 4, 7), None)),
        ((-3, 2, 5, 99), ((0, 2, 5, 46), None)),
        ((5, 2, 5, 9), (None, "box without area")),
        ((70, 2, 75, 9), (None, "box outside the image")),
        ((float("nan"), 2, 5, 9), (None, "box with a number that is not finite")),
        ((1, 2, float("inf"), 9), (None, "box with a number that is not finite")),
    ],
)
def test_clip_box(box, expected):
    assert clip_box(box, 64, 48) == expected


def test_raw_files_in_folders_and_archives_are_one_tree(tmp_path):
    raw = tmp_path / "raw"
    (raw / "a").mkdir(parents=True)
    (raw / "a" / "1.png").write_text("loose")
    (raw / "a" / "skip.txt").write_text("")
    (raw / ".trash").mkdir()
    (raw / ".trash" / "9.png").write_text("")
    with zipfile.ZipFile(raw / "b.zip", "w") as file:
        file.writestr("a/1.png", "zipped")
        file.writestr("a/2.png", "zipped")
    with pytest.raises(MrtError, match=r"a/1\.png is in .*raw and, with other content, in .*b\.zip"):
        RawFiles([raw], r"\.png$", tmp_path / "data")
    (raw / "b.zip").unlink()
    with zipfile.ZipFile(raw / "c.zip", "w") as file:
        file.writestr("a/1.png", "loose")
        file.writestr("a/2.png", "zipped")
    files = RawFiles([raw], r"\.png$", tmp_path / "data")
    assert {inside: place.relative_to(raw).as_posix() for inside, place in files.files.items()} == {
        "a/1.png": "a/1.png",
        "a/2.png": "c.zip/a/2.png",
    }
    assert [match[1] for match, _ in files.matching(r"a/(\d)")] == ["1", "2"]
    with pytest.raises(MrtError, match="no such file or folder"):
        RawFiles([tmp_path / "nowhere"], "", tmp_path)
    with pytest.raises(MrtError, match="neither a folder nor"):
        RawFiles([raw / "a" / "1.png"], "", tmp_path)


def test_a_live_run_is_not_taken_for_an_abandoned_one(tmp_path):
    busy = tmp_path / f".s.{os.getpid()}.abc.partial"
    busy.mkdir()
    time.sleep(0.01)
    prepare(recipe([1]), tmp_path, "s")
    assert busy.exists()
