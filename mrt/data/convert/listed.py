"""Sets whose label files list many images each, in the formats of :mod:`mrt.data.convert.bridge`."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from mrt.data.convert import bridge, paired
from mrt.data.convert.names import examples, split_in, split_of_folder
from mrt.data.convert.places import ImageFinder
from mrt.data.convert.raw import RawFiles, Unpacking, common_root, own_files, relative, require
from mrt.data.convert.recipe import Picture, Recipe, Skipped, Split
from mrt.data.convert.sheets import Sheet
from mrt.errors import MrtError

_SPLITS = ("train", "val", "test")
_ROOT = re.compile(r"^(?:[A-Za-z][A-Za-z0-9+.-]*:)?/*(?:\.\.?/+)*")  # of absolute paths and URLs


class Job(NamedTuple):
    """An image and what its label file says of it."""

    file: str
    place: str
    sheet: Sheet


def recipe(
    format: str,
    raw: Sequence[Path] | RawFiles,
    data_root: Path,
    *,
    domain: str = "custom",
    on_unpack: Unpacking | None = None,
) -> Recipe:
    """A user's own set in a format whose files list many images.

    Images are found by the ends of the paths in the label files. A split is what the file says of the image,
    else the word train, val, test or similar in the label file's name, else in its folder's, else in the
    image's folder (which counts more if there is only one label file); else it is "train".
    Images that no label file lists are left out, with a note.

    Raises:
        MrtError: no such label files, no images, an image that two label files list, and what
            :func:`mrt.data.convert.bridge.read` raises.
    """
    files = own_files(raw, data_root, on_unpack)
    finder = ImageFinder(files.files)
    require(finder.files, "images", files, "Give the images' folder or archive too.")
    sheets = bridge.read(format, files.files)
    parts: dict[str, list[tuple[str, Sheet] | Skipped]] = defaultdict(list)
    owners: dict[str, str] = {}
    left_out: set[str | None] = set()  # images that a file lists, and gives no labels
    for inside, by_name in sheets.items():
        ends = {name: _ROOT.sub("", name) for name in by_name}
        stated, usual = _stated_split(inside, alone=len(sheets) == 1)
        divides = any(isinstance(sheet, Sheet) and sheet.split for sheet in by_name.values())
        found = finder.find(
            list(ends.values()), files.files[inside], split=None if divides else stated, near=inside
        )
        if by_name and not found:
            raise MrtError(
                f"{files.files[inside]}: none of its {len(by_name)} images is "
                f"there, the first is {next(iter(by_name))!r}{finder.of_unknown_alphabet()}",
                "Give the images' folder or archive too, in --raw.",
            )
        for name, sheet in by_name.items():
            image = found.get(ends[name])
            said = sheet.split if isinstance(sheet, Sheet) else None
            split = _basic(said or stated or split_of_folder(image or name) or usual)
            if isinstance(sheet, Skipped):
                parts[split].append(sheet)
                left_out.add(image)
            elif image is None:
                parts[split].append(Skipped("image missing", name))
            elif image in owners and owners[image] == inside:
                raise MrtError(
                    f"{files.files[inside]}: lists the image {image} twice, once as {name!r}",
                    "Mend the file, or export it again.",
                )
            elif owners.setdefault(image, inside) != inside:
                raise MrtError(
                    f"--raw {files.source}: {owners[image]} and {inside} both list the image {image}",
                    "Nobody can tell whose labels are true: give one of them.",
                )
            else:
                parts[split].append((image, sheet))
    every = [sheet for by_name in sheets.values() for sheet in by_name.values() if isinstance(sheet, Sheet)]
    classes = sorted({record.label for sheet in every for record in sheet.records if record.label})
    splits = {split: _split(found, finder, classes) for split, found in sorted(parts.items(), key=_order)}
    alone = sorted(finder.files.keys() - owners.keys() - left_out)
    notes = [f"{len(alone)} images are in no label file and left out: {examples(alone)}"] if alone else []
    return Recipe(
        domain,
        tuple(classes),
        splits,
        files.source,
        {"format": format},
        notes=[*files.notes, *finder.notes, *notes],
        read=list(sheets),
    )


def convert(job: Job | Skipped, classes: Sequence[str]) -> Picture | Skipped:
    """One image with its objects."""
    if isinstance(job, Skipped):
        return job
    return paired.picture_of(Path(job.place), job.file, job.sheet, classes)


def _order(item: tuple[str, object]) -> int:
    return _SPLITS.index(item[0])


def _stated_split(inside: str, alone: bool) -> tuple[str | None, str | None]:
    """The split of all images of a label file by its name or folder, and of those whose folders name none.

    Args:
        alone: whether it is the only one: a split that its folder names may then be the whole set's word
            ("training data"), and what its images' folders say counts more.
    """
    named, above = split_in(PurePosixPath(inside).stem), split_of_folder(inside)
    if named is None and alone:
        return None, above
    said = named or above
    return None if said is None else _basic(said), None


def _basic(split: str | None) -> str:
    return split if split in _SPLITS else "train"


def _split(
    found: Sequence[tuple[str, Sheet] | Skipped], finder: ImageFinder, classes: Sequence[str]
) -> Split:
    places = [finder.files[one[0]] for one in found if not isinstance(one, Skipped)]
    root = common_root(places) if places else Path()
    jobs: list[Job | Skipped] = []
    for one in found:
        if isinstance(one, Skipped):
            jobs.append(one)
        else:
            place = finder.files[one[0]]
            jobs.append(Job(relative(place, root), str(place), one[1]))
    return Split(root, jobs, partial(convert, classes=tuple(classes)))
