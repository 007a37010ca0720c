"""Making a data set for ``mrt prepare-data``, checking and drawing it, and what is told of it."""

from __future__ import annotations

import inspect
import shlex
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, get_type_hints

import typer

from . import options

if TYPE_CHECKING:
    from mrt.data.card import DatasetCard
    from mrt.data.convert.recipe import Recipe
    from mrt.engine.report import Watcher

Raw = Annotated[
    list[Path] | None,
    typer.Option(
        help="The downloads: the unpacked folder, or the zip/tgz files as they came. Remembered.",
        metavar="PATH...",
    ),
]
Workers = Annotated[int | None, typer.Option(min=1, help="Processes. Default: one per core.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a set that exists.")]
Preview = Annotated[
    int,
    typer.Option(
        min=0, help="Draw this many images of each split, with their boxes, into the set's preview.png."
    ),
]
Check = Annotated[
    bool,
    typer.Option(
        "--check", help="Look whether the prepared set is still as it was made: files, hashes, sizes."
    ),
]
AllowEmpty = Annotated[
    bool, typer.Option("--allow-empty", help="Make a labelled set even if it has no box at all.")
]
MaxPixels = Annotated[
    int | None,
    typer.Option(
        min=1, help="Take images of up to so many pixels; more than 179 million need this word.", metavar="N"
    ),
]
MaxUnpacked = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Take archives that become up to so many bytes, although they are a hundred times smaller.",
        metavar="BYTES",
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be read as what, and write nothing.")]


class How(NamedTuple):
    """The options that all conversions share, as :func:`converting` gives them to a command."""

    raw: Raw = None
    workers: Workers = None
    overwrite: Overwrite = False
    allow_empty: AllowEmpty = False
    max_pixels: MaxPixels = None
    max_unpacked: MaxUnpacked = None
    dry_run: DryRun = False
    preview: Preview = 0
    check: Check = False
    data_root: options.DataRoot = None


def converting(command: Callable[..., None]) -> Callable[..., None]:
    """``command(how, ...)`` as the command line wants it: its own options, and ``how``'s fields as more."""
    kinds = get_type_hints(How, include_extras=True)
    shared = [
        item.replace(annotation=kinds[item.name]) for item in inspect.signature(How).parameters.values()
    ]
    own = inspect.signature(command, eval_str=True).parameters

    @wraps(command)
    def run(**given: Any) -> None:
        command(How(**{field: given.pop(field) for field in How._fields}), **given)

    parameters = [*shared, *(item for name, item in own.items() if name != "how")]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {item.name: item.annotation for item in parameters}
    return run


def make_set(
    name: str,
    make: Callable[..., Recipe],
    known: dict[str, list[Path]],
    how: How,
    also: str | None = None,
) -> None:
    """Convert raw files to the set ``name``, or only check or draw it.

    A set that exists is only checked or drawn if ``how`` asks for that and nothing asks to make it again.

    Args:
        known: remembered raw files by data set, used if ``how.raw`` is not given.
        also: the name in ``known`` of files that are added to ``how.raw``.
    """
    from mrt.data.card import CARD_NAME
    from mrt.data.limits import UNPACKED_VARIABLE, raised
    from mrt.data.staging import check_output
    from mrt.errors import MrtError
    from mrt.experiment import find_roots

    from .console import watching

    raw, root = how.raw, find_roots(how.data_root, None).data_root
    again = bool(raw) or how.overwrite or how.dry_run
    if (how.check or how.preview) and not again and (root / name / CARD_NAME).is_file():
        with watching() as watcher:
            look_at([root / name], how.check, how.preview, watcher)
        return
    if how.check and not again:
        raise MrtError(
            f"prepare-data {name} --check: there is no set {name} in {root}",
            "make it with --raw, or name another --data-root",
        )
    paths = [
        *(raw or [path for found in known.values() for path in found]),
        *(known.get(also or "", []) if raw else []),
    ]
    if not paths:
        raise MrtError(
            f"prepare-data {name}: where are its files?",
            "add --raw FOLDER_OR_ARCHIVES: the downloads, unpacked or as they came",
        )
    paths = list(dict.fromkeys(paths))
    with raised(UNPACKED_VARIABLE, how.max_unpacked):
        if how.dry_run:
            _rehearse(name, make, paths, how, root)
            return
        check_output(root, name, how.overwrite)
        _convert(name, make, paths, how, root, {next(iter(known)): list(raw)} if raw else None)


