"""VGG Image Annotator's JSON, versions 1 and 2.

Exported annotations, or a whole project (``_via_img_metadata``).

``{KEY: {"filename", "size", "regions", "file_attributes"}}``; regions are a list (version 2) or an object
with numbers as keys (version 1), each with ``shape_attributes`` (``name`` says which shape) and
``region_attributes``, one of which is the class. ``size`` is that of the file in bytes. Coordinates are
pixels from the upper left corner.

- **rect**, **polygon**, **circle**, **ellipse** (``theta``: radians): the upright box around the shape.
  **polyline**, **point**: counted.
- **the class** is the only region attribute. Among several it is "label", or the only one with a usual name
  (class, category, type, name, ...), or the only one that all labelled regions have; otherwise it is an
  error. Its value is a text, or the one ticked option of a checkbox.

Source: the documents of VIA 2 (Dutta and Zisserman 2019, "The VIA Annotation Software for Images, Audio and
Video").
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mrt.data.convert.formats import reading
from mrt.data.convert.formats.listing import Files, Listing, image_name, refuse_twins
from mrt.data.convert.places import class_name
from mrt.data.convert.sheets import Record, Sheet
from mrt.errors import MrtError

NEEDS = "a JSON file of VGG Image Annotator (annotations or project), and its images"
_USUAL = (
    *("class", "category", "type", "object", "name"),
    *("class_name", "label_name", "label_id", "labels", "classes"),
)


def read(place: Path, files: Files) -> dict[str, Sheet]:
    """The images of a file by their ``filename``.

    Raises:
        MrtError: not JSON, no such entries, an image without a name or listed twice, or it is unclear which
            attribute is the class.
    """
    content = reading.read_whole_json(place, NEEDS)
    entries = content.get("_via_img_metadata", content) if isinstance(content, dict) else None
    if not isinstance(entries, dict) or not all(
        isinstance(entry, dict) and "filename" in entry for entry in entries.values()
    ):
        raise MrtError(f"{place}: its entries have no 'filename'", f"It should be {NEEDS}.")
    names = [image_name(entry["filename"], place, f"entry {key[:80]!r}") for key, entry in entries.items()]
    refuse_twins(
        names,
        place,
        "Files of the same name in different folders cannot be told apart: export each folder for itself.",
    )
    regions = [list(_regions(entry.get("regions"))) for entry in entries.values()]
    key = _class_key((region for found in regions for region in found), place)
    return {
        name: reading.collect(_record(region, key) for region in found)
        for name, found in zip(names, regions, strict=True)
    }


def looks(head: bytes, path: str) -> bool:
    """Whether it is a JSON object with files and regions."""
    text = reading.head_object(head)
    return reading.has_key(text, "filename", "regions", "file_attributes") or reading.has_key(
        text, "_via_img_metadata", before="{"
    )


def _regions(found: Any) -> Iterator[Any]:
    if isinstance(found, (dict, list)):
        yield from found.values() if isinstance(found, dict) else found
    elif found is not None:
        yield found  # counted as a region without a box


def _attributes(region: Any) -> dict[str, str]:
    """The attributes that the user has given a region: attribute -> text."""
    found = region.get("region_attributes") if isinstance(region, dict) else None
    texts: dict[str, str] = {}
    for key, value in found.items() if isinstance(found, dict) else ():
        ticked = [name for name, tick in value.items() if tick is True] if isinstance(value, dict) else []
        name = class_name(ticked[0] if len(ticked) == 1 else value)
        if name is not None:
            texts[key] = name
    return texts


def _class_key(regions: Iterable[Any], place: Path) -> str | None:
    """The attribute that names the class; None if no region has any."""
    labelled = [set(keys) for region in regions if (keys := _attributes(region))]
    if not labelled:
        return None
    there = set.union(*labelled)
    named = {key for key in there if key.strip().lower() == "label"}
    usual = {key for key in there if key.strip().lower() in _USUAL}
    for keys in (there, named, usual, set.intersection(*labelled)):
        if len(keys) == 1:
            return next(iter(keys))
    raise MrtError(
        f"{place}: its regions have the attributes {', '.join(sorted(there))[:200]}: which one is the class?",
        "Call the one that names the class 'label', in VIA or in the file.",
    )


def _record(region: Any, key: str | None) -> Record | str:
    """The object of a region, or why there is none."""
    shape = region.get("shape_attributes") if isinstance(region, dict) else None
    if not isinstance(shape, dict):
        return "no box"
    if shape.get("name") in ("polyline", "point"):
        return reading.NO_AREA
    box = _box(shape)
    if isinstance(box, str):
        return box
    label = _attributes(region).get(key) if key is not None else None
    return reading.NO_NAME if label is None else Record(label, box)


def _box(shape: Mapping[str, Any]) -> reading.Box | str:
    """The upright box around a shape, or why it has none."""

    def values(*names: str) -> list[float]:
        return [reading.number(shape.get(name)) for name in names]

    kind = shape.get("name")
    if kind == "rect":
        x, y, width, height = values("x", "y", "width", "height")
        return x, y, x + width, y + height
    if kind == "circle":
        cx, cy, radius = values("cx", "cy", "r")
        return reading.around_ellipse(cx, cy, radius, radius)
    if kind == "ellipse":
        turned = math.degrees(reading.number(shape.get("theta", 0)))
        return reading.around_ellipse(*values("cx", "cy", "rx", "ry"), turned)
    if kind == "polygon":
        xs, ys = shape.get("all_points_x"), shape.get("all_points_y")
        if isinstance(xs, list) and isinstance(ys, list) and len(xs) == len(ys):
            return reading.around(map(reading.number, xs), map(reading.number, ys))
        return "no box"
    return f"unknown shape {str(kind)[:40]!r}"


LISTING = Listing(name="via", suffixes=(".json",), needs=NEEDS, read=read, looks=looks)
