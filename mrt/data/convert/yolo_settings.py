"""What a YOLO set states about itself: class names and splits.

In ``data.yaml``, darknet's ``*.data``, name files, lists and folders.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path, PurePosixPath
from posixpath import splitext
from typing import Any, NamedTuple

import yaml

from mrt.data.convert.lists import (
    ROOT,
    Listed,
    entries_of,
    find_lists,
    read_lines,
    said_of,
    with_the_rest,
    without_trainval,
)
from mrt.data.convert.names import Ends, examples, plain, shared_folders, split_in, split_of_folder, stem_of
from mrt.data.convert.places import ImageFinder, class_name, of_another_split
from mrt.data.convert.raw import RawFiles, read_bytes, require
from mrt.data.limits import LONGEST_PATH, YAML, YAML_VARIABLE, allowed
from mrt.data.text import decode_head, decode_text
from mrt.errors import MrtError

# keys of data.yaml -> ours
SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
HINT = (
    "A YOLO set is a data.yaml with 'names', 'train' and 'val', "
    "images/*/*.jpg, and for each image labels/*/*.txt."
)
_HEAD = 1 << 20  # bytes of a file that tell whether it is such a file
_BYTES_EACH = 20  # of the names, values and lists in a YAML file
# what reading broken YAML raises; a TypeError comes from a list as a key
_BROKEN_YAML = (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError, TypeError)


class Settings(NamedTuple):
    """What ``data.yaml`` or a similar file says.

    ``splits``: our split -> its paths as written; ``inside``: the file's own path inside the raw files.
    """

    names: dict[int, str]
    splits: dict[str, list[str]]
    base: str
    pose: bool
    inside: str


def settings_and_names(files: RawFiles) -> list[str]:
    """Paths inside the raw files of the files that name a YOLO set's classes."""
    return [*_settings_files(files.files), *_darknet_files(files.files), *_names_files(files.files)]


def find_sets(files: RawFiles, finder: ImageFinder) -> list[tuple[Settings, ImageFinder]]:
    """The sets in the raw files, each with its images: one, or several in separate folders."""
    there = files.files
    yamls = _settings_files(there)
    named = [inside for inside in yamls if PurePosixPath(inside).stem in ("data", "dataset")]
    yamls = named or yamls
    darknet = [] if yamls else _darknet_files(there)
    if len({read_bytes(there[inside]) for inside in yamls}) == 1:  # copied into each split's folder
        yamls = yamls[:1]
    if yamls or darknet:
        folders = [_folder(inside) for inside in yamls] if yamls else [_folder(inside) for inside in darknet]
        if len(folders) > 1 and _nested(folders):
            every = ", ".join([*yamls, *darknet][:6])
            raise MrtError(
                f"--raw {files.source}: several YOLO files with class names: {every}",
                "Give the folder of one set.",
            )
        read = [_read_settings(there[inside], inside) for inside in yamls] or [
            _read_darknet(inside, files) for inside in darknet
        ]
        return _parted(read, folders, finder)
    names = _names_files(there)
    require(
        names,
        "class names (data.yaml, classes.txt or *.names)",
        files,
        HINT + " Or write a classes.txt, one name a line.",
    )
    lists = {inside: [line.strip() for line in read_lines(there[inside])] for inside in names}
    if all(found == lists[names[0]] for found in lists.values()):
        lists = {names[0]: lists[names[0]]}
    folders = [_folder(inside) for inside in lists]
    if len(lists) > 1 and (parts := _by_labels(list(lists), files, finder)) is not None:
        return [(_named(inside, lists[inside]), part) for inside, part in parts.items()]
    if len(lists) > 1 and _nested(folders):
        raise MrtError(
            f"--raw {files.source}: different class names in {', '.join(names[:6])}",
            "Give the folder of one set.",
        )
    return _parted([_named(inside, found) for inside, found in lists.items()], folders, finder)


