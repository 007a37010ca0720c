"""The page of ``mrt assess``: which of two detectors to trust on these images, and why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from mrt.api import load
from mrt.engine.folder import provenance
from mrt.engine.load import describe, source_record
from mrt.evaluate.draw import draw_detections, side_by_side
from mrt.evaluate.unlabelled import SIGNALS
from mrt.evaluate.unlabelled.looks import SHOWN
from mrt.files import whole_folder, write_text
from mrt.parts.source_record import BOXES
from mrt.plain import quoted
from mrt.predict import job
from mrt.predict.detector import Options
from mrt.predict.inputs import Source
from mrt.predict.outputs import save_picture
from mrt.report.page import Cell, Code, Facts, Grid, Headline, Note, Section, Table, write_page
from mrt.selection.assess import AFTER, BEFORE, compare, disagreement, suggest, verdict
from mrt.selection.looking import Images, Measured

ESTIMATE = (
    "AP50 is not estimated: no study has yet shown that a signal here tells it with a known error "
    "(docs/results/selection)."
)


def write_assessment(
    before: Measured,
    after: Measured,
    images: Images,
    out: Path,
    *,
    pictures: int = 8,
    suggested: int = 0,
    label_format: str = "coco",
    seed: int = 0,
    device: str = "auto",
) -> Path:
    """Write ``assess.html``, ``assess.md``, ``assess.json``, and the images to label (``to-label/``, with the
    boxes of the detector after adaptation to correct).

    Args:
        pictures: images to show, those on which the two disagree most. suggested: images to label.
        label_format: "coco", "yolo", "voc" or "label-studio".
        seed: of the intervals.

    Returns:
        The page.
    """
    with whole_folder(out) as work:
        return out / _write(work, out, before, after, images, pictures, suggested, label_format, seed, device)


def _write(
    work: Path,
    out: Path,
    before: Measured,
    after: Measured,
    images: Images,
    pictures: int,
    suggested: int,
    label_format: str,
    seed: int,
    device: str,
) -> str:
    """All of it into the folder ``work``, which will be called ``out``; the page's name."""
    classes = describe(after.candidate.file).classes
    comparison = compare(before, after, classes, seed)
    expected = source_record(str(after.candidate.file)).get(BOXES) or {}
    lines = verdict(comparison, expected)
    apart = disagreement(before.looks.plain, after.looks.plain)
    most = [image for image in np.argsort(-apart, kind="stable")[:pictures].tolist() if apart[image] > 0]
    chosen = suggest(after, before, min(suggested, len(images))) if suggested else []
    record = {
        "before": str(before.candidate.file),
        "after": str(after.candidate.file),
        "images": {"from": images.origin, "number": len(images)},
        "verdict": lines,
        **comparison,
        "source_objects_per_image": expected,
        "disagree_most": [images.names[image] for image in most],
        "to_label": [images.names[image] for image in chosen],
        "environment": provenance(),
    }
    counted = comparison["objects_per_image"]
    finds = {side: sum(counted[side].values()) for side in (BEFORE, AFTER)}
    better = [row.get("better") for row in comparison["signals"].values()]
    headline = Headline(
        "Adapted against before",
        [
            ("signals better", str(better.count(AFTER))),
            ("signals worse", str(better.count(BEFORE))),
            ("objects an image", f"{finds[BEFORE]:.1f} → {finds[AFTER]:.1f}"),
        ],
        f"{len(images)} images of {images.origin}; no label was read.",
    )
    sections = [
        Section("answer", "Which of the two?", [*map(Note, lines), Note(ESTIMATE)]),
        _pictures(before, after, images, most, classes, work),
        _counts(counted, expected, classes),
        _signals(comparison["signals"], images),
        _to_label(after, images, chosen, classes, label_format, device, work, out),
        _facts(before, after, images),
    ]
    name = (after.candidate.run or after.candidate.file).name
    page, _ = write_page(work, f"Can {name} be trusted?", lines[0], [headline], sections, name="assess")
    write_text(work / "assess.json", json.dumps(record, indent=1) + "\n")
    return page.name


