"""Small raw trees for the converters' tests, with files where an owner or user would have them."""

from __future__ import annotations

import json
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def write_image(path: Path, size: tuple[int, int] = (40, 30), orientation: int | None = None) -> Path:
    """A picture of noise, (width, height), with an EXIF orientation if given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(sum(path.name.encode())).integers(
        0, 256, (size[1], size[0], 3), dtype=np.uint8
    )
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    Image.fromarray(pixels).save(path, exif=exif)
    return path


def write_text(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def pack(folder: Path, archive: Path) -> Path:
    """The folder's content as a zip or tgz archive, by the archive's suffix."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w") as out:
            for path in files:
                out.write(path, path.relative_to(folder).as_posix())
    else:
        with tarfile.open(archive, "w:gz") as out:
            for path in files:
                out.add(path, path.relative_to(folder).as_posix())
    return archive


def objects(card: Any, split: str = "train") -> dict[str, list[tuple]]:
    """file_name -> (class name, *bbox) or, for ignored ones, ("~class name", *bbox) of a prepared set."""
    coco = json.loads(card.annotations_path(split).read_text(encoding="utf-8"))
    names = {entry["id"]: entry["name"] for entry in coco["categories"]}
    found: dict[str, list[tuple]] = {entry["file_name"]: [] for entry in coco["images"]}
    files = {entry["id"]: entry["file_name"] for entry in coco["images"]}
    for a in coco["annotations"]:
        found[files[a["image_id"]]].append(("~" * a["iscrowd"] + names[a["category_id"]], *a["bbox"]))
    return found


def coco_content(
    images: Sequence[Mapping], annotations: Sequence[Mapping], names: Sequence[str] = ("car", "person")
) -> dict[str, Any]:
    """A COCO file's content with categories 1, 2, ..."""
    categories = [{"id": number, "name": name} for number, name in enumerate(names, start=1)]
    return {"images": list(images), "annotations": list(annotations), "categories": categories}


OWN_VOC = """<annotation><size><width>40</width><height>30</height></size>
<object><name>car</name><bndbox><xmin>3</xmin><ymin>4</ymin><xmax>12</xmax><ymax>11</ymax></bndbox></object>
<object><name>motor</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>40</xmax><ymax>30</ymax></bndbox>\
</object></annotation>"""
OWN_BOXES = [("car", 2, 3, 10, 8), ("motor", 0, 0, 40, 30)]


def coco_set(folder: Path, images: int = 1) -> Path:
    """A user's COCO set: each picture of 40x30 has OWN_BOXES."""
    entries = [{"id": n, "file_name": f"{n:03}.jpg", "width": 40, "height": 30} for n in range(1, images + 1)]
    annotations = [
        {"id": 2 * n + k, "image_id": n, "category_id": k, "bbox": box[1:]}
        for n in range(1, images + 1)
        for k, box in enumerate(OWN_BOXES, start=1)
    ]
    for entry in entries:
        write_image(folder / "images" / entry["file_name"])
    write_text(
        folder / "instances_default.json", json.dumps(coco_content(entries, annotations, ["car", "motor"]))
    )
    return folder


def voc_set(folder: Path, images: int = 1) -> Path:
    """The same as a VOC set without lists."""
    for n in range(1, images + 1):
        write_image(folder / "JPEGImages" / f"{n:03}.jpg")
        write_text(folder / "Annotations" / f"{n:03}.xml", OWN_VOC)
    return folder


def yolo_set(folder: Path, images: int = 1) -> Path:
    """The same as a YOLO set."""
    for n in range(1, images + 1):
        write_image(folder / "images" / f"{n:03}.jpg")
        write_text(
            folder / "labels" / f"{n:03}.txt", f"0 {7 / 40} {7 / 30} {10 / 40} {8 / 30}\n1 0.5 0.5 1 1\n"
        )
    write_text(folder / "data.yaml", "train: images\nnames: [car, motor]\n")
    return folder


OWN_SETS = {"coco": coco_set, "voc": voc_set, "yolo": yolo_set}


def voc_xml(boxes: Sequence[tuple], size: tuple[int, int] | None = (40, 30), extra: str = "") -> str:
    """A VOC annotation of (name, xmin, ymin, xmax, ymax[, difficult]).

    ``size`` None leaves <size> out; ``extra`` goes into the root.
    """
    width_height = (
        f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>" if size else ""
    )
    found = []
    for name, xmin, ymin, xmax, ymax, *difficult in boxes:
        corners = f"<xmin>{xmin}</xmin><ymin>{ymin}</ymin><xmax>{xmax}</xmax><ymax>{ymax}</ymax>"
        rare = f"<difficult>{difficult[0]}</difficult>" if difficult else ""
        found.append(f"<object><name>{name}</name><pose>Left</pose>{rare}<bndbox>{corners}</bndbox></object>")
    return f"<annotation><folder>VOC</folder>{width_height}{''.join(found)}{extra}</annotation>"


def voc_tree(
    root: Path, boxes: Mapping[str, Sequence[tuple]], lists: Mapping[str, Sequence[str]] | None = None
) -> Path:
    """A VOC folder: name -> boxes for :func:`voc_xml`, list name -> its lines."""
    for name, found in boxes.items():
        write_image(root / "JPEGImages" / f"{name}.jpg")
        write_text(root / "Annotations" / f"{name}.xml", voc_xml(found))
    for name, lines in (lists or {}).items():
        write_text(root / "ImageSets" / "Main" / f"{name}.txt", "\n".join(lines) + "\n")
    return root


def bdd_frame(
    name: str,
    boxes: Sequence[tuple] | None = (),
    timeofday: str = "daytime",
    weather: str = "clear",
    **more: Any,
) -> dict:
    """A frame of a BDD100K label file: (category, x1, y1, x2, y2[, crowd]).

    ``boxes`` None leaves "labels" out, as the 2020 file does.
    """
    frame: dict[str, Any] = {
        "name": name,
        "attributes": {"weather": weather, "scene": "highway", "timeofday": timeofday},
        "timestamp": 10000,
    }
    if boxes is not None:
        frame["labels"] = [
            {
                "id": str(number),
                "category": category,
                "attributes": {"occluded": False, "truncated": False, "crowd": bool(crowd and crowd[0])},
                "box2d": {"x1": x1, "y1": y1, "x2": x2, "y2": y2},
            }
            for number, (category, x1, y1, x2, y2, *crowd) in enumerate(boxes)
        ]
    return frame | more
