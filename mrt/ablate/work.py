"""One piece of work: train a node if it is not trained, measure it where it is not measured. Any process can.

``python -m mrt.ablate.work FILE`` does the work that a file describes and writes how it ended into
``FILE.outcome``.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mrt import plugins
from mrt.ablate.curves import curves, training_seconds
from mrt.ablate.device import device_kind, require_device
from mrt.ablate.nodes import STAGE_OF, content_hash, environments, read_beside, stage_settings
from mrt.config import Config, validate
from mrt.data.card import read_json
from mrt.engine.facts import SETTINGS, is_checkpoint, is_run, read_facts, stored_settings
from mrt.engine.report import Watcher
from mrt.errors import Interrupted, MrtError, RunFailed
from mrt.exclusive import hold
from mrt.files import write_text
from mrt.follow import follow_the_parent
from mrt.lock import NAME as LOCK
from mrt.lock import RunLock
from mrt.plain import quoted
from mrt.seal import take_checksum, with_checksum

SECONDS_BETWEEN_LINES = 30.0


@dataclass(frozen=True)
class Measurement:
    """A result that is wanted.

    Attributes:
        file: where it is written. split: of the target. view: the measurement's settings.
        record: what goes on record with it.
        by: of the teacher that this signal takes; None: of the node's detector.
    """

    file: str
    split: str
    view: Mapping[str, Any]
    record: Mapping[str, Any]
    by: str | None = None


@dataclass
class Work:
    """A node with all that is wanted of it.

    Attributes:
        name, kind: of the node. titles: the trials that want it.
        config: plain values. folder: where it is trained.
        device: what it is planned for, "cpu" or "cuda". plugins: those it is planned with, sha256 by name.
        reads: digests of what it reads beside the data sets, by setting.
        start: weights it starts from. place: weights that are there, for a node that needs no training.
        needs: names of the work that must be done before.
        chain: see :func:`way_of`.
    """

    name: str
    kind: str
    config: dict[str, Any]
    folder: str
    data_root: str
    device: str
    start: str | None = None
    place: str | None = None
    needs: list[str] = field(default_factory=list)
    titles: list[str] = field(default_factory=list)
    measurements: list[Measurement] = field(default_factory=list)
    plugins: dict[str, str] = field(default_factory=dict)
    reads: dict[str, str] = field(default_factory=dict)
    chain: list[tuple[str, int]] = field(default_factory=list)

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1) + "\n"

    @classmethod
    def read(cls, path: Path) -> Work:
        values = read_json(path)
        return cls(**{**values, "measurements": [Measurement(**item) for item in values["measurements"]]})


def do_work(work: Work, watcher: Watcher) -> None:
    """Train and measure what is missing; one process at a time works on a node, others wait and find it done.

    Raises:
        MrtError: "auto" means another kind of device here than where the work was planned, or a plug-in or
            what is read beside the data sets has changed since then.
    """
    import torch

    from mrt.engine import inference
    from mrt.engine.folder import provenance

    if (here := device_kind(work.config["engine"]["device"])) != work.device:
        raise MrtError(
            f"planned for device {work.device}, but on this machine it would be {here}",
            "name one: --device cuda, or --device cpu",
        )
    for name, digest in work.plugins.items():
        if plugins.load(name).digest != digest:
            raise MrtError(f"{name}: the plug-in has changed since this was planned", "repeat the command")
    if work.place is None:
        now = read_beside(validate(work.config, work.name), work.kind, Path(work.data_root))
        for key in work.reads:
            if now.get(key) != work.reads[key]:
                raise MrtError(f"{key}: has changed since this was planned", "repeat the command")
    folder = Path(work.folder)
    with locked(folder.parent / ".locks" / work.name, watcher):
        if work.place is None:
            train(work, watcher)
        for wanted in work.measurements:
            if Path(wanted.file).is_file():
                continue
            more: dict[str, Any] = {}
            weights = work.place or folder
            if wanted.by is not None:
                from mrt.ablate.selected import select

                here, data_root = work.config["engine"]["device"], Path(work.data_root)
                chosen = select(folder, wanted.by, here, data_root, watcher)
                weights, more = chosen.pop("file"), {"selected": chosen}
            found = inference.evaluate_detector(
                weights,
                data=wanted.view["data.target"],
                split=wanted.split,
                device=work.config["engine"]["device"],
                data_root=Path(work.data_root),
                watcher=watcher,
                overrides=dict(wanted.view),
            )
            result = {
                **wanted.record,
                "node": work.name,
                "network": found.network,
                "metrics": found.metrics.to_dict(),
                **more,
                "environment": provenance(torch.device(work.device)),
                "way": way_of(work.kind, work.chain),
            }
            write_text(Path(wanted.file), json.dumps(with_checksum(result), indent=1) + "\n")


def way_of(kind: str, chain: Sequence[tuple[str, int]]) -> dict[str, Any]:
    """What a table tells of a trial beside its figures.

    It stands in the trial's result, too, so that a table can be made of results alone: on another machine, or
    when the runs are gone.

    Args:
        kind: of the last node. chain: folders of its stages' runs, or other weights, with the images of a
            step; 0 for stages that adaptation starts from.

    Returns:
        ``curves`` by epoch; ``minutes`` that the stages of adaptation trained (None if that is not known);
        ``trained``: the environments of each run, by its folder's name; ``ended``: why and when the last
        stage ended before its last epoch (:mod:`mrt.engine.early`); None: it did not.
    """
    runs = [Path(folder) for folder, _ in chain]
    cost = [training_seconds(Path(folder), images) for folder, images in chain if images]
    return {
        "curves": curves(runs[-1], STAGE_OF[kind]) if kind in STAGE_OF else {},
        "minutes": None if not cost or None in cost else round(sum(cost) / 60, 2),
        "trained": {run.name: known for run in runs if (known := environments(run))},
        "ended": _ended(runs[-1], STAGE_OF.get(kind)),
    }


def _ended(run: Path, stage: str | None) -> dict[str, Any] | None:
    return read_facts(run).get("ended", {}).get(stage) if is_run(run) else None


def read_measured(file: Path) -> dict[str, Any]:
    """A stored measurement; MrtError if it is not what was written."""
    try:
        found = read_json(file)
    except MrtError:
        found = None
    if not isinstance(found, dict) or not isinstance(found.get("metrics"), dict) or not take_checksum(found):
        raise MrtError(
            f"{file}: is not what mrt wrote", "delete it and repeat the command, which measures it again"
        )
    return found


def train(work: Work, watcher: Watcher) -> None:
    """Bring the node's run to its end; then its checkpoints, which only resuming needs, are deleted."""
    from mrt.engine import stages

    folder, kind = Path(work.folder), work.kind
    config = validate(work.config, work.name)
    common = {"data_root": Path(work.data_root), "watcher": watcher}

    def start(resume: bool) -> None:
        if kind in ("mae", "teach"):
            stages.adapt(config, folder, stages=(kind,), init=work.start, resume=resume, **common)
        elif kind == "source":
            stages.pretrain_source(config, folder, resume=resume, **common)
        else:
            oracle: Any = kind.removeprefix("oracle-") if kind != "fair" else None
            stages.pretrain_source(
                config, folder, init=work.start, resume=resume, match_compute=True, oracle=oracle, **common
            )

    finish_run(folder, config, STAGE_OF[kind], start, lambda stored: stage_settings(stored, kind))
    if not config.engine.keep_checkpoints:
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)


