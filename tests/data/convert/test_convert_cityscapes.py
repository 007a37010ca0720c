"""Cityscapes: boxes of the visible pixels, the same from instance images and from polygons."""

from __future__ import annotations

import json
import pickle
import random
import tarfile

import numpy as np
import pytest
from cityscapes_tree import (
    CITYSCAPES_BOXES,
    cityscapes_frame,
    cityscapes_ids,
    cityscapes_objects,
    rectangle,
    write_array,
    write_json,
    zip_tree,
)

from mrt.data.card import read_card
from mrt.data.check import check_set
from mrt.data.convert.cityscapes import (
    CLASSES,
    LABEL_IDS,
    convert,
    extents,
    paint,
    read_labels,
    recipe,
    visible_things,
)
from mrt.data.convert.recipe import Picture, Skipped, Thing, prepare
from mrt.errors import MrtError

FROM_POLYGONS = {
    "class not asked for": 1,
    "object fully hidden": 1,
    "box outside the image": 1,
    "unknown label 'spaceship'": 1,
}
FROM_IDS = {"class not asked for": 1, "object fully hidden": 1}


def boxes(picture):
    assert isinstance(picture, Picture), picture
    return [(thing.label, thing.box, thing.area, thing.ignored) for thing in picture.things]


def only_picture(made, split="val"):
    (job,) = made.splits[split].jobs
    return convert(pickle.loads(pickle.dumps(job)))


@pytest.mark.parametrize("instance_ids", [True, False])
def test_boxes_of_the_visible_pixels(tmp_path, instance_ids):
    cityscapes_frame(
        tmp_path, "val", "bonn", "bonn_000000_000019", instance_ids=instance_ids, polygons=not instance_ids
    )
    made = recipe([tmp_path], tmp_path / "data")
    picture = only_picture(made)
    assert boxes(picture) == CITYSCAPES_BOXES
    assert picture.skipped == (FROM_IDS if instance_ids else FROM_POLYGONS)
    assert (picture.file, picture.width, picture.height) == (
        "bonn/bonn_000000_000019_leftImg8bit.png",
        64,
        32,
    )
    assert (made.domain, made.classes, made.expected) == (
        "clear",
        CLASSES,
        {"train": {"images": 2975}, "val": {"images": 500}},
    )
    assert made.details["missing_splits"] == ["train"]


def test_the_painted_image_is_that_of_the_owners_rules(tmp_path):
    labels = paint({"imgWidth": 64, "imgHeight": 32, "objects": cityscapes_objects()}, tmp_path / "a.json")
    assert np.array_equal(labels.ids, cityscapes_ids())


def test_instance_images_are_taken_where_they_are(tmp_path):
    cityscapes_frame(tmp_path, "val", "bonn", "bonn_000000_000019", instance_ids=True)
    cityscapes_frame(tmp_path, "val", "bonn", "bonn_000001_000019")
    used = [job.labels.name for job in recipe([tmp_path], tmp_path / "data").splits["val"].jobs]
    assert used == ["bonn_000000_000019_gtFine_instanceIds.png", "bonn_000001_000019_gtFine_polygons.json"]


def test_classes_in_the_order_asked_for(tmp_path):
    cityscapes_frame(tmp_path, "val", "bonn", "bonn_000000_000019")
    picture = only_picture(recipe([tmp_path], tmp_path / "data", classes=("trailer", "person")))
    assert boxes(picture) == [("person", (0, 20, 4, 12), 48, False), ("trailer", (34, 20, 5, 5), 25, False)]
    # two cars, the cars' group and the rider outside; the hidden person is of a class that was asked for
    assert picture.skipped == {
        "class not asked for": 4,
        "object fully hidden": 1,
        "unknown label 'spaceship'": 1,
    }


def layouts(root):
    """The same raw files in several layouts.

    One folder, the folders inside it, zip archives, images unpacked and labels not, a tar archive.
    """
    images = zip_tree(root / "raw", root / "leftImg8bit_trainvaltest.zip", ["leftImg8bit"])
    labels = zip_tree(root / "raw", root / "gtFine_trainvaltest.zip", ["gtFine"])
    (root / "packed").mkdir()
    with tarfile.open(root / "packed" / "all.tgz", "w:gz") as archive:
        archive.add(root / "raw", ".")
    return [
        [root / "raw"],
        [root / "raw" / "leftImg8bit", root / "raw" / "gtFine"],
        [images, labels],
        [root],  # a folder with the archives in it, and the unpacked files
        [root / "raw" / "leftImg8bit", labels],
        [root / "packed"],
    ]


