"""Label Studio's JSON, as it is exported: "JSON" (whole tasks) and "JSON-MIN".

**JSON**: ``[{"data": {"image": URL}, "annotations": [{"result": [...], "was_cancelled", "ground_truth"}]}]``;
``completions`` is an older name of the annotations. A result is a region: ``value`` has its shape and its
class (``rectanglelabels`` and so on), ``id`` ties results of one region together, ``original_width`` and
``original_height`` are the image's size. **JSON-MIN**: ``[{"image": URL, "label": [VALUE, ...]}]``, one entry
for each annotation, the task's number in ``id``.

- **Coordinates** are percent of the image's width and height, of the image as it is stored, also where the
  annotator had it turned on the screen (``image_rotation``).
- **rectangle**: x, y is the corner that was the upper left one; ``rotation`` (degrees, clockwise) turns the
  box about it. **ellipse** turns about its centre. **polygon**: the box around its points, at least three.
  **keypoint**, **vector**: counted, because they have no area; **brush**: counted, masks are not read.
- **The class** is that of the region's ``...labels``; where the region has none (tag Rectangle beside
  Choices), its only choice. A region of two classes is two objects.
- **One annotation counts for each image**: of those that were not cancelled the one that is marked as ground
  truth, else the one that was changed last; objects of the others are counted. A task that was skipped, or
  that nobody has annotated, is left out together with its image. Predictions are no labels.
- **Images** are named by URLs: ``/data/upload/1/0a1b2c3d-a.jpg`` is the file of that name, or ``a.jpg``, as
  it was called before Label Studio put eight letters before it; ``/data/local-files/?d=sub/a.jpg`` is
  sub/a.jpg.

Sources: labelstud.io/guide/task_format, /guide/export (units of image annotations), /tags/rectanglelabels;
HumanSignal/label-studio issue 5274 (the corner that a box turns about), label-studio-frontend pull request 62
(regions are stored as if the image were not turned).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

from mrt.data.convert.formats import reading
from mrt.data.convert.formats.listing import Files, Listing, image_name, refuse_twins, upright_sizes
from mrt.data.convert.places import ImageFinder, class_name
from mrt.data.convert.recipe import Skipped
from mrt.data.convert.sheets import Record, Sheet
from mrt.data.headers import IMAGE_SUFFIXES
from mrt.data.text import decode_head
from mrt.errors import MrtError

NEEDS = "Label Studio's JSON or JSON-MIN (a list of tasks), and its images"
ANOTHER = "object of another annotation of its image"
_TRACK = "track of a video"
_MASK = "mask, of which no box is taken"
_UPLOADED = re.compile(r"^(?:.*/)?upload/[^/]+/[0-9a-f]{8}-([^/]+)$")
_LABELS = re.compile(r'"[a-z]*labels"\s*:\s*\[')
_SIZE = ("original_width", "original_height")
_MARKS = (_SIZE[0], "was_cancelled", "completed_by")  # keys that tell of Label Studio
_MINIMAL = ("annotation_id", "annotator", "lead_time")  # keys of JSON-MIN beside the task's own
_BESIDE = ("relation", "textarea", "rating", "number", "datetime", "pairwise")  # types that show no object


class _Annotation(NamedTuple):
    """What one annotator said of an image; whether it was skipped, is marked as the truth; its date."""

    results: list[Any]
    cancelled: bool = False
    truth: bool = False
    date: str = ""


class _Task(NamedTuple):
    """An image's path, and its annotations in the file's order."""

    image: str
    annotations: list[_Annotation]


def read(place: Path, files: Files) -> dict[str, Sheet | Skipped]:
    """The images of a file.

    Raises:
        MrtError: no JSON, no list of tasks; a task without an image, or with several; an image that two tasks
            show.
    """
    content = reading.read_whole_json(place, NEEDS)
    entries = content if isinstance(content, list) else [content]
    if not entries or not all(isinstance(entry, dict) for entry in entries):
        raise MrtError(f"{place}: no list of tasks", f"It should be {NEEDS}.")
    tasks = _tasks(entries, place)
    names = _as_called_here([task.image for task in tasks], files)
    refuse_twins(names, place, "Export one task for each image, and give images names of their own.")
    stated = [_stated_size(task) for task in tasks]
    unstated = [name for name, size in zip(names, stated, strict=True) if size is None]
    there = upright_sizes(unstated, place, files) if unstated else {}
    return {
        name: _sheet(task, size, size or there.get(name))
        for name, task, size in zip(names, tasks, stated, strict=True)
    }


def looks(head: bytes, path: str) -> bool:
    """Whether it is JSON with tasks and annotations, or with what JSON-MIN says of each annotation.

    A task's data may come behind its annotations, and so behind the head.
    """
    text = decode_head(head).lstrip()
    if text[:1] not in ("[", "{"):
        return False
    lists = {key for key in ("annotations", "completions", "result", "predictions") if _has(text, key, "[")}
    listed = lists & {"annotations", "completions"}
    if _has(text, "data", "{") and "result" in lists and (listed or _has(text, "task", "{")):
        return True
    if listed and "result" in lists and any(_has(text, key) for key in _MARKS):
        return True
    if listed and "predictions" in lists and _has(text, "data", "{"):
        return True
    minimal = all(_has(text, key) for key in _MINIMAL) or (_has(text, _SIZE[0]) and _LABELS.search(text))
    return text.startswith("[") and bool(minimal)


def _has(text: str, key: str, before: str = "") -> bool:
    return reading.has_key(text, key, before=before)


def _tasks(entries: Sequence[dict[str, Any]], place: Path) -> list[_Task]:
    """The tasks of a file; the entries of JSON-MIN that are of one task, together."""
    tasks: list[_Task] = []
    minimal: dict[Any, _Task] = {}
    for number, entry in enumerate(entries):
        where = f"task {number}"
        inner = entry.get("task")
        if isinstance(inner, dict) and "result" in entry:  # as cloud storages get it: an annotation
            entry = {"data": inner.get("data"), "annotations": [entry]}
        if isinstance(entry.get("data"), dict):
            found = entry.get("annotations", entry.get("completions", []))
            if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
                raise MrtError(f"{place}: the annotations of {where} are no list", f"It should be {NEEDS}.")
            annotations = [_annotation(one) for one in found]
            _require_one_image(annotations, place, where)
            tasks.append(_Task(_image(entry["data"], place, where), annotations))
            continue
        image = _image({key: value for key, value in entry.items() if key not in _MINIMAL}, place, where)
        annotation = _Annotation(_minimal_results(entry), date=str(entry.get("updated_at") or ""))
        key = (str(entry.get("id")), image)
        if key not in minimal:
            minimal[key] = _Task(image, [])
            tasks.append(minimal[key])
        if annotation.results or entry.get("annotation_id", key) is not None:  # else of an open task
            minimal[key].annotations.append(annotation)
    return tasks


def _annotation(entry: Mapping[str, Any]) -> _Annotation:
    results = entry.get("result")
    date = entry.get("updated_at") or entry.get("created_at") or ""
    return _Annotation(
        results if isinstance(results, list) else [],
        entry.get("was_cancelled") is True or entry.get("skipped") is True,
        entry.get("ground_truth") is True or entry.get("honeypot") is True,
        str(date),
    )


def _minimal_results(entry: Mapping[str, Any]) -> list[Any]:
    """The regions of an entry of JSON-MIN, as JSON has them."""
    lists = (value for value in entry.values() if isinstance(value, list))
    values = (value for found in lists for value in found if isinstance(value, dict))
    return [{"value": value, **{key: value.get(key) for key in _SIZE}} for value in values]


def _require_one_image(annotations: Sequence[_Annotation], place: Path, where: str) -> None:
    shown = {
        str(result["to_name"])
        for annotation in annotations
        for result in annotation.results
        if isinstance(result, dict) and "to_name" in result and _shape(_value(result)) is not None
    }
    if len(shown) > 1:
        raise MrtError(
            f"{place}: {where} has regions on several things: {', '.join(sorted(shown))[:200]}",
            "Only tasks of one image are read: export such tasks as COCO.",
        )


def _image(data: Mapping[str, Any], place: Path, where: str) -> str:
    """The path of a task's image, without what belongs to Label Studio's server."""
    if any(isinstance(value, list) and value and all(map(_is_image, value)) for value in data.values()):
        raise MrtError(
            f"{place}: {where} has a list of images", "Only tasks of one image are read: export them as COCO."
        )
    found = {key: value for key, value in data.items() if _is_image(value)}
    if len(found) > 1 and "image" not in found:
        raise MrtError(
            f"{place}: {where} names several images: {', '.join(map(repr, found))[:200]}",
            "Call the one that is labelled 'image'.",
        )
    url = found.get("image", next(iter(found.values()), data.get("image")))
    return image_name(_path(url) if isinstance(url, str) else url, place, where)


def _is_image(value: Any) -> bool:
    return isinstance(value, str) and _path(value).lower().endswith(IMAGE_SUFFIXES)


def _path(url: str) -> str:
    """The path of a file in a URL; what is no URL stays as it is."""
    try:
        parts = urlsplit(url.strip())
    except ValueError:
        return url
    if not parts.scheme and not parts.path.startswith("/data/"):
        return url
    if len(parts.scheme) == 1:  # C:/a.jpg
        return url
    inside = parse_qs(parts.query).get("d", [])
    return (
        inside[0]
        if parts.path.rstrip("/").endswith("local-files") and inside
        else unquote(parts.path).lstrip("/")
    )


def _as_called_here(names: Sequence[str], files: Files) -> list[str]:
    """The names of uploaded images as their files are called: with Label Studio's letters or without."""
    here: dict[str, set[str]] = {}
    for inside in ImageFinder(files).files:
        last = inside.rpartition("/")[2]
        here.setdefault(last, set()).add(last)
        here.setdefault(_uploaded(last), set()).add(last)
    called = []
    for name in names:
        upload = _UPLOADED.match(name)
        last = name.rpartition("/")[2]
        if upload is None:
            called.append(name)
        elif last in here or len(here.get(upload[1], ())) != 1:
            called.append(last)
        else:
            called.append(next(iter(here[upload[1]])))
    return called


