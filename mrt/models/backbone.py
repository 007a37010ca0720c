"""Backbones: torchvision's ResNets and any timm ``features_only`` model.

They give feature maps of strides 8, 16 and 32.
"""

from __future__ import annotations

import difflib
from contextlib import nullcontext

import timm
import torch
import torchvision
from timm.utils.model import freeze_batch_norm_2d
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mrt.errors import MrtError
from mrt.models.fast.carried_norms import CarriedNorm, carry_norms, keep_affines
from mrt.models.fast.same_conv import replace_same_convolutions
from mrt.models.folding import Folded, fold_batch_norm
from mrt.models.pretrained import classifier_state, fingerprint, load_trunk

RESNETS = ("resnet18", "resnet50", "resnet101")
FROZEN_UP_TO = {"stem": 4, "stride8": 8, "stride16": 16}  # strides
FREEZE = ("none", *FROZEN_UP_TO, "all")


class ResNetBody(nn.Module):
    """A torchvision ResNet without its classifier; forward gives the maps of strides 8, 16 and 32."""

    def __init__(self, resnet: torchvision.models.ResNet) -> None:
        super().__init__()
        self.conv1, self.bn1, self.relu, self.maxpool = resnet.conv1, resnet.bn1, resnet.relu, resnet.maxpool
        self.layer1, self.layer2 = resnet.layer1, resnet.layer2
        self.layer3, self.layer4 = resnet.layer3, resnet.layer4
        self.checkpointing = False

    def forward(self, images: Tensor) -> list[Tensor]:
        x = self.layer1(self.maxpool(self.relu(self.bn1(self.conv1(images)))))
        maps = []
        for layer in (self.layer2, self.layer3, self.layer4):
            for block in layer:
                if self.checkpointing and torch.is_grad_enabled():
                    x = checkpoint(block, x, use_reentrant=False)
                else:
                    x = block(x)
            maps.append(x)
        return maps

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block's activations in the backward pass instead of keeping them.

        timm's models have a method of the same name.
        """
        self.checkpointing = enable


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

    def __init__(
        self, body: nn.Module, channels: tuple[int, ...], name: str, freeze: str, pretrained: bool
    ) -> None:
        super().__init__()
        self.body, self.channels = body, channels
        self.name, self.freeze, self.pretrained = name, freeze, pretrained
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
        """Compute the feature maps.

        Args:
            images: (B, 3, H, W), normalised.

        Returns:
            Per map (B, channels[i], H / stride, W / stride), sizes rounded up, channels last in memory.
        """
        keep_affines(self._norms)
        with torch.no_grad() if self.frozen else nullcontext():
            maps = list(self.body(images.contiguous(memory_format=torch.channels_last)))
        return maps[-len(self.channels) :]

    def set_checkpointing(self, enable: bool) -> None:
        """Recompute activations in the backward pass, block by block, instead of keeping them.

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
                    f'backbone "{self.name}" cannot compute its activations twice',
                    "Set engine.checkpointing = false, or take a ResNet.",
                ) from None


