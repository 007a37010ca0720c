"""Sim10k from its two tgz archives, or unpacked."""

from __future__ import annotations

import pytest
from trees import objects, pack, voc_tree, write_text

from mrt.data.convert import sim10k
from mrt.data.convert.recipe import prepare
from mrt.errors import MrtError

BOXES = {
    "3384645": [("car", 1, 1, 10, 5), ("motorbike", 3, 4, 40, 30), ("person", 7, 8, 9, 12)],
    "3384646": [("person", 5, 6, 8, 9)],  # no car: the benchmark trains on it all the same
    "3384647": [("car", 11, 12, 20, 22), ("spaceship", 1, 1, 5, 5)],
}
CARS = {"3384645.jpg": [("car", 0, 0, 10, 5)], "3384646.jpg": [], "3384647.jpg": [("car", 10, 11, 10, 11)]}


@pytest.fixture
def unpacked(tmp_path):
    """Folder with VOC2012/{JPEGImages,Annotations}."""
    return voc_tree(tmp_path / "unpacked" / "VOC2012", BOXES).parent


@pytest.fixture
def downloads(tmp_path, unpacked):
    """Folder with the two archives as they come."""
    (tmp_path / "downloads").mkdir()
    for part, name in (("JPEGImages", "images"), ("Annotations", "annotations")):
        (tmp_path / name / "VOC2012").mkdir(parents=True)
        (unpacked / "VOC2012" / part).rename(tmp_path / name / "VOC2012" / part)
        pack(tmp_path / name, tmp_path / "downloads" / f"repro_10k_{name}.tgz")
    return tmp_path / "downloads"


@pytest.fixture
def convert(tmp_path):
    def run(*raw, **options):
        root = tmp_path / "data"
        return prepare(sim10k.recipe(list(raw), root, **options), root, "sim10k", overwrite=True, workers=1)

    return run


def test_cars_of_the_archives_as_they_come(tmp_path, downloads, convert):
    card, warnings = convert(downloads)
    assert (objects(card), card.classes) == (CARS, ("car",))
    assert card.splits["train"].skipped == {"class not asked for": 3, "unknown label 'spaceship'": 1}
    assert card.splits["train"].num_empty == 1
    assert warnings == ["train: 3 images instead of the official 10000"]
    assert (
        card.images_root("train").resolve()
        == tmp_path / "data" / "unpacked" / "repro_10k_images.tgz" / "VOC2012" / "JPEGImages"
    )
    assert (card.images_root("train") / "3384645.jpg").is_file()


def test_the_archives_are_unpacked_once(downloads, convert):
    told: list[str] = []
    convert(*sorted(downloads.iterdir()), on_unpack=lambda archive, done, total: told.append(archive.name))
    assert {*told} == {"repro_10k_images.tgz", "repro_10k_annotations.tgz"}
    told.clear()
    convert(*sorted(downloads.iterdir()), on_unpack=lambda archive, done, total: told.append(archive.name))
    assert told == []


def test_folders_unpacked_by_hand(unpacked, convert):
    assert objects(convert(unpacked)[0]) == CARS
    assert objects(convert(unpacked / "VOC2012")[0]) == CARS


def test_each_archive_unpacked_into_its_own_folder(tmp_path, downloads, convert):
    assert objects(convert(tmp_path / "images", tmp_path / "annotations")[0]) == CARS
    (tmp_path / "both").mkdir()
    for name in ("images", "annotations"):
        (tmp_path / name).rename(tmp_path / "both" / f"repro_10k_{name}")
    assert objects(convert(tmp_path / "both")[0]) == CARS


@pytest.mark.parametrize("motorcycle", ["motorcycle", "motorbike"])
def test_all_three_classes_under_the_names_of_the_other_sets(unpacked, convert, motorcycle):
    card, warnings = convert(unpacked, classes=("person", "car", motorcycle))
    assert card.classes == ("person", "car", "motorcycle")
    assert objects(card)["3384645.jpg"] == [
        ("car", 0, 0, 10, 5),
        ("motorcycle", 2, 3, 38, 27),
        ("person", 6, 7, 3, 5),
    ]
    assert (warnings, card.details["benchmark"]) == ([], False)  # no official counts: it is another benchmark


@pytest.mark.parametrize("classes", [("truck",), ()])
def test_a_class_that_sim10k_does_not_have(unpacked, convert, classes):
    with pytest.raises(MrtError, match="Sim10k has person, car, motorcycle"):
        convert(unpacked, classes=classes)


def test_half_of_the_downloads(downloads, convert):
    with pytest.raises(MrtError, match=r"holds no VOC2012/Annotations/\*\.xml"):
        convert(downloads / "repro_10k_images.tgz")
    with pytest.raises(MrtError, match=r"holds no VOC2012/JPEGImages/\*\.jpg") as caught:
        convert(downloads / "repro_10k_annotations.tgz")
    assert "repro_10k_images.tgz" in caught.value.hint


def test_an_archive_cut_short(downloads, convert):
    archive = downloads / "repro_10k_images.tgz"
    archive.write_bytes(archive.read_bytes()[:-300])
    with pytest.raises(MrtError, match=r"repro_10k_images\.tgz: cannot be read to its end"):
        convert(downloads)


def test_missing_and_damaged_files_are_counted(unpacked, convert):
    image = unpacked / "VOC2012" / "JPEGImages" / "3384645.jpg"
    image.write_bytes(image.read_bytes()[:-200])
    (unpacked / "VOC2012" / "JPEGImages" / "3384646.jpg").unlink()
    write_text(unpacked / "VOC2012" / "Annotations" / "9.xml", "<annotation>")
    card, warnings = convert(unpacked)
    assert list(objects(card)) == ["3384647.jpg"]
    assert {"image cut short or unreadable": 1, "image missing": 2}.items() <= card.splits[
        "train"
    ].skipped.items()
    assert "train: 1 images instead of the official 10000" in warnings