def _uploaded(name: str) -> str:
    """A file's name as Label Studio's server writes it: without blanks and signs."""
    return re.sub(r"[^-\w.]", "", name.strip().replace(" ", "_"))


def _stated_size(task: _Task) -> tuple[int, int] | None:
    """(width, height) in pixels, None if no result states it."""
    results = (result for annotation in task.annotations for result in annotation.results)
    sizes = (reading.image_size(*map(result.get, _SIZE)) for result in results if isinstance(result, dict))
    return next((size for size in sizes if size is not None), None)


def _sheet(task: _Task, stated: tuple[int, int] | None, size: tuple[int, int] | None) -> Sheet | Skipped:
    """What a task says of its image; ``size`` is the image's, None if it is missing."""
    usable = [annotation for annotation in task.annotations if not annotation.cancelled]
    if not usable:
        reason = "image that its annotator skipped" if task.annotations else "image that nobody has annotated"
        return Skipped(reason, task.image)
    truths = [annotation for annotation in usable if annotation.truth]
    chosen = max(reversed(truths or usable), key=lambda annotation: annotation.date)
    found: list[Record | str | None] = []
    for annotation in task.annotations:
        if annotation is not chosen:
            found += [ANOTHER for region in _regions(annotation) if _objects(region, (100, 100))]
    for region in _regions(chosen):
        objects = _objects(region, size or (100, 100))
        lost = size is None
        found += ["object of an image that is missing" if lost else one for one in objects]
    return reading.collect(found, stated)


