"""Several values after one option: ``--seeds 0 1 2``, and any setting as an option of ``mrt ablate``."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import pairwise, takewhile
from typing import Any

from typer import BadParameter
from typer.core import TyperCommand

AXES = "mrt.axes"  # where AxisCommand leaves what it found in the context's meta
WORDS = "mrt.words"  # where ListCommand leaves the words of the command line as they were typed
_NEGATIVE_NUMBER = re.compile(r"-\.?\d")


def is_option(token: str) -> bool:
    """Whether a word of the command line is an option's name, and not a value such as ``-0.5``."""
    return token.startswith("-") and token != "-" and not _NEGATIVE_NUMBER.match(token)


def parse_pairs(option: str, words: Sequence[str] | None) -> dict[str, str]:
    """["a=b", ...] -> {"a": "b"}; MrtError for anything else."""
    from mrt.errors import MrtError

    pairs: dict[str, str] = {}
    for word in words or ():
        key, equals, value = (part.strip() for part in word.partition("="))
        if not (equals and key and value):
            raise MrtError(f"{option} {word}: expected NAME=VALUE")
        if key in pairs:
            raise MrtError(f"{option} {word}: {key} is given twice")
        pairs[key] = value
    return pairs


def help_of(command: Callable[..., None]) -> str:
    """A command's docstring with each paragraph on one line, because the help shows its line breaks."""
    paragraphs = (command.__doc__ or "").split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def require_values(command: Any, ctx: Any, args: Sequence[str]) -> None:
    """A usage error for an option whose value is missing: another option of the command follows it."""
    known = {name for param in command.params for name in (*param.opts, *param.secondary_opts)}
    takers = {
        name: param
        for param in command.params
        if not getattr(param, "is_flag", False) and not getattr(param, "count", False)
        for name in param.opts
        if name.startswith("-")
    }
    for option, word in pairwise(args):
        if option == "--":
            return
        if option in takers and word in known and word.startswith("--"):
            raise BadParameter(
                f"it is missing: what follows is the option {word}", ctx=ctx, param=takers[option]
            )


def _is_a_setting(command: str, option: str, args: Sequence[str]) -> Exception | None:
    """The error for an unknown option that is the last part of a setting's name; None: it is not."""
    from mrt.config import known_keys
    from mrt.errors import MrtError

    wanted = option.lstrip("-").replace("-", "_")
    last = {"adapt": ("pretrain",), "pretrain-source": ("mae_stage", "teach")}.get(command, ())
    keys = [key for key in known_keys() if wanted in (key, key.rpartition(".")[2])]
    keys = [key for key in keys if key.partition(".")[0] not in last] or keys
    keys.sort(key=lambda key: not key.startswith(("teach.", "pretrain.")))
    if not keys:
        return None
    value = "VALUE"
    for position, word in enumerate(args):
        name, equals, given = word.partition("=")
        after = args[position + 1 : position + 2]
        if name == option:
            value = given if equals else (after[0] if after and not is_option(after[0]) else value)
    others = f" (or {', '.join(keys[1:])})" if keys[1:] else ""
    return MrtError(f"No such option: {option}", f"it is a setting: --set {keys[0]}={value}{others}")


class ListCommand(TyperCommand):
    """A command without positional arguments, whose list options take all the values that follow them.

    An option whose value was forgotten, and a setting that was taken for an option, are told as such.
    """

    def takes(self, word: str, option: str) -> bool:
        """Whether a word after a list option is one of its values."""
        return not is_option(word)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ctx.meta[WORDS] = list(args)
        lists = {name for param in self.params if getattr(param, "multiple", False) for name in param.opts}
        spread: list[str] = []
        position = 0
        while position < len(args):
            token = args[position]
            position += 1
            values: list[str] = []
            if token in lists:
                values += takewhile(lambda word, option=token: self.takes(word, option), args[position:])
            if not values:
                spread.append(token)
            for value in values:
                spread += [token, value]
            position += len(values)
        if ctx.resilient_parsing:
            return super().parse_args(ctx, spread)
        require_values(self, ctx, spread)
        try:
            return super().parse_args(ctx, spread)
        except Exception as error:
            name = getattr(error, "option_name", None)
            if not hasattr(error, "possibilities") or "--set" not in lists:
                raise
            told = _is_a_setting(ctx.info_name, name, args)
            if told is None:
                raise
            raise told from None


class PairsCommand(ListCommand):
    """A command with positional arguments, whose list options take the words NAME=VALUE that follow them."""

    def takes(self, word: str, option: str) -> bool:
        """Whether a word after a list option is one of its values."""
        return "=" in word and not is_option(word)


class AxisCommand(ListCommand):
    """A ListCommand that treats unknown options as axes of the grid.

    Both ``--mask-ratio 0.5 0.8`` and ``--axis mae.mask_ratio 0.5 0.8`` are axes. They are stored in
    ``ctx.meta[AXES]``, a list of (name as typed, values as typed).
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        known = {name for param in self.get_params(ctx) for name in param.opts} - {"--axis"}
        axes: list[tuple[str, list[str]]] = []
        rest: list[str] = []
        position = 0
        while position < len(args):
            token = args[position]
            position += 1
            option, equals, first = token.partition("=")
            if not option.startswith("--") or option == "--" or option in known:
                rest.append(token)
                continue
            values = [first] if equals else []
            values += takewhile(lambda word, option=option: self.takes(word, option), args[position:])
            position += len(values) - bool(equals)
            if option == "--axis":
                axes.append((values[0] if values else "", values[1:]))
            else:
                axes.append((option.removeprefix("--"), values))
        ctx.meta[AXES] = axes
        return super().parse_args(ctx, rest)
