"""From the plain step to the fastest, option by option: ``python -m benchmarks.train_step --ladder``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.bench import Bench, Step, quartiles
from benchmarks.plain_step import plain_step
from benchmarks.profiling import profiled
from mrt.config import Config
from mrt.engine import distributed
from mrt.engine.step import training_step


@dataclass(frozen=True)
class Rung:
    """One rung of the ladder.

    Attributes:
        name: in the table.
        settings: all settings that differ from those of the plain step.
        step: takes a learner, micro-batches, the autoencoder's weight and the strength of the gradient
            reversal.
        gpu: whether it is only for GPUs (engine.compile = "auto" does not compile on a CPU either).
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


def ladder(
    rungs: Sequence[tuple[Rung, Config]],
    kind: str,
    boxes: int,
    num_classes: int,
    rounds: int,
    world: distributed.World,
) -> list[dict[str, Any]]:
    """Measure all rungs; one row per rung.

    Memory and counts of a rung are taken while later rungs do not exist and earlier ones hold only their
    state. Times are taken in rounds, one step of each rung per round.
    """
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
    heads = f"{'rung':34}{'ms (quartiles)':>22}{'CPU ms':>9}{'GPU busy':>10}"
    heads += f"{'as fast as plain':>24}{'than before':>13}{'GB':>7}"
    heads += f"{'aten calls':>12}{'kernels':>9}{'syncs':>7}"
    lines, kind = [], None
    for row in rows:
        if row["kind"] != kind:
            kind = row["kind"]
            lines += ["", kind, heads]
        (low, high), (slow, fast) = row["quartiles_ms"], row["times_as_fast_quartiles"]
        took = f"{row['ms']:.0f} ({low:.0f}-{high:.0f})"
        gained = f"{row['times_as_fast']:.2f} ({slow:.2f}-{fast:.2f})"
        cells = f"{row['rung']:34}{took:>22}{row['cpu_ms']:9.0f}"
        cells += f"{row['gpu_busy_ms']:10.1f}" if cuda else f"{'-':>10}"
        cells += f"{gained:>24}{row['times_as_fast_as_before']:13.2f}{row['peak_gb']:7.2f}"
        cells += f"{row['aten_calls']:12.0f}"
        cells += f"{row['kernels']:9.0f}" if cuda else f"{'-':>9}"
        cells += f"{row['host_syncs']:7.0f}"
        lines.append(cells)
    return "\n".join(lines[1:])


def plot_ladder(report: Mapping[str, Any], path: Path) -> bool:
    """Plot time and memory of each rung, one row of panels per kind of step; False without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    cuda = any("gpu_busy_ms" in row for row in report["rows"])
    kinds = list(dict.fromkeys(row["kind"] for row in report["rows"]))
    most = max(sum(row["kind"] == kind for row in report["rows"]) for kind in kinds)
    height = 0.9 + len(kinds) * (0.35 + 0.21 * most)
    figure, axes = pyplot.subplots(
        len(kinds),
        2,
        figsize=(7.2, height),
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
            busy = [row["gpu_busy_ms"] for row in rows]
            left.barh(places, busy, color="#0072B2", height=0.4, label="of it GPU busy")
        style = {"xytext": (3, 0), "textcoords": "offset points", "va": "center", "fontsize": 7}
        for place, value, row in zip(places, shown, rows, strict=True):
            left.annotate(f"{value:.0f}  ({row['times_as_fast']:.2f}x)", (value, place), **style)
        left.set_yticks(places, [row["rung"] for row in rows], fontsize=7)
        left.set_title(kind, fontsize=9, loc="left")
        right.barh(places, [row["peak_gb"] for row in rows], color="#E69F00", height=0.7)
        for place, row in zip(places, rows, strict=True):
            right.annotate(f"{row['peak_gb']:.2g}", (row["peak_gb"], place), **style)
        for axis in (left, right):
            axis.tick_params(labelsize=7)
            axis.spines[["top", "right"]].set_visible(False)
        left.margins(x=0.22)
        right.margins(x=0.3)
        right.xaxis.set_major_locator(ticker.MaxNLocator(3))
    unit = "ms a step" if cuda else "CPU ms a step"
    axes[-1][0].set_xlabel(f"{unit} (times as fast as the plain step)", fontsize=8)
    axes[-1][1].set_xlabel("peak GB" if cuda else "peak GB of tensors, counted", fontsize=8)
    if cuda:
        handles = axes[0][0].get_legend_handles_labels()
        figure.legend(*handles, loc="outside lower center", ncols=2, fontsize=8)
    where = report["environment"]
    height, width = report["image"]
    title = f"{report['preset']}, {report['batch']} images of {height}x{width} per domain; "
    figure.suptitle(f"{title}{where['device']}, torch {where['torch']}", fontsize=8)
    figure.savefig(path, dpi=150)
    return True
