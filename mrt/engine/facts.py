"""``run.json`` and ``config.json`` of a run's folder, checked wherever they are read. Needs no torch.

``run.json`` holds its own checksum and that of ``config.json``, so that neither a flipped bit nor an edited
setting passes for what the run was started with.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NotRequired

from pydantic import ConfigDict, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from mrt import seal
from mrt.config import Config, load_config
from mrt.data.card import file_sha256, read_json
from mrt.errors import MrtError
from mrt.files import write_text
from mrt.lock import NAME
from mrt.plain import quoted

FACTS, SETTINGS = "run.json", "config.json"
LAST, PREVIOUS = "last.pt", "previous.pt"  # checkpoints
NUMBERED = re.compile(r"(.+)-(\d{4,})\.pt")  # those of stages' epochs
LARGEST = 64 << 20  # bytes of run.json and config.json
SCHEMA = 2  # of run.json; the first had no checksum
CONFIG_DIGEST = "config_sha256"
PENDING = "pending_change"  # of settings, while config.json is being written anew
ANEW = "name a folder that mrt pretrain-source or mrt adapt has written"


class _Data(TypedDict):
    __pydantic_config__ = ConfigDict(extra="allow", strict=True)
    name: str
    sha256: dict[str, str]
    domain: NotRequired[str]
    details: NotRequired[dict[str, Any]]


class _Ended(TypedDict):
    """A stage that ended before its last epoch: why, after which, and which epoch's teacher counts."""

    __pydantic_config__ = ConfigDict(extra="allow", strict=True)
    why: str
    epoch: int
    teacher: int


class _Facts(TypedDict):
    """What may be relied on wherever ``run.json`` is read; more may be there."""

    __pydantic_config__ = ConfigDict(extra="allow", strict=True)
    command: str
    classes: list[str]
    data: dict[str, _Data]
    finished: list[str]
    started: NotRequired[str]
    stages: NotRequired[list[str] | None]
    init: NotRequired[str | None]
    match_compute: NotRequired[bool | None]
    match_adapt: NotRequired[bool | None]
    oracle: NotRequired[str | None]
    environment: NotRequired[dict[str, Any] | None]
    resumed: NotRequired[list[dict[str, Any]]]
    plugins: NotRequired[dict[str, str]]
    reads: NotRequired[dict[str, str]]
    source: NotRequired[dict[str, Any]]
    logs: NotRequired[dict[str, dict[str, Any]]]
    changed: NotRequired[list[dict[str, Any]]]
    schema: NotRequired[int]
    sha256: NotRequired[str]
    config_sha256: NotRequired[str]
    checkpoints: NotRequired[bool]
    left: NotRequired[dict[str, str]]
    id: NotRequired[str]
    plan: NotRequired[list[str]]
    ended: NotRequired[dict[str, _Ended]]
    mended: NotRequired[bool]
    pending_change: NotRequired[dict[str, Any]]


_CHECK = TypeAdapter(_Facts)


def is_checkpoint(file: Path) -> bool:
    """Whether a file is called as the checkpoints of a run are."""
    return file.name in (LAST, PREVIOUS) or NUMBERED.fullmatch(file.name) is not None


def is_run(folder: Path) -> bool:
    """Whether a folder says that it is a run's."""
    return (Path(folder) / FACTS).is_file()


