"""A user's own YOLO set: ``data.yaml``, images, and a text file of ``class cx cy w h`` lines for each."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import yaml

from mrt.data.convert.lists import Listed, entries_of, find_lists, read_lines, said_of, without_trainval
from mrt.data.convert.names import Ends, examples, is_about, plain, split_in, split_of_folder
from mrt.data.convert.places import Box, ImageFinder, Size, class_name, measured, of_another_split, pictured
from mrt.data.convert.raw import RawFiles, Unpacking, common_root, own_files, read_bytes, relative, require
from mrt.data.convert.recipe import Picture, Recipe, Results, Skipped, Split
from mrt.data.convert.units import TOLERANCE
from mrt.data.text import decode_head, decode_text
from mrt.errors import MrtError

SPLITS = {"train": "train", "val": "val", "valid": "val", "test": "test"}  # keys of data.yaml -> ours
HINT = "A YOLO set is a data.yaml with 'names', 'train' and 'val', images/*/*.jpg, and for each image labels/*/*.txt."
OUTSIDE, NO_LINE = "box with shares outside 0 to 1", "line that is not class cx cy w h"
_MAX_YAML, _HEAD = 1 << 20, 1 << 12
_ENOUGH = 3  # boxes that must speak for a reading before it is believed
_ORDER = ("train", "val", "test")
_ROOT = re.compile(r"^(?:[A-Za-z]:)?[\\/]+")  # of another machine's absolute paths


class Job(NamedTuple):
    """An image and its labels (None: it has no text file). ``names``: class number -> name; ``pose``: key points follow each box."""

    file: str
    place: str
    labels: str | None
    names: dict[int, str]
    pose: bool


class _Settings(NamedTuple):
    """What ``data.yaml`` or its like says. ``splits``: ours -> its paths as written; ``inside``: its own path inside the raw files."""

    names: dict[int, str]
    splits: dict[str, list[str]]
    base: str
    pose: bool
    inside: str


@dataclass
class _Labels:
    """The label files of a set: those that some image has, and all that could be."""

    texts: dict[str, list[str]]  # path in one way of writing (plain, in lower case) -> paths inside the raw files
    ends: Ends
    used: set[str]
    nearly: list[str]  # in words, those that are named a little differently from their images


def recipe(
    raw: Sequence[Path] | RawFiles, data_root: Path, *, domain: str = "custom", boxes: str = "auto", on_unpack: Unpacking | None = None
) -> Recipe:
    """One or more YOLO sets in folders or archives.

    ``data.yaml`` (any ``*.yaml`` with ``names``) or darknet's ``*.data`` gives the class names and, by ``train``, ``val`` and ``test``,
    folders of images or text files that list them; they are looked for below ``raw`` only, by the end of their path, so a ``path`` of
    another machine or a leading ``../`` does no harm. Without it, names come from ``classes.txt`` or ``*.names``, one a line, and images'
    splits from lists such as ``train.txt`` and ``test.txt``, else from its folder's name. Several sets, each below a folder of its own, are
    taken together, classes by name. The labels of ``.../images/train/a.jpg`` are ``.../labels/train/a.txt``, else the ``a.txt`` beside it;
    ``a.TXT`` and ``a.jpg.txt`` will do.

    Lines are ``class cx cy w h`` in shares of the upright picture's (EXIF) width and height, or ``class x1 y1 x2 y2 x3 y3 ...``, a polygon,
    whose box is taken. An empty or missing text file is an image without objects; label files of no image are told of.

    Args:
        boxes: "shares", "pixels" (cx cy w h), "corners" (x0 y0 x1 y1 in pixels), or "auto": see :func:`_review`.

    Raises:
        MrtError: no images or class names; ``data.yaml`` cannot be read, names a folder that is not there, or its ``nc`` is not the number
            of names; two sets in one folder; label files of which none belongs to an image; while converting, a label file with
            confidences (predictions) or that is no text.
    """
    files = own_files(raw, data_root, on_unpack)
    finder = ImageFinder(files.files)
    require(finder.files, "images", files, HINT)
    sets = _sets(files, finder)
    notes = list(files.notes)
    labels = _label_files(files)
    parts: dict[str, list[tuple[list[str], _Settings]]] = {}
    for settings, found in sets:
        by_split, said = _by_split(settings, files, found)
        notes += said
        for split, insides in by_split.items():
            parts.setdefault(split, []).append((insides, settings))
    reading = "shares" if boxes == "auto" else boxes
    splits = {split: _split(parts[split], files, finder, labels, reading) for split in sorted(parts, key=_ORDER.index)}
    splits = _with_labels_alone(splits, labels, files, finder)
    names = [settings.names for settings, _ in sets]
    classes = tuple(dict.fromkeys(found[number] for found in names for number in sorted(found)))
    if labels.nearly:
        notes.append(f"{len(labels.nearly)} label files are named a little differently from their images: {examples(labels.nearly)}")
    read = {*labels.used, *_settings_files(files.files), *_darknet_files(files.files), *_names_files(files.files)}
    done = Recipe(domain, classes, splits, files.source, {"format": "yolo"}, notes=[*notes, *finder.notes], read=read)
    return replace(done, review=partial(_review, made=done)) if boxes == "auto" else done


def convert(job: Job | Skipped, reading: str = "shares") -> Picture | Skipped:
    """Read the label lines and turn shares into pixels. ``reading``: what the numbers are, as ``recipe(boxes=...)`` has it."""
    if isinstance(job, Skipped):
        return job
    size = measured(Path(job.place), job.file)
    if isinstance(size, Skipped):
        return size
    found: list[Box] = []
    skipped: Counter[str] = Counter()
    notes: dict[str, str] = {}
    lines = read_lines(Path(job.labels)) if job.labels else []
    seen: set[tuple[str, ...]] = set()
    for number, words in enumerate((tuple(line.split()) for line in lines), start=1):
        if not words:
            continue
        if words in seen:
            skipped["annotation listed twice"] += 1
            continue
        seen.add(words)
        box = _box(words, job, (size.width, size.height), f"{job.labels}, line {number}", reading)
        if isinstance(box, Box):
            found.append(box)
        else:
            skipped[box] += 1
            notes.setdefault(box, f"{job.file}, line {number}: {' '.join(words)[:80]}")
    return pictured(job.file, size if reading != "shares" else size._replace(other=None), found, skipped, notes)


def _review(results: Results, made: Recipe) -> Recipe | None:
    """Another reading of the numbers, if the whole set shows that they are no shares.

    Lines with a number outside 0 to 1 are left out one by one while they are few. If they are the rule, the numbers are in pixels: centre
    and size, or corners. They are read so if all boxes of the set lie inside their images in one of the two readings only.

    Raises:
        MrtError: they are the rule, and how they are meant is in doubt.
    """
    pictures = [found for part in results.values() for found in part if isinstance(found, Picture)]
    outside = sum(found.skipped.get(OUTSIDE, 0) for found in pictures)
    inside = sum(len(found.things) for found in pictures)
    if not outside or outside <= inside:
        return None
    fits = {reading: _all_fit(made, reading) for reading in ("pixels", "corners")}
    chosen = [reading for reading, fit in fits.items() if fit]
    if not inside and len(chosen) == 1 and outside >= _ENOUGH:
        said = {"pixels": "cx cy w h in pixels", "corners": "corners x0 y0 x1 y1 in pixels"}[chosen[0]]
        note = f"all {outside} boxes have numbers beyond 0 to 1, and fit their images only as {said}: read so"
        return replace(made, splits=_read_as(made, chosen[0]), notes=[*made.notes, note], review=None)
    first = next(found for found in pictures if OUTSIDE in found.skipped)
    raise MrtError(
        f"{made.source}: {outside} of {outside + inside} boxes have numbers outside 0 to 1: {first.notes.get(OUTSIDE, first.file)}",
        "YOLO's numbers are shares of the image's size. Say what these are: --boxes pixels (cx cy w h), --boxes corners (x0 y0 x1 y1, in "
        "pixels), or --boxes shares to leave such boxes out.",
    )


def _all_fit(made: Recipe, reading: str) -> bool:
    """Whether all boxes have an area and lie inside their images if the numbers are read so."""
    for split in made.splits.values():
        for job in split.jobs:
            size = measured(Path(job.place), job.file) if isinstance(job, Job) and job.labels else None
            if not isinstance(size, Size):
                continue
            for words in (line.split() for line in read_lines(Path(job.labels))):
                box = _box(words, job, (size.width, size.height), job.file, reading) if words else None
                if isinstance(box, Box) and not _inside(box.corners, size):
                    return False
    return True


def _inside(corners: Sequence[float], size: Size) -> bool:
    x0, y0, x1, y1 = corners
    return -1 <= x0 < x1 <= size.width + 1 and -1 <= y0 < y1 <= size.height + 1


def _read_as(made: Recipe, reading: str) -> dict[str, Split]:
    return {name: replace(split, convert=partial(convert, reading=reading)) for name, split in made.splits.items()}


def looks(head: bytes, inside: str) -> bool:
    """Whether a file is a YOLO label file by its first line: a class number and four shares, or the points of a polygon."""
    if not inside.lower().endswith(".txt"):
        return False
    line = next((line for line in decode_head(head).splitlines() if line.strip()), "")
    try:
        number, *values = (_float(word) for word in line.split())
    except ValueError:
        return False
    return number == int(number) >= 0 and len(values) >= 4 and all(map(math.isfinite, values))


def label_files(files: RawFiles, images: Iterable[str]) -> list[str]:
    """Paths inside of the label files that images have."""
    labels = _label_files(files)
    return [label for inside in images if (label := _label_of(inside, files.files, labels))]


def has_names(files: RawFiles) -> bool:
    """Whether there is a YOLO settings or class name file."""
    return bool(_settings_files(files.files) or _darknet_files(files.files) or _names_files(files.files))


def _label_files(files: RawFiles) -> _Labels:
    texts = [inside for inside in files.files if inside.lower().endswith(".txt") and not is_about(inside)]
    folded: dict[str, list[str]] = {}
    for inside in texts:
        folded.setdefault(plain(inside).casefold(), []).append(inside)
    return _Labels(folded, Ends(texts), set(), [])


def _label_of(inside: str, files: Mapping[str, Path], labels: _Labels) -> str | None:
    """Path inside of an image's label file, if there is one: in its place, written a little differently, or below another folder."""
    places = [*_label_places(inside)]
    found = next((place for place in places if place in files), None)
    if found is None:
        same = [labels.texts.get(plain(place).casefold(), []) for place in places]
        found = next((theirs[0] for theirs in same if len(theirs) == 1), None)
        if found is None and "/labels/" in f"/{places[0]}":  # the two halves may lie below different folders
            there = labels.ends.find("labels/" + f"/{places[0]}".rpartition("/labels/")[2])
            found = there[0] if len(there) == 1 and there[0] not in labels.used else None
        if found is not None:
            labels.nearly.append(f"{found} for {inside}")
    if found is not None:
        labels.used.add(found)
    return found


