"""BDD100K (Yu et al., CVPR 2020): frames of dashboard cameras, 1280x720, with weather, scene and time of day.

The owner's downloads (bdd-data.berkeley.edu)::

    bdd100k_images_100k.zip                images/100k/{train,val}/NAME.jpg, also below bdd100k/; or 100k_images_{train,val}.zip
    bdd100k_labels_release.zip             2018: bdd100k/labels/bdd100k_labels_images_{train,val}.json
    bdd100k_det_20_labels_trainval.zip     2020: bdd100k/labels/det_20/det_{train,val}.json (first: det_v2_{train,val}_release.json)

Both label files are lists of frames, ``{"name", "attributes": {"timeofday", "weather", "scene"}, "labels": [{"category", "attributes",
"box2d": {"x1", "y1", "x2", "y2"}}]}``. They name classes differently, and 2020 leaves "labels" out of frames without objects.
"""

from __future__ import annotations

import math
import re
import sys
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from mrt.data.convert.raw import RawFiles, Unpacking, common_root, parse_json, relative, require
from mrt.data.convert.recipe import Picture, Recipe, Skipped, Split, Thing, clip_box
from mrt.data.headers import read_header
from mrt.errors import MrtError

# The published runs' validation has no train (AP -1 in all of their logs), their table lists these seven.
BENCHMARK = ("person", "rider", "car", "truck", "bus", "motorcycle", "bicycle")
CLASSES = ("person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle")
DAYTIME = {"timeofday": frozenset({"daytime"})}
NUM_IMAGES = {"train": 36_728, "val": 5_258}  # daytime, by the 2018 files
YEARS = ("2018", "2020")
_RENAMED = {"pedestrian": "person", "motor": "motorcycle", "bike": "bicycle"}
_OTHERS = ("traffic light", "traffic sign", "other person", "other vehicle", "trailer")
_IMAGE = re.compile(r"(?i)(?:^|/)100k/(train|val)/([^/.][^/]*\.jpe?g)$")
_LABELS = re.compile(r"(?:^|/)(?:bdd100k_labels_images_(?P<y2018>train|val)|det_(?:v2_)?(?P<y2020>train|val)(?:_release)?)\.json$")
_IMAGES_HINT = "Images come in bdd100k_images_100k.zip: give --raw the zip, or the folder with images/100k/train and images/100k/val."
_LABELS_HINT = "Labels come in bdd100k_labels_release.zip (2018, the benchmark's) or bdd100k_det_20_labels_trainval.zip (2020)."


class Label(NamedTuple):
    """An object as written: category, x1, y1, x2, y2 (None where it has no box), whether it is a crowd."""

    category: str
    box: tuple[Any, ...] | None
    crowd: bool


class Entry(NamedTuple):
    """A frame of a label file."""

    name: str
    attributes: Mapping[str, Any]
    labels: tuple[Label, ...]


class Frame(NamedTuple):
    """An image and its labels: a job."""

    image: Path
    file: str
    labels: tuple[Label, ...]


def convert(job: Frame | Skipped, classes: Sequence[str]) -> Picture | Skipped:
    """One image with the objects of the classes asked for.

    The label file's coordinates are distances in pixels from the image's upper left corner (decimal fractions), so width = x2 - x1. So do
    the conversions that published methods share, and did the owners' first one; their later tools count x2 and y2 as pixels of the box and
    add 1 (scalabel's ``box2d_to_bbox``).
    """
    if isinstance(job, Skipped):
        return job
    try:
        width, height = read_header(job.image).upright
    except MrtError:
        return Skipped("image cut short or unreadable", str(job.image))
    things, skipped = [], Counter[str]()
    for category, box, crowd in job.labels:
        name = _RENAMED.get(category, category)
        if name not in classes:
            skipped["class not asked for" if name in CLASSES or name in _OTHERS else f"unknown label {category!r}"] += 1
            continue
        if box is None:
            skipped["no box"] += 1
            continue
        cut, problem = clip_box([_number(value) for value in box], width, height)
        if cut is None:
            skipped[problem] += 1
        else:
            things.append(Thing(name, cut, cut[2] * cut[3], crowd))
    return Picture(job.file, width, height, things, skipped)


