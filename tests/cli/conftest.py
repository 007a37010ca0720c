"""A working folder for each test, and a tiny world and source detector for all of them, made by the commands themselves."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import TINY, mrt


@pytest.fixture(autouse=True)
def somewhere(tmp_path, monkeypatch):
    """An empty working folder, so that the default roots are nowhere else."""
    monkeypatch.chdir(tmp_path)
    for name in ("MRT_DATA_ROOT", "MRT_RUN_ROOT", "RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path


@pytest.fixture(scope="session")
def worlds(tmp_path_factory) -> Path:
    """A data root with tiny synthetic sets, made by the command."""
    root = tmp_path_factory.mktemp("worlds")
    result = mrt("prepare-data", "synthetic", "--train", 4, "--val", 2, "--test", 2, "--size", "96x64", "--workers", 1, "--data-root", root)
    assert result.exit_code == 0, result.output
    return root


@pytest.fixture(scope="session")
def runs(worlds, tmp_path_factory) -> Path:
    """A run root that holds ``demo-source``, trained by the command."""
    root = tmp_path_factory.mktemp("runs")
    result = mrt("pretrain-source", "--preset", "demo", "--data-root", worlds, "--run-root", root, "--set", *TINY)
    assert result.exit_code == 0, result.output
    return root
