"""Operations that keep less than PyTorch's own, and 16-bit tokens: their results, and what they keep."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mrt.models.fast.lean import feed_forward, linear_of_sum
from mrt.models.fast.precision import LayerNorm, as_products_take_it
from mrt.models.transformer import EncoderLayer
from mrt.ops import fallback_reason


def kept_by(function: Callable[[], Tensor]) -> tuple[Tensor, list[Tensor]]:
    """A function's result, and the tensors that it keeps for its backward pass."""
    kept = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        return function(), kept


@pytest.mark.parametrize("p", [0.0, 0.4])
@pytest.mark.parametrize("amp", [None, torch.bfloat16, torch.float16], ids=["float32", "bf16", "fp16"])
def test_feed_forward(p, amp):
    """Linear, relu, dropout, linear: the same results and random numbers.

    Of the wide hidden activations only the input of the second layer is kept.
    """
    first, second = nn.Linear(16, 48), nn.Linear(48, 16)
    x, cotangent = torch.randn(2, 30, 16).to(amp or torch.float32).requires_grad_(), torch.randn(2, 30, 16)
    inputs = (x, *first.parameters(), *second.parameters())

    def run(function):
        torch.manual_seed(3)
        with torch.autocast("cpu", amp or torch.bfloat16, enabled=amp is not None):
            output, kept = kept_by(function)
        return kept, [output.detach(), *torch.autograd.grad(output, inputs, cotangent.to(output.dtype))]

    kept, ours = run(lambda: feed_forward(x, first, second, p))
    _, theirs = run(lambda: second(F.dropout(F.relu(first(x)), p)))
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.dtype == other.dtype and mine.shape == other.shape
        assert (mine - other).norm() <= (2e-2 if amp else 1e-6) * other.norm()
    assert sum(tensor.numel() == 60 * 48 for tensor in kept) == 1
    with torch.no_grad(), torch.autocast("cpu", amp or torch.bfloat16, enabled=amp is not None):
        torch.testing.assert_close(feed_forward(x, first, second), second(F.relu(first(x))))


@pytest.mark.parametrize("shared", [False, True], ids=["a position per image", "one position for all images"])
@pytest.mark.parametrize("amp", [False, True], ids=["float32", "bf16"])
def test_linear_of_sum(shared, amp):
    tokens = torch.randn(3, 7, 16, requires_grad=True)
    position = torch.randn(1 if shared else 3, 7, 16, requires_grad=True)
    weight, bias = torch.randn(10, 16, requires_grad=True), torch.randn(10, requires_grad=True)
    inputs, cotangent = (tokens, position, weight, bias), torch.randn(3, 7, 10)

    def run(function):
        with torch.autocast("cpu", torch.bfloat16, enabled=amp):
            output, kept = kept_by(function)
        gradients = torch.autograd.grad(output, inputs, cotangent.to(output.dtype))
        return kept, [output.detach().float(), *gradients]

    kept, ours = run(lambda: linear_of_sum(*inputs))
    _, theirs = run(lambda: F.linear(tokens + position, weight, bias))
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.dtype == other.dtype and mine.shape == other.shape
        assert (mine - other).norm() <= (1e-2 if amp else 1e-5) * other.norm()
    of_tokens = {tensor.data_ptr() for tensor in kept if tensor.shape != weight.shape}
    assert of_tokens == {tokens.data_ptr(), position.data_ptr()}, "no sum is kept"


