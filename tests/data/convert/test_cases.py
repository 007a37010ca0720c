"""The 25 inputs of issue 13, rebuilt from users' public reports.

Each goes through the command line and must give the right value.

Every case says whose report it is. What the tools in question write is what counts here, so the odd spellings
are meant.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest
from mrt_cli.app import app
from trees import coco_content, objects, pack, voc_tree, voc_xml, write_image, write_text
from typer.testing import CliRunner

from mrt.data.card import read_card

SIZE = (80, 60)
YOLO_LINE = "0 0.5 0.5 0.25 0.5\n"  # of 80x60: 30, 15, 20, 30
KITTI_LINES = (
    "Car 0.00 0 -1.93 78.30 17.52 109.76 35.48 1.40 1.61 3.77 3.01 1.46 7.62 -1.57\n"
    "DontCare -1 -1 -10 1.0 1.0 9.0 9.0 -1 -1 -1 -1000 -1000 -1000 -10\n"
)
HERE = ("--raw", "input")


class Outcome(NamedTuple):
    """What a command said, in one line, and its exit code.

    ``sets``: split -> file -> boxes of the set that it made, if it made one.
    """

    code: int
    said: str
    sets: dict[str, dict[str, list[tuple]]]


def run(*words: object, name: str = "mine") -> Outcome:
    """``mrt WORDS`` in the working folder, which belongs to the test; a traceback fails the test."""
    result = CliRunner().invoke(app, [str(word) for word in words], prog_name="mrt")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert "Traceback" not in result.output
    card = read_card(Path("data") / name) if (Path("data") / name).exists() else None
    sets = {split: objects(card, split) for split in card.splits} if card else {}
    return Outcome(result.exit_code, " ".join(result.output.split()), sets)


def prepare(*words: object) -> Outcome:
    """``mrt prepare-data custom`` with these words, for a set called "mine", in one process."""
    return run("prepare-data", "custom", *words, "--name", "mine", "--workers", 1)


def photo(path: Path, seed: str = "", size: tuple[int, int] = SIZE, orientation: int | None = None) -> Path:
    """A picture whose content depends on ``seed``, so that pictures of the same name can differ."""
    return write_image(path.with_name(f"{seed}{path.name}"), size, orientation).rename(path)


def coco(path: Path, boxes: Mapping[str, list], **more: object) -> Path:
    """A COCO file of photos of 80x60 with boxes of the first of two categories.

    ``more`` goes into each annotation.
    """
    images = [
        {"id": n, "file_name": file, "width": SIZE[0], "height": SIZE[1]}
        for n, file in enumerate(boxes, start=1)
    ]
    found = [(n, box) for n, file in enumerate(boxes, start=1) for box in boxes[file]]
    annotations = [
        {"id": k, "image_id": n, "category_id": 1, "bbox": box, **more}
        for k, (n, box) in enumerate(found, start=1)
    ]
    return write_text(path, json.dumps(coco_content(images, annotations)))


def two_photos(folder: Path, annotation: Callable[[int], Mapping]) -> None:
    """a.jpg and b.jpg, and a COCO file with annotations, given by their image's number."""
    images = [
        {"id": n, "file_name": f"{letter}.jpg", "width": 80, "height": 60}
        for n, letter in enumerate("ab", start=1)
    ]
    for image in images:
        photo(folder / image["file_name"])
    boxes = {1: [10, 10, 20, 20], 2: [5, 5, 20, 20]}
    annotations = [{"id": n, "bbox": boxes[n], **annotation(n)} for n in boxes]
    write_text(folder / "train.json", json.dumps(coco_content(images, annotations)))


def bbox_of_zeros(folder: Path) -> None:
    """PaddleCV-SIG/EISeg#85"""
    photo(folder / "a.jpg")
    coco(
        folder / "train.json",
        {"a.jpg": [[0, 0, 0, 0]]},
        segmentation=[[10, 10, 30, 10, 30, 30, 10, 30]],
        area=0,
    )


