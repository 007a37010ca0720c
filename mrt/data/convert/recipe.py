"""What every conversion has in common: raw files in, a prepared set out.

A converter looks through the raw files and answers with a :class:`Recipe`: per split a list of jobs, one an image, and a function that
turns a job into a :class:`Picture`, or into a :class:`Skipped`. :func:`prepare` does the rest: all cores, progress, ids, COCO files, card,
and all of it whole or not at all.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from mrt.data.card import DatasetCard, coco_categories, describe_split, write_card
from mrt.data.staging import Progress, available_cores, counted, run_parallel, staged
from mrt.errors import MrtError


class Thing(NamedTuple):
    """An annotated object: class name, box (x, y, width, height) in pixels from the image's upper left corner, area in pixels.

    ``ignored``: a crowd, or an object that neither counts as found nor as missed; COCO's ``iscrowd``.
    """

    label: str
    box: tuple[float, float, float, float]
    area: float
    ignored: bool = False


class Picture(NamedTuple):
    """One image with its objects; ``file`` is relative to the split's image root, ``extra`` goes into its COCO entry.

    ``skipped`` counts what was left out of it: reason -> objects.
    """

    file: str
    width: int
    height: int
    things: Sequence[Thing] = ()
    skipped: Mapping[str, int] = {}
    extra: Mapping[str, Any] = {}


class Skipped(NamedTuple):
    """An image that was left out, and why; ``example`` names the file for the summary."""

    reason: str
    example: str = ""


@dataclass(frozen=True)
class Split:
    """One split of a recipe.

    Args:
        images: root of the pictures' ``file`` entries: a folder, or a path into a zip archive (:mod:`mrt.data.archives`); with ``makes``
            a folder below the set's own.
        jobs: one an image, sorted as the images shall be; picklable.
        convert: job -> Picture or Skipped; a function of a module (it runs in other processes).
        skipped: left out before any job was made, reason -> how many.
        makes: the conversion makes the images: ``convert(job, folder=...)`` writes them into ``folder``, which is ``images`` in the set.
    """

    images: Path
    jobs: Sequence[Any]
    convert: Callable[..., Picture | Skipped]
    skipped: Mapping[str, int] = field(default_factory=dict)
    makes: bool = False


@dataclass(frozen=True)
class Recipe:
    """How a set is made. ``expected``: split -> the official number of images ("images"), boxes ("boxes") or boxes by class name."""

    domain: str
    classes: tuple[str, ...]
    splits: Mapping[str, Split]
    source: str
    details: Mapping[str, Any] = field(default_factory=dict)
    labelled: bool = True
    expected: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


def prepare(
    recipe: Recipe,
    root: Path,
    name: str,
    *,
    overwrite: bool = False,
    workers: int | None = None,
    on_progress: Progress | None = None,
) -> tuple[DatasetCard, list[str]]:
    """Convert, and write ``root/name``: COCO files, then the card.

    Returns:
        The card, and warnings: what differs from the official counts, and the first of the images that were left out.

    Raises:
        MrtError: no image at all, a raw file that cannot be used, an output that exists or cannot be written.
    """
    warnings: list[str] = []
    total = sum(len(split.jobs) for split in recipe.splits.values())
    if not total:
        raise MrtError(f"{recipe.source}: no images to convert", "Is it the right folder or archive? See `mrt prepare-data --help`.")
    with staged(Path(root), name, overwrite) as work:
        results = _progress_over_splits(recipe, work, workers or available_cores(), on_progress, total)
        cards, sizes = {}, Counter[str]()
        for split_name, split in recipe.splits.items():
            pictures, skipped, examples = _sort_out(split_name, results[split_name], split.skipped)
            (work / f"{split_name}.json").write_text(json.dumps(_coco(pictures, recipe), ensure_ascii=False), encoding="utf-8")
            images = split.images.as_posix() if split.makes else _reference(split.images, Path(root), name)
            cards[split_name], found = describe_split(work, f"{split_name}.json", images, skipped)
            sizes.update(found)
            warnings += [f"{split_name}: {example}" for example in examples]
            warnings += _compare(split_name, cards[split_name].boxes_per_class, len(pictures), recipe.expected.get(split_name, {}))
        warnings += [
            f"{split_name}: nothing found of the official {expected['images']} images"
            for split_name, expected in recipe.expected.items()
            if split_name not in recipe.splits and "images" in expected
        ]
        if not sizes:
            raise MrtError(f"{recipe.source}: none of the {total} images could be used", "\n".join(warnings[:5]) or None)
        details = dict(recipe.details) | ({"warnings": warnings} if warnings else {})
        card = DatasetCard(
            name=name, domain=recipe.domain, classes=recipe.classes, splits=cards, image_sizes=dict(sizes), source=recipe.source,
            labelled=recipe.labelled, details=details, folder=work,
        )  # fmt: skip
        write_card(card)
    return replace(card, folder=Path(root) / name), warnings


def _reference(images: Path, root: Path, name: str) -> str:
    """How the card names the image root: relative below the data root, so that it may be moved as a whole, else absolute."""
    images, root = images.absolute(), root.absolute()
    return Path(os.path.relpath(images, root / name)).as_posix() if images.is_relative_to(root) else images.as_posix()


def _progress_over_splits(
    recipe: Recipe, work: Path, workers: int, on_progress: Progress | None, total: int
) -> dict[str, list[Picture | Skipped]]:
    results: dict[str, list[Picture | Skipped]] = {}
    before = 0
    for name, split in recipe.splits.items():
        shift = before
        tell = None if on_progress is None else (lambda done, _, shift=shift: on_progress(shift + done, total))
        convert = partial(split.convert, folder=work / split.images) if split.makes else split.convert
        results[name] = list(counted(run_parallel(convert, split.jobs, workers), len(split.jobs), tell))
        before += len(split.jobs)
    return results


def _sort_out(
    split: str, results: Sequence[Picture | Skipped], before: Mapping[str, int]
) -> tuple[list[Picture], dict[str, int], list[str]]:
    """Pictures that stay, what was skipped (reason -> how many), and the first example of each reason to skip an image."""
    pictures, skipped, examples = [], Counter(before), {}
    seen: set[str] = set()
    for result in results:
        if isinstance(result, Picture) and result.file in seen:
            result = Skipped("image listed twice", result.file)
        if isinstance(result, Skipped):
            skipped[result.reason] += 1
            examples.setdefault(result.reason, result.example.encode("utf-8", "backslashreplace").decode())  # any file name at all
            continue
        seen.add(result.file)
        skipped.update(result.skipped)
        pictures.append(result)
    told = [
        f"{skipped[reason]} left out: {reason}" + (f", the first is {example}" if example else "") for reason, example in examples.items()
    ]
    return pictures, dict(skipped), told


def _coco(pictures: Sequence[Picture], recipe: Recipe) -> dict[str, Any]:
    images, annotations = [], []
    ids = {label: number for number, label in enumerate(recipe.classes, start=1)}
    for number, picture in enumerate(pictures, start=1):
        images.append({"id": number, "file_name": picture.file, "width": picture.width, "height": picture.height, **picture.extra})
        for thing in picture.things:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": ids[thing.label],
                    "bbox": [_short(value) for value in thing.box],
                    "area": _short(thing.area),
                    "iscrowd": int(thing.ignored),
                }
            )
    info = {"description": recipe.source, "domain": recipe.domain}
    return {"info": info, "images": images, "annotations": annotations, "categories": coco_categories(recipe.classes)}


def _short(value: float) -> float:
    """Whole numbers as such, others to a thousandth of a pixel."""
    rounded = round(float(value), 3)
    return int(rounded) if rounded == int(rounded) else rounded


def _compare(split: str, boxes: Mapping[str, int], images: int, expected: Mapping[str, int]) -> list[str]:
    found = {"images": images, "boxes": sum(boxes.values()), **boxes}
    return [
        f"{split}: {found.get(what, 0)} {what if what in ('images', 'boxes') else f'boxes of {what}'} instead of the official {number}"
        for what, number in expected.items()
        if found.get(what, 0) != number
    ]


def clip_box(box: Sequence[float], width: int, height: int) -> tuple[tuple[float, float, float, float], None] | tuple[None, str]:
    """(x0, y0, x1, y1) cut to the image as (x, y, width, height), or the reason why nothing is left of it."""
    if not all(math.isfinite(value) for value in box):
        return None, "box with a number that is not finite"
    x0, y0, x1, y1 = box
    if x1 <= x0 or y1 <= y0:
        return None, "box without area"
    x0, y0, x1, y1 = max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height))
    if x1 <= x0 or y1 <= y0:
        return None, "box outside the image"
    return (x0, y0, x1 - x0, y1 - y0), None
