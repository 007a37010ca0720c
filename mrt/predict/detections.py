"""Detections in one image."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from PIL import Image

from mrt.errors import MrtError
from mrt.evaluate.draw import draw_detections


@dataclass(frozen=True, eq=False)
class Detections:
    """The objects found in one image, best first.

    Attributes:
        boxes: (n, 4) float32, x0, y0, x1, y1 in pixels of the upright image, inside it.
        scores: (n,) float32 in [0, 1], decreasing.
        labels: (n,) int64, indices into ``classes``.
        classes: the detector's class names.
        image_size: (height, width) in pixels of the upright image.
        name: of the image, as it was given; "" if it had none.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    image_size: tuple[int, int]
    name: str = ""
    _image: Callable[[], Image.Image] | None = field(default=None, repr=False)

    @property
    def names(self) -> list[str]:
        """The class name of each object."""
        return [self.classes[label] for label in self.labels]

    def __len__(self) -> int:
        return len(self.scores)

    def __iter__(self) -> Iterator[tuple[list[float], float, str]]:
        """(box, score, class name) of each object, as plain values."""
        return zip(self.boxes.tolist(), self.scores.tolist(), self.names, strict=True)

    def __getitem__(self, chosen: Any) -> Detections:
        """Some of the objects, by any index of numpy arrays: ``found[found.scores > 0.5]``, ``found[:3]``."""
        pick = [chosen] if isinstance(chosen, (int, np.integer)) else chosen
        return replace(self, boxes=self.boxes[pick], scores=self.scores[pick], labels=self.labels[pick])

    def to_coco(self, image_id: int = 1) -> list[dict[str, Any]]:
        """COCO results: a dict per object with image_id, category_id (label + 1), bbox and score.

        ``bbox`` is [x, y, width, height] in pixels.
        """
        rows = zip(self.boxes.tolist(), self.scores, self.labels, strict=True)
        return [
            {
                "image_id": image_id,
                "category_id": int(label) + 1,
                "bbox": [round(number, 2) for number in (x0, y0, x1 - x0, y1 - y0)],
                "score": round(float(score), 5),
            }
            for (x0, y0, x1, y1), score, label in rows
        ]

    def to_supervision(self) -> Any:
        """The detections as ``supervision.Detections``, with the class names in ``data["class_name"]``.

        Raises:
            MrtError: the package supervision is not installed.
        """
        try:
            import supervision
        except ImportError:
            raise MrtError("the package supervision is not installed", "pip install supervision") from None
        names = {"class_name": np.array(self.names, dtype=str)}
        arrays = {"xyxy": self.boxes, "confidence": self.scores, "class_id": self.labels}
        return supervision.Detections(**arrays, data=names)

    def draw(self, image: Image.Image | None = None) -> Image.Image:
        """A picture with a box, a class and a score in per cent for each object.

        Images less than 640 pixels wide are enlarged.

        Args:
            image: to draw on; default: the image that the objects were found in.

        Raises:
            MrtError: the image was not given and is no longer available.
        """
        if image is None:
            if self._image is None:
                raise MrtError("these detections do not know their image", "give it: detections.draw(image)")
            image = self._image()
        return draw_detections(image, self.as_dict(), self.classes, threshold=0.0)

    def as_dict(self) -> dict[str, np.ndarray]:
        """The arrays by name: boxes, scores, labels."""
        return {"boxes": self.boxes, "scores": self.scores, "labels": self.labels}

    def __repr__(self) -> str:
        return f"Detections({self.name or 'image'}: {summary(self)})"


def summary(found: Detections) -> str:
    """ "3 car, 1 person": the numbers of objects by class, most frequent first; "nothing"."""
    counts = np.bincount(found.labels, minlength=len(found.classes))
    order = sorted(np.flatnonzero(counts), key=lambda label: (-counts[label], label))
    return ", ".join(f"{counts[label]} {found.classes[label]}" for label in order) or "nothing"
