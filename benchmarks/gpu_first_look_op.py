"""Is the op right on this GPU? Its outputs and gradients against the PyTorch path in float64.

Compared is the largest difference as a share of the array's largest value, beyond one rounding of each
16-bit number: errors and limits are those of mrt.ops.selfcheck. Both sides get the same numbers, rounded to
the dtypes that the kernel takes. "fallback" beside an error is that of the PyTorch path in the kernel's own
precision.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_first_look_machine import benchmark, require_kernels
from benchmarks.gpu_first_look_runner import Look, NotHere
from mrt import ops
from mrt.ops import reference, selfcheck

bench = benchmark("ms_deform_attn")
Case = bench.Case
MIDDLE = ((50, 84), (25, 42), (13, 21), (7, 11))
TINY = ((6, 9), (3, 5), (2, 3), (1, 2))
LIMITS = selfcheck.LIMITS
USUAL = (torch.float32, torch.bfloat16, torch.float16)
NOWHERE = (torch.nan, torch.inf, -torch.inf, 1e30, -1e30, 3e9, -40.0)
NAMES = ("output", "value", "references", "offsets", "logits")
PLAIN_NAMES = ("output", "value", "locations", "weights")
ENCODERS = {
    "spread 2": Case(MIDDLE, 2),
    "spread 0.5": Case(MIDDLE, 2, spread=0.5),
    "spread 8": Case(MIDDLE, 2, spread=8),
    "spread 40": Case(MIDDLE, 2, spread=40),
    "D=16": Case(MIDDLE, 2, dim=16),
    "D=64": Case(MIDDLE, 2, dim=64),
    "one level": Case(MIDDLE[:1], 2),
    "five levels": Case((*MIDDLE, (4, 6)), 1),
    "three heads": Case(MIDDLE[1:], 3, heads=3),
}
DECODERS = {
    "300 queries": Case(MIDDLE, 2, queries=300),
    "spread 8": Case(MIDDLE, 2, queries=300, spread=8),
    "11 queries": Case(MIDDLE, 2, queries=11, heads=3),
    "one query": Case(MIDDLE, 1, queries=1, heads=1),
    "D=16": Case(MIDDLE, 2, queries=300, dim=16),
    "D=64": Case(MIDDLE, 2, queries=300, dim=64),
    "two levels": Case(MIDDLE[:2], 2, queries=300),
}
ODD = {
    "D=20, P=3, M=5": Case(MIDDLE[:3], 2, heads=5, dim=20, points=3),
    "D=33, P=9": Case(MIDDLE, 1, queries=77, heads=2, dim=33, points=9),
    "D=130, P=1": Case(MIDDLE, 1, queries=77, heads=1, dim=130, points=1),
    "eight levels": Case((*MIDDLE, (4, 6), (2, 3), (1, 2), (1, 1)), 1, queries=77),
    "demo": Case(bench.DEMO, 4, heads=4, dim=24),
}


def fitted(case: Case, look: Look) -> Case:
    """The case itself, or a tiny one of its kind in a dry run."""
    if not look.dry_run:
        return case
    shapes = (*TINY, *[(1, 1)] * len(case.shapes))[: len(case.shapes)]
    return replace(
        case, shapes=shapes, batch=min(case.batch, 2), queries=case.queries and min(case.queries, 7)
    )


def given(case: Case, dtype: torch.dtype, device: str, seed: int = 0) -> list[Tensor]:
    """The case's inputs on the device, and the output's gradient as the last."""
    return typed([tensor.to(device) for tensor in case.inputs(seed)], dtype)


def typed(inputs: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Value and gradient in ``dtype``, points in float32 (float64 if value is)."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return [inputs[0].to(dtype), *(tensor.to(wide) for tensor in inputs[1:-1]), inputs[-1].to(dtype)]


def plain(case: Case, inputs: Sequence[Tensor]) -> list[Tensor]:
    """The same sampling for the op that takes locations and weights."""
    return bench.plain_inputs(case, inputs)


def results(op: Callable, shapes: Sequence, inputs: Sequence[Tensor]) -> list[Tensor]:
    """The output and the gradients of all inputs but the last, which is the output's gradient."""
    return bench.results(lambda value, *points: op(value, shapes, *points), list(inputs))


def errors(actual: Sequence[Tensor], exact: Sequence[Tensor]) -> list[float]:
    """Of each array; infinite where shapes differ."""
    found = []
    for mine, right in zip(actual, exact, strict=True):
        same = mine.shape == right.shape
        found.append(selfcheck.relative_error(mine, right) if same else float("inf"))
    return found


