"""Apple's Create ML JSON.

``[{"image": "a.jpg", "annotations": [{"label", "coordinates": {"x", "y", "width", "height"}}]}]``: x and y
are the box's centre, all in pixels from the upper left corner. ``imagefilename`` and ``annotation`` are older
names of the keys.

Source: developer.apple.com/documentation/createml, "Building an object detector data source".
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mrt.data.convert.formats import reading
from mrt.data.convert.formats.listing import Files, Listing, image_name, refuse_twins
from mrt.data.convert.places import class_name
from mrt.data.convert.sheets import Record, Sheet
from mrt.data.text import decode_head
from mrt.errors import MrtError

NEEDS = "Create ML's JSON (a list of 'image' and 'annotations' with 'coordinates'), and its images"


def read(place: Path, files: Files) -> dict[str, Sheet]:
    """The images of a file. MrtError: no JSON, no such entries, an image without a name or listed twice."""
    content = reading.read_whole_json(place, NEEDS)
    if not isinstance(content, list) or not all(isinstance(entry, dict) for entry in content):
        raise MrtError(f"{place}: no list of images", f"It should be {NEEDS}.")
    names = [
        image_name(entry.get("image", entry.get("imagefilename")), place, f"entry {n}")
        for n, entry in enumerate(content)
    ]
    refuse_twins(names, place, "Put all objects of an image into one entry.")
    return {
        name: reading.collect(_records(entry, place, name))
        for name, entry in zip(names, content, strict=True)
    }


def looks(head: bytes, path: str) -> bool:
    """Whether it is a JSON list with images and coordinates."""
    text = decode_head(head).lstrip()
    image = reading.has_key(text, "image") or reading.has_key(text, "imagefilename")
    return (
        text.startswith("[")
        and image
        and reading.has_key(text, "coordinates", before="{")
        and reading.has_key(text, "label")
    )


def _records(entry: dict[str, Any], place: Path, name: str) -> list[Record | str | None]:
    found = entry.get("annotations", entry.get("annotation", []))
    if not isinstance(found, list):
        raise MrtError(f"{place}: the annotations of {name!r} are no list", f"It should be {NEEDS}.")
    return [_record(one) for one in found]


def _record(entry: Any) -> Record | str:
    label = class_name(entry.get("label")) if isinstance(entry, dict) else None
    if label is None:
        return reading.NO_NAME
    box = entry.get("coordinates")
    if not isinstance(box, dict):
        return Record(label, None)
    cx, cy, width, height = (reading.number(box.get(key)) for key in ("x", "y", "width", "height"))
    return Record(label, (cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2))


LISTING = Listing(name="createml", suffixes=(".json",), needs=NEEDS, read=read, looks=looks)
