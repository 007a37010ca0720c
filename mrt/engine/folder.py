"""A run's folder: what is in it, how it starts, and what it remembers.

``runs/<name>/`` holds config.json, run.json (the command, provenance, finished stages), metrics.jsonl,
TensorBoard events, checkpoints/last.pt, student.safetensors, teacher.safetensors, teachers/ (one an epoch,
where they are kept) and figures/. One process at a time writes it (:mod:`mrt.lock`).
"""

from __future__ import annotations

import os
import platform
import re
import secrets
import subprocess
from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import mrt
from mrt import plugins
from mrt.config import Config
from mrt.data.card import CARD_NAME, DatasetCard, file_sha256
from mrt.domains import SOURCE, TARGET
from mrt.engine.facts import (
    CONFIG_DIGEST,
    FACTS,
    PENDING,
    SETTINGS,
    is_left,
    is_run,
    read_facts,
    require_absent,
    stored_settings,
    text_digest,
    write_facts,
)
from mrt.engine.learner import Learner
from mrt.engine.report import logs_now
from mrt.engine.whereabouts import resuming
from mrt.errors import MrtError
from mrt.files import remove_litter, whole_folder, write_text
from mrt.lock import RunLock
from mrt.models.weights import save_weights
from mrt.ops import backend
from mrt.plain import quoted


def begin_run(
    folder: Path,
    config: Config,
    command: dict[str, Any],
    cards: dict[str, DatasetCard],
    classes: list[str],
    device: torch.device | None = None,
    more: Mapping[str, Any] | None = None,
    say: Callable[[str], None] | None = None,
) -> RunLock:
    """Make the folder, with what the run is, and lock it. It appears whole, or not at all.

    Args:
        more: what else is to be known of it: "source", what the starting weights have on record of the source
            that they were trained on; "reads", digests of what is read beside the data sets.
        say: is told where the file system has no locks.

    Raises:
        MrtError: there is something in the folder already, or it cannot be made.
    """
    require_absent(folder)
    settings = config.to_json()
    facts = {
        **command,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "classes": classes,
        "data": {domain: _describe(card) for domain, card in cards.items()},
        "finished": [],
        "id": secrets.token_hex(8),
        CONFIG_DIGEST: text_digest(settings),
        **{key: value for key, value in (more or {}).items() if value},
        **_plugins_of(config),
        "environment": provenance(device),
    }
    lock: RunLock | None = None
    try:
        with whole_folder(folder) as work:
            write_text(work / SETTINGS, settings)
            write_facts(work, facts)
            lock = RunLock(work, say)
            lock.take()
    except MrtError as error:
        if lock is not None:
            lock.release()
        require_absent(folder)  # somebody else has just made it
        raise MrtError(error.message, "choose another name with --name, or mend what is said") from None
    except BaseException:
        if lock is not None:
            lock.release()
        raise
    lock.move(folder)
    return lock


def open_run(folder: Path, command: dict[str, Any]) -> tuple[Config, dict[str, Any]]:
    """The configuration and the command of a run that is to go on."""
    facts = read_facts(folder)
    if facts["command"] != command["command"]:
        raise MrtError(
            f"{folder}: is a run of mrt {facts['command']}, not of mrt {command['command']}",
            resuming(folder),
        )
    for name in ("stages", "match_compute", "oracle"):
        if name in command and command[name] != facts.get(name):
            raise MrtError(
                f"{folder}: was started with {name} = {facts.get(name)!r}, not {command[name]!r}",
                "resume with the options of the first call",
            )
    return stored_settings(folder), {key: facts.get(key) for key in command}


def _plugins_of(config: Config) -> dict[str, Any]:
    """What is recorded of the plug-ins: the sha256 of each."""
    names = config.method.plugins
    return {"plugins": {name: plugins.load(name).digest for name in names}} if names else {}


def changed_plugins(folder: Path, config: Config) -> list[str]:
    """The plug-ins whose files are not those that the run was started with."""
    then = read_facts(folder).get("plugins", {})
    now = _plugins_of(config).get("plugins", {})
    return [name for name in now if now[name] != then.get(name, now[name])]