def build_backbone(
    name: str, *, weights: str = "imagenet", freeze: str = "stem", levels: int = 3
) -> Backbone:
    """Build a backbone.

    Args:
        name: "resnet18", "resnet50", "resnet101", or a timm model that has ``features_only`` maps of strides
            8, 16, 32.
        weights: where the weights come from.

            * "imagenet": the pretrained ones;
            * "none": random ones, with ordinary batch norm and nothing frozen;
            * "checkpoint": the structure of a pretrained backbone; the values come from a checkpoint that is
              loaded afterwards;
            * the path of a file with classifier weights under torchvision's or timm's own names.
        freeze: which part of a pretrained backbone is never trained (its batch norm never is).

            * "none";
            * "stem": everything up to stride 4, which is the stem and layer1 of a ResNet;
            * "stride8", "stride16": everything up to that stride, which is layer2 (C3), layer3 (C4) of a
              ResNet;
            * "all": no gradients, and batch norm folded into the convolutions; the fastest.
        levels: number of maps, counted from stride 32 up: 3 gives strides 8, 16, 32.

    Raises:
        MrtError: the name is unknown, the model has no such maps, or the weights are unavailable or do not
            fit.
    """
    if freeze not in FREEZE:
        raise MrtError(f'backbone freeze is "{freeze}"', f"Choose one of: {', '.join(FREEZE)}.")
    if not 1 <= levels <= 3:
        raise MrtError(
            f"backbone levels is {levels}",
            "A backbone gives 1, 2 or 3 maps; further levels are the detector's (num_levels).",
        )
    body, channels, ends = _resnet(name) if name in RESNETS else _timm(name)
    body.to(memory_format=torch.channels_last)
    backbone = Backbone(body, channels[-levels:], name, freeze, pretrained=weights != "none")
    if weights == "none":
        return backbone
    if weights != "checkpoint":
        source = f"{name}'s ImageNet file" if weights == "imagenet" else weights
        load_trunk(body, classifier_state(name, weights), source)
        backbone.fingerprint = fingerprint(body)
    if freeze != "none":
        _freeze(body, ends.get(FROZEN_UP_TO.get(freeze)))
    if freeze == "all":
        backbone.folded = fold_batch_norm(body)
    backbone.body = freeze_batch_norm_2d(body)
    if freeze != "all":
        backbone._norms = carry_norms(backbone.body)
    frozen = [name for name, parameter in backbone.named_parameters() if not parameter.requires_grad]
    backbone.frozen_keys = frozenset(frozen + [name for name, _ in backbone.named_buffers()])
    return backbone.train()


def _freeze(body: nn.Module, last: str | None) -> None:
    """Turn off gradients of the parameters up to and including module ``last`` (of all when None)."""
    parameters = list(body.named_parameters())
    count = len(parameters)
    if last is not None:
        count = 1 + max(i for i, (name, _) in enumerate(parameters) if name.startswith(last + "."))
    for _, parameter in parameters[:count]:
        parameter.requires_grad_(False)


def _resnet(name: str) -> tuple[nn.Module, tuple[int, ...], dict[int, str]]:
    """The body, the channels of its maps, and by stride the name of the last module up to it."""
    model = torchvision.models.get_model(name, weights=None)
    last_conv = "conv2" if name == "resnet18" else "conv3"
    last_blocks = (model.layer2[-1], model.layer3[-1], model.layer4[-1])
    channels = tuple(getattr(block, last_conv).out_channels for block in last_blocks)
    return ResNetBody(model), channels, {4: "layer1", 8: "layer2", 16: "layer3"}


def _timm(name: str) -> tuple[nn.Module, tuple[int, ...], dict[int, str]]:
    """As :func:`_resnet`."""
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, [*RESNETS, *timm.list_models()], n=3)
        raise MrtError(
            f'backbone "{name}" is unknown',
            f"Did you mean {' or '.join(near)}?" if near else "Any timm model name will do.",
        )
    try:
        info = timm.create_model(name, features_only=True).feature_info
        strides = info.reduction()
        indices = [info.out_indices[strides.index(stride)] for stride in (8, 16, 32)]
    except (RuntimeError, AttributeError, LookupError, TypeError, ValueError, AssertionError) as error:
        raise MrtError(
            f'backbone "{name}" gives no feature maps of strides 8, 16 and 32',
            "Choose a convolutional timm model.",
        ) from error
    body = timm.create_model(name, features_only=True, out_indices=tuple(indices))
    replace_same_convolutions(body)
    modules = dict(body.named_modules())
    first_child = next(iter(body.named_children()))[0]
    ends = {}
    for stride in FROZEN_UP_TO.values():
        inside = [entry["module"] for entry in body.feature_info.info if entry["reduction"] <= stride]
        names = [name for end in reversed(inside) for name in (end, end.replace(".", "_")) if name in modules]
        ends[stride] = names[0] if names else first_child
    return body, tuple(body.feature_info.channels()), ends
