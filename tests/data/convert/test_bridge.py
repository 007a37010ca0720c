"""Label files that list many images: what mrt.data.convert.bridge reads; nothing is lost silently."""

from __future__ import annotations

import json
import math
import re
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.mask import encode
from trees import pack, write_image, write_text

from mrt.data.convert import bridge
from mrt.data.convert.formats import reading
from mrt.data.convert.recipe import Skipped
from mrt.data.convert.sheets import Record, Sheet
from mrt.errors import MrtError

CVAT = """<?xml version="1.0" encoding="utf-8"?>
<annotations>
  <version>1.1</version>
  <meta><task><id>1</id><name>t</name><labels><label><name>car</name>\
<attributes></attributes></label></labels></task></meta>
  <image id="0" name="cam/a.jpg" width="80" height="60">
    <box label="car" source="manual" occluded="0" xtl="1.50" ytl="2.00" xbr="30.25" ybr="40.00" z_order="0">
      <attribute name="parked">true</attribute>
    </box>
    <box label="car" occluded="0" xtl="10" ytl="20" xbr="30" ybr="30" rotation="90.00"></box>
    <polygon label="man" points="1.00,1.00;5.00,1.00;5.00,9.50"></polygon>
    <mask label="man" rle="0, 6" left="2" top="3" width="2" height="3"></mask>
    <ellipse label="ball" cx="20" cy="20" rx="5" ry="3" rotation="90"></ellipse>
    <cuboid label="bus" xtl1="1" ytl1="2" xbl1="1" ybl1="9" xtr1="8" ytr1="2" xbr1="8" ybr1="9"
            xtl2="3" ytl2="1" xbl2="3" ybl2="7" xtr2="11" ytr2="1" xbr2="11" ybr2="7"></cuboid>
    <polyline label="lane" points="1,1;5,1"></polyline>
    <points label="nose" points="1,1"></points>
    <skeleton label="man"><points label="1" points="1,1"></points>\
<points label="2" points="2,2"></points></skeleton>
    <tag label="rain"></tag>
    <spline label="lane"></spline>
  </image>
  <image id="1" name="b.jpg" width="80" height="60"></image>
  <image id="2" name="c.jpg"><box label="" xtl="1" ytl="2" xbr="3" ybr="4"/>\
<box label="car" xtl="1" ytl="2" ybr="4"/></image>
</annotations>
"""
OPEN_IMAGES = """\
ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside
000026e7,xclick,/m/0k4j,1,0.1,0.5,0.25,0.75,0,1,0,0,0
000026e7,xclick,/m/01g317,1,0,1,0,1,0,0,1,0,0
000026e7,xclick,/m/0k4j,1,10,50,20,70,0,0,0,0,0
missing1,xclick,/m/0k4j,1,0.1,0.5,0.25,0.75,0,1,0,0,0
"""
CSV = (
    "filename,width,height,class,xmin,ymin,xmax,ymax\n"
    "sub/a.jpg,80,60,car,1,2,30,40.5\n"
    "sub/a.jpg,80,60,man,5,6,7,nan\n"
    "b.jpg,80,60,,,,,\n"
)
RETINANET = "/data/imgs/a.jpg,837,346,981,456,cow\n/data/imgs/b.jpg,,,,,\n"
VIA = {
    "a.jpg7178": {
        "filename": "a.jpg",
        "size": 7178,
        "regions": [
            {
                "shape_attributes": {"name": "rect", "x": 1, "y": 2, "width": 3, "height": 4},
                "region_attributes": {"type": "car"},
            },
            {
                "shape_attributes": {"name": "polygon", "all_points_x": [1, 9, 3], "all_points_y": [1, 5, 8]},
                "region_attributes": {"type": {"man": True, "bus": False}},
            },
            {
                "shape_attributes": {"name": "circle", "cx": 10, "cy": 11, "r": 3},
                "region_attributes": {"type": "ball"},
            },
            {
                "shape_attributes": {
                    "name": "ellipse",
                    "cx": 10,
                    "cy": 11,
                    "rx": 3,
                    "ry": 5,
                    "theta": math.pi / 2,
                },
                "region_attributes": {"type": "ball"},
            },
            {
                "shape_attributes": {"name": "polyline", "all_points_x": [1], "all_points_y": [1]},
                "region_attributes": {"type": "lane"},
            },
            {
                "shape_attributes": {"name": "rect", "x": 1, "y": 2, "width": 3, "height": 4},
                "region_attributes": {"type": ""},
            },
            {"shape_attributes": {"name": "spline"}, "region_attributes": {"type": "car"}},
            {"region_attributes": {"type": "car"}},
        ],
        "file_attributes": {},
    },
    "b.jpg1": {"filename": "b.jpg", "size": 1, "regions": {}, "file_attributes": {}},
}
CREATE_ML = [
    {
        "image": "a.jpg",
        "annotations": [
            {"label": "car", "coordinates": {"x": 20, "y": 10, "width": 10, "height": 4}},
            {"label": "man"},
            3,
        ],
    },
    {"image": "b.jpg", "annotations": []},
]
DATUMARO = {
    "info": {},
    "categories": {
        "label": {
            "labels": [{"name": "car", "parent": "", "attributes": []}, {"name": "man", "parent": ""}],
            "attributes": [],
        }
    },
    "items": [
        {
            "id": "sub/a",
            "annotations": [
                {
                    "id": 0,
                    "type": "bbox",
                    "attributes": {},
                    "group": 0,
                    "label_id": 0,
                    "z_order": 0,
                    "bbox": [1, 2.5, 3, 4],
                },
                {
                    "id": 1,
                    "type": "polygon",
                    "attributes": {},
                    "group": 0,
                    "label_id": 1,
                    "z_order": 0,
                    "points": [1, 2, 3, 4, 5, 9],
                },
                {
                    "id": 2,
                    "type": "ellipse",
                    "attributes": {},
                    "group": 0,
                    "label_id": 1,
                    "z_order": 0,
                    "points": [1, 2, 3, 4],
                },
                {
                    "id": 3,
                    "type": "bbox",
                    "attributes": {"is_crowd": True},
                    "group": 0,
                    "label_id": 0,
                    "z_order": 0,
                    "bbox": [1, 2, 3, 4],
                },
                {
                    "id": 4,
                    "type": "bbox",
                    "attributes": {},
                    "group": 0,
                    "label_id": 7,
                    "z_order": 0,
                    "bbox": [1, 2, 3, 4],
                },
                {
                    "id": 5,
                    "type": "polyline",
                    "attributes": {},
                    "group": 0,
                    "label_id": 0,
                    "z_order": 0,
                    "points": [1, 2, 3, 4],
                },
                {"id": 6, "type": "label", "attributes": {}, "group": 0, "label_id": 0},
            ],
            "attr": {"frame": 0},
            "image": {"path": "sub/a.png", "size": [60, 80]},
        },
        {"id": "b", "annotations": [], "image": {"path": "b.jpg"}},
    ],
}
VOTT = {
    "name": "p",
    "version": "2.1.0",
    "tags": [{"name": "car", "color": "#fff"}, {"name": "van", "color": "#fff"}],
    "assets": {
        "i1": {
            "asset": {
                "format": "jpg",
                "name": "a.jpg",
                "path": "file:/home/me/a.jpg",
                "size": {"width": 80, "height": 60},
            },
            "regions": [
                {
                    "id": "x",
                    "type": "RECTANGLE",
                    "tags": ["car"],
                    "boundingBox": {"height": 4, "width": 3, "left": 1, "top": 2},
                },
                {
                    "id": "y",
                    "type": "RECTANGLE",
                    "tags": ["car", "van"],
                    "boundingBox": {"height": 4, "width": 3, "left": 5, "top": 2},
                },
                {
                    "id": "z",
                    "type": "RECTANGLE",
                    "tags": [],
                    "boundingBox": {"height": 4, "width": 3, "left": 5, "top": 2},
                },
            ],
        }
    },
}


