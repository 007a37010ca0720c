"""Dynamic thresholds: how sure the teacher must be of a class follows how sure the student is of it on the source."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mrt.errors import MrtError


class DynamicThresholds:
    """One threshold per class, moved once per epoch (paper, section 3.2, as the published code computes it).

    ``t_c <- clamp(gamma t_c + (1 - gamma) alpha sqrt(m_c), minimum, maximum)`` with m_c the mean source confidence of the matched
    queries predicted as class c since the last update, 0 if there were none.

    Args:
        num_classes: C.
        alpha: scale of the mean confidence's root.
        gamma: share of the old threshold that stays.
        start: threshold of every class before the first update (it is not clamped).
        minimum, maximum: bounds after an update.
        enabled: False keeps ``start`` for ever: the static threshold of the paper's baseline.
        device: where the thresholds and the record live.
    """

    def __init__(
        self,
        num_classes: int,
        alpha: float = 0.5,
        gamma: float = 0.9,
        start: float = 0.3,
        minimum: float = 0.25,
        maximum: float = 0.45,
        enabled: bool = True,
        device: torch.device | str = "cpu",
    ) -> None:
        if minimum > maximum:
            raise MrtError(f"the lowest threshold {minimum} lies above the highest {maximum}", "Raise the maximum or lower the minimum.")
        self.alpha, self.gamma, self.minimum, self.maximum, self.enabled = alpha, gamma, minimum, maximum, enabled
        self.values = torch.full((num_classes,), start, dtype=torch.float64, device=device)
        self._record = torch.zeros((2, num_classes), dtype=torch.float64, device=device)

    @property
    def sum(self) -> Tensor:
        """(C,) recorded confidences, summed, since the last update."""
        return self._record[0]

    @property
    def count(self) -> Tensor:
        """(C,) how many were recorded since the last update."""
        return self._record[1]

    @torch.no_grad()
    def record(self, scores: Tensor, labels: Tensor) -> None:
        """Add (M,) scores of (M,) predicted classes, e.g. from ``mrt.losses.matched_confidences``."""
        scores = scores.detach().to(self._record)
        self._record.index_add_(1, labels.to(self._record.device), torch.stack((scores, torch.ones_like(scores))))

    @torch.no_grad()
    def update(self, all_reduce: Callable[[Tensor], object] | None = None) -> Tensor:
        """Move the thresholds by what was recorded and start a new record.

        Args:
            all_reduce: sums a (2, C) float64 tensor over ranks in place; leave out in a single process.

        Returns:
            (C,) float64 thresholds.
        """
        if all_reduce is not None:
            all_reduce(self._record)
        if self.enabled:
            mean = self.sum / self.count.clamp(min=1)
            moved = self.gamma * self.values + (1 - self.gamma) * self.alpha * mean.sqrt()
            self.values = moved.clamp(self.minimum, self.maximum)
        self._record.zero_()
        return self.values

    def state_dict(self) -> dict[str, Tensor]:
        """Thresholds and the record of the running epoch."""
        return {"values": self.values.clone(), "record": self._record.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take back what :meth:`state_dict` gave.

        Raises:
            MrtError: the state is of another number of classes.
        """
        if state["values"].shape != self.values.shape:
            raise MrtError(
                f"the checkpoint holds thresholds of {len(state['values'])} classes, this run has {len(self.values)}",
                "Resume with the class list the run was started with.",
            )
        self.values = state["values"].to(self.values, copy=True)
        self._record = state["record"].to(self._record, copy=True)
