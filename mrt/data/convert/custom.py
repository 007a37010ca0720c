"""A user's own data of any kind: detect the kind, convert, rename and choose classes, split off "val"."""

from __future__ import annotations

import copy
import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from mrt.data.convert import clips, coco, folder, listed, paired, units, voc, yolo
from mrt.data.convert.bridge import LISTED
from mrt.data.convert.formats import PAIRED
from mrt.data.convert.kinds import KINDS, detect, left_beside, unread
from mrt.data.convert.names import examples
from mrt.data.convert.places import ImageFinder
from mrt.data.convert.raw import RawFiles, Unpacking, own_files
from mrt.data.convert.recipe import Picture, Recipe, Results, Skipped, Split
from mrt.data.video import SUFFIXES, describe, require_av
from mrt.errors import MrtError


def recipe(
    raw: Sequence[Path],
    data_root: Path,
    *,
    format: str = "auto",
    annotations: Mapping[str, Path] | None = None,
    images: Path | None = None,
    classes: Sequence[str] | None = None,
    class_map: Mapping[str, str] | None = None,
    val_share: float | None = None,
    domain: str = "custom",
    boxes: str = "auto",
    every: str | None = None,
    on_unpack: Unpacking | None = None,
) -> Recipe:
    """A set of the user's own.

    Args:
        raw: folders, archives (zip, tar, tgz) or videos.
        format: one of :data:`mrt.data.convert.kinds.KINDS` ("images": a bare folder, no labels), or "auto",
            see :func:`mrt.data.convert.kinds.detect`; "video" where there are videos and no labels, but not
            if there are images, and none of the videos can be opened.
        annotations: COCO only: split -> file, where the files' names do not tell.
        images: COCO only: where the images are, if not below ``raw``.
        classes: those to take, in this order, by their names after ``class_map``; default: all. Objects of
            others are counted as skipped.
        class_map: the set's name for a class -> ours.
        val_share: share of the images that becomes "val" if there is only one split: those whose names have
            the smallest hashes, so a second conversion chooses the same ones, and mostly the same if images
            are added. At least one image stays on each side. Of videos, the last frames by time, see
            :func:`mrt.data.convert.clips.recipe`. None: 0.2 of videos, else 0.
        domain: a word for tables.
        boxes: COCO and YOLO only: what the numbers of a box are, where the files leave a doubt; one of
            :data:`mrt.data.convert.units.READINGS`.
        every: videos only: how densely frames are taken, such as "2s" (the default), or "30" for each 30th.

    Raises:
        MrtError: nothing fits, or more than one kind does; an option that does not fit the kind; a class that
            the set does not have; and what the converter of that kind raises.
    """
    if format not in ("auto", *KINDS):
        raise MrtError(f"--format {format}: unknown", f"It is one of auto, {', '.join(KINDS)}.")
    if boxes not in units.READINGS:
        raise MrtError(f"--boxes {boxes}: unknown", f"It is one of {', '.join(units.READINGS)}.")
    if val_share is not None and not 0 <= val_share < 1:
        raise MrtError(f"--val-share {val_share}: expected a share from 0 to less than 1")
    density = clips.parse_every(every or clips.DEFAULT_EVERY)
    wanted = "coco" if annotations and format == "auto" else format
    videos = clips.find(raw)
    others = [path for path in raw if not _is_video(path)]
    if videos and not others and wanted not in ("auto", "video"):
        given = " ".join(str(Path(path).expanduser().absolute()) for path in raw)
        raise MrtError(
            f"--raw {given}: nothing but videos, of which a set of the kind {wanted} cannot be made",
            "To take frames of them, leave --format and --annotations out; else name the images' folder.",
        )
    files = own_files(others, data_root, on_unpack) if others or not videos else None
    kind = _kind(files, videos, data_root) if wanted == "auto" else wanted
    if every is not None and kind != "video":
        raise MrtError(
            f"--every {every}: is for videos, and this set is {kind}",
            "Leave it out, or give --format video to take frames of the videos that there are.",
        )
    if kind == "video":
        for option, given in {
            "--annotations": annotations,
            "--map-class": class_map,
            "--images": images,
            "--boxes": boxes != "auto",
        }.items():
            if given:
                raise MrtError(
                    f"{option}: frames of videos have no labels, so it means nothing", "Leave it out."
                )
        return _of_videos(raw, videos, files, density, val_share, classes, domain)
    if kind != "coco" and (annotations or images):
        raise MrtError(
            f"--annotations and --images are for COCO sets, this one is {kind}",
            "Leave them out, or give --format coco.",
        )
    if kind not in ("coco", "yolo") and boxes not in ("auto", "pixels"):
        raise MrtError(f"--boxes {boxes}: is for COCO and YOLO sets, this one is {kind}", "Leave it out.")
    if kind == "images" and class_map:
        raise MrtError("--map-class: images without labels have no classes to rename", "Leave it out.")
    found = _read(kind, files, data_root, annotations, images, boxes, domain, on_unpack)
    finish = partial(
        _finished,
        beside=[
            *left_beside(_without(files, videos), kind, found.read),
            *_videos_beside(videos, unasked=kind == "images" and format == "auto"),
        ],
        classes=classes,
        class_map=class_map or {},
        val_share=val_share,
    )
    done = finish(found)
    if found.review is None:
        return done
    return replace(done, review=partial(_reviewed, review=found.review, finish=finish))


