"""What there is to learn from and to measure with: the boxes of the sets that a run uses. Needs no torch."""

from __future__ import annotations

import contextlib
import json
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mrt.config import Config
from mrt.data.card import DatasetCard, SplitCard, describe_split
from mrt.data.registry import find_dataset, prepared_sets
from mrt.domains import SOURCE, TARGET
from mrt.errors import MrtError

if TYPE_CHECKING:
    from mrt.data.dataset import DetectionDataset

NAMED = 20  # of a long list of classes


@dataclass(frozen=True)
class Use:
    """What boxes are wanted for, and the options that name another set, another split, other classes."""

    purpose: str
    another: str
    split: str
    classes: str


RENAME = "Say which of its names means which: --set data.class_map.THEIRS=OURS"
LEARN = {
    SOURCE: Use(
        "to learn from",
        "--source",
        "--set data.source_split=",
        "Train on classes that it has boxes of: --set ",
    ),
    TARGET: Use("to learn from", "--target", "--set data.target_split=", RENAME),
}
MEASURE = Use(
    "to measure with", "--data", "--split ", "Say which of its names means which: --map-class THEIRS=OURS"
)
MEASURE_TRIALS = Use("to measure with", "--target", "--split ", RENAME)


def class_names(config: Config, source: DatasetCard) -> list[str]:
    """The classes to detect: the configuration's, which the source must have, or all of the source's."""
    if not source.classes:
        raise MrtError(
            f"data set {source.name!r} has no classes, and a run takes its classes from its source",
            "name another with --source",
        )
    if config.data.classes is None:
        return list(source.classes)
    missing = [name for name in config.data.classes if name not in source.classes]
    if missing:
        raise MrtError(
            f"data.classes = {list(config.data.classes)}: {', '.join(missing)} not in data set "
            f"{source.name!r}",
            f"it has {', '.join(source.classes)}",
        )
    return list(config.data.classes)


def class_map_for(config: Config, card: DatasetCard) -> dict[str, str]:
    """``data.class_map`` as it applies to a set: it is about the names of the target and of labels from
    outside; other sets take what they know of it.
    """
    if card.name == Path(config.data.target).name and config.teacher.labels is None:
        return config.data.class_map
    return {theirs: ours for theirs, ours in config.data.class_map.items() if theirs in card.classes}


def require_labels(config: Config, cards: Mapping[str, DatasetCard], domains: Iterable[str]) -> None:
    """MrtError unless every set that labels are learned from has labels, and a box of the run's classes in
    the split that is trained on.

    Args:
        cards: by domain; the source's is always needed, for the class names.
        domains: whose labels are learned from: "source", "target".
    """
    domains = sorted(domains)
    if not domains:
        return
    splits = {SOURCE: config.data.source_split, TARGET: config.data.target_split}
    for domain in domains:
        if not cards[domain].labelled:
            labelled = f"name a labelled set with --{domain}, or prepare this one again with its labels"
            raise MrtError(
                f"data set {cards[domain].name!r} has no labels to train on",
                labelled + ("; or leave out --oracle" * (domain == TARGET)),
            )
    classes = class_names(config, cards[SOURCE])
    for domain in domains:
        card = cards[domain]
        require_boxes(card, splits[domain], classes, class_map_for(config, card), LEARN[domain])


def require_boxes(
    card: DatasetCard, split: str, classes: Iterable[str], class_map: Mapping[str, str], use: Use
) -> None:
    """MrtError unless a labelled split has a box of the classes, by its card or, where that knows of none, by
    its annotations.
    """
    classes, part = list(classes), card.split(split)
    if any(_by_class(part, classes, class_map).values()):
        return
    part = _count_again(card, part)
    if part is None or any(_by_class(part, classes, class_map).values()):
        return
    others = {
        name: n for name, n in part.boxes_per_class.items() if n and class_map.get(name, name) not in classes
    }
    raise _nothing(card, split, classes, class_map, use, part.num_images, part.num_ignored, others)


def require_boxes_read(dataset: DetectionDataset, class_map: Mapping[str, str], use: Use) -> None:
    """MrtError unless the split, once read, has a box left: those that cannot be used are gone by then."""
    if any(dataset.boxes_per_class().values()):
        return
    ignored = sum(len(record.ignore_boxes) for record in dataset.records)
    images, left = len(dataset), (dataset.unmatched, dataset.dropped)
    raise _nothing(dataset.card, dataset.split, list(dataset.classes), class_map, use, images, ignored, *left)


def has_boxes(card: DatasetCard, split: str, classes: Iterable[str], class_map: Mapping[str, str]) -> bool:
    """Whether something can be measured on a split: it is there, labelled, and has a box of the classes."""
    if not card.labelled or split not in card.splits:
        return False
    try:
        require_boxes(card, split, classes, class_map, MEASURE)
    except MrtError:
        return False
    return True


