"""From the instance picture to boxes: what is labelled, and what is there but ignored.

A thing gets an annotation when any of its pixels is visible. It is a label (``iscrowd`` 0) when all of these hold, and
otherwise ignored (``iscrowd`` 1), so that a detector is neither taught nor charged for what nobody could see:

* at least 30 % of the pixels it covers inside the picture are visible;
* its visible box is at least 5 pixels and 4 % of the picture's height on its longer side, at least 2.5 pixels and
  1.5 % on its shorter, and holds at least 10 visible pixels;
* fog: the median optical depth of its visible pixels is at most 3, i.e. it stands nearer than the meteorological
  visibility 3/beta (5 % of its contrast is left);
* night: it stands out from its surroundings by contrast (``night.unseen_at_night``);
* rain: at most half of its visible pixels lie under drops on the lens (``rain.unseen_through_drops``).

Things of which fewer than 4 pixels are visible are not there for anybody and get no annotation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

MIN_VISIBLE = 0.30
FOG_LIMIT = 3.0
GHOST = 4


@dataclass(frozen=True)
class Annotation:
    """One thing: 0-based class, box (x, y, width, height) in pixels of its visible part, their number, and whether it is ignored."""

    label: int
    box: tuple[int, int, int, int]
    area: int
    ignored: bool


def annotate(instance: np.ndarray, labels: dict[int, int], covered: dict[int, int], unseen: set[int] | None = None) -> list[Annotation]:
    """Annotations of one picture, in the order of their identities.

    Args:
        instance: (H, W) identity per pixel, 0 for none. labels: class of each identity.
        covered: pixels each identity covers inside the picture, hidden ones included.
        unseen: identities the weather hides.
    """
    height = instance.shape[0]
    ys, xs = np.nonzero(instance)
    owner = instance[ys, xs]
    order = np.argsort(owner, kind="stable")
    ys, xs, owner = ys[order], xs[order], owner[order]
    found, first = np.unique(owner, return_index=True)
    result = []
    for identity, a, b in zip(found.tolist(), first.tolist(), [*first[1:].tolist(), len(owner)], strict=True):
        if identity not in labels or b - a < GHOST:
            continue
        x0, x1, y0, y1 = int(xs[a:b].min()), int(xs[a:b].max()) + 1, int(ys[a:b].min()), int(ys[a:b].max()) + 1
        w, h = x1 - x0, y1 - y0
        clear = (
            b - a >= MIN_VISIBLE * covered[identity]
            and max(w, h) >= max(5, 0.04 * height)
            and min(w, h) >= max(2.5, 0.015 * height)
            and b - a >= 10
            and identity not in (unseen or ())
        )
        result.append(Annotation(labels[identity], (x0, y0, w, h), b - a, not clear))
    return result


def hidden_by_fog(instance: np.ndarray, labels: dict[int, int], optical: np.ndarray) -> set[int]:
    """Identities whose visible pixels have a median optical depth above 3 (transmission below 5 %)."""
    hidden = set()
    for identity in labels:
        seen = optical[instance == identity]
        if len(seen) and float(np.median(seen)) > FOG_LIMIT:
            hidden.add(identity)
    return hidden
