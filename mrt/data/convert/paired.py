"""Sets with one label file for each image: finding pairs, splits and classes, and reading the boxes.

Shared by VOC (:mod:`mrt.data.convert.voc`), Sim10k and the formats of :mod:`mrt.data.convert.formats`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from posixpath import splitext
from typing import NamedTuple

from mrt.data.convert.lists import Listed, find_lists, said_of, with_the_rest, without_trainval
from mrt.data.convert.names import examples, plain, split_of_folder
from mrt.data.convert.places import Box, measured, pictured
from mrt.data.convert.raw import RawFiles, Unpacking, common_root, own_files, relative, require
from mrt.data.convert.recipe import Picture, Recipe, Skipped, Split
from mrt.data.convert.sheets import Format, Sheet
from mrt.data.headers import IMAGE_SUFFIXES
from mrt.data.staging import available_cores, run_parallel

SPLITS = ("train", "val", "test")
# Folders that hold one kind of file: not part of a file's name.
_FOLDERS = {
    *("annotations", "annotation", "ann", "anns", "xml", "xmls", "labels", "label"),
    *("jpegimages", "images", "image", "imgs", "img"),
}
# VOC's folders of segmentation masks, which have the photos' names
_MASKS = ("segmentationclass", "segmentationobject")
# How many first folders of label files and of images do not count, in the order in which that is tried.
_DROPPED = (((0, 0),), ((0, 1), (1, 0), (1, 1)), ((999, 999),))
_Names = tuple[tuple[int, int], dict[str, list[str]], dict[str, list[str]]]


class Pair(NamedTuple):
    """An image, its label file and its name relative to the split's root of images: a job."""

    image: Path
    labels: Path
    file: str


