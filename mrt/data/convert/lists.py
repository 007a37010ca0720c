"""Text files that say which images are for training and which are held out."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from mrt.data.convert.names import IMAGES, examples, split_in, stem_of
from mrt.data.convert.places import entry_name
from mrt.data.convert.raw import read_bytes
from mrt.data.text import decode_text
from mrt.errors import MrtError

_OFFICIAL = re.compile(r"(?i)^(?P<above>.*?)ImageSets/(?:Main/)?(?P<name>train|val|test|trainval)\.txt$")
# folders of other lists and of labels
_INSIDE = re.compile(r"(?i)(^|/)(ImageSets|labels?|annotations?|label_2)/")
_FLAG = re.compile(r"(?<!\s)\s++-?[01]$")  # in VOC's lists of a class: whether the image holds one
ROOT = re.compile(r"^(?:[A-Za-z]:)?[\\/]+")  # the root of absolute paths
_UP = re.compile(r"^(?:\.{1,2}/+)+")
_ORDER = ("train", "val", "test")


class Listed(NamedTuple):
    """A list of images: split, its path inside the raw files, the folder above its entries, the entries."""

    split: str
    inside: str
    above: str
    entries: list[str]


def read_lines(place: Path) -> list[str]:
    """The lines of a text file in any Unicode encoding; MrtError if it is in another one."""
    try:
        return decode_text(read_bytes(place)).splitlines()
    except UnicodeDecodeError as error:
        raise MrtError(
            f"{place}: not UTF-8 text (byte {error.start})", "Write it anew as UTF-8, or leave it out."
        ) from None


def find_lists(
    files: Mapping[str, Path], known: Callable[[Listed], list[str]], there: Collection[str]
) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Split -> the names of its images, and split -> its list files.

    VOC's ``ImageSets/{train,val,test,trainval}.txt`` if there are some, else text files named after a split
    (``train.txt``, ``2007_test.txt``), if most of their lines are names of the set's images.

    Args:
        known: a list -> its entries as names of the set.
        there: the names that the set has.
    """
    texts = [inside for inside in sorted(files) if inside.lower().endswith(".txt")]
    matches = [match for inside in texts if (match := _OFFICIAL.match(inside))]
    official = [(match["name"].lower(), match["above"], match.string) for match in matches]
    named = [(split_in(PurePosixPath(inside).stem), inside) for inside in texts]
    bare = [(split, "", inside) for split, inside in named if split and not _INSIDE.search(inside)]
    images: set[str] = set()
    if bare:
        images = {stem_of(inside).rpartition("/")[2] for inside in files if IMAGES.search(inside)}
    # a text with an image's name is that image's labels, not a list
    bare = [found for found in bare if stem_of(found[2]).rpartition("/")[2] not in images]
    names: dict[str, list[str]] = {}
    used: dict[str, list[str]] = {}
    by_folder: dict[str, dict[str, list[str]]] = {}
    for split, above, inside in official or bare:
        listed = Listed(split, inside, above, _entries(files[inside], bool(official)))
        found = known(listed)
        if official:  # a flag may follow a name; a name may also end in a number
            bare_names = known(listed._replace(entries=[_FLAG.sub("", entry) for entry in listed.entries]))
            found = [whole if whole in there else name for whole, name in zip(found, bare_names, strict=True)]
        hits = sum(name in there for name in found)
        most_known = 2 * hits >= len(found) or 2 * sum(map(_is_image, listed.entries)) >= len(found)
        if official or (hits and most_known):
            by_folder.setdefault(above, {}).setdefault(split, []).extend(found)
            used.setdefault(split, []).append(inside)
    for lists in by_folder.values():  # a year's trainval is its own train, whatever another year has
        for split, found in (without_trainval(lists) or lists).items():
            names.setdefault(split, []).extend(found)
    return names, used


def _is_image(entry: str) -> bool:
    return IMAGES.search(f"x/{entry}") is not None


def without_trainval(names: dict[str, list[str]]) -> dict[str, list[str]]:
    """The splits train, val and test.

    Where there is no list of train, "trainval" without what val and test hold becomes train.
    """
    splits = dict(names)
    if "train" not in splits and "trainval" in splits:
        held_out = {name for split in ("val", "test") for name in splits.get(split, ())}
        splits["train"] = [name for name in splits["trainval"] if name not in held_out]
    return {split: splits[split] for split in _ORDER if split in splits}


def with_the_rest(names: dict[str, list[str]], every: Collection[str]) -> dict[str, list[str]]:
    """The splits of lists; if none of them is for training, images in no list are."""
    if not names or "train" in names:
        return names
    held_out = {name for split in names.values() for name in split}
    rest = [name for name in sorted(every) if name not in held_out]
    return {"train": rest, **names} if rest else names


def said_of(used: dict[str, list[str]], left: list[str]) -> list[str]:
    """Notes on the lists that were followed, and on images that are in none of them."""
    if not used:
        return []
    said = [
        "splits are those of "
        + ", ".join(f"{examples(insides)} ({split})" for split, insides in used.items())
    ]
    if left:
        said.append(f"{len(left)} images are in no list and left out: {examples(left)}")
    return said


def entries_of(place: Path) -> list[str]:
    """The paths of a list, one a line, to be looked up by their end.

    A drive or a leading slash, as other machines write it, is taken off.

    Raises:
        MrtError: the file is not text, or an entry leads upwards ("..").
    """
    lines = [(number, line.strip()) for number, line in enumerate(read_lines(place), start=1) if line.strip()]
    return [entry_name(ROOT.sub("", line), place, f"line {number}") for number, line in lines]


def _entries(place: Path, official: bool) -> list[str]:
    """The lines of a list, each the name of an image; in an official list a flag (1, 0 or -1) may follow."""
    if not official:
        try:
            lines = [line.strip().replace("\\", "/") for line in read_lines(place) if line.strip()]
            return [entry_name(_UP.sub("", ROOT.sub("", line)), place, "a line") for line in lines]
        except MrtError:
            return []  # some other text that only has a split's name
    numbered = [(number, line.strip()) for number, line in enumerate(read_lines(place), start=1)]
    return [entry_name(line, place, f"line {number}") for number, line in numbered if line]