def test_folders_and_archives_give_the_same_set(tmp_path):
    for split, city, name in (
        ("train", "aachen", "aachen_000000_000019"),
        ("train", "ulm", "ulm_000000_000019"),
        ("val", "bonn", "b_0_1"),
    ):
        cityscapes_frame(
            tmp_path / "raw", split, city, name, instance_ids=city == "ulm", polygons=city != "ulm"
        )
    cityscapes_frame(tmp_path / "raw", "test", "berlin", "berlin_000000_000019")
    (tmp_path / "raw" / "leftImg8bit" / "train" / "ulm" / "._ulm_000000_000019_leftImg8bit.png").write_bytes(
        b"not an image"
    )
    contents = []
    for number, raw in enumerate(layouts(tmp_path)):
        card, warnings = prepare(recipe(raw, tmp_path / "data"), tmp_path / "data", f"set{number}", workers=1)
        assert check_set(card, workers=1) == []
        assert warnings == [
            "train: 2 images instead of the official 2975",
            "val: 1 images instead of the official 500",
        ]
        coco = {split: json.loads(card.annotations_path(split).read_text()) for split in ("train", "val")}
        contents.append(
            {split: (part["images"], part["annotations"], part["categories"]) for split, part in coco.items()}
        )
    assert [entry["file_name"] for entry in contents[0]["train"][0]] == [
        "aachen/aachen_000000_000019_leftImg8bit.png",
        "ulm/ulm_000000_000019_leftImg8bit.png",
    ]
    assert all(content == contents[0] for content in contents[1:])
    first = contents[0]["val"]
    assert [
        (a["id"], a["image_id"], a["category_id"], tuple(a["bbox"]), a["area"], a["iscrowd"])
        for a in first[1]
    ] == [
        (number, 1, CLASSES.index(label) + 1, box, area, int(ignored))
        for number, (label, box, area, ignored) in enumerate(CITYSCAPES_BOXES, start=1)
    ]


def test_what_is_missing_or_broken_is_skipped_and_named(tmp_path):
    for number in range(5):
        cityscapes_frame(tmp_path, "val", "bonn", f"bonn_{number}", polygons=number != 0, image=number != 1)
    images = tmp_path / "leftImg8bit" / "val" / "bonn"
    (images / "bonn_2_leftImg8bit.png").write_bytes((images / "bonn_3_leftImg8bit.png").read_bytes()[:-20])
    write_array(images / "bonn_3_leftImg8bit.png", np.zeros((32, 63, 3), np.uint8))
    made = recipe([tmp_path], tmp_path / "data")
    results = [convert(job) for job in made.splits["val"].jobs]
    assert results[:4] == [
        Skipped("labels missing", "bonn/bonn_0_leftImg8bit.png"),
        Skipped("image missing", "bonn/bonn_1_leftImg8bit.png"),
        Skipped("image cut short or unreadable", "bonn/bonn_2_leftImg8bit.png"),
        Skipped("image size differs from the annotation's", "bonn/bonn_3_leftImg8bit.png"),
    ]
    assert boxes(results[4]) == CITYSCAPES_BOXES
    card, _ = prepare(made, tmp_path / "data", "cityscapes", workers=1)
    assert card.split("val").skipped == {result.reason: 1 for result in results[:4]} | FROM_POLYGONS


def test_polygons_that_cannot_be_painted_are_skipped_but_numbered(tmp_path):
    objects = [
        {"label": "car", "polygon": [[1, 1]]},
        {"label": "car", "polygon": []},
        {"label": "car", "polygon": [[1, 1], [float("nan"), 4], [4, 4]]},
        {"label": "car", "polygon": [[1, 1], [10**400, 4], [4, 4]]},
        {"label": "car", "polygon": rectangle(2, 2, 3, 3)},
    ]
    labels = paint({"imgWidth": 8, "imgHeight": 8, "objects": objects}, tmp_path / "a.json")
    assert labels.skipped == {"box without area": 2, "box with a number that is not finite": 2}
    assert extents(labels.ids) == {26004: ((2, 2, 2, 2), 4)}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"imgHeight": 32, "imgWi', "not valid JSON"),
        (b'{"imgHeight": 32, "\xe9": 1}', "not UTF-8"),
        (b"[1, 2]", "holds a JSON list"),
        (b'{"imgHeight": 32, "objects": []}', "imgWidth is None"),
        (b'{"imgHeight": 32, "imgWidth": 0, "objects": []}', "imgWidth is 0"),
        (b'{"imgHeight": 99999999, "imgWidth": 99999999, "objects": []}', "99999999x99999999"),
        (b'{"imgHeight": 32, "imgWidth": 64}', "objects is NoneType"),
        (b'{"imgHeight": 32, "imgWidth": 64, "objects": [{"polygon": []}]}', "objects[0].label"),
        (
            b'{"imgHeight": 32, "imgWidth": 64, "objects": [{"label": "car", "polygon": [["1", "2"]]}]}',
            "objects[0].polygon",
        ),
        (
            b'{"imgHeight": 32, "imgWidth": 64, "objects": [{"label": "car", "polygon": 3}]}',
            "objects[0].polygon",
        ),
    ],
)
@pytest.mark.parametrize("zipped", [False, True])
def test_a_label_file_that_cannot_be_used_is_named(tmp_path, content, message, zipped):
    raw = tmp_path / "raw"
    cityscapes_frame(raw, "val", "bonn", "bonn_000000_000019")
    (raw / "gtFine/val/bonn/bonn_000000_000019_gtFine_polygons.json").write_bytes(content)
    if zipped:
        raw = zip_tree(raw, tmp_path / "all.zip")
    with pytest.raises(MrtError) as caught:
        prepare(recipe([raw], tmp_path / "data"), tmp_path / "data", "cityscapes", workers=1)
    assert message in caught.value.message
    assert "bonn_000000_000019_gtFine_polygons.json" in caught.value.message
    assert not (tmp_path / "data" / "cityscapes").exists()