class Catalogue:
    """The images and label files of a set by name.

    A name is the path without suffix and without folders such as JPEGImages and Annotations.
    ``VOC2012/JPEGImages/a.JPG`` and ``VOC2012/Annotations/a.xml`` are both ``VOC2012/a``. So files side by
    side fit too, and so does ``a.jpg.xml``. Names are compared in the form of
    :func:`mrt.data.convert.names.plain`, and regardless of case where that is unambiguous. If no label file
    finds its image that way, the first folder of either or both does not count (photos/2012/a.jpg,
    boxes/2012/a.xml), and if that does not help, no folder counts. But what lies in folders of other names
    *below* JPEGImages and Annotations (images/seq1/1.jpg, labels/seq2/1.xml) never fits.

    Args:
        suffixes: of label files.
        folders: more names of folders that are not part of a file's name.
        what: what label files are called in messages.
        needs: hint for the message if there are none.
        stated: label file -> the image's name that it states; used if the names of the files leave a doubt.
        beside: names of files, in lower case, that are no label files.

    Raises:
        MrtError: no images, or no annotations.
    """

    def __init__(
        self,
        raw: RawFiles,
        suffixes: Sequence[str] = (".xml",),
        folders: Collection[str] = (),
        what: str = "annotations",
        needs: str = "",
        stated: Callable[[Path], str | None] | None = None,
        beside: Collection[str] = (),
    ) -> None:
        self._stated = stated or (lambda _: None)
        self._folders = _FOLDERS | {*folders}
        self._suffixes = {*suffixes, *IMAGE_SUFFIXES}
        others = {*_MASKS, *beside}
        photos = (inside for inside in raw.files if not {*inside.lower().split("/")} & others)
        self.files = {inside: raw.files[inside] for inside in photos}
        self.beside = [inside for inside in raw.files if inside.lower().rpartition("/")[2] in beside]
        kinds = {inside: splitext(inside)[1].lower() for inside in self.files}
        labels = [inside for inside in self.files if kinds[inside] in suffixes]
        images = [inside for inside in self.files if kinds[inside] in IMAGE_SUFFIXES]
        require(labels, f"{what} (*{', *'.join(suffixes)})", raw, needs)
        require(
            images,
            "images (.jpg, .png, .tif and all others that Pillow reads)",
            raw,
            "Give the folder or archive with the images too.",
        )
        for group in _DROPPED:
            tried = [self._by_name(labels, images, dropped) for dropped in group]
            self._dropped, self.labels, self.images = max(tried, key=self._fitting)
            if self._fitting((self._dropped, self.labels, self.images)):
                break
        self._part_what_contradicts()
        self.notes = [*self._in_any_case(), *self._as_stated()]

    def names_of(self, entry: str) -> list[str]:
        """What an entry of a list may be called here: the whole of it, or all but its suffix."""
        known = splitext(entry)[1].lower() in self._suffixes
        files = [f"{entry}.xml", *([entry] if known else [])]
        every = [self._name(file, dropped) for file in files for dropped in dict.fromkeys(self._dropped)]
        there = [name for name in every if name in self.labels or name in self.images]
        return [*there, *every[-1:]]

    @property
    def names(self) -> list[str]:
        """The names of all images and label files."""
        return sorted(self.labels.keys() | self.images.keys())

    def split(self, name: str) -> str | None:
        """The split that the file's folders name."""
        split = split_of_folder((self.labels.get(name) or self.images[name])[0])
        return "train" if split == "trainval" else split

    def pair(self, name: str) -> Pair | Skipped:
        """Image and label file of that name, or what is missing.

        ``file`` is empty: :func:`jobs_and_root` fills it in.
        """
        images, labels = self.images.get(name, []), self.labels.get(name, [])
        if not images:
            return Skipped("image missing", labels[0] if labels else name)
        if not labels:
            return Skipped("labels missing", images[0])
        if len(images) > 1 and len(labels) == 1:
            named = self._name_in(labels[0])
            fits = [image for image in images if plain(image).rpartition("/")[2] == named]
            images = fits or images
        if len(images) > 1 or len(labels) > 1:
            return Skipped("several files fit", " and ".join([*images, *labels][:4]))
        return Pair(self.files[images[0]], self.files[labels[0]], "")

    def fitting_by_name(self) -> tuple[str, str] | None:
        """A label file and an image that have one name, but lie in different folders; for messages."""
        images = {self._name(inside, 999): inside for files in self.images.values() for inside in files}
        labels = (inside for files in self.labels.values() for inside in files)
        found = ((inside, images.get(self._name(inside, 999))) for inside in sorted(labels))
        return next(((label, image) for label, image in found if image is not None), None)

    def _name(self, inside: str, dropped: int) -> str:
        """A path without suffix, folders such as Annotations, and the first ``dropped`` other folders."""
        *folders, file = plain(inside).split("/")
        named = [folder for folder in folders if folder.lower() not in self._folders]
        return "/".join([*named[dropped:], splitext(file)[0]])

    def _by_name(self, labels: Sequence[str], images: Sequence[str], dropped: tuple[int, int]) -> _Names:
        """Names -> label files, and names -> images, if the first folders of either do not count.

        What ends in two suffixes is taken whole where that is an image's name (a.rgb.txt of a.rgb.png), else
        as the name of an image with its suffix (a.jpg.xml of a.jpg).
        """
        of_images: dict[str, list[str]] = {}
        with_suffix: dict[str, str] = {}  # image's name with its suffix -> without
        for inside in images:
            name = self._name(inside, dropped[1])
            of_images.setdefault(name, []).append(inside)
            with_suffix[f"{name}{splitext(plain(inside))[1]}"] = name
        folded = {name.casefold() for name in of_images}
        of_labels: dict[str, list[str]] = {}
        for inside in labels:
            name = self._name(inside, dropped[0])
            shorter, suffix = splitext(name)
            if suffix.lower() in IMAGE_SUFFIXES and name.casefold() not in folded:
                image = with_suffix.get(plain(name))
                of_one = [
                    file for file in of_images.get(image or "", ()) if plain(file).endswith(suffix.lower())
                ]
                if len(of_one) == 1 and len(of_images[image]) > 1:  # of a.jpg and a.png: that one
                    of_images[image].remove(of_one[0])
                    of_images[name] = of_one
                elif name not in of_images:
                    name = shorter
            of_labels.setdefault(name, []).append(inside)
        return dropped, of_labels, of_images

    def _fitting(self, found: _Names) -> int:
        """How many names have a label file and an image that may belong together."""
        dropped, labels, images = found
        if dropped == (0, 0):  # whole names: their folders are the same
            return len(labels.keys() & images.keys())
        return sum(not self._contradict(labels[name], images[name]) for name in labels.keys() & images.keys())

    def _contradict(self, labels: Sequence[str], images: Sequence[str]) -> bool:
        """Whether these label files and images lie in folders of other names below Annotations and images."""
        return not any(
            _ends_alike(self._below(label), self._below(image)) for label in labels for image in images
        )

    def _below(self, inside: str) -> list[str]:
        """The folders below the last one that is called after what it holds; none without such a folder."""
        folders = plain(inside).split("/")[:-1]
        kinds = [number for number, folder in enumerate(folders) if folder.lower() in self._folders]
        return folders[kinds[-1] + 1 :] if kinds else []

    def _part_what_contradicts(self) -> None:
        if self._dropped == (0, 0):
            return
        for name in self.labels.keys() & self.images.keys():
            if self._contradict(self.labels[name], self.images[name]):
                for inside in self.labels.pop(name):
                    self.labels[inside] = [inside]

    def _name_in(self, labels: str) -> str | None:
        """The image's own name, without folders, that a label file states."""
        stated = self._stated(self.files[labels])
        return plain(stated).rpartition("/")[2] if stated else None

    def _as_stated(self) -> list[str]:
        """Match label files with the images that they name, where file names differ; returns notes on that.

        Only where exactly one label file and one image fit each other.
        """
        unmatched = self.labels.keys() - self.images.keys()
        alone = {
            name: files[0] for name, files in self.labels.items() if name in unmatched and len(files) == 1
        }
        free: dict[str, list[str]] = {}
        for name in self.images.keys() - self.labels.keys():
            for image in self.images[name]:
                free.setdefault(plain(image).rpartition("/")[2], []).append(name)
        wanted = {name: self._name_in(labels) for name, labels in alone.items()} if free else {}
        claims = Counter(wanted.values())
        moved = []
        for name, image in wanted.items():
            fits = free.get(image or "", [])
            if len(fits) == 1 and claims[image] == 1 and self._may_fit(name, fits[0]):
                self.labels[fits[0]] = self.labels.pop(name)
                moved.append(f"{alone[name]} for {self.images[fits[0]][0]}")
        if not moved:
            return []
        return [
            f"{len(moved)} label files have other names than the images that they state: {examples(moved)}"
        ]

    def _may_fit(self, labels: str, image: str) -> bool:
        """Whether the folders of two names leave it possible that they belong together."""
        folders = (name.casefold().split("/")[:-1] for name in (labels, image))
        return _ends_alike(*folders) and not self._contradict(self.labels[labels], self.images[image])

    def _in_any_case(self) -> list[str]:
        """Match label files with images whose names differ only in upper and lower case.

        Only where one fits one. Returns notes on inexact names.
        """
        images = _folded(self.images.keys() - self.labels.keys())
        moved = []
        for name, theirs in _folded(self.labels.keys() - self.images.keys()).items():
            ours = images.get(name, [])
            if len(theirs) == len(ours) == 1:
                self.labels[ours[0]] = self.labels.pop(theirs[0])
                moved.append(ours[0])
        odd = []
        for name in self.labels.keys() & self.images.keys():
            image = self.images[name][0]
            if _stem(self.labels[name][0]) not in (_stem(image), image.rpartition("/")[2]):
                odd.append(name)
        if not odd:
            return []
        shown = examples(
            f"{self.labels[name][0]} for {self.images[name][0]}" for name in sorted({*odd, *moved})
        )
        return [f"{len(odd)} label files are named a little differently from their images: {shown}"]


