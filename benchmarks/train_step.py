"""The training steps of the three stages, with data made in memory: what they cost and where the time goes.

    python -m benchmarks.train_step            [--kinds teach ...] [--amp off bf16] [--steps 15] [--threads 2]
    python -m benchmarks.train_step --ladder   from the plain step to the fastest, one option after the other
    python -m benchmarks.train_step --memory   [--batch 1 2 4 8] [--size 750 1333]: the peak of each kind of step, to see what fits a card

On a GPU: the published sizes (batch 4 per domain, 666x1333, ResNet-50, 15 boxes an image, 9 classes). On the CPU: the demo's. Images are
noise already on the device and boxes are random, so neither the loader nor the copy to the device is measured (benchmarks.data does
that); the teacher's threshold is set so that about as many of its queries pass as images have boxes. Milliseconds come from unprofiled
steps, counts and shares from further ones under torch's profiler (three; one of each rung).

The ladder's rungs take turns, one step each, so that whatever else the machine does hits all of them; a ratio is the median of the rounds'
ratios, of CPU time on the CPU and of wall time on a GPU. Memory is what torch's allocator reports on a GPU; on the CPU the ladder and
--memory count it (benchmarks.memory).
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import re
import resource
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks.environment import environment
from benchmarks.memory import LiveBytes, as_on_cuda, begin_moments, shapes_only, state_tensors
from benchmarks.plain_step import plain_step
from mrt.adapt.teacher import Teacher
from mrt.adapt.thresholds import DynamicThresholds
from mrt.config import Config, load_config
from mrt.data.loader import Batch
from mrt.engine import build, distributed
from mrt.engine.checkpoint import seed_everything
from mrt.engine.compiling import Compiler
from mrt.engine.inference import load_detector
from mrt.engine.prepare import TRAINED
from mrt.engine.step import Learner, Parts, training_step
from mrt.engine.student import SOURCE, TARGET, Student
from mrt.losses import HungarianMatcher, Matching

KINDS = {
    "source": Parts(),
    "source+mae": Parts(rebuild=(TARGET,)),
    "teach": Parts(teach=True, judge=True, ema=True),
    "teach+mae": Parts(rebuild=(TARGET,), teach=True, judge=True, ema=True),
}
WARM_UP, PROFILED = 3, 3  # steps
REGIONS = {"step: optimiser": "optimiser", "step: average": "EMA", "matching": "matching"}  # everything inside one belongs to the group
NAMES = (  # any other call belongs to the first group whose pattern its name contains
    ("op", r"mrt::|ms_deform|_FusedMSDA"),
    ("convolution", r"conv"),
    ("matmul", r"mm\b|mm_|linear|matmul|mkldnn_reorder|scaled_dot_product|flash_attention|efficient_attention"),
    ("elementwise", r"^aten::|^torch::|Backward|AccumulateGrad"),
)
GROUPS = ("convolution", "matmul", "op", "elementwise", "optimiser", "EMA", "matching", "Python")
WAITS = (
    "aten::_local_scalar_dense",
    "aten::nonzero",
    "aten::masked_select",
)  # would wait for a GPU (the optimiser reads its step counts, on the host)
SYNCS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")


CARDS_GB, SPARE_GB = (
    (8, 16, 24, 80),
    1.5,
)  # SPARE_GB: CUDA's context, the allocator's gaps, cuDNN's scratch space: an allowance, not a measurement


Step = Callable[..., dict[str, torch.Tensor | float]]


@dataclass(frozen=True)
class Rung:
    """One step of the ladder: what is on from here.

    Attributes:
        settings: all that differ from the plain step's.
        gpu: whether only a GPU has it (engine.compile = "auto" leaves CPUs alone, too).
        step: takes a learner, micro-batches, the autoencoder's weight and the gradient reversal's strength.
    """

    name: str
    settings: Mapping[str, Any]
    step: Step = training_step
    gpu: bool = False


PLAIN = {"engine.amp": "off", "engine.compile": "off", "engine.checkpointing": False}
LADDER = (
    Rung("plain step, float32", {}, plain_step),
    Rung("+ many-tensor updates", {}, partial(plain_step, fused_update=True)),
    Rung("+ shared passes, losses at once", {}),
    Rung("+ TF32", {"engine.amp": "tf32"}, gpu=True),
    Rung("+ bf16", {"engine.amp": "bf16"}),
    Rung("+ compile", {"engine.amp": "bf16", "engine.compile": "on"}, gpu=True),
    Rung("(bf16, checkpointing)", {"engine.amp": "bf16", "engine.checkpointing": True}),
)


def image_size(config: Config) -> tuple[int, int]:
    """(H, W) of a Cityscapes-shaped image (1:2) after the preset's resizing: 666x1333 in the published runs, 128x256 in the demo."""
    short = min(max(config.data.sides), config.data.max_size // 2)
    return short, min(config.data.max_size, 2 * short + config.data.max_size % 2)


def make_batch(images: int, size: tuple[int, int], boxes: int, num_classes: int, seed: int, device: torch.device, pair: bool) -> Batch:
    """Noise images without padding, each with ``boxes`` random boxes; ``pair``: with a strong view."""
    generator = torch.Generator().manual_seed(seed)
    targets = []
    for number in range(images):
        sides = 0.03 + 0.2 * torch.rand(boxes, 2, generator=generator)
        centres = sides / 2 + (1 - sides) * torch.rand(boxes, 2, generator=generator)
        labels = torch.randint(num_classes, (boxes,), generator=generator)
        targets.append({"image_id": number, "boxes": torch.cat((centres, sides), 1), "labels": labels})
    first, second = (torch.randn(images, 3, *size, generator=generator) for _ in range(2))
    mask = torch.zeros(images, *size, dtype=torch.bool)
    return Batch(first, mask, targets, second if pair else None, padded=False).to(device)


def make_learner(config: Config, kind: str, num_classes: int, world: distributed.World) -> Learner:
    """A learner at the beginning of its stage, from the preset's shipped weights where it has some, else untrained."""
    seed_everything(config.seed)
    parts, settings = KINDS[kind], config.teacher
    detector = build.build_detector(config, [str(number) for number in range(num_classes)])
    if config.init:
        detector.load_state_dict(load_detector(config.init)[0].state_dict())
    mae = build.build_mae(config, detector) if parts.rebuild else None
    student = Student(detector, mae, build.build_discriminators(config, detector) if parts.judge else None).to(world.device).train()
    stage = config.teach if parts.teach else config.mae_stage
    optimiser = build.build_optimiser(config, stage, student, world.device)
    teacher = Teacher(detector, settings.ema, warmup=settings.warmup, warmup_offset=TRAINED) if parts.ema else None
    thresholds = DynamicThresholds(num_classes, device=world.device)
    detector.set_checkpointing(config.engine.checkpointing)
    compiler = Compiler(config.engine.compile, world.device)
    compiler.compile(student, teacher.module if teacher is not None else None)
    return Learner(config, stage, parts, world, student, optimiser, thresholds, teacher, compiler=compiler)


@torch.no_grad()
def set_threshold(learner: Learner, target: Batch, boxes: int) -> None:
    """Let ``boxes`` queries an image pass, as many as there are labels on a source image (NMS then drops some)."""
    with learner.precision:
        scores = learner.teacher.module(target.images, target.padding_mask).logits[-1].float().sigmoid().amax(-1)
    learner.thresholds.values.fill_(scores.flatten().topk(boxes * len(target) + 1).values[-1].item())


@contextmanager
def matching_named() -> Iterator[None]:
    """While inside, costs and assignment are a region of their own in a profile."""
    parts = [(HungarianMatcher, "start", HungarianMatcher.start), (Matching, "result", Matching.result)]

    def named(method: Callable) -> Callable:
        def call(*arguments):
            with record_function("matching"):
                return method(*arguments)

        return call

    for owner, name, method in parts:
        setattr(owner, name, named(method))
    yield
    for owner, name, method in parts:
        setattr(owner, name, method)


def forget_peak(device: torch.device) -> None:
    """Begin a new measurement of the peak memory."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        with suppress(OSError, AttributeError):  # not Linux or not glibc: the peak of the whole process so far is reported
            gc.collect()
            ctypes.CDLL(None).malloc_trim(0)  # what rows before left in the heap is not this one's
            Path("/proc/self/clear_refs").write_text("5")


def peak_gb(device: torch.device) -> float:
    """Most memory since :func:`forget_peak`, 10^9 bytes: allocated on the GPU, or resident in this process."""
    return torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else resident_gb("VmHWM")


def resident_gb(name: str) -> float:
    """This process' memory, 10^9 bytes: now ("VmRSS") or at its highest ("VmHWM"); always the latter where the system doesn't say."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    return int(re.search(rf"{name}:\s*(\d+)", status)[1]) * 1024 / 1e9


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
    """Counts per step, and milliseconds by group: of the calling thread on the CPU, of the kernels on a GPU."""
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
    found = {
        "groups_ms": {name: groups[name] / 1e3 / steps for name in GROUPS},
        "aten_calls": sum(count for name, count in counts.items() if name.startswith("aten::")) / steps,
        "copies": counts["aten::copy_"] / steps,
        "host_syncs": sum(event.name in (SYNCS if cuda else WAITS) and group_of(event) != "optimiser" for event in calls) / steps,
        "most_called": {name: count / steps for name, count in counts.most_common(12)},
    }
    return found | ({"kernels": len(kernels) / steps, "gpu_busy_ms": busy_ms(kernels) / steps} if cuda else {})


class Bench:
    """A kind of step with a learner and data of its own.

    Args:
        step: the engine's, or one with the same arguments.
        micro: micro-batches a step.
        size: (H, W) of the images; by default the preset's.
        values: False for steps that are only counted (:meth:`counted_gb`), without computing anything.

    Attributes:
        wall, cpu: milliseconds of each call. labels: pseudo labels an image, of each call.
    """

    def __init__(
        self,
        config: Config,
        kind: str,
        boxes: int,
        num_classes: int,
        world: distributed.World,
        step: Step = training_step,
        micro: int = 1,
        size: tuple[int, int] | None = None,
        values: bool = True,
    ) -> None:
        self.learner, self.step, self.micro = make_learner(config, kind, num_classes, world), step, micro
        self.config, self.cuda, self.boxes, self.values = config, world.device.type == "cuda", boxes, values
        self.domains = (SOURCE, TARGET) if self.learner.parts.target else (SOURCE,)
        self.images = config.engine.batch_size
        self.batches = [
            {
                domain: make_batch(
                    self.images, size or image_size(config), boxes, num_classes, 2 * seed + place, world.device, domain == TARGET
                )
                for place, domain in enumerate(self.domains)
            }
            for seed in range(max(2, micro))
        ]
        if self.learner.teacher is not None and values:
            set_threshold(self.learner, self.batches[0][TARGET], boxes)
        self.wall: list[float] = []
        self.cpu: list[float] = []
        self.labels: list[float | torch.Tensor] = []

    def __call__(self) -> None:
        """One timed step."""
        build.use_machine(self.config, self.learner.world.device)  # other benches may want another precision
        begin, begin_cpu = time.perf_counter(), time.process_time()
        first = self.learner.step % 2 if self.micro == 1 else 0
        seen = self.step(self.learner, self.batches[first : first + self.micro], self.config.mae.weight, self.config.domain.reversal)
        if self.cuda:
            torch.cuda.synchronize()
        self.wall.append((time.perf_counter() - begin) * 1e3)
        self.cpu.append((time.process_time() - begin_cpu) * 1e3)
        self.labels.append(seen.get("pseudo_labels", 0.0))

    def warm_up(self) -> None:
        for _ in range(WARM_UP):
            self()
        self.forget()

    def forget(self) -> None:
        self.wall.clear(), self.cpu.clear(), self.labels.clear()

    def times(self) -> dict[str, Any]:
        """Of the steps since :meth:`forget`."""
        low, median, high = quartiles(self.wall)
        return {
            "ms": median,
            "quartiles_ms": [low, high],
            "cpu_ms": statistics.median(self.cpu),
            "images_per_s": self.images * self.micro * len(self.domains) / median * 1e3,
            "pseudo_labels": sum(float(count) for count in self.labels) / len(self.labels),
        }

    def counted_gb(self) -> dict[str, float]:
        """Tensor bytes of one more step as a GPU would hold them, 10^9: the peak, and what lives between steps."""
        with nullcontext() if self.values else shapes_only(self.learner, self.boxes):
            if not self.learner.optimiser.state:
                begin_moments(self.learner)
            data = self.batches[: self.micro]
            with LiveBytes(state_tensors(self.learner, data)) as count, as_on_cuda(self.learner.student, self.values):
                state = count.live
                self.step(self.learner, data, self.config.mae.weight, self.config.domain.reversal)
        return {"counted_gb": count.peak / 1e9, "state_gb": state / 1e9}


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile."""
    low, median, high = statistics.quantiles(values, n=4) if len(values) > 1 else list(values) * 3
    return low, median, high


def measure(config: Config, kind: str, boxes: int, num_classes: int, steps: int, world: distributed.World) -> dict[str, Any]:
    """One row: times, memory, counts and shares of one kind of step."""
    bench = Bench(config, kind, boxes, num_classes, world)
    bench.warm_up()
    forget_peak(world.device)
    for _ in range(steps):
        bench()
    row = bench.times() | {"peak_gb": peak_gb(world.device)}
    return row | profiled(bench)


# The ladder ------------------------------------------------------------------------------------------------------------------------------


def ladder(
    rungs: Sequence[tuple[Rung, Config]], kind: str, boxes: int, num_classes: int, rounds: int, world: distributed.World
) -> list[dict[str, Any]]:
    """One row per rung. Memory and counts of each are taken when the others only have their weights; times while they take turns."""
    cuda, rows, benches = world.device.type == "cuda", [], []
    for rung, config in rungs:
        before = torch.cuda.memory_allocated() if cuda else 0
        bench = Bench(config, kind, boxes, num_classes, world, rung.step)
        bench.warm_up()
        if cuda:
            torch.cuda.reset_peak_memory_stats()
            bench()
            memory = {"peak_gb": (torch.cuda.max_memory_allocated() - before) / 1e9}
        else:
            memory = {"peak_gb": bench.counted_gb()["counted_gb"]}
        rows.append({"kind": kind, "rung": rung.name, **memory, **profiled(bench, 1)})
        bench.forget()
        benches.append(bench)
    for _ in range(rounds):
        for bench in benches:
            bench()
    reference = benches[0]
    for row, bench, before in zip(rows, benches, (benches[0], *benches), strict=False):
        row.update(bench.times())
        for name, other in (("times_as_fast", reference), ("times_as_fast_as_before", before)):
            ours, theirs = (bench.wall, other.wall) if cuda else (bench.cpu, other.cpu)
            low, median, high = quartiles([b / a for a, b in zip(ours, theirs, strict=True)])
            row.update({name: median, f"{name}_quartiles": [low, high]})
    return rows


def ladder_table(rows: Sequence[Mapping[str, Any]], cuda: bool) -> str:
    """One line per rung, one block per kind of step."""
    heads = f"{'rung':34}{'ms (quartiles)':>22}{'CPU ms':>9}{'GPU busy':>10}{'as fast as plain':>24}{'than before':>13}"
    heads += f"{'GB':>7}{'aten calls':>12}{'kernels':>9}{'syncs':>7}"
    lines, kind = [], None
    for row in rows:
        if row["kind"] != kind:
            kind = row["kind"]
            lines += ["", kind, heads]
        (low, high), (slow, fast) = row["quartiles_ms"], row["times_as_fast_quartiles"]
        cells = f"{row['rung']:34}" + f"{row['ms']:.0f} ({low:.0f}-{high:.0f})".rjust(22) + f"{row['cpu_ms']:9.0f}"
        cells += f"{row['gpu_busy_ms']:10.1f}" if cuda else f"{'-':>10}"
        cells += f"{row['times_as_fast']:.2f} ({slow:.2f}-{fast:.2f})".rjust(24) + f"{row['times_as_fast_as_before']:13.2f}"
        cells += f"{row['peak_gb']:7.2f}"
        cells += f"{row['aten_calls']:12.0f}" + (f"{row['kernels']:9.0f}" if cuda else f"{'-':>9}") + f"{row['host_syncs']:7.0f}"
        lines.append(cells)
    return "\n".join(lines[1:])


def plot_ladder(report: Mapping[str, Any], path: Path) -> bool:
    """Time and memory of each rung, a row of panels per kind of step; False without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    cuda = any("gpu_busy_ms" in row for row in report["rows"])
    kinds = list(dict.fromkeys(row["kind"] for row in report["rows"]))
    most = max(sum(row["kind"] == kind for row in report["rows"]) for kind in kinds)
    figure, axes = pyplot.subplots(
        len(kinds),
        2,
        figsize=(7.2, 0.9 + len(kinds) * (0.35 + 0.21 * most)),
        width_ratios=(2, 1),
        squeeze=False,
        sharey="row",
        sharex="col",
        constrained_layout=True,
    )
    for (left, right), kind in zip(axes, kinds, strict=True):
        rows = [row for row in report["rows"] if row["kind"] == kind]
        places = [-index for index in range(len(rows))]
        shown = [row["ms"] if cuda else row["cpu_ms"] for row in rows]
        left.barh(places, shown, color="#56B4E9", height=0.7, label="step, wall" if cuda else None)
        if cuda:
            left.barh(places, [row["gpu_busy_ms"] for row in rows], color="#0072B2", height=0.4, label="of it GPU busy")
        for place, value, row in zip(places, shown, rows, strict=True):
            left.annotate(
                f"{value:.0f}  ({row['times_as_fast']:.2f}x)", (value, place), (3, 0), textcoords="offset points", va="center", fontsize=7
            )
        left.set_yticks(places, [row["rung"] for row in rows], fontsize=7)
        left.set_title(kind, fontsize=9, loc="left")
        right.barh(places, [row["peak_gb"] for row in rows], color="#E69F00", height=0.7)
        for place, value in zip(places, (row["peak_gb"] for row in rows), strict=True):
            right.annotate(f"{value:.2g}", (value, place), (3, 0), textcoords="offset points", va="center", fontsize=7)
        for axis in (left, right):
            axis.tick_params(labelsize=7)
            axis.spines[["top", "right"]].set_visible(False)
        left.margins(x=0.22)
        right.margins(x=0.3)
        right.xaxis.set_major_locator(ticker.MaxNLocator(3))
    axes[-1][0].set_xlabel(("ms a step" if cuda else "CPU ms a step") + " (times as fast as the plain step)", fontsize=8)
    axes[-1][1].set_xlabel("peak GB" if cuda else "peak GB of tensors, counted", fontsize=8)
    if cuda:
        figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8)
    where = report["environment"]
    height, width = report["image"]
    figure.suptitle(
        f"{report['preset']}, {report['batch']} images of {height}x{width} per domain; {where['device']}, torch {where['torch']}",
        fontsize=8,
    )
    figure.savefig(path, dpi=150)
    return True


