"""What trials have found: mean, deviation and interval of each row, its difference to the base, and tables.

Everything that is printed, written or drawn comes from one report (plain values, as its JSON file has them).
"""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from mrt.ablate.studies import PAPER
from mrt.errors import MrtError
from mrt.plain import markdown

METRICS = ("AP50", "AP", "AP75")  # of every table, in this order
LEVEL = 0.95  # of the intervals
CLOSED = "gap closed"
# What a table tells of the environments of its trials, and how it says that they differ.
ENVIRONMENT = {
    "mrt": "with different versions of mrt",
    "commit": "at different commits",
    "python": "with different versions of Python",
    "torch": "with different versions of torch",
    "device": "on different devices",
    "op": "with different backends of the attention",
}


def flat_metrics(metrics: Mapping[str, Any]) -> dict[str, float | None]:
    """AP50, AP, AP75 and AP50 of each class, from what ``Metrics.to_dict`` gives."""
    return {
        **{name: metrics[name] for name in METRICS},
        **{f"AP50 {name}": values["AP50"] for name, values in metrics["per_class"].items()},
    }


def spread_metrics(values: Sequence[Mapping[str, float | None]]) -> dict[str, dict[str, float | None]]:
    """:func:`spread` of each metric over several results."""
    names = list(dict.fromkeys(name for item in values for name in item))
    return {name: spread([item.get(name) for item in values]) for name in names}


def spread(numbers: Sequence[float | None]) -> dict[str, float | None]:
    """Mean and sample standard deviation of the numbers there are; of fewer than two it is None.

    Raises:
        MrtError: a number is not finite.
    """
    there = _there(numbers)
    return {
        "mean": statistics.fmean(there) if there else None,
        "std": statistics.stdev(there) if len(there) > 1 else None,
    }


def estimate(numbers: Sequence[float | None]) -> dict[str, Any]:
    """:func:`spread`, ``n``, and the t interval of the mean (``low``, ``high``; None for fewer than two)."""
    there = _there(numbers)
    found = spread(there)
    half = None
    if len(there) > 1:
        from scipy.stats import t

        half = float(t.ppf(0.5 + LEVEL / 2, len(there) - 1)) * found["std"] / len(there) ** 0.5
    mean = found["mean"]
    return {
        **found,
        "n": len(there),
        "low": None if half is None else mean - half,
        "high": None if half is None else mean + half,
    }


def _there(numbers: Sequence[float | None]) -> list[float]:
    there = [number for number in numbers if number is not None]
    if not all(map(math.isfinite, there)):
        raise MrtError(
            f"the mean of figures that are not finite: {', '.join(map(str, there))}",
            "Evaluate again what they were measured on.",
        )
    return there


def summarise(results: Sequence[Mapping[str, Any]], base: str) -> list[dict[str, Any]]:
    """One row per name, in the order of the results.

    Args:
        results: each with ``row`` (name, settings, end, paper, note), ``seed``, ``node``, and ``metrics``
            (flat) or ``failed``.
        base: the row that the others are compared with, seed by seed.

    A detector that several seeds share counts once: ``n`` is the number of different detectors, and of a
    difference the number of different pairs. Metrics are per cent.
    """
    rows: dict[str, dict[str, Any]] = {}
    for result in results:
        row = rows.setdefault(result["row"]["name"], {**result["row"], "trials": [], "failures": []})
        result = _without_nan(result)
        kind = "failures" if "failed" in result else "trials"
        row[kind].append({key: value for key, value in result.items() if key != "row"})
    reference = {trial["seed"]: trial for trial in rows.get(base, {}).get("trials", ())}
    for row in rows.values():
        own = list({trial["node"]: trial for trial in row["trials"]}.values())
        both = [(trial, reference[trial["seed"]]) for trial in row["trials"] if trial["seed"] in reference]
        pairs = list({(trial["node"], other["node"]): (trial, other) for trial, other in both}.values())
        names = list(dict.fromkeys(name for trial in own for name in trial["metrics"]))
        row["base"] = row["name"] == base
        row["metrics"] = {name: estimate([trial["metrics"].get(name) for trial in own]) for name in names}
        row["delta"] = {
            name: estimate([_minus(a["metrics"].get(name), b["metrics"].get(name)) for a, b in pairs])
            for name in names
        }
        if row["base"]:
            row["delta"] = {}
        row["minutes"] = estimate([trial.get("minutes") for trial in own])["mean"]
        row["selected"] = _selected(own)
    _close(list(rows.values()))
    return list(rows.values())


