"""KITTI's object detection benchmark (Geiger et al., CVPR 2012).

Frames of a car's camera around Karlsruhe, about 1242x375.

The owners' downloads (cvlibs.net/datasets/kitti/eval_object.php)::

    data_object_image_2.zip    training/image_2/000000.png     7481 with labels;
                                                               testing/image_2: 7518 without, not used
    data_object_label_2.zip    training/label_2/000000.txt     Car, Van, Truck, Pedestrian, Person_sitting,
                                                               Cyclist, Tram, Misc, DontCare

As the source of "KITTI to Cityscapes", a benchmark of Domain Adaptive Faster R-CNN (Chen et al., CVPR 2018)
and later methods, only its cars are used. Vans are not cars there (KITTI's own evaluation counts a van that
is detected as a car neither as right nor as wrong).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from mrt.data.convert.formats.kitti import FORMAT
from mrt.data.convert.raw import RawFiles, Unpacking, common_root, relative, require
from mrt.data.convert.recipe import Picture, Recipe, Skipped, Split, Thing, clip_box
from mrt.data.headers import read_header
from mrt.errors import MrtError

CLASSES = ("car", "van", "truck", "person", "person_sitting", "cyclist", "tram", "misc")
BENCHMARK = ("car",)
NUM_IMAGES = 7_481
_RENAMED = {"pedestrian": "person"}  # the other names are KITTI's in lower case
_WANTED = r"(?i)(?:^|/)\d+\.(?:png|jpe?g|txt)$"
_FILE = re.compile(r"(?i)(?<!/testing)/(image_2|label_2)/(\d+)\.(png|jpe?g|txt)$")
_HINT = (
    "KITTI comes as data_object_image_2.zip and data_object_label_2.zip: give --raw "
    "both of them, or the folder they are in."
)


class Frame(NamedTuple):
    """A job: image and label file (None: missing), and the file name relative to the images' root."""

    image: Path | None
    labels: Path | None
    file: str


def recipe(
    raw: Sequence[Path],
    data_root: Path,
    *,
    classes: Sequence[str] = BENCHMARK,
    on_unpack: Unpacking | None = None,
) -> Recipe:
    """All images of ``training`` as the split "train", also those without an object of the classes asked for.

    Some published methods leave out the images without a car (their list is called ``train_caronly``).

    Boxes, unusable lines and ``DontCare`` regions (counted, left out) are treated as in
    :mod:`mrt.data.convert.formats.kitti`. So a detector evaluated here gets a few more false detections than
    KITTI's own evaluation would count, as in those methods.

    Args:
        raw: the two zip archives, read in place; the folder they are in; or folders unpacked by hand.
        classes: some of ``CLASSES``, in this order; KITTI's own spelling works too. The benchmark is car
            only.

    Raises:
        MrtError: no images or labels; a class that KITTI does not have.
    """
    wanted = tuple(dict.fromkeys(_ours(name) for name in classes))
    unknown = [name for name in wanted if name not in CLASSES]
    if unknown or not wanted:
        raise MrtError(
            f"classes is {', '.join(classes) or 'empty'}: KITTI has {', '.join(CLASSES)}",
            "The benchmark is car only.",
        )
    files = RawFiles(raw, _WANTED, data_root, on_unpack)
    images, labels = _look_up(files)
    require(images, "training/image_2/*.png", files, _HINT)
    require(labels, "training/label_2/*.txt", files, _HINT)
    root = common_root(list(images.values()))
    jobs = []
    for name in sorted({*images, *labels}):
        file = relative(images[name], root) if name in images else f"{name}.png"
        jobs.append(Frame(images.get(name), labels.get(name), file))
    split = Split(root, jobs, partial(convert, classes=wanted))
    details = {"benchmark": wanted == BENCHMARK, "coordinates": "distances from the upper left corner"}
    return Recipe(
        "kitti", wanted, {"train": split}, files.source, details, expected={"train": {"images": NUM_IMAGES}}
    )


def _ours(name: str) -> str:
    return _RENAMED.get(name.lower(), name.lower())


def _look_up(files: RawFiles) -> tuple[dict[str, Path], dict[str, Path]]:
    """Images and label files by their number.

    The whole path counts: the folder itself may be what ``--raw`` names.
    """
    images: dict[str, Path] = {}
    labels: dict[str, Path] = {}
    for place in files.files.values():
        match = _FILE.search(place.as_posix())
        if match is None:
            continue
        is_image, is_text = match[1].lower() == "image_2", match[3].lower() == "txt"
        if is_image != is_text:
            (images if is_image else labels).setdefault(match[2], place)
    return images, labels


def convert(job: Frame, classes: Sequence[str]) -> Picture | Skipped:
    """One image with the objects of the classes asked for."""
    if job.image is None:
        return Skipped("image missing", job.file)
    if job.labels is None:
        return Skipped("labels missing", job.file)
    sheet = FORMAT.read(job.labels)
    if isinstance(sheet, Skipped):
        return sheet
    try:
        size = read_header(job.image).upright
    except MrtError:
        return Skipped("image cut short or unreadable", job.file)
    things, skipped = [], Counter(sheet.skipped)
    for record in sheet.records:
        name = _ours(record.label)
        if name not in classes:
            skipped["class not asked for" if name in CLASSES else f"unknown label {record.label!r}"] += 1
            continue
        cut, problem = (None, "no box") if record.box is None else clip_box(record.box, *size)
        if cut is None:
            skipped[problem] += 1
        else:
            things.append(Thing(name, cut, cut[2] * cut[3], record.ignored))
    return Picture(job.file, *size, things, skipped)
