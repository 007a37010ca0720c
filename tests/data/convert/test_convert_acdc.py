"""ACDC from its two zip archives, or unpacked; all conditions, or some."""

from __future__ import annotations

import json
import pickle

import pytest
from trees import objects, pack, write_image, write_text

from mrt.data.check import check_set
from mrt.data.convert import acdc
from mrt.data.convert.recipe import prepare
from mrt.errors import MrtError

CATEGORIES = {
    24: "person",
    25: "rider",
    26: "car",
    27: "truck",
    28: "bus",
    31: "train",
    32: "motorcycle",
    33: "bicycle",
}


def frame(condition, split, number=41, sequence="GOPR0475"):
    return f"{condition}/{split}/{sequence}/{sequence}_frame_{number:06}_rgb_anon.png"


def label_file(root, name, frames):
    """frames: path below rgb_anon -> (category id, x, y, w, h[, crowd])."""
    images = [{"id": n, "file_name": file, "width": 40, "height": 30} for n, file in enumerate(frames)]
    annotations = [
        {
            "id": 10 * n + k,
            "image_id": n,
            "category_id": category,
            "bbox": box,
            "area": 7,
            "iscrowd": int(bool(crowd)),
            "segmentation": [],
        }
        for n, boxes in enumerate(frames.values())
        for k, (category, *box, crowd) in enumerate(boxes)
    ]
    categories = [
        {"id": number, "name": label, "supercategory": "human"} for number, label in CATEGORIES.items()
    ]
    write_text(
        root / "gt_detection" / name,
        json.dumps({"images": images, "annotations": annotations, "categories": categories}),
    )


LABELS = {
    "train": {
        frame("fog", "train"): [(26, 1, 2, 10, 5, 0), (24, 0.5, 1, 4, 6, 1)],
        frame("night", "train"): [(33, 3, 3, 5, 5, 0)],
        frame("rain", "train"): [(28, -4, 3, 10, 5, 0), (32, 50, 1, 5, 5, 0)],
        frame("snow", "train"): [],
    },
    "val": {frame(condition, "val"): [(25, 1, 1, 2, 3, 0)] for condition in acdc.CONDITIONS},
}
FOG = {"fog": [("car", 1, 2, 10, 5), ("~person", 0.5, 1, 4, 6)]}


def official(warnings):
    """The warnings that compare with the owners' numbers."""
    return [line for line in warnings if "official" in line]


@pytest.fixture
def raw(tmp_path):
    """rgb_anon and gt_detection as they are unpacked, with everything that must not be taken.

    That is test, the clear twins and their labels.
    """
    folder = tmp_path / "raw"
    for condition in acdc.CONDITIONS:
        for split in ("train", "val", "test"):
            write_image(folder / "rgb_anon" / frame(condition, split))
            clear = frame(condition, f"{split}_ref").replace("_rgb_anon", "_rgb_ref_anon")
            write_image(folder / "rgb_anon" / clear)
            label_file(
                folder,
                f"{condition}/instancesonly_{condition}_test_image_info.json",
                {frame(condition, "test"): []},
            )
        for split in ("train", "val"):
            own = {file: boxes for file, boxes in LABELS[split].items() if file.startswith(condition)}
            everything = (condition, split) == ("rain", "train")  # the owners' file lists all four conditions
            listed = LABELS[split] if everything else own
            label_file(folder, f"{condition}/instancesonly_{condition}_{split}_gt_detection.json", listed)
    for split in ("train", "val"):
        label_file(folder, f"instancesonly_{split}_gt_detection.json", LABELS[split])
        clear = frame("fog", f"{split}_ref").replace("_rgb_anon", "_rgb_ref_anon")
        label_file(folder, f"instancesonly_{split}_gt_ref_detection.json", {clear: [(26, 1, 1, 9, 9, 0)]})
    return folder


@pytest.fixture
def convert(tmp_path):
    def run(*places, **options):
        root = tmp_path / "data"
        return prepare(acdc.recipe(list(places), root, **options), root, "acdc", overwrite=True, workers=1)

    return run


