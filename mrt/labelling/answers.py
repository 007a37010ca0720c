"""What a labeller says of an image, checked before it counts."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

EXAMPLES = "docs/labels.md has complete examples"
EXPECTED = (
    "expected: a dict with boxes (n, 4), which are x0, y0, x1, y1 in pixels, labels (n), which are class "
    "names or their indices, and scores (n) from 0 to 1; or a list of dicts with score, label and box (xmin, "
    f"ymin, xmax, ymax); {EXAMPLES}"
)
ROUNDING = 1e-4  # so much may a score be above 1 or below 0
NO_AREA, NOT_FINITE = "no area inside the image", "not finite"


def class_finder(classes: Sequence[str]) -> Callable[[str], int | None]:
    """A function from a class name, as models write it, to an index into ``classes``; None: it is none.

    Names that are not there exactly are compared without case, spaces, and dots at the ends ("Traffic
    light." is "traffic light"), where that is unique.
    """
    exact = {name: number for number, name in enumerate(classes)}
    counts = Counter(map(_plain_name, classes))
    plain = {_plain_name(name): number for name, number in exact.items() if counts[_plain_name(name)] == 1}
    return lambda name: exact.get(name, plain.get(_plain_name(name)))


def _plain_name(name: str) -> str:
    return "".join(name.casefold().split()).strip(".")


def check(
    answer: Any, size: tuple[int, int], classes: Sequence[str], threshold: float = 0.0
) -> dict[str, Any]:
    """What a labeller's answer says of an image, as plain values.

    Args:
        answer: a dict with "boxes" (n, 4) x0, y0, x1, y1 in pixels, "labels" (n) class names or indices, and
            "scores" (n), as lists, arrays or tensors; or a list of dicts with "score", "label" and "box",
            which has "xmin", "ymin", "xmax" and "ymax".
        size: (height, width) of the image, to which boxes are cut.

    Returns:
        "labels": indices; "boxes": [x, y, width, height] in pixels; "scores"; and the numbers
        of boxes left out: "unknown" by name, "dropped" by reason. Scores below the threshold count nowhere.

    Raises:
        ValueError: the answer is none.
    """
    boxes, labels, scores = _columns(answer)
    numbers = _numbers("scores", scores, (len(labels),))
    boxes = _numbers("boxes", boxes, (len(labels), 4))
    wrong = ~((numbers >= -ROUNDING) & (numbers <= 1 + ROUNDING))
    if wrong.any():
        raise ValueError(f"score {numbers[wrong][0]:g}: a score lies between 0 and 1")
    height, width = size
    _require_pixels(boxes, size)
    find = class_finder(classes)
    found: dict[str, Any] = {"labels": [], "boxes": [], "scores": []}
    unknown: Counter[str] = Counter()
    dropped: Counter[str] = Counter()
    for box, label, score in zip(boxes.tolist(), labels, numbers.clip(0, 1).tolist(), strict=True):
        number = _class_number(label, classes, find)
        if score < threshold:
            continue
        if number is None:
            unknown[label] += 1
            continue
        if not all(map(math.isfinite, box)):
            dropped[NOT_FINITE] += 1
            continue
        x0, x1 = (min(max(value, 0.0), width) for value in box[::2])
        y0, y1 = (min(max(value, 0.0), height) for value in box[1::2])
        row = [round(value, 2) for value in (x0, y0, x1 - x0, y1 - y0)]
        if row[2] <= 0 or row[3] <= 0:
            dropped[NO_AREA] += 1
            continue
        found["labels"].append(number)
        found["boxes"].append(row)
        found["scores"].append(round(score, 5))
    return {**found, "unknown": dict(unknown), "dropped": dict(dropped)}


def _columns(answer: Any) -> tuple[Any, list[Any], Any]:
    """Boxes, labels and scores of an answer of either form, as plain lists."""
    if isinstance(answer, Mapping):
        missing = [key for key in ("boxes", "labels", "scores") if key not in answer]
        if missing:
            raise ValueError(f"{described(answer)}: it has no {' and no '.join(missing)}")
        boxes, labels, scores = (_plain(answer[key]) for key in ("boxes", "labels", "scores"))
        if not isinstance(labels, list):
            raise ValueError(f"labels is {described(answer['labels'])}")
        return boxes, labels, scores
    if not isinstance(answer, (list, tuple)):
        raise ValueError(described(answer))
    corners = ("xmin", "ymin", "xmax", "ymax")
    rows = []
    for item in answer:
        if not isinstance(item, Mapping):
            raise ValueError(f"{described(answer)}, of which one is {described(item)}")
        missing = [key for key in ("score", "label", "box") if key not in item]
        if missing:
            raise ValueError(
                f"a list, of which one is {described(item)}: it has no {' and no '.join(missing)}"
            )
        box = item["box"]
        if not (isinstance(box, Mapping) and all(corner in box for corner in corners)):
            raise ValueError(f"a list, of which one has the box {str(_plain(box))[:100]}")
        rows.append(
            ([_plain(box[corner]) for corner in corners], _plain(item["label"]), _plain(item["score"]))
        )
    boxes, labels, scores = ([row[column] for row in rows] for column in range(3))
    return boxes, labels, scores


def _plain(value: Any) -> Any:
    """Tensors and arrays as nested lists and numbers, also within lists."""
    if hasattr(value, "detach"):
        return value.detach().cpu().tolist()
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _numbers(name: str, value: Any, shape: tuple[int, ...]) -> np.ndarray:
    """``value`` as float64 of that shape; no values fit any shape for none."""
    try:
        array = np.array(value)
    except ValueError:
        raise ValueError(f"{name}: not all of one length") from None
    if array.size == 0 and shape[0] == 0:
        return np.zeros(shape)
    if array.dtype.kind not in "iuf":
        raise ValueError(f"{name}: {str(value)[:100]} are not numbers")
    if array.shape != shape:
        raise ValueError(f"{name} of shape {array.shape} beside {shape[0]} labels")
    return array.astype(np.float64)


def _require_pixels(boxes: np.ndarray, size: tuple[int, int]) -> None:
    """ValueError if the boxes are shares of the image: all between 0 and 1, and not at whole numbers."""
    if len(boxes) and min(size) > 2 and (boxes >= 0).all() and (boxes <= 1).all() and (boxes % 1 != 0).any():
        first = ", ".join(f"{value:g}" for value in boxes[0])
        raise ValueError(f"all boxes lie between 0 and 1, such as [{first}], but should be pixels")


def _class_number(label: Any, classes: Sequence[str], find: Callable[[str], int | None]) -> int | None:
    if isinstance(label, str):
        return find(label)
    if isinstance(label, bool) or not isinstance(label, int):
        raise ValueError(f"label {str(label)[:100]!r}: neither a class name nor a whole number")
    if not 0 <= label < len(classes):
        raise ValueError(f"label {label}: indices of {len(classes)} classes go from 0 to {len(classes) - 1}")
    return label


def described(value: Any) -> str:
    """What a value is, in a few words."""
    if value is None:
        return "nothing (None)"
    if isinstance(value, Mapping):
        return f"a dict with {', '.join(map(str, value)) or 'nothing in it'}"
    shape = getattr(value, "shape", None)
    if isinstance(shape, tuple):
        return f"an array of shape {tuple(shape)}"
    if isinstance(value, (list, tuple)):
        return f"a {type(value).__name__} of {len(value)}"
    return f"{str(value)[:60]!r}, a {type(value).__name__}"


def some(names: Sequence[str], most: int = 12) -> str:
    """Names in a message, the first of many."""
    more = f", and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
