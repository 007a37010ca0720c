"""How fast are the op, the layers around it, and the training steps? And how much memory do steps take?"""

from __future__ import annotations

import copy
import gc
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from benchmarks.gpu_first_look_machine import SIXTEEN, benchmark, precision, require_kernels, timed
from benchmarks.gpu_first_look_op import LIMITS, TINY, errors, fitted
from benchmarks.gpu_first_look_report import FLOORS
from benchmarks.gpu_first_look_runner import Look

bench = benchmark("ms_deform_attn")
PARTS = ("forward", "backward", "both")
SECONDS = 2.0  # that the backends of one case take turns
ROUNDS = 15
NEEDS = ("benchmarks.train_step",)
# The demo's kind of detector, as small as it can be.
TINY_SETTINGS = {
    "init": None,
    "model.weights": "none",
    "model.backbone": "test_efficientnet",
    "model.freeze": "none",
    "data.source_sides": [48],
    "data.sides": [48],
    "data.max_size": 64,
    "model.hidden_dim": 16,
    "model.num_heads": 2,
    "engine.batch_size": 1,
}


class KeptCase(bench.Case):
    """A case that makes its inputs once: that takes seconds, and each dtype asks for them."""

    def __init__(self, case: Any) -> None:
        super().__init__(**vars(case))
        object.__setattr__(self, "made", {})

    def inputs(self, seed: int) -> list[Tensor]:
        if seed not in self.made:
            self.made[seed] = super().inputs(seed)
        return self.made[seed]


def op_case(name: str, dtypes: Sequence[str], look: Look) -> str:
    """One of the cases of benchmarks.ms_deform_attn, against the peers that are installed.

    A backend that is wrong ends the dtype, not the others.
    """
    require_kernels(look)
    case = fitted(bench.CUDA_CASES[name], look)
    if not look.dry_run:
        case = KeptCase(case)
    wrong, told = [], []
    for dtype in dtypes:
        try:
            found = bench.run_case(case, look.device, [dtype], None, SECONDS if not look.dry_run else 0)
        except SystemExit as error:  # it judges before it measures
            wrong.append(str(error))
            continue
        core = found[dtype]["core"]
        for backend, row in core.items():
            op_figures(look, name, dtype, backend, row, bench.PEER in core)
        told.append(f"{dtype} {core['mrt fused']['both']['ms']:.3g} ms" if "mrt fused" in core else dtype)
        for backend, row in found[dtype].get("plain op", {}).items():
            ms = " and ".join(f"{row[part]['ms']:.3g}" for part in PARTS[:2])
            look.note(f"{name}, {dtype}, the sampling alone, {backend}: forward and backward {ms} ms")
    if wrong:
        raise RuntimeError("; ".join(wrong))
    return ", ".join(told)


def op_figures(look: Look, name: str, dtype: str, backend: str, row: dict[str, Any], peer: bool) -> None:
    """Times of one implementation; only those of our fused op bear the name that has a goal."""
    error = max(row["errors"].values())
    if backend == "mrt fused":
        three_figures(look, f"op {name} {dtype}", row)
        look.check(f"{name} {dtype}, at full size, relative L2", error, bench.ALLOWED_ERROR[dtype])
        what = "PyPI" if peer else "grid_sample"
        title = f"op {name} {dtype} times as fast as {what}"
        ratio = row["both"]
        look.figure(title, "times", ratio["ratio"], quartiles=ratio["ratio_quartiles"])
    else:
        one_figure(look, f"op {name} {dtype}, {backend}", row, f"relative L2 error {error:.1e}")


def three_figures(look: Look, name: str, row: dict[str, Any]) -> None:
    for part in PARTS:
        look.figure(f"{name} {part}", "ms", row[part]["ms"], quartiles=row[part]["ms_quartiles"])


def one_figure(look: Look, name: str, row: dict[str, Any], *more: str) -> None:
    """Forward and backward together; each of them among the details."""
    parts = f"forward {row['forward']['ms']:.3g}, backward {row['backward']['ms']:.3g} ms"
    both = row["both"]
    look.figure(name, "ms", both["ms"], quartiles=both["ms_quartiles"], details=", ".join((parts, *more)))


def op_e_float32(look: Look) -> str:
    return op_case("E", ["float32"], look)


def op_e_bfloat16(look: Look) -> str:
    return op_case("E", ["bfloat16", "float16"], look)


def op_d(look: Look) -> str:
    return op_case("D", ["float32", "bfloat16"], look)


