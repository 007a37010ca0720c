"""What a first look at a GPU reports: goals and floors beside what was measured, and what to mend first."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu_first_look_runner import FAILED, SKIPPED

JSON, PAGE = "first_look.json", "first_look.md"
ABOUT = (
    "Goals, floors and what is known are one H100's (docs/speed.md, shared/performance.md); "
    'what this card can do is under "card". 1 in the fourth column: the goal is just reached.'
)
DRY = "**A dry run, without a GPU: sizes are tiny, and its numbers mean nothing.**"


@dataclass(frozen=True)
class Goal:
    """What a figure is held against.

    Attributes:
        goal: to be reached; None if none was set.
        floor: the least that is thought possible.
        known: what was measured elsewhere.
        higher: whether more is better.
    """

    goal: float | None = None
    floor: float | None = None
    known: str = ""
    higher: bool = False


# shared/performance.md and docs/speed.md, both for one H100. E: four and five times as fast as the classic
# kernel with softmax and locations around it, 5.95 ms in float32 and 6.35 under bf16. D: the best known row.
E32 = {
    "forward": Goal(floor=0.36, known="prototype 0.40-0.47, classic 1.77"),
    "backward": Goal(floor=0.9, known="prototype 1.18, classic 4.18"),
    "both": Goal(5.95 / 4, 1.26, "aim 0.99; prototype 1.58-1.65, classic 5.95"),
}
E16 = {
    "forward": Goal(floor=0.22, known="prototype 0.27, classic 1.99"),
    "backward": Goal(floor=0.7, known="prototype 1.02, classic 4.36"),
    "both": Goal(6.35 / 5, 0.92, "aim 1.06; prototype 1.29, classic 6.35"),
}
D = {
    "forward": Goal(0.017, known="Triton .017, PyPI .034, without softmax and locations"),
    "backward": Goal(0.105, known="Triton .105, PyPI .120"),
    "both": Goal(0.122),
}
OP = {("E", "float32"): E32, ("E", "bfloat16"): E16, ("D", "float32"): D, ("D", "bfloat16"): D}
GOALS: dict[str, Goal] = {
    "copy": Goal(known="H100 3.0", higher=True),
    "product bf16": Goal(known="H100 790", higher=True),
    "product tf32": Goal(known="H100 408", higher=True),
    "product float32": Goal(known="H100 52", higher=True),
    "best step teach+mae": Goal(130, 79, "aim 100; published 641-699, our experiments compiled 148"),
    "best step source+mae": Goal(100, 51, "aim 75; published 371-429, our experiments compiled 123"),
    "best step source": Goal(55, 26, "aim 42; published 205-225, our experiments 73-107"),
    "best step teach": Goal(None, 60, "published 528-637, our experiments 134-154"),
    "memory teach+mae bf16": Goal(14, None, "published 23.5 in float32, our experiments 13.9"),
    "op E float32 times as fast as PyPI": Goal(4, known="aim 6", higher=True),
    "op E bfloat16 times as fast as PyPI": Goal(5, known="aim 6", higher=True),
}
for (_case, _dtype), _parts in OP.items():
    for _part, _goal in _parts.items():
        # Of the decoder as the model calls it no graph is replayed, so launches count, too: no goal.
        for _how in ("op", "op as the model calls it,") if _case == "E" else ("op",):
            GOALS[f"{_how} {_case} {_dtype} {_part}"] = _goal
# The least time of a step as benchmarks.floor counts it at an H100's speeds: kind -> precision -> ms.
FLOORS = {
    "source": {"off": 102, "tf32": 42, "bf16": 26, "fp16": 26},
    "source+mae": {"off": 202, "tf32": 83, "bf16": 51, "fp16": 51},
    "teach": {"off": 263, "tf32": 101, "bf16": 60, "fp16": 60},
    "teach+mae": {"off": 326, "tf32": 131, "bf16": 79, "fp16": 79},
}
for _kind, _floors in FLOORS.items():
    for _amp, _floor in _floors.items():
        for _how in ("eager", "compiled"):
            GOALS[f"step {_kind} {_amp} {_how}"] = Goal(floor=_floor)


def with_goals(figures: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The figures, the best of each kind of step among them, each with its goal, floor and ratio.

    The ratio is 1 where the goal is just reached, and less where it is missed.
    """
    found = []
    for figure in [*figures, *best_steps(figures)]:
        goal, measured = GOALS.get(figure["name"], Goal()), figure["measured"]
        row = {"goal": goal.goal, "floor": goal.floor, "known": goal.known, "ratio": None, **figure}
        if goal.goal is not None and isinstance(measured, float) and measured > 0:
            row["ratio"] = measured / goal.goal if goal.higher else goal.goal / measured
        found.append(row)
    return found