def _regions(annotation: _Annotation) -> list[list[Any]]:
    """The results of an annotation, those of one region together."""
    regions: dict[Any, list[Any]] = {}
    for number, result in enumerate(annotation.results):
        key = result.get("id") if isinstance(result, dict) else None
        regions.setdefault(key if isinstance(key, str) else number, []).append(result)
    return list(regions.values())


def _objects(region: Sequence[Any], size: tuple[int, int]) -> list[Record | str]:
    """The objects of a region, or why there is none; nothing for results that show no object."""
    results = [result for result in region if isinstance(result, dict)]
    if len(results) < len(region):
        return ["result that is no object"]
    results = [result for result in results if result.get("type") not in _BESIDE]
    if not results:
        return []
    values = [_value(result) for result in results]
    shape = next((found for value in values if (found := _shape(value)) is not None), None)
    if shape is None:
        chosen = any("choices" in value or "taxonomy" in value for value in values)
        return ["tag of the whole image" if chosen else "region without a shape"]
    box = shape(size)
    if isinstance(box, str):
        return [box]
    labels = dict.fromkeys(label for value in values for label in _labels(value))
    choices = [choice for value in values for choice in _list(value.get("choices"))]
    names = list(labels) or (choices if len(choices) == 1 else [None])
    return [reading.NO_NAME if (name := class_name(one)) is None else Record(name, box) for one in names]


