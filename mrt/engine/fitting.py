"""``engine.batch_size = "auto"``: as many images at a time as fit in memory, measured before a run begins.

The total batch stays that of the preset; what does not fit at once is accumulated (``engine.accumulate``), so
losses are divided by the boxes of the whole batch as always. On a GPU whole training steps are tried, from
all images at once to ever fewer. Elsewhere the steps with one image and with two are run and their memory is
counted (:mod:`mrt.engine.live_bytes`): it grows by the same for every further image (docs/memory.md).
"""

from __future__ import annotations

import copy
import gc
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from mrt import failures
from mrt.config import AUTO, Config
from mrt.data.card import DatasetCard
from mrt.data.loader import Batch
from mrt.engine.data import Stream
from mrt.engine.distributed import World
from mrt.engine.learner import Learner, training_step
from mrt.engine.live_bytes import LiveBytes, state_tensors
from mrt.engine.plan import Plan
from mrt.engine.prepare import open_workshop, prepare
from mrt.engine.report import Watcher
from mrt.errors import MrtError
from mrt.parts.base import Moment

SHARE = {"cuda": 0.9, "cpu": 0.8, "mps": 0.8}  # of the free memory that a step may take
STEPS = 2  # of a trial: the first makes the optimiser's state
LESS = "--set engine.checkpointing=true, --set engine.amp=bf16, or smaller images (data.sides, data.max_size)"
Measure = Callable[[int], "int | None"]


def settle(
    config: Config,
    plans: Sequence[Plan],
    cards: Mapping[str, DatasetCard],
    classes: list[str],
    world: World,
    start: str | None,
    folder: Path,
    watcher: Watcher,
) -> Config:
    """The configuration with a number for ``engine.accumulate``; unchanged if it has one.

    Every process of a run tries by itself and takes what fits in all of them. No random number of the run is
    drawn, and no weight of it is made.

    Args:
        start: where the run's weights come from. folder: of the run; nothing is written to it.
        watcher: is told what was chosen and why.

    Raises:
        MrtError: not even one image per domain fits, or the total batch cannot be shared by the processes.
    """
    if config.engine.accumulate != AUTO:
        return config
    share, rest = divmod(config.engine.batch_size, world.size)
    if rest or not share:
        raise MrtError(
            f"engine.batch_size = {config.engine.batch_size} cannot be shared by {world.size} processes",
            f"take a multiple of {world.size}",
        )
    limit = int(SHARE[world.device.type] * free_memory(world.device))
    if world.device.type != "cuda":  # the processes of a machine share its memory
        limit //= max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    trial = Trial(config, plans, cards, classes, world.device, start, folder)
    watcher.say("engine.batch_size=auto: looking how many images fit at a time")
    with _nothing_drawn(world.device):
        images, told = choose(share, limit, trial, trying=world.device.type == "cuda")
    fits = min(world.gather(images))
    accumulate = share // fits
    watcher.say(
        f"engine.batch_size=auto: {fits} of {share} images per domain at a time (engine.accumulate="
        f"{accumulate}; the total batch stays {config.engine.batch_size}): {told}"
    )
    return config.model_copy(update={"engine": config.engine.model_copy(update={"accumulate": accumulate})})


def choose(share: int, limit: int, measure: Measure, trying: bool) -> tuple[int, str]:
    """How many images at a time, a divisor of ``share``, and why, in words.

    Args:
        share: images per domain and process. limit: bytes that a step may take.
        measure: bytes of a step with so many images at a time; None: it failed for want of memory.
        trying: measure each choice itself, the largest first; else one and two images only.

    Raises:
        MrtError: not even one image fits.
    """
    sizes = [size for size in range(share, 0, -1) if share % size == 0]
    needs: dict[int, int | None] = {}
    if trying:
        for size in sizes:
            needs[size] = measure(size)
            if _fits(needs[size], limit):
                break
    else:
        one = measure(1)
        two = measure(2) if one is not None and share > 1 else None
        needs = {1: one}
        if one is not None and two is not None:
            needs |= {size: one + max(two - one, 0) * (size - 1) for size in sizes}
    fits = next((size for size in sizes if _fits(needs.get(size), limit)), None)
    if fits is None:
        need = needs.get(1)
        what = "it takes more than there is" if need is None else f"it takes {_gb(need)}"
        raise MrtError(
            f"engine.batch_size=auto: not even one image per domain fits: {what}, and {_gb(limit)} may be "
            "used",
            f"try {LESS}",
        )
    words = "tried" if trying else "counted"
    told = f"{words}: {_gb(needs[fits])} of {_gb(limit)} that may be used"
    larger = [size for size in sizes if size > fits]
    if larger:
        need = needs.get(larger[-1])
        more = "more than there is" if need is None else _gb(need)
        told += f"; {larger[-1]} images would take {more}"
    return fits, told


def _fits(need: int | None, limit: int) -> bool:
    return need is not None and need <= limit


def _gb(size: int | None) -> str:
    return f"{(size or 0) / 1e9:.3g} GB"