def record_resumption(folder: Path, device: torch.device) -> None:
    """Let run.json tell what the run goes on with, unless that is what it was trained with so far."""
    facts, now = read_facts(folder), provenance(device)
    before = facts.get("resumed", [])
    if [facts.get("environment"), *before][-1] != now:
        write_facts(folder, {**facts, "resumed": [*before, now]})


def trained_with(folder: Path) -> list[dict[str, Any]]:
    """What a run was trained with: its environment, then those that it went on with where they differ."""
    facts = read_facts(folder)
    return [found for found in [facts.get("environment"), *facts.get("resumed", [])] if found]


def require_run(folder: Path) -> None:
    """MrtError if there is no run to go on with."""
    if not is_run(folder):
        if folder.is_dir():
            require_absent(folder)
        raise MrtError(
            f"{folder}: not a run folder (no {FACTS}), so there is no run to continue",
            "start it without --resume, or name it with --name",
        )


def remove_leftovers(folder: Path) -> None:
    """Remove what a killed writer has left in the folder of a run that this process has locked."""
    remove_litter(folder, again=True)
    if (folder / "teachers").is_dir():
        remove_litter(folder / "teachers", again=True)
    checkpoints = folder / "checkpoints"
    if checkpoints.is_dir():
        remove_litter(checkpoints, again=True)
        for name in (".new.pt", ".previous.pt"):
            (checkpoints / name).unlink(missing_ok=True)


def require_unchanged(cards: Mapping[str, DatasetCard], config: Config) -> None:
    """MrtError if the annotations that a run reads are not those that their set's card is about."""
    data = config.data
    splits = {
        SOURCE: [data.source_split],
        TARGET: [data.target_split, data.validation_split],
    }
    for domain, card in cards.items():
        for split in {*splits[domain], *([data.validation_split] if len(cards) == 1 else [])}:
            facts = card.splits.get(split)
            path = card.folder / facts.annotations if facts is not None else None
            if path is None or not facts.sha256 or not path.is_file():
                continue
            if file_sha256(path) != facts.sha256:
                raise MrtError(
                    f"{path}: has been changed since {card.folder / CARD_NAME} was written: its sha256 is "
                    "another",
                    "prepare the set again; to keep what was edited, make a set of its own from the file: "
                    f"mrt prepare-data custom --raw {quoted(card.folder)} --name NAME (docs/data.md)",
                )


def require_same_data(folder: Path, cards: dict[str, DatasetCard]) -> None:
    """MrtError if a data set's annotations are not those the run was started with."""
    for domain, then in read_facts(folder)["data"].items():
        if domain in cards and _describe(cards[domain])["sha256"] != then["sha256"]:
            raise MrtError(
                f"{folder}: data set {then['name']!r} has changed since the run was started",
                "prepare the same data again, or start anew",
            )


def require_same_reads(folder: Path, config: Config, reads: Mapping[str, str]) -> None:
    """MrtError if something that is read beside the data sets is not what the run was started with."""
    then = read_facts(folder).get("reads", {})
    for key, digest in reads.items():
        if then.get(key, digest) != digest:
            section, _, name = key.partition(".")
            what = getattr(getattr(config, section, None), name, "")
            raise MrtError(
                f"{folder}: {key} = {str(what)!r} has another content than when the run was started",
                "put it back as it was (with what is read beside it, such as images.json), or start anew",
            )


def _describe(card: DatasetCard) -> dict[str, Any]:
    hashes = {split: facts.sha256 for split, facts in card.splits.items()}
    return {"name": card.name, "domain": card.domain, "sha256": hashes, "details": card.details}


def finish_stage(folder: Path, stage: str) -> None:
    """Remember that a stage is done, and what its logs say."""
    facts = read_facts(folder)
    finished = [*(name for name in facts["finished"] if name != stage), stage]
    left = {file.name: file_sha256(file) for file in sorted(folder.iterdir()) if is_left(file.name)}
    write_facts(folder, {**facts, "finished": finished, "logs": logs_now(folder), "left": left})


def forget_left(folder: Path) -> None:
    """What the stages have left is about to be written anew."""
    facts = read_facts(folder)
    if facts.pop("left", None) is not None:
        write_facts(folder, facts)


