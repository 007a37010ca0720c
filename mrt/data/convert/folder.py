"""A bare folder of images, for a target domain without labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mrt.data.convert.places import ImageFinder, measured
from mrt.data.convert.raw import RawFiles, Unpacking, common_root, own_files, relative, require
from mrt.data.convert.recipe import Picture, Recipe, Skipped, Split


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
    """All images below folders, or in zip or tar archives, as the split "train" of a set without labels.

    Files that are no images by their suffix (:data:`mrt.data.headers.IMAGE_SUFFIXES`, upper or lower case) and hidden ones are passed
    over, and so are annotation files: nothing is read but images. Unreadable images are counted as skipped. Sizes are those of the upright
    pictures (EXIF).

    Args:
        classes: written into the card; training takes its classes from the source, so none are needed.

    Raises:
        MrtError: no images at all; a path that does not exist or an archive that cannot be read.
    """
    files = own_files(raw, data_root, on_unpack)
    found = ImageFinder(files.files).files
    require(found, "images (.png, .jpg, .tif and all others that Pillow reads)", files, "Name the folder or archive that they are in.")
    root = common_root(list(found.values()))
    jobs = sorted(Job(relative(place, root), str(place)) for place in found.values())
    split = Split(root, jobs, convert)
    return Recipe(domain, tuple(classes), {"train": split}, files.source, {"format": "images"}, labelled=False, notes=files.notes)


def convert(job: Job) -> Picture | Skipped:
    """The image's size."""
    size = measured(Path(job.place), job.file)
    return size if isinstance(size, Skipped) else Picture(job.file, size.width, size.height)
