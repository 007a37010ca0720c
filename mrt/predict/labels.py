"""Label sets for annotation tools, to correct predictions and then train on them.

Each is a folder that includes its images. ``mrt prepare-data custom --raw FOLDER --name NAME`` reads COCO,
YOLO and Pascal VOC sets before and after correction, and what Label Studio exports of its tasks.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote
from xml.etree import ElementTree

from PIL import Image

from mrt.data.archives import open_file
from mrt.data.card import coco_categories
from mrt.data.headers import IMAGE_SUFFIXES, ORIENTATION
from mrt.files import replacing, write_text
from mrt.predict.detections import Detections
from mrt.predict.inputs import Frame
from mrt.predict.outputs import UniqueNames, Writer, flat_name, frame_name, save_picture


class LabelSet(Writer):
    """Copies images into one folder, under names that are unique even without their suffixes.

    Files are copied unchanged. Images without a file (frames of a video) and photos with an EXIF rotation,
    which annotation tools treat differently, are written upright as JPEG.
    """

    def __init__(self, folder: Path, images: Path, classes: Sequence[str]) -> None:
        self.folder, self.images, self.classes = folder, images, tuple(classes)
        self._names = UniqueNames()

    def copy(self, frame: Frame) -> str:
        """Write a frame's image below ``images``; returns its file name."""
        flat = flat_name(frame_name(frame))
        if frame.path is None or frame.path.suffix.lower() not in IMAGE_SUFFIXES or _turned(frame.path):
            name = self._names(PurePosixPath(flat).with_suffix(".jpg").name)
            save_picture(frame.read(), self.images / name)
            return name
        name = self._names(flat)
        with open_file(frame.path) as content, replacing(self.images / name) as file:
            file.write(content.read())
        return name


class CocoLabels(LabelSet):
    """``coco/``: images/ and annotations/instances_default.json. Annotations keep their "score"."""

    def __init__(self, folder: Path, classes: Sequence[str]) -> None:
        super().__init__(folder / "coco", folder / "coco" / "images", classes)
        self._images: list[dict[str, Any]] = []
        self._annotations: list[dict[str, Any]] = []

    def add(self, frame: Frame, found: Detections) -> None:
        number = len(self._images) + 1
        height, width = found.image_size
        self._images.append({"id": number, "file_name": self.copy(frame), "height": height, "width": width})
        for item in found.to_coco(number):
            area = round(item["bbox"][2] * item["bbox"][3], 2)
            self._annotations.append({"id": len(self._annotations) + 1, **item, "area": area, "iscrowd": 0})

    def finish(self) -> list[Path]:
        content = {
            "images": self._images,
            "annotations": self._annotations,
            "categories": coco_categories(self.classes),
        }
        file = self.folder / "annotations" / "instances_default.json"
        write_text(file, json.dumps(content, ensure_ascii=False) + "\n")
        return [self.folder]


class YoloLabels(LabelSet):
    """``yolo/``: data.yaml, images/train/ and labels/train/.

    Labels are a text file per image with lines "label cx cy w h", as shares of the image.
    """

    def __init__(self, folder: Path, classes: Sequence[str]) -> None:
        super().__init__(folder / "yolo", folder / "yolo" / "images" / "train", classes)

    def add(self, frame: Frame, found: Detections) -> None:
        name = self.copy(frame)
        height, width = found.image_size
        lines = []
        for (x0, y0, x1, y1), label in zip(found.boxes.tolist(), found.labels.tolist(), strict=True):
            numbers = ((x0 + x1) / 2 / width, (y0 + y1) / 2 / height, (x1 - x0) / width, (y1 - y0) / height)
            lines.append(f"{label} {' '.join(f'{number:.6f}' for number in numbers)}\n")
        write_text(self.folder / "labels" / "train" / f"{PurePosixPath(name).stem}.txt", "".join(lines))

    def finish(self) -> list[Path]:
        quoted = [json.dumps(name, ensure_ascii=False) for name in self.classes]
        names = "".join(f"  {label}: {name}\n" for label, name in enumerate(quoted))
        write_text(self.folder / "data.yaml", f"path: .\ntrain: images/train\nnames:\n{names}")
        return [self.folder]


