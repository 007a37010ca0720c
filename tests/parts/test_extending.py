"""docs/extending.md: its two examples, run as they are written there."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_world import tiny_config

from mrt import plugins
from mrt.ablate.nodes import Planner
from mrt.ablate.studies import Row, grid_rows, make_axes
from mrt.config import config_class, load_config, named_plugins
from mrt.engine import stages
from mrt.engine.inference import evaluate_detector
from mrt.engine.load import load_detector
from mrt.engine.report import Watcher
from mrt.errors import Interrupted, MrtError
from mrt.report import figures
from mrt.report.collect import changed_settings, load_run

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")


def example(name: str, folder: Path) -> Path:
    """The code that the page gives for a file, written down."""
    after = PAGE[re.search(rf"`{re.escape(name)}`", PAGE).end() :]
    code = re.search(r"```python\n(.*?)```", after, re.DOTALL).group(1)
    path = folder / name
    path.write_text(code, encoding="utf-8")
    return path


@pytest.fixture
def entropy(tmp_path) -> Path:
    return example("entropy.py", tmp_path)


@pytest.fixture
def cells(tmp_path) -> Path:
    return example("cells.py", tmp_path)


def weights(run: Path, which: str = "student") -> dict[str, torch.Tensor]:
    return load_detector(run, which=which)[0].state_dict()


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[key], other[key]) for key in one)


def lines(run: Path, kind: str) -> list[dict]:
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in found if line["kind"] == kind]


class Listener(Watcher):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


class StopAt(Watcher):
    def __init__(self, step: int) -> None:
        self.left = step

    def advance(self, n: int = 1, **_: float) -> None:
        import signal

        self.left -= n
        if self.left == 0:
            signal.raise_signal(signal.SIGTERM)


def test_a_part_from_outside_trains_resumes_and_is_kept(world, source, tmp_path, entropy, monkeypatch):
    plugin = {"method.plugins": [str(entropy)]}
    plain = stages.adapt(tiny_config(), tmp_path / "plain", init=str(source), data_root=world)
    off = {**plugin, "entropy.weight": 0.0}
    without = stages.adapt(tiny_config(**off), tmp_path / "without", init=str(source), data_root=world)
    whole = stages.adapt(tiny_config(**plugin), tmp_path / "whole", init=str(source), data_root=world)
    assert same(weights(plain), weights(without)), "switched off, it changes nothing"
    assert not same(weights(plain), weights(whole))
    first = [next(line for line in lines(run, "train") if line["stage"] == "teach") for run in (plain, whole)]
    assert ["target/entropy" in line for line in first] == [False, True]
    weight = 0.01  # the first of four steps is beyond the ramp of 0.2
    assert first[1]["total"] - first[0]["total"] == pytest.approx(
        weight * first[1]["target/entropy"], abs=1e-5
    )
    with pytest.raises(Interrupted):
        stages.adapt(
            tiny_config(**plugin), tmp_path / "run", init=str(source), data_root=world, watcher=StopAt(6)
        )
    monkeypatch.chdir("/")
    entropy.write_text(entropy.read_text() + "# edited\n")
    plugins.load.cache_clear()
    said = Listener()
    run = stages.adapt(tiny_config(), tmp_path / "run", resume=True, data_root=world, watcher=said)
    assert [line for line in said.lines if "is not the one that the run was started with" in line]
    assert same(weights(whole), weights(run)) and same(weights(whole, "teacher"), weights(run, "teacher"))
    about = load_run(run)
    assert about.config.entropy.weight == 0.01 and figures.panels_of(about)["other losses"] == {
        "target/entropy": "target: entropy"
    }
    entropy.unlink()
    plugins.load.cache_clear()
    config_class.cache_clear()
    assert load_run(run).config.method.plugins == (), "a report does without a plug-in that is gone"
    assert evaluate_detector(run, data_root=world).metrics.num_images == 8, (
        "a trained detector needs no plug-in"
    )
    with pytest.raises(MrtError, match=r"entropy\.py: no such plug-in file"):
        stages.adapt(tiny_config(), run, resume=True, data_root=world)


def test_its_settings_are_settings(entropy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = load_config("small", ["entropy.weight=0.2", "method.plugins=[entropy.py]"])
    assert config.entropy.weight == 0.2 and config.method.plugins == (str(entropy),)
    stored = tmp_path / "config.json"
    stored.write_text(config.to_json())
    assert load_config(stored) == config
    for wrong, words in (
        ("entropy.ramp=2", "less than or equal to 1"),
        ("entropy.ram=0", "did you mean 'entropy.ramp'"),
    ):
        with pytest.raises(MrtError, match=re.escape(words)):
            load_config("small", ["method.plugins=[entropy.py]", wrong])
    with pytest.raises(MrtError, match=r"unknown setting 'entropy\.weight'"):
        load_config("small", ["entropy.weight=0.2"])


def test_an_ablation_trains_a_stage_anew_when_and_only_when_the_part_acts_there(entropy):
    def digests(*overrides: str) -> list[str]:
        chosen = [f"method.plugins=[{str(entropy)!r}]", *overrides] if overrides != ("none",) else []
        node = Planner(Path("nowhere"), "val").trials([Row("x")], [0], "small", chosen, {})[0].node
        return [node.digest, node.parent.digest]

    (first, mae), (other, mae_of_other), plain = (
        digests("teach.lr=2e-4"),
        digests("entropy.weight=0.3"),
        digests("none"),
    )
    assert first != other and mae == mae_of_other == plain[1] and first != plain[0]
    assert digests("entropy.weight=0") == digests("entropy.weight=0", "entropy.ramp=1") == plain, "it is off"
    entropy.write_text(entropy.read_text() + "\n# edited\n")
    plugins.load.cache_clear()
    assert digests("teach.lr=2e-4")[0] != first and digests("teach.lr=2e-4")[1] == mae


MINE = "from mrt.parts.base import Part\nclass Mine(Part):\n    {}\n"


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import nothing_of_that_name", "cannot be imported: ModuleNotFoundError"),
        ("x = 1", "defines neither a Part nor a Detector"),
        (
            "from mrt.parts.base import Part\nclass Mine(Part):\n    name = 'mine'",
            "does not say in which stages",
        ),
        ("from mrt.parts.base import Part\nclass Mine(Part):\n    stages = ('teach',)", "not a name"),
        (
            "from mrt.parts.base import Part\nfrom mrt.section import Section\n"
            "class Mine(Part):\n    name, settings, stages = 'mae', Section, ('teach',)",
            "section [mae] is there already",
        ),
        (
            MINE.format("name, stages = 'mine', ('teaching',)"),
            "Mine.stages = ('teaching',): not a tuple of such names",
        ),
        (MINE.format("name, stages = 'mine', 'teach'"), "Mine.stages = 'teach': not a tuple"),
        (
            MINE.format(
                "name, stages = 'mine', ('teach',)\n    def label(self, batch, labels): return labels"
            ),
            "Mine.label is called as label(self, number, batch, labels)",
        ),
        (
            "from mrt.section import Section\nclass MineConfig(Section):\n    x: float = 1.0\n"
            + MINE.format("name, stages = 'mine', ('teach',)"),
            "no part has the settings MineConfig",
        ),
        (
            "from mrt.section import Section\nclass MineConfig(Section):\n"
            "    reaches = ('teech',)\n    x: float = 1.0\n"
            + MINE.format("name, stages, settings = 'mine', ('teach',), MineConfig"),
            "MineConfig.reaches = ('teech',): not a tuple of such names",
        ),
        (
            "from mrt.parts.base import Part\nclass Mine(Part):\n    name, stages = 'mine', ('teach',)\n"
            "    def loses(self, seen): return []",
            "Mine.loses: nothing calls it: did you mean 'losses'?",
        ),
    ],
    ids=lambda value: value.split(":")[0][:30] if value.count(" ") < 12 else "code",
)
def test_a_plug_in_that_is_none_is_refused_in_one_line(tmp_path, code, words):
    path = tmp_path / "mine.py"
    path.write_text(code)
    with pytest.raises(MrtError, match=re.escape(words)):
        load_config("small", changes={"method.plugins": [str(path)]})


@pytest.mark.soak
def test_the_command_line_takes_a_plug_in(world, source, tmp_path, entropy):
    settings = tmp_path / "own.toml"
    config = json.loads(tiny_config().to_json())
    table = {
        key: value
        for key, value in config.items()
        if isinstance(value, dict) and key not in ("method", "data")
    }
    body = [
        f"[{name}]\n"
        + "\n".join(f"{key} = {json.dumps(value)}" for key, value in values.items() if value is not None)
        for name, values in table.items()
    ]
    data = "[data]\nsource = 'clear'\ntarget = 'hazy'\nsource_sides = [48]\nsides = [48]\nmax_size = 64\n"
    settings.write_text(
        "\n".join(["[method]\nplugins = ['entropy.py']\n[entropy]\nweight = 0.3", data, *body])
    )
    command = [
        "-m",
        "mrt_cli",
        "adapt",
        "--preset",
        str(settings),
        "--init",
        str(source),
        "--data-root",
        str(world),
    ]
    run = [sys.executable, *command, "--run-root", str(tmp_path / "runs"), "--name", "x"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "XDG_CONFIG_HOME": str(tmp_path)}
    done = subprocess.run([*run, "--dry-run"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and json.loads(done.stdout)["entropy"] == {"weight": 0.3, "ramp": 0.2}, (
        done.stderr
    )
    done = subprocess.run(
        [*run, "--set", "entropy.ramp=3"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and "entropy.ramp" in done.stderr and "Traceback" not in done.stderr
    done = subprocess.run(run, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and (tmp_path / "runs" / "x" / "teacher.safetensors").is_file(), done.stderr


def test_a_detector_from_outside_goes_the_whole_way(world, tmp_path, cells, monkeypatch):
    """Stage 1, adaptation with everything but the autoencoder, and the use of its weights."""
    changes = {
        "method.plugins": [str(cells)],
        "model.detector": "cells",
        "mae.use": "none",
        "retrain.every": 1,
        "engine.eval_every": 1,
    }
    config = tiny_config(**changes)
    start = stages.pretrain_source(config, tmp_path / "source", data_root=world)
    run = stages.adapt(config, tmp_path / "run", init=str(start), data_root=world)
    first, last = (next(iter(lines(run, "train"))), lines(run, "train")[-1])
    assert {"source/class", "source/box"} <= set(first) and {
        "target/class",
        "target/domain_encoder",
        "source/domain",
    } <= set(last)
    assert "retrained" in lines(run, "epoch")[2] and {line["network"] for line in lines(run, "eval")} == {
        "student",
        "teacher",
    }
    monkeypatch.setenv(plugins.VARIABLE, str(cells))
    monkeypatch.setattr(plugins, "_loaded", {})
    found = evaluate_detector(run, data_root=world)
    assert found.metrics.num_images == 8 and type(load_detector(run)[0]).__name__ == "CellDetector"
    monkeypatch.delenv(plugins.VARIABLE)
    with pytest.raises(MrtError, match="detector 'cells': there is none of that kind"):
        load_detector(run)


def test_what_another_detector_cannot_do_is_said(world, tmp_path, cells):
    config = tiny_config(**{"method.plugins": [str(cells)], "model.detector": "cells"})
    start = stages.pretrain_source(config, tmp_path / "source", data_root=world)
    with pytest.raises(MrtError, match="masked autoencoder rebuilds what a Deformable DETR"):
        stages.adapt(config, tmp_path / "run", init=str(start), data_root=world)
    assert not (tmp_path / "run").exists()
    with pytest.raises(MrtError, match=r"model\.detector=cells"):
        stages.adapt(tiny_config(), tmp_path / "run", init=str(start), data_root=world)


def test_a_cell_detector_learns(world, tmp_path, cells):
    """The example is a detector, not only something that runs: its loss falls."""
    changes = {
        "method.plugins": [str(cells)],
        "model.detector": "cells",
        "pretrain.epochs": 40,
        "pretrain.lr": 3e-3,
    }
    run = stages.pretrain_source(tiny_config(**changes), tmp_path / "source", data_root=world)
    totals = [line["total"] for line in lines(run, "train")]
    assert sum(totals[-4:]) < 0.8 * sum(totals[:4])


PART = """
from dataclasses import replace
from mrt.parts.base import Labels, Loss, Needs, Part
def changed(labels, **keys):
    targets = [{{**target, **keys}} for target in labels["source"].targets]
    return {{"source": replace(labels["source"], targets=targets)}}
