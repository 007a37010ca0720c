"""Gradient reversal and the three discriminators against the recorded numbers."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from golden import assert_close
from model_cases import SHAPES, small_detector, tensors

from mrt.models.discriminators import Discriminators, gradient_reversal

PUBLISHED = {"domain_pred_bac": "backbone", "domain_pred_enc": "encoder", "domain_pred_dec": "decoder"}


def load(data) -> Discriminators:
    discriminators = Discriminators(32, 4, 32)
    state = tensors(data, "sd/")
    discriminators.load_state_dict(
        {PUBLISHED[key.split(".")[0]] + key[len("domain_pred_bac") :]: value for key, value in state.items()}
    )
    return discriminators


@pytest.mark.parametrize("domain", [0, 1])
def test_discriminators_reproduce_golden(golden, domain):
    data = golden("discriminators")
    discriminators = load(data)
    inputs = {
        "feature_last": torch.from_numpy(data["in/feature_last"]).requires_grad_(),
        "inter_memory": torch.from_numpy(data["in/inter_memory"]).requires_grad_(),
        "inter_object_query": torch.from_numpy(data["in/inter_object_query"]).requires_grad_(),
    }
    output = SimpleNamespace(
        features=SimpleNamespace(maps=[inputs["feature_last"]], shapes=SHAPES),
        memory=inputs["inter_memory"][:, -1],
        queries=inputs["inter_object_query"][:, -1],
    )
    predictions = discriminators(output)
    for part, key, layer in (("backbone", "bac", False), ("encoder", "enc", True), ("decoder", "dec", True)):
        expected = data[f"out/domain_{key}_all"]
        assert_close(predictions[part], expected[:, -1] if layer else expected, what=part)
    losses = {
        part: F.cross_entropy(p.flatten(0, -2), torch.full((p[..., 0].numel(),), domain))
        for part, p in predictions.items()
    }
    total = losses["encoder"] + losses["decoder"] + 0.3 * losses["backbone"]
    assert_close(total, data[f"label{domain}/loss_total"])
    total.backward()
    for name, tensor in inputs.items():
        assert_close(tensor.grad, data[f"label{domain}/grad/in/{name}"], what=name)
    for name, parameter in discriminators.named_parameters():
        part, _, rest = name.partition(".")
        published = {ours: theirs for theirs, ours in PUBLISHED.items()}[part]
        assert_close(parameter.grad, data[f"label{domain}/grad/sd/{published}.{rest}"], what=name)


def test_gradient_reversal_reproduces_golden(golden):
    data = golden("discriminators")
    x, c = torch.from_numpy(data["grl/in/x"]).requires_grad_(), torch.from_numpy(data["grl/in/c"])
    y = gradient_reversal(x)
    assert_close(y, data["grl/out/y"])
    (c * y**2).sum().backward()
    assert_close(x.grad, data["grl/grad/x_of_sum_c_y2"])


def test_eta_scales_the_reversal():
    x = torch.ones(3, requires_grad=True)
    gradient_reversal(x, 0.25).sum().backward()
    assert torch.equal(x.grad, torch.full((3,), -0.25))


def test_discriminators_fit_the_detector():
    detector = small_detector(num_levels=3, box_refine=True)
    discriminators = Discriminators(32, 3, detector.backbone.channels[-1])
    output = detector(torch.randn(2, 3, 64, 96))
    predictions = discriminators(output)
    assert predictions["backbone"].shape == (2, 2, 3, 2)
    assert predictions["encoder"].shape == (2, 8 * 12 + 4 * 6 + 2 * 3, 2)
    assert predictions["decoder"].shape == (2, 12, 2)
