"""Cityscapes: boxes of the visible pixels, from the instance images or else from painted polygons."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from mrt.data.archives import open_file
from mrt.data.convert.raw import RawFiles, Unpacking, common_root, parse_json, relative, require
from mrt.data.convert.recipe import Picture, Recipe, Skipped, Split, Thing
from mrt.data.headers import BROKEN, ImageProblem, open_picture, read_header
from mrt.errors import MrtError

CLASSES = ("person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle")
IMAGES = {"train": 2975, "val": 500}  # frames with labels, by the owners; the labels of "test" are dummies
# The owners' label ids (helpers/labels.py of their tools) are the positions in this list; a license plate has
# -1 and is not painted.
_LABELS = (
    *("unlabeled", "ego vehicle", "rectification border", "out of roi", "static", "dynamic", "ground"),
    *("road", "sidewalk", "parking", "rail track", "building", "wall", "fence", "guard rail", "bridge"),
    *("tunnel", "pole", "polegroup", "traffic light", "traffic sign", "vegetation", "terrain", "sky"),
    *("person", "rider", "car", "truck", "bus", "caravan", "trailer", "train", "motorcycle", "bicycle"),
)
LABEL_IDS = {name: number for number, name in enumerate(_LABELS)} | {"license plate": -1}
SKY = LABEL_IDS["sky"]
# these labels and all between them have instances
FIRST_THING, LAST_THING = LABEL_IDS["person"], LABEL_IDS["bicycle"]
PER_LABEL = 1000  # the n-th car, from 0, is 26 * 1000 + n; 26 alone is a group of cars
LABELS_WANTED = r"_gtFine_(instanceIds\.png|polygons\.json)$"
SITE = "cityscapes-dataset.com"
FRAME = r"(?:^|/)(train|val)/([^/]+)/([^/.][^/]*)"  # a leading dot marks file managers' files
_IMAGE = FRAME + r"_leftImg8bit\.png$"
_MOST_PIXELS = 1 << 28  # of a label file's image; Cityscapes' have 1 << 21
_FARTHEST = 1e9  # a coordinate beyond does not fit the painter's integers


class Frame(NamedTuple):
    """What the owners' files of one picture have in common: ``{split}/{city}/{name}_...``."""

    split: str
    city: str
    name: str


class Job(NamedTuple):
    """One picture: its name in the annotations, its image and labels (None: missing), the classes to keep."""

    file: str
    image: Path | None
    labels: Path | None
    classes: tuple[str, ...]
    extra: Mapping[str, Any] = {}


class Labels(NamedTuple):
    """The instance image of a frame.

    Args:
        ids: (H, W) integers: ``label id * 1000 + n`` for the n-th object of a class, else the label id;
            groups have the id of their class.
        painted: id of each object -> whether all of it lies outside the image; None if unknown.
        skipped: what could not be painted, reason -> how many.
    """

    ids: np.ndarray
    painted: Mapping[int, bool] | None = None
    skipped: Mapping[str, int] = {}


def recipe(
    raw: Sequence[Path],
    data_root: Path,
    *,
    classes: Sequence[str] = CLASSES,
    splits: Sequence[str] = tuple(IMAGES),
    on_unpack: Unpacking | None = None,
) -> Recipe:
    """``leftImg8bit_trainvaltest.zip`` and ``gtFine_trainvaltest.zip``, each as a zip or unpacked.

    Expects ``{split}/{city}/{name}_leftImg8bit.png`` and ``{split}/{city}/{name}_gtFine_instanceIds.png``
    (which is preferred) or ``..._gtFine_polygons.json``, below any folder. A box holds the visible pixels of
    an object, from its first column and row to the last ones inclusive; the area counts its pixels. All
    groups of a class in a frame (``cargroup``) are one ignored box, because the instance image has one number
    for them.

    Counted as skipped: "image missing", "labels missing", "annotation cut short or unreadable" (one bad label
    file does not end the conversion of the others); objects with other labels ("class not asked for": also
    caravans and trailers); objects without a visible pixel ("object fully hidden": from an instance
    image they are only known if their number lies below a visible one's); and from polygons "box outside the
    image" and "unknown label '...'".

    Args:
        classes: which of the owners' ten classes with instances to keep, in this order; default: the
            benchmark's eight.
        splits: which of train and val. A split without images is left out (the card's ``missing_splits``).
        on_unpack: called with (archive, bytes done, bytes in all).

    Raises:
        MrtError: no images or no labels, or an unknown class or split.
    """
    check_options(classes, splits)
    files = RawFiles(raw, rf"_leftImg8bit\.png$|{LABELS_WANTED}", data_root, on_unpack)
    images, labels = find_frames(files, _IMAGE), find_labels(files)
    require(
        images,
        "Cityscapes images ({split}/{city}/*_leftImg8bit.png)",
        files,
        f"Give leftImg8bit_trainvaltest.zip, too: it is on {SITE}.",
    )
    found = {}
    for split in splits:
        frames = sorted(frame for frame in {*images, *labels} if frame.split == split)
        entries = [
            (frame, images.get(frame), f"{frame.city}/{frame.name}_leftImg8bit.png", {}) for frame in frames
        ]
        found[split] = labelled_split(entries, labels, tuple(classes))
    return Recipe(
        domain="clear",
        classes=tuple(classes),
        splits={split: jobs for split, jobs in found.items() if jobs is not None},
        source=files.source,
        details={"boxes": "of the visible pixels"} | missing_splits(found),
        expected={split: {"images": IMAGES[split]} for split in splits},
    )