def by_condition(card, split="train"):
    return {file.partition("/")[0]: found for file, found in objects(card, split).items()}


def test_all_conditions_with_the_owners_boxes(raw, convert):
    card, warnings = convert(raw)
    assert card.classes == tuple(CATEGORIES.values())
    assert by_condition(card) == FOG | {
        "night": [("bicycle", 3, 3, 5, 5)],
        "rain": [("bus", 0, 3, 6, 5)],
        "snow": [],
    }
    assert by_condition(card, "val") == {key: [("rider", 1, 1, 2, 3)] for key in acdc.CONDITIONS}
    assert card.splits["train"].skipped == {"box outside the image": 1} and card.splits["val"].skipped == {}
    assert official(warnings) == [
        "train: 4 images instead of the official 1600",
        "val: 4 images instead of the official 406",
    ]
    assert (card.domain, card.details["conditions"]) == ("adverse", ["fog", "night", "rain", "snow"])
    areas = [a["area"] for a in json.loads(card.annotations_path("train").read_text())["annotations"]]
    assert set(areas) == {7}  # the owners' area: pixels of the object
    assert check_set(card, workers=1) == []


@pytest.mark.parametrize("combined", [True, False])
@pytest.mark.parametrize("condition", acdc.CONDITIONS)
def test_one_condition_whatever_a_label_file_lists(raw, convert, condition, combined):
    if not combined:
        for file in (raw / "gt_detection").glob("*.json"):
            file.unlink()
    card, warnings = convert(raw, conditions=(condition,))
    everything = FOG | {"night": [("bicycle", 3, 3, 5, 5)], "rain": [("bus", 0, 3, 6, 5)], "snow": []}
    name = frame(condition, "train").removeprefix(f"{condition}/train/GOPR0475/")
    assert objects(card) == {name: everything[condition]}
    assert card.domain == condition
    val = 106 if condition == "night" else 100
    assert official(warnings) == [
        "train: 1 images instead of the official 400",
        f"val: 1 images instead of the official {val}",
    ]


def test_label_files_of_the_conditions_are_the_same_as_the_one_of_all(raw, convert):
    together = objects(convert(raw)[0])
    for file in (raw / "gt_detection").glob("*.json"):
        file.unlink()
    assert objects(convert(raw)[0]) == together
    assert list(by_condition(convert(raw, conditions=("snow", "fog"))[0])) == ["fog", "snow"]
    assert list(objects(convert(raw / "rgb_anon" / "fog", raw / "gt_detection", conditions=("fog",))[0])) == [
        "GOPR0475_frame_000041_rgb_anon.png"
    ]


def test_archives_as_they_come(tmp_path, raw, convert):
    for part, archive in (
        ("rgb_anon", "rgb_anon_trainvaltest.zip"),
        ("gt_detection", "gt_detection_trainval.zip"),
    ):
        (tmp_path / part).mkdir()
        (raw / part).rename(tmp_path / part / part)
        pack(tmp_path / part, tmp_path / "raw" / archive)
    card, _ = convert(raw)
    assert by_condition(card)["fog"] == FOG["fog"]
    assert card.images_root("train") == raw / "rgb_anon_trainvaltest.zip" / "rgb_anon"
    assert objects(convert(*sorted(raw.iterdir()))[0]) == objects(card)


def test_classes_in_the_order_asked_for(raw, convert):
    card, _ = convert(raw, classes=("bicycle", "car"))
    assert card.classes == ("bicycle", "car")
    assert by_condition(card)["fog"] == [("car", 1, 2, 10, 5)]
    assert card.splits["train"].skipped == {"class not asked for": 3}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"conditions": ("fog", "hail")}, "condition is 'hail': ACDC has fog, night, rain, snow"),
        ({"conditions": ()}, "condition is empty"),
        ({"classes": ("caravan",)}, "classes is 'caravan': ACDC has person, rider"),
    ],
)
def test_an_option_that_cannot_be(raw, convert, options, message):
    with pytest.raises(MrtError) as caught:
        convert(raw, **options)
    assert message in caught.value.message


