"""Backbones: torchvision's ResNets and any timm ``features_only`` model, as maps of strides 8, 16 and 32."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import timm
import torch
import torch.nn.functional as F
import torchvision
from timm.layers import Conv2dSame, FrozenBatchNormAct2d
from timm.utils.model import freeze_batch_norm_2d
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.utils.checkpoint import checkpoint
from torchvision.ops.misc import FrozenBatchNorm2d

from mrt.errors import MrtError
from mrt.models.pretrained import State, classifier_state, fingerprint, load_trunk

RESNETS = ("resnet18", "resnet50", "resnet101")
FREEZE = ("none", "stem", "all")


class ResNetBody(nn.Module):
    """A torchvision ResNet without its classifier; forward gives the maps of strides 8, 16 and 32."""

    def __init__(self, resnet: torchvision.models.ResNet) -> None:
        super().__init__()
        self.conv1, self.bn1, self.relu, self.maxpool = resnet.conv1, resnet.bn1, resnet.relu, resnet.maxpool
        self.layer1, self.layer2, self.layer3, self.layer4 = resnet.layer1, resnet.layer2, resnet.layer3, resnet.layer4
        self.checkpointing = False

    def forward(self, images: Tensor) -> list[Tensor]:
        x = self.layer1(self.maxpool(self.relu(self.bn1(self.conv1(images)))))
        maps = []
        for layer in (self.layer2, self.layer3, self.layer4):
            for block in layer:
                x = checkpoint(block, x, use_reentrant=False) if self.checkpointing and torch.is_grad_enabled() else block(x)
            maps.append(x)
        return maps

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Compute each block's activations again in the backward pass instead of keeping them (the name is timm's)."""
        self.checkpointing = enable


class SameConv2d(nn.Conv2d):
    """TensorFlow's "SAME" convolution of stride 2, as in timm's ``tf_`` models, without copying its input into a padded one.

    Such a convolution pads sides of even length by one cell more on the far side. Symmetric padding and a kernel with one row (column)
    of zeros put before it compute the same; 1.2 times faster for a whole Lite0 at 256x128 on two cores.
    """

    @staticmethod
    def fits(conv: nn.Module) -> bool:
        """Whether a module is such a convolution."""
        if not isinstance(conv, Conv2dSame) or conv.stride != (2, 2) or conv.dilation != (1, 1):
            return False
        return conv.kernel_size[0] == conv.kernel_size[1] and conv.kernel_size[0] in (3, 5, 7)

    @classmethod
    def from_timm(cls, conv: nn.Conv2d) -> SameConv2d:
        """The same convolution with the same parameters."""
        same = cls(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,
            2,
            conv.kernel_size[0] // 2,
            groups=conv.groups,
            bias=conv.bias is not None,
        )
        same.weight, same.bias = conv.weight, conv.bias
        return same

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        even_height, even_width = 1 - x.shape[-2] % 2, 1 - x.shape[-1] % 2
        return super()._conv_forward(x, F.pad(weight, (even_width, 0, even_height, 0)), bias)


class CarriedNorm(nn.Module):
    """A frozen batch norm whose scale and shift the convolution before it applies; what is left to do here is its activation.

    Its buffers keep their names, so state dicts are those of the norm.
    """

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.eps = norm.eps
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, getattr(norm, name))
        self.act = getattr(norm, "act", nn.Identity())
        self._kept: tuple[list[tuple[Tensor, int]], Tensor, Tensor] | None = None

    def affine(self) -> tuple[Tensor, Tensor]:
        """(channels,) scale and shift."""
        if not torch.compiler.is_compiling() and self.kept():
            return self._kept[1:]
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        return scale, self.bias - self.running_mean * scale

    def kept(self) -> bool:
        """Whether :func:`keep_affines` has seen the buffers as they are now. Changes through ``.data`` go unnoticed."""
        if self._kept is None:
            return False
        return all(tensor is seen and tensor._version == at for tensor, (seen, at) in zip(self._tensors(), self._kept[0], strict=True))

    def keep(self, scale: Tensor, shift: Tensor) -> None:
        """What :meth:`affine` gives until a buffer changes."""
        if not any(tensor.is_inference() for tensor in self._tensors()):  # those do not count their changes
            self._kept = [(tensor, tensor._version) for tensor in self._tensors()], scale, shift

    def _tensors(self) -> tuple[Tensor, ...]:
        return self.weight, self.bias, self.running_mean, self.running_var

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": None}  # copies count their buffers' changes anew

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x)


