"""Options that several commands share, written once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

# Kinds of labels to correct, as in mrt.predict.job.KINDS.
LABEL_SETS = ("coco", "yolo", "voc", "label-studio")

Preset = Annotated[
    str | None,
    typer.Option(
        help=(
            "A preset's name (city2foggy, sim2city, city2bdd, demo, small) or a .toml file. "
            "Default: what fits the data sets."
        )
    ),
]
Source = Annotated[
    str | None,
    typer.Option(
        help=(
            "Labelled data set: a name under the data root, or a folder. Default: the preset's; for a set of "
            "your own, what the weights learned from, or the only one that there is."
        )
    ),
]
Target = Annotated[
    str | None,
    typer.Option(help="Data set to adapt to; its labels are never trained on. Default: the preset's."),
]
MapClass = Annotated[
    list[str] | None,
    typer.Option(
        help="A class that the detector calls otherwise, e.g. motor=motorcycle.", metavar="THEIRS=OURS..."
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE...", help="Any setting, e.g. --set mae.mask_ratio=0.5 teach.epochs=10."
    ),
]
Seed = Annotated[
    int | None, typer.Option(min=0, help="Seed of everything random in the run. Default: the preset's (0).")
]
Device = Annotated[
    str | None,
    typer.Option(help="auto, cpu, cuda or mps (Apple). Default: auto, a GPU if there is one (NVIDIA)."),
]
Gpus = Annotated[
    int | None,
    typer.Option(
        min=1,
        help=(
            "Train on so many GPUs of this machine, one process each; the total batch stays the same. "
            "Default: 1."
        ),
    ),
]
Amp = Annotated[str | None, typer.Option(help="Precision: off (float32), tf32, bf16 or fp16. Default: off.")]
Profile = Annotated[
    int,
    typer.Option(
        min=0,
        metavar="STEPS",
        help=(
            "Profile so many steps of each stage: its most expensive calls, and a trace in the run's folder."
        ),
    ),
]
Name = Annotated[
    str | None,
    typer.Option(
        help="The run's folder under the run root. Default: made from the command and the data sets."
    ),
]
Init = Annotated[
    str | None,
    typer.Option(
        help=(
            "Weights to start from: a run, a weights file, a shipped name (small-source), coco. Default: the "
            "run of mrt pretrain-source, or the preset's."
        )
    ),
]
ResumeFrom = Annotated[
    str | None,
    typer.Option(
        "--resume-from",
        "--checkpoint",
        help=(
            "Continue the run from this one of its checkpoints: previous, or a numbered one such as "
            "teach-0003 (engine.keep_checkpoints keeps them)."
        ),
        metavar="NAME",
    ),
]
AllowChange = Annotated[
    bool,
    typer.Option(
        "--allow-change",
        help="With --resume: let --set and other options change the run's settings; run.json records it.",
    ),
]
OnNonfinite = Annotated[
    list[str] | None,
    typer.Option(
        help=(
            "A step whose loss or gradient is not finite: stop (the default), or skip N: leave out up to N "
            "such steps of a stage."
        ),
        metavar="stop|skip N",
    ),
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Continue the run where it stopped, from its newest good checkpoint.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the resolved settings as JSON and stop.")]
DataRoot = Annotated[
    Path | None,
    typer.Option(
        help=(
            "Where prepared data sets are. Default: $MRT_DATA_ROOT, else ./data, "
            "else where the last were put."
        )
    ),
]
RunRoot = Annotated[
    Path | None, typer.Option(help="Where runs are written. Default: $MRT_RUN_ROOT, else ./runs.")
]


Log = Annotated[
    list[str] | None,
    typer.Option(
        metavar="wandb|mlflow...",
        help="Send the log's numbers there, too, by these libraries and their own settings (WANDB_PROJECT, "
        "MLFLOW_TRACKING_URI, ...). metrics.jsonl and TensorBoard's files are always written.",
    ),
]


def when_logged(names: list[str] | None) -> dict[str, list[str]]:
    """The setting that ``--log`` stands for."""
    return {"engine.loggers": names} if names else {}


def when_nonfinite(words: list[str] | None) -> dict[str, str]:
    """The setting that ``--on-nonfinite`` stands for."""
    return {"engine.on_nonfinite": " ".join(words)} if words else {}


# Of commands that look at images without labels.
Photos = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PATH...",
        help="Images of the target, or folders of them. Default: those that the (first) run adapted to.",
    ),
]
PhotosOf = Annotated[
    str | None, typer.Option(help="Or a prepared set; only its images are opened, never its labels.")
]
PhotosSplit = Annotated[str | None, typer.Option(help="Its split. Default: the one that the run adapted to.")]
Looked = Annotated[int, typer.Option(min=2, help="Images to look at, spread evenly over all of them.")]
NoiseSeed = Annotated[int, typer.Option(min=0, help="Seed of the noise on weights and of the draws.")]