def worst(values: Sequence[float]) -> int:
    """The place of the largest, or of the first NaN."""
    return max(range(len(values)), key=lambda i: (values[i] != values[i], values[i]))


def agree(
    look: Look, name: str, case: Case, inputs: Sequence[Tensor], limit: float, fused: bool = True
) -> None:
    """Check output and gradients of one call."""
    op, names = ("ms_deform_attn_fused", NAMES) if fused else ("ms_deform_attn", PLAIN_NAMES)
    exact = results(getattr(reference, op), case.shapes, [tensor.double() for tensor in inputs])
    mine = errors(results(getattr(ops, op), case.shapes, inputs), exact)
    other = errors(results(getattr(reference, op), case.shapes, inputs), exact)
    place = worst(mine)
    # Of few numbers the largest may be small: then the PyTorch path is as far off by rounding.
    limit = min(max(limit, 2 * max(other)), 5 * limit)
    look.check(name, mine[place], limit, array=names[place], fallback=max(other))


def cases(look: Look, table: dict[str, Case], dtypes: Sequence[torch.dtype] = USUAL) -> str:
    """Every case in every dtype; of both ops in the first dtype, of the fused one in the others."""
    require_kernels(look)
    before = len(look.checks)
    for name, full in table.items():
        case = fitted(full, look)
        doubles = [tensor.to(look.device) for tensor in case.inputs(0)]
        for dtype in dtypes:
            inputs, told = typed(doubles, dtype), f"{name}, {short(dtype)}"
            agree(look, told, case, inputs, LIMITS[dtype])
            if dtype == dtypes[0]:
                agree(look, f"{told}, plain op", case, plain(case, inputs), LIMITS[dtype], fused=False)
    return f"{len(look.checks) - before} comparisons"


def short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def self_check(look: Look) -> str:
    """mrt.ops.selfcheck: the quickest answer."""
    require_kernels(look)
    found = selfcheck.selfcheck(look.device)
    for row in found:
        look.check(row.case, row.error, row.limit)
    return f"{len(found)} comparisons"


def encoder(look: Look) -> str:
    return cases(look, ENCODERS)


def decoder(look: Look) -> str:
    return cases(look, DECODERS)


def odd_sizes(look: Look) -> str:
    """The generic kernels, and float64, which they take, too."""
    told = cases(look, ODD)
    cases(look, {"float64 encoder": ENCODERS["spread 2"], **ODD}, (torch.float64,))
    return f"{told}, and float64"


def of_one_product(inputs: Sequence[Tensor]) -> list[Tensor]:
    """Offsets and logits as parts of one matrix product's rows, as MSDeformAttn cuts them."""
    value, references, offsets, logits, upstream = inputs
    sizes = [tensor[0, 0].numel() for tensor in (offsets, logits)]
    joint = torch.cat((offsets.flatten(2), logits.flatten(2)), -1)
    first, second = joint.split(sizes, -1)
    return [value, references, first.view(offsets.shape), second.view(logits.shape), upstream]


def heads_first(inputs: Sequence[Tensor]) -> list[Tensor]:
    """Value, offsets and logits with another order of dimensions in memory."""
    value, references, offsets, logits, upstream = inputs
    turned = [tensor.transpose(1, 2).contiguous().transpose(1, 2) for tensor in (value, offsets, logits)]
    return [turned[0], references, *turned[1:], upstream]


def shifted(inputs: Sequence[Tensor]) -> list[Tensor]:
    """Contiguous, but not on 16 bytes."""
    found = []
    for tensor in inputs:
        room = torch.empty(tensor.numel() + 1, dtype=tensor.dtype, device=tensor.device)
        found.append(room[1:].view(tensor.shape).copy_(tensor))
    return found


def expanded(inputs: Sequence[Tensor]) -> list[Tensor]:
    """Reference points that all images share, and the gradient of a sum: both with strides of zero."""
    value, references, offsets, logits, upstream = inputs
    shared = references[:1].expand(references.shape)
    return [value, shared, offsets, logits, upstream[:1, :1, :1].expand(upstream.shape)]


LAYOUTS = {
    "parts of one product": of_one_product,
    "heads first": heads_first,
    "not on 16 bytes": shifted,
    "expanded": expanded,
}


