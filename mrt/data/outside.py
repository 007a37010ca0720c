"""Labels from outside: what a foundation model, another detector or a person's rough pass says of a split's
images.

They come as a COCO file (``mrt label`` writes one), as a list of COCO results, or as another prepared set of
the same images. Images are found by file name (in a list of results by id), classes by name.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

from mrt.data.card import DatasetCard, can_be_written, is_ignored, read_json
from mrt.data.limits import LONGEST_PATH
from mrt.data.registry import IMAGES, LABELS_HINT, labels_file
from mrt.errors import MrtError

LISTS = ("images", "annotations", "categories")


@dataclass(frozen=True)
class Given:
    """What is said of one image.

    Attributes:
        boxes: (n, 4) xyxy in pixels of the image. labels: (n,) indices into the detector's classes.
        scores: (n,) in [0, 1].
        ignore_boxes, ignore_labels: (m, 4), (m,): crowds and the like.
    """

    boxes: Tensor
    labels: Tensor
    scores: Tensor
    ignore_boxes: Tensor
    ignore_labels: Tensor


@dataclass(frozen=True)
class OutsideLabels:
    """Labels of a split's images.

    Attributes:
        images: by the split's image id; an image that nobody looked at is not there.
        notes: what was left out, a line each.
    """

    images: Mapping[int, Given]
    notes: Sequence[str] = ()

    def boxes(self) -> int:
        """How many labels there are."""
        return sum(len(given.labels) for given in self.images.values())


@dataclass
class _Objects:
    rows: list[tuple[float, ...]] = field(default_factory=list)  # x0, y0, x1, y1, label, score
    ignored: list[tuple[float, ...]] = field(default_factory=list)  # x0, y0, x1, y1, label

    def given(self) -> Given:
        rows = torch.tensor(self.rows, dtype=torch.float32).reshape(-1, 6)
        ignored = torch.tensor(self.ignored, dtype=torch.float32).reshape(-1, 5)
        return Given(rows[:, :4], rows[:, 4].long(), rows[:, 5], ignored[:, :4], ignored[:, 4].long())


def read_labels(
    where: str,
    card: DatasetCard,
    split: str,
    classes: Sequence[str],
    class_map: Mapping[str, str] | None = None,
    *,
    data_root: Path | str = "data",
    lowest: float = 0.0,
) -> OutsideLabels:
    """Read labels of a split's images. The split's own boxes are not looked at.

    Args:
        where: a COCO file (an object with "images", "annotations" and "categories"), a file of COCO results
            (a list; their ids mean what an ``images.json`` beside it says, else what the split's own
            annotation file says), or a prepared set by name or folder. Annotations may have a "score" in
            [0, 1]; without one they are certain.
        card, split: whose images. classes: the detector's.
        class_map: names in the file -> the detector's, for names that differ.
        lowest: labels with a lower score are left out.

    Raises:
        MrtError: no such file, or not of this kind; an entry that cannot be read; no image or no class of
            them is known.
    """
    file, annotations = labels_file(where, split, data_root), card.annotations_path(split)
    own = _lists(read_json(annotations), annotations, LISTS)
    content = _content(file, own)
    _require_map(class_map or {}, content, card, classes, file)
    labels, unknown = _match_classes(content["categories"], classes, class_map or {}, file)
    images = _match_images(content["images"], own["images"], file)
    found = {ours["id"]: _Objects() for _, ours in images.values()}
    dropped: Counter[str] = Counter()
    others: Counter[str] = Counter()
    listed = {image["id"] for image in content["images"]}
    for annotation in content["annotations"]:
        entry = _entry(annotation, file)
        if entry.image not in listed:
            raise MrtError(
                f"{file}: the annotation of image {entry.image!r}: no image has this id",
                "its image ids must be those of its own list of images (results without one: those of the "
                "target set's annotation file)",
            )
        if entry.category in unknown:
            others[unknown[entry.category]] += 1
        elif entry.category not in labels:
            raise MrtError(
                f"{file}: category_id = {entry.category!r}: no category has this id",
                "name the categories in the file itself, or use the ids of the target set's annotation file",
            )
        elif entry.image in images:
            _place(entry, labels[entry.category], *images[entry.image], found, dropped, lowest)
    notes = _notes(file, card, split, len(own["images"]), len(content["images"]), len(found))
    if file == annotations:
        notes.insert(0, "teacher.labels: these are the target set's own labels; so the result is an oracle's")
    if others:
        notes.append(f"{file}: of classes that the detector does not have: {_counted(others)}")
    if dropped:
        notes.append(f"{file}: left out: {_counted(dropped)}")
    if ignored := sum(len(objects.ignored) for objects in found.values()):
        notes.append(f"{file}: crowds and ignored objects, neither object nor background: {ignored}")
    result = OutsideLabels({number: objects.given() for number, objects in found.items()}, notes)
    if not result.boxes():
        low = any(reason.startswith("score") for reason in dropped)
        count = len(content["annotations"])
        raise MrtError(
            f"teacher.labels = {where!r}: no label is left for {card.name!r}, split {split!r} (of {count} "
            "annotations): " + "; ".join(notes),
            "lower teacher.labels_score"
            if low
            else "labels without an object teach nothing: look into the file",
        )
    _require_pixels(result, file)
    return result


def _content(file: Path, own: dict[str, Any]) -> dict[str, Any]:
    """A label file as a COCO object; a list of results gets the images and categories that its ids mean.

    Args:
        own: the split's annotation file.
    """
    try:
        content = read_json(file)
    except MrtError as error:
        raise MrtError(error.message, f"{error.hint or ''}\n{LABELS_HINT}".strip()) from None
    if isinstance(content, list):
        beside = file.with_name(IMAGES)
        has_images = beside.is_file() and beside != file
        about = _lists(read_json(beside), beside, ("images", "categories")) if has_images else own
        content = {**about, "annotations": content}
    return _lists(content, file, LISTS)


def _require_map(
    class_map: Mapping[str, str],
    content: Mapping[str, Any],
    card: DatasetCard,
    classes: Sequence[str],
    file: Path,
) -> None:
    """MrtError for a mapping from or to a class that there is not."""
    theirs = {category["name"] for category in content["categories"]}
    for name, mapped in class_map.items():
        if name not in theirs and name not in card.classes:
            raise MrtError(
                f"data.class_map: {name!r} is a class neither of {file} nor of {card.name!r}",
                f"the file has: {', '.join(sorted(theirs)[:20])}",
            )
        if mapped not in classes:
            raise MrtError(
                f"data.class_map: {name!r} -> {mapped!r}: no class of the detector",
                f"it has: {', '.join(classes)}",
            )


def _require_pixels(labels: OutsideLabels, file: Path) -> None:
    """MrtError where all boxes lie in the first pixel: then they are shares of the image."""
    boxes = torch.cat([given.boxes for given in labels.images.values()])
    if (boxes <= 1).all() and (boxes % 1 != 0).any():
        first = ", ".join(f"{value:g}" for value in boxes[0].tolist())
        raise MrtError(
            f"{file}: all boxes lie between 0 and 1 (such as {first}): shares of the image, not pixels",
            "bbox is [x, y, width, height] in pixels of the image",
        )


@dataclass(frozen=True)
class _Entry:
    image: Any
    category: Any
    box: tuple[float, float, float, float]
    score: float
    ignored: bool


def _entry(annotation: Any, file: Path) -> _Entry:
    """An annotation that has all it needs."""

    def wrong(name: str, needed: str) -> MrtError:
        about = annotation if isinstance(annotation, dict) else {name: annotation}
        number = f" {about['id']!r}"[:20] if "id" in about else ""
        value = repr(about.get(name))[:60]
        return MrtError(f"{file}: annotation{number}: {name} = {value}", f"it needs {needed}")

    if not isinstance(annotation, dict):
        raise wrong("entry", "to be an object with image_id, category_id and bbox")
    for name, owner in (("image_id", "an image"), ("category_id", "a category")):
        if not _is_id(annotation.get(name)):
            raise wrong(name, f"the id of {owner}")
    try:
        x, y, width, height = (float(value) for value in annotation["bbox"])
    except (KeyError, TypeError, ValueError, OverflowError):
        raise wrong("bbox", "four numbers, [x, y, width, height] in pixels") from None
    try:
        score = float(annotation.get("score", 1.0))
    except (TypeError, ValueError, OverflowError):
        raise wrong("score", "a number from 0 to 1, or none at all") from None
    if not 0 <= score <= 1:
        raise wrong("score", "a number from 0 to 1: divide per cent by 100, or leave scores out")
    corners = (x, y, x + width, y + height)
    return _Entry(annotation["image_id"], annotation["category_id"], corners, score, is_ignored(annotation))


def _is_id(value: Any) -> bool:
    return isinstance(value, (int, float, str)) and not isinstance(value, bool)


def _place(
    entry: _Entry,
    label: int,
    theirs: Mapping[str, Any],
    ours: Mapping[str, Any],
    found: Mapping[int, _Objects],
    dropped: Counter[str],
    lowest: float,
) -> None:
    """Add an object to its image, in pixels of the split's image, or count why not."""
    if entry.score < lowest and not entry.ignored:
        dropped[f"score below {lowest:g}"] += 1
        return
    if not all(map(math.isfinite, entry.box)):
        dropped["not finite"] += 1
        return
    width, height = ours["width"], ours["height"]
    across = width / float(_side(theirs, "width", width))
    down = height / float(_side(theirs, "height", height))
    x0, y0, x1, y1 = entry.box
    box = (
        min(max(x0 * across, 0.0), width),
        min(max(y0 * down, 0.0), height),
        min(max(x1 * across, 0.0), width),
        min(max(y1 * down, 0.0), height),
    )
    if box[2] <= box[0] or box[3] <= box[1]:
        dropped["no area inside the image"] += 1
    elif entry.ignored:
        found[ours["id"]].ignored.append((*box, label))
    else:
        found[ours["id"]].rows.append((*box, label, entry.score))


