"""Tiny runs for all tests of reports."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_world import tiny_config

from mrt.engine import stages


@pytest.fixture(scope="session")
def runs(world, tmp_path_factory) -> Path:
    """A source run, one adapted from it and evaluated while it trained, and its baseline."""
    root = tmp_path_factory.mktemp("runs")
    source = stages.pretrain_source(tiny_config(), root / "source", data_root=world)
    start = {"init": str(source), "data_root": world}
    config = tiny_config(**{"engine.eval_every": 1, "engine.snapshots": 3})
    stages.adapt(config, root / "adapted", **start)
    stages.pretrain_source(tiny_config(seed=1), root / "fair", match_compute=True, **start)
    return root
