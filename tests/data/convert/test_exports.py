"""Exports of labelling tools, and folders as people keep them: each box in its image, or one clear word.

Inputs are written as {path: content}; every suffix of an image is a photo of 64x48.
"""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from test_cases import Outcome, prepare

BOX, OTHER = (10, 10, 20, 20), (40, 20, 20, 20)  # x, y, width, height
YOLO = "0 0.5 0.5 0.5 0.5\n"  # MIDDLE
MIDDLE = (16, 12, 32, 24)
KITTI = "Car 0 0 0 10 10 30 30 1 1 1 1 1 1 1\n"
IMAGES = (".jpg", ".png", ".tif")


@pytest.fixture(autouse=True)
def _somewhere(somewhere):
    """Each test has an empty working folder."""


def picture(name: str, **how: Any) -> bytes:
    """A photo whose pixels depend on its path."""
    content = io.BytesIO()
    colour = tuple(sum(name.encode()) * step % 256 for step in (1, 7, 31))
    kind = "PNG" if name.endswith("png") else "TIFF" if name.endswith("tif") else "JPEG"
    Image.new("RGB", (64, 48), colour).save(content, kind, **how)
    return content.getvalue()


def given(*images: str, files: dict[str, Any] | None = None, words: tuple[str, ...] = ()) -> Outcome:
    """``prepare-data custom`` of these photos and label files."""
    folder = Path("in")
    for name, content in {**{name: picture(name) for name in images}, **(files or {})}.items():
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        text = content if isinstance(content, (bytes, str)) else json.dumps(content)
        place.write_bytes(text if isinstance(text, bytes) else text.encode())
    return prepare("--raw", folder, *words)


def coco(names: dict[int, str] | list[str], *boxes: tuple[int, tuple], **more: Any) -> dict[str, Any]:
    numbered = names if isinstance(names, dict) else dict(enumerate(names))
    return {
        "images": [{"id": n, "file_name": name, "width": 64, "height": 48} for n, name in numbered.items()],
        "categories": [{"id": 1, "name": "car"}],
        "annotations": [
            {"id": k, "image_id": n, "category_id": 1, "bbox": list(box), **more}
            for k, (n, box) in enumerate(boxes)
        ],
    }


def voc(box: tuple, filename: str = "a.jpg", more: str = "", label: str = "car") -> str:
    x, y, w, h = box
    corners = f"<xmin>{x + 1}</xmin><ymin>{y + 1}</ymin><xmax>{x + w}</xmax><ymax>{y + h}</ymax>"
    inner = f"<name>{label}</name><bndbox>{corners}</bndbox>{more}"
    return f"<annotation><filename>{filename}</filename><object>{inner}</object></annotation>"


def labelme(name: str) -> dict[str, Any]:
    shape = {"label": "car", "points": [[10, 10], [30, 30]], "shape_type": "rectangle"}
    return {"version": "5", "shapes": [shape], "imagePath": name, "imageHeight": 48, "imageWidth": 64}


def boxes(found: Outcome) -> dict[str, dict[str, list[tuple]]]:
    """Split -> image -> boxes without their class."""
    assert found.code == 0, found.said
    return {
        split: {file: [tuple(thing[1:]) for thing in things] for file, things in images.items()}
        for split, images in found.sets.items()
    }


def one(*found: tuple, file: str = "a.jpg") -> dict[str, dict[str, list[tuple]]]:
    return {"train": {file: list(found)}}


# CVAT writes a box as it was before it was turned, and the degrees beside it (cvat-ai/cvat#4745, #6785)

TURNED, UPRIGHT = (12, 20, 40, 8), (28, 4, 8, 40)


def test_a_turned_box_of_a_coco_file():
    attributes = {"occluded": False, "rotation": 90.0}
    found = given("a.jpg", files={"train.json": coco(["a.jpg"], (0, TURNED), attributes=attributes)})
    assert boxes(found) == one(UPRIGHT) and "1 boxes are turned" in found.said