def studio(value: dict, region: str, kind: str = "rectanglelabels", **more) -> dict:
    """A result of Label Studio, in an image of 80x60."""
    stated = {"original_width": 80, "original_height": 60, "image_rotation": 0}
    return {
        "id": region,
        "type": kind,
        "to_name": "image",
        "from_name": "label",
        "value": value,
        **stated,
        **more,
    }


def studio_box(x: float, y: float, width: float, height: float, *labels: str, rotation: float = 0) -> dict:
    return {
        **{"x": x, "y": y, "width": width, "height": height, "rotation": rotation},
        **({"rectanglelabels": list(labels)} if labels else {}),
    }


LABEL_STUDIO = [
    {
        "id": 1,
        "data": {"image": "/data/upload/3/0a1b2c3d-a.jpg", "place": "lab"},
        "annotations": [
            {
                "id": 11,
                "was_cancelled": False,
                "ground_truth": False,
                "updated_at": "2024-01-02T10:00:00Z",
                "result": [
                    studio(studio_box(10, 20, 30, 40, "car"), "r1"),
                    studio(studio_box(50, 50, 25, 10, "car", rotation=90), "r2", image_rotation=90),
                    studio(studio_box(0, 0, 50, 50, "car", "van"), "r3"),
                    studio(studio_box(0, 0, 10, 10), "r4", "rectangle"),
                    studio({**studio_box(0, 0, 10, 10), "choices": ["bus"]}, "r4", "choices"),
                    studio({"text": ["rusty"]}, "r4", "textarea"),
                    studio({"points": [[10, 10], [20, 10], [15, 50]], "polygonlabels": ["man"]}, "r5"),
                    studio(
                        {
                            "x": 50,
                            "y": 50,
                            "radiusX": 10,
                            "radiusY": 20,
                            "rotation": 0,
                            "ellipselabels": ["ball"],
                        },
                        "r6",
                    ),
                    studio(
                        {"x": 5, "y": 5, "width": 0.5, "keypointlabels": ["nose"]}, "r7", "keypointlabels"
                    ),
                    studio({"format": "rle", "rle": [1, 2], "brushlabels": ["man"]}, "r8", "brushlabels"),
                    studio({"choices": ["night"]}, "r9", "choices"),
                    studio(studio_box(0, 0, 10, 10), "r10"),
                    {"type": "relation", "from_id": "r1", "to_id": "r2", "direction": "right"},
                ],
            },
            {
                "id": 12,
                "was_cancelled": False,
                "updated_at": "2024-01-01T10:00:00Z",
                "result": [
                    studio(studio_box(1, 1, 1, 1, "car"), "s1"),
                    studio(studio_box(1, 1, 1, 1, "car"), "s2"),
                ],
            },
        ],
        "predictions": [{"result": [studio(studio_box(1, 1, 1, 1, "car"), "p")]}],
    },
    {
        "id": 2,
        "data": {"image": "/data/local-files/?d=cam%201/b.jpg"},
        "annotations": [{"was_cancelled": False, "result": []}],
    },
    {"id": 3, "data": {"image": "s3://bucket/c.jpg"}, "annotations": [{"was_cancelled": True, "result": []}]},
    {"id": 4, "data": {"image": "https://host/d.jpg?key=1"}, "annotations": []},
]
GOOD = {
    "cvat": ("annotations.xml", CVAT),
    "openimages": ("train-annotations-bbox.csv", OPEN_IMAGES),
    "csv": ("labels.csv", CSV),
    "via": ("via.json", json.dumps(VIA)),
    "createml": ("_annotations.createml.json", json.dumps(CREATE_ML)),
    "label-studio": ("project-1-at-2024.json", json.dumps(LABEL_STUDIO)),
    "datumaro": ("annotations/train.json", json.dumps(DATUMARO)),
    "vott": ("p-export.json", json.dumps(VOTT)),
}
OWN = ["cvat", "openimages", "csv", "via", "createml", "label-studio"]
BY_LIBRARY = ["datumaro", "vott"]


