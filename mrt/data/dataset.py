"""A prepared set's split as a torch ``Dataset`` of images and boxes."""

from __future__ import annotations

import copy
import math
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.ops import box_area

from mrt.data.card import DatasetCard, coco_categories, is_ignored, read_json
from mrt.data.images import read_image, read_picture
from mrt.data.outside import Given, OutsideLabels
from mrt.data.transforms import Sample, Target, Transform
from mrt.errors import MrtError
from mrt.failures import is_machine, told
from mrt.plain import is_text


class UnreadableImage(MrtError):
    """An image is missing, cut short, of another size, or in no format that can be decoded.

    Attributes:
        file: its path.
    """

    def __init__(self, message: str, hint: str | None = None, file: str = "") -> None:
        super().__init__(message, hint)
        self.file = file


class SampleKey(NamedTuple):
    """What a sampler asks a dataset for: an index, and the text that seeds the augmentation."""

    index: int
    seed: str


@dataclass(frozen=True)
class ImageRecord:
    """One image of the annotation file.

    ``boxes`` (n, 4) are xyxy pixels cut to the image, ``labels`` (n,) indices into the classes. ``areas``
    (n,) are the objects' areas as the file states them (in COCO those of the masks, by which objects are
    small or large), else those of the boxes.
    """

    image_id: int
    path: Path
    size: tuple[int, int]
    boxes: Tensor
    labels: Tensor
    areas: Tensor
    ignore_boxes: Tensor
    ignore_labels: Tensor
    scores: Tensor | None = None
    """(n,) of labels from outside (:meth:`DetectionDataset.with_labels`)."""
    covered: bool = True
    """Whether somebody looked at the image, where its labels come from outside."""


