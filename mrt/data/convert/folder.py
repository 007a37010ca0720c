"""A bare folder of images, for a target domain without labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mrt.data.convert.names import split_of_folder
from mrt.data.convert.places import ImageFinder, measured
from mrt.data.convert.raw import RawFiles, Unpacking, common_root, own_files, relative, require
from mrt.data.convert.recipe import Picture, Recipe, Skipped, Split
from mrt.data.headers import pictures_in

_SPLITS = ("train", "val", "test")


class Job(NamedTuple):
    """An image: its name in the set, and where it is."""

    file: str
    place: str


def recipe(
    raw: Sequence[Path] | RawFiles,
    data_root: Path,
    *,
    classes: Sequence[str] = (),
    domain: str = "custom",
    on_unpack: Unpacking | None = None,
) -> Recipe:
    """All images below folders, or in zip or tar archives, as a set without labels.

    Where folders are named after different splits (train, val, test), each is its own; else all images are
    "train".

    Only images are read: hidden files are ignored, and so are files without an image suffix
    (:data:`mrt.data.headers.IMAGE_SUFFIXES`, upper or lower case), such as annotations. Unreadable images are
    counted as skipped. Sizes are those of the upright pictures (EXIF).

    Args:
        classes: written into the card; training takes its classes from the source, so none are needed.

    Raises:
        MrtError: no images at all; a path that does not exist or an archive that cannot be read.
    """
    files = own_files(raw, data_root, on_unpack)
    found = ImageFinder(files.files).files
    require(
        found,
        "images (.png, .jpg, .tif and all others that Pillow reads)",
        files,
        "Name the folder or archive that they are in.",
    )
    splits = {inside: split_of_folder(inside) for inside in found}
    several = len({split for split in splits.values() if split}) > 1
    parts: dict[str, list[Path]] = {}
    for inside, place in found.items():
        split = splits[inside] if several and splits[inside] in _SPLITS else "train"
        parts.setdefault(split, []).append(place)
    made = {split: _split(parts[split]) for split in _SPLITS if split in parts}
    return Recipe(
        domain, tuple(classes), made, files.source, {"format": "images"}, labelled=False, notes=files.notes
    )


def _split(places: Sequence[Path]) -> Split:
    root = common_root(places)
    return Split(root, sorted(Job(relative(place, root), str(place)) for place in places), convert)


def convert(job: Job) -> Picture | Skipped:
    """The image's size; of a file that holds several pictures, the others are counted as skipped."""
    size = measured(Path(job.place), job.file)
    if isinstance(size, Skipped):
        return size
    others = pictures_in(Path(job.place)) - 1
    skipped = {"picture beside the first of its file (animation, pages)": others} if others > 0 else {}
    return Picture(job.file, size.width, size.height, skipped=skipped)
