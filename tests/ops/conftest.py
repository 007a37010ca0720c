"""The CUDA kernels' sources compiled for the CPU, once for all of the op's tests."""

from __future__ import annotations

import pytest
from cuda_emulator import build


@pytest.fixture(scope="session")
def emulator_folder(tmp_path_factory):
    """Where :func:`cuda_emulator.build` leaves its object files."""
    return tmp_path_factory.mktemp("emulator")


@pytest.fixture(scope="session")
def libraries(emulator_folder):
    """ "sm_80" and "sm_90": the kernels, which differ in how four floats are added atomically."""
    return build(emulator_folder)