# Memory ----------------------------------------------------------------------------------------------------------------------------------


def memory_row(bench: Callable[..., Bench], cuda: bool, real: bool) -> dict[str, Any]:
    """The peak of a step, "peak_gb": of torch's allocator on a GPU, counted on the CPU.

    On a GPU also "reserved_gb", what the allocator took from the driver. On the CPU with ``real`` the step runs, and
    "resident_growth_gb", by how much the process grew, can be held against "counted_growth_gb".
    """
    begin = time.perf_counter()
    if cuda:
        try:
            one = bench()
            one.warm_up()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            one()
            found = {"peak_gb": torch.cuda.max_memory_allocated() / 1e9, "reserved_gb": torch.cuda.max_memory_reserved() / 1e9}
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
            found |= {"counted_growth_gb": found["peak_gb"] - found["state_gb"], "resident_growth_gb": peak_gb(device) - before}
    return found | {"seconds": time.perf_counter() - begin}


def memory_line(row: Mapping[str, Any]) -> str:
    """The row as text, with the smallest card that has so much and an allowance."""
    peak = row["peak_gb"]
    cards = [card for card in CARDS_GB if peak is not None and peak + SPARE_GB <= card]
    cells = f"{row['kind']:12}{row['amp']:>5}{'yes' if row['checkpointing'] else 'no':>6}{row['images']:>8}{row['micro']:>7}"
    cells += f"{peak:9.2f}" if peak is not None else f"{'too much':>9}"
    more = row.get("reserved_gb")
    if "resident_growth_gb" in row:
        cells += f"{row['counted_growth_gb']:9.2f} counted, {row['resident_growth_gb']:.2f} resident"
    return cells + (f"{more:10.2f}" if more is not None else "") + (f"{cards[0]} GB" if cards else "none").rjust(8)


