"""What the ops promise to PyTorch (opcheck, compile, autocast) and to callers (the same refusals for real, fake and meta tensors)."""

from __future__ import annotations

import pytest
import torch
from golden import assert_close
from ops_cases import BACKENDS, make_case, needs_cuda, needs_native, plain_inputs, use_backend
from torch._subclasses.fake_tensor import FakeTensorMode

from mrt.ops import ms_deform_attn, ms_deform_attn_fused

SHAPES = ((4, 6), (2, 3))
FLAT = [4, 6, 2, 3]
DEVICES = [pytest.param("cpu", marks=needs_native), pytest.param("cuda", marks=needs_cuda)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("value_dtype", [torch.float32, torch.bfloat16])
def test_opcheck(device, value_dtype):
    case = make_case(dtype=torch.float32, value_dtype=value_dtype, device=device)
    value, *points = plain_inputs(case, SHAPES)
    ops = torch.ops.mrt
    torch.library.opcheck(ops.ms_deform_attn, (value, FLAT, *points))
    torch.library.opcheck(ops.ms_deform_attn_fused, (case[0], FLAT, *case[1:]))
    upstream = torch.randn(2, 5, 16, device=device).to(value_dtype)
    value, *points = (tensor.detach() for tensor in (value, *points))
    torch.library.opcheck(ops.ms_deform_attn_backward, (upstream, value, FLAT, *points))
    torch.library.opcheck(ops.ms_deform_attn_fused_backward, (upstream, value, FLAT, *(tensor.detach() for tensor in case[1:])))


@pytest.mark.parametrize("device, backend", BACKENDS)
def test_compile_without_graph_breaks(monkeypatch, device, backend):
    use_backend(monkeypatch, device, backend)
    torch._dynamo.reset()

    def layer(value, *points):
        return ms_deform_attn_fused(value * 2, SHAPES, *points) + 1

    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)
    for queries in (5, 7):
        case = make_case(dtype=torch.float32, queries=queries, device=device)
        output = compiled(*case)
        output.square().sum().backward()
        again = [tensor.detach().clone().requires_grad_() for tensor in case]
        expected = layer(*again)
        expected.square().sum().backward()
        assert_close(output, expected.detach().cpu())
        for mine, other in zip(case, again, strict=True):
            assert_close(mine.grad, other.grad.cpu())


@pytest.mark.parametrize("device, backend", BACKENDS)
def test_autocast(monkeypatch, device, backend):
    """Under autocast a layer's value is 16-bit and so is what its linear layers say about points; the latter are raised to float32."""
    use_backend(monkeypatch, device, backend)
    value, references, offsets, logits = make_case(dtype=torch.float32, value_dtype=torch.bfloat16, device=device)
    with torch.autocast(device, torch.bfloat16):
        output = ms_deform_attn_fused(value, SHAPES, references, offsets.bfloat16(), logits.bfloat16())
    assert output.dtype == torch.bfloat16
    output.float().sum().backward()
    assert (value.grad.dtype, offsets.grad.dtype) == (torch.bfloat16, torch.float32)
    expected = ms_deform_attn_fused(value.float(), SHAPES, references, offsets.bfloat16().float(), logits.bfloat16().float())
    assert_close(output.float(), expected.detach().cpu(), rel=1e-2)


def wrong_inputs():
    """(what is wrong, op, changes to the good inputs, what the message must say)."""
    empty = torch.empty
    f64 = torch.float64
    return [
        ("3-dimensional value", "plain", {0: empty(2, 30, 16)}, "value must have 4 dimensions"),
        ("integer value", "plain", {0: empty(2, 30, 2, 8, dtype=torch.int64)}, "got torch.int64"),
        ("no channels", "plain", {0: empty(2, 30, 2, 0)}, "at least one head and one channel"),
        ("cells that do not add up", "plain", {0: empty(2, 31, 2, 8)}, "30 cells, but value .* S = 31"),
        ("no levels", "plain", {1: ()}, "1 to 16 levels, got 0"),
        ("17 levels", "plain", {1: ((1, 1),) * 13 + ((4, 4),) + ((1, 1),) * 3}, "1 to 16 levels, got 17"),
        ("a level without cells", "plain", {1: ((4, 6), (0, 3))}, r"got \(0, 3\)"),
        ("a level that is no pair", "plain", {1: ((4, 6), (6,))}, r"got \(6,\)"),
        ("5-dimensional locations", "plain", {2: empty(2, 5, 2, 2, 6)}, "sampling_locations must have 6 dimensions"),
        ("locations of another batch", "plain", {2: empty(1, 5, 2, 2, 3, 2)}, r"= \(2, 5, 2, 2, 3, 2\), got \(1, 5, 2, 2, 3, 2\)"),
        ("no points", "plain", {2: empty(2, 5, 2, 2, 0, 2), 3: empty(2, 5, 2, 2, 0)}, "at least one sampling point"),
        ("weights of another size", "plain", {3: empty(2, 5, 2, 2, 4)}, "attention_weights must have shape"),
        ("double weights", "plain", {3: empty(2, 5, 2, 2, 3, dtype=f64)}, "attention_weights must be torch.float32 where value"),
        ("16-bit locations", "plain", {2: empty(2, 5, 2, 2, 3, 2, dtype=torch.bfloat16)}, "16-bit locations miss their cell"),
        ("float locations for a double value", "plain", {0: empty(2, 30, 2, 8, dtype=f64)}, "must be torch.float64"),
        ("weights on another device", "plain", {3: empty(2, 5, 2, 2, 3, device="meta")}, "is on meta"),
        ("references of another size", "fused", {2: empty(2, 5, 2, 4)}, r"reference_points must have shape \(N, Q, L, 2\)"),
        ("offsets of another size", "fused", {3: empty(2, 5, 3, 2, 3, 2)}, "sampling_offsets must have shape"),
        ("logits per level", "fused", {4: empty(2, 5, 2, 2, 3)}, r"attention_logits must have shape \(N, Q, M, L\*P\) = \(2, 5, 2, 6\)"),
        ("half logits", "fused", {4: empty(2, 5, 2, 6, dtype=torch.float16)}, r"pass attention_logits.to\(torch.float32\)"),
    ]