class DetectionDataset(Dataset):
    """Images and targets of one split.

    An item is a :class:`mrt.data.transforms.Sample`; without a transform its image is a ``tv_tensors.Image``
    (3, H, W) uint8 and its boxes ``tv_tensors.BoundingBoxes`` in xyxy pixels, ready for any torchvision v2
    transform. A target holds ``boxes`` (n, 4) float32, ``labels`` (n,) int64 from 0, ``image_id``,
    ``original_size`` (H, W) and, after a transform, ``size`` (h, w). Images without boxes stay. Crowds,
    ignored objects and boxes without area inside the image are not targets.

    Args:
        card, split: which annotations.
        classes: the detector's classes in order; default the card's. Objects of other classes are left out
            and counted in ``unmatched``.
        transform: see :mod:`mrt.data.transforms`.
        class_map: this set's name -> the detector's name, for names that differ.
        labelled: False never reads the annotations' boxes: every target is empty, as training on a target
            domain requires.
        keep_ignored: put crowds and ignored objects into the target as ``ignore_boxes`` and
            ``ignore_labels``.
        cache: "ram" keeps decoded images in memory (worker processes share what ``preload`` decoded before
            they start).
        limit: use the first so many images only.

    Raises:
        MrtError: annotations missing, malformed or without images; a mapping to an unknown class; an
            unreadable image when it is needed.
    """

    def __init__(
        self,
        card: DatasetCard,
        split: str,
        classes: Sequence[str] | None = None,
        transform: Callable[[Tensor, Target, random.Random], Sample] | Transform | None = None,
        class_map: Mapping[str, str] | None = None,
        *,
        labelled: bool = True,
        keep_ignored: bool = False,
        cache: str | None = None,
        limit: int | None = None,
    ) -> None:
        if cache not in (None, "ram"):
            raise MrtError(f"cache is {cache!r}", "Use 'ram', or leave it out.")
        self.card, self.split, self.transform = card, split, transform
        self.classes = tuple(card.classes if classes is None else classes)
        self.labelled = labelled and card.labelled
        self.keep_ignored = keep_ignored
        # objects of classes that the detector does not have, by name
        self.unmatched: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()  # annotations that cannot be used, by reason
        self.annotations_file = card.annotations_path(split)
        self._label_of_name = _match_classes(card, self.classes, class_map or {}) if self.labelled else {}
        self.records = self._read_records(_read_coco(self.annotations_file), limit)
        self._cache: dict[int, Tensor] | None = {} if cache == "ram" else None

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: SampleKey | int) -> Sample:
        """One sample.

        A plain index draws its augmentation from torch's generator; a :class:`SampleKey` always gives the
        same sample.
        """
        index, seed = key if isinstance(key, tuple) else (key, None)
        record = self.records[index]
        target: Target = {
            "boxes": record.boxes,
            "labels": record.labels,
            "image_id": record.image_id,
            "original_size": record.size,
        }
        if self.keep_ignored:
            target |= {"ignore_boxes": record.ignore_boxes, "ignore_labels": record.ignore_labels}
        if record.scores is not None:
            target |= {"scores": record.scores, "covered": record.covered}
        if self._cache is None and isinstance(self.transform, Transform):
            # resizing works on pictures, so an array would have to be converted back
            with _named(record.path):
                image = read_picture(record.path, record.size)
        else:
            image = self._pixels(index)
        if self.transform is None:
            for name in ("boxes", "ignore_boxes"):
                if name in target:
                    target[name] = tv_tensors.BoundingBoxes(
                        target[name].clone(), format="XYXY", canvas_size=record.size
                    )
            return Sample(tv_tensors.Image(image), target)
        rng = random.Random(seed if seed is not None else int(torch.randint(1 << 62, ())))
        return self.transform(image, target, rng)

    def with_labels(self, labels: OutsideLabels, keep_uncovered: bool = True) -> DetectionDataset:
        """The same images with labels from outside; the set's own stay unread.

        Targets then have ``scores`` (n,), ``ignore_boxes`` and ``ignore_labels`` too, and ``covered``: False
        for an image that the labels say nothing of.

        Args:
            keep_uncovered: False leaves those images out.
        """
        nothing = torch.zeros(0)
        empty = Given(
            *(nothing.reshape(0, 4), nothing.long(), nothing), nothing.reshape(0, 4), nothing.long()
        )
        records = []
        for record in self.records:
            given = labels.images.get(record.image_id, empty)
            records.append(
                replace(
                    record,
                    boxes=given.boxes,
                    labels=given.labels,
                    areas=box_area(given.boxes).double(),
                    ignore_boxes=given.ignore_boxes,
                    ignore_labels=given.ignore_labels,
                    scores=given.scores,
                    covered=record.image_id in labels.images,
                )
            )
        other = copy.copy(self)
        other.records = [record for record in records if keep_uncovered or record.covered]
        other.keep_ignored = True
        other._cache = None if self._cache is None else {}
        return other

    def largest_size(self) -> tuple[int, int]:
        """(height, width) that every sample fits into.

        For ``build_loader(pad_to=...)``, where all batches must have one shape.
        """
        sizes = [record.size for record in self.records]
        if isinstance(self.transform, Transform):
            return self.transform.largest(sizes)
        return max(height for height, _ in sizes), max(width for _, width in sizes)

    def preload(self) -> None:
        """Decode every image into the cache now; does nothing without a cache.

        An image that cannot be read is left for when it is asked for.
        """
        if self._cache is not None:
            for index in range(len(self)):
                with suppress(UnreadableImage):
                    self._pixels(index)

    def left_out(self) -> list[str]:
        """Which annotations are not used, one line each.

        Objects of classes that the detector lacks, unusable boxes, and the detector's classes that this set
        lacks.
        """
        lines = []
        if self.unmatched:
            names = ", ".join(f"{name} ({count})" for name, count in self.unmatched.most_common())
            lines.append(
                f"{self.card.name} {self.split}: objects of classes that the detector "
                f"does not have are left out: {names}"
            )
        if self.dropped:
            names = ", ".join(f"{reason} ({count})" for reason, count in self.dropped.most_common())
            lines.append(f"{self.card.name} {self.split}: boxes that cannot be used are left out: {names}")
        partners = {self.classes[label] for label in self._label_of_name.values()}
        missing = [name for name in self.classes if name not in partners]
        if self.labelled and missing:
            lines.append(
                f"{self.card.name} {self.split}: has no class for the detector's {', '.join(missing)}"
            )
        return lines

    def boxes_per_class(self) -> dict[str, int]:
        """Boxes that count, by the detector's class; classes that this set does not have are not listed."""
        labels = torch.cat([record.labels for record in self.records])
        counts = torch.bincount(labels, minlength=len(self.classes)).tolist()
        return {self.classes[label]: counts[label] for label in sorted(set(self._label_of_name.values()))}

    def _pixels(self, index: int) -> Tensor:
        if self._cache is not None and index in self._cache:
            return self._cache[index]
        record = self.records[index]
        with _named(record.path):
            pixels = read_image(record.path, record.size)
        if self._cache is not None:
            self._cache[index] = pixels
        return pixels

    def coco_ground_truth(self) -> dict[str, Any]:
        """The annotations as pycocotools takes them.

        The detector's classes are categories 1.., ids start at 1, ignored objects are crowds.
        """
        annotations = []
        for record in self.records:
            ignored_areas = box_area(record.ignore_boxes)
            for boxes, labels, areas, crowd in (
                (record.boxes, record.labels, record.areas, 0),
                (record.ignore_boxes, record.ignore_labels, ignored_areas, 1),
            ):
                for (x0, y0, x1, y1), label, area in zip(
                    boxes.tolist(), labels.tolist(), areas.tolist(), strict=True
                ):
                    annotation = {
                        "id": len(annotations) + 1,
                        "image_id": record.image_id,
                        "category_id": label + 1,
                        "bbox": [x0, y0, x1 - x0, y1 - y0],
                        "area": area,
                        "iscrowd": crowd,
                    }
                    annotations.append(annotation)
        images = [
            {"id": r.image_id, "file_name": r.path.name, "height": r.size[0], "width": r.size[1]}
            for r in self.records
        ]
        return {
            "info": {},
            "images": images,
            "annotations": annotations,
            "categories": coco_categories(self.classes),
        }

    def _read_records(self, coco: dict[str, Any], limit: int | None) -> list[ImageRecord]:
        file, root = self.annotations_file, self.card.images_root(self.split)
        names = {category["id"]: category["name"] for category in coco["categories"]} if self.labelled else {}
        objects: dict[Any, list[tuple[tuple[float, ...], int, float, bool]]] = {}
        sizes: dict[Any, tuple[int, int]] = {}
        for image in coco["images"]:
            if image["id"] in sizes:
                raise MrtError(
                    f"{file}: two images have the id {image['id']}", "Ids must differ: make the set again."
                )
            sizes[image["id"]] = (image["height"], image["width"])
            objects[image["id"]] = []
        for annotation in coco["annotations"] if self.labelled else ():
            self._place(annotation, names, sizes, objects)
        return [
            _record(image, root, file, sizes[image["id"]], objects[image["id"]])
            for image in coco["images"][:limit]
        ]

    def _place(self, annotation: Any, names: Mapping, sizes: Mapping, objects: Mapping) -> None:
        """Append one annotation's (box, label, area, ignored) to its image's list, or count why not."""
        try:
            image_id, name = annotation["image_id"], names[annotation["category_id"]]
            x, y, w, h = (float(value) for value in annotation["bbox"])
            listed = image_id in sizes
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            entry = annotation.get("id") if isinstance(annotation, dict) else annotation
            raise MrtError(
                f"{self.annotations_file}: annotation {repr(entry)[:80]} has no usable image_id, "
                f"category_id or bbox ({repr(error)[:100]})",
                "Each needs the id of a listed image, of a listed category, and four "
                "numbers [x, y, width, height].",
            ) from None
        if not listed:
            raise MrtError(
                f"{self.annotations_file}: annotation {annotation.get('id')!r} belongs to image "
                f"{image_id!r}, which is not listed",
                "Make the set again, or mend the file.",
            )
        if name not in self._label_of_name:
            self.unmatched[name] += 1
            return
        if not all(map(math.isfinite, (x, y, w, h))):
            self.dropped["not finite"] += 1
            return
        height, width = sizes[image_id]
        box = (
            min(max(x, 0.0), width),
            min(max(y, 0.0), height),
            min(max(x + w, 0.0), width),
            min(max(y + h, 0.0), height),
        )
        if box[2] <= box[0] or box[3] <= box[1]:
            self.dropped["no area inside the image"] += 1
            return
        area = annotation.get("area")
        if not (isinstance(area, (int, float)) and 0 < area < 1e30):
            area = (box[2] - box[0]) * (box[3] - box[1])
        objects[image_id].append((box, self._label_of_name[name], float(area), is_ignored(annotation)))


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Errors of reading an image as :class:`UnreadableImage`, except those that are the machine's."""
    try:
        yield
    except MrtError as error:
        machine = error.__context__
        if is_machine(machine):
            raise told(machine) from None
        raise UnreadableImage(error.message, error.hint, str(path)) from None


