"""What the four numbers of a box are: pixels, shares of the image, or corners. The whole set decides.

Never a single box: one of 0.3 x 0.4 may be in shares, or just tiny. If the set leaves a doubt, nothing is
guessed: the user has to say it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from mrt.data.convert.pictures import Picture, Skipped, Thing
from mrt.data.convert.places import Box
from mrt.data.convert.whole_set import Results
from mrt.errors import MrtError

if TYPE_CHECKING:
    from mrt.data.convert.recipe import Recipe

READINGS = ("auto", "pixels", "shares", "corners", "corner-shares")
TOLERANCE = 0.01  # by which a share may lie outside 0 to 1: rounding, and labels drawn to the very edge
SHARES = "box within the first pixel, as shares of the image's size"
_ENOUGH = 3  # a reading needs at least this many boxes that speak for it
_SOME = 0.1  # a larger share of a file's boxes than this is no accident
HINT = (
    "Say what they are: --boxes pixels, shares (both as the format has them), corners (x0 y0 x1 y1 in "
    "pixels) or corner-shares."
)


class Seen(NamedTuple):
    """A box of a COCO file and its image's (width, height)."""

    box: Box
    size: tuple[int, int]


def of_coco(boxes: Sequence[Seen], source: str) -> tuple[str, list[str]]:
    """How to read the boxes of a COCO file, and what to say of it.

    The format has x, y, width, height in pixels; files differ.

    - "shares" if all four numbers of every box lie within 0 to 1, and x, y, width, height is the only way to
      read them: as corners one of the boxes would have no area, or the file's areas are width times height.
    - "corners" if all boxes fit their images that way, and the file's areas are those of corners.

    Raises:
        MrtError: the numbers are not what the format says, and it is in doubt what they are: they may be
            shares or corners, or some of the boxes are shares.
    """
    finite = [one for one in boxes if all(map(math.isfinite, one.box.corners))]
    numbers = [(*_written(one.box), one.box.area, *one.size) for one in finite]
    numbers = [row for row in numbers if row[2] > 0 and row[3] > 0]
    small = [row for row in numbers if min(row[:4]) >= -TOLERANCE and max(row[:4]) <= 1 + TOLERANCE]
    if numbers and len(small) == len(numbers):
        return _shares(numbers, source)
    if len(small) >= max(_ENOUGH, _SOME * len(numbers)):
        raise MrtError(
            f"{source}: {len(small)} of {len(numbers)} boxes lie within 0 to 1, such as "
            f"{_shown(small[0])}: no pixels of an image",
            HINT,
        )
    said = []
    if small:
        said.append(
            f"warning: {source}: {len(small)} of {len(numbers)} boxes lie "
            f"within 0 to 1, such as {_shown(small[0])}"
        )
    out = sum(x + w > width + 1 or y + h > height + 1 for x, y, w, h, _, width, height in numbers)
    as_corners = all(
        w > x and h > y and w <= width + 1 and h <= height + 1 for x, y, w, h, _, width, height in numbers
    )
    if not as_corners or len(numbers) < _ENOUGH:
        return "pixels", said
    with_area = [row for row in numbers if row[4] is not None]
    if len(with_area) >= _ENOUGH and all(
        _close(a, (w - x) * (h - y)) and not _close(a, w * h) for x, y, w, h, a, _, _ in with_area
    ):
        return "corners", [
            f"{source}: all {len(numbers)} boxes fit as corners x0, y0, x1, y1, and "
            "their areas are those of corners: read so"
        ]
    if out:
        raise MrtError(
            f"{source}: {out} of {len(numbers)} boxes stick out of their images as x, "
            "y, width, height, and all fit as corners, "
            f"such as {_shown(numbers[0])}",
            HINT,
        )
    return "pixels", said


def _shares(numbers: Sequence[tuple], source: str) -> tuple[str, list[str]]:
    with_area = [row for row in numbers if row[4] is not None]
    by_area = bool(with_area) and all(_close(a, w * h) for _, _, w, h, a, _, _ in with_area)
    fit = all(x + w <= 1 + TOLERANCE and y + h <= 1 + TOLERANCE for x, y, w, h, *_ in numbers)
    no_corners = any(w <= x or h <= y for x, y, w, h, *_ in numbers)
    fractions = any(value != int(value) for row in numbers for value in row[:4])
    if fit and fractions and (by_area or no_corners):
        return "shares", [
            f"{source}: all {len(numbers)} boxes lie within 0 to 1: read as shares of "
            "the image's width and height"
        ]
    raise MrtError(
        f"{source}: all {len(numbers)} boxes lie within 0 to 1, such as "
        f"{_shown(numbers[0])}: no pixels of an image",
        HINT,
    )


def require_pixels(results: Results, made: Recipe) -> Recipe | None:
    """A ``review`` of recipes in pixels: boxes within the first pixel of their images are shares of its size.

    Where some images have such boxes alone, and others do not, the former's are left out and counted.

    Raises:
        MrtError: all boxes of the set are like that.
    """
    pictures = [found for part in results.values() for found in part if isinstance(found, Picture)]
    things = [thing for picture in pictures for thing in picture.things]
    if things and all(map(_is_share, things)):
        raise MrtError(
            f"all {len(things)} boxes lie within the first pixel of their images: they "
            "look like shares of the image's size",
            "This format's numbers are pixels: write them so. If they are meant as they are: --boxes pixels.",
        )
    if not any(_all_shares(picture) for picture in pictures):
        return None
    splits = {
        name: replace(split, convert=partial(_without_shares, convert=split.convert))
        for name, split in made.splits.items()
    }
    return replace(made, splits=splits, review=None)


def _is_share(thing: Thing) -> bool:
    x, y, w, h = thing.box
    return x + w <= 1 + TOLERANCE and y + h <= 1 + TOLERANCE


def _all_shares(picture: Picture) -> bool:
    return bool(picture.things) and all(map(_is_share, picture.things))


def _without_shares(job: Any, convert: Callable[[Any], Picture | Skipped]) -> Picture | Skipped:
    found = convert(job)
    if isinstance(found, Skipped) or not _all_shares(found):
        return found
    skipped = Counter(found.skipped) + Counter({SHARES: len(found.things)})
    notes = {SHARES: f"{found.file}: {found.things[0].label} at {_shown(found.things[0].box)}", **found.notes}
    return found._replace(things=(), skipped=dict(skipped), notes=notes, turned=None)


def as_pixels(box: Box, reading: str, width: int, height: int) -> Box:
    """A COCO box in pixels of its image; its corners were computed from x, y, width, height."""
    x, y, w, h = _written(box)
    if reading == "shares":
        return box._replace(corners=(x * width, y * height, (x + w) * width, (y + h) * height), area=None)
    if reading == "corners":
        return box._replace(corners=(x, y, w, h))
    if reading == "corner-shares":
        return box._replace(corners=(x * width, y * height, w * width, h * height), area=None)
    return box


def _written(box: Box) -> tuple[float, float, float, float]:
    """The four numbers as the file has them."""
    x0, y0, x1, y1 = box.corners
    return x0, y0, x1 - x0, y1 - y0


def _close(area: float, other: float) -> bool:
    return math.isclose(area, other, rel_tol=0.02)


def _shown(row: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in row[:4])
