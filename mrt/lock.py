"""One process at a time writes a run's folder.

The lock is a POSIX record lock on ``.lock`` in the folder. The system releases it when its process ends,
however it ends; child processes (data workers) do not inherit it. It holds between machines on a network file
system that passes locks on: NFSv4, NFSv3 with lockd, Lustre mounted with ``flock``, GPFS, CephFS. On one that
does not (``nolock``, some FUSE and object-store mounts), two processes of one machine still exclude each
other where its kernel keeps the locks; where there are no locks at all the run goes on, and says so.
"""

from __future__ import annotations

import errno
import json
import os
import platform
import stat
import struct
import sys
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from mrt.errors import MrtError

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None

NAME = ".lock"
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
_held: set[str] = set()  # of this process: its own record locks do not exclude it


class RunLock:
    """The right to write a run's folder, while inside.

    Args:
        folder: there already; :meth:`move` says where it has been moved.
        say: is told where the file system has no locks.
    """

    def __init__(self, folder: Path, say: Callable[[str], None] | None = None) -> None:
        self.folder, self.say = Path(folder), say or (lambda text: None)
        self._file: int | None = None
        self._key: str | None = None
        self._inode: tuple[int, int] | None = None

    def __enter__(self) -> RunLock:
        self.take()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def take(self) -> None:
        """Take it, or raise MrtError: another process has it."""
        path = self.folder / NAME
        key = os.path.realpath(path)
        if key in _held:
            raise _busy(self.folder, {"process": os.getpid()})
        try:  # never through a link: what it leads to would be overwritten
            if os.path.lexists(path) and not stat.S_ISREG(os.lstat(path).st_mode):
                raise MrtError(f"{path}: is no plain file", "delete it: the next run makes it again")
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        except OSError as error:
            raise MrtError(
                f"{path}: cannot be written: {error.strerror}", "check the permissions of the run's folder"
            ) from error
        if fcntl is None:
            self.say(f"{self.folder}: this system has no locks: do not continue the run twice at a time")
            return
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                owner = _owner(self._file)
                os.close(self._file)
                self._file = None
                raise _busy(self.folder, owner) from None
            if error.errno not in NO_LOCKS:
                raise
            self.say(
                f"{self.folder}: its file system has no locks ({error.strerror}): do not continue the run "
                "twice at a time"
            )
        self._key = key
        _held.add(key)
        facts = os.fstat(self._file)
        self._inode = facts.st_dev, facts.st_ino
        text = json.dumps(
            {
                "process": os.getpid(),
                "machine": platform.node(),
                "since": datetime.now(UTC).isoformat(timespec="seconds"),
            }
        )
        with suppress(OSError):
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, text.encode(), 0)

    def move(self, folder: Path) -> None:
        """The locked folder has been renamed."""
        if self._key is not None:
            _held.discard(self._key)
            self._key = os.path.realpath(Path(folder) / NAME)
            _held.add(self._key)
        self.folder = Path(folder)

    def is_there(self) -> bool:
        """Whether the folder is still the one that was locked: neither removed nor replaced."""
        if self._inode is None:
            return self.folder.is_dir()
        try:
            facts = os.stat(self.folder / NAME)
        except OSError:
            return False
        return (facts.st_dev, facts.st_ino) == self._inode

    def release(self) -> None:
        """Let others have it."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
        if self._key is not None:
            _held.discard(self._key)
            self._key = None


def owner_of(folder: Path) -> dict[str, object] | None:
    """Who writes a run's folder: "process", "machine", "since" as far as known; None if nobody does."""
    path = Path(folder) / NAME
    if os.path.realpath(path) in _held:  # opening and closing the file here would release the lock
        return {"process": os.getpid(), "machine": platform.node()}
    if fcntl is None:
        return None
    try:
        file = os.open(path, os.O_RDWR)
    except OSError:
        return None
    try:
        return _owner(file) if _is_locked(file) else None
    finally:
        os.close(file)


def _is_locked(file: int) -> bool:
    """Whether another process has the lock; on Linux without taking it for a moment."""
    try:
        if sys.platform == "linux" and struct.calcsize("l") == 8:
            asked = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
            answer = fcntl.fcntl(file, fcntl.F_GETLK, asked)
            return struct.unpack("hhqqi4x", answer)[0] != fcntl.F_UNLCK
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in (errno.EACCES, errno.EAGAIN)
    return False


def _owner(file: int) -> dict[str, object]:
    try:
        found = json.loads(os.pread(file, 4096, 0))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _busy(folder: Path, owner: dict[str, object]) -> MrtError:
    who = f"process {owner['process']}" if "process" in owner else "another process"
    where = f" on {owner['machine']}" if "machine" in owner else ""
    since = f", since {owner['since']}" if "since" in owner else ""
    return MrtError(
        f"{folder}: {who}{where} is writing this run{since}",
        "wait for it, or end it (kill saves its state), then continue with --resume",
    )
