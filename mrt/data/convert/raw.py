"""The owners' downloads, unpacked or not, seen as one tree of files."""

from __future__ import annotations

import os
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from mrt.data.archives import (
    TAR_SUFFIXES,
    ZIP_SUFFIXES,
    inside_zip,
    is_archive,
    open_file,
    open_zip,
    safe_member,
    unpack_tar,
    unpacked_folder,
)
from mrt.data.card import CARD_NAME, UNPACKED, decode_json
from mrt.data.convert.names import IMAGES, WANTED, examples, is_about, split_in
from mrt.errors import MrtError

Unpacking = Callable[[Path, int, int], None]  # called with (archive, bytes done, bytes in all)


@dataclass(eq=False)
class _Place:
    """A raw folder or archive: the files that it holds by their path inside it, and the name that tells it from the others."""

    path: Path
    name: str
    files: dict[str, Path]
    archive: bool = False
    mount: str = ""  # the folder of the tree that its files are put into, with a slash


class RawFiles:
    """Files below one or more raw folders and archives, by their path inside: ``files["gtFine/val/a/b.json"]`` is where to read it.

    A folder's own archives (``*.zip``, ``*.tgz``, ``*.tar.gz``, ``*.tar`` right in it) are looked into too: the folder of the downloads as
    they came will do. Zip archives are read in place; the wanted files of tar archives are unpacked once, to
    ``data_root/unpacked/ARCHIVE``. If a folder holds the data root, what was made there (sets, unpacked archives) is no raw file.

    What has the same path and the same content in two places is one file, also where an archive lies beside the folder it was unpacked to.
    The same path with different content is two files: with ``apart`` the places that differ are put into folders of their names, as if the
    folder above them had been given; without it, that is an error. Places that are named after different splits ("train", "valid") are
    kept apart likewise. ``notes`` says what was done.

    Args:
        paths: what ``--raw`` names.
        wanted: regular expression; only files whose path inside matches it (``re.search``) are listed.
        data_root: where tar archives are unpacked to.
        apart: what to do about different files of one path.

    Raises:
        MrtError: a path that does not exist, is neither folder nor archive, or a folder or archive that cannot be read; two places that
            hold different files of one path, or different labels for the same image.
    """

    def __init__(
        self, paths: Sequence[Path | str], wanted: str, data_root: Path, on_unpack: Unpacking | None = None, *, apart: bool = False
    ) -> None:
        self.paths = [Path(path).expanduser().absolute() for path in paths]
        self.notes: list[str] = []
        self._wanted = re.compile(wanted)
        self._data_root = data_root.absolute()
        places: list[_Place] = []
        for path in self.paths:
            if path.is_dir():
                places.append(_Place(path, path.name, self._in_folder(path)))
                archives = [file for file in sorted(path.iterdir()) if file.is_file() and is_archive(file)]
            elif path.is_file() and is_archive(path):
                archives = [path]
            elif path.exists():
                raise MrtError(f"--raw {path}: neither a folder nor a {', '.join(ZIP_SUFFIXES + TAR_SUFFIXES)} archive")
            else:
                raise MrtError(f"--raw {path}: no such file or folder", "Name the folder with the downloads, or the archives themselves.")
            places += [_Place(archive, _stem(archive), self._in_archive(archive, on_unpack), True) for archive in archives]
        self.files: dict[str, Path] = self._as_one_tree(_once(places), apart)

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

    def _as_one_tree(self, places: list[_Place], apart: bool) -> dict[str, Path]:
        words = {place.path: split_in(place.name) for place in places}
        if apart and len({word for word in words.values() if word}) > 1:
            for place in places:
                place.mount = f"{words[place.path]}/" if words[place.path] else ""
        for place in places:
            if place.archive and not place.mount:
                _put_where_it_was_unpacked(place, places)
        files, differing, twice = _merge(places)
        if differing and not apart:
            inside, one, other = differing[0]
            raise MrtError(
                f"--raw: {inside} is in {one.path} and, with other content, in {other.path}",
                "They are two versions of one file: give only the place that is meant.",
            )
        if differing:
            _require_other_images(differing, places)
            apart_now = [place for place in places if any(place in pair for _, *pair in differing)]
            for place, name in zip(apart_now, _names_apart(apart_now), strict=True):
                place.mount = f"{place.mount}{name}/"
            files, _, twice = _merge(places)
            inside, *pair = differing[0]
            self.notes.append(
                f"{len(differing)} paths are in several places with different content, the first is {inside} (in "
                f"{' and '.join(place.path.name for place in pair)}): the places are kept apart, all of their files are taken"
            )
        if twice:
            self.notes.append(
                f"{len(twice)} files are in several places with the same content: each is taken once, the first is {twice[0]}"
            )
        return files

    def _in_folder(self, folder: Path) -> dict[str, Path]:
        found, unopened = {}, []
        for where, folders, names in os.walk(folder, followlinks=True, onerror=_unreadable):
            folders[:] = sorted(
                name for name in folders if not name.startswith(".") and not self._is_made(where, name) and not _leads_back(where, name)
            )
            inside = PurePosixPath(Path(where).relative_to(folder).as_posix())
            for name in names:
                path = (inside / name).as_posix()
                if not name.startswith(".") and self._wanted.search(path):
                    found[path] = Path(where) / name
                elif is_archive(Path(name)) and where != str(folder) and not name.startswith("."):
                    unopened.append(path)
        if unopened:
            self.notes.append(f"archives in inner folders are not opened: {examples(sorted(unopened))} (name them in --raw to take them)")
        return found

    def _is_made(self, where: str, name: str) -> bool:
        """Whether a folder is one of the data root's sets, or that of unpacked archives."""
        made = name == UNPACKED or os.path.isfile(os.path.join(where, name, CARD_NAME))
        return made and os.path.realpath(where) == os.path.realpath(self._data_root)

    def _in_archive(self, archive: Path, on_unpack: Unpacking | None) -> dict[str, Path]:
        if archive.name.lower().endswith(ZIP_SUFFIXES):
            return {
                safe_member(archive, member.filename).as_posix(): archive / member.filename
                for member in open_zip(archive).infolist()
                if not member.is_dir() and self._wanted.search(member.filename)
            }
        folder = unpacked_folder(archive, self._data_root / UNPACKED)
        tell = None if on_unpack is None else (lambda done, total: on_unpack(archive, done, total))
        unpack_tar(archive, folder, lambda name: self._wanted.search(name) is not None, tell, purpose=self._wanted.pattern)
        return self._in_folder(folder)


