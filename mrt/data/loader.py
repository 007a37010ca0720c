"""Batches: padding, order, workers.

Same seed, same batches, whatever the number of workers and wherever a run was interrupted.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from mrt.data.dataset import DetectionDataset, SampleKey
from mrt.data.transforms import Sample, Target
from mrt.errors import MrtError


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
    """

    images: Tensor
    padding_mask: Tensor
    targets: list[Target]
    strong_images: Tensor | None = None
    padded: bool = True

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
        return Batch(
            change(self.images), change(self.padding_mask), _part(plain, joined, counts), strong, self.padded
        )

    def __getstate__(self) -> tuple:
        """Between processes each tensor costs a file descriptor, so the targets' tensors are sent joined."""
        return self.images, self.padding_mask, _join(self.targets), self.strong_images, self.padded

    def __setstate__(self, state: tuple) -> None:
        images, padding_mask, targets, strong, padded = state
        self.__dict__.update(
            images=images,
            padding_mask=padding_mask,
            targets=_part(*targets),
            strong_images=strong,
            padded=padded,
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


class BatchLoader(DataLoader):
    """A ``DataLoader`` of :class:`Batch` that passes user errors and signals on to the main process.

    An exception in a worker would arrive as the text of its traceback. So a worker returns an
    :class:`MrtError` in place of the batch; it is raised here with its message and hint intact.
    """

    def __init__(self, dataset: Dataset, pad_to: tuple[int, int] | None = None, **options: Any) -> None:
        together = partial(_collate_answers, size=pad_to)
        super().__init__(
            _Answers(dataset), collate_fn=together, worker_init_fn=_leave_signals_to_the_parent, **options
        )

    def __iter__(self) -> Iterator[Batch]:
        return self._batches(super().__iter__())

    @staticmethod
    def _batches(answers: Iterator[Batch | MrtError]) -> Iterator[Batch]:
        for answer in answers:
            if isinstance(answer, MrtError):
                # A new error: raising the one that this frame holds would make a reference cycle of frame
                # and workers, and workers in a cycle end late.
                raise MrtError(answer.message, answer.hint) from answer
            yield answer


class _Answers(Dataset):
    """A data set that returns a sample, or the error that it would raise."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: SampleKey | int) -> Sample | MrtError:
        try:
            return self.dataset[key]
        except MrtError as error:
            return error


def _collate_answers(answers: Sequence[Sample | MrtError], size: tuple[int, int] | None) -> Batch | MrtError:
    for answer in answers:
        if isinstance(answer, MrtError):
            return answer
    try:
        return collate(answers, size)
    except MrtError as error:
        return error


def _leave_signals_to_the_parent(_worker: int) -> None:
    """Ignore Ctrl-C and SIGTERM, except a SIGTERM that the main process sends.

    These signals reach a whole group of processes. Workers must go on until the main process has saved its
    state and ends them.

    A worker killed by a signal would raise an error in the middle of the main process' step.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
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
    """
    if drop_last and len(dataset) // world_size < batch_size:
        raise MrtError(
            f"{len(dataset)} images do not fill a batch: {world_size} processes x {batch_size} images",
            "Choose a smaller batch (engine.batch_size), or use more images.",
        )
    sampler = EpochSampler(len(dataset), seed, shuffle, rank, world_size, drop_last)
    if num_workers > 0 and hasattr(dataset, "preload"):
        dataset.preload()
    return BatchLoader(
        dataset,
        pad_to,
        batch_size=batch_size,
        sampler=sampler,
        num_workers=num_workers,
        drop_last=drop_last,
        pin_memory=pin_memory,
        persistent_workers=num_workers > 0,
        prefetch_factor=4 if num_workers > 0 else None,
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
