"""Weights in, recognised by content, and what starts from them."""

from __future__ import annotations

import json
import pickle
import shutil
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from model_cases import small_detector
from safetensors.torch import save_file
from tiny_world import make_set, tiny_config

from mrt.config import load_config
from mrt.engine import build, stages
from mrt.engine.facts import write_facts
from mrt.engine.load import describe, find_weights, holds_detector, load_detector, require_fit
from mrt.engine.report import Watcher
from mrt.errors import MrtError
from mrt.models import hub
from mrt.models.backbone import build_backbone
from mrt.models.classes import by_name, column_of, told_by_name
from mrt.models.detector import DeformableDETR
from mrt.models.huggingface import write_huggingface
from mrt.models.published import PUBLISHED_CLASSES, published_state

NAMES = ["car", "traffic light", "person"]


class Listener(Watcher):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture(scope="module")
def face(tmp_path_factory) -> Path:
    """A Hugging Face folder of a small detector."""
    torch.manual_seed(1)
    detector = small_detector(build_backbone("resnet18", weights="checkpoint"), num_levels=4)
    folder = tmp_path_factory.mktemp("hub") / "face"
    write_huggingface(
        folder, detector, NAMES, short_side=96, max_size=160, size_multiple=32, card="# A detector\n"
    )
    return folder


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    """A checkpoint in the published layout, of a full ResNet-50 detector."""
    detector = DeformableDETR(build_backbone("resnet50", weights="checkpoint"), num_classes=8)
    path = tmp_path_factory.mktemp("published") / "model.pth"
    torch.save({"model": published_state(detector, classes=sorted(PUBLISHED_CLASSES))}, path)
    return path


def test_a_run_its_files_and_a_shipped_name(source):
    detector, facts = load_detector(source)
    assert facts["classes"] == ["red", "green"] and Path(facts["file"]).parent == source
    assert describe(source).arguments == detector.arguments
    assert find_weights("small-source").name == "small-source.safetensors"
    assert load_detector(source / "student.safetensors")[1]["network"] == "student"


def test_a_hugging_face_folder_and_the_file_in_it(face):
    detector, facts = load_detector(face)
    assert (
        facts["classes"] == NAMES
        and facts["config"]["data"]["sides"] == [96]
        and facts["config"]["data"]["max_size"] == 160
        and facts["config"]["data"]["size_multiple"] == 32
    )
    again, _ = load_detector(face / "model.safetensors")
    for key, value in detector.state_dict().items():
        assert torch.equal(value, again.state_dict()[key])
    assert describe(face).classes == NAMES and describe(face).backbone == "resnet18"


def test_published_weights_as_pth_and_as_safetensors(published, tmp_path):
    detector, facts = load_detector(published)
    state = torch.load(published, weights_only=True)["model"]
    save_file(
        {key: value.clone(memory_format=torch.contiguous_format) for key, value in state.items()},
        tmp_path / "model.safetensors",
    )
    again, _ = load_detector(tmp_path / "model.safetensors")
    assert set(facts["classes"]) == set(PUBLISHED_CLASSES)
    for key, value in detector.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key


