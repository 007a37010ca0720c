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
_INSIDE = re.compile(r"(?i)(^|/)(ImageSets|labels?|annotations?|label_2)/")  # other lists than ours, and labels
_FLAG = re.compile(r"\s+-?[01]$")  # VOC's lists of a class: does the image hold one?
ROOT = re.compile(r"^(?:[A-Za-z]:)?[\\/]+")  # of another machine's absolute paths
_UP = re.compile(r"^(?:\.{1,2}/+)+")
_ORDER = ("train", "val", "test")


class Listed(NamedTuple):
    """A list of images: its split, its path inside the raw files, the folder that its entries are below, and the entries as written."""

    split: str
    inside: str
    above: str
    entries: list[str]


def read_lines(place: Path) -> list[str]:
    """The lines of a text file in any Unicode encoding; MrtError if it is none."""
    try:
        return decode_text(read_bytes(place)).splitlines()
    except UnicodeDecodeError as error:
        raise MrtError(f"{place}: not UTF-8 text (byte {error.start})", "Write it anew as UTF-8, or leave it out.") from None


def find_lists(
    files: Mapping[str, Path], known: Callable[[Listed], list[str]], there: Collection[str]
) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Split -> the names of its images, and split -> its list files.

    VOC's ``ImageSets/{train,val,test,trainval}.txt`` if there are some, else text files that speak of a split (``train.txt``,
    ``2007_test.txt``), if most of their lines are names of the set.

    Args:
        known: a list's entries as names of the set. there: the names that the set has.
    """
    texts = [inside for inside in sorted(files) if inside.lower().endswith(".txt")]
    official = [(match["name"].lower(), match["above"], inside) for inside in texts if (match := _OFFICIAL.match(inside))]
    bare = [(split, "", inside) for inside in texts if (split := split_in(PurePosixPath(inside).stem)) and not _INSIDE.search(inside)]
    images = {stem_of(inside).rpartition("/")[2] for inside in files if IMAGES.search(inside)} if bare else set()
    bare = [found for found in bare if stem_of(found[2]).rpartition("/")[2] not in images]  # else it is that image's own text
    names: dict[str, list[str]] = {}
    used: dict[str, list[str]] = {}
    by_folder: dict[str, dict[str, list[str]]] = {}
    for split, above, inside in official or bare:
        listed = Listed(split, inside, above, _entries(files[inside], bool(official)))
        found = known(listed)
        hits = sum(name in there for name in found)
        if official or (hits and (2 * hits >= len(found) or 2 * sum(map(_is_image, listed.entries)) >= len(found))):
            by_folder.setdefault(above, {}).setdefault(split, []).extend(found)
            used.setdefault(split, []).append(inside)
    for lists in by_folder.values():  # a year's trainval is its own train, whatever another year has
        for split, found in (without_trainval(lists) or lists).items():
            names.setdefault(split, []).extend(found)
    return names, used


def _is_image(entry: str) -> bool:
    return IMAGES.search(f"x/{entry}") is not None


def without_trainval(names: dict[str, list[str]]) -> dict[str, list[str]]:
    """The splits train, val and test; "trainval" is train, without what val and test hold, where there is no list of train."""
    splits = dict(names)
    if "train" not in splits and "trainval" in splits:
        held_out = {name for split in ("val", "test") for name in splits.get(split, ())}
        splits["train"] = [name for name in splits["trainval"] if name not in held_out]
    return {split: splits[split] for split in _ORDER if split in splits}


def with_the_rest(names: dict[str, list[str]], every: Collection[str]) -> dict[str, list[str]]:
    """Splits of lists; where none is for training, what the others do not hold is."""
    if not names or "train" in names:
        return names
    held_out = {name for split in names.values() for name in split}
    rest = [name for name in sorted(every) if name not in held_out]
    return {"train": rest, **names} if rest else names


def said_of(used: dict[str, list[str]], left: list[str]) -> list[str]:
    """What to tell people of lists that were followed, and of images that are in none."""
    if not used:
        return []
    said = ["splits are those of " + ", ".join(f"{examples(insides)} ({split})" for split, insides in used.items())]
    if left:
        said.append(f"{len(left)} images are in no list and left out: {examples(left)}")
    return said


def entries_of(place: Path) -> list[str]:
    """The paths of a list, one a line, to be looked up by their end: without a drive or leading slash, as other machines write them.

    Raises:
        MrtError: the file is no text, or an entry climbs up ("..").
    """
    lines = [(number, line.strip()) for number, line in enumerate(read_lines(place), start=1) if line.strip()]
    return [entry_name(ROOT.sub("", line), place, f"line {number}") for number, line in lines]


def _entries(place: Path, official: bool) -> list[str]:
    """The names of a list: of each line all, or of an official one, where a number may follow, the first word."""
    if not official:
        try:
            found = [_UP.sub("", ROOT.sub("", line.strip().replace("\\", "/"))) for line in read_lines(place) if line.strip()]
            return [entry_name(line, place, "a line") for line in found]
        except MrtError:
            return []  # some text that speaks of a split by its name only
    lines = [(number, _FLAG.sub("", line.strip())) for number, line in enumerate(read_lines(place), start=1) if line.strip()]
    return [entry_name(line, place, f"line {number}") for number, line in lines]