@pytest.mark.parametrize("amp", [False, True], ids=["float32", "bf16"])
def test_a_second_derivative_is_refused_not_wrong(amp):
    first, second, x = nn.Linear(4, 8), nn.Linear(8, 4), torch.randn(2, 3, 4, requires_grad=True)
    for function in (
        lambda x: feed_forward(x, first, second),
        lambda x: linear_of_sum(x, x, first.weight, first.bias),
    ):
        with torch.autocast("cpu", torch.bfloat16, enabled=amp):
            output = function(as_products_take_it(x))
        (gradient,) = torch.autograd.grad(output.float().square().sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            gradient.square().sum().backward()


def test_layers_under_torch_func(monkeypatch):
    """They compute with plain PyTorch operations, which these transforms support."""
    sizes = {"hidden_dim": 16, "num_levels": 1, "num_heads": 2, "num_points": 2, "feedforward_dim": 24}
    layer = EncoderLayer(**sizes, dropout=0.0).double()
    tokens, position = torch.randn(1, 24, 16).double(), torch.randn(1, 24, 16).double()
    points = torch.rand(1, 24, 1, 2).double()

    def loss(tokens: Tensor) -> Tensor:
        return (layer(tokens, position, points, ((4, 6),), None) * tokens.cos()).sum()

    leaf = tokens.clone().requires_grad_()
    loss(leaf).backward()
    torch.testing.assert_close(torch.func.grad(loss)(tokens), leaf.grad)
    several = torch.stack((tokens, 2 * tokens))
    torch.testing.assert_close(torch.func.vmap(loss)(several), torch.stack([loss(one) for one in several]))


@pytest.mark.parametrize("dtype, bound", [(torch.bfloat16, 2e-2), (torch.float16, 3e-3)])
def test_layer_norm_in_16_bits(dtype, bound):
    """It returns and keeps 16 bits under autocast, and its gradients are those of float32 up to rounding."""
    norm, plain = LayerNorm(64), nn.LayerNorm(64)
    with torch.no_grad():
        norm.weight.normal_(1, 0.3)
        norm.bias.normal_(0, 0.3)
    plain.load_state_dict(norm.state_dict())
    x, cotangent = (3 * torch.randn(50, 64) + 1).to(dtype), torch.randn(50, 64).to(dtype)
    ours, theirs = x.clone().requires_grad_(), x.float().requires_grad_()
    with torch.autocast("cpu", dtype):
        output, kept = kept_by(lambda: norm(ours))
    assert output.dtype == dtype
    assert all(tensor.dtype == dtype for tensor in kept if tensor.numel() == x.numel())
    expected = plain(theirs)
    output.backward(cotangent)
    expected.backward(cotangent.float())
    pairs = [
        (output, expected),
        (ours.grad, theirs.grad),
        (norm.weight.grad, plain.weight.grad),
        (norm.bias.grad, plain.bias.grad),
    ]
    for mine, other in pairs:
        assert (mine.float() - other).norm() <= bound * other.norm()
    assert norm.weight.grad.dtype == torch.float32


def test_layer_norm_is_torchs_without_autocast_and_for_float32():
    norm, x = LayerNorm(64), torch.randn(5, 64)
    assert torch.equal(norm(x), F.layer_norm(x, (64,)))
    with torch.autocast("cpu", torch.bfloat16):
        assert norm(x).dtype == torch.float32
    assert norm.to(torch.float64)(x.double()).dtype == torch.float64
    assert norm.to(torch.bfloat16)(x.bfloat16()).dtype == torch.bfloat16


def test_as_products_take_it():
    memory = torch.randn(2, 3)
    assert as_products_take_it(memory) is memory
    with torch.autocast("cpu", torch.bfloat16):
        assert as_products_take_it(memory).dtype == torch.bfloat16
        assert as_products_take_it(memory.double()).dtype == torch.float64


@pytest.mark.skipif(fallback_reason("cpu") is not None, reason="PyTorch's own operators keep more")
def test_an_encoder_layer_keeps_no_map_in_float32_under_autocast():
    sizes = {"hidden_dim": 32, "num_levels": 1, "num_heads": 2, "num_points": 4, "feedforward_dim": 64}
    layer = EncoderLayer(**sizes, dropout=0.1)
    tokens, position = torch.randn(2, 96, 32, requires_grad=True), torch.randn(1, 96, 32)
    points = torch.rand(2, 96, 1, 2)
    with torch.autocast("cpu", torch.bfloat16):
        tokens, position = as_products_take_it(tokens), as_products_take_it(position)
        output, kept = kept_by(lambda: layer(tokens, position, points, ((8, 12),), None))
    assert output.dtype == torch.bfloat16
    per_token = [tensor for tensor in kept if tensor.shape[:1] in ((2,), (192,))]
    large = [tensor for tensor in per_token if tensor.numel() > 2 * 96 * 2]
    wide = [tuple(tensor.shape) for tensor in large if tensor.dtype == torch.float32]
    assert wide == [], "only reference points and the norms' statistics are float32"
