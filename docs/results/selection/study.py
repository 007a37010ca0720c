"""Which signals without labels tell better detectors from worse ones? Trains, measures, and writes the table.

    python docs/results/selection/study.py WORK [--gaps fog-light ...] [--seeds 0 1 2] [--part K/N] [--only]

WORK is a folder for data and runs. What is there is not done again. --part 1/3 does the first third of the
runs. The figures of each run are kept in a small file in WORK/found, or in the folder that --keep names;
--only makes the tables from these alone.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from mrt_cli.prepare_synthetic import make_synthetic
from scipy import stats

from mrt.ablate.studies import METHODS
from mrt.config import load_config
from mrt.data.synthetic import SMALL
from mrt.engine import stages
from mrt.engine.facts import is_run, read_facts
from mrt.engine.inference import evaluate_detector
from mrt.engine.report import LOG, Watcher, read_log
from mrt.errors import Interrupted, MrtError, RunFailed
from mrt.evaluate.unlabelled import SIGNALS
from mrt.files import write_text
from mrt.selection import choose, find_candidates, images_for, measure, rank

# name: target's world, fog's extinction per metre
GAPS = {
    "fog-light": ("foggy", 0.05),
    "fog-dense": ("foggy", 0.12),
    "night": ("night", None),
    "rain": ("rain", None),
}
KINDS = {
    "healthy": {},
    "low thresholds": {
        "teacher.dynamic": False,
        "teacher.threshold_start": 0.05,
        "teacher.threshold_min": 0.05,
        "teacher.threshold_max": 0.05,
    },
    "high thresholds": {
        "teacher.dynamic": False,
        "teacher.threshold_start": 0.9,
        "teacher.threshold_min": 0.9,
        "teacher.threshold_max": 0.9,
    },
    "strong discriminators": {"domain.encoder_weight": 30.0, "domain.decoder_weight": 30.0},
    "no average": {"teacher.ema": 0.001, "teach.lr": 1e-3},
}
COMMON = {
    **METHODS["+dt"],
    "init": "small-source",
    "engine.batch_size": 4,
    "teach.epochs": 8,
    "teach.steps_per_epoch": 40,
    "teach.schedule": "constant",
    "engine.eval_every": 1,
    "engine.keep_teachers": 20,
    "engine.shares_every": 0,
    "engine.threads": 1,
}
LIMIT = 100  # images that signals look at
LEVEL = 0.95
COLUMNS = {  # of the table of signals: title, and what of :func:`tables` is in it
    "Spearman within a run, healthy": "within healthy",
    "within a run, all": "within all",
    "over all runs of a gap": "pooled",
    "Kendall, over all runs of a gap": "kendall",
    "AP50 of the pick less the last one's, healthy": "last healthy",
    "AP50 of the pick less the last one's, all": "last all",
    "AP50 of the pick less the best one's, all": "best all",
    "AP50 by `mrt select --by` less the last one's, all": "taken all",
}
ERRORS = (
    "AP50 estimated by a straight line over a signal that was fitted to the other gaps: absolute error in "
    "points, median (and 95 % quantile) over detectors."
)
WATCHED = {  # of the table of collapses (AP50 5 points below the best so far)
    "before": "told at least an epoch before AP50 had lost 5 points",
    "later": "told later",
    "unseen": "lost 5 points untold",
    "false": "told, lost nothing",
    "quiet": "nothing told or lost",
}


def prepare(work: Path, gap: str) -> Path:
    """The gap's data root: the source and the target world."""
    root, (world, beta) = work / "data" / gap, GAPS[gap]
    for name, betas in (("clear", None), (world, [beta] if beta else None)):
        if not (root / f"synthetic-{name}" / "dataset.json").is_file():
            make_synthetic(root, [name], SMALL.splits, SMALL.size, betas=betas, watcher=Watcher())
    return root