def finish_run(
    folder: Path,
    config: Config,
    last_stage: str,
    start: Callable[[bool], Any],
    settings: Callable[[Config], Any] = content_hash,
) -> bool:
    """Bring the run in ``folder`` to its end, from wherever it stands: not begun, interrupted, or done.

    Args:
        config: the settings it must have.
        start: called with ``resume``.
        settings: what of a configuration must be the same.

    Returns:
        Whether there was anything to do.

    Raises:
        MrtError: the folder holds a run with other settings or of another kind of device, or something that
            is no run; nothing of it is touched.
    """
    facts: dict[str, Any] = {}
    if is_run(folder):
        if settings(stored_settings(folder)) != settings(config):
            raise MrtError(
                f"{folder}: holds a run with other settings", f"delete {folder}, or use another --run-root"
            )
        require_device(folder, config.engine.device)
        facts = read_facts(folder)
        if last_stage in facts.get("finished", ()):
            return False
    resume = bool(facts) and any(is_checkpoint(file) for file in folder.glob("checkpoints/*.pt"))
    if folder.is_dir() and any(folder.iterdir()) and not resume:
        begun = facts.get("finished") == [] and not facts.get("checkpoints")
        half = not facts and {file.name for file in folder.iterdir()} <= {SETTINGS, LOCK}  # by an earlier mrt
        if not (begun or half) or any(folder.glob("checkpoints/*.pt")):
            raise MrtError(
                f"{folder}: not empty, and no run that could be continued",
                f"look what it is (mrt doctor {quoted(folder)}), then move or delete {folder}",
            )
        with RunLock(folder):  # or somebody is just beginning it
            shutil.rmtree(folder)  # stopped before its first checkpoint: nothing to continue
    start(resume)
    return True


