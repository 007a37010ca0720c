"""Label files that come one for each image: what mrt.data.convert.formats makes of good and bad ones."""

from __future__ import annotations

import base64
import json
import math
import re
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trees import pack, write_text

from mrt.data.convert.formats import PAIRED, kitti, reading
from mrt.data.convert.recipe import Skipped
from mrt.data.convert.sheets import Record, Sheet
from mrt.errors import MrtError

KITTI = "Car 0.00 0 -1.93 78.30 17.52 109.76 35.48 1.40 1.61 3.77 3.01 1.46 7.62 -1.57\n"
DONT_CARE = "DontCare -1 -1 -10 503.89 169.71 590.61 190.13 -1 -1 -1 -1000 -1000 -1000 -10\n"
VISDRONE = "684,8,273,116,0,0,0,0\n406,119,265,70,0,4,0,0\n255,22,119,128,1,1,0,1,\n1,2,3,4,1,10,1,2\n"
DOTA = (
    "imagesource:GoogleEarth\ngsd:0.25\n10 20 30.5 10 40 25 20 35 ship 1\n1 1 5 1 5 4 1 4 large-vehicle "
    "0\n1 1 9 1 9 4 1 4 plane\n"
)
LABELME = {
    "version": "5.2.1",
    "flags": {},
    "shapes": [
        {"label": "car", "points": [[30, 40], [10, 20.5]], "shape_type": "rectangle"},
        {"label": "car", "points": [[1, 2], [9, 2], [9, 8], [1, 8]], "shape_type": "rectangle"},
        {
            "label": "bus",
            "points": [[1, 5], [5, 1], [9, 5], [5, 9]],
            "shape_type": "rotation",
            "difficult": True,
        },
        {"label": "man", "points": [[1, 2], [3, 1], [2, 8]], "shape_type": "polygon"},
        {"label": "man", "points": [[1, 2], [3, 1], [2, 8]]},
        {"label": "ball", "points": [[20, 20], [23, 24]], "shape_type": "circle"},
        {"label": "man", "points": [[4, 5], [7, 9]], "shape_type": "mask", "mask": "iVBORw0"},
        {"label": "lane", "points": [[4, 5], [7, 9]], "shape_type": "line"},
        {"label": "lane", "points": [[4, 5]], "shape_type": "point"},
    ],
    "imagePath": "a.jpg",
    "imageData": None,
    "imageHeight": 60,
    "imageWidth": 80,
}
BDD = {
    "name": "0000f77c-6257be58",
    "attributes": {"weather": "clear", "timeofday": "daytime"},
    "frames": [
        {
            "timestamp": 10000,
            "objects": [
                {
                    "category": "traffic light",
                    "id": 0,
                    "attributes": {},
                    "box2d": {"x1": 1.5, "y1": 2, "x2": 9, "y2": 8.25},
                },
                {
                    "category": "person",
                    "id": 1,
                    "attributes": {"crowd": True},
                    "box2d": {"x1": 1, "y1": 2, "x2": 9, "y2": 8},
                },
                {"category": "area/drivable", "id": 2, "attributes": {}, "poly2d": [[1, 2, "L"]]},
                {"category": "lane/road curb", "id": 3, "attributes": {}, "poly2d": [[1, 2, "L"]]},
                {"category": "car", "id": 4, "attributes": {}},
            ],
        }
    ],
}
PNG_HEAD = bytes.fromhex("89504e470d0a1a0a0000000d49484452") + (7).to_bytes(4, "big") + (9).to_bytes(4, "big")
SUPERVISELY = {
    "description": "",
    "tags": [],
    "size": {"height": 60, "width": 80},
    "objects": [
        {
            "classTitle": "car",
            "geometryType": "rectangle",
            "points": {"exterior": [[29, 39], [10, 20]], "interior": []},
        },
        {
            "classTitle": "car",
            "geometryType": "rectangle",
            "points": {"exterior": [[1.5, 2.0], [9.25, 8.0]], "interior": []},
        },
        {
            "classTitle": "man",
            "geometryType": "polygon",
            "points": {"exterior": [[1, 2], [3, 1], [2, 7]], "interior": []},
        },
        {
            "classTitle": "man",
            "geometryType": "bitmap",
            "bitmap": {
                "origin": [4, 5],
                "data": base64.b64encode(zlib.compress(PNG_HEAD + b"more")).decode(),
            },
        },
        {
            "classTitle": "pole",
            "geometryType": "point",
            "points": {"exterior": [[4, 5]], "interior": []},
        },
        {"classTitle": "pose", "geometryType": "graph", "nodes": {}},
        {"classTitle": "box", "geometryType": "cuboid", "points": []},
        {"geometryType": "rectangle", "points": {"exterior": [[1, 2], [3, 4]], "interior": []}},
    ],
}
GOOD = {
    "kitti": KITTI + DONT_CARE,
    "visdrone": VISDRONE,
    "dota": DOTA,
    "labelme": json.dumps(LABELME),
    "bdd": json.dumps(BDD),
    "supervisely": json.dumps(SUPERVISELY),
}
YOLO = "0 0.5 0.5 0.25 0.25\n1 0.1 0.2 0.3 0.4 0.5 0.6\n"
OTHERS = {
    "a.txt": YOLO,
    "obb.txt": "0 0.1 0.1 0.2 0.1 0.2 0.2 0.1 0.2\n",
    "README.txt": "Images of my street.\n\nTaken in 2020 with a phone.\n",
    "train.txt": "images/a.jpg\nimages/b.jpg\n",
    "classes.txt": "car\nperson\n",
    "empty.txt": "",
    "calib.txt": (
        "P0: 7.215377e+02 0 6.095593e+02 0 0 7.215377e+02 1.728540e+02 0 0 0 1 "
        "0\nR0_rect: 1 0 0 0 1 0 0 0 1\n"
    ),
    "tracking.txt": "0 1 " + KITTI,
    "gt.txt": "1,1,794,247,71,174,1,1,0.8\n",
    "icdar.txt": "377,117,463,117,465,130,378,130\n",
    "video.txt": "1,0,684,8,273,116,0,0,0,0\n",
    "camera.json": json.dumps({"intrinsic": {"fx": 2262.52, "u0": 1096.98}}),
    "coco.json": json.dumps(
        {"images": [{"file_name": "a.jpg"}], "annotations": [], "categories": [{"name": "car"}]}
    ),
    "names.json": json.dumps(["a.jpg", "b.jpg"]),
    "scalabel.json": json.dumps({"frames": [{"name": "a.jpg", "labels": []}]}),
    "cityscapes.json": json.dumps(
        {"imgHeight": 1024, "imgWidth": 2048, "objects": [{"label": "car", "polygon": [[1, 2]]}]}
    ),
    "voc.xml": "<annotation><filename>a.jpg</filename></annotation>",
}


