"""A bare folder of target images."""

from __future__ import annotations

import os

import pytest
from PIL import Image
from trees import pack, write_image, write_text

from mrt.data.card import read_card
from mrt.data.convert.folder import recipe
from mrt.data.convert.recipe import prepare
from mrt.data.dataset import DetectionDataset
from mrt.errors import MrtError


def make(raw, tmp_path, **options):
    """(card, warnings) of the set that is made from ``raw``."""
    return prepare(
        recipe([raw], tmp_path / "data", **options), tmp_path / "data", "bare", workers=1, overwrite=True
    )


@pytest.fixture
def folder(tmp_path):
    write_image(tmp_path / "raw" / "b.png")
    write_image(tmp_path / "raw" / "deep" / "er" / "a.JPG", (30, 20), orientation=6)
    for name in ("notes.txt", "labels.json", ".hidden.jpg", "__MACOSX/._b.png", "deep/.thumbs/c.jpg"):
        write_text(tmp_path / "raw" / name, "no image")
    return tmp_path / "raw"


@pytest.mark.parametrize("packed", [None, "raw.zip", "raw.tgz"])
def test_all_images_below_it(folder, tmp_path, packed):
    raw = pack(folder, tmp_path / packed) if packed else folder
    card, warnings = make(raw, tmp_path)
    assert warnings == [] and not card.labelled and card.classes == () and list(card.splits) == ["train"]
    assert card.image_sizes == {"40x30": 1, "20x30": 1}, (
        "upright sizes; neither hidden files nor hidden folders"
    )
    assert read_card(tmp_path / "data" / "bare") == card
    dataset = DetectionDataset(card, "train", classes=["car"], labelled=False)
    assert [dataset[k].image.shape for k in range(2)] == [(3, 30, 40), (3, 30, 20)]
    assert dataset.classes == ("car",) and len(dataset[0].target["boxes"]) == 0 and dataset.left_out() == []


def test_unreadable_images_are_counted(folder, tmp_path):
    write_text(folder / "broken.png", "no image")
    (folder / "gone.png").symlink_to(tmp_path / "nowhere.png")
    card, warnings = make(folder, tmp_path)
    assert card.split("train").skipped == {"image cut short or unreadable": 1, "image missing": 1}
    assert any("the first is broken.png" in line for line in warnings) and card.split("train").num_images == 2


def test_names_that_are_not_utf_8(folder, tmp_path):
    os.rename(folder / "b.png", os.fsencode(folder) + b"/caf\xe9.png")
    card, _ = make(folder, tmp_path)
    assert card.split("train").skipped == {"file name that is not UTF-8": 1}
    assert card.split("train").num_images == 1


def test_no_images_at_all(tmp_path):
    write_text(tmp_path / "raw" / "notes.txt", "no image")
    with pytest.raises(MrtError, match="holds no images"):
        make(tmp_path / "raw", tmp_path)
    with pytest.raises(MrtError, match="no such file or folder"):
        make(tmp_path / "nowhere", tmp_path)
    write_text(tmp_path / "raw" / "a.png", "no image either")
    with pytest.raises(MrtError, match=r"none of the 1 images could be used(.|\n)*a\.png"):
        make(tmp_path / "raw", tmp_path)


@pytest.mark.parametrize("suffix", [".gif", ".WEBP", ".tiff"])
def test_of_a_file_with_several_pictures_the_first_is_taken_and_the_others_are_told(tmp_path, suffix):
    frames = [Image.new("RGB", (40, 30), colour) for colour in ("red", "green", "blue")]
    (tmp_path / "raw").mkdir()
    frames[0].save(tmp_path / "raw" / f"many{suffix}", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "raw" / f"one{suffix}")
    card, _ = make(tmp_path / "raw", tmp_path)
    assert card.split("train").num_images == 2
    assert card.split("train").skipped == {"picture beside the first of its file (animation, pages)": 2}
