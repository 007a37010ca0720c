"""Finding the files of a user's own set: which of them are images, whose split they are, and which one an annotation's entry means."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from mrt.data.archives import file_exists, leads_elsewhere
from mrt.data.convert.recipe import Skipped
from mrt.data.headers import IMAGE_SUFFIXES, read_header
from mrt.errors import MrtError

_VISIBLE = r"(?i)^(?!__macosx/)(?!(?:.*/)?\.[^./]).*\.(?:{})$"  # not in a hidden folder, nor what macOS adds to zip files
_IMAGE = "|".join(suffix[1:] for suffix in IMAGE_SUFFIXES)
IMAGES = _VISIBLE.format(_IMAGE)
# All that any kind of set is made of. One pattern for all: what a tar archive is unpacked for once will do for every kind.
WANTED = _VISIBLE.format(f"{_IMAGE}|json|xml|txt|ya?ml|names|data")
_SPLITS = {"training": "train", "valid": "val", "validation": "val", "testing": "test"}
_SPLIT = re.compile(r"(?<![a-z])(trainval|training|train|validation|valid|val|testing|test)(?![a-z])")
_EXAMPLES = 4


def split_in(word: str) -> str | None:
    """The split that a name speaks of: "instances_train2017" -> "train", "valid" -> "val", "labels" -> None."""
    found = _SPLIT.search(word.lower())
    return _SPLITS.get(found[1], found[1]) if found else None


def split_of_folder(inside: str) -> str | None:
    """The split that the nearest of a file's folders speaks of."""
    return next((split for parent in PurePosixPath(inside).parents if (split := split_in(parent.name))), None)


def entry_name(text: str, source: Path, entry: str) -> str:
    """A path out of a user's file with forward slashes; MrtError names ``source`` and ``entry`` if it is absolute or climbs up."""
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
    return name if name and not any("\ud800" <= letter <= "\udfff" for letter in name) else None  # half a character cannot be written


def measured(place: Path, file: str, claimed: tuple[int, int] | None = None) -> tuple[int, int] | Skipped:
    """(width, height) that the boxes of an image file are for, or why the image cannot be used.

    A picture that its EXIF entry turns has two sizes. The claimed one decides, as in :func:`mrt.data.images.read_image`; without one it is
    the upright one.

    Args:
        file: its name in the set. claimed: (width, height) by the annotations, or None.
    """
    try:
        file.encode("utf-8")
    except UnicodeEncodeError:
        return Skipped("file name that is not UTF-8", ascii(file))
    if not file_exists(place):
        return Skipped("image missing", file)
    try:
        header = read_header(place)
    except MrtError:
        return Skipped("image cut short or unreadable", file)
    stored = (header.width, header.height)
    if claimed is None or claimed == header.upright:
        return header.upright
    if claimed == stored:
        return stored
    said = f"{stored[0]}x{stored[1]}, not {claimed[0]}x{claimed[1]}"
    return Skipped("image size differs from the annotation's", f"{file} ({said})")


class ImageFinder:
    """Image files by their path inside the raw files, looked up by the end of that path."""

    def __init__(self, files: Mapping[str, Path]) -> None:
        is_image = re.compile(IMAGES)
        self.files = {inside: place for inside, place in files.items() if is_image.search(inside)}
        self._by_name: dict[str, list[str]] = defaultdict(list)
        for inside in sorted(self.files):
            self._by_name[PurePosixPath(inside).name].append(inside)

    def find(self, names: Sequence[str], source: Path, *, split: str | None = None, near: str = "") -> dict[str, str]:
        """Name -> path inside the raw files, for those names of ``source`` (see :func:`entry_name`) that are there.

        A name means the file whose path ends with it. Only where that is true of none of the names, the last part of each is enough (the
        names then begin with folders of another machine). If there are several such files, it is the one in the folder where most of the
        names are, a folder of this split before one of another; a file in another split's folder is never taken for one that is missing.

        Args:
            split: whose images they are. near: path inside the raw files of what lists them.

        Raises:
            MrtError: a name that may mean several files; it lists them.
        """
        ends = {name: name for name in names}
        found = {name: self._ending(name) for name in ends}
        if not any(found.values()):
            ends = {name: PurePosixPath(name).name for name in ends}
            if len(set(ends.values())) < len(ends):
                return {}
            found = {name: self._ending(end) for name, end in ends.items()}
        votes = Counter(inside[: len(inside) - len(ends[name])] for name, places in found.items() for inside in places)
        chosen = _best_folder(votes, split, near)
        at_home = chosen is not None and not of_another_split(chosen + "x", split)
        answer = {}
        for name, places in found.items():
            if at_home:
                places = [inside for inside in places if not of_another_split(inside, split)]
            if chosen is not None and chosen + ends[name] in places:
                answer[name] = chosen + ends[name]
            elif len(places) == 1:
                answer[name] = places[0]
            elif places:
                listed = ", ".join(places[:_EXAMPLES]) + (f" and {len(places) - _EXAMPLES} more" if len(places) > _EXAMPLES else "")
                raise MrtError(f"{source}: the image {name!r} may be any of {listed}", "Say which folder is meant with --images FOLDER.")
        return answer

    def _ending(self, name: str) -> list[str]:
        return [inside for inside in self._by_name.get(PurePosixPath(name).name, ()) if inside == name or inside.endswith("/" + name)]


def of_another_split(inside: str, split: str | None) -> bool:
    """Whether a file is in the folder of another split than ``split``."""
    theirs = split_of_folder(inside)
    basic = ("train", "val", "test")
    return split in basic and theirs in basic and theirs != split


def _best_folder(votes: Counter[str], split: str | None, near: str) -> str | None:
    """The folder with most of the names among those of the right split; None if two are as good."""
    if not votes:
        return None
    enough = max(votes.values()) / 2

    def rank(folder: str) -> tuple[int, int]:
        own = folder == near.rpartition("/")[0] + "/" or (split is not None and split_of_folder(folder + "x") == split)
        return (2 if own else 0 if of_another_split(folder + "x", split) else 1), votes[folder]

    best = sorted((folder for folder in votes if votes[folder] >= enough), key=rank, reverse=True)
    return None if len(best) > 1 and rank(best[0]) == rank(best[1]) else best[0]