def test_an_outline_is_turned_already():
    outline = [[28, 4, 36, 4, 36, 44, 28, 44]]
    content = coco(["a.jpg"], (0, UPRIGHT), attributes={"rotation": 90.0}, segmentation=outline)
    assert boxes(given("a.jpg", files={"train.json": content})) == one(UPRIGHT)


def test_a_turned_box_of_a_voc_file():
    more = "<attributes><attribute><name>rotation</name><value>90.0</value></attribute></attributes>"
    assert boxes(given("a.jpg", files={"a.xml": voc(TURNED, more=more)})) == one(UPRIGHT)


def test_what_was_deleted_stays_deleted():
    corners = "".join(f"<pt><x>{x}</x><y>{y}</y></pt>" for x, y in ((11, 11), (30, 11), (30, 30)))
    things = "".join(
        f"<object><name>car</name><deleted>{gone}</deleted><polygon>{corners}</polygon></object>"
        for gone in (0, 1)
    )
    text = f"<annotation><filename>a.jpg</filename>{things}</annotation>"
    found = given("Images/a.jpg", files={"Annotations/a.xml": text})
    assert boxes(found) == one(BOX) and "1 x deleted object" in found.said


def test_further_boxes_of_an_object_are_counted():
    second = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
    found = given("a.jpg", files={"a.xml": voc(BOX, more=second)})
    assert boxes(found) == one(BOX) and "1 x further box of an object" in found.said


@pytest.mark.parametrize("value", ["1", "true", 1, True])
def test_a_crowd_in_words(value):
    content = coco(["a.jpg"], (0, BOX), (0, OTHER))
    content["annotations"][1]["iscrowd"] = value
    found = given("a.jpg", files={"train.json": content})
    assert found.code == 0 and "1 boxes, 1 ignored" in found.said


# labels belong to the image of their own folder


def test_labels_of_another_folder_are_not_taken():
    files = {
        "train/1.xml": voc(BOX, "1.jpg"),
        "val/1.xml": voc(OTHER, "1.jpg"),
        "val/2.xml": voc(OTHER, "2.jpg"),
    }
    found = given("train/1.jpg", "train/2.jpg", "val/1.jpg", files=files)
    assert boxes(found) == {"train": {"1.jpg": [BOX]}, "val": {"1.jpg": [OTHER]}}
    assert "labels missing, the first is train/2.jpg" in found.said
    assert "image missing, the first is val/2.xml" in found.said and "other names" not in found.said


@pytest.mark.parametrize("folders", [("seq1", "seq2"), ("train", "val")])
def test_folders_of_other_names_below_images_and_annotations(folders):
    ours, theirs = folders
    files = {f"Annotations/{theirs}/1.xml": voc(BOX, "1.jpg")}
    found = given(f"images/{ours}/1.jpg", files=files)
    assert found.code == 2 and not found.sets
    assert f"Annotations/{theirs}/1.xml and images/{ours}/1.jpg have one name" in found.said


def test_the_same_folders_below_others():
    files = {f"Annotations/s{n}/1.xml": voc(box, "1.jpg") for n, box in ((1, BOX), (2, OTHER))}
    found = given("frames/s1/1.jpg", "frames/s2/1.jpg", files=files)
    assert boxes(found) == {"train": {"s1/1.jpg": [BOX], "s2/1.jpg": [OTHER]}}


