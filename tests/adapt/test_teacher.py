from __future__ import annotations

import pytest
import torch
from torch import nn

from mrt.adapt import Teacher
from mrt.errors import MrtError


class Student(nn.Module):
    """Two names for one head, batch statistics, a counter and a cache that is not part of the state."""

    def __init__(self) -> None:
        super().__init__()
        head = nn.Linear(3, 2)
        self.heads = nn.ModuleList([head, head])
        self.norm = nn.BatchNorm1d(3)
        self.register_buffer("cache", torch.zeros(1), persistent=False)

    def forward(self, x):
        return self.heads[1](self.heads[0].weight.new_zeros(1) + self.norm(x))


def moved(student: nn.Module) -> nn.Module:
    with torch.no_grad():
        for tensor in [*student.parameters(), student.norm.running_mean, student.norm.running_var]:
            tensor.add_(torch.rand_like(tensor))
        student.norm.num_batches_tracked.add_(7)
    return student


def test_all_parameters_and_buffers_follow_once() -> None:
    student = Student()
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    teacher = Teacher(student, decay=0.75)
    student = moved(student)
    student.cache = torch.zeros(5)  # another shape than the teacher's: not state, not averaged
    teacher.update(student)
    after = teacher.module.state_dict()
    for name, tensor in student.state_dict().items():
        expected = 0.75 * before[name] + 0.25 * tensor if tensor.is_floating_point() else tensor
        torch.testing.assert_close(after[name], expected)
    assert teacher.module.heads[0] is teacher.module.heads[1]


def test_teacher_is_apart_from_the_student() -> None:
    student = Student().train()
    teacher = Teacher(student)
    assert not teacher.module.training and student.training
    assert not any(parameter.requires_grad for parameter in teacher.module.parameters())
    assert all(parameter.requires_grad for parameter in student.parameters())
    moved(student)
    assert not torch.equal(teacher.module.heads[0].weight, student.heads[0].weight)
    assert not teacher.module(torch.randn(4, 3)).requires_grad


def test_average_is_kept_in_float32() -> None:
    student = Student().bfloat16()
    teacher = Teacher(student, decay=0.9996)
    assert teacher.module.heads[0].weight.dtype == torch.float32
    start = teacher.module.heads[0].weight.clone()
    with torch.no_grad():
        student.heads[0].weight.add_(1.0)
    teacher.update(student)
    torch.testing.assert_close(
        teacher.module.heads[0].weight - start,
        4e-4 * (student.heads[0].weight.float() - start),
        rtol=1e-3,
        atol=0,
    )


def test_warmup_ramp() -> None:
    teacher = Teacher(Student(), decay=0.99, warmup=True)
    assert teacher.decay_at(0) == 0.1 and teacher.decay_at(10_000) == 0.99
    assert Teacher(Student(), decay=0.99, warmup=True, warmup_offset=90).decay_at(0) == 0.91
    assert Teacher(Student(), decay=0.99).decay_at(0) == 0.99


def test_updates_are_counted_and_resumed() -> None:
    student = Student()
    teacher = Teacher(student, decay=0.9, warmup=True)
    teacher.update(moved(student))
    resumed = Teacher(Student(), decay=0.9, warmup=True)
    resumed.load_state_dict(teacher.state_dict())
    moved(student)
    for one in (teacher, resumed):
        one.update(student)
    assert teacher.updates == resumed.updates == 2
    for name, tensor in teacher.module.state_dict().items():
        assert torch.equal(tensor, resumed.module.state_dict()[name])


def test_decay_out_of_range() -> None:
    with pytest.raises(MrtError, match=r"1\.5"):
        Teacher(Student(), decay=1.5)
