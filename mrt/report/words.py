"""How a report says numbers, what figures show, and what is missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mrt.report.collect import RunData
from mrt.report.page import Note

LOOKING = "† Uses target labels, to look at only: nothing was trained or chosen with them."


def number(value: float | None, sign: bool = False) -> str:
    """One decimal; a dash where there is nothing."""
    if value is None:
        return "-"
    rounded = round(value, 1) or 0.0  # not -0.0
    return f"{rounded:+.1f}" if sign else f"{rounded:.1f}"


def with_interval(value: float | None, bounds: Mapping[str, float | None] | None, sign: bool = False) -> str:
    """As ``mrt eval`` prints it: 38.0 [36.2, 40.7]."""
    if value is None or bounds is None or bounds["low"] is None:
        return number(value, sign)
    return f"{number(value, sign)} [{number(bounds['low'], sign)}, {number(bounds['high'], sign)}]"


def lacking(what: str) -> Note:
    """Says in its place that something is not there, and why."""
    return Note(f"Not shown: {what}.")


def told(names: Sequence[str], rows: Mapping[str, Sequence[float | None]]) -> str:
    """Bars in words, for who can't see them."""
    return "; ".join(f"{title}: " + ", ".join(f"{n} {number(v)}" for n, v in zip(names, row, strict=True)) for title, row in rows.items())


def span_words(run: RunData, what: str) -> str:
    """A figure over the epochs in words, with its stages and retraining."""
    stages = ", ".join(f"{span.title} from epoch {span.begin:g} to {span.begin + span.epochs:g}" for span in run.spans)
    again = f"; selective retraining after epoch {', '.join(f'{epoch:g}' for epoch in run.retrained)}" if run.retrained else ""
    return f"{what} over the epochs: {stages}{again}"


def slug(text: str) -> str:
    """A name for files and anchors."""
    return "-".join("".join(letter if letter.isalnum() else " " for letter in text.lower()).split()) or "run"
