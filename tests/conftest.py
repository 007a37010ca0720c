"""Shared fixtures. The golden numbers are in tests/golden; golden.py beside this file compares them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from golden import load_golden
from tiny_world import make_set, tiny_config

from mrt.engine import stages


@pytest.fixture
def golden():
    """``golden("mae")`` opens tests/golden/mae.npz."""
    return load_golden


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture
def somewhere(tmp_path, monkeypatch):
    """An empty working folder, so that the default roots are inside of it."""
    monkeypatch.chdir(tmp_path)
    for name in ("MRT_DATA_ROOT", "MRT_RUN_ROOT", "RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> Path:
    """A data root with two small domains, "clear" and "hazy"; tests must not write to it."""
    root = tmp_path_factory.mktemp("world")
    make_set(root, "clear", seed=1)
    make_set(root, "hazy", haze=0.5, seed=2)
    return root


@pytest.fixture(scope="session")
def source(world, tmp_path_factory) -> Path:
    """A source run on "clear" to start from; tests must not write to it."""
    folder = tmp_path_factory.mktemp("source") / "source"
    return stages.pretrain_source(tiny_config(), folder, data_root=world)
