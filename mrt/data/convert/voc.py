"""Pascal VOC folders: one XML file an image, lists of names for the splits.

Shared by Sim10k and by users' own sets. What is taken for granted, with the devkit's documents as its source:

- Coordinates count pixels from 1, and xmax, ymax belong to the box: x = xmin - 1, y = ymin - 1, width = xmax - xmin + 1.
- ``difficult`` objects are neither hits nor misses in VOC's evaluation: they become ignored objects.
- ``<part>`` boxes (heads, hands) are no objects.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from xml.etree.ElementTree import Element, ParseError, TreeBuilder
from xml.parsers import expat

from mrt.data.archives import inside_zip, open_zip
from mrt.data.convert.places import WANTED, entry_name, measured, split_of_folder
from mrt.data.convert.raw import RawFiles, Unpacking, common_root, read_bytes, relative, require
from mrt.data.convert.recipe import Picture, Recipe, Skipped, Split, Thing, clip_box
from mrt.data.headers import IMAGE_SUFFIXES
from mrt.data.staging import available_cores, run_parallel
from mrt.errors import MrtError

MAX_XML_BYTES = 16 << 20  # a real file has a few kilobytes; a thousand objects have 300
LISTS = ("train", "val", "test")  # of ImageSets/Main; trainval stands in for train where there is no train
_FOLDERS = {"annotations", "annotation", "xml", "xmls", "labels", "jpegimages", "images", "image", "imgs"}  # no part of a file's name
_LIST = re.compile(r"^(?P<set>.*?)ImageSets/(?:Main/)?(?P<name>train|val|test|trainval)\.txt$")
_MASKS = re.compile(r"(?i)(^|/)Segmentation(Class|Object)/")  # images of the same names that are no photos


class VocObject(NamedTuple):
    """One ``<object>``: its box as written (xmin, ymin, xmax, ymax; NaN where no number stands), or None if it has none."""

    label: str
    box: tuple[float, float, float, float] | None
    difficult: bool


class VocAnnotation(NamedTuple):
    """One XML file; ``size`` is (width, height) in pixels, None if it does not say or says 0."""

    size: tuple[int, int] | None
    objects: tuple[VocObject, ...]


class Pair(NamedTuple):
    """An image, its XML file and its name relative to the split's root of images: a job."""

    image: Path
    xml: Path
    file: str


def read_annotation(place: Path) -> VocAnnotation | None:
    """An XML file's size and objects; None if it is cut short, or not a VOC annotation.

    Raises:
        MrtError: missing; larger than ``MAX_XML_BYTES``; or with a document type, by which XML defines entities: a few lines of them can
            fill the memory or read other files, and no VOC file needs one.
    """
    member = inside_zip(place)
    size = open_zip(member[0]).getinfo(member[1]).file_size if member else place.stat().st_size
    if size > MAX_XML_BYTES:
        raise MrtError(f"{place}: {size >> 20} MB are too large for a VOC annotation", "Is it one XML file for each image?")
    try:
        root = _parse_xml(place)
    except (expat.ExpatError, ParseError, ValueError, LookupError, AssertionError):  # the last three: unknown encodings, no root
        return None
    if root.tag != "annotation":
        return None
    return VocAnnotation(_size(root), tuple(_object(element) for element in root.iterfind("object")))


def _parse_xml(place: Path) -> Element:
    """The tree, built on expat itself because only there a document type can be refused before anything in it has an effect."""

    def refuse(*_: object) -> None:
        raise MrtError(
            f"{place}: has a document type (<!DOCTYPE ...>), which an annotation does not need and which can do harm",
            "Remove it from the file if you trust its origin.",
        )

    builder = TreeBuilder()
    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    parser.Parse(read_bytes(place), True)
    return builder.close()


def _size(root: Element) -> tuple[int, int] | None:
    width, height = _number(root.findtext("size/width")), _number(root.findtext("size/height"))
    return (int(width), int(height)) if width >= 1 and height >= 1 and math.isfinite(width + height) else None


def _object(element: Element) -> VocObject:
    box = element.find("bndbox")
    numbers = None if box is None else tuple(_number(box.findtext(name)) for name in ("xmin", "ymin", "xmax", "ymax"))
    difficult = (element.findtext("difficult") or "").strip().lower() in ("1", "true")
    return VocObject((element.findtext("name") or "").strip(), numbers, difficult)


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan


