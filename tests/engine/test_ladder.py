"""The benchmark of the training step runs, rung by rung, and its table and plot show all of it."""

from __future__ import annotations

import pytest
import torch
from tiny_world import tiny_config

from benchmarks.ladder import LADDER, PLAIN, ladder, ladder_table, plot_ladder
from mrt.config import validate
from mrt.engine.distributed import World


def test_the_ladder(tmp_path):
    base = tiny_config(
        **{"model.weights": "checkpoint", "model.freeze": "stem", "engine.batch_size": 1}
    ).model_dump()
    rungs = []
    for rung in (rung for rung in LADDER if not rung.gpu):
        engine = {key.removeprefix("engine."): value for key, value in {**PLAIN, **rung.settings}.items()}
        rungs.append((rung, validate({**base, "engine": {**base["engine"], **engine}})))
    assert [config.engine.amp for _, config in rungs] == ["off", "off", "off", "bf16", "bf16"]
    rows = ladder(rungs, "source", boxes=2, num_classes=2, rounds=1, world=World(0, 1, torch.device("cpu")))
    assert rows[0]["times_as_fast"] == 1 and all(row["ms"] > 0 and row["peak_gb"] > 0 for row in rows)
    plain, fused, engine = (row["aten_calls"] for row in rows[:3])
    assert plain > fused > 1.2 * engine, "the engine's step makes far fewer calls"
    text = ladder_table(rows, cuda=False)
    assert all(rung.name in text for rung, _ in rungs)
    pytest.importorskip("matplotlib")
    about = {
        "environment": {"device": "a CPU", "torch": "2"},
        "image": (48, 64),
        "batch": 1,
        "preset": "tiny",
    }
    assert (
        plot_ladder({"rows": rows, **about}, tmp_path / "ladder.png")
        and (tmp_path / "ladder.png").stat().st_size > 10_000
    )
