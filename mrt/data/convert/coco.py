"""A user's own COCO set: ``*.json`` with images, annotations and categories, and the images."""

from __future__ import annotations

import re
import shlex
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from mrt.data.archives import open_file
from mrt.data.convert import units
from mrt.data.convert.coco_file import HINT, Entry, categories_of, gather, images_of, read_file
from mrt.data.convert.names import examples, split_in, split_of_folder
from mrt.data.convert.places import Box, ImageFinder, measured, pictured
from mrt.data.convert.raw import RawFiles, Unpacking, common_root, own_files, relative, require
from mrt.data.convert.recipe import Picture, Recipe, Results, Skipped, Split
from mrt.data.text import encoding_of
from mrt.errors import MrtError

# words in the names of files that claim to be annotations
_SPEAKING = re.compile(r"(?i)instances|annotations|labels")
_LISTS = ("images", "annotations", "categories")
_LIST = re.compile(rb'"(images|annotations|categories)"\s*:\s*\[')
_OTHER_TASKS = ("captions", "panoptic", "image_info")
_BLOCK = 1 << 22
_ORDER = {"train": 0, "trainval": 1, "val": 2, "test": 3}


class Job(NamedTuple):
    """An image, with what the annotations say of it.

    ``size`` is (width, height), None where they do not say it; ``source`` is their file; ``reading`` says
    what their numbers mean (:mod:`mrt.data.convert.units`).
    """

    file: str
    place: str
    size: tuple[int, int] | None
    objects: tuple[Box, ...]
    skipped: dict[str, int]
    notes: dict[str, str]
    source: str
    reading: str


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

    A file's split is the word train, val, valid, validation, test or trainval in its name
    (``instances_val2017.json``), else in the name of the nearest folder that has one
    (``valid/_annotations.coco.json``). If there is only one file and it states no split, its images are
    divided as their entries ("split": "test") or their folders say, else all are "train". Several files of a
    split are joined if they are about different images. The images are found by the end of their path:
    :class:`mrt.data.convert.places.ImageFinder`.

    COCO's boxes are x, y, width, height in pixels from 0; they stay as they are, cut to the image. ``area``
    stays if it is a positive number, else it is the box's. ``iscrowd`` and ``ignore`` make an object ignored.
    An annotation without a box, or with a box of no size, gets the box around its outline: polygons, points
    or a run-length mask. New ids are given, so the values of the old ones only matter for what they connect;
    1, 1.0 and "1" are one id unless that contradicts something. The classes are the categories of all files
    in the order of their ids.

    docs/data.md has a table of what is wrong in real files and how it is handled.

    Args:
        annotations: split -> COCO file, where names do not tell; paths on disk or inside ``raw``.
        images: where to look for images instead of ``raw``: a folder or an archive.
        boxes: what the numbers of a box are, one of :data:`mrt.data.convert.units.READINGS`; "auto": decided
            from each file as a whole.

    Raises:
        MrtError: no COCO file or none of its images below ``raw``; two files about the same images for a
            split; a file that is cut short, in no Unicode encoding, not COCO, or with an image or category id
            for two different things; a file name that leads out of the folder or may mean several files;
            boxes whose unit is in doubt.
    """
    files = own_files(raw, data_root, on_unpack)
    pictures = files if images is None else own_files([images], data_root, on_unpack)
    finder = ImageFinder(pictures.files)
    given: dict[str | None, list[tuple[str, Path]]] = {
        split: [_given(Path(path), files)] for split, path in (annotations or {}).items()
    }
    chosen = given or _by_split(files)
    require(chosen, "COCO annotations (.json)", files, HINT + " Name it with --annotations SPLIT=FILE.")
    labels: dict[Any, str] = {}
    parts: dict[str, list[_Part]] = {}
    for split, named in chosen.items():
        for near, place in named:
            coco = read_file(place)
            categories = categories_of(coco, place)
            labels |= dict.fromkeys(categories.values())
            part = _part(coco, categories, place, finder, split, near, pictures.nameless)
            usual = split_of_folder(near) if split is None else None
            for name, own in (_divided(part, usual) if split is None else {split: part}).items():
                parts.setdefault(name, []).append(own)
    notes = [*files.notes, *([] if pictures is files else pictures.notes), *finder.notes]
    for found in parts.values():
        notes += [note for part in found for note in part.notes]
    listed = {inside for found in parts.values() for part in found for inside in part.insides.values()}
    alone = sorted(finder.files.keys() - listed)
    if alone:
        notes.append(f"{len(alone)} images are in no annotation file and left out: {examples(alone)}")
    reading = "pixels" if boxes == "auto" else boxes
    splits = {
        split: _split(parts[split], finder, reading, files)
        for split in sorted(parts, key=lambda name: _ORDER.get(name, 9))
    }
    twice = {split: again for split, found in parts.items() if (again := sum(part.again for part in found))}
    source = files.source if images is None else f"{files.source}, {Path(images).name}"
    told = {split: ", ".join(part.place.name for part in found) for split, found in parts.items()}
    details: dict[str, Any] = {"format": "coco", "annotations": told}
    if twice:
        details["annotation_ids_given_twice"] = twice
    read = [inside for named in chosen.values() for inside, _ in named]
    done = Recipe(domain, tuple(labels), splits, source, details, notes=notes, read=read)
    return replace(done, review=partial(_review, made=done)) if boxes == "auto" else done


def _review(results: Results, made: Recipe) -> Recipe | None:
    """The recipe with the numbers of some files read another way, where :func:`units.of_coco` is sure.

    None if nothing changes and there is nothing to say.
    """
    sizes = {
        (split, found.file): (found.width, found.height)
        for split, part in results.items()
        for found in part
        if isinstance(found, Picture)
    }
    anywhere = {file: size for (_, file), size in sizes.items()}  # a validation part may have been split off
    seen: dict[str, list[units.Seen]] = defaultdict(list)
    for name, split in made.splits.items():
        for job in split.jobs:
            if not isinstance(job, Job):
                continue
            size = sizes.get((name, job.file), anywhere.get(job.file))
            if size is not None:
                seen[job.source] += [units.Seen(box, size) for box in job.objects]
    readings, said = {}, []
    for source, boxes in seen.items():
        readings[source], notes = units.of_coco(boxes, Path(source).name)
        said += notes
    if not said:
        return None
    splits = {}
    for name, split in made.splits.items():
        jobs = [
            job._replace(reading=readings.get(job.source, "pixels")) if isinstance(job, Job) else job
            for job in split.jobs
        ]
        splits[name] = replace(split, jobs=jobs)
    return replace(made, splits=splits, notes=[*made.notes, *said], review=None)


def candidates(files: RawFiles) -> tuple[list[str], list[str]]:
    """Paths of JSON files that look like COCO, as (certain, possible).

    Certain: all three lists of COCO. Possible: only one or two of them, or a telling word in the name.
    """
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


def convert(job: Job | Skipped) -> Picture | Skipped:
    """Cut the boxes to the image, which must be whole and have the size that they were made for."""
    if isinstance(job, Skipped):
        return job
    size = measured(Path(job.place), job.file, job.size)
    if isinstance(size, Skipped):
        return size
    boxes = job.objects
    if job.reading != "pixels":
        boxes = tuple(units.as_pixels(box, job.reading, size.width, size.height) for box in boxes)
    return pictured(job.file, size, boxes, job.skipped, job.notes)


def _lists_in(place: Path) -> set[str]:
    """Which of COCO's three lists a JSON file has, judged by its text; large files are read in blocks."""
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
    if inside in files.files and not path.is_file():
        return inside, files.files[inside]
    absolute = path.absolute()
    return next((inside for inside, place in files.files.items() if place == absolute), ""), path


