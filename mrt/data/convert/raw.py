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
from mrt.data.convert.joined import Place, one_tree
from mrt.data.convert.names import WANTED, examples, is_about
from mrt.errors import MrtError
from mrt.plain import quoted

# Archives that nothing here opens, and parts of one.
_OTHER_ARCHIVES = re.compile(
    r"(?i)\.(rar|r\d\d|7z|tar\.(xz|bz2|zst|lz4)|txz|tbz2?|tzst|z\d\d|(zip|7z|rar|tar|tgz|gz)\.\d{3}|cab|iso)$"
)
MANY = 6  # paths that are too many for a message
Unpacking = Callable[[Path, int, int], None]  # called with (archive, bytes done, bytes in all)


class RawFiles:
    """Files below one or more raw folders and archives, by their path inside.

    ``files["gtFine/val/a/b.json"]`` is where to read that file.

    Archives directly in a folder (``*.zip``, ``*.tgz``, ``*.tar.gz``, ``*.tar``) are searched too, so the
    folder with the downloads as they came is enough. Zip archives are read in place; the wanted files of tar
    archives are unpacked once, to ``data_root/unpacked/ARCHIVE``. If a folder holds the data root, what was
    made there (sets, unpacked archives) does not count as raw files.

    The same path with the same content in two places is one file, also if an archive lies beside the folder
    to which it was unpacked. The same path with different content is two files: with ``apart``, the places
    that differ are put into folders with their names, as if the folder above them had been given; without it,
    that is an error. Places that are named after different splits ("train", "valid") are kept apart in the
    same way. ``notes`` says what was done; ``nameless``: paths of files without a suffix, which may be
    images; ``unopened``: archives of kinds that are not read, or within others.

    Args:
        paths: what ``--raw`` names.
        wanted: regular expression; only files whose path inside matches it (``re.search``) are listed.
        data_root: tar archives are unpacked below it.
        apart: keep different files with the same path apart, instead of raising an error; single files, such
            as photos, may be named, too.

    Raises:
        MrtError: a path that does not exist or is none of these; a folder or archive that cannot
            be read; two places that hold different files with the same path, or different labels for the same
            image.
    """

    def __init__(
        self,
        paths: Sequence[Path | str],
        wanted: str,
        data_root: Path,
        on_unpack: Unpacking | None = None,
        *,
        apart: bool = False,
    ) -> None:
        self.paths = [Path(path).expanduser().absolute() for path in paths]
        self.notes: list[str] = []
        self.nameless: list[str] = []
        self.unopened: list[str] = []
        self._wanted = re.compile(wanted)
        self._data_root = data_root.absolute()
        places: list[Place] = []
        singles: dict[Path, dict[str, Path]] = {}  # files named one by one, by their folder
        for path in self.paths:
            if path.is_dir():
                places.append(Place(path, path.name, self._in_folder(path)))
                archives = [file for file in sorted(path.iterdir()) if file.is_file() and is_archive(file)]
            elif path.is_file() and is_archive(path):
                archives = [path]
            elif apart and path.is_file() and self._wanted.search(path.name):
                singles.setdefault(path.parent, {})[path.name] = path
                continue
            elif path.exists():
                raise MrtError(
                    f"--raw {path}: neither a folder nor a {', '.join(ZIP_SUFFIXES + TAR_SUFFIXES)} archive",
                    f"Name the folder that it is in: --raw {quoted(path.parent)}",
                )
            else:
                raise MrtError(
                    f"--raw {path}: no such file or folder",
                    "Name the folder with the downloads, or the archives themselves.",
                )
            places += [
                Place(archive, _stem(archive), self._in_archive(archive, on_unpack), True)
                for archive in archives
            ]
        places += [Place(folder, folder.name, files) for folder, files in singles.items()]
        self.files, said = one_tree(places, apart)
        self.notes += said
        self.nameless.sort()
        self.unopened.sort()
        if self.unopened:
            self.notes.append(
                f"warning: not opened: {len(self.unopened)} archives within archives, or of a kind that is "
                f"not read: {examples(self.unopened)} (unpack them, or pack their files as .zip or .tar.gz)"
            )

    @property
    def source(self) -> str:
        """What was given, without this machine's folders, for the card."""
        return examples([path.name for path in self.paths], MANY)

    @property
    def given(self) -> str:
        """What was given, for messages."""
        return " ".join(map(str, self.paths)) if len(self.paths) < MANY else examples(map(str, self.paths))

    def matching(self, pattern: str) -> Iterator[tuple[re.Match[str], Path]]:
        """(match, where to read it) of files whose path inside matches (``re.search``), sorted by path."""
        compiled = re.compile(pattern)
        for inside in sorted(self.files):
            match = compiled.search(inside)
            if match:
                yield match, self.files[inside]

    def _in_folder(self, folder: Path) -> dict[str, Path]:
        found, unopened = {}, []
        for where, folders, names in os.walk(folder, followlinks=True, onerror=_unreadable):
            visible = sorted(name for name in folders if not name.startswith("."))
            raw = [name for name in visible if not self._is_made(where, name)]
            folders[:] = [name for name in raw if not _leads_back(where, name)]
            inside = PurePosixPath(Path(where).relative_to(folder).as_posix())
            for name in names:
                path = (inside / name).as_posix()
                if not name.startswith(".") and self._wanted.search(path):
                    found[path] = Path(where) / name
                elif name.startswith("."):
                    continue
                elif is_archive(Path(name)) and where != str(folder):
                    unopened.append(path)
                else:
                    self._pass_over(path)
        if unopened:
            self.notes.append(
                f"archives in inner folders are not opened: {examples(sorted(unopened))} "
                "(name them in --raw to take them)"
            )
        return found

    def _is_made(self, where: str, name: str) -> bool:
        """Whether a folder is one of the data root's sets, or its folder of unpacked archives."""
        made = name == UNPACKED or os.path.isfile(os.path.join(where, name, CARD_NAME))
        return made and os.path.realpath(where) == os.path.realpath(self._data_root)

    def _in_archive(self, archive: Path, on_unpack: Unpacking | None) -> dict[str, Path]:
        def wants(name: str) -> bool:
            if self._wanted.search(name) is not None:
                return True
            self._pass_over(f"{archive.name}/{name}", packed=True)
            return False

        if archive.name.lower().endswith(ZIP_SUFFIXES):
            return {
                safe_member(archive, member.filename).as_posix(): archive / member.filename
                for member in open_zip(archive).infolist()
                if not member.is_dir() and wants(member.filename)
            }
        folder = unpacked_folder(archive, self._data_root / UNPACKED)
        tell = None if on_unpack is None else (lambda done, total: on_unpack(archive, done, total))
        unpack_tar(archive, folder, wants, tell, purpose=self._wanted.pattern)
        return self._in_folder(folder)

    def _pass_over(self, path: str, packed: bool = False) -> None:
        """Note a file that is not wanted, if it may hold something that is."""
        name = path.rpartition("/")[2]
        if _OTHER_ARCHIVES.search(name) or (packed and is_archive(Path(name))):
            self.unopened.append(path)
        elif "." not in name and not is_about(path):
            self.nameless.append(path)