def unfinish_stages(folder: Path, stages: Collection[str]) -> None:
    """Forget that stages are done which are to be done again."""
    facts = read_facts(folder)
    left = [name for name in facts["finished"] if name not in stages]
    before = facts.pop("ended", {})
    early = {name: why for name, why in before.items() if name not in stages}
    facts |= {"ended": early} if early else {}
    if left != facts["finished"] or early != before or "logs" in facts:
        facts.pop("logs", None)
        facts.pop("mended", None)
        write_facts(folder, {**facts, "finished": left})


def note_end(folder: Path, stage: str, ended: dict[str, Any]) -> None:
    """Remember that a stage ended before its last epoch, and why."""
    facts = read_facts(folder)
    write_facts(folder, {**facts, "ended": {**facts.get("ended", {}), stage: ended}})


def note_checkpoints(folder: Path) -> None:
    """Remember that the run has checkpoints: without them it is not begun anew unasked."""
    facts = read_facts(folder)
    if not facts.get("checkpoints"):
        write_facts(folder, {**facts, "checkpoints": True})


def record_change(folder: Path, config: Config, step: Mapping[str, Any], changed: Mapping[str, Any]) -> None:
    """Let a run go on with other settings, and ``run.json`` tell since when. A kill in between does no harm.

    Args:
        step: of the checkpoint: "stage" and "step". changed: dotted key -> [before, now].
    """
    settings = config.to_json()
    entry = {"when": datetime.now(UTC).isoformat(timespec="seconds"), **step, "settings": dict(changed)}
    write_facts(folder, {**read_facts(folder), PENDING: {CONFIG_DIGEST: text_digest(settings), **entry}})
    write_text(folder / SETTINGS, settings)
    settle_change(folder)


def settle_change(folder: Path) -> None:
    """Bring a change of settings to its end, or forget it where it had not come to the settings."""
    facts = read_facts(folder)
    pending = facts.pop(PENDING, None)
    if pending is None:
        return
    digest = pending.pop(CONFIG_DIGEST, None)
    if file_sha256(folder / SETTINGS) == digest:
        facts |= {CONFIG_DIGEST: digest, "changed": [*facts.get("changed", []), pending]}
    write_facts(folder, facts)


def weights_facts(config: Config, classes: list[str], learner: Learner) -> dict[str, Any]:
    """What the weights file of a detector says beside its weights."""
    facts: dict[str, Any] = {"classes": classes, "config": config.plain()}
    for part in learner.method:
        told = part.header()
        if set(told) & set(facts):
            raise MrtError(f"part {part.name!r}, header(): {sorted(set(told) & set(facts))} are told already")
        facts |= told
    return facts


def save_networks(folder: Path, config: Config, classes: list[str], learner: Learner) -> None:
    """``student.safetensors`` and, where there is one, ``teacher.safetensors``, each enough to rebuild its
    detector.
    """
    facts = weights_facts(config, classes, learner)
    networks = {"student": learner.student.detector}
    if learner.teacher is not None:
        networks["teacher"] = learner.teacher.module
    for name, network in networks.items():
        save_weights(folder / f"{name}.safetensors", network, {**facts, "network": name})


def provenance(device: torch.device | None = None) -> dict[str, Any]:
    """Versions, device and commit: what somebody needs who wants the same numbers.

    Args:
        device: what is computed on; none means a GPU if there is one.
    """
    if device is None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = platform.processor() or platform.machine()
    return {
        "mrt": mrt.__version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else name,
        "device_type": device.type,
        "op": backend(torch.empty(0, device=device)),
    }


def _commit() -> str | None:
    """The commit of mrt's own checkout; None for an installed or copied mrt, also in another repository."""
    file = Path(__file__).resolve()
    root = file.parents[2]
    if not (root / ".git").exists():
        return None
    # GIT_DIR, GIT_INDEX_FILE and others, which a hook has set, would name another repository.
    variables = {key: text for key, text in os.environ.items() if not re.match("GIT_(?!CONFIG)", key)}

    def git(*words: str) -> str:
        command = ["git", "-C", str(root), *words]
        done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=5, check=True)
        return done.stdout.rstrip("\n")

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != root:
            return None
        git("ls-files", "--error-unmatch", str(file), "cli", "csrc")  # fails for a copy of the package alone
        return git("describe", "--always", "--dirty") or None
    except (OSError, subprocess.SubprocessError):
        return None
