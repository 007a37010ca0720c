"""Ablations: a grid of settings times seeds, each trial a run of `adapt` and an evaluation, summed up in one table.

A trial is known by the content hash of its resolved configuration. Its result stays on disk, so repeating a grid, or asking for a
larger one that shares trials with it, only runs what is missing.
"""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import json
import shutil
import statistics
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mrt.config import Config, flag_name, known_keys, load_config, nearest
from mrt.data.card import file_sha256, read_json
from mrt.data.registry import find_dataset
from mrt.engine.report import Watcher
from mrt.errors import Interrupted, MrtError, RunFailed
from mrt.files import write_text

MACHINE_KEYS = ("device", "threads", "workers", "log_every", "keep_checkpoints", "compile", "checkpointing")  # of [engine]: they change no result
METRICS = ("AP50", "AP", "AP75")  # of every table, in this order


@dataclass(frozen=True)
class Axis:
    """A setting that is varied: its dotted key and the values, as texts like those of ``--set``."""

    key: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Trial:
    """One cell of the grid with one seed."""

    settings: dict[str, Any]  # axis key -> value, from the resolved configuration
    config: Config
    digest: str

    @property
    def title(self) -> str:
        return "  ".join([*(f"{flag_name(key)} {value}" for key, value in self.settings.items()), f"seed {self.config.seed}"])


def find_key(name: str) -> str:
    """The dotted key that an option's name stands for: ``mask-ratio``, ``mask_ratio`` or ``mae.mask_ratio``.

    Raises:
        MrtError: no setting has that name (the nearest one is named), or several have (all are named).
    """
    plain = name.replace("-", "_")
    keys = known_keys()
    if plain in keys:
        return plain
    found = [key for key in keys if key.rpartition(".")[2] == plain]
    if len(found) == 1:
        return found[0]
    if found:
        raise MrtError(
            f"--{name}: several settings have this name: {', '.join(found)}", f"write the whole key, e.g. --axis {found[0]} VALUE VALUE"
        )
    guess = nearest(plain, [key.rpartition(".")[2] for key in keys]) or nearest(plain, keys)
    meant = f": did you mean --{guess if '.' in guess else flag_name(guess)}?" if guess else ""
    raise MrtError(f"--{name}: neither an option nor a setting{meant}", "see every setting with: mrt adapt --preset demo --dry-run")


def make_axes(given: Sequence[tuple[str, Sequence[str]]]) -> list[Axis]:
    """Axes from (name, values) pairs; MrtError for an axis without values or given twice."""
    axes: list[Axis] = []
    for name, values in given:
        if not name:
            raise MrtError("--axis: no setting is named", "for example --axis mae.mask_ratio 0.5 0.8")
        key = find_key(name)
        if key in ("seed", "preset"):
            raise MrtError(f"--{name}: not an axis", "seeds are given with --seeds 0 1 2, a preset with --preset")
        if not values:
            raise MrtError(f"--{name}: no values", f"for example --{name} 0.5 0.8")
        if any(axis.key == key for axis in axes):
            raise MrtError(f"--{name}: given twice", "write all its values after one option")
        axes.append(Axis(key, tuple(values)))
    return axes


def content_hash(config: Config) -> str:
    """sha256 over everything that can change a result.

    That is every setting but the preset's name and the machine's (device, workers, ...), with the starting weights' content for their name.
    """
    values = config.model_dump(mode="json")
    values.pop("preset")
    values["init"] = _fingerprint(config.init) if config.init else None
    for key in MACHINE_KEYS:
        values["engine"].pop(key)
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _fingerprint(init: str) -> str:
    """sha256 of the weights that an ``init`` names; the name itself where there are none yet."""
    from mrt.engine.inference import find_weights

    try:
        return file_sha256(find_weights(init))
    except MrtError:
        return init


def plan(
    preset: str | Path, axes: Sequence[Axis], seeds: Sequence[int], overrides: Sequence[str] = (), changes: Mapping[str, Any] | None = None
) -> list[Trial]:
    """Every combination of the axes' values with every seed, in that order; combinations that resolve to the same settings count once."""
    trials: dict[str, Trial] = {}
    for values in itertools.product(*(axis.values for axis in axes)):
        chosen = [f"{axis.key}={value}" for axis, value in zip(axes, values, strict=True)]
        for seed in seeds:
            config = load_config(preset, [*overrides, *chosen], {**(changes or {}), "seed": seed})
            trial = Trial({axis.key: setting(config, axis.key) for axis in axes}, config, content_hash(config))
            trials.setdefault(trial.digest, trial)
    return list(trials.values())


