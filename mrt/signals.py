"""The names of the signals that judge a detector without labels, for commands that refuse a wrong one before
PyTorch is loaded. What they are: :mod:`mrt.evaluate.unlabelled`.
"""

from __future__ import annotations

from mrt.errors import MrtError

JUDGES = (
    *("confidence", "entropy", "atc", "boxes", "flatness", "views", "partner", "prototypes", "count-drift"),
    "class-drift",
)
RECOMMENDED = "prototypes"  # measured in docs/results/selection
OF_THE_LAST = ("partner",)  # known of a run's last detector only


def require_signal(name: str, option: str, also: tuple[str, ...] = (), among: bool = False) -> None:
    """MrtError unless a signal of this name judges detectors.

    Args:
        option: that named it. also: other words that it takes. among: whether one run's teachers are chosen
            among, which needs a signal that each of them has.
    """
    names = [*also, *(one for one in JUDGES if not (among and one in OF_THE_LAST))]
    if name not in names:
        raise MrtError(f"{option} {name}: no such signal", f"choose one of {', '.join(names)}")
