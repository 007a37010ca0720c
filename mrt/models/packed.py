"""A detector that predicts on a CPU: products and convolutions by oneDNN, with weights that are laid out for it once.

Eager PyTorch leaves matrix products to its BLAS and hands each convolution its kernel in the plain layout, to be laid out again at every
call (a 1x1 convolution of a single image by a single thread does not even get there). oneDNN's products were faster (docs/speed.md), and
take relu and residual sums in passing.

Modules keep their parameters and names. With gradients, on another device and in a traced program they compute as before.
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
from mrt.models.precision import autocast_dtype
from mrt.models.transformer import DecoderLayer, EncoderLayer

ROWS = 512  # tokens per thread that a feed-forward network takes at a time: what it makes of them stays in the cache
KEPT = 2  # layouts of a layer's weights; a convolution's best one depends on its input's size, and another takes several times as long


class _Packed:
    """A layer whose weight is laid out when it is first used, and again when it has changed."""

    _laid_out: tuple[Any, dict[Any, tuple[Tensor, Tensor | None]]] | None = None

    def laid_out(self, use: tuple[torch.dtype, Any], lay_out: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor | None]:
        """(weight as oneDNN takes it, bias), kept for the last few of ``use`` (dtype, shape). Changes through ``.data`` go unnoticed."""
        seen = [(part, 0 if part.is_inference() else part._version) for part in (self.weight, self.bias) if part is not None]
        if self._laid_out is None or any(a is not b or i != j for (a, i), (b, j) in zip(seen, self._laid_out[0], strict=True)):
            self._laid_out = seen, {}
        kept = self._laid_out[1]
        if use not in kept:
            if len(kept) == KEPT:
                kept.pop(next(iter(kept)), None)
            weight, bias = (None if part is None else part.detach().to(use[0]) for part in (self.weight, self.bias))
            kept[use] = lay_out(weight), bias
        return kept[use]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_laid_out": None}  # cannot be copied


def usable(x: Tensor) -> bool:
    """Whether oneDNN's own operators compute with ``x`` here and now."""
    return x.device.type == "cpu" and x.dtype in (torch.float32, torch.bfloat16) and not torch.is_grad_enabled() and not _traced()


def _traced() -> bool:
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


class PackedLinear(_Packed, nn.Linear):
    """A linear layer."""

    def forward(self, x: Tensor, plus: Tensor | None = None, relu: bool = False) -> Tensor:
        """The layer of ``x`` (..., in), then relu or the sum with ``plus`` (..., out)."""
        if not usable(x):
            y = super().forward(x)
            return y.relu() if relu else y if plus is None else y + plus
        x = x.to(autocast_dtype(x) or x.dtype)
        weight, bias = self.laid_out((x.dtype, None), torch.ops.mkldnn._reorder_linear_weight)
        if plus is not None:
            return torch.ops.mkldnn._linear_pointwise.binary(x, plus.to(x.dtype), weight, bias, "add")
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "relu" if relu else "none", [], "")


class PackedConv2d(_Packed, nn.Conv2d):
    """A convolution, then relu where ``relu`` says so."""

    relu = False

    def forward(self, x: Tensor, onto: Tensor | None = None) -> Tensor:
        """The convolution of ``x``; with ``onto``, its relu'd sum with that, which may be overwritten."""
        if not usable(x):
            y = super().forward(x)
            return (y + onto).relu() if onto is not None else y.relu() if self.relu else y
        x = x.to(autocast_dtype(x) or x.dtype)
        weight, bias = self.laid_out((x.dtype, x.shape), lambda weight: self._reorder(weight, x))
        how = weight, bias, self.padding, self.stride, self.dilation, self.groups
        if onto is not None:
            return torch.ops.mkldnn._convolution_pointwise_.binary(onto.to(x.dtype), x, *how, "add", 1.0, "relu", [], "")
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
        """As the class above, by two products: each gives what the op takes, without a copy."""
        placed = query + position
        return self.sampling_offsets(placed), self.attention_weights(placed)


class PackedEncoderLayer(EncoderLayer):
    """An encoder layer."""

    def finish(self, tokens: Tensor, attended: Tensor) -> Tensor:
        """As the class above, some tokens at a time."""
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
        """As the class above."""
        if not usable(queries) or self.training:
            return super().finish(queries)
        return self.norm3(self.linear2(self.linear1(queries, relu=True), plus=queries))


_OPERATORS = ("_linear_pointwise", "_reorder_linear_weight", "_convolution_pointwise", "_convolution_pointwise_")
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
    """Let a detector predict by oneDNN's operators, in place; nothing is done where this PyTorch has none.

    Outputs stay the same up to float rounding, parameters and their names as they are.

    Args:
        detector: in evaluation mode, on a CPU, frozen norms folded (:func:`mrt.models.backbone.fold_carried_norms`).
    """
    if not torch.backends.mkldnn.is_available() or not all(hasattr(torch.ops.mkldnn, name) for name in _OPERATORS):
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
