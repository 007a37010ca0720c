"""``mrt demo``: all steps, from clear synthetic streets into fog, with a fair baseline."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options
from .arguments import ListCommand

if TYPE_CHECKING:
    from mrt.config import Config, Settings
    from mrt.engine.inference import Result
    from mrt.engine.report import Watcher

FAIR, ADAPTED, ORACLE = "fair source-only", "adapted (last teacher)", "oracle"
SPLIT = "test"
EMPTY = {"mean": None, "std": None}


@dataclass(frozen=True)
class World:
    """What a demo runs on: a preset, whether its sets are those of ``prepare-data synthetic --benchmark``,
    the option of ``mrt demo`` that chooses it, and the folder of its runs unless another is named.
    """

    preset: str
    benchmark: bool
    option: str
    name: str


USUAL = World("demo", True, "", "demo")
QUICK = World("small", False, " --quick", "demo-quick")


def demo(
    seeds: Annotated[
        list[int] | None,
        typer.Option(
            min=0, metavar="SEED...", help="Seeds; the table shows their mean and deviation. Default: 0."
        ),
    ] = None,
    oracle: Annotated[
        bool,
        typer.Option(
            "--oracle",
            help="Train the oracle too (on the target's labels), instead of showing its recorded figure.",
        ),
    ] = False,
    from_scratch: Annotated[
        bool,
        typer.Option(
            "--from-scratch",
            help="Train the source detector, instead of starting from the shipped one: an hour on two cores, "
            "less with --quick.",
        ),
    ] = False,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick",
            help="A smaller world, for a first look: preset small, images of 256x128, a backbone that does "
            "not learn. It gains less.",
        ),
    ] = False,
    images: Annotated[int, typer.Option(min=1, help="Images in the picture.")] = 4,
    record: Annotated[Path | None, typer.Option(help="Also write the figures to this file.")] = None,
    name: Annotated[
        str | None,
        typer.Option(help="Folder of the demo's runs under the run root. Default: demo, or demo-quick."),
    ] = None,
    overrides: options.Set = None,
    data_root: options.DataRoot = None,
    run_root: options.RunRoot = None,
    device: options.Device = None,
) -> None:
    """Take a detector from clear weather into fog: data, source-only, adaptation, evaluation.

    What an earlier call has finished is not done again; each step shows the command that does the same.
    """
    from mrt.experiment import find_roots, run_folder

    from .console import say, watching
    from .experiment import repeatable, require_one_process

    require_one_process("demo")
    roots = find_roots(data_root, run_root)
    words = _words("--data-root", data_root) + _words("--run-root", run_root)
    started, world = time.monotonic(), QUICK if quick else USUAL
    name = world.name if name is None else name
    run_folder(roots.run_root, name)
    seeds = list(dict.fromkeys(seeds or [0]))
    with watching() as watcher, repeatable("demo"):
        road = Road(world, roots, name, seeds, overrides or [], device, watcher, words)
        start = None if from_scratch else road.shipped_source()
        road.prepare()
        start = start or road.trained_source()
        for seed in road.seeds:
            road.compare(seed, start, oracle)
    finish(road, record, images)
    say(f"The demo took {(time.monotonic() - started) / 60:.1f} minutes.")


def _words(option: str, path: Path | None) -> list[str]:
    return [option, str(path)] if path is not None else []


@dataclass
class Road:
    """The demo's steps and their results: for each column of the table, one result per seed."""

    world: World
    roots: Settings
    name: str
    seeds: Sequence[int]
    overrides: Sequence[str]
    device: str | None
    watcher: Watcher
    words: list[str]
    results: dict[str, list[Result]] = field(default_factory=dict)
    folders: list[Path] = field(default_factory=list)  # of the runs that were measured

    def config(self, seed: int, start: str | None = None) -> Config:
        """The world's preset with this call's options."""
        from mrt.experiment import resolve

        options = {"seed": seed, "engine.device": self.device, "init": start}
        return resolve(self.world.preset, self.overrides, options)

    def folder(self, name: str) -> Path:
        return self.roots.run_root / self.name / name

    def show(self, command: str, *more: str, training: bool = True) -> None:
        """Print the command that does the same as the next step."""
        settings = ["--set", *self.overrides] if training and self.overrides else []
        device = ["--device", self.device] if self.device else []
        words = ["mrt", *command.split(), *more, *settings, *device, *self.words]
        self.watcher.say("\n$ " + shlex.join(words))

    def prepare(self) -> None:
        """Render the two data sets where they are missing."""
        from mrt.data.card import CARD_NAME
        from mrt.data.synthetic import BENCHMARK, SMALL

        from .prepare_synthetic import PAIR, make_synthetic

        family, root = BENCHMARK if self.world.benchmark else SMALL, self.roots.data_root
        missing = [name for name in PAIR if not (root / f"{family.prefix}{name}" / CARD_NAME).is_file()]
        words = ["mrt", "prepare-data", "synthetic", *(["--benchmark"] if self.world.benchmark else [])]
        words += ["--domain", *(missing or PAIR), *self.words[: 2 * ("--data-root" in self.words)]]
        self.watcher.say("$ " + shlex.join(words))
        if missing:
            make_synthetic(
                root, missing, family.splits, family.size, prefix=family.prefix, watcher=self.watcher
            )
        else:
            self.watcher.say("already prepared")

    def shipped_source(self) -> str:
        """The detector that ships with mrt, which adaptation and its baseline start from."""
        from mrt.engine.load import find_weights
        from mrt.errors import MrtError

        init = self.config(self.seeds[0]).init
        try:
            find_weights(init or "")
        except MrtError:
            raise MrtError(
                f"the demo starts from {init!r}, which is not here",
                f"train it first: mrt demo{self.world.option} --from-scratch",
            ) from None
        return init

    def trained_source(self) -> str:
        """A source detector trained now, with the preset's own seed for every seed of the comparison."""
        from mrt.engine import stages

        config, folder = self.config(0).model_copy(update={"init": None}), self.folder("source")
        self.show(f"pretrain-source --preset {self.world.preset}", "--name", f"{self.name}/source")

        def train(resume: bool) -> None:
            stages.pretrain_source(
                config, folder, resume=resume, data_root=self.roots.data_root, watcher=self.watcher
            )

        self._finish(folder, config, "pretrain", train)
        return str(folder)

    def compare(self, seed: int, start: str, oracle: bool) -> None:
        """Train and evaluate the fair baseline, the adapted detector and, with ``oracle``, the oracle.

        All start from the same weights.
        """
        from mrt.engine import stages

        config, preset = self.config(seed, start), f"--preset {self.world.preset}"
        options = ["--init", start, *(["--seed", str(seed)] if seed else [])]

        def baseline(labels: str | None, folder: Path) -> Callable[[bool], None]:
            return lambda resume: stages.pretrain_source(
                config,
                folder,
                init=start,
                resume=resume,
                match_compute=True,
                oracle=labels,
                data_root=self.roots.data_root,
                watcher=self.watcher,
            )

        def adapt(resume: bool) -> None:
            stages.adapt(
                config,
                folder,
                init=start,
                resume=resume,
                data_root=self.roots.data_root,
                watcher=self.watcher,
            )

        folder = self.folder(f"fair-seed{seed}")
        command = f"pretrain-source {preset} --match-compute"
        self.show(command, "--name", f"{self.name}/{folder.name}", *options)
        self._finish(folder, config, "teach", baseline(None, folder))
        self._evaluate(FAIR, folder, config)

        folder = self.folder(f"adapt-seed{seed}")
        self.show(f"adapt {preset}", "--name", f"{self.name}/{folder.name}", *options)
        self._finish(folder, config, "teach", adapt)
        self._evaluate(ADAPTED, folder, config)

        if oracle:
            folder = self.folder(f"oracle-seed{seed}")
            command = f"pretrain-source {preset} --match-compute --oracle target"
            self.show(command, "--name", f"{self.name}/{folder.name}", *options)
            self._finish(folder, config, "teach", baseline("target", folder))
            self._evaluate(ORACLE, folder, config)

    def _finish(self, folder: Path, config: Config, last_stage: str, start: Callable[[bool], None]) -> None:
        from mrt.ablate import finish_run

        if not finish_run(folder, config, last_stage, start):
            self.watcher.say(f"already done: {folder}")

    def _evaluate(self, column: str, folder: Path, config: Config) -> None:
        from mrt.engine.inference import evaluate_detector

        from . import evaluate

        self.show("eval", str(folder), "--split", SPLIT, training=False)
        found = evaluate_detector(
            folder,
            data=config.data.target,
            split=SPLIT,
            device=config.engine.device,
            data_root=self.roots.data_root,
            watcher=self.watcher,
        )
        evaluate.write([str(folder)], [evaluate.record(str(folder), found)], self.roots.run_root, None, None)
        self.results.setdefault(column, []).append(found)
        self.folders.append(folder)


