"""Names of files: which kinds there are, what split a name speaks of, and finding a file whose name is written a little differently."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import PurePosixPath
from posixpath import splitext
from urllib.parse import unquote

from mrt.data.headers import IMAGE_SUFFIXES

_VISIBLE = r"(?i)^(?!__macosx/)(?!(?:.*/)?\.[^./]).*\.(?:{})$"  # not in a hidden folder, nor what macOS adds to zip files
_IMAGE = "|".join(suffix[1:] for suffix in IMAGE_SUFFIXES)
IMAGES = re.compile(_VISIBLE.format(_IMAGE))
# Pictures and recordings that Pillow alone does not read: only told of.
FOREIGN = (
    "heic",
    "heif",
    "jxl",
    "dng",
    "cr2",
    "cr3",
    "nef",
    "arw",
    "raf",
    "rw2",
    "svg",
    "pdf",
    "exr",
    "hdr",
    "dcm",
    "npy",
    "mp4",
    "avi",
    "mov",
)
# Annotations, settings and lists, read or told of.
TEXTS = ("json", "xml", "txt", "yaml", "yml", "names", "data", "csv", "tsv", "jsonl", "ndjson", "geojson", "lst")
TABLES = ("mat", "pkl", "pickle", "parquet", "tfrecord", "tfrecords", "record", "h5", "hdf5", "xlsx", "xls")
# All that any kind of set is made of. One pattern for all: what a tar archive is unpacked for once will do for every kind.
WANTED = _VISIBLE.format("|".join([_IMAGE, *TEXTS, *TABLES, *FOREIGN]))
_ABOUT = re.compile(r"(?i)(^|/)(read[-_ ]?me|licen[cs]e|notice|changelog|changes|authors|citation|requirements|version)([.-][a-z]+)*$")

_SPLITS = {"training": "train", "valid": "val", "validation": "val", "testing": "test"}
_SPLIT = re.compile(r"(?<![a-z])(trainval|training|train|validation|valid|val|testing|test)(?![a-z])")


def split_in(word: str) -> str | None:
    """The split that a name speaks of: "instances_train2017" -> "train", "valid" -> "val", "labels" -> None."""
    found = _SPLIT.search(word.lower())
    return _SPLITS.get(found[1], found[1]) if found else None


def split_of_folder(inside: str) -> str | None:
    """The split that the nearest of a file's folders speaks of."""
    return next((split for parent in PurePosixPath(inside).parents if (split := split_in(parent.name))), None)


def is_about(inside: str) -> bool:
    """Whether a file tells people of a set (README, LICENSE, ...): it is no part of it."""
    return _ABOUT.search(inside) is not None and not IMAGES.search(inside)


def plain(name: str) -> str:
    """A path in one form of the many in which tools and systems write the same one.

    That is Unicode's composed form (NFC; a Mac stores the decomposed one), ``%20`` and the like decoded (URLs), forward slashes, no blanks
    around it, and the suffix in lower case.
    """
    text = name.strip().replace("\\", "/")
    if "%" in text:
        with suppress(UnicodeDecodeError):
            text = unquote(text, errors="strict")
    stem, dot, suffix = text.rpartition(".")
    if dot and not suffix.islower() and "/" not in suffix:
        text = f"{stem}.{suffix.lower()}"
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def stem_of(inside: str) -> str:
    """The path without its last suffix."""
    return splitext(inside)[0]


class Ends:
    """Paths, found by their end: "b/c.jpg" finds "a/b/c.jpg"; written exactly so, else as :func:`plain` has it, else in any case."""

    def __init__(self, paths: Iterable[str]) -> None:
        self.paths = sorted(paths)
        self._indices: list[dict[str, list[tuple[str, str]]] | None] = [None] * len(_FORMS)

    def find(self, end: str, exactly: bool = False) -> list[str]:
        """All paths that end so, in the first of the ways of writing in which there is one."""
        for number, form in enumerate(_FORMS[:1] if exactly else _FORMS):
            wanted = form(end)
            found = [path for path, text in self._index(number).get(_last_two(wanted), ()) if text == wanted or text.endswith("/" + wanted)]
            if found:
                return found
        return []

    def _index(self, number: int) -> dict[str, list[tuple[str, str]]]:
        """The last name, and the last two, of each path as a way of writing has it -> (path, so written)."""
        index = self._indices[number]
        if index is None:
            index = self._indices[number] = defaultdict(list)
            for path in self.paths:
                text = _FORMS[number](path)
                for key in dict.fromkeys((text.rpartition("/")[2], _last_two(text))):
                    index[key].append((path, text))
        return index


def _last_two(path: str) -> str:
    return "/".join(path.rsplit("/", 2)[-2:])


def _folded(name: str) -> str:
    return plain(name).casefold()


def _as_it_is(name: str) -> str:
    return name


_FORMS: tuple[Callable[[str], str], ...] = (_as_it_is, plain, _folded)


def shared_folders(one: str, other: str) -> int:
    """How many of their first folders two paths have in common."""
    count = 0
    for a, b in zip(PurePosixPath(one).parent.parts, PurePosixPath(other).parent.parts, strict=False):
        if a != b:
            break
        count += 1
    return count


def shared_ends(one: str, other: str) -> int:
    """How many of their last parts two paths have in common."""
    count = 0
    for a, b in zip(reversed(one.split("/")), reversed(other.split("/")), strict=False):
        if a != b:
            break
        count += 1
    return count


def examples(names: Iterable[str], most: int = 3) -> str:
    """The first few of some names, for a message: "a, b, c and 4 more"."""
    listed = list(names)
    shown = ", ".join(name.encode("utf-8", "backslashreplace").decode() for name in listed[:most])
    return shown + (f" and {len(listed) - most} more" if len(listed) > most else "")


def counted_reasons(reasons: Counter[str]) -> str:
    """Reasons with their numbers, the most frequent first: "3 x no box, 1 x box outside the image"."""
    return ", ".join(f"{count} x {reason}" for reason, count in reasons.most_common())
