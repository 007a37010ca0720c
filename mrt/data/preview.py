"""A contact sheet of a prepared set: what `mrt prepare-data NAME --preview` draws. Needs no torch."""

from __future__ import annotations

import math
import os
import warnings
from pathlib import Path

from PIL import Image, ImageDraw, ImageOps

from mrt.data.archives import open_file
from mrt.data.card import DatasetCard, is_ignored, prepared_annotations, read_card, read_json
from mrt.data.headers import BROKEN, open_picture
from mrt.data.palette import COLOURS
from mrt.errors import MrtError

_MOST = 1 << 20  # pixels of a side; no kind of image has more
IGNORED, GROUND = (128, 128, 128), (20, 20, 20)


def contact_sheet(
    folder: Path | str,
    n: int = 16,
    *,
    split: str | None = None,
    columns: int = 4,
    width: int = 400,
    boxes: bool = True,
) -> Image.Image:
    """``n`` images of a split side by side, spread evenly over it, each in a tile of ``width`` pixels.

    Boxes are drawn in one colour per class with the class name; crowds and ignored objects in grey.

    Args:
        split: default: the first one.

    Raises:
        MrtError: no such split, no images in it, or an image that cannot be read.
    """
    if n < 1:
        raise MrtError(f"n is {n}, expected at least 1 image")
    card = read_card(folder)
    if not card.splits:
        raise MrtError(f"{card.folder}: has no splits to show", "Make the set again with `mrt prepare-data`.")
    split = split or next(iter(card.splits))
    coco, root = read_json(card.annotations_path(split)), card.images_root(split)
    with prepared_annotations(card.annotations_path(split)):
        return _sheet(coco, root, card, n, columns, width, boxes)


def _sheet(
    coco: dict, root: Path, card: DatasetCard, n: int, columns: int, width: int, boxes: bool
) -> Image.Image:
    """The sheet, from the content of an annotation file, which may hold anything."""
    every = coco["images"]
    if not every:
        raise MrtError(f"{root}: no images to show")
    images = [every[k * len(every) // n] for k in range(n)] if len(every) > n else every
    annotations: dict[int, list[dict]] = {entry["id"]: [] for entry in images}
    for annotation in coco["annotations"]:
        if annotation["image_id"] in annotations:
            annotations[annotation["image_id"]].append(annotation)
    for entry in images:
        for side in ("width", "height"):
            if type(entry[side]) is not int or not 0 < entry[side] < _MOST:
                raise ValueError(f"{side} of {str(entry['file_name'])[:60]!r} is {str(entry[side])[:40]}")
    columns = min(columns, len(images))
    shapes = sorted(entry["height"] / entry["width"] for entry in images)
    height = round(width * min(shapes[len(shapes) // 2], 1.5))
    sheet = Image.new("RGB", (columns * width, -(-len(images) // columns) * height), GROUND)
    for k, entry in enumerate(images):
        tile = _tile(Path(os.path.normpath(root / entry["file_name"])), entry, (width, height))
        if boxes:
            _draw(tile, annotations[entry["id"]], card.classes, tile.width / entry["width"])
        left = k % columns * width + (width - tile.width) // 2
        top = k // columns * height + (height - tile.height) // 2
        sheet.paste(tile, (left, top))
    return sheet


def _tile(path: Path, entry: dict, room: tuple[int, int]) -> Image.Image:
    """The image, as large as the room allows, upright as its annotations are."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with open_file(path) as file, open_picture(file, entry["width"] * entry["height"]) as picture:
                if picture.size != (entry["width"], entry["height"]):
                    picture = ImageOps.exif_transpose(picture)
                elif picture.mode.startswith("I"):
                    picture = picture.point(lambda value: value / 256).convert("L")
                scale = min(room[0] / picture.width, room[1] / picture.height)
                size = max(round(picture.width * scale), 1), max(round(picture.height * scale), 1)
                return picture.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    except BROKEN as error:
        raise MrtError(
            f"{path}: cannot be read as an image ({error})", "Look for more with --check."
        ) from None


def _draw(tile: Image.Image, annotations: list[dict], classes: tuple[str, ...], scale: float) -> None:
    draw = ImageDraw.Draw(tile)
    for a in sorted(annotations, key=lambda a: -is_ignored(a)):
        x, y, w, h = (v * scale for v in a["bbox"])
        if not all(map(math.isfinite, (x, y, w, h))):
            raise ValueError(f"bbox is {str(a['bbox'])[:60]}")
        # a line far beyond the tile takes long to draw
        x, y, right, bottom = max(x, -9), max(y, -9), min(x + w, tile.width + 9), min(y + h, tile.height + 9)
        w, h = right - x, bottom - y
        if w <= 0 or h <= 0:
            continue
        index = a["category_id"] - 1
        colour = IGNORED if is_ignored(a) else COLOURS[index % len(COLOURS)]
        draw.rectangle((x, y, max(x + 1, x + w - 1), max(y + 1, y + h - 1)), outline=colour)
        if not is_ignored(a) and h > 14:
            text = classes[index]
            left, top, right, bottom = draw.textbbox((x + 2, max(0, y - 11)), text)
            draw.rectangle((left - 1, top - 1, right + 1, bottom + 1), fill=colour)
            draw.text((x + 2, max(0, y - 11)), text, fill=(0, 0, 0))