def keep_affines(norms: Sequence[CarriedNorm]) -> None:
    """Compute scale and shift of all norms whose buffers changed in five operations instead of five for each; most never change."""
    stale = [norm for norm in norms if not norm.kept()]
    if not stale or torch.compiler.is_compiling():
        return
    with torch.inference_mode(False), torch.no_grad():  # what is kept serves training, too
        scales = torch._foreach_add([norm.running_var for norm in stale], [norm.eps for norm in stale])
        scales = torch._foreach_mul(torch._foreach_rsqrt(scales), [norm.weight for norm in stale])
        shifts = torch._foreach_mul([norm.running_mean for norm in stale], scales)
        shifts = torch._foreach_sub([norm.bias for norm in stale], shifts)
    for norm, scale, shift in zip(stale, scales, shifts, strict=True):
        norm.keep(scale, shift)


class NormedConv2d(nn.Conv2d):
    """A convolution that applies the frozen batch norm after it: the norm scales the kernel, which is small, instead of the map.

    Saves a pass over every map and, under autocast, its copy in float32 (the norm's numbers are float32); the same function of the same
    parameters, so gradients are those of convolution and norm.
    """

    def carry(self, norm: CarriedNorm) -> None:
        """Take over the scale and shift of ``norm``."""
        self._norm = (norm,)  # in a tuple: not a child, the network has it already

    def forward(self, x: Tensor) -> Tensor:
        scale, shift = self._norm[0].affine()
        bias = shift if self.bias is None else shift + self.bias * scale
        return self._conv_forward(x, self.weight * scale[:, None, None, None], bias)


class NormedSameConv2d(NormedConv2d, SameConv2d):
    """Both."""


NORMED = {nn.Conv2d: NormedConv2d, SameConv2d: NormedSameConv2d}


@dataclass(frozen=True)
class Folded:
    """A batch norm that was folded into the convolution before it."""

    norm: str
    conv: str
    eps: float


class Backbone(nn.Module):
    """Image to feature maps. Made by :func:`build_backbone`.

    Attributes:
        channels: channels per map, finest first.
        name, freeze: as given to :func:`build_backbone`.
        pretrained: whether it has the structure of a pretrained backbone (norms frozen).
        fingerprint: sha256 of the pretrained weights it started from, ``None`` if unknown.
        frozen: the whole body is frozen.
        frozen_keys: names in the state dict that training never changes.
        folded: the batch norms that were folded away.
    """

    def __init__(self, body: nn.Module, channels: tuple[int, ...], name: str, freeze: str, pretrained: bool) -> None:
        super().__init__()
        self.body, self.channels, self.name, self.freeze, self.pretrained = body, channels, name, freeze, pretrained
        self.fingerprint: str | None = None
        self.frozen = pretrained and freeze == "all"
        self.folded: tuple[Folded, ...] = ()
        self.frozen_keys: frozenset[str] = frozenset()
        self._norms: tuple[CarriedNorm, ...] = ()
        self.train()

    def train(self, mode: bool = True) -> Backbone:
        """As ``nn.Module.train``, but a frozen body stays in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.body.eval()
        return self

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) normalised images -> maps (B, channels[i], H / stride, W / stride), sizes rounded up, channels last in memory."""
        keep_affines(self._norms)
        with torch.no_grad() if self.frozen else nullcontext():
            return list(self.body(images.contiguous(memory_format=torch.channels_last)))[-len(self.channels) :]

    def set_checkpointing(self, enable: bool) -> None:
        """Compute activations again in the backward pass instead of keeping them, block by block.

        Raises:
            MrtError: a timm model that cannot.
        """
        if self.frozen:
            return
        try:
            self.body.set_grad_checkpointing(enable)
        except (AttributeError, NotImplementedError, AssertionError):
            if enable:
                raise MrtError(
                    f'backbone "{self.name}" cannot compute its activations twice', "Set engine.checkpointing = false, or take a ResNet."
                ) from None