def _label_places(inside: str) -> list[str]:
    """Where the label file of an image may be: below ``labels`` in place of ``images``, or beside it; as a.txt or a.jpg.txt."""
    path = PurePosixPath(inside)
    bases = [path]
    for number in range(len(path.parts) - 2, -1, -1):
        if path.parts[number].lower() in ("images", "jpegimages"):
            bases.insert(0, PurePosixPath(*path.parts[:number], "labels", *path.parts[number + 1 :]))
            break
    return [*(base.with_suffix(".txt").as_posix() for base in bases), *(f"{base}.txt" for base in bases)]


def _box(words: Sequence[str], job: Job, size: tuple[int, int], where: str, reading: str) -> Box | str:
    """The object of a line, or why there is none."""
    try:
        number, *values = (_float(word) for word in words)
    except ValueError:
        return NO_LINE
    if job.pose:
        values = values[:4]
    if len(values) == 5:
        raise MrtError(
            f"{where}: has 6 columns, class cx cy w h and a confidence: these are predictions, not labels",
            "Give the labels that people have made, or cut the last column off if these shall be the truth.",
        )
    if len(values) != 4 and (len(values) < 6 or len(values) % 2):
        return NO_LINE
    if not all(map(math.isfinite, values)):
        return "box with a number that is not finite"
    if number not in job.names:
        return "annotation of an unknown category"
    if reading == "shares" and (min(values) < -TOLERANCE or max(values) > 1 + TOLERANCE):
        return OUTSIDE
    if len(values) > 4:
        xs, ys = values[0::2], values[1::2]
        corners = min(xs), min(ys), max(xs), max(ys)
    elif reading == "corners":
        corners = tuple(values)
    else:
        cx, cy, w, h = values
        corners = cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2
    if reading == "shares":
        corners = tuple(share * side for share, side in zip(corners, (*size, *size), strict=True))
    return Box(job.names[int(number)], corners)


