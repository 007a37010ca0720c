"""What the readers of label files share: parsing text, JSON and numbers, and boxes around shapes.

The bytes that they read may be anything.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from mrt.data.convert.raw import read_bytes
from mrt.data.convert.recipe import Skipped
from mrt.data.convert.sheets import Record, Sheet
from mrt.data.text import decode_head, decode_text
from mrt.errors import MrtError

Box = tuple[float, float, float, float]

HEAD = 1 << 16  # number of first bytes of a file from which its kind is told

UNREADABLE = "annotation cut short or unreadable"
NO_NAME = "object without a class name"
NO_AREA = "point or line, which has no area"
LISTED_TWICE = "annotation listed twice"

NO_NUMBERS: Box = (math.nan,) * 4
_NUMBER = re.compile(r"[-+]?(\d++\.?\d*+|\.\d++)([eE][-+]?\d+)?", re.ASCII)


def read_text(place: Path) -> str | None:
    """A file's text in any Unicode encoding, None if it is in another one.

    MrtError: the file is missing or cannot be read.
    """
    try:
        return decode_text(read_bytes(place))
    except UnicodeDecodeError:
        return None


def read_json(place: Path) -> Any:
    """The content of a label file, or :class:`Skipped` if it is not JSON.

    NaN and Infinity are accepted: boxes with them are counted later.
    """
    text = read_text(place)
    try:
        return unreadable(place) if text is None else json.loads(text)
    except (ValueError, RecursionError):  # ValueError: bad syntax, or a number of thousands of digits
        return unreadable(place)


def read_whole_json(place: Path, needs: str) -> Any:
    """As :func:`read_json`, for a file that lists many images: MrtError if it is not JSON.

    Args:
        needs: what the file should be, for the message.
    """
    text = whole_text(place, needs)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        is_syntax = isinstance(error, json.JSONDecodeError)
        where = f"line {error.lineno}: {error.msg}" if is_syntax else str(error)[:100]
        raise MrtError(
            f"{place}: not valid JSON ({where})", f"Export it again; it should be {needs}."
        ) from None


def whole_text(place: Path, needs: str) -> str:
    """As :func:`read_text`, for a file that lists many images: MrtError if it is not text."""
    text = read_text(place)
    if text is None:
        raise MrtError(f"{place}: no text in a Unicode encoding", f"Save it as UTF-8; it should be {needs}.")
    return text


def unreadable(place: Path) -> Skipped:
    """The reason for a label file that is left out together with its image."""
    return Skipped(UNREADABLE, str(place))


def collect(found: Iterable[Record | str | None], size: tuple[int, int] | None = None) -> Sheet:
    """A sheet of the records in ``found``.

    A text is counted as the reason why an entry is no object; None is not counted.
    """
    records: list[Record] = []
    skipped: Counter[str] = Counter()
    for one in found:
        if isinstance(one, str):
            skipped[one] += 1
        elif one is not None:
            records.append(one)
    return Sheet(size, tuple(records), dict(skipped))


def sheet_of_lines(
    place: Path,
    words_of: Callable[[str], tuple[str, ...]],
    record: Callable[[tuple[str, ...], str], Record | str | None],
) -> Sheet | Skipped:
    """A text file with one object in each line.

    Args:
        words_of: line -> its words. A line of empty words is ignored; a line with the same words as an
            earlier one is counted.
        record: (words, "FILE, line 3") -> the object, the reason why there is none, or None for a line that
            is not an entry at all.

    Raises:
        MrtError: the file is missing or cannot be read; and what ``record`` raises.
    """
    text = read_text(place)
    if text is None:
        return unreadable(place)
    seen: set[tuple[str, ...]] = set()
    found: list[Record | str | None] = []
    for number, line in enumerate(text.splitlines(), start=1):
        words = words_of(line)
        if any(words):
            entry = record(words, f"{place}, line {number}")
            found.append(LISTED_TWICE if words in seen and entry is not None else entry)
            seen.add(words)
    return collect(found)


def split(line: str) -> tuple[str, ...]:
    """The words of a line that are separated by blanks."""
    return tuple(line.split())


def head_lines(head: bytes) -> list[str]:
    """The complete lines in a file's first bytes that are not blank."""
    lines = decode_head(head).splitlines()
    return [line for line in (lines[:-1] if len(head) >= HEAD else lines) if line.strip()]


