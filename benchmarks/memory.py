"""Peak memory of a training step, measured on a GPU or counted on the CPU.

python -m benchmarks.train_step --memory
"""

from __future__ import annotations

import ctypes
import gc
import re
import resource
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from benchmarks.bench import Bench
from benchmarks.counting import begin_moments

CARDS_GB = (8, 16, 24, 80)
SPARE_GB = 1.5  # CUDA's context, the allocator's gaps, cuDNN's scratch space: an allowance, not a measurement


def forget_peak(device: torch.device) -> None:
    """Begin a new measurement of the peak memory."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        # Where this is not Linux or not glibc, the peak of the whole process so far is reported.
        with suppress(OSError, AttributeError):
            gc.collect()
            ctypes.CDLL(None).malloc_trim(0)  # free memory of earlier rows in the heap is not this row's
            Path("/proc/self/clear_refs").write_text("5")


def peak_gb(device: torch.device) -> float:
    """Most memory since :func:`forget_peak`, in 10^9 bytes: allocated on the GPU or resident on the CPU."""
    return torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else resident_gb("VmHWM")


def resident_gb(name: str) -> float:
    """This process' memory in 10^9 bytes: now ("VmRSS") or at its highest ("VmHWM").

    It is always the highest where the system has no /proc.
    """
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    return int(re.search(rf"{name}:\s*(\d+)", status)[1]) * 1024 / 1e9


def memory_row(bench: Callable[..., Bench], cuda: bool, real: bool) -> dict[str, Any]:
    """The peak of a step, "peak_gb": of torch's allocator on a GPU, counted on the CPU.

    On a GPU also "reserved_gb", what the allocator took from the driver. On the CPU with ``real`` the step
    runs, and "resident_growth_gb", by how much the process grew, can be held against "counted_growth_gb".
    """
    begin = time.perf_counter()
    if cuda:
        try:
            one = bench()
            one.warm_up()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            one()
            found = {
                "peak_gb": torch.cuda.max_memory_allocated() / 1e9,
                "reserved_gb": torch.cuda.max_memory_reserved() / 1e9,
            }
        except torch.OutOfMemoryError:
            found = {"peak_gb": None}
        one = None
        gc.collect()
        torch.cuda.empty_cache()
    else:
        one = bench(values=real)
        begin_moments(one.learner)
        device = one.learner.world.device
        forget_peak(device)
        before = resident_gb("VmRSS")
        counted = one.counted_gb()
        found = {"peak_gb": counted["counted_gb"], "state_gb": counted["state_gb"]}
        if real:
            found |= {
                "counted_growth_gb": found["peak_gb"] - found["state_gb"],
                "resident_growth_gb": peak_gb(device) - before,
            }
    return found | {"seconds": time.perf_counter() - begin}


def memory_line(row: Mapping[str, Any]) -> str:
    """The row as text, with the smallest card that has so much memory and :data:`SPARE_GB` more."""
    peak = row["peak_gb"]
    cards = [card for card in CARDS_GB if peak is not None and peak + SPARE_GB <= card]
    cells = f"{row['kind']:12}{row['amp']:>5}{'yes' if row['checkpointing'] else 'no':>6}"
    cells += f"{row['images']:>8}{row['micro']:>7}"
    cells += f"{peak:9.2f}" if peak is not None else f"{'too much':>9}"
    more = row.get("reserved_gb")
    if "resident_growth_gb" in row:
        cells += f"{row['counted_growth_gb']:9.2f} counted, {row['resident_growth_gb']:.2f} resident"
    reserved = f"{more:10.2f}" if more is not None else ""
    return cells + reserved + (f"{cards[0]} GB" if cards else "none").rjust(8)


def memory_heads(cuda: bool, real: bool) -> str:
    more = f"{'reserved':>10}" if cuda else f"{'growth':>9}{'':23}" if real else ""
    return f"{'step':12}{'amp':>5}{'ckpt':>6}{'images':>8}{'micro':>7}{'peak GB':>9}{more}{'card':>8}"
