"""What trials did on their way: AP50 and the quality of pseudo labels after each epoch, and what training
cost; from their logs.

The end says which row is better, the way says why: a part that helps while labels are few shows in their
recall, one that helps against wrong ones in their precision.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mrt.config import Config
from mrt.engine.report import LOG, read_log

# By name: title and unit. Measured on validation images where ``engine.eval_every`` is not 0; the rest is of
# training.
MEASURED = {
    "AP50": ("teacher on validation images", "AP50 (%)"),
    "precision": ("precision of its labels there", "%"),
    "recall": ("recall of its labels there", "%"),
    "labels": ("pseudo labels in training", "per image"),
    "explained": ("masked variance explained", "share"),
    "against": ("autoencoder's gradient", "cosine with detection's"),
}


def curves(folder: Path, stage: str) -> dict[str, list[list[float]]]:
    """By name of :data:`MEASURED`, points [epochs that are over, value] of a run's stage; only what its log
    has.
    """
    found: dict[str, list[list[float]]] = {}

    def add(name: str, epoch: float, value: float | None) -> None:
        if value is not None:
            found.setdefault(name, []).append([epoch, value])

    means: dict[int, dict[str, list[float]]] = {}
    lines = [line for line in read_log(folder / LOG, lambda _: None) if line["stage"] == stage]
    networks = {line["network"] for line in lines if line["kind"] == "eval"}
    judged = "teacher" if "teacher" in networks else "student"
    for line in lines:
        epoch = line.get("epoch", 0)
        if line["kind"] == "eval" and line["network"] == judged:
            add("AP50", epoch, line.get("AP50"))
            quality = line.get("pseudo_labels") or {}
            add("precision", epoch, quality.get("precision"))
            add("recall", epoch, quality.get("recall"))
        elif line["kind"] == "train":
            explained = line.get("target/mae_explained", line.get("source/mae_explained"))
            values = {
                "labels": line.get("pseudo_labels"),
                "explained": explained,
                "against": line.get("gradient_cosine/rebuild"),
            }
            for name, value in values.items():
                if value is not None:
                    means.setdefault(epoch, {}).setdefault(name, []).append(value)
    for epoch, values in sorted(means.items()):
        for name, numbers in values.items():
            add(name, epoch + 1, sum(numbers) / len(numbers))
    return found


def training_seconds(folder: Path, images_per_step: int) -> float | None:
    """Seconds that the steps of a run took, from the speeds in its log: pauses, evaluations and what was done
    twice are not in it. None without a log.
    """
    seconds, last = 0.0, {}
    for line in read_log(folder / LOG, lambda _: None):
        speed = line.get("images_per_second")
        if line["kind"] == "train" and speed:
            seconds += (line["step"] - last.get(line["stage"], 0)) * images_per_step / speed
            last[line["stage"]] = line["step"]
    return seconds if last else None


def images_per_step(config: Config, kind: str) -> int:
    """Images of all domains in a step of a kind of node."""
    from mrt.engine import stages

    domains = 1  # of baselines and oracles: several labelled sets are one stream
    if kind in stages.STAGES:
        free = kind == "teach" and config.method.source_free
        plan = (stages.source_free if free else stages.STAGES[kind])(config).active(config)
        domains = bool(plan.labels) + plan.needs(config).target
    return config.engine.batch_size * domains


def of_rows(
    rows: Sequence[Mapping[str, Any]],
) -> dict[str, dict[str, list[tuple[float, float, float, float]]]]:
    """By name and row, points (epoch, mean, least, greatest) over the row's different detectors."""
    found: dict[str, dict[str, list[tuple[float, float, float, float]]]] = {}
    for row in rows:
        trials = {trial["node"]: trial.get("curves", {}) for trial in row["trials"]}
        for name in MEASURED:
            by_epoch: dict[float, list[float]] = {}
            for points in (trial.get(name, ()) for trial in trials.values()):
                for epoch, value in points:
                    by_epoch.setdefault(epoch, []).append(value)
            whole = {epoch: values for epoch, values in by_epoch.items() if len(values) == len(trials)}
            if len(whole) > 1:
                found.setdefault(name, {})[row["name"]] = [
                    (epoch, sum(values) / len(values), min(values), max(values))
                    for epoch, values in sorted(whole.items())
                ]
    return found
