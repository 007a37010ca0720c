"""Failures of the machine, by the texts that Python, torch and CUDA really give."""

from __future__ import annotations

import errno
import os

import numpy as np
import pytest
import torch
from mrt_cli.app import explain

from mrt import failures
from mrt.config import known_keys
from mrt.errors import MrtError, RunFailed

CPU = (
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
    "allocate 4503599627370496 bytes. Error code 12 (Cannot allocate memory)"
)
GPU = (
    "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.15 GiB of which "
    "3.12 GiB is free. See documentation for Memory Management"
)
CUBLAS = "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"
ACCELERATOR = (
    "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some other API call, "
    "so the stacktrace below might be incorrect.\nFor debugging consider passing CUDA_LAUNCH_BLOCKING=1"
)
KILLED = "DataLoader worker (pid 4242) is killed by signal: Killed. "
BUS = (
    "DataLoader worker (pid 4242) is killed by signal: Bus error. It is possible that dataloader's workers "
    "are out of shared memory. Please try to raise your shared memory limit."
)
SHARED = "unable to write to file </torch_4242_1_0>: No space left on device (28)"
OPENED = "unable to open shared memory object </torch_4242_1_0> in read-write mode: Too many open files (24)"
MAPPED = "unable to mmap 1024 bytes from file </torch_4242_1_0>: Cannot allocate memory (12)"
OPEN_FILES = (
    "Too many open files. Communication with the workers is no longer possible. Please increase the limit "
    "using `ulimit -n` in the shell or change the sharing strategy by calling"
)
WRAPPED = (
    "Caught RuntimeError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
    f'  File "worker.py", line 349, in _worker_loop\nRuntimeError: {SHARED}\n'
)
PINNED = (
    "Caught AcceleratorError in pin memory thread for device 0.\nOriginal Traceback (most recent call last):"
    '\n  File "pin_memory.py", line 40, in do_one_step\ntorch.AcceleratorError: CUDA error: out of memory\n'
)


class AcceleratorError(RuntimeError):
    """As torch names it."""


@pytest.mark.parametrize(
    ("error", "message", "advice"),
    [
        (RuntimeError(CPU), "out of memory: DefaultCPUAllocator: can't allocate memory", "engine.batch_size"),
        (MemoryError(), "out of memory: there is none left", "data.cache=none"),
        (MemoryError("Unable to allocate 8.00 GiB for an array"), "out of memory: Unable to", "--batch-size"),
        (RuntimeError("std::bad_alloc"), "out of memory: std::bad_alloc", "engine.batch_size"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "out of memory", "engine.workers"),
        (torch.OutOfMemoryError(GPU), "out of memory on the GPU: CUDA out of memory", "engine.checkpointing"),
        (RuntimeError(CUBLAS), "out of memory on the GPU: CUDA error: CUBLAS", "engine.batch_size"),
        (
            RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
            "out of memory on the GPU",
            "engine.accumulate",
        ),
        (AcceleratorError(ACCELERATOR), "out of memory on the GPU: CUDA error: out of memory", "batch_size"),
        (RuntimeError(PINNED), "out of memory on the GPU: CUDA error: out of memory", "engine.batch_size"),
        (
            RuntimeError(KILLED),
            "a data worker, which reads images, was ended by a signal (Killed)",
            "workers=0",
        ),
        (
            RuntimeError("DataLoader worker (pid(s) 4242, 4243) exited unexpectedly"),
            "a data worker, which reads images, ended unexpectedly",
            "engine.workers=0",
        ),
        (RuntimeError("DataLoader timed out after 600 seconds"), "gave no batch for 600 s", "engine.timeout"),
        (RuntimeError(BUS), "shared memory, through which data workers hand over batches", "--shm-size"),
        (RuntimeError(SHARED), f"is full: {SHARED}", "/dev/shm"),
        (RuntimeError(WRAPPED), f"is full: {SHARED}", "engine.workers=0"),
        (RuntimeError(OPENED), "shared memory", "engine.workers=0"),
        (RuntimeError(MAPPED), "shared memory", "engine.workers=0"),
        (RuntimeError("received 0 items of ancdata"), "too many open files: received 0 items", "ulimit -n"),
        (RuntimeError(OPEN_FILES), "too many open files", "ulimit -n"),
        (OSError(errno.EMFILE, "Too many open files", "a.png"), "too many open files", "ulimit -n"),
        (OSError(errno.ENOSPC, "No space left on device", "runs/a"), "runs/a: No space left", "--run-root"),
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full: No space left", "free some"),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "runs/a"), "runs/a: Disk quota exceeded", "free some"),
        (OSError(errno.EIO, "Input/output error", "runs/a"), "runs/a: Input/output error", "dmesg"),
        (RuntimeError("can't start new thread"), "starts no more threads", "ulimit -u"),
        (RuntimeError("CUDA error: uncorrectable ECC error encountered"), "the GPU failed", "nvidia-smi"),
    ],
)
def test_failures_of_the_machine_are_one_message_and_exit_code_1(error, message, advice):
    told = explain(error)
    assert isinstance(told, RunFailed) and not isinstance(told, MrtError)
    first, _, rest = str(told).partition("\n")
    assert message in first and advice in rest and "--resume" in rest
    assert "Traceback" not in str(told) and "\n" not in rest


def test_what_torch_and_numpy_raise_here_is_known():
    for allocate in (lambda: torch.empty(1 << 52), lambda: np.empty(1 << 52)):
        with pytest.raises((RuntimeError, MemoryError)) as error:
            allocate()
        assert str(explain(error.value)).startswith("out of memory: ")
        with pytest.raises(RunFailed, match="out of memory"), failures.machine_failures():
            allocate()


def test_bugs_and_bad_input_are_none():
    for error in (
        RuntimeError("shapes [2, 3] and [4] do not match"),
        ValueError("out of memory"),
        KeyError("a"),
        FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "a.png"),
    ):
        assert failures.told(error) is None
    with pytest.raises(MrtError), failures.machine_failures():
        raise MrtError("bad")


def test_settings_that_the_advice_names_exist():
    import re

    text = "".join(str(value) for value in vars(failures).values() if isinstance(value, str))
    text += "".join(str(explain(error)) for error in (RuntimeError(GPU), RuntimeError(CPU), MemoryError()))
    text += "".join(str(explain(RuntimeError(item))) for item in (KILLED, BUS, OPEN_FILES, GPU, CUBLAS))
    named = set(re.findall(r"\b(?:engine|data)\.[a-z_]+", text))
    assert named >= {"engine.batch_size", "engine.workers"} and named <= set(known_keys())
