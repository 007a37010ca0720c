"""Write files and folders so that they are complete or do not exist at all.

They are written under a temporary name in the same folder and then renamed. Files are fsynced. A writer holds
a lock on what it writes, so that what a killed one left behind is told from what another process is writing
just now: the first writing into a folder removes the former (:func:`remove_litter`).
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from mrt import failures
from mrt.errors import MrtError, RunFailed

try:
    import fcntl
except ImportError:  # no such locks on this system: nothing is removed then
    fcntl = None

TEMPORARY, PARTIAL = ".mrt-tmp", ".mrt-unfinished"  # how unfinished files and folders end
HOST = hashlib.sha256(platform.node().encode()).hexdigest()[:6]  # of the machine, in their names
SETTLED = 0.25  # seconds after which a writer has locked what it has made
_UNFINISHED = re.compile(rf"\..+\.{HOST}[0-9a-z_]{{8}}({re.escape(TEMPORARY)}|{re.escape(PARTIAL)})")
_IN_UNFINISHED = re.compile(rf"\.([^{re.escape(os.sep)}]+)\.{HOST}[0-9a-z_]{{8}}{re.escape(PARTIAL)}")
_looked_at: set[str] = set()  # folders from which this process has removed litter


def _read_umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


_UMASK = _read_umask()  # once: for a moment it is another one in the whole process


def not_written(path: Path, error: OSError) -> MrtError | RunFailed:
    """The error for a file or folder that could not be written: RunFailed where the machine is at fault."""
    reason = error.strerror or str(error) or type(error).__name__
    where = _IN_UNFINISHED.sub(r"\1", str(path))  # what it would have become
    message = f"{where}: could not be written: {reason}"
    failed = failures.told(error)
    if failed is not None:
        return RunFailed(f"{message}\n{str(failed).partition(chr(10))[2]}")
    return MrtError(message, "check the folder's permissions and the free space")


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A binary file that replaces ``path`` when the block ends. If the block fails, an existing file stays.

    Raises:
        MrtError: the folder cannot be written to.
        RunFailed: the disk is full or fails.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_litter(path.parent)
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.{HOST}", suffix=TEMPORARY, dir=path.parent)
        temporary = Path(name)
        with os.fdopen(descriptor, "wb") as file:
            _lock(file.fileno())
            yield file
            file.flush()
            os.fsync(file.fileno())
            temporary.chmod(0o666 & ~_UMASK)
            temporary.replace(path)
            temporary = None
        _sync_folder(path.parent)
    except OSError as error:
        raise not_written(path, error) from error
    finally:
        if temporary is not None:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Replace a file's content by UTF-8 text."""
    content = text.encode("utf-8")
    with replacing(path) as file:
        file.write(content)


def require_free(folder: Path, what: str = "") -> None:
    """Raise MrtError unless a folder is new or empty. The message begins with ``what``, such as "--out "."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        found = "holds files already" if folder.is_dir() else "is a file"
        raise MrtError(
            f"{what}{folder}: {found}", "nothing is overwritten: name a new folder, or empty this one"
        )


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder to write into, which becomes ``folder`` when the block ends.

    If the block fails, it is removed, and so are the parent folders that were made for it.

    Raises:
        MrtError: ``folder`` is not empty, or cannot be written to.
        RunFailed: the disk is full or fails.
    """
    folder = folder.absolute()
    require_free(folder)
    work = folder.with_name(f".{folder.name}.{HOST}{secrets.token_hex(4)}{PARTIAL}")
    made = [parent for parent in folder.parents if not parent.exists()]  # deepest first
    done, lock = False, None
    try:
        if folder.parent.is_dir():
            remove_litter(folder.parent)
        work.mkdir(parents=True)
        with suppress(OSError):
            lock = os.open(work, os.O_RDONLY)
            _lock(lock)
        yield work
        work.replace(folder)
        done = True
        _sync_folder(folder.parent)
    except OSError as error:
        raise not_written(folder, error) from error
    finally:
        if not done:
            shutil.rmtree(work, ignore_errors=True)
            with suppress(OSError):  # another program has written something there
                for parent in made:
                    parent.rmdir()
        if lock is not None:
            os.close(lock)


def remove_litter(folder: Path, again: bool = False) -> list[str]:
    """Remove what writers on this machine that were killed have left in a folder: unfinished files and
    folders. What a living process writes stays.

    Args:
        again: look even if this process has looked there before, and at the newest, too: nobody else can be
            writing there.

    Returns:
        The names of what was removed.
    """
    key = os.path.abspath(folder)
    if fcntl is None or (key in _looked_at and not again):
        return []
    _looked_at.add(key)
    removed = []
    try:
        found = [entry for entry in os.scandir(folder) if _UNFINISHED.fullmatch(entry.name)]
    except OSError:
        return []
    for entry in found:
        with suppress(OSError):  # somebody writes it, or nobody can tell
            if not again and time.time() - entry.stat().st_mtime < SETTLED:
                continue
            is_folder = entry.is_dir()
            descriptor = os.open(entry.path, os.O_RDONLY if is_folder else os.O_RDWR)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if is_folder:
                    shutil.rmtree(entry.path)
                else:
                    os.unlink(entry.path)
                removed.append(entry.name)
            finally:
                os.close(descriptor)
    return removed


def unfinished(folder: Path) -> list[str]:
    """The names of unfinished files and folders of this machine in a folder."""
    return [entry.name for entry in os.scandir(folder) if _UNFINISHED.fullmatch(entry.name)]


def _lock(descriptor: int) -> None:
    """Mark a file or folder as being written, as long as it is open here or in a child process."""
    if fcntl is not None:
        with suppress(OSError):  # not every file system has locks
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _sync_folder(folder: Path) -> None:
    """Let a renaming in a folder outlast a loss of power, where the file system can."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