@pytest.mark.parametrize(
    "content", [b"{", b"[]", b'{"imgWidth": 64, "imgHeight": 1e9, "objects": 5}', b"\xff"]
)
def test_one_bad_label_file_does_not_end_the_conversion_of_the_others(tmp_path, content):
    raw, root = tmp_path / "raw", tmp_path / "data"
    for name in ("bonn_000000_000019", "bonn_000001_000019"):
        cityscapes_frame(raw, "val", "bonn", name)
    (raw / "gtFine/val/bonn/bonn_000000_000019_gtFine_polygons.json").write_bytes(content)
    card, warnings = prepare(recipe([raw], root), root, "cityscapes", workers=1)
    assert card.split("val").num_images == 1
    assert card.split("val").skipped["annotation cut short or unreadable"] == 1
    assert any("bonn_000000_000019_gtFine_polygons.json" in line for line in warnings)


def test_names_that_cannot_be_written_do_not_end_it_at_its_last_step(tmp_path):
    raw, root = tmp_path / "raw", tmp_path / "data"
    cityscapes_frame(raw, "val", "bonn", "bonn_000000_000019")
    cityscapes_frame(raw, "val", "b\udcffn", "bonn_000000_000019")
    objects = [{"label": "\ud800", "polygon": [[0, 0], [9, 0], [9, 9]]}, *cityscapes_objects()]
    content = {"imgHeight": 32, "imgWidth": 64, "objects": objects}
    write_json(raw / "gtFine/val/bonn/bonn_000000_000019_gtFine_polygons.json", content)
    card, warnings = prepare(recipe([raw], root), root, "cityscapes", workers=1)
    assert card.split("val").skipped["file name that is not UTF-8"] == 1 and card.split("val").num_images == 1
    assert check_set(read_card(card.folder), workers=1) == []
    assert all(line.encode("utf-8") for line in warnings)
    (raw / "leftImg8bit").rename(tmp_path / "i\udcff")
    with pytest.raises(MrtError, match="name is not UTF-8"):
        prepare(recipe([raw / "gtFine", tmp_path / "i\udcff"], root), root, "other", workers=1)


def test_labels_for_an_image_of_another_size_are_not_painted(tmp_path):
    raw, root = tmp_path / "raw", tmp_path / "data"
    for name in ("bonn_000000_000019", "bonn_000001_000019"):
        cityscapes_frame(raw, "val", "bonn", name)
    content = {"imgHeight": 16_000, "imgWidth": 16_000, "objects": []}  # a gigabyte if it were painted
    write_json(raw / "gtFine/val/bonn/bonn_000000_000019_gtFine_polygons.json", content)
    card, _ = prepare(recipe([raw], root), root, "cityscapes", workers=1)
    assert card.split("val").skipped["image size differs from the annotation's"] == 1