def files_of(folder: Path) -> dict[str, Path]:
    """The files below a folder by their path inside, for :func:`find` and :func:`read`; no hidden ones."""
    paths = ((path.relative_to(folder), path) for path in sorted(folder.rglob("*")) if path.is_file())
    return {
        inside.as_posix(): path
        for inside, path in paths
        if not any(part.startswith(".") for part in inside.parts)
    }


def read(folder, name, content, file=None):
    """What one label file says, for each image."""
    place = write_text(folder / (file or GOOD[name][0]), "")
    place.write_bytes(content if isinstance(content, bytes) else content.encode())
    (sheets,) = bridge.read(name, files_of(folder)).values()
    return sheets


def test_cvat(tmp_path):
    sheets = read(tmp_path, "cvat", CVAT)
    assert list(sheets) == ["cam/a.jpg", "b.jpg", "c.jpg"]
    assert sheets["cam/a.jpg"] == Sheet(
        (80, 60),
        (
            Record("car", (1.5, 2, 30.25, 40)),
            Record("car", (15, 15, 25, 35)),
            Record("man", (1, 1, 5, 9.5)),
            Record("man", (2, 3, 4, 6)),
            Record("ball", (17, 15, 23, 25)),
            Record("bus", (1, 1, 11, 9)),
        ),
        {
            "point or line, which has no area": 2,
            "skeleton of key points": 1,
            "tag of the whole image": 1,
            "unknown shape 'spline'": 1,
        },
    )
    assert sheets["b.jpg"] == Sheet((80, 60), (), {})
    assert sheets["c.jpg"].skipped == {"object without a class name": 1}
    (record,) = sheets["c.jpg"].records
    assert record.label == "car" and math.isnan(record.box[2])


