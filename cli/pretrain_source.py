"""``mrt pretrain-source``: stage 1, and the two detectors that adaptation is compared with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import options
from .arguments import ListCommand


def pretrain_source(
    ctx: typer.Context,
    preset: options.Preset = None,
    source: options.Source = None,
    target: options.Target = None,
    match_compute: Annotated[
        bool,
        typer.Option(
            "--match-compute", help="The fair source-only baseline: start, steps, augmentation and EMA of mrt adapt, nothing adaptive."
        ),
    ] = False,
    augment: Annotated[
        str | None,
        typer.Option(
            help="Augmentation of labelled images: weak or strong. Default: the preset's; with --match-compute that of mrt adapt."
        ),
    ] = None,
    ema: Annotated[bool, typer.Option("--ema", help="Keep an average of the detector, too; --match-compute always does.")] = False,
    oracle: Annotated[
        str | None,
        typer.Option(
            help="Train on the target's labels, an upper bound: target, or source+target. Fair together with --match-compute.",
            metavar="DOMAINS",
        ),
    ] = None,
    ship: Annotated[
        Path | None, typer.Option(help="Also write the weights without the frozen pretrained backbone to this file, small enough to ship.")
    ] = None,
    init: options.Init = None,
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
    """Train the detector on the labelled source domain (stage 1)."""
    from mrt.errors import MrtError

    from . import experiment, launch
    from .console import RANK, say, watching

    if oracle not in (None, "target", "source+target"):
        raise MrtError(f"--oracle {oracle}: expected target or source+target")
    if augment not in (None, "weak", "strong"):
        raise MrtError(f"--augment {augment}: expected weak or strong")
    roots = experiment.find_roots(data_root, run_root)
    init = experiment.find_run(init, roots.run_root) if init else None
    given = {"data.source": source, "data.target": target, "seed": seed, "engine.device": device, "engine.amp": amp}
    trained = ("mae_stage", "teach") if match_compute else ("pretrain",)
    given |= {f"{stage}.augment": augment for stage in trained} | {"pretrain.ema": ema or None}
    kind = "-".join((["fair"] if match_compute else []) + ([f"oracle-{oracle.replace('+', '-')}"] if oracle else [])) or "source"
    config, folder = experiment.configure(kind, preset, overrides, given, name=name, resume=resume, run_root=roots.run_root)
    if dry_run:
        say(config.to_json().rstrip())
        return
    if not resume:
        experiment.require_new(folder)
    experiment.require_data([config.data.source, *([config.data.target] if match_compute or oracle else [])], roots.data_root)
    start = experiment.source_weights(config, roots.run_root) if match_compute and not (init or resume) else init
    command = "pretrain-source" + (" --match-compute" if match_compute else "") + (f" --oracle {oracle}" if oracle else "")

    if gpus is not None and launch.needed(gpus, config):
        command += f" --gpus {gpus}"
        with experiment.resumable(command, folder, data_root, run_root):
            launch.start(gpus, ctx)
        return
    with watching() as watcher, experiment.resumable(command, folder, data_root, run_root):
        from mrt.engine import stages

        stages.pretrain_source(
            config,
            folder,
            init=start,
            resume=resume,
            match_compute=match_compute,
            oracle=oracle,
            data_root=roots.data_root,
            watcher=watcher,
            profile=profile,
        )
    if ship is not None and RANK == 0:
        from mrt.engine.inference import write_slim

        write_slim(folder, ship)
        say(f"Written to {ship} ({ship.stat().st_size / 1e6:.1f} MB)")
    say(f"Written to {folder}. Evaluate it: mrt eval {folder}")


def register(app: typer.Typer) -> None:
    app.command("pretrain-source", cls=ListCommand)(pretrain_source)
