"""The owners' downloads, unpacked or not, seen as one tree of files."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from mrt.data.archives import (
    TAR_SUFFIXES,
    ZIP_SUFFIXES,
    is_archive,
    open_file,
    open_zip,
    safe_member,
    unpack_tar,
    unpacked_folder,
)
from mrt.data.card import CARD_NAME, UNPACKED, decode_json
from mrt.errors import MrtError

Unpacking = Callable[[Path, int, int], None]  # called with (archive, bytes done, bytes in all)


class RawFiles:
    """Files below one or more raw folders and archives, by their path inside: ``files["gtFine/val/a/b.json"]`` is where to read it.

    A folder's own archives (``*.zip``, ``*.tgz``, ``*.tar.gz``, ``*.tar`` right in it) are looked into too: the folder of the downloads as
    they came will do. What is found twice is taken from the folder given first, files before archives. Zip archives are read in place; the
    wanted files of tar archives are unpacked to ``data_root/unpacked/ARCHIVE``, once. If a folder holds the data root, what was made
    there (sets, unpacked archives) is no raw file.

    Args:
        paths: what ``--raw`` names.
        wanted: regular expression; only files whose path inside matches it (``re.search``) are listed.
        data_root: where tar archives are unpacked to.

    Raises:
        MrtError: a path that does not exist, is neither folder nor archive, or a folder or archive that cannot be read.
    """

    def __init__(self, paths: Sequence[Path | str], wanted: str, data_root: Path, on_unpack: Unpacking | None = None) -> None:
        self.paths = [Path(path).expanduser().absolute() for path in paths]
        self.files: dict[str, Path] = {}
        self._wanted = re.compile(wanted)
        self._data_root = data_root.absolute()
        for path in self.paths:
            if path.is_dir():
                self._add_folder(path)
                archives = [file for file in sorted(path.iterdir()) if file.is_file() and is_archive(file)]
            elif path.is_file() and is_archive(path):
                archives = [path]
            elif path.exists():
                raise MrtError(f"--raw {path}: neither a folder nor a {', '.join(ZIP_SUFFIXES + TAR_SUFFIXES)} archive")
            else:
                raise MrtError(f"--raw {path}: no such file or folder", "Name the folder with the downloads, or the archives themselves.")
            for archive in archives:
                self._add_archive(archive, on_unpack)

    @property
    def source(self) -> str:
        """For the card: what was given, without the folders of this machine."""
        return ", ".join(path.name for path in self.paths)

    def matching(self, pattern: str) -> Iterator[tuple[re.Match[str], Path]]:
        """(match, where to read it) of every file whose path inside matches (``re.search``), sorted by path."""
        compiled = re.compile(pattern)
        for inside in sorted(self.files):
            match = compiled.search(inside)
            if match:
                yield match, self.files[inside]

    def _add(self, inside: str, place: Path) -> None:
        if self._wanted.search(inside):
            self.files.setdefault(inside, place)

    def _add_folder(self, folder: Path) -> None:
        for where, folders, names in os.walk(folder, followlinks=True, onerror=_unreadable):
            folders[:] = sorted(
                name for name in folders if not name.startswith(".") and not self._is_made(where, name) and not _leads_back(where, name)
            )
            inside = PurePosixPath(Path(where).relative_to(folder).as_posix())
            for name in names:
                if not name.startswith("."):
                    self._add((inside / name).as_posix(), Path(where) / name)

    def _is_made(self, where: str, name: str) -> bool:
        """Whether a folder is one of the data root's sets, or that of unpacked archives."""
        made = name == UNPACKED or os.path.isfile(os.path.join(where, name, CARD_NAME))
        return made and os.path.realpath(where) == os.path.realpath(self._data_root)

    def _add_archive(self, archive: Path, on_unpack: Unpacking | None) -> None:
        if archive.name.lower().endswith(ZIP_SUFFIXES):
            for member in open_zip(archive).infolist():
                if not member.is_dir() and self._wanted.search(member.filename):
                    self._add(safe_member(archive, member.filename).as_posix(), archive / member.filename)
            return
        folder = unpacked_folder(archive, self._data_root / UNPACKED)
        tell = None if on_unpack is None else (lambda done, total: on_unpack(archive, done, total))
        unpack_tar(archive, folder, lambda name: self._wanted.search(name) is not None, tell, purpose=self._wanted.pattern)
        self._add_folder(folder)


def _unreadable(error: OSError) -> None:
    raise MrtError(f"{error.filename}: cannot be read ({error.strerror})", "Files in it would be missing: mend its permissions.") from None


def _leads_back(where: str, name: str) -> bool:
    """Whether a folder is a link to one that it is in."""
    path = os.path.join(where, name)
    return os.path.islink(path) and Path(os.path.realpath(where)).is_relative_to(os.path.realpath(path))


def read_bytes(path: Path) -> bytes:
    """All bytes of a file, which may be a zip's member; MrtError if it cannot be read."""
    try:
        with open_file(path) as file:
            return file.read()
    except FileNotFoundError:
        raise MrtError(f"{path}: no such file") from None
    except OSError as error:
        raise MrtError(f"{path}: cannot be read ({error.strerror or error})") from None


def parse_json(place: Path, object_hook: Callable[[dict[str, Any]], Any] | None = None) -> Any:
    """What a UTF-8 JSON file, which may be a zip's member, holds; MrtError if it cannot be read, is cut short or of another encoding.

    ``object_hook``: what to keep of each object, for files that would fill the memory.
    """
    return decode_json(read_bytes(place), place, object_hook)


def common_root(places: Sequence[Path]) -> Path:
    """The deepest folder (or zip archive, or folder in one) that all places are below."""
    return Path(os.path.commonpath([place.parent for place in places]))


def relative(place: Path, root: Path) -> str:
    """The place below the root, with forward slashes."""
    return place.relative_to(root).as_posix()


def require(found: Any, what: str, raw: RawFiles, hint: str) -> None:
    """MrtError that names what was looked for unless ``found`` is something."""
    if not found:
        raise MrtError(f"--raw {' '.join(str(path) for path in raw.paths)}: holds no {what}", hint)
