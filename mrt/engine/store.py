"""The checkpoints in a run's folder: written whole, sealed with a checksum, never fewer than two.

``last.pt`` is the newest, ``previous.pt`` the one before it; numbered ones (``teach-0003.pt``: three epochs
of teaching are over) are kept where ``engine.keep_checkpoints`` wants them. A run goes on from the newest
that is what was written; others are set aside and told of. A checkpoint holds tensors and plain values
only, and nothing in it is ever executed (:func:`read`).
"""

from __future__ import annotations

import errno
import io
import os
import re
import threading
import zipfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mrt import failures, seal
from mrt.engine.facts import LAST, NUMBERED, PREVIOUS, is_checkpoint
from mrt.errors import MrtError, RunFailed
from mrt.files import not_written, replacing
from mrt.models.pretrained import require_stored

SCHEMA = 3  # of a checkpoint: 1 has no number, 2 no checksum
DAMAGED = ".damaged"  # added to the name of a checkpoint that is not what was written


def _old_types() -> list[Any]:
    """Of NumPy, what the random states in checkpoints of earlier versions are made of: arrays of numbers."""
    rebuild = np.array(0).__reduce__()[0]
    names = ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct")
    numbers = [type(np.dtype(name)) for name in ("uint32", "int64", "float64")]
    return [*((rebuild, name) for name in names), np.ndarray, np.dtype, *numbers]


class Damaged(MrtError):
    """A checkpoint is not what was written."""


