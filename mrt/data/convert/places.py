"""Finding the images of a user's own set: which split they are in, and which image an annotation means."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from mrt.data.archives import file_exists, inside_zip, leads_elsewhere, says_no_alphabet
from mrt.data.convert.names import (
    IMAGES,
    TABLES,
    TEXTS,
    Ends,
    examples,
    plain,
    shared_ends,
    shared_folders,
    split_of_folder,
    stem_of,
)
from mrt.data.convert.recipe import Picture, Skipped, Thing, Turned, clip_box
from mrt.data.headers import ImageProblem, read_header
from mrt.data.limits import LONGEST_PATH
from mrt.errors import MrtError
from mrt.plain import is_text

_BASIC = ("train", "val", "test")
_ROUNDING = 1.0  # pixels by which a box may stick out of its picture and still count as inside


def entry_name(text: str, source: Path, entry: str) -> str:
    """A path from a user's file, with forward slashes.

    Raises:
        MrtError: it is absolute or leads upwards; the message names ``source`` and ``entry``.
    """
    if len(text) > LONGEST_PATH:
        raise MrtError(
            f"{source}: {entry} has {len(text)} letters, which no path has: {text[:60]!r}...",
            "Mend it, or leave it out: the file may be damaged.",
        )
    path = PurePosixPath(text.strip().replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or not path.name or leads_elsewhere(text.strip()):
        raise MrtError(
            f"{source}: {entry} is {text[:200]!r}, not a path below the image folder",
            "Write paths relative to the image folder: no absolute ones, no '..'.",
        )
    return path.as_posix()


def class_name(value: Any) -> str | None:
    """A class name without blanks around it, or None for what cannot be one."""
    name = value.strip() if isinstance(value, str) else ""
    return name if name and is_text(name) else None


class Size(NamedTuple):
    """Width and height in pixels of the picture that boxes are for.

    ``other``: (width, height) if a photo that its EXIF entry turns is read the other way; ``claimed``:
    whether the annotations state the size.
    """

    width: int
    height: int
    other: tuple[int, int] | None = None
    claimed: bool = False


class Box(NamedTuple):
    """An object before it is cut to its image: corners x0, y0, x1, y1 in pixels, its area in square pixels.

    An area of None means that of the cut box.
    """

    label: str
    corners: tuple[float, float, float, float]
    area: float | None = None
    ignored: bool = False


def measured(place: Path, file: str, claimed: tuple[int, int] | None = None) -> Size | Skipped:
    """The size that the boxes of an image file are for, or why the image cannot be used.

    A picture that its EXIF entry turns has two sizes. The one that the annotations state decides, as in
    :func:`mrt.data.images.read_image`; without one it is the upright one. The boxes may show that the other
    size is meant: :func:`pictured`.

    Args:
        file: its name in the set.
        claimed: (width, height) that the annotations state, or None.
    """
    if not is_text(file):
        return Skipped("file name that is not UTF-8", ascii(file))
    if not file_exists(place):
        return Skipped("image missing", file)
    try:
        header = read_header(place)
    except ImageProblem as problem:
        said = "; ".join(text for text in (problem.detail, problem.hint) if text)
        return Skipped(problem.reason, f"{file} ({said})" if said else file)
    stored, upright = (header.width, header.height), header.upright
    other = {stored: upright, upright: stored} if stored != upright else {}
    if claimed is None or claimed in (upright, stored):
        size = claimed or upright
        return Size(*size, other.get(size), claimed is not None)
    said = f"{stored[0]}x{stored[1]}, not {claimed[0]}x{claimed[1]}"
    return Skipped("image size differs from the annotation's", f"{file} ({said})")


def pictured(
    file: str,
    size: Size,
    boxes: Iterable[Box],
    skipped: Mapping[str, int],
    noted: Mapping[str, str] | None = None,
) -> Picture:
    """The picture with its boxes cut to it; of a photo that EXIF turns, also the other reading.

    Args:
        skipped: objects that are left out already, reason -> how many.
        noted: reason -> an example of it.
    """
    boxes = list(boxes)
    picture = _cut(file, (size.width, size.height), boxes, skipped, noted)
    if size.other is None:
        return picture
    turned = Turned(
        _cut(file, size.other, boxes, skipped, noted),
        _sticking_out(boxes, size.width, size.height),
        _sticking_out(boxes, *size.other),
        size.claimed,
    )
    return picture._replace(turned=turned)


def _cut(
    file: str,
    size: tuple[int, int],
    boxes: Sequence[Box],
    skipped: Mapping[str, int],
    noted: Mapping[str, str] | None,
) -> Picture:
    things, left, out = [], Counter(skipped), 0
    notes = dict(noted or {})
    width, height = size
    for label, corners, area, ignored in boxes:
        box, reason = clip_box(corners, *size)
        if box is None:
            left[reason] += 1
            notes.setdefault(reason, f"{file}: {label} at {', '.join(f'{value:g}' for value in corners)}")
        else:
            x0, y0, x1, y1 = corners
            out += x0 < -_ROUNDING or y0 < -_ROUNDING or x1 > width + _ROUNDING or y1 > height + _ROUNDING
            things.append(Thing(label, box, area if area is not None else box[2] * box[3], ignored))
    return Picture(file, *size, things, dict(left), notes=notes, cut=out)


def _sticking_out(boxes: Sequence[Box], width: int, height: int) -> int:
    right, bottom = width + _ROUNDING, height + _ROUNDING
    return sum(not (x1 <= right and y1 <= bottom) for _, (_, _, x1, y1), _, _ in boxes)


class ImageFinder:
    """Image files by their path inside the raw files, looked up by the end of that path.

    ``notes`` tells which names were found although they are written differently.
    """

    def __init__(self, files: Mapping[str, Path]) -> None:
        self.files = {inside: place for inside, place in files.items() if IMAGES.search(inside)}
        self.others = {inside: place for inside, place in files.items() if inside not in self.files}
        self.notes: list[str] = []
        self._ends = Ends(self.files)
        self._by_stem: dict[str, list[str]] | None = None

    def find(
        self, names: Sequence[str], source: Path, *, split: str | None = None, near: str = ""
    ) -> dict[str, str]:
        """Name -> path inside the raw files, for those names of ``source`` that are found.

        A name means the file whose path ends with it: written exactly so, else in another Unicode form, with
        another suffix case or with ``%20`` for a blank, if that is a single file. Only if this finds none of
        the names, their first folders are left out (they are then those of another machine), as few as
        possible. Among several files the one in the folder with most of the names is taken; a folder of this
        split is preferred to one of another, and one close to the file that lists the names to one further
        away. A file in another split's folder never stands in for a missing one.

        Args:
            names: in the form of :func:`entry_name`.
            split: the split of the images.
            near: path inside the raw files of the file that lists them.

        Raises:
            MrtError: a name that may mean several files; it lists them.
        """
        ends, found = self._ends_found(names)
        self._find_others(ends, found)
        votes = Counter(_above(inside, ends[name]) for name, places in found.items() for inside in places)
        chosen = _best_folder(votes, split, near)
        at_home = chosen is not None and not of_another_split(chosen + "x", split)
        answer: dict[str, str] = {}
        for name, places in found.items():
            if at_home:
                places = [inside for inside in places if not of_another_split(inside, split)]
            home = [inside for inside in places if _above(inside, ends[name]) == chosen]
            if len(home) == 1 or len(places) == 1:
                answer[name] = (home or places)[0]
            elif places:
                raise MrtError(
                    f"{source}: the image {name!r} may be any of {examples(places, 4)}",
                    "Say which folder is meant with --images FOLDER (COCO), or give "
                    "only that folder in --raw.",
                )
        return self._without_doubles(answer, ends, source)

    def ending_with(self, name: str) -> list[str]:
        """All images whose path ends with this one."""
        return self._ends.find(name)

    def of_unknown_alphabet(self) -> str:
        """Words for images in zips whose names have letters of an unknown code page; "" if there are none."""
        for inside, place in self.files.items():
            if says_no_alphabet(place):
                first = f"{inside} in {inside_zip(place)[0].name}"
                what = f"file names that do not say their alphabet, such as {first}"
                return f" ({what}: unpack it where they look right)"
        return ""

    def near_miss(self, name: str) -> str | None:
        """A file with a missing image's name but another suffix, or one that is no image's; for messages."""
        if self._by_stem is None:
            self._by_stem = defaultdict(list)
            for inside in sorted([*self.files, *self.others]):
                self._by_stem[PurePosixPath(plain(inside)).stem].append(inside)
        stem = PurePosixPath(plain(name)).stem
        same = [inside for inside in self._by_stem.get(stem, ()) if not _is_label_file(inside)]

        def likeness(inside: str) -> tuple[int, int]:
            return shared_ends(inside, name), shared_ends(stem_of(inside), stem_of(name))

        return max(same, key=likeness, default=None)

    def _ends_found(self, names: Sequence[str]) -> tuple[dict[str, str], dict[str, list[str]]]:
        """The part of each name that is looked for, and the paths that end with it."""
        deepest = max((name.count("/") for name in names), default=0)
        for dropped in range(deepest + 1):
            ends = {name: "/".join(name.split("/")[min(dropped, name.count("/")) :]) for name in names}
            if dropped and len(set(ends.values())) < len(ends):
                break
            found = {name: self._ends.find(end) for name, end in ends.items()}
            if any(found.values()):
                return ends, found
        return {name: name for name in names}, {}

    def _find_others(self, ends: dict[str, str], found: dict[str, list[str]]) -> None:
        """Where some names are found, look for the others without their first folders.

        Right below one of the raw places, and where nothing contradicts it.
        """
        missing = [name for name, places in found.items() if not places and "/" in ends[name]]
        taken = {inside for places in found.values() for inside in places} if missing else set()
        for name in missing:
            parts = ends[name].split("/")
            for start in range(1, len(parts)):
                end = "/".join(parts[start:])
                if end in self.files and end not in taken:
                    ends[name], found[name] = end, [end]
                    taken.add(end)
                    break

    def _without_doubles(
        self, answer: dict[str, str], ends: Mapping[str, str], source: Path
    ) -> dict[str, str]:
        """Leave out files found for one name exactly and another only nearly; note what was found nearly."""
        exact = {inside for name, inside in answer.items() if inside.endswith(ends[name])}
        nearly = {name: inside for name, inside in answer.items() if not inside.endswith(ends[name])}
        taken = Counter(nearly.values())
        for name, inside in nearly.items():
            if inside in exact or taken[inside] > 1:
                del answer[name]
        kept = [f"{name!r} is {inside}" for name, inside in nearly.items() if name in answer]
        if kept:
            self.notes.append(
                f"{source.name}: {len(kept)} image names are written differently "
                f"from their files', the first: {kept[0]}"
            )
        shorter = [name for name in answer if ends[name] != name]
        if shorter:
            first = shorter[0].removesuffix(ends[shorter[0]])
            self.notes.append(
                f"{source.name}: {len(shorter)} images were found without the first "
                f"folders of their names, such as {first!r}"
            )
        return answer


def _is_label_file(inside: str) -> bool:
    return PurePosixPath(inside).suffix.lower().removeprefix(".") in (*TEXTS, *TABLES)


def _above(inside: str, end: str) -> str:
    """The folders of a path above its last parts, as many as ``end`` has."""
    if inside.endswith(end):
        return inside[: len(inside) - len(end)]
    return "/".join([*inside.split("/")[: -end.count("/") - 1], ""])


def of_another_split(inside: str, split: str | None) -> bool:
    """Whether a file is in a folder that is named after another split than ``split``."""
    theirs = split_of_folder(inside)
    return split in _BASIC and theirs in _BASIC and theirs != split


def _best_folder(votes: Counter[str], split: str | None, near: str) -> str | None:
    """The folder with most of the names among those of the right split, then the one closest to ``near``.

    None if two are equally good.
    """
    if not votes:
        return None
    enough = max(votes.values()) / 2

    def rank(folder: str) -> tuple[int, int, int]:
        of_split = split is not None and split_of_folder(folder + "x") == split
        own = folder == near.rpartition("/")[0] + "/" or of_split
        fit = 2 if own else 0 if of_another_split(folder + "x", split) else 1
        return fit, votes[folder], shared_folders(folder + "x", near)

    best = sorted((folder for folder in votes if votes[folder] >= enough), key=rank, reverse=True)
    return None if len(best) > 1 and rank(best[0]) == rank(best[1]) else best[0]
