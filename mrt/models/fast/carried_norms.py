"""Frozen batch norms that the convolution before them applies ("carries").

A frozen batch norm multiplies each channel by a scale and adds a shift. A convolution can do both at once:
the scale multiplies its kernel, which is small, and the shift joins its bias. That saves a pass over every
feature map and, under autocast, a copy of the map in float32, because a norm's numbers are float32.

The parameters and the function of them stay the same, so gradients are those of convolution and norm. State
dicts keep their names. :func:`carry_norms` changes a backbone this way, :func:`keep_affines` is called before
each forward pass, and :func:`fold_carried_norms` makes the change permanent for prediction and export.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from timm.layers import FrozenBatchNormAct2d
from torch import Tensor, nn
from torchvision.ops.misc import FrozenBatchNorm2d

from mrt.models.fast.same_conv import SameConv2d
from mrt.models.folding import norm_pairs, replace_module

if TYPE_CHECKING:
    from mrt.models.backbone import Backbone


class CarriedNorm(nn.Module):
    """A frozen batch norm whose scale and shift the convolution before it applies.

    Only the norm's activation is computed here. The buffers keep their names.
    """

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.eps = norm.eps
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, getattr(norm, name))
        self.act = getattr(norm, "act", nn.Identity())
        # What keep() was given, with each buffer and its version at that time.
        self._kept: tuple[list[tuple[Tensor, int]], Tensor, Tensor] | None = None

    def affine(self) -> tuple[Tensor, Tensor]:
        """(channels,) scale and shift."""
        if not torch.compiler.is_compiling() and self.kept():
            return self._kept[1:]
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        return scale, self.bias - self.running_mean * scale

    def kept(self) -> bool:
        """Whether scale and shift are kept and no buffer has changed since, except through ``.data``."""
        if self._kept is None:
            return False
        return all(
            tensor is seen and tensor._version == version
            for tensor, (seen, version) in zip(self._tensors(), self._kept[0], strict=True)
        )

    def keep(self, scale: Tensor, shift: Tensor) -> None:
        """Set what :meth:`affine` returns until a buffer changes."""
        if not any(tensor.is_inference() for tensor in self._tensors()):  # those have no version
            self._kept = [(tensor, tensor._version) for tensor in self._tensors()], scale, shift

    def _tensors(self) -> tuple[Tensor, ...]:
        return self.weight, self.bias, self.running_mean, self.running_var

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": None}  # the buffers of a copy have versions of their own

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x)


class NormedConv2d(nn.Conv2d):
    """A convolution that also applies the :class:`CarriedNorm` after it."""

    def carry(self, norm: CarriedNorm) -> None:
        """Apply ``norm`` from now on."""
        self._norm = (norm,)  # in a tuple, so that it is no child: it is already a module of the network

    def affine(self) -> tuple[Tensor, Tensor]:
        """The kernel times the norm's scale, and the bias of convolution and norm together."""
        scale, shift = self._norm[0].affine()
        bias = shift if self.bias is None else shift + self.bias * scale
        return self.weight * scale[:, None, None, None], bias

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, *self.affine())


class NormedSameConv2d(NormedConv2d, SameConv2d):
    """A "SAME" convolution that also applies the norm after it."""


NORMED = {nn.Conv2d: NormedConv2d, SameConv2d: NormedSameConv2d}
PLAIN = {normed: plain for plain, normed in NORMED.items()}


def carry_norms(body: nn.Module) -> tuple[CarriedNorm, ...]:
    """Let convolutions apply the frozen batch norms that directly follow them, in place.

    Returns:
        The carried norms, in the order of ``body.modules()``: what :func:`keep_affines` takes.
    """
    names = {module: name for name, module in body.named_modules()}
    for norm, conv in norm_pairs(body, (FrozenBatchNorm2d, FrozenBatchNormAct2d)):
        drops = not isinstance(getattr(norm, "drop", nn.Identity()), nn.Identity)
        if type(conv) not in NORMED or isinstance(conv.padding, str) or drops:
            continue
        carried, normed = CarriedNorm(norm), copy.copy(conv)
        normed.__class__ = NORMED[type(conv)]
        normed.carry(carried)
        replace_module(body, names[conv], normed)
        replace_module(body, names[norm], carried)
    return tuple(module for module in body.modules() if isinstance(module, CarriedNorm))


def keep_affines(norms: Sequence[CarriedNorm]) -> None:
    """Compute and keep scale and shift of the norms whose buffers have changed since the last call.

    It takes five operations for all of them together, instead of five for each. Most never change.
    """
    stale = [norm for norm in norms if not norm.kept()]
    if not stale or torch.compiler.is_compiling():
        return
    with torch.inference_mode(False), torch.no_grad():  # training uses what is kept, too
        scales = torch._foreach_add([norm.running_var for norm in stale], [norm.eps for norm in stale])
        scales = torch._foreach_mul(torch._foreach_rsqrt(scales), [norm.weight for norm in stale])
        shifts = torch._foreach_mul([norm.running_mean for norm in stale], scales)
        shifts = torch._foreach_sub([norm.bias for norm in stale], shifts)
    for norm, scale, shift in zip(stale, scales, shifts, strict=True):
        norm.keep(scale, shift)


def fold_carried_norms(backbone: Backbone) -> None:
    """Multiply the carried norms into their convolutions for good, in place: for prediction and export only.

    Outputs stay the same up to float rounding. Names in the state dict change, so the backbone can be neither
    trained nor saved afterwards.
    """
    for name, conv in list(backbone.body.named_modules()):
        if not isinstance(conv, NormedConv2d):
            continue
        with torch.no_grad():
            weight, bias = conv.affine()
        plain = copy.copy(conv)
        plain.__class__ = PLAIN[type(conv)]
        plain._parameters = dict(conv._parameters)
        plain.weight = nn.Parameter(weight.detach(), requires_grad=False)
        plain.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
        del plain._norm
        replace_module(backbone.body, name, plain)
    for name, norm in list(backbone.body.named_modules()):
        if isinstance(norm, CarriedNorm):
            replace_module(backbone.body, name, norm.act)
    backbone._norms = ()
