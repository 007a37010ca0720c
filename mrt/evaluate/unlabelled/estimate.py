"""What a signal is: a table with a row per image, and a function from the mean row to a number.

So a signal can be computed for any draw of the images, and an interval costs a product of matrices.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mrt.evaluate.bootstrap import LEVEL, SAMPLES, draw

LARGEST = 4_000_000  # numbers at a time

Reduce = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Estimate:
    """A signal's value for one detector.

    Attributes:
        rows: (N, k), of each image.
        reduce: from (..., k) means over images to (...) values; NaN where there is none.
    """

    rows: np.ndarray
    reduce: Reduce

    @property
    def value(self) -> float:
        """With every image once."""
        return float(self.reduce(self.rows.mean(0)))

    def draws(self, samples: int = SAMPLES, seed: int = 0) -> np.ndarray:
        """(samples,) values for images drawn with replacement; the same draws for the same seed and N."""
        counts, images = draw(samples=samples, images=len(self.rows), seed=seed), len(self.rows)
        parts = np.array_split(counts, -(-samples * self.rows.shape[1] // LARGEST))
        return np.concatenate([self.reduce(part @ self.rows / images) for part in parts])


def ratio(above: np.ndarray, below: np.ndarray) -> Estimate:
    """The estimate sum(above) / sum(below) over images, NaN where nothing is below.

    Args:
        above, below: (N,).
    """

    def reduce(means: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(means[..., 1] > 0, means[..., 0] / means[..., 1], np.nan)

    return Estimate(np.stack([above, below], axis=1).astype(np.float64), reduce)


def interval(draws: np.ndarray, level: float = LEVEL) -> tuple[float | None, float | None]:
    """The percentile interval of draws; draws without a value are left out."""
    there = draws[~np.isnan(draws)]
    if not len(there):
        return None, None
    # without interpolation, as infinite draws (a count's logarithm) have no value between them
    low, high = np.quantile(there, [(1 - level) / 2, (1 + level) / 2], method="inverted_cdf").tolist()
    return low, high
