"""What a small file may become when it is unpacked or parsed, and how a user allows more. Needs no torch.

Archives and nested texts can be made so that a few kilobytes fill the memory or the disk. Files that are as
large on the disk as they are in use are not limited.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mrt.errors import MrtError

# Pictures do not shrink in an archive, label files to a tenth; zeros shrink most, deflate makes 1 of 1032.
RATIO = 100
UNPACKED = 64 << 20  # bytes that any archive may become, however small it is
UNPACKED_VARIABLE = "MRT_MAX_UNPACKED"
MEMBERS = 2_000_000  # files in an archive; the largest public ones have 1.7 million
MEMBERS_VARIABLE = "MRT_MAX_MEMBERS"
YAML = 50_000  # names, values and lists in a YAML file, of 20 bytes each: two seconds to read
YAML_VARIABLE = "MRT_MAX_YAML"
LONGEST_PATH = 4096  # letters; no system has longer ones, and looking for their ends takes forever


def allowed(variable: str, default: int) -> int:
    """The limit that an environment variable sets, at least ``default``.

    Raises:
        MrtError: its value is no whole number.
    """
    said = os.environ.get(variable, "").strip()
    if not said:
        return default
    if not (said.isascii() and said.isdecimal() and len(said) < 20):
        raise MrtError(
            f"the environment variable {variable} is {said[:40]!r}, expected a whole number "
            f"such as {default}",
            f"mend it, or take it away: unset {variable}",
        )
    return max(int(said), default)


@contextmanager
def raised(variable: str, most: int | None) -> Iterator[None]:
    """Set a limit's environment variable in this block and in processes started in it; None: leave it."""
    before = os.environ.get(variable)
    if most is not None:
        os.environ[variable] = str(most)
    try:
        yield
    finally:
        if most is not None:
            os.environ.pop(variable, None)
            os.environ.update({} if before is None else {variable: before})


def require_modest(what: str, unpacked: int, packed: int, whole: bool = True) -> None:
    """MrtError if so many bytes are far more than the packed ones they come from.

    Args:
        what: names the archive, and its member if it is one.
        whole: ``unpacked`` is all that it becomes; otherwise it is what has been seen so far.
    """
    if unpacked <= RATIO * packed or unpacked <= allowed(UNPACKED_VARIABLE, UNPACKED):
        return
    becomes = f"{unpacked} bytes" if whole else f"more than {unpacked} bytes"
    need = unpacked if whole else "BYTES"
    raise MrtError(
        f"{what}: {max(packed, 1)} bytes of it become {becomes}, {unpacked // max(packed, 1)} times as many: "
        "it may be made to fill the memory or the disk",
        f"If it is to be trusted, allow it with the environment variable {UNPACKED_VARIABLE}={need} "
        f"(mrt prepare-data: --max-unpacked {need}), or unpack it yourself and give the folder.",
    )


def require_few(archive: Path, members: int) -> None:
    """MrtError if an archive has more files than are read."""
    most = allowed(MEMBERS_VARIABLE, MEMBERS)
    if members > most:
        raise MrtError(
            f"{archive}: holds more than {most} files, which is more than are read from one archive",
            "If it is to be trusted, allow more with the environment variable "
            f"{MEMBERS_VARIABLE}={2 * most}, or unpack it yourself and give the folder.",
        )