def _record(image: Mapping, root: Path, file: Path, size: tuple[int, int], objects: list) -> ImageRecord:
    relative = Path(image["file_name"])
    if ".." in relative.parts or relative.is_absolute():
        raise MrtError(
            f"{file}: file_name {image['file_name']!r} leads out of the image folder {root}",
            "Make the set again.",
        )
    counted, ignored = [o for o in objects if not o[3]], [o for o in objects if o[3]]
    return ImageRecord(
        image["id"],
        root / relative,
        size,
        torch.tensor([o[0] for o in counted], dtype=torch.float32).reshape(-1, 4),
        torch.tensor([o[1] for o in counted], dtype=torch.int64),
        torch.tensor([o[2] for o in counted], dtype=torch.float64),
        torch.tensor([o[0] for o in ignored], dtype=torch.float32).reshape(-1, 4),
        torch.tensor([o[1] for o in ignored], dtype=torch.int64),
    )


def _match_classes(
    card: DatasetCard, classes: tuple[str, ...], class_map: Mapping[str, str]
) -> dict[str, int]:
    """This set's class name -> the detector's label."""
    for name, mapped in class_map.items():
        if name not in card.classes:
            raise MrtError(
                f"class map: '{name}' is no class of {card.name}", f"It has: {', '.join(card.classes)}."
            )
        if mapped not in classes:
            raise MrtError(
                f"class map: '{mapped}' is no class of the detector", f"It has: {', '.join(classes)}."
            )
    ours = {name: class_map.get(name, name) for name in card.classes}
    matched = {name: classes.index(mapped) for name, mapped in ours.items() if mapped in classes}
    if not matched:
        raise MrtError(
            f"{card.name}: none of its classes ({', '.join(card.classes)}) is "
            f"one of the detector's ({', '.join(classes)})",
            "Say which name means which with --map-class THEIRS=OURS.",
        )
    return matched


