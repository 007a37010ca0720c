from __future__ import annotations

from collections import Counter

import pytest
import torch
from golden import GOLDEN
from torch import nn

from mrt.config import StageConfig, load_config
from mrt.engine.build import (
    build_detector,
    build_discriminators,
    build_mae,
    build_optimiser,
    parameter_groups,
)
from mrt.engine.loop import learning_rate
from mrt.engine.student import Student
from mrt.parts.rebuild import mae_weight

GROUPS = {"0": "base", "1": "backbone", "2": "sampling"}


def test_learning_rate_groups_are_those_of_the_published_code():
    config = load_config("city2foggy", ["model.weights=checkpoint"])
    detector = build_detector(
        config, [str(number) for number in range(9)]
    )  # the published models have an unused class column
    student = Student(detector, build_mae(config, detector), build_discriminators(config, detector))
    groups = parameter_groups(config, config.teach, student)
    ours = Counter((group["name"], tuple(p.shape)) for group in groups for p in group["params"])
    theirs: Counter = Counter()
    for line in (GOLDEN / "param_groups_r50_teaching_student.txt").read_text().splitlines():
        if not line.startswith("#") and not line.endswith("frozen"):
            group, _, shape = line.split("\t")[:3]
            theirs[
                GROUPS[group], tuple(int(size) for size in shape.strip("()").split(",") if size.strip())
            ] += 1
    assert ours == theirs
    rates = {group["name"]: group["lr"] for group in groups}
    assert rates == {"base": 2e-4, "backbone": pytest.approx(2e-5), "sampling": pytest.approx(2e-5)}


def test_the_optimiser_takes_the_configuration():
    config = load_config("city2foggy")
    optimiser = build_optimiser(config, config.teach, Student(nn.Linear(2, 2)), torch.device("cpu"))
    assert optimiser.param_groups[0]["weight_decay"] == 1e-4


def test_schedules():
    step = StageConfig(epochs=4, lr_drop=2, schedule="step")
    assert [learning_rate(step, i, 10, 0) for i in (0, 19, 20, 39)] == [1, 1, 0.1, 0.1]
    linear = StageConfig(epochs=10, schedule="linear")
    assert learning_rate(linear, 0, 10, 0) == learning_rate(linear, 60, 10, 0) == 1
    assert learning_rate(linear, 80, 10, 0) == pytest.approx(0.5) and learning_rate(
        linear, 99, 10, 0
    ) == pytest.approx(1 / 40)
    assert learning_rate(StageConfig(epochs=1, schedule="constant"), 0, 10, 4) == 0.25, "warm-up"


@pytest.mark.parametrize(
    ("decay", "expected"),
    [("none", [1, 1, 1, 1]), ("hard", [1, 1, 0, 0]), ("linear", [1, 0.5, 0, 0])],
    ids=["none", "hard", "linear"],
)
def test_the_autoencoders_weight_decays_in_the_teaching_stage_only(decay, expected):
    settings = load_config("city2foggy", [f"mae.decay={decay}", "mae.decay_epoch=2"]).mae
    assert [mae_weight(settings, epoch, decays=True) for epoch in range(4)] == expected
    assert [mae_weight(settings, epoch, decays=False) for epoch in range(4)] == [1, 1, 1, 1]
