"""``mrt assess``: is the adapted detector to be trusted more than the one before, on these images?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import options
from .arguments import ListCommand, help_of


def assess(
    run: Annotated[str, typer.Argument(metavar="RUN|WEIGHTS", help="The adapted detector.")],
    images: options.Photos = None,
    target: options.PhotosOf = None,
    split: options.PhotosSplit = None,
    against: Annotated[
        str | None,
        typer.Option(
            metavar="RUN|WEIGHTS", help="What it is compared with. Default: what the run started from."
        ),
    ] = None,
    limit: options.Looked = 200,
    pictures: Annotated[int, typer.Option(min=0, help="Images to show, where the two disagree most.")] = 8,
    suggest: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="N",
            help="Write the N images whose labels would tell most, with boxes to correct, for an annotation "
            "tool.",
        ),
    ] = 0,
    label_format: Annotated[
        str,
        typer.Option("--format", metavar="FORMAT", help="Of those labels: coco, yolo, voc or label-studio."),
    ] = "coco",
    out: Annotated[
        Path | None, typer.Option(help="New folder of the page. Default: assess, assess-2, ... in the run's.")
    ] = None,
    seed: options.NoiseSeed = 0,
    data_root: options.DataRoot = None,
    run_root: options.RunRoot = None,
    device: options.Device = None,
) -> None:
    """Say on one page whether an adapted detector can be trusted, without labels, e.g. mrt assess my-run.

    Pictures of where it disagrees most with the detector it started from, what both find, signals with
    intervals, and, with --suggest 50, the images that are worth labelling.
    """
    from mrt import experiment
    from mrt.errors import MrtError
    from mrt.report import require_libraries

    from .console import say, watching
    from .experiment import require_one_process

    require_one_process("assess")
    if images and target:
        raise MrtError("--images and --target: both say which images", "leave out one of them")
    if label_format not in options.LABEL_SETS:
        raise MrtError(f"--format {label_format}: unknown", f"choose of {', '.join(options.LABEL_SETS)}")
    roots = experiment.find_roots(data_root, run_root)
    where = experiment.require_named(run, roots.run_root)
    other = experiment.require_named(against, roots.run_root) if against else None
    require_libraries("mrt assess")
    from mrt import selection
    from mrt.api import choose_device
    from mrt.predict.outputs import free_folder
    from mrt.selection.assess import candidates
    from mrt.selection.page import write_assessment

    pair = candidates(where, other)
    seen = selection.images_for(
        pair[1], images=images, target=target, split=split, limit=limit, data_root=roots.data_root
    )
    folder = free_folder(out, (pair[1].run or Path()) / "assess")
    with watching() as watcher:
        before, after = selection.measure_all(
            pair,
            seen,
            data_root=roots.data_root,
            limit=limit,
            seed=seed,
            device=choose_device(device or "auto"),
            watcher=watcher,
            keep_looks=True,
        )
    page = write_assessment(
        before,
        after,
        seen,
        folder,
        pictures=pictures,
        suggested=suggest,
        label_format=label_format,
        seed=seed,
        device=device or "auto",
    )
    from mrt.data.card import read_json

    record = read_json(page.with_suffix(".json"))
    for line in record["verdict"]:
        say(line, wrap=True)
    if suggest:
        say(f"To label: {folder / 'to-label' / label_format}")
    say(f"Written to {page}; figures: {page.with_suffix('.json')}")


def register(app: typer.Typer) -> None:
    app.command("assess", cls=ListCommand, help=help_of(assess))(assess)