def _lists(content: Any, file: Path, names: Iterable[str]) -> dict[str, Any]:
    """A COCO object with the lists that are needed; images and categories have ids of their own and names."""
    if not isinstance(content, dict):
        raise MrtError(
            f"{file}: not labels: neither a COCO object (with the lists {', '.join(LISTS)}) nor a list of "
            "COCO results",
            LABELS_HINT,
        )
    for name in names:
        if not isinstance(content.get(name), list):
            raise MrtError(
                f"{file}: {name} = {str(content.get(name))[:40]}: not labels without a list of {name}",
                LABELS_HINT,
            )
        key = {"images": "file_name", "categories": "name"}.get(name)
        known: dict[Any, str] = {}
        for entry in content[name] if key else ():
            text = entry.get(key) if isinstance(entry, dict) else None
            named = isinstance(text, str) and can_be_written(text) and len(text) <= LONGEST_PATH
            if not named or not _is_id(entry.get("id")):
                raise MrtError(
                    f"{file}: {name}: {str(entry)[:100]} has no id or no {key}",
                    f"each entry of {name} needs an id (a number or a text) and a {key}",
                )
            if entry["id"] in known:
                both = f"{known[entry['id']]}, {entry[key]}"
                raise MrtError(
                    f"{file}: {name}: the id {entry['id']!r} is given twice ({both})",
                    "whose boxes are whose cannot be known: ids must differ",
                )
            known[entry["id"]] = entry[key]
    return content


