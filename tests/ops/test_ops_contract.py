"""The ops' contract with PyTorch (opcheck, compile, autocast) and callers (the same errors for all tensors).

Errors must be the same for real, fake and meta tensors.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from golden import assert_close
from ops_cases import BACKENDS, NATIVE_CPU, make_case, needs_cuda, needs_native, plain_inputs, use_backend
from torch._subclasses.fake_tensor import FakeTensorMode

from mrt.ops import ms_deform_attn, ms_deform_attn_fused

SHAPES = ((4, 6), (2, 3))
FLAT = [4, 6, 2, 3]
COMPILED = []
for _backend in BACKENDS:
    for _dynamic, _fused in ((True, True), (False, False), (True, False), (False, True)):
        if _backend.id == "python" and _dynamic != _fused:
            continue  # plain PyTorch takes seconds for each case, so it has only two of the four
        _name = f"{_backend.id}-{'dynamic' * _dynamic}-{'fused' * _fused}"
        _values = (*_backend.values, _dynamic, _fused)
        COMPILED.append(pytest.param(*_values, marks=_backend.marks, id=_name))
DEVICES = [pytest.param("cpu", marks=needs_native), pytest.param("cuda", marks=needs_cuda)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("value_dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_opcheck(device, value_dtype):
    """Schemas, autograd registration, fake and real shapes, static and dynamic tracing of all ops."""
    dtype = torch.float64 if value_dtype == torch.float64 else torch.float32
    opcheck_all(make_case(dtype=dtype, value_dtype=value_dtype, device=device))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("batch, queries", [(0, 5), (2, 0), (1, 1)])
def test_opcheck_of_small_sizes(device, batch, queries):
    case = make_case(batch=batch, queries=queries, dtype=torch.float32, device=device)
    opcheck_all(case, tests=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("device", DEVICES)
def test_opcheck_of_strided_inputs(device):
    case = [
        tensor.detach().transpose(1, 2).contiguous().transpose(1, 2)
        for tensor in make_case(dtype=torch.float32, device=device)
    ]
    assert not any(tensor.is_contiguous() for tensor in case)
    opcheck_all([tensor.requires_grad_() for tensor in case])


ALL_CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")


def opcheck_all(case, tests=ALL_CHECKS):
    value, *points = plain_inputs(case, SHAPES)
    ops, options = torch.ops.mrt, {"test_utils": tests}
    torch.library.opcheck(ops.ms_deform_attn, (value, FLAT, *points), **options)
    torch.library.opcheck(ops.ms_deform_attn_fused, (case[0], FLAT, *case[1:]), **options)
    upstream = torch.randn(value.shape[0], points[0].shape[1], 16, device=value.device).to(value.dtype)
    value, *points = (tensor.detach() for tensor in (value, *points))
    torch.library.opcheck(ops.ms_deform_attn_backward, (upstream, value, FLAT, *points), **options)
    points = [tensor.detach() for tensor in case[1:]]
    torch.library.opcheck(ops.ms_deform_attn_fused_backward, (upstream, value, FLAT, *points), **options)


@pytest.mark.parametrize("device, backend, dynamic, fused", COMPILED)
def test_compile_without_graph_breaks(monkeypatch, device, backend, dynamic, fused):
    """Forward and backward, for two numbers of queries and two pyramids.

    A graph that was traced for one size must not be used for another if it does not fit.
    """
    use_backend(monkeypatch, device, backend)
    torch._dynamo.reset()
    op = ms_deform_attn_fused if fused else ms_deform_attn

    def layer(value, shapes, *points):
        return op(value * 2, shapes, *points) + 1

    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for queries, shapes in ((5, SHAPES), (7, SHAPES), (7, ((3, 5), (2, 4)))):
        case = make_case(dtype=torch.float32, queries=queries, shapes=shapes, device=device)
        inputs = case if fused else plain_inputs(case, shapes)
        output = compiled(inputs[0], shapes, *inputs[1:])
        output.square().sum().backward()
        again = [tensor.detach().clone().requires_grad_() for tensor in inputs]
        expected = layer(again[0], shapes, *again[1:])
        expected.square().sum().backward()
        assert_close(output, expected.detach().cpu())
        for mine, other in zip(inputs, again, strict=True):
            assert_close(mine.grad, other.grad.cpu())


@pytest.mark.parametrize("device, backend", BACKENDS)
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("value_dtype", [torch.float32, torch.bfloat16])
def test_autocast(monkeypatch, device, backend, fused, value_dtype):
    """Under autocast, 16-bit outputs of linear layers are cast to float32; the output has value's dtype."""
    use_backend(monkeypatch, device, backend)
    case = make_case(dtype=torch.float32, value_dtype=value_dtype, device=device)
    value, *points = case if fused else plain_inputs(case, SHAPES)
    op = ms_deform_attn_fused if fused else ms_deform_attn
    with torch.autocast(device, torch.bfloat16):
        output = op(value, SHAPES, points[0], *(tensor.bfloat16() for tensor in points[1:]))
        # Autocast does not apply to a float64 value, so points must be float64 as well.
        with pytest.raises(TypeError, match=r"must be torch\.float64"):
            op(value.double(), SHAPES, *points)
    assert output.dtype == value_dtype
    output.float().sum().backward()
    assert value.grad.dtype == value_dtype and all(tensor.grad.dtype == torch.float32 for tensor in points)
    expected = op(value.float(), SHAPES, points[0], *(tensor.bfloat16().float() for tensor in points[1:]))
    assert_close(output.float(), expected.detach().cpu(), rel=1e-2)  # bfloat16's rounding


