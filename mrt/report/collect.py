"""Contents of run folders: settings, provenance, logged numbers, stored results, recorded pseudo labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mrt.config import Config, flag_name, load_config, load_stored, preset_names
from mrt.data.card import DatasetCard
from mrt.data.registry import find_dataset
from mrt.engine.facts import FACTS, SETTINGS, read_facts, require_own_settings
from mrt.errors import MrtError
from mrt.plain import quoted
from mrt.report.stored import read_metrics, read_results, read_snapshots

SECTION_OF_STAGE = {"pretrain": "pretrain", "mae": "mae_stage", "teach": "teach"}
STAGE_TITLES = {"pretrain": "source training", "mae": "masked autoencoder", "teach": "teaching"}
# Of a baseline or an oracle, which has no adaptive part.
MATCHED_TITLES = {"mae": "steps of stage 2", "teach": "steps of stage 3"}
COMMANDS = ("adapt", "pretrain-source")  # that make runs
START = "start"  # what the networks that runs started from are called
NODES = "nodes"  # the folder of an ablation's runs


@dataclass(frozen=True)
class Span:
    """A stage on the axis of epochs: name, title, begin and length in epochs, and steps per epoch."""

    name: str
    title: str
    begin: float
    epochs: float
    steps_per_epoch: int


@dataclass
class RunData:
    """The contents of a run folder.

    Attributes:
        title: the run's name in tables and legends.
        facts: ``run.json``.
        lines: ``metrics.jsonl``.
        snapshots: ``pseudo_labels.jsonl``, a line per epoch of teaching.
        results: stored evaluations: run, network, data, split, sha256, metrics, and "file", their source.
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
        """The domain that was evaluated on during training: "target", or "source" if there was no target."""
        return "target" if "target" in self.facts["data"] else "source"

    @property
    def matched(self) -> bool:
        """Whether it is a baseline or an oracle with the compute of adaptation.

        Earlier versions of mrt called this match_adapt.
        """
        return bool(self.facts.get("match_compute") or self.facts.get("match_adapt"))

    @property
    def has_teacher(self) -> bool:
        return (self.folder / "teacher.safetensors").is_file()

    @property
    def unfinished(self) -> list[str]:
        """Stages that have not finished yet."""
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
            if isinstance(line.get(key), (int, float))
            and all(line.get(name) == value for name, value in where.items())
        ]
        return [x for x, _ in found], [y for _, y in found]

    @property
    def retrained(self) -> list[float]:
        """Epochs after which parts of the student were reset to their weights at the start of teaching."""
        return [self.place(line) for line in self.of("epoch") if "retrained" in line]

    def best_epoch(self) -> dict[str, Any] | None:
        """The line of the epoch with the highest AP50 on labelled target images.

        Adaptation without labels cannot make this choice.
        """
        measured = [line for line in self.of("eval") if line.get("AP50") is not None]
        return max(measured, key=lambda line: line["AP50"], default=None)

    def result(self, data: str, split: str, sha256: str | None) -> dict[str, Any] | None:
        """The stored evaluation of the last network on a split, or None.

        The network is the teacher if there is one. If ``sha256`` is given, annotations must have this hash.
        """
        network = "teacher" if self.has_teacher else "student"
        for item in self.results:
            known = (item["network"], item["data"], item["split"]) == (network, data, split)
            if known and item.get("last", True) and (sha256 is None or item["sha256"] == sha256):
                return item
        return None


def load_run(folder: Path) -> RunData:
    """Read a run folder; MrtError if it is none."""
    if not (folder / FACTS).is_file():
        raise MrtError(
            f"{folder}: not a run folder (no {FACTS})",
            "name a folder that mrt pretrain-source, adapt, demo or ablate has written",
        )
    if not (folder / SETTINGS).is_file():
        raise MrtError(
            f"{folder / SETTINGS}: missing: the run had written it",
            f"put it back; mrt doctor {quoted(folder)} says what else is wrong",
        )
    facts = read_facts(folder)
    _require_sense(folder / FACTS, facts)
    require_own_settings(folder, facts)
    return RunData(
        title=folder.resolve().name,
        folder=folder,
        config=load_stored(folder / SETTINGS),
        facts=facts,
        lines=read_metrics(folder / "metrics.jsonl"),
        snapshots=read_snapshots(folder / "pseudo_labels.jsonl", facts["classes"]),
        results=read_results(folder),
    )


