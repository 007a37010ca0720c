"""``torch.vmap``, ``torch.func`` and second derivatives of the ops, on every backend of this machine."""

from __future__ import annotations

import pytest
import torch
from golden import assert_close
from ops_cases import BACKENDS, make_case, needs_native, plain_inputs, use_backend
from torch.func import grad, jacfwd, jacrev, jvp, vjp, vmap
from torch.utils._python_dispatch import TorchDispatchMode

from mrt.ops import ms_deform_attn, ms_deform_attn_fused

SHAPES = ((4, 6), (2, 3))
EXACT = 1e-13  # both results are in float64 and differ only by the order of additions


def call(fused):
    """One of the ops as a function ``op(value, *points)``."""
    op = ms_deform_attn_fused if fused else ms_deform_attn
    return lambda value, *points: op(value, SHAPES, *points)


def inputs(fused, device, seed=0, **sizes):
    case = make_case(device=device, seed=seed, **sizes)
    return [tensor.detach() for tensor in (case if fused else plain_inputs(case, SHAPES))]


def stacks(fused, device, count=3):
    """A list of ``count`` cases, and their stack."""
    cases = [inputs(fused, device, seed) for seed in range(count)]
    return cases, [torch.stack(tensors) for tensors in zip(*cases, strict=True)]


@pytest.mark.parametrize("device, backend", BACKENDS)
@pytest.mark.parametrize("fused", [False, True])
def test_vmap_is_a_loop(monkeypatch, device, backend, fused):
    use_backend(monkeypatch, device, backend)
    op, (cases, stacked) = call(fused), stacks(fused, device)
    loop = torch.stack([op(*case) for case in cases])
    assert_close(vmap(op)(*stacked), loop.cpu(), rel=EXACT)
    # Other mapped dimensions (of the second input before Q, of the results after N), and two of them.
    dims = (0, 2, *[0] * (len(stacked) - 2))
    elsewhere = [tensor.movedim(0, dim) for tensor, dim in zip(stacked, dims, strict=True)]
    assert_close(vmap(op, dims, out_dims=1)(*elsewhere), loop.transpose(0, 1).cpu(), rel=EXACT)
    assert_close(vmap(vmap(op))(*(tensor[None] for tensor in stacked)), loop[None].cpu(), rel=EXACT)
    # One value for all: only the points are mapped.
    shared = torch.stack([op(cases[0][0], *case[1:]) for case in cases])
    mapped = vmap(op, (None, *[0] * (len(stacked) - 1)))(cases[0][0], *stacked[1:])
    assert_close(mapped, shared.cpu(), rel=EXACT)
    assert vmap(op)(*(tensor[:, :0] for tensor in stacked)).shape == (3, 0, 5, 16)


@pytest.mark.parametrize("device, backend", BACKENDS)
@pytest.mark.parametrize("fused", [False, True])
def test_gradients_through_vmap(monkeypatch, device, backend, fused):
    """Ordinary backward through a mapped op, and a backward that is itself mapped (``is_grads_batched``)."""
    use_backend(monkeypatch, device, backend)
    op, (cases, stacked) = call(fused), stacks(fused, device)
    leaves = [tensor.clone().requires_grad_() for tensor in stacked]
    upstream = torch.randn(3, 2, 5, 16, dtype=torch.float64, device=device)
    vmap(op)(*leaves).backward(upstream)
    singles = [[tensor.clone().requires_grad_() for tensor in case] for case in cases]
    for single, up in zip(singles, upstream, strict=True):
        op(*single).backward(up)
    for leaf, parts in zip(leaves, zip(*singles, strict=True), strict=True):
        assert_close(leaf.grad, torch.stack([part.grad for part in parts]).cpu(), rel=EXACT)
    one = [tensor.clone().requires_grad_() for tensor in cases[0]]
    output = op(*one)
    batched = torch.autograd.grad(output, one, upstream, retain_graph=True, is_grads_batched=True)
    for index, up in enumerate(upstream):
        single = torch.autograd.grad(output, one, up, retain_graph=True)
        for mine, theirs in zip(batched, single, strict=True):
            assert_close(mine[index], theirs.cpu(), rel=EXACT)


