"""Measures the terms of docs/scaling.md: steps of one process, an all-reduce, steps of several processes.

    python -m benchmarks.scaling [--processes 2] [--preset small] [--kind teach+mae] [--batch 8] [--rounds 9]

All processes run on this machine. Each round measures: a step of the first process alone, at every batch
size; steps of all processes at the same time, each on its share of the batch and without communication; an
all-reduce of as many numbers as there are gradients, in DDP's buckets, and of one bucket; and a step
together. So one process and several are measured under the same conditions. On GPUs: one process each, NCCL.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.bench import KINDS, Bench, image_size, quartiles
from benchmarks.environment import environment
from mrt.config import Config, load_config
from mrt.engine import distributed
from mrt.engine.load import load_detector

BUCKET_MB = 25  # DDP's
WARM_UP = 2


@contextmanager
def timed_backward(times: list[float]) -> Iterator[None]:
    """Within this context, the milliseconds of each backward pass are appended to ``times``."""
    backward = Tensor.backward

    def timed(*arguments, **options) -> None:
        begin = time.perf_counter()
        backward(*arguments, **options)
        if arguments[0].is_cuda:
            torch.cuda.synchronize()
        times.append((time.perf_counter() - begin) * 1e3)

    Tensor.backward = timed
    yield
    Tensor.backward = backward


def configured(options: argparse.Namespace, images: int) -> Config:
    fixed = {
        "model.weights": "checkpoint",
        "engine.batch_size": images,
        "engine.amp": options.amp,
        "engine.threads": options.threads,
    }
    return load_config(options.preset, options.set, fixed)


def work(rank: int, options: argparse.Namespace, port: int) -> None:
    """One process; the first writes what was measured to ``options.output``."""
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(options.processes),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    torch.set_num_threads(options.threads)
    world = distributed.join(options.device)
    alone = replace(world, rank=0, size=1)
    share = options.batch // options.processes
    batches = [options.batch >> halved for halved in range(options.batch.bit_length())]
    config = configured(options, options.batch)
    classes = len(load_detector(config.init)[1]["classes"]) if config.init else 9

    def bench(images: int, where: distributed.World) -> Bench:
        return Bench(configured(options, images), options.kind, options.boxes, classes, where)

    single = {images: bench(images, alone) for images in batches} if world.main else {}
    beside, together = bench(share, alone), bench(share, world)
    gradients = sum(p.numel() for p in together.learner.student.parameters() if p.requires_grad)
    bucket = min(gradients, BUCKET_MB * 1_000_000 // 4)
    buffer = torch.zeros(gradients, device=world.device)

    def all_reduce(count: int) -> float:
        begin = time.perf_counter()
        for part in buffer[:count].split(bucket):
            dist.all_reduce(part)
        if world.device.type == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - begin) * 1e3

    times: dict[str, list[float]] = {"all_reduce": [], "last_bucket": [], "backward": []}
    for turn in range(-WARM_UP, options.rounds):
        for one in single.values():
            one()
        world.wait()
        with timed_backward(times["backward"]):
            beside()
        world.wait()
        times["all_reduce"].append(all_reduce(gradients))
        times["last_bucket"].append(all_reduce(bucket))
        world.wait()
        together()
        if turn < 0:
            for one in (*single.values(), beside, together):
                one.forget()
            for values in times.values():
                values.clear()
    if world.main:
        report = summary(single, beside, together, times)
        report |= {
            "environment": environment(options.device),
            "gradients": gradients,
            "image": image_size(config),
        }
        given = ("preset", "kind", "processes", "batch", "rounds", "threads", "amp")
        report |= {name: getattr(options, name) for name in given}
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(report, indent=1) + "\n")
    world.wait()
    distributed.leave()


def summary(
    single: dict[int, Bench], beside: Bench, together: Bench, times: dict[str, list[float]]
) -> dict[str, Any]:
    """Medians and quartiles, ms, and what the formula predicts for the step together."""

    def of(values: list[float]) -> dict[str, float]:
        return dict(zip(("low", "median", "high"), quartiles(values), strict=True))

    share = beside.images
    found: dict[str, Any] = {"alone": {images: of(one.wall) for images, one in single.items()}}
    found |= {"alone_cpu": {images: of(one.cpu) for images, one in single.items()}}
    found |= {
        "side_by_side": of(beside.wall),
        "together": of(together.wall),
        **{name: of(values) for name, values in times.items()},
    }
    extra = max(found["all_reduce"]["median"] - found["backward"]["median"], found["last_bucket"]["median"])
    found["predicted_from_alone"] = found["alone"][share]["median"] + extra
    found["predicted_from_side_by_side"] = found["side_by_side"]["median"] + extra
    whole = single[max(single)]
    found["speed_up"] = statistics.median([a / b for a, b in zip(whole.wall, together.wall, strict=True)])
    return found


def shown(report: dict[str, Any]) -> str:
    """The report as a table."""

    def line(name: str, values: dict[str, float]) -> str:
        return f"{name:52}{values['median']:9.1f}  ({values['low']:.1f}-{values['high']:.1f})"

    share = report["batch"] // report["processes"]
    lines = [f"{'milliseconds':52}{'median':>9}  (quartiles)"]
    lines += [line(f"T({images}), one process alone", values) for images, values in report["alone"].items()]
    lines += [line(f"   its CPU time, {images}", values) for images, values in report["alone_cpu"].items()]
    beside = f"T({share}), {report['processes']} processes side by side, nothing shared"
    lines.append(line(beside, report["side_by_side"]))
    lines.append(line("   of it the backward pass", report["backward"]))
    lines.append(line(f"all-reduce of {report['gradients'] * 4 / 1e6:.1f} MB", report["all_reduce"]))
    lines.append(line("all-reduce of the last bucket", report["last_bucket"]))
    for name in ("alone", "side_by_side"):
        title = f"predicted t_step({report['processes']}), from T({share}) {name.replace('_', ' ')}"
        lines.append(f"{title:52}{report[f'predicted_from_{name}']:9.1f}")
    lines.append(line(f"measured t_step({report['processes']})", report["together"]))
    lines.append(f"{'speed-up (median of the rounds)':52}{report['speed_up']:9.2f}")
    return "\n".join(lines)


def free_port() -> int:
    """A TCP port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def main() -> None:
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if cuda else "cpu")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--preset", help="default: city2foggy on GPUs, small on the CPU")
    parser.add_argument("--kind", choices=KINDS, default="teach+mae")
    parser.add_argument("--batch", type=int, default=8, help="images per domain over all processes")
    parser.add_argument("--boxes", type=int, default=15, help="boxes an image")
    parser.add_argument("--amp", default="off")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each process")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="any setting of the preset")
    parser.add_argument(
        "--output", type=Path, help="JSON file (default: benchmarks/results/scaling-DEVICE.json)"
    )
    options = parser.parse_args()
    if options.batch % options.processes:
        parser.error(f"--batch {options.batch} does not divide by {options.processes} processes")
    options.preset = options.preset or ("city2foggy" if options.device == "cuda" else "small")
    options.output = options.output or Path(__file__).parent / "results" / f"scaling-{options.device}.json"
    torch.multiprocessing.spawn(work, (options, free_port()), options.processes)
    report = json.loads(options.output.read_text())
    print(", ".join(f"{key} {value}" for key, value in report["environment"].items()))
    print(shown(report))
    print(f"written to {options.output}")


if __name__ == "__main__":
    main()
