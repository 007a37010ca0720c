"""kill -9 at random instants: what comes out is what an undisturbed run gives.

``make test`` does a few, ``make soak`` some 200 (MRT_KILLS=N: that many chains of each kind), with the seed
MRT_SEED.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
from tiny_world import make_set, tiny_config
from undisturbed import assert_same_run, disturbed, ended, fork, kill, report

from mrt.engine import stages
from mrt.engine.facts import is_run, read_facts

SEED = int(os.environ.get("MRT_SEED", "0"))
CHAINS = int(os.environ.get("MRT_KILLS", "12"))
MOST = 4  # kills of one run
SMALL = {
    "engine.threads": 1,
    "engine.log_every": 3,
    "engine.eval_every": 1,
    "pretrain.steps_per_epoch": 5,
    "mae_stage.steps_per_epoch": 5,
    "teach.steps_per_epoch": 5,
}
OFTEN = {"engine.checkpoint_minutes": 1e-6, "engine.keep_checkpoints": 1}


def config(**more: object) -> Any:
    return tiny_config(**{**SMALL, **more})


KINDS: dict[str, Callable[..., Any]] = {
    "pretrain": lambda world, source, folder, how, **more: stages.pretrain_source(
        config(**more), folder, data_root=world, **how
    ),
    "mae": lambda world, source, folder, how, **more: stages.adapt(
        config(**more), folder, stages=("mae",), init=None if how else source, data_root=world, **how
    ),
    "teach": lambda world, source, folder, how, **more: stages.adapt(
        config(**more), folder, stages=("teach",), init=None if how else source, data_root=world, **how
    ),
    "adapt": lambda world, source, folder, how, **more: stages.adapt(
        config(**more), folder, init=None if how else source, data_root=world, **how
    ),
    "fair": lambda world, source, folder, how, **more: stages.pretrain_source(
        config(**more),
        folder,
        match_compute=True,
        init=None if how else source,
        data_root=world,
        **how,
    ),
}


def few_or_many(few: dict[str, int]) -> list[Any]:
    many = [
        pytest.param(
            kind, 2 * CHAINS if kind == "adapt" else CHAINS, id=f"{kind}, many", marks=pytest.mark.soak
        )
        for kind in KINDS
    ]
    return [*(pytest.param(kind, number, id=f"{kind}, few") for kind, number in few.items()), *many]


@pytest.mark.parametrize(("kind", "chains"), few_or_many({"adapt": 1}))
def test_a_killed_run_is_the_undisturbed_one(world, source, tmp_path, kind, chains):
    train, rng = KINDS[kind], random.Random(f"{SEED}/{kind}")
    began = time.monotonic()
    child = fork(lambda: train(world, str(source), tmp_path / "whole", {}), tmp_path / "log")
    assert ended(child, 300) == 0, (tmp_path / "log").read_text()
    seconds = time.monotonic() - began
    kills: list[bool] = []
    for number in range(chains):
        run = tmp_path / f"run{number}"
        more = {} if number % 2 else OFTEN

        def work(run: Path = run, more: dict = more) -> None:
            train(world, str(source), run, {"resume": True} if is_run(run) else {}, **more)

        has = (run / "checkpoints" / "last.pt").is_file
        kills += disturbed(work, tmp_path / "log", rng, seconds, MOST, has)
        assert_same_run(run, tmp_path / "whole")
    counts = {"seed": SEED, "runs": chains, "kills": len(kills), "after a first checkpoint": sum(kills)}
    report(f"kills-{kind}", counts)


@pytest.mark.soak
def test_a_killed_ablation_is_the_undisturbed_one(world, source, tmp_path):
    from mrt import ablate
    from mrt.ablate.studies import Row

    preset = tmp_path / "preset.json"
    preset.write_text(config(**{"init": str(source), "mae_stage.epochs": 1, "teach.epochs": 1}).to_json())
    rows = [
        Row("low", {"mae.mask_ratio": 0.5}),
        Row("high", {"mae.mask_ratio": 0.8}),
        Row("baseline", {}, end="fair"),
    ]

    def work(root: Path) -> None:
        planner = ablate.Planner(world, "val")
        trials = planner.trials(rows, [0], preset, [], {})
        results = ablate.run(trials, root, data_root=world)
        assert all("metrics" in item for item in results), results
        report = ablate.make_report(
            results, trials, title="t", subject="s", base="low", about={"preset": "x", "smoke": False}
        )
        ablate.write_report(report, root / "table")

    rng = random.Random(f"{SEED}/ablate")
    began = time.monotonic()
    child = fork(lambda: work(tmp_path / "whole"), tmp_path / "log")
    assert ended(child, 600) == 0, (tmp_path / "log").read_text()
    seconds = time.monotonic() - began
    kills: list[bool] = []
    for number in range(CHAINS):
        root = tmp_path / f"root{number}"
        kills += disturbed(
            lambda root=root: work(root),
            *(tmp_path / "log", rng, seconds, MOST),
            lambda root=root: any(root.glob("nodes/*/checkpoints/last.pt")),
        )
        names = [
            sorted(p.name for p in (folder / "nodes").iterdir() if p.is_dir())
            for folder in (root, tmp_path / "whole")
        ]
        assert names[0] == names[1]
        for name in names[0]:
            ours, whole = (folder / "nodes" / name for folder in (root, tmp_path / "whole"))
            if is_run(whole):
                assert_same_run(ours, whole)
                assert read_facts(ours)["finished"] == read_facts(whole)["finished"]
        assert (root / "table.csv").read_text() == (tmp_path / "whole" / "table.csv").read_text()
    report(
        "kills-ablate",
        {"seed": SEED, "runs": CHAINS, "kills": len(kills), "after a first checkpoint": sum(kills)},
    )


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder; safetensors by their tensors."""
    return {
        str(file.relative_to(folder)): safetensors.torch.save(safetensors.torch.load_file(file))
        if file.suffix == ".safetensors"
        else file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def mrt(*words: object) -> None:
    from mrt_cli.app import app

    app(list(map(str, words)), prog_name="mrt")


def photos(root: Path, images: int) -> Path:
    """A folder of pictures."""
    make_set(root / "raw", "photos", images=images)
    return (root / "raw" / "photos" / "images" / "train").rename(root / "photos")


@pytest.mark.soak
@pytest.mark.parametrize("name", ["prepare-data", "export"])
def test_a_killed_command_leaves_nothing_half_done(source, tmp_path, name):
    """What is killed leaves no output or a whole one; the same command again gives the undisturbed one."""
    before, after = {
        "prepare-data": (
            *(["prepare-data", "custom", "--raw", photos(tmp_path, 60), "--name", "set", "--workers", "1"],),
            ["--overwrite"],
        ),
        "export": (["export", source, "--format", "safetensors"], []),
    }[name]
    before += ["--data-root" if name == "prepare-data" else "--out"]
    rng = random.Random(f"{SEED}/{name}")
    whole = tmp_path / "whole"
    began = time.monotonic()
    assert ended(fork(lambda: mrt(*before, whole, *after), tmp_path / "log"), 300) == 0, (
        tmp_path / "log"
    ).read_text()
    seconds = time.monotonic() - began
    killed = 0
    for number in range(2 * CHAINS):
        out = tmp_path / "out" / str(number)
        # An export that is there is whole, whenever its process was killed, and is not overwritten.
        kills = disturbed(
            lambda out=out: None if name == "export" and out.exists() else mrt(*before, out, *after),
            *(tmp_path / "log", rng, seconds, 2),
            lambda out=out: out.exists(),
        )
        killed += len(kills)
        ours, theirs = tree(out), tree(whole)
        assert ours.keys() == theirs.keys()
        differ = [
            key
            for key in ours
            if ours[key].replace(str(out).encode(), b"") != theirs[key].replace(str(whole).encode(), b"")
        ]
        assert [key for key in differ if not key.endswith((".json", ".md", ".png"))] == []
        hidden = [file.name for file in (tmp_path / "out").rglob(".*")]
        assert hidden == []
    report(f"kills-{name}", {"seed": SEED, "commands": 2 * CHAINS, "kills": killed})


@pytest.mark.soak
def test_a_killed_prediction_leaves_whole_files(source, tmp_path):
    """Pictures appear one by one, the results at the end: each is whole or not there."""
    pictures, log = photos(tmp_path, 30), tmp_path / "log"

    def predict(out: Path) -> None:
        mrt("predict", source, pictures, "--device", "cpu", "--threshold", "0.01", "--out", out)

    whole = tmp_path / "whole"
    began = time.monotonic()
    assert ended(fork(lambda: predict(whole), log), 300) == 0, log.read_text()
    seconds = time.monotonic() - began
    rng, killed, left = random.Random(f"{SEED}/predict"), 0, 0
    theirs = tree(whole)
    for number in range(4 * CHAINS):
        out = tmp_path / "out" / str(number)
        child = fork(lambda out=out: predict(out), log)
        if ended(child, rng.uniform(0, seconds)) is None:
            kill(child)
            killed += 1
        ours = {name: content for name, content in tree(out).items() if not Path(name).name.startswith(".")}
        left += len(ours)
        assert {name: theirs.get(name) == content for name, content in ours.items() if name in theirs} == (
            dict.fromkeys(ours, True)
        )
    report("kills-predict", {"seed": SEED, "commands": 4 * CHAINS, "kills": killed, "files left": left})