def setting(config: Config, key: str) -> Any:
    """The value of a dotted key."""
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    return value


def trial_folder(root: Path, trial: Trial) -> Path:
    """Where a trial's run and result are."""
    return root / "trials" / trial.digest[:16]


def result_file(root: Path, trial: Trial, split: str) -> Path:
    """A trial has a result for each split of the target that it was evaluated on."""
    return trial_folder(root, trial) / f"result-{split}.json"


def stored_result(root: Path, trial: Trial, split: str, data: Mapping[str, str]) -> dict[str, Any] | None:
    """The result of a finished trial on a split, or None.

    Raises:
        MrtError: it was made on annotations that have changed since (``data`` as :func:`describe_data` gives it).
    """
    path = result_file(root, trial, split)
    if not path.is_file():
        return None
    result = read_json(path)
    _require_same_data(path, data, result["data"].values())
    return result


def describe_data(config: Config, data_root: Path, split: str | None = None) -> dict[str, str]:
    """The sets and splits a trial is trained (and, on ``split`` of its target, evaluated) on, with the sha256 of their annotations."""
    data = config.data
    used = [(data.source, data.source_split), (data.target, data.target_split), *([(data.target, split)] if split else [])]
    return {f"{name}/{part}": find_dataset(name, data_root).split(part).sha256 for name, part in used}


def _require_same_data(where: Path, data: Mapping[str, str], recorded: Collection[str]) -> None:
    changed = [name for name, sha256 in data.items() if sha256 not in recorded]
    if changed:
        raise MrtError(
            f"{where}: made on other data than what is prepared now ({', '.join(changed)})",
            "delete the trial's folder to run it again, or use another --run-root",
        )


def run(
    trials: Sequence[Trial],
    root: Path,
    *,
    data_root: Path,
    split: str = "val",
    watcher: Watcher | None = None,
    on_result: Callable[[Trial, dict[str, Any]], None] | None = None,
) -> list[dict[str, Any]]:
    """Run what is missing and return all results, in the trials' order.

    A trial that fails (a non-finite loss) has ``"failed"`` in its result instead of metrics, is not stored, and does not stop the others.

    Args:
        root: folder of all ablations; trials lie in ``root/trials``.
        split: the target's split to evaluate on.

    Raises:
        MrtError: bad settings, data or stored results. Interrupted: the user stopped a trial; repeating the grid continues it.
    """
    watcher = watcher or Watcher()
    results = []
    for number, trial in enumerate(trials, start=1):
        data = describe_data(trial.config, data_root, split)
        result = stored_result(root, trial, split, data)
        if result is None:
            watcher.say(f"[{number}/{len(trials)}] {trial.title}")
            try:
                result = _run_one(trial, root, data_root, split, data, watcher)
            except Interrupted:
                raise
            except RunFailed as error:
                result = {"settings": trial.settings, "seed": trial.config.seed, "failed": str(error)}
        else:
            watcher.say(f"[{number}/{len(trials)}] {trial.title}: already done")
        results.append(result)
        if on_result is not None:
            on_result(trial, result)
    return results


def finish_run(folder: Path, config: Config, last_stage: str, start: Callable[[bool], Any]) -> bool:
    """Bring the run in ``folder`` to its end, from wherever it stands: not begun, interrupted, or done (then nothing happens).

    Args:
        config: the settings it must have.
        start: called with ``resume``.

    Returns:
        Whether there was anything to do.

    Raises:
        MrtError: the folder holds a run with other settings, or something that is no run; nothing of it is touched.
    """
    from mrt.engine.folder import read_facts

    facts: dict[str, Any] = {}
    if (folder / "run.json").is_file() and (folder / "config.json").is_file():
        if content_hash(load_config(folder / "config.json")) != content_hash(config):
            raise MrtError(f"{folder}: holds a run with other settings", f"delete {folder}, or use another --run-root")
        facts = read_facts(folder)
        if last_stage in facts.get("finished", ()):
            return False
    resume = (folder / "checkpoints" / "last.pt").is_file()
    if folder.is_dir() and any(folder.iterdir()) and not resume:
        if facts.get("finished") != [] or any(folder.glob("checkpoints/*.pt")):
            raise MrtError(f"{folder}: not empty, and no run that could be continued", f"look what it is, then move or delete {folder}")
        shutil.rmtree(folder)  # stopped before its first checkpoint: nothing to continue
    start(resume)
    return True


