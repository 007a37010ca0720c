"""What the signals say of the candidates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from mrt.evaluate.unlabelled import SIGNALS, interval
from mrt.selection.looking import Measured


def rank(measured: Sequence[Measured], seed: int = 0) -> dict[str, Any]:
    """Values, intervals and picks, as plain values.

    Returns:
        ``candidates``: for each its name, file, epoch and ``signals`` by name: value, low, high, rank (from
        1; None without a value). ``picks`` by signal: the candidate's name, whether that is the base, its
        ``difference`` to the base (the last candidate that is a run's last detector) with low and high, and
        ``beyond_noise``: whether the interval excludes zero on the good side.
    """
    base = max(place for place, one in enumerate(measured) if one.candidate.last or place == 0)
    rows: list[dict[str, Any]] = [
        {
            "name": one.candidate.name,
            "file": str(one.candidate.file),
            "epoch": one.candidate.epoch,
            "seconds": round(one.seconds, 2),
            "signals": {},
        }
        for one in measured
    ]
    picks: dict[str, dict[str, Any]] = {}
    for name, signal in SIGNALS.items():
        estimates = [one.estimates.get(name) for one in measured]
        values = [math.nan if estimate is None else estimate.value for estimate in estimates]
        if not any(estimates):
            continue
        draws = [None if estimate is None else estimate.draws(seed=seed) for estimate in estimates]
        order = np.argsort([-_goodness(value, signal.high) for value in values], kind="stable").tolist()
        for place, (value, drawn) in enumerate(zip(values, draws, strict=True)):
            low, high = interval(drawn) if drawn is not None else (None, None)
            rows[place]["signals"][name] = {
                "value": _plain(value),
                "low": _plain(low),
                "high": _plain(high),
                "rank": None if math.isnan(value) else order.index(place) + 1,
            }
        best = order[0]
        if not signal.judges or sum(not math.isnan(value) for value in values) < 2:
            continue  # nothing to compare
        low = high = difference = None
        beyond = False
        if best != base and draws[base] is not None:
            with np.errstate(invalid="ignore"):
                moved = draws[best] - draws[base]
            difference, (low, high) = values[best] - values[base], interval(moved)
            beyond = low is not None and (low > 0 if signal.high else high < 0)
        picks[name] = {
            "candidate": measured[best].candidate.name,
            "is_base": best == base,
            "difference": _plain(difference),
            "low": _plain(low),
            "high": _plain(high),
            "beyond_noise": bool(beyond),
        }
    return {"base": measured[base].candidate.name, "candidates": rows, "picks": picks}


def choose(ranking: dict[str, Any], by: str) -> str:
    """The candidate to take: what a signal picks where that is beyond noise, else the base."""
    pick = ranking["picks"].get(by)
    return pick["candidate"] if pick is not None and pick["beyond_noise"] else ranking["base"]


def _goodness(value: float, high: bool) -> float:
    return -math.inf if math.isnan(value) else value if high else -value


def _plain(value: float | None) -> float | None:
    """As JSON has it: nothing for what is not finite."""
    return None if value is None or not math.isfinite(value) else round(float(value), 6)