def train(work: Path, gap: str, kind: str, seed: int) -> Path:
    """A run of adaptation with a teacher of each epoch; returns its folder."""
    root, world = prepare(work, gap), GAPS[gap][0]
    folder = work / "runs" / f"{gap}-{kind.replace(' ', '-')}-{seed}"
    changes = {**COMMON, **KINDS[kind], "seed": seed, "data.target": f"synthetic-{world}"}
    if is_run(folder) and "teach" in read_facts(folder)["finished"]:
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    stages.adapt(load_config("small", changes=changes), folder, stages=("teach",), data_root=root)
    return folder


def look(work: Path, gap: str, kind: str, seed: int) -> dict:
    """By epoch the teacher's AP50 and the signals, and what the watch said."""
    try:
        folder = train(work, gap, kind, seed)
    except Interrupted:  # by a user: not a result of the run
        raise
    except (RunFailed, MrtError) as error:
        return {"gap": gap, "kind": kind, "seed": seed, "failed": str(error).splitlines()[0]}
    root, log = work / "data" / gap, read_log(folder / LOG)
    candidates = find_candidates([folder])
    images = images_for(candidates[0], limit=LIMIT, data_root=root)
    measured = [measure(one, images, data_root=root, limit=LIMIT) for one in candidates]
    ranking = rank(measured)
    judged = {line["epoch"]: line for line in log if line["kind"] == "eval" and line["network"] == "teacher"}
    epochs = [line for line in log if line["kind"] == "epoch" and line["stage"] == "teach"]
    last = max(judged)
    start = evaluate_detector(COMMON["init"], data=images.origin.split()[0], data_root=root)
    rows = [
        {
            "epoch": last if row["epoch"] is None else row["epoch"],
            "AP50": judged[last if row["epoch"] is None else row["epoch"]]["AP50"],
            "signals": {name: found["value"] for name, found in row["signals"].items()},
        }
        for row in ranking["candidates"]
    ]
    return {
        "gap": gap,
        "kind": kind,
        "seed": seed,
        "start": start.metrics.to_dict()["AP50"],
        "epochs": rows,
        "chosen": {name: choose(ranking, name) for name in ranking["picks"]},
        "best": {name: pick["candidate"] for name, pick in ranking["picks"].items()},
        "names": [row["name"] for row in ranking["candidates"]],
        "watch": [_watched(line) for line in epochs],
        "seconds": {row["name"]: row["seconds"] for row in ranking["candidates"]},
    }


def _watched(line: dict) -> dict:
    """What the log's line of an epoch tells of a collapse."""
    labels = line["labels_per_image"]
    total = sum(labels.values())
    return {
        "epoch": line["epoch"],
        "labels": total,
        "largest_share": max(labels.values()) / max(total, 1e-9),
        "agreement": line.get("agreement"),
        "prototypes": line.get("prototypes"),
        "alarms": line.get("alarms", []),
    }


def correlations(found: Sequence[dict], name: str) -> tuple[float, float]:
    """Spearman's and Kendall's correlation of a signal with AP50 over detectors; positive: it is right. What
    has no value, because the detector finds nothing, counts as the worst.
    """
    sign, rows = 1 if SIGNALS[name].high else -1, [row for run in found for row in run["epochs"]]
    if all(row["signals"].get(name) is None for row in rows):
        return math.nan, math.nan
    pairs = [
        (-math.inf if (value := row["signals"].get(name)) is None else sign * value, row["AP50"])
        for row in rows
    ]
    if len(pairs) < 3 or len({one for one, _ in pairs}) < 2:
        return math.nan, math.nan
    values, scores = zip(*pairs, strict=True)
    return float(stats.spearmanr(values, scores)[0]), float(stats.kendalltau(values, scores)[0])


