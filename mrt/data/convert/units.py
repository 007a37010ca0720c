"""Pixels, shares of the image, or corners: what four numbers of a box are, told from the whole set.

Never from one box: a box of 0.3 x 0.4 may be a share or a speck. Where the set leaves a doubt, nothing is guessed: the user says it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from mrt.data.convert.places import Box
from mrt.errors import MrtError

READINGS = ("auto", "pixels", "shares", "corners")
TOLERANCE = 0.01  # by which a share may lie outside 0 to 1: rounding, and labels drawn to the very edge
_ENOUGH = 3  # boxes that must speak for a reading before it is believed


class Seen(NamedTuple):
    """A box of a COCO file and the (width, height) that the file claims for its image."""

    box: Box
    size: tuple[int, int] | None


def of_coco(boxes: Iterable[Seen], asked: str, source: str) -> tuple[str, list[str]]:
    """How a COCO set's boxes are meant: "pixels" (x, y, width, height: the format's own), "shares" or "corners"; and what to say of it.

    Shares: every box lies within 0 to 1. Taken for shares of x, y, width, height without asking only if they cannot be corners: there is an
    area that is width times height, or a third or fourth number that is not beyond the first or second.

    Args:
        asked: what the user says, or "auto".

    Raises:
        MrtError: the boxes are not what the format says, and what they are leaves a doubt.
    """
    if asked != "auto":
        return asked, [f"boxes are read as {asked}, as asked for"] if asked != "pixels" else []
    seen = [one for one in boxes if all(map(math.isfinite, one.box.corners)) and _has_area(one.box)]
    if seen and all(_within_one(one.box.corners) for one in seen):
        return _shares(seen, source)
    if _are_corners(seen):
        raise MrtError(
            f"{source}: boxes stick out of their images as x, y, width, height, and all {len(seen)} fit as corners x0, y0, x1, y1",
            "Say which is meant: --boxes corners, or --boxes pixels for COCO's x, y, width, height.",
        )
    return "pixels", []


def _shares(seen: Sequence[Seen], source: str) -> tuple[str, list[str]]:
    areas = [one.box.area for one in seen if one.box.area is not None]
    by_area = bool(areas) and all(
        math.isclose(one.box.area, _area(one.box), rel_tol=0.02) for one in seen if one.box.area is not None
    )  # fmt: skip
    no_corners = any(not _as_corners(one.box)[2] for one in seen)
    fractions = any(value != int(value) for one in seen for value in one.box.corners)
    if fractions and (by_area or no_corners):
        return "shares", [f"all {len(seen)} boxes lie within 0 to 1: read as shares of the image's width and height"]
    x, y, x1, y1 = seen[0].box.corners
    raise MrtError(
        f"{source}: all {len(seen)} boxes lie within 0 to 1, such as {x:g}, {y:g}, {x1 - x:g}, {y1 - y:g}: no pixels of an image",
        "If they are x, y, width, height as shares of the image's size: --boxes shares. If they are pixels after all: --boxes pixels.",
    )


def _are_corners(seen: Sequence[Seen]) -> bool:
    known = [(one.box, one.size) for one in seen if one.size is not None]
    out = sum(box.corners[2] > size[0] + 1 or box.corners[3] > size[1] + 1 for box, size in known)
    if out < _ENOUGH or len(known) < len(seen):
        return False
    for box, (width, height) in known:
        x1, y1, beyond = _as_corners(box)
        if not beyond or x1 > width + 1 or y1 > height + 1:
            return False
    return True


def _as_corners(box: Box) -> tuple[float, float, bool]:
    """The third and fourth number as written, and whether they can be a box's right and lower edge."""
    x0, y0, x1, y1 = box.corners
    return x1 - x0, y1 - y0, x1 - x0 > x0 and y1 - y0 > y0


def _within_one(corners: Sequence[float]) -> bool:
    return min(corners) >= -TOLERANCE and max(corners) <= 1 + TOLERANCE


def _has_area(box: Box) -> bool:
    return _area(box) > 0 and box.corners[2] > box.corners[0]


def _area(box: Box) -> float:
    x0, y0, x1, y1 = box.corners
    return (x1 - x0) * (y1 - y0)


def as_pixels(box: Box, reading: str, width: int, height: int) -> Box:
    """A COCO box, whose corners were made of x, y, width, height, in pixels of its image."""
    x0, y0, x1, y1 = box.corners
    if reading == "shares":
        return box._replace(corners=(x0 * width, y0 * height, x1 * width, y1 * height), area=None)
    if reading == "corners":
        return box._replace(corners=(x0, y0, x1 - x0, y1 - y0))
    return box
