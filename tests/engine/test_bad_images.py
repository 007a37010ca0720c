"""Training images that cannot be read: others take their place, up to a limit; evaluation stays strict."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from tiny_world import tiny_config

from mrt.data.registry import find_dataset
from mrt.engine import stages
from mrt.engine.inference import evaluate_detector
from mrt.errors import MrtError


@pytest.fixture
def damaged(world, tmp_path):
    """damaged(split, count): the tiny world with so many images of "clear" cut short."""

    def damage(split: str, count: int) -> tuple[Path, list[Path]]:
        root = tmp_path / "world"
        shutil.copytree(world, root)
        folder = find_dataset("clear", root).images_root(split)
        files = sorted(folder.iterdir())[:count]
        for path in files:
            path.write_bytes(path.read_bytes()[:60])
        return root, files

    return damage


def train(root: Path, folder: Path, most: int, **options) -> Path:
    settings = {"data.max_bad": most, "engine.eval_every": 0, **options}
    return stages.pretrain_source(tiny_config(**settings), folder, data_root=root)


def test_a_run_with_bad_images_ends_and_is_the_same_with_workers(damaged, tmp_path):
    root, _ = damaged("train", 2)
    weights = []
    for workers in (0, 2):
        run = train(root, tmp_path / f"run{workers}", 2, **{"engine.workers": workers})
        weights.append((run / "student.safetensors").read_bytes()[-1000:])
    assert weights[0] == weights[1]


def test_a_run_with_too_many_bad_images_fails_and_names_them(damaged, tmp_path):
    root, files = damaged("train", 2)
    with pytest.raises(MrtError) as error:
        train(root, tmp_path / "run", 0)
    assert "more than data.max_bad = 0" in error.value.message
    assert any(str(path) in error.value.message for path in files)


def test_a_set_of_bad_images_alone_fails(damaged, tmp_path):
    root, files = damaged("train", 10_000)
    with pytest.raises(MrtError, match="cannot be read"):
        train(root, tmp_path / "run", 3)
    with pytest.raises(MrtError, match=f"none of {len(files)} images can be read"):
        train(root, tmp_path / "again", 10_000)


def test_evaluation_leaves_out_no_image(damaged, source):
    root, files = damaged("val", 1)
    with pytest.raises(MrtError, match="cannot be read as an image") as error:
        evaluate_detector(source, data="clear", data_root=root, device="cpu")
    assert str(files[0]) in error.value.message
    with pytest.raises(MrtError, match="cannot be read as an image"):
        evaluate_detector(source, data="clear", data_root=root, overrides={"data.cache": "ram"})
    assert torch.is_grad_enabled()