def check_options(classes: Sequence[str], splits: Sequence[str]) -> None:
    """MrtError unless the classes are Cityscapes classes with instances, and the splits train and val."""
    things = _LABELS[FIRST_THING : LAST_THING + 1]
    for name in classes:
        if name not in things:
            raise MrtError(
                f"classes: Cityscapes has no objects of class {name!r}", f"It has: {', '.join(things)}."
            )
    if not classes or len(set(classes)) != len(classes):
        raise MrtError(f"classes: expected one or more different names, not {list(classes)}")
    for split in splits:
        if split not in IMAGES:
            raise MrtError(f"splits: {split!r} has no labels, expected some of: {', '.join(IMAGES)}")


def find_frames(files: RawFiles, pattern: str) -> dict[Frame, Path]:
    """Where each frame's file is; the pattern's first three groups are split, city and name."""
    found: dict[Frame, Path] = {}
    for match, place in files.matching(pattern):
        found.setdefault(Frame(*match.groups()[:3]), place)
    return found


def find_labels(files: RawFiles) -> dict[Frame, Path]:
    """Each frame's instance image or else its polygons; MrtError if there are none at all."""
    polygons = find_frames(files, FRAME + r"_gtFine_polygons\.json$")
    found = polygons | find_frames(files, FRAME + r"_gtFine_instanceIds\.png$")
    require(
        found,
        "Cityscapes labels ({split}/{city}/*_gtFine_instanceIds.png or *_gtFine_polygons.json)",
        files,
        f"Give gtFine_trainvaltest.zip, too: it is on {SITE}.",
    )
    return found


def labelled_split(
    entries: Iterable[tuple[Frame, Path | None, str, Mapping[str, Any]]],
    labels: Mapping[Frame, Path],
    classes: tuple[str, ...],
) -> Split | None:
    """The split of (frame, image, name to report it by if it is missing, extra) entries.

    None if there is not a single image.
    """
    entries = list(entries)
    places = [image.parent for _, image, _, _ in entries if image is not None]
    if not places:
        return None
    root = common_root(places)  # of the cities' folders: names keep their city even if there is only one
    jobs = [
        Job(relative(image, root) if image is not None else missing, image, labels.get(frame), classes, extra)
        for frame, image, missing, extra in entries
    ]
    return Split(root, jobs, convert)


def missing_splits(found: Mapping[str, Split | None]) -> dict[str, list[str]]:
    """For the card's details: splits that were asked for and have no image."""
    missing = [name for name, split in found.items() if split is None]
    return {"missing_splits": missing} if missing else {}


def convert(job: Job) -> Picture | Skipped:
    """Picture with the boxes of its visible objects, by class number and number in the instance image."""
    if job.image is None:
        return Skipped("image missing", job.file)
    if job.labels is None:
        return Skipped("labels missing", job.file)
    try:
        header = read_header(job.image)
    except MrtError:
        return Skipped("image cut short or unreadable", job.file)
    labels = usable_labels(job.labels, job.file, (header.width, header.height))
    if isinstance(labels, Skipped):
        return labels
    things, skipped = visible_things(labels, job.classes)
    return Picture(job.file, header.width, header.height, things, skipped, job.extra)


