"""``mrt prepare-data``: makes data sets from their owners' downloads, a user's own files, or a renderer."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from . import options
from .arguments import ListCommand, help_of, parse_pairs
from .panels import arrange
from .prepare_synthetic import synthetic
from .preparing import Check, How, Preview, converting, look_at, make_set

if TYPE_CHECKING:
    from mrt.data.convert.recipe import Recipe

FORMATS = (
    "coco, voc, yolo, images (bare images, no labels), kitti, visdrone, labelme, bdd, dota, supervisely, "
    "cvat, openimages, csv, via, createml, label-studio, datumaro, vott, video (frames of videos, no "
    "labels); auto finds the first four, and videos."
)
Name = Annotated[
    str | None, typer.Option(help="The set's name under the data root. Default: the data set's.")
]
Classes = Annotated[
    list[str] | None,
    typer.Option(
        help="Only these classes, in this order. Default: the benchmark's; of your own data, all.",
        metavar="NAME...",
    ),
]
MapClass = Annotated[
    list[str] | None, typer.Option(help="Another name for a class.", metavar="THEIRS=OURS...")
]


# The kinds of data sets, in the order in which they are likely to be wanted.
MAKES = ("synthetic", "cityscapes", "foggy", "sim10k", "bdd100k", "acdc", "kitti", "cfc", "custom")


class DataSets(TyperGroup):
    """The group of data sets. The name of any prepared set is a command too: for --check and --preview."""

    def get_command(self, ctx: Any, name: str) -> Any:
        command = super().get_command(ctx, name)
        if (command is None and not name.startswith("-")) or (command is not None and name == "prepared"):
            command = super().get_command(ctx, "prepared")
            ctx.meta.setdefault("mrt.prepared", name)
        return command

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that is asked for, with its options in groups.

        Raises:
            MrtError: there is no command and no prepared set of that name.
        """
        name, command, rest = super().resolve_command(ctx, args)
        asked = ctx.meta.get("mrt.prepared")
        if asked not in (None, "prepared") and not ctx.resilient_parsing:
            _require_prepared(asked, _data_root_in(rest))
        return name, arrange(command, "prepare-data", ctx) if command is not None else None, rest

    def list_commands(self, ctx: Any) -> list[str]:
        """In the order in which they are likely to be wanted."""
        return [name for name in MAKES if name in self.commands]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        # `mrt prepare-data --check` without a name: all prepared sets
        if args and args[0].partition("=")[0] in ("--check", "--preview", "--data-root"):
            args = ["prepared", *args]
            ctx.meta["mrt.prepared"] = None
        elif "--raw" in args and args[0].startswith("-") and not ctx.resilient_parsing:
            from mrt.errors import MrtError

            more = [] if "--name" in args else ["--name", "WORD"]
            raise MrtError(
                f"mrt prepare-data {args[0]}: the kind of data set comes first",
                "your own files: " + shlex.join(["mrt", "prepare-data", "custom", *args, *more]),
            )
        return super().parse_args(ctx, args)


def _data_root_in(words: Sequence[str]) -> Path | None:
    """The value of ``--data-root`` among the words of a command line."""
    for word, after in pairwise([*words, ""]):
        option, equals, value = word.partition("=")
        if option == "--data-root" and (equals or after):
            return Path(value if equals else after)
    return None


def _require_prepared(name: str, data_root: Path | None) -> None:
    """MrtError unless a set of that name is prepared; it says what could have been meant."""
    from mrt.config import nearest
    from mrt.errors import MrtError
    from mrt.experiment import find_roots

    root = find_roots(data_root, None).data_root
    there = _prepared_in(root)
    if name in there:
        return
    guess = nearest(name, [*MAKES, *there])
    raise MrtError(
        f"prepare-data {name}: unknown data set" + (f", did you mean {guess}?" if guess else ""),
        f"it makes: {', '.join(MAKES)} (your own: custom --name {name}); prepared in {root}: "
        f"{', '.join(there) or 'none'}",
    )


def _prepared_in(root: Path) -> list[str]:
    """The names of the sets in a data root."""
    from mrt.data.card import CARD_NAME

    return sorted(folder.parent.name for folder in root.glob(f"*/{CARD_NAME}"))


def cityscapes(how: How, name: Name = None) -> None:
    """Cityscapes: leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip. Boxes of the visible pixels."""
    from mrt.data.convert.cityscapes import recipe

    make_set(name or "cityscapes", recipe, _raw_of("cityscapes"), how)


