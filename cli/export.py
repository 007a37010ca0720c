"""``mrt export``: a detector as weights in other layouts or as a program, checked to detect the same."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Annotated

import typer

from . import options
from .arguments import PairsCommand, help_of, is_option

# A copy of mrt.export.FORMATS, which cannot be imported without torch.
FORMATS = ("safetensors", "huggingface", "torch-export", "onnx", "mrt-published")


class ExportCommand(PairsCommand):
    """The detector may follow the formats: a word is a format only if it is the name of one."""

    def takes(self, word: str, option: str) -> bool:
        """Whether a word after a list option is one of its values."""
        return word in FORMATS if option == "--format" else not is_option(word)


def export(
    detector: Annotated[
        str,
        typer.Argument(
            metavar="RUN|WEIGHTS",
            help="A run, a weights file, a Hugging Face folder, a shipped name, or coco (downloaded).",
        ),
    ],
    format: Annotated[
        list[str] | None,
        typer.Option(
            "--format",
            metavar="FORMAT...",
            help="safetensors, huggingface, torch-export, onnx, mrt-published; one or several.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help=(
                "New folder to write to; of several formats each gets one in it. "
                "Default: exports/NAME-FORMAT."
            )
        ),
    ] = None,
    which: Annotated[
        str,
        typer.Option(
            help="Of a run: teacher, student, or auto: the teacher where there is one.", metavar="NETWORK"
        ),
    ] = "auto",
    images: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PHOTOS...",
            help=(
                "Folders or images to compare on; 8 are taken. "
                "Default: the run's own data where it is prepared, else rendered streets."
            ),
        ),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(
            metavar="WIDTHxHEIGHT",
            help="Programs for images of one size, to which others are stretched. Default: any size.",
        ),
    ] = None,
    opset: Annotated[int, typer.Option(help="Operator set of the ONNX file, from 18.")] = 18,
    portable: Annotated[
        bool,
        typer.Option(
            "--portable",
            help="torch-export: with PyTorch's own operators only, so that mrt need not be installed.",
        ),
    ] = False,
    device: Annotated[str, typer.Option(help="Where both are compared: cpu, cuda or auto.")] = "cpu",
    data_root: options.DataRoot = None,
    run_root: options.RunRoot = None,
) -> None:
    """Write a detector for use elsewhere, after checking that it detects the same, e.g. mrt export my-run
    --format onnx.

    The table that is printed compares it with the detector itself on real images, and is kept in export.json.
    """
    from mrt.errors import MrtError
    from mrt.experiment import find_roots, require_detector

    from .console import say, show_error, show_table
    from .experiment import require_one_process

    require_one_process("export")
    if not format:
        raise MrtError(
            f"mrt export {detector}: as what?",
            f"add --format with one or several of {', '.join(FORMATS)}",
        )
    wrong = [name for name in format if name not in FORMATS]
    if wrong:
        raise MrtError(f"--format {wrong[0]}: unknown", f"choose of {', '.join(FORMATS)}")
    if len(set(format)) < len(format):
        raise MrtError(f"--format {' '.join(format)}: each once")
    if which not in ("auto", "teacher", "student"):
        raise MrtError(f"--which {which}: expected teacher, student or auto")
    side = _size(size)
    require_detector(detector, find_roots(data_root, run_root).run_root, which)

    from mrt.export.parity import COLUMNS, Tolerance, table_row
    from mrt.export.write import export_formats

    results = export_formats(
        detector,
        format,
        None if out is None else [out] if len(format) == 1 else [out / name for name in format],
        which=which,
        images=images,
        size=side,
        opset=opset,
        portable=portable,
        device=device,
        data_root=data_root,
        run_root=run_root,
        say=say,
    )
    found = list(results)
    written = [item for item in found if not isinstance(item, Exception)]
    failed = [item for item in found if isinstance(item, Exception)]
    if written:
        allowed = Tolerance()
        show_table(
            f"The same detections, on {written[0].images}",
            COLUMNS,
            [table_row(check) for item in written for check in item.checks],
            caption=f"Allowed: {allowed.score:g} in score, {allowed.box:g} px in a box's sides.",
        )
    for item in written:
        say(f"Written to {item.folder}{_next(item.format, item.folder)}")
    for error in failed[1:]:
        show_error(error)
    if failed:
        raise failed[0]


def _size(text: str | None) -> tuple[int, int] | None:
    """ "640x480" -> (640, 480)."""
    from mrt.errors import MrtError

    if text is None:
        return None
    found = re.fullmatch(r"(\d+)x(\d+)", text.strip().lower())
    if found is None or not all(int(number) for number in found.groups()):
        raise MrtError(f"--size {text}: expected WIDTHxHEIGHT in pixels", "for example --size 1066x800")
    return int(found[1]), int(found[2])


def _next(kind: str, folder: Path) -> str:
    """A command that uses the export."""
    if kind == "onnx":
        return f". Without mrt and torch: python {folder / 'detect.py'} photo.jpg"
    return f". Use it: mrt predict {shlex.quote(str(folder))} PHOTOS"


def register(app: typer.Typer) -> None:
    app.command("export", cls=ExportCommand, help=help_of(export))(export)