def _named(inside: str, names: Sequence[str]) -> Settings:
    """The settings of a file of class names, which says nothing else."""
    return Settings({number: name for number, name in enumerate(names) if name}, {}, "", False, inside)


def _by_labels(names: Sequence[str], files: RawFiles, finder: ImageFinder) -> dict[str, ImageFinder] | None:
    """Files of class names among label files (labels/train/classes.txt, labels/val/classes.txt) -> the images
    with labels there; None unless that is so, each image has one, and each file has images.
    """
    folders = {f"{PurePosixPath(inside).parent}/": inside for inside in names}
    if len(folders) < len(names) or _nested(list(folders)):
        return None
    images: dict[str, list[str]] = {inside: [] for inside in names}
    for image in finder.files:
        label = next((place for place in label_places(image) if place in files.files), image)
        folder = next((folder for folder in folders if label.startswith(folder)), None)
        if folder is None:
            return None
        images[folders[folder]].append(image)
    if not all(images.values()):
        return None
    return {
        inside: ImageFinder({**{image: finder.files[image] for image in found}, **finder.others})
        for inside, found in images.items()
    }


def label_places(inside: str) -> list[str]:
    """Where the label file of an image may be.

    Below ``labels`` in place of ``images``, or beside it; as a.txt or a.jpg.txt.
    """
    parts = inside.split("/")
    bases = [inside]
    for number in range(len(parts) - 2, -1, -1):
        if parts[number].lower() in ("images", "jpegimages"):
            bases.insert(0, "/".join([*parts[:number], "labels", *parts[number + 1 :]]))
            break
    return [*(f"{splitext(base)[0]}.txt" for base in bases), *(f"{base}.txt" for base in bases)]


def _folder(inside: str) -> str:
    """The folder of the set to which a settings or names file belongs; it may lie among the labels."""
    parts = PurePosixPath(inside).parent.parts
    while parts and parts[-1].lower() in ("labels", "images", "cfg", "data", "yolo"):
        parts = parts[:-1]
    return "/".join([*parts, ""])


def _nested(folders: Sequence[str]) -> bool:
    ordered = sorted(folders)
    return any(second.startswith(first) for first, second in pairwise(ordered))


def _parted(
    read: Sequence[Settings], folders: Sequence[str], finder: ImageFinder
) -> list[tuple[Settings, ImageFinder]]:
    if len(read) == 1:
        return [(read[0], finder)]
    parts = []
    for settings, folder in zip(read, folders, strict=True):
        every = {**finder.files, **finder.others}
        part = ImageFinder({inside: every[inside] for inside in every if inside.startswith(folder)})
        if not part.files:
            raise MrtError(
                f"{settings.inside}: no images in its folder, which holds class names of its own",
                "Give the folder of one set.",
            )
        parts.append((settings, part))
    return parts


def _settings_files(files: Mapping[str, Path]) -> list[str]:
    """Paths inside the raw files of the files that are a set's ``data.yaml``."""
    found = [inside for inside in sorted(files) if re.search(r"(?i)\.ya?ml$", inside)]
    heads = {inside: decode_head(read_bytes(files[inside], _HEAD)) for inside in found}
    return [inside for inside in found if re.search(r"(?m)^[\"']?names[\"']?\s*:", heads[inside])]


def _darknet_files(files: Mapping[str, Path]) -> list[str]:
    """Paths inside the raw files of darknet's ``*.data`` files."""
    found = [inside for inside in sorted(files) if inside.lower().endswith(".data")]
    heads = {inside: decode_head(read_bytes(files[inside], _HEAD)) for inside in found}
    return [inside for inside in found if re.search(r"(?m)^[^\S\n]*names[^\S\n]*=", heads[inside])]