@needs_native
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("value_dtype", [torch.float32, None], ids=["float32 value", "16-bit value"])
def test_offsets_and_logits_are_kept_as_they_were_given(dtype, value_dtype):
    """Under autocast the fused op stores no float32 copies; results are bit for bit as with such copies."""
    case = make_case(dtype=torch.float32, value_dtype=value_dtype or dtype, queries=30)
    value, references, offsets, logits = (tensor.detach() for tensor in case)
    given = [value, references, offsets.to(dtype), logits.to(dtype)]
    cotangent = torch.randn(2, 30, 16).to(value.dtype)

    def run(raise_first: bool) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        leaves, kept = [tensor.clone().requires_grad_() for tensor in given], []
        points = [leaf.float() for leaf in leaves[1:]] if raise_first else leaves[1:]

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            kept.append(tensor)
            return tensor

        hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
        with hooks, torch.autocast("cpu", dtype):
            output = ms_deform_attn_fused(leaves[0], SHAPES, *points)
        return kept, [output.detach(), *torch.autograd.grad(output, leaves, cotangent)]

    kept, ours = run(raise_first=False)
    _, theirs = run(raise_first=True)
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.equal(mine, other) and mine.dtype == other.dtype
    assert [tensor.dtype for tensor in kept] == [value.dtype, torch.float32, dtype, dtype]


def wrong_inputs():
    """(name, op, changes to valid inputs, expected message)."""
    empty, f64, bf16 = torch.empty, torch.float64, torch.bfloat16
    shape = r"= \(2, 5, 2, 2, 3, 2\)"
    return [
        ("3-dimensional value", "plain", {0: empty(2, 30, 16)}, "value must have 4 dimensions"),
        ("integer value", "plain", {0: empty(2, 30, 2, 8, dtype=torch.int64)}, "got torch.int64"),
        ("no channels", "plain", {0: empty(2, 30, 2, 0)}, "at least one head and one channel"),
        ("cells that do not add up", "plain", {0: empty(2, 31, 2, 8)}, "30 cells, but value .* S = 31"),
        ("no levels", "plain", {1: ()}, "1 to 16 levels, got 0"),
        ("17 levels", "plain", {1: ((1, 1),) * 13 + ((4, 4),) + ((1, 1),) * 3}, "1 to 16 levels, got 17"),
        ("a level without cells", "plain", {1: ((4, 6), (0, 3))}, r"got \(0, 3\)"),
        ("a level that is no pair", "plain", {1: ((4, 6), (6,))}, r"got \(6,\)"),
        ("levels in one row", "plain", {1: (4, 6, 2, 3)}, r"\(H, W\), two integers of at least 1, got 4"),
        ("a level of fractions", "plain", {1: ((4, 6), (2.0, 3.0))}, r"got \(2.0, 3.0\)"),
        ("a level of tensors", "fused", {1: ((4, 6), (torch.tensor(2), torch.tensor(3)))}, r"two integers"),
        ("a negative level", "fused", {1: ((-4, -6), (2, 3))}, r"got \(-4, -6\)"),
        ("complex value", "fused", {0: empty(2, 30, 2, 8, dtype=torch.complex64)}, "got torch.complex64"),
        ("no heads", "fused", {0: empty(2, 30, 0, 8)}, "at least one head and one channel"),
        (
            "a value of another batch",
            "fused",
            {0: empty(3, 30, 2, 8)},
            r"= \(3, 5.*, got \(2, 5, 2, 2, 3, 2\)",
        ),
        ("a level too few", "fused", {1: ((5, 6),)}, "sampling_offsets must have shape"),
        ("three-number points", "plain", {2: empty(2, 5, 2, 2, 3, 3)}, r"got \(2, 5, 2, 2, 3, 3\)"),
        ("5-dimensional locations", "plain", {2: empty(2, 5, 2, 2, 6)}, "locations must have 6 dimensions"),
        (
            "locations of another batch",
            "plain",
            {2: empty(1, 5, 2, 2, 3, 2)},
            shape + r", got \(1, 5, 2, 2, 3, 2\)",
        ),
        ("no points", "plain", {2: empty(2, 5, 2, 2, 0, 2), 3: empty(2, 5, 2, 2, 0)}, "one sampling point"),
        ("weights of another size", "plain", {3: empty(2, 5, 2, 2, 4)}, "attention_weights must have shape"),
        (
            "double weights",
            "plain",
            {3: empty(2, 5, 2, 2, 3, dtype=f64)},
            "must be torch.float32 where value",
        ),
        ("16-bit locations", "plain", {2: empty(2, 5, 2, 2, 3, 2, dtype=bf16)}, "16-bit locations miss"),
        (
            "float locations, double value",
            "plain",
            {0: empty(2, 30, 2, 8, dtype=f64)},
            "must be torch.float64",
        ),
        ("weights on another device", "plain", {3: empty(2, 5, 2, 2, 3, device="meta")}, "is on meta"),
        (
            "references of another size",
            "fused",
            {2: empty(2, 5, 2, 4)},
            r"reference_points .* \(N, Q, L, 2\)",
        ),
        ("offsets of another size", "fused", {3: empty(2, 5, 3, 2, 3, 2)}, "offsets must have shape"),
        ("logits per level", "fused", {4: empty(2, 5, 2, 2, 3)}, r"\(N, Q, M, L\*P\) = \(2, 5, 2, 6\)"),
        (
            "16-bit logits",
            "fused",
            {4: empty(2, 5, 2, 6, dtype=bf16)},
            r"attention_logits.to\(torch.float32\)",
        ),
    ]