def build_backbone(name: str, *, weights: str = "imagenet", freeze: str = "stem", levels: int = 3) -> Backbone:
    """Build a backbone.

    Args:
        name: "resnet18", "resnet50", "resnet101", or a timm model that has ``features_only`` maps of strides 8, 16, 32.
        weights: "imagenet"; "none": random, with ordinary batch norm and nothing frozen; "checkpoint": the structure of a pretrained
            backbone, its values come from a checkpoint that is loaded afterwards; or the path of a file with classifier weights
            under torchvision's or timm's own names.
        freeze: what of a pretrained backbone never learns (its batch norm never does): "none", "stem" (all up to stride 4: stem and
            layer1 of a ResNet), "all" (batch norm folded into the convolutions, no gradients: fastest).
        levels: number of maps, counted from stride 32 up: 3 gives strides 8, 16, 32.

    Raises:
        MrtError: unknown name, no such maps, or weights that cannot be had or do not fit.
    """
    if freeze not in FREEZE:
        raise MrtError(f'backbone freeze is "{freeze}"', f"Choose one of: {', '.join(FREEZE)}.")
    if not 1 <= levels <= 3:
        raise MrtError(f"backbone levels is {levels}", "A backbone gives 1, 2 or 3 maps; further levels are the detector's (num_levels).")
    body, channels, stem = _resnet(name) if name in RESNETS else _timm(name)
    body.to(memory_format=torch.channels_last)
    backbone = Backbone(body, channels[-levels:], name, freeze, pretrained=weights != "none")
    if weights == "none":
        return backbone
    if weights != "checkpoint":
        load_trunk(body, classifier_state(name, weights), weights if weights != "imagenet" else f"{name}'s ImageNet file")
        backbone.fingerprint = fingerprint(body)
    if freeze != "none":
        _freeze(body, None if freeze == "all" else stem)
    if freeze == "all":
        backbone.folded = fold_batch_norm(body)
    backbone.body = freeze_batch_norm_2d(body)
    if freeze != "all":
        carry_norms(backbone.body)
        backbone._norms = tuple(module for module in backbone.body.modules() if isinstance(module, CarriedNorm))
    frozen = [name for name, parameter in backbone.named_parameters() if not parameter.requires_grad]
    backbone.frozen_keys = frozenset(frozen + [name for name, _ in backbone.named_buffers()])
    return backbone.train()


def _freeze(body: nn.Module, last: str | None) -> None:
    """No gradients for the parameters up to and including module ``last`` (all when None)."""
    names = [name for name, _ in body.named_parameters()]
    count = len(names) if last is None else 1 + max(i for i, name in enumerate(names) if name.startswith(last + "."))
    for _, parameter in list(body.named_parameters())[:count]:
        parameter.requires_grad_(False)


def _resnet(name: str) -> tuple[nn.Module, tuple[int, ...], str]:
    model = torchvision.models.get_model(name, weights=None)
    last = "conv2" if name == "resnet18" else "conv3"
    channels = tuple(getattr(getattr(model, layer)[-1], last).out_channels for layer in ("layer2", "layer3", "layer4"))
    return ResNetBody(model), channels, "layer1"


def _timm(name: str) -> tuple[nn.Module, tuple[int, ...], str]:
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, [*RESNETS, *timm.list_models()], n=3)
        raise MrtError(f'backbone "{name}" is unknown', f"Did you mean {' or '.join(near)}?" if near else "Any timm model name will do.")
    try:
        info = timm.create_model(name, features_only=True).feature_info
        strides = info.reduction()
        indices = [info.out_indices[strides.index(stride)] for stride in (8, 16, 32)]
    except (RuntimeError, AttributeError, LookupError, TypeError, ValueError, AssertionError) as error:
        raise MrtError(f'backbone "{name}" gives no feature maps of strides 8, 16 and 32', "Choose a convolutional timm model.") from error
    body = timm.create_model(name, features_only=True, out_indices=tuple(indices))
    for conv_name, conv in list(body.named_modules()):
        if SameConv2d.fits(conv):
            _replace(body, conv_name, SameConv2d.from_timm(conv))
    stems = [entry["module"] for entry in body.feature_info.info if entry["reduction"] <= 4]
    modules = dict(body.named_modules())
    stem = next((m for s in reversed(stems) for m in (s, s.replace(".", "_")) if m in modules), next(iter(modules[""].named_children()))[0])
    return body, tuple(body.feature_info.channels()), stem


def fold_batch_norm(body: nn.Module) -> tuple[Folded, ...]:
    """Fold each batch norm that directly follows a convolution into it, in place.

    The outputs before and after must agree, or MrtError is raised.
    """
    names = {module: name for name, module in body.eval().named_modules()}
    with torch.no_grad():
        before = list(body(_TEST_IMAGE))
        pairs = _norm_pairs(body, nn.BatchNorm2d)
        for norm, conv in pairs:
            conv.weight, conv.bias = _fuse(conv.weight, conv.bias, norm.state_dict(), norm.eps)
            _replace(body, names[norm], getattr(norm, "act", nn.Identity()))
        after = list(body(_TEST_IMAGE))
    if not all(torch.allclose(a, b, rtol=1e-3, atol=1e-3 * float(a.abs().max())) for a, b in zip(before, after, strict=True)):
        raise MrtError("folding this backbone's batch norm changes its outputs", 'Use freeze = "stem" or "none" for it.')
    return tuple(Folded(names[norm], names[conv], norm.eps) for norm, conv in pairs)


