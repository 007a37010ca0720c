"""Label files that come one for each image: what a reader of such a format returns, and how it is described.

A format is a module of :mod:`mrt.data.convert.formats` with a :class:`Format` called ``FORMAT``. Finding
files, pairing them with their images, splits, classes, EXIF, clipping and counting are the same for all of
them: :mod:`mrt.data.convert.paired`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from mrt.data.convert.recipe import Skipped


class Record(NamedTuple):
    """An annotated object as its file has it.

    ``box``: x0, y0, x1, y1 in pixels, distances from the upper left corner of the image to the box's edges
    (so width = x1 - x0), NaN for what is not a number; None if the object has no box. ``ignored``: counts
    neither as found nor as missed, as with COCO's ``iscrowd``.
    """

    label: str
    box: tuple[float, float, float, float] | None
    ignored: bool = False


class Sheet(NamedTuple):
    """What a label file says of its image.

    ``size`` is (width, height) in pixels, None where the file does not state it; ``skipped``: reason -> how
    many of its entries are no objects; ``split``: train, val or test, where the file states it of the image.
    """

    size: tuple[int, int] | None
    records: tuple[Record, ...]
    skipped: Mapping[str, int] = {}
    split: str | None = None


@dataclass(frozen=True)
class Format:
    """A kind of label file, one for each image.

    Attributes:
        name: what ``--format`` calls it.
        suffixes: of its label files, in lower case.
        needs: one line for messages: which files, where.
        read: (label file, which may be a zip's member) -> its content, or why it cannot be used. MrtError:
            the conversion must stop.
        looks: (first 64 KiB of a file, its path inside the raw files) -> whether it is such a label file.
            Must be quick and reliable.
        classes: the format's own class names in order; None: those that the files use, sorted.
        stated: label file -> the image's name that it states, or None.
        folders: names of folders that hold labels or images, in lower case, beside the usual ones (labels,
            annotations, images, ...).
        beside: names of further files of the format, in lower case, which are no image's labels.
    """

    name: str
    suffixes: tuple[str, ...]
    needs: str
    read: Callable[[Path], Sheet | Skipped]
    looks: Callable[[bytes, str], bool]
    classes: tuple[str, ...] | None = None
    folders: frozenset[str] = field(default_factory=frozenset)
    stated: Callable[[Path], str | None] | None = None
    beside: frozenset[str] = field(default_factory=frozenset)