def _is_video(path: Path | str) -> bool:
    path = Path(path).expanduser()
    return path.suffix.lower() in SUFFIXES and path.is_file()


def _kind(files: RawFiles | None, videos: Mapping[str, Path], data_root: Path) -> str:
    """The kind of a set by its files: videos, with or without photos, where there are no labels."""
    if files is None:
        return "video"
    if videos and not ImageFinder(files.files).files and not unread(files.files, ()):
        return "video"
    kind = detect(files, data_root)
    return "video" if kind == "images" and any(map(_opens, videos.values())) else kind


def _opens(path: Path) -> bool:
    """Whether a file is a video that can be opened. TypeScript's files end in .ts, too."""
    try:
        describe(path)
    except MrtError:
        return False
    return True


def _without(files: RawFiles, videos: Mapping[str, Path]) -> RawFiles:
    """The raw files but for these videos."""
    rest, left_out = copy.copy(files), set(videos.values())
    rest.files = {inside: place for inside, place in files.files.items() if place not in left_out}
    return rest


def _videos_beside(videos: Mapping[str, Path], unasked: bool) -> list[str]:
    """What to tell of videos whose frames are not taken.

    Args:
        unasked: nobody said that photos alone are meant: none of the videos can be opened.
    """
    if not videos:
        return []
    if unasked:
        try:
            require_av()
        except MrtError as error:
            what = f"not read: {len(videos)} videos: {examples(videos)}"
            return [
                f"warning: {what}: {error.message} ({error.hint}; then --format video takes their frames)"
            ]
        what = f"{len(videos)} files that are called like videos, but cannot be read as such"
        return [f"not read: {what}: {examples(videos)}"]
    return [f"not read: {len(videos)} videos: {examples(videos)} (--format video takes their frames)"]


def _of_videos(
    raw: Sequence[Path],
    videos: Mapping[str, Path],
    files: RawFiles | None,
    every: clips.Every,
    val_share: float | None,
    classes: Sequence[str] | None,
    domain: str,
) -> Recipe:
    given = [Path(path).expanduser().absolute() for path in raw]
    if not videos:
        raise MrtError(
            f"--raw {' '.join(map(str, given))}: holds no videos ({', '.join(SUFFIXES)})",
            "Name the videos or the folder that they are in; archives are not searched for them.",
        )
    return clips.recipe(
        videos,
        ImageFinder(files.files).files if files is not None else {},
        ", ".join(path.name for path in given),
        every=every,
        val_share=val_share,
        classes=tuple(classes or ()),
        domain=domain,
        notes=files.notes if files is not None else (),
    )


