"""``--gpus N``: the same command in N processes on this machine, by the launcher that torchrun uses."""

from __future__ import annotations

import logging
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from typing import Any

import typer

from mrt.errors import Interrupted, MrtError, ProcessLost
from mrt.follow import LAUNCHER

from .arguments import WORDS

# Environment variable of the processes that --gpus starts; their parent tells the user how they ended.
STARTED = "MRT_STARTED_BY_GPUS"
BAD_INPUT = 2
KILLED = getattr(signal, "SIGKILL", 9)  # Windows has no such signal
HUNG = 5  # seconds: a process killed so long after the first failure had hung, and the launcher ended it


def needed(gpus: int, config: Any, ctx: typer.Context | None = None) -> bool:
    """Whether ``--gpus`` asks for more than this process. MrtError if there are not so many GPUs.

    With ``--device cpu`` they are so many processes on the CPU, to try what several would do.
    """
    import torch

    from mrt.engine.data import batch_share

    if "WORLD_SIZE" in os.environ:
        raise MrtError(
            f"--gpus {gpus}: torchrun has started this process already",
            "give torchrun --nproc-per-node, and leave out --gpus",
        )
    there = torch.cuda.device_count()
    if config.engine.device != "cpu" and there < gpus:
        if there:
            found = f"there {'is' if there == 1 else 'are'} {there} on this machine"
            raise MrtError(f"--gpus {gpus}: {found}", f"take --gpus {there} or fewer")
        raise MrtError(
            f"--gpus {gpus}: torch sees none on this machine",
            f"run mrt doctor; to try {gpus} processes on the CPU: {_on_the_cpu(ctx)}",
        )
    batch_share(config, gpus)
    return gpus > 1


def _on_the_cpu(ctx: typer.Context | None) -> str:
    """The command that the user gave, for processes on the CPU."""
    if ctx is None or WORDS not in ctx.meta:
        return "the same command with --device cpu"
    return shlex.join(["mrt", ctx.info_name, "--device", "cpu", *without("--device", ctx.meta[WORDS])])


def start(processes: int, ctx: typer.Context) -> None:
    """Run the same command in so many processes, and return when they are done.

    Raises:
        typer.Exit: they failed and have printed why; with the exit code of the first that failed.
        Interrupted: Ctrl-C or a signal to terminate; each process received it and had half a minute to save
            the run's state.
        ProcessLost: one was killed from outside.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    from mrt.data.staging import available_cores

    os.environ[STARTED], os.environ[LAUNCHER] = str(processes), str(os.getpid())
    # Without this, each process would start a thread per core.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, available_cores() // processes)))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=f"mrt-{os.getpid()}",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
    )
    # -P: do not import a folder called mrt or torch in the working directory instead of the package.
    words = ["-u", "-P", "-m", "mrt_cli", ctx.info_name, *without("--gpus", ctx.meta[WORDS])]
    if hasattr(signal, "SIGUSR1"):
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # asks for a checkpoint: the processes' matter
    logging.disable(logging.ERROR)  # the launcher's long report of errors that are reported here in one line
    try:
        elastic_launch(config, sys.executable)(*words)
    except SignalException:
        raise Interrupted("stopped; the run goes on from its last checkpoint") from None
    except ChildFailedError as error:
        raise _told(error) from None
    finally:
        logging.disable(logging.NOTSET)
        del os.environ[STARTED], os.environ[LAUNCHER]


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
    """The exception for processes that failed.

    It is an exit if they have told the user why, and ProcessLost if one was killed before it could.
    """
    first = min(error.failures.values(), key=lambda failure: failure.timestamp)
    # The launcher ends the others with SIGTERM, and after half a minute those that hang with SIGKILL.
    killed = {
        rank: -failure.exitcode for rank, failure in sorted(error.failures.items()) if failure.exitcode < 0
    }
    killed = {rank: number for rank, number in killed.items() if number != signal.SIGTERM} or killed
    if first.exitcode == BAD_INPUT or not killed:
        return typer.Exit(first.exitcode)
    rank, number = next(iter(killed.items()))
    if number == KILLED and error.failures[rank].timestamp - first.timestamp >= HUNG:
        return ProcessLost(f"process {rank} hung and had to be killed")
    why = " (often the system's answer to too little memory)" if number == KILLED else ""
    return ProcessLost(f"process {rank} was ended by {signal.Signals(number).name}{why}")