@pytest.mark.parametrize(
    ("images", "files", "expected"),
    [
        (["a.rgb.png"], {"a.rgb.xml": voc(BOX)}, {"a.rgb.png": [BOX]}),
        (
            ["a.jpg", "a.png.jpg"],
            {"a.xml": voc(BOX), "a.png.xml": voc(OTHER, "a.png.jpg")},
            {"a.jpg": [BOX], "a.png.jpg": [OTHER]},
        ),
        (["a.jpg"], {"a.jpg.xml": voc(BOX)}, {"a.jpg": [BOX]}),
        (
            ["a.jpg", "a.png"],
            {"a.jpg.xml": voc(BOX), "a.png.xml": voc(OTHER, "a.png")},
            {"a.jpg": [BOX], "a.png": [OTHER]},
        ),
    ],
)
def test_names_with_two_suffixes(images, files, expected):
    assert boxes(given(*images, files=files)) == {"train": expected}


def test_labels_of_a_name_with_two_suffixes_are_no_others():
    found = given(
        "image_2/1.png", "image_2/1.rgb.png", files={"label_2/1.rgb.txt": KITTI}, words=("--format", "kitti")
    )
    assert boxes(found) == one(BOX, file="1.rgb.png") and "labels missing" in found.said


def test_a_list_of_names_that_end_in_a_number():
    names = ("cam", "cam 1", "cam 2")
    files = {f"Annotations/{name}.xml": voc(BOX, f"{name}.jpg") for name in names}
    lists = {"train": "cam 1\ncam 2  1\n", "val": "cam\n"}
    files |= {f"ImageSets/Main/{split}.txt": text for split, text in lists.items()}
    found = given(*(f"JPEGImages/{name}.jpg" for name in names), files=files)
    assert boxes(found) == {"train": {"cam 1.jpg": [BOX], "cam 2.jpg": [BOX]}, "val": {"cam.jpg": [BOX]}}


# images of one name in several folders

CAMERAS = ("cam1/a.jpg", "cam1/b.jpg", "cam2/a.jpg")


def test_the_path_tells_rows_apart_that_have_one_name():
    places = (("a", "cam1", "10,10,30,30"), ("b", "cam1", "10,10,30,30"), ("a", "cam2", "40,20,60,40"))
    rows = "".join(f"{name}.jpg,{camera}/{name}.jpg,car,{box}\n" for name, camera, box in places)
    files = {"l.csv": f"filename,path,class,xmin,ymin,xmax,ymax\n{rows}"}
    found = given(*CAMERAS, files=files, words=("--format", "csv"))
    assert boxes(found) == {"train": {"cam1/a.jpg": [BOX], "cam1/b.jpg": [BOX], "cam2/a.jpg": [OTHER]}}


def test_two_entries_of_one_name_and_two_such_files():
    content = coco(["a.jpg", "b.jpg", "a.jpg"], (0, BOX), (1, BOX), (2, OTHER))
    found = given(*CAMERAS, files={"annotations.json": content})
    assert found.code == 2 and not found.sets
    assert "lists 'a.jpg' 2 times, with the ids 0, 2" in found.said and "cam1/a.jpg, cam2/a.jpg" in found.said


# labels that are not read are told


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("labels.csv", "filename,x,y,width,height,label\na.jpg,10,10,20,20,car\n"),
        ("via.csv", 'filename,region_shape_attributes\na.jpg,"{""x"":10}"\n'),
        ("via3.json", {"file": {"1": {"fname": "a.jpg"}}, "metadata": {"1_x": {"xy": [2, 10, 10, 20, 20]}}}),
        ("output.manifest", '{"source-ref":"s3://b/a.jpg","bb":{"class_id":0}}\n'),
        ("wider_bbx_gt.txt", "0--Parade/a.jpg\n1\n10 10 20 20 0 0 0 0 0 0\n"),
        ("boxes.txt", "a.jpg 10 10 30 30 car\nz.jpg 1 1 3 3 car\nz.jpg 1 1 3 3 car\n"),
        ("labels.tsv", "a.jpg\t10\t10\t30\t30\tcar\n"),
        ("keyed.json", {"a.jpg": [[10, 10, 20, 20]]}),
        ("train.json.gz", b"\x1f\x8b"),
        ("train.tfrecord-00000-of-00001", b"\0"),
    ],
)
def test_labels_that_are_not_read(name, content):
    found = given("a.jpg", files={name: content})
    assert found.code == 2 and not found.sets
    assert "1 files that may be labels, of no kind that mrt knows" in found.said and name in found.said
    assert "--format images" in found.said


