"""Dynamic thresholds: the score that a pseudo label needs follows the student's confidence on the source."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mrt.errors import MrtError
from mrt.host import wide


class DynamicThresholds:
    """One threshold per class, updated once per epoch (paper, section 3.2, as in the published code).

    ``t_c <- clamp(gamma t_c + (1 - gamma) alpha sqrt(m_c), minimum, maximum)``, where m_c is the mean
    confidence since the last update of the matched source queries that were predicted as class c, 0 if there
    were none.

    Args:
        num_classes: C.
        alpha: scale of the square root of the mean confidence.
        gamma: the fraction of the old threshold that is kept.
        start: threshold of every class before the first update (it is not clamped).
        minimum, maximum: bounds after an update.
        enabled: False always keeps ``start``, the static threshold of the paper's baseline.
        device: of the thresholds and the record.
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
            raise MrtError(
                f"the lowest threshold {minimum} lies above the highest {maximum}",
                "Raise the maximum or lower the minimum.",
            )
        self.alpha, self.gamma, self.enabled = alpha, gamma, enabled
        self.minimum, self.maximum = minimum, maximum
        self.values = torch.full((num_classes,), start, dtype=wide(device), device=device)
        self._record = torch.zeros((2, num_classes), dtype=wide(device), device=device)

    @property
    def sum(self) -> Tensor:
        """(C,) sum of the confidences recorded since the last update."""
        return self._record[0]

    @property
    def count(self) -> Tensor:
        """(C,) number of the confidences recorded since the last update."""
        return self._record[1]

    @torch.no_grad()
    def record(self, scores: Tensor, labels: Tensor) -> None:
        """Add (M,) scores of (M,) predicted classes, e.g. from ``mrt.losses.matched_confidences``.

        Scores that are not finite do not count: no score is above a threshold that is NaN.
        """
        scores = scores.detach().to(self._record)
        finite = scores.isfinite()
        added = torch.stack((torch.where(finite, scores, 0.0), finite.to(scores)))
        self._record.index_add_(1, labels.to(self._record.device), added)

    @torch.no_grad()
    def update(self, all_reduce: Callable[[Tensor], object] | None = None) -> Tensor:
        """Update the thresholds from the record and start a new record.

        Args:
            all_reduce: sums a (2, C) tensor over ranks in place; leave out in a single process.

        Returns:
            (C,) thresholds.
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
        """Thresholds and the record of the current epoch."""
        return {"values": self.values.clone(), "record": self._record.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore the result of :meth:`state_dict`.

        Raises:
            MrtError: the state has another number of classes, or values that are not finite.
        """
        if not (state["values"].isfinite().all() and state["record"].isfinite().all()):
            raise MrtError(
                "the checkpoint holds thresholds that are not finite",
                "Resume from an earlier checkpoint of the run.",
            )
        if state["values"].shape != self.values.shape:
            raise MrtError(
                f"the checkpoint holds thresholds of {len(state['values'])} classes, "
                f"this run has {len(self.values)}",
                "Resume with the class list the run was started with.",
            )
        self.values = state["values"].to(self.values, copy=True)
        self._record = state["record"].to(self._record, copy=True)