def _pictures(
    before: Measured, after: Measured, images: Images, most: list[int], classes: list[str], out: Path
) -> Section:
    section = Section("disagree", "Where they disagree most")
    grid = []
    for image in most:
        picture, row = images.frames[image].read(), []
        for side, measured in ((BEFORE, before), (AFTER, after)):
            found = measured.looks.plain.objects(image, SHOWN)
            size = np.array([picture.width, picture.height] * 2)
            drawn = {"boxes": found.boxes * size, "labels": found.labels, "scores": found.scores}
            alt = f"{images.names[image]}, {side} adaptation: {len(found.scores)} objects"
            row.append(Cell(draw_detections(picture, drawn, classes, threshold=SHOWN), alt))
        grid.append(row)
    if not grid:
        section.blocks.append(Note("They agree on every object of every image."))
        return section
    sheet = out / "figures" / "disagree.png"
    cells = [[cell.picture for cell in row] for row in grid]
    save_picture(side_by_side(cells, [BEFORE, AFTER], width=640), sheet)
    caption = (
        f"Images sorted by the scores of the objects that only one of the two finds; score at least {SHOWN}: "
        + ", ".join(images.names[image] for image in most)
    )
    alt = "The images on which the two detectors disagree most, with the objects of both"
    section.blocks.append(Grid("disagree", alt, caption, [BEFORE, AFTER], grid, sheet))
    return section


def _counts(counted: dict[str, Any], expected: dict[str, float], classes: list[str]) -> Section:
    rows = [
        [name, *(_number(counted[side][name]) for side in (BEFORE, AFTER)), _number(expected.get(name))]
        for name in classes
    ]
    caption = f"Objects per image with a score of at least {SHOWN}, and labelled ones on the source."
    return Section("counts", "What is found", [Table(caption, ["class", BEFORE, AFTER, "source"], rows)])


def _signals(signals: dict[str, Any], images: Images) -> Section:
    rows = [[name, SIGNALS[name].words, *_cells(row, SIGNALS[name].judges)] for name, row in signals.items()]
    strong = [place for place, row in enumerate(signals.values()) if row.get("better")]
    caption = (
        f"On {len(images)} images of {images.origin}, with 95 % intervals over the images. Bold: a "
        "difference beyond noise."
    )
    heads = ["signal", "what it is", BEFORE, AFTER, "difference", "better"]
    return Section("signals", "Signals", [Table(caption, heads, rows, text_columns=2, strong=strong)])


def _to_label(
    after: Measured,
    images: Images,
    chosen: list[int],
    classes: list[str],
    label_format: str,
    device: str,
    work: Path,
    out: Path,
) -> Section:
    section = Section("label", "Images whose labels would tell most")
    if not chosen:
        return section
    place = out / "to-label" / label_format
    frames = [images.frames[image] for image in chosen]
    source = Source(images.origin, "images", lambda: iter(frames), len(frames))
    writers = job.make_writers([label_format], work / "to-label", classes)
    job.run(load(after.candidate.file, device=device), [source], Options(), writers)
    raw = quoted(place)
    if label_format == "label-studio":
        raw = f"{quoted(place / 'images')} EXPORT.json --format label-studio"
    section.blocks += [
        Note(
            f"{len(chosen)} images with the boxes of the detector after adaptation are in "
            f"{place}. Correct them in an annotation tool, then make a data set of them:"
        ),
        Code(f"mrt prepare-data custom --raw {raw} --name corrected"),
    ]
    return section


def _facts(before: Measured, after: Measured, images: Images) -> Section:
    rows = [
        (BEFORE, str(before.candidate.file)),
        (AFTER, str(after.candidate.file)),
        ("images", f"{len(images)} of {images.origin}"),
        ("seconds", f"{before.seconds + after.seconds:.0f}"),
    ]
    return Section("facts", "Detectors and images", [Facts("Files", rows, open=True)])


def _cells(row: dict[str, Any], judges: bool) -> list[str]:
    change = "-"
    if row.get("difference") is not None:
        there = row["low"] is not None and row["high"] is not None
        change = f"{row['difference']:+.3f}" + (f" [{row['low']:+.3f}, {row['high']:+.3f}]" if there else "")
    better = row.get("better") or ("no difference" if judges and row.get("low") is not None else "-")
    return [_number(row[BEFORE], 3), _number(row[AFTER], 3), change, better]


def _number(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