@contextmanager
def locked(path: Path, watcher: Watcher) -> Iterator[None]:
    """Nobody else is inside at the same time. The system releases the lock of a process, however it ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        if not hold(file):
            watcher.say(f"{path.name}: another process is at work on it; waiting")
            hold(file, wait=True)
        yield


class LogWatcher(Watcher):
    """Progress as lines of a log: what is said, a step now and then, every task's end."""

    def __init__(self, write: Callable[[str], Any]) -> None:
        self.write = write
        self._tasks: list[list[Any]] = []  # name, total, done, start, last line

    def begin(self, task: str, total: int, done: int = 0) -> None:
        now = time.monotonic()
        self._tasks.append([task, total, done, now, now])

    def advance(self, n: int = 1, **numbers: float) -> None:
        if self._tasks:
            task, now = self._tasks[-1], time.monotonic()
            task[2] += n
            if now - task[4] >= SECONDS_BETWEEN_LINES:
                task[4] = now
                self.write(f"{task[0]}: {task[2]}/{task[1]}")

    def end(self) -> None:
        if self._tasks:
            name, total, done, start, _ = self._tasks.pop()
            self.write(f"{name}: {done}/{total} in {time.monotonic() - start:.0f} s")

    def say(self, text: str) -> None:
        self.write(text)


def reason_of(error: BaseException) -> str:
    """A failure in one line."""
    text = error.message if isinstance(error, MrtError) else str(error)
    return (
        (text if isinstance(error, (MrtError, RunFailed)) else f"{type(error).__name__}: {text}")
        .strip()
        .split("\n")[0]
    )


def outcome_file(path: Path) -> Path:
    return path.with_suffix(".outcome")


def work_on(path: Path | str) -> str | None:
    """Do the work of a file, and write beside it why it failed, or that it did not; returns that reason."""
    path = Path(path)
    try:
        do_work(Work.read(path), LogWatcher(lambda text: print(text, flush=True)))
    except (Interrupted, KeyboardInterrupt):
        print("stopped", flush=True)
        raise
    except Exception as error:
        if not isinstance(error, (MrtError, RunFailed)):
            traceback.print_exc()
        print(f"failed: {error}", flush=True)
        write_text(outcome_file(path), json.dumps({"failed": reason_of(error)}) + "\n")
        return reason_of(error)
    write_text(outcome_file(path), json.dumps({"failed": None}) + "\n")
    return None


def main() -> int:
    follow_the_parent()
    try:
        return 1 if work_on(sys.argv[1]) else 0
    except (Interrupted, KeyboardInterrupt):
        return 1


if __name__ == "__main__":
    sys.exit(main())
