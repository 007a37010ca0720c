"""Two processes on this machine, started as a user would start them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_world import make_set

ROOT = Path(__file__).parents[2]
SCRIPT = """
import sys
from pathlib import Path
from tiny_world import tiny_config
from mrt.engine import distributed, stages
folder, data = Path(sys.argv[1]), Path(sys.argv[2])
changes = {"model.dropout": 0.0, "model.weights": "checkpoint", "model.freeze": "stem", "mae.mask_ratio": 0.0, "engine.threads": 1}
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


def totals(lines: list[dict]) -> list[float]:
    return [line["total"] for line in lines if line["kind"] == "train"]


def test_two_processes_give_what_one_gives(data, tmp_path):
    """Same total batch, batch norm frozen, nothing random in the network: the losses are those of a single process."""
    one, two = (totals(launch(tmp_path / str(n), data, "source", n)) for n in (1, 2))
    assert one[0] == pytest.approx(two[0], rel=1e-5)
    assert one == pytest.approx(two, rel=1e-2), "later steps: AdamW's first steps magnify rounding"
    adapted = [totals(launch(tmp_path / f"adapt{n}", data, str(tmp_path / "1"), n)) for n in (1, 2)]
    assert adapted[0][0] == pytest.approx(adapted[1][0], rel=1e-5)
    assert len(adapted[1]) == 8 and adapted[0] == pytest.approx(adapted[1], rel=5e-2)