def coco_in_shares(folder: Path) -> None:
    """swatig007/automlForImages#27: Azure's labels"""
    photo(folder / "a.jpg")
    images = [{"id": 1, "width": 0.0, "height": 0.0, "file_name": "a.jpg"}]
    annotations = [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0.1, 0.2, 0.3, 0.4], "area": 0.12}]
    write_text(folder / "train.json", json.dumps(coco_content(images, annotations)))


def darknet_lists(folder: Path) -> None:
    """AlexeyAB/darknet#5405"""
    for number in (1, 2, 3):
        photo(folder / f"VOC2007/JPEGImages/00000{number}.jpg")
        write_text(folder / f"VOC2007/labels/00000{number}.txt", YOLO_LINE)
    there = "/home/someone/darknet/"
    for words, numbers in (("test", (3,)), ("train", (1, 2))):
        lines = [f"{there}VOC2007/JPEGImages/00000{number}.jpg\n" for number in numbers]
        write_text(folder / f"2007_{words}.txt", "".join(lines))
    settings = (
        f"classes= 1\ntrain = {there}2007_train.txt\nvalid = {there}2007_test.txt\nnames = "
        "data/voc.names\nbackup = backup\n"
    )
    write_text(folder / "cfg/voc.data", settings)
    write_text(folder / "data/voc.names", "car\n")


def exif_size_as_stored(folder: Path) -> None:
    """HumanSignal/label-studio#6608"""
    photo(folder / "images/phone.jpg", orientation=6)
    images = [{"id": 0, "file_name": "images/phone.jpg", "width": 80, "height": 60}]
    boxes = ([10, 40, 30, 35], [5, 5, 20, 20])
    annotations = [{"id": n, "image_id": 0, "category_id": 0, "bbox": box} for n, box in enumerate(boxes)]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 0, "name": "car"}]}
    write_text(folder / "result.json", json.dumps(content))


def ids_as_floats(folder: Path) -> None:
    """pandas writes ids like this"""
    two_photos(folder, lambda n: {"image_id": float(n), "category_id": float(n)})


def image_ids_as_text(folder: Path) -> None:
    """lyuwenyu/RT-DETR#442, cvat-ai/cvat#298"""
    two_photos(folder, lambda n: {"image_id": str(n), "category_id": n})


def image_jfif(folder: Path) -> None:
    """supervisely/supervisely#839, open-edge-platform/geti#5573"""
    photo(folder / "images/a.jfif")
    photo(folder / "images/b.jpg")
    coco(folder / "train.json", {"a.jfif": [[10, 10, 20, 20]], "b.jpg": [[5, 5, 20, 20]]})


def kitti(folder: Path) -> None:
    """krumo/Domain-Adaptive-Faster-RCNN-PyTorch#6"""
    for number in range(2):
        photo(folder / f"training/image_2/00000{number}.png", size=(124, 38))
        write_text(folder / f"training/label_2/00000{number}.txt", KITTI_LINES)


def label_studio_yolo(folder: Path) -> None:
    """HumanSignal/label-studio#6416: every YOLO export has a notes.json"""
    for name, line in (("0a1b-street", YOLO_LINE), ("2c3d-yard", "1 0.25 0.25 0.1 0.1\n")):
        photo(folder / f"images/{name}.jpg")
        write_text(folder / f"labels/{name}.txt", line)
    write_text(folder / "classes.txt", "car\nperson\n")
    notes = {
        "categories": [{"id": 0, "name": "car"}, {"id": 1, "name": "person"}],
        "info": {"year": 2024, "contributor": "Label Studio"},
    }
    write_text(folder / "notes.json", json.dumps(notes))


