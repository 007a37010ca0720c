"""`mrt prepare-data custom`: which kind a set is, classes, a validation part."""

from __future__ import annotations

import pytest
from trees import OWN_BOXES as BOXES
from trees import OWN_SETS as SETS
from trees import coco_set, objects, pack, voc_set, write_image, write_text

from mrt.data.convert.custom import detect, recipe
from mrt.data.convert.recipe import prepare
from mrt.errors import MrtError


def make(raw, tmp_path, **options):
    """The card of the set that is made from ``raw``."""
    return prepare(
        recipe([raw], tmp_path / "data", **options), tmp_path / "data", "own", workers=1, overwrite=True
    )[0]


@pytest.mark.parametrize("packed", [None, "set.zip", "set.tar.gz"])
@pytest.mark.parametrize("kind", SETS)
def test_the_kind_is_found_and_the_boxes_are_the_same(tmp_path, kind, packed):
    raw = SETS[kind](tmp_path / "raw")
    raw = pack(raw, tmp_path / packed) if packed else raw
    assert detect([raw], tmp_path / "data") == kind
    card = make(raw, tmp_path)
    assert objects(card) == {"001.jpg": BOXES} and card.classes == ("car", "motor")
    assert card.details["format"] == kind


def test_a_bare_folder(tmp_path):
    write_image(tmp_path / "raw" / "frames" / "a.jpg")
    write_text(tmp_path / "raw" / "README.txt", "frames of a camera")
    write_text(tmp_path / "raw" / "camera.json", '{"fx": 1000}')
    card = make(tmp_path / "raw", tmp_path, domain="night", classes=("car",))
    assert not card.labelled and card.domain == "night" and card.classes == ("car",)
    assert card.split("train").num_images == 1
    assert not make(coco_set(tmp_path / "labelled"), tmp_path, format="images").labelled


def test_labels_that_cannot_be_used_are_not_passed_over(tmp_path):
    """An unusable file that is named like annotations is an error; it makes no set without labels."""
    write_image(tmp_path / "raw" / "a.jpg")
    write_text(tmp_path / "raw" / "train.json", "[]")
    with pytest.raises(MrtError, match=r"train\.json: holds a list"):
        make(tmp_path / "raw", tmp_path)


def test_nothing_fits_and_too_much_fits(tmp_path):
    write_text(tmp_path / "raw" / "notes.txt", "nothing")
    with pytest.raises(MrtError, match="no kind of data set") as error:
        make(tmp_path / "raw", tmp_path)
    assert all(f"--format {kind}: " in error.value.hint for kind in ("coco", "voc", "yolo", "images"))
    both = voc_set(coco_set(tmp_path / "both"))
    with pytest.raises(MrtError, match=r"more than one kind: coco, voc\n.*--format coco or voc"):
        make(both, tmp_path)
    assert make(both, tmp_path, format="coco", images=both / "images").details["format"] == "coco"


@pytest.mark.parametrize("kind", SETS)
def test_classes_are_renamed_and_chosen(tmp_path, kind):
    raw = SETS[kind](tmp_path / "raw")
    card = make(raw, tmp_path, class_map={"motor": "motorcycle"}, classes=("motorcycle",))
    assert objects(card) == {"001.jpg": [("motorcycle", 0, 0, 40, 30)]} and card.classes == ("motorcycle",)
    assert card.split("train").skipped == {"class not asked for": 1}
    assert card.details["class_map"] == {"motor": "motorcycle"}
    card = make(raw, tmp_path, class_map={"motor": "vehicle", "car": "vehicle"})
    assert objects(card) == {"001.jpg": [("vehicle", *box[1:]) for box in BOXES]}
    assert card.classes == ("vehicle",)
    assert make(raw, tmp_path, classes=("motor", "car")).classes == ("motor", "car")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"class_map": {"bike": "bicycle"}},
            r"bike=bicycle: the set has no class 'bike'(.|\n)*It has: car, motor",
        ),
        (
            {"class_map": {"motor": "bike"}, "classes": ("motor",)},
            r"--classes motor: the set has no such class(.|\n)*car, bike",
        ),
        ({"format": "pascal"}, "--format pascal: unknown"),
        ({"format": "yolo", "images": "images"}, "are for COCO sets, this one is yolo"),
        ({"format": "images", "class_map": {"motor": "bike"}}, "no classes to rename"),
        ({"val_share": 1.0}, r"--val-share 1\.0"),
        ({"val_share": 0.5}, r"--val-share 0\.5: 1 image cannot be split"),
    ],
)
def test_options_that_do_not_fit(tmp_path, options, words):
    with pytest.raises(MrtError, match=words):
        make(coco_set(tmp_path / "raw"), tmp_path, **options)


@pytest.mark.parametrize("kind", [*SETS, "images"])
def test_a_validation_part(tmp_path, kind):
    raw = SETS.get(kind, coco_set)(tmp_path / "raw", images=12)
    card = make(raw, tmp_path, format=kind, val_share=0.25)
    parts = {split: set(objects(card, split)) for split in card.splits}
    assert [len(parts["train"]), len(parts["val"])] == [9, 3] and not parts["train"] & parts["val"]
    assert card.details["val_share"] == 0.25
    again = make(raw, tmp_path, format=kind, val_share=0.25)
    assert set(objects(again, "val")) == parts["val"] == {"003.jpg", "009.jpg", "010.jpg"}
    larger = make(raw, tmp_path, format=kind, val_share=0.5)
    assert set(objects(larger, "val")) > parts["val"], "a larger share adds images"
    assert [
        make(raw, tmp_path, format=kind, val_share=s).split("val").num_images for s in (0.001, 0.999)
    ] == [1, 11]


def test_a_set_with_splits_keeps_them(tmp_path):
    raw = tmp_path / "raw"
    for split in ("train", "val"):
        coco_set(raw / split)
    with pytest.raises(MrtError, match="has the splits train, val already"):
        make(raw, tmp_path, val_share=0.2)
    assert list(make(raw, tmp_path).splits) == ["train", "val"]


def test_a_folder_with_nothing_to_make_a_set_of(tmp_path):
    (tmp_path / "empty" / "inner").mkdir(parents=True)
    write_text(tmp_path / "other" / "letter.doc", "dear")
    for name in ("empty", "other"):
        with pytest.raises(MrtError) as error:
            recipe([tmp_path / name], tmp_path / "data")
        assert error.value.message == f"--raw {tmp_path / name}: no images, labels or videos in it"
        assert len(str(error.value).splitlines()) == 2