def layouts(look: Look) -> str:
    """Inputs that lie in memory otherwise, and 16-bit offsets and logits under autocast."""
    require_kernels(look)
    for kind, full in (("encoder", Case(MIDDLE, 2)), ("decoder", Case(MIDDLE, 2, queries=300))):
        case = fitted(full, look)
        if kind == "encoder":  # shared reference points have to keep the points off the borders
            assert torch.equal(*case.inputs(0)[1][:2])
        for dtype in (torch.float32, torch.bfloat16):
            inputs = given(case, dtype, look.device)
            for name, laid in LAYOUTS.items():
                if name != "expanded" or kind == "encoder":
                    agree(look, f"{kind}, {short(dtype)}, {name}", case, laid(inputs), LIMITS[dtype])
        for dtype in (torch.bfloat16, torch.float16):
            inputs = of_one_product(in_quarter_steps(case, dtype, look.device))
            with torch.autocast(look.device, dtype):
                mine = results(ops.ms_deform_attn_fused, case.shapes, inputs)
            doubles = [tensor.double() for tensor in inputs]
            wrong = errors(mine, results(reference.ms_deform_attn_fused, case.shapes, doubles))
            place = worst(wrong)
            name = f"{kind}, {short(dtype)} offsets and logits under autocast"
            look.check(name, wrong[place], LIMITS[dtype], array=NAMES[place])
    return "strided, shifted and expanded inputs; 16-bit offsets and logits"


def in_quarter_steps(case: Case, dtype: torch.dtype, device: str) -> list[Tensor]:
    """Inputs of 16 bits whose points keep away from cell borders.

    Offsets are multiples of a quarter, which 16 bits hold, and reference points lie between them.
    """
    value, references, offsets, logits, upstream = given(case, torch.float32, device)
    sizes = torch.tensor([(width, height) for height, width in case.shapes], device=device)
    generator = torch.Generator(device).manual_seed(1)
    inside = 0.05 + 0.15 * torch.rand(references.shape, generator=generator, device=device)
    references = ((references * sizes - 0.5).floor() + 0.5 + inside) / sizes
    offsets = (offsets * 4).round().clamp(-63, 63) / 4
    halves = [tensor.to(dtype) for tensor in (value, offsets, logits, upstream)]
    return [halves[0], references, *halves[1:]]


def odd_inputs(look: Look) -> str:
    """Nothing to do; points that are nowhere; all points outside."""
    require_kernels(look)
    for kind, full in (
        ("encoder", Case(MIDDLE, 2)),
        ("decoder", Case(MIDDLE, 2, queries=300)),
        ("generic", Case(MIDDLE[:3], 2, queries=300, dim=20, points=3)),
    ):
        case = fitted(full, look)
        for dtype in (torch.float32, torch.bfloat16):
            told, inputs = f"{kind}, {short(dtype)}", given(case, dtype, look.device)
            empty(look, told, case, inputs)
            scattered = [tensor.clone() for tensor in inputs]
            sprinkle(scattered[2])
            agree(look, f"{told}, points nowhere", case, scattered, LIMITS[dtype])
            agree(
                look, f"{told}, plain op, points nowhere", case, plain(case, scattered), LIMITS[dtype], False
            )
            outside = [*inputs[:2], inputs[2] + 1e4, *inputs[3:]]
            agree(look, f"{told}, all points outside", case, outside, LIMITS[dtype])
    return "empty inputs, NaN, infinities and points outside"


def sprinkle(offsets: Tensor) -> None:
    """Put every 13th coordinate nowhere."""
    flat = offsets.view(-1)
    places = torch.arange(0, flat.numel(), 13, device=flat.device)
    values = torch.tensor(NOWHERE, dtype=flat.dtype, device=flat.device)
    flat[places] = values[torch.arange(len(places), device=flat.device) % len(NOWHERE)]


def empty(look: Look, told: str, case: Case, inputs: Sequence[Tensor]) -> None:
    """No images, no queries, neither."""
    for images, queries in ((0, None), (None, 0), (0, 0)):
        few = [inputs[0][:images], *(tensor[:images, :queries] for tensor in inputs[1:])]
        found = results(ops.ms_deform_attn_fused, case.shapes, few)
        shape = (*few[2].shape[:2], inputs[-1].shape[-1])
        wrong = tuple(found[0].shape) != shape or any((grad != 0).any().item() for grad in found)
        look.check(
            f"{told}, {images if images == 0 else 'some'} images, {queries} queries", float(wrong), 0.0
        )


