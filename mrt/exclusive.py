"""Locks on open files: one process at a time, released by the system when it ends, however it ends.

POSIX systems have ``flock``, Windows has ``msvcrt.locking``. Where there is neither, nothing is locked.
"""

from __future__ import annotations

import os
import time
from typing import IO, Any

try:
    import fcntl
except ImportError:
    fcntl = None
try:
    import msvcrt
except ImportError:
    msvcrt = None

BEYOND = 1 << 40  # a byte that no file of ours has: Windows lets nobody else read what is locked
PAUSE = 0.2  # seconds between two tries, on Windows


def hold(file: IO[Any], wait: bool = False) -> bool:
    """Lock an open file until it is closed.

    Args:
        file: open for writing. wait: until whoever holds it lets go.

    Returns:
        Whether it is ours now; True also where the system has no locks.
    """
    if fcntl is not None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            return False
        return True
    if msvcrt is not None:
        while not _locked_on_windows(file):
            if not wait:
                return False
            time.sleep(PAUSE)
    return True


def _locked_on_windows(file: IO[Any]) -> bool:
    descriptor = file.fileno()
    place = os.lseek(descriptor, 0, os.SEEK_CUR)
    try:
        os.lseek(descriptor, BEYOND, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    except OSError:
        return False
    finally:
        os.lseek(descriptor, place, os.SEEK_SET)
    return True
