"""Which kind of set some files are, and which of them look like labels but are not read."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from posixpath import splitext

from mrt.data.archives import open_file
from mrt.data.convert import bridge, coco, voc, yolo
from mrt.data.convert.formats import PAIRED
from mrt.data.convert.names import BINARY, FILMS, FOREIGN, IMAGES, TEXTS, examples, is_about, plain
from mrt.data.convert.places import ImageFinder
from mrt.data.convert.raw import RawFiles, Unpacking, own_files
from mrt.data.convert.yolo_settings import settings_and_names
from mrt.data.text import decode_head
from mrt.errors import MrtError

# What each kind needs, for messages.
KINDS = {
    "coco": (
        "JSON files with 'images', 'annotations' and 'categories' "
        "(instances_train2017.json, train.json, ...), and their images"
    ),
    "voc": (
        "an XML file for each image (Annotations/*.xml, JPEGImages/*.jpg, perhaps "
        "ImageSets/Main/{train,val}.txt)"
    ),
    "yolo": (
        "a data.yaml or classes.txt with the class names, images/*/*.jpg, and "
        "labels/*/*.txt with lines 'class cx cy w h'"
    ),
    **{name: found.needs for name, found in PAIRED.items()},
    **{name: found.needs for name, found in bridge.LISTED.items()},
    "images": "any folder of images; no labels",
    "video": "videos (.mp4, .mov, .mkv, ...), from which frames are taken; no labels",
}
_HEAD = 1 << 16
_QUOTING = 1 << 13  # first letters of a text that are searched for names of images
_SAMPLED = 64  # label files of a kind that are looked into
_SAYS = re.compile(
    r"(?i)\"(annotations?|labels?|objects?|shapes|bbox(es)?|box2d|box|boxes|polygons?|segmentation"
    r"|regions|detections)\"\s*:"
    r"|<(object|box|bndbox|polygon)\b"
)
_QUOTED = re.compile(r"[\"'>]([^\"'<>\n]{1,300})[\"'<]")  # a text of JSON or XML
_NUMBER = re.compile(r"[-+]?(\d++\.?\d*+|\.\d++)([eE][-+]?\d+)?")
_COLUMNS = re.compile(r"(?i)\b(x_?min|xmin|x1|bbox|left|box)\b")


def detect(raw: Sequence[Path] | RawFiles, data_root: Path, on_unpack: Unpacking | None = None) -> str:
    """The kind of a set by its files: a key of :data:`KINDS`.

    Raises:
        MrtError: no kind fits (the message says what each needs), or more than one; or there are images and
            labels beside them that cannot be decided on here: in a format that must be named, or in an
            unknown one.
    """
    files = own_files(raw, data_root, on_unpack)
    images = ImageFinder(files.files).files
    whole, partly = coco.candidates(files)
    fits = {
        "coco": bool(whole),
        "voc": any(voc.looks(_head(place), match.string) for match, place in files.matching(r"(?i)\.xml$")),
        "yolo": bool(images) and _is_yolo(files, images),
    }
    kinds = [kind for kind, fit in fits.items() if fit]
    given = files.given
    # class names alone do not make a YOLO set of one in another format
    named = named_formats(files.files) if kinds in ([], ["yolo"]) else {}
    if kinds == ["yolo"] and named and not yolo.label_files(files, images):
        kinds = []
    if len(kinds) == 1:
        return kinds[0]
    if kinds:
        raise MrtError(
            f"--raw {given}: may be of more than one kind: {', '.join(kinds)}",
            f"Say which with --format {' or '.join(kinds)}.",
        )
    if named and images:
        looks = "; ".join(
            f"{len(insides)} look like {name} labels ({examples(insides)})" for name, insides in named.items()
        )
        commands = ", ".join(f"--format {name}" for name in named)
        raise MrtError(
            f"--raw {given}: {len(images)} images, and beside them files that are not read unasked: {looks}",
            f"To read them: {commands}. If bare images without labels are meant: --format images.",
        )
    if partly:
        return "coco"
    unknown = unread(files.files, ()) if images else []
    if unknown:
        raise MrtError(
            f"--raw {given}: {len(images)} images, and beside them {len(unknown)} files that may be labels, "
            "of no kind that mrt knows: "
            f"{examples(unknown)}",
            "If bare images without labels are meant: --format images. Else say which "
            "they are, or convert them to one of these:\n"
            f"--format {' | '.join(KINDS)}",
        )
    if images:
        return "images"
    if others := foreign(files.files):
        raise MrtError(
            f"--raw {given}: no images that are read, but {len(others)} files of kinds "
            f"that Pillow does not open: {examples(others)}",
            "Convert pictures to JPEG or PNG, and take videos out of their archive.",
        )
    if files.nameless:
        raise MrtError(
            f"--raw {given}: no images by their names, but {len(files.nameless)} files without a suffix: "
            f"{examples(files.nameless)}",
            "If they are images, give their names the suffix of their kind, such as .jpg.",
        )
    if not files.files and files.unopened:
        raise MrtError(
            f"--raw {given}: only archives that are not opened: {examples(files.unopened)}",
            "Unpack them, or pack their files as .zip, .tar or .tar.gz.",
        )
    if not files.files:
        raise MrtError(
            f"--raw {given}: no images, labels or videos in it",
            "Name the folder, the archive or the files to make a set of (prepared sets do not count).",
        )
    needs = "\n".join(f"  --format {kind}: {need}" for kind, need in KINDS.items())
    raise MrtError(
        f"--raw {given}: no kind of data set that mrt knows ({len(files.files)} files looked at)",
        f"Each needs:\n{needs}",
    )


def named_formats(files: Mapping[str, Path], but: Collection[str] = ()) -> dict[str, list[str]]:
    """Label files in formats that are only read if they are named: format -> paths inside.

    Args:
        but: paths to leave out.
    """
    found: dict[str, list[str]] = {}
    rest = {inside: place for inside, place in files.items() if inside not in but and not is_about(inside)}
    by_suffix: dict[tuple[str, str], list[str]] = {}
    for inside in sorted(rest):
        path = PurePosixPath(inside)
        by_suffix.setdefault((path.parent.as_posix(), path.suffix.lower()), []).append(inside)
    # the files of one folder have one format, so a few of them are enough to tell it
    for (_, suffix), insides in by_suffix.items():
        for name, kind in PAIRED.items():
            sample = insides[:_SAMPLED] if suffix in kind.suffixes else ()
            if any(kind.looks(_head(rest[inside]), inside) for inside in sample):
                found.setdefault(name, []).extend(insides)
                break
    taken = {inside for insides in found.values() for inside in insides}
    listed = bridge.find({inside: place for inside, place in rest.items() if inside not in taken})
    return {**found, **listed}


def unread(files: Mapping[str, Path], read: Collection[str]) -> list[str]:
    """Files that look like labels and were not read.

    That is: a text file with an image's name; a table (such as CSV) with columns for boxes or with an image's
    name in it; a text with images' names at the beginning of lines; a text of rows of numbers; a JSON or XML
    file with words for objects or an image's name in it; a binary table such as .mat or .tfrecord; a packed
    text.
    """
    others = [inside for inside in sorted(files) if inside not in read]
    others = [inside for inside in others if _suffix(inside) in TEXTS or BINARY.search(inside)]
    others = [inside for inside in others if not is_about(inside)]
    if not others:
        return []
    images = [inside for inside in files if IMAGES.search(inside)]
    stems = {_stem(plain(inside)) for inside in images}
    names = {inside.rpartition("/")[2] for inside in images}
    found = []
    for inside in others:
        suffix, stem = _suffix(inside), _stem(plain(inside))
        named = BINARY.search(inside) is not None or stem in stems or _stem(stem) in stems
        if named or _speaks_of(suffix, files[inside], names, stems):
            found.append(inside)
    return found


def _suffix(inside: str) -> str:
    return splitext(inside)[1].lower().removeprefix(".")


def _stem(inside: str) -> str:
    return splitext(inside.rpartition("/")[2])[0]


def foreign(files: Mapping[str, Path]) -> list[str]:
    """The pictures and films among the files that Pillow does not read."""
    return sorted(inside for inside in files if _suffix(inside) in FOREIGN)


def left_beside(files: RawFiles, kind: str, read: Collection[str]) -> list[str]:
    """Notes on files that lie beside a set and were not read."""
    said = []
    others = [] if kind == "images" else unread(files.files, read)
    if others:
        said.append(
            f"not read: {len(others)} files that may be labels or lists of another kind: {examples(others)}"
        )
    others = foreign(files.files)
    films = [inside for inside in others if _suffix(inside) in FILMS]
    pictures = [inside for inside in others if _suffix(inside) not in FILMS]
    if films:
        said.append(
            f"not read: {len(films)} videos in archives: {examples(films)} (unpack them, and --format video "
            "takes their frames)"
        )
    if pictures:
        said.append(
            f"not read: {len(pictures)} files of kinds that Pillow does not open: {examples(pictures)} "
            "(convert them to JPEG or PNG)"
        )
    return said


def _is_yolo(files: RawFiles, images: Iterable[str]) -> bool:
    """Whether there are YOLO label files, or class names as YOLO has them.

    Not if the label files are in another format.
    """
    labels = yolo.label_files(files, images)
    sample = labels[:: max(1, len(labels) // _SAMPLED)]
    heads = [(inside, _head(files.files[inside])) for inside in sample]
    if any(yolo.looks(head, inside) for inside, head in heads):
        return True
    other_kinds = [kind for kind in PAIRED.values() if ".txt" in kind.suffixes]
    if any(kind.looks(head, inside) for kind in other_kinds for inside, head in heads):
        return False
    return bool(settings_and_names(files)) or (bool(heads) and all(not head.strip() for _, head in heads))


def _speaks_of(suffix: str, place: Path, names: Collection[str], stems: Collection[str]) -> bool:
    text = decode_head(_head(place))
    if suffix in ("csv", "tsv", "lst"):
        return bool(_COLUMNS.search(text)) or not {*re.split(r"[\s,;\"'/\\]+", text)}.isdisjoint(names)
    if suffix == "txt":
        return _is_list(text, names, stems) or _is_table(text)
    if suffix not in ("json", "jsonl", "ndjson", "geojson", "manifest", "xml"):
        return False
    return bool(_SAYS.search(text)) or any(
        match[1].replace("\\", "/").rpartition("/")[2] in names for match in _QUOTED.finditer(text[:_QUOTING])
    )


def _is_list(text: str, names: Collection[str], stems: Collection[str]) -> bool:
    """Whether one of a text's first lines begins with an image's whole name, or most of them begin or end
    with one, with or without suffix.
    """
    lines = [line.strip().replace("\\", "/") for line in text.splitlines()[:_SAMPLED] if line.strip()]
    if any(line.rpartition("/")[2] in names or _first_word(line) in names for line in lines):
        return True
    hits = sum(
        line.rpartition("/")[2] in names or line.split()[0] in stems or line.split()[0] in names
        for line in lines
    )
    return hits * 2 > len(lines)


def _first_word(line: str) -> str:
    """The first word of a line, without folders."""
    return re.split(r"[\s,;]", line, maxsplit=1)[0].rpartition("/")[2]


def _is_table(text: str) -> bool:
    """Whether a text's lines are rows of at least five numbers, as many trackers and detectors write them."""
    lines = [line.strip() for line in text.splitlines()[:_SAMPLED] if line.strip()]
    rows = [re.split(r"[\s,;]+", line.strip(",;")) for line in lines]
    numbers = [sum(bool(_NUMBER.fullmatch(word)) for word in row) for row in rows[:-1] or rows]
    return bool(rows) and all(count >= 5 for count in numbers)


def _head(place: Path) -> bytes:
    try:
        with open_file(place) as file:
            return file.read(_HEAD)
    except OSError:
        return b""
