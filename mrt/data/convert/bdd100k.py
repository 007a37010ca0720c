"""BDD100K (Yu et al., CVPR 2020): frames of dashboard cameras, 1280x720, with weather, scene and time of day.

The owner's downloads (bdd-data.berkeley.edu)::

    bdd100k_images_100k.zip                images/100k/{train,val}/NAME.jpg, also below bdd100k/;
                                           or 100k_images_{train,val}.zip
    bdd100k_labels_release.zip             2018: bdd100k/labels/bdd100k_labels_images_{train,val}.json
    bdd100k_labels.zip                     per-image: 100k/{train,val}/NAME.json,
                                           at first below bdd100k/labels/
    bdd100k_det_20_labels_trainval.zip     2020: bdd100k/labels/det_20/det_{train,val}.json
                                           (at first: det_v2_{train,val}_release.json)

The label files of 2018 and 2020 are lists of frames, ``{"name", "attributes": {"timeofday", "weather",
"scene"}, "labels": [{"category", "attributes", "box2d": {"x1", "y1", "x2", "y2"}}]}``. They name classes
differently, and 2020 leaves "labels" out of frames without objects.

One file for each image, ``{"name", "attributes", "frames": [{"timestamp", "objects": [...]}]}``, is the first
form of the 2018 labels (doc/format.md of ucbdrive/bdd100k), and what the portal offers today. Class names are
the same, but here each image has a file, while the list of train has 69,863 of its 70,000 images (issue 60
there): a count may be larger than the benchmark's.
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
from mrt.data.staging import available_cores, run_parallel
from mrt.errors import MrtError

# The published runs' validation has no train (AP -1 in all of their logs); their table lists these seven.
BENCHMARK = ("person", "rider", "car", "truck", "bus", "motorcycle", "bicycle")
CLASSES = ("person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle")
DAYTIME = {"timeofday": frozenset({"daytime"})}
NUM_IMAGES = {"train": 36_728, "val": 5_258}  # daytime, by the 2018 files
PER_IMAGE = "per-image"
KINDS = ("2018", PER_IMAGE, "2020")  # of labels, the one closest to the benchmark first
_MANY = 2_000  # with more label files than this, all cores read them
_RENAMED = {"pedestrian": "person", "motor": "motorcycle", "bike": "bicycle"}
_OTHERS = ("traffic light", "traffic sign", "other person", "other vehicle", "trailer")
_IMAGE = re.compile(r"(?i)(?:^|/)100k/(train|val)/([^/.][^/]*\.jpe?g)$")
_LABELS = re.compile(
    r"(?:^|/)(?:bdd100k_labels_images_(?P<y2018>train|val)"
    r"|det_(?:v2_)?(?P<y2020>train|val)(?:_release)?)\.json$"
)
# not info/100k, which holds the car's positions
_PER_IMAGE = re.compile(r"(?:^|(?<!info)/)100k/(train|val)/([^/.][^/]*)\.json$")
_IMAGES_HINT = (
    "Images come in bdd100k_images_100k.zip: give --raw the zip, or the folder with "
    "images/100k/train and images/100k/val."
)
_LABELS_HINT = (
    "Labels come in bdd100k_labels_release.zip (2018, the benchmark's), "
    "bdd100k_labels.zip (the same, a file for each image) or "
    "bdd100k_det_20_labels_trainval.zip (2020)."
)


class Label(NamedTuple):
    """An object as written: category, x1, y1, x2, y2 (None without a box), and whether it is a crowd."""

    category: str
    box: tuple[Any, ...] | None
    crowd: bool


_LANE = "lane or area"  # stands for such an entry while a file is parsed
_NO_OBJECT = Label("", None, False)


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

    The label file's coordinates are distances in pixels from the image's upper left corner (decimal
    fractions), so width = x2 - x1. The conversions that published methods share do the same, as did the
    owners' first one. The owners' later tools count x2 and y2 as pixels of the box and add 1 (scalabel's
    ``box2d_to_bbox``).
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
        if not name:
            skipped["object without a category"] += 1
            continue
        if name not in classes:
            known = name in CLASSES or name in _OTHERS
            skipped["class not asked for" if known else f"unknown label {category!r}"] += 1
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
    except OverflowError:  # whole numbers in JSON have no limit
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
    """The splits train and val, if there are both labels and images. Frames without objects stay.

    Lanes and drivable areas are not objects and not counted; an object without a box is counted ("no box").
    Crowds (2020) become ignored objects. Other classes than those asked for are left out, also "other
    person", "other vehicle" and "trailer" (the owners' own evaluation of the 2020 labels ignores detections
    there).

    Args:
        raw: the zip archives, read in place; the folder they are in; or folders unpacked by hand.
        where: attribute -> value or values of the frames to take; the benchmark is daytime. Empty or None:
            all frames.
        labels: "2018", "per-image" or "2020"; default: the first of them that there is (the benchmark's
            counts are those of 2018).
        classes: some of the eight ``CLASSES``; the benchmark evaluates seven, without train.

    Raises:
        MrtError: no images or labels; labels that are not a list of frames; a frame whose name is a path; an
            attribute, value, class or year that does not exist.
    """
    files = RawFiles(raw, f"{_IMAGE.pattern}|{_LABELS.pattern}|{_PER_IMAGE.pattern}", data_root, on_unpack)
    if labels not in (None, *KINDS):
        raise MrtError(
            f"labels is {labels!r}, expected {', '.join(KINDS)}", "Leave it out to take what is there."
        )
    wanted = _class_names(classes)
    images, label_files = _look_up(files)
    require(any(images.values()), "images/100k/{train,val}/*.jpg", files, _IMAGES_HINT)
    there = [kind for kind in KINDS if label_files[kind]]
    require(
        there,
        "label file (bdd100k_labels_images_*.json, 100k/{train,val}/*.json or det_*.json)",
        files,
        _LABELS_HINT,
    )
    kind = labels or there[0]
    what = "labels per image (100k/{train,val}/*.json)" if kind == PER_IMAGE else f"labels of {kind}"
    require(label_files[kind], what, files, _LABELS_HINT)
    splits = [split for split in NUM_IMAGES if split in label_files[kind] and images[split]]
    require(splits, "split with both images and labels", files, f"{_IMAGES_HINT}\n{_LABELS_HINT}")

    frames, broken = {}, {}
    for split in splits:
        read = _read_per_image if kind == PER_IMAGE else _read_list
        frames[split], broken[split] = read(label_files[kind][split], images[split])
    if not any(frames.values()) and any(broken.values()):
        first = next(entry for found in broken.values() for entry in found)
        raise MrtError(f"{first.example}: {first.reason}, and no label file is better", _LABELS_HINT)
    filters = _check_where(where or {}, [frame for found in frames.values() for frame in found])
    taken = {split: [frame for frame in found if _passes(frame, filters)] for split, found in frames.items()}
    if not any(taken.values()):
        raise MrtError(
            f"where {', '.join(filters)}: no frame has all of these",
            "Each of the values exists, but not together.",
        )
    run = partial(convert, classes=wanted)
    made = {
        split: _split(found, broken[split], images[split], run) for split, found in taken.items() if found
    }
    details: dict[str, Any] = {
        "labels": kind,
        "where": {key: sorted(values) for key, values in filters.items()} or "all frames",
    }
    details["other frames"] = {split: len(frames[split]) - len(taken[split]) for split in splits}
    if len(there) > 1:
        details["labels also there"] = [other for other in there if other != kind]
    as_benchmark = filters == DAYTIME and kind != "2020" and wanted == BENCHMARK
    details["benchmark"] = as_benchmark and kind == "2018"
    expected = {split: {"images": number} for split, number in NUM_IMAGES.items()} if as_benchmark else {}
    domain = "+".join("/".join(sorted(values)) for values in filters.values()) or "bdd100k"
    return Recipe(domain, wanted, made, files.source, details, expected=expected)


def _class_names(classes: Sequence[str]) -> tuple[str, ...]:
    wanted = tuple(dict.fromkeys(_RENAMED.get(name, name) for name in classes))
    if not wanted or not set(wanted) <= {*CLASSES}:
        raise MrtError(
            f"classes is {', '.join(classes) or 'empty'}: of BDD100K these are taken: {', '.join(CLASSES)}"
        )
    return wanted


# split -> name of the image, or "" for the label file of all -> label file
Labels = dict[str, dict[str, Path]]


def _look_up(files: RawFiles) -> tuple[dict[str, dict[str, Path]], dict[str, Labels]]:
    """Images by split and name, label files by kind. Of duplicates, the first on the command line counts."""
    images: dict[str, dict[str, Path]] = {split: {} for split in NUM_IMAGES}
    labels: dict[str, Labels] = {kind: {} for kind in KINDS}
    for inside, place in files.files.items():
        if match := _IMAGE.search(inside):
            images[match[1].lower()].setdefault(match[2], place)
        elif match := _LABELS.search(inside):
            kind = "2018" if match["y2018"] else "2020"
            labels[kind].setdefault(match["y2018"] or match["y2020"], {}).setdefault("", place)
        elif match := _PER_IMAGE.search(inside):
            labels[PER_IMAGE].setdefault(match[1], {}).setdefault(f"{match[2]}.jpg", place)
    return images, labels


def _read_per_image(
    labels: Mapping[str, Path], images: Mapping[str, Path]
) -> tuple[list[Entry], list[Skipped]]:
    """The frames of a split by name; and what cannot be used: label files, and images without one."""
    workers = available_cores() if len(labels) > _MANY else 1
    found = list(run_parallel(_read_one, [(name, labels[name]) for name in sorted(labels)], workers))
    entries = [entry for entry in found if isinstance(entry, Entry)]
    broken = [entry for entry in found if isinstance(entry, Skipped)]
    return entries, broken + [
        Skipped("labels missing", name) for name in sorted(images.keys() - labels.keys())
    ]


def _read_one(job: tuple[str, Path]) -> Entry | Skipped:
    """The frame of a label file of one image, under the image's name."""
    name, place = job
    try:
        content = parse_json(place, object_hook=_slim_one)
    except MrtError:
        return Skipped("annotation cut short or unreadable", str(place))
    frames = content.get("frames") if isinstance(content, dict) else None
    if not isinstance(frames, list) or not all(isinstance(frame, dict) for frame in frames):
        return Skipped("annotation cut short or unreadable", str(place))
    if len(frames) > 1:
        return Skipped("labels of several frames", str(place))
    objects, attributes = frames[0].get("objects") if frames else None, content.get("attributes")
    return Entry(name, attributes if isinstance(attributes, dict) else {}, _labels_in(objects))


