"""A working folder for each test; tiny data sets and a source detector for all, made by the commands."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import TINY, mrt


@pytest.fixture(autouse=True)
def _somewhere(somewhere, monkeypatch):
    """Each test has an empty working folder, and nothing that earlier commands kept."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(somewhere / "cache"))


@pytest.fixture(scope="session")
def worlds(tmp_path_factory) -> Path:
    """A data root with tiny synthetic sets, made by the command."""
    root = tmp_path_factory.mktemp("worlds")
    command = "prepare-data synthetic --train 4 --val 2 --test 2 --size 96x64 --workers 1"
    result = mrt(command, "--data-root", root)
    assert result.exit_code == 0, result.output
    return root


@pytest.fixture(scope="session")
def runs(worlds, tmp_path_factory) -> Path:
    """A run root with the run ``small-source``, trained by the command."""
    root = tmp_path_factory.mktemp("runs")
    roots = ["--data-root", worlds, "--run-root", root]
    result = mrt("pretrain-source --preset small", *roots, "--set", *TINY)
    assert result.exit_code == 0, result.output
    return root
