"""Labels from outside as a rough labeller would give them: half of a set's true ones, displaced.

python docs/results/outside-labels/degrade.py data/synthetic-foggy half.json
"""

import json
import math
import random
import sys
from pathlib import Path

from mrt.data.card import read_card

DROPPED, JITTER = 0.5, 0.1  # share of the objects; standard deviation, as a share of the box's sides


def main(folder: str, out: str, split: str = "train", seed: int = 0) -> None:
    """Write the labels of a prepared set's split to a COCO file."""
    card, rng = read_card(folder), random.Random(seed)
    coco = json.loads(card.annotations_path(split).read_text(encoding="utf-8"))
    kept = [annotation for annotation in coco["annotations"] if rng.random() >= DROPPED]
    for annotation in kept:
        x, y, w, h = annotation["bbox"]
        x, y = x + w / 2 + rng.gauss(0, JITTER * w), y + h / 2 + rng.gauss(0, JITTER * h)
        w, h = w * math.exp(rng.gauss(0, JITTER)), h * math.exp(rng.gauss(0, JITTER))
        annotation["bbox"] = [x - w / 2, y - h / 2, w, h]
    Path(out).write_text(json.dumps({**coco, "annotations": kept}), encoding="utf-8")
    print(f"{len(kept)} of {len(coco['annotations'])} objects written to {out}")


if __name__ == "__main__":
    main(*sys.argv[1:])
