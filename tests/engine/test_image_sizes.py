"""A run says that its images come out at sizes that the coarsest map does not fit."""

import pytest
from tiny_world import tiny_config

from mrt.data.registry import find_dataset
from mrt.engine import data, stages
from mrt.engine.report import Watcher


def lines(world, **changes):
    config = tiny_config(**changes)
    card = find_dataset("hazy", world)
    dataset = data.training_set(config, card, "train", ["box"], "pair", varied=False, labelled=False)
    return data.unfit_sizes(config, dataset)


def test_sizes_that_do_not_fit(world):
    (line,) = lines(world)  # 48 pixels are two cells of 32, which are taken for 48 pixels
    assert "hazy: images come out at 48x64 pixels" in line and "stride 32 is 33 % off" in line
    assert "--set data.size_multiple=32" in line


@pytest.mark.parametrize(
    "changes",
    [
        {"data.size_multiple": 32},
        {"data.sides": [96], "data.max_size": 128},
        {"data.sides": [720], "data.max_size": 1333},  # 720 and 960: 736 and 960
    ],
    ids=["rounded", "fits", "nearly"],
)
def test_sizes_that_fit(world, changes):
    assert lines(world, **changes) == []


def test_a_fourth_level_has_twice_the_stride(world):
    (line,) = lines(world, **{"data.sides": [96], "data.max_size": 128, "model.num_levels": 4})
    assert "stride 64 is 33 % off" in line and "size_multiple=64" in line


def test_a_run_says_it_of_each_domain_once(world, source, tmp_path):
    told: list[str] = []
    watcher = Watcher()
    watcher.say = told.append
    changes = {"teach.epochs": 1, "mae_stage.epochs": 1}
    stages.adapt(tiny_config(**changes), tmp_path / "run", init=str(source), data_root=world, watcher=watcher)
    names = [line.split(":")[1].strip() for line in told if "come out at" in line]
    assert sorted(names) == ["clear", "hazy"]