class Mine(Part):
    name, stages = "mine", ("mae",)
    def {method}
"""


@pytest.mark.parametrize(
    ("method", "words"),
    [
        (
            "losses(self, seen): return [Loss('traget', 'x', seen.output('source').boxes.sum(), 1.0)]",
            "'traget'",
        ),
        ("losses(self, seen): return [Loss('target', 'x', 0.5, 1.0)]", "the value of 'x' is a float"),
        (
            "losses(self, seen): return [Loss('source', 'x', seen.output('source').memory, 1.0)]",
            "of shape (4, ",
        ),
        ("losses(self, seen): return [seen.output('source').boxes.sum()]", "gave a Tensor of shape ()"),
        (
            "losses(self, seen): return [Loss('target', 'x', seen.output('target').boxes.sum(), 1.0)]",
            "seen.output('target'): the detector saw no such images",
        ),
        ("label(self, number, batch, labels): pass", "label(): gave a NoneType"),
        ("label(self, number, batch, labels): return {'source': []}", "gave a list for 'source'"),
        (
            "label(self, number, batch, labels): return {**labels, 'target': Labels([])}",
            "gave a Labels for 'target'",
        ),
        ("label(self, number, batch, labels): return {}", "no labels for 'source', which had some"),
        (
            "label(self, number, batch, labels): return changed(labels, confidence=1)",
            "a target with 'confidence'",
        ),
        (
            "label(self, number, batch, labels): return changed(labels, confidences=[1.0])",
            "a list as 'confidences'",
        ),
        (
            "losses(self, seen): return [Loss('source', 'class', seen.output('source').boxes.sum(), 1.0)]",
            "called 'source/class'",
        ),
        ("judged(self, judged): return {'source/box': 1.0}", "called 'source/box'"),
        ("after_epoch(self, done, numbers): return {'epoch': 2}", "'epoch' is told already"),
        ("after_epoch(self, done, numbers): return 0.5", "after_epoch(): gave 0.5"),
        ("needs(self, config): return Needs(detect={'tagret'})", "Needs(detect={'tagret'}): not known"),
        ("label(self, number, batch, labels): return {'source': Labels([])}", "gave 0 targets for 4 images"),
    ],
)
def test_what_a_part_must_not_give_is_said_in_one_line(world, source, tmp_path, method, words):
    path = tmp_path / "mine.py"
    path.write_text(PART.format(method=method))
    settings = tiny_config(**{"method.plugins": [str(path)], "mae.use": "none"})
    with pytest.raises(MrtError, match=re.escape(words)) as error:
        stages.adapt(settings, tmp_path / "run", stages=("mae",), init=str(source), data_root=world)
    assert error.value.hint


def test_an_installed_package_offers_its_plug_in_by_a_name(tmp_path, monkeypatch):
    """As an entry point of the group mrt.plugins."""
    example("entropy.py", tmp_path)
    package = tmp_path / "offered-1.0.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: offered\nVersion: 1.0\n")
    (package / "entry_points.txt").write_text("[mrt.plugins]\nsure = entropy\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert load_config("small", ["method.plugins=[sure]"]).entropy.weight == 0.01
    with pytest.raises(
        MrtError, match=r"shure: neither a file that ends in \.py nor an entry point"
    ) as error:
        load_config("small", ["method.plugins=[shure]"])
    assert error.value.hint == "installed: sure"


def test_settings_of_a_plug_in_are_axes_of_an_ablation(tmp_path, entropy, monkeypatch):
    monkeypatch.chdir(tmp_path)
    overrides = ["method.plugins=[entropy.py]", "teach.epochs=2"]
    names = named_plugins("small", overrides)
    axes = make_axes([("entropy.weight", ["0", "0.1"])], names)
    rows = grid_rows(axes, "small", overrides)
    assert [row.settings for row in rows] == [{"entropy.weight": 0.0}, {"entropy.weight": 0.1}]
    trials = Planner(Path("nowhere"), "val").trials(rows, [0], "small", overrides, {})
    assert len({trial.node.digest for trial in trials}) == 2
    assert len({trial.node.parent.digest for trial in trials}) == 1, "stage 2 is trained once"
    with pytest.raises(MrtError, match="neither an option nor a setting"):
        make_axes([("entropy.weight", ["0"])])


def test_a_plug_in_is_looked_for_beside_the_preset(tmp_path, entropy, monkeypatch):
    (tmp_path / "mine.toml").write_text("[method]\nplugins = ['entropy.py']\n[entropy]\nweight = 0.5\n")
    monkeypatch.chdir("/")
    assert load_config(tmp_path / "mine.toml").entropy.weight == 0.5
    with pytest.raises(MrtError, match="unknown setting") as error:
        load_config("small", ["entropy.weight=1"])
    assert "--set method.plugins=[FILE]" in error.value.hint


NETWORK = """
from torch import nn
from torch.nn import functional as F
from mrt.parts.base import Loss, Needs, Part
class Mine(Part):
    name, stages = "mine", ("teach",)
    def networks(self, site):
        self.mine = nn.Linear(4, 4)
        return {{"{name}": self.mine}}
    def needs(self, config):
        return Needs(detect={{"target"}})
    def before_step(self, batches, look, moment):
        target = batches[0]["target"]
        self.taught = look(target.images, target.mask).logits[-1].sigmoid()
    def losses(self, seen):
        found = seen.output("target").logits[-1].float()
        unused = self.mine(found.new_zeros(1, 4)).mean()
        same = F.mse_loss(found.sigmoid(), self.taught)
        return [Loss("target", "same", same, 1.0), Loss("target", "unused", unused)]