def _by_split(files: RawFiles) -> dict[str | None, list[tuple[str, Path]]]:
    """Split -> (path inside, where to read it) of its files; split None: files that state no split."""
    whole, partly = candidates(files)
    by_split: dict[str | None, list[str]] = defaultdict(list)
    found = whole or partly
    for inside in found:
        named = split_in(PurePosixPath(inside).stem)
        # of a single file a word above it may be the whole set's ("training data")
        above = split_of_folder(inside) if len(found) > 1 else None
        by_split[named or above].append(inside)
    for split, insides in by_split.items():
        # COCO's own archives have key points and more beside the instances
        instances = [inside for inside in insides if PurePosixPath(inside).name.startswith("instances")]
        by_split[split] = instances or insides
    if "trainval" in by_split and "train" not in by_split:
        by_split["train"] = by_split.pop("trainval")
    if None in by_split and len(by_split) > 1:
        every = [inside for group in by_split.values() for inside in group]
        told = {split: group for split, group in by_split.items() if split}
        words = [
            f"{split}={told[split][0] if len(told.get(split, ())) == 1 else 'FILE'}"
            for split in dict.fromkeys(["train", *told])
        ]
        raise MrtError(
            f"--raw {files.source}: several annotation files for no split in particular: "
            f"{examples(every, 6)}",
            f"Say which is which: --annotations {shlex.join(words)} (paths within the set, or any others)",
        )
    return {
        split: [(inside, files.files[inside]) for inside in insides] for split, insides in by_split.items()
    }


@dataclass
class _Part:
    """What one COCO file adds to a split.

    Entries by name, where their images are (paths inside the raw files), and what is left out.
    """

    entries: dict[str, Entry]
    insides: dict[str, str]
    place: Path
    skipped: Counter[str]
    examples: dict[str, list[str]]
    again: int
    notes: list[str]


