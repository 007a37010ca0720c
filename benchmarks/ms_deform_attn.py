"""Speed of multi-scale deformable attention: our kernels, grid_sample, torch-ms-deform-attn and deformops.

    python -m benchmarks.ms_deform_attn [--case encoder decoder ...] [--backends ...]
                                        [--dtype float32 bfloat16] [--quick]

What is timed is the core of an attention layer: softmax, location arithmetic and sampling; forward, and
backward alone. "as called" is how a model calls it: offsets and logits are slices of one product, of value's
dtype, and the gradient is that of the product; who needs them contiguous or in float32 copies them. "core"
has them contiguous and in float32, "plain op" is the sampling alone. PyPI's packages take part if they are
installed (deformops needs Python 3.12, and has kernels for GPUs only). Before anything is timed, every
implementation's output and gradients are checked against float64, calculated from the same inputs. Then the
implementations take turns, round after round over three sets of inputs, so that other load of the machine
affects all of them alike. Figures are medians with their quartiles. A ratio is the median of the rounds'
ratios to torch-ms-deform-attn (without that: to grid_sample).
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.environment import environment
from mrt.ops import fallback_reason, native, reference

A = ((32, 64), (16, 32), (8, 16), (4, 8))
B = ((100, 167), (50, 84), (25, 42), (13, 21))  # 800x1333 at strides 8 to 64
SMALLER = ((84, 167), (42, 84), (21, 42), (11, 21))  # 666x1333
DEMO = ((16, 32), (8, 16), (4, 8))  # 128x256 at strides 8 to 32
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Relative L2 of a tensor of this dtype against float64 from the same inputs. 16 bits: one rounding, 2^-9 or
# 2^-12 at most; float32: about three times what any implementation here shows.
ALLOWED_ERROR = {"float32": 2e-5, "bfloat16": 2**-9, "float16": 2**-12}
PEER, SECOND, GRID = "torch-ms-deform-attn", "deformops", "grid_sample"
WARM_UP = 1
GRID_EVERY = 4  # grid_sample, slow and beyond doubt, takes part in every fourth round


@dataclass(frozen=True)
class Case:
    shapes: tuple[tuple[int, int], ...]
    batch: int
    queries: int | None = None  # None: every cell of every level, as in an encoder
    heads: int = 8
    dim: int = 32
    points: int = 4
    spread: float = 2.0  # standard deviation of the offsets, cells
    graph: bool = False  # on a GPU by CUDA graph replay: kernels too short for events

    def __str__(self) -> str:
        levels = ",".join(f"{height}x{width}" for height, width in self.shapes)
        queries = "all cells" if self.queries is None else f"{self.queries} queries"
        sizes = f"{self.heads} heads of {self.dim}, {self.points} points, spread {self.spread:g}"
        return f"N={self.batch}, levels {levels}, {queries}, {sizes}"

    def inputs(self, seed: int) -> list[Tensor]:
        """Value, reference points, offsets, logits and output gradient, all float64.

        Offsets are a ring per head plus noise, kept away from the cell borders.
        """
        generator = torch.Generator().manual_seed(seed)
        levels, double = len(self.shapes), {"generator": generator, "dtype": torch.float64}
        sizes = torch.tensor([(width, height) for height, width in self.shapes])
        if self.queries is None:
            rows = [
                torch.cartesian_prod((torch.arange(h) + 0.5) / h, (torch.arange(w) + 0.5) / w).flip(-1)
                for h, w in self.shapes
            ]
            centres = torch.cat(rows).double().expand(self.batch, -1, 2)
        else:
            centres = torch.rand(self.batch, self.queries, 2, **double)
        references = centres[:, :, None].repeat(1, 1, levels, 1).float().double()
        angles = torch.arange(self.heads) * (2 * torch.pi / self.heads)
        ring = (
            torch.stack((angles.cos(), angles.sin()), -1)[:, None, None]
            * torch.arange(1, self.points + 1)[:, None]
        )
        shape = (self.batch, centres.shape[1], self.heads, levels, self.points)
        offsets = ring + self.spread * torch.randn(*shape, 2, **double)
        share = (references[:, :, None, :, None] * sizes[:, None] - 0.5 + offsets) % 1
        offsets = (offsets + share.clamp(0.02, 0.98) - share).float().double()
        value = torch.randn(self.batch, sum(h * w for h, w in self.shapes), self.heads, self.dim, **double)
        logits = torch.randn(*shape[:3], levels * self.points, **double).float().double()
        upstream = torch.randn(self.batch, centres.shape[1], self.heads * self.dim, **double)
        return [value, references, offsets, logits, upstream]


CPU_CASES = {
    "encoder": Case(A, 2),
    "encoder-spread-0.5": Case(A, 2, spread=0.5),
    "encoder-spread-8": Case(A, 2, spread=8),
    "decoder": Case(A, 2, queries=300),
    "large-encoder": Case(B, 1),
    "large-decoder": Case(B, 2, queries=300),
    "encoder-666x1333": Case(SMALLER, 1),
    "odd": Case(A[:3], 2, heads=5, dim=20, points=3),
    "one-head": Case(A, 1, heads=1),
    "demo-encoder": Case(DEMO, 8, heads=4, dim=24),
    "demo-decoder": Case(DEMO, 8, heads=4, dim=24, queries=60),
}
CUDA_CASES = {
    "E": Case(B, 4),
    "E-spread-0.5": Case(B, 4, spread=0.5),
    "E-spread-8": Case(B, 4, spread=8),
    "D": Case(B, 4, queries=300, graph=True),
    "encoder-666x1333": Case(SMALLER, 4),
    "decoder-666x1333": Case(SMALLER, 4, queries=300, graph=True),
    "odd": Case(B[:3], 4, heads=5, dim=20, points=3),
}
QUICK = {"cpu": ["encoder", "decoder"], "cuda": ["E", "D"]}
Core = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # value, then three tensors of points


def backends(case: Case, device: str) -> tuple[dict[str, Core], dict[str, Core]]:
    """Name -> core, and name -> the sampling alone, for the implementations that are installed."""
    flat = [side for shape in case.shapes for side in shape]
    widths = [(width, height) for height, width in case.shapes]
    sizes = torch.tensor(widths, dtype=torch.float32, device=device)[:, None]

    def around(op: Callable) -> Core:
        def core(value: Tensor, references: Tensor, offsets: Tensor, logits: Tensor) -> Tensor:
            weights = logits.softmax(-1).unflatten(-1, offsets.shape[3:5])
            return op(value, references[:, :, None, :, None] + offsets / sizes, weights)

        return core

    cores: dict[str, Core] = {
        GRID: lambda value, *points: reference.ms_deform_attn_fused(value, case.shapes, *points)
    }
    ops: dict[str, Core] = {}
    shapes = torch.tensor(case.shapes, device=device)
    starts = shapes.prod(1).cumsum(0) - shapes.prod(1)
    try:
        from torch_ms_deform_attn import ms_deform_attn as peer
    except ImportError:
        pass
    else:
        # It computes in float32 for every input type, and 16-bit locations would miss their cells. So the
        # inputs are cast as autocast would do.
        ops[PEER] = lambda value, *points: peer(value.float(), shapes, starts, *points).to(value.dtype)
        cores[PEER] = around(ops[PEER])
    try:
        from deformops.registry import msda
    except (ImportError, SyntaxError):  # it needs Python 3.12
        pass
    else:

        def softmax_inside(value: Tensor, references: Tensor, offsets: Tensor, logits: Tensor) -> Tensor:
            """All inputs have value's dtype, as it asks for: 16-bit locations miss their cells."""
            locations = (references[:, :, None, :, None] + offsets / sizes).to(value.dtype)
            return msda(value, shapes, starts, locations, logits.to(value.dtype), method="softmax")

        cores[SECOND] = softmax_inside
    if fallback_reason(device) is None:
        ops["mrt plain"] = lambda value, *points: native.ms_deform_attn(value, flat, *points)
        cores["mrt plain"] = around(ops["mrt plain"])
        cores["mrt fused"] = lambda value, *points: native.ms_deform_attn_fused(value, flat, *points)
    return cores, ops