def _run_one(trial: Trial, root: Path, data_root: Path, split: str, data: Mapping[str, Any], watcher: Watcher) -> dict[str, Any]:
    from mrt.engine import inference, stages
    from mrt.engine.folder import read_facts

    folder = trial_folder(root, trial)

    def start(resume: bool) -> None:
        stages.adapt(trial.config, folder, init=trial.config.init, resume=resume, data_root=data_root, watcher=watcher)

    if not finish_run(folder, trial.config, "teach", start):
        recorded = [sha256 for card in read_facts(folder)["data"].values() for sha256 in card["sha256"].values()]
        _require_same_data(folder, describe_data(trial.config, data_root), recorded)
    target, device = trial.config.data.target, trial.config.engine.device
    found = inference.evaluate_detector(folder, data=target, split=split, device=device, data_root=data_root, watcher=watcher)
    result = {
        "settings": {key: _plain(value) for key, value in trial.settings.items()},
        "seed": trial.config.seed,
        "digest": trial.digest,
        "run": folder.name,
        "data": dict(data),
        "metrics": found.metrics.to_dict(),
    }
    write_text(result_file(root, trial, split), json.dumps(result, indent=1) + "\n")
    return result


def summarise(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row per combination of settings: mean and sample standard deviation over its seeds (None for a single seed).

    Metrics are per cent. A row's ``failed`` counts the seeds without a result.
    """
    rows: dict[str, dict[str, Any]] = {}
    for result in results:
        settings = {key: _plain(value) for key, value in result["settings"].items()}
        row = rows.setdefault(json.dumps(settings), {"settings": settings, "seeds": [], "failed": 0, "values": []})
        if "failed" in result:
            row["failed"] += 1
        else:
            row["seeds"].append(result["seed"])
            row["values"].append(flat_metrics(result["metrics"]))
    return [{**{k: v for k, v in row.items() if k != "values"}, "metrics": spread_metrics(row["values"])} for row in rows.values()]


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
    """Mean and sample standard deviation of the numbers there are; the deviation is None for fewer than two."""
    there = [number for number in numbers if number is not None]
    return {"mean": statistics.fmean(there) if there else None, "std": statistics.stdev(there) if len(there) > 1 else None}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def write_tables(
    stem: Path, rows: Sequence[Mapping[str, Any]], results: Sequence[Mapping[str, Any]], about: Mapping[str, Any]
) -> tuple[Path, Path]:
    """Write ``stem.json`` (rows, every trial, what it was made with) and ``stem.csv`` (a line per row); returns both paths."""
    paths = stem.with_name(stem.name + ".json"), stem.with_name(stem.name + ".csv")
    write_text(paths[0], json.dumps({**about, "rows": list(rows), "trials": list(results)}, indent=1) + "\n")
    write_text(paths[1], to_csv(rows))
    return paths


def to_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as CSV: the settings, the number of seeds, then mean and std of each metric (per cent)."""
    settings = list(dict.fromkeys(key for row in rows for key in row["settings"]))
    metrics = list(dict.fromkeys(name for row in rows for name in row["metrics"]))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*settings, "seeds", "failed", *itertools.chain.from_iterable((name, f"{name} std") for name in metrics)])
    for row in rows:
        numbers = itertools.chain.from_iterable((row["metrics"].get(name, {}).get(kind) for kind in ("mean", "std")) for name in metrics)
        cells = [_cell(row["settings"].get(key)) for key in settings]
        writer.writerow([*cells, len(row["seeds"]), row["failed"], *("" if number is None else f"{number:.4f}" for number in numbers)])
    return text.getvalue()


def _cell(value: Any) -> str:
    return json.dumps(value) if isinstance(value, (list, dict)) else str(value)
