"""Builds csrc/cuda/*.cu for the CPU (see emulator/machine.h) and calls its kernels on CPU tensors, through ctypes."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

KERNELS = Path(__file__).resolve().parents[2] / "csrc" / "cuda"
EMULATOR = Path(__file__).with_name("emulator")
COMPILER = shutil.which("g++")
FLAGS = ["-std=c++20", "-O1", "-fPIC", "-fno-strict-aliasing", "-Wno-unknown-pragmas"]
FLAGS += ["-fvisibility=hidden", "-fno-gnu-unique"]  # each library has a machine of its own
FLAGS += ["-U_FORTIFY_SOURCE"]  # it takes the fibers' jumps for errors
DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
GUARD = 64  # elements before and after every tensor that kernels write


NUMBERS = ("dtype", "batch", "cells", "heads", "dim", "queries", "points", "levels", "deterministic", "seed")
INPUTS = ("value", "references", "where", "weights", "grad_output")
OUTPUTS = ("output", "grad_value", "grad_references", "grad_where", "grad_weights", "sums", "bounds")


class Call(ctypes.Structure):  # as in emulator/library.cpp
    _fields_ = (
        *((name, ctypes.c_int64) for name in NUMBERS),
        ("shapes", ctypes.c_int64 * 32),
        *((name, ctypes.c_void_p) for name in (*INPUTS, *OUTPUTS)),
    )


def compile_one(source: Path, target: Path, *macros: str) -> Path:
    includes = [f"-I{folder}" for folder in (EMULATOR, KERNELS, Path(torch.__file__).parent / "include")]
    language = ["-x", "c++"] if source.suffix == ".cu" else []
    command = [COMPILER, *FLAGS, *includes, *macros, *language, "-c", str(source), "-o", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{source.name}:\n{done.stderr}"
    return target


def link(target: Path, objects: list[Path]) -> ctypes.CDLL:
    subprocess.run([COMPILER, "-shared", "-o", str(target), *map(str, objects)], check=True)
    library = ctypes.CDLL(str(target))
    library.emulated_error.restype = ctypes.c_char_p
    lines = subprocess.run(["nm", "-S", str(target)], capture_output=True, text=True, check=True).stdout.splitlines()
    symbols = {fields[-1]: fields[:-1] for fields in map(str.split, lines)}
    base = ctypes.cast(library.emulated_run, ctypes.c_void_p).value - int(symbols["emulated_run"][0], 16)
    shared = [fields for name, fields in symbols.items() if "_kernel" in name and fields[-1] == "b"]  # static variables of kernels
    assert len(shared) % 5 == 0 and shared, "the tile kernel's five __shared__ variables"
    for address, size, _ in shared:
        library.emulated_shared(ctypes.c_void_p(base + int(address, 16)), ctypes.c_int64(int(size, 16)))
    return library


def build(folder: Path) -> dict[str, ctypes.CDLL]:
    """{"sm_80", "sm_90"}: the libraries, which differ in how four floats are added atomically. Objects stay in ``folder``."""
    once = [EMULATOR / "machine.cpp", EMULATOR / "library.cpp", *(KERNELS / f"{name}.cu" for name in ("forward", "generic"))]
    with ThreadPoolExecutor(2) as pool:
        shared = [pool.submit(compile_one, source, folder / f"{source.stem}.o") for source in once]
        own = {
            arch: [
                pool.submit(compile_one, KERNELS / f"{name}.cu", folder / f"{name}_{arch}.o", f"-DMRT_VECTOR_ATOMICS={vectors}")
                for name in ("backward", "tiles")
            ]
            for arch, vectors in (("sm_80", 0), ("sm_90", 1))
        }
        return {arch: link(folder / f"{arch}.so", [f.result() for f in (*shared, *futures)]) for arch, futures in own.items()}


class Guarded:
    """A tensor between two stretches of a pattern, to see writes beyond its ends. Filled with NaN, or with zeros."""

    def __init__(self, like: torch.Tensor, dtype: torch.dtype, zeros: bool = False):
        self.bytes = torch.full(((like.numel() + 2 * GUARD) * dtype.itemsize,), 0x5A, dtype=torch.uint8)
        size = GUARD * dtype.itemsize
        self.tensor = self.bytes[size : size + like.numel() * dtype.itemsize].view(dtype).view(like.shape)
        self.tensor.fill_(0 if zeros else torch.nan)
        self.edges = (self.bytes[:size], self.bytes[size + like.numel() * dtype.itemsize :])

    def intact(self) -> bool:
        return all(bool((edge == 0x5A).all()) for edge in self.edges)


class Emulated:
    """The kernels of one library on one call's inputs, references None for the plain op. Inputs as for :mod:`mrt.ops`."""

    def __init__(self, library, value, shapes, references, where, weights, seed=0):
        self.library = library
        self.inputs = [None if t is None else t.detach().contiguous() for t in (value, references, where, weights)]
        batch, cells, heads, dim = value.shape
        self.call = Call(
            DTYPES[value.dtype], batch, cells, heads, dim, where.shape[1], where.shape[4], len(shapes), seed=seed,
            shapes=(ctypes.c_int64 * 32)(*(side for shape in shapes for side in shape)),
        )  # fmt: skip
        for name, tensor in zip(("value", "references", "where", "weights"), self.inputs, strict=True):
            setattr(self.call, name, None if tensor is None else tensor.data_ptr())
        self.launches: list[tuple[int, int, int]] = []  # grid x, grid y, threads a block

    def _run(self, backward: bool, guarded: list[Guarded]) -> None:
        code = self.library.emulated_run(ctypes.byref(self.call), int(backward))
        assert code == 0, f"error {code}: {self.library.emulated_error().decode()}"
        assert all(each.intact() for each in guarded), "a kernel wrote beyond a tensor"
        sizes = (ctypes.c_int64 * 24)()
        count = self.library.emulated_launches(sizes, 8)
        self.launches = [tuple(sizes[3 * i : 3 * i + 3]) for i in range(count)]

    def forward(self) -> torch.Tensor:
        value, _, where, _ = self.inputs
        output = Guarded(value.new_empty(value.shape[0], where.shape[1], value.shape[2] * value.shape[3]), value.dtype)
        self.call.output = output.tensor.data_ptr()
        self._run(False, [output])
        return output.tensor

    def backward(self, grad_output: torch.Tensor, deterministic: bool = False) -> list[torch.Tensor]:
        """Gradients of value, (references,) points, weights."""
        value, references, where, weights = self.inputs
        wide = where.dtype
        grad_value = Guarded(value, value.dtype if deterministic else wide, zeros=not deterministic)
        grads = [Guarded(t, wide) for t in (references, where, weights) if t is not None]
        sums = torch.zeros(value.numel() if deterministic else 0, dtype=torch.int64)
        bounds = torch.zeros(value.shape[0] * value.shape[2], dtype=torch.int64)
        grad_output = grad_output.contiguous()
        self.call.deterministic = int(deterministic)
        self.call.grad_output, self.call.grad_value = grad_output.data_ptr(), grad_value.tensor.data_ptr()
        for name, grad in zip(("grad_references", "grad_where", "grad_weights")[-len(grads) :], grads, strict=True):
            setattr(self.call, name, grad.tensor.data_ptr())
        self.call.sums, self.call.bounds = sums.data_ptr(), bounds.data_ptr()
        self._run(True, [grad_value, *grads])
        return [grad_value.tensor.to(value.dtype), *(grad.tensor for grad in grads)]
