"""KITTI's labels for 2-D detection: ``training/image_2/000000.png``, ``training/label_2/000000.txt``.

A line is ``class truncated occluded alpha x1 y1 x2 y2 height width length x y z rotation_y``: 15 columns;
result files have a score as the 16th.

- **Coordinates**: the devkit's readme only says "0-based index". Its own evaluation (``imageBoxOverlap``)
  takes width = x2 - x1, and the boxes have fractions of pixels, so they are distances from the upper left
  corner. Conversions that add 1 follow VOC.
- **DontCare**: a region in which no detection of any class counts as false. A :class:`Record` has one class
  and is ignored for that class only. So these regions are counted ("DontCare region") and left out, as in the
  published adaptation benchmarks, which train on KITTI. An evaluation on KITTI therefore gets a few more
  false detections than the devkit would count.
- All other classes are objects. The devkit's neighbouring classes (Van for Car, Person_sitting for
  Pedestrian) are not treated specially: ``--classes`` chooses.

Source: readme.txt and evaluate_object.cpp of the object development kit (Geiger et al. 2012, "Are we ready
for autonomous driving?").
"""

from __future__ import annotations

from pathlib import Path

from mrt.data.convert.formats import reading
from mrt.data.convert.places import class_name
from mrt.data.convert.recipe import Skipped
from mrt.data.convert.sheets import Format, Record, Sheet
from mrt.errors import MrtError

COLUMNS = 15
BAD_LINE = "line that is not class truncated occluded alpha x1 y1 x2 y2 and 7 more numbers"
DONT_CARE = "DontCare region"


def read(place: Path) -> Sheet | Skipped:
    """A label file; the size is not in it.

    Raises:
        MrtError: a line with a score (predictions), or the file cannot be read.
    """
    return reading.sheet_of_lines(place, reading.split, _record)


def looks(head: bytes, path: str) -> bool:
    """Whether all lines are a word and 14 or 15 numbers. ``path`` does not matter."""
    lines = [line.split() for line in reading.head_lines(head)]
    return bool(lines) and all(map(_is_line, lines))


def _is_line(words: list[str]) -> bool:
    """Whether these are a class name and 14 numbers, or 15 with a score."""
    if len(words) not in (COLUMNS, COLUMNS + 1) or reading.is_number(words[0]):
        return False
    return all(map(reading.is_number, words[1:]))


def _record(words: tuple[str, ...], where: str) -> Record | str:
    """The object of a line, or why there is none."""
    values = reading.numbers(words[1:])
    if values is None:
        return BAD_LINE
    if len(words) == COLUMNS + 1:
        raise MrtError(
            f"{where}: has 16 columns, the last one a score: these are predictions, not labels",
            "Give the labels that people have made, or cut the last column off if these shall be the truth.",
        )
    if len(words) != COLUMNS:
        return BAD_LINE
    label = class_name(words[0])
    if label is None:
        return reading.NO_NAME
    if label.lower() == "dontcare":
        return DONT_CARE
    x0, y0, x1, y1 = values[3:7]
    return Record(label, (x0, y0, x1, y1))


FORMAT = Format(
    name="kitti",
    suffixes=(".txt",),
    needs=(
        "a text file for each image (training/label_2/000000.txt, "
        "training/image_2/000000.png), 15 columns a line"
    ),
    read=read,
    looks=looks,
    folders=frozenset({"image_2", "label_2", "image_02", "label_02"}),
)
