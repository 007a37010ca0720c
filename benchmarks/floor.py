"""Lower bound for the time of a training step on a GPU (roofline model); calculating it needs no GPU.

    python -m benchmarks.train_step --floor

The operations run one kernel after the other, as without compilation. Each takes as long as moving its bytes
or doing its multiplications takes at the speeds that the card reached in a test of each. Deformable attention
is bound by neither and takes the measured time of a prototype. Every kernel has overhead and none reaches
those speeds on small tensors, so a real step takes longer. The difference shows how much could still be
gained.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.counting import Operation


@dataclass(frozen=True)
class Card:
    """Measured speeds of a GPU.

    ``bytes``: bytes a second of a copy. ``flops``: operations a second of a large matrix product, by
    precision. ``attention``: nanoseconds of deformable attention per thousand samples
    (N * Q * M * L * P * D), by (backward, whether value has 16 bits).
    """

    name: str
    bytes: float
    flops: Mapping[str, float]
    attention: Mapping[tuple[bool, bool], float]


E = 4 * 22_223 * 8 * 16 * 32 / 1e3  # thousands of samples of the case that the prototype was measured on
H100 = Card(  # 80 GB HBM3, torch 2.11; docs/speed.md says where from
    "H100",
    bytes=3.0e12,
    flops={"off": 52e12, "tf32": 408e12, "16 bits": 790e12},
    attention={
        (False, False): 0.435e6 / E,
        (False, True): 0.272e6 / E,
        (True, False): 1.177e6 / E,
        (True, True): 1.015e6 / E,
    },
)
HALF = (torch.bfloat16, torch.float16)


def milliseconds(operation: Operation, amp: str, card: Card) -> float:
    """The least time of one operation of a step in precision ``amp``."""
    half = operation.dtype in HALF
    if operation.samples:
        return operation.samples / 1e3 * card.attention[operation.name.endswith("backward"), half] / 1e6
    speed = card.flops["16 bits" if half else "off" if amp == "off" else "tf32"]
    return max(operation.bytes / card.bytes, operation.flops / speed) * 1e3


def _group(operation: Operation) -> str:
    """The column of the table that an operation's time is added to."""
    if operation.samples:
        return "attention"
    if not operation.flops:
        return "other"
    return "conv" if "conv" in operation.name else "products"


def floor(operations: Sequence[Operation], amp: str, card: Card = H100) -> dict[str, Any]:
    """Least milliseconds of a step, by kind of operation, and how much it launches, moves and multiplies."""
    groups: dict[str, float] = defaultdict(float)
    names: dict[str, float] = defaultdict(float)
    for operation in operations:
        took = milliseconds(operation, amp, card)
        groups[_group(operation)] += took
        names[operation.name] += took
    costly = sorted(names.items(), key=lambda item: -item[1])[:12]
    return {
        "floor_ms": sum(groups.values()),
        "groups_ms": dict(groups),
        "operations": len(operations),
        "gb_moved": sum(operation.bytes for operation in operations) / 1e9,
        "tflop": sum(operation.flops for operation in operations) / 1e12,
        "most_costly_ms": {name: round(took, 3) for name, took in costly},
        "card": card.name,
    }


COLUMNS = {"floor ms": 10, "conv": 7, "products": 10, "attention": 11, "other": 8}  # and their widths
COUNTS = {"operations": 12, "GB moved": 10, "TFLOP": 8, "peak GB": 9}
HEADS = f"{'step':12}{'amp':>5}" + "".join(f"{name:>{width}}" for name, width in (COLUMNS | COUNTS).items())


def line(row: Mapping[str, Any]) -> str:
    """The row as text."""
    cells = f"{row['kind']:12}{row['amp']:>5}{row['floor_ms']:10.1f}"
    for name in ("conv", "products", "attention", "other"):
        cells += f"{row['groups_ms'].get(name, 0.0):{COLUMNS[name]}.1f}"
    return cells + f"{row['operations']:12}{row['gb_moved']:10.1f}{row['tflop']:8.2f}{row['peak_gb']:9.2f}"
