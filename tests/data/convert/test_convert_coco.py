"""Users' COCO sets: layouts, boxes, and all that is wrong in real files."""

from __future__ import annotations

import json

import pytest
from trees import coco_content, objects, pack, write_image, write_text

from mrt.data.convert.coco import recipe
from mrt.data.convert.recipe import prepare
from mrt.errors import MrtError

IMAGE = {"id": 1, "file_name": "a.jpg", "width": 40, "height": 30}
CAR = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [2, 3, 10, 8], "area": 55, "iscrowd": 0}


def make(raw, tmp_path, **options):
    """(card, warnings) of the set that is made from ``raw``."""
    return prepare(
        recipe([raw], tmp_path / "data", **options), tmp_path / "data", "own", workers=1, overwrite=True
    )


@pytest.fixture
def tree(tmp_path):
    """tree(content, images={path: size}, file="train.json") writes one COCO file and its images.

    They are below "raw"; it returns that folder.
    """

    def write(content, images=None, file="train.json"):
        for path, size in ({"a.jpg": (40, 30)} if images is None else images).items():
            write_image(tmp_path / "raw" / path, size)
        write_text(tmp_path / "raw" / file, content if isinstance(content, str) else json.dumps(content))
        return tmp_path / "raw"

    return write


def official(folder):
    """COCO's own layout: other files than instances, ids with gaps, and a crowd."""
    categories = [
        {"id": 3, "name": "car", "supercategory": "vehicle"},
        {"id": 0, "name": "person", "supercategory": "person"},
    ]
    for split, number in (("train", 397133), ("val", 0)):
        name = f"{number:012}.jpg"
        write_image(folder / "images" / f"{split}2017" / name)
        annotations = [
            {
                "id": 900,
                "image_id": number,
                "category_id": 3,
                "bbox": [1.5, 2.25, 10, 8],
                "area": 61.5,
                "iscrowd": 0,
            },
            {"id": 0, "image_id": number, "category_id": 0, "bbox": [0, 0, 40, 30], "area": 0, "iscrowd": 1},
        ]
        images = [{"id": number, "file_name": name, "width": 40, "height": 30, "license": 4}]
        content = {
            "info": {},
            "licenses": [],
            "images": images,
            "annotations": annotations,
            "categories": categories,
        }
        write_text(folder / "annotations" / f"instances_{split}2017.json", json.dumps(content))
        write_text(folder / "annotations" / f"person_keypoints_{split}2017.json", json.dumps(content))
        captions = [{"id": 1, "image_id": number, "caption": "a car"}]
        write_text(
            folder / "annotations" / f"captions_{split}2017.json",
            json.dumps({"images": images, "annotations": captions}),
        )
    return folder


@pytest.mark.parametrize("packed", [None, "coco.zip", "coco.tgz"])
def test_the_official_layout(tmp_path, packed):
    raw = official(tmp_path / "raw")
    raw = pack(raw, tmp_path / packed) if packed else raw
    card, warnings = make(raw, tmp_path)
    assert warnings == [] and card.classes == ("person", "car") and list(card.splits) == ["train", "val"]
    boxes = [("car", 1.5, 2.25, 10, 8), ("~person", 0, 0, 40, 30)]
    assert objects(card) == {"000000397133.jpg": boxes}
    assert objects(card, "val") == {"000000000000.jpg": boxes}
    written = json.loads(card.annotations_path("train").read_text())
    assert [a["id"] for a in written["annotations"]] == [1, 2] and written["images"][0]["id"] == 1
    assert [a["area"] for a in written["annotations"]] == [61.5, 1200]
    assert [c["id"] for c in written["categories"]] == [1, 2]


def test_archives_side_by_side(tmp_path):
    folder = official(tmp_path / "raw")
    downloads = tmp_path / "downloads"
    downloads.mkdir()
    pack(folder / "images", downloads / "images.zip")
    (tmp_path / "labels").mkdir()
    (folder / "annotations").rename(tmp_path / "labels" / "annotations")
    pack(tmp_path / "labels", downloads / "annotations.zip")
    card, _ = make(downloads, tmp_path)
    assert card.images_root("val").as_posix().endswith("downloads/images.zip/val2017")