def test_every_element_of_cvat_is_a_record_or_counted(tmp_path):
    """Counted by another parser."""
    there = {image.get("name"): len(image) for image in ElementTree.fromstring(CVAT).iter("image")}
    found = {
        name: len(sheet.records) + sum(sheet.skipped.values())
        for name, sheet in read(tmp_path, "cvat", CVAT).items()
    }
    assert found == there


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (CVAT[:900], "not valid XML"),
        (CVAT.replace("b.jpg", "c.jpg"), "lists the image 'c.jpg' more than once"),
        (CVAT.replace('name="b.jpg"', ""), "line 21 has no image's name"),
        (
            CVAT.replace(
                '<image id="1" name="b.jpg" width="80" height="60"></image>',
                '<track id="0" label="car"></track>',
            ),
            "tracks of a video",
        ),
        (CVAT.replace("<annotations>", '<!DOCTYPE x [<!ENTITY a "b">]><annotations>'), "has a document type"),
        (CVAT.replace("utf-8", "gb2312"), "not valid XML"),
        (CVAT.replace("utf-8", "klingon"), "not valid XML"),
    ],
)
def test_cvat_that_cannot_be_used(tmp_path, text, said):
    with pytest.raises(MrtError, match=re.escape(said)) as error:
        read(tmp_path, "cvat", text)
    assert "annotations.xml" in error.value.message and error.value.hint


def test_openimages(tmp_path):
    write_image(tmp_path / "train" / "000026e7.jpg", (80, 60))
    write_text(tmp_path / "class-descriptions-boxable.csv", '/m/0k4j,Car\n/m/01g317,"Person"\n')
    assert read(tmp_path, "openimages", OPEN_IMAGES) == {
        "000026e7.jpg": Sheet(
            None,
            (Record("Car", (8, 15, 40, 45)), Record("Person", (0, 0, 80, 60), ignored=True)),
            {"box with shares outside 0 to 1": 1},
        ),
        "missing1.jpg": Sheet(None, (), {"object of an image that is missing": 1}),
    }
    with pytest.raises(MrtError, match=r"line 2: its Confidence is 0\.93: these are predictions"):
        read(tmp_path, "openimages", OPEN_IMAGES.replace(",1,0.1", ",0.93,0.1", 1))


def test_openimages_of_a_photo_that_is_turned(tmp_path):
    write_image(tmp_path / "000026e7.jpg", (80, 60), orientation=6)
    sheets = read(tmp_path, "openimages", OPEN_IMAGES)
    assert sheets["000026e7.jpg"].records[0] == Record("/m/0k4j", (6, 20, 30, 60))


def test_csv(tmp_path):
    sheets = read(tmp_path, "csv", CSV)
    assert sheets["b.jpg"] == Sheet((80, 60), (), {})
    size, (car, man), skipped, _ = sheets["sub/a.jpg"]
    assert (size, car, skipped) == ((80, 60), Record("car", (1, 2, 30, 40.5)), {})
    assert man.label == "man" and math.isnan(man.box[3])


def test_csv_as_other_programs_write_it(tmp_path):
    assert read(tmp_path, "csv", RETINANET) == {
        "/data/imgs/a.jpg": Sheet(None, (Record("cow", (837, 346, 981, 456)),), {}),
        "/data/imgs/b.jpg": Sheet(None, (), {}),
    }
    text = (
        "Image;x1;y1;x2;y2;Label;note\r\n"
        "C:\\pics\\a.jpg;1;2;3;4;car;x\r\n"
        "b.jpg;1;2;3;4;;\r\n"
        "c.jpg;;;;;car\r\n\r\n"
    )
    for content in (
        text,
        text.encode("utf-16"),
        text.replace(";", "\t"),
        text.replace(";", ",").replace("4,,", "4,,,,"),
    ):
        assert read(tmp_path, "csv", content) == {
            "C:/pics/a.jpg": Sheet(None, (Record("car", (1, 2, 3, 4)),), {}),
            "b.jpg": Sheet(None, (), {"object without a class name": 1}),
            "c.jpg": Sheet(None, (Record("car", None),), {}),
        }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "image,xmin,ymin,xmax,ymax,class\na.jpg,0.1,0.1,0.5,0.5,car\n",
            "all its 1 boxes lie between 0 and 1",
        ),
        ("image,xmin,ymin,xmax,ymax,class\n,1,1,5,5,car\n", "line 2 has no image's name"),
        ("image,xmin,ymin,xmax,ymax,class\na.jpg,1,1,5,5,car,9\n", "line 2: 7 values for 6 columns"),
    ],
)
def test_csv_that_cannot_be_used(tmp_path, text, said):
    with pytest.raises(MrtError, match=re.escape(said)) as error:
        read(tmp_path, "csv", text)
    assert "labels.csv" in error.value.message and error.value.hint


