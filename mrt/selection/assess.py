"""Is the adapted detector to be trusted more than the one it started from, on these images? One page, without
labels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mrt.engine.facts import is_run, read_facts
from mrt.engine.load import describe, find_weights
from mrt.errors import MrtError
from mrt.evaluate.unlabelled import SIGNALS, Look, interval
from mrt.evaluate.unlabelled.looks import FLOOR, SHOWN
from mrt.evaluate.unlabelled.pairs import overlap_of_matched
from mrt.selection.candidates import Candidate
from mrt.selection.looking import Measured
from mrt.selection.ranking import ENOUGH

BEFORE, AFTER = "before", "after"
SPREAD = 3  # images to label are chosen among so many times as many of the most telling ones


def candidates(run: str | Path, against: str | Path | None) -> tuple[Candidate, Candidate]:
    """The detector before adaptation and the one after.

    Args:
        run: a run, or weights. against: what it is compared with; None: what the run started from.

    Raises:
        MrtError: one of them is not there, or they detect other classes.
    """
    after = find_weights(run)
    if against is None:
        start = read_facts(Path(run)).get("init") if Path(run).is_dir() and is_run(Path(run)) else None
        if start is None:
            raise MrtError(
                f"{run}: does not say which detector it started from",
                "name one to compare it with: --against",
            )
        against = start
    before = find_weights(against)
    classes = describe(before).classes, describe(after).classes
    if classes[0] != classes[1]:
        raise MrtError(
            f"{against}: detects {', '.join(classes[0])}; {run} detects {', '.join(classes[1])}",
            "compare it with a detector of the same classes: --against",
        )
    folder = Path(run) if Path(run).is_dir() else None
    return Candidate(BEFORE, before, last=False), Candidate(AFTER, after, folder)


def disagreement(before: Look, after: Look, least: float = SHOWN) -> np.ndarray:
    """(N,) objects of an image that only one of two detectors finds: the sum of their scores."""
    found = np.zeros(len(before))
    for image in range(len(before)):
        one, two = before.objects(image, least), after.objects(image, least)
        overlap, rows, columns = overlap_of_matched(one, two, classes=True)
        same = overlap >= 0.5
        alone = [np.delete(side.scores, places[same]) for side, places in ((one, rows), (two, columns))]
        found[image] = sum(float(scores.sum()) for scores in alone)
    return found


def telling(after: Measured, before: Measured | None = None) -> np.ndarray:
    """(N,) how much labelling an image would tell: the entropy of what is found there, and the objects that
    the other view of the image, or the detector before adaptation, does not agree on.

    Sources: uncertainty by entropy, Settles, *Active learning literature survey*, 2009; disagreement between
    views, Elezi et al., *Not all labels are equal*, CVPR 2022. Their sum is ours.
    """
    best = after.looks.plain.scores.max(2).astype(np.float64).clip(1e-7, 1 - 1e-7)
    entropy = -(best * np.log(best) + (1 - best) * np.log(1 - best))
    values = (entropy * (best >= FLOOR)).sum(1)
    if after.looks.view is not None:
        values += disagreement(after.looks.plain, after.looks.view)
    if before is not None:
        values += disagreement(before.looks.plain, after.looks.plain)
    return values


def suggest(after: Measured, before: Measured | None, count: int) -> list[int]:
    """The images whose labelling would tell most, most telling first, without near-duplicates.

    Among three times as many of the most telling ones (at most half of all images), each next is the one most
    unlike those chosen, by the mean of its decoder queries. After Sener and Savarese, *Active learning for
    convolutional neural networks: a core-set approach*, ICLR 2018.
    """
    values = telling(after, before)
    size = max(count, min(SPREAD * count, len(values) // 2))
    pool = np.argsort(-values, kind="stable")[:size].tolist()
    if len(pool) <= count:
        return pool
    look = after.looks.plain
    weights = look.scores.max(2)[..., None]
    means = (weights * look.queries).sum(1) / weights.sum(1).clip(1e-9)
    chosen = [pool.pop(0)]
    distance = np.linalg.norm(means[pool] - means[chosen[0]], axis=1)
    while len(chosen) < count:
        place = int(distance.argmax())
        chosen.append(pool.pop(place))
        distance = np.delete(distance, place)
        distance = np.minimum(distance, np.linalg.norm(means[pool] - means[chosen[-1]], axis=1))
    return sorted(chosen, key=lambda image: -values[image])


def compare(before: Measured, after: Measured, classes: Sequence[str], seed: int = 0) -> dict[str, Any]:
    """What the signals say, as plain values. With less than :data:`mrt.selection.ranking.ENOUGH` images no
    difference counts.

    Returns:
        ``signals``: by name the values of both, the ``difference`` with its interval, and which is ``better``
        ("before", "after"; missing: no difference beyond noise). ``objects_per_image`` of both by class.
    """
    rows: dict[str, Any] = {}
    for name, signal in SIGNALS.items():
        one, two = before.estimates.get(name), after.estimates.get(name)
        if two is None:
            continue
        row: dict[str, Any] = {AFTER: _plain(two.value), BEFORE: None if one is None else _plain(one.value)}
        if one is not None:
            with np.errstate(invalid="ignore"):
                low, high = interval(two.draws(seed=seed) - one.draws(seed=seed))
            row |= {"difference": _plain(two.value - one.value), "low": _plain(low), "high": _plain(high)}
            enough = len(two.rows) >= ENOUGH
            if enough and signal.judges and low is not None and (low > 0 or high < 0):
                row["better"] = AFTER if (low > 0) == signal.high else BEFORE
        rows[name] = row
    counts = {
        side: dict(zip(classes, _counts(measured.looks.plain).tolist(), strict=True))
        for side, measured in ((BEFORE, before), (AFTER, after))
    }
    return {"signals": rows, "objects_per_image": counts}


def _counts(look: Look, least: float = SHOWN) -> np.ndarray:
    """(C,) objects per image."""
    there = (look.scores.max(2) >= least)[..., None]
    return (np.eye(look.scores.shape[2])[look.scores.argmax(2)] * there).sum((0, 1)) / len(look)


def _plain(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else round(float(value), 4)


def verdict(comparison: dict[str, Any], expected: dict[str, float]) -> list[str]:
    """What to make of it, in sentences. The first is the answer."""
    known = [
        row
        for name, row in comparison["signals"].items()
        if SIGNALS[name].judges and row.get("low") is not None
    ]
    judged = [row.get("better") for row in known]
    for_it, against = judged.count(AFTER), judged.count(BEFORE)
    counts = {side: sum(found.values()) for side, found in comparison["objects_per_image"].items()}
    source = sum(expected.values())
    lines = []
    if counts[AFTER] < 0.1 * max(source or counts[BEFORE], 1e-9):
        lines.append(f"Do not use it: it finds {counts[AFTER]:.2f} objects an image.")
    elif for_it > against:
        lines.append("What can be seen without labels speaks for the adapted detector.")
    elif against > for_it:
        lines.append("What can be seen without labels speaks for the detector before adaptation.")
    else:
        lines.append("What can be seen without labels does not tell the two apart.")
    lines.append(
        f"Of {len(judged)} signals {for_it} are better after adaptation beyond noise, {against} worse, and "
        f"{len(judged) - for_it - against} do not differ. Signals can be wrong together: a few labelled "
        "images are a better judge than all of them."
    )
    finds = (
        f"It finds {counts[AFTER]:.1f} objects an image (score at least {SHOWN}), {counts[BEFORE]:.1f} before"
    )
    lines.append(f"{finds}; the source has {source:.1f} labelled ones." if source else f"{finds}.")
    if source and not 0.33 < counts[AFTER] / source < 3:
        lines.append(
            "That is far from the source. If these images should hold as many objects, something is wrong."
        )
    shares = {
        name: (value / max(counts[AFTER], 1e-9), expected.get(name, 0.0) / source if source else None)
        for name, value in comparison["objects_per_image"][AFTER].items()
    }
    name, (share, usual) = max(shares.items(), key=lambda item: item[1][0])
    if len(shares) > 1 and share > 0.85 and (usual is None or share - usual > 0.3):
        lines.append(f"{share:.0%} of them are {name}: one class may have taken over.")
    return lines
