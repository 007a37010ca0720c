"""Labels from outside: a labeller looks at the images of a prepared set, and a COCO file says what it found.

A labeller is a function ``(image, classes)`` in a file or module of the user's, or a detector. The set's own
boxes are never read. docs/labels.md has examples.

labellers  where they come from
answers    what they may say of an image
progress   what they have said so far, for a command that is stopped
"""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mrt import __version__
from mrt.data.card import DatasetCard, coco_categories, file_sha256, read_json
from mrt.data.dataset import DetectionDataset, ImageRecord
from mrt.engine.report import Watcher
from mrt.errors import Interrupted, MrtError
from mrt.files import write_text
from mrt.labelling.answers import EXPECTED, NO_AREA, NOT_FINITE, check, class_finder
from mrt.labelling.labellers import Labeller, LabellerFailed, load_detector, load_function
from mrt.labelling.progress import Progress

__all__ = [
    "NOT_FINITE",
    "NO_AREA",
    "Found",
    "Labeller",
    "LabellerFailed",
    "check",
    "choose_classes",
    "class_finder",
    "label",
    "load_detector",
    "load_function",
    "part_of",
    "require_new",
]


@dataclass
class Found:
    """What a labeller found.

    Attributes:
        images: number of images that were looked at; ``before``: of them in earlier runs.
        boxes, scores: number of boxes and sum of their scores by class.
        unknown: boxes that were left out, by the name that is no class. dropped: by another reason.
    """

    images: int = 0
    before: int = 0
    boxes: Counter[str] = field(default_factory=Counter)
    scores: Counter[str] = field(default_factory=Counter)
    unknown: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)

    def add(self, entry: Mapping[str, Any], classes: Sequence[str]) -> None:
        """Count what :func:`check` made of an image's answer."""
        self.images += 1
        for label, score in zip(entry["labels"], entry["scores"], strict=True):
            self.boxes[classes[label]] += 1
            self.scores[classes[label]] += score
        self.unknown.update(entry["unknown"])
        self.dropped.update(entry["dropped"])


def label(
    card: DatasetCard,
    labeller: Labeller,
    out: Path,
    *,
    split: str = "train",
    classes: Sequence[str] | None = None,
    threshold: float = 0.05,
    limit: int | None = None,
    watcher: Watcher | None = None,
) -> Found:
    """Let a labeller look at a split's images, and write what it finds as a COCO file.

    What is found is kept in ``OUT.part`` until all images are done. Where that file is there, from an earlier
    call that was stopped, its images are not looked at again.

    Args:
        classes: names to look for; None: the set's.
        threshold: boxes with a lower score are not written.
        limit: look at the first so many images only.

    Raises:
        MrtError: ``out`` exists; ``OUT.part`` is of another question; no such split, no class; an image
            cannot be read; the labeller's answer is none.
        LabellerFailed: its code raises an error.
        Interrupted: stopped by Ctrl-C.
    """
    watcher = watcher or Watcher()
    classes = choose_classes(card, classes)
    if not 0 <= threshold <= 1:
        raise MrtError(f"threshold {threshold:g}: a score lies between 0 and 1")
    require_new(out)
    dataset = DetectionDataset(card, split, labelled=False, limit=limit)
    records = dataset.records
    names = {image["id"]: image["file_name"] for image in read_json(dataset.annotations_file)["images"]}
    question = {
        "labeller": labeller.name,
        "labeller_sha256": labeller.digest,
        "set": card.name,
        "split": split,
        "annotations_sha256": file_sha256(dataset.annotations_file),
        "threshold": threshold,
        "classes": list(classes),
    }
    progress = Progress(part_of(out), question)
    entries = progress.read([record.image_id for record in records])
    left = records[len(entries) :]
    found = Found(before=len(entries))
    for entry in entries:
        found.add(entry, classes)
    watcher.begin(f"label {card.name} {split}", len(records), len(entries))
    try:
        with progress, contextlib.closing(labeller.answers(left, classes)) as answers:
            for record in left:
                entry = _entry(labeller, answers, record, names[record.image_id], classes, threshold)
                progress.add(entry)
                entries.append(entry)
                found.add(entry, classes)
                watcher.advance(1, objects=float(len(entry["labels"])))
    except KeyboardInterrupt:
        kept = f"; they are kept in {progress.path}" if entries else ""
        raise Interrupted(f"stopped after {len(entries)} of {len(records)} images{kept}") from None
    watcher.end()
    info = {"tool": "mrt label", **question, "mrt": __version__}
    del info["classes"]
    content = {
        "info": info,
        "images": [
            {"id": r.image_id, "file_name": names[r.image_id], "width": r.size[1], "height": r.size[0]}
            for r in records
        ],
        "categories": coco_categories(classes),
        "annotations": _annotations(entries),
    }
    write_text(out, json.dumps(content, ensure_ascii=False) + "\n")
    progress.path.unlink(missing_ok=True)
    return found


def part_of(out: Path) -> Path:
    """Where the progress of a run that writes ``out`` is kept."""
    return out.with_name(f"{out.name}.part")


def require_new(out: Path) -> None:
    """MrtError if there is something where the labels would be written."""
    if out.exists():
        what = "is a folder" if out.is_dir() else "exists already"
        raise MrtError(f"{out}: {what}", "nothing is overwritten: name another file with --out")


def choose_classes(card: DatasetCard, classes: Sequence[str] | None) -> tuple[str, ...]:
    """The names to look for: those given, else the set's.

    Raises:
        MrtError: there are none, or one is empty or given twice.
    """
    names = tuple(card.classes if classes is None else classes)
    if not names and classes is None:
        raise MrtError(
            f"{card.name}: has no class names of its own, so it must be said what to look for",
            "name the classes, such as --classes car,person",
        )
    if not names or not all(name.strip() for name in names):
        raise MrtError(f"--classes {','.join(names)!r}: a name is empty", "for example --classes car,person")
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise MrtError(f"--classes: {twice[0]!r} is given twice", "name each class once")
    return names


def _entry(
    labeller: Labeller,
    answers: Iterator[Any],
    record: ImageRecord,
    name: str,
    classes: Sequence[str],
    threshold: float,
) -> dict[str, Any]:
    """The next answer, checked, with the image's id."""
    answer = next(answers)
    try:
        entry = check(answer, record.size, classes, threshold)
    except ValueError as error:
        raise MrtError(f"{labeller.name}, image {name}: returned {error}", EXPECTED) from None
    return {**entry, "image": record.image_id}


def _annotations(entries: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """COCO annotations with ids from 1."""
    found: list[dict[str, Any]] = []
    for entry in entries:
        for number, box, score in zip(entry["labels"], entry["boxes"], entry["scores"], strict=True):
            annotation = {
                "id": len(found) + 1,
                "image_id": entry["image"],
                "category_id": number + 1,
                "bbox": box,
                "area": round(box[2] * box[3], 2),
                "iscrowd": 0,
                "score": score,
            }
            found.append(annotation)
    return found