class VocLabels(LabelSet):
    """``voc/``: JPEGImages/, Annotations/ with an XML file per image, and ImageSets/Main/train.txt.

    Boxes count pixels from 1.
    """

    def __init__(self, folder: Path, classes: Sequence[str]) -> None:
        super().__init__(folder / "voc", folder / "voc" / "JPEGImages", classes)
        self._stems: list[str] = []

    def add(self, frame: Frame, found: Detections) -> None:
        name = self.copy(frame)
        stem = PurePosixPath(name).stem
        self._stems.append(stem)
        height, width = found.image_size
        root = ElementTree.Element("annotation")
        _elements(root, {"folder": "JPEGImages", "filename": name})
        _elements(ElementTree.SubElement(root, "size"), {"width": width, "height": height, "depth": 3})
        for (x0, y0, x1, y1), score, label in found:
            item = ElementTree.SubElement(root, "object")
            _elements(item, {"name": label, "pose": "Unspecified", "truncated": 0, "difficult": 0})
            _elements(item, {"score": f"{score:.5f}"})
            box = {"xmin": x0 + 1, "ymin": y0 + 1, "xmax": x1, "ymax": y1}
            texts = {key: f"{value:.2f}" for key, value in box.items()}
            _elements(ElementTree.SubElement(item, "bndbox"), texts)
        ElementTree.indent(root)
        text = ElementTree.tostring(root, encoding="unicode") + "\n"
        write_text(self.folder / "Annotations" / f"{stem}.xml", text)

    def finish(self) -> list[Path]:
        lines = "".join(f"{stem}\n" for stem in self._stems)
        write_text(self.folder / "ImageSets" / "Main" / "train.txt", lines)
        return [self.folder]


class StudioTasks(LabelSet):
    """``label-studio/``: images/, tasks.json, and labelling.xml, the classes as Label Studio's interface.

    Boxes are predictions, in percent of the image, which an annotator takes over and corrects. Images are
    named as Label Studio's local files, relative to this folder.
    """

    def __init__(self, folder: Path, classes: Sequence[str]) -> None:
        super().__init__(folder / "label-studio", folder / "label-studio" / "images", classes)
        self._tasks: list[dict[str, Any]] = []

    def add(self, frame: Frame, found: Detections) -> None:
        number = len(self._tasks) + 1
        height, width = found.image_size
        size = {"original_width": width, "original_height": height, "image_rotation": 0}
        regions = []
        for count, ((x0, y0, x1, y1), score, label) in enumerate(found, start=1):
            percent = {
                "x": x0 / width,
                "y": y0 / height,
                "width": (x1 - x0) / width,
                "height": (y1 - y0) / height,
            }
            value = {key: round(100 * share, 6) for key, share in percent.items()}
            regions.append(
                {
                    **{"id": f"{number}-{count}", "type": "rectanglelabels", "from_name": "label"},
                    **{"to_name": "image", "score": round(score, 5), **size},
                    "value": {**value, "rotation": 0, "rectanglelabels": [label]},
                }
            )
        image = f"/data/local-files/?d=images/{quote(self.copy(frame))}"
        prediction = {"model_version": "mrt", "result": regions}
        self._tasks.append({"id": number, "data": {"image": image}, "predictions": [prediction]})

    def finish(self) -> list[Path]:
        view = ElementTree.Element("View")
        ElementTree.SubElement(view, "Image", {"name": "image", "value": "$image", "zoom": "true"})
        labels = ElementTree.SubElement(view, "RectangleLabels", {"name": "label", "toName": "image"})
        for name in self.classes:
            ElementTree.SubElement(labels, "Label", {"value": name})
        ElementTree.indent(view)
        write_text(self.folder / "labelling.xml", ElementTree.tostring(view, encoding="unicode") + "\n")
        write_text(self.folder / "tasks.json", json.dumps(self._tasks, ensure_ascii=False) + "\n")
        return [self.folder]


def _elements(parent: ElementTree.Element, values: dict[str, Any]) -> None:
    for key, value in values.items():
        ElementTree.SubElement(parent, key).text = str(value)


def _turned(path: Path) -> bool:
    with open_file(path) as file, Image.open(file) as picture:
        return picture.getexif().get(ORIENTATION, 1) != 1