def _convert(
    name: str,
    make: Callable[..., Recipe],
    paths: Sequence[Path],
    how: How,
    root: Path,
    given: dict[str, list[Path]] | None,
) -> None:
    """Make the set and print what it contains.

    Args:
        given: raw files to remember.
    """
    from mrt import remembered
    from mrt.data.convert.recipe import prepare

    from .console import watching

    with watching() as watcher:
        unpacking = _Unpacking(watcher)
        recipe = make(paths, root, on_unpack=unpacking)
        unpacking.end()
        watcher.begin(f"convert {name}", recipe.total)
        card, warnings = prepare(
            recipe,
            root,
            name,
            overwrite=how.overwrite,
            workers=how.workers,
            on_progress=lambda done, total: watcher.advance(1),
            allow_empty=how.allow_empty,
            max_pixels=how.max_pixels,
        )
        watcher.end()
        remembered.remember(root if how.data_root is not None else None, given)
        _tell(card, warnings, watcher)
        watcher.say(f"{name}: in {card.folder}")
        look_at([card.folder], how.check, how.preview, watcher)
        for line in what_next(card, how.data_root):
            watcher.say(line)


def what_next(card: DatasetCard, data_root: Path | None) -> list[str]:
    """What a set of one's own is for, with a command each; nothing for benchmarks, which have presets.

    Args:
        data_root: as the option was given.
    """
    from mrt.data.registry import PREPARE_COMMANDS
    from mrt.experiment import SHIPPED

    if card.name in PREPARE_COMMANDS:
        return []
    more = [] if data_root is None else ["--data-root", str(data_root)]
    if card.labelled:
        words = ["mrt", "pretrain-source", "--source", card.name, *more]
        return [f"Train a source detector on it (from COCO's weights): {shlex.join(words)}"]
    words = ["mrt", "adapt", "--target", card.name, "--init", SHIPPED, *more]
    return [
        f"Adapt a detector to it, such as {SHIPPED}, which comes with mrt and knows 8 kinds of road users:",
        shlex.join(words),
    ]


def _rehearse(name: str, make: Callable[..., Recipe], paths: Sequence[Path], how: How, root: Path) -> None:
    """Print what a conversion would produce, without writing it.

    Tar archives are unpacked to a temporary folder, which is removed afterwards.
    """
    import tempfile

    from mrt.data.archives import TAR_SUFFIXES
    from mrt.data.convert.recipe import rehearse

    from .console import watching

    with watching() as watcher, tempfile.TemporaryDirectory() as folder:
        unpacking = _Unpacking(watcher)
        files = [file for path in paths for file in (path.iterdir() if path.is_dir() else [path])]
        packed = any(file.name.lower().endswith(TAR_SUFFIXES) for file in files)
        recipe = make(paths, Path(folder) if packed else root, on_unpack=unpacking)
        unpacking.end()
        watcher.begin(f"try {name}", recipe.total)
        card, warnings = rehearse(
            recipe,
            name,
            workers=how.workers,
            on_progress=lambda done, total: watcher.advance(1),
            max_pixels=how.max_pixels,
        )
        watcher.end()
        kind = card.details.get("format") or f"the raw files of {name}"
        labels = "" if card.labelled else ", without labels"
        watcher.say(f"{name}: {card.source} would be read as {kind}{labels}")
        _tell(card, warnings, watcher)
        if card.labelled:
            for split, part in card.splits.items():
                watcher.say(f"{name} {split}: boxes by class: {_classes(part.boxes_per_class)}")
        boxes = any(part.num_boxes for part in card.splits.values())
        refused = card.labelled and not how.allow_empty and not boxes
        watcher.say(
            "It would be refused: no box counts. " * refused
            + "Nothing was written: leave out --dry-run to make the set."
        )


