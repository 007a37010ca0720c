"""The training step on a GPU that is not there.

PyTorch's fake tensors know shapes, types and devices, and refuse whatever would wait for a value. So this
shows, without a GPU, that no tensor is on the wrong device and that up to the backward pass the host waits
for nothing but the copies it asks for.
"""

from __future__ import annotations

from collections import Counter
from importlib import import_module
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch
from test_plain_step import STAGES, batches_of, config, make_learner
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from mrt.engine import learner as engine
from mrt.engine.distributed import World
from mrt.engine.step import Learner, training_step
from mrt.parts.base import Moment, Site
from mrt.parts.distill import Distill
from mrt.parts.outside_labels import OutsideLabels
from mrt.parts.pseudo_labels import PseudoLabels
from mrt.parts.source_record import SourceRecord
from mrt.parts.supervise import Supervise

GPU = "cuda"
labels_module = import_module("mrt.adapt.pseudo_labels")  # mrt.adapt has a function of this name
matcher_module, detection_module = import_module("mrt.losses.matcher"), import_module("mrt.losses.detection")


def move(network: nn.Module) -> None:
    """Give a network fake parameters and buffers on the GPU."""
    for module in network.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                fake = torch.empty_like(parameter, device=GPU)
                module._parameters[name] = nn.Parameter(fake, requires_grad=parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty_like(buffer, device=GPU)


def learner_on_gpu(settings, stage: str) -> Learner:
    """A learner whose networks are fake; its optimiser does nothing."""
    learner = make_learner(settings, STAGES[stage])
    learner.world = World(0, 1, torch.device(GPU))
    with FakeTensorMode(allow_non_fake_inputs=True):
        move(learner.student)
        if learner.teacher is not None:
            move(learner.teacher.module)
        learner.thresholds.values = torch.empty_like(learner.thresholds.values, device=GPU)
        learner.thresholds._record = torch.empty_like(learner.thresholds._record, device=GPU)
        learner.label_count.counts = torch.empty_like(learner.label_count.counts, device=GPU)
    learner.optimiser = SimpleNamespace(
        zero_grad=lambda set_to_none: None, step=lambda: None, param_groups=[{"params": []}]
    )
    return learner


class Copy:
    """In the place of :class:`mrt.host.HostCopy`: what arrives at the host are random numbers."""

    shapes: ClassVar[list[tuple[int, ...]]] = []

    def __init__(self, tensor: torch.Tensor) -> None:
        assert tensor.device.type == GPU
        self.shape = tuple(tensor.shape)
        self.shapes.append(self.shape)

    def result(self) -> SimpleNamespace:
        return SimpleNamespace(numpy=lambda: np.random.default_rng(0).random(self.shape))


def to_gpu(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    assert device.type == GPU
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=device)


def two_labels_an_image(pending: labels_module.PendingLabels) -> list[dict[str, torch.Tensor]]:
    images = pending._rows.shape[0]
    boxes, labels = torch.empty(2, 4, device=GPU), torch.empty(2, dtype=torch.int64, device=GPU)
    return [{"scores": boxes[:, 0], "labels": labels, "boxes": boxes} for _ in range(images)]


@pytest.fixture
def copies(monkeypatch) -> list[tuple[int, ...]]:
    """The shapes that were copied to the host."""
    Copy.shapes.clear()
    for module in (labels_module, matcher_module):
        monkeypatch.setattr(module, "HostCopy", Copy)
    for module in (labels_module, matcher_module, detection_module):
        monkeypatch.setattr(module, "to_device", to_gpu)
    monkeypatch.setattr(labels_module.PendingLabels, "result", two_labels_an_image)
    monkeypatch.setattr(torch.Tensor, "backward", lambda self: None)  # fake gradients would ask for a driver
    return Copy.shapes


def step(learner: Learner, sizes: str) -> dict:
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        batches = [
            {name: item._map(lambda tensor: fake.from_tensor(tensor).to(GPU)) for name, item in micro.items()}
            for micro in batches_of(sizes, steps=1)[0]
        ]
        return training_step(learner, batches, 1.0, 1.0)


@pytest.mark.parametrize(
    ("stage", "sizes", "model", "expected"),
    [
        ("source", "one size", "paper's kind", 1),
        ("source+mae", "one size", "paper's kind", 1),
        ("teach+mae", "one size", "paper's kind", 2),
        ("teach+mae", "two sizes", "paper's kind", 2),
        ("teach+mae", "padded target", "paper's kind", 2),
        ("teach+mae", "one size", "demo's kind", 3),
        ("teach+mae", "two sizes", "demo's kind", 4),  # proposals of images of two sizes are matched apart
    ],
)
def test_the_host_waits_for_its_copies_only(copies, stage, sizes, model, expected):
    seen = step(learner_on_gpu(config(model), stage), sizes)
    assert len(copies) == expected, copies
    assert {
        value.device.type for name, value in seen.items() if name not in ("pseudo_labels", "grad_norm")
    } == {GPU}
    assert all(value.dtype == torch.float32 for value in seen.values() if isinstance(value, torch.Tensor))


def test_nobody_waits_for_shares(copies, monkeypatch):
    """Whose gradients are made up: fake ones would ask for a driver."""
    asked = []

    def gradients(term, weights, **_: object) -> tuple[torch.Tensor, ...]:
        assert term.device.type == GPU and not term.dim()
        asked.append(len(weights))
        return tuple(torch.empty_like(weight) for weight in weights)

    monkeypatch.setattr(torch.autograd, "grad", gradients)
    learner = learner_on_gpu(config("demo's kind"), "teach+mae")
    learner.shares_every = 1
    learner.strengths = 1.0, 1.0
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        batches = [
            {name: item._map(lambda tensor: fake.from_tensor(tensor).to(GPU)) for name, item in micro.items()}
            for micro in batches_of("one size", steps=1)[0]
        ]
        seen = engine.training_step(learner, batches, Moment(0, 1, 0))
    assert len(copies) == 3 and len(asked) == 4  # source, target, discriminators, autoencoder
    found = {name: value for name, value in seen.items() if "_share/" in name or "_cosine/" in name}
    assert len(found) == 16 and {value.device.type for value in found.values()} == {GPU}


class Arrived(Copy):
    """What arrives at the host is a tensor, or a number."""

    def result(self) -> torch.Tensor | SimpleNamespace:
        return torch.empty(self.shape) if self.shape else SimpleNamespace(item=lambda: 2.0)


class Outside(OutsideLabels):
    """With labels that were read already."""

    fused = True

    def begin(self, site: Site) -> None:
        self._forget()


def fused(teacher: dict, outside: dict, **_: object) -> tuple[dict, Counter]:
    """Two labels, made on the host."""
    assert {tensor.device.type for side in (teacher, outside) for tensor in side.values()} == {"cpu"}
    boxes, labels = torch.empty(2, 4), torch.zeros(2, dtype=torch.int64)
    found = {"boxes": boxes, "labels": labels, "scores": boxes[:, 0], "confidences": boxes[:, 0]}
    return found | {"ignore_boxes": boxes[:1], "ignore_labels": labels[:1]}, Counter(agreed=2)


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        # soft labels: how many objects they count, and the matching
        (lambda: [Supervise(), SourceRecord(), Distill()], 2),
        # pseudo labels, five kinds of tensors of labels from outside, three of the teacher's, the matching
        (lambda: [Supervise(), PseudoLabels(), Outside()], 1 + 5 + 3 + 1),
    ],
)
def test_further_parts_wait_for_their_copies_only(copies, monkeypatch, parts, expected):
    for name in ("distill", "outside_labels"):
        monkeypatch.setattr(import_module(f"mrt.parts.{name}"), "HostCopy", Arrived)
    outside = import_module("mrt.parts.outside_labels")
    monkeypatch.setattr(outside, "to_device", to_gpu)
    monkeypatch.setattr(outside, "fuse", fused)
    before = learner_on_gpu(config("paper's kind"), "teach+mae")
    method, world = parts(), before.world
    with FakeTensorMode(allow_non_fake_inputs=True):
        for part in method:
            part.site = Site(
                before.config, before.stage, ["a"] * 9, before.student.detector, world, say=print
            )
            part.begin(part.site)
    learner = engine.Learner(
        before.config, before.stage, method, world, before.student, before.optimiser, before.teacher
    )
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        batches = [
            {name: item._map(lambda tensor: fake.from_tensor(tensor).to(GPU)) for name, item in micro.items()}
            for micro in batches_of("one size", steps=1)[0]
        ]
        for target in (target for micro in batches for target in micro["target"].targets):
            boxes, labels = torch.empty(3, 4, device=GPU), torch.zeros(3, dtype=torch.int64, device=GPU)
            target |= {"boxes": boxes, "labels": labels, "scores": boxes[:, 0], "covered": True}
            target |= {"ignore_boxes": boxes[:1], "ignore_labels": labels[:1]}
        seen = engine.training_step(learner, batches, Moment(0, 1, 0))
    assert len(copies) == expected, copies
    assert {value.device.type for value in seen.values() if isinstance(value, torch.Tensor)} >= {GPU}


def test_a_value_that_is_waited_for_is_noticed(copies, monkeypatch):
    learner = learner_on_gpu(config("paper's kind"), "source")
    judge = detection_module.DetectionLoss._classification

    def waits(self, logits, *others):
        assert bool(logits.isfinite().all())
        return judge(self, logits, *others)

    monkeypatch.setattr(detection_module.DetectionLoss, "_classification", waits)
    with pytest.raises(DataDependentOutputException):
        step(learner, "one size")
