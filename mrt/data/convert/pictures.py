"""What a conversion makes of an image: a picture with its objects, or a reason why there is none."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

_LEAST = 0.001  # pixels of a side: boxes are written to a thousandth


class Thing(NamedTuple):
    """An annotated object: class name, box, area in pixels.

    The box is x, y, width, height in pixels from the image's upper left corner.

    ``ignored``: a crowd, or an object that neither counts as found nor as missed; COCO's ``iscrowd``.
    """

    label: str
    box: tuple[float, float, float, float]
    area: float
    ignored: bool = False


class Picture(NamedTuple):
    """One image with its objects.

    ``file`` is relative to the split's image root; ``extra`` goes into its COCO entry.

    ``skipped`` counts what was left out of it: reason -> objects; ``notes``: reason -> one of them in words.
    ``turned``: of a photo that EXIF turns, how its boxes fit either way. ``cut``: boxes that stuck out of it
    by more than a pixel.
    """

    file: str
    width: int
    height: int
    things: Sequence[Thing] = ()
    skipped: Mapping[str, int] = {}
    extra: Mapping[str, Any] = {}
    notes: Mapping[str, str] = {}
    turned: Turned | None = None
    cut: int = 0


class Turned(NamedTuple):
    """The other reading of a photo that EXIF turns.

    ``picture``; how many boxes stick out of the image in the first reading and in the ``other`` one; whether
    the annotations' size chose the first.
    """

    picture: Picture
    out: int
    out_other: int
    claimed: bool


class Skipped(NamedTuple):
    """An image that was left out, and why; ``example`` names the file for the summary."""

    reason: str
    example: str = ""


def clip_box(
    box: Sequence[float], width: int, height: int
) -> tuple[tuple[float, float, float, float], None] | tuple[None, str]:
    """(x0, y0, x1, y1) cut to the image as (x, y, width, height), or the reason why nothing is left of it."""
    if not all(math.isfinite(value) for value in box):
        return None, "box with a number that is not finite"
    x0, y0, x1, y1 = box
    if x1 <= x0 or y1 <= y0:
        return None, "box without area"
    x0, y0, x1, y1 = max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height))
    if x1 <= x0 or y1 <= y0:
        return None, "box outside the image"
    if x1 - x0 < _LEAST or y1 - y0 < _LEAST:
        return None, "box without area"
    return (x0, y0, x1 - x0, y1 - y0), None
