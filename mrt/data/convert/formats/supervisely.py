"""Supervisely's JSON: ``ds/ann/a.jpg.json`` for ``ds/img/a.jpg``; Dataset Ninja's downloads have it too.

``{"size": {"height", "width"}, "objects": [{"classTitle", "geometryType", "points": {"exterior": [[x, y],
...], "interior"}}]}``, in pixels from the upper left corner. Datasets, the folders above ``ann`` and ``img``,
are often splits.

- **rectangle** (two opposite corners) and **polygon**: the box around the points. Whole numbers are the first
  and the last pixel, both inclusive, as Supervisely's library has them, so 1 is added; fractions are the
  labelling tool's own, distances to edges.
- **bitmap**: a packed PNG and the pixel of its upper left corner. **point**, **line**: counted, because they
  have no area; **graph**: counted, key points.
- ``meta.json`` above the datasets lists the project's classes; those of the objects are taken.

Sources: developer.supervisely.com, "Supervisely annotation format" (objects) and "Coordinate system".
"""

from __future__ import annotations

import base64
import binascii
import math
import zlib
from pathlib import Path
from typing import Any

from mrt.data.convert.formats import reading
from mrt.data.convert.places import class_name
from mrt.data.convert.recipe import Skipped
from mrt.data.convert.sheets import Format, Record, Sheet

_PNG = b"\x89PNG\r\n\x1a\n"
_IHDR = 24  # first bytes of a PNG, up to its width and height
_COUNTED = {
    "point": reading.NO_AREA,
    "line": reading.NO_AREA,
    "polyline": reading.NO_AREA,
    "graph": "skeleton of key points",
}


def read(place: Path) -> Sheet | Skipped:
    """A label file. MrtError: it cannot be read."""
    found = reading.read_json(place)
    if isinstance(found, Skipped):
        return found
    objects = found.get("objects") if isinstance(found, dict) else None
    if not isinstance(objects, list):
        return reading.unreadable(place)
    size = found.get("size")
    stated = reading.image_size(size.get("width"), size.get("height")) if isinstance(size, dict) else None
    return reading.collect(map(_record, objects), stated)


def looks(head: bytes, path: str) -> bool:
    """Whether it is a JSON object with Supervisely's objects, or with none and all else that it writes."""
    text = reading.head_object(head)
    if not reading.has_key(text, "objects", before="["):
        return False
    return reading.has_key(text, "classTitle") or (
        reading.has_key(text, "size", before="{") and reading.has_key(text, "tags", before="[")
    )


def _record(found: Any) -> Record | str:
    """The object of an entry, or why there is none."""
    label = class_name(found.get("classTitle")) if isinstance(found, dict) else None
    if label is None:
        return reading.NO_NAME
    kind = found.get("geometryType")
    if kind is None:  # older files
        kind = "bitmap" if isinstance(found.get("bitmap"), dict) else "polygon"
    kind = str(kind)
    if kind in _COUNTED:
        return _COUNTED[kind]
    if kind in ("bitmap", "alpha_mask"):
        return Record(label, _around_bitmap(found.get("bitmap")))
    if kind not in ("rectangle", "polygon"):
        return f"unknown shape {kind[:40]!r}"
    points = found.get("points")
    outline = points.get("exterior") if isinstance(points, dict) else None
    pairs = [point for point in outline if _is_pair(point)] if isinstance(outline, list) else []
    if not pairs:
        return Record(label, None)
    if kind == "polygon" and len(pairs) < 3:
        return "polygon of less than three points"
    if len(pairs) < len(outline):
        return Record(label, reading.NO_NUMBERS)
    values = [value for point in pairs for value in point]
    x0, y0, x1, y1 = reading.around(map(reading.number, values[::2]), map(reading.number, values[1::2]))
    inclusive = int(all(isinstance(value, int) for value in values))
    return Record(label, (x0, y0, x1 + inclusive, y1 + inclusive))


def _is_pair(point: Any) -> bool:
    return isinstance(point, list) and len(point) == 2


def _around_bitmap(found: Any) -> reading.Box | None:
    """The box around a packed mask, which is cut to what it shows; None if there is none."""
    found = found if isinstance(found, dict) else {}
    origin, data = found.get("origin"), found.get("data")
    if not _is_pair(origin) or not isinstance(data, str):
        return None
    try:
        packed = base64.b64decode(data.encode("ascii", "replace"), validate=True)
        head = zlib.decompressobj().decompress(packed, _IHDR)
    except (binascii.Error, ValueError, zlib.error):
        return None
    if len(head) < _IHDR or not head.startswith(_PNG):
        return None
    x, y = map(reading.number, origin)
    width, height = int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big")
    return (x, y, x + width, y + height) if math.isfinite(x) and math.isfinite(y) else reading.NO_NUMBERS


FORMAT = Format(
    name="supervisely",
    suffixes=(".json",),
    needs="a Supervisely JSON file for each image (ann/a.jpg.json for img/a.jpg), with 'objects' and 'size'",
    read=read,
    looks=looks,
    beside=frozenset({"meta.json", "key_id_map.json", "obj_class_to_machine_color.json"}),
)