def test_via(tmp_path):
    expected = Sheet(
        None,
        (
            Record("car", (1, 2, 4, 6)),
            Record("man", (1, 1, 9, 8)),
            Record("ball", (7, 8, 13, 14)),
            Record("ball", (5, 8, 15, 14)),
        ),
        {
            "point or line, which has no area": 1,
            "object without a class name": 1,
            "unknown shape 'spline'": 1,
            "no box": 1,
        },
    )
    for content in (VIA, {"_via_settings": {}, "_via_img_metadata": VIA, "_via_attributes": {}}):
        sheets = read(tmp_path, "via", json.dumps(content))
        assert sheets["b.jpg"] == Sheet(None, (), {})
        assert sheets["a.jpg"]._replace(records=()) == expected._replace(records=())
        for record, wanted in zip(sheets["a.jpg"].records, expected.records, strict=True):
            assert record.label == wanted.label and record.box == pytest.approx(wanted.box)


@pytest.mark.parametrize(
    ("attributes", "label"),
    [
        ([{"breed": "dog"}, {"breed": "cat"}], "dog"),
        ([{"label": "dog", "type": "x"}, {"type": "y"}], "dog"),
        ([{"class": "dog", "colour": "red"}, {"colour": "red"}], "dog"),
        ([{"breed": "dog", "colour": "red"}, {"breed": "cat"}], "dog"),
        ([{"breed": "dog", "colour": "red"}, {"breed": "cat", "colour": "red"}], None),
        ([{"name": "dog", "type": "red"}], None),
    ],
)
def test_which_attribute_of_via_is_the_class(tmp_path, attributes, label):
    shape = {"name": "rect", "x": 1, "y": 2, "width": 3, "height": 4}
    regions = [{"shape_attributes": shape, "region_attributes": found} for found in attributes]
    text = json.dumps({"a": {"filename": "a.jpg", "regions": regions, "file_attributes": {}}})
    if label is None:
        with pytest.raises(MrtError, match="which one is the class"):
            read(tmp_path, "via", text)
    else:
        assert read(tmp_path, "via", text)["a.jpg"].records[0].label == label


def test_via_with_two_files_of_one_name(tmp_path):
    with pytest.raises(MrtError, match=r"lists the image 'a\.jpg' more than once"):
        read(tmp_path, "via", json.dumps(VIA | {"a.jpg3": VIA["a.jpg7178"]}))


def test_createml(tmp_path):
    assert read(tmp_path, "createml", json.dumps(CREATE_ML)) == {
        "a.jpg": Sheet(
            None, (Record("car", (15, 8, 25, 12)), Record("man", None)), {"object without a class name": 1}
        ),
        "b.jpg": Sheet(None, (), {}),
    }


def test_label_studio(tmp_path):
    sheets = read(tmp_path, "label-studio", json.dumps(LABEL_STUDIO))
    assert list(sheets) == ["0a1b2c3d-a.jpg", "cam 1/b.jpg", "c.jpg", "d.jpg"]
    assert sheets["0a1b2c3d-a.jpg"] == Sheet(
        (80, 60),
        (
            Record("car", (8, 12, 32, 36)),
            Record("car", pytest.approx((34, 30, 40, 50))),  # turned about its corner at (40, 30)
            Record("car", (0, 0, 40, 30)),
            Record("van", (0, 0, 40, 30)),
            Record("bus", (0, 0, 8, 6)),
            Record("man", (8, 6, 16, 30)),
            Record("ball", (32, 18, 48, 42)),
        ),
        {
            "point or line, which has no area": 1,
            "mask, of which no box is taken": 1,
            "tag of the whole image": 1,
            "object without a class name": 1,
            "object of another annotation of its image": 2,
        },
    )
    assert sheets["cam 1/b.jpg"] == Sheet(None, (), {})
    assert sheets["c.jpg"] == Skipped("image that its annotator skipped", "c.jpg")
    assert sheets["d.jpg"] == Skipped("image that nobody has annotated", "d.jpg")


