"""The training steps of the three stages, with data made in memory: what they cost and where the time goes.

    python -m benchmarks.train_step [--device cpu|cuda] [--preset demo] [--steps 15] [--amp off bf16] [--threads 2] [--kinds teach ...]

On a GPU: the published sizes (batch 4 per domain, 666x1333, ResNet-50, 15 boxes an image, 9 classes). On the CPU: the demo's. Images are
noise already on the device and boxes are random, so neither the loader nor the copy to the device is measured (benchmarks.data does
that); the teacher's threshold is set so that about as many of its queries pass as images have boxes. Milliseconds come from unprofiled
steps, counts and shares from three further ones under torch's profiler.
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
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks.environment import environment
from mrt.adapt.teacher import Teacher
from mrt.adapt.thresholds import DynamicThresholds
from mrt.config import Config, load_config
from mrt.data.loader import Batch
from mrt.engine import build, distributed
from mrt.engine.checkpoint import seed_everything
from mrt.engine.inference import load_detector
from mrt.engine.prepare import TRAINED
from mrt.engine.step import Learner, Parts, training_step
from mrt.engine.student import SOURCE, TARGET, Student

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
    return Batch(first, mask, targets, second if pair else None).to(device)


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
    return Learner(config, stage, parts, world, student, optimiser, thresholds, teacher)


@torch.no_grad()
def set_threshold(learner: Learner, target: Batch, boxes: int) -> None:
    """Let ``boxes`` queries an image pass, as many as there are labels on a source image (NMS then drops some)."""
    with learner.precision:
        scores = learner.teacher.module(target.images, target.padding_mask).logits[-1].float().sigmoid().amax(-1)
    learner.thresholds.values.fill_(scores.flatten().topk(boxes * len(target) + 1).values[-1].item())


@contextmanager
def matching_named(learner: Learner) -> Iterator[None]:
    """While inside, the matcher's calls are a region of their own in a profile."""
    losses = (learner.detection_loss, learner.proposal_loss)
    matcher = losses[0].matcher

    def named(*arguments):
        with record_function("matching"):
            return matcher(*arguments)

    for loss in losses:
        loss.matcher = named
    yield
    for loss in losses:
        loss.matcher = matcher


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
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    return int(re.search(r"VmHWM:\s*(\d+)", status)[1]) * 1024 / 1e9


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


def profiled(step, learner: Learner) -> dict[str, Any]:
    """Counts per step, and milliseconds by group: of the calling thread on the CPU, of the kernels on a GPU."""
    cuda = learner.world.device.type == "cuda"
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if cuda else [])
    with matching_named(learner), profile(activities=activities) as trace:
        for _ in range(PROFILED):
            with record_function("step"):
                step()
    calls = [event for event in trace.events() if event.device_type == torch.autograd.DeviceType.CPU]
    on_device = [event for event in trace.events() if event.device_type != torch.autograd.DeviceType.CPU]
    kernels = [event for event in on_device if not event.name.startswith(("step", "matching", "Optimizer"))]
    groups, counts = Counter(), Counter(event.name for event in calls)
    for event in calls:
        groups[group_of(event)] += event.self_device_time_total if cuda else event.self_cpu_time_total
    found = {
        "groups_ms": {name: groups[name] / 1e3 / PROFILED for name in GROUPS},
        "aten_calls": sum(count for name, count in counts.items() if name.startswith("aten::")) / PROFILED,
        "copies": counts["aten::copy_"] / PROFILED,
        "host_syncs": sum(event.name in (SYNCS if cuda else WAITS) and group_of(event) != "optimiser" for event in calls) / PROFILED,
        "most_called": {name: count / PROFILED for name, count in counts.most_common(12)},
    }
    return found | ({"kernels": len(kernels) / PROFILED, "gpu_busy_ms": busy_ms(kernels) / PROFILED} if cuda else {})


