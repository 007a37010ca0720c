"""A user's own YOLO set: ``data.yaml``, images, and a text file of ``class cx cy w h`` lines for each."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import yaml

from mrt.data.convert.places import (
    IMAGES,
    WANTED,
    ImageFinder,
    class_name,
    entry_name,
    measured,
    of_another_split,
    split_in,
    split_of_folder,
)
from mrt.data.convert.raw import RawFiles, Unpacking, common_root, read_bytes, relative, require
from mrt.data.convert.recipe import Picture, Recipe, Skipped, Split, Thing, clip_box
from mrt.errors import MrtError

SPLITS = {"train": "train", "val": "val", "valid": "val", "test": "test"}  # keys of data.yaml -> ours
TOLERANCE = 0.01  # by which a share may lie outside 0 to 1: rounding, and labels drawn to the very edge
HINT = "A YOLO set is a data.yaml with 'names', 'train' and 'val', images/*/*.jpg, and for each image labels/*/*.txt."
_MAX_YAML = 1 << 20


class Job(NamedTuple):
    """An image and its labels (None: it has no text file). ``names``: class number -> name; ``pose``: key points follow each box."""

    file: str
    place: str
    labels: str | None
    names: dict[int, str]
    pose: bool


class _Settings(NamedTuple):
    """What ``data.yaml`` says. ``splits``: ours -> its paths as written."""

    names: dict[int, str]
    splits: dict[str, list[str]]
    base: str
    pose: bool


def recipe(raw: Sequence[Path], data_root: Path, *, domain: str = "custom", on_unpack: Unpacking | None = None) -> Recipe:
    """A YOLO set in folders or archives.

    ``data.yaml`` (any ``*.yaml`` with ``names``) gives the class names and, by ``train``, ``val`` and ``test``, folders of images or text
    files that list them; they are looked for below ``raw`` only, by the end of their path, so a ``path`` of another machine or a leading
    ``../`` does no harm. Without it, names come from ``classes.txt`` or ``*.names``, one a line, and an image's split from its folder's
    name. The labels of ``.../images/train/a.jpg`` are ``.../labels/train/a.txt``, else the ``a.txt`` beside it.

    Lines are ``class cx cy w h`` in shares of the upright picture's (EXIF) width and height, or ``class x1 y1 x2 y2 x3 y3 ...``, a polygon,
    whose box is taken. An empty or missing text file is an image without objects.

    Raises:
        MrtError: no images or class names; ``data.yaml`` cannot be read, names a folder that is not there, or its ``nc`` is not the number
            of names; two such files; while converting, a label file with confidences (predictions) or that is no text.
    """
    files = RawFiles(raw, WANTED, data_root, on_unpack)
    finder = ImageFinder(files.files)
    require(finder.files, "images", files, HINT)
    settings_file = _settings_file(files)
    if settings_file is not None:
        settings = _read_settings(files.files[settings_file], settings_file)
    else:
        settings = _Settings(_names_file(files), {}, "", False)
    by_split = _listed(settings, files, finder, settings_file) if settings.splits else _by_folder(finder)
    splits = {split: _split(insides, settings, files, finder) for split, insides in by_split.items()}
    labels = tuple(dict.fromkeys(settings.names[number] for number in sorted(settings.names)))
    return Recipe(domain, labels, splits, files.source, {"format": "yolo"})


def convert(job: Job) -> Picture | Skipped:
    """Read the label lines and turn shares into pixels."""
    size = measured(Path(job.place), job.file)
    if isinstance(size, Skipped):
        return size
    things: list[Thing] = []
    skipped: Counter[str] = Counter()
    lines = _lines(Path(job.labels)) if job.labels else []
    seen: set[tuple[str, ...]] = set()
    for number, words in enumerate((tuple(line.split()) for line in lines), start=1):
        if not words:
            continue
        if words in seen:
            skipped["annotation listed twice"] += 1
            continue
        seen.add(words)
        found = _thing(words, job, size, f"{job.labels}, line {number}")
        if isinstance(found, str):
            skipped[found] += 1
        else:
            things.append(found)
    return Picture(job.file, *size, things, dict(skipped))


def label_place(inside: str, files: Mapping[str, Path]) -> str | None:
    """Path inside of an image's label file, if there is one."""
    return next((place for place in _label_places(inside) if place in files), None)


def has_names(files: RawFiles) -> bool:
    """Whether there is a YOLO settings or class name file."""
    return _settings_file(files) is not None or bool(_names_files(files))


def _label_places(inside: str) -> list[str]:
    path = PurePosixPath(inside)
    places = [path.with_suffix(".txt").as_posix()]
    for number in range(len(path.parts) - 2, -1, -1):
        if path.parts[number].lower() in ("images", "jpegimages"):
            swapped = PurePosixPath(*path.parts[:number], "labels", *path.parts[number + 1 :])
            return [swapped.with_suffix(".txt").as_posix(), *places]
    return places


