"""Each command in a block of a page is one that mrt has, with options and settings that it has."""

from __future__ import annotations

import json
import re
import shlex

import pytest
from command_line import mrt
from mrt_cli.app import COMMANDS, load
from pages import BLOCK, DOCS, ROOT

from mrt.config import known_keys

PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])
SETTINGS = known_keys()
FREE = ("data.class_map.",)  # settings below them have names of the user's
OTHERS = ("method.", "weigh", "my_")  # of plug-ins that a page explains


def commands(page: str) -> list[list[str]]:
    """The commands of mrt in the blocks of a page, as words."""
    found = []
    for match in BLOCK.finditer(page):
        for line in match[3].replace("\\\n", " ").splitlines():
            for part in re.split(r"\s(?:&&|\|)\s", line.removeprefix("$ ")):
                if re.match(r"(\.venv/bin/)?mrt [a-z-]", part):
                    found.append(shlex.split(part, comments=True))
    return found


def unknown(words: list[str]) -> list[str]:
    """What mrt does not know of a command."""
    name, rest = words[1], words[2:]
    if name not in COMMANDS:
        return [name]
    command = load(name)
    if hasattr(command, "commands") and rest and rest[0] in command.commands:
        command, rest = command.commands[rest[0]], rest[1:]
    elif hasattr(command, "commands"):
        command = command.commands["prepared"]
    options = {option for param in command.params for option in (*param.opts, *param.secondary_opts)}
    wrong, after = [], None
    for word in rest:
        if word.startswith("--"):
            after, _, _ = word.partition("=")
            flag = after[2:].replace("-", "_")
            axis = name == "ablate" and any(flag in (key, key.rpartition(".")[2]) for key in SETTINGS)
            wrong += [] if after in (*options, "--help") or axis else [after]
        elif after == "--set":
            key = word.partition("=")[0]
            wrong += [] if key in SETTINGS or key.startswith((*FREE, *OTHERS)) else [key]
    return wrong


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_are_known(page):
    text = page.read_text(encoding="utf-8")
    assert [(words, wrong) for words in commands(text) if (wrong := unknown(words))] == []


def test_what_is_unknown_is_found():
    page = (
        "```\n$ mrt adpt --target a\nmrt adapt --tagret a --set teach.epoch=1  # x\nmrt ablate --lrr 1\n```\n"
    )
    assert [unknown(words) for words in commands(page)] == [["adpt"], ["--tagret", "teach.epoch"], ["--lrr"]]
    fine = "```sh\nmrt prepare-data foggy --raw a | mrt prepare-data camera --preview 3\n```\n"
    assert [unknown(words) for words in commands(fine)] == [[], []]
    assert sum(len(commands(page.read_text(encoding="utf-8"))) for page in PAGES) > 100


def test_what_the_readme_says_shows_all_settings_does(somewhere):
    (typed,) = re.findall(r"All settings: `mrt ([^`]*)`", (ROOT / "README.md").read_text(encoding="utf-8"))
    result = mrt(typed)
    assert result.exit_code == 0, result.output
    shown = json.loads(result.stdout)
    assert {f"{section}.{key}" for section in ("teach", "mae", "engine") for key in shown[section]} <= set(
        SETTINGS
    )
    assert len(shown) > 10
