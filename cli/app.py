"""The entry point: ``mrt``. Commands import what they need when they run, so ``mrt --help`` is instant.

Exit codes: 0 done, 1 a run failed or was interrupted, 2 bad input.
"""

from __future__ import annotations

import errno
import importlib
import io
import os
import sys
from typing import Annotated, Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_group

from mrt import failures
from mrt.errors import Interrupted, MrtError, RunFailed
from mrt.follow import follow_the_launcher

from .panels import arrange

RUN_FAILED, BAD_INPUT = 1, 2


class Entry(NamedTuple):
    """A command: the module of this package that registers it, and its line in the help of ``mrt``."""

    module: str
    line: str


# In the order in which a newcomer meets them. A module is imported when its command is asked for.
COMMANDS = {
    "demo": Entry(
        "demo",
        "Take a detector from clear weather into fog: data, source-only, adaptation, evaluation.",
    ),
    "prepare-data": Entry(
        "prepare_data", "Make a data set: from official downloads, your own files, or rendered here."
    ),
    "pretrain-source": Entry(
        "pretrain_source", "Train the detector on the labelled source domain (stage 1)."
    ),
    "adapt": Entry("adapt", "Adapt a source detector to an unlabelled target domain, e.g. --target foggy."),
    "predict": Entry(
        "predict", "Detect objects in images, videos or from a camera, e.g. mrt predict runs/my-run photos/."
    ),
    "eval": Entry(
        "evaluate",
        "Evaluate detectors: COCO figures with confidence intervals, each class, what kinds of mistakes "
        "cost, and paired differences.",
    ),
    "select": Entry(
        "select", "Rank trained detectors by what can be seen without labels, e.g. mrt select my-run."
    ),
    "assess": Entry(
        "assess",
        "Say on one page whether an adapted detector can be trusted, without labels, e.g. mrt assess my-run.",
    ),
    "export": Entry(
        "export",
        "Write a detector for use elsewhere, after checking that it detects the same, e.g. mrt export my-run "
        "--format onnx.",
    ),
    "report": Entry(
        "report",
        "Write a report of one run, or a comparison of several: report.html, report.md, report.json and "
        "figures/.",
    ),
    "ablate": Entry(
        "ablate", "Train and evaluate a grid of settings, or a table of the paper, and print it as one table."
    ),
    "label": Entry(
        "label",
        "Label a target set from outside, by a function or a detector, e.g. mrt label foggy --detector coco.",
    ),
    "doctor": Entry("doctor", "Say what is here or what is wrong with a run, and what to do about it."),
}


def load(name: str) -> Any:
    """The command of that name, one of :data:`COMMANDS`, built."""
    part = typer.Typer()
    importlib.import_module(f".{COMMANDS[name].module}", __package__).register(part)
    return get_group(part).commands[name]


class Root(TyperGroup):
    """The group of all commands, where errors become one message and an exit code."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = dict.fromkeys(COMMANDS)  # built when they are asked for
        self.listing = False  # whether the help of all commands is being written, which needs none of them

    def list_commands(self, ctx: Any) -> list[str]:
        """In the order in which a newcomer meets them."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, name: str) -> Any:
        """The command, built when it is first asked for."""
        if name not in COMMANDS:
            return None
        if self.listing:
            return TyperCommand(name, help=COMMANDS[name].line)
        if self.commands[name] is None:
            self.commands[name] = load(name)
        return self.commands[name]

    def format_help(self, ctx: Any, formatter: Any) -> None:
        self.listing = True
        try:
            super().format_help(ctx, formatter)
        finally:
            self.listing = False

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that is asked for, with its options in groups."""
        name, command, rest = super().resolve_command(ctx, args)
        if name is not None and command is not None and not isinstance(command, TyperGroup):
            arrange(command, name, ctx)
        return name, command, rest

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (Exception, KeyboardInterrupt) as error:
            told = explain(error)
            if told is None:
                raise
            from .console import show_error

            show_error(told)
            raise typer.Exit(BAD_INPUT if isinstance(told, MrtError) else RUN_FAILED) from None


def explain(error: BaseException) -> MrtError | RunFailed | None:
    """The error that the user is shown for ``error``; None: it is a bug (or an exit) and is raised again."""
    if isinstance(error, (MrtError, RunFailed)):
        return error
    if isinstance(error, KeyboardInterrupt):
        return Interrupted("interrupted")
    if (failed := failures.told(error)) is not None:
        return failed
    # Typer itself handles a closed pipe (mrt ... | head).
    if isinstance(error, OSError) and error.errno != errno.EPIPE:
        reason = error.strerror or str(error) or type(error).__name__
        if error.filename is None:
            return RunFailed(reason)
        return MrtError(f"{error.filename}: {reason}", "check that path and its permissions")
    return None


app = typer.Typer(
    cls=Root,
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help=(
        "Take an object detector from a labelled domain to an unlabelled one "
        "(MRT: masked retraining teacher-student)."
    ),
    epilog="New here? Run: mrt demo",
)


def _version(wanted: bool) -> None:
    if wanted:
        from mrt import __version__

        typer.echo(f"mrt {__version__}")
        raise typer.Exit()


@app.callback()
def options(
    ctx: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_version, help="Print the version.")
    ] = False,
) -> None:
    """The options before any command."""
    if ctx.invoked_subcommand == "prepare-data" and os.environ.get("WORLD_SIZE", "1") != "1":
        from .experiment import require_one_process

        require_one_process("prepare-data")


def main() -> None:
    """Entry point of ``mrt`` and of ``python -m mrt_cli``."""
    # Waiting OpenMP threads spin for some 50 microseconds, then sleep: as fast as spinning on idle cores, and
    # several times faster on cores that other processes use too.
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    if sys.platform == "darwin":  # what Apple's GPUs lack is computed on the CPU instead of being refused
        os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")
    follow_the_launcher()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal of another encoding lacks characters such as ±
            stream.reconfigure(errors="backslashreplace")
    app(prog_name="mrt")
