"""CVAT's own XML, "CVAT for images 1.1".

``<image name width height subset>`` elements with shapes in them, one file for a task or a project. A
project's subset names the image's split.

Coordinates are distances from the upper left corner (two decimals).

- **box**, **polygon**, **ellipse**, **mask**, **cuboid**: the upright box around the shape. ``rotation``:
  degrees about the shape's centre. A mask's ``left``, ``top``, ``width`` and ``height`` are those of its
  pixels, so its run lengths are not needed.
- **polyline**, **points**, **skeleton**, **tag** (of a whole image) and unknown shapes: counted with their
  reason.

"CVAT for video 1.1" (``<track>``) has no image names and is refused. Nothing in the file is silently ignored:
every element in an image is a record or counted.

Source: docs.cvat.ai, "XML annotation format", and cvat/apps/dataset_manager/formats/cvat.py
(dump_as_cvat_annotation).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from xml.parsers import expat

from mrt.data.convert.formats import reading
from mrt.data.convert.formats.listing import Files, Listing, image_name
from mrt.data.convert.names import split_in
from mrt.data.convert.places import class_name
from mrt.data.convert.raw import read_bytes
from mrt.data.convert.sheets import Record, Sheet
from mrt.data.convert.voc import DEEPEST
from mrt.data.text import decode_head
from mrt.errors import MrtError

NEEDS = "an XML file of 'CVAT for images 1.1' (annotations.xml), and its images"
_COUNTED = {
    "polyline": reading.NO_AREA,
    "points": reading.NO_AREA,
    "skeleton": "skeleton of key points",
    "tag": "tag of the whole image",
}
_CUBOID = [side + corner + plane for corner in ("tl", "bl", "tr", "br") for plane in "12" for side in "xy"]


def read(place: Path, files: Files) -> dict[str, Sheet]:
    """The images of an XML file by their ``name``.

    Raises:
        MrtError: not XML or cut short; a document type; another root; tracks; an image without a name or
            listed twice.
    """
    found = _Reader(place)
    try:
        found.parser.Parse(read_bytes(place), True)
    except (expat.ExpatError, ValueError, LookupError) as error:  # the last two: an unknown encoding
        raise MrtError(
            f"{place}: not valid XML ({error})",
            "It may be cut short, or not UTF-8: export it again as 'CVAT for images 1.1'.",
        ) from None
    return found.sheets


def looks(head: bytes, path: str) -> bool:
    """Whether it is XML of ``<annotations>`` with CVAT's version and ``<meta>``, or with images in it."""
    text = decode_head(head)
    return (
        re.search(r"<annotations\s*>", text) is not None
        and re.search(r"<(meta|image\s[^<>]*\bname=|track\s)", text) is not None
    )


class _Reader:
    """Reads elements while the file is parsed: a project's file may have hundreds of megabytes."""

    def __init__(self, place: Path) -> None:
        self.sheets: dict[str, Sheet] = {}
        self._place = place
        self._path: list[str] = []
        self._name = ""
        self._size: tuple[int, int] | None = None
        self._found: list[Record | str | None] = []
        self._split: str | None = None
        self.parser = expat.ParserCreate()
        self.parser.StartDoctypeDeclHandler = self._refuse
        self.parser.StartElementHandler = self._start
        self.parser.EndElementHandler = self._end

    def _refuse(self, *_: object) -> None:
        raise MrtError(
            f"{self._place}: has a document type (<!DOCTYPE ...>), which an "
            "annotation does not need and which can do harm",
            "Remove it from the file if you trust its origin.",
        )

    def _start(self, tag: str, attributes: Mapping[str, str]) -> None:
        self._path.append(tag)
        depth = len(self._path)
        if depth > DEEPEST:
            raise MrtError(
                f"{self._place}, line {self.parser.CurrentLineNumber}: elements nested more than {DEEPEST} "
                "deep",
                f"The file may be damaged. It should be {NEEDS}.",
            )
        if depth == 1 and tag != "annotations":
            raise MrtError(
                f"{self._place}: its root is <{tag[:80]}>, not <annotations>", f"It should be {NEEDS}."
            )
        if depth == 2 and tag == "track":
            raise MrtError(
                f"{self._place}: has tracks of a video, which say numbers of frames "
                "and not the names of images",
                "Export the task once more, as 'CVAT for images 1.1' with its images.",
            )
        if depth == 2 and tag == "image":
            self._name = image_name(
                attributes.get("name"), self._place, f"line {self.parser.CurrentLineNumber}"
            )
            if self._name in self.sheets:
                raise MrtError(
                    f"{self._place}: lists the image {self._name!r} more than once",
                    "Export each task of the project for itself.",
                )
            self._size = reading.image_size(attributes.get("width"), attributes.get("height"))
            self._split = split_in(attributes.get("subset", ""))
            self._found = []
        if depth == 3 and self._path[1] == "image":
            self._found.append(_record(tag, attributes))

    def _end(self, tag: str) -> None:
        if len(self._path) == 2 and tag == "image":
            self.sheets[self._name] = reading.collect(self._found, self._size)._replace(split=self._split)
        self._path.pop()


def _record(tag: str, attributes: Mapping[str, str]) -> Record | str:
    """The object of an element, or why there is none."""
    if tag in _COUNTED:
        return _COUNTED[tag]
    box = _box(tag, attributes)
    if isinstance(box, str):
        return box
    label = class_name(attributes.get("label"))
    return reading.NO_NAME if label is None else Record(label, box)


def _box(tag: str, attributes: Mapping[str, str]) -> reading.Box | str:
    """The upright box around a shape (NaN for what is not a number), or why it has none."""

    def values(*names: str) -> list[float]:
        return [reading.number(attributes.get(name)) for name in names]

    turned = reading.number(attributes.get("rotation", "0"))
    if tag == "box":
        x0, y0, x1, y1 = values("xtl", "ytl", "xbr", "ybr")
        return reading.around_turned((x0, y0, x1, y1), turned) if turned else (x0, y0, x1, y1)
    if tag == "ellipse":
        return reading.around_ellipse(*values("cx", "cy", "rx", "ry"), turned)
    if tag == "mask":
        left, top, width, height = values("left", "top", "width", "height")
        return left, top, left + width, top + height
    if tag == "cuboid":
        corners = values(*_CUBOID)
        return reading.around(corners[0::2], corners[1::2])
    if tag == "polygon":
        points = [point.split(",") for point in attributes.get("points", "").split(";")]
        pairs = [map(reading.number, point) if len(point) == 2 else (math.nan, math.nan) for point in points]
        return reading.around(*zip(*pairs, strict=True))
    return f"unknown shape {tag[:40]!r}"


LISTING = Listing(name="cvat", suffixes=(".xml",), needs=NEEDS, read=read, looks=looks)
