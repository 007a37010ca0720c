"""Section: what could be seen without the target's labels, while it trained and by ``mrt select`` since."""

from __future__ import annotations

import math
import shlex
from typing import Any

from mrt.engine.kept import kept_teachers, standing
from mrt.engine.snapshots import spread_evenly
from mrt.engine.watch import advice
from mrt.evaluate.unlabelled import SIGNALS
from mrt.report.collect import RunData
from mrt.report.page import Block, Note, Section, Table
from mrt.report.stored import read_selection
from mrt.report.study import Study
from mrt.report.words import lacking

SEEN = ("prototypes", "agreement")  # of the teacher, without labels, after each epoch
ROWS = 12  # epochs of a table, spread evenly; those with an alarm besides


def without_labels(study: Study) -> Section:
    """Of each adapted run: labels, agreement and alarms by epoch, and what signals say of its teachers."""
    section = Section("trust", "Seen without target labels")
    for run in study.runs:
        if run.facts["command"] == "adapt" and run.of("epoch", "teach"):
            section.blocks += [*_while_it_trained(run), *_selection(study, run)]
    if not section.blocks:
        section.blocks.append(lacking("labels and signals by epoch: no run has taught with pseudo labels"))
    return section


def _while_it_trained(run: RunData) -> list[Block]:
    lines = [line for line in run.of("epoch", "teach") if line.get("labels_per_image")]
    if not lines:
        return []
    shown = set(spread_evenly(len(lines), ROWS)) | {len(lines) - 1}
    shown |= {place for place, line in enumerate(lines) if line.get("alarms")}
    rows, strong = [], []
    for place in sorted(shown):
        line = lines[place]
        labels = line["labels_per_image"]
        total = sum(labels.values())
        most = max(labels, key=lambda name: labels[name])
        alarms = line.get("alarms") or []
        if alarms:
            strong.append(len(rows))
        rows.append(
            [
                str(line["epoch"]),
                f"{total:.2f}",
                f"{most} {labels[most] / total:.0%}" if total else "-",
                *("-" if line.get(name) is None else f"{line[name]:.2f}" for name in SEEN),
                ", ".join(alarms) or "-",
            ]
        )
    caption = (
        f"{run.title}: pseudo labels per target image, the class with most of them, and the watch's alarms. "
        "On the snapshots' images: prototypes, how far classes are apart compared with the domains (to fall "
        "is bad), and agreement of teacher and student (0 to 1; it may fall in a healthy run)"
    )
    columns = ["epoch", "labels", "most", *SEEN, "alarms"]
    blocks: list[Block] = [Table(caption, columns, rows, strong=strong)]
    for kind in dict.fromkeys(kind for line in lines for kind in line.get("alarms") or ()):
        epochs = [line["epoch"] for line in lines if kind in (line.get("alarms") or ())]
        when = f"{len(epochs)} epochs, first in " if len(epochs) > 1 else ""
        said = advice(kind, run.config.domain.enabled, not run.config.method.source_free)
        text = f"{run.title}: alarm {kind} in {when}epoch {epochs[0]}. {said}"
        blocks.append(Note(text.strip(), warning=True))
    ended = run.facts.get("ended", {}).get("teach")
    if ended:
        went = f", with the teacher of epoch {ended['teacher']}" if ended["teacher"] != ended["epoch"] else ""
        text = f"{run.title}: teaching ended early, after epoch {ended['epoch']}{went}: {ended['why']}"
        blocks.append(Note(text, warning=True))
    return blocks


def _selection(study: Study, run: RunData) -> list[Block]:
    record = read_selection(run.folder)
    if record is None:
        several = sum(stage == "teach" for stage, _ in kept_teachers(run.folder)) > 1
        how = (
            f"mrt select {shlex.quote(str(run.folder))}" if several else "it kept none (engine.keep_teachers)"
        )
        return [lacking(f"{run.title}'s teachers by signals without labels: {how}")]
    if record["standing"] != standing(run.folder):
        again = f"trained since mrt select looked; look again: mrt select {shlex.quote(str(run.folder))}"
        return [lacking(f"{run.title}'s teachers by signals without labels: {again}")]
    study.record["runs"][run.title]["selection"] = record
    candidates = record["candidates"]
    names = [name for name in SIGNALS if any(name in row["signals"] for row in candidates)]
    picks: dict[str, Any] = record["picks"]
    rows = []
    for row in candidates:
        cells = [_value(row["signals"].get(name)) for name in names]
        best = [picks.get(name, {}).get("candidate") == row["name"] for name in names]
        rows.append(
            [row["name"], *(f"{cell} *" if on else cell for cell, on in zip(cells, best, strict=True))]
        )
    low = ", ".join(name for name in names if not SIGNALS[name].high)
    images = record["images"]
    caption = (
        f"{run.title}: what mrt select saw on {images['number']} images of {images['from']}, without labels. "
        f"* the best by this signal; lower is better for {low}"
    )
    taken = [f"{name}: {pick['candidate']}" for name, pick in picks.items() if pick["beyond_noise"]]
    text = (
        f"Better than the {record['base']} beyond noise are, by {'; by '.join(taken)}. How far a signal can "
        "be trusted: docs/trust.md."
        if taken
        else f"No signal finds another teacher better than the {record['base']} beyond noise."
    )
    return [Table(caption, ["", *names], rows), Note(text)]


def _value(found: dict[str, Any] | None) -> str:
    if found is None or (found["value"] is None and not found["infinite"]):
        return "-"
    value = math.inf if found["infinite"] else found["value"]
    return f"{value:.3f}"
