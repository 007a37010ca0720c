"""Failures of the machine, told from bugs by what Python, torch and CUDA say of them. Needs no torch.

Memory, disks, shared memory, open files and data workers fail while nothing is wrong with the input.
Libraries report that with errors of many kinds, often a plain ``RuntimeError``, so most are known by their
texts.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mrt.errors import MrtError, RunFailed

GOES_ON = (
    "A training run goes on from its last checkpoint with --resume (with other settings: --allow-change too)."
)
LESS_MEMORY = (
    "take fewer images at a time: --set engine.accumulate=2 or more, which keeps the total batch, or in a "
    "new run a smaller engine.batch_size (mrt eval: --batch-size)"
)
FEWER_WORKERS = "or let fewer processes read images: --set engine.workers=0 needs none."
FULL = (errno.ENOSPC, errno.EDQUOT)
FILES = (errno.EMFILE, errno.ENFILE)
BROKEN = (errno.EIO, errno.ESTALE, errno.ENODEV, errno.ENXIO, errno.ETIMEDOUT)
MACHINE = (*FULL, *FILES, errno.ENOMEM)  # what no other file would mend

_GPU_MEMORY = re.compile(
    r"CUDA out of memory|CUDA error: out of memory|CU(BLAS|FFT|SOLVER|SPARSE)_STATUS_ALLOC_FAILED"
    r"|CUDNN_STATUS_ALLOC_FAILED|cuda\w* failure 2\b|HIP out of memory|MPS backend out of memory",
    re.IGNORECASE,
)
_MEMORY = re.compile(
    r"DefaultCPUAllocator: (can't allocate|not enough) memory|std::bad_alloc|bad allocation"
    r"|unable to allocate |Cannot allocate memory|out of memory",
    re.IGNORECASE,
)
_SHARED = re.compile(
    r"unable to (write to file|open shared memory object|mmap \d+ bytes from file|resize file"
    r"|allocate shared)|/dev/shm|out of shared memory|shared memory limit|is killed by signal: Bus error",
    re.IGNORECASE,
)
_OPEN_FILES = re.compile(r"Too many open files|received \d+ items of ancdata", re.IGNORECASE)
_FULL_DISK = re.compile(r"No space left on device|Disk quota exceeded", re.IGNORECASE)
_THREADS = re.compile(
    r"can't start new thread|Resource temporarily unavailable|Thread creation failed", re.IGNORECASE
)
_HUNG = re.compile(r"DataLoader timed out after (\d+)")
_WORKER = re.compile(
    r"DataLoader worker \(pid\(?s?\)? [\d, ]+\) (is killed by signal: (?P<signal>[^.]+)|exited unexpectedly)"
    r"|Pin memory thread exited unexpectedly"
)
_DEVICE = re.compile(
    r"uncorrectable (ECC|NVLink) error|devices? (is/are|are) (all )?busy|GPU is lost|fallen off the bus"
    r"|unspecified launch failure|hardware (stack|failure) error|launch timed out",
    re.IGNORECASE,
)
# Errors that a process meets where another one that sent it something is gone.
_PARTNER_GONE = (ConnectionError, EOFError, BrokenPipeError)


def told(error: BaseException) -> RunFailed | None:
    """What is said of a failure of the machine; None where the error is none."""
    text = _first_words(error)
    for holds, say in _TABLE:
        if holds(error, str(error)):
            return RunFailed(say(error, text))
    return None


@contextmanager
def machine_failures() -> Iterator[None]:
    """Within it, a failure of the machine is raised as :class:`mrt.errors.RunFailed`."""
    try:
        yield
    except (MrtError, RunFailed):
        raise
    except (RuntimeError, MemoryError, OSError) as error:
        failed = told(error)
        if failed is None:
            raise
        raise failed from error


def worker_gone(error: BaseException) -> RunFailed | None:
    """As :func:`told`, of an error that came while a batch was waited for.

    A worker that ended in the middle of sending one shows as a broken connection.
    """
    failed = told(error)
    if failed is not None or not isinstance(error, (*_PARTNER_GONE, FileNotFoundError)):
        return failed
    if str(error).startswith("Caught "):  # raised by the data set in the worker
        return None
    return RunFailed(_say_worker(error, _first_words(error)))


def lacks_memory(error: BaseException) -> bool:
    """Whether an error is for want of memory, of a GPU or of the host."""
    text = str(error)
    return _is_gpu_memory(error, text) or _is_memory(error, text) or bool(_MEMORY.search(text))


def is_machine(error: BaseException | None) -> bool:
    """Whether an error of reading a file is the machine's, and not the file's."""
    return isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in MACHINE)


def _first_words(error: BaseException) -> str:
    """The first sentence of an error's text; of an error in a worker that of the error itself."""
    text = str(error).strip()
    if text.startswith("Caught "):  # torch puts a worker's traceback into the text
        text = text.split("\n")[-1].partition(": ")[2] or text
    text = re.sub(r"^\[enforce fail at [^\]]*\]( \w+ == \w+\.)? ?", "", text)
    return text.split("\n")[0].partition(". ")[0].rstrip(".")[:300]