def op_other(look: Look) -> str:
    names = [name for name in bench.CUDA_CASES if name not in bench.QUICK["cuda"]]
    return "; ".join(f"{name}: {op_case(name, ['float32', 'bfloat16'], look)}" for name in names)


@contextmanager
def captured() -> Iterator[list[tuple]]:
    """Inside, the op's calls by the model are kept, each with its arguments."""
    from mrt.models import attention

    calls: list[tuple] = []
    original = attention.ms_deform_attn_fused

    def keep(*arguments: Any) -> Tensor:
        calls.append(arguments)
        return original(*arguments)

    attention.ms_deform_attn_fused = keep
    try:
        yield calls
    finally:
        attention.ms_deform_attn_fused = original


@dataclass
class Scene:
    """What a layer of the transformer is called with, and the layers themselves, at a case's sizes."""

    case: Any
    device: str

    def __post_init__(self) -> None:
        torch.manual_seed(0)
        shapes, dim = self.case.shapes, self.case.heads * self.case.dim
        # Reference points of any one image are those of all: an encoder's are the cells' centres.
        references = replace(self.case, batch=1).inputs(0)[1].float().to(self.device)
        cells, queries = sum(height * width for height, width in shapes), references.shape[1]
        self.references = references.expand(self.case.batch, -1, -1, -1)
        self.tokens = torch.randn(self.case.batch, cells, dim, device=self.device)
        self.queries = self.tokens
        if self.case.queries is not None:
            self.queries = torch.randn(self.case.batch, queries, dim, device=self.device)
        self.position = torch.zeros(1, queries, dim, device=self.device)

    def layer(self) -> nn.Module:
        """An encoder's or a decoder's layer that samples with the case's spread."""
        from mrt.models.transformer import DecoderLayer, EncoderLayer

        dim = self.case.heads * self.case.dim
        sizes = (dim, len(self.case.shapes), self.case.heads, self.case.points, 4 * dim, 0.0)
        layer = (EncoderLayer if self.case.queries is None else DecoderLayer)(*sizes).to(self.device)
        attention = layer.self_attn if self.case.queries is None else layer.cross_attn
        with torch.no_grad():
            attention.sampling_offsets.weight.normal_(0, self.case.spread / dim**0.5)
            attention.attention_weights.weight.normal_(0, 1 / dim**0.5)
        return layer

    def call(self, layer: nn.Module, tokens: Tensor, queries: Tensor) -> Tensor:
        """One layer, called as the encoder or the decoder calls it."""
        position = self.position.to(tokens.dtype)
        if self.case.queries is None:
            return layer(tokens, position, self.references, self.case.shapes, None)
        return layer(queries, position, self.references, tokens, self.case.shapes, None)


def timed_pair(forward: Callable[[], Tensor], wanted: Sequence[Tensor], device: str, rounds: int) -> dict:
    """Milliseconds of forward, backward and both; three calls before do not count."""
    pairs = []
    for turn in range(rounds + 3):
        output: list[Tensor] = []
        first = timed(lambda out=output: out.append(forward()), device)
        upstream = torch.ones_like(output[0])
        second = timed(
            lambda out=output, up=upstream: torch.autograd.grad(out[0], wanted, up, allow_unused=True), device
        )
        if turn >= 3:
            pairs.append((first, second, first + second))
    return {part: bench.spread([pair[i] for pair in pairs], "ms") for i, part in enumerate(PARTS)}


def as_called(look: Look) -> str:
    """The op with the very tensors that an attention module gives it, and with contiguous copies."""
    require_kernels(look)
    told, rounds = [], 2 if look.dry_run else ROUNDS
    for name in ("E", "D"):
        scene = Scene(fitted(bench.CUDA_CASES[name], look), look.device)
        layer = scene.layer()
        for amp, dtype in (("off", "float32"), ("bf16", "bfloat16"), ("fp16", "float16")):
            with precision(amp, look.device):
                half = SIXTEEN.get(amp, torch.float32)
                with captured() as calls, torch.no_grad():
                    scene.call(layer, scene.tokens.to(half), scene.queries.to(half))
                value, shapes, *points = calls[0]
                strided = sum(not tensor.is_contiguous() for tensor in (value, *points))
                for contiguous in (False, True):
                    leaves = [tensor.detach() for tensor in (value, *points)]
                    if contiguous:
                        leaves = [leaf.contiguous() for leaf in leaves]
                    # All gradients but the reference points', as in an encoder.
                    wanted = [leaves[i].requires_grad_() for i in (0, 2, 3)]
                    row = timed_pair(
                        partial(calls_op, leaves[0], shapes, *leaves[1:]), wanted, look.device, rounds
                    )
                    title = f"op as the model calls it, {name} {dtype}"
                    if contiguous:
                        one_figure(look, f"{title}, made contiguous", row)
                    else:
                        three_figures(look, title, row)
            told.append(f"{name} {dtype}: {strided} of 4 inputs strided")
    return "; ".join(told)