class Trial:
    """Measures steps of all of a run's stages with networks of its own, which are gone afterwards."""

    def __init__(
        self,
        config: Config,
        plans: Sequence[Plan],
        cards: Mapping[str, DatasetCard],
        classes: list[str],
        device: torch.device,
        start: str | None,
        folder: Path,
    ) -> None:
        self.config, self.plans, self.cards, self.classes = config, plans, dict(cards), classes
        self.world, self.start, self.folder = World(0, 1, device), start, folder

    def __call__(self, images: int) -> int | None:
        """Bytes of the stage that takes most with so many images per domain and backward pass; None: too
        many.
        """
        most = 0
        for plan in self.plans:
            need = self._of(plan, images)
            gc.collect()
            if self.world.device.type == "cuda":
                torch.cuda.empty_cache()
            if need is None:
                return None
            most = max(most, need)
        return most

    def _of(self, plan: Plan, images: int) -> int | None:
        on_gpu = self.world.device.type == "cuda"
        try:
            if on_gpu:
                torch.cuda.reset_peak_memory_stats(self.world.device)
            learner, batches = self._ready(plan, images)
            if on_gpu:
                for _ in range(STEPS):
                    training_step(learner, batches, Moment(learner.step, STEPS, 0))
                torch.cuda.synchronize(self.world.device)
                return torch.cuda.max_memory_reserved(self.world.device)
            training_step(learner, batches, Moment(0, STEPS, 0))
            with LiveBytes(state_tensors(learner, batches)) as count:
                training_step(learner, batches, Moment(1, STEPS, 0))
            return count.peak
        except (RuntimeError, MemoryError) as error:
            if not failures.lacks_memory(error):
                raise
            return None

    def _ready(self, plan: Plan, images: int) -> tuple[Learner, list[dict[str, Batch]]]:
        """A learner and two micro-batches (gradients live through the second pass) of the largest size."""
        how = {"batch_size": images, "accumulate": 1, "workers": 0, "compile": "off"}
        how |= {"shares_every": 0, "snapshots": 0, "patience": 0, "on_collapse": "warn"}
        config = self.config.model_copy(
            update={
                "engine": self.config.engine.model_copy(update=how),
                "data": self.config.data.model_copy(update={"cache": "none"}),
            }
        )
        plan = copy.deepcopy(plan)
        more = (config, self.world, self.cards, self.classes, [plan], self.start, True, self.folder)
        stage = prepare(plan, open_workshop(*more), first=False)
        for part in stage.learner.method:
            part.start()
        sizes = [largest(stream, config) for stream in stage.streams.values()]
        size = max(height for height, _ in sizes), max(width for _, width in sizes)
        batches = [
            {domain: padded(next(stream), size) for domain, stream in stage.streams.items()} for _ in range(2)
        ]
        return stage.learner, batches


def largest(stream: Stream, config: Config) -> tuple[int, int]:
    """(height, width) that every batch of a stream fits into; with random crops a square."""
    dataset: Any = stream.loader.dataset
    while hasattr(dataset, "dataset"):
        dataset = dataset.dataset
    found = []
    for part in getattr(dataset, "parts", [dataset]):
        try:
            found.append(part.largest_size())
        except (MrtError, AttributeError):
            found.append((config.data.max_size, config.data.max_size))
    return max(height for height, _ in found), max(width for _, width in found)


def padded(batch: Batch, size: tuple[int, int]) -> Batch:
    """The batch with more padding, up to (height, width)."""
    below, right = (max(full - now, 0) for full, now in zip(size, batch.images.shape[-2:], strict=True))
    if not (below or right):
        return batch
    by = (0, right, 0, below)
    strong = batch.strong_images
    return replace(
        batch,
        images=functional.pad(batch.images, by),
        padding_mask=functional.pad(batch.padding_mask, by, value=True),
        strong_images=None if strong is None else functional.pad(strong, by),
        padded=True,
    )


@contextmanager
def _nothing_drawn(device: torch.device) -> Iterator[None]:
    """Inside, torch's random numbers are drawn from copies of its generators."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        yield


def free_memory(device: torch.device) -> int:
    """Bytes that are free for tensors: of the GPU, or of this machine and the control group of the process.

    Raises:
        MrtError: the system does not say.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    found = [size for size in _free_of_host() if size is not None]
    if not found:
        raise MrtError(
            "engine.batch_size=auto: this system does not say how much memory is free",
            "give numbers: --set engine.batch_size=8 engine.accumulate=4",
        )
    return min(found)


def _free_of_host() -> Iterator[int | None]:
    yield from (_available(), _left_of_group())
    if sys.platform != "linux" and hasattr(os, "sysconf"):
        names = os.sysconf_names
        if "SC_PHYS_PAGES" in names and "SC_PAGE_SIZE" in names:  # macOS tells the whole memory only
            yield os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    if sys.platform == "win32":
        yield _available_on_windows()


def _available() -> int | None:
    try:
        found = re.search(r"MemAvailable:\s*(\d+) kB", Path("/proc/meminfo").read_text())
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


def _left_of_group(root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """What a container's limit leaves, by version 2 of control groups."""
    try:
        most, used = ((root / f"memory.{name}").read_text().strip() for name in ("max", "current"))
        files = re.search(r"^inactive_file (\d+)$", (root / "memory.stat").read_text(), re.MULTILINE)
    except OSError:
        return None
    # Of what is used, cached files are given back when memory is wanted.
    return None if most == "max" else int(most) - int(used) + (int(files[1]) if files else 0)


def _available_on_windows() -> int | None:
    import ctypes

    class Status(ctypes.Structure):
        _fields_ = (
            ("length", ctypes.c_ulong),
            ("load", ctypes.c_ulong),
            *((name, ctypes.c_ulonglong) for name in ("total", "free", "a", "b", "c", "d", "e")),
        )

    status = Status(length=ctypes.sizeof(Status))
    fine = ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status))
    return int(status.free) if fine else None
