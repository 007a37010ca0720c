"""A user's own COCO set: ``*.json`` with images, annotations and categories, and the images."""

from __future__ import annotations

import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from mrt.data.archives import open_file
from mrt.data.convert import units
from mrt.data.convert.names import examples, split_in, split_of_folder
from mrt.data.convert.outlines import box_around
from mrt.data.convert.places import Box, ImageFinder, class_name, entry_name, measured, pictured
from mrt.data.convert.raw import RawFiles, Unpacking, common_root, own_files, parse_json, relative, require
from mrt.data.convert.recipe import Picture, Recipe, Skipped, Split
from mrt.data.text import encoding_of
from mrt.errors import MrtError

HINT = "A COCO file is an object with the lists 'images', 'annotations' and 'categories'."
_SPEAKING = re.compile(r"(?i)instances|annotations|labels")  # words in names of files that want to be taken for annotations
_LISTS = ("images", "annotations", "categories")
_LIST = re.compile(rb'"(images|annotations|categories)"\s*:\s*\[')
_OTHER_TASKS = ("captions", "panoptic", "image_info")
_BLOCK = 1 << 22
_ORDER = {"train": 0, "trainval": 1, "val": 2, "test": 3}


class Job(NamedTuple):
    """An image, with what the annotations say of it; ``size`` (width, height) is None where they do not say it."""

    file: str
    place: str
    size: tuple[int, int] | None
    objects: tuple[Box, ...]
    skipped: dict[str, int]
    notes: dict[str, str]


@dataclass
class _Entry:
    """An image of a COCO file while its annotations are being gathered."""

    name: str
    size: tuple[int, int] | None
    objects: list[Box] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    notes: dict[str, str] = field(default_factory=dict)

    def leave(self, reason: str, item: Any) -> None:
        """Count an annotation that is left out, and keep the first of its kind to show."""
        self.skipped[reason] += 1
        if reason not in self.notes:
            self.notes[reason] = f"{self.name}: {_shown(item, 100)}"


def recipe(
    raw: Sequence[Path] | RawFiles,
    data_root: Path,
    *,
    annotations: Mapping[str, Path] | None = None,
    images: Path | None = None,
    domain: str = "custom",
    boxes: str = "auto",
    on_unpack: Unpacking | None = None,
) -> Recipe:
    """COCO files and their images, in any folders below ``raw`` or in archives.

    A file's split is the word train, val, valid, validation, test or trainval in its name (``instances_val2017.json``), else in the name of
    the nearest folder that has one (``valid/_annotations.coco.json``); the only file without any is "train". Several files of a split are
    taken together if they are about different images. The images are found by the end of their path:
    :class:`mrt.data.convert.places.ImageFinder`.

    COCO's boxes are x, y, width, height in pixels from 0; they stay as they are, cut to the image. ``area`` stays where it is a positive
    number, else it is the box's. ``iscrowd`` and ``ignore`` make an object ignored. An annotation without a box, or with one of no size,
    has that of its outline: polygons, points or a run-length mask. All ids are given anew, so their values do not matter, but for what they
    connect; 1, 1.0 and "1" are one id where that is no contradiction. The classes are the categories of all files in the order of their
    ids.

    docs/data.md has the table of what is wrong in real files and what comes of it.

    Args:
        annotations: split -> COCO file, where names do not tell; paths as they are or inside ``raw``.
        images: where to look for images instead of ``raw``: a folder or an archive.
        boxes: "pixels", "shares" (of the image's width and height), or "auto": shares are recognised over all files, see :mod:`.units`.

    Raises:
        MrtError: no COCO file or none of its images below ``raw``; two files about the same images for a split; a file that is cut short,
            of no Unicode encoding, not COCO or lists an image or category id twice for different things; a file name that leads out of the
            folder or may mean several files; boxes whose unit leaves doubts.
    """
    files = own_files(raw, data_root, on_unpack)
    pictures = files if images is None else own_files([images], data_root, on_unpack)
    finder = ImageFinder(pictures.files)
    given = {split: [_given(Path(path), files)] for split, path in (annotations or {}).items()}
    chosen = given or _by_split(files)
    require(chosen, "COCO annotations (.json)", files, HINT + " Name it with --annotations SPLIT=FILE.")
    labels: dict[Any, str] = {}
    parts: dict[str, list[_Part]] = {}
    for split, named in chosen.items():
        for near, place in named:
            coco = _read(place)
            categories = _categories(coco, place)
            labels |= dict.fromkeys(categories.values())
            parts.setdefault(split, []).append(_part(coco, categories, place, finder, split, near))
    notes = [*files.notes, *([] if pictures is files else pictures.notes), *finder.notes]
    for found in parts.values():
        notes += [note for part in found for note in part.notes]
    listed = {inside for found in parts.values() for part in found for inside in part.insides.values()}
    alone = sorted(finder.files.keys() - listed)
    if alone:
        notes.append(f"{len(alone)} images are in no annotation file and left out: {examples(alone)}")
    every = [entry for found in parts.values() for part in found for entry in part.entries.values()]
    unit, said = units.of_coco((units.Seen(box, entry.size) for entry in every for box in entry.objects), boxes, files.source)
    splits = {split: _split(found, finder, unit, files) for split, found in parts.items()}
    twice = {split: again for split, found in parts.items() if (again := sum(part.again for part in found))}
    source = files.source if images is None else f"{files.source}, {Path(images).name}"
    told = {split: ", ".join(place.name for _, place in named) for split, named in chosen.items()}
    details = {"format": "coco", "annotations": told} | ({"annotation_ids_given_twice": twice} if twice else {})
    read = [inside for named in chosen.values() for inside, _ in named]
    return Recipe(domain, tuple(labels), splits, source, details, notes=[*notes, *said], read=read)


