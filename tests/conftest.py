"""Shared fixtures. Golden numbers live in tests/golden; see golden.py beside this file for how they are compared."""

from __future__ import annotations

import pytest
import torch
from golden import load_golden


@pytest.fixture
def golden():
    """``golden("mae")`` opens tests/golden/mae.npz."""
    return load_golden


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
