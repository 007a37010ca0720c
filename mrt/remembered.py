"""What ``mrt prepare-data`` remembers for later commands: the data root and the raw files of each data set.

It is one small JSON file per user: ``$XDG_CONFIG_HOME/mrt/settings.json``, else
``~/.config/mrt/settings.json``. Options, environment variables and a ``./data`` folder take precedence. A
file that cannot be read or written is ignored.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def settings_file() -> Path:
    """The path of the file."""
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "mrt" / "settings.json"


def _read() -> dict[str, Any]:
    try:
        content = json.loads(settings_file().read_text(encoding="utf-8"))
    except (OSError, ValueError, RuntimeError):  # RuntimeError: no home folder
        return {}
    return content if isinstance(content, dict) else {}


def data_root() -> Path | None:
    """The remembered data root, if it still exists."""
    path = _read().get("data_root")
    return Path(path) if isinstance(path, str) and Path(path).is_dir() else None


def forget_gone() -> Path | None:
    """The remembered data root if it has vanished; it is forgotten."""
    content = _read()
    path = content.get("data_root")
    if not isinstance(path, str) or Path(path).is_dir():
        return None
    del content["data_root"]
    _write(content)
    return Path(path)


def raw(name: str) -> list[Path]:
    """The remembered raw files of a data set that still exist."""
    paths = _read().get("raw", {})
    found = paths.get(name, []) if isinstance(paths, dict) else []
    if not isinstance(found, list):
        return []
    return [Path(path) for path in found if isinstance(path, str) and Path(path).exists()]


def remember(root: Path | None = None, raw_files: dict[str, Sequence[Path]] | None = None) -> None:
    """Remember a data root and the raw files of data sets, in addition to what is remembered already."""
    content = _read()
    if root is not None:
        content["data_root"] = str(Path(root).absolute())
    kept = content.get("raw")
    content["raw"] = dict(kept) if isinstance(kept, dict) else {}
    for name, paths in (raw_files or {}).items():
        content["raw"][name] = [str(Path(path).expanduser().absolute()) for path in paths]
    _write(content)


def _write(content: dict[str, Any]) -> None:
    from mrt.errors import MrtError
    from mrt.files import write_text

    with contextlib.suppress(MrtError, RuntimeError):  # RuntimeError: no home folder
        write_text(settings_file(), json.dumps(content, indent=1) + "\n")