def _thing(words: Sequence[str], job: Job, size: tuple[int, int], where: str) -> Thing | str:
    """The object of a line, or why there is none."""
    try:
        number, *values = (float(word) for word in words)
    except ValueError:
        return "line that is not class cx cy w h"
    if job.pose:
        values = values[:4]
    if len(values) == 5:
        raise MrtError(
            f"{where}: has 6 columns, class cx cy w h and a confidence: these are predictions, not labels",
            "Give the labels that people have made, or cut the last column off if these shall be the truth.",
        )
    if len(values) != 4 and (len(values) < 6 or len(values) % 2):
        return "line that is not class cx cy w h"
    if not all(map(math.isfinite, values)):
        return "box with a number that is not finite"
    if number not in job.names:
        return "annotation of an unknown category"
    if min(values) < -TOLERANCE or max(values) > 1 + TOLERANCE:
        return "box with shares outside 0 to 1"
    if len(values) == 4:
        cx, cy, w, h = values
        corners = cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2
    else:
        xs, ys = values[0::2], values[1::2]
        corners = min(xs), min(ys), max(xs), max(ys)
    box, reason = clip_box([share * side for share, side in zip(corners, (*size, *size), strict=True)], *size)
    return reason if box is None else Thing(job.names[int(number)], box, box[2] * box[3])


def _lines(place: Path) -> list[str]:
    content = read_bytes(place)
    try:
        return content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise MrtError(f"{place}: not UTF-8 text (byte {error.start})", "Write it anew as UTF-8, or leave it out.") from None


def _settings_file(files: RawFiles) -> str | None:
    """Path inside of the set's ``data.yaml``."""
    found = []
    for match, place in files.matching(r"(?i)\.ya?ml$"):
        content = read_bytes(place)[:_MAX_YAML]
        if re.search(rb"(?m)^[\"']?names[\"']?\s*:", content):
            found.append(match.string)
    named = [inside for inside in found if PurePosixPath(inside).stem in ("data", "dataset")]
    if len(found) > 1 and len(named) != 1:
        raise MrtError(f"--raw {files.source}: several YOLO files with class names: {', '.join(found[:6])}", "Give the folder of one set.")
    return (named or found or [None])[0]


def _read_settings(place: Path, inside: str) -> _Settings:
    content = read_bytes(place)
    if len(content) > _MAX_YAML:
        raise MrtError(f"{place}: {len(content)} bytes are too much for a YOLO settings file", HINT)
    try:
        # every scalar stays a text: YAML would make a class called "no" a truth value
        found = yaml.load(content, Loader=yaml.BaseLoader)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: {getattr(error, 'problem', '')}" if mark else str(error).splitlines()[0]
        raise MrtError(f"{place}: not valid YAML ({where})", HINT) from None
    if not isinstance(found, dict):
        raise MrtError(f"{place}: holds {type(found).__name__}, expected keys such as names and train", HINT)
    names = _names(found.get("names"), place)
    count = found.get("nc")
    if isinstance(count, str) and count.strip().isdecimal() and int(count) != len(names):
        raise MrtError(
            f"{place}: nc is {count}, but there are {len(names)} names", "Mend the one that is wrong: class numbers depend on it."
        )
    splits: dict[str, list[str]] = {}
    for key, split in SPLITS.items():
        value = found.get(key)
        paths = [value] if isinstance(value, str) else value if isinstance(value, list) else []
        if not all(isinstance(path, str) for path in paths):
            raise MrtError(f"{place}: {key} is no path or list of paths", HINT)
        splits.setdefault(split, []).extend(path for path in paths if path.strip() not in ("", "~", "null"))
    base = found.get("path")
    folder = PurePosixPath(inside).parent.as_posix()
    parts = [folder, base if isinstance(base, str) and not PurePosixPath(base).is_absolute() else ""]
    return _Settings(names, {split: paths for split, paths in splits.items() if paths}, "/".join(parts), "kpt_shape" in found)


def _names(found: Any, place: Path) -> dict[int, str]:
    """Class number -> name from a list, or from an object with the numbers as keys."""
    pairs = enumerate(found) if isinstance(found, list) else found.items() if isinstance(found, dict) else ()
    names: dict[int, str] = {}
    for key, name in pairs:
        name = class_name(name)
        if name is None or not str(key).strip().isdecimal():
            raise MrtError(f"{place}: the entry {str(key)[:80]!r} of names is not a number and a name", HINT)
        names[int(key)] = name
    if not names:
        raise MrtError(f"{place}: names is empty, or no list of class names", HINT)
    return names


def _names_files(files: RawFiles) -> list[str]:
    return [match.string for match, _ in files.matching(r"(?i)(^|/)(classes\.txt|[^/]+\.names)$")]


def _names_file(files: RawFiles) -> dict[int, str]:
    found = _names_files(files)
    require(found, "class names (data.yaml, classes.txt or *.names)", files, HINT + " Or write a classes.txt, one name a line.")
    lists = {inside: [line.strip() for line in _lines(files.files[inside])] for inside in found}
    if any(names != lists[found[0]] for names in lists.values()):
        raise MrtError(f"--raw {files.source}: different class names in {', '.join(found[:6])}", "Give the folder of one set.")
    return {number: name for number, name in enumerate(lists[found[0]]) if name}


