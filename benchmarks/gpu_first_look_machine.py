"""The machine of a first look at a GPU: what it is, whether the op was built for it, how fast it is."""

from __future__ import annotations

import hashlib
import importlib
import os
import platform
import shutil
import statistics
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

import mrt
from benchmarks.gpu_first_look_runner import REPOSITORY, Look
from mrt.ops import backend, native

FATBIN = struct.pack("<I", 0xBA55ED50)  # what every block of code for GPUs begins with
SASS = {1: "PTX", 2: "SASS"}
AHEAD = 10_000_000  # cycles, some 5 ms
SIXTEEN = {"bf16": torch.bfloat16, "fp16": torch.float16}


def benchmark(name: str, light: bool = False) -> ModuleType:
    """A module of benchmarks that needs no settings itself.

    Those that measure the op import benchmarks.environment, which needs pydantic. Where that is missing,
    :func:`facts` takes its place.

    Args:
        light: it does so in any case, which spares the time that mrt.engine's import takes.
    """
    try:
        if light:
            raise ModuleNotFoundError
        importlib.import_module("benchmarks.environment")
    except ModuleNotFoundError:
        stand_in = ModuleType("benchmarks.environment")
        stand_in.environment = facts
        sys.modules["benchmarks.environment"] = stand_in
    return importlib.import_module(f"benchmarks.{name}")


def timed(run: Callable[[], object], device: str) -> float:
    """Milliseconds of a GPU that is not left waiting: the host queues all of it while a kernel sleeps."""
    if device == "cuda":
        torch.cuda._sleep(AHEAD)
    return benchmark("ms_deform_attn").timed(run, device)


def facts(device: str) -> dict[str, Any]:
    """The machine and versions, like benchmarks.environment, with nothing but torch."""
    return {
        "mrt": mrt.__version__,
        "commit": _output(["git", "-C", str(REPOSITORY), "describe", "--always", "--dirty"]),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if device == "cuda" else platform.processor() or "CPU",
        "op": backend(torch.empty(0, device=device)),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
        "cuda": torch.version.cuda,
    }