def split_to_measure(
    card: DatasetCard,
    classes: Iterable[str],
    class_map: Mapping[str, str],
    preferred: str = "val",
    seen: Iterable[str] = (),
) -> str | None:
    """The split that something can be measured on: ``preferred``, else val, test, or the first other one.

    Args:
        seen: splits that do not count, for they were learned from with their labels.
    """
    order = dict.fromkeys([preferred, "val", "test", *card.splits])
    classes, left_out = list(classes), set(seen)
    return next(
        (name for name in order if name not in left_out and has_boxes(card, name, classes, class_map)), None
    )


def set_to_measure(config: Config, command: str | None, data_root: Path) -> DatasetCard:
    """The set that a detector is measured on if nobody said which: the target that its run was made for; of a
    source detector whose target is not here, its source.

    Args:
        command: of mrt that trained it.

    Raises:
        MrtError: it is not prepared.
    """
    try:
        return find_dataset(config.data.target, data_root)
    except MrtError:
        if command == "pretrain-source":
            with contextlib.suppress(MrtError):
                return find_dataset(config.data.source, data_root)
        raise


def require_labelled(card: DatasetCard, where: str, data_root: Path) -> None:
    """MrtError for a set without labels to measure with; it says which have some, and what goes without.

    Args:
        where: the detector that was to be measured, as the user named it.
    """
    if card.labelled:
        return
    labelled = [other.name for other in prepared_sets(data_root) if other.labelled]
    look = shlex.join(["mrt", "predict", where, str(card.folder)])
    others = f"name a labelled one with --data: {_some(labelled)}\n" if labelled else ""
    raise MrtError(
        f"data set {card.name!r} has no labels to evaluate on", f"{others}see what it finds there: {look}"
    )


def missing_classes(dataset: DetectionDataset, use: Use) -> list[str]:
    """A line that names the classes which a labelled split has no box of, with the numbers of the others;
    none if there are all.

    Classes that the set does not have at all are told of by ``DetectionDataset.left_out``.
    """
    counts = dataset.boxes_per_class()
    missing = [name for name, number in counts.items() if not number]
    if not missing:
        return []
    there = _counted({name: number for name, number in counts.items() if number})
    return [
        f"{dataset.card.name} {dataset.split}: no box of {_some(missing)} {use.purpose}; boxes there are: "
        f"{there}"
    ]


def _count_again(card: DatasetCard, part: SplitCard) -> SplitCard | None:
    """What the annotation file holds; None where it is malformed: whoever reads it in full says how."""
    try:
        return describe_split(card.folder, part.annotations, part.images, part.skipped)[0]
    except (KeyError, TypeError, AttributeError):
        return None


def _by_class(part: SplitCard, classes: Iterable[str], class_map: Mapping[str, str]) -> dict[str, int]:
    """Boxes of the detector's classes."""
    found = dict.fromkeys(classes, 0)
    for name, number in part.boxes_per_class.items():
        if class_map.get(name, name) in found:
            found[class_map.get(name, name)] += number
    return found


def _nothing(
    card: DatasetCard,
    split: str,
    classes: list[str],
    class_map: Mapping[str, str],
    use: Use,
    images: int,
    ignored: int,
    others: Mapping[str, int],
    unusable: Mapping[str, int] | None = None,
) -> MrtError:
    """The error of a split without a box that counts: its figures, and which options help.

    Args:
        others: objects of other classes, by the set's names. unusable: boxes that are none, by reason.
    """
    skipped = card.split(split).skipped
    figures = [f"{images} images, {ignored} ignored boxes"]
    figures += [f"of other classes: {_counted(others)}"] if others else []
    figures += [f"not usable: {_counted(unusable)}"] if unusable else []
    figures += [f"left out when it was made: {_counted(skipped)}"] if skipped else []
    of = f" of {_some(classes)}" if others else ""
    hints = []
    if others:
        names = json.dumps(list(others), ensure_ascii=False)
        hints.append(use.classes + (shlex.quote(f"data.classes={names}") if use is LEARN[SOURCE] else ""))
    elsewhere = {
        name: sum(_by_class(part, classes, class_map).values())
        for name, part in card.splits.items()
        if name != split
    }
    hints += [
        f"Its split {name!r} has {n} boxes: {use.split}{shlex.quote(name)}"
        for name, n in elsewhere.items()
        if n
    ]
    hints += ["Ignored boxes (crowds, difficult objects) do not count."] if ignored else []
    again = "mend its labels and make it again (mrt prepare-data with --overwrite)"
    hints.append(
        f"{'Or name' if others or any(elsewhere.values()) else 'Name'} another set with {use.another}, or "
        f"{again}."
    )
    return MrtError(
        f"data set {card.name!r}, split {split!r}: no box{of} {use.purpose}: {'; '.join(figures)}",
        "\n".join(hints),
    )


def _counted(numbers: Mapping[str, int]) -> str:
    """ "car (12), person (3)", the largest first."""
    return _some(
        [f"{name} ({number})" for name, number in sorted(numbers.items(), key=lambda item: -item[1])]
    )


def _some(names: list[str]) -> str:
    """The names, of a long list the first ones."""
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")
