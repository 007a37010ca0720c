"""Exports of Label Studio and Supervisely, from files to boxes by the command."""

from __future__ import annotations

import pytest
from test_exports import BOX, boxes, given, one, picture

MIDDLE = {"x": 25, "y": 25, "width": 50, "height": 50, "rotation": 0, "rectanglelabels": ["car"]}
SHARES = (16, 12, 32, 24)  # MIDDLE, in photos of 64x48


@pytest.fixture(autouse=True)
def _somewhere(somewhere):
    """Each test has an empty working folder."""


def task(image: str, *values: dict, **more) -> dict:
    results = [{"id": f"r{n}", "type": "rectanglelabels", "value": value} for n, value in enumerate(values)]
    return {"data": {"image": image}, "annotations": [{"result": results, **more}], "predictions": []}


def studio(*tasks: dict, images: tuple[str, ...]):
    return given(*images, files={"project.json": list(tasks)}, words=("--format", "label-studio"))


def test_it_is_known_and_named():
    found = given("a.jpg", files={"project.json": [task("/data/upload/1/0a1b2c3d-a.jpg", MIDDLE)]})
    assert found.code == 2 and "1 look like label-studio labels" in found.said
    assert "--format label-studio" in found.said


@pytest.mark.parametrize(
    ("url", "file"),
    [
        ("/data/upload/1/0a1b2c3d-a.jpg", "a.jpg"),
        ("/data/upload/1/0a1b2c3d-a.jpg", "images/0a1b2c3d-a.jpg"),
        ("http://localhost:8080/data/upload/1/0a1b2c3d-a.jpg", "a.jpg"),
        ("/data/upload/1/0a1b2c3d-my_photo_1.jpg", "my photo (1).jpg"),
        ("/data/local-files/?d=cam/my%20photo.jpg", "cam/my photo.jpg"),
        ("s3://bucket/cam/a.jpg", "cam/a.jpg"),
        ("https://host/cam/a.jpg?X-Signature=1", "a.jpg"),
        ("a.jpg", "a.jpg"),
        (r"C:\photos\a.jpg", "a.jpg"),
        ("0a1b2c3d-a.jpg", "0a1b2c3d-a.jpg"),
    ],
)
def test_images_are_found_by_their_urls(url, file):
    assert boxes(studio(task(url, MIDDLE), images=(file,))) == one(SHARES, file=file.rpartition("/")[2])


def test_names_that_only_their_letters_tell_apart():
    tasks = task("/data/upload/1/0a1b2c3d-a.jpg", MIDDLE), task("/data/upload/1/ffffffff-a.jpg")
    names = "0a1b2c3d-a.jpg", "ffffffff-a.jpg"
    assert boxes(studio(*tasks, images=names)) == {"train": {names[0]: [SHARES], names[1]: []}}


def test_two_uploads_of_one_name_and_one_such_file():
    tasks = task("/data/upload/1/0a1b2c3d-a.jpg", MIDDLE), task("/data/upload/1/ffffffff-a.jpg")
    refused = studio(*tasks, images=("a.jpg",))
    assert refused.code == 2 and "lists the image 'a.jpg' more than once" in refused.said


def test_a_photo_that_exif_turns_is_labelled_as_shown():
    turned = picture("a.jpg", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0")
    corner = {**MIDDLE, "x": 0, "y": 0}
    found = given(
        files={"a.jpg": turned, "p.json": [task("a.jpg", corner)]}, words=("--format", "label-studio")
    )
    assert boxes(found) == one((0, 0, 24, 32))


def test_skipped_and_open_tasks_are_told_of_and_no_background():
    tasks = task("a.jpg", MIDDLE), task("b.jpg"), task("c.jpg", was_cancelled=True)
    waiting = {"data": {"image": "d.jpg"}, "annotations": [], "predictions": []}
    found = studio(*tasks, waiting, images=("a.jpg", "b.jpg", "c.jpg", "d.jpg", "e.jpg"))
    assert boxes(found) == {"train": {"a.jpg": [SHARES], "b.jpg": []}}
    assert "image that its annotator skipped" in found.said
    assert "image that nobody has annotated" in found.said
    assert "1 images are in no label file and left out: e.jpg" in found.said


def supervisely(*corners: tuple[int, int, int, int]) -> dict:
    objects = [
        {
            "classTitle": "car",
            "geometryType": "rectangle",
            "points": {"exterior": [[x, y], [x + w - 1, y + h - 1]], "interior": []},
        }
        for x, y, w, h in corners
    ]
    return {"description": "", "tags": [], "size": {"height": 48, "width": 64}, "objects": objects}


META = {"classes": [{"title": "car", "shape": "rectangle", "color": "#FF0000"}], "tags": []}


def test_a_project_of_supervisely():
    files = {
        "meta.json": META,
        "train/ann/a.jpg.json": supervisely(BOX),
        "train/ann/b.jpg.json": supervisely(),
        "val/ann/a.jpg.json": supervisely(SHARES),
    }
    images = "train/img/a.jpg", "train/img/b.jpg", "val/img/a.jpg"
    asked = given(*images, files=files)
    assert asked.code == 2 and "3 look like supervisely labels" in asked.said
    found = given(words=("--format", "supervisely"))
    assert boxes(found) == {"train": {"a.jpg": [BOX], "b.jpg": []}, "val": {"a.jpg": [SHARES]}}
    assert "meta.json" not in found.said and "not read" not in found.said


def test_two_images_that_only_their_suffixes_tell_apart():
    files = {"ann/a.jpg.json": supervisely(BOX), "ann/a.png.json": supervisely(SHARES), "meta.json": META}
    found = given("img/a.jpg", "img/a.png", files=files, words=("--format", "supervisely"))
    assert boxes(found) == {"train": {"a.jpg": [BOX], "a.png": [SHARES]}}