def convert(
    job: Pair | Skipped, classes: Sequence[str], class_map: Mapping[str, str] | None = None, known: Collection[str] | None = None
) -> Picture | Skipped:
    """One image with the objects of the classes asked for.

    ``class_map``: the file's name for a class -> ours; ``known``: names that the set has beside those asked for, None if it may have any.

    Of an image that its EXIF entry turns, the size in the XML file says which way the boxes are meant (:func:`places.measured`).
    """
    if isinstance(job, Skipped):
        return job
    annotation = read_annotation(job.xml)
    if annotation is None:
        return Skipped("annotation cut short or unreadable", str(job.xml))
    size = measured(job.image, job.file, annotation.size)
    if isinstance(size, Skipped):
        return size
    width, height = size
    things, skipped = [], Counter[str]()
    for label, box, difficult in annotation.objects:
        name = (class_map or {}).get(label, label)
        if name not in classes:
            skipped["class not asked for" if name and (known is None or name in known) else f"unknown label {label!r}"] += 1
            continue
        if box is None:
            skipped["no box"] += 1
            continue
        xmin, ymin, xmax, ymax = box
        cut, problem = clip_box((xmin - 1, ymin - 1, xmax, ymax), width, height)
        if cut is None:
            skipped[problem] += 1
        else:
            things.append(Thing(name, cut, cut[2] * cut[3], difficult))
    return Picture(job.file, width, height, things, skipped)


class Catalogue:
    """The images and XML files of a VOC set by name: their path without suffix and without folders such as JPEGImages and Annotations.

    So ``VOC2012/JPEGImages/a.JPG`` and ``VOC2012/Annotations/a.xml`` are both ``VOC2012/a``, and files side by side fit as well. Only where
    no XML file finds its image like that, the first folder does not count (photos/2012/a.jpg, boxes/2012/a.xml), or else none.

    Raises:
        MrtError: no images, or no annotations.
    """

    def __init__(self, raw: RawFiles) -> None:
        files = {inside: place for inside, place in raw.files.items() if not _MASKS.search(inside)}
        suffixes = {inside: PurePosixPath(inside).suffix.lower() for inside in files}
        xmls = [inside for inside in files if suffixes[inside] == ".xml"]
        images = [inside for inside in files if suffixes[inside] in IMAGE_SUFFIXES]
        require(xmls, "VOC annotations (*.xml)", raw, "A VOC set has an XML file for each image, often in a folder Annotations.")
        require(images, f"images ({', '.join(IMAGE_SUFFIXES)})", raw, "Give the folder or archive with the images, too: --raw A B")
        for folders_less in (0, 1, 999):
            self._folders_less = folders_less
            self.xmls, self.images = self._by_name(xmls), self._by_name(images)
            if self.xmls.keys() & self.images.keys():
                break
        self._places = files

    def name(self, inside: str) -> str:
        """What a path inside the raw files is called here."""
        path = PurePosixPath(inside)
        folders = [part for part in path.parent.parts if part.lower() not in _FOLDERS]
        return "/".join([*folders[self._folders_less :], path.stem])

    @property
    def names(self) -> list[str]:
        """Of all images and XML files."""
        return sorted(self.xmls.keys() | self.images.keys())

    def split(self, name: str) -> str | None:
        """The split that the folders of the file speak of."""
        split = split_of_folder((self.xmls.get(name) or self.images[name])[0])
        return "train" if split == "trainval" else split

    def pair(self, name: str) -> Pair | Skipped:
        """Image and XML file of that name, or what is missing. ``file`` is empty: :func:`jobs_and_root` fills it in."""
        images, xmls = self.images.get(name, []), self.xmls.get(name, [])
        if not images:
            return Skipped("image missing", name)
        if not xmls:
            return Skipped("labels missing", images[0])
        if len(images) > 1 or len(xmls) > 1:
            return Skipped("several files fit", " and ".join([*images, *xmls][:4]))
        return Pair(self._places[images[0]], self._places[xmls[0]], "")

    def _by_name(self, files: Sequence[str]) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for inside in files:
            found.setdefault(self.name(inside), []).append(inside)
        return found


def jobs_and_root(pairs: Iterable[Pair | Skipped]) -> tuple[list[Pair | Skipped], Path] | None:
    """The pairs with their file names filled in, and the root of their images; None if there is no pair among them."""
    found = list(pairs)
    places = [pair.image for pair in found if isinstance(pair, Pair)]
    if not places:
        return None
    root = common_root(places)
    return [pair._replace(file=relative(pair.image, root)) if isinstance(pair, Pair) else pair for pair in found], root


