"""The command line in this process: faster than a subprocess each, with the same exit codes and streams."""

from __future__ import annotations

import re

from mrt_cli.app import app
from typer.testing import CliRunner, Result

# Training of a second, in which the detector learns nothing: the tests are about the commands around it.
TINY = [
    *(
        "data.sides=[48]",
        "data.source_sides=[48]",
        "data.max_size=96",
        "data.size_multiple=1",
        "data.cache='none'",
    ),
    *("engine.threads=1", "model.backbone=resnet18", "model.weights='none'", "model.freeze='none'"),
    *("model.hidden_dim=16", "model.num_heads=2", "model.num_decoder_layers=2"),
    *("model.feedforward_dim=32", "model.num_queries=10", "engine.batch_size=2", "engine.log_every=1"),
    *("pretrain.epochs=1", "pretrain.steps_per_epoch=1", "mae_stage.epochs=1", "mae_stage.steps_per_epoch=1"),
    *("teach.epochs=1", "teach.steps_per_epoch=1", "mae.decay_epoch=1"),
]


def mrt(command: str, *more: object) -> Result:
    """Run ``mrt``; any exception except an exit is raised.

    Args:
        command: words separated by spaces.
        more: further words, one each.
    """
    words = [*command.split(), *map(str, more)]
    result = CliRunner().invoke(app, words, prog_name="mrt")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def too_long(text: str) -> list[str]:
    """Lines of 160 columns and more, but for commands, settings (as JSON) and words that are as long."""
    lines = [line for line in text.splitlines() if len(line) >= 160 and " " in line.strip()]
    return [line for line in lines if not re.search(r"(?:^|: |-> |\$ )mrt [a-z]|^ *[\"{\[]", line)]


def refused(command: str, *more: object) -> str:
    """Run a command as :func:`mrt`, which must end with exit code 2 and a message, without a traceback.

    Returns:
        The message on standard error, in one line.
    """
    result = mrt(command, *more)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    return " ".join(result.stderr.split())