def labelme(folder: Path) -> None:
    """wkentaro/labelme#34, #208; matterport/Mask_RCNN#1378"""
    for letter in "ab":
        photo(folder / f"{letter}.jpg")
        shape = {
            "label": "car",
            "points": [[10, 10], [30, 30]],
            "group_id": None,
            "shape_type": "rectangle",
            "flags": {},
        }
        size = {"imageHeight": 60, "imageWidth": 80}
        content = {
            "version": "5.2.1",
            "flags": {},
            "shapes": [shape],
            "imagePath": f"{letter}.jpg",
            "imageData": None,
            **size,
        }
        write_text(folder / f"{letter}.json", json.dumps(content))


def labels_in_upper_case(folder: Path) -> None:
    """ultralytics/yolov5#6872 (labels_TXT)"""
    for letter in "abc":
        photo(folder / f"images/{letter}.JPG")
        write_text(folder / f"labels/{letter}.TXT", YOLO_LINE)
    write_text(folder / "data.yaml", "train: images\nnames: {0: car}\n")


def labels_in_another_folder(folder: Path) -> None:
    """gjhhust/YOLOFT#12: "0 images, 7426 backgrounds" """
    for name in ("train/a", "train/b", "train/c", "val/v"):
        photo(folder / f"images/{name}.jpg")
        write_text(folder / f"annotations/yolo/{name}.txt", YOLO_LINE)
    write_text(
        folder / "data.yaml", "path: /data/XS\ntrain: images/train\nval: images/val\nnames: {0: car}\n"
    )


def labels_jpg_txt(folder: Path) -> None:
    """fsoco/fsoco-devkit#48"""
    for letter in "abc":
        photo(folder / f"images/{letter}.jpg")
        write_text(folder / f"labels/{letter}.jpg.txt", YOLO_LINE)
    write_text(folder / "data.yaml", "train: images\nval: images\nnames: {0: car}\n")


def labels_with_commas(folder: Path) -> None:
    """eriklindernoren/PyTorch-YOLOv3#644"""
    for letter in "ab":
        photo(folder / f"images/{letter}.jpg")
        write_text(folder / f"labels/{letter}.txt", "0, 0.5, 0.5, 0.25, 0.5\n")
    write_text(folder / "classes.names", "Box\n")


def leading_folder(folder: Path) -> None:
    """DLR-RM/BlenderProc#266, with two sequences"""
    for number in (1, 2):
        photo(folder / f"frames/seq{number}/000000.png", seed=str(number))
    coco(
        folder / "train.json",
        {"dataset/seq1/000000.png": [[10, 10, 20, 20]], "dataset/seq2/000000.png": [[5, 5, 20, 20]]},
    )


def suffix_in_upper_case(folder: Path) -> None:
    """njvisionpower/Safety-Helmet-Wearing-Dataset#22 (names_JPG_jpg)"""
    for number in (377, 378):
        photo(folder / f"images/000{number}.JPG")
    coco(folder / "train.json", {"000377.jpg": [[10, 10, 20, 20]], "000378.jpg": [[5, 5, 20, 20]]})


def names_nfc_nfd(folder: Path) -> None:
    """llmsresearch/paperbanana#234: a Mac's zip"""
    for name in ("Stra\u00dfe-Zu\u0308rich.jpg", "cafe\u0301.jpg"):
        photo(folder / "images" / name)
    coco(
        folder / "train.json",
        {"Stra\u00dfe-Z\u00fcrich.jpg": [[10, 10, 20, 20]], "caf\u00e9.jpg": [[5, 5, 20, 20]]},
    )


def supercategory_is_a_list(folder: Path) -> None:
    """found beside roboflow/roboflow-100-benchmark#45"""
    photo(folder / "a.jpg")
    content = coco_content([{"id": 1, "file_name": "a.jpg", "width": 80, "height": 60}], [], ["car"])
    content["annotations"] = [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 9, 9]}]
    content["categories"][0]["supercategory"] = ["vehicle"]
    write_text(folder / "train.json", json.dumps(content))


