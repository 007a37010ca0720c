"""``mrt prepare-data synthetic``: rendered street scenes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import options

if TYPE_CHECKING:
    from mrt.engine.report import Watcher

PAIR = ["clear", "foggy"]  # what preset small learns from


def parse_size(text: str) -> tuple[int, int]:
    """ "640x320" -> (640, 320), width first; MrtError for anything else."""
    from mrt.errors import MrtError

    width, _, height = text.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise MrtError(f"--size {text}: expected WIDTHxHEIGHT in pixels, e.g. 640x320")
    return int(width), int(height)


def synthetic(
    domain: Annotated[
        list[str] | None,
        typer.Option(
            help="Worlds to render: clear, foggy, night, rain. Each becomes the set synthetic-NAME. "
            "Default: clear foggy; with --benchmark all four.",
            metavar="NAME...",
        ),
    ] = None,
    benchmark: Annotated[
        bool,
        typer.Option(
            "--benchmark",
            help="The sets synth-NAME of the presets demo, synth2foggy, synth2night and synth2rain: "
            "2,000 + 300 + 500 images of 384x192 each.",
        ),
    ] = False,
    train: Annotated[
        int | None,
        typer.Option(min=0, help="Training images of each world. Default: 800; with --benchmark 2000."),
    ] = None,
    val: Annotated[
        int | None,
        typer.Option(min=0, help="Validation images of each world. Default: 200; with --benchmark 300."),
    ] = None,
    test: Annotated[
        int | None, typer.Option(min=0, help="Test images of each world. Default: 300; with --benchmark 500.")
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(
            help="Image size in pixels. Default: 256x128, as preset small takes them; with --benchmark "
            "384x192.",
            metavar="WIDTHxHEIGHT",
        ),
    ] = None,
    beta: Annotated[
        list[float] | None,
        typer.Option(
            help="Fog's extinction per metre, 3/visibility; of several, each image draws one.",
            metavar="NUMBER...",
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, help="Seed of the worlds; every world and split shows other scenes.")
    ] = 0,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes. Default: one per core.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace sets that exist.")] = False,
    preview: Annotated[
        int,
        typer.Option(
            min=0, help="Also draw this many images of each set, with their boxes, into its preview.png."
        ),
    ] = 0,
    data_root: options.DataRoot = None,
) -> None:
    """Render street scenes: pinhole camera, depth, and fog, night and rain made from them."""
    from mrt.data.synthetic import BENCHMARK, DOMAINS, SMALL
    from mrt.errors import MrtError
    from mrt.experiment import find_roots

    from .console import watching

    family = BENCHMARK if benchmark else SMALL
    counts = {"train": train, "val": val, "test": test}
    worlds = list(dict.fromkeys(domain or (DOMAINS if benchmark else PAIR)))
    if beta and "foggy" not in worlds:
        raise MrtError(f"--beta {beta[0]}: only the foggy world has fog", "add --domain foggy")
    root = find_roots(data_root, None).data_root
    there = [name for name in worlds if (root / f"{family.prefix}{name}").exists()]
    if there and not overwrite:  # all are looked at before the first is rendered
        missing = [name for name in worlds if name not in there]
        only = f"make only those that are missing with --domain {' '.join(missing)}, " if missing else ""
        raise MrtError(
            f"{root / f'{family.prefix}{there[0]}'}: exists already",
            f"{only}replace it with --overwrite, or use another --data-root",
        )
    with watching() as watcher:
        make_synthetic(
            root,
            worlds,
            {split: family.splits[split] if count is None else count for split, count in counts.items()},
            parse_size(size) if size else family.size,
            prefix=family.prefix,
            seed=seed,
            betas=beta,
            workers=workers,
            overwrite=overwrite,
            preview=preview,
            watcher=watcher,
        )


def make_synthetic(
    root: Path,
    worlds: Sequence[str],
    counts: Mapping[str, int],
    size: tuple[int, int],
    *,
    prefix: str = "synthetic-",
    seed: int = 0,
    betas: Sequence[float] | None = None,
    workers: int | None = None,
    overwrite: bool = False,
    preview: int = 0,
    watcher: Watcher,
) -> None:
    """Render a set ``PREFIX<world>`` per world under ``root``, and say what it holds."""
    from mrt.config import nearest
    from mrt.data.synthetic import DOMAINS, generate
    from mrt.errors import MrtError

    from .preparing import draw_preview

    for world in worlds:
        if world not in DOMAINS:
            guess = nearest(world, DOMAINS)
            raise MrtError(
                f"--domain {world}: unknown world" + (f", did you mean {guess}?" if guess else ""),
                f"choose among {', '.join(DOMAINS)}",
            )
    splits = {split: count for split, count in counts.items() if count}
    for world in worlds:
        name = prefix + world
        fog = {"beta": betas if len(betas) > 1 else betas[0]} if betas and world == "foggy" else {}
        watcher.begin(f"render {name}", sum(splits.values()))
        card = generate(
            root,
            name=name,
            domain=world,
            splits=splits,
            size=size,
            seed=seed,
            workers=workers,
            on_progress=lambda done, total: watcher.advance(1),
            overwrite=overwrite,
            **fog,
        )
        watcher.end()
        boxes = ", ".join(
            f"{split} {part.num_images} images {part.num_boxes} boxes" for split, part in card.splits.items()
        )
        watcher.say(f"{name}: {boxes}; in {card.folder}")
        if preview:
            draw_preview(card.folder, preview, watcher)
