"""Teachers that are kept after each epoch: what is in them, how many there are, and that a run that goes on
leaves those of an undisturbed one.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_world import make_set, tiny_config

from mrt.engine import stages
from mrt.engine.diagnosis import FINE, NOTE, WRONG, diagnose
from mrt.engine.kept import kept_teachers
from mrt.engine.load import load_detector
from mrt.engine.report import Watcher
from mrt.errors import Interrupted
from mrt.files import HOST, TEMPORARY


@pytest.fixture
def data(tmp_path: Path) -> Path:
    make_set(tmp_path / "data", "clear", seed=1)
    make_set(tmp_path / "data", "hazy", haze=0.5, seed=2)
    return tmp_path / "data"


def settings(**changes: object):
    return tiny_config(**{"teach.epochs": 3, "pretrain.ema": True, "engine.eval_every": 0} | changes)


def weights(path: Path) -> dict[str, torch.Tensor]:
    return load_detector(path)[0].state_dict()


def same(one: Path, two: Path) -> bool:
    first, second = weights(one), weights(two)
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


class Stops(Watcher):
    """Ends the run in the middle of an epoch, as a kill would."""

    def __init__(self, stage: str, after: int) -> None:
        self.stage, self.left, self.inside = stage, after, False

    def begin(self, task: str, total: int, done: int = 0) -> None:
        self.inside = task == self.stage

    def advance(self, n: int = 1, **numbers: float) -> None:
        self.left -= self.inside
        if self.inside and self.left < 0:
            raise RuntimeError("killed")


def test_a_teacher_of_each_epoch(data: Path, tmp_path: Path) -> None:
    config = settings(**{"engine.keep_teachers": 10})
    source = stages.pretrain_source(config, tmp_path / "source", data_root=data)
    assert list(kept_teachers(source)) == [("pretrain", 1), ("pretrain", 2)]
    run = stages.adapt(config, tmp_path / "run", init=str(source), data_root=data)
    found = kept_teachers(run)
    assert list(found) == [("teach", 1), ("teach", 2), ("teach", 3)]  # stage 2 has no teacher
    assert same(found["teach", 3], run / "teacher.safetensors")
    assert not same(found["teach", 2], found["teach", 3])
    header = load_detector(found["teach", 2])[1]
    assert (header["stage"], header["epoch"], header["network"]) == ("teach", 2, "teacher")
    assert set(header["thresholds"]) == {"red", "green"}
    plain = stages.adapt(
        settings(**{"engine.keep_teachers": 0}), tmp_path / "plain", init=str(source), data_root=data
    )
    assert not kept_teachers(plain) and same(plain / "teacher.safetensors", run / "teacher.safetensors")


def test_the_teacher_is_held_after_a_return(world: Path, source: Path, tmp_path: Path) -> None:
    changes = {"teach.epochs": 5, "retrain.every": 2, "retrain.hold": 1, "engine.keep_teachers": 10}
    config = settings(**changes, **{"mae.use": "none", "teacher.ema": 0.5})
    found = kept_teachers(stages.adapt(config, tmp_path / "run", init=str(source), data_root=world))
    stayed = [same(found["teach", epoch], found["teach", epoch + 1]) for epoch in range(1, 5)]
    assert stayed == [False, True, False, True]  # the student goes back after epochs 2 and 4


def test_the_last_ones_stay(data: Path, tmp_path: Path) -> None:
    config = settings(**{"engine.keep_teachers": 2})
    source = stages.pretrain_source(config, tmp_path / "source", data_root=data)
    run = stages.adapt(config, tmp_path / "run", init=str(source), data_root=data)
    assert list(kept_teachers(run)) == [("teach", 2), ("teach", 3)]


@pytest.mark.parametrize("after", [3, 4, 5])
def test_a_run_that_goes_on_leaves_the_same(data: Path, tmp_path: Path, after: int) -> None:
    config = settings(**{"engine.keep_teachers": 10})
    source = stages.pretrain_source(config, tmp_path / "source", data_root=data)
    whole = stages.adapt(config, tmp_path / "whole", init=str(source), data_root=data)
    with pytest.raises((RuntimeError, Interrupted)):
        stages.adapt(
            config, tmp_path / "run", init=str(source), data_root=data, watcher=Stops("teach", after)
        )
    ahead = tmp_path / "run" / "teachers" / "teach-0003.safetensors"
    ahead.write_bytes((tmp_path / "whole" / "teachers" / "teach-0003.safetensors").read_bytes()[:100])
    run = stages.adapt(config, tmp_path / "run", init=str(source), data_root=data, resume=True)
    mine, theirs = kept_teachers(run), kept_teachers(whole)
    assert mine.keys() == theirs.keys() and all(same(mine[key], theirs[key]) for key in mine)


def test_a_damaged_one_is_told(data: Path, tmp_path: Path) -> None:
    config = settings(**{"engine.keep_teachers": 10})
    run = stages.pretrain_source(config, tmp_path / "source", data_root=data)
    path = kept_teachers(run)["pretrain", 1]
    states = {one.what: one.state for one in diagnose(run)}
    assert states["teachers/pretrain-0001.safetensors"] == FINE
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    path.write_bytes(bytes(content))
    states = {one.what: one.state for one in diagnose(run)}
    assert states["teachers/pretrain-0001.safetensors"] == WRONG
    assert states["teachers/pretrain-0002.safetensors"] == FINE


def test_a_run_that_was_killed_before_it_kept_one_makes_up_for_it(data: Path, tmp_path: Path) -> None:
    """Also for the last epoch of all; what a killed writer left is removed."""
    config = settings(**{"engine.keep_teachers": 10})
    source = stages.pretrain_source(config, tmp_path / "source", data_root=data)
    whole = stages.adapt(config, tmp_path / "run", init=str(source), data_root=data)
    before = weights(kept_teachers(whole)["teach", 3])
    kept_teachers(whole)["teach", 3].unlink()
    for name in ("student", "teacher"):
        (whole / f"{name}.safetensors").unlink()  # so that the run is not over
    run = stages.adapt(config, tmp_path / "run", init=str(source), data_root=data, resume=True)
    after = weights(kept_teachers(run)["teach", 3])
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_from_an_earlier_epoch(data: Path, tmp_path: Path) -> None:
    config = settings(**{"engine.keep_teachers": 2, "engine.keep_checkpoints": 5})
    source = stages.pretrain_source(config, tmp_path / "source", data_root=data)
    run = stages.adapt(config, tmp_path / "run", init=str(source), data_root=data)
    last = weights(kept_teachers(run)["teach", 3])
    again = {"resume": True, "from_checkpoint": "teach-0001.pt"}
    stages.adapt(config, run, init=str(source), data_root=data, **again)
    assert list(kept_teachers(run)) == [("teach", 2), ("teach", 3)]
    then = weights(kept_teachers(run)["teach", 3])
    assert all(torch.equal(last[key], then[key]) for key in last)


def test_litter_beside_them_is_removed(data: Path, tmp_path: Path) -> None:
    run = stages.pretrain_source(
        settings(**{"engine.keep_teachers": 10}), tmp_path / "source", data_root=data
    )
    litter = run / "teachers" / f".pretrain-0001.safetensors.{HOST}abcdefgh{TEMPORARY}"
    litter.write_bytes(b"half")
    assert any(one.what == "unfinished files" and one.state == NOTE for one in diagnose(run))
    mended: list[str] = []
    diagnose(run, mended)
    assert not litter.exists() and mended
