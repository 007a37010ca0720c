"""Files on disk and inside zip archives, addressed by one kind of path. Needs no torch.

A path may lead through a zip file: ``/raw/leftImg8bit_trainvaltest.zip/leftImg8bit/val/a.png`` is the member
``leftImg8bit/val/a.png``. Reading a member of a zip archive is cheap, so the owners' downloads need not be
unpacked; a tar archive must be (:func:`unpack_tar`).
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
import struct
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
# files in a folder of unpacked files: from which archive they are, and for which purposes it was unpacked
_STARTED, _DONE = ".unpacking", ".unpacked"
# what tarfile raises on broken archives; the last four on odd headers
_BROKEN_TAR = (tarfile.TarError, EOFError, zlib.error, TypeError, ValueError, IndexError, struct.error)
_ELSEWHERE = re.compile(r"[A-Za-z]:|[A-Za-z][\w+.-]*://")  # a drive letter, or a URL
# key: (process id, path), because a forked worker must not share the parent's file position
_open_archives: dict[tuple[int, str], zipfile.ZipFile] = {}


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
        MrtError: it is missing, cut short or not a zip file.
    """
    key = (os.getpid(), str(path))
    if key not in _open_archives:
        try:
            archive = _open_archives[key] = zipfile.ZipFile(path)
            # some tools write ./a/b.png; a Path has no such parts
            for name, info in list(archive.NameToInfo.items()):
                archive.NameToInfo.setdefault(PurePosixPath(name).as_posix(), info)
        except FileNotFoundError:
            raise MrtError(f"{path}: no such file") from None
        except (OSError, zipfile.BadZipFile) as error:
            raise MrtError(
                f"{path}: cannot be read as a zip archive ({error})",
                "The download may be cut short: get it again.",
            ) from None
    return _open_archives[key]


def open_file(path: Path | str) -> BinaryIO:
    """Open a file for reading its bytes; a zip member is read into memory as a whole.

    Raises:
        FileNotFoundError, OSError: as ``open`` does; OSError also for a damaged member.
    """
    path = Path(path)
    try:
        member = inside_zip(path)
        if member is None:
            return open(path, "rb")
    except ValueError:  # a zero byte, or half a character
        raise FileNotFoundError(f"no file can be called {str(path)[-100:]!r}") from None
    archive, name = member
    try:
        return io.BytesIO(open_zip(archive).read(name))
    except KeyError:
        raise FileNotFoundError(f"no {name} in {archive}") from None
    except (zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError, EOFError) as error:
        raise OSError(f"damaged or encrypted in {archive.name}: {error}") from None


def file_exists(path: Path) -> bool:
    """Whether there is such a file, or such a member of a zip archive."""
    try:
        member = inside_zip(path)
        if member is None:
            return path.is_file()
    except (OSError, ValueError):  # no file can have such a name
        return False
    try:
        open_zip(member[0]).getinfo(member[1])
    except KeyError:
        return False
    return True


def safe_member(archive: Path, name: str) -> PurePosixPath:
    """A member's name as a relative path; MrtError if it climbs out of the archive's root."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or leads_elsewhere(name):
        raise MrtError(
            f"{archive}: its member {name!r} leads out of the folder it would be unpacked to",
            "Get it from its owner; if you trust it, unpack it yourself and give the folder.",
        )
    return path


def leads_elsewhere(name: str) -> bool:
    """Whether a name begins with a drive letter or is a URL; 12:30.jpg is neither."""
    return _ELSEWHERE.match(name) is not None


def unpacked_folder(archive: Path, root: Path) -> Path:
    """Where a tar archive is unpacked below ``root``.

    A folder with the archive's name, or one beside it if that folder holds another archive's files.
    """
    folder, mark = root / archive.name, _mark(archive)
    if not folder.exists() or _reads(folder / _STARTED, mark):
        return folder
    return root / f"{archive.name}-{hashlib.sha256(mark.encode('utf-8', 'surrogateescape')).hexdigest()[:8]}"


def unpack_tar(
    archive: Path,
    folder: Path,
    wanted: Callable[[str], bool],
    on_progress: Callable[[int, int], None] | None = None,
    purpose: str = "everything wanted",
) -> None:
    """Unpack the wanted regular files of a tar archive into ``folder``, safely, and not twice.

    Links, devices and names that lead out of the folder are refused. Each file is written whole or not at
    all, so a call after an interrupted one goes on where that stopped; a folder that is complete for this
    archive (same size and time) and purpose is left as it is.

    Args:
        on_progress: called with (bytes of the archive read, its size).
        purpose: one line that stands for ``wanted``: what was unpacked for one purpose may not be enough for
            the next.

    Raises:
        MrtError: the archive is missing, cut short or unsafe, or the disk is full.
    """
    mark = _mark(archive)
    size = archive.stat().st_size
    done = _lines(folder / _DONE)
    if done[:1] != [mark]:
        done = [mark]
    elif purpose in done:
        return
    goes_on = _reads(folder / _STARTED, mark)
    write_text(folder / _STARTED, mark)
    try:
        with open(archive, "rb") as raw, tarfile.open(fileobj=raw, mode="r|*") as tar:
            for member in tar:
                if on_progress is not None:
                    on_progress(raw.tell(), size)
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
    except _BROKEN_TAR as error:
        raise MrtError(
            f"{archive}: cannot be read to its end ({error})", "The download may be cut short: get it again."
        ) from None
    except OSError as error:
        raise MrtError(f"{archive}: cannot be unpacked into {folder} ({error.strerror or error})") from None
    write_text(folder / _DONE, "\n".join([*done, purpose]))


def _mark(archive: Path) -> str:
    """What tells an archive from another one of the same name."""
    try:
        stat = archive.stat()
    except OSError as error:
        raise MrtError(f"{archive}: cannot be read ({error.strerror})") from None
    return f"{ascii(archive.name)[1:-1]} {stat.st_size} {stat.st_mtime_ns}"


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []


def _reads(path: Path, text: str) -> bool:
    return _lines(path) == [text]