def candidates(files: RawFiles) -> tuple[list[str], list[str]]:
    """Paths inside of the JSON files that hold COCO's three lists, and of those that only speak of it: a word in the name, or one list."""
    whole, partly = [], []
    for inside in sorted(files.files):
        name = PurePosixPath(inside).name
        if not name.lower().endswith(".json") or name.lower().startswith(_OTHER_TASKS):
            continue
        lists = _lists_in(files.files[inside])
        stem = PurePosixPath(inside).stem
        if len(lists) == len(_LISTS):
            whole.append(inside)
        elif lists or split_in(stem) or _SPEAKING.search(stem):
            partly.append(inside)
    return whole, partly


def convert(job: Job | Skipped, unit: str = "pixels") -> Picture | Skipped:
    """Cut the boxes to the image, which must be whole and of the size that they are for. ``unit``: of :mod:`mrt.data.convert.units`."""
    if isinstance(job, Skipped):
        return job
    size = measured(Path(job.place), job.file, job.size)
    if isinstance(size, Skipped):
        return size
    boxes = [units.as_pixels(box, unit, size.width, size.height) for box in job.objects] if unit != "pixels" else job.objects
    return pictured(job.file, size, boxes, job.skipped, job.notes)


def _lists_in(place: Path) -> set[str]:
    """Which of COCO's three lists a JSON file has, by its text; large files are looked through in blocks."""
    found: set[str] = set()
    kept = b""
    try:
        with open_file(place) as file:
            while block := file.read(_BLOCK):
                text = kept + block
                if encoding_of(text).startswith("utf-16") or b"\0" in text[:64]:
                    text = text.replace(b"\0", b"")
                found |= {match[1].decode() for match in _LIST.finditer(text)}
                if len(found) in (0, len(_LISTS)):
                    break
                kept = block[-64:]
    except OSError:
        return set()
    return found


def _given(path: Path, files: RawFiles) -> tuple[str, Path]:
    """(path inside, where to read it) of a file that the user names."""
    inside = path.as_posix()
    return (inside, files.files[inside]) if inside in files.files and not path.is_file() else ("", path)


def _by_split(files: RawFiles) -> dict[str, list[tuple[str, Path]]]:
    """Split -> (path inside, where to read it) of its files, training first."""
    whole, partly = candidates(files)
    by_split: dict[str | None, list[str]] = defaultdict(list)
    for inside in whole or partly:
        by_split[split_in(PurePosixPath(inside).stem) or split_of_folder(inside)].append(inside)
    for split, insides in by_split.items():
        # COCO's own archives have key points and more beside the instances
        instances = [inside for inside in insides if PurePosixPath(inside).name.startswith("instances")]
        by_split[split] = instances or insides
    if None in by_split and len(by_split) > 1:
        every = [inside for group in by_split.values() for inside in group]
        raise MrtError(
            f"--raw {files.source}: several annotation files for no split in particular: {examples(every, 6)}",
            "Say which is which: --annotations train=FILE val=FILE",
        )
    named = {split or "train": insides for split, insides in by_split.items()}
    if "trainval" in named and "train" not in named:
        named["train"] = named.pop("trainval")
    return {split: [(inside, files.files[inside]) for inside in named[split]] for split in sorted(named, key=_ORDER.__getitem__)}


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
        number, name = (_id(entry.get("id")), class_name(entry.get("name"))) if isinstance(entry, dict) else (None, None)
        if number is None or not name:
            raise MrtError(f"{place}: the category {_shown(entry)} has no usable id and name", HINT)
        if names.get(number, name) != name:
            raise MrtError(
                f"{place}: category id {number!r} is both {names[number]!r} and {name!r}", "Give each category an id of its own."
            )
        names[number] = name
    if not names:
        raise MrtError(f"{place}: lists no categories", HINT)
    above = {class_name(entry.get("supercategory")) for entry in coco["categories"] if entry.get("name") != entry.get("supercategory")}
    used = {_known(a.get("category_id"), names) for a in coco["annotations"] if isinstance(a, dict)}
    real = {number: name for number, name in names.items() if number in used or name not in above}  # some tools list the group too
    return dict(sorted((real or names).items(), key=lambda item: (isinstance(item[0], str), item[0])))