def _has(pattern: re.Pattern[str]) -> Callable[[BaseException, str], bool]:
    return lambda error, text: isinstance(error, (RuntimeError, OSError)) and bool(pattern.search(text))


def _errno(*numbers: int) -> Callable[[BaseException, str], bool]:
    return lambda error, text: isinstance(error, OSError) and error.errno in numbers


def _either(*ways: Callable[[BaseException, str], bool]) -> Callable[[BaseException, str], bool]:
    return lambda error, text: any(holds(error, text) for holds in ways)


def _is_gpu_memory(error: BaseException, text: str) -> bool:
    # torch's class is known by its name, because torch may not be loaded
    named = type(error).__name__ == "OutOfMemoryError"
    return named or (isinstance(error, RuntimeError) and bool(_GPU_MEMORY.search(text)))


def _say_gpu_memory(error: BaseException, text: str) -> str:
    return (
        f"out of memory on the GPU: {text or 'there is none left'}\n{LESS_MEMORY}; "
        f"engine.checkpointing=true needs less too. {GOES_ON}"
    )


def _say_memory(error: BaseException, text: str) -> str:
    return (
        f"out of memory: {text or 'there is none left'}\n{LESS_MEMORY}; data.cache=none keeps no images in "
        f"memory, and a smaller engine.workers means fewer processes. {GOES_ON}"
    )


def _say_shared(error: BaseException, text: str) -> str:
    return (
        f"shared memory, through which data workers hand over batches, is full: {text}\n"
        "make it larger (docker: --shm-size=8g, or --ipc=host; elsewhere: free what lies in /dev/shm), "
        f"{FEWER_WORKERS} {GOES_ON}"
    )


def _say_open_files(error: BaseException, text: str) -> str:
    return (
        f"too many open files: {text}\nallow more in this shell: ulimit -n 65536, {FEWER_WORKERS} {GOES_ON}"
    )


def _say_full(error: BaseException, text: str) -> str:
    where = getattr(error, "filename", None)
    reason = error.strerror if isinstance(error, OSError) and error.strerror else text
    return (
        f"{where if where is not None else 'the disk is full'}: {reason}\n"
        f"free some space, or write elsewhere: --run-root for runs, --out for other results. {GOES_ON}"
    )


def _say_broken(error: BaseException, text: str) -> str:
    name, reason = getattr(error, "filename", None), getattr(error, "strerror", None) or text
    return (
        f"{name if name is not None else 'a disk failed'}: {reason}\n"
        f"look at the disk, or the network that it is on, and the system's log (dmesg). {GOES_ON}"
    )


def _say_threads(error: BaseException, text: str) -> str:
    return (
        f"the system starts no more threads or processes: {text}\n"
        f"allow more (ulimit -u), --set engine.threads=1, {FEWER_WORKERS} {GOES_ON}"
    )


def _say_hung(error: BaseException, text: str) -> str:
    found = _HUNG.search(str(error))
    return (
        f"the data workers gave no batch for {found[1] if found else 'some'} seconds\n"
        "the disk or the network that the images are on may hang: look whether they can be read; "
        f"engine.timeout is how long is waited. {GOES_ON}"
    )


def _say_worker(error: BaseException, text: str) -> str:
    found = _WORKER.search(str(error))
    name = found["signal"].strip() if found and found["signal"] else ""
    how = f"was ended by a signal ({name})" if name else "ended unexpectedly"
    why = ", which is often the system's answer to too little memory" if name in ("", "Killed") else ""
    return (
        f"a data worker, which reads images, {how}{why}\n"
        f"end other programs that need much memory, {FEWER_WORKERS} {GOES_ON}"
    )


def _say_device(error: BaseException, text: str) -> str:
    return (
        f"the GPU failed: {text}\nlook at nvidia-smi whether others use it or it is broken, or take another "
        f"one (CUDA_VISIBLE_DEVICES). {GOES_ON}"
    )


def _is_memory(error: BaseException, text: str) -> bool:
    return isinstance(error, MemoryError)


# How a failure is known, and what is said of it; the first that holds counts.
_TABLE: tuple[
    tuple[Callable[[BaseException, str], bool], Callable[[BaseException, str], str]],
    ...,
] = (
    (_has(_HUNG), _say_hung),
    (_has(_SHARED), _say_shared),
    (_has(_WORKER), _say_worker),
    (_is_gpu_memory, _say_gpu_memory),
    (_either(_has(_OPEN_FILES), _errno(*FILES)), _say_open_files),
    (_either(_errno(*FULL), _has(_FULL_DISK)), _say_full),
    (_errno(*BROKEN), _say_broken),
    (_either(_is_memory, _errno(errno.ENOMEM), _has(_MEMORY)), _say_memory),
    (_has(_THREADS), _say_threads),
    (_has(_DEVICE), _say_device),
)