def _float(word: str) -> float:
    """A number; a comma may end it, or stand for its point."""
    return float(word.removesuffix(",").replace(",", ".", 1))


def _sets(files: RawFiles, finder: ImageFinder) -> list[tuple[_Settings, ImageFinder]]:
    """The sets below the raw files, each with its images: one, or several below folders of their own."""
    there = files.files
    yamls = _settings_files(there)
    named = [inside for inside in yamls if PurePosixPath(inside).stem in ("data", "dataset")]
    yamls = named or yamls
    darknet = [] if yamls else _darknet_files(there)
    if yamls or darknet:
        folders = [_folder(inside) for inside in yamls] if yamls else [_folder(inside) for inside in darknet]
        if len(folders) > 1 and _nested(folders):
            every = ", ".join([*yamls, *darknet][:6])
            raise MrtError(f"--raw {files.source}: several YOLO files with class names: {every}", "Give the folder of one set.")
        read = [_read_settings(there[inside], inside) for inside in yamls] or [_read_darknet(inside, files) for inside in darknet]
        return _parted(read, folders, finder)
    names = _names_files(there)
    require(names, "class names (data.yaml, classes.txt or *.names)", files, HINT + " Or write a classes.txt, one name a line.")
    lists = {inside: [line.strip() for line in read_lines(there[inside])] for inside in names}
    if all(found == lists[names[0]] for found in lists.values()):
        lists = {names[0]: lists[names[0]]}
    folders = [_folder(inside) for inside in lists]
    if len(lists) > 1 and _nested(folders):
        raise MrtError(f"--raw {files.source}: different class names in {', '.join(names[:6])}", "Give the folder of one set.")
    read = [
        _Settings({number: name for number, name in enumerate(found) if name}, {}, "", False, inside) for inside, found in lists.items()
    ]
    return _parted(read, folders, finder)