def calls_op(*arguments: Any) -> Tensor:
    from mrt.ops import ms_deform_attn_fused

    return ms_deform_attn_fused(*arguments)


def layers(look: Look) -> str:
    """An encoder's and a decoder's layer, forward and backward, by precision, as they are and compiled.

    It needs no settings, so it also says something of a training step where those cannot be read.
    """
    require_kernels(look)
    for name in ("E", "D"):
        scene = Scene(fitted(bench.CUDA_CASES[name], look), look.device)
        for compiled in (False, True):
            layer = scene.layer()
            if compiled:
                layer.compile(dynamic=False, backend="eager" if look.dry_run else "inductor")
            for amp in ("bf16",) if look.dry_run else ("off", "tf32", "bf16"):
                layer_figures(look, scene, layer, name, amp, compiled)
    return "two kinds of layers, eager and compiled"


def layer_figures(look: Look, scene: Scene, layer: nn.Module, name: str, amp: str, compiled: bool) -> None:
    tokens, queries = (
        tensor.to(SIXTEEN.get(amp, torch.float32)).requires_grad_()
        for tensor in (scene.tokens.clone(), scene.queries.clone())
    )
    wanted = [tokens, *([] if scene.case.queries is None else [queries]), *layer.parameters()]

    def forward() -> Tensor:
        with precision(amp, look.device):
            return scene.call(layer, tokens, queries)

    row = timed_pair(forward, wanted, look.device, 2 if look.dry_run else ROUNDS)
    kind = "encoder" if scene.case.queries is None else "decoder"
    title = f"{kind} layer at {name}, {amp}, {'compiled' if compiled else 'eager'}"
    one_figure(look, title, row)


def configured(look: Look, **changes: Any) -> Any:
    """The settings of a step: the published sizes, or tiny ones in a dry run. It needs mrt.config."""
    from mrt.config import load_config

    settings = {key.replace("__", "."): value for key, value in changes.items()}
    if look.dry_run:
        return load_config("small", [], TINY_SETTINGS | settings)
    published = {"model.weights": "checkpoint", "engine.batch_size": 4}
    return load_config("city2foggy", [], published | settings)


def world(device: str) -> Any:
    from mrt.engine import distributed

    return distributed.World(0, 1, torch.device(device, 0) if device == "cuda" else torch.device(device))


def train(kind: str, amp: str, compiled: bool, look: Look) -> str:
    """One kind of training step: time, what the GPU does in it, and its peak memory."""
    from benchmarks.train_step import measure

    mode = "on" if compiled and not look.dry_run else "off"
    config = configured(look, engine__amp=amp, engine__compile=mode)
    row = measure(
        config, kind, 3 if look.dry_run else 15, 9, 2 if look.dry_run else ROUNDS, world(look.device)
    )
    name = f"step {kind} {amp} {'compiled' if compiled else 'eager'}"
    details = [f"{row['images_per_s']:.1f} images/s", f"peak {row['peak_gb']:.1f} GB"]
    details += [f"waits {row['host_syncs']:.0f}", f"pseudo labels {row['pseudo_labels']:.0f}"]
    if "kernels" in row:
        details += [f"GPU busy {row['gpu_busy_ms']:.0f} ms", f"{row['kernels']:.0f} kernels"]
    shares = sorted(row["groups_ms"].items(), key=lambda item: -item[1])[:4]
    details += [f"{group} {ms:.0f} ms" for group, ms in shares]
    told = ", ".join(details)
    look.figure(name, "ms", row["ms"], quartiles=row["quartiles_ms"], details=told, kind=kind, row=row)
    return f"{row['ms']:.0f} ms, {details[1]}"