def _read_darknet(inside: str, files: RawFiles) -> Settings:
    """What darknet's ``KEY = VALUE`` file says.

    ``names`` is a file of class names; ``train``, ``valid`` and ``test`` are lists.
    """
    place = files.files[inside]
    pairs = [line.partition("#")[0].partition("=") for line in read_lines(place)]
    said = {key.strip().lower(): value.strip() for key, equals, value in pairs if equals and value.strip()}
    for key in ("names", *SPLITS):
        _require_path(said.get(key, ""), key, place)
    there = Ends(path for path in files.files)
    end = ROOT.sub("", said.get("names", "").replace("\\", "/")).lstrip("./")
    found: list[str] = []
    parts = end.split("/") if end else []
    while parts and not found:  # the longest end that finds a file
        found = there.find("/".join(parts))
        parts = parts[1:]
    found = _nearest(found, inside)
    if len(found) != 1:
        raise MrtError(
            f"{place}: names is {said.get('names', '')!r}, and there is no such file",
            "Give the folder that holds it in --raw.",
        )
    lines = [line.strip() for line in read_lines(files.files[found[0]])]
    splits = {SPLITS[key]: [said[key]] for key in SPLITS if key in said}
    return Settings({number: name for number, name in enumerate(lines) if name}, splits, "", False, inside)


def _read_settings(place: Path, inside: str) -> Settings:
    most = _BYTES_EACH * allowed(YAML_VARIABLE, YAML)
    content = read_bytes(place, most + 1)
    if len(content) > most:
        raise _too_much(place, f"more than {most} bytes")
    try:
        found = _Loader(decode_text(content), place).get_single_data()
    except _BROKEN_YAML as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", "")
        where = f"line {mark.line + 1}: {problem}" if mark else str(error).splitlines()[0]
        raise MrtError(f"{place}: not valid YAML ({where})", HINT) from None
    if not isinstance(found, dict):
        raise MrtError(f"{place}: holds {type(found).__name__}, expected keys such as names and train", HINT)
    names = _names(found.get("names"), place)
    count = found.get("nc")
    if isinstance(count, str) and _is_number(count) and int(count) != len(names):
        raise MrtError(
            f"{place}: nc is {count}, but there are {len(names)} names",
            "Mend the one that is wrong: class numbers depend on it.",
        )
    splits: dict[str, list[str]] = {}
    for key, split in SPLITS.items():
        value = found.get(key)
        paths = [value] if isinstance(value, str) else value if isinstance(value, list) else []
        if not all(isinstance(path, str) for path in paths):
            raise MrtError(f"{place}: {key} is no path or list of paths", HINT)
        for path in paths:
            _require_path(path, key, place)
        splits.setdefault(split, []).extend(path for path in paths if path.strip() not in ("", "~", "null"))
    base = found.get("path")
    _require_path(base if isinstance(base, str) else "", "path", place)
    folder = PurePosixPath(inside).parent.as_posix()
    parts = [folder, base if isinstance(base, str) and not PurePosixPath(base).is_absolute() else ""]
    return Settings(
        names,
        {split: paths for split, paths in splits.items() if paths},
        "/".join(parts),
        "kpt_shape" in found,
        inside,
    )


class _Loader(yaml.BaseLoader):
    """Reads every scalar as a text: YAML would make a class called "no" a boolean.

    A file of so many entries that reading it would take minutes is refused.
    """

    def __init__(self, text: str, place: Path) -> None:
        super().__init__(text)
        self._entries, self._most, self._place = 0, allowed(YAML_VARIABLE, YAML), place

    def compose_node(self, parent: Any, index: Any) -> Any:
        self._entries += 1
        if self._entries > self._most:
            raise _too_much(self._place, f"more than {self._most} names and values")
        return super().compose_node(parent, index)


def _too_much(place: Path, found: str) -> MrtError:
    return MrtError(
        f"{place}: {found} are too much for a YOLO settings file",
        "If it is to be trusted, write its class names into a classes.txt in its place, one a line, or allow "
        f"more with the environment variable {YAML_VARIABLE}={20 * allowed(YAML_VARIABLE, YAML)}.",
    )