@pytest.mark.parametrize("op, changes, message", [case[1:] for case in wrong_inputs()], ids=[case[0] for case in wrong_inputs()])
def test_wrong_input_is_refused_alike(op, changes, message):
    case = make_case(dtype=torch.float32)
    inputs = list(case if op == "fused" else plain_inputs(case, SHAPES))
    inputs.insert(1, SHAPES)
    for position, replacement in changes.items():
        inputs[position] = replacement
    function = ms_deform_attn_fused if op == "fused" else ms_deform_attn
    with pytest.raises((ValueError, TypeError), match=message) as real:
        function(*inputs)
    with FakeTensorMode() as mode, pytest.raises((ValueError, TypeError)) as fake:
        function(*(mode.from_tensor(item) if isinstance(item, torch.Tensor) else item for item in inputs))
    assert (type(fake.value), str(fake.value)) == (type(real.value), str(real.value))


@needs_native
@pytest.mark.parametrize("op, changes, message", [case[1:] for case in wrong_inputs()], ids=[case[0] for case in wrong_inputs()])
def test_the_kernels_refuse_what_the_checks_refuse(op, changes, message):
    """torch.ops.mrt.* called directly, with real tensors (checked in C++) and on the meta device (checked in Python)."""
    case = make_case(dtype=torch.float32)
    inputs = [item.detach() if isinstance(item, torch.Tensor) else item for item in (case if op == "fused" else plain_inputs(case, SHAPES))]
    inputs.insert(1, SHAPES)
    for position, replacement in changes.items():
        inputs[position] = replacement
    if any(isinstance(item, torch.Tensor) and item.is_meta for item in inputs):
        pytest.skip("PyTorch sends mixed devices to the meta kernel, which cannot crash")
    inputs[1] = [side for shape in inputs[1] for side in shape]
    name = "ms_deform_attn_fused" if op == "fused" else "ms_deform_attn"
    queries = inputs[-1].shape[1]
    upstream = torch.zeros(2, queries, 16)
    for function, arguments in ((getattr(torch.ops.mrt, name), inputs), (getattr(torch.ops.mrt, name + "_backward"), [upstream, *inputs])):
        with pytest.raises(RuntimeError, match="mrt"):
            function(*arguments)
        with pytest.raises((ValueError, TypeError)):
            function(*(item.to("meta") if isinstance(item, torch.Tensor) else item for item in arguments))


@needs_native
def test_a_gradient_of_the_wrong_shape_is_refused():
    value, *points = (tensor.detach() for tensor in plain_inputs(make_case(dtype=torch.float32), SHAPES))
    for upstream in (torch.zeros(2, 5, 15), torch.zeros(2, 5, 16, dtype=torch.float64)):
        with pytest.raises(RuntimeError, match="grad_output"):
            torch.ops.mrt.ms_deform_attn_backward(upstream, value, FLAT, *points)
        with pytest.raises(ValueError, match="grad_output"):
            torch.ops.mrt.ms_deform_attn_backward(upstream.to("meta"), value.to("meta"), FLAT, *(tensor.to("meta") for tensor in points))


def test_a_tensor_of_shapes_is_refused():
    value, *points = plain_inputs(make_case(dtype=torch.float32), SHAPES)
    with pytest.raises(TypeError, match="tolist"):
        ms_deform_attn(value, torch.tensor(SHAPES), *points)