def test_label_studio_takes_the_truth_then_the_latest(tmp_path):
    def chosen(*annotations: dict) -> list[str]:
        found = [
            {"result": [studio(studio_box(0, 0, 10, 10, f"n{n}"), "r")], **one}
            for n, one in enumerate(annotations)
        ]
        content = json.dumps([{"data": {"image": "a.jpg"}, "annotations": found}])
        return [record.label for record in read(tmp_path, "label-studio", content)["a.jpg"].records]

    assert chosen({}, {}) == ["n1"]
    assert chosen({"updated_at": "2024-02"}, {"updated_at": "2024-01"}) == ["n0"]
    assert chosen({"ground_truth": True}, {"updated_at": "2024-01"}) == ["n0"]
    assert chosen({"updated_at": "2023"}, {"updated_at": "2024", "was_cancelled": True}) == ["n0"]


def test_label_studio_is_known_by_its_first_task(tmp_path):
    many = [studio({"points": [[1.5, 2.5]] * 50, "polygonlabels": ["man"]}, f"r{n}") for n in range(200)]
    whole = json.dumps([{"id": 1, "annotations": [{"id": 2, "result": many}], "data": {"image": "a.jpg"}}])
    values = [{**one["value"], "original_width": 80} for one in many]
    small = json.dumps([{"image": "a.jpg", "id": 1, "label": values, "annotator": 1, "annotation_id": 1}])
    for text in (whole, small):
        assert len(text) > reading.HEAD
        assert bridge.LISTED["label-studio"].looks(text.encode()[: reading.HEAD], "a.json")


def test_label_studios_other_forms(tmp_path):
    value = {**studio_box(10, 20, 30, 40, "car"), "original_width": 80, "original_height": 60}
    row = {"image": "/data/upload/3/0a1b2c3d-a.jpg", "id": 7, "annotator": 1, "lead_time": 2.5}
    rows = [
        {
            **row,
            "annotation_id": 1,
            "updated_at": "2024-01",
            "label": [{**value, "rectanglelabels": ["bus"]}],
        },
        {**row, "annotation_id": 2, "updated_at": "2024-02", "label": [value]},
        {**row, "annotation_id": 3, "updated_at": "2024-02", "id": 8, "image": "b.jpg", "scene": "night"},
        {**dict.fromkeys(row), "annotation_id": None, "id": 9, "image": "c.jpg"},  # of an open task
    ]
    expected = Sheet(
        (80, 60), (Record("car", (8, 12, 32, 36)),), {"object of another annotation of its image": 1}
    )
    assert read(tmp_path, "label-studio", json.dumps(rows)) == {
        "0a1b2c3d-a.jpg": expected,
        "b.jpg": Sheet(None, (), {}),
        "c.jpg": Skipped("image that nobody has annotated", "c.jpg"),
    }
    old = json.dumps([{"data": {"image": "a.jpg"}, "completions": [{"result": [studio(value, "r")]}]}])
    assert read(tmp_path, "label-studio", old)["a.jpg"] == expected._replace(skipped={})
    one = {"id": 5, "result": [studio(value, "r")], "task": {"id": 7, "data": {"image": "a.jpg"}}}
    assert read(tmp_path, "label-studio", json.dumps(one))["a.jpg"] == expected._replace(skipped={})


@pytest.mark.parametrize(
    ("task", "said"),
    [
        ({"data": {"text": "words"}, "annotations": []}, "task 0 has no image's name (None)"),
        ({"data": {"left": "a.jpg", "right": "b.jpg"}, "annotations": []}, "task 0 names several images"),
        ({"data": {"pages": ["a.jpg", "b.jpg"]}, "annotations": []}, "task 0 has a list of images"),
        (
            {
                "data": {"image": "a.jpg"},
                "annotations": [
                    {
                        "result": [
                            {**studio(studio_box(1, 1, 1, 1, "car"), n), "to_name": n} for n in ("x", "y")
                        ]
                    }
                ],
            },
            "task 0 has regions on several things: x, y",
        ),
    ],
)
def test_what_label_studio_shows_of_several_images_is_refused(tmp_path, task, said):
    with pytest.raises(MrtError, match=re.escape(said)):
        read(tmp_path, "label-studio", json.dumps([{**task, "predictions": []}]))


