"""Batches: padding, order, workers.

Same seed, same batches, whatever the number of workers and wherever a run was interrupted.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from mrt import failures
from mrt.data.dataset import DetectionDataset, SampleKey, UnreadableImage
from mrt.data.transforms import Sample, Target
from mrt.errors import MrtError, RunFailed

TIMEOUT = 600  # seconds: as the default of engine.timeout
KILLED_AFTER = 1.0  # seconds that a worker which was told to end is waited for


@dataclass(frozen=True)
class Batch:
    """Images padded with zeros on the right and below to a common size.

    Args:
        images: (B, 3, H, W) float32; for pairs the weak view.
        padding_mask: (B, H, W) bool, True = padding.
        targets: one dict per image, see :class:`mrt.data.dataset.DetectionDataset`; boxes are cxcywh shares
            of the unpadded image.
        strong_images: (B, 3, H, W), the strong view of a pair, same geometry and padding.
        padded: whether any image has padding. Reading that from a mask on a GPU would mean waiting for it.
        bad: images that could not be read and were replaced by others: (file, reason) each.
    """

    images: Tensor
    padding_mask: Tensor
    targets: list[Target]
    strong_images: Tensor | None = None
    padded: bool = True
    bad: tuple[tuple[str, str], ...] = ()

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def mask(self) -> Tensor | None:
        """``padding_mask`` for the detector: None where nothing is padded."""
        return self.padding_mask if self.padded else None

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The batch on a device; all boxes are copied at once, and all labels."""
        if self.images.device == torch.device(device):
            return self
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory (the ``DataLoader`` calls this)."""
        return self._map(lambda tensor: tensor.pin_memory())

    def tensors(self) -> list[Tensor]:
        """Every tensor of the batch and its targets."""
        own = [
            tensor for tensor in (self.images, self.padding_mask, self.strong_images) if tensor is not None
        ]
        return own + [
            value for target in self.targets for value in target.values() if isinstance(value, Tensor)
        ]

    def _map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        plain, joined, counts = _join(self.targets)
        joined = {name: change(tensor) for name, tensor in joined.items()}
        strong = None if self.strong_images is None else change(self.strong_images)
        targets = _part(plain, joined, counts)
        return Batch(change(self.images), change(self.padding_mask), targets, strong, self.padded, self.bad)

    def __getstate__(self) -> tuple:
        """Between processes each tensor costs a file descriptor, so the targets' tensors are sent joined."""
        return self.images, self.padding_mask, _join(self.targets), self.strong_images, self.padded, self.bad

    def __setstate__(self, state: tuple) -> None:
        images, padding_mask, targets, strong, padded, bad = state
        self.__dict__.update(
            images=images,
            padding_mask=padding_mask,
            targets=_part(*targets),
            strong_images=strong,
            padded=padded,
            bad=bad,
        )


def _join(targets: Sequence[Target]) -> tuple[list[Target], dict[str, Tensor], dict[str, list[int]]]:
    """Targets without tensors, the tensors of all images joined by name, and how many rows each image has."""
    names = [name for name, value in targets[0].items() if isinstance(value, Tensor)] if targets else []
    plain = [{name: value for name, value in target.items() if name not in names} for target in targets]
    joined = {name: torch.cat([target[name] for target in targets]) for name in names}
    return plain, joined, {name: [len(target[name]) for target in targets] for name in names}


def _part(plain: Sequence[Target], joined: dict[str, Tensor], counts: dict[str, list[int]]) -> list[Target]:
    """The reverse of :func:`_join`."""
    targets = [dict(target) for target in plain]
    for name, tensor in joined.items():
        for target, rows in zip(targets, tensor.split(counts[name]), strict=True):
            target[name] = rows
    return targets


def collate(samples: Sequence[Sample], size: tuple[int, int] | None = None) -> Batch:
    """Pad to ``size`` (height, width), by default to the largest height and width of the batch."""
    images, padding_mask = pad([sample.image for sample in samples], size)
    strong = None if samples[0].strong is None else pad([sample.strong for sample in samples], size)[0]
    padded = any(sample.image.shape[1:] != images.shape[2:] for sample in samples)
    return Batch(images, padding_mask, [sample.target for sample in samples], strong, padded)