class _OtherSize(MrtError):
    """Labels for an image of another size."""


def usable_labels(place: Path, file: str, size: tuple[int, int]) -> Labels | Skipped:
    """The labels of an image, or why they cannot be used: one bad file is left out, not the whole set.

    Args:
        file: the image's name in the set. size: its width and height.
    """
    try:
        return read_labels(place, size)
    except _OtherSize:
        return Skipped("image size differs from the annotation's", file)
    except MrtError as error:
        return Skipped("annotation cut short or unreadable", error.message)


def read_labels(place: Path, size: tuple[int, int] | None = None) -> Labels:
    """Read the instance image, or paint it from polygons.

    Args:
        size: width and height of the image that they are for, if it is known.

    Raises:
        MrtError: the file cannot be used, or is for an image of another size.
    """
    if place.suffix == ".json":
        return paint(parse_json(place), place, size)
    try:
        with warnings.catch_warnings(), open_file(place) as file, open_picture(file) as picture:
            warnings.simplefilter("ignore")  # odd blocks that decode all the same
            if picture.mode not in ("I;16", "I;16B", "I", "L"):
                raise MrtError(
                    f"{place}: mode is {picture.mode}, expected a grey image of 16 bits",
                    "It may be the *_color.png, renamed.",
                )
            _require_size(place, picture.size, size)  # before it is decoded
            return Labels(np.array(picture))
    except (*BROKEN, ImageProblem) as error:
        raise MrtError(
            f"{place}: cannot be read as an image ({error})",
            f"Get gtFine_trainvaltest.zip again from {SITE}.",
        ) from None


def _require_size(place: Path, stated: tuple[int, int], size: tuple[int, int] | None) -> None:
    if size is not None and stated != size:
        raise _OtherSize(f"{place}: is for {stated[0]}x{stated[1]} pixels, its image has {size[0]}x{size[1]}")


def paint(annotation: Any, place: Path, size: tuple[int, int] | None = None) -> Labels:
    """The instance image of a ``gtFine_polygons.json``.

    Objects are painted in the file's order, so later ones hide earlier ones.

    By the owners' rules deleted objects are left out, ``NAMEgroup`` is painted with the number of NAME unless
    it is a label itself, and every other object of a class with instances takes that class's next number,
    whether it will be visible or not.

    Raises:
        MrtError: the content is not that of a label file; the message names ``place`` and the entry.
    """
    width, height, objects = _content(annotation, place)
    _require_size(place, (width, height), size)
    canvas = Image.new("I", (width, height), LABEL_IDS["unlabeled"])
    draw = ImageDraw.Draw(canvas)
    numbers, skipped, painted = Counter[str](), Counter[str](), {}
    for index, entry in enumerate(objects):
        label, polygon, deleted = _object(entry, f"{place}: objects[{index}]")
        if deleted:
            continue
        group = label not in LABEL_IDS and label.endswith("group")
        name = label.removesuffix("group") if group else label
        if name not in LABEL_IDS:
            skipped[f"unknown label {label!r}"] += 1
            continue
        number = LABEL_IDS[name]
        single = FIRST_THING <= number <= LAST_THING and not group
        if single:
            if numbers[name] == PER_LABEL:
                raise MrtError(
                    f"{place}: objects[{index}] is {name} number {PER_LABEL + 1}, "
                    f"their numbers end at {PER_LABEL}"
                )
            number = number * PER_LABEL + numbers[name]
            numbers[name] += 1
        if number < 0:
            continue
        if len(polygon) < 2:
            skipped["box without area"] += 1
        elif not all(abs(value) <= _FARTHEST for point in polygon for value in point):  # also false for NaN
            skipped["box with a number that is not finite"] += 1
        else:
            draw.polygon(polygon, fill=number)
            if single:
                painted[number] = _outside(polygon, width, height)
    return Labels(np.array(canvas), painted, skipped)


def _outside(polygon: Sequence[tuple[float, float]], width: int, height: int) -> bool:
    across, down = zip(*polygon, strict=True)
    return max(across) < 0 or min(across) >= width or max(down) < 0 or min(down) >= height