def own_files(raw: Sequence[Path | str] | RawFiles, data_root: Path, on_unpack: Unpacking | None = None) -> RawFiles:
    """The raw files of a user's own set: all that any kind of set is made of, each place kept apart."""
    return raw if isinstance(raw, RawFiles) else RawFiles(raw, WANTED, data_root, on_unpack, apart=True)


def _stem(archive: Path) -> str:
    name = archive.name
    return next((name[: -len(suffix)] for suffix in ZIP_SUFFIXES + TAR_SUFFIXES if name.lower().endswith(suffix)), name)


def _once(places: Sequence[_Place]) -> list[_Place]:
    """The places without files that another one, named before, has too: a folder and one inside it, or the same one twice."""
    seen: set[str] = set()
    for place in places:
        place.files = {inside: file for inside, file in place.files.items() if str(file) not in seen}
        seen.update(map(str, place.files.values()))
    return [place for place in places if place.files]


def _merge(places: Sequence[_Place]) -> tuple[dict[str, Path], list[tuple[str, _Place, _Place]], list[str]]:
    """The files of all places; paths with different content, with two places that have them; and paths with the same content."""
    files: dict[str, Path] = {}
    owner: dict[str, _Place] = {}
    differing, twice = [], []
    for place in places:
        for path, file in place.files.items():
            inside = place.mount + path
            if inside not in files:
                files[inside], owner[inside] = file, place
            elif is_about(inside) or same_content(files[inside], file):
                twice.append(inside)
            else:
                differing.append((inside, owner[inside], place))
    return files, differing, [inside for inside in twice if not is_about(inside)]


