"""A working folder for each test, and a tiny world and source detector for all of them, made by the commands themselves."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import TINY, mrt


@pytest.fixture(autouse=True)
def _somewhere(somewhere):
    """Each test has an empty working folder."""


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
