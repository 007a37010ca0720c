"""Raw data sets for timing the converters: in the original layouts and as crowded as the real ones."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from mrt.data.convert import bdd100k, cityscapes, custom, sim10k
from mrt.data.convert.recipe import Recipe

# A description, and the recipe to be called with ([raw], data root).
Tree = tuple[str, Callable[..., Recipe]]

# Objects per image about as in the real sets (an estimate; the polygons of Cityscapes are coarser or finer
# from object to object).
CITYSCAPES_THINGS, CITYSCAPES_STUFF, POLYGON_POINTS = 18, 35, 40
SIM10K_BOXES, BDD100K_BOXES, BDD100K_LINES, OWN_BOXES = 6, 18, 10, 8
STUFF = (("road", 7), ("building", 11), ("vegetation", 21), ("sky", 23), ("pole", 17), ("traffic sign", 20))
THINGS = (("car", 26), ("person", 24), ("bicycle", 33), ("rider", 25), ("truck", 27))


def cityscapes_tree(raw: Path, photos: Sequence[Path], count: int, instance_ids: bool) -> Tree:
    """``count`` frames of 2048x1024 with polygons; with ``instance_ids`` also the instance images."""
    rng = np.random.default_rng(0)
    for number in range(count):
        name = f"aachen_{number:06}_000019"
        labels = raw / "gtFine" / "train" / "aachen"
        _link(photos, number, raw / "leftImg8bit" / "train" / "aachen" / f"{name}_leftImg8bit.png")
        labels.mkdir(parents=True, exist_ok=True)
        chosen = [STUFF[n % len(STUFF)] for n in range(CITYSCAPES_STUFF)]
        chosen += [THINGS[n % len(THINGS)] for n in range(CITYSCAPES_THINGS)]
        spread = [500] * CITYSCAPES_STUFF + [80] * CITYSCAPES_THINGS
        outlines = [_outline(rng, extent) for extent in spread]
        objects = [
            {"label": label, "polygon": outline} for (label, _), outline in zip(chosen, outlines, strict=True)
        ]
        content = {"imgHeight": 1024, "imgWidth": 2048, "objects": objects}
        (labels / f"{name}_gtFine_polygons.json").write_text(json.dumps(content))
        if instance_ids:
            picture = Image.new("I", (2048, 1024))
            draw = ImageDraw.Draw(picture)
            for order, ((_, number_of_class), outline) in enumerate(zip(chosen, outlines, strict=True)):
                thing = order >= CITYSCAPES_STUFF
                fill = number_of_class * 1000 + order if thing else number_of_class
                draw.polygon([tuple(point) for point in outline], fill=fill)
            pixels = np.asarray(picture).astype(np.uint16)
            Image.fromarray(pixels).save(labels / f"{name}_gtFine_instanceIds.png")
    what = f"{CITYSCAPES_STUFF + CITYSCAPES_THINGS} polygons of {POLYGON_POINTS} points"
    if instance_ids:
        what = "instanceIds.png of 2048x1024"
    return what, partial(cityscapes.recipe, splits=("train",))


def sim10k_tree(raw: Path, photos: Sequence[Path], count: int) -> Tree:
    """VOC2012 with cars."""
    _voc(raw / "VOC2012", photos, count, SIM10K_BOXES)
    return f"XML, {SIM10K_BOXES} cars", sim10k.recipe


def bdd100k_tree(raw: Path, photos: Sequence[Path], count: int) -> Tree:
    """Daytime frames of 2018's labels, with lanes."""
    rng, frames = np.random.default_rng(0), []
    width, height = _size(photos[0])
    for number in range(count):
        _link(photos, number, raw / "bdd100k" / "images" / "100k" / "train" / f"{number:08}.jpg")
        line = {
            "category": "lane",
            "attributes": {},
            "poly2d": [{"vertices": _outline(rng, 300), "types": "L" * POLYGON_POINTS}],
            "id": 1,
        }
        labels: list[dict[str, Any]] = [line] * BDD100K_LINES
        for x0, y0, x1, y1 in _boxes(rng, BDD100K_BOXES, width, height):
            box = {"x1": x0, "y1": y0, "x2": x1, "y2": y1}
            labels.append({"category": "car", "box2d": box, "id": len(labels), "attributes": {}})
        attributes = {"weather": "clear", "scene": "city street", "timeofday": "daytime"}
        frames.append({"name": f"{number:08}.jpg", "attributes": attributes, "labels": labels})
    file = raw / "bdd100k" / "labels" / "bdd100k_labels_images_train.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(frames))
    return f"JSON of 2018, {BDD100K_BOXES} boxes and {BDD100K_LINES} lines", bdd100k.recipe