def _number(value: Any) -> float:
    try:
        return float(value) if isinstance(value, (int, float)) else math.nan
    except OverflowError:  # JSON's whole numbers have no limit
        return math.inf


def recipe(
    raw: Sequence[Path],
    data_root: Path,
    *,
    where: Mapping[str, str | Collection[str]] | None = DAYTIME,
    labels: str | None = None,
    classes: Sequence[str] = BENCHMARK,
    on_unpack: Unpacking | None = None,
) -> Recipe:
    """The splits train and val, as far as there are both labels and images. Frames without objects stay.

    Lanes and drivable areas are no objects and not counted; an object without a box is ("no box"). Crowds (2020) become ignored objects.
    Classes that a label file has beside those asked for are left out, also "other person", "other vehicle" and "trailer" (the owners' own
    evaluation of the 2020 labels ignores detections there).

    Args:
        raw: the zip archives, read in place; the folder they are in; or folders unpacked by hand.
        where: attribute -> value or values of the frames to take; the benchmark is daytime. Empty or None: all frames.
        labels: "2018" or "2020"; default: what is there, 2018 if both are (the benchmark's counts are those of that file).
        classes: of the eight of ``CLASSES``; the benchmark evaluates seven, without train.

    Raises:
        MrtError: no images or labels; labels that are no list of frames; a frame whose name is a path; an attribute, value, class or year
            that does not exist.
    """
    files = RawFiles(raw, f"{_IMAGE.pattern}|{_LABELS.pattern}", data_root, on_unpack)
    if labels not in (None, *YEARS):
        raise MrtError(f"labels is {labels!r}, expected {' or '.join(YEARS)}", "Leave it out to take what is there.")
    wanted = _class_names(classes)
    images, label_files = _look_up(files)
    require(any(images.values()), "images/100k/{train,val}/*.jpg", files, _IMAGES_HINT)
    require(any(label_files.values()), "label file (bdd100k_labels_images_*.json or det_*.json)", files, _LABELS_HINT)
    year = labels or next(year for year in YEARS if label_files[year])
    require(label_files[year], f"labels of {year}", files, _LABELS_HINT)
    splits = [split for split in NUM_IMAGES if split in label_files[year] and images[split]]
    require(splits, "split with both images and labels", files, f"{_IMAGES_HINT}\n{_LABELS_HINT}")

    frames = {split: _read_frames(label_files[year][split]) for split in splits}
    filters = _check_where(where or {}, [frame for found in frames.values() for frame in found])
    taken = {split: [frame for frame in found if _passes(frame, filters)] for split, found in frames.items()}
    if not any(taken.values()):
        raise MrtError(f"where {', '.join(filters)}: no frame has all of these", "Each of the values exists, but not together.")
    run = partial(convert, classes=wanted)
    made = {split: _split(found, images[split], run) for split, found in taken.items() if found}
    details: dict[str, Any] = {"labels": year, "where": {key: sorted(values) for key, values in filters.items()} or "all frames"}
    details["other frames"] = {split: len(frames[split]) - len(taken[split]) for split in splits}
    if all(label_files.values()):
        details["labels also there"] = [other for other in YEARS if other != year]
    details["benchmark"] = filters == DAYTIME and year == "2018" and wanted == BENCHMARK
    expected = {split: {"images": number} for split, number in NUM_IMAGES.items()} if details["benchmark"] else {}
    domain = "+".join("/".join(sorted(values)) for values in filters.values()) or "bdd100k"
    return Recipe(domain, wanted, made, files.source, details, expected=expected)


def _class_names(classes: Sequence[str]) -> tuple[str, ...]:
    wanted = tuple(dict.fromkeys(_RENAMED.get(name, name) for name in classes))
    if not wanted or not set(wanted) <= {*CLASSES}:
        raise MrtError(f"classes is {', '.join(classes) or 'empty'}: of BDD100K these are taken: {', '.join(CLASSES)}")
    return wanted


