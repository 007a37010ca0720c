"""The kind of device, "cpu" or "cuda", that a run is trained on: its numbers depend on it."""

from __future__ import annotations

import sys
from pathlib import Path

from mrt.data.card import read_json
from mrt.engine.facts import SETTINGS, is_run, read_facts
from mrt.errors import MrtError

GPU_FILES = ("nvidia*", "nvhost*", "nvgpu*", "dxg", "kfd")  # in /dev on Linux: no GPU for torch without one


def device_kind(asked: str) -> str:
    """What ``engine.device`` stands for on this machine: "auto" is a GPU if there is one."""
    return asked if asked != "auto" else "cuda" if has_gpu() else "cpu"


def has_gpu() -> bool:
    """Whether torch sees a GPU; torch is not loaded where the system has none."""
    if "torch" not in sys.modules and sys.platform == "linux":
        if not any(next(Path("/dev").glob(name), None) for name in GPU_FILES):
            return False
    import torch

    return torch.cuda.is_available()


def trained_on(folder: Path) -> str | None:
    """The kind of device that the run in a folder was trained on; None where it does not tell."""
    if not is_run(folder):
        return None
    settings = read_json(folder / SETTINGS) if (folder / SETTINGS).is_file() else {}
    engine = settings.get("engine") if isinstance(settings, dict) else None
    asked = engine.get("device", "auto") if isinstance(engine, dict) else "auto"
    if asked != "auto":
        return str(asked)
    known = read_facts(folder).get("environment") or {}
    op = known.get("op")  # old records name no kind, and the PyTorch path ("python") may be on either
    return known.get("device_type") or (op if op in ("cpu", "cuda") else None)


def require_device(folder: Path, asked: str) -> None:
    """MrtError if the run in a folder was trained on another kind of device than ``asked`` stands for."""
    kind, before = device_kind(asked), trained_on(folder)
    if before not in (None, kind):
        raise MrtError(
            f"{folder}: was trained on device {before}, not on {kind}",
            f"say --device {before} to go on with it; otherwise delete it, or use another --run-root",
        )
