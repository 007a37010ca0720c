"""Tests that need a GPU: real threads, streams, graphs, compute-sanitizer.

The op's other tests use a GPU too, if there is one.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ops_cases import TOLERANCE, make_case, needs_cuda, needs_native, relative_error
from torch.utils._python_dispatch import TorchDispatchMode

from mrt.ops import ms_deform_attn_fused

SHAPES = ((20, 30), (10, 15), (5, 8), (3, 4))
CELLS = sum(height * width for height, width in SHAPES)
# queries, D, P: the fast decoder and encoder, and the generic kernel
KINDS = {
    "decoder": (50, 32, 4),
    "encoder": (CELLS, 32, 4),
    "wide encoder": (CELLS, 64, 4),
    "generic": (50, 24, 3),
}


def case_of(kind, *, device="cuda", value_dtype=torch.float32, seed=0):
    queries, dim, points = KINDS[kind]
    sizes = {"batch": 2, "heads": 4, "queries": queries, "dim": dim, "points": points, "shapes": SHAPES}
    dtypes = {"dtype": torch.float32, "value_dtype": value_dtype}
    return make_case(**sizes, **dtypes, spread=2, device=device, seed=seed)


def run(case):
    """The output and all gradients."""
    output = ms_deform_attn_fused(case[0], SHAPES, *case[1:])
    return [output, *torch.autograd.grad(output, case, torch.ones_like(output))]


@pytest.fixture
def deterministic(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


class Calls(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.seen.append((function.name(), args))
        return function(*args, **(kwargs or {}))


@needs_native
@pytest.mark.parametrize("asked", [False, True])
def test_pytorchs_setting_reaches_the_kernels(request, asked):
    """The backward op is called with the right flag. Needs no GPU."""
    if asked:
        request.getfixturevalue("deterministic")
    with Calls() as calls:
        run(case_of("decoder", device="cpu"))
    flags = [args[6:] for name, args in calls.seen if name == "mrt::ms_deform_attn_fused_backward"]
    assert flags == [(True,) if asked else ()]  # a default argument is not passed on


@needs_cuda
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value_dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_cpu_agrees(kind, value_dtype):
    case = case_of(kind, value_dtype=value_dtype)
    there = run([tensor.detach().cpu().requires_grad_() for tensor in case])
    for mine, theirs in zip(run(case), there, strict=True):
        error = relative_error(mine.detach(), theirs.detach().double(), roundings=2)  # both are rounded
        assert error <= 2 * TOLERANCE[value_dtype]


@needs_cuda
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value_dtype", [torch.float32, torch.bfloat16])
def test_deterministic_runs_are_bit_equal(deterministic, kind, value_dtype):
    case = case_of(kind, value_dtype=value_dtype)
    first = run(case)
    for _ in range(4):
        assert all(torch.equal(one, other) for one, other in zip(first, run(case), strict=True))


@needs_cuda
@pytest.mark.parametrize("kind", KINDS)
def test_a_graph_replays_with_new_inputs(kind):
    case, other = case_of(kind), case_of(kind, seed=1)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # warm-up, as the graph's documentation asks
        run(case)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = run(case)
    with torch.no_grad():
        for tensor, new in zip(case, other, strict=True):
            tensor.copy_(new)
    graph.replay()
    for mine, expected in zip(results, run(other), strict=True):
        assert relative_error(mine.detach(), expected.detach().double()) <= TOLERANCE[torch.float32]


@needs_cuda
def test_streams_do_not_disturb_each_other():
    cases = [case_of(kind, seed=seed) for seed, kind in enumerate([*KINDS, *KINDS])]
    alone = [run(case) for case in cases]
    streams = [torch.cuda.Stream() for _ in cases]
    torch.cuda.synchronize()
    together = []
    for case, stream in zip(cases, streams, strict=True):
        with torch.cuda.stream(stream):
            together.append(run(case))
    torch.cuda.synchronize()
    for one, other in zip(alone, together, strict=True):
        for mine, expected in zip(other, one, strict=True):
            assert relative_error(mine.detach(), expected.detach().double()) <= TOLERANCE[torch.float32]


@needs_cuda
def test_nothing_waits_for_the_gpu():
    case = case_of("encoder")
    run(case)
    torch.cuda.set_sync_debug_mode("error")
    try:
        run(case)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@needs_cuda
@pytest.mark.skipif(shutil.which("compute-sanitizer") is None, reason="needs compute-sanitizer")
@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
@pytest.mark.parametrize("kind", KINDS)
def test_compute_sanitizer_finds_nothing(tool, kind):
    code = (
        "from test_ops_cuda import *\nfor dtype in (torch.float32, torch.bfloat16): "
        f"run(case_of({kind!r}, value_dtype=dtype))"
    )
    tests = Path(__file__).parents[1]
    # Without caching, memcheck knows where each tensor ends.
    variables = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    variables["PYTHONPATH"] = os.pathsep.join(map(str, (tests.parent, tests, tests / "ops")))
    command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "1", sys.executable, "-c", code]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:]