def test_a_folder_per_split(tmp_path):
    """The layout of a well-known labelling service: category 0 is a placeholder, and "valid" is "val"."""
    categories = [
        {"id": 0, "name": "things", "supercategory": "none"},
        {"id": 1, "name": "car", "supercategory": "things"},
    ]
    for folder in ("train", "valid", "test"):
        write_image(tmp_path / "raw" / folder / "1.jpg")  # the same name in each folder
        images = [{"id": 0, "file_name": "1.jpg", "width": 40, "height": 30}]
        annotations = [{"id": 0, "image_id": 0, "category_id": 1, "bbox": [2, 3, 10, 8]}]
        content = {"images": images, "annotations": annotations, "categories": categories}
        write_text(tmp_path / "raw" / folder / "_annotations.coco.json", json.dumps(content))
    card, _ = make(tmp_path / "raw", tmp_path)
    assert card.classes == ("car",) and list(card.splits) == ["train", "val", "test"]
    assert [card.images_root(split).name for split in card.splits] == ["train", "valid", "test"]
    assert objects(card, "val") == {"1.jpg": [("car", 2, 3, 10, 8)]}


def test_a_split_takes_the_images_of_its_own_folder(tmp_path):
    """Both splits use the same numbers: an image that is missing in one is not taken from the other."""
    raw = tmp_path / "raw"
    for split, numbers in (("train", (1, 2)), ("val", (1, 2, 3))):
        for number in numbers:
            write_image(raw / "images" / split / f"{number}.jpg")
        images = [{"id": n, "file_name": f"{n}.jpg", "width": 40, "height": 30} for n in (1, 2, 3)]
        write_text(raw / f"{split}.json", json.dumps(coco_content(images, [CAR])))
    card, warnings = make(raw, tmp_path)
    assert [card.images_root(split).name for split in card.splits] == ["train", "val"]
    assert card.split("train").skipped == {"image missing": 1} and "the first is 3.jpg" in warnings[0]
    assert card.split("val").num_images == 3


@pytest.mark.parametrize(
    "name", ["a.jpg", "raw/images/a.jpg", "elsewhere/images/a.jpg", "images\\a.jpg", "./images/a.jpg"]
)
def test_file_names_with_and_without_folders(tree, tmp_path, name):
    raw = tree(coco_content([{**IMAGE, "file_name": name}], [CAR]), {"images/a.jpg": (40, 30)}, "labels.json")
    assert objects(make(raw, tmp_path)[0]) == {"a.jpg": [("car", 2, 3, 10, 8)]}


def test_an_image_that_may_be_one_of_several(tree, tmp_path):
    raw = tree(coco_content([IMAGE], [CAR]), {"large/a.jpg": (40, 30), "small/a.jpg": (40, 30)})
    with pytest.raises(
        MrtError, match=r"train\.json.*'a\.jpg' may be any of large/a\.jpg, small/a\.jpg(.|\n)*--images"
    ):
        make(raw, tmp_path)
    assert make(raw, tmp_path, images=raw / "small")[0].images_root("train").name == "small"


def test_foreign_folders_are_only_forgotten_if_that_is_safe(tree, tmp_path):
    images = [{**IMAGE, "id": n, "file_name": f"there/cam{n}/a.jpg"} for n in (1, 2)]
    raw = tree(coco_content(images, [CAR]), {"cam9/a.jpg": (40, 30)})
    with pytest.raises(MrtError, match="none of its 2 images is there"):
        make(raw, tmp_path)


