"""``mrt report``: one run, or several side by side, as a page that opens anywhere."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated

import typer

from . import options
from .arguments import help_of

LONGEST_NAME = 200  # bytes of the folder of a report on several runs


def report(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="[TITLE=]RUN...",
            help=(
                "Run names or folders; also nodes of mrt ablate, such as teach-0123456789ab. "
                "What stands before a = is the run's title."
            ),
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            help=(
                "Folder of the report. Default: the run's own; "
                "of several runs, reports/A-vs-B under the run root."
            )
        ),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(
            help=(
                "Split to judge on. Default: test if all runs were evaluated on it, "
                "else the validation split."
            )
        ),
    ] = None,
    images: Annotated[int, typer.Option(min=1, help="Images in each grid of pictures.")] = 4,
    quick: Annotated[
        bool, typer.Option("--quick", help="Only what the runs' files say: no network is run.")
    ] = False,
    data_root: options.DataRoot = None,
    run_root: options.RunRoot = None,
    device: options.Device = None,
) -> None:
    """Write a report of one run, or a comparison of several: report.html, report.md, report.json and
    figures/.
    """
    from mrt import experiment

    from .experiment import require_one_process

    require_one_process("report")
    roots = experiment.find_roots(data_root, run_root)
    titles, folders = zip(*(find_titled(name, roots.run_root) for name in runs), strict=True)

    from mrt.report import require_libraries, write_report

    from .console import say, watching

    require_libraries()
    names = "-vs-".join(folder.resolve().name for folder in folders)
    if len(names.encode()) > LONGEST_NAME:
        names = f"{len(folders)}-runs-{hashlib.sha256(names.encode()).hexdigest()[:8]}"
    together = roots.run_root / "reports" / names
    where = out or (folders[0] if len(folders) == 1 else together)
    with watching() as watcher:
        page = write_report(
            folders,
            where,
            data_root=roots.data_root,
            split=split,
            images=images,
            quick=quick,
            device=device or "auto",
            watcher=watcher,
            titles=titles,
        )
    markdown, numbers = page.with_suffix(".md"), page.with_suffix(".json")
    say(f"Written to {page}; the same as Markdown: {markdown}; numbers: {numbers}")


def find_titled(word: str, run_root: Path) -> tuple[str | None, Path]:
    """A run's title, if it was given one (TITLE=RUN), and its folder."""
    from mrt.experiment import find_run

    title, equals, name = word.partition("=")
    if equals and not Path(find_run(word, run_root)).exists():
        return title.strip() or None, find_folder(name, run_root)
    return None, find_folder(word, run_root)


def find_folder(name: str, run_root: Path) -> Path:
    """A run's folder: a path, a name under the run root, or the name of an ablation's node."""
    from mrt.experiment import require_run

    node = run_root / "ablate" / "nodes" / name
    return node if not Path(name).exists() and node.is_dir() else require_run(name, run_root)


def register(app: typer.Typer) -> None:
    app.command("report", help=help_of(report))(report)
