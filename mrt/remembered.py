"""What ``mrt prepare-data`` keeps for the next command: the data root, and where each set's raw files are.

One small JSON file of the user's: ``$XDG_CONFIG_HOME/mrt/settings.json``, else ``~/.config/mrt/settings.json``. Options, environment
variables and a ``./data`` folder come first; a file that cannot be read or written is as good as none.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def settings_file() -> Path:
    """Where it is kept."""
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "mrt" / "settings.json"


def _read() -> dict[str, Any]:
    try:
        content = json.loads(settings_file().read_text(encoding="utf-8"))
    except (OSError, ValueError, RuntimeError):  # RuntimeError: no home folder
        return {}
    return content if isinstance(content, dict) else {}


def data_root() -> Path | None:
    """The remembered data root, if it is still there."""
    path = _read().get("data_root")
    return Path(path) if isinstance(path, str) and Path(path).is_dir() else None


def raw(name: str) -> list[Path]:
    """Where a set's raw files were, those that are still there."""
    paths = _read().get("raw", {})
    found = paths.get(name, []) if isinstance(paths, dict) else []
    return [Path(path) for path in found if isinstance(path, str) and Path(path).exists()] if isinstance(found, list) else []


def remember(root: Path | None = None, raw_files: dict[str, Sequence[Path]] | None = None) -> None:
    """Keep a data root and sets' raw files; what is kept already stays."""
    from mrt.errors import MrtError
    from mrt.files import write_text

    content = _read()
    if root is not None:
        content["data_root"] = str(Path(root).absolute())
    kept = content.get("raw")
    content["raw"] = {
        **(kept if isinstance(kept, dict) else {}),
        **{name: [str(Path(path).expanduser().absolute()) for path in paths] for name, paths in (raw_files or {}).items()},
    }
    try:
        write_text(settings_file(), json.dumps(content, indent=1) + "\n")
    except (MrtError, RuntimeError):
        return