def test_an_instance_image_that_cannot_be_used_is_named(tmp_path):
    path = write_array(tmp_path / "a_gtFine_instanceIds.png", np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(MrtError, match=r"a_gtFine_instanceIds\.png: mode is RGB"):
        read_labels(path)
    whole = write_array(path, cityscapes_ids()).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(MrtError, match=r"a_gtFine_instanceIds\.png: cannot be read"):
        read_labels(path)


def test_too_many_objects_of_a_class_are_refused(tmp_path):
    objects = [{"label": "car", "polygon": rectangle(0, 0, 1, 1)}] * 1001
    with pytest.raises(MrtError, match=r"objects\[1000\] is car number 1001"):
        paint({"imgWidth": 8, "imgHeight": 8, "objects": objects}, tmp_path / "a.json")


def test_missing_archives_are_asked_for(tmp_path):
    cityscapes_frame(tmp_path / "a", "val", "bonn", "bonn_0", image=False)
    cityscapes_frame(tmp_path / "b", "val", "bonn", "bonn_0", polygons=False)
    with pytest.raises(MrtError) as caught:
        recipe([tmp_path / "a"], tmp_path / "data")
    assert "leftImg8bit_trainvaltest.zip" in caught.value.hint
    with pytest.raises(MrtError) as caught:
        recipe([tmp_path / "b"], tmp_path / "data")
    assert "gtFine_trainvaltest.zip" in caught.value.hint


@pytest.mark.parametrize(
    "options",
    [
        {"classes": ("car", "spaceship")},
        {"classes": ("road",)},
        {"classes": ()},
        {"classes": ("car", "car")},
        {"splits": ("test",)},
    ],
)
def test_options_that_cannot_be(tmp_path, options):
    cityscapes_frame(tmp_path, "val", "bonn", "bonn_0")
    with pytest.raises(MrtError):
        recipe([tmp_path], tmp_path / "data", **options)


def test_extents_against_a_slow_count():
    rng = np.random.default_rng(0)
    values = np.array([0, 7, 24, 26, 33, 34, 999, 23999, 24000, 26001, 33999, 34000], np.uint16)
    for shape in ((1, 1), (1, 40), (40, 1), (17, 23)):
        ids = values[rng.integers(len(values), size=shape)]
        expected = {}
        for number in (24, 26, 33, 24000, 26001, 33999):
            y, x = np.nonzero(ids == number)
            if y.size:
                expected[number] = ((x.min(), y.min(), np.ptp(x) + 1, np.ptp(y) + 1), y.size)
        assert extents(ids) == expected


def random_annotation(rng):
    """An annotation like those of annotators' tools, but wilder.

    Whole and fractional coordinates, some outside, lines, points, groups.
    """
    width, height = rng.randint(40, 200), rng.randint(30, 150)
    names = [
        *LABEL_IDS,
        "cargroup",
        "persongroup",
        "bicyclegroup",
        "skygroup",
        "license plategroup",
    ] + 4 * list(CLASSES)
    objects = []
    for _ in range(rng.randint(0, 60)):
        x, y, size = rng.uniform(-30, width + 30), rng.uniform(-30, height + 30), rng.choice([1, 8, 40, 120])
        points = [
            [x + rng.uniform(-size, size), y + rng.uniform(-size, size)] for _ in range(rng.randint(2, 12))
        ]
        if rng.random() < 0.7:
            points = [[round(a), round(b)] for a, b in points]
        entry = {"label": rng.choice(names), "polygon": points}
        objects.append(entry | ({"deleted": rng.choice([0, 1])} if rng.random() < 0.2 else {}))
    return {"imgWidth": width, "imgHeight": height, "objects": objects}


@pytest.mark.parametrize("seed", range(50))
def test_the_owners_tools_give_the_same(tmp_path, seed):
    why = "needs the owners' tools: pip install --no-deps cityscapesscripts pyquaternion"
    pytest.importorskip("pyquaternion", reason=why)
    official = pytest.importorskip("cityscapesscripts.preparation.json2instanceImg", reason=why)
    from cityscapesscripts.evaluation.instances2dict import instances2dict
    from cityscapesscripts.helpers.annotation import Annotation

    content = random_annotation(random.Random(seed))
    path = write_json(tmp_path / "gtFine/val/bonn/bonn_0_gtFine_polygons.json", content)
    annotation = Annotation()
    annotation.fromJsonFile(str(path))
    theirs = np.array(official.createInstanceImage(annotation, "ids"))
    assert np.array_equal(read_labels(path).ids, theirs)

    instances = write_array(tmp_path / "theirs" / "bonn_0_gtFine_instanceIds.png", theirs.astype(np.uint16))
    counts = instances2dict(str(instances))[str(instances)]
    expected = set()
    for label in CLASSES:
        for instance in counts[label]:
            y, x = np.nonzero(theirs == instance["instID"])
            box = (x.min(), y.min(), x.max() - x.min() + 1, y.max() - y.min() + 1)
            expected.add(Thing(label, box, instance["pixelCount"], instance["instID"] < 1000))
    for labels in (path, instances):
        things, _ = visible_things(read_labels(labels), CLASSES)
        assert len(things) == len(expected)
        assert set(things) == expected