def _selected(trials: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Of the teachers that a signal takes: the signal, AP50, and its difference to the last teacher's."""
    there = [trial for trial in trials if trial.get("selected")]
    if not there:
        return None
    scores = [trial["selected"]["metrics"]["AP50"] for trial in there]
    gains = [_minus(score, trial["metrics"]["AP50"]) for score, trial in zip(scores, there, strict=True)]
    return {
        "by": there[0]["selected"]["by"],
        "images": there[0]["selected"]["images"],
        "epochs": {str(trial["seed"]): trial["selected"]["epoch"] for trial in there},
        "AP50": estimate(scores),
        "delta": estimate(gains),
    }


def _close(rows: Sequence[dict[str, Any]]) -> None:
    """Say how much each row closes of the gap between fair source-only and the oracle with target labels:
    (AP50 - fair) / (oracle - fair) in per cent, seed by seed. Nothing where one of them is not there.
    """
    ends = {row["end"]: {trial["seed"]: trial for trial in row["trials"]} for row in rows}
    low, high = ends.get("fair"), ends.get("oracle-target")
    for row in rows:
        row["closed"] = None
        if not low or not high or row["end"] in ("fair", "oracle-target"):
            continue
        shares = {}
        for trial in row["trials"]:
            if trial["seed"] in low and trial["seed"] in high:
                three = [trial, low[trial["seed"]], high[trial["seed"]]]
                reached, fair, oracle = (item["metrics"]["AP50"] for item in three)
                if None not in (reached, fair, oracle) and oracle > fair:
                    shares[tuple(item["node"] for item in three)] = 100 * (reached - fair) / (oracle - fair)
        row["closed"] = estimate(list(shares.values()))


def _without_nan(result: Mapping[str, Any]) -> Mapping[str, Any]:
    """The result, as failed if one of its metrics is not finite: it would spoil every mean."""
    chosen = result.get("selected", {}).get("metrics", {})
    wrong = [
        name
        for name, value in (*result.get("metrics", {}).items(), *chosen.items())
        if value is not None and not math.isfinite(value)
    ]
    if not wrong or "failed" in result:
        return result
    value = next(found[wrong[0]] for found in (result["metrics"], chosen) if not _is_finite(found[wrong[0]]))
    kept = {key: item for key, item in result.items() if key != "metrics"}
    return {**kept, "failed": f"{wrong[0]} is {value}"}


def _is_finite(value: float | None) -> bool:
    return value is None or math.isfinite(value)


def _minus(value: float | None, other: float | None) -> float | None:
    return None if value is None or other is None else value - other


def columns(report: Mapping[str, Any]) -> list[str]:
    """Headings of the table for people."""
    paper = [f"paper AP50 ({PAPER})"] if _has_paper(report) else []
    closed = [CLOSED] if _has_closed(report) else []
    minutes = ["train min"] if _has_minutes(report) else []
    delta = f"Δ AP50 to {report['base']}"
    by = _selected_by(report)
    selected = [f"AP50 by {by} (Δ to last)"] if by else []
    return [report["subject"], "AP50", "n", delta, *closed, *selected, "AP", "AP75", *minutes, *paper]


def lines(report: Mapping[str, Any]) -> list[list[str]]:
    """The table for people, row by row, to one decimal: mean ± deviation; difference with its interval."""
    found = []
    for row in report["rows"]:
        cells = [_figure(row["metrics"].get(metric)) for metric in METRICS]
        count = str(row["metrics"]["AP50"]["n"]) if row["metrics"] else "0"
        failed = f" ({len(row['failures'])} failed)" if row["failures"] else ""
        paper = ["-" if row["paper"] is None else f"{row['paper']:.1f}"] if _has_paper(report) else []
        closed = [_share(row.get("closed"))] if _has_closed(report) else []
        cost = row.get("minutes")
        minutes = ["-" if cost is None else f"{cost:.1f}"] if _has_minutes(report) else []
        selected = [_choice(row.get("selected"))] if _selected_by(report) else []
        about = [row["name"], cells[0], count + failed, _difference(row)]
        found.append([*about, *closed, *selected, *cells[1:], *minutes, *paper])
    return found


def _has_closed(report: Mapping[str, Any]) -> bool:
    return any((row.get("closed") or {}).get("mean") is not None for row in report["rows"])


def _selected_by(report: Mapping[str, Any]) -> str | None:
    """The signal that teachers were chosen by."""
    return next((row["selected"]["by"] for row in report["rows"] if row.get("selected")), None)


def _choice(value: Mapping[str, Any] | None) -> str:
    return "-" if value is None else f"{_figure(value['AP50'])} ({_signed(value['delta'])})"


def _has_minutes(report: Mapping[str, Any]) -> bool:
    return any(row.get("minutes") is not None for row in report["rows"])


def _share(value: Mapping[str, Any] | None) -> str:
    if value is None or value["mean"] is None:
        return "-"
    interval = "" if value["low"] is None else f" [{value['low']:.0f}, {value['high']:.0f}]"
    return f"{value['mean']:.0f} %{interval}"


def _has_paper(report: Mapping[str, Any]) -> bool:
    return any(row["paper"] is not None for row in report["rows"])


def _figure(value: Mapping[str, Any] | None) -> str:
    if value is None:
        return "failed"
    if value["mean"] is None:
        return "-"
    return f"{value['mean']:.1f}" + (f" ± {value['std']:.1f}" if value["std"] is not None else "")


def _difference(row: Mapping[str, Any]) -> str:
    return "base" if row["base"] else _signed(row["delta"].get("AP50"))


def _signed(value: Mapping[str, Any] | None) -> str:
    """A difference with its interval."""
    if value is None or value["mean"] is None:
        return "-"
    interval = "" if value["low"] is None else f" [{value['low']:+.1f}, {value['high']:+.1f}]"
    return f"{value['mean']:+.1f}{interval}"


def notes(report: Mapping[str, Any]) -> list[str]:
    """What a reader of the table must know."""
    split = report["split"]
    found = [f"measured on {data['name']}, split {split}: {_about_data(data)}" for data in report["data"]]
    found += _about_environments(report)
    if any(row["metrics"].get("AP50", {}).get("std") is not None for row in report["rows"]):
        found.append(
            f"mean ± standard deviation over n detectors (seeds {' '.join(map(str, report['seeds']))}); "
            f"Δ pairs the seeds, with the {LEVEL:.0%} t interval of its mean"
        )
    if _has_closed(report):
        found.append(
            f"{CLOSED}: (AP50 - fair source-only) / (oracle with target labels - fair source-only), seed by "
            "seed"
        )
    if by := _selected_by(report):
        rows = [row["selected"] for row in report["rows"] if row.get("selected")]
        images = {f"{row['images']['number']} images of {row['images']['from']}" for row in rows}
        epochs = [epoch for row in rows for epoch in row["epochs"].values()]
        found.append(
            f"AP50 by {by}: of the teacher that mrt select --by {by} takes among those of all epochs, by "
            f"{' or '.join(sorted(images))} without their labels; in brackets its difference to the last "
            f"teacher, seed by seed. In {len(epochs) - epochs.count(None)} of {len(epochs)} trials it is "
            "another than the last"
        )
    for row in report["rows"]:
        for trial in row["trials"]:
            if ended := trial.get("ended"):
                found.append(
                    f"{row['name']}, seed {trial['seed']}: ended early, after epoch {ended['epoch']}, with "
                    f"the teacher of epoch {ended['teacher']}: {ended['why']}"
                )
            if trial.get("not_selected"):
                reason = trial["not_selected"]["reason"]
                found.append(f"{row['name']}, seed {trial['seed']}: no teacher was selected: {reason}")
    if _has_minutes(report):
        found.append(
            "train min: minutes of training steps after stage 1, with the stages that rows share, without "
            "evaluation"
        )
    if _has_paper(report):
        same = report["preset"] == "city2foggy" and not report["smoke"]
        other = f"another network and other data than preset {report['preset']}: not comparable"
        compare = "one run each" if same else other
        found.append(f"paper: Cityscapes to Foggy Cityscapes, ResNet-50 ({compare})")
    if report["smoke"]:
        found.append("SMOKE TEST: a few images and steps; the numbers mean nothing")
    found += [f"{row['name']}: {row['note']}" for row in report["rows"] if row["note"]]
    return found


def _about_data(data: Mapping[str, Any]) -> str:
    if "sha256" not in data:
        return "not prepared"
    known = data.get("details") or {}
    details = "".join(f", {key} {known[key]}" for key in known if key in ("beta", "seed"))
    counts = f"{data['num_images']} images, {data['num_boxes']} boxes"
    return f"{counts}{details}; annotations sha256 {data['sha256'][:12]}"


def environments(row: Mapping[str, Any], verb: str) -> list[Mapping[str, Any] | None]:
    """What a row's trials were "trained" (every stage of them) or "measured" with; None: not recorded."""
    if verb == "measured":
        return [trial.get(verb) for trial in row["trials"]]
    stages = {name: known for trial in row["trials"] for name, known in trial.get(verb, {}).items()}
    return [environment for known in stages.values() for environment in known]


def _about_environments(report: Mapping[str, Any]) -> list[str]:
    """What trials were trained and measured with, and, each in a line of its own, in what they differ."""
    common: dict[str, list[str]] = {}  # what is the same everywhere -> of what
    mixed: list[str] = []
    for verb in ("trained", "measured"):
        told = {row["name"]: environments(row, verb) for row in report["rows"]}
        facts = {key: _rows_by_value(told, key) for key in ENVIRONMENT}
        same = [f"{key} {value}" for key, rows in facts.items() if len(rows) == 1 for value in rows]
        if same:
            common.setdefault(", ".join(same), []).append(verb)
        mixed += [
            f"MIXED: {verb} {ENVIRONMENT[key]}: {_and_whose(rows)}"
            for key, rows in facts.items()
            if len(rows) > 1
        ]
        if silent := [name for name, known in told.items() if None in known]:
            mixed.append(f"not recorded what these were {verb} with: {', '.join(silent)}")
    return [f"{' and '.join(verbs)} with {words}" for words, verbs in common.items()] + mixed


def _rows_by_value(told: Mapping[str, Sequence[Mapping[str, Any] | None]], key: str) -> dict[str, list[str]]:
    """Each value that a fact has in the environments, with the names of the rows that have it."""
    found: dict[str, dict[str, None]] = {}
    for name, known in told.items():
        for environment in known:
            if environment is not None:
                found.setdefault(str(environment.get(key) or "unknown"), {})[name] = None
    return {value: list(names) for value, names in found.items()}


def _and_whose(rows: Mapping[str, Sequence[str]]) -> str:
    return "; ".join(f"{value} ({', '.join(names)})" for value, names in rows.items())


def to_csv(report: Mapping[str, Any]) -> str:
    """A line per row: name, settings, seeds; metrics; what was trained and measured with.

    Of each metric, and of its difference, there are mean, std, n and the interval (per cent).
    """
    rows = report["rows"]
    settings = list(dict.fromkeys(key for row in rows for key in row["settings"]))
    metrics = list(dict.fromkeys(name for row in rows for name in row["metrics"]))
    kinds = ("mean", "std", "n", "low", "high")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    heads = [f"{prefix}{name} {kind}" for name in metrics for prefix in ("", "delta ") for kind in kinds]
    heads += [f"{verb}: {key}" for verb in ("trained", "measured") for key in ENVIRONMENT]
    closed = [f"{CLOSED} {kind}" for kind in kinds]
    selected = [f"selected {name} {kind}" for name in ("AP50", "delta") for kind in kinds]
    about = ["paper AP50", "train min", *closed, "selected by", *selected]
    writer.writerow(["row", *settings, "seeds", "failed", *about, *heads])
    for row in rows:
        parts = [row[part].get(name, {}) for name in metrics for part in ("metrics", "delta")]
        numbers = [part.get(kind) for part in parts for kind in kinds]
        seeds = " ".join(str(trial["seed"]) for trial in row["trials"])
        given = [_cell(row["settings"].get(key)) for key in settings]
        told = [_told(row, verb, key) for verb in ("trained", "measured") for key in ENVIRONMENT]
        about = [*given, seeds, len(row["failures"]), *map(_cell, (row["paper"], row.get("minutes")))]
        about += [_cell((row.get("closed") or {}).get(kind)) for kind in kinds]
        choice = row.get("selected") or {"by": None, "AP50": {}, "delta": {}}
        about += [_cell(choice["by"])]
        about += [_cell(choice[name].get(kind)) for name in ("AP50", "delta") for kind in kinds]
        writer.writerow([row["name"], *about, *map(_cell, numbers), *told])
    return text.getvalue()


def _told(row: Mapping[str, Any], verb: str, key: str) -> str:
    """A fact of a row's environments; several values if they differ."""
    known = environments(row, verb)
    values = [*_rows_by_value({row["name"]: known}, key), *(["not recorded"] if None in known else ())]
    return "; ".join(values)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return json.dumps(value) if isinstance(value, (list, dict, bool)) else str(value)


def to_markdown(report: Mapping[str, Any]) -> str:
    """The table for people as markdown, with its notes."""
    heads = columns(report)
    rule = ["---", *["---:"] * (len(heads) - 1)]
    cells = [[markdown(cell, begins=False) for cell in line] for line in (heads, *lines(report))]
    table = [f"| {' | '.join(line)} |" for line in (cells[0], rule, *cells[1:])]
    below = [f"- {markdown(note)}" for note in notes(report)]
    return "\n".join([f"**{markdown(report['title'])}**", "", *table, "", *below]) + "\n"