def _require_path(text: str, key: str, place: Path) -> None:
    if len(text) > LONGEST_PATH:
        raise MrtError(f"{place}: {key} has {len(text)} letters, which no path has: {text[:60]!r}...", HINT)


def _is_number(text: str) -> bool:
    return text.strip().isdecimal() and len(text) < 10


def _names(found: Any, place: Path) -> dict[int, str]:
    """Class number -> name from a list, or from an object with the numbers as keys."""
    pairs = enumerate(found) if isinstance(found, list) else found.items() if isinstance(found, dict) else ()
    names: dict[int, str] = {}
    for key, name in pairs:
        name = class_name(name)
        if name is None or not _is_number(str(key)):
            raise MrtError(f"{place}: the entry {str(key)[:80]!r} of names is not a number and a name", HINT)
        names[int(key)] = name
    if not names:
        raise MrtError(f"{place}: names is empty, or no list of class names", HINT)
    return names


def _names_files(files: Mapping[str, Path]) -> list[str]:
    return [inside for inside in sorted(files) if re.search(r"(?i)(^|/)(classes\.txt|[^/]+\.names)$", inside)]


class Division(NamedTuple):
    """The images of each split (paths inside the raw files), notes, and the lists that were used."""

    images: dict[str, list[str]]
    notes: list[str]
    lists: list[str]


def images_by_split(settings: Settings, files: RawFiles, finder: ImageFinder) -> Division:
    """The images of each split: as the settings name them, else as lists do, else by folders."""
    if settings.splits:
        by_split, lists = _listed(settings, files, finder)
        said = _said_of_others(by_split)
    else:
        known = partial(_in_known, files=files, finder=finder)
        named, used = find_lists({**finder.files, **finder.others}, known, finder.files)
        by_split = with_the_rest(without_trainval(named), finder.files)
        lists, said = [inside for insides in used.values() for inside in insides], said_of(used, [])
    if not by_split:
        return Division(_by_folder(finder), [], [])
    taken = {inside for insides in by_split.values() for inside in insides}
    left = sorted(finder.files.keys() - taken)
    if left:
        source = settings.inside if settings.splits else "the lists"
        said.append(f"{len(left)} images are in no split of {source} and left out: {examples(left)}")
    return Division(by_split, said, lists)


def _in_known(listed: Listed, files: RawFiles, finder: ImageFinder) -> list[str]:
    found = finder.find(listed.entries, files.files[listed.inside], split=listed.split, near=listed.inside)
    if not found:  # names without suffixes
        stems = {stem_of(inside): inside for inside in sorted(finder.files)}
        ends = Ends(stems)
        hits = {entry: ends.find(entry, exactly=True) for entry in listed.entries}
        found = {entry: stems[theirs[0]] for entry, theirs in hits.items() if len(theirs) == 1}
    return [found.get(name, name) for name in listed.entries]


def _by_folder(finder: ImageFinder) -> dict[str, list[str]]:
    """The images of each split by their folders' names; all others are for training."""
    splits: dict[str, list[str]] = {}
    for inside in sorted(finder.files):
        split = split_of_folder(inside) or "train"
        splits.setdefault("train" if split == "trainval" else split, []).append(inside)
    return splits


def _listed(
    settings: Settings, files: RawFiles, finder: ImageFinder
) -> tuple[dict[str, list[str]], list[str]]:
    """The images of each split as ``data.yaml`` names them, and the lists that it names."""
    place = files.files[settings.inside]
    answer, lists = {}, []
    for split, paths in settings.splits.items():
        insides: list[str] = []
        for path in paths:
            if path.lower().endswith(".txt"):
                lists.append(_find_list(path, settings, files, place, split))
                insides += _in_list(lists[-1], files, finder, split)
            else:
                insides += _in_folder(path, settings, finder, place, split)
        answer[split] = list(dict.fromkeys(insides))
    return answer, lists


