"""Small raw trees of Cityscapes in the owners' exact layout, and the boxes expected from them."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def write_array(path: Path, pixels: np.ndarray) -> Path:
    """A PNG (or what the suffix says) of uint8 colours or uint16 greys."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def write_json(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def zip_tree(folder: Path, archive: Path, below: Iterable[str] = ("",)) -> Path:
    """All files of the folders ``below`` (relative to ``folder``) in a zip archive, named by their paths.

    The paths are relative to ``folder``.
    """
    with zipfile.ZipFile(archive, "w") as file:
        for part in below:
            for path in sorted((folder / part).rglob("*")):
                if path.is_file():
                    file.write(path, path.relative_to(folder).as_posix())
    return archive


def rectangle(x0: float, y0: float, x1: float, y1: float) -> list[list[float]]:
    """A polygon whose painted pixels are columns x0..x1 and rows y0..y1, the last ones included."""
    return [[x0, y0], [x1, y0], [x1, y1], [x0, y1]]


def cityscapes_objects() -> list[dict[str, Any]]:
    """Objects of an image of 64 x 32.

    Overlaps, a thing under a pole, groups, deleted, hidden, outside and unknown objects.
    """
    objects = [
        ("road", rectangle(0, 0, 63, 31)),
        ("skygroup", rectangle(0, 0, 63, 2)),
        ("car", rectangle(5, 5, 20, 15)),
        ("license plate", rectangle(6, 6, 8, 8)),
        ("person", rectangle(16, 12, 18, 14)),  # the next car hides it
        ("car", rectangle(15, 10, 30, 20)),
        ("pole", rectangle(28, 8, 32, 22)),
        ("cargroup", rectangle(40, 5, 50, 9)),
        ("cargroup", rectangle(55, 5, 58, 9)),
        ("person", rectangle(-6, 20, 3, 35)),
        ("rider", rectangle(70, 5, 80, 9)),  # outside
        ("spaceship", rectangle(40, 20, 50, 25)),
        ("trailer", rectangle(34, 20, 38, 24)),
        ("polegroup", rectangle(60, 4, 62, 30)),
    ]
    deleted = {"label": "bicycle", "polygon": rectangle(0, 0, 63, 31), "deleted": 1}
    return [{"label": label, "polygon": polygon} for label, polygon in objects] + [deleted]


def cityscapes_ids() -> np.ndarray:
    """The instance image of :func:`cityscapes_objects`, painted by hand."""
    ids = np.full((32, 64), 7, np.uint16)
    ids[0:3] = 23
    ids[5:16, 5:21] = 26000
    ids[10:21, 15:31] = 26001
    ids[8:23, 28:33] = 17
    ids[5:10, 40:51] = 26
    ids[5:10, 55:59] = 26
    ids[20:32, 0:4] = 24001
    ids[20:25, 34:39] = 30000
    ids[4:31, 60:63] = 18
    return ids


# of the visible pixels: (class, box, pixels, ignored)
CITYSCAPES_BOXES = [
    ("car", (40, 5, 19, 5), 75, True),
    ("person", (0, 20, 4, 12), 48, False),
    ("car", (5, 5, 16, 11), 140, False),
    ("car", (15, 10, 13, 11), 143, False),
]


def cityscapes_frame(
    root: Path,
    split: str,
    city: str,
    name: str,
    *,
    instance_ids: bool = False,
    polygons: bool = True,
    image: bool = True,
) -> None:
    """One frame in Cityscapes' layout below ``root``: leftImg8bit and gtFine."""
    if image:
        grey = np.full((32, 64, 3), 90, np.uint8)
        write_array(root / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png", grey)
    labels = root / "gtFine" / split / city / f"{name}_gtFine"
    if instance_ids:
        write_array(labels.with_name(f"{labels.name}_instanceIds.png"), cityscapes_ids())
    if polygons:
        content = {"imgHeight": 32, "imgWidth": 64, "objects": cityscapes_objects()}
        write_json(labels.with_name(f"{labels.name}_polygons.json"), content)
