"""Pictures that tell hits, misses, duplicates and false boxes apart, by line and by word.

A class has one colour in every picture of mrt; what a box is worth is in its line: solid a hit, dashed a
false box, dotted a duplicate, corners alone an object that was missed. So nothing depends on telling red
from green.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mrt.data.dataset import DetectionDataset, ImageRecord
from mrt.data.images import read_image
from mrt.evaluate.coco import ImageDetections
from mrt.evaluate.draw import (
    BACKGROUND,
    COLOURS,
    INK,
    draw_detections,
    enlarge,
    side_by_side,
    write_label,
)
from mrt.evaluate.unlabelled.pairs import box_iou

HIT, FALSE, DUPLICATE, IGNORED = "hit", "false", "duplicate", "ignored"
OVERLAP = 0.5  # with an object of its class, from which a detection is a hit
SAME = 0.7  # overlap of a duplicate with the better box, from which it is counted but not drawn
GAP, DOT = 7, 3  # of a line, as multiples of its width: dashes and their gaps, dots


@dataclass(frozen=True)
class Judgement:
    """What the detections of an image are worth.

    Attributes:
        scores, labels, boxes: of those with at least the threshold, best first; boxes (n, 4) xyxy pixels.
        kinds: of each, "hit", "false", "duplicate" or "ignored" (it overlaps an ignored object).
        hidden: (n,) bool, duplicates that nearly cover a better box.
        missed: (m,) indices of the record's objects that nothing hit.
    """

    scores: np.ndarray
    labels: np.ndarray
    boxes: np.ndarray
    kinds: list[str]
    hidden: np.ndarray
    missed: np.ndarray

    def count(self, kind: str) -> int:
        return self.kinds.count(kind)

    def __str__(self) -> str:
        """In words, as they stand below a picture."""
        words = f"hits {self.count(HIT)}, missed {len(self.missed)}, false {self.count(FALSE)}"
        twice, unseen = self.count(DUPLICATE), int(self.hidden.sum())
        words += f", duplicates {twice}" if twice else ""
        return words + (f" ({unseen} of them not drawn)" if unseen else "")


def judge(found: ImageDetections, record: ImageRecord, threshold: float) -> Judgement:
    """Judge the detections of an image as average precision at 0.5 does: each object is found once, by the
    best detection of its class that overlaps it by at least half.

    Args:
        found: of the image. record: its objects, ignored ones too. threshold: least score.
    """
    scores = np.asarray(found.scores, dtype=float)
    order = np.argsort(-scores, kind="stable")
    order = order[scores[order] >= threshold]
    labels = np.asarray(found.labels, dtype=int)[order]
    boxes = np.asarray(found.boxes, dtype=float).reshape(-1, 4)[order]
    objects, theirs = record.boxes.numpy().astype(float), record.labels.numpy()
    overlap = box_iou(boxes, objects) * (labels[:, None] == theirs[None])
    spared = _covered(boxes, record.ignore_boxes.numpy().astype(float))
    spared *= labels[:, None] == record.ignore_labels.numpy()[None]
    taken = np.zeros(len(objects), dtype=bool)
    kinds = []
    for place in range(len(order)):
        row = np.where(taken, 0.0, overlap[place])
        if row.size and row.max() >= OVERLAP:
            taken[row.argmax()] = True
            kinds.append(HIT)
        elif spared[place].size and spared[place].max() >= OVERLAP:
            kinds.append(IGNORED)
        else:
            twice = overlap[place].size and overlap[place].max() >= OVERLAP
            kinds.append(DUPLICATE if twice else FALSE)
    cover = np.triu(box_iou(boxes, boxes), 1).max(0) if len(boxes) else np.zeros(0)
    hidden = np.array([kind == DUPLICATE for kind in kinds], dtype=bool) & (cover > SAME)
    return Judgement(scores[order], labels, boxes, kinds, hidden, np.flatnonzero(~taken))


def draw_judged(
    image: Image.Image,
    judgement: Judgement,
    record: ImageRecord,
    classes: Sequence[str],
    *,
    scale: int | None = None,
) -> Image.Image:
    """The image with its detections and the objects that were missed, and below it how many of which.

    Args:
        image: any size and mode; left as it is.
        scale: enlarge so many times first; default: until the image is at least 640 pixels wide.
    """
    canvas, scale = enlarge(image, scale)
    draw, width = ImageDraw.Draw(canvas), max(canvas.width // 320, 1)
    font = ImageFont.load_default(size=max(canvas.width // 55, 11))
    for place in judgement.missed.tolist():
        box = _inside(record.boxes[place].numpy() * scale, canvas.size)
        _corners(draw, box, COLOURS[int(record.labels[place]) % len(COLOURS)], width)
    drawn = [place for place in range(len(judgement.kinds)) if not judgement.hidden[place]]
    for place in sorted(drawn, key=lambda place: -_area(judgement.boxes[place])):
        box = _inside(judgement.boxes[place] * scale, canvas.size)
        colour = COLOURS[judgement.labels[place] % len(COLOURS)]
        _outline(draw, box, colour, width, judgement.kinds[place])
    taken: list[tuple[float, float, float, float]] = []
    for place in drawn:
        if judgement.kinds[place] in (HIT, FALSE):
            label = judgement.labels[place]
            text = f"{classes[label]} {100 * judgement.scores[place]:.0f}"
            text += " false" if judgement.kinds[place] == FALSE else ""
            box, colour = judgement.boxes[place] * scale, COLOURS[label % len(COLOURS)]
            write_label(draw, text, box, colour, font, canvas.size, taken)
    return _with_words(canvas, str(judgement), font)


def legend(width: int, threshold: float) -> Image.Image:
    """What the lines mean, as a strip of that width."""
    font = ImageFont.load_default(size=max(width // 110, 12))
    size, line = font.size, 2
    strip = Image.new("RGB", (width, 2 * size + 8), BACKGROUND)
    draw, x = ImageDraw.Draw(strip), 8
    entries: list[tuple[str, Any]] = [
        (f"hit (score from {threshold:g}, overlap from {OVERLAP:g})", HIT),
        ("false box", FALSE),
        ("duplicate", DUPLICATE),
        ("missed object", None),
        ("ignored in scoring", IGNORED),
    ]
    for words, kind in entries:
        box = (x, 4, x + 3 * size, 4 + 2 * size - 2)
        if kind is None:
            _corners(draw, box, COLOURS[1], line)
        else:
            _outline(draw, box, COLOURS[1], line, kind)
        draw.text((x + 3 * size + 6, 4 + size - 1), words, font=font, fill=INK, anchor="lm")
        x += 3 * size + 6 + round(draw.textlength(words, font=font)) + 2 * size
    return strip


def _with_words(canvas: Image.Image, words: str, font: Any) -> Image.Image:
    """The picture with a line of words below it."""
    height = font.size + 8
    sheet = Image.new("RGB", (canvas.width, canvas.height + height), BACKGROUND)
    sheet.paste(canvas, (0, 0))
    ImageDraw.Draw(sheet).text((4, canvas.height + height / 2), words, font=font, fill=INK, anchor="lm")
    return sheet


def _outline(draw: Any, box: Sequence[float], colour: tuple, width: int, kind: str) -> None:
    """A box in its kind's line, with a dark rim that shows on any background."""
    x0, y0, x1, y1 = box
    if kind == HIT:
        draw.rectangle((x0 - 1, y0 - 1, x1 + 1, y1 + 1), outline=INK, width=width + 2)
        draw.rectangle((x0, y0, x1, y1), outline=colour, width=width)
        return
    if kind == IGNORED:
        draw.rectangle((x0, y0, x1, y1), outline=colour, width=1)
        return
    on = DOT * width if kind == DUPLICATE else GAP * width
    sides = [((x0, y0), (x1, y0)), ((x1, y0), (x1, y1)), ((x1, y1), (x0, y1)), ((x0, y1), (x0, y0))]
    for (ax, ay), (bx, by) in sides:
        length = max(abs(bx - ax), abs(by - ay), 1e-9)
        for start in np.arange(0, length, 2 * on):
            a, b = start / length, min(start + on, length) / length
            line = (ax + a * (bx - ax), ay + a * (by - ay), ax + b * (bx - ax), ay + b * (by - ay))
            draw.line(line, fill=INK, width=width + 2)
            draw.line(line, fill=colour, width=width)