def finish(road: Road, record: Path | None, images: int) -> None:
    """The table, the picture and the figures as JSON."""
    import json

    from mrt.files import write_text

    from . import evaluate
    from .console import RANK, say

    figures = summarise(road)
    say()
    show(figures, recorded_figures(figures, road.world.preset))
    first = {"before: " + FAIR: road.results[FAIR][0], "after: " + ADAPTED: road.results[ADAPTED][0]}
    picture = road.folder("figures") / "before-after.png"
    evaluate.draw(picture, first, images)
    if RANK == 0:
        for path in (road.folder("results.json"), *([record] if record else [])):
            write_text(path, json.dumps(figures, indent=1) + "\n")
    say(f"The same foggy images before and after: {picture}")
    say(f"All figures: {road.folder('results.json')}")


def summarise(road: Road) -> dict[str, Any]:
    """Mean and deviation over seeds of every column and metric, the gain per seed, and data and software."""
    from mrt.ablate import flat_metrics, spread_metrics
    from mrt.engine.folder import provenance

    first = road.results[FAIR][0]
    metrics = {
        column: [flat_metrics(result.metrics.to_dict()) for result in results]
        for column, results in road.results.items()
    }

    def gain(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
        missing = {key for key in after if after[key] is None or before[key] is None}
        return {key: None if key in missing else after[key] - before[key] for key in after}

    gains = [gain(*pair) for pair in zip(metrics[FAIR], metrics[ADAPTED], strict=True)]
    return {
        "seeds": list(road.seeds),
        "data": first.card.name,
        "split": SPLIT,
        "sha256": first.card.split(SPLIT).sha256,
        "details": first.card.details,
        "columns": {column: spread_metrics(values) for column, values in metrics.items()},
        "gain": spread_metrics(gains),
        "per_seed": metrics,
        "settings": list(road.overrides),
        "caption": "fog: " + _caption(first),
        "environment": provenance(),  # what measured; the runs may be older
        "trained_with": trained_with(road.folders),
    }


def trained_with(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """What runs were trained with, each environment once."""
    from mrt.engine import folder

    found: list[dict[str, Any]] = []
    for path in folders:
        found += [item for item in folder.trained_with(path) if item not in found]
    return found


def _caption(result: Result) -> str:
    from .evaluate import describe

    return describe(result)


def recorded_figures(figures: dict[str, Any], preset: str) -> dict[str, Any] | None:
    """The figures of a preset's demo that ship with mrt; none if this demo ran with other settings."""
    from mrt.config import PRESETS
    from mrt.data.card import read_json

    path = PRESETS / f"{preset}-results.json"
    return read_json(path) if path.is_file() and not figures["settings"] else None


def show(figures: dict[str, Any], recorded: dict[str, Any] | None) -> None:
    """The closing table; where no oracle was trained, its column comes from the record."""
    from .console import figure, show_table

    columns = dict(figures["columns"])
    if recorded and ORACLE not in columns and ORACLE in recorded["columns"]:
        columns[f"{ORACLE} (recorded)"] = recorded["columns"][ORACLE]
    columns["gain"] = figures["gain"]
    rows = []
    for metric in figures["gain"]:
        values = [column.get(metric, EMPTY) for column in columns.values()]
        rows.append([metric, *(figure(value["mean"], value["std"]) for value in values)])
    seeds = ", ".join(map(str, figures["seeds"]))
    over = f"mean ± deviation over seeds {seeds}" if len(figures["seeds"]) > 1 else f"seed {seeds}"
    notes = [figures["caption"], *(record_notes(figures, recorded) if recorded else [])]
    title = f"{figures['data']}, split {figures['split']}, {over}"
    show_table(title, ["", *columns], rows, caption="\n".join(notes))


def record_notes(figures: dict[str, Any], recorded: dict[str, Any]) -> list[str]:
    """The recorded figures, and a warning where they were measured on other images."""
    from .console import figure

    told = {**recorded["columns"], "gain": recorded["gain"]}
    means = ", ".join(
        f"{name} {figure(column['AP50']['mean'], column['AP50']['std'])}" for name, column in told.items()
    )
    notes = [f"on record, AP50 over seeds {', '.join(map(str, recorded['seeds']))}: {means}"]
    if recorded["sha256"] != figures["sha256"]:
        sha256 = f"annotations sha256 {recorded['sha256'][:12]}"
        notes.append(f"the record was made on other images ({sha256}): compare with care")
    return notes


def register(app: typer.Typer) -> None:
    app.command("demo", cls=ListCommand)(demo)