def read(tmp_path, name, content):
    place = tmp_path / f"a{PAIRED[name].suffixes[0]}"
    place.write_bytes(content if isinstance(content, bytes) else content.encode())
    return PAIRED[name].read(place)


def test_formats_have_their_names():
    assert list(PAIRED) == ["kitti", "visdrone", "labelme", "bdd", "dota", "supervisely"]
    assert all(found.name == name and found.needs and found.suffixes for name, found in PAIRED.items())


def test_kitti(tmp_path):
    assert read(
        tmp_path, "kitti", KITTI + KITTI + "\n" + DONT_CARE + "Car 1 2\nVan a b c d e f g h i j k l m n\n"
    ) == Sheet(
        None,
        (Record("Car", (78.30, 17.52, 109.76, 35.48)),),
        {"DontCare region": 1, "annotation listed twice": 1, kitti.BAD_LINE: 2},
    )
    assert read(tmp_path, "kitti", "") == Sheet(None, (), {})
    with pytest.raises(MrtError, match=r"a\.txt, line 2: has 16 columns.*predictions"):
        read(tmp_path, "kitti", DONT_CARE + KITTI.strip() + " 0.93")


def test_visdrone(tmp_path):
    sheet = read(tmp_path, "visdrone", VISDRONE + "1,2,3,4,1,11,0,0\n1,2,3,4,1,12,0,0\n1,2,3\n1,2,3\n")
    assert sheet.records == (
        Record("car", (406, 119, 671, 189), ignored=True),
        Record("pedestrian", (255, 22, 374, 150)),
        Record("motor", (1, 2, 4, 6)),
    )
    assert sheet.skipped == {
        "ignored region": 1,
        "category 11 (others), no class of the benchmark": 1,
        "annotation of an unknown category": 1,
        "line that is not x,y,w,h,score,category,truncation,occlusion": 1,
        "annotation listed twice": 1,
    }
    assert len(PAIRED["visdrone"].classes) == 10
    for line in ("1,2,3,4,0.93,4,-1,-1", "1,2,3,4,1,4,-1,-1"):
        with pytest.raises(MrtError, match=r"line 1: the score is .* predictions"):
            read(tmp_path, "visdrone", line)