def test_texts_beside_bare_images_are_no_labels():
    files = {"notes.txt": "taken on a rainy day\nwith the old camera\n", "camera.json": {"focal": 35}}
    found = given("a.jpg", files=files)
    assert found.code == 0 and "no labels" in found.said


def test_archives_that_are_not_opened():
    inner, outer = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(inner, "w") as file:
        file.writestr("b.jpg", picture("b.jpg"))
    with zipfile.ZipFile(outer, "w") as file:
        file.writestr("a.jpg", picture("a.jpg"))
        file.writestr("part2.zip", inner.getvalue())
    others = ["part3.rar", "part4.7z", "part5.tar.xz", "part6.zip.001"]
    found = given(files={"x.zip": outer.getvalue(), **dict.fromkeys(others, b"Rar!")})
    assert found.code == 0 and "not opened: 5 archives" in found.said
    found = prepare("--raw", "in", "--overwrite", "--dry-run")
    assert found.code == 0
    Path("in/x.zip").unlink()
    found = prepare("--raw", "in", "--overwrite")
    assert found.code == 2 and "only archives that are not opened: part3.rar, part4.7z" in found.said


def test_images_without_a_suffix():
    found = given(files={"images/0a1b": picture("0a1b"), "train.json": coco(["0a1b"], (0, BOX))})
    assert found.code == 2 and "images/0a1b has no suffix" in found.said and "such as .jpg" in found.said
    Path("in/train.json").unlink()
    found = prepare("--raw", "in")
    assert found.code == 2 and "1 files without a suffix: images/0a1b" in found.said


# splits


def test_the_subset_of_a_cvat_project():
    subsets = {"a": "Train", "b": "Validation", "c": "Test"}
    entries = "".join(
        f'<image id="0" name="{name}.jpg" subset="{subset}" width="64" height="48">'
        '<box label="car" xtl="10" ytl="10" xbr="30" ybr="30"/></image>'
        for name, subset in subsets.items()
    )
    text = f"<annotations><version>1.1</version><meta/>{entries}</annotations>"
    found = given(
        *(f"images/{name}.jpg" for name in subsets),
        files={"annotations.xml": text},
        words=("--format", "cvat"),
    )
    assert boxes(found) == {"train": {"a.jpg": [BOX]}, "val": {"b.jpg": [BOX]}, "test": {"c.jpg": [BOX]}}


def test_the_split_of_a_row():
    rows = "".join(
        f"{name}.jpg,car,10,10,30,30,{split}\n"
        for name, split in zip("abc", ("train", "val", "test"), strict=True)
    )
    files = {"l.csv": f"filename,class,xmin,ymin,xmax,ymax,split\n{rows}"}
    found = given("a.jpg", "b.jpg", "c.jpg", files=files, words=("--format", "csv"))
    assert boxes(found) == {"train": {"a.jpg": [BOX]}, "val": {"b.jpg": [BOX]}, "test": {"c.jpg": [BOX]}}
    Path("in/l.csv").write_text(f"filename,class,xmin,ymin,xmax,ymax,split\n{rows}a.jpg,car,1,1,9,9,val\n")
    found = prepare("--raw", "in", "--format", "csv", "--overwrite")
    assert found.code == 2 and "line 5: 'a.jpg' is in the split 'val', and in another before" in found.said


