"""Find batch norms that directly follow a convolution, in any network, and fold them into it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from mrt.errors import MrtError
from mrt.models.pretrained import State

_TEST_IMAGE = torch.linspace(-2, 2, 3 * 64 * 64).sin().view(1, 3, 64, 64)


@dataclass(frozen=True)
class Folded:
    """A batch norm that was folded into the convolution before it."""

    norm: str
    conv: str
    eps: float


def fold_batch_norm(body: nn.Module) -> tuple[Folded, ...]:
    """Fold each batch norm that directly follows a convolution into it, in place.

    Raises:
        MrtError: the outputs after folding differ from those before.
    """
    names = {module: name for name, module in body.eval().named_modules()}
    with torch.no_grad():
        before = list(body(_TEST_IMAGE))
        pairs = norm_pairs(body, nn.BatchNorm2d)
        for norm, conv in pairs:
            conv.weight, conv.bias = _fuse(conv.weight, conv.bias, norm.state_dict(), norm.eps)
            replace_module(body, names[norm], getattr(norm, "act", nn.Identity()))
        after = list(body(_TEST_IMAGE))
    for a, b in zip(before, after, strict=True):
        if not torch.allclose(a, b, rtol=1e-3, atol=1e-3 * float(a.abs().max())):
            raise MrtError(
                "folding this backbone's batch norm changes its outputs",
                'Use freeze = "stem" or "none" for it.',
            )
    return tuple(Folded(names[norm], names[conv], norm.eps) for norm, conv in pairs)


def fold_state(state: State, folded: tuple[Folded, ...], prefix: str) -> State:
    """Convert a state dict with batch norms into one for a backbone whose ``folded`` norms are gone.

    Args:
        state: the state dict; it is not changed.
        folded: the norms to fold.
        prefix: what the keys of the backbone's body begin with.
    """
    state = dict(state)
    for entry in folded:
        norm, conv = f"{prefix}{entry.norm}.", f"{prefix}{entry.conv}."
        if f"{norm}running_mean" in state:
            parts = {key: state.pop(norm + key) for key in ("weight", "bias", "running_mean", "running_var")}
            state.pop(f"{norm}num_batches_tracked", None)
            weight, bias = _fuse(state[f"{conv}weight"], state.get(f"{conv}bias"), parts, entry.eps)
            state[f"{conv}weight"], state[f"{conv}bias"] = weight.data, bias.data
    return state


def norm_pairs(body: nn.Module, kind: type | tuple[type, ...]) -> list[tuple[nn.Module, nn.Module]]:
    """All (norm, convolution) pairs in which a norm of that ``kind`` directly follows the convolution.

    They are found by running the body once, so this works for any network.
    """
    produced: dict[int, tuple[nn.Module, Tensor]] = {}
    pairs: list[tuple[nn.Module, nn.Module]] = []

    def note_output(conv: nn.Module, _: tuple, output: Tensor) -> None:
        produced[id(output)] = (conv, output)

    def note_input(norm: nn.Module, inputs: tuple) -> None:
        conv, output = produced.get(id(inputs[0]), (None, None))
        if conv is not None and output is inputs[0]:
            pairs.append((norm, conv))

    handles = []
    for module in body.modules():
        if isinstance(module, nn.Conv2d):
            handles.append(module.register_forward_hook(note_output))
        if isinstance(module, kind):
            handles.append(module.register_forward_pre_hook(note_input))
    with torch.no_grad():
        body(_TEST_IMAGE)
    for handle in handles:
        handle.remove()
    return pairs


def replace_module(body: nn.Module, name: str, module: nn.Module) -> None:
    """Put ``module`` in the place of the submodule of that name."""
    parent, _, leaf = name.rpartition(".")
    setattr(body.get_submodule(parent), leaf, module)


def _fuse(weight: Tensor, bias: Tensor | None, norm: State, eps: float) -> tuple[nn.Parameter, nn.Parameter]:
    parts = (norm["running_mean"], norm["running_var"], eps, norm["weight"], norm["bias"])
    fused = fuse_conv_bn_weights(weight, bias, *parts)
    return fused[0].requires_grad_(False), fused[1].requires_grad_(False)
