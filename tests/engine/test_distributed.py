"""Two processes on this machine, started as a user would start them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_world import make_set

from mrt.engine.inference import load_detector

ROOT = Path(__file__).parents[2]
SCRIPT = """
import sys
from pathlib import Path
from tiny_world import tiny_config
from mrt.engine import distributed, stages
folder, data = Path(sys.argv[1]), Path(sys.argv[2])
changes = {"model.dropout": 0.0, "mae.mask_ratio": 0.0, "engine.threads": 1}
if sys.argv[3] == "source":
    stages.pretrain_source(tiny_config(**changes), folder, data_root=data)
else:
    stages.adapt(tiny_config(**changes), folder, init=sys.argv[3], data_root=data)
distributed.leave()
"""


def launch(folder: Path, data: Path, start: str, processes: int) -> list[dict]:
    script = data.parent / "train.py"
    script.write_text(SCRIPT)
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests/engine'}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *launcher, str(script), str(folder), str(data), start],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("world") / "data"
    make_set(root, "clear", seed=1)
    make_set(root, "hazy", haze=0.5, seed=2)
    return root


def test_two_processes_give_what_one_gives(data, tmp_path):
    """Same total batch, no randomness in the network: after the first steps the weights differ by rounding only."""
    launch(tmp_path / "one", data, "source", 1)
    launch(tmp_path / "two", data, "source", 2)
    one, two = (load_detector(tmp_path / name, which="student")[0].state_dict() for name in ("one", "two"))
    trained = [key for key in one if "running" not in key and "num_batches" not in key]  # batch norm sees half of each batch
    differences = {key: float((one[key] - two[key]).abs().max()) for key in trained if "backbone" not in key}
    assert max(differences.values()) < 5e-3, max(differences, key=differences.get)
    lines = launch(tmp_path / "adapted", data, str(tmp_path / "two"), 2)
    assert [line["step"] for line in lines if line["stage"] == "teach" and line["kind"] == "train"] == [1, 2, 3, 4]
    assert torch.isfinite(torch.tensor([line["total"] for line in lines if line["kind"] == "train"])).all()