def _folder(inside: str) -> str:
    """The folder of the set that a settings or names file is of; such a file may lie among the labels."""
    parts = PurePosixPath(inside).parent.parts
    while parts and parts[-1].lower() in ("labels", "images", "cfg", "data", "yolo"):
        parts = parts[:-1]
    return "/".join([*parts, ""])


def _nested(folders: Sequence[str]) -> bool:
    ordered = sorted(folders)
    return any(second.startswith(first) for first, second in pairwise(ordered))


def _parted(read: Sequence[_Settings], folders: Sequence[str], finder: ImageFinder) -> list[tuple[_Settings, ImageFinder]]:
    if len(read) == 1:
        return [(read[0], finder)]
    parts = []
    for settings, folder in zip(read, folders, strict=True):
        below = {inside: place for inside, place in {**finder.files, **finder.others}.items() if inside.startswith(folder)}
        part = ImageFinder(below)
        if not part.files:
            raise MrtError(f"{settings.inside}: no images in its folder, which holds class names of its own", "Give the folder of one set.")
        parts.append((settings, part))
    return parts


def _settings_files(files: Mapping[str, Path]) -> list[str]:
    """Paths inside of the files that are a set's ``data.yaml``."""
    return [
        inside
        for inside in sorted(files)
        if re.search(r"(?i)\.ya?ml$", inside)
        and re.search(r"(?m)^[\"']?names[\"']?\s*:", decode_head(read_bytes(files[inside])[:_MAX_YAML]))
    ]


