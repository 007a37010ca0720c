"""Names of files: their kinds, the splits they name, and names that are written in different ways."""

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
from mrt.data.video import SUFFIXES

# files that are neither in a hidden folder nor added by macOS to zip files
_VISIBLE = r"(?is)^(?!__macosx/)(?!(?:.*/)?\.[^./]).*\.(?:{})\Z"  # a name may have a line break
_IMAGE = "|".join(suffix[1:] for suffix in IMAGE_SUFFIXES)
IMAGES = re.compile(_VISIBLE.format(_IMAGE))
# Pictures and recordings that Pillow alone does not read: only mentioned to the user, unless frames of videos
# are asked for.
FILMS = tuple(suffix[1:] for suffix in SUFFIXES if suffix != ".ts")  # a .ts is more often a program
FOREIGN = (
    *("heic", "heif", "jxl", "dng", "cr2", "cr3", "nef", "arw", "raf", "rw2", "svg", "pdf", "exr", "hdr"),
    *("dcm", "npy"),
    *FILMS,
)
# Annotations, settings and lists, which are read or mentioned to the user.
TEXTS = (
    *("json", "xml", "txt", "yaml", "yml", "names", "data"),
    *("csv", "tsv", "jsonl", "ndjson", "geojson", "lst", "manifest"),
)
TABLES = ("mat", "pkl", "pickle", "parquet", "tfrecord", "tfrecords", "record", "h5", "hdf5", "xlsx", "xls")
# All files that any kind of set is made of. One pattern for all kinds, so that a tar archive has to be
# unpacked only once.
_PACKED = rf"(?:{'|'.join(TEXTS)})\.(?:gz|bz2|xz|zst)"  # a single file, which is no archive
_SHARD = rf"(?:{'|'.join(TABLES)})-\d+-of-\d+"
WANTED = _VISIBLE.format("|".join([_IMAGE, *TEXTS, *TABLES, *FOREIGN, _PACKED, _SHARD]))
BINARY = re.compile(_VISIBLE.format("|".join([*TABLES, _PACKED, _SHARD])))  # labels in no form that is read
_ABOUT = re.compile(
    r"(?i)(^|/)(read[-_ ]?me|licen[cs]e|notice|changelog|changes|authors|citation|requirements|version)"
    r"([.-][a-z]+)*$"
)

_BLANKS = re.compile(r"\s*/\s*")
_SPLITS = {"training": "train", "valid": "val", "validation": "val", "testing": "test"}
_SPLIT = re.compile(r"(?<![a-z])(trainval|training|train|validation|valid|val|testing|test)(?![a-z])")


def split_in(word: str) -> str | None:
    """The split that a word names: "instances_train2017" -> "train", "valid" -> "val", "labels" -> None."""
    found = _SPLIT.search(word.lower())
    return _SPLITS.get(found[1], found[1]) if found else None


def split_of_folder(inside: str) -> str | None:
    """The split named by the innermost of a file's folders that names one."""
    return next((split for parent in PurePosixPath(inside).parents if (split := split_in(parent.name))), None)


def is_about(inside: str) -> bool:
    """Whether a file is about a set (README, LICENSE, ...) and not a part of it."""
    return _ABOUT.search(inside) is not None and not IMAGES.search(inside)


def plain(name: str) -> str:
    """One standard form for the many ways in which tools and systems write the same path.

    That is Unicode's composed form (NFC; a Mac stores the decomposed one), with URL escapes such as ``%20``
    decoded, forward slashes, no blanks around it or a folder, and the suffix in lower case.
    """
    text = _BLANKS.sub("/", name.strip().replace("\\", "/"))
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
    """Paths, found by their end: "b/c.jpg" finds "a/b/c.jpg".

    First by the exact text, else in the form of :func:`plain`, else also ignoring case.
    """

    def __init__(self, paths: Iterable[str]) -> None:
        self.paths = sorted(paths)
        self._indices: list[dict[str, list[tuple[str, str]]] | None] = [None] * len(_FORMS)

    def find(self, end: str, exactly: bool = False) -> list[str]:
        """All paths with this end, in the first way of writing (``_FORMS``) that finds any."""
        for number, form in enumerate(_FORMS[:1] if exactly else _FORMS):
            wanted = form(end)
            found = [
                path
                for path, text in self._index(number).get(_last_two(wanted), ())
                if text == wanted or text.endswith("/" + wanted)
            ]
            if found:
                return found
        return []

    def _index(self, number: int) -> dict[str, list[tuple[str, str]]]:
        """The last part and the last two parts of each path, in one way of writing -> (path, path in it)."""
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
    """Reasons with their counts, the most frequent first: "3 x no box, 1 x box outside the image"."""
    return ", ".join(f"{count} x {reason}" for reason, count in reasons.most_common())
