"""A user's own COCO set: ``*.json`` with images, annotations and categories, and the images."""

from __future__ import annotations

import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from mrt.data.archives import open_file
from mrt.data.convert.places import WANTED, ImageFinder, class_name, entry_name, measured, split_in, split_of_folder
from mrt.data.convert.raw import RawFiles, Unpacking, common_root, parse_json, relative, require
from mrt.data.convert.recipe import Picture, Recipe, Skipped, Split, Thing, clip_box
from mrt.errors import MrtError

HINT = "A COCO file is an object with the lists 'images', 'annotations' and 'categories'."
_SPEAKING = re.compile(r"(?i)instances|annotations|labels")  # words in names of files that want to be taken for annotations
_LISTS = re.compile(rb'"(images|annotations|categories)"\s*:\s*\[')
_OTHER_TASKS = ("captions", "panoptic", "image_info")
_HEAD = 1 << 16


class Object(NamedTuple):
    """An annotation as it is: class name, x, y, width, height, its area if it has one, whether it is a crowd."""

    label: str
    box: tuple[float, float, float, float]
    area: float | None
    ignored: bool


class Job(NamedTuple):
    """An image, with what the annotations say of it; ``size`` (width, height) is None where they do not say it."""

    file: str
    place: str
    size: tuple[int, int] | None
    objects: tuple[Object, ...]
    skipped: dict[str, int]


@dataclass
class _Entry:
    """An image of a COCO file while its annotations are being gathered."""

    name: str
    size: tuple[int, int] | None
    objects: list[Object] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)


def recipe(
    raw: Sequence[Path],
    data_root: Path,
    *,
    annotations: Mapping[str, Path] | None = None,
    images: Path | None = None,
    domain: str = "custom",
    on_unpack: Unpacking | None = None,
) -> Recipe:
    """COCO files and their images, in any folders below ``raw`` or in archives.

    A file's split is the word train, val, valid, validation, test or trainval in its name (``instances_val2017.json``), else in the name of
    the nearest folder that has one (``valid/_annotations.coco.json``); the only file without any is "train". The images are found by the
    end of their path: :class:`mrt.data.convert.places.ImageFinder`.

    COCO's boxes are x, y, width, height in pixels from 0; they stay as they are, cut to the image. ``area`` stays where it is a positive
    number, else it is the box's. ``iscrowd`` and ``ignore`` make an object ignored. An annotation without a box has that of its polygons.
    All ids are given anew, so their values do not matter. The classes are the categories of all files in the order of their ids.
    docs/data.md has the table of what is wrong in real files and what comes of it.

    Args:
        annotations: split -> COCO file, where names do not tell; paths as they are or inside ``raw``.
        images: where to look for images instead of ``raw``: a folder or an archive.

    Raises:
        MrtError: no COCO file or none of its images below ``raw``; two files for a split; a file that is cut short, not UTF-8, not COCO or
            lists an image or category id twice for different things; a file name that leads out of the folder or may mean several files.
    """
    files = RawFiles(raw, WANTED, data_root, on_unpack)
    pictures = files if images is None else RawFiles([images], WANTED, data_root, on_unpack)
    finder = ImageFinder(pictures.files)
    chosen = {split: _given(Path(path), files) for split, path in (annotations or {}).items()} or _one_per_split(files)
    require(chosen, "COCO annotations (.json)", files, HINT + " Name it with --annotations SPLIT=FILE.")
    labels: dict[Any, str] = {}
    splits, twice = {}, {}
    for split, (near, place) in chosen.items():
        coco = _read(place)
        categories = _categories(coco, place)
        labels |= dict.fromkeys(categories.values())
        splits[split], again = _split(coco, categories, place, finder, split, near)
        twice |= {split: again} if again else {}
    source = files.source if images is None else f"{files.source}, {Path(images).name}"
    details = {"format": "coco", "annotations": {split: place.name for split, (_, place) in chosen.items()}}
    return Recipe(domain, tuple(labels), splits, source, details | ({"annotation_ids_given_twice": twice} if twice else {}))


def candidates(files: RawFiles) -> list[str]:
    """Paths inside of the JSON files that are COCO's by their first 64 KiB, or want to be by their name."""
    found = []
    for inside in sorted(files.files):
        name = PurePosixPath(inside).name
        if name.lower().endswith(".json") and not name.lower().startswith(_OTHER_TASKS):
            stem = PurePosixPath(inside).stem
            if split_in(stem) or _SPEAKING.search(stem) or _LISTS.search(_head(files.files[inside])):
                found.append(inside)
    return found