def deterministic(look: Look) -> str:
    """Bit-equal from run to run under PyTorch's setting, and right."""
    require_kernels(look)
    for kind, full in (
        ("encoder", Case(MIDDLE, 2)),
        ("decoder", Case(MIDDLE, 2, queries=300)),
        ("generic", Case(MIDDLE[:3], 2, queries=300, dim=20, points=3)),
    ):
        case = fitted(full, look)
        for dtype in (torch.float32, torch.bfloat16):
            inputs = given(case, dtype, look.device)
            doubles = [tensor.double() for tensor in inputs]
            exact = results(reference.ms_deform_attn_fused, case.shapes, doubles)
            torch.use_deterministic_algorithms(True, warn_only=True)
            runs = [results(ops.ms_deform_attn_fused, case.shapes, inputs) for _ in range(4)]
            torch.use_deterministic_algorithms(False)
            told = f"{kind}, {short(dtype)}"
            other = sum(not torch.equal(a, b) for run in runs[1:] for a, b in zip(runs[0], run, strict=True))
            look.check(f"{told}, arrays that differ from run to run", float(other), 0.0)
            wrong = errors(runs[0], exact)
            look.check(told, wrong[worst(wrong)], LIMITS[dtype], array=NAMES[worst(wrong)])
    return "the same bits four times, and right"


def large(look: Look) -> str:
    """Values and offsets of more than 2^31 elements: the last image is as it is alone, and right."""
    require_kernels(look)
    case = fitted(Case(bench.B, 400), look)
    if look.device == "cuda" and torch.cuda.mem_get_info()[0] < 80e9:
        raise NotHere("needs 80 GB of the GPU's memory free")
    device, levels, cells = look.device, len(case.shapes), sum(h * w for h, w in case.shapes)
    generator = torch.Generator(device).manual_seed(0)

    def draw(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(shape, generator=generator, device=device, dtype=dtype)

    half = torch.bfloat16
    value = draw(case.batch, cells, case.heads, case.dim, dtype=half)
    last = given(replace(case, batch=1), half, device)
    where = 2 * draw(case.batch, cells, case.heads, levels, case.points, 2)
    logits = draw(case.batch, cells, case.heads, levels * case.points)
    upstream = draw(case.batch, cells, case.heads * case.dim, dtype=half)
    inputs = [value, last[1].expand(case.batch, -1, -1, -1).contiguous(), where, logits, upstream]
    for tensor, mine in zip(inputs, last, strict=True):
        tensor[-1:] = mine
    biggest = max(tensor.numel() for tensor in inputs)
    whole = [tensor[-1:].clone() for tensor in results(ops.ms_deform_attn_fused, case.shapes, inputs)]
    exact = results(reference.ms_deform_attn_fused, case.shapes, [tensor.double() for tensor in last])
    wrong = errors(whole, exact)
    place = worst(wrong)
    name = f"the last of {case.batch} images, {biggest / 2**31:.2f} times 2^31 elements"
    look.check(name, wrong[place], LIMITS[half], array=NAMES[place])
    return name


def streams_and_graphs(look: Look) -> str:
    """Nothing waits for the GPU, a graph replays with new inputs, streams do not disturb each other."""
    require_kernels(look)
    shapes, limit = MIDDLE, LIMITS[torch.float32]
    kinds = {"encoder": Case(shapes, 2), "decoder": Case(shapes, 2, queries=300)}
    kinds["generic"] = Case(shapes[:3], 2, queries=300, dim=20, points=3)
    alone: list[Any] = []
    for kind, case in kinds.items():
        first, second = (given(case, torch.float32, look.device, seed) for seed in (0, 1))
        expected = results(ops.ms_deform_attn_fused, case.shapes, second)
        torch.cuda.set_sync_debug_mode("error")
        results(ops.ms_deform_attn_fused, case.shapes, first)
        torch.cuda.set_sync_debug_mode("default")
        wrong = errors(replayed(case, first, second), [tensor.double() for tensor in expected])
        look.check(f"{kind}, a graph replayed with new inputs", max(wrong), limit)
        alone.append((kind, case, second, expected))
    torch.cuda.synchronize()
    together = []
    for _, case, inputs, _ in alone * 4:
        with torch.cuda.stream(torch.cuda.Stream()):
            together.append(results(ops.ms_deform_attn_fused, case.shapes, inputs))
    torch.cuda.synchronize()
    for number, (mine, (kind, _, _, expected)) in enumerate(zip(together, alone * 4, strict=True)):
        wrong = errors(mine, [tensor.double() for tensor in expected])
        look.check(f"{kind}, stream {number} of {len(together)}", max(wrong), limit)
    return "no waits, graphs, streams"


def replayed(case: Case, first: Sequence[Tensor], second: Sequence[Tensor]) -> list[Tensor]:
    """The results of a graph captured with the first inputs and replayed with the second."""
    held = [tensor.clone() for tensor in first]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        results(ops.ms_deform_attn_fused, case.shapes, held)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = results(ops.ms_deform_attn_fused, case.shapes, held)
    for tensor, new in zip(held, second, strict=True):
        tensor.copy_(new)
    graph.replay()
    torch.cuda.synchronize()
    return found