def _corners(draw: Any, box: Sequence[float], colour: tuple, width: int) -> None:
    """The four corners of a box."""
    x0, y0, x1, y1 = box
    dx, dy = max((x1 - x0) / 4, 3), max((y1 - y0) / 4, 3)
    for x, way in ((x0, 1), (x1, -1)):
        for y, down in ((y0, 1), (y1, -1)):
            for fill, thick in ((INK, width + 2), (colour, width)):
                draw.line((x, y, x + way * dx, y), fill=fill, width=thick)
                draw.line((x, y, x, y + down * dy), fill=fill, width=thick)


def _inside(box: np.ndarray, size: tuple[int, int]) -> tuple[float, float, float, float]:
    x0, y0, x1, y1 = box.tolist()
    x0, x1, y0, y1 = min(x0, x1), max(x0, x1), min(y0, y1), max(y0, y1)
    return max(x0, 1), max(y0, 1), min(x1, size[0] - 2), min(y1, size[1] - 2)


def _area(box: np.ndarray) -> float:
    return float((box[2] - box[0]) * (box[3] - box[1]))


def _covered(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(n, m) share of each first box that a second one covers, as COCO counts for ignored objects."""
    corner = np.maximum(first[:, None, :2], second[None, :, :2])
    common = (np.minimum(first[:, None, 2:], second[None, :, 2:]) - corner).clip(0).prod(2)
    areas = (first[:, 2:] - first[:, :2]).clip(0).prod(1)
    return common / np.maximum(areas[:, None], 1e-9)


def comparison(
    dataset: DetectionDataset,
    image_ids: Sequence[int],
    columns: Mapping[str, Sequence[ImageDetections]],
    *,
    threshold: float = 0.3,
    width: int | None = None,
) -> Image.Image:
    """The same images once per column of detections, judged where there is a ground truth, which then is the
    last column.

    Args:
        image_ids: one row each.
        columns: title -> detections, such as ``Metrics.detections`` of the detector before and after
            adaptation.
        threshold: detections scored lower are left out.
        width: of a column in pixels.
    """
    records = {record.image_id: record for record in dataset.records}
    by_image = {
        title: {found.image_id: found for found in detections} for title, detections in columns.items()
    }
    rows = []
    for image_id in image_ids:
        record = records[image_id]
        picture = Image.fromarray(read_image(record.path, record.size).permute(1, 2, 0).numpy())
        row = [
            draw_judged(picture, judge(found[image_id], record, threshold), record, dataset.classes)
            if dataset.labelled
            else draw_detections(picture, found[image_id], dataset.classes, threshold=threshold)
            for found in by_image.values()
        ]
        if dataset.labelled:
            truth = {"boxes": record.boxes.numpy(), "labels": record.labels.numpy()}
            row.append(draw_detections(picture, truth, dataset.classes))
        rows.append(row)
    titles = [*columns, "ground truth"] if dataset.labelled else list(columns)
    sheet = side_by_side(rows, titles, width=width)
    if not dataset.labelled:
        return sheet
    strip = legend(sheet.width, threshold)
    whole = Image.new("RGB", (sheet.width, sheet.height + strip.height), BACKGROUND)
    whole.paste(sheet, (0, 0))
    whole.paste(strip, (0, sheet.height))
    return whole
