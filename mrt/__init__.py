"""Domain adaptive object detection with MRT, the Masked Retraining Teacher-student (ICCV 2023).

The functions below are loaded when they are first used, so that ``import mrt`` takes no time;
docs/python.md shows them at work.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mrt.api import adapt, evaluate, export, load, pretrain_source
    from mrt.errors import MrtError
    from mrt.predict.detections import Detections
    from mrt.predict.detector import Detector

__version__ = "0.1.0"
__all__ = [
    "Detections",
    "Detector",
    "MrtError",
    "__version__",
    "adapt",
    "evaluate",
    "export",
    "load",
    "pretrain_source",
]

_PACKAGES = ("adapt", "evaluate", "export")  # they can be called: mrt.callable
_PLACES = {
    **dict.fromkeys(("load", "pretrain_source"), "mrt.api"),
    "Detections": "mrt.predict.detections",
    "Detector": "mrt.predict.detector",
    "MrtError": "mrt.errors",
}


def __getattr__(name: str) -> Any:
    import importlib

    if name in _PACKAGES:
        return importlib.import_module(f"mrt.{name}")
    if name not in _PLACES:
        raise AttributeError(f"module 'mrt' has no attribute {name!r}")
    value = getattr(importlib.import_module(_PLACES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
