"""``mrt label``: what a labeller finds in the images of a prepared set, as a file to adapt with."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options
from .arguments import ListCommand

if TYPE_CHECKING:
    from mrt.data.card import DatasetCard
    from mrt.labelling import Found, Labeller

NAMES_SHOWN = 12  # that fit a message


def label(
    target: Annotated[
        str,
        typer.Argument(metavar="SET", help="The prepared set: a name under the data root, or a folder."),
    ],
    function: Annotated[
        str | None,
        typer.Option(
            "--with",
            metavar="FILE.py:FUNCTION|MODULE:FUNCTION",
            help="A function (image, classes) that finds objects, such as a foundation model; it is code "
            "that is run. docs/labels.md has examples.",
        ),
    ] = None,
    detector: Annotated[
        str | None,
        typer.Option(
            metavar="RUN|WEIGHTS",
            help="Or a detector: a run, a weights file, an exported or Hugging Face folder, a shipped name, "
            "hf:OWNER/NAME or coco.",
        ),
    ] = None,
    split: Annotated[str, typer.Option(help="Split whose images are looked at.")] = "train",
    classes: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME...", help="What to look for. Default: the set's class names."),
    ] = None,
    threshold: Annotated[float, typer.Option(help="Boxes with a lower score are not written.")] = 0.05,
    out: Annotated[
        Path | None, typer.Option(help="New file to write, COCO. Default: SET-labels.json.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, metavar="N", help="Only the first N images.")] = None,
    device: options.Device = None,
    data_root: options.DataRoot = None,
    run_root: options.RunRoot = None,
) -> None:
    """Label a target set from outside, by a function or a detector, e.g. mrt label foggy --detector coco."""
    from mrt.errors import MrtError
    from mrt.experiment import find_roots, require_detector

    from .console import say, watching
    from .experiment import repeatable, require_one_process

    require_one_process("label")
    if (function is None) == (detector is None):
        what = "by what?" if function is None else "--with and --detector exclude each other"
        raise MrtError(
            f"mrt label {target}: {what}",
            "name a function with --with FILE.py:FUNCTION, or a detector with --detector coco",
        )
    if function is not None and device is not None:
        raise MrtError(
            f"--device {device}: is for --detector; a function chooses its own device",
            "leave it out, and choose the device in the function",
        )
    if not 0 <= threshold <= 1:
        raise MrtError(f"--threshold {threshold:g}: a score lies between 0 and 1", "for example 0.05")
    roots = find_roots(data_root, run_root)

    from mrt.data.registry import find_dataset

    card = find_dataset(target, roots.data_root)
    card.split(split)
    if detector is not None:
        require_detector(detector, roots.run_root)

    from mrt import labelling

    names = labelling.choose_classes(card, _words(classes))
    out = out or Path(f"{card.name}-labels.json")
    labelling.require_new(out)
    report = out.with_name(f"{out.name}.error.txt")
    with watching() as watcher, repeatable("label"):
        try:
            if function is not None:
                labeller = labelling.load_function(function)
            else:
                labeller = labelling.load_detector(
                    str(detector), names, threshold, device=device or "auto", run_root=roots.run_root
                )
            for line in _beforehand(card, labeller, names):
                watcher.say(line)
            found = labelling.label(
                card,
                labeller,
                out,
                split=split,
                classes=names,
                threshold=threshold,
                limit=limit,
                watcher=watcher,
            )
        except labelling.LabellerFailed as error:
            raise _with_report(error, report) from None
    report.unlink(missing_ok=True)
    _summarise(found, names, threshold)
    say(f"Written to {out}")
    if found.boxes.total():
        _say_next(target, split, out, detector, data_root, run_root)


def _beforehand(card: DatasetCard, labeller: Labeller, names: Sequence[str]) -> list[str]:
    """What may be not as it was meant, a line each."""
    from mrt.labelling import class_finder

    lines = []
    find = class_finder(card.classes)
    foreign = [name for name in names if card.classes and find(name) is None]
    if foreign:
        lines.append(f"No class of {card.name}: {_some(foreign)} (it has {_some(card.classes)})")
    if labeller.lacking:
        lines.append(f"{labeller.name} does not know {_some(labeller.lacking)}: no boxes of that")
    return lines


def _with_report(error: Any, report: Path) -> Exception:
    """The error, with a hint at the file that its traceback is written to."""
    from mrt.errors import MrtError
    from mrt.files import write_text

    write_text(report, error.trace())
    return MrtError(error.message, f"the traceback is in {report}")


def _summarise(found: Found, names: Sequence[str], threshold: float) -> None:
    from mrt.labelling import NO_AREA

    from .console import say, show_table

    rows = []
    for name in names:
        count = found.boxes[name]
        rows.append([name, str(count), f"{found.scores[name] / count:.2f}" if count else "-"])
    show_table("Labels", ["class", "boxes", "mean score"], rows)
    total = sum(found.boxes.values())
    earlier = f" ({found.before} of them in an earlier run)" if found.before else ""
    say(f"{found.images} images{earlier}: {total} boxes with a score of {threshold:g} or more")
    if found.unknown:
        shown = ", ".join(f"{name!r} ({count})" for name, count in found.unknown.most_common(NAMES_SHOWN))
        more = len(found.unknown) - NAMES_SHOWN
        say(f"Left out, of other names than the classes: {shown}{f', and {more} more' if more > 0 else ''}")
    if found.dropped:
        shown = ", ".join(f"{reason} ({count})" for reason, count in found.dropped.most_common())
        say(f"Left out, boxes that cannot be used: {shown}")
    if found.dropped[NO_AREA] > total:
        say("Most boxes have no area: are they x, y, width, height? Expected is x0, y0, x1, y1.")
    if not total:
        say(
            "Nothing was found: a lower --threshold, or other names with --classes, may find something "
            "(with another --out)."
        )


def _say_next(
    target: str, split: str, out: Path, detector: str | None, data_root: Path | None, run_root: Path | None
) -> None:
    """A command that adapts with the labels; of a target for which there is no source detector, it begins
    with the detector that labelled, or with one that comes with mrt.
    """
    from mrt.errors import MrtError
    from mrt.experiment import SHIPPED, plan_adaptation

    from .console import say

    sets = [f"teacher.labels={out}", *([f"data.target_split={split}"] if split != "train" else [])]
    words = ["mrt", "adapt", "--target", target]
    try:
        plan_adaptation(
            target=target, overrides=sets, data_root=data_root, run_root=run_root
        ).starting_weights()
    except MrtError:
        words += ["--init", detector or SHIPPED]
    words += ["--set", *sets]
    for option, root in (("--data-root", data_root), ("--run-root", run_root)):
        words += [] if root is None else [option, str(root)]
    say(f"Adapt with them: {shlex.join(words)}")
    say("Labels count there from a score of 0.3 on; --set teacher.labels_score=0.2 says otherwise.")


def _words(values: Sequence[str] | None) -> list[str] | None:
    """["a,b", "c"] -> ["a", "b", "c"]."""
    return [word.strip() for value in values for word in value.split(",")] if values else None


def _some(names: Sequence[str]) -> str:
    """Names in a message, the first of many."""
    more = len(names) - NAMES_SHOWN
    return ", ".join(names[:NAMES_SHOWN]) + (f", and {more} more" if more > 0 else "")


def register(app: typer.Typer) -> None:
    app.command("label", cls=ListCommand)(label)
