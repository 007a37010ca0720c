"""Order, padding, resume and determinism of batches."""

from __future__ import annotations

import os
import pickle
import signal
import time
from functools import partial

import numpy as np
import pytest
import torch
from golden import assert_close
from PIL import Image

from mrt.data.dataset import DetectionDataset
from mrt.data.loader import EpochSampler, build_loader, collate, on_device, one_ahead, pad
from mrt.data.transforms import Sample, Transform
from mrt.engine import data
from mrt.engine.data import Stream
from mrt.errors import MrtError, RunFailed


def pair_loader(card, **options):
    dataset = DetectionDataset(card, "train", transform=Transform("pair", [20, 24], 40, crop=True))
    return build_loader(dataset, **{"batch_size": 2, "seed": 5, "shuffle": True} | options)


def assert_same(first, second):
    assert [t["image_id"] for t in first.targets] == [t["image_id"] for t in second.targets]
    for name in ("images", "padding_mask", "strong_images"):
        assert torch.equal(getattr(first, name), getattr(second, name)), name
    for a, b in zip(first.targets, second.targets, strict=True):
        assert torch.equal(a["boxes"], b["boxes"]) and torch.equal(a["labels"], b["labels"])


def test_recorded_padding(golden):
    recorded = golden("transforms")
    images, mask = pad([torch.from_numpy(recorded[f"collate/in/image.{i}"]) for i in range(3)])
    assert_close(images, recorded["collate/out/images"])
    assert (mask.numpy() == recorded["collate/out/mask"]).all()


def test_images_of_one_size_need_no_padding():
    images, mask = pad([torch.ones(3, 4, 6), torch.zeros(3, 4, 6)])
    assert images.shape == (2, 3, 4, 6) and images.is_contiguous() and not mask.any()


def test_one_shape_for_every_batch_when_asked(small_set):
    dataset = DetectionDataset(small_set, "train", transform=Transform("pair", [20, 24], 40))
    assert {record.size for record in dataset.records} == {(24, 40), (28, 40), (32, 40)}
    assert dataset.largest_size() == (24, 40)  # 24x40 stays, 28x40 and 32x40 become 24x34 and 24x30
    free, fixed = (
        list(build_loader(dataset, batch_size=1, pad_to=size)) for size in (None, dataset.largest_size())
    )
    assert len({batch.images.shape for batch in free}) > 1
    for loose, batch in zip(free, fixed, strict=True):
        height, width = loose.images.shape[-2:]
        assert batch.images.shape == batch.strong_images.shape == (1, 3, 24, 40)
        assert torch.equal(batch.images[..., :height, :width], loose.images)
        assert not batch.images[..., batch.padding_mask[0]].any()
        assert batch.padding_mask.sum() == 24 * 40 - height * width
        assert not batch.padding_mask[0, :height, :width].any()


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_image_too_large_for_a_fixed_shape_is_an_error(small_set, num_workers):
    dataset = DetectionDataset(small_set, "train", transform=Transform("weak", [24], 40))
    with pytest.raises(MrtError, match="40x24 does not fit a batch of 36x24"):
        list(build_loader(dataset, batch_size=7, pad_to=(24, 36), num_workers=num_workers))


def test_a_crop_has_no_largest_size(small_set):
    dataset = DetectionDataset(small_set, "train", transform=Transform("weak", [24], 40, crop=True))
    with pytest.raises(MrtError, match="crop"):
        dataset.largest_size()
    assert DetectionDataset(small_set, "train").largest_size() == (32, 40)


def test_every_image_once_an_epoch_in_an_order_that_changes():
    sampler = EpochSampler(50, seed=1, shuffle=True)
    orders = []
    for epoch in (0, 1, 0):
        sampler.set_epoch(epoch)
        orders.append([key.index for key in sampler])
    assert sorted(orders[0]) == list(range(50))
    assert orders[0] != orders[1] and orders[0] == orders[2]
    assert orders[0] != [key.index for key in EpochSampler(50, seed=2, shuffle=True)]
    assert [key.index for key in EpochSampler(5, seed=2, shuffle=False)] == list(range(5))


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize(("length", "world_size"), [(10, 4), (3, 8), (12, 4)])
def test_ranks_share_an_epoch(length, world_size, drop_last):
    ranks = [EpochSampler(length, 0, True, rank, world_size, drop_last) for rank in range(world_size)]
    parts = [[key.index for key in rank] for rank in ranks]
    assert len({len(part) for part in parts}) == 1 and len(parts[0]) == len(ranks[0])
    together = [index for part in parts for index in part]
    if drop_last:
        assert len(set(together)) == len(together) == length // world_size * world_size
    else:
        assert set(together) == set(range(length))