def two_cameras(folder: Path) -> None:
    """open-edge-platform/datumaro#853, ashnair1/COCO-Assistant#20"""
    for number, centre in ((1, 0.2), (2, 0.8)):
        photo(folder / f"cam{number}/images/f0.jpg", seed=str(number))
        write_text(folder / f"cam{number}/labels/f0.txt", f"0 {centre} 0.5 0.25 0.5\n")
        write_text(folder / f"cam{number}/classes.txt", "car\n")


def two_cvat_exports(folder: Path) -> None:
    """open-edge-platform/datumaro#853, cvat-ai/cvat#4993"""
    folder.mkdir()
    for number, box in ((1, [10, 10, 20, 20]), (2, [40, 30, 20, 20])):
        photo(Path(f"task_{number}/images/default/frame_000000.PNG"), seed=str(number))
        coco(Path(f"task_{number}/annotations/instances_default.json"), {"frame_000000.PNG": [box]})
        pack(Path(f"task_{number}"), folder / f"task_{number}_coco.zip")


def voc2007_and_voc2012(folder: Path) -> None:
    """rbgirshick/py-faster-rcnn#582, rbgirshick/fast-rcnn#20"""
    for year, names in (("2007", ["000001", "000002"]), ("2012", ["2008_000001", "2008_000002"])):
        boxes = {name: [("car", 11, 11, 30, 30)] for name in names}
        voc_tree(folder / f"VOC{year}", boxes, {"trainval": names})


def voc_in_utf16(folder: Path) -> None:
    """ssaru/convert2Yolo#6: byte 0xff at position 0"""
    for letter in "ab":
        photo(folder / f"JPEGImages/{letter}.jpg")
        text = '<?xml version="1.0" encoding="utf-16"?>\n' + voc_xml([("car", 11, 11, 30, 30)], SIZE)
        write_text(folder / f"Annotations/{letter}.xml", "").write_bytes(text.encode("utf-16"))


def xml_in_gb2312(folder: Path) -> None:
    """Lab41/pelops#72"""
    for letter in "ab":
        photo(folder / f"JPEGImages/{letter}.jpg")
        write_text(
            folder / f"Annotations/{letter}.xml",
            '<?xml version="1.0" encoding="gb2312"?>\n' + voc_xml([("car", 11, 11, 30, 30)], SIZE),
        )


BOTH = {"a.jpg": [("car", 10, 10, 20, 20)], "b.jpg": [("person", 5, 5, 20, 20)]}
CARS = {"a.jpg": [("car", 10, 10, 20, 20)], "b.jpg": [("car", 10, 10, 20, 20)]}
MIDDLE = ("car", 30, 15, 20, 30)