def foggy(
    how: How,
    fog_beta: Annotated[
        str,
        typer.Option(
            help="0.02 (the benchmark), 0.01, 0.005, or all: three images of each frame, another benchmark."
        ),
    ] = "0.02",
    package: Annotated[
        str | None,
        typer.Option(
            help="Which download: foggy (the benchmark) or foggyDBF. Default: what is there.",
            metavar="NAME",
        ),
    ] = None,
    simulate: Annotated[
        bool,
        typer.Option(
            "--simulate",
            help="Make the fog from Cityscapes' disparity_trainvaltest.zip and camera_trainvaltest.zip.",
        ),
    ] = False,
    name: Name = None,
) -> None:
    """Foggy Cityscapes: leftImg8bit_trainvaltest_foggy.zip, with Cityscapes' labels."""
    from mrt.data.convert.foggy import recipe

    def make(paths: Sequence[Path], root: Path, **hooks: Any) -> Recipe:
        return recipe(paths, root, fog_beta=fog_beta, simulate=simulate, package=package, **hooks)

    make_set(name or "foggy", make, _raw_of("foggy", "cityscapes"), how, also="cityscapes")


def sim10k(
    how: How,
    classes: Annotated[
        list[str] | None, typer.Option(help="Classes to keep: car, person, motorcycle.", metavar="NAME...")
    ] = ["car"],  # noqa: B006
    name: Name = None,
) -> None:
    """Sim10k: repro_10k_images.tgz and repro_10k_annotations.tgz. Cars only, as in the benchmark."""
    from mrt.data.convert.sim10k import recipe

    def make(paths: Sequence[Path], root: Path, **hooks: Any) -> Recipe:
        return recipe(paths, root, classes=tuple(classes or ("car",)), **hooks)

    make_set(name or "sim10k", make, _raw_of("sim10k"), how)


def bdd100k(
    how: How,
    where: Annotated[
        list[str] | None,
        typer.Option(
            help="Only frames with these attributes, also weather=clear,overcast; all: no filter.",
            metavar="KEY=VALUE...",
        ),
    ] = ["timeofday=daytime"],  # noqa: B006
    labels: Annotated[
        str | None,
        typer.Option(
            help=(
                "2018 (the benchmark), per-image (the same, a file each), 2020. Default: the first there is."
            ),
            metavar="KIND",
        ),
    ] = None,
    classes: Classes = None,
    name: Name = None,
) -> None:
    """BDD100K: bdd100k_images_100k.zip and its labels, of 2018 (also one file per image) or 2020. Daytime, as
    in the benchmark.
    """
    from mrt.data.convert.bdd100k import BENCHMARK, recipe

    filters = parse_where(where or [])

    def make(paths: Sequence[Path], root: Path, **hooks: Any) -> Recipe:
        return recipe(paths, root, where=filters, labels=labels, classes=tuple(classes or BENCHMARK), **hooks)

    make_set(name or "bdd100k", make, _raw_of("bdd100k"), how)


def acdc(
    how: How,
    condition: Annotated[
        list[str] | None,
        typer.Option(
            help="Of fog, night, rain, snow. Default: all. The set's name says which.", metavar="NAME..."
        ),
    ] = None,
    classes: Classes = None,
    name: Annotated[
        str | None,
        typer.Option(help="The set's name under the data root. Default: acdc, or acdc-fog and so on."),
    ] = None,
) -> None:
    """ACDC: rgb_anon_trainvaltest.zip and gt_detection_trainval.zip. Fog, night, rain and snow, train and
    val.
    """
    from mrt.data.convert.acdc import CLASSES, CONDITIONS, recipe

    def make(paths: Sequence[Path], root: Path, **hooks: Any) -> Recipe:
        return recipe(
            paths, root, conditions=tuple(condition or CONDITIONS), classes=tuple(classes or CLASSES), **hooks
        )

    all_of_them = not condition or set(condition) == {*CONDITIONS}
    called = name or ("acdc" if all_of_them else "-".join(["acdc", *dict.fromkeys(condition or ())]))
    make_set(called, make, _raw_of("acdc"), how)


def kitti(
    how: How,
    classes: Annotated[
        list[str] | None,
        typer.Option(
            help="Classes to keep: car, van, truck, person, person_sitting, cyclist, tram, misc.",
            metavar="NAME...",
        ),
    ] = ["car"],  # noqa: B006
    name: Name = None,
) -> None:
    """KITTI: data_object_image_2.zip and data_object_label_2.zip. Cars only, as in the benchmark; all 7481
    images for training.
    """
    from mrt.data.convert.kitti import BENCHMARK, recipe

    def make(paths: Sequence[Path], root: Path, **hooks: Any) -> Recipe:
        return recipe(paths, root, classes=tuple(classes or BENCHMARK), **hooks)

    make_set(name or "kitti", make, _raw_of("kitti"), how)


