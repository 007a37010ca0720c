"""What runs wrote down: settings, provenance, numbers over time, stored results, recorded pseudo labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mrt.config import Config, flag_name, load_config, preset_names
from mrt.data.card import DatasetCard, read_json
from mrt.data.registry import find_dataset
from mrt.engine.report import read_log
from mrt.errors import MrtError

SECTION_OF_STAGE = {"pretrain": "pretrain", "mae": "mae_stage", "teach": "teach"}
STAGE_TITLES = {"pretrain": "source training", "mae": "masked autoencoder", "teach": "teaching"}
MATCHED_TITLES = {"mae": "steps of stage 2", "teach": "steps of stage 3"}  # of a baseline or an oracle, which has no adaptive part
NODES = "nodes"  # the folder of an ablation's runs


@dataclass(frozen=True)
class Span:
    """A stage on the axis of epochs: its name and title, where it begins, its length, and optimiser steps per epoch."""

    name: str
    title: str
    begin: float
    epochs: float
    steps_per_epoch: int


@dataclass
class RunData:
    """A run folder as read.

    Attributes:
        title: what tables and legends call it. facts: ``run.json``. lines: ``metrics.jsonl``.
        snapshots: ``pseudo_labels.jsonl``, a line per epoch of teaching.
        results: stored evaluations: run, network, data, split, sha256, metrics, and "file", where they came from.
    """

    title: str
    folder: Path
    config: Config
    facts: dict[str, Any]
    lines: list[dict[str, Any]]
    snapshots: list[dict[str, Any]]
    results: list[dict[str, Any]]

    @property
    def classes(self) -> list[str]:
        return list(self.facts["classes"])

    @property
    def domain(self) -> str:
        """Whose images were measured while it trained: "target", or "source" where it knows no target."""
        return "target" if "target" in self.facts["data"] else "source"

    @property
    def matched(self) -> bool:
        """Whether it is a baseline or an oracle with the compute of adaptation (a run of an earlier version calls it match_adapt)."""
        return bool(self.facts.get("match_compute") or self.facts.get("match_adapt"))

    @property
    def has_teacher(self) -> bool:
        return (self.folder / "teacher.safetensors").is_file()

    @property
    def unfinished(self) -> list[str]:
        """Stages that are still to come, or to be finished."""
        if self.facts["command"] == "adapt":
            stages = self.facts.get("stages") or ["mae", "teach"]
        else:
            stages = ["mae", "teach"] if self.matched else ["pretrain"]
        return [name for name in stages if name not in self.facts["finished"]]

    def of(self, kind: str, stage: str | None = None) -> list[dict[str, Any]]:
        """The lines of a kind ("train", "epoch", "eval"), of all stages or one."""
        return [line for line in self.lines if line["kind"] == kind and stage in (None, line["stage"])]

    @cached_property
    def spans(self) -> list[Span]:
        """The stages in their order."""
        spans: list[Span] = []
        begin = 0.0
        titles = STAGE_TITLES | (MATCHED_TITLES if self.matched else {})
        for name in dict.fromkeys(line["stage"] for line in self.lines):
            settings = getattr(self.config, SECTION_OF_STAGE.get(name, "teach"))
            ends = self.of("epoch", name)
            last = max(line["step"] for line in self.lines if line["stage"] == name)
            steps = ends[-1]["step"] // ends[-1]["epoch"] if ends else settings.steps_per_epoch or last
            epochs = max(settings.epochs, last / max(steps, 1))
            spans.append(Span(name, titles.get(name, name), begin, epochs, max(steps, 1)))
            begin += epochs
        return spans

    def place(self, line: Mapping[str, Any]) -> float:
        """Where a line lies on the axis of epochs, all stages counted."""
        span = next(span for span in self.spans if span.name == line["stage"])
        return span.begin + line["step"] / span.steps_per_epoch

    def series(self, key: str, kind: str = "train", **where: Any) -> tuple[list[float], list[float]]:
        """Epochs and values of a number of the log, where it was logged."""
        found = [
            (self.place(line), line[key])
            for line in self.of(kind)
            if line.get(key) is not None and all(line.get(name) == value for name, value in where.items())
        ]
        return [x for x, _ in found], [y for _, y in found]

    @property
    def retrained(self) -> list[float]:
        """Epochs after which parts of the student went back to where teaching began."""
        return [self.place(line) for line in self.of("epoch") if "retrained" in line]

    def best_epoch(self) -> dict[str, Any] | None:
        """The line of the epoch with the highest AP50 on labelled target images: a choice that adaptation without labels cannot make."""
        measured = [line for line in self.of("eval") if line.get("AP50") is not None]
        return max(measured, key=lambda line: line["AP50"], default=None)

    def result(self, data: str, split: str, sha256: str | None) -> dict[str, Any] | None:
        """The stored evaluation of the last network (its teacher, where it has one) on a split, of these annotations if they are given."""
        network = "teacher" if self.has_teacher else "student"
        for item in self.results:
            known = (item["network"], item["data"], item["split"]) == (network, data, split)
            if known and item.get("last", True) and (sha256 is None or item["sha256"] == sha256):
                return item
        return None


def load_run(folder: Path) -> RunData:
    """Read a run folder; MrtError if it is none."""
    path = folder / "run.json"
    if not path.is_file() or not (folder / "config.json").is_file():
        raise MrtError(
            f"{folder}: not a run folder (no run.json and config.json)",
            "name a folder that mrt pretrain-source, adapt, demo or ablate has written",
        )
    facts = read_json(path)
    return RunData(
        title=folder.name,
        folder=folder,
        config=load_config(folder / "config.json"),
        facts=facts,
        lines=read_log(folder / "metrics.jsonl"),
        snapshots=read_log(folder / "pseudo_labels.jsonl"),
        results=_stored_results(folder),
    )


def load_runs(folders: Sequence[Path], titles: Sequence[str | None] | None = None) -> list[RunData]:
    """Read several, with titles that differ.

    Those given; else folder names, or, for an ablation's nodes, the settings in which they differ.
    """
    runs = [load_run(folder) for folder in folders]
    if len(runs) > 1 and all(run.folder.resolve().parent.name == NODES for run in runs):
        changed = {key: values for key, values in changed_settings([run.config for run in runs]).items() if key != "init"}
        for number, run in enumerate(runs):
            settings = [f"{flag_name(key)} {values[number]}" for key, values in changed.items()]
            run.title = run.title.partition("-")[0] + (f" ({', '.join(settings)})" if settings else "")
    for run, title in zip(runs, titles or (), strict=False):
        run.title = title or run.title
    if len({run.title for run in runs}) < len(runs):
        for run in runs:
            run.title = f"{run.folder.parent.name}/{run.folder.name}"
    return runs


def start_of(run: RunData) -> str | None:
    """Where the run started: a shipped name, or a run by its name under the run root if it lies there, else its path."""
    init = run.facts.get("init")
    folder = run.folder.resolve()
    root = folder.parents[2] if folder.parent.name == NODES else folder.parent
    return str(Path(init).relative_to(root)) if init and Path(init).is_relative_to(root) else init


def _stored_results(folder: Path) -> list[dict[str, Any]]:
    """What ``mrt eval`` (eval-*.json) and ``mrt ablate`` (result-*.json) left in a run's folder."""
    found = []
    for path in sorted(folder.glob("eval-*.json")):
        found += [{**item, "file": path.name} for item in read_json(path)]
    for path in sorted(folder.glob("result-*.json")):
        item = read_json(path)
        found.append({**item, "data": item["data"]["name"], "sha256": item["data"].get("sha256"), "file": path.name})
    return found


