"""Inputs of the same kinds as issue 13's cases, as users of other tools have them.

No box may be lost or moved, no held-out image may be in train.

The number is the kind's in the issue. Each goes through the command line; what is said is pinned by the words
that a user needs.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image
from test_cases import MIDDLE, SIZE, YOLO_LINE, coco, photo, prepare
from trees import coco_content, pack, voc_tree, voc_xml, write_image, write_text

BOX = [10, 10, 20, 20]
CAR = ("car", 10, 10, 20, 20)
VOC_BOX = ("car", 11, 11, 30, 30)  # the same in VOC's pixels
KITTI = "Car 0.00 0 -1.93 10.00 10.00 30.00 30.00 1.40 1.61 3.77 3.01 1.46 7.62 -1.57\n"
CSV = "filename,width,height,class,xmin,ymin,xmax,ymax\n"
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"
HERE = ("--raw", "input")


class Sibling(NamedTuple):
    """How an input is made, the command's words, and what comes of it.

    That is the set (None for a refusal) and what is said.
    """

    make: Callable[[Path], None]
    words: tuple[str, ...]
    sets: dict[str, dict[str, list[tuple]]] | None
    said: tuple[str, ...]


SIBLINGS: dict[str, Sibling] = {}


def sibling(
    kind: int, sets: dict[str, dict[str, list[tuple]]] | None, *said: str, words: tuple[str, ...] = HERE
) -> Callable[[Callable[[Path], None]], Callable[[Path], None]]:
    """Register a function that makes an input, with what is expected of it."""

    def keep(make: Callable[[Path], None]) -> Callable[[Path], None]:
        SIBLINGS[f"{kind}-{make.__name__}"] = Sibling(make, words, sets, said)
        return make

    return keep


@pytest.fixture(autouse=True)
def _somewhere(somewhere):
    """Each test has an empty working folder."""


def yolo(folder: Path, names: str | list[str], line: str = YOLO_LINE) -> Path:
    """Photos and their labels, with different pixels in each folder, and a classes.txt with one class."""
    for name in names:
        photo(folder / f"images/{name}.jpg", seed=folder.name)
        write_text(folder / f"labels/{name}.txt", line)
    write_text(folder / "classes.txt", "car\n")
    return folder


def labelme_json(name: str) -> str:
    shape = {"label": "car", "points": [[10, 10], [30, 30]], "shape_type": "rectangle"}
    return json.dumps(
        {
            "version": "5.2.1",
            "flags": {},
            "shapes": [shape],
            "imagePath": name,
            "imageHeight": 60,
            "imageWidth": 80,
        }
    )


def annotated(
    folder: Path,
    *annotations: dict[str, Any],
    size: tuple[int, int] | None = SIZE,
    orientation: int | None = None,
) -> None:
    """One photo and a COCO file with these annotations of it."""
    photo(folder / "a.jpg", orientation=orientation)
    image = {"id": 1, "file_name": "a.jpg", **({"width": size[0], "height": size[1]} if size else {})}
    numbered = [
        {"id": number, "image_id": 1, "category_id": 1, **found} for number, found in enumerate(annotations)
    ]
    write_text(folder / "train.json", json.dumps(coco_content([image], numbered)))


def only(*boxes: tuple, split: str = "train", file: str = "a.jpg") -> dict[str, dict[str, list[tuple]]]:
    return {split: {file: list(boxes)}}


# 1: several raw places


@sibling(
    1,
    {
        "train": {
            f"cam{n}.tar.gz/images/f{k}.jpg": [("car", x, 15, 20, 30)]
            for n, x in ((1, 6), (2, 30), (3, 54))
            for k in (0, 1)
        }
    },
    "(in cam1.tar.gz and cam2.tar.gz): the places are kept apart",
)
def three_cameras_in_tar_files(folder: Path) -> None:
    folder.mkdir()
    for number, centre in ((1, 0.2), (2, 0.5), (3, 0.8)):
        pack(
            yolo(Path(f"cam{number}"), ["f0", "f1"], f"0 {centre} 0.5 0.25 0.5\n"),
            folder / f"cam{number}.tar.gz",
        )


@sibling(
    1, {"train": {f"{n}.jpg": [MIDDLE] for n in "abc"}}, "7 files are in several places with the same content"
)
def zip_with_a_top_folder_beside_what_came_out_of_it(folder: Path) -> None:
    yolo(folder / "set", "abc")
    shutil.copytree(folder / "set", "top/set")
    pack(Path("top"), folder / "set.zip")


@sibling(1, None, "input/set.zip hold the same image", "with different labels (set/labels/a.txt)")
def zip_beside_its_folder_where_a_label_was_mended(folder: Path) -> None:
    pack(yolo(folder / "set", "abc"), folder / "set.zip")
    write_text(folder / "set/labels/a.txt", "0 0.2 0.5 0.25 0.5\n")


@sibling(
    1,
    {
        split: {f"{name}.jpg": [CAR], "same.jpg": [("car", 5, 5, 9, 9)]}
        for split, name in (("train", "train"), ("val", "valid"), ("test", "test"))
    },
    words=("--raw", "input/test", "input/train", "input/valid"),
)
def roboflow_coco_folders_named_one_by_one(folder: Path) -> None:
    for name in ("train", "valid", "test"):
        photo(folder / name / f"{name}.jpg")
        photo(folder / name / "same.jpg", seed=name)
        coco(folder / name / "_annotations.coco.json", {f"{name}.jpg": [BOX], "same.jpg": [[5, 5, 9, 9]]})


@sibling(1, {"train": {f"{n}.jpg": [MIDDLE] for n in "ab"}}, words=("--raw", "input", "input/images"))
def a_place_inside_another_one(folder: Path) -> None:
    yolo(folder, "ab")


@sibling(
    1,
    {"train": {f"task{n}.zip/JPEGImages/f0.jpg": [("car", 10 * n, 10, 10, 10)] for n in (1, 2)}},
    "kept apart",
)
def two_voc_exports_of_the_same_file_names(folder: Path) -> None:
    folder.mkdir()
    for number in (1, 2):
        task = voc_tree(
            Path(f"task{number}"),
            {"f0": [("car", 10 * number + 1, 11, 10 * number + 10, 20)]},
            {"default": ["f0"]},
        )
        photo(task / "JPEGImages/f0.jpg", seed=str(number), size=(40, 30))
        pack(task, folder / f"task{number}.zip")


@sibling(
    1,
    {
        "train": {
            f"cam{n}/images/f{n}.jpg": [(name, 30, 15, 20, 30)] for n, name in ((1, "car"), (2, "person"))
        }
    },
    words=("--raw", "input/cam1", "input/cam2"),
)
def two_places_with_their_classes_in_another_order(folder: Path) -> None:
    for number, names in ((1, "car\nperson\n"), (2, "person\ncar\n")):
        write_text(yolo(folder / f"cam{number}", [f"f{number}"]) / "classes.txt", names)


# 2: boxes that get lost


@sibling(2, None, "2 x box that is not four numbers", "--allow-empty")
def boxes_as_text(folder: Path) -> None:
    annotated(folder, {"bbox": "[10, 10, 20, 20]"}, {"bbox": ["10", "10", "20", "20"]})


@sibling(
    2,
    None,
    "2 of 2 annotation records (100 %) gave no box: 2 x annotation of an unknown category",
    "a.jpg, line 1: 1 0.5 0.5 0.25 0.5",
)
def class_numbers_that_begin_with_1(folder: Path) -> None:
    yolo(folder, "ab", "1 0.5 0.5 0.25 0.5\n")


@sibling(
    2,
    {"train": {f"{n:02}.jpg": [] if n == 7 else [MIDDLE] for n in range(20)}},
    "1 of 20 images (5 %) have no box: 07.jpg",
    "the first is labels/7.txt",
)
def one_label_file_of_twenty_misspelt(folder: Path) -> None:
    yolo(folder, [f"{n:02}" for n in range(20)])
    (folder / "labels/07.txt").rename(folder / "labels/7.txt")


@sibling(2, {"train": {"a.jpg": [MIDDLE], "b.jpg": []}}, "b.jpg", "the first is labels/b (1).txt")
def a_label_file_that_a_browser_has_numbered(folder: Path) -> None:
    yolo(folder, "ab")
    (folder / "labels/b.txt").rename(folder / "labels/b (1).txt")


@sibling(2, {"train": {f"{n}.jpg": [MIDDLE] for n in "ab"}})
def decimal_commas(folder: Path) -> None:
    yolo(folder, "ab", "0 0,5 0,5 0,25 0,5\n")


@sibling(
    2,
    {"train": {f"{n}.jpg": [CAR] for n in "abc"}},
    "3 annotations name their image or category by an id of another type",
    "2 x annotation of an unknown image",
    "2 of 5 annotation records (40 %) gave no box",
)
def ids_as_tables_write_them(folder: Path) -> None:
    images = [
        {"id": number, "file_name": photo(folder / f"{letter}.jpg").name}
        for number, letter in ((1, "a"), (2, "b"), (1000, "c"))
    ]
    ids = ("1.0", " 2", 1e3, float("nan"), None)
    annotations = [
        {"id": n, "image_id": image, "category_id": "1" if n < 3 else 1, "bbox": BOX}
        for n, image in enumerate(ids)
    ]
    write_text(folder / "train.json", json.dumps(coco_content(images, annotations)))


# 3: labels that are not understood are named


@sibling(3, None, "2 look like kitti labels (000000.txt, 000001.txt)", "--format kitti", "--format images")
def kitti_as_its_two_zips(folder: Path) -> None:
    folder.mkdir()
    for number in "01":
        photo(Path(f"images/training/image_2/00000{number}.png"))
        write_text(Path(f"labels/training/label_2/00000{number}.txt"), KITTI)
    pack(Path("images/training/image_2"), folder / "data_object_image_2.zip")
    pack(Path("labels/training/label_2"), folder / "data_object_label_2.zip")


@sibling(3, None, "1 look like csv labels (labels.csv)", "--format csv")
def a_table_in_utf16(folder: Path) -> None:
    photo(folder / "a.jpg")
    content = CSV + "a.jpg,80,60,car,10,10,30,30\n"
    write_text(folder / "labels.csv", "").write_bytes(content.encode("utf-16"))


@sibling(3, None, "2 look like labelme labels", "--format labelme")
def labelme_in_utf16(folder: Path) -> None:
    for letter in "ab":
        content = labelme_json(photo(folder / f"{letter}.jpg").name)
        write_text(folder / f"{letter}.json", "").write_bytes(content.encode("utf-16"))


@sibling(3, {"train": {f"{n}.jpg": [MIDDLE] for n in "ab"}})
def all_of_yolo_as_powershell_writes_it(folder: Path) -> None:
    yolo(folder, "ab")
    for place in (folder / "labels/a.txt", folder / "labels/b.txt", folder / "classes.txt"):
        place.write_bytes(place.read_text().replace("\n", "\r\n").encode("utf-16"))


@sibling(3, None, "of no kind that mrt knows: json/a.json", "--format images")
def json_of_no_known_tool(folder: Path) -> None:
    photo(folder / "items/a.jpg")
    objects = [{"class": "car", "bounding_box": [10, 10, 30, 30]}]
    write_text(folder / "json/a.json", json.dumps({"picture": "/a.jpg", "objects": objects}))


@sibling(3, None, "of no kind that mrt knows: annotations.mat", "--format images")
def a_matlab_file(folder: Path) -> None:
    photo(folder / "a.jpg")
    write_text(folder / "annotations.mat", "MATLAB 5.0 MAT-file")


@sibling(3, {"train": {"a.jpg": [], "b.jpg": []}}, "2 images, no labels")
def what_macs_and_windows_leave_is_no_label(folder: Path) -> None:
    for name in ("a.jpg", "b.jpg"):
        photo(folder / name)
    for name in ("Thumbs.db", "desktop.ini", ".DS_Store", "._a.jpg", "__MACOSX/._b.jpg", "README.txt"):
        write_text(folder / name, "x")


# 4: more layouts


@sibling(
    4, only(CAR, split="train") | only(CAR, split="val", file="b.jpg"), words=(*HERE, "--format", "visdrone")
)
def visdrone_as_its_zips(folder: Path) -> None:
    folder.mkdir()
    for split, letter in (("train", "a"), ("val", "b")):
        top = Path(split) / f"VisDrone2019-DET-{split}"
        photo(top / f"images/{letter}.jpg")
        write_text(top / f"annotations/{letter}.txt", "10,10,20,20,1,4,0,0\n1,2,3,4,0,0,0,0\n")
        pack(Path(split), folder / f"{top.name}.zip")


@sibling(
    4,
    {
        split: {f"{name}.jpg": [CAR], "same.jpg": [("car", 5, 5, 20, 20)]}
        for split, name in (("train", "train"), ("val", "valid"))
    },
    words=("--raw", "input/train", "input/valid", "--format", "csv"),
)
def roboflow_tables_named_one_by_one(folder: Path) -> None:
    for name in ("train", "valid"):
        photo(folder / name / f"{name}.jpg")
        photo(folder / name / "same.jpg", seed=name)
        write_text(
            folder / name / "_annotations.csv",
            f"{CSV}{name}.jpg,80,60,car,10,10,30,30\nsame.jpg,80,60,car,5,5,25,25\n",
        )


@sibling(4, only(CAR), words=(*HERE, "--format", "bdd"))
def bdd100k_a_file_for_each_image(folder: Path) -> None:
    photo(folder / "images/100k/train/a.jpg")
    objects = [{"category": "car", "id": 0, "box2d": {"x1": 10, "y1": 10, "x2": 30, "y2": 30}}]
    content = {"name": "a", "frames": [{"timestamp": 10000, "objects": objects}]}
    write_text(folder / "labels/100k/train/a.json", json.dumps(content))


@sibling(
    4,
    only(CAR),
    "1 images are in no label file and left out: images/b.jpg",
    words=(*HERE, "--format", "cvat"),
)
def cvat_for_images(folder: Path) -> None:
    for letter in "ab":
        photo(folder / f"images/{letter}.jpg")
    box = '<box label="car" xtl="10" ytl="10" xbr="30" ybr="30"/>'
    image = f'<image id="0" name="a.jpg" width="80" height="60">{box}</image>'
    write_text(
        folder / "annotations.xml", f"<annotations><version>1.1</version><meta></meta>{image}</annotations>"
    )


# 5: names


@sibling(
    5,
    {"train": {"cafe\u0301.jpg": [CAR], "Zu\u0308rich.jpg": [CAR]}},
    "2 image names are written differently from their files'",
)
def decomposed_names_in_a_zip(folder: Path) -> None:
    for name in ("cafe\u0301.jpg", "Zu\u0308rich.jpg"):
        photo(Path("made/images") / name)
    coco(Path("made/train.json"), {"caf\u00e9.jpg": [BOX], "Z\u00fcrich.jpg": [BOX]})
    folder.mkdir()
    pack(Path("made"), folder / "set.zip")


@sibling(5, only(MIDDLE, file="cafe\u0301.jpg"), "1 label files are named a little differently")
def a_composed_label_of_a_decomposed_image(folder: Path) -> None:
    yolo(folder, ["cafe\u0301"])
    (folder / "labels/cafe\u0301.txt").rename(folder / "labels/caf\u00e9.txt")


@sibling(
    5, only(("car", 10, 10, 20, 20), file="cafe\u0301.jpg"), "splits are those of ImageSets/Main/train.txt"
)
def a_composed_list_of_a_decomposed_image(folder: Path) -> None:
    write_image(folder / "JPEGImages/cafe\u0301.jpg")
    write_text(folder / "Annotations/caf\u00e9.xml", voc_xml([VOC_BOX]))
    write_text(folder / "ImageSets/Main/train.txt", "caf\u00e9\n")


@sibling(
    5,
    {"train": {"my car.jpg": [CAR], "100%.jpg": [CAR], "a%20b.jpg": [CAR]}},
    "1 image names are written differently",
)
def names_of_urls_where_some_are_meant_so(folder: Path) -> None:
    for name in ("my car.jpg", "100%.jpg", "a%20b.jpg"):
        photo(folder / "images" / name)
    coco(folder / "train.json", {"images/my%20car.jpg": [BOX], "100%.jpg": [BOX], "a%20b.jpg": [BOX]})


@sibling(5, {"train": {"a.JPEG": [CAR], "b.Png": [CAR]}})
def folders_with_backslashes_and_names_in_another_case(folder: Path) -> None:
    photo(folder / "Images/Train/a.JPEG")
    photo(folder / "Images/Train/b.Png")
    coco(folder / "train.json", {"images\\train\\A.jpeg": [BOX], ".\\images\\train\\B.PNG": [BOX]})


@sibling(5, {"train": {"cafe\u0301.jpg": [CAR], "caf\u00e9.jpg": [("car", 1, 2, 3, 4)]}})
def two_files_that_differ_in_their_normal_form_only(folder: Path) -> None:
    photo(folder / "cafe\u0301.jpg", seed="1")
    photo(folder / "caf\u00e9.jpg", seed="2")
    coco(folder / "train.json", {"caf\u00e9.jpg": [[1, 2, 3, 4]], "cafe\u0301.jpg": [BOX]})


@sibling(5, {"train": {"a.jpg": [("person", 30, 15, 20, 30)]}})
def class_names_with_windows_line_ends_and_a_mark(folder: Path) -> None:
    yolo(folder, "a", "1 0.5 0.5 0.25 0.5\r\n")
    (folder / "classes.txt").rename(folder / "obj.names").write_bytes("\ufeffcar\r\nperson\r\n".encode())


# 6: photos that EXIF turns


@sibling(6, only(("car", 65, 5, 10, 20)), "read the other way round than their size says")
def upright_size_beside_boxes_of_the_stored_picture(folder: Path) -> None:
    annotated(folder, {"bbox": [65, 5, 10, 20]}, size=(60, 80), orientation=8)


@sibling(6, only(("car", 10, 40, 30, 35)), "read the other way round than their size says")
def voc_with_the_stored_size_and_upright_boxes(folder: Path) -> None:
    photo(folder / "a.jpg", orientation=6)
    write_text(folder / "a.xml", voc_xml([("car", 11, 41, 40, 75)], SIZE))


@sibling(6, only(("car", 5, 5, 20, 20)), "no box tells which way they were labelled")
def nothing_tells_how_it_was_labelled(folder: Path) -> None:
    annotated(folder, {"bbox": [5, 5, 20, 20]}, orientation=6)


@sibling(6, only(("car", 10, 40, 30, 20)))
def upside_down_has_one_size(folder: Path) -> None:
    annotated(folder, {"bbox": [10, 40, 30, 35]}, orientation=3)


@sibling(
    6,
    {"train": {"a.jpg": [("car", 10, 40, 30, 35)], "b.jpg": [("car", 65, 5, 10, 20)]}},
    "warning: 2 photos are turned by their EXIF entry",
    "each is read so",
)
def two_tools_in_one_set(folder: Path) -> None:
    for name in ("a.jpg", "b.jpg"):
        photo(folder / name, orientation=6)
    coco(folder / "train.json", {"a.jpg": [[10, 40, 30, 35]], "b.jpg": [[65, 5, 10, 20]]})


# 7: units


def yolo_lines(folder: Path, *lines: str) -> None:
    for letter, line in zip("abcd", lines, strict=False):
        photo(folder / f"images/{letter}.jpg")
        write_text(folder / f"labels/{letter}.txt", line)
    write_text(folder / "classes.txt", "car\n")


PIXELS = ("0 40 30 20 20\n", "0 10 10 8 8\n", "0 60 50 20 20\n")
OF_PIXELS = {
    "train": {
        "a.jpg": [("car", 30, 20, 20, 20)],
        "b.jpg": [("car", 6, 6, 8, 8)],
        "c.jpg": [("car", 50, 40, 20, 20)],
    }
}


@sibling(7, OF_PIXELS, "fit their images only as cx cy w h in pixels: read so")
def yolo_in_pixels(folder: Path) -> None:
    yolo_lines(folder, *PIXELS)


@sibling(
    7,
    {
        "train": {
            "a.jpg": [("car", 40, 30, 20, 20)],
            "b.jpg": [("car", 0, 0, 18, 18)],
            "c.jpg": [("car", 60, 50, 19, 9)],
        }
    },
    "fit their images only as corners x0 y0 x1 y1 in pixels: read so",
)
def yolo_in_corners(folder: Path) -> None:
    yolo_lines(folder, "0 40 30 60 50\n", "0 0 0 18 18\n", "0 60 50 79 59\n")


@sibling(7, None, "3 of 4 boxes have numbers outside 0 to 1", "--boxes pixels")
def yolo_in_pixels_but_for_one(folder: Path) -> None:
    yolo_lines(folder, *PIXELS, "0 0.5 0.5 0.25 0.5\n")


@sibling(
    7, None, "3 of 4 boxes stick out of their images", "all fit as corners", "corners (x0 y0 x1 y1 in pixels)"
)
def coco_with_corners(folder: Path) -> None:
    annotated(
        folder,
        *({"bbox": box} for box in ([40, 30, 70, 55], [50, 40, 79, 59], [60, 10, 70, 50], [1, 1, 5, 5])),
    )


@sibling(
    7,
    only(("car", 40, 30, 30, 25), ("car", 50, 40, 29, 19), ("car", 60, 10, 10, 40), ("car", 1, 1, 4, 4)),
    words=(*HERE, "--boxes", "corners"),
)
def coco_with_corners_as_it_is_told(folder: Path) -> None:
    coco_with_corners(folder)


@sibling(7, None, "all 1 boxes lie within 0 to 1", "--boxes pixels, shares")
def coco_in_shares_that_may_be_corners(folder: Path) -> None:
    annotated(folder, {"bbox": [0.1, 0.2, 0.3, 0.4]})


# what the second look found: a box lost, moved, or a held-out image in train


@sibling(
    2,
    {
        "train": {
            "cam1/images/f0.jpg": [],
            "cam1/images/f1.jpg": [MIDDLE],
            "cam2/images/f0.jpg": [("car", 6, 15, 20, 30)],
        }
    },
    "1 images have no label file and are taken as images without objects: cam1/images/f0.jpg",
)
def an_image_does_not_take_the_labels_of_another_one(folder: Path) -> None:
    yolo(folder / "cam1", ["f0", "f1"])
    (folder / "cam1/labels/f0.txt").unlink()
    yolo(folder / "cam2", ["f0"], "0 0.2 0.5 0.25 0.5\n")


@sibling(
    5,
    {"train": {"A.jpg": [], "a.jpg": [MIDDLE]}},
    "no label file and are taken as images without objects: A.jpg",
)
def two_images_whose_names_differ_in_case(folder: Path) -> None:
    yolo(folder, ["a"])
    photo(folder / "images/A.jpg", seed="other")


@sibling(1, None, "hold the same image", "(set/train.json)")
def zip_beside_its_folder_where_the_split_was_changed(folder: Path) -> None:
    for name in "abcd":
        photo(folder / f"set/{name}.jpg")
    coco(folder / "set/train.json", {f"{name}.jpg": [BOX] for name in "abcd"})
    pack(folder / "set", folder / "set.zip")
    coco(folder / "set/train.json", {f"{name}.jpg": [BOX] for name in "abc"})
    coco(folder / "set/val.json", {"d.jpg": [BOX]})


@sibling(
    1,
    {"train": {"a.jpg": [MIDDLE]}, "val": {"b.jpg": [MIDDLE]}},
    words=(
        "--raw",
        *(f"input/{split}/{part}" for split in ("train", "valid") for part in ("images", "labels")),
    ),
)
def halves_of_each_split_named_one_by_one(folder: Path) -> None:
    for split, name in (("train", "a"), ("valid", "b")):
        yolo(folder / split, [name])
        (folder / split / "classes.txt").rename(folder / split / "labels/classes.txt")


@sibling(9, {"train": {"extra/x.jpg": [CAR], "train/a.jpg": [CAR]}, "test": {"t.jpg": [CAR]}})
def one_label_file_outside_the_folders_of_the_splits(folder: Path) -> None:
    for place in ("train/a", "test/t", "extra/x"):
        photo(folder / f"{place}.jpg")
        write_text(folder / f"{place}.xml", voc_xml([VOC_BOX], SIZE))


@sibling(9, {"train": {"a.jpg": []}, "test": {"t.jpg": []}})
def bare_images_in_folders_of_splits(folder: Path) -> None:
    photo(folder / "train/a.jpg")
    photo(folder / "test/t.jpg")


@sibling(
    9,
    {"train": {"a.jpg": [MIDDLE]}, "val": {"b.jpg": [MIDDLE]}},
    "splits are those of train.txt (train), val.txt (val)",
)
def lists_of_names_without_suffixes(folder: Path) -> None:
    yolo(folder, "ab")
    write_text(folder / "train.txt", "a\n")
    write_text(folder / "val.txt", "b\n")


@sibling(
    9, {"train": {"a.jpg": [MIDDLE]}, "test": {"b.jpg": [MIDDLE]}}, "splits are those of test.txt (test)"
)
def a_list_of_test_images_only(folder: Path) -> None:
    yolo(folder, "ab")
    write_text(folder / "test.txt", "images/b.jpg\n")


@sibling(
    9,
    only(CAR, file="a.jpg") | only(CAR, split="test", file="b.jpg"),
    "states no split; divided as its images' entries or folders say: 1 train, 1 test",
)
def coco_entries_that_state_a_split(folder: Path) -> None:
    for name in "ab":
        photo(folder / f"{name}.jpg")
    content = json.loads(coco(folder / "annotations.json", {"a.jpg": [BOX], "b.jpg": [BOX]}).read_text())
    for image, split in zip(content["images"], ("train", "test"), strict=True):
        image["split"] = split
    write_text(folder / "annotations.json", json.dumps(content))


@sibling(
    9,
    {"train": {"test/b.jpg": [MIDDLE], "train/a.jpg": [MIDDLE]}},
    "warning: 1 images of folders named test are in train, as the settings say: images/test/b.jpg",
)
def data_yaml_whose_train_holds_the_test_images(folder: Path) -> None:
    for split, name in (("train", "a"), ("test", "b")):
        photo(folder / f"images/{split}/{name}.jpg")
        write_text(folder / f"labels/{split}/{name}.txt", YOLO_LINE)
    write_text(folder / "data.yaml", "train: images\nnames: [car]\n")


@sibling(7, None, "9 of 10 boxes lie within 0 to 1")
def coco_of_which_some_are_shares(folder: Path) -> None:
    annotated(folder, *({"bbox": [0.1, 0.2, 0.3, 0.4]} for _ in range(9)), {"bbox": BOX})


@sibling(
    7, only(CAR, ("car", 1, 1, 8, 8), ("car", 30, 20, 10, 20)), "their areas are those of corners: read so"
)
def coco_corners_that_only_areas_tell(folder: Path) -> None:
    corners = ([10, 10, 30, 30], [1, 1, 9, 9], [30, 20, 40, 40])
    annotated(folder, *({"bbox": box, "area": (box[2] - box[0]) * (box[3] - box[1])} for box in corners))


@sibling(7, None, "all 1 boxes lie within the first pixel of their images", "--boxes pixels")
def voc_in_shares(folder: Path) -> None:
    photo(folder / "a.jpg")
    write_text(folder / "a.xml", voc_xml([("car", 0.1, 0.2, 0.6, 0.7)], SIZE))


@sibling(
    7, None, "boxes stick out of their images as centre and size, and all fit as corners", "corner-shares"
)
def yolo_shares_of_corners(folder: Path) -> None:
    yolo(folder, "a", "0 0.6 0.6 0.95 0.8\n0 0.5 0.5 0.9 0.9\n0 0.7 0.1 0.9 0.9\n")


@sibling(
    2,
    only(("car", 70, 10, 10, 20), CAR),
    "1 of 2 boxes (50 %) stuck out of their images by more than a pixel and were cut: a.jpg",
)
def a_box_that_sticks_out(folder: Path) -> None:
    annotated(folder, {"bbox": [70, 10, 30, 20]}, {"bbox": BOX})


@sibling(3, None, "1 files that may be labels, of no kind that mrt knows: gt/gt.txt", "--format images")
def a_trackers_table(folder: Path) -> None:
    photo(folder / "img1/000001.jpg")
    write_text(folder / "gt/gt.txt", "1,1,10,10,20,20,1,1,1\n1,2,30,10,20,20,1,1,1\n")


@sibling(
    3,
    only(CAR),
    "1 label files have other names than the images that they state: one.json for a.jpg",
    words=(*HERE, "--format", "labelme"),
)
def labelme_files_of_other_names(folder: Path) -> None:
    photo(folder / "a.jpg")
    write_text(folder / "one.json", labelme_json("a.jpg"))


@sibling(
    1,
    {"train": {f"task{n}.zip/obj_train_data/a.jpg": [("car", x, 15, 20, 30)] for n, x in ((1, 6), (2, 54))}},
    "kept apart",
)
def two_yolo_exports_of_cvat(folder: Path) -> None:
    folder.mkdir()
    for number, centre in ((1, 0.2), (2, 0.8)):
        task = Path(f"task{number}")
        photo(task / "obj_train_data/a.jpg", seed=str(number))
        write_text(task / "obj_train_data/a.txt", f"0 {centre} 0.5 0.25 0.5\n")
        write_text(task / "obj.names", "car\n")
        write_text(task / "train.txt", "data/obj_train_data/a.jpg\n")
        write_text(
            task / "obj.data",
            "classes = 1\ntrain = data/train.txt\nnames = data/obj.names\nbackup = backup/\n",
        )
        pack(task, folder / f"task{number}.zip")


@sibling(
    10,
    None,
    "no images that are read, but 1 files of kinds that Pillow does not open: a.heic",
    "Convert pictures",
)
def nothing_but_heic(folder: Path) -> None:
    write_text(folder / "a.heic", "")


@sibling(
    1,
    {
        "train": {
            f"cam{n}.zip/images/license_plate_0.jpg": [("car", x, 15, 20, 30)] for n, x in ((1, 6), (2, 54))
        }
    },
    "kept apart",
)
def licence_plates_are_no_licences(folder: Path) -> None:
    folder.mkdir()
    for number, centre in ((1, 0.2), (2, 0.8)):
        camera = yolo(Path(f"cam{number}"), ["license_plate_0"], f"0 {centre} 0.5 0.25 0.5\n")
        write_text(camera / "README.txt", f"camera {number}")
        pack(camera, folder / f"cam{number}.zip")


@sibling(1, {"train": {"a.jpg": [MIDDLE]}, "val": {"b.jpg": [MIDDLE]}}, "each is taken once")
def archives_named_after_splits_beside_what_came_out_of_them(folder: Path) -> None:
    for split, name in (("train", "a"), ("valid", "b")):
        pack(yolo(folder / split, [name]), folder / f"{split}.zip")


@sibling(
    9,
    {
        "train": {
            "VOC2007/JPEGImages/a.jpg": [("car", 10, 10, 20, 20)],
            "VOC2012/JPEGImages/c.jpg": [("car", 10, 10, 20, 20)],
        },
        "val": {"d.jpg": [("car", 10, 10, 20, 20)]},
        "test": {"b.jpg": [("car", 10, 10, 20, 20)]},
    },
)
def a_year_with_trainval_and_one_with_train(folder: Path) -> None:
    for year, lists in (
        ("VOC2007", {"trainval": ["a"], "test": ["b"]}),
        ("VOC2012", {"train": ["c"], "val": ["d"]}),
    ):
        names = [name for entries in lists.values() for name in entries]
        voc_tree(folder / year, {name: [VOC_BOX] for name in names}, lists)
        for name in names:
            photo(folder / year / f"JPEGImages/{name}.jpg")
            write_text(folder / year / f"Annotations/{name}.xml", voc_xml([VOC_BOX], SIZE))


@sibling(
    9,
    {"train": {"a.jpg": [MIDDLE]}, "test": {"b.jpg": [MIDDLE]}},
    "splits are those of lists/test.txt (test), lists/train.txt (train)",
)
def lists_whose_lines_climb_up(folder: Path) -> None:
    yolo(folder, "ab")
    write_text(folder / "lists/train.txt", "../images/a.jpg\n")
    write_text(folder / "lists/test.txt", "../images/b.jpg\n")


@sibling(9, {"train": {"a.jpg": [CAR]}, "test": {"b.jpg": [CAR]}}, words=(*HERE, "--format", "csv"))
def a_table_of_images_in_folders_of_splits(folder: Path) -> None:
    for place in ("train/a", "test/b"):
        photo(folder / f"{place}.jpg")
    write_text(
        folder / "boxes.csv",
        CSV + "".join(f"{place}.jpg,80,60,car,10,10,30,30\n" for place in ("train/a", "test/b")),
    )


@sibling(
    9,
    {"train": {"a.jpg": [CAR]}, "test": {"b.jpg": [CAR]}},
    "divided as its images' entries or folders say: 1 train, 1 test",
)
def coco_photos_beside_a_folder_of_test_images(folder: Path) -> None:
    for place in ("photos/a", "test/b"):
        photo(folder / f"{place}.jpg")
    coco(folder / "annotations.json", {"photos/a.jpg": [BOX], "test/b.jpg": [BOX]})


@sibling(
    6,
    {"train": {"a.jpg": [("vehicle", 10, 40, 30, 35)]}},
    "read the other way round than their size says",
    words=(*HERE, "--map-class", "car=vehicle"),
)
def a_turned_photo_whose_classes_are_renamed(folder: Path) -> None:
    annotated(folder, {"bbox": [10, 40, 30, 35]}, orientation=6)


@sibling(2, {"train": {"a.jpg": [MIDDLE]}})
def yolo_lines_with_commas_alone(folder: Path) -> None:
    yolo(folder, "a", "0,0.5,0.5,0.25,0.5\n")


# 8: outlines


@sibling(8, only(CAR, CAR, CAR), "3 annotations without a box of any size have that of their outline")
def outlines_of_all_sorts_beside_empty_boxes(folder: Path) -> None:
    runs = [610, *[20, 40] * 19, 20]  # columns of 60, twenty of them from row 10 on
    runs.append(60 * 80 - sum(runs))
    annotated(
        folder,
        {"bbox": [0, 0, 0, 0], "segmentation": {"size": [60, 80], "counts": runs}},
        {"bbox": [-1, -1, -1, -1], "segmentation": [[[10, 10], [30, 10], [30, 30]]]},
        {"bbox": [None] * 4, "segmentation": [10, 10, 30, 10, 30, 30]},
    )


@sibling(8, only(CAR, CAR, ("car", 1, 2, 3, 4)))
def no_box_at_all_beside_an_outline(folder: Path) -> None:
    outline = [[10, 10, 30, 10, 30, 30, 10, 30]]
    annotated(
        folder,
        {"bbox": None, "segmentation": outline},
        {"segmentation": outline},
        {"bbox": [1, 2, 3, 4], "segmentation": outline},
    )


@sibling(8, only(("car", 10, 10, 20, 20), ("bus", 10, 10, 20, 20)))
def voc_polygons(folder: Path) -> None:
    photo(folder / "a.jpg", size=(40, 30))
    empty = "<bndbox><xmin>0</xmin><ymin>0</ymin><xmax>0</xmax><ymax>0</ymax></bndbox>"
    numbered = "<polygon><x1>11</x1><y1>11</y1><x2>30</x2><y2>11</y2><x3>30</x3><y3>30</y3></polygon>"
    points = (
        "<polygon><pt><x>11</x><y>11</y></pt><pt><x>30</x><y>11</y></pt><pt><x>30</x><y>30</y></pt></polygon>"
    )
    objects = f"<object><name>car</name>{empty}{numbered}</object><object><name>bus</name>{points}</object>"
    write_text(folder / "a.xml", voc_xml([], extra=objects))


# 9: stated splits


@sibling(
    9,
    {"train": {"a.jpg": [MIDDLE], "b.jpg": [MIDDLE]}, "val": {"c.jpg": [MIDDLE]}},
    "taken out of train: c.jpg",
)
def darknet_lists_that_overlap(folder: Path) -> None:
    yolo(folder, "abc")
    (folder / "classes.txt").rename(folder / "obj.names")
    write_text(folder / "train.txt", "".join(f"data/images/{n}.jpg\n" for n in "abc"))
    write_text(folder / "test.txt", "data/images/c.jpg\n")
    write_text(
        folder / "obj.data", "classes=1\ntrain=data/train.txt\nvalid=data/test.txt\nnames=data/obj.names\n"
    )


@sibling(9, None, "all 2 images of the split train are in test too")
def data_yaml_with_train_as_test(folder: Path) -> None:
    yolo(folder, "ab")
    write_text(folder / "data.yaml", "train: images\nval: images\ntest: images\nnames: [car]\n")


@sibling(
    9,
    {"train": {n: [CAR] for n in ("a.jpg", "b.jpg")}, "val": {"c.jpg": [CAR]}, "test": {"d.jpg": [CAR]}},
    "taken out of train: d.jpg",
    "taken out of train: c.jpg",
)
def voc_lists_that_overlap(folder: Path) -> None:
    voc_tree(folder, {n: [VOC_BOX] for n in "abcd"}, {"train": list("abcd"), "val": ["c"], "test": ["d"]})


@sibling(
    9,
    {"train": {"a.jpg": [CAR]}, "test": {"b.jpg": [CAR]}},
    "taken out of train: b.jpg",
)
def coco_files_that_overlap(folder: Path) -> None:
    for letter in "ab":
        photo(folder / f"images/{letter}.jpg")
    coco(folder / "train.json", {"a.jpg": [BOX], "b.jpg": [BOX]})
    coco(folder / "test.json", {"b.jpg": [BOX]})


@sibling(
    9,
    {"train": {"a.jpg": [MIDDLE]}, "val": {"b.jpg": [MIDDLE]}},
    "1 images are in no split of data.yaml and left out: images/test/c.jpg",
)
def a_test_folder_that_data_yaml_does_not_name(folder: Path) -> None:
    yolo(folder, ["train/a", "val/b", "test/c"])
    write_text(folder / "data.yaml", "train: images/train\nval: images/val\nnames: [car]\n")


# 10: reasons


def beside_a_good_one(folder: Path, name: str, content: bytes) -> None:
    photo(folder / "images/ok.jpg")
    (folder / "images" / name).write_bytes(content)
    coco(folder / "train.json", {"ok.jpg": [BOX], name: [BOX]})


@sibling(
    10, only(CAR, file="ok.jpg"), "kind of image not read, the first is p.jpg (HEIC: convert it to JPEG)"
)
def a_phone_photo_renamed(folder: Path) -> None:
    beside_a_good_one(folder, "p.jpg", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"x" * 200)


@sibling(10, only(CAR, file="ok.jpg"), "p.jpg (a web page instead of an image: get it again)")
def a_web_page_named_jpg(folder: Path) -> None:
    beside_a_good_one(folder, "p.jpg", b"\n<!DOCTYPE html><html><body>404</body></html>")


@sibling(10, only(CAR, file="ok.jpg"), "p.jpg (a Git LFS pointer instead of the image: run git lfs pull)")
def a_git_lfs_pointer(folder: Path) -> None:
    beside_a_good_one(folder, "p.jpg", LFS.encode())


@sibling(10, only(CAR, file="ok.jpg"), "p.jpg (an empty file)")
def an_empty_file(folder: Path) -> None:
    beside_a_good_one(folder, "p.jpg", b"")


@sibling(10, {"train": {f"a.{suffix}": [CAR] for suffix in ("tif", "webp", "gif", "jp2")}})
def kinds_that_pillow_reads(folder: Path) -> None:
    folder.mkdir()
    Image.fromarray(np.full((60, 80), 30000, np.uint16)).save(folder / "a.tif")
    for suffix in ("webp", "gif", "jp2"):
        Image.new("RGB", SIZE, (200, 30, 30)).save(folder / f"a.{suffix}")
    coco(folder / "train.json", {f"a.{suffix}": [BOX] for suffix in ("tif", "webp", "gif", "jp2")})


def huge(folder: Path) -> None:
    photo(folder / "images/ok.jpg")
    Image.new("1", (20000, 10000)).save(folder / "images/huge.png")
    images = [
        {"id": 1, "file_name": "ok.jpg"},
        {"id": 2, "file_name": "huge.png", "width": 20000, "height": 10000},
    ]
    boxes = ([10, 10, 20, 20], [10000, 5000, 99, 99])
    annotations = [
        {"id": n, "image_id": n, "category_id": 1, "bbox": box} for n, box in enumerate(boxes, start=1)
    ]
    write_text(folder / "train.json", json.dumps(coco_content(images, annotations)))


@sibling(
    10, only(CAR, file="ok.jpg"), "image with more pixels than are read, the first is huge.png (20000x10000"
)
def an_image_of_200_million_pixels(folder: Path) -> None:
    huge(folder)


@sibling(
    10,
    {"train": {"ok.jpg": [CAR], "huge.png": [("car", 10000, 5000, 99, 99)]}},
    words=(*HERE, "--max-pixels", "200000000"),
)
def an_image_of_200_million_pixels_that_is_trusted(folder: Path) -> None:
    huge(folder)


@sibling(
    10, only(("car", 10, 10, 20, 20), file="b.jpg"), "annotation in another encoding than it says", "a.xml"
)
def russian_that_says_it_is_utf8(folder: Path) -> None:
    voc_tree(folder, {"a": [("\u043c\u0430\u0448\u0438\u043d\u0430", 1, 1, 9, 9)], "b": [VOC_BOX]})
    file = folder / "Annotations/a.xml"
    text = '<?xml version="1.0" encoding="utf-8"?>' + file.read_text(encoding="utf-8")
    file.write_bytes(text.encode("cp1251"))


@sibling(10, only(("\u043c\u0430\u0448\u0438\u043d\u0430", 10, 10, 20, 20)))
def russian_that_says_so(folder: Path) -> None:
    voc_tree(folder, {"a": [("\u043c\u0430\u0448\u0438\u043d\u0430", *VOC_BOX[1:])]})
    file = folder / "Annotations/a.xml"
    text = '<?xml version="1.0" encoding="windows-1251"?>' + file.read_text(encoding="utf-8")
    file.write_bytes(text.encode("cp1251"))


# 11: kinds


def with_files_that_are_no_coco(folder: Path) -> None:
    for name, content in {
        "labels.json": {"car": 0},
        "dataset_info.json": {"images": [], "categories": []},
        "train.json": ["a.jpg"],
        "annotations.json": {"images": 2, "annotations": 3},
    }.items():
        write_text(folder / name, json.dumps(content))


@sibling(11, only(MIDDLE))
def files_named_like_coco_beside_yolo(folder: Path) -> None:
    with_files_that_are_no_coco(yolo(folder, "a"))


@sibling(11, only(CAR))
def files_named_like_coco_beside_voc(folder: Path) -> None:
    with_files_that_are_no_coco(voc_tree(folder, {"a": [VOC_BOX]}))


@sibling(11, only(CAR))
def captions_and_key_points_beside_instances(folder: Path) -> None:
    photo(folder / "images/a.jpg")
    coco(folder / "annotations/instances_train2017.json", {"a.jpg": [BOX]})
    coco(folder / "annotations/person_keypoints_train2017.json", {"a.jpg": [[1, 2, 3, 4]]})
    coco(folder / "annotations/captions_train2017.json", {"a.jpg": [[1, 2, 3, 4]]})


@sibling(11, None, "may be of more than one kind: coco, voc", "--format coco or voc")
def two_exports_of_the_same_labels(folder: Path) -> None:
    voc_tree(folder, {"a": [VOC_BOX]})
    coco(folder / "train.json", {"a.jpg": [BOX]})


@sibling(11, only(CAR), "2 files that may be labels", "a.json, b.json")
def one_coco_file_beside_labelme(folder: Path) -> None:
    for letter in "ab":
        write_text(folder / f"{letter}.json", labelme_json(photo(folder / f"{letter}.jpg").name))
    coco(folder / "annotations.json", {"a.jpg": [BOX]})


# 12: odd content


@sibling(12, only(CAR))
def categories_with_odd_groups(folder: Path) -> None:
    annotated(folder, {"bbox": BOX})
    content = json.loads((folder / "train.json").read_text())
    groups = ({"a": 1}, None, 5, [["x"]], True)
    content["categories"] = [
        {"id": n, "name": name, "supercategory": groups[n - 1]}
        for n, name in enumerate(("car", *"bcde"), start=1)
    ]
    write_text(folder / "train.json", json.dumps(content))


@sibling(12, only(("car", 30, 15, 20, 30), ("car", 6, 15, 20, 30)))
def two_classes_of_one_name(folder: Path) -> None:
    write_text(yolo(folder, "a", "1 0.5 0.5 0.25 0.5\n0 0.2 0.5 0.25 0.5\n") / "classes.txt", "car\ncar\n")


@sibling(12, None, "data.yaml: not valid YAML")
def a_list_as_a_key_of_data_yaml(folder: Path) -> None:
    write_text(yolo(folder, "a") / "data.yaml", "? [a]\n: b\nnames: [car]\n")


@pytest.mark.parametrize("name", SIBLINGS)
def test_siblings(name):
    made = SIBLINGS[name]
    made.make(Path("input"))
    found = prepare(*made.words)
    assert found.code == (2 if made.sets is None else 0), found.said
    for words in made.said:
        assert words in found.said
    if made.sets is None:
        assert not found.sets
    else:
        assert found.sets == made.sets


WEIRD = (None, True, {"a": [1]}, [[]], 1e400, "\ud800")
PATHS = (
    *(("images", 0, key) for key in ("id", "file_name", "width")),
    *(
        ("annotations", 0, key)
        for key in ("id", "image_id", "category_id", "bbox", "segmentation", "iscrowd", "area")
    ),
    *(("categories", 0, key) for key in ("id", "name", "supercategory")),
    *(("images",), ("annotations",), ("categories",), ("images", 0), ("annotations", 0), ("categories", 0)),
)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: "-".join(map(str, path)))
def test_no_value_of_a_coco_file_ends_in_a_traceback(path):
    annotated(Path("input"), {"bbox": BOX})
    good = Path("input/train.json").read_text()
    for value in WEIRD:
        content = json.loads(good)
        place = content
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
        write_text(Path("input/train.json"), json.dumps(content))
        assert prepare(*HERE, "--overwrite").code in (0, 2)


def test_what_a_dry_run_says_is_not_written():
    """With a tar archive, which would be unpacked."""
    yolo(Path("made"), ["train/a", "val/b"])
    pack(Path("made"), Path("set.tar.gz"))
    shutil.rmtree("made")
    found = prepare("--raw", "set.tar.gz", "--dry-run")
    assert found.code == 0 and not found.sets and [path.name for path in Path().iterdir()] == ["set.tar.gz"]
    for words in (
        "would be read as yolo",
        "mine train: 1 images",
        "mine val: 1 images",
        "boxes by class: car 1",
        "Nothing was written",
    ):
        assert words in found.said


def test_hints_work_when_they_are_typed():
    for name in ("train", "train - Copy"):
        coco(Path("input") / f"{name}.json", {"a.jpg": [BOX]})
    for folder in ("x", "y"):
        photo(Path("input") / folder / "a.jpg", seed=folder)
    assert "--images FOLDER" in prepare(*HERE).said
    found = prepare(*HERE, "--images", "input/x")
    assert found.code == 2 and "--annotations train=FILE val=FILE" in found.said
    found = prepare(*HERE, "--images", "input/x", "--annotations", "train=train.json")
    assert found.code == 0 and found.sets == only(CAR)