def measure(config: Config, kind: str, boxes: int, num_classes: int, steps: int, world: distributed.World) -> dict[str, Any]:
    """One row: times, memory, counts and shares of one kind of step."""
    learner, cuda = make_learner(config, kind, num_classes, world), world.device.type == "cuda"
    size, images = image_size(config), config.engine.batch_size
    domains = (SOURCE, TARGET) if learner.parts.target else (SOURCE,)
    batches = [
        {
            domain: make_batch(images, size, boxes, num_classes, 2 * seed + place, world.device, pair=domain == TARGET)
            for place, domain in enumerate(domains)
        }
        for seed in range(2)
    ]
    if learner.teacher is not None:
        set_threshold(learner, batches[0][TARGET], boxes)
    wall, cpu, labels = [], [], []

    def step() -> None:
        begin, begin_cpu = time.perf_counter(), time.process_time()
        seen = training_step(learner, [batches[learner.step % 2]], config.mae.weight, config.domain.reversal)
        if cuda:
            torch.cuda.synchronize()
        wall.append((time.perf_counter() - begin) * 1e3)
        cpu.append((time.process_time() - begin_cpu) * 1e3)
        labels.append(seen.get("pseudo_labels", torch.tensor(0.0)))

    for _ in range(WARM_UP):
        step()
    wall.clear(), cpu.clear(), labels.clear()
    forget_peak(world.device)
    for _ in range(steps):
        step()
    median = statistics.median(wall)
    low, _, high = statistics.quantiles(wall, n=4) if steps > 1 else wall * 3
    row = {
        "ms": median,
        "quartiles_ms": [low, high],
        "cpu_ms": statistics.median(cpu),
        "images_per_s": images * len(domains) / median * 1e3,
        "peak_gb": peak_gb(world.device),
        "pseudo_labels": torch.stack(labels).mean().item(),
    }
    return row | profiled(step, learner)


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
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if cuda else "cpu")
    parser.add_argument("--preset", help="default: city2foggy on a GPU, demo on the CPU")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), metavar="KIND", help=f"of {', '.join(KINDS)}")
    parser.add_argument("--amp", nargs="+", choices=("off", "bf16", "fp16"), default=["off", "bf16"])
    parser.add_argument("--steps", type=int, default=15, help="timed steps of each row")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument("--batch", type=int, help="images per domain (default: 4 on a GPU, the preset's on the CPU)")
    parser.add_argument("--boxes", type=int, default=15, help="boxes an image")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="any setting of the preset")
    parser.add_argument("--output", type=Path, help="JSON file (default: benchmarks/results/train_step-DEVICE.json)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    preset = options.preset or ("city2foggy" if options.device == "cuda" else "demo")
    changes: dict[str, Any] = {"model.weights": "checkpoint"}  # the structure of a pretrained backbone, without a download
    if options.batch or options.device == "cuda":
        changes["engine.batch_size"] = options.batch or 4
    config, world = load_config(preset, options.set, changes), distributed.join(options.device)
    num_classes = len(load_detector(config.init)[1]["classes"]) if config.init else 9
    about = {
        "preset": preset,
        "image": image_size(config),
        "batch": config.engine.batch_size,
        "boxes": options.boxes,
        "classes": num_classes,
    }
    results = {"environment": environment(options.device), **about, "steps": options.steps, "rows": []}
    print(", ".join(f"{key} {value}" for key, value in {**results["environment"], **about}.items()))
    for amp in options.amp:
        chosen = load_config(preset, options.set, changes | {"engine.amp": amp})
        for kind in options.kinds:
            row = measure(chosen, kind, options.boxes, num_classes, options.steps, world)
            results["rows"].append({"kind": kind, "amp": amp, **row})
            print(table(results["rows"]).splitlines()[-1] if len(results["rows"]) > 1 else table(results["rows"]), flush=True)
    path = options.output or Path(__file__).parent / "results" / f"train_step-{options.device}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n")
    print(f"written to {path}")


if __name__ == "__main__":
    main()
