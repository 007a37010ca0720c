"""Counting a step's work: single operations by hand, and the floor of a whole step."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tiny_world import tiny_config

from benchmarks.bench import Bench
from benchmarks.counting import Operation, Work
from benchmarks.floor import Card, floor, line
from mrt.engine.distributed import World
from mrt.ops import fallback_reason, ms_deform_attn, ms_deform_attn_fused


def counted(function) -> list[tuple]:
    with Work() as work:
        function()
    return [
        (operation.name.removeprefix("aten::"), operation.bytes, operation.flops)
        for operation in work.operations
    ]


def test_products_and_elementwise_operations():
    x, weight, bias = (
        torch.randn(10, 4, requires_grad=True),
        torch.randn(6, 4, requires_grad=True),
        torch.randn(6),
    )
    assert counted(lambda: F.linear(x, weight, bias)) == [("addmm", 4 * (6 + 40 + 24 + 60), 2 * 10 * 4 * 6)]
    output = F.linear(x, weight).sum()
    found = counted(output.backward)
    assert (
        sorted(name for name, _, flops in found if flops) == ["mm", "mm"]
        and sum(flops for _, _, flops in found) == 2 * 2 * 10 * 4 * 6
    )
    a, b = torch.randn(8), torch.randn(8)
    assert counted(lambda: a + b) == [("add", 3 * 32, 0)]
    assert counted(lambda: a.add_(b)) == [("add_", 3 * 32, 0)], "reads both, writes one"
    assert counted(lambda: a.copy_(b)) == [("copy_", 2 * 32, 0)]
    assert counted(lambda: a.zero_()) == [("zero_", 32, 0)]
    assert counted(lambda: a.view(2, 4).T[0].detach()) == [] == counted(lambda: torch.empty(100)), (
        "views and empty memory are free"
    )
    assert counted(lambda: a.expand(100, 8) * 1.0) == [("mul", 32 + 3200, 0)], (
        "an expanded tensor is as small as it is"
    )


def test_convolutions():
    x, weight = torch.randn(2, 3, 8, 8), torch.randn(5, 3, 3, 3, requires_grad=True)
    flops = 2 * 2 * 5 * 6 * 6 * 27
    assert counted(lambda: F.conv2d(x, weight)) == [
        ("convolution", 4 * (2 * 3 * 64 + 5 * 27 + 2 * 5 * 36), flops)
    ]
    loss = F.conv2d(x, weight).sum()
    assert sum(found[2] for found in counted(loss.backward)) == flops, "no gradient of the images is wanted"


def test_lists_of_tensors_and_inference():
    """What optimiser and average do to many tensors gives no result; in inference mode operations arrive
    undivided.
    """
    ours, theirs = [torch.randn(8), torch.randn(4)], [torch.randn(8), torch.randn(4)]
    assert counted(lambda: torch._foreach_lerp_(ours, theirs, 0.5)) == [("_foreach_lerp_", 3 * 48, 0)]
    weight, parameter = torch.randn(6, 4), torch.randn(12)
    with torch.inference_mode():
        x = torch.randn(10, 4)
        assert counted(lambda: F.linear(x, weight)) == [("linear", 4 * (40 + 24 + 60), 480)]
        assert counted(lambda: torch.matmul(x, weight.T)) == [("matmul", 4 * (40 + 24 + 60), 480)]
        assert counted(lambda: parameter.to(torch.bfloat16)) == [("to", 12 * (4 + 2), 0)]
        assert (
            counted(lambda: x.T.contiguous()) == [("contiguous", 2 * 160, 0)]
            and counted(lambda: x.contiguous()) == []
        )


@pytest.mark.skipif(fallback_reason("cpu") is not None, reason="the fallback is many operations")
def test_deformable_attention():
    value, references = torch.randn(2, 24, 4, 8, requires_grad=True), torch.rand(2, 5, 1, 2)
    offsets, logits = torch.randn(2, 5, 4, 1, 3, 2), torch.randn(2, 5, 4, 3)
    with Work() as work:
        ms_deform_attn_fused(value, ((4, 6),), references, offsets, logits).sum().backward()
        ms_deform_attn(value, ((4, 6),), offsets, logits.unflatten(-1, (1, 3)))
    samples = [operation.samples for operation in work.operations if operation.name.startswith("mrt::")]
    assert samples == [2 * 5 * 4 * 3 * 8] * 2 + [0], "the plain op is not timed"


def test_the_floor_of_a_step():
    card = Card(
        "a card",
        bytes=1e9,
        flops={"off": 1e9, "tf32": 2e9, "16 bits": 4e9},
        attention={(b, h): 1.0 for b in (0, 1) for h in (0, 1)},
    )
    two = [
        Operation("aten::add", torch.float32, 3_000_000, 0),
        Operation("aten::mm", torch.float32, 1_000_000, 8_000_000),
    ]
    assert floor(two, "off", card)["floor_ms"] == pytest.approx(3 + 8) and floor(two, "tf32", card)[
        "floor_ms"
    ] == pytest.approx(3 + 4)
    base = tiny_config(**{"model.weights": "checkpoint", "model.freeze": "stem", "engine.batch_size": 1})
    rows = {}
    for kind in ("source", "teach+mae"):
        operations = Bench(
            base, kind, boxes=2, num_classes=2, world=World(0, 1, torch.device("cpu")), values=False
        ).counted_work()
        rows[kind] = {"kind": kind, "amp": "off", "peak_gb": 0.0, **floor(operations, "off")}
        assert sum(rows[kind]["groups_ms"].values()) == pytest.approx(
            rows[kind]["floor_ms"]
        ) and kind in line(rows[kind])
    assert rows["teach+mae"]["floor_ms"] > 1.5 * rows["source"]["floor_ms"] > 0
    assert rows["teach+mae"]["operations"] > rows["source"]["operations"]