def write(path: Path, state: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Write a checkpoint with its seal.

    Args:
        state: tensors on the host and plain values. facts: what can be read without the rest
            (:func:`read_facts`).

    Raises:
        MrtError: there is something in it that could not be read back. RunFailed: the disk is full or fails.
    """
    require_plain(state, path.name)
    content = io.BytesIO()
    torch.save({**state, "schema": SCHEMA}, content)
    with replacing(path) as file:
        seal.write_seal(file, content.getbuffer(), facts)


def read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """A checkpoint's state and the facts in its seal; none in one of an earlier mrt. It is only data: a file
    that would execute something is refused.

    Raises:
        Damaged: it is not what was written, or the disk cannot read it. MrtError: it is of a newer mrt, or
            may not be read. RunFailed: the machine is at fault.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        message = f"{path}: cannot be read: {error.strerror}"
        if error.errno == errno.EIO:
            raise Damaged(message, _others(path)) from None
        failed = failures.told(error)
        if failed is not None:
            raise failed from None
        raise MrtError(message, "check its permissions") from None
    try:
        inside, facts = seal.open_seal(content)
        # Old and new alike: weights_only lets nothing be made but tensors, plain values and the listed types.
        if zipfile.is_zipfile(io.BytesIO(inside)):
            require_stored(io.BytesIO(inside))
        with torch.serialization.safe_globals([] if facts is not None else _old_types()):
            state = torch.load(io.BytesIO(inside), map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # a cut or foreign file fails in many ways
        if failures.is_machine(error):
            raise
        reason = str(error).strip().split("\n")[0] if isinstance(error, seal.Broken) else _reason(error)
        raise Damaged(f"{path}: not a readable checkpoint: {reason}", _others(path)) from error
    if not isinstance(state, dict):
        raise Damaged(f"{path}: not a checkpoint of mrt", _others(path))
    schema = state.get("schema", 1)
    if not isinstance(schema, int) or schema > SCHEMA:
        raise MrtError(
            f"{path}: schema = {str(schema)[:40]}: a checkpoint of a newer mrt, this one knows {SCHEMA}",
            "update mrt to continue the run",
        )
    if schema >= 3 and facts is None:
        raise Damaged(f"{path}: not a readable checkpoint: its checksum is gone", _others(path))
    return state, facts or {}


def _reason(error: Exception) -> str:
    text = str(error)
    found = re.search(r"Unsupported (?:global|class|operand)[^\n.]*|GLOBAL ([\w.]+)", text)
    if isinstance(error, EOFError) or not text.strip():
        return "it is empty or cut short"
    if found and "operand" not in found.group(0):
        what = f" ({found.group(0)})" if found else ""
        return f"more than tensors and plain values{what}, which could execute code: it is not opened"
    first = text.strip().split("\n")[0][:200]
    return (
        "it is no file of PyTorch, or damaged"
        if "Weights only" in first
        else f"{type(error).__name__}: {first}"
    )


def _others(path: Path) -> str:
    """What to do without a checkpoint."""
    others = [file.stem for file in in_order(path.parent) if file.name != path.name]
    if others:
        return f"continue from another one in the same folder: --resume-from {others[0]}"
    return "start the run anew with another --name"


def read_facts(path: Path) -> dict[str, Any]:
    """The facts in a checkpoint's seal, without its content; none where there is no seal that can be read."""
    try:
        return seal.read_seal(path) or {}
    except (OSError, ValueError):
        return {}


def in_order(folder: Path) -> list[Path]:
    """The checkpoints of a folder, the newest first, as far as their names and seals tell."""
    files = [file for file in folder.glob("*.pt") if file.is_file() and is_checkpoint(file)]

    return sorted(files, key=lambda file: (file.name != LAST, -order_of(file), file.name))


def order_of(path: Path) -> float:
    """A number that is greater for checkpoints of later steps; by its time for one of an earlier mrt, which
    has none.
    """
    order = read_facts(path).get("order")
    return float(order) if isinstance(order, (int, float)) else path.stat().st_mtime / 1e12


@dataclass
class Found:
    """The checkpoint that a run goes on from.

    Attributes:
        path: its file. state: what is in it. facts: in its seal. damaged: newer ones that are not what was
            written, with the reason.
    """

    path: Path
    state: dict[str, Any]
    facts: dict[str, Any]
    damaged: Mapping[Path, str]


def newest(folder: Path) -> Found | None:
    """The newest checkpoint that is what was written; None where there is no checkpoint at all.

    Raises:
        MrtError: there are some, and none can be read.
    """
    damaged: dict[Path, str] = {}
    first: MrtError | None = None
    last = folder / LAST
    if not last.is_file() and any(is_checkpoint(file) for file in folder.glob("*.pt")):
        damaged[last] = f"{last}: is missing" if not last.exists() else f"{last}: is no file"
    for path in in_order(folder) if folder.is_dir() else ():
        try:
            state, facts = read(path)
        except Damaged as error:
            first, damaged[path] = first or error, error.message
            continue
        return Found(path, state, facts, damaged)
    if first is not None:
        more = f" (nor any of the other {len(damaged) - 1})" if len(damaged) > 1 else ""
        raise MrtError(f"{first.message}{more}", "start the run anew with another --name")
    return None


def named(folder: Path, name: str) -> Found:
    """The checkpoint of a name, with or without ".pt".

    Raises:
        MrtError: none of that name, or one that cannot be read.
    """
    path = folder / (name if name.endswith(".pt") else f"{name}.pt")
    if path.parent != folder or not path.is_file():
        there = ", ".join(file.stem for file in sorted(folder.glob("*.pt"))) or "none"
        raise MrtError(
            f"--resume-from {name}: no such checkpoint in {folder}",
            f"there are: {there} (engine.keep_checkpoints keeps more)",
        )
    state, facts = read(path)
    return Found(path, state, facts, {})


def set_aside(damaged: Mapping[Path, str]) -> None:
    """Rename checkpoints that are not what was written, so that they are not taken for one, nor lost."""
    for path in damaged:
        with suppress(OSError):
            path.replace(path.with_name(path.name + DAMAGED))


def go_back(chosen: Found, later: Sequence[str]) -> None:
    """Make a checkpoint the last one; those of the time after it go first, so that a kill in between leaves
    none of them behind.

    Args:
        later: stages that follow its own.
    """
    path = chosen.path
    forget_later(chosen, later)
    if path.name != LAST:
        _copy(path, path.with_name(LAST))


def forget_later(chosen: Found, later: Sequence[str]) -> None:
    """Remove the checkpoints of the time after one, but for the last."""
    path, stage, mine = chosen.path, chosen.state.get("stage"), chosen.facts.get("order")
    for other in path.parent.glob("*.pt"):
        number, order = NUMBERED.fullmatch(other.name), read_facts(other).get("order")
        if other == path or other.name == LAST or not is_checkpoint(other):
            continue
        if mine is not None and order is not None:
            after = order > mine
        else:  # one of an earlier mrt: by their names
            its, own = number, NUMBERED.fullmatch(path.name)
            after = its is not None and own is not None
            after = after and (its[1] in later or (its[1] == stage and int(its[2]) > int(own[2])))
        if after:
            other.unlink(missing_ok=True)


def _copy(path: Path, to: Path) -> None:
    content = path.read_bytes()
    with replacing(to) as file:
        file.write(content)


class Checkpoints:
    """Writes the checkpoints of a run that is being trained.

    Args:
        folder: "checkpoints" of the run. keep: numbered ones of a stage to keep.
        background: write while training goes on: what is to be written is copied first (from a GPU, without
            waiting for it), and a thread does the rest.
        is_there: whether the run's folder is still there.
    """

    def __init__(
        self,
        folder: Path,
        keep: int = 0,
        background: bool = False,
        is_there: Callable[[], bool] | None = None,
    ) -> None:
        self.folder, self.keep, self.background = folder, keep, background
        self._is_there = is_there or (lambda: True)
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    @property
    def last(self) -> Path:
        """The newest."""
        return self.folder / LAST

    def write(self, state: Mapping[str, Any], facts: Mapping[str, Any], epoch: int | None = None) -> None:
        """Make this the last checkpoint.

        Args:
            state: tensors, on any device, and plain values. facts: for its seal, with "stage" and "step".
            epoch: epochs of its stage that are over, where it is to be kept under that number, too.

        Raises:
            RunFailed: this one, or the one before that was written in the background, could not be written.
        """
        self.wait()
        copied, events = on_host(state, copy=self.background)
        if not self.background:
            self._write(copied, events, facts, epoch)
            return
        self._thread = threading.Thread(
            target=self._try, args=(copied, events, facts, epoch), name="mrt-checkpoint", daemon=False
        )
        self._thread.start()

    def require_there(self) -> None:
        """RunFailed if the run's folder is not what it was."""
        if not self._is_there():
            raise RunFailed(
                f"{self.folder.parent}: the run's folder has been removed or replaced while it was written\n"
                "put it back, and continue with --resume"
            )

    def wait(self) -> None:
        """Return when everything is written; raises what went wrong."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _try(self, *arguments: Any) -> None:
        try:
            self._write(*arguments)
        except BaseException as error:  # raised again by whoever waits
            self._error = error

    def _write(
        self, state: Mapping[str, Any], events: Sequence[Any], facts: Mapping[str, Any], epoch: int | None
    ) -> None:
        for event in events:
            event.synchronize()
        self.require_there()
        new = self.folder / ".new.pt"
        write(new, state, facts)
        try:
            if epoch is not None and self.keep:
                self._keep_numbered(new, facts["stage"], epoch)
            if self.last.is_file():
                self._keep_previous()
            new.replace(self.last)
        except OSError as error:
            raise not_written(self.last, error) from error

    def _keep_numbered(self, new: Path, stage: str, epoch: int) -> None:
        """A copy of the newest, under the number of epochs that are over; the oldest go."""
        _copy(new, self.folder / f"{stage}-{epoch:04d}.pt")
        numbered = {
            int(found[2]): file
            for file in self.folder.glob("*.pt")
            if (found := NUMBERED.fullmatch(file.name)) and found[1] == stage
        }
        for number in sorted(numbered)[: -self.keep]:
            numbered[number].unlink(missing_ok=True)

    def _keep_previous(self) -> None:
        """The last one becomes the previous one; a kill in between leaves it under either name."""
        link = self.folder / ".previous.pt"
        link.unlink(missing_ok=True)
        try:
            os.link(self.last, link)
        except OSError:  # a file system without hard links
            self.last.replace(self.folder / PREVIOUS)
            return
        link.replace(self.folder / PREVIOUS)
        link.unlink(missing_ok=True)  # two names of one file: renaming does nothing then


def on_host(state: Any, copy: bool) -> tuple[Any, list[Any]]:
    """A state with all tensors on the host, and what has to be waited for before they are read.

    Args:
        copy: tensors that are on the host already are copied, too: they will change.
    """
    events: list[Any] = []
    devices: set[torch.device] = set()

    def move(value: Any) -> Any:
        if isinstance(value, Tensor):
            value = value.detach()
            if value.device.type == "cpu":
                return value.clone() if copy else value
            if not copy:
                return value.cpu()
            devices.add(value.device)
            host = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
            return host.copy_(value, non_blocking=True)
        if isinstance(value, Mapping):
            return {key: move(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(move(item) for item in value)
        return value

    moved = move(state)
    for device in devices:
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(device))
        events.append(event)
    return moved, events


def require_plain(value: Any, where: str) -> None:
    """MrtError unless a state is made of tensors and plain values, which alone can be read back safely."""
    if value is None or isinstance(value, Tensor) or type(value) in (bool, int, float, str, bytes):
        return
    if type(value) in (list, tuple):
        for number, item in enumerate(value):
            require_plain(item, f"{where}[{number}]")
        return
    if isinstance(value, Mapping) and type(value).__name__ in ("dict", "OrderedDict"):
        for key, item in value.items():
            if type(key) not in (str, int):
                raise MrtError(f"{where}: the key {key!r} is neither text nor a whole number", SAFE)
            require_plain(item, f"{where}[{key!r}]")
        return
    raise MrtError(f"{where}: is a {type(value).__module__}.{type(value).__qualname__}", SAFE)


SAFE = "a checkpoint holds tensors, numbers, text, and lists, tuples and dicts of these"
