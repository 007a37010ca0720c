"""ACDC, the Adverse Conditions Dataset (Sakaridis et al., ICCV 2021).

It has boxes since its second version (arXiv 2104.13395v4).

Frames of 1920x1080 in fog, at night, in rain and in snow. The owners' downloads (acdc.vision.ee.ethz.ch;
their README has the layout)::

    rgb_anon_trainvaltest.zip    rgb_anon/{fog,night,rain,snow}/{train,val,test}/
                                     GOPR0475/GOPR0475_frame_000041_rgb_anon.png
                                 and the same streets in clear weather:
                                     {train,val,test}_ref/.../*_rgb_ref_anon.png
    gt_detection_trainval.zip    gt_detection/instancesonly_{train,val}_gt_detection.json
                                 gt_detection/fog/instancesonly_fog_{train,val}_gt_detection.json, and so on

The labels are COCO files: ``file_name`` is the path below ``rgb_anon``, the categories are Cityscapes' eight
with its own ids (24 to 33), groups are crowds. The labels of the test images are not published;
``gt_detection_trainval_ref.zip`` has those of some clear images. Neither is used: adaptation must not see
clear images of its target's streets. ``gt_trainval.zip`` and ``gt_panoptic_trainval.zip`` have no boxes.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from mrt.data.convert.cityscapes import CLASSES, missing_splits
from mrt.data.convert.owners_coco import Job, Listed, convert, read
from mrt.data.convert.raw import RawFiles, Unpacking, common_root, relative, require
from mrt.data.convert.recipe import Recipe, Split
from mrt.errors import MrtError

CONDITIONS = ("fog", "night", "rain", "snow")
# numbers of images, by the owners' README
IMAGES = {"train": dict.fromkeys(CONDITIONS, 400), "val": dict.fromkeys(CONDITIONS, 100) | {"night": 106}}
SITE = "acdc.vision.ee.ethz.ch"
_WANTED = r"(?:^|/)[^/.][^/]*_rgb_anon\.png$"
_IMAGE = r"(?:^|/)((fog|night|rain|snow)/(train|val)/[^/]+/[^/.][^/]*_rgb_anon\.png)$"
_LABELS = r"(?:^|/)instancesonly_(?:(fog|night|rain|snow)_)?(train|val)_gt_detection\.json$"


class Labels(NamedTuple):
    """A label file, and the conditions to take from it."""

    place: Path
    conditions: tuple[str, ...]


def recipe(
    raw: Sequence[Path],
    data_root: Path,
    *,
    conditions: Sequence[str] = CONDITIONS,
    classes: Sequence[str] = CLASSES,
    on_unpack: Unpacking | None = None,
) -> Recipe:
    """The splits train and val, of all four conditions or of some.

    Boxes, areas and crowds are the owners' own; a crowd is an ignored object. Each split's label file of all
    conditions is read if there is one, else those of the conditions asked for. Either way an image belongs to
    the condition of its folder: a file may list more than its name says (rain's of train is reported to list
    all 1600 images).

    Counted as skipped: "image missing", "labels missing" (an image that no label file lists), "image cut
    short or unreadable", "image size differs from the annotation's", "class not asked for", impossible boxes.
    A split without images or labels is left out (the card's ``missing_splits``).

    Args:
        raw: the zip archives, read in place; the folder they are in; or folders unpacked by hand.
        conditions: some of ``CONDITIONS``.
        classes: some of Cityscapes' eight, in this order.

    Raises:
        MrtError: no images or labels of these conditions, an unknown condition or class, a label file that
            cannot be used.
    """
    wanted, kept = _chosen("condition", conditions, CONDITIONS), _chosen("classes", classes, CLASSES)
    files = RawFiles(raw, f"{_WANTED}|{_LABELS}", data_root, on_unpack)
    images, labels = _images(files, wanted), _label_files(files, wanted)
    require(
        any(images.values()),
        f"ACDC images ({{{','.join(wanted)}}}/{{train,val}}/*/*_rgb_anon.png)",
        files,
        f"Give rgb_anon_trainvaltest.zip, too: it is on {SITE}.",
    )
    require(
        any(labels.values()),
        "ACDC labels (instancesonly_*_gt_detection.json)",
        files,
        f"Give gt_detection_trainval.zip, too: it is on {SITE}. The labels of gt_trainval.zip and "
        "gt_panoptic_trainval.zip are others.",
    )
    found = {
        split: _split(images[split], labels[split], kept) if images[split] and labels[split] else None
        for split in IMAGES
    }
    splits = {split: jobs for split, jobs in found.items() if jobs is not None}
    require(
        splits,
        "split with both images and labels",
        files,
        f"Give rgb_anon_trainvaltest.zip and gt_detection_trainval.zip of {SITE}.",
    )
    return Recipe(
        domain="adverse" if set(wanted) == {*CONDITIONS} else "+".join(wanted),
        classes=kept,
        splits=splits,
        source=files.source,
        details={"conditions": list(wanted), "boxes": "the owners' gt_detection"} | missing_splits(found),
        expected={
            split: {"images": sum(IMAGES[split][condition] for condition in wanted)} for split in IMAGES
        },
    )


def _chosen(what: str, asked: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    """The names asked for, each once; MrtError if one is unknown, or there is none."""
    wanted = tuple(dict.fromkeys(asked))
    unknown = [name for name in wanted if name not in known]
    if unknown or not wanted:
        raise MrtError(f"{what} is {', '.join(map(repr, unknown)) or 'empty'}: ACDC has {', '.join(known)}")
    return wanted


def _images(files: RawFiles, wanted: Sequence[str]) -> dict[str, dict[str, Path]]:
    """Split -> path below ``rgb_anon`` -> where to read it; without test and clear-weather images.

    The whole path counts: a folder inside ``rgb_anon`` may be what ``--raw`` names.
    """
    found: dict[str, dict[str, Path]] = {split: {} for split in IMAGES}
    for place in files.files.values():
        match = re.search(_IMAGE, place.as_posix())
        if match and match[2] in wanted:
            found[match[3]].setdefault(match[1], place)
    return found


def _label_files(files: RawFiles, wanted: tuple[str, ...]) -> dict[str, list[Labels]]:
    """Each split's label file of all conditions, else one for each condition."""
    there: dict[tuple[str, str | None], Path] = {}
    for match, place in files.matching(_LABELS):
        there.setdefault((match[2], match[1]), place)
    found = {}
    for split in IMAGES:
        single = [
            Labels(there[split, condition], (condition,))
            for condition in wanted
            if (split, condition) in there
        ]
        found[split] = [Labels(there[split, None], wanted)] if (split, None) in there else single
    return found


def _split(images: Mapping[str, Path], labels: Sequence[Labels], classes: tuple[str, ...]) -> Split:
    """The images that the label files list, by name; those that none of them lists are counted."""
    skipped = Counter[str]()
    listed: dict[str, Listed] = {}
    for place, conditions in labels:
        content = read(place, f"Get gt_detection_trainval.zip again from {SITE}.")
        skipped.update(content.skipped)
        for entry in content.images:
            match = re.search(_IMAGE, entry.name)
            if match and match[2] in conditions:
                listed.setdefault(match[1], entry)
    root = common_root(list(images.values()))
    jobs = [
        Job(images.get(name), relative(images[name], root) if name in images else name, entry)
        for name, entry in sorted(listed.items())
    ]
    skipped["labels missing"] += len(images.keys() - listed.keys())
    return Split(root, jobs, partial(convert, classes=classes), dict(+skipped))