def _match_classes(
    categories: Sequence[Mapping[str, Any]],
    classes: Sequence[str],
    class_map: Mapping[str, str],
    file: Path,
) -> tuple[dict[Any, int], dict[Any, str]]:
    """Labels by category id, and the names of categories that are none of the detector's classes."""

    def plain_name(name: str) -> str:
        return "".join(name.casefold().split())

    plain = {plain_name(name): number for number, name in reversed(list(enumerate(classes)))}
    labels, unknown = {}, {}
    for category in categories:
        name = class_map.get(category["name"], category["name"])
        if name in classes:
            labels[category["id"]] = classes.index(name)
        elif plain_name(name) in plain:
            labels[category["id"]] = plain[plain_name(name)]
        else:
            unknown[category["id"]] = category["name"]
    if not categories:
        raise MrtError(f"{file}: categories is empty, so its classes have no names", LABELS_HINT)
    if not labels:
        there = ", ".join(category["name"] for category in categories[:20]) or "none"
        raise MrtError(
            f"{file}: none of its classes ({there}) is one of the detector's ({', '.join(classes)})",
            "say which of its names means which: --set data.class_map.THEIRS=OURS",
        )
    return labels, unknown


def _match_images(
    theirs: Sequence[Mapping[str, Any]], ours: Sequence[Mapping[str, Any]], file: Path
) -> dict[Any, tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """By their id (their image, our image): of one path, else of the longest end of a path that an image of
    ours has, if it is the only one.

    Raises:
        MrtError: two of theirs are one of ours, or none is.
    """
    ends: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for image in ours:
        parts = _parts(image)
        for start in range(len(parts)):
            ends.setdefault(parts[start:], []).append(image)
    whole = {_parts(image): image for image in ours}
    deepest = max((len(parts) for parts in whole), default=0)  # longer ends are none of ours
    found: dict[Any, tuple[Mapping[str, Any], Mapping[str, Any]]] = {}
    taken: dict[Any, Mapping[str, Any]] = {}
    unclear = ""
    for image in theirs:
        parts = _parts(image)
        tails = [ends.get(parts[start:], []) for start in range(max(0, len(parts) - deepest), len(parts))]
        fitting = next((tail for tail in tails if tail), [])
        partner = whole.get(parts) or (fitting[0] if len(fitting) == 1 else None)
        if partner is None:
            unclear = unclear or (
                f"{image['file_name']!r} could be {len(fitting)} of them" if fitting else ""
            )
            continue
        if partner["id"] in taken:
            raise MrtError(
                f"{file}: {taken[partner['id']]['file_name']!r} and {image['file_name']!r} are both the "
                f"target's {partner['file_name']!r}",
                "name each image once, by its path in the target set",
            )
        _require_shape(image, partner, file)
        taken[partner["id"]] = image
        found[image["id"]] = (image, partner)
    if not found:
        raise MrtError(
            f"{file}: none of its {len(theirs)} images is one of the target's {len(ours)} (here "
            f"{theirs[0]['file_name'] if theirs else 'none'!r}, there {ours[0]['file_name']!r})"
            + (f"; {unclear}" if unclear else ""),
            "name images as the target set's annotation file does, suffix and case too (mrt label does)",
        )
    return found


def _parts(image: Mapping[str, Any]) -> tuple[str, ...]:
    """The parts of an image's path."""
    return PurePosixPath(image["file_name"].replace("\\", "/")).parts


def _side(image: Mapping[str, Any], key: str, ours: int) -> Any:
    """A side of an image; ours where it says none."""
    return ours if image.get(key) is None else image[key]


def _require_shape(theirs: Mapping[str, Any], ours: Mapping[str, Any], file: Path) -> None:
    """MrtError where two images of one name cannot be the same picture at another size."""
    try:
        width, height = (float(_side(theirs, key, ours[key])) for key in ("width", "height"))
        fits = min(width, height) > 0 and abs(width * ours["height"] / (height * ours["width"]) - 1) < 0.02
    except (TypeError, ValueError, ArithmeticError):
        fits = False
    if not fits:
        raise MrtError(
            f"{file}: image {theirs['file_name']!r} is {_side_in_words(theirs)} there "
            f"and {ours['width']}x{ours['height']} in the target set: not the same picture",
            "label the images of the prepared set",
        )


def _side_in_words(image: Mapping[str, Any]) -> str:
    return "x".join(str(image.get(side))[:40] for side in ("width", "height"))


def _notes(file: Path, card: DatasetCard, split: str, ours: int, theirs: int, both: int) -> list[str]:
    notes = []
    if both < ours:
        notes.append(f"{file}: says nothing of {ours - both} of the {ours} images of {card.name} {split}")
    if both < theirs:
        notes.append(f"{file}: {theirs - both} of its {theirs} images are not in {card.name} {split}")
    return notes


def _counted(numbers: Counter[str]) -> str:
    return ", ".join(f"{name} ({count})" for name, count in numbers.most_common(20))
