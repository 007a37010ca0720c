"""What only the whole set tells: turned photos, units, shared images, and what gave no box."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from trees import coco_content, objects, voc_xml, write_image, write_text

from mrt.data.convert.custom import recipe
from mrt.data.convert.recipe import Picture, Recipe, Split, Thing, prepare, rehearse
from mrt.errors import MrtError


def make(raw, tmp_path, allow_empty=False, **options):
    """The card of the set that is made from ``raw``."""
    how = {"workers": 1, "overwrite": True, "allow_empty": allow_empty}
    return prepare(recipe([raw], tmp_path / "data", **options), tmp_path / "data", "own", **how)[0]


def coco(tmp_path, boxes, size=(40, 30), orientation=None, claimed=(40, 30), name="train"):
    """A COCO set: a photo for each list of boxes."""
    images = [
        {"id": n, "file_name": f"{name}{n}.jpg", "width": claimed[0], "height": claimed[1]}
        for n in range(len(boxes))
    ]
    for entry in images:
        write_image(tmp_path / "raw" / entry["file_name"], size, orientation)
    annotations = [
        {"id": 99, "image_id": n, "category_id": 1, "bbox": box}
        for n, found in enumerate(boxes)
        for box in found
    ]
    annotations = [{**entry, "id": number} for number, entry in enumerate(annotations)]
    write_text(tmp_path / "raw" / f"{name}.json", json.dumps(coco_content(images, annotations)))
    return tmp_path / "raw"


def notes(card):
    return "\n".join(card.details.get("notes", ()))


@pytest.mark.parametrize(
    ("claimed", "boxes", "size", "said"),
    [
        # for the shown picture
        (
            (40, 30),
            [[[5, 20, 10, 18]], [[1, 1, 2, 2]]],
            "30x40",
            "read the other way round than their size says",
        ),
        # for the stored one
        (
            (30, 40),
            [[[20, 5, 18, 10]], [[1, 1, 2, 2]]],
            "40x30",
            "read the other way round than their size says",
        ),
        ((40, 30), [[[20, 5, 18, 10]], [[1, 1, 2, 2]]], "40x30", "the boxes of 1 fit their pictures only so"),
        ((30, 40), [[[5, 20, 10, 18]], [[1, 1, 2, 2]]], "30x40", "the boxes of 1 fit their pictures only so"),
        ((40, 30), [[[1, 1, 2, 2]], [[3, 3, 2, 2]]], "40x30", "no box tells which way"),
        # sticks out of both
        ((40, 30), [[[20, 5, 25, 40]], [[3, 3, 2, 2]]], "40x30", "no box tells which way"),
    ],
)
def test_turned_photos_are_read_the_way_their_boxes_fit(tmp_path, claimed, boxes, size, said):
    card = make(coco(tmp_path, boxes, orientation=6, claimed=claimed), tmp_path)
    assert card.image_sizes == {size: 2} and said in notes(card)


def test_turned_photos_of_which_some_say_this_and_some_that(tmp_path):
    card = make(
        coco(tmp_path, [[[5, 20, 10, 18]], [[20, 5, 18, 10]], [[1, 1, 2, 2]]], orientation=8), tmp_path
    )
    assert [entry["width"] for entry in json.loads(card.annotations_path("train").read_text())["images"]] == [
        30,
        40,
        40,
    ]
    assert "those of 1 only the other way" in "".join(card.details["warnings"])


def test_shares_fit_a_turned_photo_either_way(tmp_path):
    write_image(tmp_path / "raw" / "images" / "a.jpg", (40, 30), orientation=6)
    write_text(tmp_path / "raw" / "labels" / "a.txt", "0 0.5 0.5 0.5 0.5")
    write_text(tmp_path / "raw" / "classes.txt", "car")
    card = make(tmp_path / "raw", tmp_path)
    assert objects(card) == {"a.jpg": [("car", 7.5, 10, 15, 20)]} and "no box tells which way" in notes(card)


def test_voc_boxes_turn_a_photo_too(tmp_path):
    write_image(tmp_path / "raw" / "a.jpg", (40, 30), orientation=6)
    write_text(tmp_path / "raw" / "a.xml", voc_xml([("car", 6, 21, 15, 38)], size=(40, 30)))
    assert objects(make(tmp_path / "raw", tmp_path)) == {"a.jpg": [("car", 5, 20, 10, 18)]}


CORNERS = [[20, 15, 38, 28], [10, 10, 39, 29], [30, 20, 40, 30]]


@pytest.mark.parametrize(
    ("boxes", "asked", "expected"),
    [
        ([[0.5, 0.5, 0.25, 0.5]], "auto", [(20, 15, 10, 15)]),  # cannot be corners
        ([[0.1, 0.2, 0.3, 0.4]], "auto", "all 1 boxes lie within 0 to 1(.|\n)*--boxes pixels, shares"),
        ([[0.1, 0.2, 0.3, 0.4]], "shares", [(4, 6, 12, 12)]),
        ([[0.1, 0.2, 0.3, 0.4]], "pixels", [(0.1, 0.2, 0.3, 0.4)]),
        ([[0, 0, 1, 1]], "auto", "lie within 0 to 1"),  # the whole image, or a pixel
        ([[0.5, 0.5, 0.25, 0.5], [0, 0, 20, 10]], "auto", [(0.5, 0.5, 0.25, 0.5), (0, 0, 20, 10)]),
        (CORNERS, "auto", "3 of 3 boxes stick out(.|\n)*all fit as corners(.|\n)*corners"),
        (CORNERS, "corners", [(20, 15, 18, 13), (10, 10, 29, 19), (30, 20, 10, 10)]),
        ([*CORNERS[:2], [5, 5, 3, 3]], "auto", [(20, 15, 20, 15), (10, 10, 30, 20), (5, 5, 3, 3)]),
    ],
)
def test_units_of_coco_boxes(tmp_path, boxes, asked, expected):
    raw = coco(tmp_path, [boxes])
    if isinstance(expected, str):
        with pytest.raises(MrtError, match=expected):
            make(raw, tmp_path, boxes=asked)
    else:
        assert objects(make(raw, tmp_path, boxes=asked)) == {
            "train0.jpg": [("car", *box) for box in expected]
        }


@pytest.mark.parametrize(
    ("lines", "asked", "expected"),
    [
        # no corners: 10 < 20
        (
            ["0 20 15 10 8", "0 4 4 8 8", "0 36 26 8 8"],
            "auto",
            [(15, 11, 10, 8), (0, 0, 8, 8), (32, 22, 8, 8)],
        ),
        (
            ["0 20 15 38 28", "0 10 10 39 29", "0 30 20 40 30"],
            "auto",
            [(20, 15, 18, 13), (10, 10, 29, 19), (30, 20, 10, 10)],
        ),
        # one box is not enough
        (["0 20 15 10 8"], "auto", "1 of 1 boxes have numbers outside 0 to 1(.|\n)*--boxes pixels"),
        (["0 20 15 10 8"], "pixels", [(15, 11, 10, 8)]),
        (["0 10 10 20 20"], "corners", [(10, 10, 10, 10)]),
        (["0 20 15 10 8", "0 0.5 0.5 0.5 0.5", "0 30 20 8 8"], "auto", "2 of 3 boxes"),
        (
            ["0 20 15 10 8", "0 0.5 0.5 0.5 0.5", "0 0.25 0.25 0.5 0.5"],
            "auto",
            [(10, 7.5, 20, 15), (0, 0, 20, 15)],
        ),
        (["0 20 15 10 8", "0 30 20 8 8", "0 0.5 0.5 0.5 0.5"], "shares", [(10, 7.5, 20, 15)]),
    ],
)
def test_units_of_yolo_numbers(tmp_path, lines, asked, expected):
    write_image(tmp_path / "raw" / "images" / "a.jpg", (40, 30))
    write_text(tmp_path / "raw" / "labels" / "a.txt", "\n".join(lines))
    write_text(tmp_path / "raw" / "classes.txt", "car\nbus")
    if isinstance(expected, str):
        with pytest.raises(MrtError, match=expected):
            make(tmp_path / "raw", tmp_path, boxes=asked)
        return
    card = make(tmp_path / "raw", tmp_path, boxes=asked, class_map={"car": "vehicle"}, classes=("vehicle",))
    assert objects(card) == {"a.jpg": [("vehicle", *box) for box in expected]}, (
        "classes are chosen in the second reading, too"
    )


def test_what_gave_no_box_is_said_with_shares_reasons_and_examples(tmp_path):
    card = make(
        coco(tmp_path, [[[1, 1, 5, 5]], [[50, 1, 5, 5], [1, 1, 0, 5]], [[60, 1, 5, 5]], []]), tmp_path
    )
    assert card.details["losses"] == [
        "train: 3 of 4 annotation records (75 %) gave no box: 2 x box outside the "
        "image, 1 x box without area",
        "train: box outside the image: train1.jpg: car at 50, 1, 55, 6, train2.jpg: car at 60, 1, 65, 6",
        "train: box without area: train1.jpg: car at 1, 1, 1, 6",
    ]
    assert "train: 3 of 4 images (75 %) have no box: train1.jpg, train2.jpg, train3.jpg" in notes(card)


@pytest.mark.parametrize("crowd", [False, True])
def test_a_labelled_set_without_a_box_is_refused(tmp_path, crowd):
    raw = coco(tmp_path, [[[50, 1, 5, 5] if not crowd else [1, 1, 5, 5]]])
    if crowd:
        content = json.loads((raw / "train.json").read_text())
        content["annotations"][0]["iscrowd"] = 1
        write_text(raw / "train.json", json.dumps(content))
    with pytest.raises(
        MrtError, match=r"without a single box that counts \(1 annotation records read\)(.|\n)*--allow-empty"
    ) as error:
        make(raw, tmp_path)
    assert ("box outside the image" in str(error.value)) != crowd and not (tmp_path / "data" / "own").exists()
    card = make(raw, tmp_path, allow_empty=True)
    assert (card.split("train").num_boxes, card.split("train").num_ignored) == (0, int(crowd))
    assert make(raw, tmp_path, format="images").split("train").num_images == 1


def split(*numbers):
    return Split(
        Path("/raw"), numbers, lambda number: Picture(f"{number}.jpg", 9, 9, [Thing("car", (1, 1, 2, 2), 4)])
    )


@pytest.mark.parametrize(
    ("splits", "left", "said"),
    [
        (
            {"train": (1, 2, 3), "test": (3, 4)},
            2,
            "1 images are in train and in test: taken out of train: 3.jpg",
        ),
        ({"train": (1, 2, 3), "val": (2, 3), "test": (3,)}, 1, "1 images are in train and in val"),
        ({"train": (1, 2), "val": (1, 2, 3)}, 2, "train and val hold the same images"),
        ({"train": (1, 2), "test": (1, 2, 3)}, None, "all 2 images of the split train are in test too"),
    ],
)
def test_no_image_of_test_or_val_is_in_train(tmp_path, splits, left, said):
    found = Recipe("d", ("car",), {name: split(*numbers) for name, numbers in splits.items()}, "made up")
    if left is None:
        with pytest.raises(MrtError, match=said):
            prepare(found, tmp_path, "s", workers=1)
        return
    card, warnings = prepare(found, tmp_path, "s", workers=1)
    assert card.split("train").num_images == left and said in "\n".join(warnings)
    assert card.split("train").skipped == (
        {} if left == 2 and "same" in said else {"image of a held-out split too": len(splits["train"]) - left}
    )


def test_a_rehearsal_leaves_nothing(tmp_path):
    raw = coco(tmp_path, [[[1, 1, 5, 5]], []])
    before = sorted(tmp_path.rglob("*"))
    card, _ = rehearse(recipe([raw], tmp_path / "data"), "own", workers=1)
    assert card.split("train").num_boxes == 1 and card.details["format"] == "coco"
    assert sorted(tmp_path.rglob("*")) == before
