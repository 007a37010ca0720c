"""``mrt adapt``: stages 2 (masked autoencoder) and 3 (teaching)."""

from __future__ import annotations

from typing import Annotated

import typer

from . import options
from .arguments import ListCommand, parse_pairs

STAGES = ("mae", "teach")


def adapt(
    ctx: typer.Context,
    target: options.Target = None,
    source: options.Source = None,
    preset: options.Preset = None,
    stage: Annotated[
        list[str] | None, typer.Option(help="Only this stage: mae (2) or teach (3). Default: both.", metavar="NAME...")
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="Parts of the method: teacher (plain teacher-student); +dt, +mae, +retrain (that, and dynamic thresholds, added); "
            "mrt (all). Default: what the preset says."
        ),
    ] = None,
    init: options.Init = None,
    map_class: options.MapClass = None,
    resume: options.Resume = False,
    name: options.Name = None,
    overrides: options.Set = None,
    seed: options.Seed = None,
    data_root: options.DataRoot = None,
    run_root: options.RunRoot = None,
    device: options.Device = None,
    gpus: options.Gpus = None,
    amp: options.Amp = None,
    profile: options.Profile = 0,
    dry_run: options.DryRun = False,
) -> None:
    """Adapt a source detector to an unlabelled target domain, e.g. --target foggy."""
    from mrt.ablate.studies import METHODS
    from mrt.errors import MrtError

    from . import experiment, launch
    from .console import say, watching

    if method is not None and method not in METHODS:
        raise MrtError(f"--method {method}: unknown method", f"choose {', '.join(METHODS)}")
    if target is None and preset is None and not (resume and name):
        raise MrtError("mrt adapt: adapt to what?", "name the data set, e.g. mrt adapt --target foggy, or a --preset")
    for item in stage or ():
        if item not in STAGES:
            raise MrtError(f"--stage {item}: unknown stage", "stages are mae and teach; without --stage both run")
    chosen = tuple(item for item in STAGES if item in (stage or STAGES))
    roots = experiment.find_roots(data_root, run_root)
    init = experiment.find_run(init, roots.run_root) if init else None
    given = {"data.source": source, "data.target": target, "seed": seed, "engine.device": device, "engine.amp": amp}
    given["data.class_map"] = parse_pairs("--map-class", map_class) or None
    given |= METHODS.get(method, {})
    part = method.replace("+", "teacher-") if method else ""  # of the run's name
    kind = "-".join(word for word in ((chosen[0] if len(chosen) == 1 else "" if part else "adapt"), part) if word)
    config, folder = experiment.configure(kind, preset, overrides, given, init=init, name=name, resume=resume, run_root=roots.run_root)
    if dry_run:
        say(config.to_json().rstrip())
        return
    if not resume:
        experiment.require_new(folder)
    experiment.require_data([config.data.source, config.data.target], roots.data_root)
    start = None if resume else init or experiment.starting_weights(kind, config, roots.run_root)
    command = "adapt" + (f" --method {method}" if method else "") + "".join(f" --stage {item}" for item in dict.fromkeys(stage or ()))

    if gpus is not None and launch.needed(gpus, config):
        command += f" --gpus {gpus}"
        with experiment.resumable(command, folder, data_root, run_root):
            launch.start(gpus, ctx)
        return
    with watching() as watcher, experiment.resumable(command, folder, data_root, run_root):
        from mrt.engine import stages

        stages.adapt(config, folder, stages=chosen, init=start, resume=resume, data_root=roots.data_root, watcher=watcher, profile=profile)
    say(f"Written to {folder}. Evaluate it: mrt eval {folder}")


def register(app: typer.Typer) -> None:
    app.command("adapt", cls=ListCommand)(adapt)