def _slim_one(found: dict[str, Any]) -> Any:
    """As :func:`_slim`, for a file of one image, which has a name, too."""
    return found if "frames" in found else _slim(found)


def _labels_in(objects: Any) -> tuple[Label, ...]:
    """The objects of a frame; other entries get an empty category, lanes and areas are left out."""
    if not isinstance(objects, list):
        return () if objects is None else (_NO_OBJECT,)
    return tuple(label if isinstance(label, Label) else _NO_OBJECT for label in objects if label is not _LANE)


def _read_list(labels: Mapping[str, Path], images: Mapping[str, Path]) -> tuple[list[Entry], list[Skipped]]:
    """The frames of a split's one label file, in its order; ``images`` that it does not list are left out."""
    (place,) = labels.values()
    content = parse_json(place, object_hook=_slim)
    hint = "Is it one of BDD100K's detection label files?"
    if not isinstance(content, list):
        raise MrtError(f"{place}: holds {type(content).__name__}, expected a list of frames", hint)
    for number, frame in enumerate(content):
        if not isinstance(frame, Entry) or not isinstance(frame.name, str) or not frame.name:
            raise MrtError(f"{place}: entry {number} is no frame with a 'name'", hint)
        if "/" in frame.name or "\\" in frame.name:
            raise MrtError(
                f"{place}: entry {number} is named {frame.name!r}, a path",
                "A frame has the name of its image, without folders.",
            )
    return content, []


