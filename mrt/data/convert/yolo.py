"""A user's own YOLO set: ``data.yaml``, images, and a text file of ``class cx cy w h`` lines for each."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from mrt.data.convert.lists import read_lines
from mrt.data.convert.names import Ends, examples, is_about, plain, split_of_folder
from mrt.data.convert.places import Box, ImageFinder, Size, measured, of_another_split, pictured
from mrt.data.convert.raw import RawFiles, Unpacking, common_root, own_files, read_bytes, relative, require
from mrt.data.convert.recipe import Picture, Recipe, Results, Skipped, Split, Turned
from mrt.data.convert.units import TOLERANCE
from mrt.data.convert.yolo_settings import (
    HINT,
    Settings,
    find_sets,
    images_by_split,
    label_places,
    settings_and_names,
)
from mrt.data.text import decode_head
from mrt.errors import MrtError

HINT_BOXES = (
    "Say what they are: --boxes pixels (cx cy w h), corners (x0 y0 x1 y1 in pixels), corner-shares, or "
    "shares to take each as it is, "
    "without those outside 0 to 1."
)
HINT_TURNED = (
    "Turned boxes are read as class x1 y1 x2 y2 x3 y3 x4 y4 (YOLO OBB), upright ones as class cx cy w h: "
    "export or write them so. An angle after cx cy w h is not read."
)
_SHARES = ("shares", "corner-shares")
OUTSIDE, NO_LINE = "box with shares outside 0 to 1", "line that is not class cx cy w h"
_HEAD = 1 << 12  # number of first bytes of a file that tell whether it is a label file
_ENOUGH = 3  # a reading needs at least this many boxes that speak for it
_ORDER = ("train", "val", "test")


class Job(NamedTuple):
    """An image and its labels (None: it has no text file).

    ``names``: class number -> name; ``pose``: key points follow each box.
    """

    file: str
    place: str
    labels: str | None
    names: dict[int, str]
    pose: bool


class _Labels:
    """Which text file among the raw files has the labels of which image.

    First the files in exactly an image's place; then, among the rest, those in its place but written a little
    differently, and those below another folder than the images; each only if one file fits one image.

    Attributes:
        texts: paths inside the raw files.
        of: image -> its label file.
        nearly, shared: in words, the files that were not found exactly, and those of several images.
        doubled: of an image with two different label files, the one that is not taken -> in words.
    """

    def __init__(self, files: Mapping[str, Path], images: Iterable[str]) -> None:
        self.texts = [inside for inside in files if inside.lower().endswith(".txt") and not is_about(inside)]
        self.of: dict[str, str] = {}
        self.nearly: list[str] = []
        self.shared: list[str] = []
        self.doubled: dict[str, str] = {}
        left: list[str] = []
        for image in images:
            found = [place for place in label_places(image) if place in files]
            if found:
                self.of[image] = found[0]
            else:
                left.append(image)
        self._of_one_name(files)
        self._of_two_places(files)
        if left and len(set(self.of.values())) < len(self.texts):
            self._find_nearly(left, _written_differently)
            self._find_nearly([image for image in left if image not in self.of], _below_another_folder)

    def _of_one_name(self, files: Mapping[str, Path]) -> None:
        """Of images that differ only in suffix (a.jpg, a.png), each with its own a.jpg.txt takes that."""
        claims = Counter(self.of.values())
        for image, label in self.of.items():
            if claims[label] > 1:
                full = f"{image.rpartition('/')[2]}.txt"
                places = [place for place in label_places(image) if place.endswith(full)]
                self.of[image] = next((place for place in places if place in files), label)
        claims = Counter(self.of.values())
        self.shared = [f"{label} for {image}" for image, label in self.of.items() if claims[label] > 1]

    def _of_two_places(self, files: Mapping[str, Path]) -> None:
        """Images with two label files, such as labels/a.txt and images/a.txt, that say different things."""
        used = self.used
        for image, label in self.of.items():
            for place in label_places(image):
                if place in files and place not in used:
                    same = read_bytes(files[place]) == read_bytes(files[label])
                    self.doubled[place] = "" if same else f"{label} is taken, {place} is not"

    @property
    def used(self) -> set[str]:
        """The label files that belong to an image."""
        return set(self.of.values())

    def _find_nearly(
        self,
        images: Sequence[str],
        candidates: Callable[[Sequence[str], Sequence[str]], dict[str, list[str]]],
    ) -> None:
        used = self.used
        found = candidates(images, [text for text in self.texts if text not in used])
        claims = Counter(text for texts in found.values() for text in texts)
        for image, texts in found.items():
            if len(texts) == 1 and claims[texts[0]] == 1:
                self.of[image] = texts[0]
                self.nearly.append(f"{texts[0]} for {image}")


def _written_differently(images: Sequence[str], texts: Sequence[str]) -> dict[str, list[str]]:
    """Image -> the text files that are its labels except for Unicode form, case, %20 and similar."""
    folded: dict[str, list[str]] = {}
    for text in texts:
        folded.setdefault(plain(text).casefold(), []).append(text)
    found: dict[str, list[str]] = {}
    for image in images:
        keys = [plain(place).casefold() for place in label_places(image)]
        found[image] = list(dict.fromkeys(text for key in keys for text in folded.get(key, ())))
    return found


def _below_another_folder(images: Sequence[str], texts: Sequence[str]) -> dict[str, list[str]]:
    """Image -> the text files with the ending of its label file.

    For sets whose images and labels lie below different folders.
    """
    ends = Ends(texts)
    with_labels = {f"/{text}".rpartition("/labels/")[0] for text in texts if "/labels/" in f"/{text}"}
    found: dict[str, list[str]] = {}
    with_images = {f"/{label_places(image)[0]}".rpartition("/labels/")[0] for image in images}
    for image in images:
        top, labels, rest = f"/{label_places(image)[0]}".rpartition("/labels/")
        if labels and top not in with_labels:
            near = ends.find("labels/" + rest)
            near = [text for text in near if f"/{text}".rpartition("/labels/")[0] not in with_images]
            split = split_of_folder(image)
            found[image] = [text for text in near if not of_another_split(text, split)]
    return found


def recipe(
    raw: Sequence[Path] | RawFiles,
    data_root: Path,
    *,
    domain: str = "custom",
    boxes: str = "auto",
    on_unpack: Unpacking | None = None,
) -> Recipe:
    """One or more YOLO sets in folders or archives.

    ``data.yaml`` (any ``*.yaml`` with ``names``) or darknet's ``*.data`` gives the class names and, under
    ``train``, ``val`` and ``test``, folders of images or text files that list them. These are only looked for
    below ``raw``, by the end of their path, so a ``path`` of another machine or a leading ``../`` does no
    harm. Without such a file, names come from ``classes.txt`` or ``*.names``, one in each line, and images'
    splits from lists such as ``train.txt`` and ``test.txt``, else from the folders' names. Several sets in
    separate folders are joined, classes by name. The labels of ``.../images/train/a.jpg`` are
    ``.../labels/train/a.txt``, else the ``a.txt`` beside it; ``a.TXT`` and ``a.jpg.txt`` work too.

    Lines are ``class cx cy w h`` in shares of the upright picture's (EXIF) width and height, or ``class x1 y1
    x2 y2 x3 y3 ...``, a polygon, around which a box is taken. An empty or missing text file means an image
    without objects; label files without an image are reported.

    Args:
        boxes: "shares", "pixels" (cx cy w h), "corners" (x0 y0 x1 y1 in pixels), "corner-shares", or "auto":
            see :func:`_review`.

    Raises:
        MrtError: no images or class names; ``data.yaml`` cannot be read, names a folder that does not exist,
            or its ``nc`` is not the number of names; two sets in one folder; label files of which none
            belongs to an image; while converting, a label file with confidences (predictions) or that is not
            text.
    """
    files = own_files(raw, data_root, on_unpack)
    finder = ImageFinder(files.files)
    require(finder.files, "images", files, HINT)
    sets = find_sets(files, finder)
    notes = list(files.notes)
    labels = _Labels(files.files, finder.files)
    parts: dict[str, list[tuple[list[str], Settings]]] = {}
    lists: list[str] = []
    for settings, found in sets:
        division = images_by_split(settings, files, found)
        notes += [*division.notes, *(found.notes if found is not finder else ())]
        lists += division.lists
        for split, insides in division.images.items():
            parts.setdefault(split, []).append((insides, settings))
    reading = "shares" if boxes == "auto" else boxes
    pose = all_pose([files.files[inside] for inside in sorted(labels.used)])
    if pose and not all(settings.pose for settings, _ in sets):
        notes.append("the rows are boxes with key points of x, y and visibility: the boxes are taken")
    splits = {
        split: _split(parts[split], files, finder, labels, reading, pose)
        for split in sorted(parts, key=_ORDER.index)
    }
    splits = _with_labels_alone(splits, labels, files, finder)
    names = [settings.names for settings, _ in sets]
    classes = tuple(dict.fromkeys(found[number] for found in names for number in sorted(found)))
    jobs = [job for split in splits.values() for job in split.jobs if isinstance(job, Job)]
    unlabelled = [job.file for job in jobs if job.labels is None]
    if unlabelled:
        notes.append(
            f"{len(unlabelled)} images have no label file and are taken as "
            f"images without objects: {examples(unlabelled)}"
        )
    if labels.shared:
        notes.append(
            f"warning: images that differ only in their suffix share a label file: {examples(labels.shared)}"
        )
    doubled = [words for words in labels.doubled.values() if words]
    if doubled:
        notes.append(f"warning: {len(doubled)} images have two label files that differ: {examples(doubled)}")
    if labels.nearly:
        notes.append(
            f"{len(labels.nearly)} label files are named a little differently from their images: "
            f"{examples(labels.nearly)}"
        )
    read = {*labels.used, *labels.doubled, *lists, *settings_and_names(files)}
    done = Recipe(
        domain, classes, splits, files.source, {"format": "yolo"}, notes=[*notes, *finder.notes], read=read
    )
    return replace(done, review=partial(_review, made=done)) if boxes == "auto" else done


def convert(job: Job | Skipped, reading: str = "shares") -> Picture | Skipped:
    """Read the label lines and turn shares into pixels.

    Args:
        reading: what the numbers are, as ``boxes`` of :func:`recipe`.
    """
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
    if lines and lines[0].strip().upper() == "YOLO_OBB":
        raise MrtError(f"{job.labels}: has turned boxes of labelImg_OBB", HINT_TURNED)
    for number, words in enumerate(map(_words, lines), start=1):
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
    if reading != "shares" or size.other is None:
        return pictured(job.file, size, found, skipped, notes)
    picture = pictured(job.file, size._replace(other=None), found, skipped, notes)
    return picture._replace(turned=Turned(picture, 0, 0, False))  # shares fit a photo turned or not


def _review(results: Results, made: Recipe) -> Recipe | None:
    """Another reading of the numbers, if the whole set shows that they are not shares.

    While lines with a number outside 0 to 1 are few, each of them is left out. If they are the rule, the
    numbers are in pixels: centre and size, or corners. They are read that way if all boxes of the set lie
    inside their images in exactly one of these two readings.

    Raises:
        MrtError: they are the rule, and it is in doubt how they are meant.
    """
    pictures = [found for part in results.values() for found in part if isinstance(found, Picture)]
    outside = sum(found.skipped.get(OUTSIDE, 0) for found in pictures)
    inside = sum(len(found.things) + found.skipped.get("class not asked for", 0) for found in pictures)
    cut = sum(found.cut for found in pictures)
    if inside >= _ENOUGH and not outside and cut * 2 > inside and _all_fit(made, "corner-shares"):
        raise MrtError(
            f"{made.source}: {cut} of {inside} boxes stick out of their images as centre and size, and all "
            "fit as corners x0 y0 x1 y1",
            HINT_BOXES,
        )
    if not outside or outside <= inside:
        return None
    fits = [reading for reading in ("pixels", "corners") if _all_fit(made, reading)]
    if not inside and outside >= _ENOUGH and (len(fits) == 1 or (fits and _all_polygons(made))):
        said = {"pixels": "cx cy w h in pixels", "corners": "corners x0 y0 x1 y1 in pixels"}[fits[0]]
        note = f"all {outside} boxes have numbers beyond 0 to 1, and fit their images only as {said}: read so"
        return replace(made, splits=_read_as(made, fits[0]), notes=[*made.notes, note], review=None)
    first = next(found for found in pictures if OUTSIDE in found.skipped)
    raise MrtError(
        f"{made.source}: {outside} of {outside + inside} boxes have numbers outside 0 to 1: "
        f"{first.notes.get(OUTSIDE, first.file)}",
        "YOLO's numbers are shares of the image's size. " + HINT_BOXES,
    )


def _all_polygons(made: Recipe) -> bool:
    """Whether no line is a box of four numbers."""
    jobs = [job for split in made.splits.values() for job in split.jobs if isinstance(job, Job)]
    places = {job.labels for job in jobs if job.labels}
    return all(len(line.split()) != 5 for place in places for line in read_lines(Path(place)))


def _all_fit(made: Recipe, reading: str) -> bool:
    """Whether with this reading all boxes have an area and lie inside their images."""
    for split in made.splits.values():
        for job in split.jobs:
            size = measured(Path(job.place), job.file) if isinstance(job, Job) and job.labels else None
            if not isinstance(size, Size):
                continue
            for words in map(_words, read_lines(Path(job.labels))):
                box = _box(words, job, (size.width, size.height), job.file, reading) if words else None
                if isinstance(box, Box) and not _inside(box.corners, size):
                    return False
    return True


def _inside(corners: Sequence[float], size: Size) -> bool:
    x0, y0, x1, y1 = corners
    return -1 <= x0 < x1 <= size.width + 1 and -1 <= y0 < y1 <= size.height + 1


def _read_as(made: Recipe, reading: str) -> dict[str, Split]:
    return {
        name: replace(split, convert=partial(convert, reading=reading)) for name, split in made.splits.items()
    }


def looks(head: bytes, inside: str) -> bool:
    """Whether a file's first line is YOLO's: a class number and four shares, or the points of a polygon."""
    if not inside.lower().endswith(".txt"):
        return False
    line = next((line for line in decode_head(head).splitlines() if line.strip()), "")
    try:
        number, *values = (_float(word) for word in _words(line))
    except ValueError:
        return False
    return len(values) >= 4 and all(map(math.isfinite, (number, *values))) and number == int(number) >= 0


def label_files(files: RawFiles, images: Iterable[str]) -> list[str]:
    """Paths inside the raw files of the images' label files."""
    return list(_Labels(files.files, images).of.values())


