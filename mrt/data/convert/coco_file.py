"""One COCO file: its images, its categories, and which object is on which image."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mrt.data.convert.formats import reading
from mrt.data.convert.names import split_in
from mrt.data.convert.outlines import box_around
from mrt.data.convert.places import Box, class_name, entry_name
from mrt.data.convert.raw import parse_json
from mrt.errors import MrtError

HINT = "A COCO file is an object with the lists 'images', 'annotations' and 'categories'."


@dataclass
class Entry:
    """An image of a COCO file while its annotations are being gathered."""

    name: str
    size: tuple[int, int] | None
    split: str | None = None  # that the entry itself states
    ids: list[Any] = field(default_factory=list)
    objects: list[Box] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    notes: dict[str, str] = field(default_factory=dict)

    def leave(self, reason: str, item: Any) -> None:
        """Count an annotation that is left out, and keep the first of its kind to show."""
        self.skipped[reason] += 1
        if reason not in self.notes:
            self.notes[reason] = f"{self.name}: {_shown(item, 100)}"


def read_file(place: Path) -> dict[str, Any]:
    coco = parse_json(place)
    if not isinstance(coco, dict):
        raise MrtError(
            f"{place}: holds {_kind(coco)}, expected an object",
            HINT + " From a tool's own JSON, export COCO or YOLO. Bare images, "
            "whatever lies beside them: --format images.",
        )
    for key in ("images", "annotations", "categories"):
        if not isinstance(coco.get(key), list):
            wrong = f"has {_kind(coco[key])} as {key!r}, expected a list" if key in coco else ""
            found = wrong or f"has no list {key!r}"
            raise MrtError(f"{place}: {found}", HINT + " Images without labels: --format images.")
    if not coco["images"]:
        raise MrtError(f"{place}: lists no images", "Leave the file out, or get it again.")
    return coco


def categories_of(coco: dict[str, Any], place: Path) -> dict[Any, str]:
    """Category id -> class name, in the order of the ids."""
    names: dict[Any, str] = {}
    for entry in coco["categories"]:
        number = name = None
        if isinstance(entry, dict):
            number, name = _id(entry.get("id")), class_name(entry.get("name"))
        if number is None or not name:
            raise MrtError(f"{place}: the category {_shown(entry)} has no usable id and name", HINT)
        if names.get(number, name) != name:
            raise MrtError(
                f"{place}: category id {number!r} is both {names[number]!r} and {name!r}",
                "Give each category an id of its own.",
            )
        names[number] = name
    if not names:
        raise MrtError(f"{place}: lists no categories", HINT)
    above = {
        class_name(entry.get("supercategory"))
        for entry in coco["categories"]
        if entry.get("name") != entry.get("supercategory")
    }
    used = {_known(a.get("category_id"), names) for a in coco["annotations"] if isinstance(a, dict)}
    # some tools also list the group (supercategory) as a category
    real = {number: name for number, name in names.items() if number in used or name not in above}
    return dict(sorted((real or names).items(), key=lambda item: (isinstance(item[0], str), item[0])))


def images_of(
    entries: list[Any], place: Path, skipped: Counter[str]
) -> tuple[dict[Any, Entry], dict[str, Entry]]:
    """The images by id and by name; an image that is listed twice counts once."""
    by_id: dict[Any, Entry] = {}
    by_name: dict[str, Entry] = {}
    for item in entries:
        number = text = None
        if isinstance(item, dict):
            number, text = _id(item.get("id")), item.get("file_name")
        if number is None or not isinstance(text, str):
            raise MrtError(f"{place}: the image {_shown(item)} has no usable id and file_name", HINT)
        name, size = entry_name(text, place, f"file_name of image {number!r}"), _size(item)
        if number in by_id and by_id[number].name != name:
            raise MrtError(
                f"{place}: image id {number!r} is both {by_id[number].name!r} and {name!r}",
                "Its annotations may be of either: give each image an id of its own.",
            )
        listed = name in by_name
        entry = by_name.setdefault(name, Entry(name, size, _stated_split(item)))
        if entry.size != size:
            raise MrtError(
                f"{place}: {name!r} is listed twice, with the sizes {entry.size} and {size}",
                "Leave one of them out.",
            )
        skipped["image listed twice"] += listed
        if number not in entry.ids:
            entry.ids.append(number)
        by_id[number] = entry
    return by_id, by_name


@dataclass
class Gathered:
    """What was noticed while annotations were matched with their images."""

    again: int = 0
    retyped: int = 0
    outlined: int = 0
    turned: int = 0
    examples: dict[str, list[str]] = field(default_factory=dict)

    def leave(self, reason: str, item: Any) -> str:
        """Keep an example of an annotation that is left out; returns the reason."""
        shown = self.examples.setdefault(reason, [])
        if len(shown) < 3:
            shown.append(_shown(item, 100))
        return reason

    def notes(self, place: Path) -> list[str]:
        """What to say of them."""
        said = []
        if self.retyped:
            said.append(
                f"{place.name}: {self.retyped} annotations name their image or category "
                'by an id of another type (1, "1", 1.0)'
            )
        if self.outlined:
            said.append(
                f"{place.name}: {self.outlined} annotations without a box of any "
                "size have that of their outline"
            )
        if self.turned:
            said.append(
                f"{place.name}: {self.turned} boxes are turned by their attribute 'rotation': the upright "
                "boxes around them are taken"
            )
        return said


def gather(
    annotations: list[Any], images: Mapping[Any, Entry], categories: Mapping[Any, str], skipped: Counter[str]
) -> Gathered:
    """Give each image its objects."""
    seen: dict[Any, tuple[Any, Any, str]] = {}
    found = Gathered()
    for item in annotations:
        if not isinstance(item, dict):
            skipped[found.leave("annotation that is not an object", item)] += 1
            continue
        number, image = _id(item.get("id")), _known(item.get("image_id"), images)
        category = _known(item.get("category_id"), categories)
        if image is None:
            skipped[found.leave("annotation of an unknown image", item)] += 1
            continue
        entry = images[image]
        if category is None:
            entry.leave("annotation of an unknown category", item)
            continue
        same_types = type(image) is type(item["image_id"]) and type(category) is type(item["category_id"])
        found.retyped += not same_types
        if number is not None:
            same = (image, category, repr(item.get("bbox") or item.get("segmentation")))
            if seen.setdefault(number, same) != same:
                found.again += 1
            elif seen[number] is not same:
                entry.leave("annotation listed twice", item)
                continue
        box, outlined = _box(item, entry.size)
        if isinstance(box, str):
            entry.leave(box, item)
            continue
        found.outlined += outlined and bool(item.get("bbox"))
        ignored = _is_set(item.get("iscrowd")) or _is_set(item.get("ignore"))
        area = number_of(item.get("area"))
        area = area if area is not None and 0 < area < math.inf else None
        x, y, w, h = box
        corners = x, y, x + w, y + h
        degrees = 0.0 if outlined else _rotation(item)
        if degrees:
            corners, area = reading.around_turned(corners, degrees), None
            found.turned += 1
        entry.objects.append(Box(categories[category], corners, area, ignored))
    return found


def _box(
    annotation: Mapping[str, Any], size: tuple[int, int] | None
) -> tuple[tuple[float, float, float, float] | str, bool]:
    """(x, y, width, height, or why there is none; whether it was taken from the outline).

    The outline counts where the annotation's own box is missing or has no size.
    """
    box = annotation.get("bbox")
    values = [number_of(value) for value in box] if isinstance(box, list) and len(box) == 4 else [None]
    written = tuple(values) if None not in values else None
    if written is not None and all(map(math.isfinite, written)) and min(written[2:]) > 0:
        return written, False
    outline = box_around(annotation.get("segmentation"), size)
    if isinstance(outline, tuple):
        return outline, True
    return written or ("box that is not four numbers" if box else outline), False


def _rotation(annotation: Mapping[str, Any]) -> float:
    """The degrees by which a box is turned about its centre, as CVAT exports it: beside the box as it was
    before, and without an outline.
    """
    attributes = annotation.get("attributes")
    if not isinstance(attributes, Mapping) or annotation.get("segmentation"):
        return 0.0
    degrees = number_of(attributes.get("rotation"))
    return degrees if degrees is not None and math.isfinite(degrees) else 0.0


def _stated_split(image: Mapping[str, Any]) -> str | None:
    """The split that an image entry names, as some tools write it ("split": "test")."""
    said = next((image[key] for key in ("split", "subset") if isinstance(image.get(key), str)), None)
    return split_in(said) if said else None


def _size(image: Mapping[str, Any]) -> tuple[int, int] | None:
    """(width, height) that an image entry states; None if it states none."""
    values = [number_of(image.get(key)) for key in ("width", "height")]
    usable = all(value and 0 < value < math.inf for value in values)
    return (int(values[0]), int(values[1])) if usable else None


def _is_set(value: Any) -> bool:
    """Whether a flag is set: a number but 0, true, or one of these as a text."""
    if isinstance(value, str):
        return value.strip().lower() in ("1", "1.0", "true", "yes")
    return value is not None and number_of(value) not in (None, 0)


def number_of(value: Any) -> float | None:
    """A number as a float, infinite where it is too large for one; None for anything else."""
    if type(value) is float:  # a quick way for the usual case
        return value
    if isinstance(value, bool):
        return float(value)
    try:
        return float(value) if isinstance(value, (int, float)) else None
    except OverflowError:
        return math.inf


def _id(value: Any) -> int | str | None:
    """An id as a whole number or a text, else None; 1.0 is 1, as some table programs write it."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, (int, str)) and not isinstance(value, bool) else None


def _known(value: Any, among: Container[Any]) -> int | str | None:
    """The existing id that is meant: the same, or the same number in another type (1 and "1")."""
    if type(value) is int and value in among:  # a quick way for the usual case
        return value
    number = _id(value)
    if number is None or number in among:
        return number
    if isinstance(number, int):
        other: int | str = str(number)
    else:
        text = number.strip().removesuffix(".0")
        other = int(text) if text.isascii() and text.isdecimal() and len(text) < 20 else number
    return other if other in among else None


def _kind(value: Any) -> str:
    names = {list: "a list", dict: "an object", str: "a text", type(None): "null", bool: "true or false"}
    return names.get(type(value), "a number")


def _shown(value: Any, most: int = 200) -> str:
    return json.dumps(value)[:most]
