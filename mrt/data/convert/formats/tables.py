"""CSV files with a box in each row.

Open Images' form, and the plain form of VoTT, Roboflow, TensorFlow's tutorials and keras-retinanet.

**openimages**: columns ImageID, LabelName, XMin, XMax, YMin, YMax (shares of the image's width and height),
and IsGroupOf: 1 makes an ignored object, as the benchmark neither asks for nor penalises boxes in a group.
``ImageID`` has no suffix: the images are called ``ID.jpg``, as the owners' downloader writes them. Confidence
is 1 for boxes that people have drawn; other numbers mean predictions. Classes such as ``/m/0k4j`` get their
names from a ``*class-descriptions*.csv`` among the raw files.

**csv**: a header with one of image, filename, file, path, image_path, file_name; one of class, label, name,
category; and xmin, ymin, xmax, ymax or x1, y1, x2, y2, in pixels from the upper left corner. width and
height, if given, are the image's; split or subset, its split. Where rows of one name have different paths,
the column with the path counts. A row without class and numbers is an image without objects. Without a
header: image,x1,y1,x2,y2,class (keras-retinanet).

Sources: storage.googleapis.com/openimages (Kuznetsova et al. 2020); the readme of fizyr/keras-retinanet.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from mrt.data.convert.formats import reading
from mrt.data.convert.formats.listing import Files, Listing, image_name, in_pixels, upright_sizes
from mrt.data.convert.names import split_in
from mrt.data.convert.places import class_name
from mrt.data.convert.sheets import Record, Sheet
from mrt.data.headers import IMAGE_SUFFIXES
from mrt.errors import MrtError

Row = Mapping[str, str]  # column in lower case -> text

OPEN_IMAGES = ("imageid", "labelname", "xmin", "xmax", "ymin", "ymax")
IMAGE = ("image", "filename", "file", "path", "image_path", "file_name", "img", "image_name")
CLASS = ("class", "label", "name", "category", "class_name", "label_name")
BOXES = (("xmin", "ymin", "xmax", "ymax"), ("x1", "y1", "x2", "y2"), ("x_min", "y_min", "x_max", "y_max"))
SPLIT = ("split", "subset", "set")
OTHER_NAME = "also "  # in front of further columns that may name the image
HEADLESS = ("image", "x1", "y1", "x2", "y2", "class")
CSV_NEEDS = (
    "a CSV file with the columns image, class, xmin, ymin, xmax, ymax (a header, or keras-retinanet's order)"
)
OPEN_IMAGES_NEEDS = (
    "Open Images' CSV of boxes (ImageID, LabelName, XMin, XMax, YMin, YMax), and images named ID.jpg"
)


def read_openimages(place: Path, files: Files) -> dict[str, Sheet]:
    """The images of an Open Images file, by ``ID.jpg``.

    Raises:
        MrtError: not text, no such columns, a row without an ImageID, a row with a confidence (predictions).
    """
    names = _descriptions(files)
    found: dict[str, list[Record | str | None]] = {}
    for number, row in _rows(place, OPEN_IMAGES_NEEDS, _openimages_columns):
        name = image_name(row["imageid"], place, f"line {number}")
        name = name if name.lower().endswith(IMAGE_SUFFIXES) else name + ".jpg"
        found.setdefault(name, []).append(_openimages_record(row, names, f"{place}, line {number}"))
    sheets = {name: reading.collect(records) for name, records in found.items()}
    sizes = upright_sizes(sheets, place, files)
    return {name: in_pixels(sheet, sizes.get(name)) for name, sheet in sheets.items()}


def read_csv(place: Path, files: Files) -> dict[str, Sheet]:
    """The images of a plain CSV file.

    Raises:
        MrtError: not text, no such columns, a row without an image's name, boxes in shares instead of pixels.
    """
    found: dict[str, list[Record | str | None]] = {}
    sizes: dict[str, tuple[int, int] | None] = {}
    splits: dict[str, str | None] = {}
    rows = list(_rows(place, CSV_NEEDS, _plain_columns))
    column = _image_column([row for _, row in rows])
    for number, row in rows:
        name = image_name(row[column], place, f"line {number}")
        sizes[name] = sizes.get(name) or reading.image_size(row.get("width"), row.get("height"))
        split = split_in(row.get("split", "").strip())
        if splits.setdefault(name, split) != split:
            raise MrtError(
                f"{place}, line {number}: {name!r} is in the split {row['split']!r}, and in another before",
                "Give each image one split.",
            )
        found.setdefault(name, []).append(_plain_record(row))
    _refuse_shares(found, place)
    return {
        name: reading.collect(records, sizes[name])._replace(split=splits[name])
        for name, records in found.items()
    }


def _image_column(rows: Sequence[Row]) -> str:
    """The column that names the images: another one than the first where that tells fewer of them apart, and
    each of its values ends with the first one's.
    """
    names = {row["image"] for row in rows}
    for column in (key for key in (rows[0] if rows else ()) if key.startswith(OTHER_NAME)):
        pairs = {(row["image"], row[column].replace("\\", "/")) for row in rows}
        fits = all(
            path.rpartition("/")[2] == name.replace("\\", "/").rpartition("/")[2] for name, path in pairs
        )
        if fits and len(pairs) > len(names):
            return column
    return "image"


def looks_openimages(head: bytes, path: str) -> bool:
    """Whether the first line has Open Images' columns."""
    header = _first_row(head)
    return set(OPEN_IMAGES) <= {column.strip().lower() for column in header}


def looks_csv(head: bytes, path: str) -> bool:
    """Whether the first line names the columns or is a row of keras-retinanet's; only for ``.csv`` files."""
    header = [column.strip().lower() for column in _first_row(head)]
    return path.lower().endswith(".csv") and _plain_columns(header) is not None


