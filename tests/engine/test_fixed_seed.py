"""Losses of fixed-seed runs of all three stages, recorded: a change of the engine keeps them to the last
digit, or says why not.

``python tests/engine/test_fixed_seed.py`` records them anew; a commit that does so says why. On a processor
or with a PyTorch other than those that they were recorded with, sums are made in another order, so there they
only have to be near.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_world import CLASSES, COLOURS, tiny_config

from mrt.data.card import DatasetCard, SplitCard, write_card
from mrt.engine import stages
from mrt.engine.load import load_detector

RECORD = Path(__file__).parents[1] / "golden" / "fixed_seed.json"
NEAR = 0.02  # of a loss, elsewhere
PAPER = {
    "model.two_stage": False,
    "model.box_refine": False,
    "model.query_init": "learned",
    "model.freeze": "stem",
    "model.weights": "checkpoint",
    "mae.variant": "paper",
    "teacher.threshold_start": 0.01,
    "teacher.ignore_above": 0.005,
    "teacher.threshold_min": 0.006,
    "teacher.threshold_max": 0.011,
    "retrain.source": "source",
    "domain.ramp": 0.5,
}
CASES = {
    "demo's kind": {"teacher.box_loss": True, "pretrain.ema": True},
    "paper's kind": {**PAPER, "engine.accumulate": 2},
    "two sizes, both domains": {
        "data.target": "tall",
        "mae.data": "both",
        "mae.decay": "linear",
        "mae.mse_over": "masked",
    },
    "random start, no labels": {
        "retrain.source": "random",
        "teacher.pseudo_labels": False,
        "mae.valid_ratios": "mask",
        "mae.decay": "none",
    },
    "bf16": {"engine.amp": "bf16", "engine.eval_every": 0},
    "no autoencoder": {
        "mae.use": "none",
        "domain.enabled": False,
        "teacher.dynamic": False,
        "loss.target_weight": 0.5,
    },
}


def write_set(root: Path, name: str, sizes: list[tuple[int, int]], seed: int, haze: float = 0.0) -> None:
    """A prepared set whose images are of the given (width, height) by turns."""
    rng = np.random.default_rng(seed)
    folder = root / name / "images"
    folder.mkdir(parents=True)
    coco: dict = {
        "images": [],
        "annotations": [],
        "categories": [{"id": i + 1, "name": label} for i, label in enumerate(CLASSES)],
    }
    for number in range(1, 9):
        width, height = sizes[number % len(sizes)]
        pixels = rng.integers(90, 130, (height, width, 3)).astype(float)
        for _ in range(rng.integers(1, 4)):
            w, h = rng.integers(10, 24, 2)
            x, y, label = rng.integers(0, width - w), rng.integers(0, height - h), rng.integers(0, 2)
            pixels[y : y + h, x : x + w] = COLOURS[label]
            box = {
                "bbox": [int(x), int(y), int(w), int(h)],
                "area": int(w * h),
                "iscrowd": 0,
                "category_id": int(label) + 1,
            }
            coco["annotations"].append({"id": len(coco["annotations"]) + 1, "image_id": number, **box})
        Image.fromarray((pixels * (1 - haze) + 200 * haze).astype(np.uint8)).save(folder / f"{number}.png")
        coco["images"].append({"id": number, "file_name": f"{number}.png", "width": width, "height": height})
    (root / name / "train.json").write_text(json.dumps(coco))
    split = SplitCard("train.json", "images", num_images=8, num_boxes=len(coco["annotations"]))
    write_card(
        DatasetCard(name, "haze" if haze else "clear", CLASSES, {"train": split, "val": split}), root / name
    )


def make_worlds(root: Path) -> Path:
    write_set(root, "clear", [(64, 48), (60, 48)], 1)
    write_set(root, "hazy", [(64, 48), (56, 48)], 2, 0.5)
    write_set(root, "tall", [(50, 60)], 3, 0.5)
    return root


def losses(run: Path) -> list[str]:
    """Each number of the run's log that does not depend on the clock, to the last digit."""
    found = []
    for text in (run / "metrics.jsonl").read_text().splitlines():
        line = json.loads(text)
        skipped = ("time", "images_per_second")
        found.append(
            json.dumps({key: value for key, value in line.items() if key not in skipped}, sort_keys=True)
        )
    return found


def digest(run: Path) -> str:
    """sha256 of the weights of student and teacher."""
    found = hashlib.sha256()
    for network in ("student", "teacher"):
        if (run / f"{network}.safetensors").is_file():
            for key, value in sorted(load_detector(run, which=network)[0].state_dict().items()):
                found.update(key.encode() + value.numpy().tobytes())
    return found.hexdigest()


def measure(case: str, folder: Path, data: Path) -> dict[str, dict]:
    """Losses and weights of all three stages, and in the first case of the baselines."""
    config = tiny_config(**{"engine.threads": 1, "engine.eval_every": 1, "seed": 3, **CASES[case]})
    source = stages.pretrain_source(config, folder / "source", data_root=data)
    runs = {
        "source": source,
        "adapted": stages.adapt(config, folder / "adapted", init=str(source), data_root=data),
    }
    if case == "demo's kind":
        fairly = {"init": str(source), "match_compute": True, "data_root": data}
        runs["fair"] = stages.pretrain_source(config, folder / "fair", **fairly)
        runs["oracle"] = stages.pretrain_source(config, folder / "oracle", oracle="source+target", **fairly)
    return {name: {"losses": losses(run), "weights": digest(run)} for name, run in runs.items()}


def machine() -> list[str]:
    """What the last digits depend on."""
    name = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        "",
    )
    return [torch.__version__, torch.backends.cpu.get_cpu_capability(), name]


@pytest.mark.parametrize("case", CASES)
def test_losses_are_those_recorded(case, tmp_path):
    threads = torch.get_num_threads()
    record = json.loads(RECORD.read_text())
    found = measure(case, tmp_path, make_worlds(tmp_path / "data"))
    torch.set_num_threads(threads)
    expected = record["cases"][case]
    assert found.keys() == expected.keys()
    if record["machine"] == machine():
        assert found == expected
    for name, run in found.items():
        for mine, theirs in zip(
            map(json.loads, run["losses"]), map(json.loads, expected[name]["losses"]), strict=True
        ):
            assert mine.keys() == theirs.keys()
            if mine["kind"] == "train":
                assert mine["total"] == pytest.approx(theirs["total"], rel=NEAR)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        worlds = make_worlds(Path(scratch) / "data")
        found = {
            case: measure(case, Path(scratch) / str(number), worlds) for number, case in enumerate(CASES)
        }
        RECORD.write_text(json.dumps({"machine": machine(), "cases": found}, indent=1) + "\n")
        sys.stdout.write(f"{RECORD}\n")
