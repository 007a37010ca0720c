"""``mrt pretrain-source``: stage 1, and the two baselines that adaptation is compared with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import options
from .arguments import ListCommand
from .experiment import carry_out


def pretrain_source(
    ctx: typer.Context,
    preset: options.Preset = None,
    source: options.Source = None,
    target: options.Target = None,
    match_compute: Annotated[
        bool,
        typer.Option(
            "--match-compute",
            help=(
                "The fair source-only baseline: start, steps, augmentation and EMA of mrt adapt, "
                "nothing adaptive."
            ),
        ),
    ] = False,
    augment: Annotated[
        str | None,
        typer.Option(
            help=(
                "Augmentation of labelled images: weak or strong. Default: the preset's; "
                "with --match-compute that of mrt adapt."
            )
        ),
    ] = None,
    ema: Annotated[
        bool, typer.Option("--ema", help="Keep an average of the detector, too; --match-compute always does.")
    ] = False,
    oracle: Annotated[
        str | None,
        typer.Option(
            help=(
                "Train on the target's labels, an upper bound: target, or source+target. "
                "Fair together with --match-compute."
            ),
            metavar="DOMAINS",
        ),
    ] = None,
    ship: Annotated[
        Path | None,
        typer.Option(
            help=(
                "Also write the weights, in float16 and without the frozen pretrained backbone, "
                "to this file, small enough to ship."
            )
        ),
    ] = None,
    init: options.Init = None,
    resume: options.Resume = False,
    resume_from: options.ResumeFrom = None,
    allow_change: options.AllowChange = False,
    on_nonfinite: options.OnNonfinite = None,
    name: options.Name = None,
    overrides: options.Set = None,
    seed: options.Seed = None,
    data_root: options.DataRoot = None,
    run_root: options.RunRoot = None,
    device: options.Device = None,
    gpus: options.Gpus = None,
    amp: options.Amp = None,
    profile: options.Profile = 0,
    log: options.Log = None,
    dry_run: options.DryRun = False,
) -> None:
    """Train the detector on the labelled source domain (stage 1)."""
    from mrt.experiment import plan_pretraining

    from .console import RANK, say

    plan = plan_pretraining(
        source=source,
        target=target,
        preset=preset,
        match_compute=match_compute,
        augment=augment,
        ema=ema,
        oracle=oracle,
        init=init,
        resume=resume,
        resume_from=resume_from,
        allow_change=allow_change,
        settings={**options.when_nonfinite(on_nonfinite), **options.when_logged(log)},
        name=name,
        overrides=overrides,
        seed=seed,
        device=device,
        amp=amp,
        data_root=data_root,
        run_root=run_root,
    )
    trained = carry_out(plan, ctx, data_root, run_root, gpus=gpus, profile=profile, dry_run=dry_run)
    if trained and ship is not None and RANK == 0:
        from mrt.engine.inference import write_slim

        write_slim(plan.folder, ship)
        say(f"Written to {ship} ({ship.stat().st_size / 1e6:.1f} MB)")


def register(app: typer.Typer) -> None:
    app.command("pretrain-source", cls=ListCommand)(pretrain_source)