def memory_heads(cuda: bool, real: bool) -> str:
    more = f"{'reserved':>10}" if cuda else f"{'growth':>9}{'':23}" if real else ""
    return f"{'step':12}{'amp':>5}{'ckpt':>6}{'images':>8}{'micro':>7}{'peak GB':>9}{more}{'card':>8}"


# Command line ----------------------------------------------------------------------------------------------------------------------------


def table(rows: list[dict[str, Any]]) -> str:
    """One line per row: times, memory, counts, then the groups' shares in per cent."""
    heads = (
        f"{'step':12}{'amp':>5}{'ms (quartiles)':>24}{'CPU ms':>9}{'img/s':>8}{'GB':>7}{'aten':>8}{'copies':>8}{'syncs':>7}{'kernels':>9}"
    )
    lines = [heads + f"{'busy ms':>9}" + "".join(f"{name:>{len(name) + 2}}" for name in GROUPS) + "  (%)"]
    for row in rows:
        low, high = row["quartiles_ms"]
        total = sum(row["groups_ms"].values())
        times = f"{row['ms']:.0f} ({low:.0f}-{high:.0f})"
        cells = f"{row['kind']:12}{row['amp']:>5}{times:>24}{row['cpu_ms']:9.0f}{row['images_per_s']:8.1f}{row['peak_gb']:7.2f}"
        cells += f"{row['aten_calls']:8.0f}{row['copies']:8.0f}{row['host_syncs']:7.0f}"
        cells += f"{row['kernels']:9.0f}{row['gpu_busy_ms']:9.1f}" if "kernels" in row else f"{'-':>9}{'-':>9}"
        lines.append(cells + "".join(f"{100 * row['groups_ms'][name] / total:{len(name) + 2}.0f}" for name in GROUPS))
    return "\n".join(lines)