def test_dota(tmp_path):
    assert read(
        tmp_path, "dota", DOTA + "1 1 5 1 5 4 1 4 7 0\n1 1 5 1 5 4 ship 0\n2 1 5 1 5 4 1 4 car 2\n"
    ) == Sheet(
        None,
        (
            Record("ship", (10, 10, 40, 35), ignored=True),
            Record("large-vehicle", (1, 1, 5, 4)),
            Record("plane", (1, 1, 9, 4)),
            Record("car", (1, 1, 5, 4), ignored=True),
        ),
        {"line that is not x1 y1 x2 y2 x3 y3 x4 y4 class difficult": 2},
    )


def test_labelme(tmp_path):
    sheet = read(tmp_path, "labelme", json.dumps(LABELME))
    assert sheet.size == (80, 60)
    assert sheet.records == (
        Record("car", (10, 20.5, 30, 40)),
        Record("car", (1, 2, 9, 8)),
        Record("bus", (1, 1, 9, 9), ignored=True),
        Record("man", (1, 1, 3, 8)),
        Record("man", (1, 1, 3, 8)),
        Record("ball", (15, 15, 25, 25)),
        Record("man", (4, 5, 8, 10)),
    )
    assert sheet.skipped == {"point or line, which has no area": 2}


def test_labelme_shapes_that_give_no_box(tmp_path):
    shapes = [
        {"label": "a", "points": [[1, 2]], "shape_type": "circle"},
        {"label": "a", "points": [[1, 2], [3, 4]], "shape_type": "polygon"},
        {"label": "a", "points": [[1, 2], [3, 4]], "shape_type": "star"},
        {"label": "a", "points": [], "shape_type": "rectangle"},
        {"label": "a", "points": [[1, 2], [3, "x"]], "shape_type": "rectangle"},
        {"label": "a", "points": [[1, 10**400], [3, 4]], "shape_type": "rectangle"},
        {"label": "  ", "points": [[1, 2], [3, 4]], "shape_type": "rectangle"},
        {"label": "\ud800", "points": [[1, 2], [3, 4]], "shape_type": "rectangle"},
        {"label": None, "points": [[1, 2], [3, 4]], "shape_type": ["rectangle"]},
        None,
    ]
    sheet = read(tmp_path, "labelme", json.dumps({"shapes": shapes, "imageWidth": "80", "imageHeight": 0}))
    assert sheet.size is None
    assert [record.box and math.isfinite(sum(record.box)) for record in sheet.records] == [None, False, False]
    assert sheet.skipped == {
        "circle that is not two points": 1,
        "polygon of less than three points": 1,
        "unknown shape 'star'": 1,
        "object without a class name": 3,
        "shape that is no object": 1,
    }


def test_bdd(tmp_path):
    assert read(tmp_path, "bdd", json.dumps(BDD)) == Sheet(
        None,
        (
            Record("traffic light", (1.5, 2, 9, 8.25)),
            Record("person", (1, 2, 9, 8), ignored=True),
            Record("car", None),
        ),
        {},
    )
    assert read(tmp_path, "bdd", json.dumps({"frames": []})) == Sheet(None, (), {})
    assert (
        read(tmp_path, "bdd", json.dumps({"frames": BDD["frames"] * 2})).reason
        == "label file of several frames"
    )