def _box(words: Sequence[str], job: Job, size: tuple[int, int], where: str, reading: str) -> Box | str:
    """The object of a line, or why there is none."""
    try:
        number, *values = (_float(word) for word in words)
    except ValueError:
        return NO_LINE
    if job.pose:
        values = values[:4]
    if len(values) == 5 and not 0 <= values[4] <= 1:
        raise MrtError(f"{where}: has 6 columns, the last of which is {values[4]:g}", HINT_TURNED)
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
    if reading in _SHARES and (min(values) < -TOLERANCE or max(values) > 1 + TOLERANCE):
        return OUTSIDE
    if len(values) > 4:
        xs, ys = values[0::2], values[1::2]
        corners = min(xs), min(ys), max(xs), max(ys)
    elif reading in ("corners", "corner-shares"):
        corners = tuple(values)
    else:
        cx, cy, w, h = values
        corners = cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2
    if reading in _SHARES:
        corners = tuple(share * side for share, side in zip(corners, (*size, *size), strict=True))
    return Box(job.names[int(number)], corners)


def _words(line: str) -> tuple[str, ...]:
    """The numbers of a line, separated by blanks or only by commas."""
    words = tuple(line.split())
    return tuple(line.strip().split(",")) if len(words) == 1 and line.count(",") >= 4 else words