def test_files_named_by_hand(tree, tmp_path):
    tree(coco_content([IMAGE], [CAR]), file="export-1.json")
    raw = tree(coco_content([IMAGE], []), file="export-2.json")
    with pytest.raises(
        MrtError,
        match=r"several annotation files.*export-1\.json, export-2\.json(.|\n)*--annotations train=FILE",
    ):
        make(raw, tmp_path)
    card, _ = make(raw, tmp_path, annotations={"train": raw / "export-1.json", "night": "export-2.json"})
    assert (card.split("train").num_boxes, card.split("night").num_boxes) == (1, 0)
    with pytest.raises(MrtError, match=r"export-3\.json: no such file"):
        make(raw, tmp_path, annotations={"train": raw / "export-3.json"})


def test_files_beside_one_for_all_splits(tree, tmp_path):
    """The hint is a command that works."""
    tree(coco_content([IMAGE], [CAR]), file="annotations.json")
    tree(coco_content([IMAGE], [CAR]), file="train.json")
    raw = tree(
        coco_content([{**IMAGE, "id": 2, "file_name": "b.jpg"}], []), {"b.jpg": (40, 30)}, file="test.json"
    )
    with pytest.raises(MrtError, match=r"annotations\.json, test\.json, train\.json") as told:
        make(raw, tmp_path)
    assert "--annotations train=train.json test=test.json (" in told.value.hint
    card, _ = make(raw, tmp_path, annotations={"test": "test.json", "train": "train.json"})
    assert set(card.splits) >= {"train", "test"}


def test_an_exif_rotated_photo_may_be_labelled_either_way(tmp_path):
    raw = tmp_path / "raw"
    images = [
        {"id": n, "file_name": f"{n}.jpg", "width": w, "height": h}
        for n, (w, h) in enumerate([(40, 30), (30, 40), (40, 40)])
    ]
    for n in range(3):
        write_image(raw / f"{n}.jpg", (40, 30), orientation=6)
    write_text(
        raw / "train.json",
        json.dumps(coco_content([*images, {"id": 9, "file_name": "9.jpg"}], [{**CAR, "image_id": 0}])),
    )
    write_image(raw / "9.jpg", (40, 30), orientation=6)
    card, warnings = make(raw, tmp_path)
    assert card.image_sizes == {"40x30": 1, "30x40": 2}, "a missing size is that of the upright picture"
    assert card.split("train").skipped == {"image size differs from the annotation's": 1}
    assert "2.jpg (40x30, not 40x40)" in warnings[0]