"""


def test_a_part_learns_from_the_teachers_scores_and_changes_nothing_else(world, source, tmp_path):
    """A mean-teacher loss. Networks of plug-ins are drawn last, so runs with and without one are paired."""
    path = tmp_path / "mine.py"
    path.write_text(NETWORK.format(name="mine"))
    settings = tiny_config(**{"method.plugins": [str(path)], "teach.epochs": 1})
    run = stages.adapt(settings, tmp_path / "run", init=str(source), data_root=world)
    plain = stages.adapt(
        tiny_config(**{"teach.epochs": 1}), tmp_path / "plain", init=str(source), data_root=world
    )
    first, other = (
        next(line for line in lines(item, "train") if line["stage"] == "teach") for item in (run, plain)
    )
    assert first["target/same"] > 0 and first["target/mae"] == other["target/mae"]
    assert first["target/domain"] == other["target/domain"]


@pytest.mark.parametrize("name", ["discriminators", "detector"])
def test_a_networks_name_must_be_its_own(world, source, tmp_path, name):
    path = tmp_path / "mine.py"
    path.write_text(NETWORK.format(name=name))
    settings, how = tiny_config(**{"method.plugins": [str(path)]}), {"init": str(source), "data_root": world}
    with pytest.raises(MrtError, match=rf"part 'mine', networks\(\): the name '{name}' is taken"):
        stages.adapt(settings, tmp_path / "run", stages=("teach",), **how)
    assert not (tmp_path / "run").exists()


def test_a_part_may_take_part_in_stage_1_with_target_images(world, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(NETWORK.format(name="mine").replace('("teach",)', '("pretrain",)'))
    settings = tiny_config(**{"method.plugins": [str(path)], "pretrain.epochs": 1})
    run = stages.pretrain_source(settings, tmp_path / "run", data_root=world)
    assert lines(run, "train")[0]["target/same"] > 0
    assert {"source", "target"} == set(json.loads((run / "run.json").read_text())["data"])


def test_a_plug_in_may_have_a_base_of_its_own_and_optional_arguments(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from mrt.parts.base import Part\nclass Base(Part):\n    def begin(self, site, extra=None): pass\n"
        "class Mine(Base):\n    name, stages = 'mine', ('teach',)\n"
    )
    assert [part.name for part in plugins.load(str(path)).parts] == ["mine"]


def test_a_detector_needs_a_kind_of_its_own(tmp_path):
    path = tmp_path / "mine.py"
    code = "from mrt.models.detector import DeformableDETR\nclass Mine(DeformableDETR):\n    {}\n"
    path.write_text(code.format("pass"))
    with pytest.raises(MrtError, match="defines neither a Part nor a Detector with a kind"):
        plugins.load(str(path))
    path.write_text(code.format("kind = 'deformable_detr'"))
    with pytest.raises(MrtError, match="mrt has a detector of kind 'deformable_detr'"):
        plugins.load(str(path))


def test_a_variable_that_names_a_missing_plug_in_is_told_of_where_it_matters(monkeypatch, world, source):
    monkeypatch.setenv(plugins.VARIABLE, "/nowhere/cells.py")
    monkeypatch.setattr(plugins, "_loaded", {})
    assert evaluate_detector(source, data="hazy", data_root=world).metrics.num_images == 8
    with pytest.raises(MrtError, match=r"MRT_PLUGINS: /nowhere/cells\.py: no such plug-in file"):
        load_config("small", ["model.detector=cells"])


def test_runs_with_and_without_a_plug_in_are_compared(world, source, tmp_path, entropy):
    settings = {"mae_stage.epochs": 1, "teach.epochs": 1}
    with_it = {**settings, "method.plugins": [str(entropy)]}
    runs = [
        load_run(stages.adapt(tiny_config(**item), tmp_path / name, init=str(source), data_root=world))
        for name, item in (("with", with_it), ("without", settings))
    ]
    for order in (runs, runs[::-1]):
        changed = changed_settings([run.config for run in order])
        assert set(changed["entropy.weight"]) == {0.01, None}
