"""Multi-scale deformable attention: our kernels, the grid_sample fallback and, if installed, PyPI's torch-ms-deform-attn.

    python -m benchmarks.ms_deform_attn [--device cpu|cuda] [--threads 2] [--cases encoder decoder ...] [--rounds 15]

What is timed is what an attention layer needs: softmax, location arithmetic and sampling. Every implementation's output and gradients are
checked against float64 before anything is timed; the implementations then take turns, round after round over three sets of inputs, so that
whatever else the machine does hits all of them. Figures are medians with their quartiles, ratios are to the fallback in the same run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.environment import environment
from mrt.ops import fallback_reason, native, reference

SMALL = ((32, 64), (16, 32), (8, 16), (4, 8))
LARGE = ((100, 167), (50, 84), (25, 42), (13, 21))  # a 800 x 1333 image at strides 8 to 64
DEMO = ((16, 32), (8, 16), (4, 8))  # a 128 x 256 image at strides 8 to 32
ALLOWED_ERROR = {torch.float32: 2e-5, torch.bfloat16: 1e-2}  # relative L2 against float64; bfloat16: one rounding of the output


@dataclass(frozen=True)
class Case:
    shapes: tuple[tuple[int, int], ...]
    batch: int
    heads: int = 8
    dim: int = 32
    queries: int | None = None  # None: every cell of every level, as in an encoder
    dtype: torch.dtype = torch.float32  # of value; offsets and logits are float32
    points: int = 4

    def __str__(self) -> str:
        levels = ",".join(f"{height}x{width}" for height, width in self.shapes)
        queries = "all cells" if self.queries is None else f"{self.queries} queries"
        return f"N={self.batch} levels {levels}, {self.heads} heads of {self.dim}, {self.points} points, {queries}, {str(self.dtype)[6:]}"

    def inputs(self, seed: int, device: str) -> list[Tensor]:
        """Value, reference points, offsets (a ring per head, plus N(0, 2 cells), off the cell borders), logits, output gradient."""
        generator = torch.Generator().manual_seed(seed)
        levels = len(self.shapes)
        sizes = torch.tensor([(width, height) for height, width in self.shapes])
        if self.queries is None:
            rows = [torch.cartesian_prod((torch.arange(h) + 0.5) / h, (torch.arange(w) + 0.5) / w).flip(-1) for h, w in self.shapes]
            centres = torch.cat(rows).expand(self.batch, -1, 2)
        else:
            centres = torch.rand(self.batch, self.queries, 2, generator=generator)
        references = centres[:, :, None].repeat(1, 1, levels, 1)
        angles = torch.arange(self.heads) * (2 * torch.pi / self.heads)
        ring = torch.stack((angles.cos(), angles.sin()), -1)[:, None, None] * torch.arange(1, self.points + 1)[:, None]
        shape = (self.batch, centres.shape[1], self.heads, levels, self.points)
        offsets = ring + 2 * torch.randn(*shape, 2, generator=generator)
        share = (references[:, :, None, :, None] * sizes[:, None] - 0.5 + offsets) % 1
        offsets += share.clamp(0.02, 0.98) - share
        value = torch.randn(self.batch, sum(h * w for h, w in self.shapes), self.heads, self.dim, generator=generator).to(self.dtype)
        logits = torch.randn(*shape[:3], levels * self.points, generator=generator)
        upstream = torch.randn(self.batch, centres.shape[1], self.heads * self.dim, generator=generator).to(self.dtype)
        return [tensor.to(device) for tensor in (value, references, offsets, logits, upstream)]


CASES = {
    "encoder": Case(SMALL, batch=2),
    "encoder-bf16": Case(SMALL, batch=2, dtype=torch.bfloat16),
    "decoder": Case(SMALL, batch=2, queries=300),
    "demo-encoder": Case(DEMO, batch=8, heads=4, dim=24),
    "demo-decoder": Case(DEMO, batch=8, heads=4, dim=24, queries=60),
    "large-encoder": Case(LARGE, batch=1),
    "large-decoder": Case(LARGE, batch=1, queries=300),
}

Core = Callable[[Tensor, tuple[tuple[int, int], ...], Tensor, Tensor, Tensor], Tensor]


def implementations(device: str) -> dict[str, Core]:
    """Name -> softmax + location arithmetic + sampling. The fallback comes first: ratios are to it."""
    cores: dict[str, Core] = {"grid_sample": reference.ms_deform_attn_fused}

    def flat(shapes) -> list[int]:
        return [side for shape in shapes for side in shape]

    if fallback_reason(device) is None:
        cores["mrt fused"] = lambda value, shapes, *points: native.ms_deform_attn_fused(value, flat(shapes), *points)
        cores["mrt plain"] = around(lambda value, shapes, *points: native.ms_deform_attn(value, flat(shapes), *points))
    try:
        from torch_ms_deform_attn import ms_deform_attn as peer
    except ImportError:
        return cores

    def peer_op(value: Tensor, shapes, locations: Tensor, weights: Tensor) -> Tensor:
        sizes = torch.tensor(shapes, device=value.device)
        areas = sizes.prod(1)
        return peer(value, sizes, areas.cumsum(0) - areas, locations.to(value.dtype), weights.to(value.dtype))

    cores["torch-ms-deform-attn"] = around(peer_op)
    return cores


def around(op: Callable) -> Core:
    """The softmax and location arithmetic that a layer wraps around a plain op."""

    def core(value: Tensor, shapes, references: Tensor, offsets: Tensor, logits: Tensor) -> Tensor:
        sizes = torch.tensor([(width, height) for height, width in shapes], dtype=offsets.dtype, device=offsets.device)[:, None]
        weights = logits.softmax(-1).unflatten(-1, offsets.shape[3:5])
        return op(value, shapes, references[:, :, None, :, None] + offsets / sizes, weights)

    return core


def gradients(core: Core, case: Case, inputs: list[Tensor]) -> list[Tensor]:
    """The output and the gradients of value, offsets and logits."""
    value, references, offsets, logits, upstream = inputs
    leaves = [tensor.detach().requires_grad_() for tensor in (value, offsets, logits)]
    output = core(leaves[0], case.shapes, references, leaves[1], leaves[2])
    return [output.detach(), *torch.autograd.grad(output, leaves, upstream.to(output.dtype))]


def errors(core: Core, case: Case, inputs: list[Tensor], exact: list[Tensor]) -> dict[str, float]:
    """Relative L2 error of the output and each gradient against float64 on the same numbers."""
    names = ("output", "value", "offsets", "logits")
    results = gradients(core, case, inputs)
    return {name: ((mine.double() - other).norm() / other.norm()).item() for name, mine, other in zip(names, results, exact, strict=True)}


def seconds(run: Callable[[], object], device: str) -> float:
    if device == "cuda":
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def forward(core: Core, case: Case, inputs: list[Tensor]) -> None:
    with torch.no_grad():
        core(inputs[0], case.shapes, *inputs[1:4])


def measure(cores: dict[str, Core], case: Case, device: str, rounds: int) -> dict[str, dict]:
    """Errors, then times, of every implementation on one case."""
    sets = [case.inputs(seed, device) for seed in range(3)]
    exact = gradients(reference.ms_deform_attn_fused, case, [tensor.double() for tensor in sets[0]])
    rows: dict[str, dict] = {}
    for name, core in cores.items():
        rows[name] = {"errors": errors(core, case, sets[0], exact)}
        worst = max(rows[name]["errors"].values())
        if name.startswith("mrt") and not worst <= ALLOWED_ERROR[case.dtype]:
            raise SystemExit(f"{name} is wrong on {case}: {rows[name]['errors']}")
        if not worst <= 10 * ALLOWED_ERROR[case.dtype]:
            print(f"note: {name} is off by {worst:.2g} on {case}")
    for label, run in (("forward", forward), ("forward+backward", gradients)):
        times: dict[str, list[float]] = {name: [] for name in cores}
        for turn in range(-1, rounds):  # turn -1 warms up
            for name, core in cores.items():
                elapsed = seconds(partial(run, core, case, sets[turn % 3]), device)
                if turn >= 0:
                    times[name].append(elapsed * 1e3)
        for name, values in times.items():
            low, _, high = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
            ratio = statistics.median(base / mine for base, mine in zip(times["grid_sample"], values, strict=True))
            rows[name][label] = {"ms": statistics.median(values), "quartiles_ms": [low, high], "times_faster_than_grid_sample": ratio}
    return rows


def table(case: Case, rows: dict[str, dict]) -> str:
    lines = [str(case), f"  {'':22}{'forward ms':>24}{'':>9}{'forward + backward ms':>28}{'':>9}{'worst error':>14}"]
    for name, row in rows.items():
        cells = [f"  {name:22}"]
        for label, width in (("forward", 24), ("forward+backward", 28)):
            low, high = row[label]["quartiles_ms"]
            cells.append(f"{row[label]['ms']:.2f} ({low:.2f}-{high:.2f})".rjust(width))
            cells.append(f"{row[label]['times_faster_than_grid_sample']:.1f}x".rjust(9))
        lines.append("".join(cells) + f"{max(row['errors'].values()):14.1e}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), metavar="CASE", help=f"of {', '.join(CASES)}")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--output", type=Path, help="JSON file (default: benchmarks/results/ms_deform_attn-DEVICE.json)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    cores = implementations(options.device)
    results = {"environment": environment(options.device), "rounds": options.rounds, "cases": {}}
    print(", ".join(f"{key} {value}" for key, value in results["environment"].items()))
    if "torch-ms-deform-attn" not in cores:
        print("torch-ms-deform-attn is not installed: no comparison with it")
    for name in options.cases:
        rows = measure(cores, CASES[name], options.device, options.rounds)
        results["cases"][name] = {"case": str(CASES[name]), "implementations": rows}
        print(f"\n{name}: {table(CASES[name], rows)}", flush=True)
    path = options.output or Path(__file__).parent / "results" / f"ms_deform_attn-{options.device}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n")
    print(f"\nwritten to {path}")


if __name__ == "__main__":
    main()