def regrets(run: dict, name: str) -> tuple[float, float, float]:
    """AP50 of the picked teacher minus that of the last one, that of the best one; and of what ``mrt select
    --by`` would take (the pick only where it is beyond noise) minus the last one's.
    """
    scores = dict(zip(run["names"], (row["AP50"] for row in run["epochs"]), strict=True))
    picked, last = scores[run["best"][name]], scores[run["names"][-1]]
    return picked - last, picked - max(scores.values()), scores[run["chosen"][name]] - last


def estimate_errors(runs: Sequence[dict], name: str) -> list[float]:
    """How far AP50 is from a straight line over a signal, fitted to the detectors of the *other* gaps: what a
    user gets for a target that the study has not seen. Points, not signed, of each detector with a value.
    """
    errors: list[float] = []
    for gap in dict.fromkeys(run["gap"] for run in runs):
        inside, outside = (
            [
                (value, row["AP50"])
                for run in runs
                if (run["gap"] == gap) == here
                for row in run["epochs"]
                if (value := row["signals"].get(name)) is not None and math.isfinite(value)
            ]
            for here in (True, False)
        )
        if len({value for value, _ in outside}) < 2 or not inside:
            continue
        slope, start = np.polyfit(*zip(*outside, strict=True), 1)
        errors += [abs(score - (start + slope * value)) for value, score in inside]
    return errors


def mean_interval(values: Iterable[float]) -> tuple[float, float]:
    """The mean and half of its t interval; infinite for one value."""
    there = np.array([value for value in values if not math.isnan(value)])
    if len(there) < 2:
        return (float(there.mean()) if len(there) else math.nan), math.inf
    half = stats.t.ppf((1 + LEVEL) / 2, len(there) - 1) * there.std(ddof=1) / math.sqrt(len(there))
    return float(there.mean()), float(half)


