"""Small valid raw sets for every reader, ways to break one of their files, and what the results must keep.

A :class:`Reader` writes its raw files once; a test then rewrites the one file that is broken, again and
again. :func:`broken` is a hypothesis strategy for that file's bytes: changed in its structure (JSON, YAML,
XML), in its lines and columns, or in its bytes.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from encodings.aliases import aliases
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any
from xml.etree import ElementTree
from xml.sax.saxutils import escape, quoteattr

import test_bridge
import test_formats
import yaml
from cityscapes_tree import cityscapes_frame
from hypothesis import strategies as st
from trees import bdd_frame, coco_content, pack, voc_xml, write_image, write_text

from mrt.data.archives import file_exists
from mrt.data.card import DatasetCard, read_card
from mrt.data.check import check_set
from mrt.data.convert import acdc, bdd100k, cfc, cityscapes, custom, kitti, sim10k
from mrt.data.convert.recipe import Recipe
from mrt.data.convert.whole_set import OF_IMAGES
from mrt.data.text import decode_text

# ---- values and words that no reader expects
# --------------------------------------------------------------------------------------------------

# What json.dumps cannot write: a text of one private-use character is replaced by these words in JSON or
# YAML.
_RAW = {
    "\ue000": "1" * 5000,
    "\ue001": "-1e99999",
    "\ue002": "[" * 400 + "]" * 400,
    "\ue003": '{"a":' * 300 + "1" + "}" * 300,
    "\ue004": "-0",
    "\ue005": "1.",
    "\ue006": '"\\ud83d"',
}
WORDS = (
    *("", " ", "x", "0", "1", "-1", "2", "0.5", "1.5", "40", "nan", "-nan", "inf", "-inf", "Infinity"),
    *("1e999", "-1e308", "1e308", "1e-400", "1_0", "0x10", "1,5", "½", "²", "\u0663", "\uff11", "9" * 400),
    *("9" * 5000, "\0", "\x0b", "\x1c", "\x85", "\u2028", "\ufeff", "e\u0301", "\ud7ff", "\U0001f600"),
    *("../x.jpg", "/etc/passwd", "C:\\x.jpg", "http://a/b.jpg", "a//b.jpg", "./a.jpg", ".", "..", "/", "~"),
    *("%00", "%ED%A0%80", "%zz", "%2e%2e%2f", "a" * 300, "a" * 5000, "a/" * 600 + "b", "null", "true"),
    *("no", "DontCare", "#", '"', "'", "<a>", "&amp;", "&#0;", "&x;", "{}", "[]", ":", "=", "names: [a]"),
    *("car", "person", "001.jpg", "images/001.jpg", "images", "train", "*", "\\", "\r", "\t", ","),
)
_DEEP: Any = 1
for _ in range(60):
    _DEEP = [_DEEP]
VALUES: tuple[Any, ...] = (
    *(
        None,
        True,
        False,
        0,
        1,
        -1,
        2,
        3,
        40,
        100_000,
        0.5,
        -0.5,
        1.0,
        1e308,
        -1e308,
        1e-320,
        math.nan,
        math.inf,
        -math.inf,
        10**400,
    ),
    *(
        -(10**400),
        2**31,
        2**63,
        2**64,
        10**4290,
        "\ud800",
        "a\udfff\ud800.jpg",
        [],
        {},
        [[]],
        [{}],
        [None],
        [1],
        [1, 2, 3, 4],
        [0, 0, 0, 0],
    ),
    *(
        [1, 2, 1e308, 1e308],
        [-1e308, 1, 1e308, 5],
        ["1", "2", "3", "4"],
        [1, 2, math.nan, 4],
        [1e-9, 1e-9, 1e-5, 1e-5],
        {"a": 1},
        {"": None},
    ),
    *(
        [1, 2, 10**400, 3],
        [[1, 2], [3, 4]],
        [[1, 2, 3, 4, 5, 6]],
        _DEEP,
        {"size": [30, 40], "counts": [0, 1200]},
        {"x": []},
        [39.9999, 1, 1, 1],
    ),
    *_RAW,
)
ENCODINGS = (
    *("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "latin-1"),
    *("shift_jis", "utf-7", "cp037"),
)
_ODD_ENCODINGS = ("undefined", "klingon", "utf-16", "US-ASCII", "idna", "punycode", "unicode_escape")
DECLARED = tuple(sorted({*aliases, *aliases.values(), *_ODD_ENCODINGS}))

words = st.sampled_from(WORDS)
values = st.one_of(
    st.sampled_from(VALUES),
    words,
    st.floats() | st.integers() | st.text(max_size=3),
    st.recursive(
        st.none() | st.booleans() | st.integers(-5, 50) | st.floats() | words,
        lambda inner: (
            st.lists(inner, max_size=4) | st.dictionaries(words | st.text(max_size=2), inner, max_size=3)
        ),
        max_leaves=5,
    ),
)

# ---- structure
# --------------------------------------------------------------------------------------------------


class Again(str):
    """A key that an object has a second time."""

    __slots__ = ()
    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other


def places_in(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """The paths of all nodes of a tree of lists and objects."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places_in(inner, (*path, key))


def node_at(value: Any, path: tuple) -> Any:
    """The node at a path."""
    for key in path:
        value = value[key]
    return value


