"""Prediction on a CPU: matrix products and convolutions by oneDNN, with weights in its own layout.

Eager PyTorch computes matrix products with its BLAS library. It calls oneDNN for convolutions, but with the
kernel in the plain layout, which oneDNN reorders at every call; a 1x1 convolution of a single image on a
single thread does not use oneDNN at all. Here every product uses oneDNN, each weight is reordered once, and
relu and residual sums are part of the product. docs/speed.md has the measurements.

Modules keep their parameters and names. With gradients, on another device or in a traced program they compute
as before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from mrt.models.attention import MSDeformAttn
from mrt.models.backbone import ResNetBody
from mrt.models.detector import DeformableDETR
from mrt.models.fast.precision import autocast_dtype
from mrt.models.transformer import DecoderLayer, EncoderLayer

# Tokens per thread that a feed-forward network takes at a time, few enough for its activations to stay in the
# cache.
ROWS = 512
# Layouts that are kept of a layer's weight. The best one of a convolution depends on the input's size, and
# any other takes several times as long.
KEPT = 2


class _Packed:
    """A layer whose weight is reordered when it is first used, and again after it has changed."""

    _laid_out: tuple[Any, dict[Any, tuple[Tensor, Tensor | None]]] | None = None

    def laid_out(
        self, use: tuple[torch.dtype, Any], lay_out: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor | None]:
        """The reordered weight and the bias, kept for the last ``KEPT`` different uses.

        A new tensor or a change in place is noticed, a change through ``.data`` is not.

        Args:
            use: dtype and, where the layout depends on it, shape of the input.
            lay_out: reorders a weight of that dtype.
        """
        parts = [part for part in (self.weight, self.bias) if part is not None]
        versions = [(part, 0 if part.is_inference() else part._version) for part in parts]
        if self._laid_out is None or any(
            now is not before or version != version_before
            for (now, version), (before, version_before) in zip(versions, self._laid_out[0], strict=True)
        ):
            self._laid_out = versions, {}
        kept = self._laid_out[1]
        if use not in kept:
            if len(kept) == KEPT:
                kept.pop(next(iter(kept)), None)
            weight = self.weight.detach().to(use[0])
            bias = None if self.bias is None else self.bias.detach().to(use[0])
            kept[use] = lay_out(weight), bias
        return kept[use]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_laid_out": None}  # tensors in oneDNN's layout cannot be copied


def usable(x: Tensor) -> bool:
    """Whether oneDNN's operators can take ``x`` in the present mode."""
    return (
        x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.bfloat16)
        and not torch.is_grad_enabled()
        and not _traced()
    )


def _traced() -> bool:
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


class PackedLinear(_Packed, nn.Linear):
    """A linear layer."""

    def forward(self, x: Tensor, plus: Tensor | None = None, relu: bool = False) -> Tensor:
        """Apply the layer to ``x`` (..., in), then relu, or add ``plus`` (..., out)."""
        if not usable(x):
            y = super().forward(x)
            return y.relu() if relu else y if plus is None else y + plus
        x = x.to(autocast_dtype(x) or x.dtype)
        weight, bias = self.laid_out((x.dtype, None), torch.ops.mkldnn._reorder_linear_weight)
        if plus is not None:
            return torch.ops.mkldnn._linear_pointwise.binary(x, plus.to(x.dtype), weight, bias, "add")
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "relu" if relu else "none", [], "")


class PackedConv2d(_Packed, nn.Conv2d):
    """A convolution, followed by relu if the attribute ``relu`` is True."""

    relu = False

    def forward(self, x: Tensor, onto: Tensor | None = None) -> Tensor:
        """The convolution of ``x``; with ``onto``, relu of the sum of both. ``onto`` may be overwritten."""
        if not usable(x):
            y = super().forward(x)
            return (y + onto).relu() if onto is not None else y.relu() if self.relu else y
        x = x.to(autocast_dtype(x) or x.dtype)
        weight, bias = self.laid_out((x.dtype, x.shape), lambda weight: self._reorder(weight, x))
        how = weight, bias, self.padding, self.stride, self.dilation, self.groups
        if onto is not None:
            return torch.ops.mkldnn._convolution_pointwise_.binary(
                onto.to(x.dtype), x, *how, "add", 1.0, "relu", [], ""
            )
        return torch.ops.mkldnn._convolution_pointwise(x, *how, "relu" if self.relu else "none", [], "")

    def _reorder(self, weight: Tensor, x: Tensor) -> Tensor:
        how = self.padding, self.stride, self.dilation, self.groups
        return torch.ops.aten.mkldnn_reorder_conv2d_weight(weight.contiguous().to_mkldnn(), *how, x.shape)


