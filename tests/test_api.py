"""The Python functions, and the code in docs/python.md."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_world import make_set, tiny_config

import mrt
from mrt.engine import stages
from mrt.experiment import settings

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "python.md"


def test_importing_mrt_takes_no_time_and_no_torch():
    code = "import sys, time; start = time.perf_counter(); import mrt; "
    code += "print(time.perf_counter() - start, 'torch' in sys.modules)"
    found = []
    for _ in range(3):
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        found.append(done.stdout.split())
    assert all(loaded == "False" for _, loaded in found)
    assert min(float(took) for took, _ in found) < 0.05


def test_what_is_there():
    assert set(mrt.__all__) <= set(dir(mrt))
    for name in mrt.__all__:
        assert getattr(mrt, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = mrt.nothing


@pytest.fixture
def place(somewhere) -> Path:
    """A working folder with what the page assumes: photos, prepared data sets and a run, all tiny."""
    pixels = np.random.default_rng(0).integers(0, 255, (96, 128, 3), dtype=np.uint8)
    Image.fromarray(pixels).save("photo.jpg")
    Path("photos").mkdir()
    Image.fromarray(pixels).save("photos/a.png")
    Path("photos/broken.jpg").write_bytes(b"no image")
    make_set(somewhere / "data", "synthetic-clear", seed=1, classes=("car", "person"))
    make_set(somewhere / "data", "synthetic-foggy", seed=2, haze=0.5, classes=("car", "person"))
    config = tiny_config(**{"data.source": "synthetic-clear"})
    stages.pretrain_source(config, somewhere / "runs" / "x", data_root=somewhere / "data")
    return somewhere


def test_the_page_runs_as_it_stands(place, monkeypatch):
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.S)
    assert len(blocks) >= 6
    real, tiny = settings.load_config, tiny_config().model_dump(mode="json")
    shape = {
        f"{section}.{key}": value
        for section in ("model", "engine", "pretrain", "mae_stage", "teach")
        for key, value in tiny[section].items()
    }
    shape |= {
        f"data.{key}": tiny["data"][key] for key in ("sides", "source_sides", "max_size", "size_multiple")
    }

    def small(preset, overrides=(), changes=None):
        """The small world with a tiny detector: the test is whether the page's code runs, not how well."""
        return real(preset, overrides, {**shape, **(changes or {})} if preset == "small" else changes)

    monkeypatch.setattr(settings, "load_config", small)
    names: dict = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    assert (place / "seen.png").is_file() and len(names["best"]) == 3 and len(names["entries"]) > 3
    assert names["broken"] == [] and names["same"].classes == ("car", "person")
    assert len(names["results"]) == 2 and names["result"].metrics.num_images == 8


def test_mistakes_are_mrt_errors(place):
    with pytest.raises(mrt.MrtError, match="no run folder"):
        mrt.load("runs/y")
    with pytest.raises(mrt.MrtError, match="unknown setting"):
        mrt.adapt("synthetic-foggy", settings={"teach.epoch": 1})
    with pytest.raises(mrt.MrtError, match="No data set"):
        mrt.adapt("synthetic-night")
    with pytest.raises(mrt.MrtError, match="adapt to what"):
        mrt.adapt()
    with pytest.raises(mrt.MrtError, match="device"):
        mrt.load("runs/x", device="tpu:3")


def test_prediction_is_what_evaluation_sees(place):
    """The same boxes as ``mrt eval``, image by image (of one size, so that no batch is padded)."""
    from mrt.data.card import read_card
    from mrt.data.dataset import DetectionDataset

    detector = mrt.load("runs/x")
    measured = mrt.evaluate("runs/x", "synthetic-clear", batch_size=1)
    dataset = DetectionDataset(read_card(place / "data" / "synthetic-clear"), "val")
    for record, theirs in zip(dataset.records, measured.detections, strict=True):
        mine = detector.predict(record.path, threshold=0.0)
        assert record.image_id == theirs.image_id
        for box, score, label in zip(mine.boxes[:20], mine.scores[:20], mine.labels[:20], strict=True):
            height, width = record.size
            clipped = np.clip(theirs.boxes, 0, [width, height, width, height])
            same_box = np.abs(clipped - box).max(1) < 0.01
            same_score = np.abs(theirs.scores - score) < 1e-5
            assert (same_box & same_score & (theirs.labels == label)).any()
