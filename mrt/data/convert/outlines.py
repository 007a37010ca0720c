"""The box around an object's outline in a COCO file: polygons, points, or a run-length mask."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import accumulate
from typing import Any

NONE, NOT_FINITE = "no box", "box with a number that is not finite"
_DEEPEST = 4  # lists in lists: polygons, their points, their coordinates
_MOST_RUNS = 1 << 22

Box = tuple[float, float, float, float]


def box_around(segmentation: Any, size: tuple[int, int] | None = None) -> Box | str:
    """x, y, width, height in pixels around a COCO ``segmentation``, or why there is none.

    It reads lists of polygons (``[[x1, y1, x2, y2, ...], ...]``), one polygon, lists of points
    (``[[x, y], ...]``, also within another list, or ``{"x": x, "y": y}``), and masks
    (``{"size": [h, w], "counts": ...}``) as a list of run lengths or as the text of COCO's tools.

    Args:
        size: (width, height) of the image, if it is known: a mask of another size is not this image's.
    """
    only = segmentation[0] if isinstance(segmentation, list) and len(segmentation) == 1 else None
    if isinstance(only, dict) and "counts" in only:
        segmentation = only
    if isinstance(segmentation, dict):
        return _of_mask(segmentation, size) or NONE
    points = list(_points(segmentation, 0)) if isinstance(segmentation, list) else []
    numbers = [value for point in points for value in point]
    if not numbers or None in numbers:
        return NONE
    if not all(map(math.isfinite, numbers)):
        return NOT_FINITE
    xs, ys = [x for x, _ in points], [y for _, y in points]
    return min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)


def _points(part: list[Any], depth: int) -> Iterator[tuple[float | None, float | None]]:
    """The points of nested lists: a list of numbers is x, y, x, y, ..."""
    if depth < _DEEPEST and any(isinstance(value, (list, dict)) for value in part):
        for value in part:
            if isinstance(value, list):
                yield from _points(value, depth + 1)
            elif isinstance(value, dict):
                yield _number(value.get("x")), _number(value.get("y"))
    else:
        values = [_number(value) for value in part[: len(part) // 2 * 2]]
        yield from zip(values[0::2], values[1::2], strict=True)


def _number(value: Any) -> float | None:
    try:
        return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
    except OverflowError:
        return math.inf


def _of_mask(mask: dict[str, Any], image: tuple[int, int] | None) -> Box | None:
    """The box around a run-length mask: columns from top to bottom, runs of background and object in turn."""
    size, counts = mask.get("size"), mask.get("counts")
    if not isinstance(size, list) or len(size) != 2:
        return None
    if not all(type(side) is int and 0 < side < 1 << 20 for side in size):
        return None
    height, width = size
    if image is not None and image != (width, height):
        return None
    runs = _runs(counts) if isinstance(counts, str) else counts
    if not isinstance(runs, list) or len(runs) > _MOST_RUNS:
        return None
    if not all(type(run) is int and run >= 0 for run in runs):
        return None
    if sum(runs) != height * width:
        return None
    ends = list(accumulate(runs))
    spans = [(end - run, end - 1) for end, run in zip(ends[1::2], runs[1::2], strict=True) if run]
    if not spans:
        return None
    columns = [(first // height, last // height) for first, last in spans]
    tops, bottoms = [], []
    for (first, last), (left, right) in zip(spans, columns, strict=True):
        # a run that continues in the next column holds the last row of one and the first row of the other
        tops.append(first % height if left == right else 0)
        bottoms.append(last % height if left == right else height - 1)
    x, y = columns[0][0], min(tops)
    return float(x), float(y), float(columns[-1][1] + 1 - x), float(max(bottoms) + 1 - y)


def _runs(text: str) -> list[int] | None:
    """The run lengths of COCO's text form, None if it is not valid.

    Each letter, counted from "0", holds five bits and a sixth that says whether more follow; the highest of
    the last five is the sign. From the fourth run on, the number is the difference to the run two before
    (pycocotools, common/maskApi.c).
    """
    runs: list[int] = []
    position = 0
    while position < len(text):
        value = shift = 0
        while True:
            bits = ord(text[position]) - 48 if position < len(text) else -1
            if not 0 <= bits < 64 or shift > 60:
                return None
            position += 1
            value |= (bits & 31) << shift
            shift += 5
            if not bits & 32:
                break
        if bits & 16:
            value -= 1 << shift
        if len(runs) > 2:
            value += runs[-2]
        runs.append(value)
        if len(runs) > _MOST_RUNS:
            return None
    return runs
