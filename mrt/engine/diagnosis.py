"""What is wrong with a run's folder, and what to do about it: ``mrt doctor RUN``."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mrt.config import load_stored
from mrt.data.card import file_sha256
from mrt.engine import store
from mrt.engine.facts import (
    FACTS,
    SETTINGS,
    is_checkpoint,
    is_left,
    is_over,
    is_run,
    read_facts,
    recorded_logs,
    require_own_settings,
    write_facts,
)
from mrt.engine.kept import FOLDER, kept_teachers
from mrt.engine.report import LOG, LOGS, logs_now, read_log, wrong_logs
from mrt.engine.whereabouts import resuming
from mrt.errors import MrtError, RunFailed
from mrt.files import remove_litter, unfinished, write_text
from mrt.lock import RunLock, owner_of
from mrt.plain import quoted

FINE, NOTE, WRONG = "fine", "note", "wrong"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        state: "fine", "note" (worth knowing) or "wrong". what: the file or the question. found: in words.
        todo: what to do, "" where there is nothing to do.
    """

    state: str
    what: str
    found: str
    todo: str = ""

    def to_dict(self) -> dict[str, str]:
        return asdict(self)


def diagnose(folder: Path, mended: list[str] | None = None) -> list[Finding]:
    """Look at everything in a run's folder that is ever read back.

    Args:
        mended: where given, what can be mended without guessing is: unfinished files are removed, damaged
            checkpoints set aside, damaged lines taken out of logs. What was done is added to it.

    Raises:
        MrtError: there is no such folder; or it is to be mended while a process writes it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise MrtError(f"{folder}: no such folder", "name a run's folder, such as runs/city2foggy-adapt")
    if mended is None or not is_run(folder):
        return _look(folder, None)
    with RunLock(folder):
        return _look(folder, mended)


def _look(folder: Path, mended: list[str] | None) -> list[Finding]:
    if not is_run(folder):
        names = {file.name for file in folder.iterdir()}
        if SETTINGS in names:
            todo = "delete the folder: nothing was trained yet" if len(names) <= 2 else ""
            todo = todo or f"put {FACTS} back from a backup; weights in the folder can be named with --init"
            return [Finding(WRONG, FACTS, "missing: the run was killed while it began, or lost it", todo)]
        return [Finding(WRONG, FACTS, "missing: this is no run's folder", "name a run's folder")]
    findings: list[Finding] = []
    try:
        facts = read_facts(folder)
        done = ", ".join(facts["finished"]) or "none yet"
        findings.append(Finding(FINE, FACTS, f"mrt {facts['command']}; finished stages: {done}"))
    except MrtError as error:
        return [Finding(WRONG, FACTS, error.message, error.hint or "")]
    changed = facts.get("changed", [])
    if changed:
        words = "; ".join(
            f"since {one.get('stage', '?')} step {one.get('step', '?')}: {json.dumps(one.get('settings'))}"
            for one in changed
        )
        findings.append(Finding(NOTE, FACTS, f"settings were changed on resuming: {words}"))
    if mended is None:
        owner = owner_of(folder)
        if owner is not None and owner.get("process") != os.getpid():
            who = f"process {owner.get('process', '?')} on {owner.get('machine', '?')}"
            findings.append(Finding(NOTE, "lock", f"{who} is writing the run", "what follows may change"))
    findings += _settings(folder, facts)
    findings += _litter(folder, mended)
    findings += _checkpoints(folder, facts, mended)
    findings += _logs(folder, facts, mended)
    findings += _weights(folder, facts)
    findings += _teachers(folder)
    return findings


def _settings(folder: Path, facts: dict[str, Any]) -> list[Finding]:
    try:
        require_own_settings(folder, facts)
        load_stored(folder / SETTINGS)
    except MrtError as error:
        return [Finding(WRONG, SETTINGS, error.message, error.hint or "")]
    return [Finding(FINE, SETTINGS, "as the run wrote it")]


def _litter(folder: Path, mended: list[str] | None) -> list[Finding]:
    found = []
    for place in (folder, folder / "checkpoints", folder / FOLDER):
        if not place.is_dir():
            continue
        if mended is not None:
            mended += [f"removed {name}" for name in remove_litter(place, again=True)]
        names = unfinished(place)
        if names:
            todo = f"mrt doctor {quoted(folder)} --mend removes them; so does the next --resume"
            found.append(
                Finding(NOTE, "unfinished files", f"{len(names)} of a killed writer in {place}", todo)
            )
    return found


def _checkpoints(folder: Path, facts: dict[str, Any], mended: list[str] | None) -> list[Finding]:
    place = folder / "checkpoints"
    files = store.in_order(place) if place.is_dir() else []
    findings, good = [], []
    for path in files:
        try:
            state, seal = store.read(path)
            words = f"stage {state.get('stage')}, step {state.get('step')}"
            sealed = "" if seal else " (of an earlier mrt: without a checksum)"
            findings.append(Finding(FINE, f"checkpoints/{path.name}", words + sealed))
            good.append(path)
        except (MrtError, RunFailed) as error:
            damaged = {path: str(error)}
            reason = error.message if isinstance(error, MrtError) else str(error)
            findings.append(Finding(WRONG, f"checkpoints/{path.name}", reason))
            if mended is not None and isinstance(error, store.Damaged):
                store.set_aside(damaged)
                mended.append(f"set {path.name} aside as {path.name}{store.DAMAGED}")
    if any(one.state == WRONG for one in findings):
        if good:
            todo = f"--resume goes on from {good[0].name}, and sets the damaged one aside"
        else:
            todo = "start the run anew with another --name" + (
                f", or from its weights: --init {quoted(folder)}"
                if (folder / "student.safetensors").is_file()
                else ""
            )
        findings = [
            Finding(one.state, one.what, one.found, todo if one.state == WRONG else "") for one in findings
        ]
    aside = sorted(file.name for file in place.glob(f"*{store.DAMAGED}")) if place.is_dir() else []
    if aside:
        findings.append(
            Finding(NOTE, "checkpoints", f"damaged ones were set aside: {', '.join(aside)}", "delete them")
        )
    if not files:
        if (
            facts.get("checkpoints")
            and not is_over(facts)
            and not (facts["finished"] and "plan" not in facts)
        ):
            findings.append(
                Finding(
                    WRONG,
                    "checkpoints",
                    "there were some, and there are none",
                    "put them back, or start the run anew with another --name",
                )
            )
        else:
            why = "removed since" if facts["finished"] else "none was written yet: --resume begins anew"
            findings.append(Finding(NOTE, "checkpoints", why))
    return findings


def _logs(folder: Path, facts: dict[str, Any], mended: list[str] | None) -> list[Finding]:
    wrong, findings = wrong_logs(folder, recorded_logs(folder), is_over(facts)), []
    for name in LOGS:
        path = folder / name
        if not path.is_file() and name not in wrong:
            continue
        said: list[str] = []
        try:
            lines = read_log(path, said.append)
        except MrtError as error:
            findings.append(Finding(WRONG, name, error.message, error.hint or ""))
            continue
        problems = [*([wrong[name]] if name in wrong else []), *said]
        if not problems:
            findings.append(Finding(FINE, name, f"{len(lines)} lines"))
            continue
        if mended is not None and path.is_file():
            write_text(path, "".join(json.dumps(line) + "\n" for line in lines))
            mended.append(f"{name}: {len(lines)} lines that can be read are kept")
        todo = (
            f"what it says cannot be trusted: mrt doctor {quoted(folder)} --mend keeps the lines that can be "
            "read; --resume of an unfinished run does, too"
        )
        findings.append(Finding(WRONG, name, "; ".join(problems), todo))
    mendable = any(one.state == WRONG for one in findings) and (folder / LOG).is_file()
    if mended is not None and mendable:
        write_facts(folder, {**facts, "logs": logs_now(folder), "mended": True})
    return findings


def left_by(folder: Path, facts: Mapping[str, Any]) -> list[str]:
    """The names of what a run's stages have left for others: those on record, and those that are there."""
    there = [file.name for file in folder.iterdir() if file.is_file() and is_left(file.name)]
    student = ["student.safetensors"] if facts["finished"] else []
    return sorted({*there, *facts.get("left", ()), *student})


