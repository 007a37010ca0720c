"""What Python callers give, held against the annotations of what they call.

The command line checks its own words. Needs no torch.
"""

from __future__ import annotations

import functools
import inspect
import os
import types
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any, TypeVar

from mrt.errors import MrtError

_Function = TypeVar("_Function", bound=Callable)
_SEVERAL = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_NUMBERS = {int: Integral, float: Real}
_WORDS = {str: "a text", int: "a whole number", float: "a number", bool: "True or False", Path: "a path"}


def checked(function: _Function) -> _Function:
    """The function, with an MrtError that names the argument where one is of another type than annotated."""
    signature = inspect.signature(function)
    several = [one.name for one in signature.parameters.values() if one.kind in _SEVERAL]

    @functools.wraps(function)
    def checking(*args: Any, **kwargs: Any) -> Any:
        try:
            given = signature.bind(*args, **kwargs).arguments
        except TypeError:  # Python's own error names the function, too
            return function(*args, **kwargs)
        require_types(function, {name: value for name, value in given.items() if name not in several})
        return function(*args, **kwargs)

    return checking  # type: ignore[return-value]


def require_types(annotated: Any, values: Mapping[str, Any]) -> None:
    """MrtError for the first value that is of another type than its annotation.

    Numbers of numpy and tensors of one number are numbers, a text is no list of texts.

    Args:
        annotated: a function or class. values: by the names of its annotations.
    """
    hints = _hints(annotated)
    for name, value in values.items():
        if name in hints and not _fits(value, hints[name]):
            shown = repr(value)
            shown = shown if len(shown) <= 80 else f"{shown[:77]}..."
            raise MrtError(f"{name} = {shown}: is a {type(value).__name__}", f"give {_in_words(hints[name])}")


@functools.cache
def _hints(annotated: Any) -> dict[str, Any]:
    return typing.get_type_hints(annotated)


def _fits(value: Any, hint: Any) -> bool:
    kind, inner = typing.get_origin(hint) or hint, typing.get_args(hint)
    if kind in (types.UnionType, typing.Union):
        return any(_fits(value, one) for one in inner)
    if kind is Any:
        return True
    if kind is Path:
        return isinstance(value, os.PathLike)
    if kind in _NUMBERS:
        value = value.item() if getattr(value, "ndim", None) == 0 else value
        return isinstance(value, _NUMBERS[kind]) and not isinstance(value, bool)
    if kind is Mapping:
        keys, values = inner
        return isinstance(value, Mapping) and all(
            _fits(key, keys) and _fits(item, values) for key, item in value.items()
        )
    if kind in (Sequence, Collection):
        several = isinstance(value, Collection) and not isinstance(value, (str, bytes, Mapping))
        return several and all(_fits(item, inner[0]) for item in value)
    if kind is tuple:
        return isinstance(value, (tuple, list)) and len(value) == len(inner) and all(map(_fits, value, inner))
    return isinstance(value, kind)


def _in_words(hint: Any) -> str:
    kind, inner = typing.get_origin(hint) or hint, typing.get_args(hint)
    if kind in (types.UnionType, typing.Union):
        return " or ".join(_in_words(one) for one in inner)
    if kind is Mapping:
        return f"a mapping, such as a dict, from {_in_words(inner[0])} to {_in_words(inner[1])}"
    if kind in (Sequence, Collection):
        return f"a list with {_in_words(inner[0])} each"
    if kind is tuple:
        return f"({', '.join(map(_in_words, inner))})"
    if kind is types.NoneType:
        return "None"
    return "anything" if hint is Any else _WORDS.get(kind, f"a {kind.__name__}")