def edited(value: Any, path: tuple, what: str, new: Any, word: str) -> Any:
    """A copy of the tree with one node replaced, wrapped, removed, repeated or renamed.

    The tree itself if the path no longer exists.
    """
    if not path:
        return {"wrap": [value], "wrap_in_object": {word: value}, "replace": new}.get(what, value)
    key, *rest = path
    if not (isinstance(value, dict) and key in value) and not (
        isinstance(value, list) and isinstance(key, int) and key < len(value)
    ):
        return value
    if rest or what in ("replace", "wrap", "wrap_in_object"):
        copy = value.copy()
        copy[key] = edited(value[key], tuple(rest), what, new, word)
        return copy
    if isinstance(value, list):
        return [
            *value[:key],
            *{"remove": (), "repeat": [value[key]] * 2, "rename": [word]}[what],
            *value[key + 1 :],
        ]
    if what == "remove":
        return {name: inner for name, inner in value.items() if name is not key}
    if what == "repeat":
        return {**value, Again(key): new}
    return {word if name is key else name: inner for name, inner in value.items()}


HOW = ("replace", "replace", "replace", "remove", "repeat", "rename", "wrap", "wrap_in_object", "copy")


@st.composite
def edited_trees(draw: st.DrawFn, tree: Any, paths: list[tuple]) -> Any:
    """The tree after one, two or three edits; "copy" puts another node of the tree in a node's place."""
    pristine = tree
    for _ in range(draw(st.sampled_from((1, 1, 1, 2, 3)))):
        path, what = draw(st.sampled_from(paths)), draw(st.sampled_from(HOW))
        new = word = None
        if what == "copy":
            what, new = "replace", node_at(pristine, draw(st.sampled_from(paths)))
        elif what in ("replace", "repeat"):
            new = draw(values)
        if what in ("rename", "wrap_in_object"):
            word = draw(words)
        tree = edited(tree, path, what, new, word or "x")
    return tree


def _text_of(value: Any, ascii_only: bool = True) -> str:
    text = json.dumps(value, ensure_ascii=ascii_only)
    for letter, raw in _RAW.items():
        text = text.replace(f'"{letter}"', raw).replace(json.dumps(letter), raw)
    return text


def json_text(value: Any, ascii_only: bool) -> str:
    """The tree as JSON."""
    return _text_of(value, ascii_only)


def yaml_text(value: Any, ascii_only: bool) -> str:
    """The tree as YAML.

    The outermost object's keys are on separate lines, their values are JSON, which is YAML as well.
    """
    if not isinstance(value, dict):
        return _text_of(value, ascii_only)
    return "".join(f"{key}: {_text_of(inner, ascii_only)}\n" for key, inner in value.items())


def xml_tree(element: ElementTree.Element) -> dict[str, Any]:
    """An XML element as lists and objects, to be edited."""
    return {
        "tag": element.tag,
        "is": dict(element.attrib),
        "text": element.text or "",
        "in": [xml_tree(inner) for inner in element],
    }


def xml_text(value: Any, ascii_only: bool) -> str:
    """An edited XML tree as XML."""
    if isinstance(value, list):
        return "".join(xml_text(inner, ascii_only) for inner in value[:50])
    if not isinstance(value, dict) or "tag" not in value:
        return escape(_xml_word(value))
    attributes = value.get("is")
    said = ""
    if isinstance(attributes, dict):
        said = "".join(f" {key}={quoteattr(_xml_word(inner))}" for key, inner in attributes.items())
    tag = _xml_word(value["tag"])
    content = xml_text(value.get("text"), ascii_only) + xml_text(value.get("in"), ascii_only)
    return f"<{tag}{said}>{content}</{tag}>"


def _xml_word(value: Any) -> str:
    return "" if value is None else _RAW.get(value, value) if isinstance(value, str) else str(value)


# ---- lines and bytes
# --------------------------------------------------------------------------------------------------

_SEPARATOR = re.compile(r"([ ,;\t=:]+)")
LINES = (
    *("word", "word", "swap", "add", "drop", "separator", "repeat", "remove", "ends", "blank", "decimal"),
    "join",
)