def provenance(device: str, commit: str | None) -> dict[str, Any]:
    """What the report says of where its numbers come from.

    Args:
        commit: of a copy without its repository, as the caller knows it.
    """
    try:
        from benchmarks.environment import environment
    except ModuleNotFoundError:
        environment = facts
    found = dict(environment(device))
    if commit:
        found["commit"] = commit
    found["sources"] = sources_digest()
    found["driver"] = _output(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"])
    if device == "cuda":
        about = torch.cuda.get_device_properties(0)
        found["compute capability"] = f"{about.major}.{about.minor}"
        found["multiprocessors"] = about.multi_processor_count
        found["memory GB"] = round(about.total_memory / 1e9, 1)
        found["cudnn"] = torch.backends.cudnn.version()
    return found


def sources_digest() -> str:
    """12 digits that name the state of mrt, csrc and benchmarks, for copies that have no commit."""
    digest = hashlib.sha256()
    files = [path for folder in ("mrt", "csrc", "benchmarks") for path in (REPOSITORY / folder).rglob("*")]
    for path in sorted(files):
        if path.suffix in (".py", ".cpp", ".cu", ".cuh", ".h", ".inl", ".toml"):
            digest.update(str(path.relative_to(REPOSITORY)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def _output(command: list[str]) -> str | None:
    """What a command prints, in one line; None if there is no such command or it fails."""
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return " ".join(done.stdout.split()) or None


def architectures(library: Path) -> list[str]:
    """What GPU code a library holds, such as "sm_90 SASS", read from the headers of its blocks of code."""
    content, found, place = library.read_bytes(), set(), 0
    while (place := content.find(FATBIN, place)) >= 0:
        head, size = struct.unpack_from("<HQ", content, place + 6)
        entry, end = place + head, min(place + head + size, len(content))
        while entry + 32 <= end:
            kind, _, length, held = struct.unpack_from("<HHIQ", content, entry)
            if length == 0 or kind not in SASS:
                break
            (number,) = struct.unpack_from("<I", content, entry + 28)
            found.add(f"sm_{number} {SASS[kind]}")
            entry += length + held
        place += len(FATBIN)
    return sorted(found)


def runs_on(codes: list[str], capability: tuple[int, int]) -> str | None:
    """The best code for a device: its own major architecture's, not of a later minor one; else PTX."""
    major, minor = capability
    own, portable = [], []
    for code in codes:
        name, kind = code.split()
        number = int(name.removeprefix("sm_"))
        if kind == "SASS" and number // 10 == major and number % 10 <= minor:
            own.append((number, code))
        elif kind == "PTX" and number <= 10 * major + minor:
            portable.append((number, code))
    return max(own or portable, default=(0, None))[1]


def require_kernels(look: Look) -> None:
    """RuntimeError where the op would take its PyTorch path, so that nothing would be tested."""
    reason = native.fallback_reason(look.device)
    if reason is not None:
        raise RuntimeError(f"no kernels for {look.device}: {reason}. {native.build_hint()}")


def build(look: Look) -> str:
    """Whether there are kernels for the device, in which architectures, and whether one runs."""
    libraries = sorted(Path(mrt.__file__).parent.glob("_C*.so"))
    codes = architectures(libraries[-1]) if libraries else []
    told = (
        f"{libraries[-1].name} holds {', '.join(codes) or 'no code for GPUs'}" if libraries else "not built"
    )
    look.note(f"The op: {told}.")
    require_kernels(look)
    if look.device == "cuda":
        capability = torch.cuda.get_device_capability()
        code = runs_on(codes, capability)
        told += f"; this device is sm_{capability[0]}{capability[1]} and takes {code or 'none of them'}"
        if code is None:
            raise RuntimeError(f"{told}; {native.build_hint()}")
    value = torch.ones(1, 6, 1, 32, device=look.device)
    points = torch.full((1, 1, 1, 1, 4, 2), 0.5, device=look.device)
    weights = torch.full((1, 1, 1, 1, 4), 0.25, device=look.device)
    output = native.ms_deform_attn(value, [2, 3], points, weights)
    look.check("a map of ones gives one", (output - 1).abs().max().item(), 1e-6)
    return told


def speeds(look: Look) -> str:
    """What this card reaches in a copy and in products; the goals are for one H100's."""
    side, count = (8192, 10) if look.device == "cuda" else (64, 2)
    source = torch.empty((1 << 30) if look.device == "cuda" else (1 << 16), dtype=torch.uint8).to(look.device)
    target = torch.empty_like(source)
    ms = median_ms(partial(target.copy_, source), look.device, count)
    look.figure("copy", "TB/s", 2 * source.numel() / ms / 1e9)
    for name, amp, dtype in (
        ("float32", "off", torch.float32),
        ("tf32", "tf32", torch.float32),
        ("bf16", "tf32", torch.bfloat16),
    ):
        left, right = (torch.randn(side, side, device=look.device).to(dtype) for _ in range(2))
        with precision(amp, look.device):
            ms = median_ms(partial(torch.matmul, left, right), look.device, count)
        look.figure(f"product {name}", "TFLOP/s", 2 * side**3 / ms / 1e9)
    return f"{side}x{side} products and a copy"


def median_ms(run: Callable[[], object], device: str, rounds: int) -> float:
    """Median milliseconds after two calls that do not count."""
    for _ in range(2):
        run()
    return statistics.median(timed(run, device) for _ in range(rounds))


@contextmanager
def precision(amp: str, device: str) -> Iterator[None]:
    """Inside, products are computed as with ``engine.amp``: "off", "tf32", "bf16", "fp16"."""
    before, cudnn = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest" if amp == "off" else "high")
    torch.backends.cudnn.allow_tf32 = amp != "off"
    try:
        with torch.autocast(device, SIXTEEN[amp]) if amp in SIXTEEN else nullcontext():
            yield
    finally:
        torch.set_float32_matmul_precision(before)
        torch.backends.cudnn.allow_tf32 = cudnn
