"""What ``mrt select`` found of a run's detectors, kept in the run's folder for ``mrt report``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mrt.engine.facts import SELECTION
from mrt.engine.kept import standing
from mrt.files import write_text
from mrt.seal import with_checksum


def keep_record(run: Path, record: Mapping[str, Any]) -> Path:
    """Write the record of a selection into its run's folder, in place of an earlier one."""
    path = Path(run) / SELECTION
    kept = {**record, "standing": standing(run)}
    write_text(path, json.dumps(with_checksum(kept), indent=1) + "\n")
    return path