def _by_folder(finder: ImageFinder) -> dict[str, list[str]]:
    """The images of each split by their folders' names; all others are for training."""
    splits: dict[str, list[str]] = {}
    for inside in sorted(finder.files):
        split = split_of_folder(inside) or "train"
        splits.setdefault("train" if split == "trainval" else split, []).append(inside)
    return {split: splits[split] for split in ("train", "val", "test") if split in splits}


def _listed(settings: _Settings, files: RawFiles, finder: ImageFinder, settings_file: str | None) -> dict[str, list[str]]:
    """The images of each split as ``data.yaml`` names them."""
    place = files.files[settings_file]
    answer = {}
    for split, paths in settings.splits.items():
        insides: list[str] = []
        for path in paths:
            if path.lower().endswith(".txt"):
                insides += _in_list(path, settings, files, finder, place, split)
            else:
                insides += _in_folder(path, settings, finder, place, split)
        answer[split] = list(dict.fromkeys(insides))
    return answer


def _ends(path: str, settings: _Settings) -> list[str]:
    """A path of ``data.yaml`` without what leads up or to another machine, then shorter ends of it that still say enough; best first."""
    own = [part for part in path.replace("\\", "/").split("/") if part.strip() not in ("", ".", "..")]
    base = [] if PurePosixPath(path).is_absolute() else [part for part in settings.base.split("/") if part not in ("", ".", "..")]
    parts = base + own
    ends = [parts[start:] for start in range(len(parts))]
    return ["/".join(end) for end in ends if len(end) >= min(len(own), 2) or split_in("/".join(end))]


def _matches(path: str, settings: _Settings, there: Iterable[str], place: Path, split: str) -> str | None:
    """Which of the paths inside the raw files is meant by a path of ``data.yaml``; another split's only if it is spelt out."""
    there = list(there)
    ends = _ends(path, settings)
    for end in ends:
        found = [end] if end in there else [inside for inside in there if inside.endswith("/" + end)]
        found = [inside for inside in found if len(end) >= len(path.strip("./")) or not of_another_split(inside + "/x", split)]
        if len(found) > 1:
            raise MrtError(f"{place}: {split} is {path!r}, which may be any of {', '.join(found[:6])}", "Give the folder of one set.")
        if found:
            return found[0]
    return "." if not ends and "." in there else None


def _in_folder(path: str, settings: _Settings, finder: ImageFinder, place: Path, split: str) -> list[str]:
    folders: dict[str, list[str]] = {}
    for inside in sorted(finder.files):
        for parent in PurePosixPath(inside).parents:
            folders.setdefault(parent.as_posix(), []).append(inside)
    folder = _matches(path, settings, folders, place, split)
    if folder is not None:
        return folders[folder]
    raise MrtError(
        f"{place}: {split} is {path!r}, and there is no such folder with images",
        "Give the folder or archive that holds it in --raw, or take the line out of the file.",
    )


def _in_list(path: str, settings: _Settings, files: RawFiles, finder: ImageFinder, place: Path, split: str) -> list[str]:
    inside = _matches(path, settings, (inside for inside in files.files if inside.lower().endswith(".txt")), place, split)
    if inside is None:
        raise MrtError(f"{place}: {split} is {path!r}, and there is no such file", "Give the folder or archive that holds it in --raw.")
    listing = files.files[inside]
    lines = [(number, line) for number, line in enumerate(_lines(listing), start=1) if line.strip()]
    names = [entry_name(line, listing, f"line {number}") for number, line in lines]
    found = finder.find(names, listing, split=split, near=inside)
    if not found:
        raise MrtError(f"{listing}: none of its {len(names)} images is there", "Give the images' folder or archive too, in --raw.")
    return [found.get(name, name) for name in names]


def _split(insides: Sequence[str], settings: _Settings, files: RawFiles, finder: ImageFinder) -> Split:
    there = [inside for inside in insides if inside in finder.files]
    skipped = Counter({"image missing": len(insides) - len(there)})
    labels = {inside: label_place(inside, files.files) for inside in there}
    skipped["image missing"] += _labels_alone(labels, files)
    root = common_root([finder.files[inside] for inside in there])
    jobs = []
    for inside in there:
        place, label = finder.files[inside], labels[inside]
        jobs.append(Job(relative(place, root), str(place), str(files.files[label]) if label else None, settings.names, settings.pose))
    return Split(root, sorted(jobs, key=lambda job: job.file), convert, dict(+skipped))


def _labels_alone(labels: Mapping[str, str | None], files: RawFiles) -> int:
    """Label files in the folders of these labels that belong to no image at all."""
    folders = {PurePosixPath(label).parent for label in labels.values() if label and "labels" in PurePosixPath(label).parts}
    used = {label for label in labels.values() if label}
    every = {PurePosixPath(inside).with_suffix("").name for inside in files.files if re.search(IMAGES, inside)}
    texts = (PurePosixPath(inside) for inside in files.files if inside.lower().endswith(".txt"))
    return sum(
        text.parent in folders and text.as_posix() not in used and text.stem not in every and text.name.lower() != "classes.txt"
        for text in texts
    )
