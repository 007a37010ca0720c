"""Texts of a report: numbers, descriptions of figures, and notes about what is missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mrt.report.collect import RunData
from mrt.report.page import SHORT, Note

LOOKING = "† Uses target labels, to look at only: nothing was trained or chosen with them."

# What the words and abbreviations of a report mean.
EXPLAINED = [
    *SHORT.items(),
    ("IoU", "intersection over union of two boxes: the area that they share, divided by that of both"),
    ("[low, high]", "an interval: most draws of the images, with repetition, give a figure in it"),
    ("start", "the weights that the run started from: the detector before adaptation"),
    (
        "student, teacher",
        "the network that learns; the running average of its weights, which labels the target",
    ),
    ("pseudo labels", "boxes of the teacher that the student learns from in place of true ones"),
    ("threshold", "the score from which on a box of the teacher becomes a pseudo label"),
    ("fair source-only", "trained as long and in the same way as the adapted run, but without the target"),
    ("oracle", "trained with the target's labels: about the best that adaptation could reach"),
    ("MAE", "masked autoencoder: a branch that learns to rebuild features of which most were masked"),
    ("C5", "the last and coarsest map of the backbone's features"),
    ("t-SNE", "a drawing in which what is near in the space of the features is near; far says little"),
    (
        "TIDE",
        "splits the mistakes by kind: wrong class; wrong place (localisation); both; a second box of one "
        "object (duplicate); a box where nothing is (background); an object without a box (missed)",
    ),
    ("†", "uses target labels, to look at only"),
    ("‡", "chosen with target labels: no result"),
]


def number(value: float | None, sign: bool = False) -> str:
    """A number with one decimal; a dash for None."""
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
    """A note in place of something that is missing, with the reason."""
    return Note(f"Not shown: {what}.")


def told(names: Sequence[str], rows: Mapping[str, Sequence[float | None]]) -> str:
    """A description of a bar chart, for people who cannot see it."""
    texts = []
    for title, row in rows.items():
        bars = (f"{name} {number(value)}" for name, value in zip(names, row, strict=True))
        texts.append(f"{title}: {', '.join(bars)}")
    return "; ".join(texts)


def span_words(run: RunData, what: str) -> str:
    """A description of a figure over the epochs, with its stages and retraining."""
    ends = [(span.title, span.begin, span.begin + span.epochs) for span in run.spans]
    stages = ", ".join(f"{title} from epoch {begin:g} to {end:g}" for title, begin, end in ends)
    again = ", ".join(f"{epoch:g}" for epoch in run.retrained)
    retraining = f"; selective retraining after epoch {again}" if again else ""
    return f"{what} over the epochs: {stages}{retraining}"
