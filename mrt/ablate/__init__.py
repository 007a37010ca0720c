"""Ablations: rows of settings times seeds; each trial is trained stage by stage and measured; one table.

    studies   the rows: the paper's tables, grids of any settings, baselines
    nodes     the stages that trials are made of and share, known by the content of what can change them
    work      training and measuring one node
    selected  the teacher that a signal takes, without labels, beside the last one
    device    the kind of device they are for
    launch    doing that here, in local processes, on several GPUs, on a cluster
    table     the numbers, and tables of them;  plot  a picture of them;  smoke  tiny data to try this with

Below the root lie ``nodes/`` (a run folder and its results each), ``logs/``, and the tables.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from mrt import plugins
from mrt.ablate.device import require_device
from mrt.ablate.launch import Failure, Launcher, run_here, run_with
from mrt.ablate.nodes import Node, Planner, Trial, content_hash, read_beside
from mrt.ablate.selected import KEEP, require_epochs, require_teachers
from mrt.ablate.smoke import SETTINGS as SMOKE
from mrt.ablate.smoke import shrink
from mrt.ablate.studies import (
    BASELINES,
    METHODS,
    STUDIES,
    Axis,
    Row,
    find_key,
    find_study,
    grid_rows,
    make_axes,
    plain,
)
from mrt.ablate.study_file import check as check_study
from mrt.ablate.study_file import require_same_study, title_of
from mrt.ablate.table import (
    METRICS,
    columns,
    flat_metrics,
    lines,
    notes,
    spread,
    spread_metrics,
    summarise,
    to_csv,
    to_markdown,
)
from mrt.ablate.work import Measurement, Work, finish_run, read_measured, way_of
from mrt.engine.facts import is_run
from mrt.engine.report import Watcher
from mrt.errors import MrtError
from mrt.files import write_text
from mrt.plain import slug

NAME_LENGTH = 60  # of a table's files, in letters
FILES = 5  # that a report is written to: JSON, CSV, markdown, PNG, SVG

__all__ = [
    "BASELINES",
    "FILES",
    "KEEP",
    "METHODS",
    "METRICS",
    "SMOKE",
    "STUDIES",
    "Axis",
    "Failure",
    "Launcher",
    "Node",
    "Planner",
    "Row",
    "Trial",
    "axis_settings",
    "check_study",
    "choose_base",
    "choose_rows",
    "columns",
    "content_hash",
    "find_key",
    "find_study",
    "finish_run",
    "flat_metrics",
    "grid_rows",
    "lines",
    "make_axes",
    "make_report",
    "missing_work",
    "notes",
    "require_epochs",
    "require_same_study",
    "require_teachers",
    "run",
    "shrink",
    "spread",
    "spread_metrics",
    "title_of",
    "to_csv",
    "to_markdown",
    "write_report",
]


def missing_work(trials: Sequence[Trial], root: Path, data_root: Path) -> list[Work]:
    """What has to be done for the trials that have no result, in an order in which it can be: each node once.

    Raises:
        MrtError: a trial's node was trained on another kind of device.
    """
    works: dict[str, Work] = {}

    def want(node: Node, title: str) -> Work:
        work = works.get(node.name)
        if work is None:
            needs = []
            if node.parent is not None and not node.is_trained(root) and not node.parent.is_trained(root):
                needs = [want(node.parent, title).name]
            start = node.parent.weights(root) if node.parent is not None else None
            values = node.config.model_dump(mode="json")
            if node.kind == "source":
                values["init"] = None
            if node.kind != "teach" and node.config.engine.keep_teachers == KEEP:
                values["engine"]["keep_teachers"] = 0  # nobody chooses among these
            folder = str(node.folder(root))
            work = Work(
                *(node.name, node.kind, values, folder, str(data_root), node.device),
                *(start, node.place, needs),
                plugins={name: plugins.load(name).digest for name in node.config.method.plugins},
                reads=read_beside(node.config, node.kind, data_root) if node.place is None else {},
                chain=node.way(root),
            )
            works[node.name] = work
        if title not in work.titles:
            work.titles.append(title)
        return work

    for trial in trials:
        for node in trial.node.chain:
            if node.place is None:
                require_device(node.folder(root), node.config.engine.device)
        for by in trial.signals:
            file = trial.result_file(root, by)
            if file.is_file():
                continue
            work = want(trial.node, trial.title)
            if all(item.file != str(file) for item in work.measurements):
                record = {"split": trial.split, "data": dict(trial.data)}
                work.measurements.append(Measurement(str(file), trial.split, trial.view, record, by))
    return list(works.values())


def run(
    trials: Sequence[Trial],
    root: Path,
    *,
    data_root: Path,
    launcher: Launcher | None = None,
    watcher: Watcher | None = None,
) -> list[dict[str, Any]]:
    """Do what is missing and return a result for each trial.

    A result has ``row``, ``seed``, ``node``, ``trained`` (each stage's environments, by node), and either
    ``metrics`` with ``measured`` (the measurement's environment) or ``failed`` with ``log``. With
    ``select_by``: ``selected``, the epoch and the ``metrics`` of the teacher that the signal takes.

    Args:
        root: folder of all ablations.
        launcher: who does the work; none does it here, one piece after the other.

    Raises:
        Interrupted: the user stopped it; repeating goes on from there.
    """
    watcher = watcher or Watcher()
    works = missing_work(trials, root, data_root)
    done = sum(trial.is_done(root) for trial in trials)
    if done:
        watcher.say(f"{done} of {len(trials)} trials are already done")
    logs = root / "logs"

    def keep() -> None:  # at once, as nothing can be kept after a kill; the last time tells what is wrong
        with suppress(MrtError, OSError):
            _keep(trials, root)

    try:
        if launcher:
            failures = run_with(launcher, works, logs, watcher, keep)
        else:
            failures = run_here(works, logs, watcher, keep)
    except BaseException:  # stopped: what is done is kept all the same
        keep()
        raise
    _keep(trials, root)
    return [_result(trial, root, failures) for trial in trials]


def _keep(trials: Sequence[Trial], root: Path) -> None:
    """Copy the trials' results to those that are kept."""
    for trial in trials:
        for by in trial.signals:
            file, kept = trial.result_file(root, by), trial.kept_file(by)
            if kept is not None and not kept.is_file() and file.is_file():
                read_measured(file)  # nothing damaged is kept
                kept.parent.mkdir(parents=True, exist_ok=True)
                write_text(kept, file.read_text(encoding="utf-8"))


def _result(trial: Trial, root: Path, failures: Mapping[str, Failure]) -> dict[str, Any]:
    row, node, file = trial.row, trial.node, trial.result_file(root)
    names = ("name", "end", "paper", "note")
    found = read_measured(file) if file.is_file() else {}
    way = way_of(node.kind, node.way(root))
    if any(part.place is None and not is_run(part.folder(root)) for part in node.chain):
        way |= found.get("way", {})
    result = {
        "row": {**{name: getattr(row, name) for name in names}, "settings": dict(row.settings)},
        "seed": trial.config.seed,
        "node": node.name,
        "run": _below(root, node.weights(root)),
        **way,
    }
    if found:
        for by in filter(None, trial.signals):
            chosen = trial.result_file(root, by)
            if not chosen.is_file():
                failure = failures.get(node.name) or Failure("it was not done")
                result["not_selected"] = {"reason": failure.reason, "log": failure.log}
                continue
            other = read_measured(chosen)
            if not isinstance(other.get("selected"), dict):
                raise MrtError(f"{chosen}: is not what mrt wrote", "delete it and repeat the command")
            result["selected"] = {**other["selected"], "metrics": flat_metrics(other["metrics"])}
        measured = {"measured": found.get("environment"), "metrics": flat_metrics(found["metrics"])}
        return {**result, "result": _below(root, str(file)), **measured}
    failure = failures.get(node.name) or Failure("it was not done")
    return {**result, "failed": failure.reason, "log": failure.log}


def _below(root: Path, path: str) -> str:
    """A path as seen from the ablations' folder where it lies there, the same on every machine."""
    return str(Path(path).relative_to(root)) if Path(path).is_relative_to(root) else path


def make_report(
    results: Sequence[Mapping[str, Any]],
    trials: Sequence[Trial],
    *,
    title: str,
    subject: str,
    base: str,
    about: Mapping[str, Any],
) -> dict[str, Any]:
    """All that the tables and the picture show, as plain values.

    Args:
        subject: heading of the rows' names. base: name of the row that the others are compared with.
        about: what else goes on record: at least ``preset`` and ``smoke`` (whether the numbers mean nothing).

    What trials were trained and measured with stands with each of them; ``written_with`` is of this moment.
    """
    from mrt.engine.folder import provenance

    first = trials[0]
    data = list({json.dumps(trial.data, sort_keys=True): dict(trial.data) for trial in trials}.values())
    shared = {
        "split": first.split,
        "data": data,
        "seeds": list(dict.fromkeys(trial.config.seed for trial in trials)),
    }
    rows = summarise(results, base)
    head = {"title": title, "subject": subject, "base": base}
    return {**head, **shared, **about, "rows": rows, "written_with": provenance()}


def write_report(report: Mapping[str, Any], stem: Path) -> list[Path]:
    """Write ``stem.json``, ``.csv``, ``.md`` and, with matplotlib, ``.png`` and ``.svg``; returns paths."""
    texts = {".json": json.dumps(report, indent=1) + "\n", ".csv": to_csv(report), ".md": to_markdown(report)}
    paths = []
    for suffix, text in texts.items():
        paths.append(stem.with_name(stem.name + suffix))
        write_text(paths[-1], text)
    try:
        from mrt.ablate.plot import draw
    except ImportError:
        return paths
    return [*paths, *draw(report, stem)]


def choose_base(rows: Sequence[Row], wanted: str | None, usual: str | None = None) -> str:
    """The row that the others are compared with: the one asked for, else the study's, else the first."""
    names = [row.name for row in rows]
    if wanted is not None and wanted not in names:
        raise MrtError(f"--base {wanted}: no row has this name", f"rows: {'; '.join(names)}")
    return wanted or (usual if usual in names else names[0])


def choose_rows(rows: Sequence[Row], wanted: Sequence[str] | None, *, baselines: bool = False) -> list[Row]:
    """The rows of a table: those of ``rows`` that are wanted by name (None: all), in the order they stand in.

    Args:
        baselines: also fair source-only and the oracles, where ``rows`` lacks them. By name each may be
            wanted without it.

    Raises:
        MrtError: no row has a wanted name.
    """
    others = [row for row in BASELINES if row not in rows]
    there = {row.name: row for row in (*others, *rows)}
    unknown = [name for name in wanted or () if name not in there]
    if unknown:
        known = "; ".join(row.name for row in (*rows, *others))
        raise MrtError(f"--rows {unknown[0]!r}: no row has this name", f"rows: {known}")
    names = [row.name for row in rows] if wanted is None else wanted
    names = [*names, *(row.name for row in others if baselines)]
    return [row for row in (*rows, *others) if row is there[row.name] and row.name in names]


def table_name(called: str, wanted: Sequence[str] | None) -> str:
    """The name of a table's files: ``called``, with the rows that it is about where not all are wanted."""
    if wanted is None:
        return called
    name = f"{called}-{'-'.join(map(slug, wanted))}"
    digest = hashlib.sha256("\n".join(wanted).encode()).hexdigest()
    return name if len(name) <= NAME_LENGTH else f"{name[:NAME_LENGTH]}-{digest[:6]}"


def axis_settings(axes: Sequence[Axis]) -> dict[str, list[str]]:
    """Axes as they go on record."""
    return {axis.key: [plain(value) for value in axis.values] for axis in axes}