def test_half_of_the_downloads(raw, convert):
    with pytest.raises(MrtError, match="holds no ACDC labels") as caught:
        convert(raw / "rgb_anon")
    assert "gt_detection_trainval.zip" in caught.value.hint
    with pytest.raises(MrtError, match=r"holds no ACDC images \(\{fog\}") as caught:
        convert(raw / "gt_detection", conditions=("fog",))
    assert "rgb_anon_trainvaltest.zip" in caught.value.hint
    for file in (raw / "gt_detection").rglob("*_val_*.json"):
        file.unlink()
    card, warnings = convert(raw)
    assert (list(card.splits), card.details["missing_splits"]) == (["train"], ["val"])
    assert "val: nothing found of the official 406 images" in warnings


def test_missing_and_damaged_files_are_counted(raw, convert):
    images = raw / "rgb_anon"
    (images / frame("fog", "train")).unlink()
    damaged = images / frame("night", "train")
    damaged.write_bytes(damaged.read_bytes()[:-200])
    write_image(images / frame("rain", "train"), size=(30, 40))
    write_image(images / frame("snow", "train", number=99))
    card, warnings = convert(raw)
    assert list(by_condition(card)) == ["snow"]
    assert card.splits["train"].skipped == {
        "labels missing": 1,
        "image missing": 1,
        "image cut short or unreadable": 1,
        "image size differs from the annotation's": 1,
    }
    assert any("image missing, the first is fog/train/GOPR0475" in line for line in warnings)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda coco: coco.pop("categories"), "has no list 'categories'"),
        (
            lambda coco: coco["images"].append({"id": True, "file_name": "a.png"}),
            "has no usable id and file_name",
        ),
        (lambda coco: coco["images"].append({"id": 0, "file_name": "b.png"}), "image id 0 is both"),
        (
            lambda coco: coco["images"].append({"id": 77, "file_name": "../b.png"}),
            "not a path below the image folder",
        ),
        (lambda coco: coco["categories"].append({"id": 99}), "has no usable id and name"),
    ],
)
def test_a_label_file_that_cannot_be_used_is_an_error_that_names_it(tmp_path, raw, convert, change, message):
    place = raw / "gt_detection" / "instancesonly_train_gt_detection.json"
    content = json.loads(place.read_text())
    change(content)
    place.write_text(json.dumps(content))
    with pytest.raises(MrtError) as caught:
        convert(raw)
    assert str(place) in caught.value.message and message in caught.value.message
    place.write_text(json.dumps(content)[:-9])
    with pytest.raises(MrtError, match="not valid JSON"):
        convert(raw)
    assert not (tmp_path / "data" / "acdc").exists()


def test_annotations_that_cannot_be_are_counted(raw, convert):
    place = raw / "gt_detection" / "instancesonly_train_gt_detection.json"
    content = json.loads(place.read_text())
    common = {"image_id": 3, "category_id": 26, "area": 7, "iscrowd": 0}
    content["annotations"] = [
        common | {"bbox": [1, 1, 0, 5]},
        common | {"bbox": [1, 1, float("nan"), 5]},
        common | {"bbox": [1, 1, 5]},
        common | {"category_id": 3},
        common | {"image_id": [3]},
        "car",
        common | {"bbox": [2, 3, 4, 5], "area": None},
    ]
    place.write_text(json.dumps(content))
    card, _ = convert(raw)
    assert by_condition(card)["snow"] == [("car", 2, 3, 4, 5)]
    assert json.loads(card.annotations_path("train").read_text())["annotations"][0]["area"] == 20
    assert card.splits["train"].skipped == {
        "annotation of an unknown image": 2,
        "annotation of an unknown category": 1,
        "box without area": 1,
        "box with a number that is not finite": 1,
        "no box": 1,
    }


def test_jobs_can_go_to_other_processes(tmp_path, raw):
    split = acdc.recipe([raw], tmp_path / "data").splits["train"]
    convert, job = pickle.loads(pickle.dumps((split.convert, split.jobs[0])))
    assert convert(job).things[0].label == "car"
