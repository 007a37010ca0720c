"""Check that a prepared set still matches its card. Needs no torch."""

from __future__ import annotations

from pathlib import Path

from mrt.data.archives import file_exists
from mrt.data.card import (
    DatasetCard,
    describe_split,
    file_sha256,
    prepared_annotations,
    printable,
    read_json,
)
from mrt.data.headers import read_header
from mrt.data.staging import Progress, available_cores, counted, run_parallel
from mrt.errors import MrtError


def check_set(
    card: DatasetCard, *, workers: int | None = None, on_progress: Progress | None = None
) -> list[str]:
    """What no longer matches the card, one line each; empty if everything does.

    Checks that each annotation file exists, with the hash and the counts of the card, and that each image
    exists, is whole (by its end mark) and has the size that its annotations are for.

    Args:
        on_progress: called with (images looked at, images in all).
    """
    problems: list[str] = []
    jobs: list[tuple[str, Path, int, int]] = []
    for name, split in card.splits.items():
        annotations, root = card.annotations_path(name), card.images_root(name)
        if not file_exists(annotations):
            problems.append(f"{annotations}: missing")
            continue
        if split.sha256 and file_sha256(annotations) != split.sha256:
            problems.append(f"{annotations}: changed since the card was written (sha256 differs)")
            continue
        try:
            coco = read_json(annotations)
            with prepared_annotations(annotations):
                found, _ = describe_split(card.folder, split.annotations, split.images, split.skipped, coco)
                own_jobs = [
                    (name, root / entry["file_name"], int(entry["width"]), int(entry["height"]))
                    for entry in coco["images"]
                ]
        except MrtError as error:  # the other splits are looked at all the same
            problems.append(error.message)
            continue
        for field in ("num_images", "num_boxes", "num_ignored", "num_empty", "boxes_per_class"):
            said, counts = getattr(split, field), getattr(found, field)
            if said != counts:
                shown, card_shown = (printable(str(value)[:500]) for value in (counts, said))
                problems.append(f"{annotations}: {field} is {shown}, the card says {card_shown}")
        jobs += own_jobs
    answers = counted(run_parallel(_look, jobs, workers or available_cores()), len(jobs), on_progress)
    wrong: dict[tuple[str, str], list[str]] = {}
    for (name, path, *_), answer in zip(jobs, answers, strict=True):
        if answer is not None:
            kind, text = answer
            wrong.setdefault((name, kind), []).append(printable((text or str(path))[:500]))
    total = {name: split.num_images for name, split in card.splits.items()}
    problems += [
        f"{name}: {len(texts)} of {total[name]} images {kind}, the first: {texts[0]}"
        for (name, kind), texts in wrong.items()
    ]
    return problems


def _look(job: tuple[str, Path, int, int]) -> tuple[str, str] | None:
    """None, or what is wrong with an image: (kind, the message if it says more than the path)."""
    _, path, width, height = job
    try:
        if not file_exists(path):
            return "are missing", ""
        header = read_header(path, width * height)
    except MrtError as error:
        return "cannot be read", error.message
    if (width, height) not in ((header.width, header.height), header.upright):
        return (
            "have another size than their annotations",
            f"{path} is {header.width}x{header.height}, not {width}x{height}",
        )
    return None