@pytest.mark.parametrize(
    ("top", "above", "names"),
    [
        ("training data", "images/", ("a.jpg", "b.jpg")),
        ("test-project", "", ("train/a.jpg", "val/b.jpg")),
    ],
)
def test_a_word_of_a_split_above_the_whole_set(top, above, names):
    content = coco(list(names), (0, BOX), (1, OTHER))
    images = (f"{top}/{above}train/a.jpg", f"{top}/{above}val/b.jpg")
    found = given(*images, files={f"{top}/annotations.json": content})
    assert boxes(found) == {"train": {"a.jpg": [BOX]}, "val": {"b.jpg": [OTHER]}}


def test_a_single_file_in_a_folder_of_a_split():
    found = given("test/a.jpg", files={"test/_annotations.coco.json": coco(["a.jpg"], (0, BOX))})
    assert boxes(found) == {"test": {"a.jpg": [BOX]}}


@pytest.mark.parametrize("link", [Path.symlink_to, Path.hardlink_to])
def test_one_file_by_two_links_is_not_in_train_and_val(link):
    for number in (1, 2):
        Path(f"{number}.jpg").write_bytes(picture(f"{number}.jpg"))
    places = {"train/a": 1, "train/b": 2, "val/b": 2}
    for name, number in places.items():
        place = Path(f"in/images/{name}.jpg")
        place.parent.mkdir(parents=True, exist_ok=True)
        link(place, Path(f"{number}.jpg").absolute())
    found = given(files={f"labels/{name}.txt": YOLO for name in places} | {"classes.txt": "car\n"})
    assert boxes(found) == {"train": {"a.jpg": [MIDDLE]}, "val": {"b.jpg": [MIDDLE]}}
    assert "1 images are in train and in val: taken out of train" in found.said


# numbers


def test_boxes_in_shares_among_others_in_pixels():
    files = {f"{n}.xml": voc(BOX, f"{n}.jpg") for n in range(4)}
    shares = "<xmin>0.2</xmin><ymin>0.2</ymin><xmax>0.6</xmax><ymax>0.6</ymax>"
    head, _, tail = files["0.xml"].partition("<bndbox>")
    files["0.xml"] = f"{head}<bndbox>{shares}</bndbox>{tail.partition('</bndbox>')[2]}"
    found = given(*(f"{n}.jpg" for n in range(4)), files=files)
    assert boxes(found) == {"train": {"0.jpg": [], **{f"{n}.jpg": [BOX] for n in range(1, 4)}}}
    assert "1 x box within the first pixel" in found.said
    assert boxes(prepare("--raw", "in", "--overwrite", "--boxes", "pixels"))["train"]["0.jpg"]


def test_key_points_behind_boxes():
    rows = "0 0.5 0.5 0.5 0.5 0.42 0.45 1 0.58 0.55 2\n0 0.5 0.5 0.5 0.5 0 0 0 0.58 0.55 1\n"
    found = given("images/a.jpg", files={"classes.txt": "person\n", "labels/a.txt": rows})
    assert boxes(found) == one(MIDDLE, MIDDLE) and "boxes with key points" in found.said


def test_polygons_stay_polygons():
    """The last one is a whole image, whose corners look like visibilities."""
    rows = "0 0.25 0.25 0.75 0.25 0.75 0.75 0.25 0.75 0.25 0.25\n0 0 0 1 0 1 1 0 1 0 0\n"
    found = given("images/a.jpg", files={"classes.txt": "person\n", "labels/a.txt": rows})
    assert boxes(found) == one(MIDDLE, (0, 0, 64, 48))


@pytest.mark.parametrize("rows", ["YOLO_OBB\n0 0.5 0.5 0.5 0.1 45.0\n", "0 0.5 0.5 0.5 0.1 45.0\n"])
def test_angles_are_no_confidences(rows):
    found = given("a.jpg", files={"classes.txt": "ship\n", "a.txt": rows})
    assert found.code == 2 and "predictions" not in found.said
    assert "class x1 y1 x2 y2 x3 y3 x4 y4" in found.said


# class names