def jobs_and_root(pairs: Iterable[Pair | Skipped]) -> tuple[list[Pair | Skipped], Path] | None:
    """The pairs with their file names filled in, and their images' root folder; None if there is no pair."""
    found = list(pairs)
    places = [pair.image for pair in found if isinstance(pair, Pair)]
    if not places:
        return None
    root = common_root(places)
    named = [
        pair._replace(file=relative(pair.image, root)) if isinstance(pair, Pair) else pair for pair in found
    ]
    return named, root


def convert(
    job: Pair | Skipped,
    read: Callable[[Path], Sheet | Skipped],
    classes: Sequence[str],
    class_map: Mapping[str, str] | None = None,
    known: Collection[str] | None = None,
) -> Picture | Skipped:
    """One image with the objects of the classes asked for.

    Args:
        read: as in :class:`mrt.data.convert.sheets.Format`.
        class_map: the file's name for a class -> ours.
        known: names that the set has beside those asked for; None if it may have any.
    """
    if isinstance(job, Skipped):
        return job
    sheet = read(job.labels)
    if isinstance(sheet, Skipped):
        return sheet
    return picture_of(job.image, job.file, sheet, classes, class_map, known)


def picture_of(
    image: Path,
    file: str,
    sheet: Sheet,
    classes: Sequence[str],
    class_map: Mapping[str, str] | None = None,
    known: Collection[str] | None = None,
) -> Picture | Skipped:
    """An image with what its label file says of it; arguments as in :func:`convert`."""
    size = measured(image, file, sheet.size)
    if isinstance(size, Skipped):
        return size
    boxes, skipped = [], Counter(sheet.skipped)
    for label, corners, ignored in sheet.records:
        name = (class_map or {}).get(label, label)
        if name not in classes:
            is_known = name and (known is None or name in known)
            skipped["class not asked for" if is_known else f"unknown label {label!r}"] += 1
        elif corners is None:
            skipped["no box"] += 1
        else:
            boxes.append(Box(name, corners, None, ignored))
    return pictured(file, size, boxes, skipped)


