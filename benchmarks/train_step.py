"""The training steps of the three stages, with data made in memory: what they cost and where the time goes.

    python -m benchmarks.train_step [--kinds teach ...] [--amp off bf16] [--steps 15] [--threads 2]
        time, memory, calls, and shares of the time
    python -m benchmarks.train_step --ladder
        from the plain step to the fastest, one option after the other
    python -m benchmarks.train_step --memory [--batch 1 2 4 8] [--size 750 1333]
        the peak memory of each kind of step, to see what fits a card
    python -m benchmarks.train_step --floor
        what a step launches, moves and multiplies, and the least time that this takes on an H100

On a GPU, and for --memory and --floor, sizes are the published ones (batch 4 per domain, 666x1333, ResNet-50,
15 boxes an image, 9 classes); on the CPU, those of preset small. Milliseconds come from unprofiled steps,
counts and shares from further steps under torch's profiler (three; one of each rung).

The ladder's rungs take turns, one step each, so that other load of the machine affects all of them alike; a
ratio is the median of the rounds' ratios, of CPU time on the CPU and of wall time on a GPU. Memory is what
torch's allocator reports on a GPU; on the CPU the ladder and --memory count it (benchmarks.counting).
"""

from __future__ import annotations

import argparse
import gc
import json
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch

from benchmarks import floor
from benchmarks.bench import KINDS, Bench, image_size
from benchmarks.environment import environment
from benchmarks.ladder import LADDER, PLAIN, ladder, ladder_table, plot_ladder
from benchmarks.memory import forget_peak, memory_heads, memory_line, memory_row, peak_gb
from benchmarks.profiling import GROUPS, profiled
from mrt.config import Config, load_config
from mrt.engine import distributed
from mrt.engine.load import load_detector


def measure(
    config: Config, kind: str, boxes: int, num_classes: int, steps: int, world: distributed.World
) -> dict[str, Any]:
    """One row: times, memory, counts and shares of one kind of step."""
    bench = Bench(config, kind, boxes, num_classes, world)
    bench.warm_up()
    forget_peak(world.device)
    for _ in range(steps):
        bench()
    row = bench.times() | {"peak_gb": peak_gb(world.device)}
    return row | profiled(bench)


def table(rows: list[dict[str, Any]]) -> str:
    """One line per row: times, memory, counts, then the groups' shares in per cent."""
    heads = f"{'step':12}{'amp':>5}{'ms (quartiles)':>24}{'CPU ms':>9}{'img/s':>8}{'GB':>7}"
    heads += f"{'aten':>8}{'copies':>8}{'syncs':>7}{'kernels':>9}{'busy ms':>9}"
    lines = [heads + "".join(f"{name:>{len(name) + 2}}" for name in GROUPS) + "  (%)"]
    for row in rows:
        low, high = row["quartiles_ms"]
        total = sum(row["groups_ms"].values())
        times = f"{row['ms']:.0f} ({low:.0f}-{high:.0f})"
        cells = f"{row['kind']:12}{row['amp']:>5}{times:>24}{row['cpu_ms']:9.0f}{row['images_per_s']:8.1f}"
        cells += f"{row['peak_gb']:7.2f}"
        cells += f"{row['aten_calls']:8.0f}{row['copies']:8.0f}{row['host_syncs']:7.0f}"
        on_gpu = "kernels" in row
        cells += f"{row['kernels']:9.0f}{row['gpu_busy_ms']:9.1f}" if on_gpu else f"{'-':>9}{'-':>9}"
        for name in GROUPS:
            cells += f"{100 * row['groups_ms'][name] / total:{len(name) + 2}.0f}"
        lines.append(cells)
    return "\n".join(lines)


