"""Packages that are also functions: ``mrt.adapt`` holds what MRT adds to a detector, and ``mrt.adapt(...)`` adapts one."""

from __future__ import annotations

import inspect
import sys
from types import ModuleType
from typing import Any


class CallablePackage(ModuleType):
    """A package that, called, calls the function of its name in :mod:`mrt.api`."""

    def _function(self) -> Any:
        from mrt import api

        return getattr(api, self.__name__.rpartition(".")[2])

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._function()(*args, **kwargs)

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self._function())


def make_callable(package: str) -> None:
    """To be called by the package itself with its ``__name__``."""
    sys.modules[package].__class__ = CallablePackage