def _first_row(head: bytes) -> list[str]:
    lines = reading.head_lines(head)
    try:
        return next(csv.reader(lines[:1], delimiter=_delimiter(lines[0]))) if lines else []
    except (csv.Error, StopIteration):
        return []


def _delimiter(line: str) -> str:
    """The delimiter of a line: some programs write tabs, or semicolons where numbers have a decimal comma."""
    return max(",;\t", key=line.count)


def _openimages_columns(header: list[str]) -> list[str] | None:
    return header if set(OPEN_IMAGES) <= set(header) else None


def _plain_columns(header: list[str]) -> list[str] | None:
    """The header with our names for its columns, or None if it is not a header.

    If the first row is data without a header, the columns are keras-retinanet's.
    """
    box = next((names for names in BOXES if set(names) <= set(header)), None)
    image = next((name for name in IMAGE if name in header), None)
    label = next((name for name in CLASS if name in header), None)
    if box and image and label:
        ours = {image: "image", label: "class", **dict(zip(box, HEADLESS[1:5], strict=True))}
        ours |= {name: f"{OTHER_NAME}{name}" for name in IMAGE if name in header and name != image}
        ours |= {name: "split" for name in SPLIT if name in header and name not in ours}
        kept = {*ours, "width", "height"}
        return [ours.get(name, name if name in kept else f"({name})") for name in header]
    is_row = len(header) == len(HEADLESS) and header[0].endswith(IMAGE_SUFFIXES)
    if is_row and (not any(header[1:]) or all(map(reading.is_number, header[1:5]))):
        return list(HEADLESS)
    return None


def _rows(
    place: Path, needs: str, columns_of: Callable[[list[str]], list[str] | None]
) -> Iterator[tuple[int, Row]]:
    """(line, row) of a CSV file; rows shorter than the header are filled up with "".

    Args:
        columns_of: first row -> the names of its columns, or None if it is not a usable header.
    """
    text = reading.whole_text(place, needs)
    first = next((line for line in text.splitlines() if line.strip()), "")
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(first))
    columns: list[str] | None = None
    try:
        for words in lines:
            if not any(word.strip() for word in words):
                continue
            if columns is None:
                header = [word.strip().lower() for word in words]
                columns = columns_of(header)
                if columns is None:
                    raise MrtError(
                        f"{place}: its first line is {', '.join(header)[:200]}", f"It should be {needs}."
                    )
                if not header[0].endswith(IMAGE_SUFFIXES):
                    continue
            if any(word.strip() for word in words[len(columns) :]):
                raise MrtError(
                    f"{place}, line {lines.line_num}: {len(words)} values for {len(columns)} columns",
                    f"It should be {needs}.",
                )
            values = [*(word.strip() for word in words), *[""] * len(columns)]
            yield lines.line_num, dict(zip(columns, values, strict=False))
    except csv.Error as error:
        raise MrtError(
            f"{place}, line {lines.line_num}: not valid CSV ({error})", f"It should be {needs}."
        ) from None
    if columns is None:
        raise MrtError(f"{place}: is empty", f"It should be {needs}.")


def _plain_record(row: Row) -> Record | str | None:
    corners = [row[name] for name in HEADLESS[1:5]]
    if not any(corners) and not row["class"]:
        return None
    label = class_name(row["class"])
    if label is None:
        return reading.NO_NAME
    if not any(corners):
        return Record(label, None)
    x0, y0, x1, y1 = map(reading.number, corners)
    return Record(label, (x0, y0, x1, y1))


def _refuse_shares(found: Mapping[str, list[Record | str | None]], place: Path) -> None:
    every = [record for entries in found.values() for record in entries]
    records = [record for record in every if isinstance(record, Record) and record.box is not None]
    values = [value for record in records for value in record.box or () if math.isfinite(value)]
    if values and max(values) <= 1:
        raise MrtError(
            f"{place}: all its {len(records)} boxes lie between 0 and 1: these are "
            "shares of the image, not pixels",
            "Multiply them by the image's width and height.",
        )


def _openimages_record(row: Row, names: Mapping[str, str], where: str) -> Record | str:
    confidence = reading.number(row["confidence"]) if row.get("confidence") else 1.0
    if 0 <= confidence < 1:
        raise MrtError(
            f"{where}: its Confidence is {row['confidence']}: these are predictions, not labels",
            "Give the boxes that people have drawn (Confidence 1).",
        )
    label = class_name(names.get(row["labelname"], row["labelname"]))
    if label is None:
        return reading.NO_NAME
    x0, y0, x1, y1 = (reading.number(row[name]) for name in ("xmin", "ymin", "xmax", "ymax"))
    if min(x0, y0, x1, y1) < -0.01 or max(x0, y0, x1, y1) > 1.01:
        return "box with shares outside 0 to 1"
    return Record(label, (x0, y0, x1, y1), ignored=row.get("isgroupof") == "1")


def _descriptions(files: Files) -> dict[str, str]:
    """Open Images' names of its classes: "/m/0k4j" -> "Car"."""
    names: dict[str, str] = {}
    for inside in sorted(files):
        if re.search(r"(?i)(^|/)[^/]*class-descriptions[^/]*\.csv$", inside):
            text = reading.whole_text(files[inside], "Open Images' list of classes, lines '/m/0k4j,Car'")
            for line in text.splitlines():
                key, _, name = line.partition(",")
                if key.strip().startswith("/"):
                    names[key.strip()] = name.strip().strip('"')
    return names


OPENIMAGES = Listing("openimages", (".csv",), OPEN_IMAGES_NEEDS, read_openimages, looks_openimages)
CSV = Listing("csv", (".csv",), CSV_NEEDS, read_csv, looks_csv)
