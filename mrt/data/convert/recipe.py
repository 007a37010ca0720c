"""What every conversion has in common: raw files in, a prepared set out.

A converter looks through the raw files and returns a :class:`Recipe`: for each split a list of jobs, one for
each image, and a function that turns a job into a :class:`Picture` or a :class:`Skipped`. :func:`prepare`
does the rest: it uses all cores, reports progress, gives ids and writes COCO files and the card, either
completely or not at all.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from mrt.data.card import DatasetCard, coco_categories, describe_split, printable, write_card
from mrt.data.convert.names import counted_reasons
from mrt.data.convert.pictures import Picture, Skipped, Thing, Turned, clip_box
from mrt.data.convert.whole_set import OF_IMAGES, SHARED, Losses, Results, choose_readings, keep_apart, losses
from mrt.data.headers import pixels_allowed
from mrt.data.staging import Progress, available_cores, counted, run_parallel, staged
from mrt.errors import MrtError
from mrt.plain import is_text

__all__ = [
    "Picture",
    "Recipe",
    "Results",
    "Skipped",
    "Split",
    "Thing",
    "Turned",
    "clip_box",
    "prepare",
    "rehearse",
]

_WARNING = "warning: "


@dataclass(frozen=True)
class Split:
    """One split of a recipe.

    Args:
        images: root of the pictures' ``file`` entries: a folder, or a path into a zip archive
            (:mod:`mrt.data.archives`); with ``makes`` a folder below the set's own.
        jobs: one for each image, in the order in which the images are listed; picklable.
        convert: job -> Picture or Skipped; a module-level function (it runs in other processes).
        skipped: what was left out before any job was made, reason -> how many.
        makes: the conversion makes the images: ``convert(job, folder=...)`` writes them into ``folder``,
            which is ``images`` in the set.
        notes: reason of ``skipped`` -> examples of what was left out.
    """

    images: Path
    jobs: Sequence[Any]
    convert: Callable[..., Picture | Skipped]
    skipped: Mapping[str, int] = field(default_factory=dict)
    makes: bool = False
    notes: Mapping[str, Sequence[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Recipe:
    """How a set is made.

    Args:
        expected: split -> the official number of images ("images"), boxes ("boxes") or boxes by class name.
        notes: decisions to tell the user about, one line each; those that begin with "warning: " go to the
            warnings.
        read: paths inside the raw files of the annotations, lists and settings that it was made from.
        review: is given the results of all splits before anything is written. If it returns a recipe, that is
            made instead. It takes decisions for which the whole set is needed, such as its units.
        begin: makes the images of a set for which that tells how many there are, such as frames of videos:
            called before anything else as ``begin(work, on_progress, recipe)`` with the folder in which the
            set is made, and returns the recipe to follow, whose jobs are about those images.
        steps: how often ``begin`` is expected to call ``on_progress``.
    """

    domain: str
    classes: tuple[str, ...]
    splits: Mapping[str, Split]
    source: str
    details: Mapping[str, Any] = field(default_factory=dict)
    labelled: bool = True
    expected: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    notes: Sequence[str] = ()
    read: Collection[str] = ()
    review: Callable[[Results], Recipe | None] | None = None
    begin: Callable[[Path, Progress | None, Recipe], Recipe] | None = None
    steps: int = 0

    @property
    def total(self) -> int:
        """How many steps of progress making it is expected to take."""
        return (
            self.steps if self.begin is not None else sum(len(split.jobs) for split in self.splits.values())
        )


def prepare(
    recipe: Recipe,
    root: Path,
    name: str,
    *,
    overwrite: bool = False,
    workers: int | None = None,
    on_progress: Progress | None = None,
    allow_empty: bool = False,
    max_pixels: int | None = None,
) -> tuple[DatasetCard, list[str]]:
    """Convert, and write ``root/name``: COCO files, then the card.

    Args:
        allow_empty: make a labelled set even if it has no box at all.
        max_pixels: accept images of up to this many pixels, if it is more than
            :data:`mrt.data.headers.MAX_PIXELS`.

    Returns:
        The card, and warnings: what differs from the official counts, and the first of the images that were
        left out. The card's details hold them too, and in words which annotations gave no box ("losses") and
        what was decided ("notes").

    Raises:
        MrtError: no image at all, a labelled set without a box, a raw file that cannot be used, an output
            that exists or cannot be written.
    """
    if recipe.begin is None and not sum(len(split.jobs) for split in recipe.splits.values()):
        raise MrtError(
            f"{recipe.source}: no images to convert",
            "Is it the right folder or archive? See `mrt prepare-data --help`.",
        )
    for split_name, split in recipe.splits.items():
        if Path(split_name).name != split_name or not is_text(split_name):
            raise MrtError(
                f"a split is called {split_name!r}, which cannot be the name of its file",
                "Give it a plain name such as train.",
            )
        if not is_text(str(split.images)):
            raise MrtError(
                f"--raw {printable(str(split.images))}: its name is not UTF-8, which no card can hold",
                "Rename the folder.",
            )
    with staged(Path(root), name, overwrite) as work, pixels_allowed(max_pixels):
        if recipe.begin is not None:
            recipe, on_progress = recipe.begin(work, on_progress, recipe), None
        recipe, results, said = _results(recipe, work, workers or available_cores(), on_progress)
        warnings: list[str] = []
        said = [*recipe.notes, *said]
        notes = [line for line in said if not line.startswith(_WARNING)]
        warnings += [line.removeprefix(_WARNING) for line in said if line.startswith(_WARNING)]
        cards, sizes, lost = {}, Counter[str](), {}
        for split_name, split in recipe.splits.items():
            pictures, skipped, left_out = _sort_out(results[split_name], split)
            (work / f"{split_name}.json").write_text(
                json.dumps(_coco(pictures, recipe), ensure_ascii=False), encoding="utf-8"
            )
            images = split.images.as_posix() if split.makes else _reference(split.images, Path(root), name)
            cards[split_name], found = describe_split(work, f"{split_name}.json", images, skipped)
            sizes.update(found)
            warnings += [f"{split_name}: {line}" for line in left_out]
            expected = recipe.expected.get(split_name, {})
            warnings += _compare(split_name, cards[split_name].boxes_per_class, len(pictures), expected)
            if recipe.labelled:
                lost[split_name] = losses(split_name, results[split_name], split.skipped, split.notes)
        warnings += [
            f"{split_name}: nothing found of the official {expected['images']} images"
            for split_name, expected in recipe.expected.items()
            if split_name not in recipe.splits and "images" in expected
        ]
        if not sizes:
            total = sum(len(split.jobs) for split in recipe.splits.values())
            first, *others = [*warnings, *notes, ""]
            raise MrtError(
                f"{recipe.source}: none of the {total} images could be used"
                + (f": {first}" if first else ""),
                "\n".join(others[:6]).strip() or None,
            )
        if recipe.labelled and not allow_empty:
            boxes = {split: card.num_boxes for split, card in cards.items()}
            _require_boxes(recipe, boxes, lost, [*warnings, *notes])
        notes += [line for found in lost.values() for line in found.empty]
        told = {
            "warnings": warnings,
            "losses": [line for found in lost.values() for line in found.lines],
            "notes": notes,
        }
        details = {**recipe.details, **{key: lines for key, lines in told.items() if lines}}
        card = DatasetCard(
            name=name,
            domain=printable(recipe.domain),
            classes=recipe.classes,
            splits=cards,
            image_sizes=dict(sizes),
            source=printable(recipe.source),
            labelled=recipe.labelled,
            details=_printable(details),
            folder=work,
        )
        write_card(card)
    return replace(card, folder=Path(root) / name), [printable(line) for line in warnings]


def rehearse(
    recipe: Recipe,
    name: str,
    *,
    workers: int | None = None,
    on_progress: Progress | None = None,
    max_pixels: int | None = None,
) -> tuple[DatasetCard, list[str]]:
    """The card and warnings that :func:`prepare` would return, without leaving anything on the disk."""
    with tempfile.TemporaryDirectory() as folder:
        return prepare(
            recipe,
            Path(folder),
            name,
            workers=workers,
            on_progress=on_progress,
            allow_empty=True,
            max_pixels=max_pixels,
        )


def _results(
    recipe: Recipe, work: Path, workers: int, on_progress: Progress | None
) -> tuple[Recipe, dict[str, list[Picture | Skipped]], list[str]]:
    """Results of all images, after a review by the whole set; the recipe that was followed; notes."""
    results: Results = _progress_over_splits(recipe, work, workers, on_progress)
    again = recipe.review(results) if recipe.review is not None else None
    if again is not None:
        recipe, results = again, _progress_over_splits(again, work, workers, None)
    results, turned = choose_readings(results)
    results, shared = keep_apart(results, {name: str(split.images) for name, split in recipe.splits.items()})
    return recipe, results, [*turned, *shared]


def _require_boxes(
    recipe: Recipe, boxes: Mapping[str, int], lost: Mapping[str, Losses], said: Sequence[str]
) -> None:
    """MrtError if no split of a labelled set has a box that counts."""
    if any(boxes.values()):
        return
    records = sum(found.records for found in lost.values())
    why = [f"{split}: {counted_reasons(found.meant)}" for split, found in lost.items() if found.meant]
    why += [line for found in lost.values() for line in (*found.lines, *found.empty)][:8]
    hint = "Mend the annotations; or say what is meant: --allow-empty, or --format images for bare images."
    raise MrtError(
        f"{recipe.source}: a labelled set without a single box that counts "
        f"({records} annotation records read)",
        "\n".join([*said[:6], *why, hint]),
    )


def _reference(images: Path, root: Path, name: str) -> str:
    """How the card names the image root.

    Relative if it is below the data root, so that the data root may be moved as a whole, else absolute.
    """
    images, root = images.absolute(), root.absolute()
    if not images.is_relative_to(root):
        return images.as_posix()
    return Path(os.path.relpath(images, root / name)).as_posix()


def _progress_over_splits(
    recipe: Recipe, work: Path, workers: int, on_progress: Progress | None
) -> dict[str, list[Picture | Skipped]]:
    results: dict[str, list[Picture | Skipped]] = {}
    before, total = 0, sum(len(split.jobs) for split in recipe.splits.values())
    for name, split in recipe.splits.items():
        shift = before
        tell = (
            None if on_progress is None else (lambda done, _, shift=shift: on_progress(shift + done, total))
        )
        convert = partial(split.convert, folder=work / split.images) if split.makes else split.convert
        results[name] = list(counted(run_parallel(convert, split.jobs, workers), len(split.jobs), tell))
        before += len(split.jobs)
    return results


def _sort_out(
    results: Sequence[Picture | Skipped], split: Split
) -> tuple[list[Picture], dict[str, int], list[str]]:
    """Pictures that stay, what was skipped (reason -> how many), and notes.

    Each reason to leave an image out gets a line with the first few images.
    """
    pictures, skipped = [], Counter(split.skipped)
    shown: dict[str, list[str]] = {
        reason: list(texts) for reason, texts in split.notes.items() if reason.startswith(OF_IMAGES)
    }
    seen: set[str] = set()
    for result in results:
        if isinstance(result, Picture) and not is_text(result.file):
            result = Skipped("file name that is not UTF-8", ascii(result.file))
        if isinstance(result, Picture) and result.file in seen:
            result = Skipped("image listed twice", result.file)
        if isinstance(result, Skipped):
            skipped[result.reason] += 1
            shown.setdefault(result.reason, []).append(result.example)
            continue
        seen.add(result.file)
        skipped.update(result.skipped)
        pictures.append(result)
    told = [
        f"{skipped[reason]} left out: {reason}" + (f", the first is {_first_of(texts)}" if texts[0] else "")
        for reason, texts in shown.items()
        if reason != SHARED and texts
    ]
    return pictures, {printable(reason): count for reason, count in skipped.items()}, told


def _first_of(names: Sequence[str], most: int = 3) -> str:
    # file names may hold characters that cannot be written
    first, *others = (name.encode("utf-8", "backslashreplace").decode() for name in names[:most])
    return first + (f", then {', '.join(others)}" if others else "")


def _coco(pictures: Sequence[Picture], recipe: Recipe) -> dict[str, Any]:
    images, annotations = [], []
    ids = {label: number for number, label in enumerate(recipe.classes, start=1)}
    for number, picture in enumerate(pictures, start=1):
        entry = {"id": number, "file_name": picture.file, "width": picture.width, "height": picture.height}
        images.append({**entry, **picture.extra})
        for thing in picture.things:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": ids[thing.label],
                    "bbox": [_short(value) for value in thing.box],
                    "area": _short(thing.area) or _short(thing.box[2] * thing.box[3]),
                    "iscrowd": int(thing.ignored),
                }
            )
    info = {"description": printable(recipe.source), "domain": printable(recipe.domain)}
    return {
        "info": info,
        "images": images,
        "annotations": annotations,
        "categories": coco_categories(recipe.classes),
    }


def _printable(value: Any) -> Any:
    """:func:`printable` for all texts in lists and mappings."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, Mapping):
        return {printable(str(key)): _printable(inner) for key, inner in value.items()}
    return [_printable(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def _short(value: float) -> float:
    """Whole numbers as integers, others rounded to a thousandth of a pixel."""
    rounded = round(float(value), 3)
    return int(rounded) if rounded == int(rounded) else rounded


def _compare(split: str, boxes: Mapping[str, int], images: int, expected: Mapping[str, int]) -> list[str]:
    found = {"images": images, "boxes": sum(boxes.values()), **boxes}
    return [
        f"{split}: {found.get(what, 0)} {what if what in ('images', 'boxes') else f'boxes of {what}'} "
        f"instead of the official {number}"
        for what, number in expected.items()
        if found.get(what, 0) != number
    ]
