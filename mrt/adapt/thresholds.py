"""The score that a pseudo label needs: dynamic thresholds, which follow the student's confidence on the
source, and a limit that follows how many labels there are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

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


SCORE_BINS = 1000  # between 0 and 1
WINDOW = 200  # images, over which what was counted fades by 1 / e


class LabelLimit:
    """How high each class's threshold must be so that an image gets at most so many labels of it on average.

    A histogram of the scores of possible labels is kept for each class; with every image, what was counted
    before fades. Matching the number of labels to the source's is the idea of LabelMatch (Chen et al., CVPR
    2022); here it only limits.

    Args:
        most: (C,) labels an image.
    """

    def __init__(self, most: Tensor) -> None:
        self.most = most.double().cpu()
        self.histogram = torch.zeros(len(most), SCORE_BINS, dtype=torch.float64)
        self.images = 0.0
        self._new = torch.zeros(self.histogram.numel() + 1, dtype=torch.float64)  # the last: images

    def add(self, scores: Tensor, labels: Tensor, images: int) -> None:
        """Note (n,) scores in 0..1 and (n,) int64 classes, on the host, of some images' possible labels."""
        bins = (scores.double() * SCORE_BINS).long().clamp(0, SCORE_BINS - 1)
        self._new[:-1] += torch.bincount(labels * SCORE_BINS + bins, minlength=len(self._new) - 1)
        self._new[-1] += images

    def settle(self, all_reduce: Callable[[Tensor], object] | None = None) -> None:
        """Take in what was noted since the last call.

        Args:
            all_reduce: sums a tensor on the host over processes in place; leave out in a single process.
        """
        if all_reduce is not None:
            all_reduce(self._new)
        images = float(self._new[-1])
        kept = (1 - 1 / WINDOW) ** images
        self.histogram = kept * self.histogram + self._new[:-1].view_as(self.histogram)
        self.images = kept * self.images + images
        self._new.zero_()

    def values(self) -> Tensor:
        """(C,) the lowest thresholds that keep the limit, float64 on the host; 0 where none is needed."""
        above = self.histogram.flip(-1).cumsum(-1).flip(-1) / max(self.images, 1.0)  # labels from a score on
        return (above > self.most[:, None]).sum(-1).double() / SCORE_BINS

    def state_dict(self) -> dict[str, Any]:
        """What was settled."""
        return {"histogram": self.histogram.clone(), "images": self.images}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the result of :meth:`state_dict`."""
        self.histogram, self.images = state["histogram"].double().cpu(), float(state["images"])
