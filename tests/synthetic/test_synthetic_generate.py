"""Whole data sets on disk: content, card, workers, interruption and bad arguments."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mrt.data.card import read_card
from mrt.data.check import check_set
from mrt.data.preview import contact_sheet
from mrt.data.synthetic import CLASSES, generate
from mrt.errors import MrtError

SIZE = (96, 64)
ROOT = Path(__file__).resolve().parents[2]


def digest(folder: Path) -> dict[str, str]:
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    seen = []
    card = generate(
        root,
        name="foggy",
        domain="foggy",
        splits={"train": 6, "val": 2},
        size=SIZE,
        seed=1,
        beta=[0.05, 0.1],
        workers=1,
        on_progress=lambda done, total: seen.append((done, total)),
    )
    return root, card, seen


def test_a_set_is_coco_with_a_card(made):
    root, card, seen = made
    folder = root / "foggy"
    assert card.folder == folder and read_card(folder) == card
    assert check_set(card) == []
    assert card.domain == "foggy" and card.classes == CLASSES and card.labelled
    assert card.image_sizes == {"96x64": 8}
    assert card.details["beta"] == [0.05, 0.1] and card.details["seed"] == 1
    assert seen == [(k, 8) for k in range(1, 9)]
    for split, count in (("train", 6), ("val", 2)):
        coco = json.loads((folder / f"{split}.json").read_text())
        assert [c["id"] for c in coco["categories"]] == list(range(1, 9))
        assert [c["name"] for c in coco["categories"]] == list(CLASSES)
        assert [i["id"] for i in coco["images"]] == list(range(1, count + 1))
        assert [a["id"] for a in coco["annotations"]] == list(range(1, len(coco["annotations"]) + 1))
        assert {i["beta"] for i in coco["images"]} <= {0.05, 0.1}
        for a in coco["annotations"]:
            x, y, w, h = a["bbox"]
            assert w > 0 and h > 0 and x >= 0 and x + w <= SIZE[0] and y >= 0 and y + h <= SIZE[1]
            assert a["iscrowd"] in (0, 1) and 0 < a["area"] <= w * h
        for entry in coco["images"]:
            with Image.open(folder / "images" / split / entry["file_name"]) as image:
                assert image.size == SIZE and image.mode == "RGB"
    split = card.splits["train"]
    assert split.num_images == 6 and sum(split.boxes_per_class.values()) == split.num_boxes > 0


def test_images_are_the_rendered_scenes_hardly_compressed(made):
    from mrt.data.synthetic.render import render

    root, _, _ = made
    with Image.open(root / "foggy" / "images" / "val" / "000001.jpg") as image:
        stored = np.asarray(image, float)
    scene = render(1, "foggy", "val", 1, SIZE, (0.05, 0.1))
    assert np.abs(stored - scene.image).mean() < 2.5


def test_workers_and_other_splits_change_nothing(made, tmp_path):
    root, _, _ = made
    generate(
        tmp_path,
        name="again",
        domain="foggy",
        splits={"train": 8},
        size=SIZE,
        seed=1,
        beta=(0.05, 0.1),
        workers=2,
    )
    mine, theirs = (
        digest(tmp_path / "again" / "images" / "train"),
        digest(root / "foggy" / "images" / "train"),
    )
    assert len(theirs) == 6 and all(mine[name] == value for name, value in theirs.items())


def test_existing_sets_stay_unless_overwritten(tmp_path):
    make = {"name": "a", "domain": "clear", "splits": {"train": 1}, "size": SIZE, "workers": 1}
    generate(tmp_path, **make)
    before = digest(tmp_path / "a")
    with pytest.raises(MrtError, match="exists already"):
        generate(tmp_path, **make)
    assert digest(tmp_path / "a") == before
    generate(tmp_path, **make, overwrite=True)
    assert digest(tmp_path / "a") == before
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_folder_that_is_no_set_is_never_overwritten(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.txt").write_text("years of work")
    with pytest.raises(MrtError, match="not a data set"):
        generate(
            tmp_path, name="thesis", domain="clear", splits={"train": 1}, size=SIZE, workers=1, overwrite=True
        )
    assert (tmp_path / "thesis" / "chapter1.txt").exists()


@pytest.mark.parametrize("existing", [False, True])
def test_an_interruption_leaves_what_was_there(tmp_path, existing):
    make = {"name": "a", "domain": "clear", "size": SIZE, "workers": 1}
    if existing:
        generate(tmp_path, **make, splits={"train": 1})
    before = digest(tmp_path)

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(tmp_path, **make, splits={"train": 3}, on_progress=stop, overwrite=True)
    assert digest(tmp_path) == before
    assert [p.name for p in tmp_path.iterdir()] == (["a"] if existing else [])


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs POSIX signals")
def test_a_killed_run_leaves_no_finished_set_and_no_workers(tmp_path):
    program = (
        "import sys; from mrt.data.synthetic import generate\n"
        "generate(sys.argv[1], name='a', domain='clear', splits={'train': 5000}, size=(96, 64), workers=2)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], env=environment, start_new_session=True
    )
    deadline = time.monotonic() + 30
    while not list(tmp_path.glob(".a.*/images/train/*.jpg")) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert run.poll() is None
    run.kill()
    run.wait()
    assert not (tmp_path / "a").exists()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            os.killpg(run.pid, 0)
        except ProcessLookupError:
            break
        time.sleep(0.1)
    else:
        os.killpg(run.pid, signal.SIGKILL)
        pytest.fail("worker processes outlived their parent")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"domain": "snow"}, "domain is 'snow'"),
        ({"name": "../up"}, "name is '../up'"),
        ({"name": ".hidden"}, "name is '.hidden'"),
        ({"name": ""}, "name is ''"),
        ({"splits": {}}, "splits is empty"),
        ({"splits": {"train": 0}}, "splits.train is 0"),
        ({"splits": {"train": 1.5}}, "splits.train is 1.5"),
        ({"splits": {"a/b": 1}}, "'a/b' is no name"),
        ({"size": (10, 10)}, "size is 10x10"),
        ({"size": (100, 800)}, "size is 100x800"),
        ({"size": 640}, "size is 640"),
        ({"seed": -1}, "seed is -1"),
        ({"beta": 0}, "beta is"),
        ({"beta": []}, "beta is"),
        ({"beta": "thick"}, "beta is 'thick'"),
        ({"beta": float("nan")}, "beta is"),
        ({"workers": 0}, "workers is 0"),
    ],
)
def test_bad_arguments_are_named_and_nothing_is_written(tmp_path, change, words):
    with pytest.raises(MrtError) as caught:
        generate(
            tmp_path / "data",
            **{"name": "a", "domain": "foggy", "splits": {"train": 1}, "size": SIZE, "workers": 1, **change},
        )
    assert words in str(caught.value)
    assert not (tmp_path / "data").exists()


def test_a_root_that_cannot_be_written_is_an_error_for_people(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(MrtError, match="cannot be written"):
        generate(tmp_path / "file", name="a", domain="clear", splits={"train": 1}, size=SIZE, workers=1)


def test_contact_sheet(made):
    root, _, _ = made
    sheet = contact_sheet(root / "foggy", 5, columns=3, width=120)
    assert sheet.size == (360, 160)
    plain = contact_sheet(root / "foggy", 5, columns=3, width=120, boxes=False)
    assert np.any(np.asarray(sheet) != np.asarray(plain))
    assert contact_sheet(root / "foggy", 99, split="val").size == (800, 267)
    with pytest.raises(MrtError, match="no split 'nope'"):
        contact_sheet(root / "foggy", split="nope")
    with pytest.raises(MrtError, match="n is 0"):
        contact_sheet(root / "foggy", 0)
