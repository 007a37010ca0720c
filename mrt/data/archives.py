"""Files on disk and files inside zip archives, by one kind of path. Needs no torch.

A path may lead through a zip file: ``/raw/leftImg8bit_trainvaltest.zip/leftImg8bit/val/a.png`` is the member ``leftImg8bit/val/a.png``. Zip
archives allow that at no cost, so the owners' downloads need not be unpacked; a tar archive must be (:func:`unpack_tar`).
"""

from __future__ import annotations

import io
import os
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from mrt.errors import MrtError
from mrt.files import replacing, write_text

ZIP_SUFFIXES = (".zip",)
TAR_SUFFIXES = (".tar", ".tgz", ".tar.gz")
_STARTED, _DONE = ".unpacking", ".unpacked"  # in a folder of unpacked files: the archive's size and time, written first and last
_open_archives: dict[tuple[int, str], zipfile.ZipFile] = {}  # by process: a forked worker must not share the parent's file position


def is_archive(path: Path) -> bool:
    """Whether the name says zip or tar."""
    return path.name.lower().endswith(ZIP_SUFFIXES + TAR_SUFFIXES)


def inside_zip(path: Path) -> tuple[Path, str] | None:
    """(archive, member) for a path that leads into a zip file, else None."""
    if not any(part.lower().endswith(ZIP_SUFFIXES) for part in path.parts[:-1]):
        return None
    for parent in path.parents:
        if parent.name.lower().endswith(ZIP_SUFFIXES) and parent.is_file():
            return parent, path.relative_to(parent).as_posix()
    return None


def open_zip(path: Path) -> zipfile.ZipFile:
    """The archive, opened once per process.

    Raises:
        MrtError: it is missing, cut short or no zip file.
    """
    key = (os.getpid(), str(path))
    if key not in _open_archives:
        try:
            _open_archives[key] = zipfile.ZipFile(path)
        except FileNotFoundError:
            raise MrtError(f"{path}: no such file") from None
        except (OSError, zipfile.BadZipFile) as error:
            raise MrtError(f"{path}: cannot be read as a zip archive ({error})", "The download may be cut short: get it again.") from None
    return _open_archives[key]


def open_file(path: Path | str) -> BinaryIO:
    """The file's bytes, to read; of a zip member, all of them in memory.

    Raises:
        FileNotFoundError, OSError: as ``open`` does; OSError also for a damaged member.
    """
    path = Path(path)
    member = inside_zip(path)
    if member is None:
        return open(path, "rb")
    archive, name = member
    try:
        return io.BytesIO(open_zip(archive).read(name))
    except KeyError:
        raise FileNotFoundError(f"no {name} in {archive}") from None
    except (zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError, EOFError) as error:
        raise OSError(f"damaged or encrypted in {archive.name}: {error}") from None


def file_exists(path: Path) -> bool:
    """Whether there is such a file, or such a member of a zip archive."""
    member = inside_zip(path)
    if member is None:
        return path.is_file()
    try:
        open_zip(member[0]).getinfo(member[1])
    except KeyError:
        return False
    return True


def safe_member(archive: Path, name: str) -> PurePosixPath:
    """A member's name as a relative path; MrtError if it climbs out of the archive's root."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or (path.parts and ":" in path.parts[0]):
        raise MrtError(
            f"{archive}: its member {name!r} leads out of the folder it would be unpacked to",
            "The archive is not to be trusted: get it from its owner.",
        )
    return path


def unpack_tar(archive: Path, folder: Path, wanted: Callable[[str], bool], on_progress: Callable[[int, int], None] | None = None) -> None:
    """Unpack the wanted regular files of a tar archive into ``folder``, safely, and not twice.

    Links, devices and names that lead out of the folder are refused. A file appears whole or not at all, so an interrupted call goes on
    where it stopped; a folder that is complete for this archive (same size and time) is left as it is.

    Args:
        on_progress: called with (bytes of the archive read, its size).

    Raises:
        MrtError: the archive is missing, cut short or unsafe, or the disk is full.
    """
    try:
        stat = archive.stat()
    except OSError as error:
        raise MrtError(f"{archive}: cannot be read ({error.strerror})") from None
    mark = f"{archive.name} {stat.st_size} {stat.st_mtime_ns}"
    if _reads(folder / _DONE, mark):
        return
    goes_on = _reads(folder / _STARTED, mark)
    write_text(folder / _STARTED, mark)
    try:
        with open(archive, "rb") as raw, tarfile.open(fileobj=raw, mode="r|*") as tar:
            for member in tar:
                if on_progress is not None:
                    on_progress(raw.tell(), stat.st_size)
                path = safe_member(archive, member.name)
                if member.isdir() or not wanted(path.as_posix()):
                    continue
                content = tar.extractfile(member) if member.isreg() else None
                if content is None:
                    raise MrtError(f"{archive}: its member {member.name!r} is a link or a device, not a file")
                target = folder / path
                if goes_on and target.is_file() and target.stat().st_size == member.size:
                    continue
                with replacing(target) as file:
                    shutil.copyfileobj(content, file, 1 << 20)
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise MrtError(f"{archive}: cannot be read to its end ({error})", "The download may be cut short: get it again.") from None
    except OSError as error:
        raise MrtError(f"{archive}: cannot be unpacked into {folder} ({error.strerror or error})") from None
    write_text(folder / _DONE, mark)


def _reads(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text(encoding="utf-8", errors="replace") == text
