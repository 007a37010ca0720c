"""``--gpus N``: the same command in N processes on this machine, started by torch's own elastic launcher (what ``torchrun`` is)."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

import typer

from mrt.errors import Interrupted, MrtError, ProcessLost

from .arguments import WORDS

STARTED = "MRT_STARTED_BY_GPUS"  # set in the processes that --gpus starts: the one that started them tells the user how they ended
BAD_INPUT = 2
HUNG = 5  # seconds that a process outlived the first one's failure: the launcher killed it in the end


def needed(gpus: int, config: Any) -> bool:
    """Whether ``--gpus`` asks for more than this process. MrtError if it asks for what is not there."""
    import torch

    from mrt.engine.build import batch_share

    if "WORLD_SIZE" in os.environ:
        raise MrtError(f"--gpus {gpus}: torchrun has started this process already", "give torchrun --nproc-per-node, and leave out --gpus")
    if config.engine.device == "cpu":
        raise MrtError(f"--gpus {gpus}: engine.device is cpu", "leave out --device cpu, or --gpus")
    there = torch.cuda.device_count()
    if there < gpus:
        found = f"there {'is' if there == 1 else 'are'} {there} on this machine" if there else "torch sees none on this machine"
        several = f"to try {gpus} processes on the CPU: torchrun --standalone --nproc-per-node {gpus} -m mrt_cli ..."
        raise MrtError(f"--gpus {gpus}: {found}", "run mrt doctor; " + several if not there else f"take --gpus {there} or fewer")
    batch_share(config, gpus)
    return gpus > 1


def start(processes: int, ctx: typer.Context) -> None:
    """Run this very command in so many processes, and return when they are done.

    Raises:
        typer.Exit: they failed and have said why; the first one's exit code.
        Interrupted: Ctrl-C, or a signal that ends processes; each was told, and had half a minute to save the run's state.
        ProcessLost: one was killed from outside.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    from mrt.data.staging import available_cores

    os.environ[STARTED] = str(processes)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, available_cores() // processes)))  # else each would start a thread per core
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=f"mrt-{os.getpid()}",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
    )
    # -P: a folder called mrt or torch in the working directory is not the package
    words = ["-u", "-P", "-m", "mrt_cli", ctx.info_name, *without("--gpus", ctx.meta[WORDS])]
    logging.disable(logging.ERROR)  # the launcher's account of what is told here in a line
    try:
        elastic_launch(config, sys.executable)(*words)
    except SignalException:
        raise Interrupted("stopped; the run goes on from its last checkpoint") from None
    except ChildFailedError as error:
        raise _told(error) from None
    finally:
        logging.disable(logging.NOTSET)
        del os.environ[STARTED]


def without(option: str, words: Sequence[str]) -> list[str]:
    """The words of a command line without an option and its value."""
    kept: list[str] = []
    left = iter(words)
    for word in left:
        if word == option:
            next(left, None)
        elif not word.startswith(f"{option}="):
            kept.append(word)
    return kept


def _told(error: Any) -> Exception:
    """What to raise for processes that failed: an exit where they have told the user why, ProcessLost where one could not."""
    first = min(error.failures.values(), key=lambda failure: failure.timestamp)
    # The launcher ends the others by SIGTERM, and by SIGKILL after half a minute those that hang.
    killed = {rank: -failure.exitcode for rank, failure in sorted(error.failures.items()) if failure.exitcode < 0}
    killed = {rank: number for rank, number in killed.items() if number != signal.SIGTERM} or killed
    if first.exitcode == BAD_INPUT or not killed:
        return typer.Exit(first.exitcode)
    rank, number = next(iter(killed.items()))
    if number == signal.SIGKILL and error.failures[rank].timestamp - first.timestamp >= HUNG:
        return ProcessLost(f"process {rank} hung and had to be killed")
    why = " (often the system's answer to too little memory)" if number == signal.SIGKILL else ""
    return ProcessLost(f"process {rank} was ended by {signal.Signals(number).name}{why}")
