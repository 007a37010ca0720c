"""The card of a prepared data set: ``<data root>/<name>/dataset.json``, beside its COCO annotation files.

Needs no torch.

A prepared set is a folder::

    foggy/
      dataset.json        this card: written last, so a folder without one is not a finished set
      train.json          COCO: ids of images, annotations and categories start at 1;
                          categories are in the card's class order
      images/train/...    or anywhere else: a split's "images" may be an absolute path, also into a zip
                          archive; images are not copied

The card itself::

    {"version": 1, "name": "foggy", "domain": "fog", "classes": ["person", "car"], "labelled": true,
     "source": "files it came from",
     "splits": {"train": {"annotations": "train.json", "images": "images/train",
                          "num_images": 400, "num_boxes": 3100,
                          "boxes_per_class": {"person": 900, "car": 2200}, "num_ignored": 12, "num_empty": 3,
                          "skipped": {}, "sha256": "..."}},
     "image_sizes": {"640x320": 400}, "details": {"beta": 0.02}}
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mrt.data.text import decode_text
from mrt.errors import MrtError
from mrt.files import write_text
from mrt.plain import is_text

CARD_NAME = "dataset.json"
CARD_VERSION = 1
UNPACKED = "unpacked"  # not a set: the folder of the data root that tar archives are unpacked to

_CARD = {"name": str, "domain": str, "image_sizes": dict, "source": str, "labelled": bool, "details": dict}
_SPLIT = {
    "annotations": str,
    "images": str,
    "num_images": int,
    "num_boxes": int,
    "boxes_per_class": dict,
    "num_ignored": int,
    "num_empty": int,
    "skipped": dict,
    "sha256": str,
}
_COUNTED = ("image_sizes", "boxes_per_class", "skipped")  # whose values are whole numbers
# what a file of unexpected content can raise where it is read
_UNEXPECTED = (
    *(KeyError, TypeError, ValueError, IndexError, AttributeError),
    *(OverflowError, ArithmeticError),
)


@dataclass(frozen=True)
class SplitCard:
    """One split: where its files are and what they hold.

    Args:
        annotations: COCO file, relative to the card's folder.
        images: root of the annotations' ``file_name`` entries, relative to the card's folder or absolute.
        num_images, num_boxes: images, and boxes that count (neither crowd nor ignored).
        boxes_per_class: the same boxes by class name.
        num_ignored: annotations with ``iscrowd`` or ``ignore`` set: not a target in training, not counted as
            missed in evaluation.
        num_empty: images without a box that counts; they stay in the split.
        skipped: what a conversion left out, reason -> how many.
        sha256: of the annotation file's bytes.
    """

    annotations: str
    images: str
    num_images: int = 0
    num_boxes: int = 0
    boxes_per_class: dict[str, int] = field(default_factory=dict)
    num_ignored: int = 0
    num_empty: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    sha256: str = ""


@dataclass(frozen=True)
class DatasetCard:
    """A prepared data set. ``folder`` is where the card was read from (not written into it).

    Args:
        domain: a word for tables, such as "clear", "fog" or "night".
        classes: names in the order of the category ids, which start at 1.
        image_sizes: "WIDTHxHEIGHT" -> number of images, over all splits.
        source: the files, archives or generator that the set was made from.
        labelled: False for a bare folder of images, whose annotation files list images only.
        details: what else decides the benchmark, such as the fog level, filters or a seed.
    """

    name: str
    domain: str
    classes: tuple[str, ...]
    splits: dict[str, SplitCard]
    image_sizes: dict[str, int] = field(default_factory=dict)
    source: str = ""
    labelled: bool = True
    details: dict[str, Any] = field(default_factory=dict)
    folder: Path = Path()

    def split(self, name: str) -> SplitCard:
        """The split of that name; if there is none, an ``MrtError`` lists the existing ones."""
        if name not in self.splits:
            raise MrtError(
                f"{self.folder / CARD_NAME}: no split '{name}'",
                f"It has: {', '.join(self.splits) or 'none'}.",
            )
        return self.splits[name]

    def annotations_path(self, split: str) -> Path:
        return self.folder / self.split(split).annotations

    def images_root(self, split: str) -> Path:
        return self.folder / self.split(split).images  # an absolute path replaces the folder


def write_card(card: DatasetCard, folder: Path | None = None) -> Path:
    """Write ``dataset.json`` into ``folder`` (default: the card's own), atomically; returns its path."""
    path = (card.folder if folder is None else Path(folder)) / CARD_NAME
    content = {"version": CARD_VERSION, **asdict(card), "classes": list(card.classes)}
    del content["folder"]
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    return path


def read_json(path: Path) -> Any:
    """Parse a UTF-8 JSON file.

    Raises:
        MrtError: the file is missing, unreadable, cut short or in another encoding; the message names it.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise MrtError(f"{path}: no such file") from None
    except OSError as error:
        raise MrtError(f"{path}: cannot be read ({error.strerror})") from None
    return decode_json(content, path)


def decode_json(
    content: bytes, path: Path, object_hook: Callable[[dict[str, Any]], Any] | None = None
) -> Any:
    """Parse the JSON that was read from ``path``, UTF-8 or UTF-16.

    Args:
        object_hook: returns what to keep of each object, as in ``json.loads``.

    Raises:
        MrtError: it is cut short or in another encoding; the message names ``path``.
    """
    try:
        return json.loads(decode_text(content), object_hook=object_hook)
    except UnicodeDecodeError as error:
        raise MrtError(
            f"{path}: not UTF-8 (byte {error.start})", "Convert the file to UTF-8, or get it again."
        ) from None
    except (ValueError, RecursionError) as error:  # ValueError: bad syntax, or a number with too many digits
        where = str(error)
        if isinstance(error, json.JSONDecodeError):
            where = f"line {error.lineno}, column {error.colno}: {error.msg}"
        elif isinstance(error, RecursionError):
            where = "nested too deeply"
        raise MrtError(
            f"{path}: not valid JSON ({where})", "The file may be cut short: make or download it again."
        ) from None


def read_card(path: Path | str) -> DatasetCard:
    """Read a card, given ``dataset.json`` or its folder.

    ``MrtError`` names the file and the field that is wrong.
    """
    path = Path(path)
    if path.is_dir():
        path = path / CARD_NAME
    content = read_json(path)
    remake = "Make the set again with `mrt prepare-data`."
    if not isinstance(content, dict) or "splits" not in content or "classes" not in content:
        raise MrtError(f"{path}: not a data set card (an object with 'name', 'classes' and 'splits')", remake)
    odd = _text_that_cannot_be_written(content)
    if odd is not None:
        raise MrtError(f"{path}: the text {ascii(odd)[:100]} has half a character in it", remake)
    version = content.get("version", CARD_VERSION)
    if version != CARD_VERSION:
        raise MrtError(f"{path}: version is {repr(version)[:100]}, this program reads {CARD_VERSION}", remake)
    classes, splits = content["classes"], content["splits"]
    is_names = isinstance(classes, list) and all(isinstance(name, str) for name in classes)
    if not is_names or len(set(classes)) != len(classes):
        raise MrtError(
            f"{path}: classes is {repr(classes)[:200]}, expected a list of different names", remake
        )
    if not isinstance(splits, dict):
        raise MrtError(f"{path}: splits is {repr(splits)[:200]}, expected an object", remake)
    rest = {key: content[key] for key in _CARD if key in content}
    _require_types(rest, _CARD, str(path), remake)
    rest = {"name": path.parent.name, "domain": "", **rest}
    return DatasetCard(
        classes=tuple(classes),
        splits={name: _read_split(path, name, value) for name, value in splits.items()},
        folder=path.parent,
        **rest,
    )


def _read_split(path: Path, name: str, value: Any) -> SplitCard:
    where = f"{path}: splits.{name}"
    if not isinstance(value, dict):
        raise MrtError(f"{where} is {repr(value)[:200]}, expected an object")
    for key in ("annotations", "images"):
        if not isinstance(value.get(key), str):
            raise MrtError(f"{where}.{key} is {repr(value.get(key))[:200]}, expected a path")
    if Path(value["annotations"]).is_absolute() or ".." in Path(value["annotations"]).parts:
        raise MrtError(
            f"{where}.annotations is {value['annotations']!r}: it must lie inside the card's folder"
        )
    found = {key: value[key] for key in _SPLIT if key in value}
    _require_types(found, _SPLIT, where, "Make the set again with `mrt prepare-data`.")
    return SplitCard(**found)


def _require_types(found: Mapping[str, Any], kinds: Mapping[str, type], where: str, hint: str) -> None:
    """MrtError that names the field whose value is of another type than it should be."""
    names = {str: "a text", int: "a whole number", bool: "true or false", dict: "an object"}
    for key, value in found.items():
        fits = type(value) is kinds[key] and (kinds[key] is not str or can_be_written(value))
        if fits and key in _COUNTED:
            fits = all(type(count) is int for count in value.values())
        if not fits:
            counts = " of whole numbers" if key in _COUNTED else ""
            raise MrtError(
                f"{where}: {key} is {str(value)[:100]!r}, expected {names[kinds[key]]}{counts}", hint
            )


def _text_that_cannot_be_written(content: Any) -> str | None:
    """The first text of JSON's values and keys that cannot be printed, nor written again."""
    left = [content]
    while left:
        value = left.pop()
        if isinstance(value, str) and printable(value) != value:
            return value
        if isinstance(value, dict):
            left += [*value.keys(), *value.values()]
        elif isinstance(value, list):
            left += value
    return None


def can_be_written(text: str) -> bool:
    """Whether a text can be a file's name, or part of a file."""
    return "\0" not in text and is_text(text)


def printable(text: str) -> str:
    """The text with escapes for what cannot be written, such as half a character of a file's name."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


@contextmanager
def prepared_annotations(path: Path) -> Iterator[None]:
    """Turn errors of reading a prepared set's annotation file into an MrtError that names the file."""
    try:
        yield
    except _UNEXPECTED as error:
        raise MrtError(
            f"{path}: not the annotations of a prepared set ({type(error).__name__}: {str(error)[:100]})",
            "Make the set again with `mrt prepare-data`.",
        ) from None


def is_ignored(annotation: Mapping[str, Any]) -> bool:
    """Crowds and ignored objects: not a target in training, neither hit nor miss in evaluation."""
    return bool(annotation.get("iscrowd", 0)) or bool(annotation.get("ignore", 0))


def file_sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def describe_split(
    folder: Path,
    annotations: str,
    images: str,
    skipped: Mapping[str, int] | None = None,
    coco: Mapping[str, Any] | None = None,
) -> tuple[SplitCard, Counter[str]]:
    """Count what ``folder/annotations`` (COCO, already written) holds.

    Returns the split's card and its image sizes ("WxH" -> number of images).

    Args:
        coco: the file's content, if it has been read already.
    """
    coco = read_json(Path(folder) / annotations) if coco is None else coco
    names = {category["id"]: category["name"] for category in coco["categories"]}
    counted = [a for a in coco["annotations"] if not is_ignored(a)]
    per_class = Counter(a["category_id"] for a in counted)
    card = SplitCard(
        annotations=annotations,
        images=images,
        num_images=len(coco["images"]),
        num_boxes=len(counted),
        boxes_per_class={name: per_class[key] for key, name in names.items()},
        num_ignored=len(coco["annotations"]) - len(counted),
        num_empty=len({image["id"] for image in coco["images"]} - {a["image_id"] for a in counted}),
        skipped=dict(skipped or {}),
        sha256=file_sha256(Path(folder) / annotations),
    )
    return card, Counter(f"{image['width']}x{image['height']}" for image in coco["images"])


def coco_categories(classes: Iterable[str]) -> list[dict[str, Any]]:
    """COCO's category list for class names: ids from 1, in order."""
    return [{"id": index, "name": name} for index, name in enumerate(classes, start=1)]
