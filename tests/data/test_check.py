"""`mrt prepare-data --check`: what has changed since a set was made."""

from __future__ import annotations

import json
import zipfile
from dataclasses import replace

from PIL import Image

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