@st.composite
def edited_lines(draw: st.DrawFn, text: str) -> str:
    """A text with edited lines.

    Columns are swapped, added, missing or strange, separators or line ends differ, or lines are repeated.
    """
    lines = [_SEPARATOR.split(line) for line in text.splitlines()] or [[""]]
    end = "\n"
    for _ in range(draw(st.sampled_from((1, 1, 2, 3)))):
        what = draw(st.sampled_from(LINES))
        row = draw(st.integers(0, max(len(lines) - 1, 0)))
        line = lines[row] if lines else [""]
        at = draw(st.integers(0, len(line) // 2)) * 2
        at = min(at, len(line) - 1)
        if what == "word":
            line[at] = draw(words)
        elif what == "swap":
            other = min(draw(st.integers(0, len(line) // 2)) * 2, len(line) - 1)
            line[at], line[other] = line[other], line[at]
        elif what == "add":
            line[at : at + 1] = [line[at], line[1] if len(line) > 1 else " ", draw(words)]
        elif what == "drop":
            del line[at : at + 2]
            line[:] = line or [""]
        elif what == "separator":
            new = draw(st.sampled_from([" ", ",", ";", "\t", "  ", ", ", "|", "", "\u00a0", "\u3000"]))
            for one in lines if draw(st.booleans()) else [line]:
                one[1::2] = [new] * len(one[1::2])
        elif what == "repeat":
            lines[row:row] = [line] * draw(st.sampled_from((1, 2, 5)))
        elif what == "remove":
            del lines[row : row + 1]
        elif what == "ends":
            end = draw(st.sampled_from(["\r\n", "\r", "\n\n", "\x85", "\u2028", "\x0c", "\0", " ", ""]))
        elif what == "blank":
            lines.insert(row, [draw(words)])
        elif what == "decimal":
            line[:] = [word.replace(".", ",") for word in line]
        elif lines[row + 1 :]:
            lines[row] = [*line, " ", *lines.pop(row + 1)]
    return end.join("".join(line) for line in lines) + draw(st.sampled_from((end, "", "\x1a")))


BYTE_EDITS = (*("flip", "flip", "set", "cut", "end", "begin", "insert", "zero", "repeat", "empty", "move"),)
EMPTY = (*(b"", b"\n", b"\0", b"\xef\xbb\xbf", b"\xff\xfe", b"\xff\xfe\x00\x00", b"\x00\xd8", b"{}", b"[]"),)


@st.composite
def edited_bytes(draw: st.DrawFn, content: bytes) -> bytes:
    """Bytes with flips, cuts, insertions or zero bytes, or emptied."""
    for _ in range(draw(st.sampled_from((1, 1, 1, 2, 4)))):
        start = draw(st.integers(0, len(content)))
        what = draw(st.sampled_from(BYTE_EDITS))
        length = draw(st.sampled_from((1, 1, 2, 3, 8, 40)))
        if what == "flip":
            old = content[start : start + 1]
            flipped = bytes(byte ^ (1 << draw(st.integers(0, 7))) for byte in old)
            content = content[:start] + flipped + content[start + 1 :]
        elif what == "set":
            few = length < 8
            new = draw(st.binary(min_size=length, max_size=length) if few else st.just(b"\xff" * length))
            content = content[:start] + new + content[start + length :]
        elif what == "cut":
            content = content[:start] + content[start + length :]
        elif what == "end":
            content = content[:start]
        elif what == "begin":
            content = content[start:]
        elif what == "insert":
            content = content[:start] + draw(st.binary(max_size=6) | words.map(_encoded)) + content[start:]
        elif what == "zero":
            content = content[:start] + bytes(length) + content[start + length :]
        elif what == "repeat":
            content = content[:start] + content[start : start + length] * 3 + content[start + length :]
        elif what == "move":
            content = content[start:] + content[:start]
        else:
            content = draw(st.sampled_from(EMPTY))
    return content


def _encoded(text: str, encoding: str = "utf-8") -> bytes:
    passes = encoding.startswith("utf") and encoding != "utf-7"
    return text.encode(encoding, "surrogatepass" if passes else "replace")


@st.composite
def in_bytes(draw: st.DrawFn, texts: st.SearchStrategy[str]) -> bytes:
    """A text in one of several encodings, most often UTF-8."""
    text = draw(texts)
    return _encoded(text, draw(st.sampled_from(ENCODINGS)) if draw(st.integers(0, 5)) == 5 else "utf-8")


XML_HEADS = (
    *("", '<?xml version="1.1"?>', "<?xml?>", "<!-- a -->", " ", "\ufeff", '<!DOCTYPE a SYSTEM "x">'),
    *('<?xml version="1.0" standalone="no"?>', '<!DOCTYPE a [<!ENTITY a "b"><!ENTITY c "&a;&a;">]>'),
)


@st.composite
def _xml(draw: st.DrawFn, tree: Any, paths: list[tuple]) -> bytes:
    body = xml_text(draw(edited_trees(tree, paths) if draw(st.integers(0, 3)) else st.just(tree)), True)
    if draw(st.integers(0, 4)):
        return _encoded(draw(st.sampled_from(XML_HEADS)) + body)
    name = draw(st.sampled_from(DECLARED))
    encoding = draw(st.sampled_from(ENCODINGS))
    return _encoded(f'<?xml version="1.0" encoding="{name}"?>' + body.replace("car", "c\u00e4r"), encoding)


def broken(content: bytes, suffix: str) -> st.SearchStrategy[bytes]:
    """Changed contents of a raw file of that kind."""
    if suffix in (".zip", ".tgz"):
        return edited_bytes(content)
    if suffix in PICTURES:
        return edited_bytes(content) | (png_with_edited_chunk(content) if suffix == ".png" else st.nothing())
    text = content.decode()
    plain = [edited_bytes(content), in_bytes(edited_lines(text))]
    if suffix not in _WRITERS:
        return st.one_of(*plain, in_bytes(edited_lines(text)))
    tree = tree_of(text, suffix)
    paths = list(places_in(tree))
    if suffix == ".xml":
        trees = _xml(tree, paths)
        return st.one_of(trees, trees, *plain)
    trees = in_bytes(st.builds(_WRITERS[suffix], edited_trees(tree, paths), st.booleans()))
    return st.one_of(trees, trees, trees, *plain)


def tree_of(text: str, suffix: str) -> Any:
    """A JSON, YAML or XML text as lists and objects."""
    if suffix == ".xml":
        return xml_tree(ElementTree.fromstring(text))
    return json.loads(text) if suffix == ".json" else yaml.safe_load(text)


_WRITERS = {".json": json_text, ".yaml": yaml_text, ".xml": xml_text}


def each_value_in_each_place(content: bytes, suffix: str) -> Iterator[bytes]:
    """The file with each of its nodes replaced by each value that no reader expects.

    Of a list's entries only the first and the last.
    """
    tree = tree_of(content.decode(), suffix)
    for path in places_in(tree):
        if all(
            not isinstance(key, int) or key in (0, len(node_at(tree, path[:depth])) - 1)
            for depth, key in enumerate(path)
        ):
            for value in (*VALUES, *WORDS):
                yield _encoded(_WRITERS[suffix](edited(tree, path, "replace", value, ""), True))


# ---- pictures
# --------------------------------------------------------------------------------------------------

PICTURES = (".png", ".jpg", ".tif", ".webp", ".gif", ".bmp")


def picture_bytes(folder: Path, suffix: str) -> bytes:
    """A small picture of that kind, turned by an EXIF entry if the kind can have one."""
    orientation = 6 if suffix in (".jpg", ".tif", ".webp", ".png") else None
    return write_image(folder / f"a{suffix}", (24, 16), orientation=orientation).read_bytes()


# kinds of PNG chunks
OTHER_KINDS = (*(b"tRNS", b"iTXt", b"zTXt", b"eXIf", b"iCCP", b"acTL", b"fcTL", b"fdAT", b"PLTE", b"IEND"),)
NEW_KINDS = (
    *(b"tRNS", b"iTXt", b"zTXt", b"tEXt", b"eXIf", b"iCCP"),
    *(b"acTL", b"fcTL", b"pHYs", b"gAMA", b"cHRM", b"sRGB"),
)


@st.composite
def png_with_edited_chunk(draw: st.DrawFn, content: bytes) -> bytes:
    """A PNG with a changed chunk and a checksum that fits it.

    So it also tries what a checksum would catch.
    """
    chunks, at = [], 8
    while at + 12 <= len(content):
        (length,) = struct.unpack(">I", content[at : at + 4])
        chunks.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + length]))
        at += 12 + length
    number = draw(st.integers(0, len(chunks) - 1))
    kind, data = chunks[number]
    what = draw(st.sampled_from(("data", "data", "kind", "drop", "twice", "new")))
    if what == "data":
        chunks[number] = kind, draw(edited_bytes(data))
    elif what == "kind":
        chunks[number] = draw(st.sampled_from(OTHER_KINDS)), data
    elif what == "drop":
        del chunks[number]
    elif what == "twice":
        chunks.insert(number, chunks[number])
    else:
        kind = draw(st.sampled_from(NEW_KINDS))
        chunks.insert(number, (kind, draw(st.binary(max_size=30) | words.map(_encoded))))
    parts = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    ]
    return content[:8] + b"".join(parts)


# ---- readers
# --------------------------------------------------------------------------------------------------


Counting = Callable[[bytes], int | None]


@dataclass(frozen=True)
class Reader:
    """A way from raw files to a prepared set.

    Args:
        write: writes the raw files into a folder.
        file: the one that is broken, relative to that folder.
        recipe: (raw folder, data root) -> what is prepared.
        records: content of the broken file -> annotation records in the whole raw set, or None if that cannot
            be told; None: not counted.
        images: content of the broken file -> images that the whole raw set lists, as ``records``.
        unasked: even the unbroken file gives no set, because its kind must be named.
    """

    name: str
    write: Callable[[Path], Any]
    file: str
    recipe: Callable[[Path, Path], Recipe]
    records: Counting | None = None
    unasked: bool = False
    images: Counting | None = None


def own(format: str, **options: Any) -> Callable[[Path, Path], Recipe]:
    """The recipe of a user's own set."""
    return lambda raw, root: custom.recipe([raw], root, format=format, **options)


def _images(raw: Path, *names: str) -> None:
    for name in names:
        write_image(raw / name)


COCO = coco_content(
    [{"id": n, "file_name": f"{n:03}.jpg", "width": 40, "height": 30} for n in (1, 2)],
    [
        {
            "id": 1,
            "image_id": 1,
            "category_id": 1,
            "bbox": [2, 3, 10, 8],
            "area": 80,
            "iscrowd": 0,
            "segmentation": [[2, 3, 12, 3, 12, 11]],
        },
        {"id": 2, "image_id": 1, "category_id": 2, "bbox": [0, 0, 40.0, 30], "area": 60.5, "iscrowd": 1},
        {
            "id": 3,
            "image_id": 2,
            "category_id": 1,
            "bbox": [],
            "segmentation": {"size": [30, 40], "counts": [31, 5, 25, 5, 1134]},
        },
        {"id": 4, "image_id": 2, "category_id": 2, "bbox": [1.5, 2.5, 3.25, 4], "ignore": 0},
    ],
    ["car", "person"],
)
COCO["categories"][0]["supercategory"] = "vehicle"


def coco_tree(raw: Path) -> None:
    _images(raw, "images/001.jpg", "images/002.jpg")
    write_text(raw / "instances_train.json", json.dumps(COCO))


def coco_splits_tree(raw: Path) -> None:
    """The set of :func:`coco_tree` as "train", and a "val" with one image of its own and one of train's."""
    coco_tree(raw)
    write_image(raw / "images" / "003.jpg", orientation=6)
    images = [
        {"id": "3", "file_name": "003.jpg"},
        {"id": "2", "file_name": "images/002.jpg", "width": 40, "height": 30},
    ]
    boxes = [{"id": 1, "image_id": number, "category_id": 1, "bbox": [1, 2, 25, 10]} for number in ("3", "2")]
    write_text(raw / "instances_val.json", json.dumps(coco_content(images, boxes)))


def packed_tree(raw: Path, suffix: str) -> None:
    """The set of :func:`coco_tree` in an archive."""
    coco_tree(raw / "in")
    pack(raw / "in", raw / f"set{suffix}")
    shutil.rmtree(raw / "in")


def coco_records(content: bytes) -> int | None:
    """Entries of "annotations" of a COCO file."""
    found = json.loads(decode_text(content))
    return len(found["annotations"])


def coco_images(content: bytes) -> int | None:
    """Entries of "images" of a COCO file."""
    return len(json.loads(decode_text(content))["images"])


def voc_tree(raw: Path) -> None:
    _images(raw, "JPEGImages/a.jpg", "JPEGImages/b.jpg")
    points = "<x1>1</x1><y1>2</y1><x2>9</x2><y2>2</y2><x3>9</x3><y3>8</y3>"
    polygon = f"<object><name>bus</name><polygon>{points}</polygon></object>"
    write_text(
        raw / "Annotations" / "a.xml",
        voc_xml([("car", 3, 4, 12, 11), ("man", 1, 1, 40, 30, 1)], extra=polygon),
    )
    write_text(raw / "Annotations" / "b.xml", voc_xml([("car", 2, 2, 9, 9)]))


def voc_listed_tree(raw: Path) -> None:
    voc_tree(raw)
    write_text(raw / "ImageSets" / "Main" / "train.txt", "a\nb 1\n")


def voc_records(content: bytes) -> int | None:
    """The objects of ``a.xml`` and those of ``b.xml``."""
    return len(ElementTree.fromstring(content).findall("object")) + 1


YOLO_LINES = "0 0.5 0.5 0.25 0.25\n1 0.1 0.1 0.2 0.1 0.2 0.3 0.1 0.2\n\n1 0.9 0.5 0.2 1\n"


def yolo_tree(raw: Path) -> None:
    _images(raw, "images/train/a.jpg", "images/train/b.jpg", "images/val/c.jpg")
    write_text(raw / "labels" / "train" / "a.txt", YOLO_LINES)
    write_text(raw / "labels" / "val" / "c.txt", YOLO_LINES)
    write_text(
        raw / "data.yaml",
        "path: ../set\ntrain: images/train\nval: [images/val]\nnc: 2\nnames: {0: car, 1: person}\n",
    )


def yolo_classes_tree(raw: Path) -> None:
    _images(raw, "images/a.jpg", "images/b.jpg")
    write_text(raw / "labels" / "a.txt", YOLO_LINES)
    write_text(raw / "classes.txt", "car\nperson\n")


def darknet_tree(raw: Path) -> None:
    _images(raw, "obj/a.jpg", "obj/b.jpg", "obj/c.jpg")
    write_text(raw / "obj" / "a.txt", YOLO_LINES)
    write_text(raw / "obj" / "c.txt", YOLO_LINES)
    write_text(raw / "obj.names", "car\nperson\n")
    write_text(
        raw / "obj.data",
        "classes = 2\ntrain = data/train.txt\nvalid = data/test.txt\nnames = "
        "data/obj.names\nbackup = backup/\n",
    )
    write_text(raw / "train.txt", "data/obj/a.jpg\ndata/obj/b.jpg\n")
    write_text(raw / "test.txt", "data/obj/c.jpg\n")


def yolo_records(content: bytes) -> int | None:
    """Lines of the broken file, and those of the other label file."""
    return sum(bool(line.strip()) for line in decode_text(content).splitlines()) + 3


def one_yolo_records(content: bytes) -> int | None:
    """Lines of the only label file."""
    return yolo_records(content) - 3


_PAIRED_FILES = {
    "kitti": ("training/image_2/a.png", "training/label_2/a.txt"),
    "visdrone": ("images/a.jpg", "annotations/a.txt"),
    "labelme": ("a.jpg", "a.json"),
    "bdd": ("images/100k/train/a.jpg", "labels/100k/train/a.json"),
    "dota": ("images/a.png", "labelTxt/a.txt"),
    "supervisely": ("train/img/a.jpg", "train/ann/a.jpg.json"),
}


def paired_tree(raw: Path, format: str) -> None:
    image, labels = _PAIRED_FILES[format]
    write_image(raw / image, (80, 60))
    write_text(raw / labels, test_formats.GOOD[format])


def _lines_with(content: bytes, counts: Callable[[str], bool]) -> int:
    return sum(counts(line) for line in decode_text(content).splitlines())


def _bdd_objects(found: list[Any]) -> int:
    """Entries of BDD100K's lists, without lanes and areas, which are not objects."""
    if not isinstance(found, list):
        raise TypeError("no list")
    names = [entry.get("category", "") if isinstance(entry, dict) else "" for entry in found]
    return sum(not str(name).strip().startswith(("lane", "area/", "drivable")) for name in names)


PAIRED_RECORDS: dict[str, Counting] = {
    "kitti": lambda content: _lines_with(content, lambda line: bool(line.split())),
    "visdrone": lambda content: _lines_with(
        content, lambda line: any(word.strip() for word in line.strip().rstrip(",").split(","))
    ),
    "labelme": lambda content: len(json.loads(decode_text(content))["shapes"]),
    "supervisely": lambda content: len(json.loads(decode_text(content))["objects"]),
    "bdd": lambda content: _bdd_objects(json.loads(decode_text(content))["frames"][0]["objects"]),
    "dota": lambda content: _lines_with(
        content, lambda line: bool(line.split()) and not _DOTA_HEADER.match(line)
    ),
}
_DOTA_HEADER = re.compile(r"(?i)\s*(imagesource|gsd)\s*:")

_LISTED_IMAGES = {
    "cvat": ("cam/a.jpg", "b.jpg", "c.jpg"),
    "openimages": ("train/000026e7.jpg",),
    "csv": ("sub/a.jpg", "b.jpg"),
    "via": ("a.jpg", "b.jpg"),
    "createml": ("a.jpg", "b.jpg"),
    "label-studio": ("a.jpg", "cam 1/b.jpg", "c.jpg", "d.jpg"),
}


def listed_tree(raw: Path, format: str) -> None:
    for name in _LISTED_IMAGES[format]:
        write_image(raw / name, (80, 60))
    file, text = test_bridge.GOOD[format]
    write_text(raw / file, text)
    if format == "openimages":
        write_text(raw / "class-descriptions-boxable.csv", '/m/0k4j,Car\n/m/01g317,"Person"\n')


def createml_records(content: bytes) -> int | None:
    """Entries of all images."""
    return sum(
        len(entry.get("annotations", entry.get("annotation", [])))
        for entry in json.loads(decode_text(content))
    )


def cvat_records(content: bytes) -> int | None:
    """Elements of all images."""
    return sum(len(image) for image in ElementTree.fromstring(content).findall("image"))


def via_records(content: bytes) -> int | None:
    """Regions of all images."""
    found = json.loads(decode_text(content))
    regions = [entry["regions"] for entry in found.get("_via_img_metadata", found).values()]
    return sum(map(len, regions)) if all(isinstance(one, (list, dict)) for one in regions) else None


LISTED_RECORDS: dict[str, Counting] = {"cvat": cvat_records, "via": via_records, "createml": createml_records}


def bdd_records(content: bytes) -> int | None:
    """Objects of a list of frames."""
    return sum(_bdd_objects(frame.get("labels") or []) for frame in json.loads(decode_text(content)))


def acdc_tree(raw: Path) -> None:
    images = [f"fog/train/G/G_frame_{number:06}_rgb_anon.png" for number in (1, 2)]
    for name in images:
        write_image(raw / "rgb_anon" / name)
    coco = {
        "images": [
            {"id": number, "file_name": name, "width": 40, "height": 30} for number, name in enumerate(images)
        ],
        "annotations": [
            {
                "id": 1,
                "image_id": 0,
                "category_id": 26,
                "bbox": [1, 2, 10, 5],
                "area": 7,
                "iscrowd": 0,
                "segmentation": [],
            },
            {
                "id": 2,
                "image_id": 1,
                "category_id": 24,
                "bbox": [0.5, 1, 4, 6],
                "area": 9.5,
                "iscrowd": 1,
                "segmentation": [],
            },
        ],
        "categories": [{"id": number, "name": name} for number, name in {24: "person", 26: "car"}.items()],
    }
    write_text(raw / "gt_detection" / "instancesonly_train_gt_detection.json", json.dumps(coco))


def cfc_tree(raw: Path) -> None:
    names = ("cfc_train-a.jpg", "cfc_train-b.jpg")
    _images(raw, *(f"images/cfc_train/{name}" for name in names))
    coco = coco_content(
        [{"id": number, "file_name": name, "width": 40, "height": 30} for number, name in enumerate(names)],
        [{"id": 0, "image_id": 0, "category_id": 1, "bbox": [1.5, 2, 10, 5.25], "area": 52.5, "iscrowd": 0}],
        ["fish"],
    )
    write_text(raw / "cfc_train.json", json.dumps(coco))


BDD_LISTS = {"2018": "bdd100k_labels_images_train.json", "2020": "det_20/det_train.json"}
_LANE = {
    "category": "lane",
    "attributes": {},
    "poly2d": [{"vertices": [[1, 2], [3, 4]], "types": "LL", "closed": False}],
    "id": 7,
}


def bdd_tree(raw: Path, kind: str) -> None:
    _images(raw, "images/100k/train/a.jpg", "images/100k/train/b.jpg")
    frames = [
        bdd_frame(
            "a.jpg",
            [
                ("car", 1.5, 2.25, 11.5, 12.25),
                ("pedestrian", 0, 0, 4, 5, True),
                ("traffic light", 1, 1, 2, 2),
            ],
        ),
        bdd_frame("b.jpg", [("person", 3, 4, 9, 10)]),
    ]
    frames[0]["labels"].append(_LANE)
    if kind != "per-image":
        write_text(raw / "labels" / BDD_LISTS[kind], json.dumps(frames))
        return
    for frame in frames:
        one = {
            "name": frame["name"][:-4],
            "attributes": frame["attributes"],
            "frames": [{"timestamp": 1, "objects": frame["labels"]}],
        }
        write_text(raw / "labels" / "100k" / "train" / f"{frame['name'][:-4]}.json", json.dumps(one))


def cityscapes_tree(raw: Path, instance_ids: bool = False) -> None:
    for name in ("bonn_000000_000019", "bonn_000001_000019"):
        cityscapes_frame(raw, "val", "bonn", name, instance_ids=instance_ids, polygons=not instance_ids)


def kitti_tree(raw: Path) -> None:
    rest = "1.50 1.60 3.70 -2.00 1.50 20.00 1.57"
    _images(raw, "training/image_2/000000.png", "training/image_2/000001.png")
    lines = (
        "Car 0.00 0 1.85 3.25 4.50 12.75 11.00",
        "Van 0.00 1 1.85 1.00 1.00 9.00 9.00",
        "DontCare -1 -1 -10 20.0 1.0 30.0 6.0",
    )
    write_text(raw / "training" / "label_2" / "000000.txt", "".join(f"{line} {rest}\n" for line in lines))
    write_text(
        raw / "training" / "label_2" / "000001.txt", f"Car 0.90 0 1.85 -5.00 12.00 60.00 22.00 {rest}\n"
    )


def sim10k_tree(raw: Path) -> None:
    voc_tree(raw / "VOC2012")


def beside_tree(raw: Path, suffix: str) -> None:
    """Bare images, and beside them a file that may be anything."""
    _images(raw, "a.jpg", "b.jpg")
    write_text(raw / f"a.{suffix}", ANYTHING[suffix])


ANYTHING = {
    "json": json.dumps(test_formats.LABELME),
    "xml": voc_xml([("car", 3, 4, 12, 11)]),
    "txt": YOLO_LINES,
    "csv": test_bridge.CSV,
    "yaml": "train: images\nnames: [car, motor]\n",
    "names": "car\nperson\n",
    "data": "names = obj.names\ntrain = train.txt\n",
}

_INSTANCE_IDS = "gtFine/val/bonn/bonn_000000_000019_gtFine_instanceIds.png"
_POLYGONS = "gtFine/val/bonn/bonn_000000_000019_gtFine_polygons.json"
_ACDC_FILE = "gt_detection/instancesonly_train_gt_detection.json"


def _readers() -> Iterator[Reader]:
    for how in ("coco", "auto"):
        yield Reader(
            f"{how}-coco", coco_tree, "instances_train.json", own(how), coco_records, images=coco_images
        )
    shared = own("coco", val_share=0.5, class_map={"person": "car"})
    yield Reader(
        "coco-val-share", coco_tree, "instances_train.json", shared, coco_records, images=coco_images
    )
    for boxes in ("shares", "corners", "pixels"):
        yield Reader(
            f"coco-{boxes}",
            coco_tree,
            "instances_train.json",
            own("coco", boxes=boxes),
            coco_records,
            images=coco_images,
        )
        yield Reader(
            f"yolo-{boxes}", yolo_classes_tree, "labels/a.txt", own("yolo", boxes=boxes), one_yolo_records
        )
    yield Reader("coco-splits", coco_splits_tree, "instances_val.json", own("coco"))
    for suffix in (".zip", ".tgz"):
        yield Reader(f"coco{suffix}", partial(packed_tree, suffix=suffix), f"set{suffix}", own("coco"))
    for how in ("voc", "auto"):
        yield Reader(f"{how}-voc", voc_tree, "Annotations/a.xml", own(how), voc_records)
    yield Reader("voc-list", voc_listed_tree, "ImageSets/Main/train.txt", own("voc"))
    for how in ("yolo", "auto"):
        yield Reader(f"{how}-yolo-labels", yolo_tree, "labels/train/a.txt", own(how), yolo_records)
        yield Reader(f"{how}-yolo-data.yaml", yolo_tree, "data.yaml", own(how))
        yield Reader(f"{how}-darknet-data", darknet_tree, "obj.data", own(how))
    yield Reader("yolo-only-labels", yolo_classes_tree, "labels/a.txt", own("yolo"), one_yolo_records)
    yield Reader("yolo-classes.txt", yolo_classes_tree, "classes.txt", own("yolo"))
    yield Reader("darknet-names", darknet_tree, "obj.names", own("yolo"))
    yield Reader("darknet-list", darknet_tree, "train.txt", own("yolo"))
    for name, (_, file) in _PAIRED_FILES.items():
        for how in (name, "auto"):
            yield Reader(
                f"{how}-{name}",
                partial(paired_tree, format=name),
                file,
                own(how),
                PAIRED_RECORDS.get(name),
                how == "auto",
            )
    for name in _LISTED_IMAGES:
        count = LISTED_RECORDS.get(name)
        for how in (name, "auto"):
            yield Reader(
                f"{how}-{name}",
                partial(listed_tree, format=name),
                test_bridge.GOOD[name][0],
                own(how),
                count,
                how == "auto",
            )
    descriptions = "class-descriptions-boxable.csv"
    yield Reader(
        "openimages-classes", partial(listed_tree, format="openimages"), descriptions, own("openimages")
    )
    yield Reader("acdc", acdc_tree, _ACDC_FILE, lambda raw, root: acdc.recipe([raw], root), coco_records)
    yield Reader(
        "cfc",
        cfc_tree,
        "cfc_train.json",
        lambda raw, root: cfc.recipe([raw], root, location="kenai"),
        coco_records,
    )
    for kind, file in {**BDD_LISTS, "per-image": "100k/train/a.json"}.items():
        for where in (bdd100k.DAYTIME, None):
            count = bdd_records if where is None and kind != "per-image" else None
            make = partial(bdd_recipe, where=where)
            yield Reader(
                f"bdd100k-{kind}-{'daytime' if where else 'all'}",
                partial(bdd_tree, kind=kind),
                f"labels/{file}",
                make,
                count,
            )
    yield Reader(
        "cityscapes-polygons", cityscapes_tree, _POLYGONS, lambda raw, root: cityscapes.recipe([raw], root)
    )
    ids = partial(cityscapes_tree, instance_ids=True)
    yield Reader("cityscapes-instances", ids, _INSTANCE_IDS, lambda raw, root: cityscapes.recipe([raw], root))
    yield Reader(
        "sim10k", sim10k_tree, "VOC2012/Annotations/a.xml", lambda raw, root: sim10k.recipe([raw], root)
    )
    yield Reader(
        "kitti-benchmark",
        kitti_tree,
        "training/label_2/000000.txt",
        lambda raw, root: kitti.recipe([raw], root),
    )
    for suffix in ANYTHING:
        yield Reader(
            f"beside-{suffix}", partial(beside_tree, suffix=suffix), f"a.{suffix}", own("auto"), unasked=True
        )
    yield Reader("image-of-coco", coco_tree, "images/001.jpg", own("coco"))


def bdd_recipe(raw: Path, root: Path, where: Any) -> Recipe:
    """BDD100K of some frames or of all."""
    return bdd100k.recipe([raw], root, where=where)


READERS = {reader.name: reader for reader in _readers()}

# ---- what must be true of a prepared set
# --------------------------------------------------------------------------------------------------

ROUNDING = 0.0011  # boxes are written to a thousandth of a pixel


def _strictly(text: str) -> Any:
    raise AssertionError(f"{text} is no JSON")


def require_sound(card: DatasetCard, warnings: list[str]) -> None:
    """AssertionError unless a prepared set fulfils everything that ``prepare`` promises."""
    again = read_card(card.folder)
    assert again == card, "the card that is read is the one that was written"
    assert check_set(card, workers=1) == []
    assert all(isinstance(line, str) and line.strip() for line in warnings)
    sizes: dict[str, int] = {}
    for name, split in card.splits.items():
        coco = json.loads(card.annotations_path(name).read_bytes().decode("utf-8"), parse_constant=_strictly)
        images, annotations = coco["images"], coco["annotations"]
        assert [entry["id"] for entry in images] == list(range(1, len(images) + 1))
        assert [entry["id"] for entry in annotations] == list(range(1, len(annotations) + 1))
        assert coco["categories"] == [
            {"id": number, "name": label} for number, label in enumerate(card.classes, start=1)
        ]
        assert all(label.strip() and label.encode("utf-8") for label in card.classes)
        assert len(set(card.classes)) == len(card.classes)
        files = [entry["file_name"] for entry in images]
        assert len(set(files)) == len(files)
        for file in files:
            assert not PurePosixPath(file).is_absolute() and ".." not in PurePosixPath(file).parts
            assert file_exists(card.images_root(name) / file)
        for entry in images:
            size = f"{entry['width']}x{entry['height']}"
            sizes[size] = sizes.get(size, 0) + 1
        by_id = {entry["id"]: entry for entry in images}
        counted = dict.fromkeys(card.classes, 0)
        for entry in annotations:
            image = by_id[entry["image_id"]]
            x, y, width, height = entry["bbox"]
            assert all(
                type(value) in (int, float) and math.isfinite(value)
                for value in (x, y, width, height, entry["area"])
            ), entry
            assert width > 0 and height > 0, f"box without area: {entry}"
            assert (
                x >= 0
                and y >= 0
                and x + width <= image["width"] + ROUNDING
                and y + height <= image["height"] + ROUNDING
            ), entry
            assert entry["area"] > 0, f"no area: {entry}"
            assert entry["iscrowd"] in (0, 1)
            if not entry["iscrowd"]:
                counted[card.classes[entry["category_id"] - 1]] += 1
        assert split.num_images == len(images) and split.boxes_per_class == counted
        assert split.num_boxes == sum(counted.values())
        assert split.num_ignored == len(annotations) - split.num_boxes
        with_boxes = {entry["image_id"] for entry in annotations if not entry["iscrowd"]}
        assert split.num_empty == len(by_id.keys() - with_boxes)
        assert all(
            isinstance(reason, str) and type(count) is int and count > 0
            for reason, count in split.skipped.items()
        ), split.skipped
    assert sizes == card.image_sizes


def require_nothing_lost(card: DatasetCard, records: int | None, images: int | None) -> None:
    """AssertionError unless every image and every annotation record is in the set or counted.

    A record may be a box, an ignored object, or counted as left out. Annotations of images that were left out
    are not counted, so records are not checked if there are such images.
    """
    skipped = [(reason, count) for split in card.splits.values() for reason, count in split.skipped.items()]
    of_images = {reason: count for reason, count in skipped if reason.startswith(OF_IMAGES)}
    there = sum(split.num_images for split in card.splits.values())
    assert images is None or there + sum(of_images.values()) == images, (
        f"{images} images, {there} written: {skipped}"
    )
    if records is None or of_images.keys() - {"image listed twice"}:
        return
    left = sum(count for reason, count in skipped if reason not in of_images)
    there = sum(split.num_boxes + split.num_ignored for split in card.splits.values())
    assert there + left == records, (
        f"{records} records, {there} written and {left} counted as left out: {skipped}"
    )


def counted(count: Counting | None, content: bytes) -> int | None:
    """How many the raw set with this content has; None if that cannot be told without our own parser."""
    if count is None:
        return None
    try:
        return count(content)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, SyntaxError):
        return None
