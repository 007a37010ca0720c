"""How many instructions the op's CUDA kernels issue at case E, counted without a GPU.

    python -m benchmarks.kernel_estimates [--arch 90] [--dtype float32] [--blocks 6] [--csrc FOLDER]

Compiles the encoder's three kernels for the instance of case E (D = 32, four levels), runs the machine code
of some blocks in :mod:`benchmarks.machine_code`, compares what they write with the PyTorch path in float64,
and prints the instructions that warps issue, summed over the case (N = 4), in millions, and sectors of 32
bytes. Needs nvcc (CUDA_HOME) and nvdisasm (of the toolkit, or of triton).

"ms" is the time that issuing takes at RATE: what a prototype's tile kernel reached on an H100, where this
count gives 451 million instructions and 0.554 ms were measured. Caches, and waiting for them, are not in it:
no kernel is expected to take less, each may take more.
"""

from __future__ import annotations

import argparse
import os
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from benchmarks import machine_code
from benchmarks.ms_deform_attn import DTYPES, B, Case
from mrt.errors import MrtError
from mrt.ops import reference

ROOT = Path(__file__).resolve().parents[1]
RATE = 451e6 / 0.554  # instructions of a warp a millisecond
PARAMETERS = {80: 0x160, 90: 0x210, 100: 0x380, 120: 0x380}  # where a kernel's arguments begin
BLOCK_SIZE = {80: 0, 90: 0, 100: 0x360, 120: 0x360}
KERNELS = {"forward": "forward_kernel", "backward": "points_kernel", "tiles": "tiles_kernel"}
IMAGES, HEADS, DIM, POINTS, SIDE, THREADS = 4, 8, 32, 4, 8, 256