def _float(word: str) -> float:
    """A number; a comma may follow it, or be its decimal point."""
    return float(word.removesuffix(",").replace(",", ".", 1))


def all_pose(places: Sequence[Path]) -> bool:
    """Whether all rows of label files are class cx cy w h and key points of x, y and visibility (0, 1 or 2).

    Such rows look like polygons. They are not if all have one length, each third value behind the box is a
    visibility, and the visible points lie in their boxes, or at most half a box beside them.
    """
    length = 0
    for place in places:
        for words in map(_words, read_lines(place)):
            if not words:
                continue
            try:
                values = [_float(word) for word in words[1:]]
            except ValueError:
                return False
            if len(values) < 7 or (len(values) - 4) % 3 or length not in (0, len(values)):
                return False
            length = len(values)
            cx, cy, w, h = values[:4]
            points = list(zip(values[4::3], values[5::3], values[6::3], strict=True))
            if not (w > 0 and h > 0 and all(seen in (0, 1, 2) for _, _, seen in points)):
                return False
            if any(seen and not (abs(x - cx) <= w and abs(y - cy) <= h) for x, y, seen in points):
                return False
    return length > 0


def _split(
    parts: Sequence[tuple[Sequence[str], Settings]],
    files: RawFiles,
    finder: ImageFinder,
    labels: _Labels,
    reading: str,
    pose: bool,
) -> Split:
    """The images of a split, of one or more sets, with their label files."""
    every = [(inside, settings) for insides, settings in parts for inside in insides]
    there = [(inside, settings) for inside, settings in every if inside in finder.files]
    root = common_root([finder.files[inside] for inside, _ in there]) if there else Path()
    jobs: list[Job] = []
    for inside, settings in there:
        place, label = finder.files[inside], labels.of.get(inside)
        text = str(files.files[label]) if label else None
        jobs.append(Job(relative(place, root), str(place), text, settings.names, settings.pose or pose))
    missing = [Skipped("image missing", inside) for inside, _ in every if inside not in finder.files]
    return Split(root, [*sorted(jobs, key=lambda job: job.file), *missing], partial(convert, reading=reading))