def recipe(
    format: Format,
    raw: Sequence[Path] | RawFiles,
    data_root: Path,
    *,
    classes: Sequence[str] | None = None,
    domain: str = "custom",
    on_unpack: Unpacking | None = None,
) -> Recipe:
    """A user's own set with one label file for each image.

    :mod:`mrt.data.convert.custom` renames classes and splits a validation part off.

    Splits are those of lists: ``ImageSets/Main/{train,val,test}.txt`` or ``train.txt`` and similar anywhere
    (trainval.txt as train if there is no train.txt; a flag after a name is ignored). Without lists, splits
    are those of folders such as train, valid and test; images elsewhere are "train". Images that no list
    names are left out, with a note.

    Args:
        raw: folders or archives, as the user names them.
        classes: those to take, in this order; default: all of the files' names, in the format's order or
            sorted (for which all label files are read).

    Raises:
        MrtError: no images or annotations; a list that names a path outside the set; a label file that is
            refused.
    """
    files = own_files(raw, data_root, on_unpack)
    catalogue = Catalogue(
        files,
        format.suffixes,
        format.folders,
        f"{format.name.upper()} annotations",
        format.needs,
        format.stated,
        format.beside,
    )
    names, notes, lists = _names_by_split(files, catalogue)
    found: dict[str, tuple[list[Pair | Skipped], Path]] = {}
    for split, entries in names.items():
        made = jobs_and_root(catalogue.pair(entry) for entry in entries)
        if made is not None:
            found[split] = made
    details: dict[str, object] = {"format": format.name}
    if names.keys() - {*found}:
        details["splits without files"] = sorted(names.keys() - {*found})
    near = catalogue.fitting_by_name()
    require(
        found,
        "image with its annotation",
        files,
        f"{near[0]} and {near[1]} have one name, but lie in different folders: give them the same ones."
        if near
        else "Images and label files must have the same name, but for the suffix.",
    )
    if classes is None:
        pairs = [job for jobs, _ in found.values() for job in jobs if isinstance(job, Pair)]
        used = _labels([pair.labels for pair in pairs], format.read)
        known = format.classes or ()
        classes = [*(name for name in known if name in used), *(name for name in used if name not in known)]
    run = partial(convert, read=format.read, classes=tuple(classes))
    splits = {split: Split(root, jobs, run) for split, (jobs, root) in found.items()}
    read = [*(inside for found in catalogue.labels.values() for inside in found), *catalogue.beside, *lists]
    return Recipe(
        domain,
        tuple(classes),
        splits,
        files.source,
        details,
        notes=[*files.notes, *catalogue.notes, *notes],
        read=read,
    )


def _names_by_split(
    files: RawFiles, catalogue: Catalogue
) -> tuple[dict[str, list[str]], list[str], list[str]]:
    """The catalogue's names of each split, what to say of the lists, and which they are."""
    lists, used = find_lists(
        files.files, partial(_known, catalogue=catalogue), catalogue.labels.keys() | catalogue.images.keys()
    )
    if lists:
        lists = with_the_rest(without_trainval(lists), catalogue.images)
        named = {name for names in lists.values() for name in names}
        left = [catalogue.images[name][0] for name in sorted(catalogue.images.keys() - named)]
        return lists, said_of(used, left), [inside for insides in used.values() for inside in insides]
    folders = {name: catalogue.split(name) for name in catalogue.names}
    by_split = {
        split: [name for name, folder in folders.items() if (folder or "train") == split] for split in SPLITS
    }
    return {split: names for split, names in by_split.items() if names}, [], []


def _known(listed: Listed, catalogue: Catalogue) -> list[str]:
    """The catalogue's names of a list's entries.

    They are those of the list's own set, or if that holds none of them, of any.
    """
    names = [catalogue.names_of(listed.above + entry) for entry in listed.entries]
    if any(len(found) > 1 for found in names):
        return [found[0] for found in names]
    lasts: dict[str, list[str]] = {}
    for name in catalogue.names:
        lasts.setdefault(PurePosixPath(name).name, []).append(name)
    same = [lasts.get(PurePosixPath(found[-1]).name, []) for found in names]
    return [found[0] if len(found) == 1 else name[0] for found, name in zip(same, names, strict=True)]


def _labels(places: Sequence[Path], read: Callable[[Path], Sheet | Skipped]) -> list[str]:
    """All names that the files give their objects, sorted."""
    workers = available_cores() if len(places) > 2000 else 1
    found: set[str] = set()
    for labels in run_parallel(partial(_labels_of, read=read), places, workers):
        found |= labels
    return sorted(label for label in found if label)


def _labels_of(place: Path, read: Callable[[Path], Sheet | Skipped]) -> set[str]:
    sheet = read(place)
    return set() if isinstance(sheet, Skipped) else {record.label for record in sheet.records}


def _ends_alike(one: Sequence[str], other: Sequence[str]) -> bool:
    """Whether one of two paths is the end of the other; nothing is an end of everything."""
    shared = min(len(one), len(other))
    return not shared or list(one[-shared:]) == list(other[-shared:])


def _folded(names: Iterable[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(name.casefold(), []).append(name)
    return found


def _stem(inside: str) -> str:
    return splitext(inside.rpartition("/")[2])[0]