class Work:
    """One image of case E for one of the kernels: its arguments, and which queries a block serves."""

    def __init__(self, kind: str, dtype: torch.dtype):
        self.kind, self.dtype = kind, dtype
        inputs = Case(B, 1).inputs(0)
        self.inputs = [tensor.float() for tensor in inputs]
        self.inputs[0], self.inputs[-1] = (self.inputs[i].to(dtype) for i in (0, -1))
        value, references, offsets, logits, upstream = self.inputs
        self.queries = value.shape[1]
        lanes = DIM * dtype.itemsize // 16
        self.tile_height = SIDE if kind == "tiles" else THREADS // lanes // SIDE
        self.tiles = [
            -(-width // SIDE) * -(-height // self.tile_height) for height, width in B
        ]  # of each level
        items, wide = self.queries * HEADS, np.zeros
        results = {
            "forward": {"output": bits(torch.zeros(items * DIM, dtype=dtype))},
            "backward": {"points": wide(items * 32, np.float32), "weights": wide(items * 16, np.float32)},
            "tiles": {"grad_value": wide(items * DIM, np.float32)},
        }[kind]
        arrays = {"value": value, "references": references, "offsets": offsets, "logits": logits}
        arrays["upstream"] = upstream
        self.memory = machine_code.Memory({n: bits(a) for n, a in arrays.items()} | results)

    def parameters(self) -> bytes:
        """Layout (fast.h), Inputs and Gradients (kernels.h), in the order of the kernel's arguments."""
        at, levels = self.memory.address, len(B)
        starts = np.cumsum([0] + [height * width for height, width in B])[:levels]
        first = np.cumsum([0, *self.tiles])[:levels]
        columns = [-(-width // SIDE) for _, width in B]
        lists = (
            [h for h, _ in B],
            [w for _, w in B],
            starts,
            first,
            columns,
            [0xFFFFFFFF // c for c in columns],
        )
        numbers = [self.queries, self.queries, HEADS, levels, levels * POINTS]
        for values in lists:
            numbers += [*map(int, values), 2**31 - 1 if values is first else 0]
        layout = struct.pack("<35I4xq", *numbers, sum(self.tiles))
        given = [at(name) for name in ("value", "references", "offsets", "logits")]
        inputs = struct.pack("<4q2qi4x", *given, HEADS * levels * POINTS * 2, HEADS * levels * POINTS, 0)
        if self.kind == "forward":
            return layout + inputs + struct.pack("<q?", at("output"), True)
        if self.kind == "tiles":
            return layout + inputs + struct.pack("<qq", at("upstream"), at("grad_value"))
        gradients = struct.pack("<qqi4x", at("points"), at("weights"), 0)
        return layout + inputs + struct.pack("<q", at("upstream")) + gradients + struct.pack("<x?", True)

    def served(self, tile: int) -> list[int]:
        """The queries of a tile."""
        start = 0
        for (height, width), count in zip(B, self.tiles, strict=True):
            if tile < count:
                columns = -(-width // SIDE)
                x, y = tile % columns * SIDE, tile // columns * self.tile_height
                rows, cells = range(y, min(y + self.tile_height, height)), range(x, min(x + SIDE, width))
                return [start + row * width + cell for row in rows for cell in cells]
            tile, start = tile - count, start + height * width
        raise ValueError(f"there is no such tile: {tile} too many")

    def error(self, blocks: list[tuple[int, int]]) -> float:
        """The largest difference of what these blocks (tile, head) wrote, as a share of the largest."""
        worst = 0.0
        for head in {head for _, head in blocks}:
            queries = torch.tensor([q for tile, h in blocks if h == head for q in self.served(tile)])
            value, references, offsets, logits, upstream = (tensor.double() for tensor in self.inputs)
            value = value[:, :, head : head + 1].requires_grad_()
            offsets = offsets[:, queries][:, :, head : head + 1].requires_grad_()
            logits = logits[:, queries][:, :, head : head + 1].requires_grad_()
            output = reference.ms_deform_attn_fused(value, B, references[:, queries], offsets, logits)
            if self.kind == "forward":
                pairs = [(self.found("output", DIM)[queries, head], output.detach()[0])]
            else:
                up = upstream.view(1, self.queries, HEADS, DIM)[:, queries, head]
                grads = torch.autograd.grad(output, (value, offsets, logits), up)
                if self.kind == "tiles":
                    pairs = [(self.found("grad_value", DIM)[:, head], grads[0][0, :, 0])]
                else:
                    pairs = [
                        (self.found("points", 32)[queries, head], grads[1].flatten(2)[0]),
                        (self.found("weights", 16)[queries, head], grads[2].flatten(2)[0]),
                    ]
            for mine, exact in pairs:
                worst = max(worst, ((mine - exact).abs().max() / exact.abs().max()).item())
        return worst

    def found(self, name: str, size: int) -> torch.Tensor:
        array = torch.from_numpy(self.memory[name].copy())
        return (
            (array if array.dtype == torch.float32 else array.view(self.dtype)).double().view(-1, HEADS, size)
        )


def bits(tensor: torch.Tensor) -> np.ndarray:
    """The tensor's numbers; of 16 bits, as integers."""
    tensor = tensor.contiguous()
    return (tensor if tensor.dtype == torch.float32 else tensor.view(torch.int16)).numpy()


def compiled(csrc: Path, kind: str, arch: int, folder: Path) -> str:
    """What nvdisasm prints of the kernels of one file."""
    nvcc = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"), "bin/nvcc")
    disassembler = nvcc.with_name("nvdisasm")
    if not disassembler.exists():
        try:
            import triton
        except ImportError:
            triton = None
        near = Path(triton.__file__).parent if triton else Path()
        disassembler = near / "backends/nvidia/bin/nvdisasm"
    for program in (nvcc, disassembler):
        if not program.exists():
            hint = "set CUDA_HOME to a toolkit; nvdisasm also comes with triton"
            raise MrtError(f"there is no {program.name} to count with", hint)
    cubin = folder / f"{kind}_{arch}.cubin"
    includes = f"-I{Path(torch.__file__).parent / 'include'}"
    command = [nvcc, "-std=c++17", "-O3", f"-arch=sm_{arch}", "-cubin", includes, "-o", cubin]
    done = subprocess.run([*command, csrc / f"cuda/{kind}.cu"], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise MrtError(f"{kind}.cu does not compile for sm_{arch}: {done.stderr[:400]}")
    return subprocess.run([disassembler, cubin], capture_output=True, text=True, check=True).stdout


def instance(listing: str, kind: str, dtype: torch.dtype) -> machine_code.Kernel:
    """The kernel for D = 32 and four levels that leaves value's gradient to the tiles."""
    word = {"float32": f"{KERNELS[kind]}If", "bfloat16": "BFloat16", "float16": "Half"}[str(dtype)[6:]]
    wanted = [
        kernel
        for name, kernel in machine_code.kernels(listing).items()
        if word in name and "Li32ELi4E" in name and "FloatSum" not in name
    ]
    (kernel,) = wanted
    return kernel


def count(work: Work, listing: str, arch: int, number: int) -> tuple[machine_code.Machine, float, float]:
    """Run some blocks; returns the machine, what its counts are to be multiplied with, and the error."""
    code = instance(listing, work.kind, work.dtype).prepare()
    constants, parameters = np.zeros(4096, np.uint8), np.frombuffer(work.parameters(), np.uint8)
    constants[PARAMETERS[arch] : PARAMETERS[arch] + len(parameters)] = parameters
    constants[BLOCK_SIZE[arch] : BLOCK_SIZE[arch] + 4] = np.frombuffer(struct.pack("<I", THREADS), np.uint8)
    machine = machine_code.Machine(code, work.memory, constants, 48 << 10)
    random, total = np.random.default_rng(1), sum(work.tiles)
    tiles = ((np.arange(number) + random.random(number)) / number * total).astype(
        int
    )  # evenly over the levels
    blocks = [(int(tile), int(random.integers(HEADS))) for tile in tiles]
    for tile, head in blocks:
        machine.run((tile, 0, head), THREADS)
    return machine, total * HEADS * IMAGES / number, work.error(blocks)


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernel_estimates")
    parser.add_argument("--arch", type=int, nargs="+", choices=PARAMETERS, default=list(PARAMETERS))
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=["float32", "bfloat16"])
    parser.add_argument("--kernel", nargs="+", choices=KERNELS, default=list(KERNELS))
    parser.add_argument("--blocks", type=int, default=6, help="of each kernel, spread over the levels")
    parser.add_argument("--csrc", type=Path, default=ROOT / "csrc")
    options = parser.parse_args(words)
    print("arch  dtype     kernel     millions of instructions    ms  sectors loaded, added to  differs by")
    with tempfile.TemporaryDirectory() as folder:
        listings = {
            (kind, arch): compiled(options.csrc, kind, arch, Path(folder))
            for kind in options.kernel
            for arch in options.arch
        }
    for dtype in options.dtype:
        for kind in options.kernel:
            for arch in options.arch:
                work = Work(kind, DTYPES[dtype])
                machine, times, error = count(work, listings[kind, arch], arch, options.blocks)
                issued = machine.counts.sum() * times
                loaded, added = (machine.sectors[name] * times / 1e6 for name in ("loads", "additions"))
                print(
                    f"{arch:4}  {dtype:8}  {kind:8}  {issued / 1e6:10.0f}  {issued / RATE:20.3f}"
                    f"  {loaded:8.0f}  {added:8.0f}  {error:16.0e}",
                    flush=True,
                )
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except MrtError as problem:
        print("\n".join(filter(None, (problem.message, problem.hint))), file=sys.stderr)
        sys.exit(2)