def _require_sense(path: Path, facts: Mapping[str, Any]) -> None:
    """MrtError if ``run.json`` says what no run can."""
    classes, domains = facts["classes"], list(facts["data"])
    wrong = {
        f"classes = {str(classes)[:80]}: they have to be different names": not classes
        or len({*classes}) < len(classes),
        f"data = {str(domains)[:80]}: they have to be of source and target": not {*domains}
        <= {"source", "target"},
        f"command = {facts['command'][:80]!r}: no run is of it": facts["command"] not in COMMANDS,
    }
    for problem, holds in wrong.items():
        if holds:
            raise MrtError(f"{path}: {problem}", "put the file back as it was")


def load_runs(folders: Sequence[Path], titles: Sequence[str | None] | None = None) -> list[RunData]:
    """Read several runs and give them unique titles.

    Titles are those given, else folder names, or for an ablation's nodes the settings in which they differ.
    """
    runs = [load_run(folder) for folder in folders]
    if len(runs) > 1 and all(run.folder.resolve().parent.name == NODES for run in runs):
        changed = changed_settings([run.config for run in runs])
        changed.pop("init", None)
        for number, run in enumerate(runs):
            settings = [f"{flag_name(key)} {values[number]}" for key, values in changed.items()]
            run.title = run.title.partition("-")[0] + (f" ({', '.join(settings)})" if settings else "")
    for run, title in zip(runs, titles or (), strict=False):
        run.title = title or run.title
        run.title = f"the run {run.title}" if run.title == START else run.title
    for rename in (lambda place: f"{place.parent.name}/{place.name}", str):
        if len({run.title for run in runs}) < len(runs):
            for run in runs:
                run.title = rename(run.folder.resolve())
    counts = Counter(run.title for run in runs)
    for run in runs:
        if counts[run.title] > 1:
            raise MrtError(f"{run.folder}: is named twice", "name each run once")
    return runs


def network_of(run: RunData, network: str) -> str:
    """What a network of a run is called: "teacher" only where somebody was taught by it; of training on
    labels it is an average.
    """
    return "average" if network == "teacher" and run.facts["command"] == "pretrain-source" else network


def start_of(run: RunData) -> str | None:
    """The weights that the run started from: a shipped name, a run's name under the run root, or a path."""
    init = run.facts.get("init")
    folder = run.folder.resolve()
    root = folder.parents[2] if folder.parent.name == NODES else folder.parent
    return str(Path(init).relative_to(root)) if init and Path(init).is_relative_to(root) else init


def choose_split(
    runs: Sequence[RunData], data: str, asked: str | None, card: DatasetCard | None = None
) -> str:
    """The split to evaluate on: ``asked``, else test if every run has results on it, else validation, or of a
    set without that the first of val, test, and what there is.
    """
    if asked:
        return asked
    tested = all(run.result(data, "test", None) for run in runs)
    usual = "test" if tested else runs[0].config.data.validation_split
    there = card.splits if card is not None else {}
    return next((name for name in (usual, "val", "test", *there) if name in there), usual)


def find_card(run: RunData, domain: str, data_root: Path) -> DatasetCard | None:
    """The card of the set a run used, if it is here; a run without source images used none for them."""
    if domain == "source" and run.config.method.source_free and run.facts["command"] == "adapt":
        return None
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
    """The settings that differ: dotted key -> one value per configuration."""
    flat = [flatten(config) for config in configs]
    keys = dict.fromkeys(key for item in flat for key in item)  # plug-ins of some add settings
    values = {key: [item.get(key) for item in flat] for key in keys}
    return {key: found for key, found in values.items() if any(value != found[0] for value in found)}


def preset_of(run: RunData) -> Config | None:
    """The preset that a run was made from, as it is now."""
    return load_config(run.config.preset) if run.config.preset in preset_names() else None
