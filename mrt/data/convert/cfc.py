"""CFC-DAOD: fish in sonar images, the Caltech Fish Counting data set for domain adaptation.

Kay et al., "Align and Distill", arXiv 2403.12029.

The owners' downloads (data.caltech.edu/records/bseww-80110; github.com/visipedia/caltech-fish-counting,
CFC-DAOD/README.md)::

    cfc_train.zip, cfc_val.zip                      Kenai, the left bank: the source
                                                    76,619 and 30,454 images
    cfc_channel_train.zip, cfc_channel_test.zip     Kenai Channel: the target
                                                    29,089 and 13,091 images
    cfc_train.json, cfc_val.json, ...               COCO files, one for each archive, of the same name

Each location is a set of its own. Images have three channels ("Baseline++"), of a frame and its neighbours.
Training on the target must not use its labels; the benchmark reports AP50 on the target's test images.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from mrt.data.convert.cityscapes import missing_splits
from mrt.data.convert.owners_coco import Content, Job, convert, read
from mrt.data.convert.raw import RawFiles, Unpacking, common_root, relative
from mrt.data.convert.recipe import Recipe, Split
from mrt.errors import MrtError

CLASSES = ("fish",)
FILES = {
    "kenai": {"train": "cfc_train", "val": "cfc_val"},
    "channel": {"train": "cfc_channel_train", "test": "cfc_channel_test"},
}
IMAGES = {"kenai": {"train": 76_619, "val": 30_454}, "channel": {"train": 29_089, "test": 13_091}}
SITE = "data.caltech.edu/records/bseww-80110"
_WANTED = r"(?i)^(?!__macosx/).*?(cfc_(channel_)?(train|val|test)\.json|(^|/)[^/.][^/]*\.(jpe?g|png))$"


def recipe(
    raw: Sequence[Path], data_root: Path, *, location: str, on_unpack: Unpacking | None = None
) -> Recipe:
    """One location: "kenai" has the splits train and val, "channel" train and test.

    Boxes are the files' own. The class is "fish", whatever a file calls its one category. Images are found by
    the end of their path, or by their name alone if no image fits with its folders; if several fit, the one
    in the folder or archive with the label file's name is taken. A split without images or labels is left out
    (the card's ``missing_splits``).

    Args:
        raw: the zip archives (read in place) and JSON files; the folder they are in; or folders unpacked by
            hand.

    Raises:
        MrtError: an unknown location, no labels or images of it, a label file that cannot be used or has
            several classes, a file name that may mean several images.
    """
    if location not in FILES:
        raise MrtError(
            f"location is {location!r}, expected {' or '.join(FILES)}",
            "Kenai is the source, the channel the target.",
        )
    files = RawFiles([path for path in raw if not _is_label_file(path)], _WANTED, data_root, on_unpack)
    names = FILES[location]
    labels = {
        split: place for split, name in names.items() if (place := _label_place(files, raw, name)) is not None
    }
    _require(labels, raw, [f"{name}.json" for name in names.values()])
    images = _by_name(files)
    found = {split: _split(labels[split], images) if split in labels else None for split in names}
    splits = {split: made for split, made in found.items() if made is not None}
    _require(splits, raw, [f"{name}.zip" for name in names.values()], "images of ")
    return Recipe(
        domain=location,
        classes=CLASSES,
        splits=splits,
        source=", ".join(Path(path).name for path in raw),
        details={"location": location, "format": "Baseline++"} | missing_splits(found),
        expected={split: {"images": number} for split, number in IMAGES[location].items()},
    )


def _require(found: Any, raw: Sequence[Path], files: Sequence[str], what: str = "") -> None:
    if not found:
        given = " ".join(str(path) for path in raw)
        raise MrtError(
            f"--raw {given}: holds no {what}{' or '.join(files)}",
            f"Give {' and '.join(files)}, too: they are on {SITE}.",
        )


def _is_label_file(path: Path | str) -> bool:
    """Whether ``--raw`` names a label file itself (they are published unpacked)."""
    return Path(path).suffix.lower() == ".json" and Path(path).expanduser().is_file()


def _label_place(files: RawFiles, raw: Sequence[Path], name: str) -> Path | None:
    """Where the label file of that name is; files that ``--raw`` names come first."""
    for path in raw:
        if _is_label_file(path) and Path(path).stem == name:
            return Path(path).expanduser().absolute()
    named = (inside for inside in sorted(files.files) if PurePosixPath(inside).name == f"{name}.json")
    return next((files.files[inside] for inside in named), None)


def _by_name(files: RawFiles) -> dict[str, list[tuple[str, Path]]]:
    """The images, (path inside, where it is), by the last part of their path."""
    found: dict[str, list[tuple[str, Path]]] = defaultdict(list)
    for inside in sorted(files.files):
        if not inside.lower().endswith(".json"):
            found[PurePosixPath(inside).name].append((inside, files.files[inside]))
    return found


def _split(labels: Path, images: Mapping[str, list[tuple[str, Path]]]) -> Split | None:
    """The images that a label file lists; None if none of them is there."""
    content = _read(labels)
    found = {entry.name: _ending(entry.name, images) for entry in content.images}
    if not any(found.values()):
        found = {entry.name: images.get(PurePosixPath(entry.name).name, []) for entry in content.images}
    places = {name: _one_of(several, name, labels) for name, several in found.items() if several}
    if not places:
        return None
    root = common_root(list(places.values()))
    jobs = []
    for entry in content.images:
        place = places.get(entry.name)
        jobs.append(Job(place, entry.name if place is None else relative(place, root), entry))
    return Split(root, jobs, partial(convert, classes=CLASSES), dict(content.skipped))


def _read(labels: Path) -> Content:
    """A label file, with its one class under our name."""
    content = read(labels, f"Get it again from {SITE}.")
    if len(content.classes) != 1:
        raise MrtError(
            f"{labels}: its classes are {', '.join(content.classes) or 'none'}, expected one, fish",
            f"Get it again from {SITE}.",
        )
    named = [
        entry._replace(objects=tuple(item._replace(label=CLASSES[0]) for item in entry.objects))
        for entry in content.images
    ]
    return content._replace(images=named)


def _ending(name: str, images: Mapping[str, list[tuple[str, Path]]]) -> list[tuple[str, Path]]:
    same = images.get(PurePosixPath(name).name, ())
    return [item for item in same if item[0] == name or item[0].endswith(f"/{name}")]


def _one_of(several: Sequence[tuple[str, Path]], name: str, labels: Path) -> Path:
    """The image in the folder or archive that is named as the label file, if there is a choice."""
    places = [place for _, place in several]
    own = [place for place in places if labels.stem in {part.removesuffix(".zip") for part in place.parts}]
    if len(own or places) > 1:
        raise MrtError(
            f"{labels}: the image {name!r} may be any of {', '.join(map(str, (own or places)[:4]))}",
            "Give only the right folder as --raw.",
        )
    return (own or places)[0]
