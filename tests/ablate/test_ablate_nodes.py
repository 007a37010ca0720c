"""What a node's digest covers: everything that can change the stage's result, and nothing else."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from tiny_set import write_set
from tiny_world import make_set, tiny_config

from mrt.ablate import device, missing_work
from mrt.ablate.nodes import (
    Planner,
    Trial,
    content_hash,
    describe_data,
    stage_settings,
)
from mrt.ablate.smoke import shrink
from mrt.ablate.studies import BASELINES, STUDIES, Axis, Row, grid_rows
from mrt.config import Config, load_config
from mrt.data.card import file_sha256, read_card
from mrt.engine import stages
from mrt.engine.load import find_weights
from mrt.section import KINDS, Section
from mrt.selection.looking import target_images

NOWHERE = Path("nowhere")


def plan(
    rows, seeds=(0,), *, preset: object = "small", overrides=(), data_root: Path = NOWHERE, **options
) -> list[Trial]:
    return Planner(data_root, "val", **options).trials(rows, list(seeds), preset, list(overrides), {})


def kinds(trials: list[Trial]) -> dict[str, int]:
    """How many different nodes of each kind there are, parents included."""
    nodes = {}
    for trial in trials:
        node = trial.node
        while node is not None:
            nodes[node.digest] = node.kind
            node = node.parent
    return {kind: list(nodes.values()).count(kind) for kind in dict.fromkeys(nodes.values())}


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (STUDIES["decay"].rows, {"given": 1, "mae": 1, "teach": 3}),
        (STUDIES["mask-ratio"].rows, {"given": 1, "mae": 3, "teach": 3}),
        (STUDIES["mae-data"].rows, {"given": 1, "mae": 3, "teach": 3}),
        (STUDIES["mae-use"].rows, {"given": 1, "mae": 2, "teach": 3}),
        (STUDIES["retrain-parts"].rows, {"given": 1, "mae": 1, "teach": 5}),
        (STUDIES["retrain-init"].rows, {"given": 1, "mae": 1, "teach": 3}),
        (STUDIES["mae-variant"].rows, {"given": 1, "mae": 3, "teach": 3}),
        (STUDIES["components"].rows, {"given": 1, "mae": 2, "teach": 5}),
        (BASELINES, {"given": 1, "fair": 1, "oracle-target": 1, "oracle-source+target": 1}),
        (grid_rows([Axis("mae_stage.epochs", ("1", "2"))], "small"), {"given": 1, "mae": 2, "teach": 2}),
        (grid_rows([Axis("teach.epochs", ("4", "5"))], "small"), {"given": 1, "mae": 1, "teach": 2}),
        (grid_rows([Axis("engine.workers", ("0", "1"))], "small"), {"given": 1, "mae": 1, "teach": 1}),
    ],
)
def test_trials_share_the_stages_that_are_the_same(rows, expected):
    found = kinds(plan(rows))
    assert {kind: found.get(kind, 0) for kind in expected} == expected and set(found) == set(expected)


def test_a_trial_knows_whose_labels_it_learns_from():
    found = [trial.learned_from for trial in plan(BASELINES)]
    assert found == [{"source"}, {"target"}, {"source", "target"}]
    assert [trial.learned_from for trial in plan(STUDIES["retrain-init"].rows)] == [{"source"}] * 3
    rows = (Row("start", {}, end="source"),)
    assert plan(rows)[0].learned_from == set(), "the preset's start is trained already"
    assert plan(rows, overrides=["init=none"])[0].learned_from == {"source"}
    oracle = [row for row in BASELINES if row.end == "oracle-target"]
    assert plan(oracle, overrides=["init=none"])[0].learned_from == {"source", "target"}, (
        "stage 1 learns from the source"
    )


def test_a_smoke_test_takes_images_that_have_boxes(tmp_path):
    images = {number: np.zeros((8, 8, 3), np.uint8) for number in range(1, 21)}
    boxes = [
        {"image_id": number, "category_id": 1, "bbox": [1, 1, 4, 4], "iscrowd": int(number < 15)}
        for number in (3, 18, 15)
    ]
    write_set(tmp_path / "data" / "few", images, boxes, ["car"])
    part = read_card(shrink(["few"], tmp_path / "data", tmp_path / "small") / "few").splits["train"]
    kept = json.loads((tmp_path / "small" / "few" / "train.json").read_text())["images"]
    assert [image["id"] for image in kept] == [1, 2, 3, 4, 5, 6, 15, 18]
    assert (part.num_images, part.num_boxes, part.num_ignored) == (8, 2, 1)
    looked = target_images(read_card(tmp_path / "small" / "few"), "train")
    assert len(looked) == 8, "signals look at no more, though all are in the folder"


def test_studies_share_trials_with_one_another():
    digests = {
        name: {
            row.name: trial.node.digest
            for row, trial in zip(STUDIES[name].rows, plan(STUDIES[name].rows), strict=True)
        }
        for name in STUDIES
    }
    assert digests["components"]["+ DT"] == digests["mae-use"]["none"] == digests["retrain-parts"]["none"]
    assert (
        digests["components"]["+ DT + MAE"]
        == digests["mask-ratio"]["0.8"]
        == digests["decay"]["hard"]
        == digests["mae-data"]["target"]
    )
    assert digests["components"]["+ DT + MAE + retraining"] == digests["retrain-init"]["source + MAE"]
    assert (
        digests["components"]["+ DT + MAE + retraining"]
        == digests["mae-variant"]["published, padding ratios"]
    )


def test_stage_1_is_trained_for_each_seed_or_once():
    rows = STUDIES["decay"].rows
    assert kinds(plan(rows, (0, 1), preset="city2foggy")) == {"teach": 6, "mae": 2, "source": 2}
    assert kinds(plan(rows, (0, 1), preset="city2foggy", shared_source=True)) == {
        "teach": 6,
        "mae": 2,
        "source": 1,
    }
    assert kinds(plan(rows, (0, 1))) == {"teach": 6, "mae": 2, "given": 1}


def test_data_is_part_of_a_node_by_its_content(tmp_path):
    make_set(tmp_path / "a", "clear", seed=1)
    make_set(tmp_path / "b", "clear", seed=1)
    make_set(tmp_path / "b", "hazy", haze=0.5, seed=2)
    make_set(tmp_path / "c", "clear", seed=1)
    make_set(tmp_path / "c", "hazy", haze=0.5, seed=3)
    sets = ["data.source=clear", "data.target=hazy", "init=none"]
    digests = {name: plan([Row("x")], overrides=sets, data_root=tmp_path / name)[0].node for name in "abc"}
    assert len({node.digest for node in digests.values()}) == 3
    assert len({node.parent.parent.digest for node in digests.values()}) == 1, (
        "stage 1 does not see the target"
    )


def test_what_sections_say_of_their_settings_is_about_settings_and_stages():
    for section in load_config("small").sections().values():
        assert set(section.reaches_of) <= set(type(section).model_fields), type(section)
        assert set(section.optional) <= set(type(section).model_fields), type(section)
        for kinds_of_stage in (section.reaches, *section.reaches_of.values()):
            assert set(kinds_of_stage) <= set(KINDS), type(section)


def test_a_new_setting_counts_everywhere_until_somebody_says_otherwise():
    class New(Section):
        """A section that says nothing of stages."""

        strength: float = 1.0

    assert all(New().acting(kind, load_config("small")) == {"strength": 1.0} for kind in KINDS)


# A change of everything that is said not to reach a stage, at once.
ELSEWHERE = {
    "source": {
        **{
            "data.target": "misty",
            "data.sides": [40],
            "data.validation_split": "train",
            "loss.target_weight": 3.0,
            "domain.enabled": False,
        },
        **{
            "mae.mask_ratio": 0.3,
            "teacher.box_loss": True,
            "teacher.threshold_max": 0.9,
            "retrain.every": 0,
            "mae_stage.lr": 1e-5,
        },
        **{
            "teach.epochs": 7,
            "engine.workers": 1,
            "engine.log_every": 3,
            "engine.eval_every": 1,
            "engine.eval_batch_size": 3,
        },
    },
    "mae": {
        **{
            "data.validation_split": "train",
            "data.source_sides": [40],
            "data.source_crop": True,
            "domain.enabled": False,
        },
        **{
            "mae.use": "pretrain",
            "mae.decay": "none",
            "mae.carry_over": False,
            "teacher.ema": 0.5,
            "teacher.dynamic": False,
        },
        **{
            "retrain.every": 0,
            "retrain.source": "random",
            "pretrain.lr": 1e-5,
            "teach.epochs": 7,
            "engine.eval_every": 1,
        },
        **{"data.cache": "none", "engine.keep_checkpoints": 1},
    },
    "teach": {
        **{
            "data.validation_split": "train",
            "data.source_sides": [40],
            "pretrain.lr": 1e-5,
            "mae_stage.lr": 1e-5,
            "mae_stage.epochs": 9,
        },
        **{"engine.eval_every": 1, "engine.workers": 1},
    },
    "fair": {
        **{
            "loss.target_weight": 3.0,
            "domain.enabled": False,
            "mae.use": "none",
            "mae.mask_ratio": 0.1,
            "teacher.dynamic": False,
        },
        **{
            "teacher.threshold_start": 0.2,
            "retrain.every": 0,
            "pretrain.lr": 1e-5,
            "data.source_sides": [40],
        },
    },
}


@pytest.fixture(scope="module")
def starts(world, tmp_path_factory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("runs")
    source = stages.pretrain_source(tiny_config(), root / "source", data_root=world)
    mae = stages.adapt(tiny_config(), root / "mae", stages=("mae",), init=str(source), data_root=world)
    return {"mae": str(source), "teach": str(mae), "fair": str(source)}


def train(
    kind: str, config: Config, folder: Path, world: Path, starts: dict[str, str]
) -> dict[str, torch.Tensor]:
    if kind == "source":
        stages.pretrain_source(config, folder, data_root=world)
    elif kind == "fair":
        stages.pretrain_source(config, folder, init=starts[kind], match_compute=True, data_root=world)
    else:
        stages.adapt(config, folder, stages=(kind,), init=starts[kind], data_root=world)
    return weights_of(folder)


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    """All that a run leaves to others: student, teacher, autoencoder."""
    files = {file.stem: safetensors.torch.load_file(file) for file in sorted(folder.glob("*.safetensors"))}
    return {f"{name}: {key}": value for name, tensors in files.items() for key, value in tensors.items()}


def differing(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> list[str]:
    assert one and one.keys() == other.keys()
    return [key for key in one if not torch.equal(one[key], other[key])]


# A change that does reach the stage: it shows that the comparison would notice.
HERE = {
    "source": {"pretrain.lr": 3e-3},
    "mae": {"mae_stage.lr": 3e-3},
    "teach": {"teach.lr": 3e-3},
    "fair": {"teach.lr": 3e-3},
}


@pytest.mark.parametrize("kind", ELSEWHERE)
def test_what_does_not_reach_a_stage_does_not_change_it(world, starts, tmp_path, kind):
    configs = [tiny_config(), tiny_config(**ELSEWHERE[kind])]
    assert stage_settings(configs[0], kind) == stage_settings(configs[1], kind)
    configs.append(tiny_config(**HERE[kind]))
    assert stage_settings(configs[0], kind) != stage_settings(configs[2], kind)
    one, same, changed = (
        train(kind, config, tmp_path / str(number), world, starts) for number, config in enumerate(configs)
    )
    assert differing(one, same) == [] and differing(one, changed)


@pytest.mark.parametrize(
    "off",
    [
        ({"retrain.every": 2, "retrain.source": "random"}, {"retrain.parts": "none"}),
        (
            {"teacher.dynamic": False},
            {"teacher.dynamic": False, "teacher.threshold_gamma": 0.1, "teacher.threshold_max": 0.9},
        ),
        ({"mae.use": "none"}, {"mae.use": "pretrain", "mae.mask_ratio": 0.1, "mae.layers": 1}),
        (
            {"domain.enabled": False},
            {"domain.enabled": False, "domain.encoder_weight": 9.0, "domain.ramp": 0.5},
        ),
    ],
    ids=lambda off: next(iter(off[0])),
)
def test_a_part_that_is_off_takes_its_settings_with_it(world, starts, tmp_path, off):
    configs = [tiny_config(**settings) for settings in off]
    assert all(stage_settings(config, "teach") == stage_settings(configs[0], "teach") for config in configs)
    found = [
        train("teach", config, tmp_path / str(number), world, starts) for number, config in enumerate(configs)
    ]
    assert differing(*found) == []


@pytest.fixture
def gpu(monkeypatch):
    """``gpu(True)``: as if this machine had one."""
    return lambda there: monkeypatch.setattr(device, "has_gpu", lambda: there)


def test_the_hash_of_a_whole_run_is_of_what_changes_its_result(gpu):
    gpu(False)
    base = load_config("small")
    same = load_config("small", ["engine.device=cpu", "engine.workers=3", "engine.threads=2", "preset=other"])
    assert content_hash(base) == content_hash(same)
    for change in (
        "seed=1",
        "mae.mask_ratio=0.5",
        "engine.batch_size=4",
        "data.target=other",
        "model.dropout=0.1",
        "engine.device=cuda",
    ):
        assert content_hash(base) != content_hash(load_config("small", [change])), change
    on_a_cpu = content_hash(base)
    gpu(True)
    assert content_hash(base) == content_hash(load_config("small", ["engine.device=cuda"])) != on_a_cpu
    assert content_hash(same) == on_a_cpu


def test_a_gpu_makes_other_nodes_and_results_than_a_cpu(gpu, tmp_path):
    rows = [Row("start", end="source"), Row("all"), BASELINES[0]]

    def found(asked: str, there: bool, *overrides: str) -> list[tuple[list[str], Path]]:
        gpu(there)
        trials = plan(rows, overrides=[f"engine.device={asked}", *overrides])
        return [([node.digest for node in trial.node.chain], trial.result_file(tmp_path)) for trial in trials]

    for start in ((), ("init=none",)):
        cpu, cuda = found("auto", False, *start), found("auto", True, *start)
        assert found("cpu", True, *start) == cpu and found("cuda", False, *start) == cuda
        for (one, result), (other, its_result) in zip(cpu, cuda, strict=True):
            assert not set(one) & set(other) and result != its_result
    given = plan(rows, overrides=["engine.device=cpu"])[1].node.chain
    known = file_sha256(find_weights(given[0].place))
    assert given[0].digest == known, "a CPU's digests are those of older versions"
    facts = {"kind": "mae", "settings": stage_settings(given[1].config, "mae"), "parent": given[0].digest}
    facts["data"] = describe_data(given[1].config, "mae", NOWHERE)
    assert given[1].digest == hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def test_a_device_as_an_axis_measures_the_given_weights_on_each(gpu, tmp_path):
    gpu(True)
    rows = [Row(kind, {"engine.device": kind}, end="source") for kind in ("cpu", "cuda")]
    works = missing_work(plan(rows), tmp_path, NOWHERE)
    assert [(work.device, work.config["engine"]["device"]) for work in works] == [
        ("cpu", "cpu"),
        ("cuda", "cuda"),
    ]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere torch is asked")
def test_a_machine_without_a_gpu_is_known_without_torch():
    code = (
        "import sys; from mrt.ablate import device; device.GPU_FILES = ()\n"
        "print(device.device_kind('auto'), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["cpu", "False"], done.stderr


def test_where_there_may_be_a_gpu_torch_is_asked(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert device.has_gpu() and device.device_kind("auto") == "cuda"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert not device.has_gpu() and device.device_kind("auto") == "cpu"
    assert [device.device_kind(name) for name in ("cpu", "cuda")] == ["cpu", "cuda"]


@pytest.mark.parametrize(
    ("asked", "environment", "expected"),
    [
        ("cpu", {"device_type": "cuda", "op": "cuda"}, "cpu"),
        ("cuda", None, "cuda"),
        ("auto", {"device_type": "cuda", "op": "python"}, "cuda"),
        ("auto", {"device_type": "cpu", "op": "cpu"}, "cpu"),
        ("auto", {"op": "cuda"}, "cuda"),
        ("auto", {"op": "cpu"}, "cpu"),
        ("auto", {"op": "python"}, None),
        ("auto", None, None),
    ],
)
def test_a_run_tells_what_kind_of_device_it_was_trained_on(tmp_path, asked, environment, expected):
    (tmp_path / "config.json").write_text(load_config("small", [f"engine.device={asked}"]).to_json())
    facts = {"command": "adapt", "classes": [], "data": {}, "finished": []}
    facts |= {"environment": environment} if environment else {}
    (tmp_path / "run.json").write_text(json.dumps(facts))
    assert device.trained_on(tmp_path) == expected
    assert device.trained_on(tmp_path / "nowhere") is None


def test_the_hash_knows_the_starting_weights_by_their_content(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "teacher.safetensors").write_bytes(b"weights")
    paths = [tmp_path / "a", tmp_path / "b", tmp_path / "a" / "teacher.safetensors"]
    configs = [load_config("small", changes={"init": str(path)}) for path in paths]
    assert len({content_hash(config) for config in configs}) == 1
    assert len({plan([Row("x")], overrides=[f"init={path}"])[0].node.digest for path in paths}) == 1
    before = content_hash(configs[0])
    (tmp_path / "a" / "teacher.safetensors").write_bytes(b"other weights")
    assert before != content_hash(configs[0])


def test_weights_that_are_a_folder_or_a_name_on_the_hub_have_a_fingerprint(tmp_path):
    from mrt.ablate.nodes import _fingerprint

    folder = tmp_path / "face"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "deformable_detr"}')
    (folder / "model.safetensors").write_bytes(b"one")
    first = _fingerprint(str(folder))
    (folder / "model.safetensors").write_bytes(b"two")
    assert len(first) == 64 and _fingerprint(str(folder)) != first
    assert _fingerprint("hf:some/one") == "hf:some/one" and _fingerprint("coco") == "coco"