def test_the_split_over_ranks_does_not_change_the_total_batch():
    whole = list(EpochSampler(12, 3, True))
    halves = [list(EpochSampler(12, 3, True, rank, 2)) for rank in (0, 1)]
    assert [key for pair in zip(*halves, strict=True) for key in pair] == whole


@pytest.mark.parametrize("num_workers", [0, 2])
def test_augmentation_does_not_depend_on_workers_or_global_seeds(small_set, num_workers):
    torch.manual_seed(0)
    expected = list(pair_loader(small_set))
    torch.manual_seed(1)
    for a, b in zip(expected, pair_loader(small_set, num_workers=num_workers), strict=True):
        assert_same(a, b)


def test_augmentation_changes_with_the_epoch(small_set):
    loader = pair_loader(small_set, shuffle=False)
    first = next(iter(loader))
    loader.sampler.set_epoch(1)
    second = next(iter(loader))
    assert [t["image_id"] for t in first.targets] == [t["image_id"] for t in second.targets]
    assert first.images.shape != second.images.shape or not torch.equal(first.images, second.images)


def test_a_run_resumed_in_the_middle_of_an_epoch_sees_the_same_batches(small_set):
    loader = pair_loader(small_set)
    loader.sampler.set_epoch(3)
    whole = list(loader)
    resumed = pair_loader(small_set)
    resumed.sampler.set_epoch(3, start=2 * 2)
    assert len(resumed) == len(whole) - 2
    for a, b in zip(whole[2:], resumed, strict=True):
        assert_same(a, b)


def test_the_next_batch_is_on_its_way_before_the_current_one_is_used():
    log = []
    ahead = one_ahead(range(3), lambda n: log.append(f"start {n}") or n, lambda n: log.append(f"finish {n}"))
    for n in ahead:
        log.append(f"use {n}")
    # "finish 0" comes before "start 1": it waits for all copies that the stream has been given so far
    assert log == [
        "start 0",
        "finish 0",
        "start 1",
        "use 0",
        "finish 1",
        "start 2",
        "use 1",
        "finish 2",
        "use 2",
    ]
    assert list(one_ahead([], int, int)) == []


def test_an_error_of_the_next_batch_is_not_lost():
    def broken():
        yield from (0, 1)
        raise MrtError("no such image")

    ahead = one_ahead(broken(), lambda n: n, lambda _: None)
    assert next(ahead) == 0
    with pytest.raises(MrtError, match="no such image"):
        list(ahead)


def test_batches_on_their_way_do_not_count_as_taken(small_set, monkeypatch):
    """An interrupted run continues after the last batch that it used, also across the end of an epoch."""
    expected, plain = [], Stream(pair_loader(small_set, drop_last=True))
    for _ in range(8):  # an epoch is three batches
        expected.append(next(plain))
    fetched = []

    def fake(batches, device):
        return one_ahead(batches, lambda batch: fetched.append(batch) or batch, lambda _: None)

    monkeypatch.setattr(data, "on_device", fake)
    stream = Stream(pair_loader(small_set, drop_last=True))
    for used in range(1, 6):
        assert_same(next(stream), expected[used - 1])
        assert stream.position == used
    assert len(fetched) == 6
    resumed = Stream(pair_loader(small_set, drop_last=True), stream.position)
    for batch in expected[5:]:
        assert_same(next(resumed), batch)


def test_on_the_cpu_batches_are_handed_on_as_they_are(small_set):
    batches = list(pair_loader(small_set))
    assert all(a is b for a, b in zip(on_device(iter(batches), torch.device("cpu")), batches, strict=True))
    # nothing is fetched before it is asked for
    asked = on_device((1 / 0 for _ in range(2)), torch.device("cpu"))
    with pytest.raises(ZeroDivisionError):
        next(asked)


def test_tensors_of_a_batch_are_all_that_moves(small_set):
    batch = next(iter(pair_loader(small_set, batch_size=4)))
    assert len(batch.tensors()) == 3 + 2 * 4
    assert all(tensor.device.type == "meta" for tensor in batch.to("meta").tensors())


def test_moving_keeps_everything(small_set):
    batch = next(iter(pair_loader(small_set, batch_size=4)))
    moved = batch._map(lambda tensor: tensor.clone())
    assert_same(batch, moved)
    assert len(moved) == 4 and moved.targets[0] is not batch.targets[0]
    assert batch.to("cpu") is batch


def test_pickling_keeps_everything(small_set):
    batch = next(iter(pair_loader(small_set, batch_size=4)))
    assert_same(batch, pickle.loads(pickle.dumps(batch)))
    assert pickle.loads(pickle.dumps(batch)).targets[0].keys() == batch.targets[0].keys()


