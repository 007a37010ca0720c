"""The machine and software that a number was measured on, as every benchmark's JSON records it."""

from __future__ import annotations

import datetime
import os
import platform
from pathlib import Path

import torch

from mrt.engine.folder import provenance
from mrt.ops import backend


def cpu_model() -> str:
    """The processor's name as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def environment(device: str) -> dict[str, str | int | float | None]:
    """The facts that every run records, with the hardware and load now; ``device`` is "cpu" or "cuda"."""
    return {
        **provenance(),
        "device": torch.cuda.get_device_name() if device == "cuda" else cpu_model(),
        "op": backend(torch.empty(0, device=device)),
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "system": platform.platform(),
        "cuda": torch.version.cuda,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