def _part(
    coco: dict[str, Any],
    categories: Mapping[Any, str],
    place: Path,
    finder: ImageFinder,
    split: str | None,
    near: str,
    nameless: Sequence[str],
) -> _Part:
    skipped: Counter[str] = Counter()
    by_id, by_name = images_of(coco["images"], place, skipped)
    insides = finder.find(list(by_name), place, split=split, near=near)
    for name in (name for name, entry in by_name.items() if len(entry.ids) > 1):
        several = finder.ending_with(name)
        if len(several) > 1:
            raise MrtError(
                f"{place}: lists {name!r} {len(by_name[name].ids)} times, with the ids "
                f"{examples(map(repr, by_name[name].ids))}, and there are {examples(several, 4)}",
                "Nobody can tell which entry is which file: write the folders into file_name.",
            )
    if not insides:
        first = next(iter(by_name))
        there = finder.near_miss(first)
        same = [path for path in nameless if path.rpartition("/")[2] == first.rpartition("/")[2]]
        if same:
            raise MrtError(
                f"{place}: none of its {len(by_name)} images is there by its name; {same[0]} has no suffix",
                "Give the images' names the suffix of their kind, such as .jpg, in the file and on disk.",
            )
        raise MrtError(
            f"{place}: none of its {len(by_name)} images is there, the first is {first!r}"
            + (f" (there is {there})" if there else finder.of_unknown_alphabet()),
            "Give the images' folder or archive too: in --raw, or with --images FOLDER.",
        )
    gathered = gather(coco["annotations"], by_id, categories, skipped)
    _join_entries(by_name, insides, place, skipped)
    return _Part(by_name, insides, place, skipped, gathered.examples, gathered.again, gathered.notes(place))


def _join_entries(
    by_name: dict[str, Entry], insides: dict[str, str], place: Path, skipped: Counter[str]
) -> None:
    """Join entries whose names are written differently but mean one image.

    Raises:
        MrtError: the entries state different sizes of the image.
    """
    first: dict[str, str] = {}
    for name, inside in list(insides.items()):
        kept = first.setdefault(inside, name)
        if kept == name:
            continue
        entry, other = by_name[kept], by_name.pop(name)
        if None not in (entry.size, other.size) and entry.size != other.size:
            raise MrtError(
                f"{place}: {kept!r} and {name!r} are one image, of the sizes {entry.size} and {other.size}",
                "Leave one of them out.",
            )
        entry.size = entry.size or other.size
        entry.objects += other.objects
        entry.skipped.update(other.skipped)
        entry.notes = {**other.notes, **entry.notes}
        skipped["image listed twice"] += 1
        del insides[name]


def _divided(part: _Part, usual: str | None = None) -> dict[str, _Part]:
    """Divide a file whose name states no split.

    By the splits that its entries state, else by its images' folders if those name several splits.

    Args:
        usual: the split that the file's own folder names; of all images that are not divided.
    """
    stated = {name: entry.split for name, entry in part.entries.items()}
    if not any(stated.values()):
        stated = {name: split_of_folder(part.insides.get(name, name)) for name in part.entries}
    words = {name: split if split in ("val", "test") else "train" for name, split in stated.items()}
    if len(set(words.values())) < 2:
        return {usual if usual in ("val", "test") else "train": part}
    counts = Counter(words.values())
    shares = ", ".join(f"{count} {split}" for split, count in counts.items())
    said = f"{part.place.name}: states no split; divided as its images' entries or folders say: {shares}"
    parts = {}
    for number, split in enumerate(counts):
        names = {name for name, word in words.items() if word == split}
        entries = {name: entry for name, entry in part.entries.items() if name in names}
        insides = {name: inside for name, inside in part.insides.items() if name in names}
        first = {
            "skipped": part.skipped,
            "examples": part.examples,
            "again": part.again,
            "notes": [*part.notes, said],
        }
        rest: dict[str, Any] = {"skipped": Counter(), "examples": {}, "again": 0, "notes": []}
        parts[split] = _Part(entries, insides, part.place, **(rest if number else first))
    return parts


def _split(parts: Sequence[_Part], finder: ImageFinder, reading: str, files: RawFiles) -> Split:
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
    places = [finder.files[inside] for part in parts for inside in part.insides.values()]
    root = common_root(places) if places else Path()
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
            job = Job(
                file=relative(where, root),
                place=str(where),
                size=entry.size,
                objects=tuple(entry.objects),
                skipped=dict(entry.skipped),
                notes=entry.notes,
                source=str(part.place),
                reading=reading,
            )
            jobs.append(job)
    return Split(root, jobs, convert, dict(+skipped), notes=dict(shown))


def _missing(name: str, finder: ImageFinder) -> Skipped:
    """Why an image that is listed is not taken."""
    there = finder.near_miss(name)
    if there is not None and there in finder.others and PurePosixPath(there).name == PurePosixPath(name).name:
        return Skipped("kind of image not read", there)
    return Skipped("image missing", f"{name} (there is {there})" if there else name)
