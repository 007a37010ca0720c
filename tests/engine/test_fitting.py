"""engine.batch_size=auto: what fits in memory is measured, the rest accumulated, and the run keeps that."""

from __future__ import annotations

import json
import re

import pytest
import torch
from tiny_world import make_set, tiny_config

from mrt.config import load_config
from mrt.engine import fitting, stages
from mrt.engine.data import classes_of, find_cards
from mrt.engine.distributed import World
from mrt.engine.fitting import Trial, choose, padded
from mrt.engine.report import Watcher
from mrt.errors import MrtError
from mrt.experiment import resolve_started


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    make_set(root, "clear")
    make_set(root, "hazy", haze=0.6, seed=1)
    return root


def gpu(memory: int, each: int, base: int = 0):
    """A card on which a step with n images needs base + n * each; what is tried is listed in ``asked``."""

    def measure(images: int) -> int | None:
        measure.asked.append(images)
        need = base + images * each
        return need if need <= memory else None

    measure.asked = []
    return measure


@pytest.mark.parametrize(
    ("memory", "limit", "fits", "asked"),
    [
        (100, 100, 8, [8]),
        (70, 70, 4, [8, 4]),
        (70, 45, 4, [8, 4]),
        (70, 35, 2, [8, 4, 2]),
        (15, 15, 1, [8, 4, 2, 1]),
    ],
)
def test_a_gpu_is_tried_with_ever_fewer(memory, limit, fits, asked):
    card = gpu(memory, 10)
    images, told = choose(8, limit, card, trying=True)
    assert images == fits and card.asked == asked
    assert "tried" in told and ("would take" in told) == (fits < 8)


def test_only_what_divides_the_batch_is_taken():
    assert choose(6, 50, gpu(50, 10), trying=True)[0] == 3
    assert choose(7, 60, gpu(60, 10), trying=True)[0] == 1


def test_elsewhere_one_and_two_images_tell_all():
    host = gpu(10**9, 10, base=5)
    assert choose(8, 60, host, trying=False)[0] == 4 and host.asked == [1, 2]
    assert choose(8, 85, host, trying=False)[0] == 8
    assert choose(1, 85, host, trying=False)[0] == 1


def test_one_image_that_fits_does_not_speak_for_two():
    assert choose(8, 100, lambda size: 10 if size == 1 else None, trying=False)[0] == 1


@pytest.mark.parametrize("trying", [True, False])
def test_if_nothing_fits_it_is_said_what_to_do(trying):
    with pytest.raises(MrtError, match=r"not even one image per domain fits") as told:
        choose(4, 5, gpu(5, 10), trying)
    assert "engine.checkpointing=true" in str(told.value)


def run(world, folder, **changes):
    """All losses that two steps of a run log, its stored settings, and what was said."""
    said = Said()
    config = tiny_config(**{"pretrain.epochs": 1}, **changes)
    stages.pretrain_source(config, folder, data_root=world, watcher=said)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    times = ("time", "images_per_second")
    losses = [{key: value for key, value in line.items() if key not in times} for line in lines]
    return losses, json.loads((folder / "config.json").read_text())["engine"], said.lines


class Said(Watcher):
    """Keeps what a run says."""

    def __init__(self):
        self.lines = []

    def say(self, text):
        self.lines.append(text)


def test_a_run_keeps_what_was_chosen_and_learns_the_same(world, tmp_path, monkeypatch):
    monkeypatch.setattr(fitting, "free_memory", lambda device: 1 << 40)
    plain, *_ = run(world, tmp_path / "plain")
    everything, engine, said = run(world, tmp_path / "everything", **{"engine.accumulate": "auto"})
    assert (engine["batch_size"], engine["accumulate"]) == (4, 1) and everything == plain
    assert any("4 of 4 images per domain at a time (engine.accumulate=1;" in line for line in said)

    counted = int(1e9 * float(re.search(r"counted: ([\d.]+) GB", "".join(said))[1]))
    monkeypatch.setattr(fitting, "free_memory", lambda device: counted)  # of which four fifths may be used
    chosen, engine, said = run(world, tmp_path / "chosen", **{"engine.accumulate": "auto"})
    assert (engine["batch_size"], engine["accumulate"]) == (4, 2)
    assert any("2 of 4 images" in line and "4 images would take" in line for line in said)
    halves, *_ = run(world, tmp_path / "halves", **{"engine.accumulate": 2})
    assert chosen == halves != plain

    # what is free when it goes on changes nothing
    config, changed = resolve_started(tmp_path / "chosen", ["engine.batch_size=auto"], {})
    assert changed == {} and config.engine.accumulate == 2