def coco_tree(raw: Path, photos: Sequence[Path], count: int) -> Tree:
    """One COCO file."""
    rng, images, annotations = np.random.default_rng(0), [], []
    width, height = _size(photos[0])
    for number in range(1, count + 1):
        _link(photos, number, raw / "train" / f"{number:012}.jpg")
        images.append({"id": number, "file_name": f"{number:012}.jpg", "width": width, "height": height})
        for x0, y0, x1, y1 in _boxes(rng, OWN_BOXES, width, height):
            box = [x0, y0, x1 - x0, y1 - y0]
            place = {"id": len(annotations) + 1, "image_id": number, "category_id": 1}
            annotations.append(place | {"bbox": box, "area": box[2] * box[3], "iscrowd": 0})
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "car"}]}
    (raw / "instances_train.json").write_text(json.dumps(content))
    return f"COCO, {OWN_BOXES} boxes", partial(custom.recipe, format="coco")


def voc_tree(raw: Path, photos: Sequence[Path], count: int) -> Tree:
    """JPEGImages and Annotations."""
    _voc(raw / "VOC", photos, count, OWN_BOXES)
    return f"XML, {OWN_BOXES} boxes", partial(custom.recipe, format="voc")


def yolo_tree(raw: Path, photos: Sequence[Path], count: int) -> Tree:
    """images and labels with data.yaml."""
    rng = np.random.default_rng(0)
    (raw / "labels" / "train").mkdir(parents=True)
    (raw / "data.yaml").write_text("train: images/train\nnames: [car]\n")
    for number in range(count):
        _link(photos, number, raw / "images" / "train" / f"{number}.jpg")
        rows = [
            f"0 {(x0 + x1) / 2} {(y0 + y1) / 2} {x1 - x0} {y1 - y0}"
            for x0, y0, x1, y1 in _boxes(rng, OWN_BOXES, 1, 1)
        ]
        (raw / "labels" / "train" / f"{number}.txt").write_text("\n".join(rows))
    return f"text files, {OWN_BOXES} boxes", partial(custom.recipe, format="yolo")


def folder_tree(raw: Path, photos: Sequence[Path], count: int) -> Tree:
    """Images and nothing else."""
    for number in range(count):
        _link(photos, number, raw / f"{number}.jpg")
    return "no labels", partial(custom.recipe, format="images")


def _voc(folder: Path, photos: Sequence[Path], count: int, boxes: int) -> None:
    rng = np.random.default_rng(0)
    width, height = _size(photos[0])
    (folder / "Annotations").mkdir(parents=True)
    for number in range(count):
        _link(photos, number, folder / "JPEGImages" / f"{number}.jpg")
        objects = "".join(
            "<object><name>car</name><pose>Unspecified</pose><truncated>0</truncated><difficult>0</difficult>"
            f"<bndbox><xmin>{x0:.0f}</xmin><ymin>{y0:.0f}</ymin><xmax>{x1:.0f}</xmax><ymax>{y1:.0f}</ymax>"
            "</bndbox></object>"
            for x0, y0, x1, y1 in _boxes(rng, boxes, width, height)
        )
        size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
        (folder / "Annotations" / f"{number}.xml").write_text(
            f"<annotation><folder>VOC</folder><filename>{number}.jpg</filename>{size}{objects}</annotation>"
        )


def _link(photos: Sequence[Path], number: int, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    os.link(photos[number % len(photos)], place)


def _size(photo: Path) -> tuple[int, int]:
    with Image.open(photo) as picture:
        return picture.size


def _boxes(rng: np.random.Generator, count: int, width: float, height: float) -> list[list[float]]:
    """Corners x0, y0, x1, y1 of boxes inside the image."""
    first, extent = rng.uniform(0.02, 0.6, (count, 2)), rng.uniform(0.05, 0.38, (count, 2))
    return (np.hstack((first, first + extent)) * (width, height, width, height)).round(6).tolist()


def _outline(rng: np.random.Generator, extent: float) -> list[list[int]]:
    """A star-shaped polygon about ``extent`` pixels wide, somewhere in 2048x1024."""
    angles = np.linspace(0, 2 * np.pi, POLYGON_POINTS, endpoint=False)
    radii = extent / 2 * rng.uniform(0.6, 1, POLYGON_POINTS)
    directions = np.stack((np.cos(angles), np.sin(angles)), 1)
    points = rng.uniform(0.1, 0.9, 2) * (2048, 1024) + radii[:, None] * directions
    return points.clip(0, (2047, 1023)).round().astype(int).tolist()
