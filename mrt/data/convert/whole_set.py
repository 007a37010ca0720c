"""What only the whole set can tell.

How turned photos are to be read, which images two splits share, and how many annotations gave no box.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from mrt.data.convert.names import counted_reasons, examples
from mrt.data.convert.pictures import Picture, Skipped
from mrt.errors import MrtError

Results = Mapping[str, Sequence[Picture | Skipped]]
SHARED = "image of a held-out split too"
# Objects left out on purpose or without a loss: not boxes that a detector should have learned from.
_MEANT = (
    "class not asked for",
    "annotation listed twice",
    "object fully hidden",
    "DontCare region",
    "ignored region",
    "category 11 (others), no class of the benchmark",
    "point or line, which has no area",
    "tag of the whole image",
    "skeleton of key points",
    "deleted object",
)
# Reasons for whole images, as Split.skipped counts them; all others are about objects.
OF_IMAGES = (
    "image ",
    "file name",
    "labels missing",
    "several files",
    "kind of image",
    "annotation cut short",
    "label file",
)


def choose_readings(results: Results) -> tuple[dict[str, list[Picture | Skipped]], list[str]]:
    """The results with turned photos read so that boxes stay inside their pictures, and notes on that.

    A photo that its EXIF entry turns can be labelled as stored or as shown. Some tools write the size of one
    beside the boxes of the other, so boxes decide where they can: those that stick out of the picture in one
    reading but not in the other. All turned photos of the set are read in the same way, unless the boxes of
    some photos contradict those of others.
    """
    pictures = [found for part in results.values() for found in part if isinstance(found, Picture)]
    turned = [picture.turned for picture in pictures if picture.turned]
    first = sum(1 for photo in turned if photo.out_other and not photo.out)
    other = sum(1 for photo in turned if photo.out and not photo.out_other)
    swap_all = other > 0 and not first

    def chosen(found: Picture | Skipped) -> Picture | Skipped:
        if isinstance(found, Skipped) or found.turned is None:
            return found
        photo = found.turned
        swap = swap_all or (photo.out > 0 and not photo.out_other)
        return (photo.picture._replace(extra=found.extra) if swap else found)._replace(turned=None)

    answer = {split: [chosen(found) for found in part] for split, part in results.items()}
    return answer, _said_of_turned(len(turned), first, other, sum(photo.claimed for photo in turned))


def _said_of_turned(count: int, first: int, other: int, claimed: int) -> list[str]:
    if not count:
        return []
    photos = f"{count} photos are turned by their EXIF entry"
    if first and other:
        return [
            f"warning: {photos}: the boxes of {first} fit only as their size says and those of {other} only "
            "the other way; each is read so"
        ]
    if other:
        way = "their size says" if claimed else "they are shown"
        return [
            f"{photos}: read the other way round than {way}, because the boxes of "
            f"{other} fit their pictures only so"
        ]
    way = "as their size says" if claimed else "as they are shown"
    if first:
        return [f"{photos}: read {way}; the boxes of {first} fit their pictures only so"]
    way = "as the size in the annotations says" if claimed == count else "as they are shown, upright"
    return [
        f"{photos}: no box tells which way they were labelled; they are read {way}. "
        "Look at some: --preview 12"
    ]


def keep_apart(
    results: Results, roots: Mapping[str, str]
) -> tuple[dict[str, list[Picture | Skipped]], list[str]]:
    """Take images out of "train" that are in another split too, with a note.

    Only if all of "train" is in "val", it stays, as in the tiny example sets of some tools.

    Args:
        roots: split -> its images' root.

    Raises:
        MrtError: all images of "train" are test images.
    """
    answer = {split: list(part) for split, part in results.items()}
    said: list[str] = []
    for held in ("test", "val"):
        if held not in answer or "train" not in answer:
            continue
        theirs = {_file_of(roots[held], found) for found in answer[held] if isinstance(found, Picture)}
        train = [found for found in answer["train"] if isinstance(found, Picture)]
        shared = [found for found in train if _file_of(roots["train"], found) in theirs]
        if not shared:
            continue
        if len(shared) == len(train) and held == "test":
            raise MrtError(
                f"all {len(shared)} images of the split train are in test too, the first is {shared[0].file}",
                "Nothing would be left to train on: mend the lists, or leave out the one of the test images.",
            )
        if len(shared) == len(train):
            said.append(
                f"warning: train and {held} hold the same images: what is measured on "
                f"{held} says nothing of other images"
            )
            continue
        names = {found.file for found in shared}
        answer["train"] = [
            Skipped(SHARED, found.file) if isinstance(found, Picture) and found.file in names else found
            for found in answer["train"]
        ]
        said.append(
            f"warning: {len(shared)} images are in train and in {held}: taken out of train: "
            f"{examples(sorted(names))}"
        )
    return answer, said


def _file_of(root: str, picture: Picture) -> object:
    """What two pictures of one file have in common, also if links lead there; of a zip's member, its path."""
    path = f"{root}/{picture.file}"
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return path
    return (found.st_dev, found.st_ino) if found.st_ino else path


