"""Label files that list many images: which formats there are, which one a file has, and what it says.

Most are read by modules of :mod:`mrt.data.convert.formats`. ``datumaro`` and ``vott`` are read by the library
datumaro, an extra (``pip install 'mrt-detection[formats]'``). It silently leaves out what it does not know.
So the annotations of every file are also counted here, and a file is refused if the library gives less (or
more) than it holds.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mrt.data.archives import BROKEN_ZIP, inside_zip, open_zip
from mrt.data.convert.formats import createml, cvat, label_studio, reading, tables, via
from mrt.data.convert.formats.listing import Files, Listing, image_name, refuse_twins
from mrt.data.convert.places import class_name
from mrt.data.convert.recipe import Skipped
from mrt.data.convert.sheets import Record, Sheet
from mrt.errors import MrtError

LIBRARY = "pip install 'mrt-detection[formats]'"
OTHER_EXPORT = "Export the labels once more in another format, such as COCO."
# annotations that have a box around them
_AREAS = ("bbox", "rotated_bbox", "polygon", "mask", "ellipse", "cuboid_2d")
_COUNTED = {
    "label": "tag of the whole image",
    "caption": "tag of the whole image",
    "polyline": reading.NO_AREA,
    "points": reading.NO_AREA,
    "cuboid_3d": "box in space, which has none in the image",
    "skeleton": "skeleton of key points",
}


class _Item(NamedTuple):
    """What a file says of an image, read without the library: path, size, and annotations of each kind."""

    name: str
    size: tuple[int, int] | None
    kinds: Counter[str]


def find(files: Files, only: str | None = None) -> dict[str, list[str]]:
    """The label files among raw files: format -> their paths inside, sorted.

    Args:
        files: path inside -> where to read it, as in :class:`mrt.data.convert.raw.RawFiles`.
        only: look for this format alone.
    """
    wanted = [listing for name, listing in LISTED.items() if only in (None, name)]
    found: dict[str, list[str]] = {}
    for inside in sorted(files):
        fits = [listing for listing in wanted if inside.lower().endswith(listing.suffixes)]
        head = _head(files[inside]) if fits else b""
        for listing in fits:
            if listing.looks(head, inside):
                found.setdefault(listing.name, []).append(inside)
                break
    return found


def read(format: str, files: Files) -> dict[str, Mapping[str, Sheet | Skipped]]:
    """All label files of a format: path inside -> the image's path as the file has it -> what it says of it.

    That is a sheet, or why the image is left out. The paths are as in the file (also absolute, or without any
    folder): find images by the ends of their paths only.

    Raises:
        MrtError: an unknown format, no file of it, the library is missing, or a file that cannot be used.
    """
    if format not in LISTED:
        raise MrtError(f"--format {format}: unknown", f"It is one of {', '.join(LISTED)}.")
    found = find(files, format).get(format, [])
    if not found:
        raise MrtError(
            f"--format {format}: none of the {len(files)} files is such a label file",
            f"It needs {LISTED[format].needs}.",
        )
    return {inside: LISTED[format].read(files[inside], files) for inside in found}


def _head(place: Path) -> bytes:
    """A file's first bytes (nothing if it cannot be read), without unpacking the rest of a zip's member."""
    member = inside_zip(place)
    try:
        with open(place, "rb") if member is None else open_zip(member[0]).open(member[1]) as file:
            return file.read(reading.HEAD)
    except (OSError, *BROKEN_ZIP):
        return b""


def read_datumaro(place: Path, files: Files) -> dict[str, Sheet]:
    """Datumaro's own JSON (CVAT's export "Datumaro 1.0"): ``annotations/SPLIT.json``.

    Raises:
        MrtError: the library is missing or refuses the file, or gives other annotations than the file has; an
            image without a name or listed twice.
    """
    content = _object(place, "Datumaro's JSON, with 'items' and 'categories'", "items", list)
    items = [_datumaro_item(item, place, number) for number, item in enumerate(content["items"])]
    keys = [str(item.get("id")).replace("\\", "/") for item in content["items"]]  # as the library has them
    return _checked(place, keys, items, _imported(place, content, "datumaro", "annotations/labels.json"))


def read_vott(place: Path, files: Files) -> dict[str, Sheet]:
    """VoTT's JSON export, ``NAME-export.json``. A region of two tags is two objects.

    Raises:
        MrtError: as :func:`read_datumaro`.
    """
    content = _object(place, "VoTT's JSON export, with 'assets'", "assets", dict)
    items = [_vott_item(asset, place, key) for key, asset in content["assets"].items()]
    return _checked(
        place, list(content["assets"]), items, _imported(place, content, "vott_json", "labels-export.json")
    )


def looks_datumaro(head: bytes, path: str) -> bool:
    """Whether it is a JSON object with Datumaro's categories."""
    text = reading.head_object(head)
    return reading.has_key(text, "categories", "label", before="{") and reading.has_key(
        text, "labels", before="["
    )


def looks_vott(head: bytes, path: str) -> bool:
    """Whether it is a JSON object with VoTT's assets."""
    text = reading.head_object(head)
    return reading.has_key(text, "assets", before="{") and reading.has_key(text, "tags", before="[")


def _object(place: Path, needs: str, key: str, kind: type) -> dict[str, Any]:
    content = reading.read_whole_json(place, needs)
    if not isinstance(content, dict) or not isinstance(content.get(key), kind):
        raise MrtError(f"{place}: has no {key!r}", f"It should be {needs}.")
    return content