def best_steps(figures: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Of each kind of training step the fastest, whatever its precision: the goals ask for no certain one."""
    best: dict[str, Mapping[str, Any]] = {}
    for figure in figures:
        kind = figure.get("kind")
        known = best[kind]["measured"] if kind in best else float("inf")
        if kind and isinstance(figure["measured"], float) and figure["measured"] < known:
            best[kind] = figure
    return [
        {**figure, "name": f"best step {kind}", "kind": None, "details": figure["name"]}
        for kind, figure in best.items()
    ]


def mend_first(
    steps: Sequence[Mapping[str, Any]],
    checks: Sequence[Mapping[str, Any]],
    figures: Sequence[Mapping[str, Any]] | None,
) -> str:
    """One line: what is wrong before what has failed before what is slow.

    Args:
        figures: with their ratios; None: they mean nothing.
    """
    failed = [step for step in steps if step["state"] == FAILED]
    if failed and failed[0]["name"] == "build":
        return f"the build: {failed[0]['why']}"
    wrong = [check for check in checks if not check["ok"]]
    if wrong:
        worst = wrong[0]
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        return (
            f"a wrong result, {worst['step']}, {worst['name']}: off by {_number(worst['error'])}, "
            f"may be by {_number(worst['limit'])}{more}"
        )
    if failed:
        return f"the step that failed, {failed[0]['name']}: {failed[0]['why']}"
    if figures is None:
        return "nothing; a dry run says no more than that the steps run"
    rated = sorted((row for row in figures if row.get("ratio") is not None), key=lambda row: row["ratio"])
    if not rated:
        return "nothing that is known: no figure that has a goal was measured"
    row = rated[0]
    told = f"{_number(row['measured'])} {row['unit']}, goal {_number(row['goal'])}"
    if row["ratio"] >= 1:
        return f"nothing: every goal that was measured is reached (the nearest is {row['name']}: {told})"
    return f"speed, {row['name']}: {told}, {row['ratio']:.2f} of the goal"


def summary(look: Any, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Everything, for JSON."""
    figures = with_goals(look.figures)
    return {
        "dry_run": look.dry_run,
        "mend_first": mend_first(look.steps, look.checks, None if look.dry_run else figures),
        "provenance": dict(facts),
        "deadline": look.deadline,
        "rows": figures,
        **look.kept(),
    }


def write(folder: Path, look: Any, facts: Mapping[str, Any]) -> None:
    """Write first_look.json and first_look.md; each is whole at any time."""
    folder.mkdir(parents=True, exist_ok=True)
    report = summary(look, facts)
    for name, text in ((JSON, json.dumps(report, indent=1) + "\n"), (PAGE, page(report))):
        new = folder / f".{name}.new"
        new.write_text(text)
        os.replace(new, folder / name)


def page(report: Mapping[str, Any]) -> str:
    """The report as Markdown."""
    parts = ["# First look at a GPU"]
    if report["dry_run"]:
        parts.append(DRY)
    parts.append(f"**Mend first:** {report['mend_first']}.")
    facts = [(key, _cell(value)) for key, value in report["provenance"].items()]
    parts += ["## Where", _table(("what", "value"), facts)]
    parts += ["## Steps", _table(("step", "state", "s", "what"), [_step_cells(s) for s in report["steps"]])]
    parts += ["## Right or wrong", _checks(report["checks"])]
    parts += ["## Goals", ABOUT, _figures(report["rows"], rated=True)]
    parts += ["## Other figures", _figures(report["rows"], rated=False)]
    errors = [_error(step) for step in report["steps"] if step.get("traceback")]
    if errors:
        parts += ["## Errors", *errors]
    if report["notes"]:
        parts += ["## Notes", "\n".join(f"- {note}" for note in report["notes"])]
    return "\n\n".join(parts) + "\n"


def _step_cells(step: Mapping[str, Any]) -> tuple[str, ...]:
    what = step.get("why") or step.get("summary", "")
    state = f"**{step['state']}**" if step["state"] == FAILED else step["state"]
    return step["name"], state, "" if step["state"] == SKIPPED else f"{step['seconds']:.1f}", _cell(what)


def _checks(checks: Sequence[Mapping[str, Any]]) -> str:
    """How many comparisons of each step are right and how near the nearest is; the wrong ones in full."""
    rows = []
    for step in dict.fromkeys(check["step"] for check in checks):
        own = [check for check in checks if check["step"] == step]
        worst = max(own, key=_share)
        right = sum(check["ok"] for check in own)
        told = f"{worst['name']}: {_number(worst['error'])} of {_number(worst['limit'])}"
        rows.append((step, f"{right} of {len(own)}", _cell(told)))
    wrong = [
        (check["step"], _cell(check["name"]), _number(check["error"]), _number(check["limit"]))
        for check in checks
        if not check["ok"]
    ]
    text = _table(("step", "right", "nearest to its limit"), rows)
    return text + ("\n\n" + _table(("wrong in", "what", "error", "limit"), wrong) if wrong else "")


def _share(check: Mapping[str, Any]) -> float:
    error = check["error"]
    return error / check["limit"] if isinstance(error, float) and check["limit"] else float(not check["ok"])


def _figures(rows: Sequence[Mapping[str, Any]], rated: bool) -> str:
    """Those that have a goal, the worst first, or those that have none, in their order."""
    own = [row for row in rows if (row["ratio"] is not None) == rated]
    if rated:
        own.sort(key=lambda row: row["ratio"])
    heads = ("figure", "measured", "goal", "goal / measured", "floor", "known (H100) and details")
    return _table(heads, [_figure_cells(row) for row in own])


def _figure_cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    measured = f"{_number(row['measured'])} {row['unit']}"
    if row.get("quartiles"):
        measured += f" ({'-'.join(_number(number) for number in row['quartiles'])})"
    goal, floor = (_number(row[name]) if row[name] is not None else "" for name in ("goal", "floor"))
    ratio = f"{row['ratio']:.2f}" if row["ratio"] is not None else ""
    return row["name"], measured, goal, ratio, floor, _cell("; ".join(_told(row)))


def _told(row: Mapping[str, Any]) -> list[str]:
    return [text for text in (row["known"], row.get("details")) if text]


def _error(step: Mapping[str, Any]) -> str:
    places = "\n".join(f"    {place}" for place in step["traceback"])
    return f"{step['name']}: {step['why']}\n\n{places}"


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def _cell(value: Any) -> str:
    return " ".join(str(value).split()).replace("|", "\\|")


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, (int, float)) else str(value)
