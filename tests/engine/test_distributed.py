"""Two processes on this machine, started as a user would start them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_world import make_set, tiny_config

from mrt.data.registry import find_dataset
from mrt.engine import build, checkpoint
from mrt.engine import data as sets
from mrt.engine.distributed import World
from mrt.engine.facts import read_facts
from mrt.engine.inference import measure
from mrt.engine.kept import kept_teachers
from mrt.engine.load import load_detector

ROOT = Path(__file__).parents[2]
# Of a loss: what another order of sums gives after eight steps; discriminators that start otherwise change it
# by up to 1.6e-2
NOISE = 1e-5
SCRIPT = """
import sys
from pathlib import Path
from test_stages import StopAt
from tiny_world import tiny_config
from mrt.engine import build, distributed, stages
from mrt.errors import Interrupted


def smooth(*arguments, plain=build.build_optimiser):
    # AdamW whose step is proportional to the gradient: as it is, its first steps are the gradient's sign,
    # which is noise near zero.
    optimiser = plain(*arguments)
    for group in optimiser.param_groups:
        group.update(eps=1.0, lr=1000 * group["lr"])
    return optimiser


build.build_optimiser = smooth
folder, data, start, stop = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
changes = {"model.dropout": 0.0, "model.weights": "checkpoint", "model.freeze": "stem"}
changes |= {"mae.mask_ratio": 0.0, "mae.normalise": True, "engine.threads": 1}
watcher = StopAt(stop)
if start.endswith("+collapse"):  # labels "vanish" from the second epoch of three on
    from mrt.engine.watch import Alarm, Watch

    Watch._few = lambda self, now: [Alarm("vanishing", "labels vanish.")] if now.epoch > 1 else []
    start = start.removesuffix("+collapse")
    changes |= {"engine.on_collapse": "restore", "engine.keep_teachers": 3, "teach.epochs": 3}
try:
    if start == "source":
        stages.pretrain_source(tiny_config(**changes), folder, data_root=data)
    else:
        resume = start == "resume"
        how = {"init": None if resume else start, "resume": resume, "data_root": data, "watcher": watcher}
        stages.adapt(tiny_config(**changes), folder, **how)
except Interrupted:
    assert stop
