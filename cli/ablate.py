"""``mrt ablate``: a grid of settings, or a table of the paper, times seeds, as one table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import options
from .arguments import AXES, AxisCommand, help_of, parse_pairs

if TYPE_CHECKING:
    from mrt.ablate import Launcher, Trial

STUDIES = (
    "methods, components, mask-ratio, decay, mae-data, mae-use, retrain-parts, retrain-init, mae-variant"
)


def ablate(
    context: typer.Context,
    study: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE.toml",
            help=f"All methods (docs/method.md), or a table of the paper: {STUDIES}; or a file of your own "
            "rows (docs/experiments.md).",
        ),
    ] = None,
    axis: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY VALUE...",
            help="An axis by its whole key, e.g. --axis teach.epochs 2 5; may be repeated.",
        ),
    ] = None,
    seeds: Annotated[
        list[int] | None,
        typer.Option(
            min=0, metavar="SEED...", help="Seeds; the table shows their mean and deviation. Default: 0."
        ),
    ] = None,
    rows: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ROW...",
            help="Only these rows of the study, by their names (quoted where they have spaces; --dry-run "
            "lists them). Default: all.",
        ),
    ] = None,
    baselines: Annotated[
        bool,
        typer.Option(
            "--baselines", help="Add the fair source-only baseline and the oracles as rows of the table."
        ),
    ] = False,
    base: Annotated[
        str | None,
        typer.Option(
            help="Name of the row that the others are compared with. Default: the study's, or the first."
        ),
    ] = None,
    preset: options.Preset = None,
    source: options.Source = None,
    target: options.Target = None,
    split: Annotated[str, typer.Option(help="Split of the target set to evaluate on.")] = "val",
    init: options.Init = None,
    shared_source: Annotated[
        bool,
        typer.Option(
            "--shared-source",
            help="Where stage 1 is trained here: once for all seeds, instead of once for each.",
        ),
    ] = False,
    name: Annotated[
        str | None, typer.Option(help="Name of the table's files. Default: the study's, or the axes' names.")
    ] = None,
    results: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Keep each trial's result here, too (a small file), and take those that are there in place "
            "of training: what outlives the runs, or comes from another machine.",
        ),
    ] = None,
    select_by: Annotated[
        str | None,
        typer.Option(
            metavar="SIGNAL",
            help="Also measure the teacher that this signal takes among those of all epochs, without the "
            "target's labels, as mrt select --by does (docs/trust.md).",
        ),
    ] = None,
    overrides: options.Set = None,
    smoke: Annotated[
        bool,
        typer.Option(
            "--smoke", help="A few images and steps, to see that everything runs; the numbers mean nothing."
        ),
    ] = False,
    jobs: Annotated[
        int, typer.Option(min=1, help="Trials at a time, as processes that share this machine's cores.")
    ] = 1,
    gpus: Annotated[
        int | None, typer.Option(min=1, help="Train on so many GPUs of this machine, one trial each.")
    ] = None,
    launcher: Annotated[
        str | None, typer.Option(help="Train as jobs through submitit: slurm, or local to try that here.")
    ] = None,
    slurm: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE...",
            help="Options of the jobs, e.g. --slurm partition=gpu time=240 gpus_per_node=1.",
        ),
    ] = None,
    data_root: options.DataRoot = None,
    run_root: options.RunRoot = None,
    device: options.Device = None,
    amp: options.Amp = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the trials, and which are done on the split, and stop.")
    ] = False,
) -> None:
    """Train and evaluate a grid of settings, or a table of the paper, and print it as one table.

    For example: mrt ablate --mask-ratio 0.5 0.8 --decay none hard --seeds 0 1 2

    or: mrt ablate --study components --baselines --seeds 0 1 2

    Every setting is an option here, by the last part of its name, and takes all the values that follow;
    several options make a grid. The default is preset small. Stages that trials share are trained once.
    Repeating a command only runs what is missing.
    """
    from mrt import ablate as trials_of
    from mrt import experiment
    from mrt.config import flag_name, named_plugins
    from mrt.data.registry import labels_file
    from mrt.engine.facts import is_run
    from mrt.errors import MrtError, RunFailed
    from mrt.signals import require_signal

    from .console import say, show_table, watching
    from .experiment import repeatable, require_one_process

    require_one_process("ablate")
    if select_by is not None:
        require_signal(select_by, "--select-by", among=True)
    chosen = trials_of.find_study(study) if study else None
    called = Path(study).stem if study else None
    own_rows = study is not None and study.endswith(".toml")
    usual = (chosen and chosen.preset) or "small"
    from_preset = preset or (experiment.choose_preset(source, target) if source or target else usual)
    if own_rows:
        trials_of.check_study(chosen, study, from_preset)
    axes = trials_of.make_axes(context.meta[AXES], named_plugins(from_preset, overrides or ()))
    if chosen and axes:
        raise MrtError(
            f"--study {study} and --{flag_name(axes[0].key)}: a study has its own rows",
            "leave out one of them; --set changes all rows",
        )
    if not (chosen or axes or seeds or baselines):
        raise MrtError(
            "mrt ablate: nothing to vary",
            "for example: mrt ablate --mask-ratio 0.5 0.8, or mrt ablate --study components",
        )
    roots = experiment.find_roots(data_root, run_root)
    init = experiment.find_run(init, roots.run_root) if init else None
    given = {
        "data.source": source,
        "data.target": target,
        "engine.device": device,
        "engine.amp": amp,
        "init": init,
    }
    changes = {
        **(chosen.settings if chosen else {}),
        **(trials_of.SMOKE if smoke else {}),
        **{key: value for key, value in given.items() if value is not None},
    }
    if select_by is not None:
        if any(word.startswith("engine.keep_teachers=") for word in overrides or ()):
            raise MrtError(
                "--select-by and engine.keep_teachers: the teachers of all epochs are kept",
                "leave out one of them",
            )
        changes["engine.keep_teachers"] = trials_of.KEEP
    seeds = list(dict.fromkeys(seeds or [0]))

    root, data = roots.run_root / "ablate", roots.data_root
    if smoke:
        root, config = root / "smoke", experiment.resolve(from_preset, overrides, changes)
        source_free = config.method.source_free
        experiment.require_labels(config, [] if source_free else ["source"], roots.data_root, prepared=False)
        sets = [*([] if source_free else [config.data.source]), config.data.target]
        data = trials_of.shrink(sets, roots.data_root, root / "data")

        # Sets of labels are not made smaller: they are taken from where they are.
        def whole(name: str) -> str:
            file = labels_file(name, config.data.target_split, roots.data_root)
            return str(file.resolve())

        if config.teacher.labels is not None:
            overrides = [*(overrides or ()), f"teacher.labels={whole(config.teacher.labels)}"]
        axes = [
            replace(axis, values=tuple(value if value == "none" else whole(value) for value in axis.values))
            if axis.key == "teacher.labels"
            else axis
            for axis in axes
        ]
    every = chosen.rows if chosen else trials_of.grid_rows(axes, from_preset, overrides or (), changes)
    chosen_rows = trials_of.choose_rows(every, rows, baselines=baselines)
    base = trials_of.choose_base(chosen_rows, base, chosen.base if chosen else None)
    about_rows = called or "-".join(axis.key.rpartition(".")[2] for axis in axes) or "seeds"
    stem = experiment.run_folder(root, name or trials_of.table_name(about_rows, rows))
    if own_rows and name is None:
        trials_of.require_same_study(stem, chosen)
    planner = trials_of.Planner(
        data,
        split,
        shared_source,
        lambda config: roots.run_root / experiment.default_name("source", config) if not smoke else None,
        results,
        select_by,
    )
    trials = planner.trials(chosen_rows, seeds, from_preset, overrides or (), changes)
    for trial in trials:
        experiment.require_labels(trial.config, trial.learned_from, data, prepared=not dry_run)
        if len(trial.signals) > 1 and not trial.is_done(root):
            trials_of.require_epochs(trial.config)
            if is_run(trial.node.folder(root)):
                trials_of.require_teachers(trial.node.folder(root))
    if dry_run:
        _list(trials, root, data, str(from_preset))
        return
    for trial in trials:
        _require(trial, data)
    worker = _launcher(jobs, gpus, launcher, parse_pairs("--slurm", slurm), root / "logs", trials)

    with watching() as watcher, repeatable("ablate"):
        results = trials_of.run(trials, root, data_root=data, launcher=worker, watcher=watcher)
    varied = ", ".join(axis.key for axis in axes) or "seeds"
    title = trials_of.title_of(chosen) if chosen else f"Ablation of {varied}"
    about = {
        "preset": trials[0].config.preset,
        "study": called,
        "study_settings": dict(chosen.settings) if chosen else {},
        "axes": trials_of.axis_settings(axes),
        "set": list(overrides or ()),
        "smoke": smoke,
    }
    report = trials_of.make_report(
        results,
        trials,
        title=f"{title}, preset {trials[0].config.preset}",
        subject=called or "row",
        base=base,
        about=about,
    )
    paths = trials_of.write_report(report, stem)
    notes = trials_of.notes(report)
    show_table(report["title"], trials_of.columns(report), trials_of.lines(report), caption="\n".join(notes))
    say(f"Written to {', '.join(map(str, paths))}")
    if len(paths) < trials_of.FILES:
        say("No picture: matplotlib is not installed (pip install 'mrt-detection[report]').")
    failed = [
        {**item, "failed": f"no teacher was selected: {item['not_selected']['reason']}"}
        | {"log": item["not_selected"]["log"]}
        if "not_selected" in item
        else item
        for item in results
        if "failed" in item or "not_selected" in item
    ]
    if failed:
        lines = [f"{len(failed)} of {len(trials)} trials failed:"]
        for item in failed:
            log = f" ({item['log']})" if item["log"] else ""
            lines.append(f"  {item['row']['name']}, seed {item['seed']}: {item['failed']}{log}")
        lines.append("repeating the command tries them again")
        raise RunFailed("\n".join(lines))


def _list(trials: Sequence[Trial], root: Path, data_root: Path, preset: str) -> None:
    """Print the trials and their states, and how many stages remain to be trained."""
    from mrt import ablate as trials_of

    from .console import say, show_table

    rows = []
    for trial in trials:
        state = "done" if trial.is_done(root) else "to run"
        rows.append([trial.row.name, str(trial.config.seed), trial.node.name, state])
    show_table(
        f"{len(trials)} trials of preset {preset}", ["row", "seed", "stage", "state"], rows, text_columns=4
    )
    training = [work.kind for work in trials_of.missing_work(trials, root, data_root) if work.place is None]
    kinds = ", ".join(f"{training.count(kind)} {kind}" for kind in dict.fromkeys(training))
    say(f"{len(training)} stages to train" + (f": {kinds}" if kinds else ""))


def _require(trial: Trial, data_root: Path) -> None:
    """MrtError for a trial that cannot begin: its data, labels to measure with or weights are missing."""
    from mrt import experiment
    from mrt.data.registry import find_dataset
    from mrt.engine import labels
    from mrt.errors import MrtError

    data, init = trial.config.data, trial.config.init
    experiment.require_data([*([data.source] if trial.learned_from else []), data.target], data_root)
    card = find_dataset(data.target, data_root)
    card.split(trial.split)
    if not card.labelled:
        raise MrtError(
            f"data set {card.name!r} has no labels to evaluate on", "name another target with --target"
        )
    if trial.learned_from:  # else the classes are those of weights that exist already
        classes = labels.class_names(trial.config, find_dataset(data.source, data_root))
        labels.require_boxes(
            card, trial.split, classes, labels.class_map_for(trial.config, card), labels.MEASURE_TRIALS
        )
    for node in trial.node.chain:
        if node.place is None and node.kind == "teach":
            from mrt.engine.stages import require_readable

            require_readable(node.config, data_root, node.chain[0].place)
    if init:
        from mrt.engine.load import find_weights

        find_weights(init)


def _launcher(
    jobs: int,
    gpus: int | None,
    cluster: str | None,
    settings: dict[str, str],
    logs: Path,
    trials: Sequence[Trial],
) -> Launcher | None:
    """What runs the trials: other processes, or jobs of a cluster; None: this process."""
    from mrt.ablate.launch import LocalProcesses, Submitit, visible_gpus
    from mrt.errors import MrtError

    if cluster not in (None, "slurm", "local"):
        raise MrtError(
            f"--launcher {cluster}: unknown", "choose slurm, or local; without it trials run on this machine"
        )
    if settings and not cluster:
        raise MrtError("--slurm: options for jobs that nobody asked for", "add --launcher slurm")
    if cluster and gpus:
        raise MrtError(f"--gpus {gpus}: is for this machine", "for jobs: --slurm gpus_per_node=1")
    if cluster:
        return Submitit(cluster, logs, jobs if jobs > 1 else MANY if cluster == "slurm" else 1, settings)
    if gpus:
        if trials[0].config.engine.device == "cpu":
            raise MrtError(f"--gpus {gpus}: engine.device is cpu", "leave out --device cpu, or --gpus")
        return LocalProcesses(gpus, visible_gpus(gpus))
    return LocalProcesses(jobs) if jobs > 1 else None


MANY = 1000  # jobs in the queue: the cluster decides how many run


def register(app: typer.Typer) -> None:
    app.command("ablate", cls=AxisCommand, help=help_of(ablate))(ablate)
