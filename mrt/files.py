"""Files that are whole or not there: written under a temporary name in the same folder, fsynced, renamed."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from mrt.errors import MrtError


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A binary file that takes ``path``'s place when the block ends; if the block fails, what was there stays.

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
        raise MrtError(f"{path}: could not be written: {reason}", "check the folder's permissions and the free space") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Replace a file's content by UTF-8 text, as a whole."""
    content = text.encode("utf-8")
    with replacing(path) as file:
        file.write(content)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