def broken(path: Path, digest: str | None = None) -> str | None:
    """What is wrong with something that a stage has left; None if nothing is.

    Args:
        digest: its sha256 when the stage was over.
    """
    from mrt.engine.load import load_detector
    from mrt.models.sealed import read_sealed
    from mrt.parts.rebuild import FILE

    if not path.is_file():
        return f"{path}: missing"
    if digest is not None and file_sha256(path) != digest:
        return f"{path}: is not the file that this run wrote"
    try:
        if path.suffix == ".pt":
            store.read(path)
        elif path.name == FILE:
            read_sealed(path)
        else:
            load_detector(path)
    except MrtError as error:
        return error.message
    return None


def _weights(folder: Path, facts: dict[str, Any]) -> list[Finding]:
    findings = []
    again = any(is_checkpoint(file) for file in (folder / "checkpoints").glob("*.pt"))
    for name in left_by(folder, facts):
        reason = broken(folder / name, facts.get("left", {}).get(name))
        if reason is None:
            findings.append(Finding(FINE, name, "whole"))
            continue
        if again:
            todo = f"the run writes it again from its last checkpoint: {resuming(folder)}"
        else:
            todo = "put it back from a backup: the run has no checkpoint to write it from again"
        findings.append(Finding(WRONG, name, reason, todo))
    return findings


def _teachers(folder: Path) -> list[Finding]:
    found = []
    for path in kept_teachers(folder).values():
        reason = broken(path)
        todo = "delete it: nothing else needs it" if reason else ""
        found.append(Finding(WRONG if reason else FINE, f"{FOLDER}/{path.name}", reason or "whole", todo))
    return found