class Losses(NamedTuple):
    """Which of a split's annotations gave no box.

    ``records``: annotation records that were read; ``lost``: reason -> how many of them gave none, although
    nobody asked to leave them out; ``lines``: that in words, with the share of cut boxes if it is large;
    ``empty``: in words, how many images have no box; ``meant``: what was left out on purpose, and boxes that
    do not count.
    """

    records: int
    lost: Counter[str]
    lines: list[str]
    empty: list[str]
    meant: Counter[str]


def losses(
    split: str,
    results: Sequence[Picture | Skipped],
    before: Mapping[str, int],
    noted: Mapping[str, Sequence[str]],
) -> Losses:
    """How many images and records gave no box, and why, with examples.

    Args:
        before: reason -> how many were left out before any image was read.
        noted: reason -> examples of these.
    """
    pictures = [found for found in results if isinstance(found, Picture)]
    of_objects = {reason: count for reason, count in before.items() if not reason.startswith(OF_IMAGES)}
    lost = Counter({reason: count for reason, count in of_objects.items() if count})
    shown = {reason: list(noted.get(reason, ())) for reason in lost}
    for found in pictures:
        for reason, count in found.skipped.items():
            lost[reason] += count
            if len(shown.setdefault(reason, [])) < 3:
                shown[reason].append(found.notes.get(reason, found.file))
    records = sum(len(found.things) for found in pictures) + sum(lost.values())
    meant = Counter({reason: lost.pop(reason) for reason in _MEANT if reason in lost})
    lines: list[str] = []
    empty: list[str] = []
    if total := sum(lost.values()):
        lines.append(
            f"{split}: {total} of {records} annotation records ({_percent(total, records)}) gave no box: "
            f"{counted_reasons(lost)}"
        )
        lines += [
            f"{split}: {reason}: {examples(shown[reason])}"
            for reason, _ in lost.most_common()
            if shown.get(reason)
        ]
    things = sum(len(found.things) for found in pictures)
    if cut := sum(found.cut for found in pictures):
        first = examples(found.file for found in pictures if found.cut)
        share = _percent(cut, things)
        line = (
            f"{split}: {cut} of {things} boxes ({share}) stuck out of their images by "
            f"more than a pixel and were cut: {first}"
        )
        (lines if cut * 10 >= things else empty).append(line)
    without = [found.file for found in pictures if all(thing.ignored for thing in found.things)]
    if without:
        share = _percent(len(without), len(pictures))
        empty.append(
            f"{split}: {len(without)} of {len(pictures)} images ({share}) have no box: {examples(without)}"
        )
    ignored = sum(thing.ignored for found in pictures for thing in found.things)
    meant.update({"ignored object (crowd, difficult)": ignored} if ignored else {})
    return Losses(records, lost, lines, empty, meant)


def _percent(part: int, whole: int) -> str:
    share = 100 * part / max(whole, 1)
    return f"{share:.0f} %" if share >= 1 or not part else "less than 1 %"
