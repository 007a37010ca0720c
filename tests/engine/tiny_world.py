"""Two little domains of coloured rectangles, and settings that train on them in seconds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from mrt.config import Config, load_config
from mrt.data.card import DatasetCard, SplitCard, write_card
from mrt.engine import stages

CLASSES = ("red", "green")
COLOURS = ((220, 40, 40), (40, 200, 60))


def make_set(
    root: Path,
    name: str,
    *,
    images: int = 8,
    haze: float = 0.0,
    seed: int = 0,
    labelled: bool = True,
    classes: tuple = CLASSES,
) -> None:
    """A prepared set with splits train and val: 64x48 pictures with one to three rectangles."""
    rng = np.random.default_rng(seed)
    splits = {}
    for split in ("train", "val"):
        folder = root / name / "images" / split
        folder.mkdir(parents=True)
        coco = {
            "images": [],
            "annotations": [],
            "categories": [{"id": i + 1, "name": label} for i, label in enumerate(classes)],
        }
        for number in range(1, images + 1):
            pixels = rng.integers(90, 130, (48, 64, 3)).astype(float)
            for _ in range(rng.integers(1, 4)):
                w, h = rng.integers(10, 24, 2)
                x, y, label = rng.integers(0, 64 - w), rng.integers(0, 48 - h), rng.integers(0, 2)
                pixels[y : y + h, x : x + w] = COLOURS[label]
                box = {
                    "bbox": [int(x), int(y), int(w), int(h)],
                    "area": int(w * h),
                    "iscrowd": 0,
                    "category_id": int(label) + 1,
                }
                coco["annotations"].append({"id": len(coco["annotations"]) + 1, "image_id": number, **box})
            Image.fromarray((pixels * (1 - haze) + 200 * haze).astype(np.uint8)).save(
                folder / f"{number}.png"
            )
            coco["images"].append({"id": number, "file_name": f"{number}.png", "width": 64, "height": 48})
        if not labelled:
            coco["annotations"] = []
        (root / name / f"{split}.json").write_text(json.dumps(coco))
        splits[split] = SplitCard(
            f"{split}.json", f"images/{split}", num_images=images, num_boxes=len(coco["annotations"])
        )
    write_card(
        DatasetCard(name, "haze" if haze else "clear", classes, splits, labelled=labelled), root / name
    )


def tiny_config(**changes: object) -> Config:
    """A small two-stage detector without pretrained weights; two epochs of two steps per stage."""
    settings = {
        "init": None,
        "data.source": "clear",
        "data.target": "hazy",
        "data.source_sides": [48],
        "data.sides": [48],
        "data.max_size": 64,
        "data.size_multiple": 1,
        "model.backbone": "test_efficientnet",
        "model.weights": "none",
        "model.freeze": "none",
        "model.hidden_dim": 16,
        "model.num_heads": 2,
        "model.num_decoder_layers": 2,
        "model.feedforward_dim": 32,
        "model.num_queries": 8,
        "model.dropout": 0.1,
        "mae.decay_epoch": 1,
        "teacher.threshold_start": 0.0,
        "teacher.threshold_min": 0.0,
        "teacher.box_loss": False,
        "retrain.every": 1,
        "engine.batch_size": 4,
        "engine.log_every": 1,
        "engine.eval_batch_size": 4,
    }
    for stage in ("pretrain", "mae_stage", "teach"):
        settings |= {f"{stage}.epochs": 2, f"{stage}.steps_per_epoch": 2, f"{stage}.augment": "strong"}
    return load_config("small", changes=settings | changes)


def make_run_with_teachers(root: Path) -> Path:
    """``root/data``, and a run whose teachers were kept, ``root/runs/run``.

    The target's annotations are folders that nobody can read.
    """
    make_set(root / "data", "clear", seed=1)
    make_set(root / "data", "hazy", haze=0.5, seed=2)
    config = tiny_config(
        **{"teach.epochs": 3, "engine.eval_every": 0, "engine.keep_teachers": 10, "model.class_prior": 0.3}
    )
    source = stages.pretrain_source(config, root / "runs" / "source", data_root=root / "data")
    stages.adapt(config, root / "runs" / "run", init=str(source), data_root=root / "data")
    for split in ("train", "val"):
        (root / "data" / "hazy" / f"{split}.json").unlink()
        (root / "data" / "hazy" / f"{split}.json").mkdir()
    return root
