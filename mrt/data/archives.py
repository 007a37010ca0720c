"""Files on disk and inside zip archives, addressed by one kind of path. Needs no torch.

A path may lead through a zip file: ``/raw/leftImg8bit_trainvaltest.zip/leftImg8bit/val/a.png`` is the member
``leftImg8bit/val/a.png``. Reading a member of a zip archive is cheap, so the owners' downloads need not be
unpacked; a tar archive must be (:func:`unpack_tar`).
"""

from __future__ import annotations

import bz2
import errno
import gzip
import hashlib
import io
import lzma
import os
import re
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from mrt.data.limits import require_few, require_modest
from mrt.errors import MrtError
from mrt.files import replacing, write_text

ZIP_SUFFIXES = (".zip",)
TAR_SUFFIXES = (".tar", ".tgz", ".tar.gz")
# files in a folder of unpacked files: from which archive they are, and for which purposes it was unpacked
_STARTED, _DONE = ".unpacking", ".unpacked"
# what tarfile raises on broken archives; the last ones on odd headers
_BROKEN_TAR = (
    *(tarfile.TarError, EOFError, zlib.error, lzma.LZMAError),
    *(TypeError, ValueError, LookupError, OverflowError, struct.error),
)
# what zipfile raises on broken archives and damaged, encrypted or strangely packed members
BROKEN_ZIP = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, RuntimeError, NotImplementedError, EOFError),
    *(TypeError, ValueError, LookupError, OverflowError, struct.error),
)
_IN_MEMORY = 64 << 20  # bytes of a zip's member that is read as a whole; a larger one is read as it is needed
_ENTRY, _ENTRY_BYTES = b"PK\x01\x02", 46  # how an entry of a zip's directory begins, and its least size
_TAR_HEADERS = 4 << 20  # bytes of headers that a tar may have before one file
_TAR_BLOCK = 1 << 18
# how compressed files begin
_PACKED: tuple[tuple[bytes, Callable[[BinaryIO], Any]], ...] = (
    (b"\x1f\x8b", lambda file: gzip.GzipFile(fileobj=file)),
    (b"BZh", bz2.BZ2File),
    (b"\xfd7zXZ\0", lzma.LZMAFile),
)
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
        MrtError: it is missing, cut short, not a zip file, or becomes far too much (:mod:`mrt.data.limits`).
    """
    key = (os.getpid(), str(path))
    if key not in _open_archives:
        try:
            with ExitStack() as if_refused:
                file = if_refused.enter_context(_Directory(io.FileIO(path), path))
                archive = zipfile.ZipFile(file)
                archive.filelist[:] = [info for info in archive.filelist if info.filename]  # none has no name
                unpacked = sum(info.file_size for info in archive.filelist)
                require_modest(str(path), unpacked, os.fstat(file.fileno()).st_size)
                if_refused.pop_all()
        except FileNotFoundError:
            raise MrtError(f"{path}: no such file") from None
        except (OSError, *BROKEN_ZIP) as error:
            raise MrtError(
                f"{path}: cannot be read as a zip archive ({_reason(error)})",
                "The download may be cut short: get it again.",
            ) from None
        file.is_open = True
        for info in archive.filelist:
            if _is_foreign(info):
                _take_as_utf8(archive, info)
        # some tools write ./a/b.png; a Path has no such parts
        for name, info in list(archive.NameToInfo.items()):
            archive.NameToInfo.setdefault(PurePosixPath(name).as_posix(), info)
        _open_archives[key] = archive
    return _open_archives[key]


_SAYS_UTF8 = 0x800  # bit of a zip entry's flags: its name is UTF-8; else it is of the first PCs' code page


def _is_foreign(info: zipfile.ZipInfo) -> bool:
    """Whether a member's name has letters of which the archive does not say what they are."""
    return not info.flag_bits & _SAYS_UTF8 and not info.orig_filename.isascii()


