"""Builds csrc/cuda/*.cu for the CPU (see emulator/machine.h) and calls the kernels on CPU tensors."""

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
FLAGS += ["-fvisibility=hidden", "-fno-gnu-unique"]  # so that each library has its own machine
FLAGS += ["-U_FORTIFY_SOURCE"]  # which would treat the fibers' jumps as errors
DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
GUARD = 64  # elements before and after every tensor that kernels write


NUMBERS = ("dtype", "batch", "cells", "heads", "dim", "queries", "points", "levels", "deterministic", "seed")
NUMBERS += ("point_step", "weight_step", "storage", "grad_storage")
STORAGES = {torch.float32: 0, torch.float64: 0, torch.bfloat16: 1, torch.float16: 2}
INPUTS = ("value", "references", "where", "weights", "grad_output")
OUTPUTS = ("output", "grad_value", "grad_references", "grad_where", "grad_weights", "sums", "bounds")


class Call(ctypes.Structure):  # as in emulator/library.cpp
    _fields_ = (
        *((name, ctypes.c_int64) for name in NUMBERS),
        ("shapes", ctypes.c_int64 * 32),
        *((name, ctypes.c_void_p) for name in (*INPUTS, *OUTPUTS)),
    )


def compile_one(source: Path, target: Path, *macros: str, kernels: Path = KERNELS) -> Path:
    includes = [f"-I{folder}" for folder in (EMULATOR, kernels, Path(torch.__file__).parent / "include")]
    language = ["-x", "c++"] if source.suffix == ".cu" else []
    command = [COMPILER, *FLAGS, *includes, *macros, *language, "-c", str(source), "-o", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{source.name}:\n{done.stderr}"
    return target


def link(target: Path, objects: list[Path], *libraries: str) -> ctypes.CDLL:
    subprocess.run([COMPILER, "-shared", "-o", str(target), *map(str, objects), *libraries], check=True)
    library = ctypes.CDLL(str(target))
    library.emulated_error.restype = ctypes.c_char_p
    table = subprocess.run(["nm", "-S", str(target)], capture_output=True, text=True, check=True).stdout
    symbols = {fields[-1]: fields[:-1] for fields in map(str.split, table.splitlines())}
    base = ctypes.cast(library.emulated_run, ctypes.c_void_p).value - int(symbols["emulated_run"][0], 16)
    # Static variables of kernels.
    shared = [fields for name, fields in symbols.items() if "_kernel" in name and fields[-1] == "b"]
    # Three types of value, three numbers of channels, two of levels: 18 instances of the forward kernel, of
    # the points kernel with and without value's gradient, and of the tile kernel.
    assert len(shared) == 18 * (4 + 5 + 6 + 7), "__shared__ variables"
    for address, size, _ in shared:
        library.emulated_shared(ctypes.c_void_p(base + int(address, 16)), ctypes.c_int64(int(size, 16)))
    return library


def build(folder: Path) -> dict[str, ctypes.CDLL]:
    """The libraries "sm_80" and "sm_90", which differ in how four floats are added atomically.

    Object files stay in ``folder``.
    """
    once = [EMULATOR / "machine.cpp", EMULATOR / "library.cpp"]
    once += [KERNELS / "forward.cu", KERNELS / "generic.cu"]
    with ThreadPoolExecutor(2) as pool:
        shared = [pool.submit(compile_one, source, folder / f"{source.stem}.o") for source in once]
        objects = {}
        for arch, macro in (("sm_80", "-DMRT_VECTOR_ATOMICS=0"), ("sm_90", "-DMRT_VECTOR_ATOMICS=1")):
            objects[arch] = [
                pool.submit(compile_one, KERNELS / f"{name}.cu", folder / f"{name}_{arch}.o", macro)
                for name in ("backward", "tiles")
            ]
        return {
            arch: link(folder / f"{arch}.so", [future.result() for future in (*shared, *own)])
            for arch, own in objects.items()
        }


def build_host(
    folder: Path, objects: list[Path], kernels: Path = KERNELS, namespace: str = "mrt_emulated"
) -> ctypes.CDLL:
    """The CUDA host file (emulator/host.cpp) over compiled kernels; ``ops`` of the result are its ops.

    A namespace can be used once in a process.
    """
    macros = ("-DTORCH_TARGET_VERSION=0x020b000000000000ULL", f"-DNAMESPACE={namespace}")
    host = compile_one(EMULATOR / "host.cpp", folder / "host.o", *macros, kernels=kernels)
    libraries = Path(torch.__file__).parent / "lib"
    needed = (f"-L{libraries}", "-ltorch_cpu", "-lc10", f"-Wl,-rpath,{libraries}")
    library = link(folder / "host.so", [*objects, host], *needed)
    torch.ops.load_library(folder / "host.so")
    library.ops = getattr(torch.ops, namespace)
    return library


def objects_of(folder: Path, arch: str = "sm_90") -> dict[str, Path]:
    """What :func:`build` left in ``folder``, by source."""
    once = {stem: folder / f"{stem}.o" for stem in ("machine", "library", "forward", "generic")}
    return once | {stem: folder / f"{stem}_{arch}.o" for stem in ("backward", "tiles")}


def in_rows(tensor: torch.Tensor) -> bool:
    """Whether each query's numbers are contiguous, and all queries' equally far apart."""
    return tensor[:1, :1].is_contiguous() and tensor.stride(0) == tensor.shape[1] * tensor.stride(1)


class Guarded:
    """A tensor of NaN or zeros between two blocks of a pattern, to detect writes beyond its ends."""

    def __init__(self, like: torch.Tensor, dtype: torch.dtype, zeros: bool = False):
        self.bytes = torch.full(((like.numel() + 2 * GUARD) * dtype.itemsize,), 0x5A, dtype=torch.uint8)
        size = GUARD * dtype.itemsize
        self.tensor = self.bytes[size : size + like.numel() * dtype.itemsize].view(dtype).view(like.shape)
        self.tensor.fill_(0 if zeros else torch.nan)
        self.edges = (self.bytes[:size], self.bytes[size + like.numel() * dtype.itemsize :])

    def intact(self) -> bool:
        return all(bool((edge == 0x5A).all()) for edge in self.edges)


class Emulated:
    """The kernels of one library for the inputs of one call.

    Inputs are as for :mod:`mrt.ops`; ``references`` is None for the plain op. Points and weights may be
    slices of a larger tensor, if each query's are contiguous.
    """

    def __init__(self, library, value, shapes, references, where, weights, seed=0):
        self.library = library
        self.inputs = [
            None if tensor is None else tensor.detach().contiguous() for tensor in (value, references)
        ]
        self.inputs += [
            tensor.detach() if in_rows(tensor) else tensor.contiguous() for tensor in (where, weights)
        ]
        where, weights = self.inputs[2:]
        sides = (ctypes.c_int64 * 32)(*(side for shape in shapes for side in shape))
        sizes = (*value.shape, where.shape[1], where.shape[4], len(shapes))
        self.call = Call(DTYPES[value.dtype], *sizes, seed=seed, shapes=sides)
        self.call.point_step, self.call.weight_step = where.stride(1), weights.stride(1)
        self.call.storage = STORAGES[where.dtype]
        for name, tensor in zip(("value", "references", "where", "weights"), self.inputs, strict=True):
            setattr(self.call, name, None if tensor is None else tensor.data_ptr())
        self.launches: list[tuple[int, int, int]] = []  # grid x, grid y, threads per block

    def _run(self, backward: bool, guarded: list[Guarded]) -> None:
        code = self.library.emulated_run(ctypes.byref(self.call), int(backward))
        assert code == 0, f"error {code}: {self.library.emulated_error().decode()}"
        assert all(each.intact() for each in guarded), "a kernel wrote beyond a tensor"
        sizes = (ctypes.c_int64 * 24)()
        count = self.library.emulated_launches(sizes, 8)
        self.launches = [tuple(sizes[3 * i : 3 * i + 3]) for i in range(count)]

    def forward(self) -> torch.Tensor:
        value, _, where, _ = self.inputs
        shape = value.shape[0], where.shape[1], value.shape[2] * value.shape[3]
        output = Guarded(value.new_empty(shape), value.dtype)
        self.call.output = output.tensor.data_ptr()
        self._run(False, [output])
        return output.tensor

    def backward(
        self, grad_output: torch.Tensor, deterministic: bool = False, narrow: bool = False
    ) -> list[torch.Tensor]:
        """Gradients of value, (references,) points, weights.

        ``narrow``: those of points and weights in the dtype of these, without that of the references.
        """
        value, references, where, weights = self.inputs
        wide = torch.float64 if value.dtype == torch.float64 else torch.float32
        own = where.dtype if narrow else wide
        self.call.grad_storage = STORAGES[own]
        grad_value = Guarded(value, value.dtype if deterministic else wide, zeros=not deterministic)
        grads = [] if references is None or narrow else [Guarded(references, wide)]
        grads += [Guarded(where, own), Guarded(weights, own)]
        sums = torch.zeros(value.numel() if deterministic else 0, dtype=torch.int64)
        bounds = torch.zeros(value.shape[0] * value.shape[2], dtype=torch.int64)
        grad_output = grad_output.contiguous()
        self.call.deterministic = int(deterministic)
        self.call.grad_output, self.call.grad_value = grad_output.data_ptr(), grad_value.tensor.data_ptr()
        self.call.grad_references = None
        names = ("grad_references", "grad_where", "grad_weights")[-len(grads) :]
        for name, grad in zip(names, grads, strict=True):
            setattr(self.call, name, grad.tensor.data_ptr())
        self.call.sums, self.call.bounds = sums.data_ptr(), bounds.data_ptr()
        self._run(True, [grad_value, *grads])
        return [grad_value.tensor.to(value.dtype), *(grad.tensor for grad in grads)]