def test_supervisely(tmp_path):
    assert read(tmp_path, "supervisely", GOOD["supervisely"]) == Sheet(
        (80, 60),
        (
            Record("car", (10, 20, 30, 40)),  # whole numbers: the last pixel is part of it
            Record("car", (1.5, 2, 9.25, 8)),
            Record("man", (1, 1, 4, 8)),
            Record("man", (4, 5, 11, 14)),
        ),
        {
            "point or line, which has no area": 1,
            "skeleton of key points": 1,
            "unknown shape 'cuboid'": 1,
            "object without a class name": 1,
        },
    )
    empty = {"description": "", "tags": [], "size": {"height": 60, "width": 80}, "objects": []}
    assert PAIRED["supervisely"].looks(json.dumps(empty).encode(), "a.jpg.json")
    assert read(tmp_path, "supervisely", json.dumps(empty)) == Sheet((80, 60), (), {})


@pytest.mark.parametrize(
    "data", ["", "?", "AAAA", "eJw=", base64.b64encode(zlib.compress(b"GIF89a")).decode(), 3]
)
def test_a_mask_that_cannot_be_unpacked_is_an_object_without_a_box(tmp_path, data):
    entry = {"classTitle": "man", "geometryType": "bitmap", "bitmap": {"origin": [1, 2], "data": data}}
    content = json.dumps(SUPERVISELY | {"objects": [entry]})
    assert read(tmp_path, "supervisely", content).records == (Record("man", None),)


@pytest.mark.parametrize("name", PAIRED)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_any_unicode_encoding(tmp_path, name, encoding):
    content = GOOD[name].encode(encoding)
    assert read(tmp_path, name, content) == read(tmp_path, name, GOOD[name])
    assert PAIRED[name].looks(content[: reading.HEAD], "a")


@pytest.mark.parametrize("name", PAIRED)
def test_what_is_no_text_is_left_out(tmp_path, name):
    assert read(tmp_path, name, b"\xff\xfe\xff\xd8\x00") == Skipped(
        "annotation cut short or unreadable", str(next(tmp_path.iterdir()))
    )
    with pytest.raises(MrtError, match="no such file"):
        PAIRED[name].read(tmp_path / "missing")


@pytest.mark.parametrize("name", ["labelme", "bdd"])
@pytest.mark.parametrize(
    "text",
    [
        '{"shapes": [',
        "[1]",
        "1" * 5000,
        "[" * 100_000,
        '{"shapes": 3, "frames": 3}',
        '{"frames": [{"objects": 1}]}',
    ],
)
def test_json_of_another_kind_is_left_out(tmp_path, name, text):
    assert read(tmp_path, name, text).reason == "annotation cut short or unreadable"


