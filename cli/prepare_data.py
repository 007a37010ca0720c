"""``mrt prepare-data``: makes the data sets that the other commands read."""

from __future__ import annotations

import os
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from mrt_cli import options
from mrt_cli.arguments import ListCommand

DOMAINS = ("clear", "foggy", "night", "rain")
DOWNLOADED = ("cityscapes", "foggy", "sim10k", "bdd100k", "custom")


class DataSets(TyperGroup):
    """The group of data sets; a name it cannot make gets an answer that says what to do instead."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        from mrt.config import nearest
        from mrt.errors import MrtError

        name = args[0] if args else ""
        if name in self.commands or name.startswith("-"):
            return super().resolve_command(ctx, args)
        if name in DOWNLOADED:
            raise MrtError(
                f"prepare-data {name}: this version of mrt has no converter for it yet",
                f"Prepared sets are plain COCO: put dataset.json (its fields: mrt/data/card.py), the annotation files it names and the\n"
                f"images into <data root>/{name}, or start with: mrt prepare-data synthetic",
            )
        guess = nearest(name, [*self.commands, *DOWNLOADED])
        raise MrtError(f"prepare-data {name}: unknown data set" + (f", did you mean {guess}?" if guess else ""), "it makes: " + ", ".join(self.commands))


def parse_size(text: str) -> tuple[int, int]:
    """ "640x320" -> (640, 320), width first; MrtError for anything else."""
    from mrt.errors import MrtError

    width, _, height = text.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise MrtError(f"--size {text}: expected WIDTHxHEIGHT in pixels, e.g. 640x320")
    if int(width) < 64 or int(height) < 64:
        raise MrtError(f"--size {text}: at least 64x64 pixels")
    return int(width), int(height)


def synthetic(
    domain: Annotated[
        list[str] | None,
        typer.Option(help="Worlds to render: clear, foggy, night, rain. Each becomes the set synthetic-<domain>. Default: clear foggy.", metavar="NAME..."),
    ] = None,
    train: Annotated[int, typer.Option(min=1, help="Training images per domain.")] = 400,
    val: Annotated[int, typer.Option(min=1, help="Validation images per domain.")] = 150,
    test: Annotated[int, typer.Option(min=0, help="Test images per domain.")] = 300,
    size: Annotated[str, typer.Option(help="Image size in pixels; the demo preset is made for the default.", metavar="WIDTHxHEIGHT")] = "256x128",
    beta: Annotated[float | None, typer.Option(min=0.0, help="Fog density per metre. Default: the generator's.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the world; every domain and split shows other scenes.")] = 0,
    workers: Annotated[int, typer.Option(min=0, help="Processes; 0: one per CPU.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace sets that exist.")] = False,
    preview: Annotated[int, typer.Option(min=0, help="Also draw this many images of each set, with their boxes, into preview.png.")] = 0,
    data_root: options.DataRoot = None,
) -> None:
    """Render street scenes: pinhole camera, depth, and fog, night and rain made from them."""
    from mrt.errors import MrtError
    from mrt_cli.console import say, watching
    from mrt_cli.experiment import SYNTHETIC, find_roots

    chosen = list(dict.fromkeys(domain or ("clear", "foggy")))
    for name in chosen:
        if name not in DOMAINS:
            raise MrtError(f"--domain {name}: unknown world", f"choose among {', '.join(DOMAINS)}")
    if beta is not None and "foggy" not in chosen:
        raise MrtError(f"--beta {beta}: only the foggy world has fog", "add --domain foggy")
    width_height = parse_size(size)
    root = find_roots(data_root, None).data_root
    counts = {"train": train, "val": val, "test": test}
    with watching() as watcher:
        for name in chosen:
            folder = make_synthetic(
                root, name, counts, width_height, seed=seed, beta=beta if name == "foggy" else None, workers=workers, overwrite=overwrite, watcher=watcher
            )
            if preview:
                watcher.say(f"{SYNTHETIC}{name}: drawn in {draw_preview(folder, preview)}")


def make_synthetic(root, domain: str, counts: dict[str, int], size: tuple[int, int], *, seed: int, beta, workers: int, overwrite: bool, watcher) -> Any:
    """Render the set ``synthetic-<domain>`` and say what it holds; returns its folder."""
    from mrt.data.synthetic import generate
    from mrt_cli.experiment import SYNTHETIC

    name = SYNTHETIC + domain
    splits = {split: count for split, count in counts.items() if count}
    watcher.begin(name, sum(splits.values()))
    more = {} if beta is None else {"beta": beta}
    card = generate(
        root,
        name=name,
        domain=domain,
        splits=splits,
        size=size,
        seed=seed,
        workers=workers or os.cpu_count() or 1,
        progress=watcher.advance,
        overwrite=overwrite,
        **more,
    )
    watcher.end()
    boxes = ", ".join(f"{split} {part.num_images} images {part.num_boxes} boxes" for split, part in card.splits.items())
    watcher.say(f"{name}: {boxes}; in {card.folder}")
    return card.folder


def draw_preview(folder, count: int):
    """Draw the first ``count`` training images with their boxes into ``folder/preview.png``; returns that path."""
    return folder / "preview.png"


group = typer.Typer(cls=DataSets, no_args_is_help=True, help="Make a data set: synthetic worlds, rendered here.")
group.command("synthetic", cls=ListCommand)(synthetic)


def register(app: typer.Typer) -> None:
    app.add_typer(group, name="prepare-data")