def own_files(
    raw: Sequence[Path | str] | RawFiles, data_root: Path, on_unpack: Unpacking | None = None
) -> RawFiles:
    """The raw files of a user's own set: all files that any kind of set may need, each place kept apart."""
    return raw if isinstance(raw, RawFiles) else RawFiles(raw, WANTED, data_root, on_unpack, apart=True)


def _stem(archive: Path) -> str:
    name = archive.name
    suffixes = (suffix for suffix in ZIP_SUFFIXES + TAR_SUFFIXES if name.lower().endswith(suffix))
    return name[: len(name) - len(next(suffixes, ""))]


def _unreadable(error: OSError) -> None:
    raise MrtError(
        f"{error.filename}: cannot be read ({error.strerror})",
        "Files in it would be missing: mend its permissions.",
    ) from None


def _leads_back(where: str, name: str) -> bool:
    """Whether a folder is a link to a folder that contains it."""
    path = os.path.join(where, name)
    return os.path.islink(path) and Path(os.path.realpath(where)).is_relative_to(os.path.realpath(path))


def read_bytes(path: Path, most: int = -1) -> bytes:
    """All bytes of a file, or the first ``most``; it may be a zip's member. MrtError if it cannot be read."""
    try:
        with open_file(path) as file:
            return file.read(most)
    except FileNotFoundError:
        raise MrtError(f"{path}: no such file") from None
    except OSError as error:
        raise MrtError(f"{path}: cannot be read ({error.strerror or error})") from None


def parse_json(place: Path, object_hook: Callable[[dict[str, Any]], Any] | None = None) -> Any:
    """Content of a UTF-8 JSON file, which may be a zip's member.

    Args:
        object_hook: returns what to keep of each object, for files that would fill the memory.

    Raises:
        MrtError: it cannot be read, is cut short or in another encoding.
    """
    return decode_json(read_bytes(place), place, object_hook)


def common_root(places: Sequence[Path]) -> Path:
    """The deepest folder (or zip archive, or folder in one) that all places are below."""
    return Path(os.path.commonpath([place.parent for place in places]))


def relative(place: Path, root: Path) -> str:
    """The place below the root, with forward slashes."""
    return place.relative_to(root).as_posix()


def require(found: Any, what: str, raw: RawFiles, hint: str) -> None:
    """Raise an MrtError that names what was looked for, unless ``found`` is something."""
    if not found:
        raise MrtError(f"--raw {raw.given}: holds no {what}", hint)
