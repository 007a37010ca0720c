"""What the signals say of the candidates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from mrt.evaluate.bootstrap import LEVEL
from mrt.evaluate.unlabelled import SIGNALS, interval
from mrt.selection.looking import Measured

ENOUGH = 20  # images: below, intervals over them are too narrow, so nothing counts as beyond noise
DRAWS = 4000


def rank(measured: Sequence[Measured], seed: int = 0) -> dict[str, Any]:
    """Values, intervals and picks, as plain values.

    The interval of a pick is one of several: the best of K candidates is the luckiest of them, so its level
    is raised to 1 - 0.05 / (K - 1) (Bonferroni).

    Returns:
        ``number_of_images``; ``base``: the last candidate that is a run's last detector; ``level`` of the
        picks' intervals. ``candidates``: for each its name, file, epoch and ``signals`` by name: value, low,
        high (95 %), rank (from 1; None without a value), and whether it is infinite (numbers that are not
        finite are None). ``picks`` by signal: the candidate's name, whether that is the base, the
        ``difference`` to it with low and high, and ``beyond_noise``: whether the interval excludes zero on
        the good side, or the base has no value.
    """
    base = max(place for place, one in enumerate(measured) if one.candidate.last or place == 0)
    images = max((len(estimate.rows) for one in measured for estimate in one.estimates.values()), default=0)
    level = 1 - (1 - LEVEL) / max(1, len(measured) - 1)
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
        if not any(estimates):
            continue
        values = [math.nan if estimate is None else estimate.value for estimate in estimates]
        draws = [None if estimate is None else estimate.draws(DRAWS, seed) for estimate in estimates]
        order = np.argsort([-_goodness(value, signal.high) for value in values], kind="stable").tolist()
        for place, (value, drawn) in enumerate(zip(values, draws, strict=True)):
            low, high = interval(drawn) if drawn is not None else (None, None)
            rows[place]["signals"][name] = {
                "value": _plain(value),
                "low": _plain(low),
                "high": _plain(high),
                "rank": None if math.isnan(value) else order.index(place) + 1,
                "infinite": math.isinf(value),
            }
        best = order[0]
        if not signal.judges or sum(estimate is not None for estimate in estimates) < 2:
            continue
        if math.isnan(values[best]):
            continue  # nobody has a value
        pick: dict[str, Any] = {
            "candidate": measured[best].candidate.name,
            "is_base": best == base,
            **dict.fromkeys(("difference", "low", "high")),
            "beyond_noise": False,
        }
        if best != base and estimates[base] is not None:
            with np.errstate(invalid="ignore"):
                low, high = interval(draws[best] - draws[base], level)
            pick |= {"low": _plain(low), "high": _plain(high)}
            pick["difference"] = _plain(values[best] - values[base])
            nothing = math.isnan(values[base]) or (math.isinf(values[base]) and not signal.high)
            apart = low is not None and (low > 0 if signal.high else high < 0)
            pick["beyond_noise"] = bool(images >= ENOUGH and (nothing or apart))
        picks[name] = pick
    return {
        "number_of_images": images,
        "base": measured[base].candidate.name,
        "level": level,
        "candidates": rows,
        "picks": picks,
    }


def choose(ranking: dict[str, Any], by: str) -> str:
    """The candidate to take: what a signal picks where that is beyond noise, else the base."""
    pick = ranking["picks"].get(by)
    return pick["candidate"] if pick is not None and pick["beyond_noise"] else ranking["base"]


def _goodness(value: float, high: bool) -> float:
    return -math.inf if math.isnan(value) else value if high else -value


def _plain(value: float | None) -> float | None:
    """As JSON has it: nothing for what is not finite."""
    return None if value is None or not math.isfinite(value) else round(float(value), 6)
