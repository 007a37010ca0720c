"""Pictures of detections that can be read at any image size and without telling red from green."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mrt.data.palette import COLOURS
from mrt.evaluate.coco import ImageDetections

MAX_SIDE = 8192  # pixels, to which a picture is enlarged at most
MIN_WIDTH = 640  # narrower images are enlarged by a whole factor before boxes and text go on
BACKGROUND, INK = (255, 255, 255), (20, 20, 20)


def draw_detections(
    image: Image.Image,
    detections: ImageDetections | Mapping[str, Any],
    classes: Sequence[str],
    *,
    threshold: float = 0.3,
    scale: int | None = None,
    text_size: int | None = None,
) -> Image.Image:
    """The image with a box and a label for each detection.

    Args:
        image: any size and mode; left as it is.
        detections: ``boxes`` (n, 4) xyxy pixels of the image, ``labels`` (n,) from 0, and ``scores`` (n,)
            unless it is ground truth; arrays, tensors or lists.
        classes: names by label.
        threshold: detections scored lower are left out.
        scale: enlarge so many times first; default: until the image is at least 640 pixels wide.
        text_size: height of the labels in pixels of the result; default: for a picture that is seen at its
            full width.
    """
    found = detections if isinstance(detections, Mapping) else vars(detections)
    boxes = np.asarray(found["boxes"], dtype=float).reshape(-1, 4)
    labels = np.asarray(found["labels"], dtype=int)
    scores = np.asarray(found["scores"], dtype=float) if found.get("scores") is not None else None
    canvas, scale = enlarge(image, scale)
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(size=text_size or max(canvas.width // 55, 11))
    line = max(canvas.width // 320, 1)
    shown = [i for i in range(len(boxes)) if scores is None or scores[i] >= threshold]
    for i in sorted(shown, key=lambda i: -_area(boxes[i])):  # small boxes on top of large ones
        x0, y0, x1, y1 = (boxes[i] * scale).tolist()
        x0, x1, y0, y1 = min(x0, x1), max(x0, x1), min(y0, y1), max(y0, y1)
        # A dark rim makes the colour visible on any background.
        draw.rectangle((x0 - 1, y0 - 1, x1 + 1, y1 + 1), outline=INK, width=line + 2)
        draw.rectangle((x0, y0, x1, y1), outline=COLOURS[labels[i] % len(COLOURS)], width=line)
    taken: list[tuple[float, float, float, float]] = []
    order = shown if scores is None else sorted(shown, key=lambda i: -scores[i])
    for i in order:
        text = classes[labels[i]] if scores is None else f"{classes[labels[i]]} {100 * scores[i]:.0f}"
        colour = COLOURS[labels[i] % len(COLOURS)]
        write_label(draw, text, boxes[i] * scale, colour, font, canvas.size, taken)
    return canvas


def enlarge(image: Image.Image, scale: int | None) -> tuple[Image.Image, int]:
    """A copy in RGB, so many times as large, and that factor; None: at least 640 pixels wide, no side longer
    than :data:`MAX_SIDE`.
    """
    scale = scale or max(min(-(-MIN_WIDTH // image.width), MAX_SIDE // max(image.size)), 1)
    size = image.width * scale, image.height * scale
    return image.convert("RGB").resize(size, Image.Resampling.BICUBIC), scale


def _area(box: np.ndarray) -> float:
    return float((box[2] - box[0]) * (box[3] - box[1]))


def write_label(
    draw: Any, text: str, box: np.ndarray, colour: tuple, font: Any, size: tuple[int, int], taken: list
) -> None:
    """Put the label above its box, below it, or inside at the top or bottom: where it hides others least."""
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    width, height = right - left + 4, bottom - top + 4
    x = min(max(box[0], 0), size[0] - width)
    choices = []
    for y in (box[1] - height - 1, box[3] + 2, box[1] + 2, box[3] - height - 1):
        y = min(max(y, 0), size[1] - height)
        rectangle = (x, y, x + width, y + height)
        choices.append((sum(_overlap(rectangle, other) for other in taken), rectangle))
    _, rectangle = min(choices, key=lambda choice: choice[0])
    taken.append(rectangle)
    luminance = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]
    draw.rectangle(rectangle, fill=colour)
    ink = INK if luminance > 110 else BACKGROUND
    draw.text((rectangle[0] + 2 - left, rectangle[1] + 2 - top), text, font=font, fill=ink)


def _overlap(a: tuple, b: tuple) -> float:
    return max(min(a[2], b[2]) - max(a[0], b[0]), 0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0)


def side_by_side(
    rows: Sequence[Sequence[Image.Image]],
    titles: Sequence[str] = (),
    *,
    gap: int = 8,
    width: int | None = None,
) -> Image.Image:
    """A grid of images with a title over each column.

    Args:
        rows: equally long rows of images; each is scaled to the width of its column.
        titles: one per column, or none.
        width: of a column in pixels; default: the widest image's.
    """
    width = width or max(image.width for row in rows for image in row)

    def scaled(image: Image.Image) -> Image.Image:
        return image.resize((width, round(image.height * width / image.width)), Image.Resampling.LANCZOS)

    cells = [[scaled(image) for image in row] for row in rows]
    font = ImageFont.load_default(size=max(width // 28, 14))
    head = 2 * gap + max(width // 28, 14) if titles else gap
    heights = [max(cell.height for cell in row) for row in cells]
    columns = max(len(row) for row in cells)
    size = columns * (width + gap) + gap, head + sum(height + gap for height in heights)
    sheet = Image.new("RGB", size, BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(titles):
        middle = gap + column * (width + gap) + width / 2, head / 2
        draw.text(middle, title, font=font, fill=INK, anchor="mm")
    y = head
    for row, height in zip(cells, heights, strict=True):
        for column, cell in enumerate(row):
            sheet.paste(cell, (gap + column * (width + gap), y))
        y += height + gap
    return sheet
