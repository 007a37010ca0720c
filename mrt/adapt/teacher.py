"""The teacher: a copy of the student whose weights follow it slowly."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from mrt.errors import MrtError


class Teacher:
    """Exponential moving average of all parameters and buffers of a student, in float32.

    After each step, ``t <- decay t + (1 - decay) s`` (paper, section 3.2). Buffers that are not floating
    point, such as counters, are copied. The teacher is always in evaluation mode and never receives a
    gradient.

    Args:
        student: the module to copy, without the DDP wrapper.
        decay: the fraction of itself that the teacher keeps, 0.9996 in the paper.
        warmup: the decay of update t is ``min(decay, (1 + t') / (10 + t'))`` with t' = t + warmup_offset, so
            that untrained initial weights are forgotten quickly.
        warmup_offset: lets the warm-up start with a higher decay. With 0 the first update discards nine
            tenths of the teacher, which is wrong if it starts from a trained detector.
    """

    def __init__(
        self, student: nn.Module, decay: float = 0.9996, warmup: bool = False, warmup_offset: int = 0
    ) -> None:
        if not 0.0 <= decay <= 1.0:
            raise MrtError(f"the teacher's decay is {decay}, it must lie in 0..1", "The paper takes 0.9996.")
        self.decay, self.warmup, self.warmup_offset = decay, warmup, warmup_offset
        self.updates = 0
        self.module = copy.deepcopy(student).float().requires_grad_(False).eval()
        seen: set[int] = set()  # heads shared by several layers have several names and must be averaged once
        state = self.module.state_dict(keep_vars=True)
        self._names = [
            name for name, tensor in state.items() if not (id(tensor) in seen or seen.add(id(tensor)))
        ]

    def decay_at(self, step: int) -> float:
        """The decay of update number ``step``, counted from 0."""
        ramp = step + self.warmup_offset
        return min(self.decay, (1 + ramp) / (10 + ramp)) if self.warmup else self.decay

    @torch.no_grad()
    def update(self, student: nn.Module, step: int | None = None) -> None:
        """Move one step towards the student.

        Args:
            student: with the same names as the copied one.
            step: number of the update, from 0, for the warm-up; ``None``: the number of updates so far.
        """
        theirs, ours = student.state_dict(keep_vars=True), self.module.state_dict(keep_vars=True)
        averaged: tuple[list, list] = ([], [])
        for name in self._names:
            old, new = ours[name], theirs[name]
            if old.is_floating_point():
                averaged[0].append(old)
                averaged[1].append(new.to(old.dtype))
            else:
                old.copy_(new)
        get_ema_multi_avg_fn(self.decay_at(self.updates if step is None else step))(*averaged, None)
        self.updates += 1

    def state_dict(self) -> dict:
        """The module's state and the number of updates."""
        return {"module": self.module.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: dict) -> None:
        """Restore the result of :meth:`state_dict`."""
        self.module.load_state_dict(state["module"])
        self.updates = state["updates"]