@dataclass
class _Part:
    """What one COCO file adds to a split: entries by name, where their images are (paths inside the raw files), what is left out."""

    entries: dict[str, _Entry]
    insides: dict[str, str]
    place: Path
    skipped: Counter[str]
    examples: dict[str, list[str]]
    again: int
    notes: list[str]


def _part(coco: dict[str, Any], categories: Mapping[Any, str], place: Path, finder: ImageFinder, split: str, near: str) -> _Part:
    skipped: Counter[str] = Counter()
    by_id, by_name = _images(coco["images"], place, skipped)
    insides = finder.find(list(by_name), place, split=split, near=near)
    if not insides:
        first = next(iter(by_name))
        there = finder.near_miss(first)
        raise MrtError(
            f"{place}: none of its {len(by_name)} images is there, the first is {first!r}" + (f" (there is {there})" if there else ""),
            "Give the images' folder or archive too: in --raw, or with --images FOLDER.",
        )
    gathered = _gather(coco["annotations"], by_id, categories, skipped)
    return _Part(by_name, insides, place, skipped, gathered.examples, gathered.again, gathered.notes(place))


def _split(parts: Sequence[_Part], finder: ImageFinder, unit: str, files: RawFiles) -> Split:
    """A split of one or more COCO files about different images."""
    owners: dict[str, Path] = {}
    for part in parts:
        for inside in part.insides.values():
            if owners.setdefault(inside, part.place) != part.place:
                top = common_root([part.place for part in parts])
                every = examples((relative(one.place, top) for one in parts), 6)
                raise MrtError(
                    f"--raw {files.source}: several annotation files for one split: {every} "
                    f"({relative(owners[inside], top)} and {relative(part.place, top)} both list {inside})",
                    "Say which is which: --annotations train=FILE val=FILE",
                )
    root = common_root([finder.files[inside] for part in parts for inside in part.insides.values()])
    jobs: list[Job | Skipped] = []
    skipped, shown = Counter[str](), defaultdict[str, list[str]](list)
    for part in parts:
        skipped.update(part.skipped)
        for reason, texts in part.examples.items():
            shown[reason] += texts
        for name, entry in part.entries.items():
            if name not in part.insides:
                jobs.append(_missing(name, finder))
                continue
            where = finder.files[part.insides[name]]
            jobs.append(Job(relative(where, root), str(where), entry.size, tuple(entry.objects), dict(entry.skipped), entry.notes))
    run = convert if unit == "pixels" else partial(convert, unit=unit)
    return Split(root, jobs, run, dict(+skipped), notes=dict(shown))


def _missing(name: str, finder: ImageFinder) -> Skipped:
    """Why an image that is listed is not taken."""
    there = finder.near_miss(name)
    if there is not None and there in finder.others and PurePosixPath(there).name == PurePosixPath(name).name:
        return Skipped("kind of image not read", there)
    return Skipped("image missing", f"{name} (there is {there})" if there else name)


def _images(entries: list[Any], place: Path, skipped: Counter[str]) -> tuple[dict[Any, _Entry], dict[str, _Entry]]:
    """The images by their id and by their name; an image that is listed twice is one."""
    by_id: dict[Any, _Entry] = {}
    by_name: dict[str, _Entry] = {}
    for item in entries:
        number, text = (_id(item.get("id")), item.get("file_name")) if isinstance(item, dict) else (None, None)
        if number is None or not isinstance(text, str):
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