def _darknet_files(files: Mapping[str, Path]) -> list[str]:
    """Paths inside of darknet's ``*.data`` files."""
    found = [inside for inside in sorted(files) if inside.lower().endswith(".data")]
    return [inside for inside in found if re.search(r"(?m)^\s*names\s*=", decode_head(read_bytes(files[inside])[:_MAX_YAML]))]


def _read_darknet(inside: str, files: RawFiles) -> _Settings:
    """What darknet's ``KEY = VALUE`` file says: ``names`` is a file of class names, ``train``, ``valid`` and ``test`` are lists."""
    place = files.files[inside]
    pairs = [line.partition("#")[0].partition("=") for line in read_lines(place)]
    said = {key.strip().lower(): value.strip() for key, equals, value in pairs if equals and value.strip()}
    there = Ends(path for path in files.files)
    end = _ROOT.sub("", said.get("names", "").replace("\\", "/")).lstrip("./")
    found = next((hits for start in range(end.count("/") + 1) if (hits := there.find("/".join(end.split("/")[start:])))), []) if end else []
    if len(found) != 1:
        raise MrtError(f"{place}: names is {said.get('names', '')!r}, and there is no such file", "Give the folder that holds it in --raw.")
    lines = [line.strip() for line in read_lines(files.files[found[0]])]
    splits = {SPLITS[key]: [said[key]] for key in SPLITS if key in said}
    return _Settings({number: name for number, name in enumerate(lines) if name}, splits, "", False, inside)


def _read_settings(place: Path, inside: str) -> _Settings:
    content = read_bytes(place)
    if len(content) > _MAX_YAML:
        raise MrtError(f"{place}: {len(content)} bytes are too much for a YOLO settings file", HINT)
    try:
        # every scalar stays a text: YAML would make a class called "no" a truth value
        found = yaml.load(decode_text(content), Loader=yaml.BaseLoader)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError, TypeError) as error:  # the last: a list as a key
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
    return _Settings(names, {split: paths for split, paths in splits.items() if paths}, "/".join(parts), "kpt_shape" in found, inside)


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


def _names_files(files: Mapping[str, Path]) -> list[str]:
    return [inside for inside in sorted(files) if re.search(r"(?i)(^|/)(classes\.txt|[^/]+\.names)$", inside)]


def _by_split(settings: _Settings, files: RawFiles, finder: ImageFinder) -> tuple[dict[str, list[str]], list[str]]:
    """The images of each split, and what to say of it: as the settings name them, else as lists do, else by folders."""
    if settings.splits:
        by_split, said = _listed(settings, files, finder), []
    else:
        known = partial(_in_known, files=files, finder=finder)
        lists, used = find_lists({**finder.files, **finder.others}, known, finder.files)
        by_split, said = without_trainval(lists), said_of(used, [])
    if not by_split:
        return _by_folder(finder), []
    taken = {inside for insides in by_split.values() for inside in insides}
    left = sorted(finder.files.keys() - taken)
    if left:
        said.append(f"{len(left)} images are in no split that {settings.inside or 'the lists'} names, and left out: {examples(left)}")
    return by_split, said


def _in_known(listed: Listed, files: RawFiles, finder: ImageFinder) -> list[str]:
    found = finder.find(listed.entries, files.files[listed.inside], split=listed.split, near=listed.inside)
    return [found.get(name, name) for name in listed.entries]


