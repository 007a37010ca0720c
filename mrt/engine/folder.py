"""A run's folder: what is in it, how it starts, and what it remembers.

``runs/<name>/`` holds config.json, run.json (the command, provenance, finished stages), metrics.jsonl,
TensorBoard events, checkpoints/last.pt, student.safetensors, teacher.safetensors and figures/.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import mrt
from mrt import plugins
from mrt.config import Config, load_config
from mrt.data.card import DatasetCard
from mrt.engine.learner import Learner
from mrt.errors import MrtError
from mrt.files import write_text
from mrt.models.weights import save_weights
from mrt.ops import backend


def begin_run(
    folder: Path,
    config: Config,
    command: dict[str, Any],
    cards: dict[str, DatasetCard],
    classes: list[str],
    device: torch.device | None = None,
    more: Mapping[str, Any] | None = None,
) -> None:
    """Make the folder and write what the run is. MrtError when there is one already.

    Args:
        more: what else is to be known of it: "source", what the starting weights have on record of the source
            that they were trained on; "reads", digests of what is read beside the data sets.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MrtError(
            f"{folder}: cannot be a run folder: {error.strerror}", "choose another name with --name"
        ) from None
    if any(folder.iterdir()):
        raise MrtError(
            f"{folder}: exists already", "continue it with --resume, or choose another name with --name"
        )
    write_text(folder / "config.json", config.to_json())
    facts = {
        **command,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "classes": classes,
        "data": {domain: _describe(card) for domain, card in cards.items()},
        "finished": [],
        **{key: value for key, value in (more or {}).items() if value},
        **_plugins_of(config),
        "environment": provenance(device),
    }
    write_text(folder / "run.json", json.dumps(facts, indent=2) + "\n")


def open_run(folder: Path, command: dict[str, Any]) -> tuple[Config, dict[str, Any]]:
    """The configuration and the command of a run that is to go on."""
    facts = read_facts(folder)
    if facts["command"] != command["command"]:
        raise MrtError(
            f"{folder}: is a run of mrt {facts['command']}, not of mrt {command['command']}",
            f"mrt {facts['command']} --resume --name {folder.name}",
        )
    for name in ("stages", "match_compute", "oracle"):
        if name in command and command[name] != facts.get(name):
            raise MrtError(
                f"{folder}: was started with {name} = {facts.get(name)!r}, not {command[name]!r}",
                "resume with the options of the first call",
            )
    return load_config(folder / "config.json"), {key: facts.get(key) for key in command}


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
        write_text(folder / "run.json", json.dumps({**facts, "resumed": [*before, now]}, indent=2) + "\n")


def trained_with(folder: Path) -> list[dict[str, Any]]:
    """What a run was trained with: its environment, then those that it went on with where they differ."""
    facts = read_facts(folder)
    return [found for found in [facts.get("environment"), *facts.get("resumed", [])] if found]


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


def read_facts(folder: Path) -> dict[str, Any]:
    """``run.json`` of a run folder."""
    path = Path(folder) / "run.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MrtError(
            f"{folder}: not a run folder (no run.json)",
            "name a folder that mrt pretrain-source or mrt adapt has written",
        ) from None
    except json.JSONDecodeError as error:
        raise MrtError(f"{path}: not readable: {error}") from None


def finish_stage(folder: Path, stage: str) -> None:
    """Remember that a stage is done."""
    facts = read_facts(folder)
    facts["finished"] = [*(name for name in facts["finished"] if name != stage), stage]
    write_text(folder / "run.json", json.dumps(facts, indent=2) + "\n")


def unfinish_stages(folder: Path, stages: Collection[str]) -> None:
    """Forget that stages are done which are to be done again."""
    facts = read_facts(folder)
    left = [name for name in facts["finished"] if name not in stages]
    if left != facts["finished"]:
        write_text(folder / "run.json", json.dumps({**facts, "finished": left}, indent=2) + "\n")


def save_networks(folder: Path, config: Config, classes: list[str], learner: Learner) -> None:
    """``student.safetensors`` and, where there is one, ``teacher.safetensors``, each enough to rebuild its
    detector.
    """
    facts: dict[str, Any] = {"classes": classes, "config": config.plain()}
    for part in learner.method:
        told = part.header()
        if set(told) & set(facts):
            raise MrtError(f"part {part.name!r}, header(): {sorted(set(told) & set(facts))} are told already")
        facts |= told
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
