"""``mrt ablate``: a grid of settings times seeds, as one table."""

from __future__ import annotations

from typing import Annotated

import typer

from . import options
from .arguments import AXES, AxisCommand


def ablate(
    context: typer.Context,
    axis: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY VALUE...", help="An axis by its whole key, e.g. --axis teach.epochs 2 5; may be repeated."),
    ] = None,
    seeds: Annotated[
        list[int] | None, typer.Option(min=0, metavar="SEED...", help="Seeds; the table shows their mean and deviation. Default: 0.")
    ] = None,
    preset: options.Preset = None,
    source: options.Source = None,
    target: options.Target = None,
    split: Annotated[str, typer.Option(help="Split of the target set to evaluate on.")] = "val",
    init: options.Init = None,
    name: Annotated[str | None, typer.Option(help="Name of the table's files. Default: the axes' names.")] = None,
    overrides: options.Set = None,
    data_root: options.DataRoot = None,
    run_root: options.RunRoot = None,
    device: options.Device = None,
    amp: options.Amp = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the trials, and which are done on the split, and stop.")] = False,
) -> None:
    """Train and evaluate a grid of settings, and print it as one table.

    For example: mrt ablate --mask-ratio 0.5 0.8 --decay none hard --seeds 0 1 2

    Every setting is an option here, by the last part of its name, and takes all the values that follow; several options make a grid.
    The default preset is demo. Repeating a command only runs what is missing.
    """
    from mrt import ablate as grid
    from mrt.errors import MrtError, RunFailed

    from . import experiment
    from .console import figure, say, show_table, watching

    experiment.require_one_process("ablate")
    axes = grid.make_axes(context.meta[AXES])
    if not axes and not seeds:
        raise MrtError("mrt ablate: nothing to vary", "for example: mrt ablate --mask-ratio 0.5 0.8")
    roots = experiment.find_roots(data_root, run_root)
    base = preset or (experiment.choose_preset(source, target) if source or target else "demo")
    options = {"data.source": source, "data.target": target, "engine.device": device, "engine.amp": amp, "init": init}
    changes = {key: value for key, value in options.items() if value is not None}
    if not dry_run:
        changes["init"] = experiment.source_weights(experiment.resolve(base, overrides, changes), roots.run_root)
    trials = grid.plan(base, axes, seeds or [0], overrides or (), changes)
    folder = roots.run_root / "ablate"
    stem = experiment.run_folder(folder, name or "-".join(axis.key.rpartition(".")[2] for axis in axes) or "seeds")
    if dry_run:
        keys = [axis.key for axis in axes]
        rows = []
        for trial in trials:
            done = grid.result_file(folder, trial, split).is_file()
            rows.append(
                [*(str(trial.settings[key]) for key in keys), str(trial.config.seed), trial.digest[:16], "done" if done else "to run"]
            )
        show_table(f"{len(trials)} trials of preset {base}", [*keys, "seed", "trial", "state"], rows, text_columns=len(keys))
        return
    for trial in trials:
        experiment.require_data([trial.config.data.source, trial.config.data.target], roots.data_root)

    with watching() as watcher, experiment.repeatable("ablate"):
        results = grid.run(trials, folder, data_root=roots.data_root, split=split, watcher=watcher)
    rows = grid.summarise(results)
    about = {"preset": str(base), "split": split, "set": list(overrides or ()), "axes": {axis.key: list(axis.values) for axis in axes}}
    paths = grid.write_tables(stem, rows, results, about)
    keys = [axis.key for axis in axes]
    table = []
    for row in rows:
        cells = [figure(item["mean"], item["std"]) if (item := row["metrics"].get(metric)) else "failed" for metric in grid.METRICS]
        table.append([*(str(row["settings"][key]) for key in keys), " ".join(map(str, row["seeds"])) or "-", *cells])
    several = any(len(row["seeds"]) > 1 for row in rows)
    caption = f"{trials[0].config.data.target}, split {split}" + ("; mean ± standard deviation over seeds" if several else "")
    show_table(
        f"Ablation of {', '.join(keys) or 'seeds'}, preset {base}",
        [*keys, "seeds", *grid.METRICS],
        table,
        caption=caption,
        text_columns=len(keys) + 1,
    )
    say(f"Written to {paths[1]} and {paths[0]}")
    failed = [result for result in results if "failed" in result]
    if failed:
        raise RunFailed(f"{len(failed)} of {len(trials)} trials failed; the first: {failed[0]['failed']}")


def register(app: typer.Typer) -> None:
    app.command("ablate", cls=AxisCommand)(ablate)
