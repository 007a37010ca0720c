"""Exports that several tests use, made once. Tests must not change them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from export_cases import TRACED, make_photos, random_detector, save_detector

from mrt.export import export_detector


@pytest.fixture(autouse=True)
def _somewhere(somewhere):
    """Each test has an empty working folder."""


@pytest.fixture(scope="session")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("exports")


@pytest.fixture(scope="session")
def photos(place) -> Path:
    return make_photos(place / "photos")


@pytest.fixture(scope="session")
def two_stage(place) -> Path:
    """A two-stage detector with box refinement."""
    detector = random_detector(**TRACED, box_refine=True, two_stage=True)
    return save_detector(place / "two-stage.safetensors", detector)


@pytest.fixture(scope="session")
def one_stage(place) -> Path:
    return save_detector(place / "one-stage.safetensors", random_detector(1, **TRACED))


@pytest.fixture(scope="session")
def onnx_folder(two_stage, photos, place) -> Path:
    """For images of any size."""
    return export_detector(two_stage, "onnx", place / "onnx", images=photos)


@pytest.fixture(scope="session")
def graph_folder(one_stage, photos, place) -> Path:
    """With mrt's own op, for images of any size."""
    return export_detector(one_stage, "torch-export", place / "graph", images=photos)


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
