"""DOTA's labels: ``images/P0001.png``, ``labelTxt/P0001.txt``.

Two header lines (``imagesource:...``, ``gsd:...``; not in version 2), then ``x1 y1 x2 y2 x3 y3 x4 y4 class
difficult``. The corners of a turned rectangle are distances from the image's upper left corner; the upright
box around them is taken, as the devkit's DOTA2COCO.py does (there with the decimals cut off). ``difficult``
may be missing (0); 1 makes an ignored object, and so does 2, which the devkit's ImgSplit.py writes for
objects that it has cut.

Source: dota_utils.py, DOTA2COCO.py and ImgSplit.py of CAPTAIN-WHU/DOTA_devkit (Xia et al. 2018).
"""

from __future__ import annotations

from pathlib import Path

from mrt.data.convert.formats import reading
from mrt.data.convert.places import class_name
from mrt.data.convert.recipe import Skipped
from mrt.data.convert.sheets import Format, Record, Sheet

BAD_LINE = "line that is not x1 y1 x2 y2 x3 y3 x4 y4 class difficult"
_HEADERS = ("imagesource", "gsd")


def read(place: Path) -> Sheet | Skipped:
    """A label file; the size is not in it. MrtError: it cannot be read."""
    return reading.sheet_of_lines(place, reading.split, _record)


def looks(head: bytes, path: str) -> bool:
    """Whether all lines are headers, or eight numbers and a word. ``path`` does not matter."""
    lines = reading.head_lines(head)
    return bool(lines) and all(_is_header(line) or _is_line(line.split()) for line in lines)


def _is_header(line: str) -> bool:
    name, colon, _ = line.partition(":")
    return bool(colon) and name.strip().lower() in _HEADERS


def _is_line(words: list[str]) -> bool:
    return (
        len(words) in (9, 10)
        and all(map(reading.is_number, words[:8]))
        and not reading.is_number(words[8])
        and words[9:] in ([], ["0"], ["1"], ["2"])
    )


def _record(words: tuple[str, ...], where: str) -> Record | str | None:
    """The object of a line, why there is none, or None for a header."""
    if _is_header(" ".join(words)):
        return None
    values = reading.numbers(words[:8])
    if (
        len(words) not in (9, 10)
        or values is None
        or reading.is_number(words[8])
        or words[9:] not in ((), ("0",), ("1",), ("2",))
    ):
        return BAD_LINE
    label = class_name(words[8])
    if label is None:
        return reading.NO_NAME
    return Record(label, reading.around(values[0::2], values[1::2]), ignored=words[9:] in (("1",), ("2",)))


FORMAT = Format(
    name="dota",
    suffixes=(".txt",),
    needs=(
        "a text file for each image (labelTxt/P0001.txt, images/P0001.png), lines 'x1 "
        "y1 x2 y2 x3 y3 x4 y4 class difficult'"
    ),
    read=read,
    looks=looks,
    folders=frozenset({"labeltxt", "labeltxt-v1.0", "labeltxt-v1.5", "labeltxt-v2.0", "hbb", "obb"}),
)