class PackedBottleneck(Bottleneck):
    """A ResNet's block of three convolutions without norms."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, h, w) -> (B, out, h / stride, w / stride)."""
        inner = self.conv2(self.conv1(x))
        return self.conv3(inner, onto=x if self.downsample is None else self.downsample(x))


class PackedBasicBlock(BasicBlock):
    """A ResNet's block of two convolutions without norms."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, h, w) -> (B, out, h / stride, w / stride)."""
        inner = self.conv1(x)
        return self.conv2(inner, onto=x if self.downsample is None else self.downsample(x))


class PackedAttention(MSDeformAttn):
    """Deformable attention."""

    def choose(self, query: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        """As in the base class, but by two products: the op can take both results without a copy."""
        placed = query + position
        return self.sampling_offsets(placed), self.attention_weights(placed)


class PackedEncoderLayer(EncoderLayer):
    """An encoder layer."""

    def finish(self, tokens: Tensor, attended: Tensor) -> Tensor:
        """As in the base class, some tokens at a time."""
        if not usable(tokens) or self.training:
            return super().finish(tokens, attended)
        output = torch.empty_like(tokens)
        rows = ROWS * torch.get_num_threads()
        parts = zip(*(x.flatten(0, -2).split(rows) for x in (tokens, attended, output)), strict=True)
        for before, change, after in parts:
            placed = self.norm1(before + change)
            after.copy_(self.norm2(self.linear2(self.linear1(placed, relu=True), plus=placed)))
        return output


class PackedDecoderLayer(DecoderLayer):
    """A decoder layer."""

    def finish(self, queries: Tensor) -> Tensor:
        """As in the base class."""
        if not usable(queries) or self.training:
            return super().finish(queries)
        return self.norm3(self.linear2(self.linear1(queries, relu=True), plus=queries))


_OPERATORS = (
    "_linear_pointwise",
    "_reorder_linear_weight",
    "_convolution_pointwise",
    "_convolution_pointwise_",
)
_KINDS = {
    nn.Linear: PackedLinear,
    nn.Conv2d: PackedConv2d,
    Bottleneck: PackedBottleneck,
    BasicBlock: PackedBasicBlock,
    MSDeformAttn: PackedAttention,
    EncoderLayer: PackedEncoderLayer,
    DecoderLayer: PackedDecoderLayer,
}


def pack(detector: DeformableDETR) -> None:
    """Let a detector predict with oneDNN's operators, in place. If this PyTorch has none, nothing is changed.

    Outputs stay the same up to float rounding, parameters and their names as they are.

    Args:
        detector: in evaluation mode, on a CPU, its frozen norms folded
            (:func:`mrt.models.fast.carried_norms.fold_carried_norms`).
    """
    available = torch.backends.mkldnn.is_available()
    if not available or not all(hasattr(torch.ops.mkldnn, name) for name in _OPERATORS):
        return
    for module in list(detector.modules()):
        kind = type(module)
        if kind in (Bottleneck, BasicBlock) and not _without_norms(module):
            continue
        if kind is nn.Conv2d and (isinstance(module.padding, str) or module.padding_mode != "zeros"):
            continue
        if kind in _KINDS:
            module.__class__ = _KINDS[kind]
    for module in detector.modules():
        if isinstance(module, PackedBottleneck):
            module.conv1.relu = module.conv2.relu = True
        elif isinstance(module, PackedBasicBlock):
            module.conv1.relu = True
    body = detector.backbone.body
    if isinstance(body, ResNetBody) and isinstance(body.bn1, nn.Identity):
        body.conv1.relu, body.relu = True, nn.Identity()


def _without_norms(block: nn.Module) -> bool:
    norms = [module for name, module in block.named_children() if name.startswith("bn")]
    return all(isinstance(norm, nn.Identity) for norm in norms)