def losses(look: Look) -> str:
    """The first step's loss in every precision, against the step written for obviousness in float32.

    Weights, images and boxes are the same, and there is no dropout. What 16 bits may change is a guess: a
    box may be matched otherwise.
    """
    from benchmarks.bench import Bench
    from benchmarks.plain_step import plain_step
    from mrt.engine import build
    from mrt.engine.step import training_step

    def total(amp: str, compiled: bool, step: Callable) -> float:
        mode = "on" if compiled and not look.dry_run else "off"
        config = configured(look, engine__amp=amp, engine__compile=mode, model__dropout=0.0)
        one = Bench(config, "source", 3 if look.dry_run else 15, 9, world(look.device), step)
        build.use_machine(config, one.learner.world.device)
        return float(one._step(one.batches[:1])["total"])

    right = total("off", False, plain_step)
    limits = {"off": 1e-4, "tf32": 1e-2, "bf16": 5e-2, "fp16": 2e-2}
    for amp, limit in limits.items():
        if amp == "tf32" and look.device != "cuda":
            continue
        found = total(amp, False, training_step)
        look.check(f"total loss of a source step, {amp}", abs(found - right) / abs(right), limit)
        gc.collect()
    return f"{right:.4g} in the plain step"


def memory(kind: str, amp: str, look: Look) -> str:
    """The peak of one kind of step, and what is counted for it from shapes alone."""
    from benchmarks.bench import Bench
    from benchmarks.memory import memory_row

    config = configured(look, engine__amp=amp, engine__compile="off")
    boxes = 3 if look.dry_run else 15
    counted = memory_row(partial(Bench, config, kind, boxes, 9, world("cpu")), False, False)["peak_gb"]
    if look.device == "cuda":
        row = memory_row(partial(Bench, config, kind, boxes, 9, world("cuda")), True, False)
        if row["peak_gb"] is None:
            raise RuntimeError(f"out of memory; counted {counted:.1f} GB")
        measured, reserved = row["peak_gb"], f", reserved {row['reserved_gb']:.1f}"
    else:
        measured, reserved = counted, ""
    details = f"counted {counted:.2f} GB, measured {measured / counted:.2f} times that{reserved}"
    look.figure(f"memory {kind} {amp}", "GB", measured, floor=counted, details=details)
    return details


def nccl(look: Look) -> str:
    """A process group of one: all-reduce, and a layer wrapped by DDP as mrt wraps its student."""
    backends = "cpu:gloo,cuda:nccl" if look.device == "cuda" else "gloo"
    where = torch.device("cuda", 0) if look.device == "cuda" else None
    dist.init_process_group(backends, store=dist.HashStore(), rank=0, world_size=1, device_id=where)
    try:
        buffer = torch.ones(53_300_000 if not look.dry_run else 1000, device=look.device)
        rounds = 2 if look.dry_run else 10
        times = [bench.timed(lambda: all_reduce(buffer), look.device) for _ in range(rounds)]
        look.check("all-reduce of one process changes nothing", (buffer - 1).abs().max().item(), 0.0)
        ms, details = statistics.median(times), f"{buffer.numel() * 4 / 1e6:.0f} MB in DDP's buckets"
        look.figure("all-reduce, one process", "ms", ms, details=details)
        scene = Scene(fitted(replace(bench.CUDA_CASES["E"], batch=1), look), look.device)
        alone = scene.layer()
        wrapped = DistributedDataParallel(
            copy.deepcopy(alone), device_ids=[0] if where else None, find_unused_parameters=True
        )
        towards = torch.randn_like(scene.queries)
        for layer in (alone, wrapped):
            (scene.call(layer, scene.tokens, scene.queries) * towards).sum().backward()
        pairs = zip(wrapped.module.parameters(), alone.parameters(), strict=True)
        wrong = [errors([mine.grad], [other.grad.double()])[0] for mine, other in pairs]
        look.check("gradients under DDP", max(wrong), 5 * LIMITS[torch.float32])
    finally:
        dist.destroy_process_group()
    return f"{backends}: all-reduce and a layer under DDP"


def all_reduce(buffer: Tensor) -> None:
    for part in buffer.split(25_000_000 // 4):
        dist.all_reduce(part)


# Most valuable first: what the goals are about, then what explains it.
TRAINING = (
    ("teach+mae", "bf16", False),
    ("teach+mae", "bf16", True),
    ("source+mae", "bf16", True),
    ("source", "bf16", True),
    ("teach+mae", "off", False),
)
MORE_TRAINING = (
    ("source+mae", "bf16", False),
    ("source", "bf16", False),
    ("teach+mae", "tf32", False),
    ("teach+mae", "fp16", False),
    ("teach", "bf16", True),
    ("teach+mae", "tf32", True),
    ("teach+mae", "fp16", True),
    ("source", "off", False),
    ("source+mae", "off", False),
    ("teach+mae", "off", True),
)
DRY_TRAINING = ("teach+mae", "bf16", False)
assert all(kind in FLOORS for kind, _, _ in TRAINING + MORE_TRAINING)
assert len(TINY) == 4  # the levels of cases E and D
