"""Means of a run's losses, its speed, and what is said where a number is not finite."""

from __future__ import annotations

import math
import shlex
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mrt.data.loader import Batch
from mrt.engine.facts import LAST, PREVIOUS
from mrt.engine.learner import Learner
from mrt.engine.prepare import Stage
from mrt.engine.shares import LOOKED_AT
from mrt.errors import Diverged
from mrt.host import wide

ADVICE = (
    "No weight has changed since, and no checkpoint was written. Go on from before it went wrong with a "
    "lower learning rate{how}; or skip such steps (--on-nonfinite skip 10); or train without fp16."
)
MOST_NAMED = 8  # images in a message


class Meter:
    """Means of the losses since they were last read, over steps and processes; nothing is copied to the host
    in between.

    Args:
        stage: whose images are named where something is not finite. checkpoints: the folder of the run's.
    """

    def __init__(
        self, learner: Learner, stage: Stage | None = None, checkpoints: Path = Path("checkpoints")
    ) -> None:
        self.learner, self.stage, self.checkpoints = learner, stage, checkpoints
        self._forget()

    def _forget(self) -> None:
        self._sums: dict[
            tuple[str, ...], Tensor
        ] = {}  # steps that report the same tensors are summed in one go
        self._numbers: Counter[str] = Counter()
        self._counts: Counter[str] = Counter()
        self._skipped: dict[tuple[str, ...], Tensor] = {}  # of each sum, steps that are not in it
        self._recent: list[tuple[int, Mapping[str, Any], dict[str, list[int]]]] = []

    def add(
        self, seen: Mapping[str, Tensor | float], batches: Sequence[Mapping[str, Batch]] | None = None
    ) -> None:
        """One step's losses: scalars on the device, or plain numbers; and the images it was made from."""
        tensors = {name: value for name, value in seen.items() if isinstance(value, Tensor)}
        if tensors:
            names, values = tuple(tensors), torch.stack(list(tensors.values()))
            values = values.to(wide(values.device))
            if self.learner.allowed:  # a step that was skipped is not in the means
                fine = values.isfinite().all()
                values = torch.where(fine, values, torch.zeros_like(values))
                self._skipped[names] = self._skipped.get(names, 0) + (~fine).long()
            self._sums[names] = self._sums.get(names, 0) + values
        self._numbers.update({name: float(value) for name, value in seen.items() if name not in tensors})
        self._counts.update(seen.keys())
        self._recent.append((self.learner.step, seen, image_ids(batches or ())))

    def state_dict(self) -> dict[str, Any]:
        """What was seen since the last reading, in this process."""
        return {
            "sums": [[list(names), sums.cpu()] for names, sums in self._sums.items()],
            "skipped": [[list(names), number.cpu()] for names, number in self._skipped.items()],
            "numbers": dict(self._numbers),
            "counts": dict(self._counts),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where :meth:`state_dict` was called; nothing for an empty one."""
        device = self.learner.world.device
        self._forget()
        self._sums = {tuple(names): sums.to(device, wide(device)) for names, sums in state.get("sums", ())}
        self._skipped = {tuple(names): number.to(device) for names, number in state.get("skipped", ())}
        self._numbers.update(state.get("numbers", {}))
        self._counts.update(state.get("counts", {}))

    def require_finite(self) -> None:
        """Raise RunFailed if more steps than are allowed had a loss or gradient that is not finite.

        Every process has to call this at the same time.
        """
        failures = 0 if self.learner.failures is None else int(self.learner.failures)  # everywhere the same
        if failures > self.learner.allowed:
            self.read()

    def read(self) -> dict[str, float]:
        """The means by name.

        Raises:
            RunFailed: one of them is not finite, or a step's were not; all are printed, with the images of
                that step. (A gradient scaler looks after infinite gradients itself.)
        """
        totals: Counter[str] = Counter()
        counts = Counter(self._counts)
        for names, sums in self._sums.items():
            totals.update(dict(zip(names, sums.tolist(), strict=True)))
            if skipped := int(self._skipped.get(names, 0)):
                counts.subtract(dict.fromkeys(names, skipped))
        totals.update(self._numbers)
        values = self.learner.world.mean_of_numbers(
            [total / max(counts[name], 1) for name, total in totals.items()]
        )
        means = dict(zip(totals, values, strict=True))
        recent = self._recent
        self._forget()
        excused = ("grad_norm",) if self.learner.scaler.is_enabled() else ()
        failed, failures = (
            int(value or 0) for value in (self.learner.failed, self.learner.failures)
        )  # in every process the same
        finite = all(math.isfinite(value) for name, value in means.items() if name not in excused)
        if failures > self.learner.allowed or not finite:
            message = self._message(means, failed, failures, recent)
            raise diverged(message, self.learner, self.checkpoints)
        if self.learner.allowed:
            means["skipped_steps"] = float(failures)
        return means

    def _message(
        self, means: Mapping[str, float], failed: int, failures: int, recent: Sequence[tuple]
    ) -> str:
        """What is not finite, since when, and in which images."""
        since = f" since step {failed}" if failed else ""
        shown, images = means, ""
        for _, seen, ids in recent:
            values = {name: float(value) for name, value in seen.items()}
            if not all(map(math.isfinite, values.values())):
                shown, images = values, self.images_of(ids)
                break
        named = [name for name in shown if not name.startswith(LOOKED_AT)]
        order = sorted(named, key=lambda name: math.isfinite(shown[name]))  # the culprits first
        losses = ", ".join(f"{name} {shown[name]:.4g}" for name in order)
        more = f" ({failures} steps; {self.learner.allowed} may be skipped)" if self.learner.allowed else ""
        return f"a loss or gradient is not finite{since}{more}: {losses}.{images}"

    def images_of(self, ids: Mapping[str, Sequence[int]]) -> str:
        """The images of a step, in words."""
        words = []
        for domain, wanted in ids.items():
            stream = self.stage.streams.get(domain) if self.stage is not None else None
            names = _files(stream.loader.dataset, wanted) if stream else [str(one) for one in wanted]
            rest = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
            words.append(f"{domain}: {', '.join(names[:MOST_NAMED])}{rest}")
        return f" Images of that step: {'; '.join(words)}." if words else ""


def diverged(message: str, learner: Learner, checkpoints: Path) -> Diverged:
    """The error for a run whose numbers are not finite, with how to go on from before that."""
    sections = learner.config.sections().items()
    where = next((name for name, section in sections if section is learner.stage), "teach")
    how = ["--set", f"{where}.lr={learner.stage.lr / 2:.1g}", "--allow-change"]
    if (checkpoints / PREVIOUS).is_file():
        how = ["--resume-from", PREVIOUS.removesuffix(".pt"), *how]
    else:
        how = ["--resume", *how] if (checkpoints / LAST).is_file() else []
    return Diverged(f"{message}\n{ADVICE.format(how=f' ({shlex.join(how)})' if how else '')}", how)


def image_ids(batches: Sequence[Mapping[str, Batch]]) -> dict[str, list[int]]:
    """The images of a step's micro-batches, by domain."""
    found: dict[str, list[int]] = {}
    for micro_batch in batches:
        for domain, batch in micro_batch.items():
            found.setdefault(domain, []).extend(target["image_id"] for target in batch.targets)
    return found


def _files(dataset: Any, image_ids: Sequence[int]) -> list[str]:
    """The files of images, by their ids; in each of several joined sets, if more than one has an id."""
    while hasattr(dataset, "dataset"):
        dataset = dataset.dataset
    parts = getattr(dataset, "parts", [dataset])
    names: dict[int, list[str]] = {}
    for part in parts:
        for record in getattr(part, "records", ()):
            names.setdefault(record.image_id, []).append(str(record.path))
    return [" or ".join(names.get(one, [f"image {one}"])) for one in image_ids]


class Speed:
    """Images per second, those of all domains and processes together; what happens between epochs is left
    out.
    """

    def __init__(self, processes: int) -> None:
        self.processes = processes
        self.restart()

    def restart(self) -> None:
        """Measure from now on."""
        self._since, self._images = time.perf_counter(), 0

    def add(self, batches: Sequence[Mapping[str, Batch]]) -> None:
        """A step's micro-batches, by domain, of this process."""
        self._images += sum(len(batch.targets) for micro_batch in batches for batch in micro_batch.values())

    def read(self) -> float:
        """The mean since the last reading. Where a GPU computes, read it after the :class:`Meter`, which
        waits for the GPU.
        """
        rate = self._images * self.processes / (time.perf_counter() - self._since)
        self.restart()
        return rate