@pytest.mark.parametrize("labels", [{"a.json": labelme("a.jpg")}])
def test_class_names_do_not_make_a_yolo_set(labels):
    found = given("a.jpg", files={**labels, "classes.txt": "car\n"})
    assert found.code == 2 and "1 look like labelme labels" in found.said
    assert boxes(prepare("--raw", "in", "--format", "labelme")) == one(BOX)


def test_class_names_beside_the_labels_of_each_split():
    files = {f"labels/{split}/a.txt": YOLO for split in ("train", "val")}
    files |= {"labels/train/classes.txt": "car\nbus\n", "labels/val/classes.txt": "bus\ncar\n"}
    found = given("images/train/a.jpg", "images/val/a.jpg", files=files)
    assert found.code == 0
    assert found.sets == {"train": {"a.jpg": [("car", *MIDDLE)]}, "val": {"a.jpg": [("bus", *MIDDLE)]}}


def test_two_label_files_that_differ():
    files = {"classes.txt": "car\n", "labels/a.txt": YOLO, "images/a.txt": "0 0.2 0.2 0.2 0.2\n"}
    found = given("images/a.jpg", files=files)
    assert boxes(found) == one(MIDDLE) and "labels/a.txt is taken, images/a.txt is not" in found.said
    assert "image missing" not in found.said


def test_validation_is_a_split():
    files = {"data.yaml": "names: [car]\ntrain: images/one\nvalidation: images/two\n"}
    files |= {f"labels/{part}/a.txt": YOLO for part in ("one", "two")}
    found = given("images/one/a.jpg", "images/two/a.jpg", files=files)
    assert boxes(found) == {"train": {"a.jpg": [MIDDLE]}, "val": {"a.jpg": [MIDDLE]}}


# odd names


@pytest.mark.parametrize("name", [" lead.jpg", "trail .jpg", "new\nline.jpg", "100%.jpg", "q?.jpg"])
@pytest.mark.parametrize("kind", ["coco", "voc", "yolo", "csv"])
def test_odd_names(name, kind):
    stem = name[:-4]
    files, words = {
        "coco": ({"train.json": coco([name], (0, MIDDLE))}, ()),
        "voc": ({f"labels/{stem}.xml": voc(MIDDLE, name)}, ()),
        "yolo": ({f"labels/{stem}.txt": YOLO, "classes.txt": "car\n"}, ()),
        "csv": (
            {"l.csv": f'filename,class,xmin,ymin,xmax,ymax\n"{name}",car,16,12,48,36\n'},
            ("--format", "csv"),
        ),
    }[kind]
    assert boxes(given(f"images/{name}", files=files, words=words)) == one(MIDDLE, file=name)


def test_a_tiff_that_is_turned_is_labelled_as_shown():
    content = coco(["a.tif"], (0, BOX))
    content["images"][0] |= {"width": 48, "height": 64}
    found = given(files={"a.tif": picture("a.tif", tiffinfo={274: 6}), "train.json": content})
    assert boxes(found) == one(BOX, file="a.tif")
    content["images"][0] |= {"width": 64, "height": 48}
    Path("in/train.json").write_text(json.dumps(content))
    found = prepare("--raw", "in", "--overwrite")
    assert found.code == 2 and "a.tif (48x64, not 64x48)" in found.said


@pytest.mark.parametrize("letters", ["utf-8", "gbk"])
def test_a_zip_that_does_not_say_its_alphabet(letters):
    content = io.BytesIO()
    name = "汽车".encode(letters)
    with zipfile.ZipFile(content, "w") as file:
        file.writestr(f"images/{'X' * len(name)}.jpg", picture("a.jpg"))
        file.writestr("train.json", json.dumps(coco(["汽车.jpg"], (0, BOX))))
    found = given(files={"x.zip": content.getvalue().replace(b"X" * len(name), name)})
    if letters == "utf-8":
        assert boxes(found) == one(BOX, file="汽车.jpg")
    else:
        assert found.code == 2 and "in x.zip: unpack it where they look right" in found.said
