"""COCO files of benchmarks' owners: read strictly, because it is known what they should hold.

(:mod:`mrt.data.convert.coco` is for any other COCO set.)
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from mrt.data.convert.raw import parse_json
from mrt.data.convert.recipe import Picture, Skipped, Thing, clip_box
from mrt.data.headers import read_header
from mrt.errors import MrtError


class Object(NamedTuple):
    """An annotation.

    Class name; x, y, width, height in pixels (NaN for what is not a number), None without a box; its area,
    None where none is given; whether it is a crowd.
    """

    label: str
    box: tuple[float, ...] | None
    area: float | None
    crowd: bool


class Listed(NamedTuple):
    """An image as a file lists it.

    ``size`` is (width, height), None where the file does not state it; ``skipped``: reason -> number of
    annotations.
    """

    name: str
    size: tuple[int, int] | None
    objects: tuple[Object, ...]
    skipped: Mapping[str, int] = {}


class Job(NamedTuple):
    """An image (None: missing), its file name relative to the split's root of images, and its entry."""

    image: Path | None
    file: str
    listed: Listed


class Content(NamedTuple):
    """A file's images in its order, its class names, and annotations of no image: reason -> how many."""

    images: list[Listed]
    classes: tuple[str, ...]
    skipped: Mapping[str, int]


def read(place: Path, hint: str) -> Content:
    """A COCO file; an image that is listed twice (same id and name) counts once.

    Raises:
        MrtError: not a JSON object with images, annotations and categories; an image or category without id
            and name; an id for two images; a file name that leads out of the folder. ``hint`` goes into the
            error: where to get the file.
    """
    content = parse_json(place)
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise MrtError(f"{place}: has no list {key!r}", hint)
    categories = dict(_named(entry, "name", place, hint) for entry in content["categories"])
    images: dict[Any, Listed] = {}
    for entry in content["images"]:
        number, name = _named(entry, "file_name", place, hint)
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or "\\" in name:
            raise MrtError(
                f"{place}: file_name of image {number!r} is {name[:200]!r}, "
                "not a path below the image folder",
                hint,
            )
        if number in images and images[number].name != name:
            raise MrtError(f"{place}: image id {number!r} is both {images[number].name!r} and {name!r}", hint)
        images[number] = Listed(name, _size(entry), ())
    objects: dict[Any, list[Object]] = {number: [] for number in images}
    skipped: dict[Any, Counter[str]] = {number: Counter() for number in images}
    lost = Counter[str]()
    for entry in content["annotations"]:
        image = category = None
        if isinstance(entry, dict):
            image, category = entry.get("image_id"), entry.get("category_id")
        if not _is_id(image) or image not in images:
            lost["annotation of an unknown image"] += 1
        elif not _is_id(category) or category not in categories:
            skipped[image]["annotation of an unknown category"] += 1
        else:
            objects[image].append(_object(entry, categories[category]))
    found = [
        entry._replace(objects=tuple(objects[number]), skipped=dict(skipped[number]))
        for number, entry in images.items()
    ]
    return Content(found, tuple(dict.fromkeys(categories.values())), lost)


def _named(entry: Any, key: str, place: Path, hint: str) -> tuple[Any, str]:
    """The id and name of an image or category."""
    number, name = (entry.get("id"), entry.get(key)) if isinstance(entry, dict) else (None, None)
    if not _is_id(number) or not isinstance(name, str) or not name:
        raise MrtError(f"{place}: the entry {str(entry)[:200]} has no usable id and {key}", hint)
    return number, name


def _is_id(value: Any) -> bool:
    return isinstance(value, (int, str)) and not isinstance(value, bool)


def _size(entry: Mapping[str, Any]) -> tuple[int, int] | None:
    width, height = _number(entry.get("width")), _number(entry.get("height"))
    return (int(width), int(height)) if 1 <= width < math.inf and 1 <= height < math.inf else None


def _object(entry: Mapping[str, Any], label: str) -> Object:
    box, area = entry.get("bbox"), _number(entry.get("area"))
    numbers = tuple(_number(value) for value in box) if isinstance(box, list) and len(box) == 4 else None
    return Object(label, numbers, area if 0 < area < math.inf else None, _number(entry.get("iscrowd")) == 1)


def _number(value: Any) -> float:
    try:
        return float(value) if isinstance(value, (int, float)) else math.nan
    except OverflowError:  # whole numbers in JSON have no limit
        return math.inf


def convert(job: Job, classes: Sequence[str]) -> Picture | Skipped:
    """One image with the objects of the classes asked for; boxes are cut to the image, areas are kept."""
    if job.image is None:
        return Skipped("image missing", job.file)
    try:
        size = read_header(job.image).upright
    except MrtError:
        return Skipped("image cut short or unreadable", job.file)
    if job.listed.size not in (None, size):
        return Skipped("image size differs from the annotation's", job.file)
    things, skipped = [], Counter(job.listed.skipped)
    for label, box, area, crowd in job.listed.objects:
        if label not in classes:
            skipped["class not asked for"] += 1
            continue
        cut, problem = None, "no box"
        if box is not None:
            x, y, w, h = box
            cut, problem = clip_box((x, y, x + w, y + h), *size)
        if cut is None:
            skipped[problem] += 1
        else:
            things.append(Thing(label, cut, area or cut[2] * cut[3], crowd))
    return Picture(job.file, *size, things, skipped)