def recipe(
    raw: Sequence[Path],
    data_root: Path,
    *,
    classes: Sequence[str] | None = None,
    domain: str = "custom",
    on_unpack: Unpacking | None = None,
) -> Recipe:
    """A user's own VOC set; :mod:`mrt.data.convert.custom` renames classes and splits a validation part off.

    Splits are those of ``ImageSets/Main/{train,val,test}.txt`` (trainval.txt as train where there is no train.txt; of each line the first
    word); without lists, those of folders such as train, valid and test if all XML files are in such; else all images are "train".
    An XML file and its image are found by their names, whatever the case of the image's suffix, side by side or in folders such as
    ``Annotations`` and ``JPEGImages``.

    Args:
        raw: folders or archives, as the user names them.
        classes: those to take, in this order; default: all of the files' names, sorted (for which all XML files are read).

    Raises:
        MrtError: no images or annotations; a list that names a path outside the set, or is not UTF-8; an XML file that is refused.
    """
    files = RawFiles(raw, WANTED, data_root, on_unpack)
    catalogue = Catalogue(files)
    names = _names_by_split(files, catalogue)
    found: dict[str, tuple[list[Pair | Skipped], Path]] = {}
    for split, entries in names.items():
        pairs = [catalogue.pair(entry) for entry in entries]
        made = jobs_and_root(pairs) if pairs else None
        if made is not None:
            found[split] = made
    details: dict[str, object] = {"format": "voc"}
    if names.keys() - {*found}:
        details["splits without files"] = sorted(names.keys() - {*found})
    require(found, "image with its annotation", files, "Images and XML files must have the same name, but for the suffix.")
    if classes is None:
        classes = _labels([job.xml for jobs, _ in found.values() for job in jobs if isinstance(job, Pair)])
    run = partial(convert, classes=tuple(classes))
    splits = {split: Split(root, jobs, run) for split, (jobs, root) in found.items()}
    return Recipe(domain, tuple(classes), splits, files.source, details)


def _names_by_split(files: RawFiles, catalogue: Catalogue) -> dict[str, list[str]]:
    lists: dict[str, list[str]] = {}
    for inside, place in files.files.items():
        match = _LIST.match(inside)
        if match:
            lists.setdefault(match["name"], []).extend(_read_list(place, match["set"], catalogue))
    if lists:
        if "train" not in lists and "trainval" in lists:
            held_out = {*lists.get("val", ())}
            lists["train"] = [name for name in lists["trainval"] if name not in held_out]
        return {split: lists[split] for split in LISTS if split in lists}
    folders = {name: catalogue.split(name) for name in catalogue.names}
    if all(folders[name] in LISTS for name in catalogue.xmls):
        return {split: [name for name, folder in folders.items() if folder == split] for split in LISTS if split in folders.values()}
    return {"train": catalogue.names}


def _read_list(place: Path, prefix: str, catalogue: Catalogue) -> list[str]:
    """The catalogue's names of a list's entries. They are those of the list's own set, or if that holds none of them, of any."""
    try:
        lines = read_bytes(place).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise MrtError(f"{place}: not UTF-8 (byte {error.start})", "Convert the file to UTF-8, or get it again.") from None
    entries = [entry_name(line.split()[0], place, f"line {number}") for number, line in enumerate(lines, start=1) if line.strip()]
    suffixes = (".xml", *IMAGE_SUFFIXES)  # some tools add one; a name's own dot is none
    files = [entry if PurePosixPath(entry).suffix.lower() in suffixes else f"{entry}.xml" for entry in entries]
    names = [catalogue.name(prefix + file) for file in files]
    if any(name in catalogue.xmls or name in catalogue.images for name in names):
        return names
    lasts: dict[str, list[str]] = {}
    for name in catalogue.names:
        lasts.setdefault(PurePosixPath(name).name, []).append(name)
    same = [lasts.get(PurePosixPath(file).stem, []) for file in files]
    return [found[0] if len(found) == 1 else name for found, name in zip(same, names, strict=True)]


def _labels(xmls: Sequence[Path]) -> list[str]:
    """All names that the files give their objects, sorted."""
    workers = available_cores() if len(xmls) > 2000 else 1
    return sorted({label for labels in run_parallel(_labels_of, xmls, workers) for label in labels if label})


def _labels_of(xml: Path) -> set[str]:
    annotation = read_annotation(xml)
    return {thing.label for thing in annotation.objects} if annotation else set()
