"""Write files and folders so that they are complete or do not exist at all.

They are written under a temporary name in the same folder and then renamed. Files are fsynced.
"""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from mrt.errors import MrtError


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A binary file that replaces ``path`` when the block ends. If the block fails, an existing file stays.

    Raises:
        MrtError: the folder cannot be written to, or the disk is full.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        temporary = Path(name)
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except OSError as error:
        reason = error.strerror or error
        raise MrtError(
            f"{path}: could not be written: {reason}", "check the folder's permissions and the free space"
        ) from error
    finally:
        if temporary is not None:
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
    """
    folder = folder.absolute()
    require_free(folder)
    work = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.partial")
    made = [parent for parent in folder.parents if not parent.exists()]  # deepest first
    done = False
    try:
        work.mkdir(parents=True)
        yield work
        work.replace(folder)
        done = True
    except OSError as error:
        raise MrtError(
            f"{folder}: could not be written: {error.strerror or error}",
            "check its permissions and the free space",
        ) from error
    finally:
        if not done:
            shutil.rmtree(work, ignore_errors=True)
            with suppress(OSError):  # another program has written something there
                for parent in made:
                    parent.rmdir()


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
