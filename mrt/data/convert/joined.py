"""Several raw folders and archives as one tree of files, with duplicates and conflicts sorted out."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from mrt.data.archives import inside_zip, open_zip
from mrt.data.convert.names import IMAGES, is_about, shared_ends, split_in
from mrt.errors import MrtError

_COMPARED = 64  # so many of an archive's files are looked for among unpacked ones


@dataclass(eq=False)
class Place:
    """A raw folder or archive: its files by their path inside it, and a name that no other place has."""

    path: Path
    name: str
    files: dict[str, Path]
    archive: bool = False
    mount: str = ""  # the folder of the tree into which its files go, with a slash at its end


def one_tree(places: Sequence[Place], apart: bool) -> tuple[dict[str, Path], list[str]]:
    """Path inside -> where to read it; and notes.

    Args:
        apart: keep different files with the same path, each below its place's name; and keep places apart
            that are named after different splits.

    Raises:
        MrtError: different files with the same path (without ``apart``), or different labels for the same
            images.
    """
    places = _once(places)
    beside: dict[Place, Place] = {}
    for place in places:
        other = _put_where_it_was_unpacked(place, places) if place.archive else None
        if other is not None:
            beside[place] = other
    if apart:
        _mount_by_splits([place for place in places if place not in beside])
    for archive, other in beside.items():
        archive.mount = other.mount
    files, differing, twice = _merge(places)
    if differing and not apart:
        inside, one, other = differing[0]
        raise MrtError(
            f"--raw: {inside} is in {one.path} and, with other content, in {other.path}",
            "They are two versions of one file: give only the place that is meant.",
        )
    said = []
    if differing:
        _require_other_images(differing)
        apart_now = [place for place in places if any(place in pair for _, *pair in differing)]
        for place, name in zip(apart_now, _names_apart(apart_now), strict=True):
            place.mount = f"{place.mount}{name}/"
        files, _, twice = _merge(places)
        inside, *pair = differing[0]
        said.append(
            f"{len(differing)} paths are in several places with different content, the first is {inside} (in "
            f"{' and '.join(place.path.name for place in pair)}): the places are kept "
            "apart, all of their files are taken"
        )
    if twice:
        said.append(
            f"{len(twice)} files are in several places with the same content: each is "
            f"taken once, the first is {twice[0]}"
        )
    return files, said


def _once(places: Sequence[Place]) -> list[Place]:
    """The places without files that another place has too.

    This happens with a folder and one inside it, or one that is named twice. Of a file's two paths inside,
    the longer one is kept.
    """
    longest: dict[str, int] = {}
    for place in places:
        for inside, file in place.files.items():
            longest[str(file)] = max(longest.get(str(file), 0), inside.count("/"))
    seen: set[str] = set()
    for place in places:
        place.files = {
            inside: file
            for inside, file in place.files.items()
            if inside.count("/") == longest[str(file)] and str(file) not in seen
        }
        seen.update(map(str, place.files.values()))
    return [place for place in places if place.files]


def _mount_by_splits(places: Sequence[Place]) -> None:
    """Put places that are named after different splits below these names.

    Such as train and valid, or data/train/images and data/test/images.
    """
    above = Path(*shared_folders_of([place.path.parts for place in places]))
    named = [[*place.path.relative_to(above).parts[:-1], place.name] for place in places]
    where = [
        next((number for number in range(len(parts) - 1, -1, -1) if split_in(parts[number])), None)
        for parts in named
    ]
    words = [None if at is None else split_in(parts[at]) for parts, at in zip(named, where, strict=True)]
    if len({word for word in words if word}) < 2:
        return
    for place, parts, at, word in zip(places, named, where, words, strict=True):
        if at is not None and word is not None:
            # "valid" is kept as it is; of images_train only the split's word
            own = parts[at] if PurePosixPath(parts[at]).name.isalpha() else word
            place.mount = "/".join([*parts[:at], own, *parts[at + 1 :], ""])


def shared_folders_of(paths: Sequence[Sequence[str]]) -> list[str]:
    """The first parts that all paths have in common; no path's last part counts."""
    shared = []
    for parts in zip(*(path[:-1] for path in paths), strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return shared


def _merge(places: Sequence[Place]) -> tuple[dict[str, Path], list[tuple[str, Place, Place]], list[str]]:
    """Merge the files of all places.

    Returns the files; paths with different content, with two places that have them; paths with the same
    content.
    """
    files: dict[str, Path] = {}
    owner: dict[str, Place] = {}
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


def _put_where_it_was_unpacked(archive: Place, places: Sequence[Place]) -> Place | None:
    """Give an archive and its unpacked files in another place the same paths.

    The unpacked files may lie below some folder, or above one of the archive's.

    Returns:
        That place, if there is one; it is never an archive, nor one whose own files lie unpacked elsewhere.
    """
    paths = [path for path in sorted(archive.files) if not is_about(path)]
    for other in places:
        if other is archive or other.archive:
            continue
        by_name: dict[str, list[str]] = {}
        for path in other.files:
            by_name.setdefault(path.rpartition("/")[2], []).append(path)
        alike = [path for path in paths if path.rpartition("/")[2] in by_name]
        moves: Counter[tuple[str, str]] = Counter()
        compared = 0
        for path in alike[:: max(1, len(alike) // _COMPARED)]:
            # of several files with the same name, the one whose folders fit best
            same_name = by_name[path.rpartition("/")[2]]
            theirs = max(same_name, key=lambda their, path=path: shared_ends(path, their))
            compared += 1
            if same_content(archive.files[path], other.files[theirs]):
                moves[_move(path, theirs)] += 1
        (ours, theirs), votes = moves.most_common(1)[0] if moves else (("", ""), 0)
        if votes * 2 > compared:
            archive.files = {
                theirs + path[len(ours) :] if path.startswith(ours) else path: file
                for path, file in archive.files.items()
            }
            return other
    return None


def _move(path: str, other: str) -> tuple[str, str]:
    """The beginnings in which two paths differ, above the longest end that they share."""
    a, b = path.split("/"), other.split("/")
    while a and b and a[-1] == b[-1]:
        a.pop()
        b.pop()
    return "/".join([*a, ""]), "/".join([*b, ""])


def _require_other_images(differing: Sequence[tuple[str, Place, Place]]) -> None:
    """MrtError if two places have the same images with different labels: nobody knows which are right.

    That is the case if both have an image whose label file (by its name) differs; or if they share most of
    the images of one place, and any other file differs.
    """
    shared: dict[tuple[int, int], tuple[list[str], bool]] = {}
    for inside, one, other in differing:
        if IMAGES.search(inside):
            continue
        key = id(one), id(other)
        if key not in shared:
            shared[key] = _same_images(one, other)
        images, most = shared[key]
        named = [path for path in images if PurePosixPath(path).stem == PurePosixPath(inside).stem]
        candidates = named or (images if most else [])
        image = candidates[0] if candidates else None
        if image is not None:
            raise MrtError(
                f"--raw: {one.path} and {other.path} hold the same image {image} "
                f"with different labels ({inside})",
                "Nobody can tell which are true: give only the place that is meant.",
            )


def _same_images(one: Place, other: Place) -> tuple[list[str], bool]:
    """Images that two places have with the same content below the same path.

    Also returns whether those are most of the images of one of them.
    """
    theirs = {other.mount + path: file for path, file in other.files.items() if IMAGES.search(path)}
    ours = {one.mount + path: file for path, file in one.files.items() if IMAGES.search(path)}
    same = [path for path in ours if path in theirs and same_content(ours[path], theirs[path])]
    return same, 2 * len(same) > min(len(ours), len(theirs))


def _names_apart(places: Sequence[Place]) -> list[str]:
    """A name for each place: its own, with as many folders above it as are needed to tell them apart."""
    depth = 1
    longest = max(len(place.path.parts) for place in places)
    while True:
        names = []
        for place in places:
            above = place.path.parent.parts[1:][-(depth - 1) :] if depth > 1 else ()
            names.append("/".join([*above, place.name]))
        if len({name.lower() for name in names}) == len(names) or depth > longest:
            break
        depth += 1
    if len(set(names)) == len(names):
        return names
    return [f"{name}-{number}" for number, name in enumerate(names, start=1)]


def same_content(one: Path, other: Path) -> bool:
    """Whether two files, which may be members of zip archives, have the same bytes (size and CRC-32)."""
    (size, crc), (other_size, other_crc) = _size_and_crc(one), _size_and_crc(other)
    if size != other_size:
        return False
    crc = _crc_of(one) if crc is None else crc
    other_crc = _crc_of(other) if other_crc is None else other_crc
    return crc is not None and crc == other_crc


def _size_and_crc(place: Path) -> tuple[int, int | None]:
    """Size in bytes (-1 if unknown), and the CRC if it is a zip's member."""
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