def test_the_count_grows_by_the_same_for_every_image(world, tmp_path):
    config = tiny_config()
    plans = [stages.teaching(config).active(config)]
    cards = find_cards(plans, config, world)
    alone = World(0, 1, torch.device("cpu"))
    trial = Trial(config, plans, cards, classes_of(config, cards, None), alone.device, None, tmp_path)
    before = torch.random.get_rng_state()
    with fitting._nothing_drawn(alone.device):
        one, two, four = (trial(images) for images in (1, 2, 4))
    assert torch.equal(before, torch.random.get_rng_state())
    assert 0 < one < two < four
    assert four == pytest.approx(one + 3 * (two - one), rel=0.02)
    assert list(tmp_path.iterdir()) == []


def test_batches_are_tried_at_their_largest_size(world):
    from mrt.data.dataset import DetectionDataset, SampleKey
    from mrt.data.loader import collate
    from mrt.data.registry import find_dataset
    from mrt.data.transforms import Transform

    transform = Transform("pair", [48], 64)
    dataset = DetectionDataset(find_dataset("clear", world), "train", transform=transform)
    batch = collate([dataset[SampleKey(0, "a")]])
    larger = padded(batch, (64, 64))
    assert larger.images.shape == larger.strong_images.shape == (1, 3, 64, 64) and larger.padded
    assert larger.padding_mask[0].sum() == 64 * 64 - 48 * 64
    assert torch.equal(larger.images[..., :48, :], batch.images) and padded(batch, (48, 64)) is batch


def test_how_it_is_asked_for(tmp_path):
    for words in (["engine.batch_size=auto"], ["engine.accumulate=auto"]):
        engine = load_config("city2foggy", words).engine
        assert (engine.batch_size, engine.accumulate) == (8, "auto")
    assert load_config("small", ["engine.batch_size=12", "engine.accumulate=auto"]).engine.batch_size == 12
    (tmp_path / "own.toml").write_text("[engine]\nbatch_size = 'auto'\n")
    engine = load_config(tmp_path / "own.toml").engine
    assert (engine.batch_size, engine.accumulate) == (8, "auto")
    with pytest.raises(
        MrtError, match=r"engine\.accumulate = 'most': should be a number of batches, at least 1, or auto"
    ):
        load_config("small", ["engine.accumulate=most"])
    with pytest.raises(MrtError, match=r"engine\.batch_size"):
        load_config("small", ["engine.batch_size=most"])


def test_free_memory_is_the_least_of_machine_and_container(tmp_path, monkeypatch):
    assert fitting.free_memory(torch.device("cpu")) > 1 << 20
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 500\ninactive_file 100\n")
    assert fitting._left_of_group(tmp_path) == 400
    (tmp_path / "memory.max").write_text("max\n")
    assert fitting._left_of_group(tmp_path) is None and fitting._left_of_group(tmp_path / "none") is None
    monkeypatch.setattr(fitting, "_free_of_host", lambda: iter([None, 900, 400]))
    assert fitting.free_memory(torch.device("cpu")) == 400
    monkeypatch.setattr(fitting, "_free_of_host", lambda: iter([None]))
    with pytest.raises(MrtError, match="does not say how much memory is free"):
        fitting.free_memory(torch.device("cpu"))


def test_runs_of_a_table_are_given_a_number(world):
    from mrt.ablate.nodes import Planner
    from mrt.ablate.studies import Row

    row = Row("own", {"engine.batch_size": "auto"})
    with pytest.raises(MrtError, match="runs of a table are compared"):
        Planner(world, "val").trials([row], [0], "small", [], {})
