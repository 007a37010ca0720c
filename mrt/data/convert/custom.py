"""A user's own data, of whatever kind: finds the kind out, converts, renames and chooses classes, splits a validation part off."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from mrt.data.archives import open_file
from mrt.data.convert import coco, folder, voc, yolo
from mrt.data.convert.places import WANTED, ImageFinder
from mrt.data.convert.raw import RawFiles, Unpacking
from mrt.data.convert.recipe import Picture, Recipe, Skipped, Split
from mrt.errors import MrtError

# What each kind needs, for messages.
KINDS = {
    "coco": "JSON files with 'images', 'annotations' and 'categories' (instances_train2017.json, train.json, ...), and their images",
    "voc": "an XML file for each image (Annotations/*.xml, JPEGImages/*.jpg, perhaps ImageSets/Main/{train,val}.txt)",
    "yolo": "a data.yaml or classes.txt with the class names, images/*/*.jpg, and labels/*/*.txt with lines 'class cx cy w h'",
    "images": "any folder of images; no labels",
}


def recipe(
    raw: Sequence[Path],
    data_root: Path,
    *,
    format: str = "auto",
    annotations: Mapping[str, Path] | None = None,
    images: Path | None = None,
    classes: Sequence[str] | None = None,
    class_map: Mapping[str, str] | None = None,
    val_share: float = 0.0,
    domain: str = "custom",
    on_unpack: Unpacking | None = None,
) -> Recipe:
    """A set of the user's own.

    Args:
        raw: folders or archives (zip, tar, tgz).
        format: "coco", "voc", "yolo", "images" (a bare folder, no labels), or "auto": see :func:`detect`.
        annotations: COCO only: split -> file, where the files' names do not tell.
        images: COCO only: where the images are, if not below ``raw``.
        classes: those to take, in this order, by their names after ``class_map``; default: all. Objects of others are counted as skipped.
        class_map: the set's name for a class -> ours.
        val_share: share of the images that becomes "val" where there is one split only: those whose names have the smallest hash, so a
            second conversion chooses the same ones, and few others if images are added. At least one image stays on each side.
        domain: a word for tables.

    Raises:
        MrtError: nothing fits, or more than one kind does; an option that does not fit the kind; a class that the set does not have;
            and what the converter of that kind raises.
    """
    if format not in ("auto", *KINDS):
        raise MrtError(f"--format {format}: unknown", f"It is one of auto, {', '.join(KINDS)}.")
    if not 0 <= val_share < 1:
        raise MrtError(f"--val-share {val_share}: expected a share from 0 to less than 1")
    kind = format
    if kind == "auto":
        kind = "coco" if annotations else detect(raw, data_root, on_unpack)
    if kind != "coco" and (annotations or images):
        raise MrtError(f"--annotations and --images are for COCO sets, this one is {kind}", "Leave them out, or give --format coco.")
    if kind == "coco":
        found = coco.recipe(raw, data_root, annotations=annotations, images=images, domain=domain, on_unpack=on_unpack)
    elif kind == "images":
        found = folder.recipe(raw, data_root, domain=domain, on_unpack=on_unpack)
    else:
        found = {"voc": voc, "yolo": yolo}[kind].recipe(raw, data_root, domain=domain, on_unpack=on_unpack)
    if not found.labelled and class_map:
        raise MrtError("--map-class: images without labels have no classes to rename", "Leave it out.")
    found = choose_classes(found, classes, class_map or {}) if found.labelled else replace(found, classes=tuple(classes or ()))
    return split_off(found, val_share) if val_share else found


def detect(raw: Sequence[Path], data_root: Path, on_unpack: Unpacking | None = None) -> str:
    """The kind of a set by its files: "coco", "voc", "yolo" or "images".

    Raises:
        MrtError: none fits (says what each needs), or more than one.
    """
    files = RawFiles(raw, WANTED, data_root, on_unpack)
    images = ImageFinder(files.files).files
    texts = any(yolo.label_place(inside, files.files) for inside in images)
    fits = {
        "coco": bool(coco.candidates(files)),
        "voc": any(_is_voc(place) for _, place in files.matching(r"(?i)\.xml$")),
        "yolo": bool(images) and (texts or yolo.has_names(files)),
    }
    kinds = [kind for kind, fit in fits.items() if fit] or (["images"] if images else [])
    if len(kinds) == 1:
        return kinds[0]
    given = " ".join(str(path) for path in files.paths)
    if kinds:
        raise MrtError(f"--raw {given}: may be of more than one kind: {', '.join(kinds)}", f"Say which with --format {' or '.join(kinds)}.")
    needs = "\n".join(f"  --format {kind}: {need}" for kind, need in KINDS.items())
    raise MrtError(f"--raw {given}: no kind of data set that mrt knows ({len(files.files)} files looked at)", f"Each needs:\n{needs}")


def choose_classes(found: Recipe, classes: Sequence[str] | None, class_map: Mapping[str, str]) -> Recipe:
    """The recipe with classes renamed, then only those asked for."""
    theirs = ", ".join(found.classes)
    for name in class_map:
        if name not in found.classes:
            raise MrtError(f"--map-class {name}={class_map[name]}: the set has no class {name!r}", f"It has: {theirs}.")
    ours = tuple(dict.fromkeys(class_map.get(name, name) for name in found.classes))
    for name in classes or ():
        if name not in ours:
            raise MrtError(f"--classes {name}: the set has no such class", f"It has: {', '.join(ours)}.")
    wanted = ours if classes is None else tuple(dict.fromkeys(classes))
    if wanted == found.classes and not class_map:
        return found
    names = {name: class_map.get(name, name) for name in found.classes if class_map.get(name, name) in wanted}
    splits = {key: replace(split, convert=partial(_renamed, convert=split.convert, names=names)) for key, split in found.splits.items()}
    details = {**found.details, **({"class_map": dict(class_map)} if class_map else {})}
    return replace(found, classes=wanted, splits=splits, details=details)


def _renamed(job: Any, *, convert: Callable[[Any], Picture | Skipped], names: Mapping[str, str]) -> Picture | Skipped:
    picture = convert(job)
    if isinstance(picture, Skipped):
        return picture
    things = [thing._replace(label=names[thing.label]) for thing in picture.things if thing.label in names]
    others = len(picture.things) - len(things)
    return picture._replace(things=things, skipped=Counter(picture.skipped) + Counter({"class not asked for": others}))


def split_off(found: Recipe, val_share: float) -> Recipe:
    """The only split of a recipe as "train" and "val"."""
    if len(found.splits) > 1:
        there = ", ".join(found.splits)
        raise MrtError(f"--val-share {val_share}: the set has the splits {there} already", "Leave --val-share out.")
    (split,) = found.splits.values()
    images = [job for job in split.jobs if not isinstance(job, Skipped)]
    if len(images) < 2:
        raise MrtError(f"--val-share {val_share}: {len(images)} image cannot be split in two", "Leave --val-share out.")
    count = min(max(round(val_share * len(images)), 1), len(images) - 1)
    chosen = sorted((job.file for job in images), key=_hash)[:count]
    names = set(chosen)
    parts = {
        "train": [job for job in split.jobs if isinstance(job, Skipped) or job.file not in names],
        "val": [job for job in images if job.file in names],
    }
    splits = {
        "train": replace(split, jobs=parts["train"]),
        "val": Split(split.images, parts["val"], split.convert),
    }
    return replace(found, splits=splits, details={**found.details, "val_share": val_share})


def _hash(name: str) -> str:
    return hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()


def _is_voc(place: Path) -> bool:
    try:
        with open_file(place) as file:
            return b"<annotation" in file.read(1 << 16)
    except OSError:
        return False