def pad(images: Sequence[Tensor], size: tuple[int, int] | None = None) -> tuple[Tensor, Tensor]:
    """List of (3, h, w) -> (B, 3, H, W) zero-padded right and below, and (B, H, W) bool, True = padding.

    Args:
        size: H and W; by default the largest h and w, so images of one size are stacked as they are.

    Raises:
        MrtError: an image is larger than ``size``.
    """
    largest = max(image.shape[1] for image in images), max(image.shape[2] for image in images)
    height, width = size or largest
    if largest[0] > height or largest[1] > width:
        raise MrtError(
            f"an image of {largest[1]}x{largest[0]} does not fit a batch of {width}x{height}",
            "Pad to the data set's largest_size(), or not to a fixed size.",
        )
    mask = torch.ones(len(images), height, width, dtype=torch.bool)
    for index, image in enumerate(images):
        mask[index, : image.shape[1], : image.shape[2]] = False
    full = []
    for image in images:
        right, below = width - image.shape[2], height - image.shape[1]
        full.append(functional.pad(image, (0, right, 0, below)) if right or below else image)
    return default_collate(full), mask  # in a worker process this stacks straight into shared memory


class EpochSampler(Sampler[SampleKey]):
    """The order of one epoch: a permutation drawn from (seed, epoch), divided among the ranks.

    An epoch can start in the middle.

    Each key carries "seed/epoch/index", which seeds that sample's augmentation.

    Args:
        length: samples in the dataset.
        shuffle: else in order.
        rank, world_size: this process takes every ``world_size``-th sample.
        drop_last: leave out samples that do not divide evenly among the ranks; else the first samples are
            repeated so that all ranks have equally many.
    """

    def __init__(
        self,
        length: int,
        seed: int,
        shuffle: bool,
        rank: int = 0,
        world_size: int = 1,
        drop_last: bool = False,
    ) -> None:
        self.length, self.seed, self.shuffle = length, seed, shuffle
        self.rank, self.world_size = rank, world_size
        share = length // world_size if drop_last else -(-length // world_size)
        self.total = share * world_size
        self.epoch = self.start = 0

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Choose the epoch.

        ``start``: samples of it that this rank has used already (finished batches times batch size).
        """
        self.epoch, self.start = epoch, start

    def __len__(self) -> int:
        return max(self.total // self.world_size - self.start, 0)

    def __iter__(self) -> Iterator[SampleKey]:
        if self.shuffle:
            generator = torch.Generator().manual_seed((self.seed * 1_000_003 + self.epoch) % (1 << 63))
            order = torch.randperm(self.length, generator=generator).tolist()
        else:
            order = list(range(self.length))
        order = (order * -(-self.total // self.length))[: self.total] if self.length else []
        for index in order[self.rank :: self.world_size][self.start :]:
            yield SampleKey(index, f"{self.seed}/{self.epoch}/{index}")


class UnreadableImages(UnreadableImage):
    """A sample could be taken from no image: none that was tried can be read.

    Attributes:
        bad: (file, reason) of each.
    """

    def __init__(self, message: str, hint: str | None = None, bad: Sequence[tuple[str, str]] = ()) -> None:
        super().__init__(message, hint, bad[0][0] if bad else "")
        self.bad = tuple(bad)


class BatchLoader(DataLoader):
    """A ``DataLoader`` of :class:`Batch` that passes user errors and signals on to the main process.

    An exception in a worker would arrive as the text of its traceback. So a worker returns an
    :class:`MrtError` or :class:`RunFailed` in place of the batch; it is raised here with its message and hint
    intact. Failures of the machine (memory, workers that end or hang) are raised as :class:`RunFailed`.

    Args:
        tries: of this many images, the first that can be read gives a sample; 1: an image that cannot be
            read is an error. Those that could not are in ``bad`` of the batch.
    """

    def __init__(
        self, dataset: Dataset, pad_to: tuple[int, int] | None = None, tries: int = 1, **options: Any
    ) -> None:
        together = partial(_collate_answers, size=pad_to)
        super().__init__(
            _Answers(dataset, tries),
            collate_fn=together,
            worker_init_fn=_leave_signals_to_the_parent,
            **options,
        )

    def check_worker_number_rationality(self) -> None:
        """Without PyTorch's warning about more workers than cores: ``engine.workers`` is a setting, and its
        default is for larger machines.
        """

    def __iter__(self) -> Iterator[Batch]:
        with _machine_failures(self):
            answers = super().__iter__()
        return self._batches(answers)

    def _batches(self, answers: Iterator[Batch | MrtError | RunFailed]) -> Iterator[Batch]:
        while True:
            with _machine_failures(self):
                answer = next(answers, None)
            if answer is None:
                return
            if isinstance(answer, (MrtError, RunFailed)):
                _end_workers(self)
                # A new error: raising the one that this frame holds would make a reference cycle of frame
                # and workers, and workers in a cycle end late.
                raise _renewed(answer) from answer
            yield answer


@contextmanager
def _machine_failures(loader: DataLoader) -> Iterator[None]:
    """Raise failures of the machine as :class:`RunFailed`.

    Workers that hang are killed, or this process could not end either.
    """
    try:
        yield
    except (MrtError, RunFailed):
        raise
    except (RuntimeError, MemoryError, OSError, EOFError) as error:
        failed = failures.worker_gone(error) if loader.num_workers else failures.told(error)
        if failed is None:
            raise
        _end_workers(loader)
        raise failed from error


def _end_workers(loader: DataLoader) -> None:
    """End the workers of a failed pass for good; another pass starts new ones."""
    iterator, loader._iterator = getattr(loader, "_iterator", None), None
    workers = list(getattr(iterator, "_workers", ()))
    with suppress(RuntimeError, OSError):
        if workers:
            iterator._shutdown_workers()  # first, for it lets torch no longer watch over them
    for worker in workers:
        if worker.is_alive():
            worker.join(KILLED_AFTER)
        if worker.is_alive():
            worker.kill()


def _renewed(answer: MrtError | RunFailed) -> MrtError | RunFailed:
    if isinstance(answer, UnreadableImages):
        return UnreadableImages(answer.message, answer.hint, answer.bad)
    if isinstance(answer, UnreadableImage):
        return UnreadableImage(answer.message, answer.hint, answer.file)
    if isinstance(answer, MrtError):
        return MrtError(answer.message, answer.hint)
    return RunFailed(str(answer))


class _Answers(Dataset):
    """A data set that returns a sample with what could not be read in its place, or the error that it would
    raise.

    Instead of an image that cannot be read it takes the next one that can be, of ``tries`` images at most.
    That one's augmentation has a seed of its own, so all this is the same for any number of workers.
    """

    def __init__(self, dataset: Dataset, tries: int = 1) -> None:
        self.dataset, self.tries = dataset, tries

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: SampleKey | int) -> tuple[Sample, list] | MrtError | RunFailed:
        try:
            return self._first_readable(key) if self.tries > 1 else (self.dataset[key], [])
        except (MrtError, RunFailed) as error:
            return error
        except MemoryError as error:
            return failures.told(error)

    def _first_readable(self, key: SampleKey) -> tuple[Sample, list[tuple[str, str]]]:
        bad: dict[str, UnreadableImage] = {}
        tries = min(self.tries, len(self.dataset))
        for number in range(tries):
            index = (key.index + number) % len(self.dataset)
            other = SampleKey(index, f"{key.seed}/{index}") if number else key
            try:
                return self.dataset[other], [(file, error.message) for file, error in bad.items()]
            except UnreadableImage as error:
                bad.setdefault(error.file, error)
        first = next(iter(bad.values()))
        found = [(file, error.message) for file, error in bad.items()]
        if tries == len(self.dataset):
            raise UnreadableImages(
                f"none of {tries} images can be read; the first: {first.message}", first.hint, found
            )
        raise UnreadableImages(first.message, first.hint, found)


def _collate_answers(answers: Sequence[Any], size: tuple[int, int] | None) -> Batch | MrtError | RunFailed:
    for answer in answers:
        if isinstance(answer, (MrtError, RunFailed)):
            return answer
    try:
        batch = collate([sample for sample, _ in answers], size)
    except MrtError as error:
        return error
    bad = tuple(dict(pair for _, found in answers for pair in found).items())
    return replace(batch, bad=bad) if bad else batch


def _leave_signals_to_the_parent(_worker: int) -> None:
    """Ignore Ctrl-C and SIGTERM, except a SIGTERM that the main process sends.

    These signals reach a whole group of processes. Workers must go on until the main process has saved its
    state and ends them.

    A worker killed by a signal would raise an error in the middle of the main process' step.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "SIGUSR1"):
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # a request for a checkpoint: the main process' matter
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_obey_the_parent, daemon=True).start()