distributed.leave()
"""


def launch(folder: Path, data: Path, start: str, processes: int, stop: int = 0) -> list[dict]:
    """Run the script and read the run's metrics; ``stop``: the step after which the first process is asked to
    stop.
    """
    script = data.parent / "train.py"
    script.write_text(SCRIPT)
    launcher = (
        ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        if processes > 1
        else []
    )
    environment = {
        **os.environ,
        "PYTHONPATH": f"{ROOT}:{ROOT / 'tests/engine'}",
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    done = subprocess.run(
        [sys.executable, *launcher, str(script), str(folder), str(data), start, str(stop)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """11 images a split: neither two processes nor batches of four divide them."""
    root = tmp_path_factory.mktemp("world") / "data"
    make_set(root, "clear", images=11, seed=1)
    make_set(root, "hazy", images=11, haze=0.5, seed=2)
    return root


@pytest.fixture(scope="module")
def source(data) -> Path:
    """A source run of one process."""
    launch(data.parent / "source", data, "source", 1)
    return data.parent / "source"


@pytest.fixture(scope="module")
def adapted(data, source) -> Path:
    """Stages 2 and 3 in one process, never interrupted."""
    launch(data.parent / "adapted", data, str(source), 1)
    return data.parent / "adapted"


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def totals(lines: list[dict]) -> list[float]:
    return [line["total"] for line in lines if line["kind"] == "train"]


def test_two_processes_give_what_one_gives(data, source, adapted, tmp_path):
    """Same total batch, batch norm frozen, nothing random in the network: the losses are those of a single
    process.
    """
    one, two = totals(lines(source)), totals(launch(tmp_path / "source", data, "source", 2))
    assert len(one) == 4 and one == pytest.approx(two, rel=NOISE)
    one, two = totals(lines(adapted)), totals(launch(tmp_path / "adapted", data, str(source), 2))
    assert len(two) == 8 and one == pytest.approx(two, rel=NOISE)


def test_two_processes_go_back_to_the_same_teacher(data, source, tmp_path):
    """Only the first process watches and reads the teacher that was kept; both end, with the same weights."""
    found = []
    for processes in (1, 2):
        run = tmp_path / str(processes)
        launch(run, data, f"{source}+collapse", processes)
        facts = read_facts(run)
        assert facts["ended"]["teach"] == {"why": "collapse: vanishing", "epoch": 2, "teacher": 1}
        assert "teach" in facts["finished"]
        last, kept = (load_detector(path)[0].state_dict() for path in (run, kept_teachers(run)["teach", 1]))
        assert all(torch.equal(value, kept[name]) for name, value in last.items())
        found.append(last)
    one, two = found
    assert all(torch.allclose(value, two[name], rtol=1e-3, atol=1e-5) for name, value in one.items())


def test_a_run_of_two_goes_on_with_one_and_again_with_two(data, source, adapted, tmp_path):
    """Stopped in the middle of an epoch of stage 2, and of stage 3: thresholds, optimiser and the images'
    order go on.
    """
    run = tmp_path / "run"
    launch(run, data, str(source), 2, stop=3)
    launch(run, data, "resume", 1, stop=2)  # step 1 of stage 3: in the middle of its first epoch
    stopped = launch(run, data, "resume", 2)
    whole = lines(adapted)
    place = [(line["stage"], line["kind"], line["step"]) for line in whole]
    assert [(line["stage"], line["kind"], line["step"]) for line in stopped] == place, (
        "no line twice, none missing"
    )
    assert totals(whole) == pytest.approx(totals(stopped), rel=NOISE)
    for name in ("lr", "pseudo_labels"):
        assert [line.get(name) for line in whole] == pytest.approx([line.get(name) for line in stopped])
    thresholds = [[line["thresholds"] for line in run if "thresholds" in line] for run in (whole, stopped)]
    assert len(thresholds[0]) == 2 and all(
        one == pytest.approx(two, abs=1e-3) for one, two in zip(*thresholds, strict=True)
    )


def test_the_order_of_images_does_not_depend_on_the_processes(data, tmp_path):
    """Each step sees the same images, over passes that end with a remainder, from wherever a run goes on."""
    config, card = tiny_config(**{"engine.workers": 0}), find_dataset("clear", data)

    def batches(processes: int, first: int) -> list[list[int]]:
        taken: list[list[int]] = [[] for _ in range(6)]
        for rank in range(processes):
            world = World(rank, processes, torch.device("cpu"))
            dataset = sets.training_set(
                config, card, "train", ["red", "green"], "weak", varied=True, labelled=True
            )
            stream = sets.Stream(sets.training_loader(config, dataset, world, 5), first)
            for step in range(first, 6):
                taken[step] += [target["image_id"] for target in next(stream).targets]
        return [sorted(ids) for ids in taken]

    whole = batches(1, 0)
    assert [len(ids) for ids in whole] == [4] * 6 and whole[0] != whole[2], (
        "two batches a pass, each pass in a new order"
    )
    assert batches(2, 0) == batches(4, 0) == whole
    assert batches(2, 3)[3:] == whole[3:]


def test_more_processes_than_saved_draw_differently(tmp_path):
    """A process without a saved state must not repeat another one's masks and dropout."""
    states = [checkpoint.random_state()]
    draws = []
    for rank in (0, 1, 2):
        world = World(rank, 3, torch.device("cpu"))
        checkpoint.restore_process(states, world, seed=0, step=7)
        draws.append(torch.rand(3).tolist())
    assert draws[0] != draws[1] != draws[2] != draws[0]


def test_evaluation_counts_every_image_once_and_only_the_first_process_scores(data):
    """11 images, two processes: one image is seen twice and counted once, and each has the detections that
    one process finds.
    """
    config = tiny_config()
    dataset = sets.evaluation_set(config, find_dataset("hazy", data), "val", ["red", "green"])
    torch.manual_seed(0)
    detector = build.build_detector(config, ["red", "green"])
    shares: list[dict] = []
    handed = []

    class Half(World):
        def gather(self, mine: dict) -> list[dict]:
            shares.append(mine)
            return shares

        def share(self, value: tuple) -> tuple:
            handed.append(value)
            return value

    cpu = torch.device("cpu")
    one = {"detector": detector}
    whole = measure(one, dataset, 4, World(0, 1, cpu))["detector"]
    assert measure(one, dataset, 4, Half(1, 2, cpu)) == {}, "it would have got what the first one hands out"
    both = measure(one, dataset, 4, Half(0, 2, cpu))["detector"]
    assert [len(share["detector"]) for share in shares] == [6, 6] and len(
        both.detections
    ) == both.num_images == 11
    assert handed[0] == ({}, None) and handed[1][1] is None
    assert handed[1][0]["detector"] == both and not handed[1][0]["detector"].detections
    expected, found = (
        {item.image_id: item.scores for item in metrics.detections} for metrics in (whole, both)
    )
    assert all(found[key] == pytest.approx(expected[key], abs=1e-5) for key in expected), (
        "float noise of another batch size"
    )