def _slim(found: dict[str, Any]) -> Any:
    """Keep only what is needed of each object while a label file is parsed.

    The 2018 file has 1.4 GB, most of it outlines of lanes.
    """
    if "category" in found:
        return _label(found)
    if "name" in found:
        attributes = found.get("attributes")
        return Entry(
            found["name"], attributes if isinstance(attributes, dict) else {}, _labels_in(found.get("labels"))
        )
    return None if "vertices" in found else found


def _label(entry: dict[str, Any]) -> Label | str:
    """An object, or the mark for a lane or an area."""
    category, box, more = str(entry["category"]), entry.get("box2d"), entry.get("attributes")
    if category.startswith(("lane", "area/", "drivable")):
        return _LANE
    corners = tuple(box.get(key) for key in ("x1", "y1", "x2", "y2")) if isinstance(box, dict) else None
    return Label(sys.intern(category), corners, isinstance(more, dict) and more.get("crowd") is True)


def _check_where(
    where: Mapping[str, str | Collection[str]], frames: Sequence[Entry]
) -> dict[str, frozenset[str]]:
    """The filter in one form; if it asks for something that no frame has, MrtError lists what there is."""
    filters = {
        key: frozenset([values] if isinstance(values, str) else values) for key, values in where.items()
    }
    there: dict[str, Counter[str]] = {}
    for frame in frames if filters else ():
        for key, value in frame.attributes.items():
            there.setdefault(key, Counter())[str(value)] += 1
    for key, values in filters.items():
        if key not in there:
            raise MrtError(
                f"where {key}: no frame has this attribute",
                f"They have: {', '.join(sorted(there)) or 'none'}.",
            )
        unknown = sorted(values - there[key].keys())
        if unknown or not values:
            listed = ", ".join(f"{name} ({count} frames)" for name, count in there[key].most_common(20))
            raise MrtError(
                f"where {key}={','.join(unknown)}: no frame has this value", f"There are: {listed}."
            )
    return filters


def _passes(frame: Entry, filters: Mapping[str, frozenset[str]]) -> bool:
    return all(str(frame.attributes.get(key)) in values for key, values in filters.items())


def _split(
    frames: Sequence[Entry],
    broken: Sequence[Skipped],
    images: Mapping[str, Path],
    run: partial[Picture | Skipped],
) -> Split:
    root = common_root(list(images.values()))
    jobs: list[Frame | Skipped] = []
    for frame in frames:
        image = images.get(frame.name)
        missing = Skipped("image missing", frame.name)
        jobs.append(missing if image is None else Frame(image, relative(image, root), frame.labels))
    return Split(root, jobs + list(broken), run)