def _content(annotation: Any, place: Path) -> tuple[int, int, list[Any]]:
    """Width, height and objects of a label file; MrtError names what is wrong."""
    hint = f"Is it a gtFine_polygons.json from {SITE}?"
    if not isinstance(annotation, dict):
        raise MrtError(f"{place}: holds a JSON {type(annotation).__name__}, expected an object", hint)
    size = []
    for key in ("imgWidth", "imgHeight"):
        value = annotation.get(key)
        if type(value) is not int or not 1 <= value <= _MOST_PIXELS:
            raise MrtError(f"{place}: {key} is {repr(value)[:80]}, expected a number of pixels", hint)
        size.append(value)
    if size[0] * size[1] > _MOST_PIXELS:
        raise MrtError(f"{place}: imgWidth x imgHeight is {size[0]}x{size[1]}, too large to be painted", hint)
    if not isinstance(annotation.get("objects"), list):
        raise MrtError(
            f"{place}: objects is {type(annotation.get('objects')).__name__}, expected a list", hint
        )
    return size[0], size[1], annotation["objects"]


def _object(entry: Any, where: str) -> tuple[str, list[tuple[float, float]], bool]:
    """Label and polygon of an object to paint, and whether it was deleted; MrtError names what is wrong."""
    if not isinstance(entry, dict) or not isinstance(entry.get("label"), str):
        raise MrtError(f"{where}.label is missing or not a text")
    polygon = entry.get("polygon")
    try:
        points = [(point[0] + 0, point[1] + 0) for point in polygon]  # + 0 fails for a text
    except (TypeError, IndexError, KeyError):
        raise MrtError(f"{where}.polygon is not a list of [x, y] in pixels") from None
    return entry["label"], points, bool(entry.get("deleted", 0))


def visible_things(labels: Labels, classes: Sequence[str]) -> tuple[list[Thing], Counter[str]]:
    """Boxes of what is visible, groups as ignored ones, and what was left out: reason -> objects."""
    skipped = Counter(labels.skipped)
    found = extents(labels.ids)
    things = []
    for number, (box, pixels) in found.items():
        name = _LABELS[_label_of(number)]
        if name in classes:
            things.append(Thing(name, box, pixels, ignored=number < PER_LABEL))
        else:
            skipped["class not asked for"] += 1
    for number, outside in (_gaps(found) if labels.painted is None else labels.painted).items():
        if number not in found:
            asked = _LABELS[_label_of(number)] in classes
            reason = "box outside the image" if outside else "object fully hidden"
            skipped[reason if asked else "class not asked for"] += 1
    return things, skipped


def _label_of(number: int) -> int:
    return number // PER_LABEL if number >= PER_LABEL else number


def _gaps(found: Iterable[int]) -> dict[int, bool]:
    """Numbers missing below a visible one of their class.

    There must have been such objects, but nothing is known of where they were.
    """
    # the numbers are sorted, so the highest of each class stays
    last = {number // PER_LABEL: number for number in found if number >= PER_LABEL}
    below = [range(highest // PER_LABEL * PER_LABEL, highest) for highest in last.values()]
    return {number: False for numbers in below for number in numbers}


def extents(ids: np.ndarray) -> dict[int, tuple[tuple[int, int, int, int], int]]:
    """Number of each thing or group in an instance image -> its box (x, y, width, height) and pixel count.

    The image is (H, W); the result is sorted by number.

    It works on runs of equal numbers in the rows (some thousands), not on single pixels.
    """
    width = ids.shape[1]
    flat = np.ascontiguousarray(ids).reshape(-1)
    change = np.empty(flat.size, bool)
    np.not_equal(flat[1:], flat[:-1], out=change[1:])
    change[::width] = True
    start = np.flatnonzero(change)
    length = np.diff(start, append=flat.size)
    number = flat[start].astype(np.int64)
    label = np.where(number >= PER_LABEL, number // PER_LABEL, number)
    things = np.flatnonzero((label >= FIRST_THING) & (label <= LAST_THING))
    if not things.size:
        return {}
    things = things[np.argsort(number[things], kind="stable")]
    number, start, length = number[things], start[things], length[things]
    row, left = np.divmod(start, width)
    numbers, first = np.unique(number, return_index=True)
    x0, x1 = np.minimum.reduceat(left, first), np.maximum.reduceat(left + length, first)
    y0, y1 = np.minimum.reduceat(row, first), np.maximum.reduceat(row, first) + 1
    boxes = np.stack([x0, y0, x1 - x0, y1 - y0], axis=1).tolist()
    pixels = np.add.reduceat(length, first).tolist()
    return {key: (tuple(box), count) for key, box, count in zip(numbers.tolist(), boxes, pixels, strict=True)}