def require_absent(folder: Path) -> None:
    """MrtError if there is something where a run is to begin; it says what can be done with that."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if folder.is_dir() and not is_run(folder):
        if {file.name for file in folder.iterdir()} <= {SETTINGS, NAME}:
            raise MrtError(
                f"{folder}: is the beginning of a run that was killed before it was one: it has no {FACTS}",
                "delete it (nothing was trained yet), or choose another name with --name",
            )
        if any((folder / name).exists() for name in ("checkpoints", "student.safetensors", "metrics.jsonl")):
            raise MrtError(
                f"{folder}: is a run that has lost its {FACTS}",
                "put it back from a backup, or start another run with --name; weights that are left can be "
                "named with --init",
            )
        raise MrtError(
            f"{folder}: exists already, and is no run (it has no {FACTS})", "choose another name with --name"
        )
    raise MrtError(
        f"{folder}: exists already", "continue it with --resume, or choose another name with --name"
    )


SELECTED = "selected.safetensors"  # what mrt select writes into a run's folder
SELECTION = "selection.json"  # and what it found


def is_left(name: str) -> bool:
    """Whether a file of a run is what a finished stage leaves for others to read."""
    return name.endswith((".safetensors", "-random.pt")) and name != SELECTED


def read_facts(folder: Path) -> dict[str, Any]:
    """``run.json`` of a run's folder.

    Raises:
        MrtError: there is none, or it is not what mrt wrote: cut short, changed, or of another shape.
    """
    path = Path(folder) / FACTS
    if not path.is_file():
        raise MrtError(f"{folder}: not a run folder (no {FACTS})", ANEW)
    require_plain_files(Path(folder))
    try:
        facts = read_json(path)
    except MrtError as error:
        raise MrtError(error.message, _what_to_do(folder)) from None
    try:
        _CHECK.validate_python(facts)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(item) for item in first["loc"]) or "its content"
        raise MrtError(f"{path}: {where}: {first['msg']}", _what_to_do(folder)) from None
    if facts.get("schema", 1) > SCHEMA:
        raise MrtError(
            f"{path}: schema = {facts['schema']}: of a newer mrt, this one knows {SCHEMA}", "update mrt"
        )
    sealed = seal.KEY in facts or "schema" in facts
    if sealed and facts.get(seal.KEY) != seal.json_digest(facts):
        raise MrtError(f"{path}: is not what mrt wrote: its checksum does not fit", _what_to_do(folder))
    return facts


def require_plain_files(folder: Path) -> None:
    """MrtError if something in a run's folder is not what a run writes: a link, which could lead anywhere, a
    pipe, or a description larger than any.
    """
    for place in (folder, folder / "checkpoints"):
        try:
            entries = list(os.scandir(place))
        except OSError:
            continue
        for entry in entries:
            name, path = entry.name, Path(entry.path)
            ours = name.endswith((".json", ".jsonl", ".safetensors", ".pt", NAME)) or name == "checkpoints"
            if not ours:
                continue
            if entry.is_symlink():
                raise MrtError(
                    f"{path}: is a link, and a run's files are its own",
                    "put what it leads to in its place",
                )
            if not (entry.is_file() if name != "checkpoints" else entry.is_dir()):
                what = "a folder" if entry.is_dir() else "no plain file"
                raise MrtError(f"{path}: is {what}", "put back what was there, or delete it")
            if name in (FACTS, SETTINGS) and entry.stat().st_size > LARGEST:
                raise MrtError(f"{path}: has {entry.stat().st_size:,} bytes", _what_to_do(folder))


def _what_to_do(folder: Path) -> str:
    return (
        f"put back what was there (a backup's run.json); mrt doctor {quoted(folder)} looks at the rest of "
        "the run"
    )


def write_facts(folder: Path, facts: Mapping[str, Any]) -> None:
    """Replace ``run.json``."""
    write_text(Path(folder) / FACTS, seal.sealed_json({**facts, "schema": SCHEMA}))


def text_digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def require_own_settings(folder: Path, facts: Mapping[str, Any] | None = None) -> None:
    """MrtError if ``config.json`` is not what the run was started with (or last changed to)."""
    facts = read_facts(folder) if facts is None else facts
    path = Path(folder) / SETTINGS
    if not path.is_file():
        raise MrtError(
            f"{path}: no such file", f"put it back; mrt doctor {quoted(folder)} says what else is missing"
        )
    known = {facts.get(CONFIG_DIGEST), facts.get(PENDING, {}).get(CONFIG_DIGEST)} - {None}
    if known and file_sha256(path) not in known:
        raise MrtError(
            f"{path}: has been changed since the run wrote it",
            "put it back as it was; then other settings can come in with --resume --set KEY=VALUE "
            "--allow-change",
        )


def stored_settings(folder: Path) -> Config:
    """The settings of a run, which are those it was started with."""
    require_own_settings(folder)
    return load_config(Path(folder) / SETTINGS)


def recorded_logs(folder: Path) -> dict[str, Any]:
    """How long a run's logs were and what was in them when it last noted that, by file name: at the end of a
    stage in ``run.json``, before it in the newest checkpoint.
    """
    folder = Path(folder)
    facts = read_facts(folder)
    logs = dict(facts.get("logs", {}))
    for name in () if facts.get("mended") else (LAST, PREVIOUS):
        path = folder / "checkpoints" / name
        try:
            found = seal.read_seal(path) if path.is_file() else None
        except (OSError, ValueError):
            continue
        if found and isinstance(found.get("logs"), dict):
            for log, known in found["logs"].items():
                prefix, before = seal.Prefix.from_dict(known), seal.Prefix.from_dict(logs.get(log))
                if prefix is not None and (before is None or prefix.bytes > before.bytes):
                    logs[log] = known  # a later one than that of the last finished stage
            break
    return logs


def is_over(facts: Mapping[str, Any]) -> bool:
    """Whether all stages of a run are known to be done; runs of earlier versions do not name them."""
    plan = facts.get("plan")
    return plan is not None and set(plan) <= set(facts["finished"])


def require_own_log(path: Path) -> None:
    """MrtError if a log in a run's folder is not what the run wrote."""
    if not is_run(path.parent):
        return
    prefix = seal.Prefix.from_dict(recorded_logs(path.parent).get(path.name))
    problem = prefix.check(path, whole=is_over(read_facts(path.parent))) if prefix else None
    if problem:
        raise MrtError(
            f"{path}: {problem}",
            f"mrt doctor {quoted(path.parent)} says more; with --mend, the lines that can be read count "
            "again",
        )