@pytest.mark.parametrize("name", PAIRED)
def test_sniffers_are_sure(name):
    looks = PAIRED[name].looks
    assert [other for other in GOOD if looks(GOOD[other].encode(), other)] == [name]
    assert not [file for file, text in OTHERS.items() if looks(text.encode(), file)]
    assert not looks(b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR", "a.png")
    assert not looks(
        GOOD[name].encode() + b"\nand some words" if "{" not in GOOD[name] else b"[" + GOOD[name].encode(),
        "a",
    )


@pytest.mark.parametrize("name", ["kitti", "visdrone", "dota"])
def test_a_line_that_the_head_cuts_does_not_count(name):
    lines = DOTA.splitlines()[2] + "\n" if name == "dota" else KITTI if name == "kitti" else VISDRONE
    assert PAIRED[name].looks((lines.encode() * 5000)[: reading.HEAD], "a.txt")


def test_labelme_is_known_with_the_picture_in_front():
    text = json.dumps({"imageData": "A" * 100, "imageHeight": 60, "imagePath": "a.jpg", "shapes": []})
    assert PAIRED["labelme"].looks(text[:160].encode(), "a.json")


@pytest.mark.parametrize(
    ("box", "degrees", "around"),
    [
        ((0, 0, 4, 2), 0, (0, 0, 4, 2)),
        ((0, 0, 4, 2), 90, (1, -1, 3, 3)),
        ((0, 0, 4, 2), 180, (0, 0, 4, 2)),
        ((4, 0, 0, 2), 45, (4, 0, 0, 2)),
    ],
)
def test_turned_boxes(box, degrees, around):
    assert reading.around_turned(box, degrees) == around


def test_turned_shapes():
    side = math.sqrt(2)
    assert reading.around_turned((-1, -1, 1, 1), 45) == pytest.approx((-side, -side, side, side))
    assert reading.around_ellipse(5, 5, 4, 2, 90) == (3, 1, 7, 9)
    assert reading.around_ellipse(0, 0, 3, 3, 30) == pytest.approx((-3, -3, 3, 3))
    assert all(map(math.isnan, reading.around([1, math.nan], [1, 2])))


# Whatever the bytes are: a sheet, a reason, or a message that says which file.


def survives(place, name, content):
    place.write_bytes(content)
    PAIRED[name].looks(content[: reading.HEAD], place.as_posix())
    try:
        found = PAIRED[name].read(place)
    except MrtError as error:
        assert str(place) in error.message and error.hint
        return
    assert isinstance(found, (Sheet, Skipped))
    if isinstance(found, Sheet):
        assert found.size is None or (len(found.size) == 2 and min(found.size) >= 1)
        assert all(
            isinstance(reason, str) and isinstance(count, int) for reason, count in found.skipped.items()
        )
        for label, box, ignored in found.records:
            assert label.strip() and label.encode() and isinstance(ignored, bool)
            assert box is None or (len(box) == 4 and all(isinstance(value, (int, float)) for value in box))


_ODD = (
    *("nan", "-inf", "1e999", "1_0", "-1", "\u0663", "\x00", "x", "", "1e-400"),
    *("9" * 400, "DontCare", "\ud7ff"),
)
ODD_WORDS = st.sampled_from(_ODD)
_SIMPLE = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4)
odd_values = st.recursive(
    _SIMPLE | st.sampled_from([10**400, "\ud800", math.nan]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
fuzz = settings(max_examples=60, deadline=None, derandomize=True, database=None)


def places_in(value, path=()):
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places_in(inner, (*path, key))


def changed(value, path, new):
    if not path:
        return new
    copy = value.copy()
    copy[path[0]] = changed(value[path[0]], path[1:], new)
    return copy


@pytest.mark.parametrize("name", PAIRED)
def test_any_bytes(tmp_path_factory, name):
    place = tmp_path_factory.mktemp("any") / "a"

    @fuzz
    @given(st.binary(max_size=60))
    def run(content):
        survives(place, name, content)

    run()


@pytest.mark.parametrize("name", PAIRED)
def test_changed_bytes(tmp_path_factory, name):
    place = tmp_path_factory.mktemp("changed") / "a"
    good = GOOD[name].encode()

    @fuzz
    @given(st.integers(0, len(good)), st.integers(0, 12), st.binary(max_size=6))
    def run(start, length, new):
        survives(place, name, good[:start] + new + good[start + length :])

    run()


@pytest.mark.parametrize("name", ["kitti", "visdrone", "dota"])
def test_changed_words(tmp_path_factory, name):
    place = tmp_path_factory.mktemp("words") / "a"
    words = re.split(r"([ ,\n])", GOOD[name])

    @fuzz
    @given(st.integers(0, len(words) - 1), ODD_WORDS)
    def run(number, new):
        survives(place, name, "".join([*words[:number], new, *words[number + 1 :]]).encode())

    run()


@pytest.mark.parametrize("name", ["labelme", "bdd", "supervisely"])
def test_changed_values(tmp_path_factory, name):
    place = tmp_path_factory.mktemp("values") / "a"
    good = json.loads(GOOD[name])
    paths = list(places_in(good))

    @fuzz
    @given(st.sampled_from(paths), odd_values)
    def run(path, new):
        survives(place, name, json.dumps(changed(good, path, new)).encode())

    run()


def test_a_zip_member_is_read(tmp_path):
    write_text(tmp_path / "raw" / "label_2" / "1.txt", KITTI)
    archive = pack(tmp_path / "raw", tmp_path / "raw.zip")
    assert len(PAIRED["kitti"].read(archive / "label_2" / "1.txt").records) == 1