def _finished(
    found: Recipe,
    *,
    beside: Sequence[str],
    classes: Sequence[str] | None,
    class_map: Mapping[str, str],
    val_share: float | None,
) -> Recipe:
    """The recipe with the classes and validation part asked for, and with notes on unused files."""
    found = replace(found, notes=[*found.notes, *beside])
    if found.labelled:
        found = choose_classes(found, classes, class_map)
    else:
        found = replace(found, classes=tuple(classes or ()))
    return split_off(found, val_share) if val_share else found


def _reviewed(
    results: Results, *, review: Callable[[Results], Recipe | None], finish: Callable[[Recipe], Recipe]
) -> Recipe | None:
    again = review(results)
    return None if again is None else finish(again)


def _read(
    kind: str,
    files: RawFiles,
    data_root: Path,
    annotations: Mapping[str, Path] | None,
    images: Path | None,
    boxes: str,
    domain: str,
    on_unpack: Unpacking | None,
) -> Recipe:
    if kind == "coco":
        more = {"annotations": annotations, "images": images, "boxes": boxes}
        return coco.recipe(files, data_root, domain=domain, on_unpack=on_unpack, **more)
    if kind == "yolo":
        return yolo.recipe(files, data_root, domain=domain, boxes=boxes)
    if kind == "images":
        return folder.recipe(files, data_root, domain=domain)
    if kind in LISTED:
        found = listed.recipe(kind, files, data_root, domain=domain)
    else:
        found = paired.recipe(voc.FORMAT if kind == "voc" else PAIRED[kind], files, data_root, domain=domain)
    return found if boxes == "pixels" else replace(found, review=partial(units.require_pixels, made=found))


def choose_classes(found: Recipe, classes: Sequence[str] | None, class_map: Mapping[str, str]) -> Recipe:
    """The recipe with classes renamed, then only those asked for."""
    theirs = ", ".join(found.classes)
    for name in class_map:
        if name not in found.classes:
            raise MrtError(
                f"--map-class {name}={class_map[name]}: the set has no class {name!r}", f"It has: {theirs}."
            )
    ours = tuple(dict.fromkeys(class_map.get(name, name) for name in found.classes))
    for name in classes or ():
        if name not in ours:
            raise MrtError(f"--classes {name}: the set has no such class", f"It has: {', '.join(ours)}.")
    wanted = ours if classes is None else tuple(dict.fromkeys(classes))
    if wanted == found.classes and not class_map:
        return found
    names = {name: class_map.get(name, name) for name in found.classes if class_map.get(name, name) in wanted}
    splits = {
        key: replace(split, convert=partial(_renamed, convert=split.convert, names=names))
        for key, split in found.splits.items()
    }
    details = {**found.details, **({"class_map": dict(class_map)} if class_map else {})}
    return replace(found, classes=wanted, splits=splits, details=details)


def _renamed(
    job: Any, *, convert: Callable[[Any], Picture | Skipped], names: Mapping[str, str]
) -> Picture | Skipped:
    picture = convert(job)
    return picture if isinstance(picture, Skipped) else _with_names(picture, names)


def _with_names(picture: Picture, names: Mapping[str, str]) -> Picture:
    if picture.turned is not None:
        other = _with_names(picture.turned.picture, names)
        picture = picture._replace(turned=picture.turned._replace(picture=other))
    things = [thing._replace(label=names[thing.label]) for thing in picture.things if thing.label in names]
    others = len(picture.things) - len(things)
    skipped = Counter(picture.skipped) + Counter({"class not asked for": others})
    return picture._replace(things=things, skipped=skipped)


def split_off(found: Recipe, val_share: float) -> Recipe:
    """The only split of a recipe as "train" and "val"."""
    if len(found.splits) > 1:
        there = ", ".join(found.splits)
        raise MrtError(
            f"--val-share {val_share}: the set has the splits {there} already", "Leave --val-share out."
        )
    (split,) = found.splits.values()
    images = [job for job in split.jobs if not isinstance(job, Skipped)]
    if len(images) < 2:
        raise MrtError(
            f"--val-share {val_share}: {len(images)} image cannot be split in two", "Leave --val-share out."
        )
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