def _put_where_it_was_unpacked(archive: _Place, places: Sequence[_Place]) -> None:
    """If another place holds most of an archive's files below some folder, or above one of the archive's: the same paths for both."""
    paths = sorted(archive.files)
    sample = [path for path in paths[:: max(1, len(paths) // 16)] if not is_about(path)]
    for other in places:
        if other is archive:
            continue
        by_name: dict[str, list[str]] = {}
        for path in other.files:
            by_name.setdefault(path.rpartition("/")[2], []).append(path)
        moves = Counter(
            _move(path, theirs)
            for path in sample
            for theirs in by_name.get(path.rpartition("/")[2], ())
            if same_content(archive.files[path], other.files[theirs])
        )
        (ours, theirs), votes = moves.most_common(1)[0] if moves else (("", ""), 0)
        if votes * 2 >= len(sample) and votes and (ours or theirs or other.mount):
            target = other.mount + theirs
            moved = {target + path[len(ours) :] if path.startswith(ours) else path: file for path, file in archive.files.items()}
            archive.files = moved
            return


def _move(path: str, other: str) -> tuple[str, str]:
    """The folders that two paths differ by at their beginning, of the longest end that they share."""
    a, b = path.split("/"), other.split("/")
    while a and b and a[-1] == b[-1]:
        a.pop()
        b.pop()
    return "/".join([*a, ""]), "/".join([*b, ""])


def _require_other_images(differing: Sequence[tuple[str, _Place, _Place]], places: Sequence[_Place]) -> None:
    """MrtError if two places have the same image with different labels: nobody knows which are true."""
    for inside, one, other in differing:
        if IMAGES.search(inside):
            continue
        stem = PurePosixPath(inside).stem
        theirs = {
            path.rpartition("/")[2]: file for path, file in other.files.items() if PurePosixPath(path).stem == stem and IMAGES.search(path)
        }
        for path, file in one.files.items():
            image = theirs.get(path.rpartition("/")[2])
            if image is not None and IMAGES.search(path) and same_content(file, image):
                raise MrtError(
                    f"--raw: {one.path} and {other.path} hold the same image {path} with different labels ({inside})",
                    "Nobody can tell which are true: give only the place that is meant.",
                )


def _names_apart(places: Sequence[_Place]) -> list[str]:
    """A name for each of some places: its own, with as many of the folders above it as tell them apart."""
    depth = 1
    longest = max(len(place.path.parts) for place in places)
    while True:
        names = ["/".join([*place.path.parent.parts[1:][-(depth - 1) :], place.name] if depth > 1 else [place.name]) for place in places]
        if len({name.lower() for name in names}) == len(names) or depth > longest:
            return names if len(set(names)) == len(names) else [f"{name}-{number}" for number, name in enumerate(names, start=1)]
        depth += 1


def same_content(one: Path, other: Path) -> bool:
    """Whether two files, which may be members of zip archives, have the same bytes (size and CRC-32)."""
    sizes = _size_and_crc(one), _size_and_crc(other)
    if sizes[0][0] != sizes[1][0]:
        return False
    crcs = [crc if crc is not None else _crc_of(place) for place, (_, crc) in zip((one, other), sizes, strict=True)]
    return None not in crcs and crcs[0] == crcs[1]


def _size_and_crc(place: Path) -> tuple[int, int | None]:
    """Bytes and, of a zip's member, its CRC; -1 for a file that cannot be looked at."""
    member = inside_zip(place)
    if member is None:
        try:
            return place.stat().st_size, None
        except OSError:
            return -1, None
    info = open_zip(member[0]).getinfo(member[1])
    return info.file_size, info.CRC


def _crc_of(place: Path) -> int | None:
    crc = 0
    try:
        with open(place, "rb") as file:
            while block := file.read(1 << 20):
                crc = zlib.crc32(block, crc)
    except OSError:
        return None
    return crc


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
