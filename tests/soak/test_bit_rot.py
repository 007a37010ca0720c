"""Flipped bits and cut files of a run never pass for what was written; nothing in them is executed."""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
from pathlib import Path

import pytest
import torch
from tiny_world import tiny_config
from undisturbed import report

from mrt.engine import stages, store
from mrt.engine.diagnosis import diagnose
from mrt.engine.facts import read_facts, stored_settings
from mrt.engine.inference import evaluate_detector
from mrt.engine.load import load_detector
from mrt.engine.report import read_log
from mrt.errors import MrtError
from mrt.models.sealed import read_sealed
from mrt.report.stored import read_evaluations
from mrt.seal import with_checksum

EVALUATION = "eval-hazy-val-teacher.json"
SEED = int(os.environ.get("MRT_SEED", "0"))


@pytest.fixture(scope="module")
def run(world, source, tmp_path_factory) -> Path:
    """A finished run of stage 2, which leaves every kind of file but label snapshots, with those of one of
    stage 3 beside them.
    """
    root = tmp_path_factory.mktemp("rot")
    config = tiny_config(**{"engine.keep_checkpoints": 1})
    mae = stages.adapt(config, root / "mae", stages=("mae",), init=str(source), data_root=world)
    teach = stages.adapt(config, root / "teach", stages=("teach",), init=str(mae), data_root=world)
    found = evaluate_detector(teach, data="hazy", data_root=world)
    names = {"network": found.network, "data": "hazy", "split": "val", "sha256": None}
    record = with_checksum({**names, "metrics": found.metrics.to_dict()})
    (teach / EVALUATION).write_text(json.dumps([record], indent=1))
    return teach


def files_of(run: Path) -> list[Path]:
    """The files of two runs that are ever read back."""
    names = ("run.json", "config.json", "metrics.jsonl", "pseudo_labels.jsonl", "mae-random.pt", EVALUATION)
    found = [file for folder in (run, run.with_name("mae")) for file in sorted(folder.rglob("*"))]
    return [file for file in found if file.name in names or file.suffix in (".safetensors", ".pt")]


def content(path: Path) -> object:
    """What is read of a file where it is used; MrtError if it is refused."""
    folder = path.parent
    if path.name == "run.json":
        return read_facts(folder)
    if path.name == "config.json":
        return stored_settings(folder).to_json()
    if path.name == EVALUATION:
        return read_evaluations(path)
    if path.suffix == ".jsonl":
        return read_log(path)
    if path.name == "mae.safetensors":
        _, state = read_sealed(path)
        return in_bytes(state)
    if path.suffix == ".safetensors":
        detector, facts = load_detector(path)
        return in_bytes(detector.state_dict()), facts["config"]
    return in_bytes(store.read(path)[0])


def in_bytes(value: object) -> object:
    """Nested values with tensors as their bytes, which can be compared."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), value.numpy().tobytes()
    if isinstance(value, dict):
        return {key: in_bytes(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [in_bytes(item) for item in value]
    return value


def judged(path: Path, whole: object) -> str:
    """How a damaged file is taken: "refused", "the same", or "silent"."""
    try:
        found = content(path)
    except MrtError as error:
        assert str(path.name) in str(error) or str(path.parent) in str(error)
        return "refused"
    return "the same" if found == whole else "silent"


AMOUNT = [pytest.param(66, id="some"), pytest.param(2000, id="many", marks=pytest.mark.soak)]


@pytest.mark.parametrize("flips", AMOUNT)
def test_no_flipped_bit_is_silent(run, flips):
    rng, files = random.Random(SEED), files_of(run)
    assert len({file.name for file in files}) >= 10
    wholes = {file: (file.read_bytes(), content(file)) for file in files}
    counts = {"seed": SEED, "flips": flips, "files": len(files), "refused": 0, "the same": 0, "silent": 0}
    for number in range(flips):
        file = files[number % len(files)]
        whole, meaning = wholes[file]
        damaged = bytearray(whole)
        bit = rng.randrange(8 * len(whole))
        damaged[bit // 8] ^= 1 << bit % 8
        file.write_bytes(damaged)
        outcome = judged(file, meaning)
        counts[outcome] += 1
        file.write_bytes(whole)
        assert outcome != "silent", f"{file}: bit {bit}"
    report("bit-flips", counts)


@pytest.mark.parametrize(
    "every", [pytest.param(40_000, id="some"), pytest.param(1000, id="many", marks=pytest.mark.soak)]
)
def test_no_cut_file_is_silent(run, every):
    counts = {"cuts": 0, "refused": 0, "the same": 0, "silent": 0}
    for file in files_of(run):
        whole, meaning = file.read_bytes(), content(file)
        for length in range(0, len(whole), every):
            file.write_bytes(whole[:length])
            outcome = judged(file, meaning)
            counts["cuts"] += 1
            counts[outcome] += 1
            assert outcome == "refused", f"{file}: {length} bytes"
        file.write_bytes(whole)
    report("cuts", counts)


class Executed:
    """A pickle that makes a file when it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