@pytest.mark.parametrize("name", bridge.LISTED)
def test_sniffers_are_sure(name):
    for other, (file, text) in GOOD.items():
        fits = bridge.LISTED[name].looks(text.encode()[: reading.HEAD], file)
        assert fits == (other == name)
    from test_formats import GOOD as PAIRED_FILES
    from test_formats import OTHERS

    for file, text in {**OTHERS, **{f"{key}.csv": text for key, text in PAIRED_FILES.items()}}.items():
        assert not bridge.LISTED[name].looks(text.encode(), file)
    assert not bridge.LISTED[name].looks(b"", "a.csv")


def test_other_tables_are_no_labels():
    for text in ("id,name\n1,car\n", "a.jpg\nb.jpg\n", "a.jpg,1,2,3,4\n", "time,x1,y1,x2,y2\n", '"unclosed'):
        assert not bridge.LISTED["csv"].looks(text.encode(), "a.csv")


def test_files_are_found_by_their_content(tmp_path):
    for file, text in GOOD.values():
        write_text(tmp_path / file, text)
    write_image(tmp_path / "images" / "a.jpg")
    write_text(tmp_path / "train" / "annotations.xml", CVAT)
    write_text(tmp_path / ".hidden" / "annotations.xml", CVAT)
    found = bridge.find(files_of(tmp_path))
    assert found == {name: [file] for name, (file, _) in GOOD.items()} | {
        "cvat": ["annotations.xml", "train/annotations.xml"]
    }
    assert list(bridge.read("cvat", files_of(tmp_path))) == found["cvat"]


def test_label_files_in_a_zip(tmp_path):
    write_text(tmp_path / "raw" / "annotations.xml", CVAT)
    archive = pack(tmp_path / "raw", tmp_path / "raw.zip")
    files = {"annotations.xml": archive / "annotations.xml", "missing.xml": archive / "missing.xml"}
    assert len(bridge.read("cvat", files)["annotations.xml"]) == 3


def test_what_is_not_there(tmp_path):
    with pytest.raises(MrtError, match="--format dicom: unknown"):
        bridge.read("dicom", {})
    write_text(tmp_path / "a.xml", "<annotation/>")
    with pytest.raises(MrtError, match="--format cvat: none of the 1 files is such a label file") as error:
        bridge.read("cvat", files_of(tmp_path))
    assert "CVAT for images 1.1" in error.value.hint


@pytest.mark.parametrize("name", BY_LIBRARY)
def test_without_the_library(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, "datumaro", None)
    with pytest.raises(MrtError, match="which is not installed") as error:
        read(tmp_path, name, GOOD[name][1])
    assert "pip install 'mrt-detection[formats]'" in error.value.hint


def test_datumaro(tmp_path):
    pytest.importorskip("datumaro.components.dataset")
    assert read(tmp_path, "datumaro", json.dumps(DATUMARO)) == {
        "sub/a.png": Sheet(
            (80, 60),
            (
                Record("car", (1, 2.5, 4, 6.5)),
                Record("man", (1, 2, 5, 9)),
                Record("man", (1, 2, 3, 4)),
                Record("car", (1, 2, 4, 6), ignored=True),
            ),
            {
                "annotation of an unknown category": 1,
                "point or line, which has no area": 1,
                "tag of the whole image": 1,
            },
        ),
        "b.jpg": Sheet(None, (), {}),
    }


def test_what_datumaro_does_not_know_is_refused(tmp_path):
    pytest.importorskip("datumaro.components.dataset")
    skeleton = {"id": 9, "type": "skeleton", "label_id": 0, "elements": []}
    items = [DATUMARO["items"][0] | {"annotations": [skeleton]}]
    with pytest.raises(MrtError, match=r"datumaro cannot read it \(.*skeleton"):
        read(tmp_path, "datumaro", json.dumps(DATUMARO | {"items": items}))
    for twins in (
        DATUMARO["items"] * 2,
        [{"id": "b", "image": {"path": name}} for name in ("b.jpg", "b.png")],
    ):
        with pytest.raises(MrtError, match=r"datumaro cannot read it \(.* is repeated"):
            read(tmp_path, "datumaro", json.dumps(DATUMARO | {"items": twins}))