def test_a_batch_of_weak_views_has_no_strong_ones():
    target = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    batch = collate([Sample(torch.zeros(3, 4, 4), target)])
    assert batch.strong_images is None and batch.to("meta").images.device.type == "meta"


def test_a_set_smaller_than_a_batch_is_an_error(small_set):
    with pytest.raises(MrtError, match="7 images"):
        pair_loader(small_set, batch_size=8, drop_last=True)


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("training", [True, False])
def test_an_unreadable_image_is_the_same_error_from_a_worker(small_set, num_workers, training):
    path = small_set.images_root("train") / "0003.png"
    path.write_bytes(b"no picture")
    loader = pair_loader(
        small_set, shuffle=training, drop_last=training, batch_size=1, num_workers=num_workers
    )
    with pytest.raises(MrtError) as error:
        list(loader)
    assert error.value.message.startswith(f"{path}: cannot be read as an image")
    assert "Traceback" not in str(error.value)
    assert error.value.hint == "Get the file again, or leave it out."


def test_workers_share_a_cache_that_is_filled_before_they_start(small_set):
    plain = [batch.images for batch in pair_loader(small_set)]
    dataset = DetectionDataset(
        small_set, "train", transform=Transform("pair", [20, 24], 40, crop=True), cache="ram"
    )
    loader = build_loader(dataset, batch_size=2, seed=5, shuffle=True, num_workers=1)
    for path in small_set.images_root("train").iterdir():
        path.unlink()
    assert all(torch.equal(batch.images, images) for batch, images in zip(loader, plain, strict=True))


def bad_set(card, *names):
    """The files of these names damaged: missing, no picture, cut, of another size, in turns."""
    root = card.images_root("train")
    ways = (
        lambda path: path.unlink(),
        lambda path: path.write_bytes(b"no picture"),
        lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
        lambda path: Image.new("RGB", (5, 7)).save(path),
        lambda path: (path.unlink(), path.mkdir()),
    )
    for number, name in enumerate(names):
        ways[number % len(ways)](root / name)
    return [str(root / name) for name in names]


def batches_of(card, *, epochs=2, tries=11, **options):
    loader = pair_loader(card, tries=tries, **options)
    found = []
    for epoch in range(epochs):
        loader.sampler.set_epoch(epoch)
        found += list(loader)
    return found


@pytest.mark.parametrize("cache", [None, "ram"])
def test_other_images_take_the_place_of_bad_ones_alike_for_any_number_of_workers(small_set, cache):
    healthy = batches_of(small_set)
    files = bad_set(small_set, "0002.png", "0003.png", "0004.png", "0006.png", "0007.png")
    found = [batches_of(small_set, num_workers=workers) for workers in (0, 2)]
    for here, there in zip(*found, strict=True):
        assert_same(here, there)
        assert here.bad == there.bad
    assert len(found[0]) == len(healthy)
    assert {file for batch in found[0] for file, _ in batch.bad} == set(files)
    assert {target["image_id"] for batch in found[0] for target in batch.targets} == {1, 5}
    for file, reason in (pair for batch in found[0] for pair in batch.bad):
        assert reason.startswith(file)
    for before, after in zip(healthy, found[0], strict=True):
        assert before.bad == () and len(before) == len(after)
        for mine, theirs in zip(before.targets, after.targets, strict=True):
            assert mine["image_id"] not in (1, 5) or torch.equal(mine["boxes"], theirs["boxes"])


def test_what_was_replaced_moves_with_a_batch(small_set):
    bad_set(small_set, "0001.png")
    batch = next(iter(pair_loader(small_set, batch_size=7, tries=3)))
    assert len(batch.bad) == 1
    assert pickle.loads(pickle.dumps(batch)).bad == batch._map(lambda tensor: tensor).bad == batch.bad


def stream_of(card, most, **options):
    stream = Stream(pair_loader(card, tries=most + 1, drop_last=True, **options), max_bad=most)
    said = []
    stream.say = said.append
    return stream, said


def test_a_stream_says_each_bad_file_once_and_fails_past_the_limit(small_set):
    files = bad_set(small_set, "0002.png", "0005.png")
    stream, said = stream_of(small_set, 2)
    for _ in range(12):
        next(stream)
    assert set(stream.bad) == set(files) and len(said) == 2
    assert all("another image takes its place" in text for text in said)

    stream, said = stream_of(small_set, 1)
    with pytest.raises(MrtError) as error:
        for _ in range(12):
            next(stream)
    assert "2 images of the training sets cannot be read, more than data.max_bad = 1" in error.value.message
    assert all(file in error.value.message for file in files)
    assert "--set data.max_bad=N" in error.value.hint and len(said) == 1