PLANTED = [
    *("checkpoints/last.pt", "checkpoints/previous.pt", "checkpoints/teach-0002.pt", "mae-random.pt"),
    *("student.safetensors", "teacher.safetensors", "mae.safetensors", "run.json", "config.json"),
    *("metrics.jsonl", "pseudo_labels.jsonl", "labels.pkl", "labels.json", "backbone.pth", "detector.pth"),
    *("hf/pytorch_model.bin", "hf/model.safetensors", "set/dataset.json", "export/export.json", "x.npz"),
]


FEW = ("checkpoints/last.pt", "mae-random.pt")
PLACES = [
    *(pytest.param(name, "torch", id=f"{name}, few") for name in FEW),
    *(
        pytest.param(name, how, id=f"{name}, {how}", marks=pytest.mark.soak)
        for name in PLANTED
        for how in ("pickle", "torch")
    ),
]


@pytest.mark.parametrize(("name", "how"), PLACES)
def test_what_is_planted_is_not_executed(world, source, run, tmp_path, name, how):
    """A file with code in the place of each file that somebody may be given, used in every way it is."""
    mark, folder = tmp_path / "executed", tmp_path / "run"
    shutil.copytree(run, folder)
    shutil.copytree(run.with_name("mae"), tmp_path / "mae")
    path = (tmp_path / "mae" if name == "mae-random.pt" else folder) / name
    path.parent.mkdir(exist_ok=True)
    evil = {"model": Executed(mark), "schema": 2, "stage": "teach", "step": 1}
    if how == "pickle":
        path.write_bytes(pickle.dumps(evil))
    else:
        torch.save(evil, path)
    if name.startswith("hf/"):
        (path.parent / "config.json").write_text('{"model_type": "deformable_detr"}')
    config = tiny_config(**{"model.weights": str(path)}) if "backbone" in name else tiny_config()
    labelled = tiny_config(**{"teacher.labels": str(path)})
    uses = [
        lambda: diagnose(folder),
        lambda: diagnose(folder, []),
        lambda: load_detector(path),
        lambda: load_detector(path.parent),
        lambda: read_log(path),
        lambda: stages.adapt(config, folder, stages=("teach",), resume=True, data_root=world),
        lambda: stages.adapt(
            *(config, folder), stages=("teach",), resume=True, from_checkpoint=path.stem, data_root=world
        ),
        lambda: stages.adapt(
            config, tmp_path / "next", stages=("teach",), init=str(tmp_path / "mae"), data_root=world
        ),
        lambda: stages.adapt(
            labelled, tmp_path / "labelled", stages=("teach",), init=str(source), data_root=world
        ),
        lambda: stages.pretrain_source(config, tmp_path / "from", init=str(path), data_root=world),
    ]
    refused = 0
    for use in uses:
        try:
            use()
        except MrtError:
            refused += 1
        assert not mark.exists()
    assert refused
