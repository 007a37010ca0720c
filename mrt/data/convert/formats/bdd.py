"""BDD100K's JSON for each image, as the official download has it.

``100k/train/0000f77c-6257be58.json`` belongs to the ``.jpg`` of that name.

``{"name", "attributes", "frames": [{"timestamp", "objects": [{"category", "box2d": {"x1", "y1", "x2", "y2"}},
...]}]}``. A file is for one picture, so it has one frame; a file of several frames is of a video and is left
out ("label file of several frames"). Coordinates are distances from the upper left corner, as in
:mod:`mrt.data.convert.bdd100k`, which reads the label files of a whole split. Lanes and drivable areas
(``poly2d``) are not objects and not counted; other entries without ``box2d`` are counted ("no box").
``crowd`` makes an ignored object.

Source: format.md and bdd_data/label2detection.py of ucbdrive/bdd100k (Yu et al. 2020).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mrt.data.convert.formats import reading
from mrt.data.convert.places import class_name
from mrt.data.convert.recipe import Skipped
from mrt.data.convert.sheets import Format, Record, Sheet

_NO_OBJECTS = ("lane", "area/", "drivable")


def read(place: Path) -> Sheet | Skipped:
    """A label file; the size is not in it. MrtError: it cannot be read."""
    found = reading.read_json(place)
    if isinstance(found, Skipped):
        return found
    frames = found.get("frames") if isinstance(found, dict) else None
    if not isinstance(frames, list) or not all(isinstance(frame, dict) for frame in frames):
        return reading.unreadable(place)
    if len(frames) > 1:
        return Skipped("label file of several frames", str(place))
    objects = frames[0].get("objects") if frames else None
    if objects is not None and not isinstance(objects, list):
        return reading.unreadable(place)
    return reading.collect(map(_record, objects or ()))


def looks(head: bytes, path: str) -> bool:
    """Whether it is a JSON object with frames of objects."""
    text = reading.head_object(head)
    return reading.has_key(text, "frames", "objects", before="[") and any(
        reading.has_key(text, key) for key in ("box2d", "poly2d", "timestamp")
    )


def _record(entry: Any) -> Record | str | None:
    """The object of an entry, why there is none, or None for a lane or an area."""
    if not isinstance(entry, dict):
        return "object that is no entry"
    label = class_name(entry.get("category"))
    if label is None:
        return reading.NO_NAME
    box, more = entry.get("box2d"), entry.get("attributes")
    crowd = isinstance(more, dict) and more.get("crowd") is True
    if not isinstance(box, dict):
        return None if label.startswith(_NO_OBJECTS) else Record(label, None, crowd)
    x0, y0, x1, y1 = (reading.number(box.get(key)) for key in ("x1", "y1", "x2", "y2"))
    return Record(label, (x0, y0, x1, y1), crowd)


FORMAT = Format(
    name="bdd",
    suffixes=(".json",),
    needs=(
        "a BDD100K JSON file for each image (100k/train/a.json, "
        "images/100k/train/a.jpg), with 'frames' and 'objects'"
    ),
    read=read,
    looks=looks,
    folders=frozenset({"100k", "10k", "bdd100k"}),
)