# how it is made, the --raw words, the set that it gives, what is said about it
GIVE_A_SET: list[tuple[Callable[[Path], None], tuple, dict, str]] = [
    (
        bbox_of_zeros,
        HERE,
        {"train": {"a.jpg": [("car", 10, 10, 20, 20)]}},
        "1 annotations without a box of any size have that of their outline",
    ),
    (
        coco_in_shares,
        HERE,
        {"train": {"a.jpg": [("car", 8, 12, 24, 24)]}},
        "all 1 boxes lie within 0 to 1: read as shares",
    ),
    (
        darknet_lists,
        HERE,
        {"train": {"000001.jpg": [MIDDLE], "000002.jpg": [MIDDLE]}, "val": {"000003.jpg": [MIDDLE]}},
        "2007_train.txt: 2 images were found without the first folders of their names",
    ),
    (
        exif_size_as_stored,
        HERE,
        {"train": {"phone.jpg": [("car", 10, 40, 30, 35), ("car", 5, 5, 20, 20)]}},
        "read the other way round than their size says",
    ),
    (
        ids_as_floats,
        HERE,
        {"train": BOTH},
        "2 annotations name their image or category by an id of another type",
    ),
    (
        image_ids_as_text,
        HERE,
        {"train": BOTH},
        "2 annotations name their image or category by an id of another type",
    ),
    (
        image_jfif,
        HERE,
        {"train": {"a.jfif": [("car", 10, 10, 20, 20)], "b.jpg": [("car", 5, 5, 20, 20)]}},
        "2 images (0 without objects), 2 boxes",
    ),
    (
        label_studio_yolo,
        HERE,
        {"train": {"0a1b-street.jpg": [MIDDLE], "2c3d-yard.jpg": [("person", 16, 12, 8, 6)]}},
        "2 images (0 without objects), 2 boxes",
    ),
    (
        labels_in_upper_case,
        HERE,
        {"train": {f"{letter}.JPG": [MIDDLE] for letter in "abc"}},
        "labels/a.TXT for images/a.JPG",
    ),
    (
        labels_jpg_txt,
        HERE,
        {split: {f"{letter}.jpg": [MIDDLE] for letter in "abc"} for split in ("train", "val")},
        "warning: train and val hold the same images",
    ),
    (
        labels_with_commas,
        HERE,
        {"train": {f"{letter}.jpg": [("Box", 30, 15, 20, 30)] for letter in "ab"}},
        "2 images (0 without objects), 2 boxes",
    ),
    (
        leading_folder,
        HERE,
        {"train": {"seq1/000000.png": [("car", 10, 10, 20, 20)], "seq2/000000.png": [("car", 5, 5, 20, 20)]}},
        "2 images were found without the first folders of their names, such as 'dataset/'",
    ),
    (
        suffix_in_upper_case,
        HERE,
        {"train": {"000377.JPG": [("car", 10, 10, 20, 20)], "000378.JPG": [("car", 5, 5, 20, 20)]}},
        "2 image names are written differently",
    ),
    (
        names_nfc_nfd,
        HERE,
        {
            "train": {
                "Stra\u00dfe-Zu\u0308rich.jpg": [("car", 10, 10, 20, 20)],
                "cafe\u0301.jpg": [("car", 5, 5, 20, 20)],
            }
        },
        "2 image names are written differently",
    ),
    (
        supercategory_is_a_list,
        HERE,
        {"train": {"a.jpg": [("car", 1, 1, 9, 9)]}},
        "1 images (0 without objects), 1 boxes",
    ),
    (
        two_cameras,
        ("--raw", "input/cam1", "input/cam2"),
        {
            "train": {
                "cam1/images/f0.jpg": [("car", 6, 15, 20, 30)],
                "cam2/images/f0.jpg": [("car", 54, 15, 20, 30)],
            }
        },
        "images/f0.jpg (in cam1 and cam2): the places are kept apart, all of their files are taken",
    ),
    (
        two_cvat_exports,
        HERE,
        {
            "train": {
                "task_1_coco.zip/images/default/frame_000000.PNG": [("car", 10, 10, 20, 20)],
                "task_2_coco.zip/images/default/frame_000000.PNG": [("car", 40, 30, 20, 20)],
            }
        },
        "(in task_1_coco.zip and task_2_coco.zip): the places are kept apart",
    ),
    (
        voc2007_and_voc2012,
        ("--raw", "input/VOC2007", "input/VOC2012"),
        {
            "train": {
                f"VOC{year}/JPEGImages/{name}.jpg": [("car", 10, 10, 20, 20)]
                for year, names in (("2007", ("000001", "000002")), ("2012", ("2008_000001", "2008_000002")))
                for name in names
            }
        },
        "splits are those of VOC2007/ImageSets/Main/trainval.txt, VOC2012/ImageSets/Main/trainval.txt",
    ),
    (voc_in_utf16, HERE, {"train": CARS}, "2 images (0 without objects), 2 boxes"),
    (xml_in_gb2312, HERE, {"train": CARS}, "2 images (0 without objects), 2 boxes"),
]


