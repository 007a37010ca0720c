"""A contact sheet of a prepared set: what `mrt prepare-data synthetic --preview` shows."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw

from mrt.data.card import is_ignored, read_card, read_json
from mrt.errors import MrtError

COLOURS = ((213, 94, 0), (230, 159, 0), (86, 180, 233), (204, 121, 167), (0, 158, 115), (255, 255, 255), (0, 114, 178), (240, 228, 66))
IGNORED = (128, 128, 128)


def contact_sheet(
    folder: Path | str, n: int = 16, *, split: str | None = None, columns: int = 4, width: int = 400, boxes: bool = True
) -> Image.Image:
    """The first ``n`` images of a split (default: the first one) side by side, ``width`` pixels each.

    Boxes are drawn in one colour per class (Okabe and Ito's, safe for colour blindness) with the class name; ignored ones in grey.
    """
    if n < 1:
        raise MrtError(f"n is {n}, expected at least 1 image")
    card = read_card(folder)
    split = split or next(iter(card.splits))
    coco, root = read_json(card.annotations_path(split)), card.images_root(split)
    images = coco["images"][:n]
    if not images:
        raise MrtError(f"{card.annotations_path(split)}: no images to show")
    columns = min(columns, len(images))
    height = round(width * images[0]["height"] / images[0]["width"])
    sheet = Image.new("RGB", (columns * width, -(-len(images) // columns) * height), (20, 20, 20))
    for k, entry in enumerate(images):
        with Image.open(root / entry["file_name"]) as picture:
            tile = picture.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
        if boxes:
            _draw(tile, [a for a in coco["annotations"] if a["image_id"] == entry["id"]], card.classes, width / entry["width"])
        sheet.paste(tile, (k % columns * width, k // columns * height))
    return sheet


def _draw(tile: Image.Image, annotations: list[dict], classes: tuple[str, ...], scale: float) -> None:
    draw = ImageDraw.Draw(tile)
    for a in sorted(annotations, key=lambda a: -is_ignored(a)):
        x, y, w, h = (v * scale for v in a["bbox"])
        index = a["category_id"] - 1
        colour = IGNORED if is_ignored(a) else COLOURS[index % len(COLOURS)]
        draw.rectangle((x, y, max(x + 1, x + w - 1), max(y + 1, y + h - 1)), outline=colour)
        if not is_ignored(a) and h > 14:
            text = classes[index]
            left, top, right, bottom = draw.textbbox((x + 2, max(0, y - 11)), text)
            draw.rectangle((left - 1, top - 1, right + 1, bottom + 1), fill=colour)
            draw.text((x + 2, max(0, y - 11)), text, fill=(0, 0, 0))