def tables(runs: Sequence[dict]) -> tuple[str, dict]:
    """The study's tables as markdown, and the same as plain values."""
    done = [run for run in runs if "failed" not in run]
    names = [name for name, signal in SIGNALS.items() if signal.judges and name != "partner"]
    plain: dict = {"runs": len(done), "failed": len(runs) - len(done), "signals": {}}
    detectors = sum(len(run["epochs"]) for run in done)
    lines = [
        f"{len(done)} runs, {detectors} detectors. Means over runs (pooled: over gaps) with 95 % t "
        "intervals; AP50 on validation images.",
        "",
        "| signal | " + " | ".join(COLUMNS) + " |",
        "| --- |" + " ---: |" * len(COLUMNS),
    ]
    gaps = list(dict.fromkeys(run["gap"] for run in done))
    for name in names:
        row: dict = {}
        for title, group in (("healthy", [run for run in done if run["kind"] == "healthy"]), ("all", done)):
            row[f"within {title}"] = mean_interval(correlations([run], name)[0] for run in group)
            picks = [regrets(run, name) for run in group if name in run["best"]]
            for place, against in enumerate(("last", "best", "taken")):
                row[f"{against} {title}"] = mean_interval(pick[place] for pick in picks)
        pooled = [correlations([run for run in done if run["gap"] == gap], name) for gap in gaps]
        row["pooled"] = mean_interval(one for one, _ in pooled)
        row["kendall"] = mean_interval(other for _, other in pooled)
        healthy = estimate_errors([run for run in done if run["kind"] == "healthy"], name)
        errors = estimate_errors(done, name)
        row["error healthy"], row["error all"] = (
            {"median": float(np.median(found)), "95 %": float(np.quantile(found, 0.95))} if found else None
            for found in (healthy, errors)
        )
        plain["signals"][name] = row
        cells = [_cell(row[key], "AP50" not in title) for title, key in COLUMNS.items()]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += ["", ERRORS, "", "| signal | healthy runs | all runs |", "| --- | ---: | ---: |"]
    for name in names:
        cells = [
            "-" if found is None else f"{found['median']:.1f} ({found['95 %']:.1f})"
            for found in (plain["signals"][name][key] for key in ("error healthy", "error all"))
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    plain["watch"] = watched(done)
    lines += ["", "| runs | " + " | ".join(WATCHED.values()) + " |", "| --- |" + " ---: |" * len(WATCHED)]
    for kind, counts in plain["watch"].items():
        lines.append(f"| {kind} | " + " | ".join(str(counts[key]) for key in WATCHED) + " |")
    plain["lost"] = list(_lost(done))
    lines += ["", "Runs that lost 5 points:", "", "| gap, kind | seed | after epoch | told after epoch |"]
    lines += ["| --- | ---: | ---: | ---: |"]
    for one in plain["lost"]:
        told = "-" if one["told"] is None else one["told"]
        lines.append(f"| {one['gap']}, {one['kind']} | {one['seed']} | {one['lost']} | {told} |")
    return "\n".join(lines) + "\n", plain


def watched(runs: Sequence[dict]) -> dict[str, dict[str, int]]:
    """How many runs of each kind were what (:data:`WATCHED`). The start's AP50 counts as the first."""
    found: dict[str, dict[str, int]] = {}
    for run in runs:
        counts = found.setdefault(run["kind"], dict.fromkeys(WATCHED, 0))
        lost, told = lost_and_told(run)
        if lost is None:
            counts["quiet" if told is None else "false"] += 1
        elif told is None:
            counts["unseen"] += 1
        else:
            counts["before" if told < lost else "later"] += 1
    return found


def lost_and_told(run: dict) -> tuple[int | None, int | None]:
    """After which epoch AP50 was 5 points below its best so far, the start's included, and after which the
    watch first said something; None: never.
    """
    best, lost = run["start"], None
    for row in run["epochs"]:
        best = max(best, row["AP50"])
        if lost is None and row["AP50"] < best - 5:
            lost = row["epoch"]
    return lost, next((one["epoch"] for one in run["watch"] if one["alarms"]), None)


def _lost(runs: Sequence[dict]) -> Iterable[dict]:
    for run in runs:
        lost, told = lost_and_told(run)
        if lost is not None:
            yield {**{key: run[key] for key in ("gap", "kind", "seed")}, "lost": lost, "told": told}


def _cell(pair: tuple[float, float], correlation: bool) -> str:
    mean, half = pair
    if math.isnan(mean):
        return "-"
    digits = 2 if correlation else 1
    sign = "" if correlation else "+"
    return f"{mean:{sign}.{digits}f}" + (f" ± {half:.{digits}f}" if math.isfinite(half) else "")


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--gaps", nargs="+", default=list(GAPS), choices=list(GAPS))
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--part", default="1/1", help="K/N: the K-th of N parts of the runs")
    parser.add_argument("--keep", type=Path, help="folder of the runs' figures")
    parser.add_argument("--only", action="store_true", help="tables of what is there")
    parser.add_argument("--out", type=Path, help="where table.md and table.json go; default: WORK")
    asked = parser.parse_args()
    part, parts = map(int, asked.part.split("/"))
    every = [(gap, kind, seed) for seed in asked.seeds for gap in asked.gaps for kind in asked.kinds]
    keep = asked.keep or asked.work / "found"
    keep.mkdir(parents=True, exist_ok=True)
    for gap, kind, seed in every[part - 1 :: parts]:
        file = keep / f"{gap}-{kind.replace(' ', '-')}-{seed}.json"
        if not file.is_file() and not asked.only:
            found = look(asked.work, gap, kind, seed)
            write_text(file, json.dumps(found, indent=1) + "\n")
            print(gap, kind, seed, [round(row["AP50"], 1) for row in found.get("epochs", [])], flush=True)
    text, plain = tables([json.loads(file.read_text()) for file in sorted(keep.glob("*.json"))])
    out = asked.out or asked.work
    write_text(out / "table.md", text)
    write_text(out / "table.json", json.dumps(plain, indent=1) + "\n")
    print(text)


if __name__ == "__main__":
    main()