def convert(job: Job) -> Picture | Skipped:
    """Cut the boxes to the image, which must be whole and of the size that they are for."""
    size = measured(Path(job.place), job.file, job.size)
    if isinstance(size, Skipped):
        return size
    things, skipped = [], Counter(job.skipped)
    for label, (x, y, w, h), area, ignored in job.objects:
        box, reason = clip_box((x, y, x + w, y + h), *size)
        if box is None:
            skipped[reason] += 1
        else:
            things.append(Thing(label, box, area if area is not None else box[2] * box[3], ignored))
    return Picture(job.file, *size, things, dict(skipped))


def _head(place: Path) -> bytes:
    try:
        with open_file(place) as file:
            return file.read(_HEAD)
    except OSError:
        return b""


def _given(path: Path, files: RawFiles) -> tuple[str, Path]:
    """(path inside, where to read it) of a file that the user names."""
    inside = path.as_posix()
    return (inside, files.files[inside]) if inside in files.files and not path.is_file() else ("", path)


def _one_per_split(files: RawFiles) -> dict[str, tuple[str, Path]]:
    """Split -> (path inside, where to read it), training first."""
    by_split: dict[str | None, list[str]] = defaultdict(list)
    for inside in candidates(files):
        by_split[split_in(PurePosixPath(inside).stem) or split_of_folder(inside)].append(inside)
    for split, insides in by_split.items():
        if len(insides) > 1:  # COCO's own archives have key points and more beside the instances
            instances = [inside for inside in insides if PurePosixPath(inside).name.startswith("instances")]
            insides = by_split[split] = instances if len(instances) == 1 else insides
        if len(insides) > 1 or (split is None and len(by_split) > 1):
            every = insides if split is not None else [inside for group in by_split.values() for inside in group]
            what = "for no split in particular" if split is None else f"for the split {split!r}"
            raise MrtError(
                f"--raw {files.source}: several annotation files {what}: {', '.join(every[:6])}",
                "Say which is which: --annotations train=FILE val=FILE",
            )
    order = {"train": 0, "trainval": 1, "val": 2, "test": 3}
    named = {split or "train": insides[0] for split, insides in by_split.items()}
    if "trainval" in named and "train" not in named:
        named["train"] = named.pop("trainval")
    return {split: (named[split], files.files[named[split]]) for split in sorted(named, key=order.__getitem__)}


def _read(place: Path) -> dict[str, Any]:
    coco = parse_json(place)
    if not isinstance(coco, dict):
        raise MrtError(f"{place}: holds {_kind(coco)}, expected an object", HINT)
    for key in ("images", "annotations", "categories"):
        if not isinstance(coco.get(key), list):
            found = f"has {_kind(coco[key])} as {key!r}, expected a list" if key in coco else f"has no list {key!r}"
            raise MrtError(f"{place}: {found}", HINT + " Images without labels: --format images.")
    if not coco["images"]:
        raise MrtError(f"{place}: lists no images", "Leave the file out, or get it again.")
    return coco


def _categories(coco: dict[str, Any], place: Path) -> dict[Any, str]:
    """Category id -> class name, in the order of the ids."""
    names: dict[Any, str] = {}
    for entry in coco["categories"]:
        number, name = (entry.get("id"), class_name(entry.get("name"))) if isinstance(entry, dict) else (None, None)
        if not (_is_id(number) and name):
            raise MrtError(f"{place}: the category {_shown(entry)} has no usable id and name", HINT)
        if names.get(number, name) != name:
            raise MrtError(
                f"{place}: category id {number!r} is both {names[number]!r} and {name!r}", "Give each category an id of its own."
            )
        names[number] = name
    if not names:
        raise MrtError(f"{place}: lists no categories", HINT)
    above = {entry.get("supercategory") for entry in coco["categories"] if entry.get("name") != entry.get("supercategory")}
    used = {a["category_id"] for a in coco["annotations"] if isinstance(a, dict) and _is_id(a.get("category_id"))}
    real = {number: name for number, name in names.items() if number in used or name not in above}  # some tools list the group too
    return dict(sorted((real or names).items(), key=lambda item: (isinstance(item[0], str), item[0])))


def _split(
    coco: dict[str, Any], categories: Mapping[Any, str], place: Path, finder: ImageFinder, split: str, near: str
) -> tuple[Split, int]:
    """A split, and how many annotations have an id that a different one has too."""
    skipped: Counter[str] = Counter()
    by_id, by_name = _images(coco["images"], place, skipped)
    insides = finder.find(list(by_name), place, split=split, near=near)
    if not insides:
        raise MrtError(
            f"{place}: none of its {len(by_name)} images is there, the first is {next(iter(by_name))!r}",
            "Give the images' folder or archive too: in --raw, or with --images FOLDER.",
        )
    again = _gather(coco["annotations"], by_id, categories, skipped)
    root = common_root([finder.files[inside] for inside in insides.values()])
    jobs = []
    for name, entry in by_name.items():
        where = finder.files[insides[name]] if name in insides else None
        file = relative(where, root) if where else name
        jobs.append(Job(file, str(where or ""), entry.size, tuple(entry.objects), dict(entry.skipped)))
    return Split(root, jobs, convert, dict(+skipped)), again


