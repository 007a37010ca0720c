"""From the instance picture to boxes: which things are labelled, and which are ignored.

A thing gets an annotation if any of its pixels is visible. It is a label (``iscrowd`` 0) if all of the
following hold. Otherwise it is ignored (``iscrowd`` 1), so that a detector is neither trained on nor
evaluated by what nobody could see:

* at least 30 % of the pixels it covers inside the picture are visible;
* its visible box is at least 5 pixels and 4 % of the picture's height on its longer side, at least 2.5 pixels
  and 1.5 % on its shorter, and holds at least 10 visible pixels;
* fog: the median optical depth of its visible pixels is at most 3, i.e. it is closer than the meteorological
  visibility 3/beta (where 5 % of the contrast is left);
* night: it stands out from its surroundings by contrast (``night.unseen_at_night``);
* rain: at most half of its visible pixels lie under drops on the lens (``rain.unseen_through_drops``).

Things of which fewer than 4 pixels are visible get no annotation at all.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

MIN_VISIBLE = 0.30
FOG_LIMIT = 3.0
GHOST = 4


@dataclass(frozen=True)
class Annotation:
    """One thing: 0-based class, its visible part, and whether it is ignored.

    ``box`` (x, y, width, height) holds the visible pixels; ``area`` is their number.
    """

    label: int
    box: tuple[int, int, int, int]
    area: int
    ignored: bool


Pixels = dict[int, tuple[np.ndarray, np.ndarray]]
"""Rows and columns of the visible pixels of each identity."""


def visible_pixels(instance: np.ndarray) -> Pixels:
    """Where each identity of an instance picture (H, W; 0 for none) is visible, in ascending order."""
    ys, xs = np.nonzero(instance)
    owner = instance[ys, xs]
    order = np.argsort(owner, kind="stable")
    ys, xs = ys[order], xs[order]
    found, first = np.unique(owner[order], return_index=True)
    ends = [*first[1:].tolist(), len(ys)]
    return {k: (ys[a:b], xs[a:b]) for k, a, b in zip(found.tolist(), first.tolist(), ends, strict=True)}


def annotate(
    pixels: Pixels, height: int, labels: dict[int, int], covered: dict[int, int], unseen: set[int]
) -> list[Annotation]:
    """Annotations of one picture, in the order of their identities.

    Args:
        height: of the picture, in pixels.
        labels: class of each identity.
        covered: pixels that each identity covers inside the picture, hidden ones included.
        unseen: identities that the weather hides.
    """
    result = []
    for identity, (ys, xs) in pixels.items():
        seen = len(ys)
        if identity not in labels or seen < GHOST:
            continue
        x, y = int(xs.min()), int(ys.min())
        w, h = int(xs.max()) + 1 - x, int(ys.max()) + 1 - y
        clear = (
            seen >= MIN_VISIBLE * covered[identity]
            and max(w, h) >= max(5, 0.04 * height)
            and min(w, h) >= max(2.5, 0.015 * height)
            and seen >= 10
            and identity not in unseen
        )
        result.append(Annotation(labels[identity], (x, y, w, h), seen, not clear))
    return result


def hidden_by_fog(pixels: Pixels, labels: dict[int, int], optical: np.ndarray) -> set[int]:
    """Identities whose visible pixels have a median optical depth above 3 (transmission below 5 %)."""
    return {k for k in labels if k in pixels and float(np.median(optical[pixels[k]])) > FOG_LIMIT}