# how it is made, what the refusal says
ARE_REFUSED: list[tuple[Callable[[Path], None], tuple[str, ...]]] = [
    (
        kitti,
        (
            "2 look like kitti labels (training/label_2/000000.txt, training/label_2/000001.txt)",
            "--format kitti",
            "--format images",
        ),
    ),
    (labelme, ("2 look like labelme labels (a.json, b.json)", "--format labelme", "--format images")),
    (
        labels_in_another_folder,
        (
            "none of the 4 images has a label file",
            "4 files that look like labels belong to no image: annotations/yolo/train/a.txt",
        ),
    ),
]


@pytest.fixture(autouse=True)
def _somewhere(somewhere):
    """Each test has an empty working folder."""


@pytest.mark.parametrize(
    ("make", "raw", "sets", "said"), GIVE_A_SET, ids=[case[0].__name__ for case in GIVE_A_SET]
)
def test_the_case_gives_its_set(make, raw, sets, said):
    make(Path("input"))
    found = prepare(*raw)
    assert found.code == 0 and said in found.said, found.said
    assert found.sets == sets


@pytest.mark.parametrize(("make", "said"), ARE_REFUSED, ids=[case[0].__name__ for case in ARE_REFUSED])
def test_the_case_is_refused_with_what_to_do(make, said):
    make(Path("input"))
    found = prepare(*HERE)
    assert found.code == 2 and not found.sets
    for words in said:
        assert words in found.said


@pytest.mark.parametrize(
    ("make", "kind", "boxes"),
    [
        (kitti, "kitti", {f"00000{n}.png": [("Car", 78.3, 17.52, 31.46, 17.96)] for n in range(2)}),
        (labelme, "labelme", CARS),
    ],
)
def test_the_refused_case_is_read_as_it_says(make, kind, boxes):
    make(Path("input"))
    found = prepare(*HERE, "--format", kind)
    assert found.code == 0 and found.sets == {"train": boxes}, found.said


def crowds_only(folder: Path) -> None:
    """facebookresearch/detectron2#2415"""
    photo(folder / "a.jpg")
    photo(folder / "b.jpg")
    coco(folder / "train.json", {"a.jpg": [[10, 10, 20, 20]], "b.jpg": [[5, 5, 20, 20]]}, iscrowd=1)


def train(command: str, *words: object) -> Outcome:
    settings = ("pretrain.epochs=1", "pretrain.steps_per_epoch=2", "engine.batch_size=2")
    return run(
        command,
        "--preset",
        "small",
        "--source",
        "mine",
        *words,
        "--data-root",
        "data",
        "--run-root",
        "runs",
        "--name",
        "z",
        "--set",
        *settings,
    )


def test_nothing_is_trained_on_a_source_without_a_box():
    """trained_on_nothing (lyuwenyu/RT-DETR#442).

    Its ids are understood now, so this uses crowds, which give no box.
    """
    crowds_only(Path("input"))
    refused = prepare(*HERE)
    assert refused.code == 2 and not refused.sets
    assert "a labelled set without a single box that counts (2 annotation records read)" in refused.said
    assert "--allow-empty" in refused.said
    allowed = prepare(*HERE, "--allow-empty")
    assert allowed.code == 0
    assert allowed.sets == {"train": {"a.jpg": [("~car", 10, 10, 20, 20)], "b.jpg": [("~car", 5, 5, 20, 20)]}}
    for command in ("pretrain-source", "adapt"):
        said = train(command, *(("--target", "mine") if command == "adapt" else ()))
        assert said.code == 2 and "mine" in said.said and "no box" in said.said, said.said
    assert not Path("runs").exists()


def test_nothing_is_trained_on_a_source_without_labels():
    """unlabelled_source: the reason comes before anything is built."""
    labelme(Path("input"))
    assert prepare(*HERE, "--format", "images").code == 0
    for command in ("pretrain-source", "adapt"):
        said = train(command, *(("--target", "mine") if command == "adapt" else ()))
        assert said.code == 2 and "has no labels to train on" in said.said, said.said
    assert not Path("runs").exists()