@pytest.mark.parametrize("device, backend", BACKENDS)
@pytest.mark.parametrize("fused", [False, True])
def test_torch_func(monkeypatch, device, backend, fused):
    """grad, vjp and jacrev give the same as backward; also per-sample gradients (vmap of grad)."""
    use_backend(monkeypatch, device, backend)
    op, (cases, stacked) = call(fused), stacks(fused, device)

    def loss(*tensors):
        return op(*tensors).square().sum()

    every = tuple(range(len(stacked)))
    leaves = [tensor.clone().requires_grad_() for tensor in cases[0]]
    expected = [tensor.cpu() for tensor in torch.autograd.grad(loss(*leaves), leaves)]
    output, pull = vjp(op, *cases[0])
    per_sample = vmap(grad(loss, every))(*stacked)
    through_vmap = grad(lambda *tensors: vmap(loss)(*tensors).sum(), every)(*stacked)
    for results in (
        grad(loss, every)(*cases[0]),
        pull(2 * output),
        [g[0] for g in per_sample],
        [g[0] for g in through_vmap],
    ):
        for mine, theirs in zip(results, expected, strict=True):
            assert_close(mine, theirs, rel=EXACT)

    def of_weights(weights):
        return op(*cases[0][:-1], weights).sum((0, 1))

    expected = torch.autograd.functional.jacobian(of_weights, cases[0][-1])
    assert_close(jacrev(of_weights)(cases[0][-1]), expected.cpu(), rel=EXACT)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")  # PyTorch's own forward mode uses it
@pytest.mark.parametrize("device, backend", BACKENDS)
@pytest.mark.parametrize("fused", [False, True])
def test_forward_mode_is_refused(monkeypatch, device, backend, fused):
    """PyTorch would silently assume that a custom operator's tangent is zero."""
    use_backend(monkeypatch, device, backend)
    op, case = call(fused), inputs(fused, device)
    with pytest.raises(NotImplementedError, match="forward AD"):
        jvp(op, tuple(case), tuple(case))
    with pytest.raises(NotImplementedError, match="forward AD"):
        jacfwd(lambda value: op(value, *case[1:]))(case[0])
    with torch.autograd.forward_ad.dual_level(), pytest.raises(NotImplementedError, match="forward AD"):
        op(torch.autograd.forward_ad.make_dual(case[0], case[0]), *case[1:])


@needs_native
@pytest.mark.parametrize("fused", [False, True])
def test_second_derivative_is_refused(monkeypatch, fused):
    use_backend(monkeypatch, "cpu", "cpu")
    leaves = [tensor.requires_grad_() for tensor in inputs(fused, "cpu")]
    grads = torch.autograd.grad(call(fused)(*leaves).square().sum(), leaves, create_graph=True)
    message = "no second derivative; to differentiate twice, set MRT_OPS_BACKEND=python"
    with pytest.raises(RuntimeError, match=message):
        sum(grad.square().sum() for grad in grads).backward()


@pytest.mark.skipif(
    torch.__version__ < (2, 13), reason="grid_sample of PyTorch 2.11 has no second derivative"
)
@pytest.mark.parametrize("fused", [False, True])
def test_the_pytorch_path_has_a_second_derivative(monkeypatch, fused):
    """As the error of the kernels advises."""
    use_backend(monkeypatch, "cpu", "python")
    leaves = [tensor.requires_grad_() for tensor in inputs(fused, "cpu", dim=2, queries=2, points=1)]
    assert torch.autograd.gradgradcheck(call(fused), leaves, fast_mode=True)


class KernelCalls(TorchDispatchMode):
    """Counts the calls that reach a kernel."""

    count = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        self.count += function.namespace == "mrt"
        return function(*arguments, **(keywords or {}))


@needs_native
@pytest.mark.parametrize("fused", [False, True])
def test_vmap_is_one_kernel_call_and_grad_is_none(monkeypatch, fused):
    use_backend(monkeypatch, "cpu", "cpu")
    op, (cases, stacked) = call(fused), stacks(fused, "cpu")
    with KernelCalls() as calls:
        vmap(op)(*stacked)
        assert calls.count == 1
        grad(lambda *tensors: op(*tensors).sum())(*cases[0])
        vmap(grad(lambda *tensors: op(*tensors).sum()))(*stacked)
        assert calls.count == 1
        op(*cases[0])
        assert calls.count == 2
