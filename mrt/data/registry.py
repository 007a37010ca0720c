"""Finding prepared sets: every folder with a card under the data root is one, and new ones need no code."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import os
import shlex
from pathlib import Path

from mrt.data.archives import inside_zip
from mrt.data.card import CARD_NAME, DatasetCard, read_card
from mrt.errors import MrtError

# Benchmark names, and what to type for each.
PREPARE_COMMANDS = {
    "cityscapes": "mrt prepare-data cityscapes --raw FOLDER_OR_ZIPS",
    "foggy": "mrt prepare-data foggy --raw FOLDER_OR_ZIPS",
    "sim10k": "mrt prepare-data sim10k --raw FOLDER_OR_TGZ",
    "bdd100k": "mrt prepare-data bdd100k --raw FOLDER_OR_ZIPS",
    "acdc": "mrt prepare-data acdc --raw FOLDER_OR_ZIPS",
    **{
        f"acdc-{name}": f"mrt prepare-data acdc --condition {name} --raw FOLDER_OR_ZIPS"
        for name in ("fog", "night", "rain", "snow")
    },
    "kitti": "mrt prepare-data kitti --raw FOLDER_OR_ZIPS",
    **{
        f"cfc-{name}": f"mrt prepare-data cfc --location {name} --raw FOLDER_OR_FILES"
        for name in ("kenai", "channel")
    },
}

WORLDS = ("clear", "foggy", "night", "rain")  # of mrt prepare-data synthetic
BENCHMARK_SETS = tuple(f"synth-{world}" for world in WORLDS)
SMALL_SETS = tuple(f"synthetic-{world}" for world in WORLDS)
IMAGES = "images.json"  # beside a list of results: the images and categories that its ids mean
LABELS_HINT = "mrt label makes such a file; other formats become a prepared set with mrt prepare-data custom"


def find_dataset(name_or_path: str | Path, data_root: Path | str) -> DatasetCard:
    """The card of a prepared set, by its name under ``data_root`` or by the path of its folder or card.

    Raises:
        MrtError: there is no such set, or its images or annotations are gone. It says which ``mrt
            prepare-data`` makes it, and which sets there are.
    """
    data_root, asked = Path(data_root), Path(name_or_path)
    for candidate in (data_root / asked, asked):
        if _is_file(candidate / CARD_NAME) or (candidate.name == CARD_NAME and _is_file(candidate)):
            card = read_card(candidate)
            require_files(card, data_root)
            return card
    name = str(name_or_path)
    there = [folder.name for folder in _prepared(data_root)]
    hints, root = [], ["--data-root", str(data_root)]
    close = difflib.get_close_matches(name, [*there, *PREPARE_COMMANDS, *BENCHMARK_SETS, *SMALL_SETS], n=1)
    if close and close[0] != name:
        hints.append(f"Did you mean '{close[0]}'?")
    if name in PREPARE_COMMANDS:
        words = shlex.join(root)
        hints.append(f"Make it from its owner's downloads with: {PREPARE_COMMANDS[name]} {words}")
    elif name in (*BENCHMARK_SETS, *SMALL_SETS):
        family, _, world = name.partition("-")
        words = [*(["--benchmark"] if family == "synth" else []), "--domain", world, *root]
        hints.append(f"Make it with: {shlex.join(['mrt', 'prepare-data', 'synthetic', *words])}")
    elif name.startswith("synthetic") and not close:
        hints.append(f"Make such sets with: {shlex.join(['mrt', 'prepare-data', 'synthetic', *root])}")
    elif not name.startswith("synthetic"):
        raw, called = (asked, asked.resolve().name) if os.path.isdir(asked) else ("FOLDER", name[:200])
        words = ["mrt", "prepare-data", "custom", "--raw", str(raw), "--name", called, *root]
        hints.append(f"A set of your own: {shlex.join(words)}")
    raise MrtError(
        f"No data set '{name[:200]}' in {data_root} (there: {', '.join(there) or 'none'})", "\n".join(hints)
    )


def require_files(card: DatasetCard, data_root: Path) -> None:
    """MrtError for a set of which no folder with images, or no annotation file, is where its card says."""
    images = [card.images_root(split) for split in card.splits]
    annotations = [card.annotations_path(split) for split in card.splits]
    for what, places in (("images", images), ("annotations", annotations)):
        if not places or any(os.path.exists((inside_zip(place) or (place,))[0]) for place in places):
            continue
        own = shlex.join(["mrt", "prepare-data", "custom", "--raw", "FOLDER", "--name", card.name])
        words = [PREPARE_COMMANDS.get(card.name, own), "--overwrite"]
        words.append(shlex.join(["--data-root", str(data_root)]))
        raise MrtError(
            f"data set {card.name!r}: its {what} are gone: {places[0]}",
            f"put them back, or make the set again: {' '.join(words)}",
        )


def prepared_sets(data_root: Path | str) -> list[DatasetCard]:
    """The cards of all prepared sets of a data root that can be read, by name."""
    cards = []
    for folder in _prepared(Path(data_root)):
        with contextlib.suppress(MrtError):
            cards.append(read_card(folder))
    return cards


def labels_file(where: str, split: str, data_root: Path | str) -> Path:
    """The file that ``teacher.labels`` names: itself, or the annotations of a prepared set's split.

    Raises:
        MrtError: there is no such file, set or split.
    """
    path = Path(where)
    if _is_file(path) and path.name != "dataset.json":
        return path
    if path.suffix == ".json" and not os.path.exists(path):
        raise MrtError(f"teacher.labels = {where!r}: there is no such file", LABELS_HINT)
    try:
        card = find_dataset(where, data_root)
    except MrtError as error:
        raise MrtError(
            f"teacher.labels = {where!r}: neither a file nor a prepared set: {error.message}",
            f"name a COCO file or a set ({LABELS_HINT})",
        ) from None
    if split not in card.splits:
        raise MrtError(
            f"teacher.labels = {where!r}: the set has no split {split!r} (it has {', '.join(card.splits)})",
            "name the annotation file of the split instead",
        )
    return card.annotations_path(split)


def labels_digest(where: str, split: str, data_root: Path | str) -> str:
    """sha256 of what ``teacher.labels`` names; of a list of results, with the list of images beside it.

    Raises:
        MrtError: there is no such file, set or split.
    """
    file = labels_file(where, split, data_root)
    try:
        digest = hashlib.sha256(file.read_bytes())
        beside = file.with_name(IMAGES)
        if beside != file and beside.is_file() and is_list(file):
            digest.update(beside.read_bytes())
    except OSError as error:
        raise MrtError(f"{file}: cannot be read ({error.strerror})") from None
    return digest.hexdigest()


def is_list(file: Path) -> bool:
    """Whether a JSON file holds a list, as COCO results are."""
    with file.open("rb") as content:
        return content.read(64).lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"["


def _is_file(path: Path) -> bool:
    """Whether there is such a file; no where nothing can have such a name."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _prepared(data_root: Path) -> list[Path]:
    if not data_root.is_dir():
        return []
    return [folder for folder in sorted(data_root.iterdir()) if (folder / CARD_NAME).is_file()]
