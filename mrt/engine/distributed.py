"""The processes of a run, as ``torchrun`` starts them; one process needs nothing of this.

Every reduction is the identity when there is one process, so no caller asks which case it is in.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mrt.errors import Interrupted, MrtError, ProcessLost

DEVICES = ("auto", "cpu", "cuda", "mps")
LET_GO = 0.2  # seconds


@dataclass(frozen=True)
class World:
    """This process' place: its rank, how many there are, and the device it computes on."""

    rank: int
    size: int
    device: torch.device

    @property
    def main(self) -> bool:
        """Whether this process writes files and talks to the user."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of ``tensor`` over all processes (in place where there are several)."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def mean(self, tensor: Tensor) -> Tensor:
        """The mean of ``tensor`` over all processes; ``tensor`` stays as it is."""
        return self.sum(tensor.clone()) / self.size

    def mean_of_numbers(self, numbers: Sequence[float]) -> list[float]:
        """Each number's mean over all processes; they talk host to host, so no GPU is waited for."""
        return (
            list(numbers)
            if self.size == 1
            else self.mean(torch.tensor(numbers, dtype=torch.float64)).tolist()
        )

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process; they talk host to host, so no GPU is waited for."""
        return flag if self.size == 1 else self.mean_of_numbers([float(flag)])[0] > 0

    def any_of(self, flags: Sequence[bool]) -> list[bool]:
        """For each flag, whether it is set in any process; as :meth:`any`, in one go."""
        if self.size == 1:
            return list(flags)
        return [mean > 0 for mean in self.mean_of_numbers([float(flag) for flag in flags])]

    def gather(self, mine: Any) -> list[Any]:
        """What every process has, in the order of their ranks (anything that can be pickled)."""
        if self.size == 1:
            return [mine]
        everyone: list[Any] = [None] * self.size
        dist.all_gather_object(everyone, mine)
        return everyone

    def share(self, value: Any) -> Any:
        """What the first process gives, in every process (anything that can be pickled)."""
        if self.size == 1:
            return value
        shared = [value if self.main else None]
        dist.broadcast_object_list(shared, src=0)
        return shared[0]

    def wait(self) -> None:
        """Return once every process has come here."""
        if self.size > 1:
            dist.barrier()

    def wrap(self, module: nn.Module) -> nn.Module:
        """``module`` with its gradients averaged over the processes."""
        if self.size == 1:
            return module
        devices = [self.device] if self.device.type == "cuda" else None
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", FutureWarning
            )  # the newer name for broadcast_buffers is not in every torch that mrt supports
            return DistributedDataParallel(
                module, device_ids=devices, find_unused_parameters=True, broadcast_buffers=False
            )


def is_first() -> bool:
    """Whether this is the only process of its run, or the first, as the environment says."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def joined(device: str, timeout: int) -> Iterator[World]:
    """The process group while inside; arguments as in :func:`join`.

    Raises:
        ProcessLost: another process ended, or did not come for ``timeout`` seconds.
    """
    try:
        world = join(device, timeout)
        yield world
    except Interrupted as error:
        if not isinstance(error, ProcessLost):
            leave()
        raise
    except (
        RuntimeError
    ) as error:  # what gloo raises has no class of its own; torch's DistError is a RuntimeError, too
        if isinstance(error, dist.DistError) or "/gloo/" in str(error):
            raise ProcessLost(
                f"another process of this run ended, or did not answer for {timeout} s "
                f"({_first_words(error)})"
            ) from error
        raise
    # After any other error the group is left to the end of the process: NCCL would wait here for processes
    # that know of no error.
    else:
        leave()


def _first_words(error: Exception) -> str:
    """A backend's message without the place in its source and the advice that follows."""
    return str(error).strip().split("\n")[0].split("] ", 1)[-1].split(". ")[0]


def join(device: str = "auto", timeout: int = 600) -> World:
    """Join the process group described by ``torchrun``'s environment; without it, be the only process.

    Args:
        device: "auto" (an NVIDIA GPU if there is one), "cpu", "cuda", or "mps" (Apple's GPUs, only when asked
            for).
        timeout: seconds that a process waits for the others.
    """
    if device not in DEVICES:
        raise MrtError(f"device {device!r}: unknown", "choose auto, cpu, cuda or mps")
    if device == "cuda" and not torch.cuda.is_available():
        raise MrtError("engine.device = 'cuda', but torch sees no GPU", "run mrt doctor, or use --device cpu")
    if device == "mps":
        return World(0, 1, _apple())
    cuda = device != "cpu" and torch.cuda.is_available()
    size, rank, local = (
        int(os.environ.get(name, default))
        for name, default in (("WORLD_SIZE", "1"), ("RANK", "0"), ("LOCAL_RANK", "0"))
    )
    chosen = torch.device("cuda", local) if cuda else torch.device("cpu")
    if cuda:
        if local >= torch.cuda.device_count():
            raise MrtError(
                f"process {local} on this machine has no GPU: there are {torch.cuda.device_count()}",
                "start at most one process per GPU",
            )
        torch.cuda.set_device(chosen)
    if size > 1 and not dist.is_initialized():
        # Both backends: tensors on GPUs go by NCCL, the few numbers that the hosts exchange in each step by
        # gloo.
        backends = "cpu:gloo,cuda:nccl" if cuda else "gloo"
        dist.init_process_group(
            backends, timeout=timedelta(seconds=timeout), device_id=chosen if cuda else None
        )
    return World(rank, size, chosen)


def _apple() -> torch.device:
    """Apple's GPU, for one process."""
    if not torch.backends.mps.is_available():
        raise MrtError("engine.device = 'mps', but torch sees no Apple GPU", "use --device cpu")
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise MrtError("engine.device = 'mps': is for one process", "start it without torchrun and --gpus")
    return torch.device("mps")


def leave() -> None:
    """Leave the process group, if there is one."""
    if dist.is_available() and dist.is_initialized():
        # gloo's own thread needs Python's lock to drop a reduction's tensors. Were the group freed before
        # that by whoever holds the lock (collecting a DistributedDataParallel, which holds the group, too),
        # both would wait for ever: seen with PyTorch 2.11.
        time.sleep(LET_GO)
        dist.destroy_process_group()
