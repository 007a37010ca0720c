"""Sim10k ("Driving in the Matrix", Johnson-Roberson et al., ICRA 2017).

10,000 frames of a computer game, 1914x1052, with VOC labels.

The owner's downloads (fcav.engin.umich.edu/projects/driving-in-the-matrix)::

    repro_10k_images.tgz         VOC2012/JPEGImages/3384645.jpg
    repro_10k_annotations.tgz    VOC2012/Annotations/3384645.xml     car, person, motorbike

Lists come in a third archive (repro_image_sets.tgz) and are not needed: the benchmark trains on all 10,000
images, with or without a car.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from mrt.data.convert import voc
from mrt.data.convert.paired import Catalogue, convert, jobs_and_root
from mrt.data.convert.raw import RawFiles, Unpacking, require
from mrt.data.convert.recipe import Recipe, Split
from mrt.errors import MrtError

CLASSES = ("person", "car", "motorcycle")
BENCHMARK = ("car",)
NUM_IMAGES = 10_000
_RENAMED = {"motorbike": "motorcycle"}
_WANTED = r"(?i)(^|/)(JPEGImages/[^/.][^/]*\.jpe?g|Annotations/[^/.][^/]*\.xml)$"
_HINT = (
    "Sim10k comes as repro_10k_images.tgz and repro_10k_annotations.tgz: give --raw "
    "both of them, or the folder they are in."
)


def recipe(
    raw: Sequence[Path],
    data_root: Path,
    *,
    classes: Sequence[str] = BENCHMARK,
    on_unpack: Unpacking | None = None,
) -> Recipe:
    """All images as the split "train".

    Coordinates are read as in VOC (see :mod:`mrt.data.convert.voc`): 1-based, corners included. The COCO
    files that several published methods share have x = xmin, width = xmax - xmin instead: the same right and
    lower edges, but one pixel less on the left and at the top.

    Args:
        raw: the two tgz archives, unpacked once to ``data_root/unpacked``; the folder they are in; or folders
            unpacked by hand.
        classes: some of person, car, motorcycle (motorbike in the files). The benchmark is car only, about
            58.7 thousand boxes.

    Raises:
        MrtError: no images or annotations, an archive that cannot be read, a class that Sim10k does not have.
    """
    wanted = tuple(dict.fromkeys(_RENAMED.get(name, name) for name in classes))
    unknown = [name for name in wanted if name not in CLASSES]
    if unknown or not wanted:
        raise MrtError(
            f"classes is {', '.join(classes) or 'empty'}: Sim10k has {', '.join(CLASSES)}",
            "The benchmark is car only.",
        )
    files = RawFiles(raw, _WANTED, data_root, on_unpack)
    for folder, suffixes in (("JPEGImages", (".jpg", ".jpeg")), ("Annotations", (".xml",))):
        require(
            any(name.lower().endswith(suffixes) for name in files.files),
            f"VOC2012/{folder}/*{suffixes[0]}",
            files,
            _HINT,
        )
    catalogue = Catalogue(files)
    made = jobs_and_root(catalogue.pair(name) for name in catalogue.names)
    require(made, "image with its annotation", files, _HINT)
    jobs, root = made
    run = partial(convert, read=voc.read, classes=wanted, class_map=_RENAMED, known=CLASSES)
    expected = {"train": {"images": NUM_IMAGES}} if wanted == BENCHMARK else {}
    details = {"benchmark": wanted == BENCHMARK, "coordinates": "1-based, corners included"}
    return Recipe("game", wanted, {"train": Split(root, jobs, run)}, files.source, details, expected=expected)