def head_object(head: bytes) -> str:
    """A file's first bytes as text if they may begin a JSON object, else ""."""
    text = decode_head(head).lstrip()
    return text if text.startswith("{") else ""


def has_key(text: str, *keys: str, before: str = "") -> bool:
    """Whether JSON text has all of these keys; ``before``: what follows the colon, such as "["."""
    return all(re.search(rf'"{re.escape(key)}"\s*:\s*{re.escape(before)}', text) for key in keys)


def is_number(word: str) -> bool:
    """Whether it is a plain finite number, as label tools write them."""
    return _NUMBER.fullmatch(word) is not None


def numbers(words: Sequence[str]) -> list[float] | None:
    """The words as numbers, which may be NaN or infinite; None if one of them is not a number."""
    try:
        # Python would read 1_0 as 10
        return None if any("_" in word for word in words) else [float(word) for word in words]
    except ValueError:
        return None


def number(value: Any) -> float:
    """A number from a JSON file or an attribute; NaN for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return math.nan
    try:
        return math.nan if isinstance(value, str) and "_" in value else float(value)
    except ValueError:
        # many countries write 1,5 for 1.5
        return number(value.replace(",", ".")) if value.count(",") == 1 and "." not in value else math.nan
    except OverflowError:  # whole numbers in JSON have no limit
        return math.inf


def image_size(width: Any, height: Any) -> tuple[int, int] | None:
    """(width, height) in pixels, None if they are not stated."""
    sides = number(width), number(height)
    usable = all(math.isfinite(side) and side >= 1 for side in sides)
    return (int(sides[0]), int(sides[1])) if usable else None


def around(xs: Iterable[float], ys: Iterable[float]) -> Box:
    """The upright box around points; NaN if one of their numbers is not finite, or there are none."""
    xs, ys = list(xs), list(ys)
    # min and max ignore a NaN or return it, depending on its position
    if not xs or not ys or not all(map(math.isfinite, [*xs, *ys])):
        return NO_NUMBERS
    return min(xs), min(ys), max(xs), max(ys)


def around_turned(box: Box, degrees: float) -> Box:
    """The upright box around a rectangle that is turned about its centre."""
    x0, y0, x1, y1 = box
    if not all(map(math.isfinite, [*box, degrees])):
        return NO_NUMBERS
    if x1 <= x0 or y1 <= y0:  # not a rectangle: left as it is, to be counted as such
        return box
    cos, sin = _turn(degrees)
    cx, cy, w, h = (x0 + x1) / 2, (y0 + y1) / 2, (x1 - x0) / 2, (y1 - y0) / 2
    half_w, half_h = w * cos + h * sin, w * sin + h * cos
    return cx - half_w, cy - half_h, cx + half_w, cy + half_h


def around_ellipse(cx: float, cy: float, rx: float, ry: float, degrees: float = 0.0) -> Box:
    """The upright box around an ellipse that is turned about its centre."""
    if not all(map(math.isfinite, (cx, cy, rx, ry, degrees))):
        return NO_NUMBERS
    cos, sin = _turn(degrees)
    half_w, half_h = math.hypot(rx * cos, ry * sin), math.hypot(rx * sin, ry * cos)
    return cx - half_w, cy - half_h, cx + half_w, cy + half_h


def _turn(degrees: float) -> tuple[float, float]:
    """|cos| and |sin|, exact for quarter turns."""
    if degrees % 90 == 0:
        return (1.0, 0.0) if degrees % 180 == 0 else (0.0, 1.0)
    return abs(math.cos(math.radians(degrees))), abs(math.sin(math.radians(degrees)))
