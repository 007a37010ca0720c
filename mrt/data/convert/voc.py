"""Pascal VOC folders: one XML file for each image, lists of names for the splits.

Used for Sim10k and for users' own sets. Assumptions, from the devkit's documents:

- Coordinates count pixels from 1, and xmax, ymax belong to the box: x = xmin - 1, y = ymin - 1,
  width = xmax - xmin + 1.
- ``difficult`` objects are neither hits nor misses in VOC's evaluation: they become ignored objects.
- ``<part>`` boxes (heads, hands) are not objects.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree.ElementTree import Element, ParseError, TreeBuilder
from xml.parsers import expat

from mrt.data.archives import inside_zip, open_zip
from mrt.data.convert import paired
from mrt.data.convert.formats import reading
from mrt.data.convert.raw import RawFiles, Unpacking, read_bytes
from mrt.data.convert.recipe import Recipe, Skipped
from mrt.data.convert.sheets import Format, Record, Sheet
from mrt.data.text import decode_head, encoding_of
from mrt.errors import MrtError

MAX_XML_BYTES = 16 << 20  # a real file has a few kilobytes; a thousand objects have 300
DELETED = "deleted object"  # which the owners' tool keeps in the file, and does not show
DEEPEST = 100  # elements in elements; a polygon's points have five
_DECLARED = re.compile(rb"^\s*<\?xml[^>]*?\sencoding\s*=\s*[\"']([A-Za-z0-9._:-]+)[\"']")


class VocObject(NamedTuple):
    """One ``<object>``: its box as written, None if it has none.

    xmin, ymin, xmax, ymax; NaN for what is not a number.
    """

    label: str
    box: tuple[float, float, float, float] | None
    difficult: bool


class VocAnnotation(NamedTuple):
    """One XML file; ``size`` is (width, height) in pixels, None if it does not say or says 0.

    ``skipped``: reason -> how many entries are no objects.
    """

    size: tuple[int, int] | None
    objects: tuple[VocObject, ...]
    skipped: Mapping[str, int] = {}


def read(place: Path) -> Sheet | Skipped:
    """An XML file in the form that :mod:`mrt.data.convert.paired` uses. Raises as :func:`read_annotation`."""
    annotation = read_annotation(place)
    if isinstance(annotation, Skipped):
        return annotation
    return Sheet(annotation.size, tuple(map(_record, annotation.objects)), annotation.skipped)


def looks(head: bytes, inside: str) -> bool:
    """Whether the first bytes of a file are those of a VOC annotation."""
    return inside.lower().endswith(".xml") and re.search(r"<annotation[\s/>]", decode_head(head)) is not None


def read_annotation(place: Path) -> VocAnnotation | Skipped:
    """An XML file's size and objects, or why it cannot be used.

    It may be cut short, not be a VOC annotation, or be in an unknown encoding.

    All encodings that Python knows are read (gb2312, shift_jis, windows-1251, ...), not only the few that XML
    parsers must know.

    Raises:
        MrtError: the file is missing, larger than ``MAX_XML_BYTES``, or has a document type. That is where
            XML defines entities, a few lines of which can fill the memory or read other files; no VOC file
            needs one.
    """
    member = inside_zip(place)
    size = open_zip(member[0]).getinfo(member[1]).file_size if member else place.stat().st_size
    if size > MAX_XML_BYTES:
        raise MrtError(
            f"{place}: {size >> 20} MB are too large for a VOC annotation",
            "Is it one XML file for each image?",
        )
    content = read_bytes(place)
    try:
        text = _text(content)
    except LookupError as error:
        return Skipped("annotation in an unknown encoding", f"{place} ({error})")
    except UnicodeError as error:
        return Skipped("annotation in another encoding than it says", f"{place} ({error})")
    try:
        root = _parse_xml(text, place)
    except (expat.ExpatError, ParseError, ValueError, AssertionError) as error:  # AssertionError: no root
        return Skipped("annotation cut short or unreadable", f"{place} ({error})")
    if root.tag != "annotation":
        return Skipped(
            "annotation cut short or unreadable", f"{place} (its root is <{root.tag[:40]}>, not <annotation>)"
        )
    every = root.findall("object")
    there = [element for element in every if not _is_set(element.findtext("deleted"))]
    more = sum(max(len(element.findall("bndbox")) - 1, 0) for element in there)
    skipped = Counter({DELETED: len(every) - len(there), "further box of an object": more})
    return VocAnnotation(_size(root), tuple(map(_object, there)), dict(+skipped))


def _text(content: bytes) -> str:
    """An XML file's text by its byte order mark, else by the encoding that it declares, else as UTF-8.

    Raises:
        LookupError: an encoding that does not exist.
        UnicodeError: the bytes are not in the declared encoding.
    """
    encoding = encoding_of(content)
    declared = _DECLARED.match(content) if encoding == "utf-8" else None
    if declared is None:
        return content.decode(encoding)
    name = declared[1].decode("ascii")
    # a file that really was in UTF-16 would have had zero bytes
    return content.decode("utf-8" if name.lower().startswith(("utf-16", "utf_16", "ucs")) else name)


def _parse_xml(text: str, place: Path) -> Element:
    """The tree, built on expat itself: only there can a document type be refused before it has an effect."""

    def refuse(*_: object) -> None:
        raise MrtError(
            f"{place}: has a document type (<!DOCTYPE ...>), which an annotation does "
            "not need and which can do harm",
            "Remove it from the file if you trust its origin.",
        )

    depth = 0

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > DEEPEST:
            raise ValueError(f"elements nested more than {DEEPEST} deep")
        builder.start(tag, attributes)

    def end(tag: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(tag)

    builder = TreeBuilder()
    parser = expat.ParserCreate("utf-8")
    parser.buffer_text = True
    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = builder.data
    parser.Parse(text.encode("utf-8", "surrogatepass"), True)
    return builder.close()


def _size(root: Element) -> tuple[int, int] | None:
    width, height = _number(root.findtext("size/width")), _number(root.findtext("size/height"))
    return (int(width), int(height)) if width >= 1 and height >= 1 and math.isfinite(width + height) else None


def _object(element: Element) -> VocObject:
    box = element.find("bndbox")
    numbers = None
    if box is not None:
        numbers = tuple(_number(box.findtext(name)) for name in ("xmin", "ymin", "xmax", "ymax"))
    if numbers is None or not (numbers[2] > numbers[0] and numbers[3] > numbers[1]):
        numbers = _outline(element) or numbers
    elif degrees := _rotation(element):
        xmin, ymin, xmax, ymax = numbers
        x0, y0, x1, y1 = reading.around_turned((xmin - 1, ymin - 1, xmax, ymax), degrees)
        numbers = x0 + 1, y0 + 1, x1, y1
    difficult = _is_set(element.findtext("difficult"))
    return VocObject((element.findtext("name") or "").strip(), numbers, difficult)


def _is_set(text: str | None) -> bool:
    return (text or "").strip().lower() in ("1", "true")


def _rotation(element: Element) -> float:
    """The degrees by which CVAT says that a box is turned about its centre; it writes the box as before."""
    for attribute in element.iterfind("attributes/attribute"):
        if (attribute.findtext("name") or "").strip() == "rotation":
            degrees = _number(attribute.findtext("value"))
            return degrees if math.isfinite(degrees) else 0.0
    return 0.0


def _outline(element: Element) -> tuple[float, float, float, float] | None:
    """The corners around an object's ``<polygon>``.

    Some tools write it as x1, y1, x2, ... and some as ``<pt>`` or ``<point>``.
    """
    polygon = element.find("polygon")
    if polygon is None:
        return None
    numbers = [(part.tag.lower(), _number(part.text)) for part in polygon.iter()]
    xs = [value for tag, value in numbers if re.fullmatch(r"x\d*", tag)]
    ys = [value for tag, value in numbers if re.fullmatch(r"y\d*", tag)]
    if len(xs) < 3 or len(xs) != len(ys) or not all(map(math.isfinite, [*xs, *ys])):
        return None
    return min(xs), min(ys), max(xs), max(ys)


def _record(found: VocObject) -> Record:
    if found.box is None:
        return Record(found.label, None, found.difficult)
    xmin, ymin, xmax, ymax = found.box
    return Record(found.label, (xmin - 1, ymin - 1, xmax, ymax), found.difficult)


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        pass
    try:
        return float(text.replace(",", "."))  # many countries write 1,5 for 1.5
    except ValueError:
        return math.nan


def stated_image(place: Path) -> str | None:
    """The ``<filename>`` of an XML file."""
    try:
        return (_parse_xml(_text(read_bytes(place)), place).findtext("filename") or "").strip() or None
    except (expat.ExpatError, ParseError, ValueError, LookupError, AssertionError):
        return None


FORMAT = Format(
    name="voc",
    suffixes=(".xml",),
    needs="A VOC set has an XML file for each image, often in a folder Annotations.",
    read=read,
    looks=looks,
    stated=stated_image,
)


def recipe(
    raw: Sequence[Path] | RawFiles,
    data_root: Path,
    *,
    classes: Sequence[str] | None = None,
    domain: str = "custom",
    on_unpack: Unpacking | None = None,
) -> Recipe:
    """A user's own VOC set: see :func:`mrt.data.convert.paired.recipe`."""
    return paired.recipe(FORMAT, raw, data_root, classes=classes, domain=domain, on_unpack=on_unpack)