def _classes(boxes: Mapping[str, int]) -> str:
    """Classes with their boxes, the most frequent first, and those without any."""
    there = sorted((label for label in boxes if boxes[label]), key=lambda label: -boxes[label])
    none = [label for label in boxes if not boxes[label]]
    counts = ", ".join(f"{label} {boxes[label]}" for label in there) or "none"
    return counts + (f"; no box of {', '.join(none)}" if none else "")


def _tell(card: DatasetCard, warnings: Sequence[str], watcher: Watcher) -> None:
    """Print what a conversion found, decided and left out."""
    for note in card.details.get("notes", ()):
        watcher.say(f"note: {note}")
    for split, part in card.splits.items():
        ignored = f", {part.num_ignored} ignored" if part.num_ignored else ""
        boxes = ", no labels"
        if card.labelled:
            boxes = f" ({part.num_empty} without objects), {part.num_boxes} boxes{ignored}"
        watcher.say(f"{card.name} {split}: {part.num_images} images{boxes}")
        for reason, count in part.skipped.items():
            watcher.say(f"  left out: {count} x {reason}")
    for warning in [*card.details.get("losses", ()), *warnings]:
        watcher.say(f"warning: {warning}")


class _Unpacking:
    """Progress of tar archives, in megabytes."""

    def __init__(self, watcher: Watcher) -> None:
        self._watcher, self._archive, self._done = watcher, None, 0

    def __call__(self, archive: Path, done: int, total: int) -> None:
        if archive != self._archive:
            self.end()
            self._watcher.begin(f"unpack {archive.name} (MB)", total >> 20)
            self._archive, self._done = archive, 0
        self._watcher.advance((done >> 20) - self._done)
        self._done = done >> 20

    def end(self) -> None:
        """Close the progress of the archive that was unpacked last, if any."""
        if self._archive is not None:
            self._watcher.end()
            self._archive = None


class _Counting:
    """Progress that begins with the first image, not while a large annotation file is read."""

    def __init__(self, watcher: Watcher, task: str) -> None:
        self._watcher, self._task = watcher, task

    def __call__(self, done: int, total: int) -> None:
        if done == 1:
            self._watcher.begin(self._task, total)
        self._watcher.advance(1)


def look_at(folders: Sequence[Path], check: bool, preview: int, watcher: Watcher) -> None:
    """Verify and draw prepared sets. Raises MrtError with a list of what no longer fits."""
    from mrt.data.card import read_card
    from mrt.data.check import check_set
    from mrt.errors import MrtError

    problems = []
    for folder in folders if check else ():
        try:
            found = check_set(read_card(folder), on_progress=_Counting(watcher, f"check {folder.name}"))
        except MrtError as error:  # the others are looked at all the same
            found = [error.message]
        watcher.end()
        watcher.say(f"{folder.name}: {'is as it was made' if not found else f'{len(found)} problems'}")
        problems += [f"{folder.name}: {line}" for line in found]
    for folder in folders if preview else ():
        draw_preview(folder, preview, watcher)
    if problems:
        raise MrtError("\n".join(problems), "make it again, by the command that made it with --overwrite")


def draw_preview(folder: Path, images: int, watcher: Watcher) -> None:
    """A contact sheet of the first split in ``preview.png``, of each further one in ``preview-SPLIT.png``."""
    from mrt.data.card import read_card
    from mrt.data.preview import contact_sheet

    from .evaluate import save_picture

    for number, (split, part) in enumerate(read_card(folder).splits.items()):
        if part.num_images:
            path = folder / (f"preview-{split}.png" if number else "preview.png")
            save_picture(contact_sheet(folder, images, split=split), path)
            watcher.say(f"{folder.name}: {split} drawn in {path}")