def _obey_the_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


def build_loader(
    dataset: DetectionDataset,
    *,
    batch_size: int,
    seed: int = 0,
    shuffle: bool = False,
    num_workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
    drop_last: bool = False,
    pin_memory: bool = False,
    pad_to: tuple[int, int] | None = None,
    tries: int = 1,
    timeout: float = TIMEOUT,
) -> BatchLoader:
    """Batches of a data set; ``batch_size`` is per process.

    Call ``loader.sampler.set_epoch(epoch)`` before each epoch.

    A data set with a cache decodes all its images now if there are workers, so that they share them.

    Args:
        pin_memory: return batches in page-locked memory, from which they are copied to a GPU while it works
            (see :func:`on_device`).
        pad_to: (height, width) of every batch. Without it, batches have the size of their largest image. With
            ``drop_last`` that is always the same shape if the images share a size and are neither cropped nor
            scaled at random. If they differ and a compiled step or CUDA graph needs one shape, give
            ``dataset.largest_size()``.
        tries: images that are tried for a sample, see :class:`BatchLoader`.
        timeout: seconds that a batch of the workers is waited for.
    """
    if drop_last and len(dataset) // world_size < batch_size:
        several = f"{world_size} processes x " if world_size > 1 else ""
        raise MrtError(
            f"{len(dataset)} images do not fill a batch: {several}{batch_size} images at a time",
            "Use more images, or a smaller batch"
            + (f": --set engine.batch_size={len(dataset)}" if world_size == 1 and len(dataset) else "."),
        )
    sampler = EpochSampler(len(dataset), seed, shuffle, rank, world_size, drop_last)
    if num_workers > 0 and hasattr(dataset, "preload"):
        dataset.preload()
    return BatchLoader(
        dataset,
        pad_to,
        tries,
        batch_size=batch_size,
        sampler=sampler,
        num_workers=num_workers,
        drop_last=drop_last,
        pin_memory=pin_memory,
        persistent_workers=num_workers > 0,
        prefetch_factor=4 if num_workers > 0 else None,
        timeout=timeout if num_workers > 0 else 0,
        # without it, each pass would draw from the generator that dropout and masks use
        generator=torch.Generator().manual_seed(seed),
    )