def _with_labels_alone(
    splits: dict[str, Split], labels: _Labels, files: RawFiles, finder: ImageFinder
) -> dict[str, Split]:
    """The splits; the first one counts the label files that belong to no image.

    Raises:
        MrtError: there are such files, and no image has a label file.
    """
    folders = {label.rpartition("/")[0] for label in labels.used}
    folders = {folder for folder in folders if "labels" in folder.split("/")}
    alone = [
        inside
        for inside in sorted(set(labels.texts) - labels.used - labels.doubled.keys())
        if inside.rpartition("/")[2].lower() != "classes.txt"
        and (inside.rpartition("/")[0] in folders or looks(read_bytes(files.files[inside], _HEAD), inside))
    ]
    images = sum(isinstance(job, Job) for split in splits.values() for job in split.jobs)
    if alone and not labels.used:
        first = next(iter(finder.files))
        raise MrtError(
            f"--raw {files.source}: none of the {images} images has a label file, and {len(alone)} files "
            "that look like labels belong to "
            f"no image: {examples(alone)}",
            f"The labels of {first} are looked for in {label_places(first)[0]}: move "
            "or rename them. Bare images: --format images.",
        )
    if not alone or not splits:
        return splits
    name = next(iter(splits))
    skipped, notes = {"image missing": len(alone)}, {"image missing": alone[:3]}
    return {**splits, name: replace(splits[name], skipped=skipped, notes=notes)}
