"""Calls every kernel of the op once, for tools that watch a process: compute-sanitizer and ncu.

python -m benchmarks.gpu_first_look_tools [--kinds encoder ...] [--device cuda] [--large]
"""

from __future__ import annotations

import argparse
import csv
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.gpu_first_look_machine import benchmark, require_kernels
from benchmarks.gpu_first_look_runner import REPOSITORY, Look, NotHere
from mrt.ops import ms_deform_attn_fused

bench = benchmark("ms_deform_attn", light=__name__ == "__main__")
SHAPES = ((20, 30), (10, 15), (5, 8), (3, 4))
# One case of each kernel: fast by tiles, fast, generic. "deterministic" is the encoder with that setting.
KINDS = {
    "encoder": bench.Case(SHAPES, 2, heads=4),
    "decoder": bench.Case(SHAPES, 2, queries=50, heads=4),
    "wide encoder": bench.Case(SHAPES, 2, heads=4, dim=64),
    "generic": bench.Case(SHAPES, 2, queries=50, heads=4, dim=24, points=3),
    "deterministic": bench.Case(SHAPES, 2, heads=4),
}
LARGE = {
    "encoder": bench.CUDA_CASES["E"],
    "decoder": bench.CUDA_CASES["D"],
    "deterministic": bench.CUDA_CASES["E"],
}
LEAST = 5.0  # seconds that a tool has, and that are left after it
METRICS = {
    "gpu__time_duration.sum": "time",
    "sm__throughput.avg.pct_of_peak_sustained_elapsed": "SM %",
    "lts__throughput.avg.pct_of_peak_sustained_elapsed": "L2 %",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed": "DRAM %",
    "l1tex__throughput.avg.pct_of_peak_sustained_elapsed": "L1 %",
    "sm__warps_active.avg.pct_of_peak_sustained_active": "occupancy %",
    "smsp__issue_active.avg.pct_of_peak_sustained_active": "issue %",
    "launch__registers_per_thread": "registers",
}
NO_PERMISSION = re.compile(
    r"ERR_NVGPUCTRPERM|permission|LibraryNotLoaded|Failed to initialize the profiler", re.I
)
NOT_THIS_DEVICE = re.compile(r"Device not supported|not supported on|No devices? (?:was|were)? ?found", re.I)


def call(kind: str, device: str, dtype: torch.dtype, large: bool) -> None:
    """Forward and backward once."""
    case = (LARGE if large else KINDS)[kind]
    if large:
        case = replace(case, graph=False)
    inputs = case.inputs(0)
    kinds = (dtype, *[torch.float32] * 3, dtype)
    *leaves, upstream = (tensor.to(device, to) for tensor, to in zip(inputs, kinds, strict=True))
    leaves = [leaf.requires_grad_() for leaf in leaves]
    torch.use_deterministic_algorithms(kind == "deterministic", warn_only=True)
    output = ms_deform_attn_fused(leaves[0], case.shapes, *leaves[1:])
    torch.autograd.grad(output, leaves, upstream)
    torch.use_deterministic_algorithms(False)


def child(look: Look, *words: str) -> list[str]:
    """The command that runs this file."""
    return [sys.executable, "-m", "benchmarks.gpu_first_look_tools", "--device", look.device, *words]