def on_device(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """The batches on a device, in order.

    To a GPU each batch is copied on a separate stream while the one before it is being used.

    Pinned batches (``pin_memory``) are copied without waiting. On a CPU each batch is passed on unchanged
    when it is asked for.
    """
    if device.type != "cuda":
        return (batch.to(device) for batch in batches)
    copies = torch.cuda.Stream(device)

    def start(batch: Batch) -> Batch:
        with torch.cuda.stream(copies):
            return batch.to(device, non_blocking=True)

    def finish(batch: Batch) -> None:
        users = torch.cuda.current_stream(device)
        users.wait_stream(copies)
        for tensor in batch.tensors():
            # its memory belongs to the copying stream, which must not reuse it before the users are done
            tensor.record_stream(users)

    return one_ahead(batches, start, finish)


def one_ahead(
    batches: Iterable[Batch], start: Callable[[Batch], Batch], finish: Callable[[Batch], None]
) -> Iterator[Batch]:
    """Start the next batch before the current, finished one is handed out.

    An error of the next one therefore comes early.
    """
    coming: Batch | None = None
    for batch in batches:
        ready = coming
        if ready is not None:
            finish(ready)  # before the next copy starts, or it would be waited for as well
        coming = start(batch)
        if ready is not None:
            yield ready
    if coming is not None:
        finish(coming)
        yield coming