def _look_up(files: RawFiles) -> tuple[dict[str, dict[str, Path]], dict[str, dict[str, Path]]]:
    """Images by split and name, label files by year and split. What was named first on the command line counts."""
    images: dict[str, dict[str, Path]] = {split: {} for split in NUM_IMAGES}
    labels: dict[str, dict[str, Path]] = {year: {} for year in YEARS}
    for inside, place in files.files.items():
        if match := _IMAGE.search(inside):
            images[match[1].lower()].setdefault(match[2], place)
        elif match := _LABELS.search(inside):
            year = "2018" if match["y2018"] else "2020"
            labels[year].setdefault(match["y2018"] or match["y2020"], place)
    return images, labels


def _read_frames(place: Path) -> list[Entry]:
    content = parse_json(place, object_hook=_slim)
    hint = "Is it one of BDD100K's detection label files?"
    if not isinstance(content, list):
        raise MrtError(f"{place}: holds {type(content).__name__}, expected a list of frames", hint)
    for number, frame in enumerate(content):
        if not isinstance(frame, Entry) or not isinstance(frame.name, str) or not frame.name:
            raise MrtError(f"{place}: entry {number} is no frame with a 'name'", hint)
        if "/" in frame.name or "\\" in frame.name:
            raise MrtError(
                f"{place}: entry {number} is named {frame.name!r}, a path", "A frame has the name of its image, without folders."
            )
    return content


def _slim(found: dict[str, Any]) -> Any:
    """Of each object of a label file, as it is parsed, only what is needed: the 2018 file has 1.4 GB, most of it outlines of lanes."""
    if "category" in found:
        return _label(found)
    if "name" in found:
        attributes, labels = found.get("attributes"), found.get("labels")
        return Entry(
            found["name"],
            attributes if isinstance(attributes, dict) else {},
            tuple(label for label in labels if isinstance(label, Label)) if isinstance(labels, list) else (),
        )
    return None if "vertices" in found else found


def _label(entry: dict[str, Any]) -> Label | None:
    category, box, more = str(entry["category"]), entry.get("box2d"), entry.get("attributes")
    if category.startswith(("lane", "area/", "drivable")):
        return None
    corners = tuple(box.get(key) for key in ("x1", "y1", "x2", "y2")) if isinstance(box, dict) else None
    return Label(sys.intern(category), corners, isinstance(more, dict) and more.get("crowd") is True)


def _check_where(where: Mapping[str, str | Collection[str]], frames: Sequence[Entry]) -> dict[str, frozenset[str]]:
    """The filter in one form; MrtError lists what there is if it asks for something else."""
    filters = {key: frozenset([values] if isinstance(values, str) else values) for key, values in where.items()}
    there: dict[str, Counter[str]] = {}
    for frame in frames if filters else ():
        for key, value in frame.attributes.items():
            there.setdefault(key, Counter())[str(value)] += 1
    for key, values in filters.items():
        if key not in there:
            raise MrtError(f"where {key}: no frame has this attribute", f"They have: {', '.join(sorted(there)) or 'none'}.")
        unknown = sorted(values - there[key].keys())
        if unknown or not values:
            listed = ", ".join(f"{name} ({count} frames)" for name, count in there[key].most_common(20))
            raise MrtError(f"where {key}={','.join(unknown)}: no frame has this value", f"There are: {listed}.")
    return filters


def _passes(frame: Entry, filters: Mapping[str, frozenset[str]]) -> bool:
    return all(str(frame.attributes.get(key)) in values for key, values in filters.items())


def _split(frames: Sequence[Entry], images: Mapping[str, Path], run: partial[Picture | Skipped]) -> Split:
    root = common_root(list(images.values()))
    jobs: list[Frame | Skipped] = []
    for frame in frames:
        image = images.get(frame.name)
        missing = Skipped("image missing", frame.name)
        jobs.append(missing if image is None else Frame(image, relative(image, root), frame.labels))
    return Split(root, jobs, run)
