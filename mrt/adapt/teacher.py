"""The teacher: a copy of the student whose weights follow it slowly."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
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
        every: steps between two updates (an asynchronous average, as source-free methods keep it: DRU, Trinh
            et al., ECCV 2024). In between the teacher stays as it is.
        fast: a lower decay for the weights that the target changes most (a dual-rate average, after Dual-rate
            Dynamic Teacher, He et al., ICCV 2025), None: one decay for all. Which weights those are: the
            share ``fast_share`` of the tensors with the largest mean gradients, relative to the size of their
            weights, averaged over the updates so far. Where a student has no gradients, all are slow.
        fast_share: see ``fast``.
    """

    def __init__(
        self,
        student: nn.Module,
        decay: float = 0.9996,
        warmup: bool = False,
        warmup_offset: int = 0,
        every: int = 1,
        fast: float | None = None,
        fast_share: float = 0.5,
    ) -> None:
        for value in (decay, *([fast] if fast is not None else [])):
            if not 0.0 <= value <= 1.0:
                raise MrtError(
                    f"the teacher's decay is {value}, it must lie in 0..1", "The paper takes 0.9996."
                )
        self.decay, self.warmup, self.warmup_offset = decay, warmup, warmup_offset
        self.every, self.fast, self.fast_share = every, fast, fast_share
        self.updates = 0
        self.module = copy.deepcopy(student).float().requires_grad_(False).eval()
        seen: set[int] = set()  # heads shared by several layers have several names and must be averaged once
        state = self.module.state_dict(keep_vars=True)
        self._names = [
            name for name, tensor in state.items() if not (id(tensor) in seen or seen.add(id(tensor)))
        ]
        device = next((tensor.device for tensor in state.values()), torch.device("cpu"))
        self.shift = torch.zeros(len(self._names), device=device)  # of each tensor, how the target changes it
        self._learning: tuple[int, ...] = ()  # tensors that have a gradient, and the same on the device
        self._places = torch.zeros(0, dtype=torch.int64, device=device)
        floating = [number for number, name in enumerate(self._names) if state[name].is_floating_point()]
        self._floating = torch.tensor(floating, dtype=torch.int64, device=device)

    def decay_at(self, step: int) -> float:
        """The decay of update number ``step``, counted from 0."""
        ramp = step + self.warmup_offset
        return min(self.decay, (1 + ramp) / (10 + ramp)) if self.warmup else self.decay

    @torch.no_grad()
    def update(self, student: nn.Module, step: int | None = None) -> None:
        """Move one step towards the student.

        Args:
            student: with the same names as the copied one.
            step: number of the training step, from 0; ``None``: the number of calls so far.
        """
        step = self.updates if step is None else step
        self.updates += 1
        if self.fast is not None:
            self._watch(student)
        if (step + 1) % self.every:
            return
        theirs, ours = student.state_dict(keep_vars=True), self.module.state_dict(keep_vars=True)
        averaged: tuple[list, list] = ([], [])
        for name in self._names:
            old, new = ours[name], theirs[name]
            if old.is_floating_point():
                averaged[0].append(old)
                averaged[1].append(new.to(old.dtype))
            else:
                old.copy_(new)
        decay = self.decay_at(step)
        if self.fast is None:
            get_ema_multi_avg_fn(decay)(*averaged, None)
        else:
            for old, new, weight in zip(*averaged, self._rates(decay), strict=True):
                old.lerp_(new, weight)

    def _watch(self, student: nn.Module) -> None:
        """Take each tensor's mean gradient, relative to its weights, into the average of those so far."""
        theirs = student.state_dict(keep_vars=True)
        grads = [
            (number, theirs[name].grad, theirs[name])
            for number, name in enumerate(self._names)
            if theirs[name].grad is not None
        ]
        if not grads:
            return
        learning = tuple(number for number, *_ in grads)
        if learning != self._learning:  # seldom: the copy to a GPU is waited for
            self._learning, self._places = learning, torch.tensor(learning, device=self.shift.device)
        moved = torch.stack([grad.float().abs().mean() for _, grad, _ in grads])
        size = torch.stack([value.detach().float().abs().mean() for *_, value in grads])
        found = torch.zeros_like(self.shift).index_copy_(0, self._places, moved / size.clamp(min=1e-8))
        found = found.nan_to_num(0.0, 0.0, 0.0)  # a step that a gradient scaler leaves out
        self.shift.lerp_(found / found.sum().clamp(min=1e-20), 1 / self.updates)

    def _rates(self, decay: float) -> list[Tensor]:
        """How far each floating-point tensor moves towards the student's: 1 - decay, faster for some."""
        rates = torch.full_like(self.shift, 1 - decay)
        chosen = self.shift.topk(round(self.fast_share * len(self._learning))).indices
        rates[chosen] = torch.where(self.shift[chosen] > 0, 1 - min(decay, self.fast), 1 - decay)
        return list(rates[self._floating].unbind())

    def state_dict(self) -> dict:
        """The module's state, the number of updates and what they have shown."""
        shift = {} if self.fast is None else {"shift": self.shift}
        return {"module": self.module.state_dict(), "updates": self.updates, **shift}

    def load_state_dict(self, state: dict) -> None:
        """Restore the result of :meth:`state_dict`."""
        self.module.load_state_dict(state["module"])
        self.updates = state["updates"]
        if "shift" in state:
            self.shift = state["shift"].to(self.shift, copy=True)