def as_called(name: str, core: Core, case: Case) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The core as a function of value, reference points and the product of :func:`joined`."""
    numbers = case.heads * len(case.shapes) * case.points

    def layer(value: Tensor, references: Tensor, product: Tensor) -> Tensor:
        offsets, logits = product.split((2 * numbers, numbers), -1)
        offsets = offsets.unflatten(-1, (case.heads, len(case.shapes), case.points, 2))
        logits = logits.unflatten(-1, (case.heads, -1))
        if name == "mrt fused":
            return core(value, references, offsets, logits)
        exact = references.dtype
        return core(value, references, offsets.to(exact), logits.to(exact))

    return layer


def joined(inputs: Sequence[Tensor]) -> list[Tensor]:
    """Value, reference points, the product that offsets and logits are slices of, and output gradient."""
    value, references, offsets, logits, upstream = inputs
    return [value, references, torch.cat((offsets.flatten(2), logits.flatten(2)), -1), upstream]


def rounded(case: Case, inputs: Sequence[Tensor], kinds: Sequence[torch.dtype]) -> list[Tensor]:
    """Inputs of a case in these dtypes, with no point on the border between two cells.

    There a location's gradient jumps, and rounding decides which side is taken. Offsets of 16 bits are
    coarse: some fall on it, and move by a quarter of a cell.
    """
    value, references, offsets, logits, upstream = (
        tensor.to(kind) for tensor, kind in zip(inputs, kinds, strict=True)
    )
    widths = [(width, height) for height, width in case.shapes]
    sizes = torch.tensor(widths, dtype=torch.float64, device=offsets.device)[:, None]
    centres = references.double()[:, :, None, :, None] * sizes - 0.5

    def on_border(offsets: Tensor) -> Tensor:
        share = (centres + offsets.double()) % 1
        return torch.minimum(share, 1 - share) < 1e-3

    offsets = torch.where(on_border(offsets), offsets + 0.25, offsets)
    if on_border(offsets).any():
        raise ValueError(f"{case}: points stay on the borders of cells in {offsets.dtype}")
    return [value, references, offsets, logits, upstream]


def leaves_of(inputs: Sequence[Tensor]) -> list[Tensor]:
    return [tensor.detach().requires_grad_() for tensor in inputs[:-1]]


def results(core: Core, inputs: list[Tensor]) -> list[Tensor]:
    """The output and the gradient of everything."""
    leaves = leaves_of(inputs)
    output = core(*leaves)
    return [output.detach(), *torch.autograd.grad(output, leaves, inputs[-1])]


def check(core: Core, inputs: list[Tensor], exact: list[Tensor]) -> tuple[dict[str, float], dict[str, float]]:
    """Relative L2 errors, and those beyond what is allowed for a tensor of the dtype."""
    names = ("output", "value", "references", "offsets", "logits")
    if len(inputs) == 4:
        names = (*names[:3], "product")
    errors, wrong = {}, {}
    for name, mine, right in zip(names, results(core, inputs), exact, strict=True):
        errors[name] = digits(((mine.double() - right).norm() / right.norm()).item())
        if not errors[name] <= ALLOWED_ERROR[str(mine.dtype).removeprefix("torch.")]:
            wrong[name] = errors[name]
    return errors, wrong


def timed(run: Callable[[], object], device: str) -> float:
    """Milliseconds."""
    if device == "cuda":
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)
    begin = time.perf_counter()
    run()
    return (time.perf_counter() - begin) * 1e3


class Eager:
    """Times one implementation: forward, then backward.

    As in an encoder, all gradients are computed except that of the reference points.
    """

    def __init__(self, core: Core, sets: list[list[Tensor]], device: str) -> None:
        self.core, self.sets, self.device = core, sets, device

    def __call__(self, turn: int) -> tuple[float, float]:
        inputs = self.sets[turn % len(self.sets)]
        leaves = [tensor.detach().requires_grad_(tensor is not inputs[1]) for tensor in inputs[:-1]]
        wanted, output = [leaf for leaf in leaves if leaf.requires_grad], []
        forward = timed(lambda: output.append(self.core(*leaves)), self.device)
        return forward, timed(lambda: torch.autograd.grad(output[0], wanted, inputs[-1]), self.device)


class Graphs:
    """As :class:`Eager`, from CUDA graphs: one of the forward pass and one of both passes, per set of inputs.

    The time of the backward pass is their difference.
    """

    def __init__(self, core: Core, sets: list[list[Tensor]], device: str) -> None:
        self.device, self.graphs = device, []
        stream = torch.cuda.Stream()
        for inputs in sets:
            leaves = leaves_of(inputs)

            def both(leaves: list[Tensor] = leaves, inputs: list[Tensor] = inputs) -> object:
                return torch.autograd.grad(core(*leaves), [leaves[0], *leaves[2:]], inputs[-1])

            pair = []
            for run in (lambda leaves=leaves: core(*leaves), both):
                stream.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(stream):
                    for _ in range(3):
                        run()
                torch.cuda.current_stream().wait_stream(stream)
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph):
                    run()
                pair.append(graph)
            self.graphs.append(pair)

    def __call__(self, turn: int) -> tuple[float, float]:
        forward, both = (timed(graph.replay, self.device) for graph in self.graphs[turn % len(self.graphs)])
        return forward, both - forward


def measure(runs: dict[str, Callable[[int], tuple[float, float]]], budget: float) -> dict[str, dict]:
    """Takes turns for ``budget`` seconds, at least 5 rounds and at most 50, and summarises."""
    times: dict[str, dict[int, tuple[float, float]]] = {name: {} for name in runs}
    for turn in range(WARM_UP):
        for run in runs.values():
            run(turn)
    begin, turn = time.perf_counter(), 0
    while turn < 5 or (turn < 50 and time.perf_counter() - begin < budget):
        for name, run in runs.items():
            if name != GRID or turn % GRID_EVERY == 0:
                times[name][turn] = run(turn)
        turn += 1
    base = PEER if PEER in runs else GRID
    summary: dict[str, dict] = {}
    for name, own in times.items():
        summary[name] = {"rounds": len(own)}
        for label, part in (("forward", lambda t: t[0]), ("backward", lambda t: t[1]), ("both", sum)):
            ratios = [part(times[base][i]) / part(own[i]) for i in own if base in times and i in times[base]]
            summary[name][label] = {
                **spread([part(t) for t in own.values()], "ms"),
                **spread(ratios, "ratio"),
            }
    return summary


def spread(numbers: list[float], unit: str) -> dict[str, float | list[float]]:
    """Median, least and quartiles; nothing of nothing."""
    if not numbers:
        return {}
    low, middle, high = (
        statistics.quantiles(numbers, n=4, method="inclusive") if len(numbers) > 1 else numbers * 3
    )
    return {
        unit: digits(middle),
        f"{unit}_least": digits(min(numbers)),
        f"{unit}_quartiles": [digits(low), digits(high)],
    }


def digits(number: float) -> float:
    return float(f"{number:.4g}")


def run_case(
    case: Case, device: str, dtypes: Sequence[str], names: Sequence[str] | None, budget: float
) -> dict[str, dict]:
    """dtype -> {"as called": {backend: errors and times}, "core": ..., "plain op": ...}."""
    cores, ops = backends(case, device)
    kept = [name for name in cores if names is None or name in names]
    exact_inputs = [[tensor.to(device) for tensor in case.inputs(seed)] for seed in range(3)]
    report: dict[str, dict] = {}
    for dtype in dtypes:
        mine = DTYPES[dtype]
        sets = [rounded(case, inputs, (mine, *[torch.float32] * 3, mine)) for inputs in exact_inputs]
        timer = Graphs if case.graph and device == "cuda" else Eager
        products = [
            joined(rounded(case, inputs, (mine, torch.float32, *[mine] * 3))) for inputs in exact_inputs
        ]
        layers = {name: as_called(name, cores[name], case) for name in cores}
        exact = results(cores[GRID], [tensor.double() for tensor in sets[0]])
        of_product = results(layers[GRID], [tensor.double() for tensor in products[0]])
        report[dtype] = {
            "as called": run_part(case, layers, kept, timer, products, of_product, budget),
            "core": run_part(case, cores, kept, timer, sets, exact, budget / 2),
        }
        if ops.keys() & set(kept) and timer is Eager:
            plain = [plain_inputs(case, inputs) for inputs in sets]
            runs = {name: PlainOp(ops[name], plain, device) for name in ops if name in kept}
            report[dtype]["plain op"] = measure(runs, budget / 3)
    return report


def run_part(
    case: Case,
    cores: dict[str, Callable],
    names: Sequence[str],
    timer: type,
    sets: list[list[Tensor]],
    exact: list[Tensor],
    budget: float,
) -> dict[str, dict]:
    """Backend -> errors and times; stops the program if a kernel is wrong."""
    errors, dtype = {}, sets[0][0].dtype
    for name in names:
        try:
            errors[name], wrong = check(cores[name], sets[0], exact)
        except Exception as error:
            if name != SECOND:
                raise
            print(f"{name} is left out in {dtype} on {case}: {type(error).__name__}: {error}", flush=True)
            continue
        if name.startswith("mrt") and wrong:
            raise SystemExit(f"{name} is wrong in {dtype} on {case}: {wrong}; nothing was timed")
    device = sets[0][0].device.type
    rows = measure({name: timer(cores[name], sets, device) for name in errors}, budget)
    return {name: {"errors": errors[name], **rows[name]} for name in errors}


def plain_inputs(case: Case, inputs: list[Tensor]) -> list[Tensor]:
    value, references, offsets, logits, upstream = inputs
    widths = [(width, height) for height, width in case.shapes]
    sizes = torch.tensor(widths, dtype=offsets.dtype, device=offsets.device)[:, None]
    return [
        value,
        references[:, :, None, :, None] + offsets / sizes,
        logits.softmax(-1).unflatten(-1, offsets.shape[3:5]),
        upstream,
    ]


class PlainOp(Eager):
    """Times the sampling alone, gradients of all three inputs."""

    def __call__(self, turn: int) -> tuple[float, float]:
        inputs, output = self.sets[turn % len(self.sets)], []
        leaves = leaves_of(inputs)
        forward = timed(lambda: output.append(self.core(*leaves)), self.device)
        return forward, timed(lambda: torch.autograd.grad(output[0], leaves, inputs[-1]), self.device)


def table(rows: dict[str, dict]) -> str:
    labels = ("forward", "backward", "both")
    heads = "".join(f"{label + ' ms':>26}{'':>8}" for label in labels)
    lines = [f"  {'':22}{heads}{'worst error':>13}"]
    for name, row in rows.items():
        cells = f"  {name:22}"
        for label in labels:
            low, high = row[label]["ms_quartiles"]
            cells += f"{row[label]['ms']:.2f} ({low:.2f}-{high:.2f})".rjust(26)
            cells += f"{row[label].get('ratio', float('nan')):.1f}x".rjust(8)
        lines.append(cells + (f"{max(row['errors'].values()):13.1e}" if "errors" in row else ""))
    return "\n".join(lines)


def plot(report: dict, path: Path) -> bool:
    """Draw how many times faster than the peer each core is as a model calls it, by case.

    Returns False, without a plot, if matplotlib or the peer's results are missing.
    """
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [
        (name, dtype, report["cases"][name]["results"][dtype]["as called"])
        for name in report["cases"]
        for dtype in report["dtypes"]
    ]
    if not all(PEER in core for _, _, core in rows):
        return False
    figure, axes = pyplot.subplots(
        1, 2, figsize=(11, 1.2 + 0.3 * len(rows)), sharey=True, constrained_layout=True
    )
    markers = {
        GRID: ("#D55E00", "x"),
        SECOND: ("#CC79A7", "D"),
        "mrt plain": ("#E69F00", "s"),
        "mrt fused": ("#0072B2", "o"),
    }
    parts = (("forward", "forward"), ("both", "forward and backward"))
    for axis, (label, title) in zip(axes, parts, strict=True):
        for name, (colour, marker) in markers.items():
            points = [(core[name][label], -i) for i, (_, _, core) in enumerate(rows) if name in core]
            if points:
                entries, at = [entry for entry, _ in points], [y for _, y in points]
                middle = [entry["ratio"] for entry in entries]
                reach = [
                    [abs(entry["ratio"] - entry["ratio_quartiles"][side]) for entry in entries]
                    for side in (0, 1)
                ]
                axis.errorbar(
                    middle,
                    at,
                    xerr=reach,
                    fmt=marker,
                    color=colour,
                    label=name,
                    capsize=2,
                    markersize=5,
                    linewidth=1,
                )
        axis.axvline(1, color="black", linewidth=1)
        axis.set_xscale("log")
        axis.set_xticks([0.2, 0.5, 1, 2, 5, 10], ["0.2", "0.5", "1", "2", "5", "10"])
        axis.minorticks_off()
        axis.grid(axis="x", alpha=0.3)
        axis.set_title(title)
        axis.set_xlabel(f"times as fast as {PEER} (1)")
    axes[0].set_yticks([-i for i in range(len(rows))], [f"{name}, {dtype}" for name, dtype, _ in rows])
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(markers))
    where = report["environment"]
    title = (
        f"{where['device']}, {where['threads']} threads, {where['cpu_capability']}, "
        f"torch {where['torch']}; medians, quartiles"
    )
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=110)
    return True


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu"
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument(
        "--case",
        nargs="+",
        metavar="CASE",
        help=f"CPU: {', '.join(CPU_CASES)}; CUDA: {', '.join(CUDA_CASES)}",
    )
    parser.add_argument(
        "--backends",
        nargs="+",
        choices=(GRID, PEER, SECOND, "mrt plain", "mrt fused"),
        metavar="NAME",
        help="default: all here",
    )
    parser.add_argument(
        "--dtype", nargs="+", choices=DTYPES, default=["float32", "bfloat16"], help="of value and output"
    )
    parser.add_argument("--quick", action="store_true", help="two cases, one second each")
    parser.add_argument(
        "--seconds", type=float, default=6.0, help="how long the cores of one case and dtype take turns"
    )
    parser.add_argument(
        "--output",
        type=Path,
        help="JSON file (default: benchmarks/results/ms_deform_attn-DEVICE.json; none with --quick)",
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    cases = CUDA_CASES if options.device == "cuda" else CPU_CASES
    chosen = options.case or (QUICK[options.device] if options.quick else list(cases))
    if unknown := [name for name in chosen if name not in cases]:
        parser.error(f"no case {', '.join(unknown)} on {options.device}; choose from {', '.join(cases)}")
    report = {"environment": environment(options.device), "dtypes": options.dtype, "cases": {}}
    print(", ".join(f"{key} {value}" for key, value in report["environment"].items()))
    for name in chosen:
        budget = 1.0 if options.quick else options.seconds
        found = run_case(cases[name], options.device, options.dtype, options.backends, budget)
        report["cases"][name] = {"case": str(cases[name]), "results": found}
        for dtype, parts in found.items():
            for part, rows in parts.items():
                print(f"\n{name}, {dtype}, {part} ({cases[name]})\n{table(rows)}", flush=True)
    missing = {PEER, "mrt fused"} - set(next(iter(found.values()))["core"])
    print("".join(f"\n{name} took no part" for name in missing))
    path = options.output or Path(__file__).parent / "results" / f"ms_deform_attn-{options.device}.json"
    if options.output or not options.quick:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(report) + "\n")
        picture = path.with_suffix(".png")
        drawn = plot(report, picture)
        print(f"written to {path}" + (f" and {picture}" if drawn else ", without a plot"))


if __name__ == "__main__":
    main()
