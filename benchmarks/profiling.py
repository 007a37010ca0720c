"""What a training step does, from torch's profiler: calls, kernels, waits, and milliseconds by group."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks.bench import Bench
from mrt.losses import HungarianMatcher, Matching

PROFILED = 3  # steps
# Everything inside one of these regions belongs to the group.
REGIONS = {"step: optimiser": "optimiser", "step: average": "EMA", "matching": "matching"}
NAMES = (  # any other call belongs to the first group whose pattern its name contains
    ("op", r"mrt::|ms_deform|_FusedMSDA"),
    ("convolution", r"conv"),
    (
        "matmul",
        r"mm\b|mm_|linear|matmul|mkldnn_reorder|scaled_dot_product|flash_attention|efficient_attention",
    ),
    ("elementwise", r"^aten::|^torch::|Backward|AccumulateGrad"),
)
GROUPS = ("convolution", "matmul", "op", "elementwise", "optimiser", "EMA", "matching", "Python")
# Calls that would wait for a GPU. Those of the optimiser do not count: it reads its step counts, on the host.
WAITS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select")
SYNCS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")


@contextmanager
def matching_named() -> Iterator[None]:
    """Within this context, matching costs and assignment are a region of their own in a profile."""
    parts = [(HungarianMatcher, "start", HungarianMatcher.start), (Matching, "result", Matching.result)]

    def named(method: Callable) -> Callable:
        def call(*arguments):
            with record_function("matching"):
                return method(*arguments)

        return call

    for owner, name, method in parts:
        setattr(owner, name, named(method))
    try:
        yield
    finally:
        for owner, name, method in parts:
            setattr(owner, name, method)


def group_of(event) -> str:
    """The group of a profiled call."""
    parent = event
    while parent is not None:
        if parent.name in REGIONS:
            return REGIONS[parent.name]
        parent = parent.cpu_parent
    return next((group for group, pattern in NAMES if re.search(pattern, event.name)), "Python")


def busy_ms(kernels: list) -> float:
    """Milliseconds in which at least one kernel ran."""
    total, end = 0.0, 0.0
    for start, stop in sorted((kernel.time_range.start, kernel.time_range.end) for kernel in kernels):
        total, end = total + max(0.0, stop - max(start, end)), max(end, stop)
    return total / 1e3


def profiled(bench: Bench, steps: int = PROFILED) -> dict[str, Any]:
    """Counts per step and milliseconds by group, of the calling thread on the CPU or of a GPU's kernels."""
    cuda = bench.cuda
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if cuda else [])
    with matching_named(), profile(activities=activities) as trace:
        for _ in range(steps):
            with record_function("step"):
                bench()
    calls = [event for event in trace.events() if event.device_type == torch.autograd.DeviceType.CPU]
    on_device = [event for event in trace.events() if event.device_type != torch.autograd.DeviceType.CPU]
    kernels = [event for event in on_device if not event.name.startswith(("step", "matching", "Optimizer"))]
    groups, counts = Counter(), Counter(event.name for event in calls)
    for event in calls:
        groups[group_of(event)] += event.self_device_time_total if cuda else event.self_cpu_time_total
    waiting = [event for event in calls if event.name in (SYNCS if cuda else WAITS)]
    found = {
        "groups_ms": {name: groups[name] / 1e3 / steps for name in GROUPS},
        "aten_calls": sum(count for name, count in counts.items() if name.startswith("aten::")) / steps,
        "copies": counts["aten::copy_"] / steps,
        "host_syncs": sum(group_of(event) != "optimiser" for event in waiting) / steps,
        "most_called": {name: count / steps for name, count in counts.most_common(12)},
    }
    if cuda:
        found |= {"kernels": len(kernels) / steps, "gpu_busy_ms": busy_ms(kernels) / steps}
    return found