_LONGEST_SIDE = 1 << 20  # pixels: no kind of image has longer ones


def _read_coco(file: Path) -> dict[str, Any]:
    coco = read_json(file)
    if not isinstance(coco, dict) or not all(
        isinstance(coco.get(key), list) for key in ("images", "annotations", "categories")
    ):
        raise MrtError(
            f"{file}: not a COCO file (an object with the lists 'images', 'annotations', 'categories')"
        )
    if not coco["images"]:
        raise MrtError(f"{file}: lists no images", "Make the set again, or choose another split.")
    for kind, needed in (
        ("images", {"id": int, "file_name": str, "height": int, "width": int}),
        ("categories", {"id": int, "name": str}),
    ):
        for entry in coco[kind]:
            for key, expected in needed.items():
                value = entry.get(key) if isinstance(entry, dict) else entry
                if type(value) is not expected:
                    raise MrtError(
                        f"{file}: an entry of '{kind}' has {key} {repr(value)[:80]}, expected "
                        f"{expected.__name__}: {repr(entry)[:200]}",
                        "Make the set again with `mrt prepare-data`.",
                    )
                if key in ("height", "width") and not 0 < value < _LONGEST_SIDE:
                    raise MrtError(
                        f"{file}: an entry of '{kind}' has {key} {repr(value)[:80]}, expected a "
                        f"number of pixels: {repr(entry)[:200]}",
                        "Make the set again with `mrt prepare-data`.",
                    )
    odd = next((entry["name"] for entry in coco["categories"] if not is_text(entry["name"])), None)
    if odd is not None:
        raise MrtError(
            f"{file}: an entry of 'categories' has name {ascii(odd)[:80]}, which holds half a character",
            "Give it another name, or make the set again.",
        )
    return coco