def test_what_it_is_not_is_said(tmp_path, face, source):
    def refused(where) -> str:
        with pytest.raises(MrtError) as error:
            load_detector(where)
        assert "weights_only" not in str(error.value)
        return str(error.value)

    empty = tmp_path / "empty"
    empty.mkdir()
    assert "neither a run folder (it has no run.json) nor a Hugging Face" in refused(empty)
    save_file({"a": torch.zeros(2)}, empty / "x.safetensors")
    assert f"name one: {empty / 'x.safetensors'}" in refused(empty)
    assert "its 1 tensors are named a, ..." in refused(empty / "x.safetensors")
    save_file({"conv1.weight": torch.zeros(2), "fc.weight": torch.zeros(2)}, empty / "r.safetensors")
    assert "holds an image classifier" in refused(empty / "r.safetensors")
    shutil.copy(face / "model.safetensors", empty / "lone.safetensors")
    assert "without its description" in refused(empty / "lone.safetensors")
    (empty / "cut.safetensors").write_bytes((source / "student.safetensors").read_bytes()[:5000])
    assert "cut.safetensors is not a readable weights file" in refused(empty / "cut.safetensors")
    (empty / "text.pth").write_text("hello")
    for name, content, why in (
        ("text.pth", b"hello", "it is no PyTorch file"),
        ("photo.jpg", b"\xff\xd8\xff\xe0", "it is no PyTorch file"),
        ("not.jpg", b"not an image", "it is no PyTorch file"),
        ("nothing.pt", b"", "it is empty"),
        ("cut.pth", b"PK\x03\x04" + bytes(50), "it was cut short"),
        ("nothing.safetensors", b"", "it is no safetensors file, or it was cut short"),
    ):
        (empty / name).write_bytes(content)
        assert f"{name} is not a readable weights file: {why}\n" in refused(empty / name)
    with zipfile.ZipFile(empty / "photos.zip", "w") as archive:
        archive.writestr("photo.jpg", b"a")
    assert "photos.zip is not a readable weights file: it is an archive of other files" in refused(
        empty / "photos.zip"
    )
    (empty / "own.pkl").write_bytes(pickle.dumps({"weights": Path("a")}, protocol=4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "own.pkl" in refused(empty / "own.pkl")
    assert "no run folder, weights file or shipped weights" in refused("nothing") and "coco" in refused(
        "nothing"
    )
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    write_facts(unfinished, {"command": "adapt", "classes": [], "data": {}, "finished": []})
    assert "--resume" in refused(unfinished)


def test_a_file_that_holds_code_is_not_opened(tmp_path):
    ran = tmp_path / "ran"

    class Harm:
        def __reduce__(self):
            return (Path.touch, (ran,))

    torch.save({"model": {"class_embed.0.bias": Harm()}}, tmp_path / "bad.pth")
    with pytest.raises(MrtError) as error:
        load_detector(tmp_path / "bad.pth")
    assert "it was not opened" in str(error.value) and ".safetensors" in str(error.value) and not ran.exists()


def test_an_exported_program_is_not_for_training(tmp_path):
    (tmp_path / "export.json").write_text(json.dumps({"format": "onnx", "file": "model.onnx"}))
    with pytest.raises(MrtError, match="holds a program"):
        load_detector(tmp_path)
    for text in ("{", "[]", '{"format": 3}'):
        (tmp_path / "export.json").write_text(text)
        with pytest.raises(MrtError, match=r"export\.json"):
            load_detector(tmp_path)


class Hub:
    """Stands in for the package huggingface_hub: a hub with one model, or no connection."""

    from huggingface_hub import constants, errors

    def __init__(self, folder: Path | None, cached: Path | None = None) -> None:
        self.folder, self.cached, self.asked = folder, cached, []

    def get_session(self) -> Hub:
        return self

    def head(self, url: str, timeout: float) -> None:
        if self.folder is None:
            raise ConnectionError("Network is unreachable")

    def HfApi(self) -> Hub:
        return self

    def list_repo_files(self, name: str, revision: str | None = None) -> list[str]:
        return [file.name for file in self.folder.iterdir()]

    def snapshot_download(
        self, name: str, revision: str | None = None, allow_patterns=None, local_files_only: bool = False
    ) -> str:
        self.asked.append((name, revision, allow_patterns))
        if local_files_only:
            if self.cached is None:
                raise self.errors.LocalEntryNotFoundError("not cached")
            return str(self.cached)
        return str(self.folder)


def test_a_model_of_the_hub(face, monkeypatch):
    there = Hub(face)
    monkeypatch.setattr(hub, "_library", lambda: there)
    assert load_detector("hf:some/one@v1")[1]["classes"] == NAMES
    assert there.asked == [
        ("some/one", "v1", ["config.json", "preprocessor_config.json", "model.safetensors"])
    ]
    assert load_detector("coco")[1]["classes"] == NAMES
    assert there.asked[-1][0] == "SenseTime/deformable-detr-with-box-refine-two-stage"
    assert holds_detector("coco") and holds_detector("hf:some/one") and not holds_detector("imagenet")


def test_the_hub_without_a_connection(face, monkeypatch):
    monkeypatch.setattr(hub, "_library", lambda: Hub(None, cached=face))
    assert load_detector("hf:some/one")[1]["classes"] == NAMES  # from the cache
    monkeypatch.setattr(hub, "_library", lambda: Hub(None))
    with pytest.raises(MrtError) as error:
        load_detector("coco")
    assert "could not be downloaded" in str(error.value) and "Network is unreachable" in str(error.value)
    assert "hf download SenseTime/deformable-detr-with-box-refine-two-stage --local-dir" in str(error.value)
    with pytest.raises(MrtError, match="not the name of a model"):
        load_detector("hf:nonsense")


def test_the_real_library_without_a_connection(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(MrtError, match="could not be downloaded"):
        hub.fetch("hf:nobody/nothing")


def test_class_columns_go_by_name():
    assert column_of("Traffic_Light", NAMES) == 1 and column_of("truck", NAMES) is None
    theirs = {
        "class_embed.weight": torch.arange(6.0).view(3, 2),
        "class_embed.bias": torch.arange(3.0),
        "a": torch.ones(1),
    }
    ours = {
        "class_embed.weight": torch.full((2, 2), -1.0),
        "class_embed.bias": torch.full((2,), -1.0),
        "a": torch.zeros(1),
    }
    state = by_name(theirs, NAMES, ours, ["person", "truck"])
    assert state["class_embed.weight"].tolist() == [[4.0, 5.0], [-1.0, -1.0]] and state[
        "class_embed.bias"
    ].tolist() == [2.0, -1.0]
    assert state["a"] == 1


def test_a_run_starts_from_a_detector_of_other_classes(tmp_path, source):
    make_set(tmp_path / "data", "other", seed=3, classes=("Green", "blue"))
    listener = Listener()
    config = tiny_config(**{"data.source": "other", "pretrain.lr": 1e-12})
    run = stages.pretrain_source(
        config, tmp_path / "run", init=str(source), data_root=tmp_path / "data", watcher=listener
    )
    theirs, _ = load_detector(source, which="auto")
    ours, facts = load_detector(run, which="student")
    assert facts["classes"] == ["Green", "blue"]
    for mine, old in zip(ours.class_embed, theirs.class_embed, strict=True):
        assert torch.allclose(mine.bias[0], old.bias[1], atol=1e-5) and not torch.allclose(
            mine.weight[1], old.weight[0], atol=1e-3
        )
        assert torch.allclose(mine.weight[0], old.weight[1], atol=1e-5)
    (line,) = [line for line in listener.lines if "known to it by name" in line]
    said = (
        "1 of 2 classes are known to it by name; new, to be learned from the beginning: blue; not wanted here"
    )
    assert said in line and "red" in line and line.endswith("All other weights are kept")
    kept, now = dict(theirs.named_parameters()), dict(ours.named_parameters())
    assert kept.keys() == now.keys()
    for name, value in now.items():
        if not name.startswith("class_embed."):
            torch.testing.assert_close(value, kept[name], rtol=0, atol=1e-5, msg=name)


def test_a_detector_says_which_of_its_weights_are_of_classes():
    theirs = {"head.weight": torch.tensor([[1.0], [2.0]]), "class_embed.weight": torch.tensor([[3.0], [4.0]])}
    ours = {name: torch.zeros_like(value) for name, value in theirs.items()}
    state = by_name(theirs, ["a", "b"], ours, ["b", "c"], heads=("head.",))
    assert state["head.weight"].tolist() == [[2.0], [0.0]]
    assert state["class_embed.weight"].tolist() == [[3.0], [4.0]]  # any other weight is kept


def test_a_long_list_of_new_classes_is_cut():
    told = told_by_name(["a"], ["A", *(f"b{number}" for number in range(80))])
    assert told.startswith(
        "1 of 81 classes are known to it by name; new, to be learned from the beginning: b0"
    )
    assert "b11 and 68 more" in told and "not wanted" not in told


def test_another_network_is_refused_with_the_settings_that_fit(source, tmp_path, world):
    with pytest.raises(MrtError) as error:
        stages.adapt(
            tiny_config(**{"model.num_queries": 9}), tmp_path / "run", init=str(source), data_root=world
        )
    assert "--set model.num_queries=8" in str(error.value) and not (tmp_path / "run").exists()
    require_fit(tiny_config().model, describe(source), source)


def test_the_settings_that_a_message_names_do_fit():
    with pytest.raises(MrtError) as error:
        require_fit(load_config("city2foggy").model, describe("small-source"), "small-source")
    assert "model.freeze=all" in error.value.hint
    words = error.value.hint.removeprefix("take its settings: --set ").split()
    config = load_config("city2foggy", words)
    require_fit(config.model, describe("small-source"), "small-source")
    trained, facts = load_detector("small-source")
    built = build.build_detector(config, facts["classes"], filled="checkpoint")
    ours, theirs = built.state_dict(), trained.state_dict()
    assert {key: value.shape for key, value in ours.items()} == {
        key: value.shape for key, value in theirs.items()
    }


def test_weights_that_others_overwrite_are_not_asked_for(world, tmp_path, monkeypatch):
    plain = {"model.backbone": "resnet18", "model.weights": "none"}
    run = stages.pretrain_source(tiny_config(**plain), tmp_path / "source", data_root=world)

    def never(*_):
        raise AssertionError("ImageNet weights were asked for")

    monkeypatch.setattr("mrt.models.backbone.classifier_state", never)
    asking = tiny_config(**{**plain, "model.weights": "imagenet"})
    with pytest.raises(AssertionError):
        stages.pretrain_source(asking, tmp_path / "new", data_root=world)
    with pytest.raises(
        MrtError, match=r"--set model\.weights=none"
    ):  # such a network has other norms: the init's own error
        stages.adapt(asking, tmp_path / "run", init=str(run), data_root=world)


def test_a_whole_detector_as_the_model_s_weights(world, tmp_path, source):
    config = tiny_config(**{"model.weights": str(source), "pretrain.lr": 1e-12})
    run = stages.pretrain_source(config, tmp_path / "run", data_root=world)
    theirs, _ = load_detector(source)
    ours, _ = load_detector(run, which="student")
    for key, value in theirs.state_dict().items():
        if value.is_floating_point() and "running" not in key:
            assert torch.allclose(value, ours.state_dict()[key], atol=1e-4), key


@pytest.mark.parametrize("backbone", ["resnet18", "test_efficientnet"])
def test_leaving_pretrained_weights_out_draws_the_same_random_numbers(backbone, monkeypatch):
    """So that a run's masks and dropout do not depend on whether its backbone's weights were read or filled
    in later.
    """
    import timm

    def fake(name: str):
        import torchvision

        if name.startswith("resnet"):  # torchvision reads the file without making a network
            with torch.random.fork_rng(devices=[]):
                return torchvision.models.get_model(name, weights=None).state_dict()
        return timm.create_model(name).state_dict()

    monkeypatch.setattr("mrt.models.backbone.classifier_state", lambda name, weights: fake(name))
    config = load_config("small", changes={"model.backbone": backbone, "model.freeze": "stem"})
    drawn = []
    for filled in (None, "checkpoint"):
        torch.manual_seed(3)
        build.build_detector(config, ["a", "b"], filled=filled)
        drawn.append(torch.rand(3))
    assert torch.equal(*drawn)


def test_a_run_starts_from_a_hugging_face_folder_without_imagenet(face, tmp_path, monkeypatch):
    def never(*_):
        raise AssertionError("ImageNet weights were asked for")

    monkeypatch.setattr("mrt.models.backbone.classifier_state", never)
    make_set(tmp_path / "data", "streets", seed=3, classes=("person", "car"))
    about = describe(face)
    shape = {
        f"model.{key}": value
        for key, value in about.arguments.items()
        if key in load_config("own").model.model_dump()
    }
    config = tiny_config(
        **{**shape, "model.backbone": about.backbone, "model.weights": "imagenet", "model.freeze": "stem"}
    )
    config = config.model_copy(update={"data": config.data.model_copy(update={"source": "streets"})})
    listener = Listener()
    run = stages.pretrain_source(
        config, tmp_path / "run", init=str(face), data_root=tmp_path / "data", watcher=listener
    )
    assert any("2 of 2 classes are known to it by name" in line for line in listener.lines)
    ours, _ = load_detector(run, which="student")
    theirs, _ = load_detector(face)
    frozen = "backbone.body.layer1.0.conv1.weight"
    assert torch.equal(ours.state_dict()[frozen], theirs.state_dict()[frozen])
    from mrt.engine.inference import evaluate_detector

    found = evaluate_detector(face, data="streets", data_root=tmp_path / "data")
    assert found.metrics.num_boxes > 0 and found.dataset.classes == tuple(NAMES)