def test_masks_of_datumaro(tmp_path):
    pytest.importorskip("datumaro.components.dataset")
    mask = np.zeros((60, 80), np.uint8, order="F")
    mask[3:6, 2:4] = 1
    rle = {"counts": encode(mask)["counts"].decode(), "size": [60, 80]}
    empty = {"counts": encode(np.zeros((60, 80), np.uint8, order="F"))["counts"].decode(), "size": [60, 80]}
    annotations = [
        {"id": n, "type": "mask", "label_id": 0, "attributes": {}, "rle": found}
        for n, found in enumerate((rle, empty))
    ]
    sheet = read(
        tmp_path,
        "datumaro",
        json.dumps(DATUMARO | {"items": [DATUMARO["items"][0] | {"annotations": annotations}]}),
    )["sub/a.png"]
    assert sheet.records[0] == Record("car", (2, 3, 4, 6))
    assert [record.box for record in sheet.records[1:]] in ([], [(0, 0, 0, 0)])  # nothing, or no area


def test_vott(tmp_path):
    pytest.importorskip("datumaro.components.dataset")
    assert read(tmp_path, "vott", json.dumps(VOTT)) == {
        "a.jpg": Sheet(
            (80, 60),
            (Record("car", (1, 2, 4, 6)), Record("car", (5, 2, 8, 6)), Record("van", (5, 2, 8, 6))),
            {"annotation of an unknown category": 1},
        )
    }


def test_what_datumaro_passes_over_in_vott_is_refused(tmp_path):
    pytest.importorskip("datumaro.components.dataset")
    asset = VOTT["assets"]["i1"]
    outline = {
        "id": "p",
        "type": "POLYGON",
        "tags": ["car"],
        "points": [{"x": 1, "y": 2}, {"x": 3, "y": 2}, {"x": 3, "y": 9}],
    }
    with pytest.raises(MrtError, match=r"'a\.jpg' has 5 bbox, of which datumaro reads 4 bbox"):
        read(
            tmp_path,
            "vott",
            json.dumps(VOTT | {"assets": {"i1": asset | {"regions": [*asset["regions"], outline]}}}),
        )
    twin = asset | {"asset": asset["asset"] | {"name": "a.png"}}
    with pytest.raises(MrtError, match="has 2 images, of which datumaro reads 1"):
        read(tmp_path, "vott", json.dumps(VOTT | {"assets": {"i1": asset, "i2": twin}}))


# Whatever the file holds: sheets, or a message that says which file and what to do.


def survives(folder, name, content):
    place = write_text(folder / GOOD[name][0], "")
    place.write_bytes(content)
    listing = bridge.LISTED[name]
    listing.looks(content[: reading.HEAD], place.name)
    try:
        sheets = listing.read(place, {GOOD[name][0]: place})
    except MrtError as error:
        assert str(place) in error.message and error.hint
        return
    for image, sheet in sheets.items():
        assert image.strip() and image.encode()
        if isinstance(sheet, Skipped):
            continue
        size, records, skipped, _ = sheet
        assert size is None or min(size) >= 1
        assert all(isinstance(reason, str) and count > 0 for reason, count in skipped.items())
        for label, box, ignored in records:
            assert label.strip() and label.encode() and isinstance(ignored, bool)
            assert box is None or (len(box) == 4 and all(isinstance(value, (int, float)) for value in box))


fuzz = settings(max_examples=60, deadline=None, derandomize=True, database=None)


@pytest.mark.parametrize("name", OWN)
def test_any_bytes(tmp_path, name):
    @fuzz
    @given(st.binary(max_size=60))
    def run(content):
        survives(tmp_path, name, content)

    run()


@pytest.mark.parametrize("name", [*OWN, *BY_LIBRARY])
def test_changed_bytes(tmp_path, name):
    good = GOOD[name][1].encode()

    @fuzz
    @given(st.integers(0, len(good)), st.integers(0, 12), st.binary(max_size=6))
    def run(start, length, new):
        survives(tmp_path, name, good[:start] + new + good[start + length :])

    run()


@pytest.mark.parametrize("name", ["cvat", "openimages", "csv"])
def test_changed_words(tmp_path, name):
    from test_formats import ODD_WORDS

    words = re.split(r'([",\n;])', GOOD[name][1])

    @fuzz
    @given(st.integers(0, len(words) - 1), ODD_WORDS)
    def run(number, new):
        survives(tmp_path, name, "".join([*words[:number], new, *words[number + 1 :]]).encode())

    run()


@pytest.mark.parametrize("name", ["via", "createml", "label-studio", "datumaro", "vott"])
def test_changed_values(tmp_path, name):
    from test_formats import changed, odd_values, places_in

    good = json.loads(GOOD[name][1])
    paths = list(places_in(good))

    @fuzz
    @given(st.sampled_from(paths), odd_values)
    def run(path, new):
        survives(tmp_path, name, json.dumps(changed(good, path, new)).encode())

    run()
