"""`mrt prepare-data --check`: what has changed since a set was made."""

from __future__ import annotations

import json
import zipfile
from dataclasses import replace

import numpy as np
from mrt_cli.app import app
from PIL import Image
from typer.testing import CliRunner

from mrt.data.check import check_set


def test_a_set_as_it_was_made_is_fine(small_set):
    seen = []
    assert check_set(small_set, on_progress=lambda done, total: seen.append((done, total))) == []
    assert seen[-1] == (7, 7)


def test_images_missing_cut_short_and_of_another_size(small_set):
    root = small_set.images_root("train")
    (root / "0003.png").unlink()
    whole = (root / "0004.png").read_bytes()
    (root / "0004.png").write_bytes(whole[:-20])
    Image.new("RGB", (40, 33)).save(root / "0005.png")
    problems = check_set(small_set, workers=1)
    assert len(problems) == 3
    assert "1 of 7 images are missing" in problems[0] and "0003.png" in problems[0]
    assert "cut short" in problems[1] and "0004.png" in problems[1]
    assert "40x33, not 40x" in problems[2]


def test_annotations_changed_or_gone(small_set):
    annotations = small_set.annotations_path("train")
    content = json.loads(annotations.read_text())
    content["annotations"].pop()
    annotations.write_text(json.dumps(content))
    assert ["sha256 differs" in line for line in check_set(small_set)] == [True]
    forged = replace(small_set, splits={"train": replace(small_set.split("train"), sha256="")})
    assert any("num_boxes is 6, the card says 7" in line for line in check_set(forged))
    annotations.unlink()
    assert "missing" in check_set(small_set)[0]


def test_an_annotation_file_that_is_none_is_told_beside_the_others(small_set):
    other = small_set.folder / "other.json"
    other.write_text('{"images": [{"id": []}], "annotations": 5, "categories": {}}')
    (small_set.images_root("train") / "0003.png").unlink()
    bad = replace(small_set.split("train"), annotations="other.json", sha256="")
    problems = check_set(replace(small_set, splits={"bad": bad, **small_set.splits}), workers=1)
    assert len(problems) == 2
    assert "other.json: not the annotations of a prepared set" in problems[0]
    assert "0003.png" in problems[1]


def test_the_command_looks_at_all_sets_also_behind_a_broken_card(make_set, tmp_path):
    for name in ("a", "b"):
        make_set(name, {1: np.zeros((8, 8, 3), np.uint8)}, [], ["car"])
    (tmp_path / "a" / "dataset.json").write_text('{"classes": 1, "splits": 2}')
    (tmp_path / "b" / "train.json").write_text("[" * 5000)
    told = CliRunner().invoke(app, ["prepare-data", "--check", "--data-root", str(tmp_path)])
    assert told.exit_code == 2 and isinstance(told.exception, SystemExit)
    assert "a: 1 problems" in told.output and "b: 1 problems" in told.output
    assert "a/dataset.json: classes is 1" in told.output and "sha256 differs" in told.output


def test_images_in_a_zip_archive(small_set, tmp_path):
    archive = tmp_path / "raw.zip"
    root = small_set.images_root("train")
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(root.iterdir()):
            if path.name != "0002.png":
                file.write(path, f"inside/{path.name}")
    card = replace(
        small_set, splits={"train": replace(small_set.split("train"), images=str(archive / "inside"))}
    )
    problems = check_set(card)
    assert len(problems) == 1 and "missing" in problems[0] and "0002.png" in problems[0]
