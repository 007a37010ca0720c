"""The kernels compared with the PyTorch reference in float64, for all sizes and dtypes.

Points are not near cell borders, where gradients are discontinuous.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ops_cases import (
    NATIVE_CPU,
    TOLERANCE,
    make_case,
    needs_cuda,
    needs_native,
    plain_inputs,
    relative_error,
)

from mrt.ops import native, reference

sizes = st.tuples(st.integers(1, 6), st.integers(1, 6))
DEVICES = [pytest.param("cpu", marks=needs_native), pytest.param("cuda", marks=needs_cuda)]


def compare(case, shapes, *, fused, value_dtype, device="cpu"):
    """Compare the kernel in ``value_dtype`` with the reference in float64 on the same (rounded) numbers.

    Compared are the output and all gradients.
    """
    inputs = case if fused else plain_inputs(case, shapes)
    point_dtype = torch.float64 if value_dtype == torch.float64 else torch.float32
    ours = [
        tensor.detach().to(device, value_dtype if i == 0 else point_dtype).requires_grad_()
        for i, tensor in enumerate(inputs)
    ]
    exact = [tensor.detach().double().requires_grad_() for tensor in ours]
    flat = [side for shape in shapes for side in shape]
    name = "ms_deform_attn_fused" if fused else "ms_deform_attn"
    output = getattr(native, name)(ours[0], flat, *ours[1:])
    expected = getattr(reference, name)(exact[0], shapes, *exact[1:])
    assert output.dtype == value_dtype and output.shape == expected.shape
    upstream = torch.randn_like(expected).to(value_dtype)
    output.backward(upstream)
    expected.backward(upstream.double())
    assert relative_error(output, expected) <= TOLERANCE[value_dtype], "output"
    for name, mine, theirs in zip(("value", "points 1", "points 2", "points 3"), ours, exact, strict=False):
        assert mine.grad.dtype == mine.dtype
        # Logits' gradients are differences of numbers of about 1: nothing but rounding if these are equal.
        floor = 1.0 if fused and mine is ours[-1] else 1e-3
        error = relative_error(mine.grad, theirs.grad, floor)
        assert error <= TOLERANCE[value_dtype], f"gradient of {name}"


@pytest.mark.skipif(not NATIVE_CPU, reason="no C++ kernels")
@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    batch=st.integers(0, 3),
    queries=st.integers(0, 9),
    heads=st.integers(1, 3),
    dim=st.integers(1, 70),
    points=st.integers(1, 5),
    shapes=st.lists(sizes, min_size=1, max_size=6),
    spread=st.floats(0, 8),
    fused=st.booleans(),
    dtype=st.sampled_from(list(TOLERANCE)),
    seed=st.integers(0, 1000),
)
def test_any_size(fused, dtype, shapes, **options):
    compare(make_case(shapes=shapes, **options), shapes, fused=fused, value_dtype=dtype)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(
    "heads, dim, levels, points", [(8, 32, 4, 4), (4, 24, 3, 4), (1, 5, 1, 1), (2, 130, 2, 9)]
)
def test_usual_sizes(device, dtype, fused, heads, dim, levels, points):
    shapes = ((8, 16), (4, 8), (2, 4), (1, 2))[:levels]
    case = make_case(batch=2, queries=40, heads=heads, dim=dim, points=points, shapes=shapes, spread=2)
    compare(case, shapes, fused=fused, value_dtype=dtype, device=device)


@needs_native
@pytest.mark.parametrize("capability", ["avx2", "default"])
def test_lesser_instruction_sets(capability):
    """Kernels that this processor would not choose; PyTorch's setting selects them, once per process."""
    code = """if True:
        import torch
        from ops_cases import make_case
        from test_ops_agreement import compare
        shapes = ((8, 16), (4, 8), (2, 4))
        for heads, dim, points in ((4, 24, 4), (2, 130, 9), (3, 32, 1)):
            case = make_case(queries=21, heads=heads, dim=dim, points=points, shapes=shapes)
            for dtype in (torch.float32, torch.float64):
                compare(case, shapes, fused=True, value_dtype=dtype)
    """
    tests = Path(__file__).parents[1]
    variables = {**os.environ, "ATEN_CPU_CAPABILITY": capability, "OMP_NUM_THREADS": "1"}
    variables["PYTHONPATH"] = os.pathsep.join(map(str, (tests.parent, tests, tests / "ops")))
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@needs_native
def test_inputs_need_not_be_contiguous():
    shapes = ((4, 6), (2, 3))
    value, *points = (tensor.detach() for tensor in make_case(shapes=shapes, dtype=torch.float32))
    flat = [4, 6, 2, 3]
    expected = native.ms_deform_attn_fused(value, flat, *points)
    value = value.transpose(1, 2).contiguous().transpose(1, 2)
    strided = (tensor.transpose(0, 1).contiguous().transpose(0, 1) for tensor in points)
    assert torch.equal(native.ms_deform_attn_fused(value, flat, *strided), expected)


@needs_native
def test_threads_do_not_change_the_result():
    shapes = ((8, 16), (4, 8), (2, 4))
    case = make_case(batch=2, queries=168, heads=4, dim=24, points=4, shapes=shapes, dtype=torch.float32)
    flat = [side for shape in shapes for side in shape]
    results, threads = [], torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            output = native.ms_deform_attn_fused(case[0], flat, *case[1:])
            results.append((output, *torch.autograd.grad(output.square().sum(), case)))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(one, three) for one, three in zip(*results, strict=True))
