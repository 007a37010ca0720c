"""Commands and options must not change by accident: users depend on them.

After an intended change, update the list: python tests/cli/test_frozen_options.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import typer
from mrt_cli.app import COMMANDS, app

LIST = Path(__file__).parent / "options.json"


def describe(command: Any, name: str = "mrt") -> dict[str, list[str]]:
    """Command -> its parameters, each with all its names and its default."""
    found = {name: sorted(_parameter(item) for item in command.params)}
    inside = {word: command.get_command(None, word) for word in COMMANDS} if name == "mrt" else {}
    for word, inner in (inside or getattr(command, "commands", {})).items():
        found |= describe(inner, f"{name} {word}")
    return found


def _parameter(item: Any) -> str:
    names = item.name.upper()
    if item.param_type_name == "option":
        names = "/".join([*item.opts, *item.secondary_opts])
    several = "..." if getattr(item, "multiple", False) or item.nargs == -1 else ""
    default = item.default() if callable(item.default) else item.default
    return f"{names}{several}" + (f" = {default}" if default not in (None, False, [], ()) else "")


def current() -> dict[str, list[str]]:
    return dict(sorted(describe(typer.main.get_command(app)).items()))


def test_commands_and_options_are_those_on_the_list():
    assert current() == json.loads(LIST.read_text())


if __name__ == "__main__":
    LIST.write_text(json.dumps(current(), indent=1) + "\n")