def main() -> None:
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--ladder", action="store_true", help="what each option contributes")
    what.add_argument("--memory", action="store_true", help="peak memory by batch, precision and checkpointing")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if cuda else "cpu")
    parser.add_argument("--preset", help="default: city2foggy on a GPU and with --memory, else demo")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), metavar="KIND", help=f"of {', '.join(KINDS)}")
    parser.add_argument("--amp", nargs="+", default=["off", "bf16"], help="precisions of the rows (the ladder has its own)")
    parser.add_argument("--steps", type=int, default=15, help="timed steps of each row; of the ladder: rounds")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument(
        "--batch", type=int, nargs="+", help="images per domain (default: 4 on a GPU, the preset's on the CPU; --memory: 1 2 4 8)"
    )
    parser.add_argument("--micro", type=int, default=1, help="--memory: batches accumulated in a step")
    parser.add_argument(
        "--checkpointing", nargs="+", choices=("off", "on"), default=["off", "on"], help="--memory: activation checkpointing"
    )
    parser.add_argument("--size", type=int, nargs=2, metavar=("H", "W"), help="--memory: image size (default: a Cityscapes image's)")
    parser.add_argument("--real", action="store_true", help="--memory without a GPU: also run the step, to compare with resident memory")
    parser.add_argument("--boxes", type=int, default=15, help="boxes an image")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="any setting of the preset")
    parser.add_argument("--output", type=Path, help="JSON file (default: benchmarks/results/train_step[-ladder|-memory]-DEVICE.json)")
    options = parser.parse_args()
    if options.batch and len(options.batch) > 1 and not options.memory:
        parser.error("--batch takes several values with --memory only")
    torch.set_num_threads(options.threads)
    preset = options.preset or ("city2foggy" if options.device == "cuda" or options.memory else "demo")
    changes: dict[str, Any] = {"model.weights": "checkpoint"}  # the structure of a pretrained backbone, without a download
    if options.batch or options.device == "cuda":
        changes["engine.batch_size"] = options.batch[0] if options.batch else 4
    config, world = load_config(preset, options.set, changes), distributed.join(options.device)
    num_classes = len(load_detector(config.init)[1]["classes"]) if config.init else 9
    size = tuple(options.size) if options.size and options.memory else image_size(config)
    about = {
        "preset": preset,
        "image": size,
        "batch": options.batch if options.batch and options.memory else config.engine.batch_size,
        "boxes": options.boxes,
        "classes": num_classes,
    }
    report = {"environment": environment(options.device), **about, "steps": options.steps, "rows": []}
    print(", ".join(f"{key} {value}" for key, value in {**report["environment"], **about}.items()))
    if options.ladder:
        rungs = [
            (rung, load_config(preset, options.set, {**changes, **PLAIN, **rung.settings}))
            for rung in LADDER
            if options.device == "cuda" or not rung.gpu
        ]
        for kind in options.kinds:
            rows = ladder(rungs, kind, options.boxes, num_classes, options.steps, world)
            print("\n" + ladder_table(rows, world.device.type == "cuda"), flush=True)
            report["rows"] += rows
            gc.collect()
    elif options.memory:
        print("\n" + memory_heads(options.device == "cuda", options.real))
        for kind, amp, checkpointing, images in product(options.kinds, options.amp, options.checkpointing, options.batch or (1, 2, 4, 8)):
            more = {"engine.amp": amp, "engine.batch_size": images, "engine.checkpointing": checkpointing == "on"}
            if options.device == "cpu":
                more["engine.compile"] = "off"
            chosen = load_config(preset, options.set, {**changes, **more})
            bench = partial(Bench, chosen, kind, options.boxes, num_classes, world, micro=options.micro, size=size)
            row = {"kind": kind, "amp": amp, "checkpointing": checkpointing == "on", "images": images, "micro": options.micro}
            report["rows"].append(row | memory_row(bench, options.device == "cuda", options.real))
            print(memory_line(report["rows"][-1]), flush=True)
    else:
        for amp in options.amp:
            chosen = load_config(preset, options.set, changes | {"engine.amp": amp})
            for kind in options.kinds:
                row = measure(chosen, kind, options.boxes, num_classes, options.steps, world)
                report["rows"].append({"kind": kind, "amp": amp, **row})
                print(table(report["rows"]).splitlines()[-1] if len(report["rows"]) > 1 else table(report["rows"]), flush=True)
    name = "train_step" + ("-ladder" if options.ladder else "-memory" if options.memory else "")
    path = options.output or Path(__file__).parent / "results" / f"{name}-{options.device}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")
    print(f"\nwritten to {path}")
    if options.ladder:
        path.with_suffix(".txt").write_text(ladder_table(report["rows"], world.device.type == "cuda") + "\n")
        drawn = plot_ladder(report, path.with_suffix(".png"))
        print(
            f"and to {path.with_suffix('.txt')}" + (f" and {path.with_suffix('.png')}" if drawn else ", without a plot: no matplotlib here")
        )


if __name__ == "__main__":
    main()
