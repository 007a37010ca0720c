"""Label files that list many images: what a reader of such a format returns, and how it is described.

A format is a module with a :class:`Listing` called ``LISTING``; :mod:`mrt.data.convert.bridge` finds the
files and calls it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mrt.data.convert.places import ImageFinder
from mrt.data.convert.recipe import Skipped
from mrt.data.convert.sheets import Record, Sheet
from mrt.data.headers import read_header
from mrt.data.limits import LONGEST_PATH
from mrt.errors import MrtError
from mrt.plain import is_text

Files = Mapping[str, Path]  # path inside the raw files -> where to read it


@dataclass(frozen=True)
class Listing:
    """A kind of label file that lists many images.

    Attributes:
        name: what ``--format`` calls it.
        suffixes: of its label files, in lower case.
        needs: one line for messages: which files.
        read: (label file, which may be a zip's member; all raw files, some of which it may need too) -> each
            image's path as the file has it, and its sheet, or why the image is left out. MrtError: the whole
            file cannot be read, or something in it must not be ignored.
        looks: (first 64 KiB of a file, its path inside the raw files) -> whether it is such a label file.
            Must be quick and reliable.
    """

    name: str
    suffixes: tuple[str, ...]
    needs: str
    read: Callable[[Path, Files], Mapping[str, Sheet | Skipped]]
    looks: Callable[[bytes, str], bool]


def image_name(value: Any, place: Path, entry: str) -> str:
    """An image's path as the file has it, with forward slashes; MrtError if there is none."""
    name = value.strip().replace("\\", "/") if isinstance(value, str) else ""
    if not name or len(name) > LONGEST_PATH or not is_text(name):
        raise MrtError(
            f"{place}: {entry} has no image's name ({repr(value)[:80]})",
            "Mend or remove this entry, or export the file again.",
        )
    return name


def refuse_twins(names: Sequence[str], place: Path, hint: str) -> None:
    """MrtError if two entries name the same image: nobody could tell to which one the boxes belong."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise MrtError(f"{place}: lists the image {name!r} more than once", hint)
        seen.add(name)


def upright_sizes(names: Iterable[str], place: Path, files: Files) -> dict[str, tuple[int, int]]:
    """(width, height) of the images that are there, upright by their EXIF entry.

    For coordinates that are given as shares of the image.

    Raises:
        MrtError: a name that may mean several files.
    """
    finder = ImageFinder(files)
    sizes = {}
    for name, inside in finder.find(list(names), place, near=_inside(place, files)).items():
        try:
            sizes[name] = read_header(finder.files[inside]).upright
        except MrtError:  # cut short: counted where the image is read
            continue
    return sizes


def in_pixels(sheet: Sheet, size: tuple[int, int] | None) -> Sheet:
    """A sheet with boxes in shares of the image, converted to pixels; without a size no objects are kept."""
    if size is None:
        lost = {"object of an image that is missing": len(sheet.records)} if sheet.records else {}
        return Sheet(None, (), {**sheet.skipped, **lost})
    return sheet._replace(records=tuple(_scaled(record, size) for record in sheet.records))


def _scaled(record: Record, size: tuple[int, int]) -> Record:
    if record.box is None:
        return record
    (x0, y0, x1, y1), (width, height) = record.box, size
    return record._replace(box=(x0 * width, y0 * height, x1 * width, y1 * height))


def _inside(place: Path, files: Files) -> str:
    return next((inside for inside, there in files.items() if there == place), "")