def test_a_stream_that_goes_on_replaces_the_same(small_set):
    bad_set(small_set, "0002.png", "0003.png", "0005.png")
    whole, _ = stream_of(small_set, 5)
    expected = [next(whole) for _ in range(9)]
    again = Stream(pair_loader(small_set, tries=6, drop_last=True), 4, max_bad=5)
    for batch in expected[4:]:
        assert_same(next(again), batch)


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("most", [0, 3, 6, 7, 1000])
def test_a_set_of_bad_images_alone_ends(small_set, most, num_workers):
    bad_set(small_set, *(f"000{number}.png" for number in range(1, 8)))
    stream, said = stream_of(small_set, most, num_workers=num_workers)
    with pytest.raises(MrtError, match="cannot be read" if most < 7 else "none of 7 images can be read"):
        next(stream)
    assert len(stream.bad) == min(most + 1, 7) and len(said) == min(most, 7)


def test_several_streams_count_together(small_set, make_set):
    bad_set(small_set, "0002.png", "0003.png")
    streams = {name: stream_of(small_set, 1)[0] for name in ("source", "target")}
    data.watch_bad(streams, {"elsewhere.png": "elsewhere.png: no such image"}, lambda _: None)
    with pytest.raises(MrtError, match="images of the training sets cannot be read"):
        for _ in range(12):
            next(streams["target"])
    assert "elsewhere.png" in streams["source"].bad


def test_too_many_open_files_are_no_bad_image(small_set, monkeypatch):
    import builtins
    import errno

    def full(*_args, **_options):
        raise OSError(errno.EMFILE, "Too many open files")

    loader = pair_loader(small_set, tries=3)
    monkeypatch.setattr(builtins, "open", full)
    with pytest.raises(RunFailed, match="too many open files"):
        next(iter(loader))


class Slow(torch.utils.data.Dataset):
    """Samples of which one takes very long, or kills the process that makes it."""

    def __init__(self, how):
        self.how = how

    def __len__(self):
        return 6

    def __getitem__(self, key):
        if key.index == 3:
            self.how()
        return Sample(torch.zeros(3, 4, 4), {"image_id": os.getpid()})


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def run_out_of_memory():
    return np.empty((1 << 52,))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (partial(time.sleep, 60), "gave no batch for 1 seconds"),
        (die, r"a data worker, which reads images, (was ended by a signal \(Killed\)|ended unexpectedly)"),
        (partial(os._exit, 3), "a data worker, which reads images, ended unexpectedly"),
        (run_out_of_memory, "out of memory: Unable to allocate"),
    ],
)
def test_a_worker_that_fails_is_a_failure_of_the_machine(how, message):
    loader = build_loader(Slow(how), batch_size=1, num_workers=2, timeout=1)
    before = time.monotonic()
    workers = []
    with pytest.raises(RunFailed, match=message) as error:
        for batch in loader:
            workers.append(batch.targets[0]["image_id"])
    assert "--resume" in str(error.value) and "Traceback" not in str(error.value)
    assert time.monotonic() - before < 30 and workers
    assert how is run_out_of_memory or not any(map(alive, workers))
    time.sleep(0.2)  # a worker that was watched would raise its end here


class SignalProbe(torch.utils.data.Dataset):
    """Samples that take a while, and tell in which process and with how many threads they were made."""

    def __len__(self):
        return 12

    def __getitem__(self, key):
        time.sleep(0.02)
        return Sample(torch.zeros(3, 4, 4), {"image_id": (os.getpid(), torch.get_num_threads())})


def test_signals_to_the_group_do_not_reach_workers_but_the_parent_ends_them():
    asked = []
    previous = {
        number: signal.signal(number, lambda number, _: asked.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        loader = build_loader(SignalProbe(), batch_size=1, num_workers=1)
        batches = iter(loader)
        worker, threads = next(batches).targets[0]["image_id"]
        assert worker != os.getpid() and threads == 1
        sender = os.fork()
        if sender == 0:  # a process other than the worker's parent
            os.kill(worker, signal.SIGINT)
            os.kill(worker, signal.SIGTERM)
            os._exit(0)
        os.waitpid(sender, 0)
        assert len(list(batches)) == 11 and len(list(loader)) == 12
        os.kill(worker, signal.SIGTERM)
        deadline = time.monotonic() + 10
        while alive(worker) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not alive(worker)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    assert asked == []


def alive(pid):
    """Running: neither gone nor a zombie."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
