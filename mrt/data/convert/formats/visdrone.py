"""VisDrone's labels for detection in images: ``images/a.jpg``, ``annotations/a.txt``.

A line is ``x,y,width,height,score,category,truncation,occlusion``, sometimes with a comma at its end.

- **score** is 1 or 0 in labels; 0 means that the object is ignored in evaluation. Other numbers mean
  predictions, whose truncation and occlusion are -1.
- **category 0**: a region in which nothing is labelled and no detection of any class counts. A
  :class:`Record` has one class, so these regions are counted ("ignored region") and left out. **category
  11**, "others", is not one of the benchmark's ten classes and counted as well.
- **Coordinates** are distances from the upper left corner: widths are given, x and y may be 0.

Source: README and utils/{saveAnnoRes,dropObjectsInIgr,calcAccuracy}.m of VisDrone2018-DET-toolkit (Zhu et al.
2018, "Vision Meets Drones").
"""

from __future__ import annotations

import math
import re
from pathlib import Path

from mrt.data.convert.formats import reading
from mrt.data.convert.recipe import Skipped
from mrt.data.convert.sheets import Format, Record, Sheet
from mrt.errors import MrtError

CLASSES = (
    *("pedestrian", "people", "bicycle", "car", "van"),
    *("truck", "tricycle", "awning-tricycle", "bus", "motor"),
)
COLUMNS = 8
_LINE = re.compile(r"-?\d+,-?\d+,\d+,\d+,[01],(\d|1[01]),[01],[012]", re.ASCII)
BAD_LINE = "line that is not x,y,w,h,score,category,truncation,occlusion"
NO_CLASS = {0: "ignored region", 11: "category 11 (others), no class of the benchmark"}


def read(place: Path) -> Sheet | Skipped:
    """A label file; the size is not in it.

    Raises:
        MrtError: a line with a score other than 0 and 1 (predictions), or the file cannot be read.
    """
    return reading.sheet_of_lines(place, _words, _record)


def looks(head: bytes, path: str) -> bool:
    """Whether all lines are eight whole numbers, the last four of them in their ranges.

    ``path`` does not matter.
    """
    lines = [_words(line) for line in reading.head_lines(head)]
    return bool(lines) and all(_LINE.fullmatch(",".join(words)) for words in lines)


def _words(line: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in line.strip().rstrip(",").split(","))


def _record(words: tuple[str, ...], where: str) -> Record | str:
    """The object of a line, or why there is none."""
    values = reading.numbers(words)
    if values is None or len(values) != COLUMNS or not math.isfinite(values[4]):
        return BAD_LINE
    x, y, width, height, score, category, truncation, occlusion = values
    if score not in (0, 1) or truncation == occlusion == -1:
        raise MrtError(
            f"{where}: the score is {words[4]}, truncation {words[6]} and occlusion "
            f"{words[7]}: these are predictions, not labels",
            "Give the labels that people have made (score 0 or 1).",
        )
    if category in NO_CLASS:
        return NO_CLASS[int(category)]
    if category not in range(1, len(CLASSES) + 1):
        return "annotation of an unknown category"
    return Record(CLASSES[int(category) - 1], (x, y, x + width, y + height), ignored=score == 0)


FORMAT = Format(
    name="visdrone",
    suffixes=(".txt",),
    needs=(
        "a text file for each image (annotations/a.txt, images/a.jpg), lines "
        "'x,y,w,h,score,category,truncation,occlusion'"
    ),
    read=read,
    looks=looks,
    classes=CLASSES,
)