def carry_norms(body: nn.Module) -> None:
    """Let convolutions apply the frozen batch norms that directly follow them, in place; names in the state dict stay."""
    names = {module: name for name, module in body.named_modules()}
    for norm, conv in _norm_pairs(body, (FrozenBatchNorm2d, FrozenBatchNormAct2d)):
        if type(conv) not in NORMED or isinstance(conv.padding, str) or not isinstance(getattr(norm, "drop", nn.Identity()), nn.Identity):
            continue
        carried, normed = CarriedNorm(norm), copy.copy(conv)
        normed.__class__ = NORMED[type(conv)]
        normed.carry(carried)
        _replace(body, names[conv], normed)
        _replace(body, names[norm], carried)


def fold_carried_norms(backbone: Backbone) -> None:
    """Multiply the frozen norms into their convolutions for good, in place: for prediction and export, not for training or saving.

    Outputs stay the same up to float rounding; names in the state dict do not.
    """
    for name, conv in list(backbone.body.named_modules()):
        if not isinstance(conv, NormedConv2d):
            continue
        scale, shift = conv._norm[0].affine()
        plain = copy.copy(conv)
        plain.__class__ = next(kind for kind, normed in NORMED.items() if type(conv) is normed)
        plain._parameters = dict(conv._parameters)
        with torch.no_grad():
            plain.weight = nn.Parameter((conv.weight * scale[:, None, None, None]).detach(), requires_grad=False)
            bias = shift if conv.bias is None else shift + conv.bias * scale
            plain.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
        del plain._norm
        _replace(backbone.body, name, plain)
    for name, norm in list(backbone.body.named_modules()):
        if isinstance(norm, CarriedNorm):
            _replace(backbone.body, name, norm.act)
    backbone._norms = ()


_TEST_IMAGE = torch.linspace(-2, 2, 3 * 64 * 64).sin().view(1, 3, 64, 64)


def _norm_pairs(body: nn.Module, kind: type | tuple[type, ...]) -> list[tuple[nn.Module, nn.Module]]:
    """(norm, convolution) wherever a norm's input is what a convolution gave.

    Seen by running the body once, so it works for any network.
    """
    produced: dict[int, tuple[nn.Module, Tensor]] = {}
    pairs: list[tuple[nn.Module, nn.Module]] = []

    def note_output(conv: nn.Module, _: tuple, output: Tensor) -> None:
        produced[id(output)] = (conv, output)

    def note_input(norm: nn.Module, inputs: tuple) -> None:
        conv, output = produced.get(id(inputs[0]), (None, None))
        if conv is not None and output is inputs[0]:
            pairs.append((norm, conv))

    modules = list(body.modules())
    handles = [module.register_forward_hook(note_output) for module in modules if isinstance(module, nn.Conv2d)]
    handles += [module.register_forward_pre_hook(note_input) for module in modules if isinstance(module, kind)]
    with torch.no_grad():
        body(_TEST_IMAGE)
    for handle in handles:
        handle.remove()
    return pairs


def _replace(body: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(body.get_submodule(parent), leaf, module)


def fold_state(state: State, folded: tuple[Folded, ...], prefix: str) -> State:
    """A state dict with batch norms, as one of a backbone whose ``folded`` norms are gone. Keys begin with ``prefix``."""
    state = dict(state)
    for entry in folded:
        norm, conv = f"{prefix}{entry.norm}.", f"{prefix}{entry.conv}."
        if f"{norm}running_mean" in state:
            parts = {key: state.pop(norm + key) for key in ("weight", "bias", "running_mean", "running_var")}
            state.pop(f"{norm}num_batches_tracked", None)
            weight, bias = _fuse(state[f"{conv}weight"], state.get(f"{conv}bias"), parts, entry.eps)
            state[f"{conv}weight"], state[f"{conv}bias"] = weight.data, bias.data
    return state


def _fuse(weight: Tensor, bias: Tensor | None, norm: State, eps: float) -> tuple[nn.Parameter, nn.Parameter]:
    parts = (norm["running_mean"], norm["running_var"], eps, norm["weight"], norm["bias"])
    fused = fuse_conv_bn_weights(weight, bias, *parts)
    return fused[0].requires_grad_(False), fused[1].requires_grad_(False)
