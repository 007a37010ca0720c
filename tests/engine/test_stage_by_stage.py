"""Stages 2 and 3 as two runs give the detector that one run gives: what lets trials of an ablation share a
stage.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_world import tiny_config

from mrt.engine import stages
from mrt.engine.load import load_detector
from mrt.engine.report import Watcher
from mrt.errors import Interrupted


def different(one: Path, other: Path) -> list[str]:
    """Names of weights of student and teacher that are not equal bit by bit."""
    found = []
    for network in ("student", "teacher"):
        first, second = (load_detector(folder, which=network)[0].state_dict() for folder in (one, other))
        found += [f"{network} {key}" for key in first if not torch.equal(first[key], second[key])]
    return found


@pytest.mark.parametrize(
    "settings",
    [
        {"mae.carry_over": False, "mae.variant": "paper"},
        {"mae.use": "none"},
        {"mae.normalise": True},
        {"retrain.source": "source"},
        {"retrain.source": "random", "engine.eval_every": 1},
    ],
    ids=", ".join,
)
def test_two_runs_give_what_one_gives(world, source, tmp_path, settings):
    config = tiny_config(**settings)
    whole = stages.adapt(config, tmp_path / "whole", init=str(source), data_root=world)
    mae = stages.adapt(config, tmp_path / "mae", stages=("mae",), init=str(source), data_root=world)
    teach = stages.adapt(config, tmp_path / "teach", stages=("teach",), init=str(mae), data_root=world)
    assert different(whole, teach) == []


def test_another_seed_draws_anew(world, source, tmp_path):
    mae = stages.adapt(tiny_config(), tmp_path / "mae", stages=("mae",), init=str(source), data_root=world)
    runs = [
        stages.adapt(
            tiny_config(seed=seed), tmp_path / f"{seed}", stages=("teach",), init=str(mae), data_root=world
        )
        for seed in (0, 1)
    ]
    assert different(*runs)


def test_teaching_alone_resumes_to_the_same_detector(world, source, tmp_path):
    class Stop(Watcher):
        left = 3

        def advance(self, n: int = 1, **_: float) -> None:
            self.left -= n
            if self.left == 0:
                import signal

                signal.raise_signal(signal.SIGTERM)

    config = tiny_config(**{"retrain.source": "source"})
    mae = stages.adapt(config, tmp_path / "mae", stages=("mae",), init=str(source), data_root=world)
    whole = stages.adapt(config, tmp_path / "whole", stages=("teach",), init=str(mae), data_root=world)
    with pytest.raises(Interrupted):
        stages.adapt(
            config, tmp_path / "stopped", stages=("teach",), init=str(mae), data_root=world, watcher=Stop()
        )
    stopped = stages.adapt(config, tmp_path / "stopped", stages=("teach",), resume=True, data_root=world)
    assert different(whole, stopped) == []