def cfc(
    how: How,
    location: Annotated[
        str | None,
        typer.Option(
            help="kenai (the source: train, val) or channel (the target: train, test).", metavar="NAME"
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(help="The set's name under the data root. Default: cfc-kenai or cfc-channel."),
    ] = None,
) -> None:
    """CFC-DAOD, fish in sonar: cfc_train.zip, cfc_train.json and so on. A set for each of its two
    locations.
    """
    from mrt.data.convert.cfc import FILES, recipe
    from mrt.errors import MrtError

    if location not in FILES:
        given = "which of its locations?" if location is None else f"--location {location}: unknown"
        raise MrtError(
            f"prepare-data cfc: {given}",
            "add --location kenai (the source) or --location channel (the target)",
        )

    def make(paths: Sequence[Path], root: Path, **hooks: Any) -> Recipe:
        return recipe(paths, root, location=location, **hooks)

    make_set(name or f"cfc-{location}", make, _raw_of("cfc"), how)


def custom(
    how: How,
    name: Annotated[
        str | None,
        typer.Option(help="The set's name under the data root: what --source and --target call it."),
    ] = None,
    kind: Annotated[
        str,
        typer.Option("--format", help=FORMATS, metavar="KIND"),
    ] = "auto",
    annotations: Annotated[
        list[str] | None,
        typer.Option(
            help="COCO files by split, if they are not found by their names.", metavar="SPLIT=FILE..."
        ),
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="The images' folder or zip, if it is not found below --raw.")
    ] = None,
    classes: Classes = None,
    map_class: MapClass = None,
    val_share: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=0.9,
            help="Share of the images that becomes the split val, where there is only one split; of videos, "
            "the last ones in time. Default: 0.2 of videos, else none.",
        ),
    ] = None,
    every: Annotated[
        str | None,
        typer.Option(
            help="Of videos, one frame in so much time: 2s, 500ms, 1min; 30: each 30th frame. Default: 2s.",
            metavar="TIME",
        ),
    ] = None,
    domain: Annotated[str, typer.Option(help="A word for tables, e.g. night.")] = "custom",
    boxes: Annotated[
        str,
        typer.Option(
            help="COCO, YOLO: pixels, shares or corners (x0 y0 x1 y1), where the files leave a doubt.",
            metavar="KIND",
        ),
    ] = "auto",
) -> None:
    """Your own data in COCO, VOC, YOLO or another format, or bare target images or videos."""
    from mrt.data.convert.custom import recipe
    from mrt.errors import MrtError

    if not name and how.dry_run and how.raw:
        name = how.raw[0].absolute().stem
    if not name:
        raise MrtError(
            "prepare-data custom: what shall it be called?",
            "add --name WORD: --source and --target will call it that",
        )
    files = {split: Path(file) for split, file in parse_pairs("--annotations", annotations).items()}
    renamed = parse_pairs("--map-class", map_class)

    def make(paths: Sequence[Path], root: Path, **hooks: Any) -> Recipe:
        return recipe(
            paths,
            root,
            format=kind,
            annotations=files or None,
            images=images,
            classes=tuple(classes) if classes else None,
            class_map=renamed or None,
            val_share=val_share,
            domain=domain,
            boxes=boxes,
            every=every,
            **hooks,
        )

    make_set(name, make, _raw_of(name), how)


def prepared(
    ctx: typer.Context, check: Check = False, preview: Preview = 0, data_root: options.DataRoot = None
) -> None:
    """Check or draw a set that is there."""
    from mrt.errors import MrtError
    from mrt.experiment import find_roots

    from .console import watching

    name, root = ctx.meta["mrt.prepared"], find_roots(data_root, None).data_root
    there = _prepared_in(root)
    if name is not None:
        _require_prepared(name, data_root)
    if not there:
        raise MrtError(f"prepare-data: no prepared set in {root}", "name another place with --data-root")
    if not check and not preview and name is None:
        raise MrtError(
            "prepare-data: of which data set?",
            "name one, or add --check or --preview 12 for all that are there",
        )
    if not check and not preview:
        raise MrtError(
            f"prepare-data {name}: is prepared already, in {root / name}",
            "add --check to verify it, or --preview 12 to draw it",
        )
    with watching() as watcher:
        look_at([root / item for item in ([name] if name else there)], check, preview, watcher)


def parse_where(words: Sequence[str]) -> dict[str, frozenset[str]]:
    """["timeofday=daytime", "weather=clear,overcast"] -> attribute -> accepted values; ["all"]: no filter."""
    if list(words) == ["all"]:
        return {}
    pairs = parse_pairs("--where", words)
    return {
        key: frozenset(part.strip() for part in value.split(",") if part.strip())
        for key, value in pairs.items()
    }


def _raw_of(*names: str) -> dict[str, list[Path]]:
    """Remembered raw files of these sets."""
    from mrt import remembered

    return {name: remembered.raw(name) for name in names}


HELP = (
    "Make a data set: from official downloads, your own files, or rendered here. "
    "Of a set that is there, --check verifies it and --preview 12 draws it: `mrt prepare-data NAME --check`; "
    "without NAME, all."
)
group = typer.Typer(cls=DataSets, no_args_is_help=True, help=HELP)
_conversions = map(converting, (cityscapes, foggy, sim10k, bdd100k, acdc, kitti, cfc, custom))
for _command in (synthetic, *_conversions, prepared):
    _options = {"cls": ListCommand, "hidden": _command is prepared, "help": help_of(_command)}
    group.command(_command.__name__, **_options)(_command)


def register(app: typer.Typer) -> None:
    app.add_typer(group, name="prepare-data")
