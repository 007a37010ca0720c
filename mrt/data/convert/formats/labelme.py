"""LabelMe's JSON: ``a.json`` beside ``a.jpg``.

Written by wkentaro/labelme and by tools that use the same format, such as X-AnyLabeling.

``shapes`` are the objects: ``label``, ``points`` and ``shape_type``. Points are distances from the upper left
corner of the picture as LabelMe shows it, upright by its EXIF entry; ``imageWidth`` and ``imageHeight`` are
that picture's.

- **rectangle**: two corners in any order, or all four. **oriented_rectangle**, **rotation** and similar: the
  upright box around them.
- **polygon**, and a shape without a type (as in old versions): the box around its points, at least three.
- **circle**: centre and a point on its edge. **mask**: its first and last pixel, both inclusive, so 1 is
  added.
- **point**, **points**, **line**, **linestrip**: counted, because they have no area.
- ``difficult`` (X-AnyLabeling) makes an ignored object. ``imageData``, the picture itself, is not read.

Source: labelme/_label_file.py and labelme/_utils/_shape.py (shape_to_mask, shapes_to_label) of LabelMe 5 and
6.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from mrt.data.convert.formats import reading
from mrt.data.convert.places import class_name
from mrt.data.convert.recipe import Skipped
from mrt.data.convert.sheets import Format, Record, Sheet

_CORNERS = ("rectangle", "oriented_rectangle", "rotation", "quadrilateral", "cuboid")
_LINES = ("point", "points", "line", "linestrip", "lines")
_KEYS = ("shapes", "imagePath", "imageData", "imageHeight", "shape_type")


def read(place: Path) -> Sheet | Skipped:
    """A label file. MrtError: it cannot be read."""
    found = reading.read_json(place)
    if isinstance(found, Skipped):
        return found
    shapes = found.get("shapes") if isinstance(found, dict) else None
    if not isinstance(shapes, list):
        return reading.unreadable(place)
    size = reading.image_size(found.get("imageWidth"), found.get("imageHeight"))
    return reading.collect(map(_record, shapes), size)


def stated_image(place: Path) -> str | None:
    """The ``imagePath`` of a label file."""
    found = reading.read_json(place)
    path = found.get("imagePath") if isinstance(found, dict) else None
    return path if isinstance(path, str) and path.strip() else None


def looks(head: bytes, path: str) -> bool:
    """Whether it is a JSON object with at least two of LabelMe's keys.

    Not all, because some of them may come after the picture's data.
    """
    text = reading.head_object(head)
    return sum(reading.has_key(text, key) for key in _KEYS) >= 2


def _record(shape: Any) -> Record | str:
    """The object of a shape, or why there is none."""
    if not isinstance(shape, dict):
        return "shape that is no object"
    kind = shape.get("shape_type") or "polygon"
    label = class_name(shape.get("label"))
    if label is None:
        return reading.NO_NAME
    if kind in _LINES:
        return reading.NO_AREA
    box = _box(kind, _points(shape.get("points")))
    return box if isinstance(box, str) else Record(label, box, ignored=shape.get("difficult") is True)


def _points(found: Any) -> list[tuple[float, float]]:
    """The points of a shape, NaN for what is not a number."""
    points = []
    for point in found if isinstance(found, list) else ():
        is_pair = isinstance(point, list) and len(point) == 2
        points.append(tuple(map(reading.number, point)) if is_pair else (math.nan, math.nan))
    return points


def _box(kind: Any, points: list[tuple[float, float]]) -> reading.Box | str | None:
    """The box around a shape, None if it has no points, or why it has none."""
    if not points:
        return None
    if kind == "circle":
        if len(points) != 2:
            return "circle that is not two points"
        return reading.around_ellipse(*points[0], *[math.dist(*points)] * 2)
    if kind == "polygon" and len(points) < 3:
        return "polygon of less than three points"
    if kind not in (*_CORNERS, "polygon", "mask"):
        return f"unknown shape {str(kind)[:40]!r}"
    x0, y0, x1, y1 = reading.around(*zip(*points, strict=True))
    return (x0, y0, x1 + 1, y1 + 1) if kind == "mask" else (x0, y0, x1, y1)


FORMAT = Format(
    name="labelme",
    suffixes=(".json",),
    needs="a LabelMe JSON file for each image (a.json beside a.jpg), with 'shapes' and 'imagePath'",
    read=read,
    looks=looks,
    stated=stated_image,
)