def _said_of_others(by_split: Mapping[str, Sequence[str]]) -> list[str]:
    """A warning if "train" includes folders that are named after other splits."""
    inside = [inside for inside in by_split.get("train", ()) if of_another_split(inside, "train")]
    words = sorted({str(split_of_folder(image)) for image in inside})
    if not inside:
        return []
    return [
        f"warning: {len(inside)} images of folders named {' and '.join(words)} are in train, as the "
        f"settings say: {examples(inside)}"
    ]


def _ends(path: str, settings: Settings) -> list[str]:
    """A path of ``data.yaml`` and shorter ends of it that are still specific enough, best first.

    Parts that lead upwards or to another machine are taken off.
    """
    own = [part for part in path.replace("\\", "/").split("/") if part.strip() not in ("", ".", "..")]
    base: list[str] = []
    if not PurePosixPath(path).is_absolute():
        base = [part for part in settings.base.split("/") if part not in ("", ".", "..")]
    parts = base + own
    ends = [parts[start:] for start in range(len(parts))]
    return ["/".join(end) for end in ends if len(end) >= min(len(own), 2) or split_in("/".join(end))]


def _matches(
    path: str, settings: Settings, there: Iterable[str], place: Path, split: str, is_list: bool = False
) -> str | None:
    """The path inside the raw files that a path of ``data.yaml`` means, or None.

    A path of another split is only taken if ``path`` spells it out, or if it is a list.
    """
    there = list(there)
    ends = _ends(path, settings)
    for end in ends:
        found = [end] if end in there else [inside for inside in there if inside.endswith("/" + end)]
        found = found or [inside for inside in there if f"/{plain(inside)}".endswith("/" + plain(end))]
        if not is_list and len(end) < len(path.strip("./")):
            found = [inside for inside in found if not of_another_split(inside + "/x", split)]
        found = _nearest(found, settings.inside)
        if len(found) > 1:
            raise MrtError(
                f"{place}: {split} is {path!r}, which may be any of {', '.join(found[:6])}",
                "Give the folder of one set.",
            )
        if found:
            return found[0]
    return "." if not ends and "." in there else None


def _nearest(paths: Sequence[str], near: str) -> list[str]:
    """The paths that share the most folders with ``near``."""
    best = max((shared_folders(path + "/x", near) for path in paths), default=0)
    return [path for path in paths if shared_folders(path + "/x", near) == best]


def _in_folder(path: str, settings: Settings, finder: ImageFinder, place: Path, split: str) -> list[str]:
    folders: dict[str, list[str]] = {}
    for inside in sorted(finder.files):
        for parent in PurePosixPath(inside).parents:
            folders.setdefault(parent.as_posix(), []).append(inside)
    folder = _matches(path, settings, folders, place, split)
    if folder is not None:
        return folders[folder]
    raise MrtError(
        f"{place}: {split} is {path!r}, and there is no such folder with images",
        "Give the folder or archive that holds it in --raw, or take the line out of the file.",
    )


def _find_list(path: str, settings: Settings, files: RawFiles, place: Path, split: str) -> str:
    """Path inside the raw files of a list that ``data.yaml`` names."""
    texts = (inside for inside in files.files if inside.lower().endswith(".txt"))
    inside = _matches(path, settings, texts, place, split, is_list=True)
    if inside is None:
        raise MrtError(
            f"{place}: {split} is {path!r}, and there is no such file",
            "Give the folder or archive that holds it in --raw.",
        )
    return inside


def _in_list(inside: str, files: RawFiles, finder: ImageFinder, split: str) -> list[str]:
    listing = files.files[inside]
    names = entries_of(listing)
    found = finder.find(names, listing, split=split, near=inside)
    if not found:
        raise MrtError(
            f"{listing}: none of its {len(names)} images is there",
            "Give the images' folder or archive too, in --raw.",
        )
    return [found.get(name, name) for name in names]