def test_bad_images_are_left_out_and_counted(tmp_path):
    raw = tmp_path / "raw"
    names = ["whole.jpg", "missing.jpg", "cut.jpg", "cut.png", "text.jpg", "small.jpg"]
    for name in names:
        if name != "missing.jpg":
            write_image(raw / name, (20, 30) if name == "small.jpg" else (40, 30))
    for name in ("cut.jpg", "cut.png"):
        whole = (raw / name).read_bytes()
        (raw / name).write_bytes(whole[: len(whole) // 2])
    write_text(raw / "text.jpg", "not found")
    images = [
        {"id": n, "file_name": name, "width": 40, "height": 30} for n, name in enumerate(names, start=1)
    ]
    write_text(
        raw / "train.json",
        json.dumps(coco_content(images, [{**CAR, "id": n, "image_id": n} for n in range(1, 7)])),
    )
    card, warnings = make(raw, tmp_path)
    assert objects(card) == {"whole.jpg": [("car", 2, 3, 10, 8)]}
    reasons = {
        "image missing": 1,
        "image cut short or unreadable": 3,
        "image size differs from the annotation's": 1,
    }
    assert card.split("train").skipped == reasons and card.details["warnings"] == warnings
    assert len(warnings) == 3


def test_bad_annotations_are_left_out_and_counted(tree, tmp_path):
    nan, huge = float("nan"), 10**400
    bad = {
        "box without area": [{"bbox": [2, 3, 0, 8]}, {"bbox": [2, 3, 10, -1]}],
        "box outside the image": [{"bbox": [50, 3, 10, 8]}, {"bbox": [-20, 3, 10, 8]}],
        "box with a number that is not finite": [{"bbox": [2, nan, 10, 8]}, {"bbox": [2, 3, huge, 8]}],
        "box that is not four numbers": [
            {"bbox": [2, 3, 10]},
            {"bbox": "2 3 10 8"},
            {"bbox": [2, 3, "10", 8]},
            {"bbox": {"x": 2}},
        ],
        "no box": [
            {"bbox": None},
            {"bbox": []},
            {"bbox": None, "segmentation": {"counts": "abc", "size": [30, 40]}},
        ],
        "annotation of an unknown image": [{"image_id": 77}, {"image_id": None}, {"image_id": [1]}],
        "annotation of an unknown category": [
            {"category_id": 9},
            {"category_id": None},
            {"category_id": True},
        ],
        "annotation listed twice": [{"id": 1, "category_id": 1, "bbox": [2, 3, 10, 8]}],
    }
    annotations = [CAR]
    for changes in bad.values():
        annotations += [
            {**CAR, "id": len(annotations) + k, **change} for k, change in enumerate(changes, start=1)
        ]
    raw = tree(coco_content([IMAGE], [*annotations, "text"]))
    assert "NaN" in (raw / "train.json").read_text()
    card, warnings = make(raw, tmp_path)
    assert objects(card) == {"a.jpg": [("car", 2, 3, 10, 8)]} and warnings == []
    expected = {reason: len(changes) for reason, changes in bad.items()} | {
        "annotation that is not an object": 1
    }
    assert card.split("train").skipped == expected


def test_what_is_odd_but_usable(tree, tmp_path):
    annotations = [
        {**CAR, "area": float("nan")},
        {**CAR, "id": 2, "bbox": [-5, 20, 10, 20], "area": -3},
        # another object with the id of the one before
        {**CAR, "id": 2, "bbox": [1, 1, 2, 2], "category_id": 2, "area": 1},
        {"id": 4, "image_id": 1, "category_id": 1, "segmentation": [[3, 4, 9, 4, 9, 10], [1, 5, 2, 6, 1, 7]]},
        {**CAR, "id": 5, "bbox": [0, 0, 5, 5], "ignore": 1},
        {**CAR, "id": None, "bbox": [7, 7, 2, 2]},
    ]
    raw = tree(coco_content([IMAGE], annotations))
    # a byte order mark
    raw.joinpath("train.json").write_bytes(b"\xef\xbb\xbf" + raw.joinpath("train.json").read_bytes())
    card, _ = make(raw, tmp_path)
    boxes = [
        ("car", 2, 3, 10, 8),
        ("car", 0, 20, 5, 10),
        ("person", 1, 1, 2, 2),
        ("car", 1, 4, 8, 6),
        ("~car", 0, 0, 5, 5),
        ("car", 7, 7, 2, 2),
    ]
    assert objects(card) == {"a.jpg": boxes}
    areas = [a["area"] for a in json.loads(card.annotations_path("train").read_text())["annotations"]]
    assert areas == [80, 50, 1, 48, 55, 55]
    assert card.split("train").skipped == {} and card.details["annotation_ids_given_twice"] == {"train": 1}


def test_images_listed_twice(tree, tmp_path):
    images = [IMAGE, IMAGE, {**IMAGE, "id": 2}]
    annotations = [CAR, {**CAR, "id": 2, "image_id": 2, "bbox": [1, 1, 5, 5]}]
    card, _ = make(tree(coco_content(images, annotations)), tmp_path)
    assert objects(card) == {"a.jpg": [("car", 2, 3, 10, 8), ("car", 1, 1, 5, 5)]}, (
        "one image, with the objects of both entries"
    )
    assert card.split("train").skipped == {"image listed twice": 2}


GOOD = coco_content([IMAGE], [CAR])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (json.dumps(GOOD)[:-40], r"not valid JSON"),
        ("", r"not valid JSON"),
        ([GOOD], "holds a list, expected an object"),
        ({**GOOD, "images": {}}, "has an object as 'images', expected a list"),
        ({"images": [IMAGE], "categories": []}, "has no list 'annotations'"),
        ({**GOOD, "images": []}, "lists no images"),
        ({**GOOD, "categories": []}, "lists no categories"),
        ({**GOOD, "categories": [{"id": 1, "name": "\ud800"}]}, "has no usable id and name"),
        ({**GOOD, "categories": [{"id": 1}]}, r"category \{\"id\": 1\} has no usable"),
        (
            {**GOOD, "categories": [*GOOD["categories"], {"id": 1, "name": "bus"}]},
            "category id 1 is both 'car' and 'bus'",
        ),
        (
            {**GOOD, "images": [IMAGE, {**IMAGE, "file_name": "b.jpg"}]},
            r"image id 1 is both 'a\.jpg' and 'b\.jpg'",
        ),
        (
            {**GOOD, "images": [IMAGE, {**IMAGE, "id": 2, "width": 41}]},
            r"'a\.jpg' is listed twice, with the sizes",
        ),
        ({**GOOD, "images": [{"id": 1}]}, r"image \{\"id\": 1\} has no usable"),
        ({**GOOD, "images": ["a.jpg"]}, r'image "a\.jpg" has no usable'),
        (
            {**GOOD, "images": [{**IMAGE, "file_name": "../a.jpg"}]},
            r"file_name of image 1 is '\.\./a\.jpg', not a path below",
        ),
        (
            {**GOOD, "images": [{**IMAGE, "file_name": "/etc/passwd"}]},
            "file_name of image 1 is '/etc/passwd'",
        ),
        ({**GOOD, "images": [{**IMAGE, "file_name": "C:\\a.jpg"}]}, "file_name of image 1 is"),
        ({**GOOD, "images": [{**IMAGE, "file_name": ""}]}, "file_name of image 1 is ''"),
        (
            {**GOOD, "images": [{**IMAGE, "file_name": "b.jpg"}]},
            r"none of its 1 images is there, the first is 'b\.jpg'",
        ),
    ],
)
def test_files_that_cannot_be_used_are_named(tree, tmp_path, content, words):
    with pytest.raises(MrtError, match=words) as error:
        make(tree(content), tmp_path)
    assert "train.json" in str(error.value) and error.value.hint
    assert not (tmp_path / "data" / "own").exists()


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-8-sig", "latin-1"])
def test_another_encoding(tree, tmp_path, encoding):
    raw = tree(GOOD)
    text = json.dumps({**GOOD, "info": {"description": "Straßenszenen"}}, ensure_ascii=False)
    (raw / "train.json").write_bytes(text.encode(encoding))
    if encoding != "latin-1":
        assert objects(make(raw, tmp_path)[0]) == {"a.jpg": [("car", 2, 3, 10, 8)]}
        return
    with pytest.raises(MrtError, match=r"train\.json: not UTF-8"):
        make(raw, tmp_path)


def test_no_annotations_at_all(tmp_path):
    write_image(tmp_path / "raw" / "a.jpg")
    with pytest.raises(MrtError, match="holds no COCO annotations"):
        make(tmp_path / "raw", tmp_path)


def test_two_ways_to_write_one_image(tree, tmp_path):
    images = [IMAGE, {**IMAGE, "id": 2, "file_name": "images/a.jpg"}]
    annotations = [CAR, {**CAR, "id": 2, "image_id": 2, "bbox": [1, 1, 5, 5]}]
    card, _ = make(tree(coco_content(images, annotations), {"images/a.jpg": (40, 30)}), tmp_path)
    assert objects(card) == {"a.jpg": [("car", 2, 3, 10, 8), ("car", 1, 1, 5, 5)]}
    assert card.split("train").skipped == {"image listed twice": 1}
    images[1]["width"] = 41
    with pytest.raises(MrtError, match=r"'a\.jpg' and 'images/a\.jpg' are one image, of the sizes"):
        make(tree(coco_content(images, annotations), {"images/a.jpg": (40, 30)}), tmp_path)