def run_tool(look: Look, command: Sequence[str], most: float) -> subprocess.CompletedProcess:
    """Run a command within the time that is left; without caching, so that each tensor's end is known."""
    variables = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    seconds = max(LEAST, min(look.most(most), look.left() - LEAST))
    options = {"env": variables, "cwd": REPOSITORY, "capture_output": True, "text": True}
    try:
        return subprocess.run(command, **options, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        raise NotHere(f"{Path(command[0]).name} did not end within {seconds:.0f} s") from None


def tool(name: str, look: Look) -> list[str]:
    """How to begin the command; nothing in a dry run, which runs the cases without the tool."""
    if look.dry_run:
        return []
    places = (shutil.which(name), f"/usr/local/cuda/bin/{name}", f"/opt/nvidia/nsight-compute/{name}")
    for place in places:
        if place and os.access(place, os.X_OK):
            return [place]
    raise NotHere(f"there is no {name} here")


def sanitizer(kind_of_check: str, look: Look) -> str:
    """compute-sanitizer on one case of each kernel, float32 and bfloat16."""
    require_kernels(look)
    begin = tool("compute-sanitizer", look)
    if begin:
        begin += ["--tool", kind_of_check, "--error-exitcode", "1"]
    done = run_tool(look, [*begin, *child(look)], 110)
    said = done.stdout + done.stderr
    if NOT_THIS_DEVICE.search(said):
        raise NotHere(f"compute-sanitizer refuses this device: {last_line(said)}")
    if begin and "SUMMARY" not in said:
        raise RuntimeError(f"compute-sanitizer did not come to its end: {last_line(said)}")
    look.check(f"{kind_of_check} of {', '.join(KINDS)}", float(done.returncode != 0), 0.0, said=said[-4000:])
    if done.returncode:
        raise RuntimeError(first_finding(said))
    return last_line(said)


def first_finding(said: str) -> str:
    """The lines in which compute-sanitizer says what it found first."""
    lines = [line.removeprefix("=========").strip() for line in said.splitlines()]
    for number, line in enumerate(lines):
        if re.search(r"Invalid|Race|hazard|Error|uninitialized", line):
            return " ".join(filter(None, lines[number : number + 4]))[:400]
    return last_line(said)


def last_line(said: str) -> str:
    lines = [line.strip("= ") for line in said.splitlines() if line.strip("= ")]
    return lines[-1][:300] if lines else "it said nothing"


def counters(look: Look) -> str:
    """ncu's counters of our kernels at E and D, bfloat16."""
    require_kernels(look)
    begin = tool("ncu", look)
    if begin:  # the clocks stay as they are
        begin += ["--clock-control", "none", "--csv", "--metrics", ",".join(METRICS)]
        begin += ["--kernel-name-base", "demangled", "--kernel-name", "regex:mrt::cuda"]
    words = ["--kinds", "encoder", "decoder", "--dtypes", "bfloat16", *([] if look.dry_run else ["--large"])]
    done = run_tool(look, [*begin, *child(look, *words)], 100)
    said = done.stdout + done.stderr
    rows = counter_rows(done.stdout)
    if not rows and NO_PERMISSION.search(said):
        line = next(line for line in said.splitlines() if NO_PERMISSION.search(line))
        raise NotHere(f"the counters cannot be read here: {line.strip('= ')[:300]}")
    if done.returncode or (begin and not rows):
        raise RuntimeError(f"exit code {done.returncode}, no counters: {last_line(said)}")
    for kernel, numbers in rows:
        look.note(f"ncu, {kernel}: " + ", ".join(f"{name} {number}" for name, number in numbers.items()))
    return f"counters of {len(rows)} launches, below the notes"


def counter_rows(text: str) -> list[tuple[str, dict[str, str]]]:
    """(kernel, counters) per launch, from ncu's CSV of one line for each counter of each launch."""
    lines = text.splitlines()
    start = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), None)
    if start is None:
        return []
    found: dict[str, tuple[str, dict[str, str]]] = {}
    for row in csv.DictReader(lines[start:]):
        name = METRICS.get(row.get("Metric Name") or "")
        if name is None:
            continue
        kernel = re.sub(r"\(.*", "", (row["Kernel Name"] or "").replace("(anonymous namespace)::", ""))
        unit = row["Metric Unit"] if name == "time" else ""
        found.setdefault(row["ID"], (kernel.strip(), {}))[1][name] = f"{row['Metric Value']} {unit}".strip()
    return list(found.values())


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--dtypes", nargs="+", choices=bench.DTYPES, default=["float32", "bfloat16"])
    parser.add_argument("--large", action="store_true", help="at workloads E and D")
    options = parser.parse_args(words)
    for kind in options.kinds:
        for dtype in options.dtypes:
            call(kind, options.device, bench.DTYPES[dtype], options.large)
    if options.device == "cuda":
        torch.cuda.synchronize()
    print(f"{len(options.kinds)} kinds were called")


if __name__ == "__main__":
    main()
