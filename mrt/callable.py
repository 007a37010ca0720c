"""Packages that can be called like functions.

``mrt.adapt`` is the package with what MRT adds to a detector, and ``mrt.adapt(...)`` adapts a detector.
"""

from __future__ import annotations

import inspect
import sys
from types import ModuleType
from typing import Any


class CallablePackage(ModuleType):
    """A package whose call is passed on to the function with its name in :mod:`mrt.api`."""

    def _function(self) -> Any:
        from mrt import api

        return getattr(api, self.__name__.rpartition(".")[2])

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._function()(*args, **kwargs)

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self._function())


def make_callable(package: str) -> None:
    """Make a package callable; the package itself calls this with its ``__name__``."""
    sys.modules[package].__class__ = CallablePackage