def _take_as_utf8(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> None:
    """Give a member its name in UTF-8, if it is that without saying so, as some tools write it."""
    with suppress(UnicodeError):
        name = info.orig_filename.encode("cp437").decode("utf-8")
        archive.NameToInfo.pop(info.filename, None)
        info.filename = name
        archive.NameToInfo[name] = info


def says_no_alphabet(path: Path) -> bool:
    """Whether a path is a zip's member whose name has letters of an unknown code page."""
    member = inside_zip(path)
    if member is None or path.as_posix().isascii():
        return False
    info = open_zip(member[0]).NameToInfo.get(member[1])
    return info is not None and _is_foreign(info) and info.filename == info.orig_filename


class _Directory(io.BufferedReader):
    """A zip file. While zipfile reads its directory, it is refused if it lists too many files."""

    def __init__(self, raw: io.RawIOBase, path: Path) -> None:
        super().__init__(raw)
        self.is_open, self._path = False, path

    def read(self, size: int | None = -1) -> bytes:
        content = super().read(size)
        if not self.is_open and len(content) > _ENTRY_BYTES:
            require_few(self._path, content.count(_ENTRY))
        return content


def open_file(path: Path | str) -> BinaryIO:
    """Open a file for reading its bytes; a zip member is read into memory as a whole if it is not large.

    Raises:
        FileNotFoundError, OSError: as ``open`` does; OSError also for a damaged member, there and while a
            large one is read.
        MrtError: the archive cannot be read, or becomes far too much (:mod:`mrt.data.limits`).
    """
    path = Path(path)
    try:
        member = inside_zip(path)
        if member is None:
            if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would be waited for
                raise OSError(errno.EINVAL, "no plain file", str(path))
            return open(path, "rb")
    except ValueError:  # a zero byte, or half a character
        raise FileNotFoundError(f"no file can be called {str(path)[-100:]!r}") from None
    archive, name = member
    found = open_zip(archive)
    try:
        info = found.getinfo(name)
    except KeyError:
        raise FileNotFoundError(f"no {name} in {archive}") from None
    packed = min(info.compress_size, archive.stat().st_size)  # the archive may claim anything
    require_modest(f"{archive}: its member {name!r}", info.file_size, packed)
    with _reading(archive):
        if info.file_size > _IN_MEMORY:
            return io.BufferedReader(_Member(found.open(info), archive))
        return io.BytesIO(found.read(info))


@contextmanager
def _reading(archive: Path) -> Any:
    """Errors of reading a zip's member as OSError."""
    try:
        yield
    except BROKEN_ZIP as error:
        raise OSError(f"damaged or encrypted in {archive.name}: {_reason(error)}") from None


class _Member(io.RawIOBase):
    """A large member of a zip archive, read as it is needed."""

    def __init__(self, member: Any, archive: Path) -> None:
        super().__init__()
        self._member, self._archive = member, archive

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with _reading(self._archive):
            content = self._member.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        with _reading(self._archive):
            return self._member.seek(offset, whence)

    def tell(self) -> int:
        return self._member.tell()

    def close(self) -> None:
        self._member.close()
        super().close()


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error) or type(error).__name__


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
    goes_on, is_new = _reads(folder / _STARTED, mark), not folder.exists()
    write_text(folder / _STARTED, mark)
    try:
        with open(archive, "rb") as raw:
            _unpack(
                archive, raw, folder, wanted, goes_on, lambda: on_progress and on_progress(raw.tell(), size)
            )
    except _TooMuch as error:
        if is_new:  # what is there of it is of no use
            shutil.rmtree(folder, ignore_errors=True)
        raise MrtError(error.message, error.hint) from None
    except _BROKEN_TAR as error:
        raise MrtError(
            f"{archive}: cannot be read to its end ({_reason(error)})",
            "The download may be cut short: get it again.",
        ) from None
    except OSError as error:
        raise MrtError(f"{archive}: cannot be unpacked into {folder} ({error.strerror or error})") from None
    write_text(folder / _DONE, "\n".join([*done, purpose]))


def _unpack(
    archive: Path,
    raw: BinaryIO,
    folder: Path,
    wanted: Callable[[str], bool],
    goes_on: bool,
    tell: Callable[[], Any],
) -> None:
    stream, members, written = _TarStream(archive, raw), 0, 0
    with tarfile.open(fileobj=stream, mode="r|", bufsize=_TAR_BLOCK, tarinfo=_Header) as tar:
        while (member := tar.next()) is not None:
            tar.members = []  # which would grow with every file
            members += 1
            stream.expect(member.size)
            _as_too_much(require_few, archive, members)
            tell()
            path = safe_member(archive, member.name)
            if member.isdir() or not wanted(path.as_posix()):
                continue
            content = tar.extractfile(member) if member.isreg() else None
            if content is None:
                raise MrtError(f"{archive}: its member {member.name!r} is a link or a device, not a file")
            written += member.size  # of a file with holes, more than the archive has of it
            _as_too_much(require_modest, str(archive), written, os.fstat(raw.fileno()).st_size, False)
            target = folder / path
            if goes_on and target.is_file() and target.stat().st_size == member.size:
                continue
            with replacing(target) as file:
                shutil.copyfileobj(content, file, 1 << 20)


class _TooMuch(MrtError):
    """An archive that becomes far too much."""


def _as_too_much(check: Callable[..., None], *given: Any) -> None:
    try:
        check(*given)
    except MrtError as error:
        raise _TooMuch(error.message, error.hint) from None


class _Header(tarfile.TarInfo):
    """A tar's header. One that is damaged is an error also where tarfile takes it for the archive's end."""

    @classmethod
    def frombuf(cls, buf: bytes, encoding: str, errors: str) -> Any:
        try:
            return super().frombuf(buf, encoding, errors)
        except (tarfile.InvalidHeaderError, tarfile.TruncatedHeaderError) as error:
            raise tarfile.SubsequentHeaderError(f"damaged: {error}") from None


class _TarStream:
    """The unpacked bytes of a tar archive, refused where they become far too much."""

    def __init__(self, archive: Path, raw: BinaryIO) -> None:
        head = raw.read(6)
        raw.seek(0)
        packed = [make for mark, make in _PACKED if head.startswith(mark)]
        self._archive, self._raw = archive, raw
        self._stream = packed[0](raw) if packed else raw
        self._count = 0
        self.expect(0)

    def expect(self, size: int) -> None:
        """A file of that size comes next; after it there may be some headers."""
        self._most = self._count + max(size, 0) + _TAR_HEADERS + 2 * _TAR_BLOCK

    def read(self, size: int) -> bytes:
        """The next bytes; ReadError if they are damaged."""
        try:
            content = self._stream.read(size)
        except OSError as error:
            if error.errno is not None:  # the disk's error; others are of the packed bytes
                raise
            raise tarfile.ReadError(str(error)) from None
        self._count += len(content)
        _as_too_much(require_modest, str(self._archive), self._count, self._raw.tell(), False)
        if self._count > self._most:
            raise MrtError(
                f"{self._archive}: more than {_TAR_HEADERS >> 20} MB of headers before one of its files",
                "Unpack it yourself and give the folder, if you trust it.",
            )
        return content


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
