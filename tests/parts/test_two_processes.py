"""Two processes give what one gives, with labels from outside, soft labels, and without source images."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_world import make_set

ROOT = Path(__file__).parents[2]
NOISE = 1e-5  # of a loss: another order of sums
SCRIPT = """
import sys
from pathlib import Path
from tiny_world import tiny_config
from mrt.ablate.studies import METHODS
from mrt.engine import build, distributed, stages


def smooth(*arguments, plain=build.build_optimiser):
    # AdamW's first steps are the gradient's sign, which is noise near zero: so a step proportional to it.
    optimiser = plain(*arguments)
    for group in optimiser.param_groups:
        group.update(eps=1.0, lr=1000 * group["lr"])
    return optimiser


root, out = Path(sys.argv[1]), Path(sys.argv[2])
same = {"model.dropout": 0.0, "model.weights": "checkpoint", "model.freeze": "stem", "engine.threads": 1}
outside = {"teacher.labels": str(root / "labels.json"), "teacher.labels_alone": "weigh"}
plain = {"mae.use": "none", "retrain.every": 0, "domain.enabled": False}
if not (root / "source").exists():
    stages.pretrain_source(tiny_config(**same), root / "source", data_root=root)  # by the first launch
build.build_optimiser = smooth
leave, distributed.leave = distributed.leave, lambda: None  # one group for all runs
for name, changes in {
    "aldi": METHODS["aldi"],
    "outside": {**plain, **outside, "teacher.box_loss": True},
    "source-free": {**METHODS["source-free"], "teacher.every": 2, "teacher.fast_ema": 0.5},
}.items():
    config = tiny_config(**{**same, "mae_stage.epochs": 1, **changes})
    stages.adapt(config, out / name, init=str(root / "source"), data_root=root)
leave()
"""


def launch(root: Path, out: Path, processes: int) -> dict[str, list[dict]]:
    """Train all of them; their logs."""
    script = root / "train.py"
    script.write_text(SCRIPT)
    several = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    done = subprocess.run(
        [sys.executable, *(several if processes > 1 else []), str(script), str(root), str(out)],
        env={
            **os.environ,
            "PYTHONPATH": f"{ROOT}:{ROOT / 'tests/engine'}",
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
        },
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return {
        run.name: [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        for run in sorted(out.iterdir())
    }


@pytest.mark.soak
def test_two_processes_give_what_one_gives(tmp_path):
    """11 images: neither two processes nor batches of four divide them."""
    make_set(tmp_path, "clear", images=11, seed=1)
    make_set(tmp_path, "hazy", images=11, haze=0.5, seed=2)
    coco = json.loads((tmp_path / "hazy" / "train.json").read_text())
    coco["images"] = coco["images"][:9]
    coco["annotations"] = [a for a in coco["annotations"] if a["image_id"] <= 9][1::2]
    (tmp_path / "labels.json").write_text(json.dumps(coco))
    one, two = (launch(tmp_path, tmp_path / f"runs{count}", count) for count in (1, 2))
    assert one.keys() == two.keys() == {"aldi", "outside", "source-free"}
    for name in one:
        for mine, theirs in zip(one[name], two[name], strict=True):
            for key in ("total", "target/class", "target/box", "grad_norm"):
                if key in mine:
                    assert mine[key] == pytest.approx(theirs[key], rel=NOISE if key == "total" else 1e-3), (
                        name
                    )
            assert mine.get("outside_labels") == theirs.get("outside_labels")
            assert mine.get("thresholds") == pytest.approx(theirs.get("thresholds"), abs=1e-5)