def _by_folder(finder: ImageFinder) -> dict[str, list[str]]:
    """The images of each split by their folders' names; all others are for training."""
    splits: dict[str, list[str]] = {}
    for inside in sorted(finder.files):
        split = split_of_folder(inside) or "train"
        splits.setdefault("train" if split == "trainval" else split, []).append(inside)
    return splits


def _listed(settings: _Settings, files: RawFiles, finder: ImageFinder) -> dict[str, list[str]]:
    """The images of each split as ``data.yaml`` names them."""
    place = files.files[settings.inside]
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


def _matches(path: str, settings: _Settings, there: Iterable[str], place: Path, split: str, is_list: bool = False) -> str | None:
    """Which of the paths inside the raw files is meant by a path of ``data.yaml``; another split's only if it is spelt out, or a list."""
    there = list(there)
    ends = _ends(path, settings)
    for end in ends:
        found = [end] if end in there else [inside for inside in there if inside.endswith("/" + end)]
        if not is_list and len(end) < len(path.strip("./")):
            found = [inside for inside in found if not of_another_split(inside + "/x", split)]
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
    inside = _matches(path, settings, (inside for inside in files.files if inside.lower().endswith(".txt")), place, split, is_list=True)
    if inside is None:
        raise MrtError(f"{place}: {split} is {path!r}, and there is no such file", "Give the folder or archive that holds it in --raw.")
    listing = files.files[inside]
    names = entries_of(listing)
    found = finder.find(names, listing, split=split, near=inside)
    if not found:
        raise MrtError(f"{listing}: none of its {len(names)} images is there", "Give the images' folder or archive too, in --raw.")
    return [found.get(name, name) for name in names]


def _split(parts: Sequence[tuple[Sequence[str], _Settings]], files: RawFiles, finder: ImageFinder, labels: _Labels, reading: str) -> Split:
    """The images of a split, of one or more sets, with their label files."""
    every = [(inside, settings) for insides, settings in parts for inside in insides]
    there = [(inside, settings) for inside, settings in every if inside in finder.files]
    root = common_root([finder.files[inside] for inside, _ in there]) if there else Path()
    jobs: list[Job] = []
    for inside, settings in there:
        place, label = finder.files[inside], _label_of(inside, files.files, labels)
        jobs.append(Job(relative(place, root), str(place), str(files.files[label]) if label else None, settings.names, settings.pose))
    missing = [Skipped("image missing", inside) for inside, _ in every if inside not in finder.files]
    return Split(root, [*sorted(jobs, key=lambda job: job.file), *missing], partial(convert, reading=reading))


def _with_labels_alone(splits: dict[str, Split], labels: _Labels, files: RawFiles, finder: ImageFinder) -> dict[str, Split]:
    """The splits, the first of which counts the label files that belong to no image.

    Raises:
        MrtError: there are such, and no image has a label file.
    """
    folders = {PurePosixPath(label).parent for label in labels.used if "labels" in PurePosixPath(label).parts}
    alone = [
        inside
        for inside in labels.ends.paths
        if inside not in labels.used
        and PurePosixPath(inside).name.lower() != "classes.txt"
        and (PurePosixPath(inside).parent in folders or looks(read_bytes(files.files[inside])[:_HEAD], inside))
    ]
    images = sum(isinstance(job, Job) for split in splits.values() for job in split.jobs)
    if alone and not labels.used:
        first = next(iter(finder.files))
        raise MrtError(
            f"--raw {files.source}: none of the {images} images has a label file, and {len(alone)} files that look like labels belong to "
            f"no image: {examples(alone)}",
            f"The labels of {first} are looked for in {_label_places(first)[0]}: move or rename them. Bare images: --format images.",
        )
    if not alone or not splits:
        return splits
    name = next(iter(splits))
    return {**splits, name: replace(splits[name], skipped={"image missing": len(alone)}, notes={"image missing": alone[:3]})}