def _datumaro_item(item: Any, place: Path, number: int) -> _Item:
    if not isinstance(item, dict):
        raise MrtError(f"{place}: item {number} is no object", "Export the file again.")
    image, annotations = item.get("image"), item.get("annotations", [])
    if not isinstance(annotations, list) or not all(isinstance(one, dict) for one in annotations):
        raise MrtError(f"{place}: item {number} has no list of annotations", "Export the file again.")
    image = image if isinstance(image, dict) else {}
    size = image.get("size")  # height, width
    return _Item(
        image_name(image.get("path") or f"{item.get('id')}.jpg", place, f"item {number}"),
        reading.image_size(size[1], size[0]) if isinstance(size, list) and len(size) == 2 else None,
        Counter(str(one.get("type")) for one in annotations),
    )


def _vott_item(asset: Any, place: Path, key: str) -> _Item:
    entry = asset if isinstance(asset, dict) else {}
    picture, regions = entry.get("asset"), entry.get("regions", [])
    picture = picture if isinstance(picture, dict) else {}
    name = image_name(picture.get("name"), place, f"asset {key[:80]!r}")
    if not isinstance(regions, list) or not all(isinstance(region, dict) for region in regions):
        raise MrtError(f"{place}: the regions of {name!r} are no list", "Export the file again.")
    size = picture.get("size")
    tags = [region.get("tags") for region in regions]
    return _Item(
        name,
        reading.image_size(size.get("width"), size.get("height")) if isinstance(size, dict) else None,
        Counter({"bbox": sum(len(found) if isinstance(found, list) and found else 1 for found in tags)}),
    )


class _Found(NamedTuple):
    """What the library reads: class names by number, each image's annotations by its key in the file."""

    labels: list[str]
    annotations: dict[str, list[Any]]


def _imported(place: Path, content: Any, format: str, file: str) -> _Found:
    """A file as the library reads it.

    It reads a copy alone in a folder, so it needs no images and finds no other files.
    """
    try:
        from datumaro import AnnotationType, Dataset
    except ImportError:
        raise MrtError(
            f"{place}: is read by the library datumaro, which is not installed", f"Install it: {LIBRARY}"
        ) from None
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / file
        copy.parent.mkdir(exist_ok=True)
        try:
            copy.write_text(json.dumps(content), encoding="utf-8")
            found = Dataset.import_from(folder, format)
            labels = [label.name for label in found.categories().get(AnnotationType.label, [])]
            keys = [
                (item.attributes.get("id") if format == "vott_json" else item.id, list(item.annotations))
                for item in found
            ]
        except Exception as error:  # the library does not say what it raises on a broken file
            reason = str(error.__cause__ or error).replace(folder, "").strip() or type(error).__name__
            raise MrtError(f"{place}: datumaro cannot read it ({reason[:300]})", OTHER_EXPORT) from None
    return _Found(labels, dict(keys))


def _checked(place: Path, keys: list[str], items: list[_Item], found: _Found) -> dict[str, Sheet]:
    """The sheets; MrtError if the library reads less than the file holds, or more."""
    refuse_twins([item.name for item in items], place, "Export each folder for itself.")
    if len(set(keys)) < len(keys) or set(keys) != found.annotations.keys():
        raise MrtError(
            f"{place}: has {len(items)} images, of which datumaro reads {len(found.annotations)}",
            OTHER_EXPORT,
        )
    sheets = {}
    for key, item in zip(keys, items, strict=True):
        kinds = Counter(one.type.name for one in found.annotations[key])
        if kinds != item.kinds:  # for a Counter, 0 is the same as nothing
            raise MrtError(
                f"{place}: {item.name!r} has {_listed(item.kinds)}, of which datumaro reads {_listed(kinds)}",
                OTHER_EXPORT,
            )
        sheets[item.name] = reading.collect(
            (_record(one, found.labels) for one in found.annotations[key]), item.size
        )
    return sheets


def _listed(kinds: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()) if count) or "no annotations"


def _record(annotation: Any, labels: list[str]) -> Record | str:
    """The object of one of the library's annotations, or why there is none."""
    kind = annotation.type.name
    if kind in _COUNTED:
        return _COUNTED[kind]
    if kind not in _AREAS:
        return f"unknown shape {kind[:40]!r}"
    number = annotation.label
    if not isinstance(number, int) or not 0 <= number < len(labels):
        return "annotation of an unknown category"
    label = class_name(labels[number])
    if label is None:
        return reading.NO_NAME
    try:
        x, y, width, height = map(float, annotation.get_bbox())
    except Exception:  # a mask or polygon without anything in it
        return "no box"
    box = x, y, x + width, y + height
    degrees = annotation.attributes.get("rotation") if kind == "bbox" else 0
    if isinstance(degrees, (int, float)) and degrees:  # CVAT's boxes, as they were before they were turned
        box = reading.around_turned(box, float(degrees))
    return Record(label, box, ignored=annotation.attributes.get("is_crowd") is True)


_DATUMARO = Listing(
    "datumaro",
    (".json",),
    "Datumaro's JSON (annotations/train.json), and its images",
    read_datumaro,
    looks_datumaro,
)
_VOTT = Listing(
    "vott", (".json",), "VoTT's JSON export (NAME-export.json), and its images", read_vott, looks_vott
)

_OURS = (cvat.LISTING, tables.OPENIMAGES, tables.CSV, via.LISTING, createml.LISTING, label_studio.LISTING)
LISTED: dict[str, Listing] = {listing.name: listing for listing in (*_OURS, _DATUMARO, _VOTT)}
