"""Averages for targets without a source beside them: asynchronous and dual-rate."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mrt.adapt import Teacher
from mrt.errors import MrtError


def student(**values: float) -> nn.Module:
    """One weight per name."""
    module = nn.Module()
    for name, value in values.items():
        module.register_parameter(name, nn.Parameter(torch.tensor([float(value)])))
    return module


def move(module: nn.Module, **changes: tuple[float, float]) -> None:
    """By name: a new value and a gradient."""
    for name, (value, grad) in changes.items():
        parameter = getattr(module, name)
        parameter.data.fill_(value)
        parameter.grad = torch.tensor([float(grad)])


def test_an_asynchronous_teacher_follows_every_few_steps():
    one = student(a=0.0)
    teacher = Teacher(one, decay=0.5, every=3)
    move(one, a=(8.0, 1.0))
    seen = []
    for step in range(7):
        teacher.update(one, step)
        seen.append(teacher.module.a.item())
    assert seen == [0, 0, 4, 4, 4, 6, 6]


def test_a_dual_rate_teacher_follows_faster_where_the_target_pulls():
    """Relative to its size, b has the larger gradient; c has none and is slow."""
    one = student(a=10.0, b=1.0, c=1.0)
    teacher = Teacher(one, decay=0.9, fast=0.5, fast_share=0.5)
    move(one, a=(20.0, 4.0), b=(2.0, 1.0))
    one.c.data.fill_(2.0)
    teacher.update(one, 0)
    assert [teacher.module.a.item(), teacher.module.b.item(), teacher.module.c.item()] == pytest.approx(
        [11.0, 1.5, 1.1]
    )


def test_what_was_seen_so_far_decides_and_is_kept():
    """One step in which a pulls harder does not outweigh three in which b did, also after a checkpoint."""
    one = student(a=1.0, b=1.0)
    whole, first = (Teacher(one, decay=0.9, fast=0.5) for _ in range(2))
    pulls = [(0.0, 3.0)] * 3 + [(1.0, 0.0)]
    for step, (a, b) in enumerate(pulls):
        move(one, a=(2.0, a), b=(2.0, b))
        whole.update(one, step)
        if step == 2:
            first.load_state_dict(whole.state_dict())
    second = Teacher(student(a=0.0, b=0.0), decay=0.9, fast=0.5)
    second.load_state_dict(first.state_dict())
    second.update(one, 3)
    assert whole.module.b.item() == pytest.approx(2 - 0.5**4)
    assert whole.module.a.item() == pytest.approx(2 - 0.9**4)
    assert second.state_dict()["shift"].equal(whole.state_dict()["shift"])
    assert second.module.a.equal(whole.module.a) and second.module.b.equal(whole.module.b)


def test_a_gradient_that_is_not_finite_decides_nothing():
    one = student(a=1.0, b=1.0)
    teacher = Teacher(one, decay=0.9, fast=0.5)
    move(one, a=(2.0, float("inf")), b=(2.0, 1.0))
    teacher.update(one, 0)
    assert torch.isfinite(teacher.shift).all()


def test_without_them_it_is_the_plain_average_to_the_last_bit():
    torch.manual_seed(0)
    one = nn.Linear(7, 5)
    plain, same = Teacher(one, decay=0.99), Teacher(one, decay=0.99, every=1, fast=None)
    for _ in range(3):
        with torch.no_grad():
            one.weight.add_(torch.randn_like(one.weight))
        plain.update(one)
        same.update(one)
    assert torch.equal(plain.module.weight, same.module.weight) and "shift" not in same.state_dict()


def test_a_fast_decay_out_of_bounds_is_refused():
    with pytest.raises(MrtError, match=r"decay is 1\.5"):
        Teacher(student(a=1.0), fast=1.5)