def choose_split(runs: Sequence[RunData], data: str, asked: str | None) -> str:
    """The split to judge on: the one asked for; else test, if every run has been evaluated on it already; else the validation split."""
    if asked:
        return asked
    return "test" if all(run.result(data, "test", None) for run in runs) else runs[0].config.data.validation_split


def find_card(run: RunData, domain: str, data_root: Path) -> DatasetCard | None:
    """The card of the set a run used, if it is here."""
    try:
        return find_dataset(getattr(run.config.data, domain), data_root)
    except MrtError:
        return None


def flatten(config: Config) -> dict[str, Any]:
    """Dotted key -> plain value."""
    flat: dict[str, Any] = {}
    for name, value in config.model_dump(mode="json").items():
        if isinstance(value, dict):
            flat |= {f"{name}.{key}": item for key, item in value.items()}
        else:
            flat[name] = value
    return flat


def changed_settings(configs: Sequence[Config]) -> dict[str, list[Any]]:
    """The settings that are not the same in all: dotted key -> one value per configuration."""
    flat = [flatten(config) for config in configs]
    return {key: [item[key] for item in flat] for key in flat[0] if any(item[key] != flat[0][key] for item in flat)}


def preset_of(run: RunData) -> Config | None:
    """The preset that a run was made from, as it is now."""
    return load_config(run.config.preset) if run.config.preset in preset_names() else None