def main() -> None:
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--ladder", action="store_true", help="what each option contributes")
    what.add_argument(
        "--memory", action="store_true", help="peak memory by batch, precision and checkpointing"
    )
    what.add_argument(
        "--floor", action="store_true", help="least time on an H100, counted (uncompiled; needs no GPU)"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if cuda else "cpu")
    parser.add_argument(
        "--preset", help="default: city2foggy on a GPU and with --memory or --floor, else small"
    )
    parser.add_argument(
        "--kinds",
        nargs="+",
        choices=KINDS,
        default=list(KINDS),
        metavar="KIND",
        help=f"of {', '.join(KINDS)}",
    )
    parser.add_argument(
        "--amp", nargs="+", default=["off", "bf16"], help="precisions of the rows (the ladder has its own)"
    )
    parser.add_argument(
        "--steps", type=int, default=15, help="timed steps of each row; of the ladder: rounds"
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument(
        "--batch",
        type=int,
        nargs="+",
        help="images per domain (default: 4, with preset small the preset's; --memory: 1 2 4 8)",
    )
    parser.add_argument("--micro", type=int, default=1, help="--memory: batches accumulated in a step")
    parser.add_argument(
        "--checkpointing",
        nargs="+",
        choices=("off", "on"),
        default=["off", "on"],
        help="--memory: activation checkpointing",
    )
    parser.add_argument(
        "--size",
        type=int,
        nargs=2,
        metavar=("H", "W"),
        help="--memory, --floor: image size (default: Cityscapes')",
    )
    parser.add_argument(
        "--real",
        action="store_true",
        help="--memory without a GPU: also run the step, to compare with resident memory",
    )
    parser.add_argument("--boxes", type=int, default=15, help="boxes an image")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="any setting of the preset")
    parser.add_argument(
        "--output", type=Path, help="JSON file (default: benchmarks/results/train_step[-MODE]-DEVICE.json)"
    )
    options = parser.parse_args()
    if options.batch and len(options.batch) > 1 and not options.memory:
        parser.error("--batch takes several values with --memory only")
    torch.set_num_threads(options.threads)
    mode = next((mode for mode in ("ladder", "memory", "floor") if getattr(options, mode)), "")
    counted = mode in ("memory", "floor")
    if options.floor:
        options.device = "cpu"
    preset = options.preset or ("city2foggy" if options.device == "cuda" or counted else "small")
    # "checkpoint": the structure of a pretrained backbone, without a download
    changes: dict[str, Any] = {"model.weights": "checkpoint"}
    if options.batch or preset != "small":
        changes["engine.batch_size"] = options.batch[0] if options.batch else 4
    config, world = load_config(preset, options.set, changes), distributed.join(options.device)
    num_classes = len(load_detector(config.init)[1]["classes"]) if config.init else 9
    size = tuple(options.size) if options.size and counted else image_size(config)
    about = {
        "preset": preset,
        "image": size,
        "batch": options.batch if options.batch and options.memory else config.engine.batch_size,
        "boxes": options.boxes,
        "classes": num_classes,
    }
    report = {"environment": environment(options.device), **about, "rows": []}
    if not counted:
        report["steps"] = options.steps
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
        for kind, amp, checkpointing, images in product(
            options.kinds, options.amp, options.checkpointing, options.batch or (1, 2, 4, 8)
        ):
            more = {
                "engine.amp": amp,
                "engine.batch_size": images,
                "engine.checkpointing": checkpointing == "on",
            }
            if options.device == "cpu":
                more["engine.compile"] = "off"
            chosen = load_config(preset, options.set, {**changes, **more})
            bench = partial(
                Bench, chosen, kind, options.boxes, num_classes, world, micro=options.micro, size=size
            )
            row = {
                "kind": kind,
                "amp": amp,
                "checkpointing": checkpointing == "on",
                "images": images,
                "micro": options.micro,
            }
            report["rows"].append(row | memory_row(bench, options.device == "cuda", options.real))
            print(memory_line(report["rows"][-1]), flush=True)
    elif options.floor:
        print("\n" + floor.HEADS)
        for kind, amp in product(options.kinds, options.amp):
            chosen = load_config(preset, options.set, {**changes, "engine.amp": amp, "engine.compile": "off"})
            bench = partial(Bench, chosen, kind, options.boxes, num_classes, world, size=size, values=False)
            row = floor.floor(bench().counted_work(), amp)
            peak = bench().counted_gb()["counted_gb"]
            report["rows"].append({"kind": kind, "amp": amp, **row, "peak_gb": peak})
            print(floor.line(report["rows"][-1]), flush=True)
    else:
        for amp in options.amp:
            chosen = load_config(preset, options.set, changes | {"engine.amp": amp})
            for kind in options.kinds:
                row = measure(chosen, kind, options.boxes, num_classes, options.steps, world)
                report["rows"].append({"kind": kind, "amp": amp, **row})
                shown = table(report["rows"])
                print(shown.splitlines()[-1] if len(report["rows"]) > 1 else shown, flush=True)
    parts = ("train_step", mode, "" if options.floor else options.device)  # the floor is no device's
    path = options.output or Path(__file__).parent / "results" / ("-".join(filter(None, parts)) + ".json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")
    print(f"\nwritten to {path}")
    if options.ladder:
        path.with_suffix(".txt").write_text(ladder_table(report["rows"], world.device.type == "cuda") + "\n")
        drawn = plot_ladder(report, path.with_suffix(".png"))
        picture = f" and {path.with_suffix('.png')}" if drawn else ", without a plot: no matplotlib here"
        print(f"and to {path.with_suffix('.txt')}{picture}")


if __name__ == "__main__":
    main()
