"""The entry point: ``mrt``. Commands import what they need when they run, so ``mrt --help`` is instant.

Exit codes: 0 done, 1 a run failed or was interrupted, 2 bad input.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from mrt import failures
from mrt.errors import Interrupted, MrtError, RunFailed
from mrt.follow import follow_the_launcher

from . import (
    ablate,
    adapt,
    assess,
    demo,
    doctor,
    evaluate,
    export,
    label,
    predict,
    prepare_data,
    pretrain_source,
    report,
    select,
)
from .panels import arrange

RUN_FAILED, BAD_INPUT = 1, 2
ORDER = [
    *("demo", "prepare-data", "pretrain-source", "adapt", "predict"),
    *("eval", "select", "assess", "export", "report", "ablate", "label", "doctor"),
]


class Root(TyperGroup):
    """The group of all commands, where errors become one message and an exit code."""

    def list_commands(self, ctx: Any) -> list[str]:
        """In the order in which a newcomer meets them."""
        return sorted(self.commands, key=ORDER.index)

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
    add_completion=False,
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


demo.register(app)
prepare_data.register(app)
pretrain_source.register(app)
adapt.register(app)
predict.register(app)
evaluate.register(app)
select.register(app)
assess.register(app)
export.register(app)
report.register(app)
ablate.register(app)
label.register(app)
doctor.register(app)


def main() -> None:
    """Entry point of ``mrt`` and of ``python -m mrt_cli``."""
    # Waiting OpenMP threads spin for some 50 microseconds, then sleep: as fast as spinning on idle cores, and
    # several times faster on cores that other processes use too.
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    follow_the_launcher()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal of another encoding lacks characters such as ±
            stream.reconfigure(errors="backslashreplace")
    app(prog_name="mrt")