@pytest.mark.parametrize(
    "op, changes, message", [case[1:] for case in wrong_inputs()], ids=[case[0] for case in wrong_inputs()]
)
def test_wrong_input_is_refused_alike(monkeypatch, op, changes, message):
    """The same error on every backend, for real and for fake tensors."""
    case = make_case(dtype=torch.float32)
    inputs = list(case if op == "fused" else plain_inputs(case, SHAPES))
    inputs.insert(1, SHAPES)
    for position, replacement in changes.items():
        inputs[position] = replacement
    function = ms_deform_attn_fused if op == "fused" else ms_deform_attn
    said = set()
    for backend in ("python", "cpu") if NATIVE_CPU else ("python",):
        use_backend(monkeypatch, "cpu", backend)
        with pytest.raises((ValueError, TypeError), match=message) as real:
            function(*inputs)
        with FakeTensorMode() as mode, pytest.raises((ValueError, TypeError)) as fake:
            function(*(mode.from_tensor(item) if isinstance(item, torch.Tensor) else item for item in inputs))
        said |= {(type(error.value), str(error.value)) for error in (real, fake)}
    assert len(said) == 1


@needs_native
@pytest.mark.parametrize(
    "op, changes, message", [case[1:] for case in wrong_inputs()], ids=[case[0] for case in wrong_inputs()]
)
def test_the_kernels_refuse_what_the_checks_refuse(op, changes, message):
    """torch.ops.mrt.* called directly: real tensors are checked in C++, meta tensors in Python."""
    case = make_case(dtype=torch.float32)
    inputs = [tensor.detach() for tensor in (case if op == "fused" else plain_inputs(case, SHAPES))]
    inputs.insert(1, SHAPES)
    for position, replacement in changes.items():
        inputs[position] = replacement
    if any(isinstance(item, torch.Tensor) and item.is_meta for item in inputs):
        pytest.skip("PyTorch sends mixed devices to the meta kernel, which cannot crash")
    if not all(isinstance(shape, tuple) and all(type(side) is int for side in shape) for shape in inputs[1]):
        pytest.skip("the schema takes a flat list of integers")
    inputs[1] = [side for shape in inputs[1] for side in shape]
    name = "ms_deform_attn_fused" if op == "fused" else "ms_deform_attn"
    queries = inputs[-1].shape[1]
    upstream = torch.zeros(2, queries, 16)
    for function, arguments in (
        (getattr(torch.ops.mrt, name), inputs),
        (getattr(torch.ops.mrt, name + "_backward"), [upstream, *inputs]),
    ):
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
        upstream, *meta = (tensor.to("meta") for tensor in (upstream, value, *points))
        with pytest.raises(ValueError, match="grad_output"):
            torch.ops.mrt.ms_deform_attn_backward(upstream, meta[0], FLAT, *meta[1:])


def test_a_tensor_of_shapes_is_refused():
    value, *points = plain_inputs(make_case(dtype=torch.float32), SHAPES)
    with pytest.raises(TypeError, match="tolist"):
        ms_deform_attn(value, torch.tensor(SHAPES), *points)


def test_numpy_integers_are_integers():
    value, *points = plain_inputs(make_case(dtype=torch.float32), SHAPES)
    expected = ms_deform_attn(value, SHAPES, *points)
    assert torch.equal(ms_deform_attn(value, np.array(SHAPES), *points), expected)


@pytest.mark.parametrize("cells", [2**31 - 2, 2**31 - 1])
def test_cells_of_an_image_are_numbered_with_32_bits(cells):
    """One cell more than the kernels can index is an error for every backend. Meta tensors need no memory."""
    value = torch.empty(1, cells, 1, 1, device="meta")
    locations = torch.empty(1, 1, 1, 1, 1, 2, device="meta")
    if cells == 2**31 - 2:
        assert ms_deform_attn(value, [(1, cells)], locations, locations[..., 0]).shape == (1, 1, 1)
    else:
        with pytest.raises(ValueError, match="at most 2147483646 cells an image, got S = 2147483647"):
            ms_deform_attn(value, [(1, cells)], locations, locations[..., 0])