def _value(result: Mapping[str, Any]) -> Mapping[str, Any]:
    value = result.get("value")
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[str | None]:
    """The texts of a list, None for what is none."""
    return [one if isinstance(one, str) else None for one in value] if isinstance(value, list) else []


def _labels(value: Mapping[str, Any]) -> Iterator[str | None]:
    for key, found in value.items():
        if key.endswith("labels"):
            yield from _list(found)


def _shape(value: Mapping[str, Any]) -> Callable[[tuple[int, int]], reading.Box | str] | None:
    """What gives the box of a value in an image of a size (width, height), or why it has none.

    None for a value without a shape.
    """
    if "rle" in value or "brushlabels" in value or "bitmasklabels" in value:
        return lambda size: _MASK
    if "sequence" in value:
        return lambda size: _TRACK
    if "vertices" in value:
        return lambda size: reading.NO_AREA
    if "points" in value:
        return lambda size: _polygon(value["points"], size)
    if "radiusX" in value:
        return lambda size: _ellipse(value, size)
    if "x" in value and "y" in value:
        keypoint = "height" not in value or any("keypoint" in key for key in value)
        return lambda size: reading.NO_AREA if keypoint else _rectangle(value, size)
    return None


def _numbers(value: Mapping[str, Any], *names: str) -> list[float]:
    return [reading.number(value.get(name)) for name in names]


def _turned(value: Mapping[str, Any]) -> float:
    return reading.number(value.get("rotation") or 0)


def _rectangle(value: Mapping[str, Any], size: tuple[int, int]) -> reading.Box:
    x, y, width, height = _numbers(value, "x", "y", "width", "height")
    x, y, width, height = (
        share * side / 100 for share, side in zip((x, y, width, height), size * 2, strict=True)
    )
    degrees = _turned(value)
    if not degrees:
        return x, y, x + width, y + height
    if not math.isfinite(degrees) or width <= 0 or height <= 0:
        return reading.NO_NUMBERS if not math.isfinite(degrees) else (x, y, x + width, y + height)
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    corners = [(0.0, 0.0), (width, 0.0), (width, height), (0.0, height)]
    return reading.around(
        (x + right * cos - down * sin for right, down in corners),
        (y + right * sin + down * cos for right, down in corners),
    )


def _ellipse(value: Mapping[str, Any], size: tuple[int, int]) -> reading.Box:
    numbers = _numbers(value, "x", "y", "radiusX", "radiusY")
    scaled = [share * side / 100 for share, side in zip(numbers, size * 2, strict=True)]
    return reading.around_ellipse(*scaled, _turned(value))


def _polygon(points: Any, size: tuple[int, int]) -> reading.Box | str:
    pairs = [point for point in points if isinstance(point, list)] if isinstance(points, list) else []
    if len(pairs) < 3:
        return "polygon of less than three points"
    if not isinstance(points, list) or len(pairs) < len(points) or any(len(point) != 2 for point in pairs):
        return reading.NO_NUMBERS
    xs, ys = ([reading.number(point[axis]) * size[axis] / 100 for point in pairs] for axis in (0, 1))
    return reading.around(xs, ys)


LISTING = Listing(name="label-studio", suffixes=(".json",), needs=NEEDS, read=read, looks=looks)
