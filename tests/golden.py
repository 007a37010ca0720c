"""Read and compare the numbers in tests/golden, recorded from the published code in float32 on a CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

GOLDEN = Path(__file__).parent / "golden"
RELATIVE_TOLERANCE = 2e-5  # of the array's largest value; the recorded numbers' own noise floor is 6e-6


def load_golden(name: str) -> np.lib.npyio.NpzFile:
    """The arrays of ``tests/golden/<name>.npz``."""
    return np.load(GOLDEN / f"{name}.npz")


def assert_close(actual, expected, rel: float = RELATIVE_TOLERANCE, what: str = "") -> None:
    """Equal within ``rel`` times the largest expected magnitude, which counts as at least 1e-3.

    The minimum lets arrays of zeros be compared.
    """
    if isinstance(actual, torch.Tensor):
        actual = actual.detach().cpu().numpy()
    actual, expected = np.asarray(actual, dtype=np.float64), np.asarray(expected, dtype=np.float64)
    assert actual.shape == expected.shape, f"{what}: shape {actual.shape}, expected {expected.shape}"
    if expected.size == 0:
        return
    scale = max(float(np.nanmax(np.abs(expected))), 1e-3)
    error = float(np.max(np.abs(actual - expected))) if np.isfinite(actual).all() else float("inf")
    assert error <= rel * scale, f"{what}: largest difference {error:.3g} exceeds {rel:g} x {scale:.3g}"