@dataclass
class _Gathered:
    """What was found while annotations were given to their images."""

    again: int = 0
    retyped: int = 0
    outlined: int = 0
    examples: dict[str, list[str]] = field(default_factory=dict)

    def leave(self, reason: str, item: Any) -> str:
        """Keep an example of an annotation that is left out; returns the reason."""
        shown = self.examples.setdefault(reason, [])
        if len(shown) < 3:
            shown.append(_shown(item, 100))
        return reason

    def notes(self, place: Path) -> list[str]:
        """What to say of them."""
        said = []
        if self.retyped:
            said.append(f'{place.name}: {self.retyped} annotations name their image or category by an id of another type (1, "1", 1.0)')
        if self.outlined:
            said.append(f"{place.name}: {self.outlined} annotations without a box of any size have that of their outline")
        return said


def _gather(annotations: list[Any], images: Mapping[Any, _Entry], categories: Mapping[Any, str], skipped: Counter[str]) -> _Gathered:
    """Give each image its objects."""
    seen: dict[Any, tuple[Any, Any, str]] = {}
    found = _Gathered()
    for item in annotations:
        if not isinstance(item, dict):
            skipped[found.leave("annotation that is not an object", item)] += 1
            continue
        number, image, category = _id(item.get("id")), _known(item.get("image_id"), images), _known(item.get("category_id"), categories)
        if image is None:
            skipped[found.leave("annotation of an unknown image", item)] += 1
            continue
        entry = images[image]
        if category is None:
            entry.leave("annotation of an unknown category", item)
            continue
        found.retyped += type(image) is not type(item["image_id"]) or type(category) is not type(item["category_id"])
        if number is not None:
            same = (image, category, repr(item.get("bbox") or item.get("segmentation")))
            if seen.setdefault(number, same) != same:
                found.again += 1
            elif seen[number] is not same:
                entry.leave("annotation listed twice", item)
                continue
        box, outlined = _box(item)
        if isinstance(box, str):
            entry.leave(box, item)
            continue
        found.outlined += outlined and bool(item.get("bbox"))
        ignored = _is_set(item.get("iscrowd")) or _is_set(item.get("ignore"))
        area = _number(item.get("area"))
        area = area if area is not None and 0 < area < math.inf else None
        x, y, w, h = box
        entry.objects.append(Box(categories[category], (x, y, x + w, y + h), area, ignored))
    return found


def _box(annotation: Mapping[str, Any]) -> tuple[tuple[float, float, float, float] | str, bool]:
    """x, y, width, height as they are, or those around its outline if they have no size (and True); else what is wrong."""
    box = annotation.get("bbox")
    values = [_number(value) for value in box] if isinstance(box, list) and len(box) == 4 else [None]
    written = tuple(values) if None not in values else None
    if written is not None and (min(written[2:]) > 0 or not all(map(math.isfinite, written))):
        return written, False
    outline = box_around(annotation.get("segmentation"))
    if isinstance(outline, tuple):
        return outline, True
    return written or ("box that is not four numbers" if box else outline), False


def _size(image: Mapping[str, Any]) -> tuple[int, int] | None:
    """(width, height) that an image entry claims; None where it does not."""
    values = [_number(image.get(key)) for key in ("width", "height")]
    return (int(values[0]), int(values[1])) if all(value and 0 < value < math.inf for value in values) else None


def _is_set(value: Any) -> bool:
    return value not in (None, 0) and _number(value) not in (None, 0)


def _number(value: Any) -> float | None:
    """A number as a float, infinite where it is too large for one; None for anything else."""
    if type(value) is float:  # quick for what is the rule
        return value
    if isinstance(value, bool):
        return float(value)
    try:
        return float(value) if isinstance(value, (int, float)) else None
    except OverflowError:
        return math.inf


def _id(value: Any) -> int | str | None:
    """An id as a whole number or a text; 1.0 is 1, as some table programs write it; None for what is none."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, (int, str)) and not isinstance(value, bool) else None


def _known(value: Any, among: Container[Any]) -> int | str | None:
    """The id that is meant among those there are: the same, or the same number in another type (1 and "1")."""
    if type(value) is int and value in among:  # quick for what is the rule
        return value
    number = _id(value)
    if number is None or number in among:
        return number
    if isinstance(number, int):
        other: int | str = str(number)
    else:
        text = number.strip().removesuffix(".0")
        other = int(text) if text.isascii() and text.isdecimal() and len(text) < 20 else number
    return other if other in among else None


def _kind(value: Any) -> str:
    names = {list: "a list", dict: "an object", str: "a text", type(None): "null", bool: "true or false"}
    return names.get(type(value), "a number")


def _shown(value: Any, most: int = 200) -> str:
    return json.dumps(value)[:most]
