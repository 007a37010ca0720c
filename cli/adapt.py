"""``mrt adapt``: stages 2 (masked autoencoder) and 3 (teaching)."""

from __future__ import annotations

from typing import Annotated

import typer

from . import options
from .arguments import ListCommand, help_of, parse_pairs
from .experiment import carry_out


def adapt(
    ctx: typer.Context,
    target: options.Target = None,
    source: options.Source = None,
    preset: options.Preset = None,
    stage: Annotated[
        list[str] | None,
        typer.Option(help="Only this stage: mae (2) or teach (3). Default: both.", metavar="NAME..."),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="teacher, +dt, +mae, +retrain, mrt, limited, aldi or source-free: see above. Default: what "
            "the preset says."
        ),
    ] = None,
    init: options.Init = None,
    map_class: options.MapClass = None,
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
    """Adapt a source detector to an unlabelled target domain, e.g. --target foggy.

    Methods, for --method (docs/method.md):

    * teacher: teacher-student with discriminators, the paper's baseline

    * +dt: that with dynamic thresholds

    * +mae: that with dynamic thresholds and the masked autoencoder

    * +retrain: that with dynamic thresholds and selective retraining

    * mrt: all of them, the paper's method

    * limited: teacher-student without discriminators, labels limited by the source's counts

    * aldi: soft distillation, without thresholds and discriminators (ALDI++)

    * source-free: from weights alone, without any source image

    Labels from outside, of another detector or a foundation model, join any of them but aldi:
    --set teacher.labels=FILE (mrt label makes one).
    """
    from mrt.experiment import plan_adaptation

    plan = plan_adaptation(
        target=target,
        source=source,
        preset=preset,
        stage=stage,
        method=method,
        init=init,
        class_map=parse_pairs("--map-class", map_class),
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
    carry_out(plan, ctx, data_root, run_root, gpus=gpus, profile=profile, dry_run=dry_run)


def register(app: typer.Typer) -> None:
    app.command("adapt", cls=ListCommand, help=help_of(adapt))(adapt)