def _images(entries: list[Any], place: Path, skipped: Counter[str]) -> tuple[dict[Any, _Entry], dict[str, _Entry]]:
    """The images by their id and by their name; an image that is listed twice is one."""
    by_id: dict[Any, _Entry] = {}
    by_name: dict[str, _Entry] = {}
    for item in entries:
        number, text = (item.get("id"), item.get("file_name")) if isinstance(item, dict) else (None, None)
        if not (_is_id(number) and isinstance(text, str)):
            raise MrtError(f"{place}: the image {_shown(item)} has no usable id and file_name", HINT)
        name, size = entry_name(text, place, f"file_name of image {number!r}"), _size(item)
        if number in by_id and by_id[number].name != name:
            raise MrtError(
                f"{place}: image id {number!r} is both {by_id[number].name!r} and {name!r}",
                "Its annotations may be of either: give each image an id of its own.",
            )
        listed = name in by_name
        entry = by_name.setdefault(name, _Entry(name, size))
        if entry.size != size:
            raise MrtError(f"{place}: {name!r} is listed twice, with the sizes {entry.size} and {size}", "Leave one of them out.")
        skipped["image listed twice"] += listed
        by_id[number] = entry
    return by_id, by_name


def _gather(annotations: list[Any], images: Mapping[Any, _Entry], categories: Mapping[Any, str], skipped: Counter[str]) -> int:
    """Give each image its objects; returns how many annotations have the id of a different one."""
    seen: dict[Any, tuple[Any, Any, str]] = {}
    again = 0
    for item in annotations:
        if not isinstance(item, dict):
            skipped["annotation that is not an object"] += 1
            continue
        number, image, category = item.get("id"), item.get("image_id"), item.get("category_id")
        if not (_is_id(image) and image in images):
            skipped["annotation of an unknown image"] += 1
            continue
        entry = images[image]
        if not (_is_id(category) and category in categories):
            entry.skipped["annotation of an unknown category"] += 1
            continue
        if _is_id(number):
            same = (image, category, repr(item.get("bbox") or item.get("segmentation")))
            if seen.setdefault(number, same) != same:
                again += 1
            elif seen[number] is not same:
                entry.skipped["annotation listed twice"] += 1
                continue
        box = _box(item)
        if isinstance(box, str):
            entry.skipped[box] += 1
            continue
        ignored = any(_number(item.get(key)) not in (None, 0) for key in ("iscrowd", "ignore"))
        area = _number(item.get("area"))
        area = area if area is not None and 0 < area < math.inf else None
        entry.objects.append(Object(categories[category], box, area, ignored))
    return again


def _box(annotation: Mapping[str, Any]) -> tuple[float, float, float, float] | str:
    """x, y, width, height as they are, or those of the polygons; else what is wrong."""
    box = annotation.get("bbox")
    if box:
        values = [_number(value) for value in box] if isinstance(box, list) else []
        return tuple(values) if len(values) == 4 and None not in values else "box that is not four numbers"
    polygons = annotation.get("segmentation")
    parts = [part for part in polygons if isinstance(part, list)] if isinstance(polygons, list) else []
    points = [_number(value) for part in parts for value in part[: len(part) // 2 * 2]]
    if not points or None in points:
        return "no box"
    if not all(map(math.isfinite, points)):
        return "box with a number that is not finite"
    xs, ys = points[0::2], points[1::2]
    return min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)


def _size(image: Mapping[str, Any]) -> tuple[int, int] | None:
    """(width, height) that an image entry claims; None where it does not."""
    values = [_number(image.get(key)) for key in ("width", "height")]
    return (int(values[0]), int(values[1])) if all(value and 0 < value < math.inf for value in values) else None


def _number(value: Any) -> float | None:
    """A number as a float, infinite where it is too large for one; None for anything else."""
    if isinstance(value, bool):
        return float(value)
    try:
        return float(value) if isinstance(value, (int, float)) else None
    except OverflowError:
        return math.inf


def _is_id(value: Any) -> bool:
    return isinstance(value, (int, str)) and not isinstance(value, bool)


def _kind(value: Any) -> str:
    names = {list: "a list", dict: "an object", str: "a text", type(None): "null", bool: "true or false"}
    return names.get(type(value), "a number")


def _shown(value: Any) -> str:
    return json.dumps(value)[:200]
