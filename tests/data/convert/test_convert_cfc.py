"""CFC-DAOD: its four archives and label files, a set for each location."""

from __future__ import annotations

import json

import pytest
from trees import objects, pack, write_image, write_text

from mrt.data.check import check_set
from mrt.data.convert import cfc
from mrt.data.convert.recipe import prepare
from mrt.errors import MrtError

NAMES = ("cfc_train", "cfc_val", "cfc_channel_train", "cfc_channel_test")


def label_file(folder, name, images=("a.jpg", "b.jpg"), categories=("fish",)):
    """The first image has a fish, the second one has none."""
    content = {
        "images": [
            {"id": n, "file_name": image, "width": 40, "height": 30} for n, image in enumerate(images)
        ],
        "annotations": [
            {"id": 0, "image_id": 0, "category_id": 0, "bbox": [1.5, 2, 10, 5.25], "area": 52.5, "iscrowd": 0}
        ],
        "categories": [{"id": n, "name": label} for n, label in enumerate(categories)],
    }
    return write_text(folder / f"{name}.json", json.dumps(content))


def official(warnings):
    """The warnings that compare with the owners' numbers."""
    return [line for line in warnings if "official" in line]


@pytest.fixture
def raw(tmp_path):
    """images/cfc_train/cfc_train-a.jpg and so on, coco_labels/cfc_train.json and so on."""
    folder = tmp_path / "raw"
    for name in NAMES:
        images = [f"{name}-{letter}.jpg" for letter in "ab"]
        for image in images:
            write_image(folder / "images" / name / image)
        label_file(folder / "coco_labels", name, images)
    return folder


@pytest.fixture
def convert(tmp_path):
    def run(*places, location="kenai", **options):
        root = tmp_path / "data"
        return prepare(
            cfc.recipe(list(places), root, location=location, **options),
            root,
            "cfc",
            overwrite=True,
            workers=1,
        )

    return run


FISH = [("fish", 1.5, 2, 10, 5.25)]


@pytest.mark.parametrize(
    ("location", "second", "numbers"), [("kenai", "val", (76619, 30454)), ("channel", "test", (29089, 13091))]
)
def test_a_set_for_each_location(raw, convert, location, second, numbers):
    card, warnings = convert(raw, location=location)
    assert (list(card.splits), card.classes, card.domain) == (["train", second], ("fish",), location)
    for split in ("train", second):
        name = cfc.FILES[location][split]
        assert objects(card, split) == {f"{name}-a.jpg": FISH, f"{name}-b.jpg": []}
        assert card.images_root(split) == raw / "images" / name
    assert official(warnings) == [
        f"{split}: 2 images instead of the official {number}"
        for split, number in zip(("train", second), numbers, strict=True)
    ]
    assert check_set(card, workers=1) == []


@pytest.mark.parametrize("folder", ["cfc_train", "."])
def test_archives_and_label_files_as_they_come(tmp_path, raw, convert, folder):
    downloads = tmp_path / "downloads"
    downloads.mkdir()
    for name in NAMES:
        inner = tmp_path / name / (name if folder == "cfc_train" else ".")
        inner.mkdir(parents=True)
        for image in (raw / "images" / name).iterdir():
            image.rename(inner / image.name)
        pack(tmp_path / name, downloads / f"{name}.zip")
        (raw / "coco_labels" / f"{name}.json").rename(downloads / f"{name}.json")
    card, _ = convert(downloads)
    assert objects(card) == {"cfc_train-a.jpg": FISH, "cfc_train-b.jpg": []}
    named = [downloads / "cfc_train.zip", downloads / "cfc_train.json"]
    card, warnings = convert(*named)
    assert objects(card) == {"cfc_train-a.jpg": FISH, "cfc_train-b.jpg": []}
    assert (card.details["missing_splits"], card.source) == (["val"], "cfc_train.zip, cfc_train.json")
    assert "val: nothing found of the official 30454 images" in warnings


def test_images_are_those_in_the_folder_of_the_label_files_name(raw, convert):
    for name in NAMES:
        for letter in "ab":
            (raw / "images" / name / f"{name}-{letter}.jpg").rename(raw / "images" / name / f"{letter}.jpg")
        label_file(raw / "coco_labels", name, ("elsewhere/a.jpg", "elsewhere/b.jpg"))
    card, _ = convert(raw, location="channel")
    assert objects(card, "test") == {"a.jpg": FISH, "b.jpg": []}
    assert card.images_root("test") == raw / "images" / "cfc_channel_test"
    (raw / "images" / "cfc_train").rename(raw / "images" / "first")
    with pytest.raises(MrtError, match=r"cfc_train\.json: the image 'elsewhere/a\.jpg' may be any of"):
        convert(raw)


def test_the_class_is_fish_whatever_it_is_called(raw, convert):
    label_file(raw / "coco_labels", "cfc_train", ["cfc_train-a.jpg"], ["salmonid"])
    assert objects(convert(raw)[0]) == {"cfc_train-a.jpg": FISH}
    place = label_file(raw / "coco_labels", "cfc_train", ["cfc_train-a.jpg"], ["salmon", "trout"])
    with pytest.raises(MrtError, match="its classes are salmon, trout, expected one, fish") as caught:
        convert(raw)
    assert str(place) in caught.value.message


def test_half_of_the_downloads(raw, convert):
    with pytest.raises(MrtError, match=r"holds no cfc_train\.json or cfc_val\.json") as caught:
        convert(raw / "images")
    assert "data.caltech.edu" in caught.value.hint
    with pytest.raises(
        MrtError, match=r"holds no images of cfc_channel_train\.zip or cfc_channel_test\.zip"
    ) as caught:
        convert(raw / "coco_labels", location="channel")
    assert "Give cfc_channel_train.zip and cfc_channel_test.zip, too" in caught.value.hint
    with pytest.raises(MrtError, match="holds no images of"):
        convert(raw / "coco_labels" / "cfc_train.json")
    with pytest.raises(MrtError, match="location is 'bay', expected kenai or channel"):
        convert(raw, location="bay")


def test_missing_and_damaged_files_are_counted(raw, convert):
    images = raw / "images" / "cfc_train"
    (images / "cfc_train-a.jpg").unlink()
    card, warnings = convert(raw)
    assert list(objects(card)) == ["cfc_train-b.jpg"]
    assert card.splits["train"].skipped == {"image missing": 1}
    assert any("image missing, the first is cfc_train-a.jpg" in line for line in warnings)
    (images / "cfc_train-b.jpg").write_bytes((images / "cfc_train-b.jpg").read_bytes()[:-200])
    write_image(images / "cfc_train-a.jpg")
    assert convert(raw)[0].splits["train"].skipped == {"image cut short or unreadable": 1}


def test_a_broken_label_file_is_an_error_that_names_it(tmp_path, raw, convert):
    place = raw / "coco_labels" / "cfc_val.json"
    place.write_text(place.read_text()[:-20])
    with pytest.raises(MrtError, match=r"cfc_val\.json: not valid JSON"):
        convert(raw)
    assert not (tmp_path / "data" / "cfc").exists()
