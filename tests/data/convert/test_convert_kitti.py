"""KITTI from its two zip archives, or unpacked: cars only, unless asked."""

from __future__ import annotations

import pytest
from trees import objects, pack, write_image, write_text

from mrt.data.check import check_set
from mrt.data.convert import kitti
from mrt.data.convert.recipe import prepare
from mrt.errors import MrtError

REST = "1.50 1.60 3.70 -2.00 1.50 20.00 1.57"
LABELS = {
    "000000": [
        "Car 0.00 0 1.85 3.25 4.50 12.75 11.00",
        "Van 0.00 1 1.85 1.00 1.00 9.00 9.00",
        "DontCare -1 -1 -10 20.0 1.0 30.0 6.0",
    ],
    # no car: trained on all the same
    "000001": ["Pedestrian 0.00 0 0.21 5.00 6.00 9.00 16.00", "Person_sitting 0.00 0 0.2 1 1 4 9"],
    "000002": ["Car 0.90 0 1.85 -5.00 12.00 60.00 22.00", "Spaceship 0 0 0 1 1 5 5"],
}
CARS = {
    "000000.png": [("car", 3.25, 4.5, 9.5, 6.5)],
    "000001.png": [],
    "000002.png": [("car", 0, 12, 40, 10)],
}


def official(warnings):
    """The warnings that compare with the owners' numbers."""
    return [line for line in warnings if "official" in line]


@pytest.fixture
def raw(tmp_path):
    """Folder with training/{image_2,label_2} and testing/image_2."""
    folder = tmp_path / "raw"
    for name, lines in LABELS.items():
        write_image(folder / "training" / "image_2" / f"{name}.png")
        write_text(
            folder / "training" / "label_2" / f"{name}.txt", "".join(f"{line} {REST}\n" for line in lines)
        )
    for name in ("000000", "000003"):
        write_image(folder / "testing" / "image_2" / f"{name}.png", size=(20, 20))
    return folder


@pytest.fixture
def convert(tmp_path):
    def run(*places, **options):
        root = tmp_path / "data"
        return prepare(kitti.recipe(list(places), root, **options), root, "kitti", overwrite=True, workers=1)

    return run


def test_cars_of_all_images_of_training(raw, convert):
    card, warnings = convert(raw)
    assert (objects(card), card.classes, list(card.splits)) == (CARS, ("car",), ["train"])
    assert card.splits["train"].skipped == {
        "class not asked for": 3,
        "DontCare region": 1,
        "unknown label 'Spaceship'": 1,
    }
    assert official(warnings) == ["train: 3 images instead of the official 7481"]
    assert (card.details["benchmark"], card.image_sizes) == (True, {"40x30": 3})
    assert check_set(card, workers=1) == []


def test_archives_as_they_come(tmp_path, raw, convert):
    downloads = tmp_path / "downloads"
    downloads.mkdir()
    (tmp_path / "labels" / "training").mkdir(parents=True)
    (raw / "training" / "label_2").rename(tmp_path / "labels" / "training" / "label_2")
    pack(raw, downloads / "data_object_image_2.zip")
    pack(tmp_path / "labels", downloads / "data_object_label_2.zip")
    card, _ = convert(downloads)
    assert objects(card) == CARS
    assert card.images_root("train") == downloads / "data_object_image_2.zip" / "training" / "image_2"
    assert objects(convert(*sorted(downloads.iterdir()))[0]) == CARS
    assert objects(convert(raw, tmp_path / "labels")[0]) == CARS
    labels = tmp_path / "labels" / "training" / "label_2"
    assert objects(convert(raw / "training" / "image_2", labels, raw / "testing")[0]) == CARS


@pytest.mark.parametrize("person", ["person", "Pedestrian"])
def test_other_classes_in_the_order_asked_for(raw, convert, person):
    card, warnings = convert(raw, classes=("Van", person, "person_sitting"))
    assert card.classes == ("van", "person", "person_sitting")
    assert objects(card) == {
        "000000.png": [("van", 1, 1, 8, 8)],
        "000001.png": [("person", 5, 6, 4, 10), ("person_sitting", 1, 1, 3, 8)],
        "000002.png": [],
    }
    assert (card.details["benchmark"], official(warnings)) == (
        False,
        ["train: 3 images instead of the official 7481"],
    )


@pytest.mark.parametrize("classes", [("bicycle",), ("DontCare",), ()])
def test_a_class_that_kitti_does_not_have(raw, convert, classes):
    with pytest.raises(MrtError, match="KITTI has car, van, truck"):
        convert(raw, classes=classes)


def test_half_of_the_downloads(raw, convert):
    with pytest.raises(MrtError, match=r"holds no training/label_2/\*\.txt") as caught:
        convert(raw / "training" / "image_2", raw / "testing")
    assert "data_object_label_2.zip" in caught.value.hint
    with pytest.raises(MrtError, match=r"holds no training/image_2/\*\.png") as caught:
        convert(raw / "training" / "label_2", raw / "testing")
    assert "data_object_image_2.zip" in caught.value.hint


def test_missing_and_damaged_files_are_counted(raw, convert):
    images, labels = raw / "training" / "image_2", raw / "training" / "label_2"
    (images / "000000.png").write_bytes((images / "000000.png").read_bytes()[:-200])
    (labels / "000001.txt").unlink()
    write_text(labels / "000007.txt", "")
    write_text(
        labels / "000002.txt",
        f"Car 0.00 0 1.85 9 9 9 12 {REST}\nCar 1 2 3\n\nCar 0 0 0 nan 1 5 5 "
        f"{REST}\nCar 0 0 0 50 1 55 5 {REST}\n",
    )
    write_image(images / "000008.png")
    write_text(labels / "000008.txt", f"Car 0 0 0 1 2 3 4 {REST}\n")
    card, warnings = convert(raw)
    assert objects(card) == {"000002.png": [], "000008.png": [("car", 1, 2, 2, 2)]}
    skipped = dict(card.splits["train"].skipped)
    lines = {reason for reason in skipped if reason.startswith("line that is not")}
    assert (
        sum(skipped.pop(reason) for reason in lines) + skipped.pop("box with a number that is not finite", 0)
        == 2
    )
    assert skipped == {
        "image cut short or unreadable": 1,
        "labels missing": 1,
        "image missing": 1,
        "box without area": 1,
        "box outside the image": 1,
    }
    assert any("labels missing, the first is 000001.png" in line for line in warnings)


def test_predictions_are_no_labels(tmp_path, raw, convert):
    place = write_text(raw / "training" / "label_2" / "000001.txt", f"Car 0.00 0 1.85 1 1 5 5 {REST} 0.98\n")
    with pytest.raises(MrtError, match="predictions") as caught:
        convert(raw)
    assert str(place) in caught.value.message
    assert not (tmp_path / "data" / "kitti").exists()
