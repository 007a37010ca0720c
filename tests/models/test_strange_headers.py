"""Weights files of strangers: whatever they say of themselves, they are read or refused in words, at once."""

from __future__ import annotations

import json
import shutil
import time

import pytest
import torch
from header_mutations import METADATA, SIZES, content, mutations, small_file
from model_cases import official, random_state, small_backbone, small_detector
from safetensors.torch import load_file

from mrt.engine.load import describe, load_detector, settings_of, source_record
from mrt.errors import MrtError
from mrt.models.huggingface import describe_huggingface, load_huggingface, write_huggingface
from mrt.models.pretrained import read_state
from mrt.models.published import describe_published, load_published
from mrt.models.weights import load_weights, read_header

NUMBER = 120  # of mutated descriptions here; `make soak` tries 100,000
LIMIT = 5.0  # seconds that one may take


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """The description and tensors of a small file."""
    path = tmp_path_factory.mktemp("own") / "own.safetensors"
    small_file(path)
    return read_header(path), {name: value.clone() for name, value in load_file(path).items()}


def changed(own, path, **changes):
    """Write the file with fields changed ("detector.num_heads"); returns its path."""
    header = json.loads(json.dumps(own[0]))
    for place, value in changes.items():
        *nodes, last = place.split(".")
        node = header
        for name in nodes:
            node = node[name]
        node.pop(last) if value is ... else node.__setitem__(last, value)
    path.write_bytes(content(json.dumps(header), own[1], sealed=True))
    return path


@pytest.mark.parametrize("value", [2147483648, 10**30, 3, 1, 0, -1, 2.0, "2", None, True, [2], float("nan")])
@pytest.mark.parametrize(
    "name",
    [
        "num_classes",
        "hidden_dim",
        "num_heads",
        "num_encoder_layers",
        "num_decoder_layers",
        "feedforward_dim",
        "num_levels",
        "num_points",
        "num_queries",
    ],
)
def test_a_size_that_the_tensors_do_not_have_is_refused_before_it_is_built(own, tmp_path, name, value):
    if value == SIZES[name] and type(value) is int:
        pytest.skip("that is its size")
    path = changed(own, tmp_path / "x.safetensors", **{f"detector.{name}": value})
    start = time.perf_counter()
    with pytest.raises(MrtError, match=r"x\.safetensors: (detector\.|metadata.classes)") as error:
        load_weights(path)
    assert time.perf_counter() - start < 1
    assert len(error.value.message) < 600


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        ("detector", [], r"detector is \[\]"),
        ("detector", ..., "detector is missing"),
        ("detector.num_classes", ..., "detector.num_classes is missing: the description lacks it"),
        ("detector.surprise", 1, "detector.surprise is 1: there is no such field"),
        ("detector.dropout", 1, "detector.dropout is 1: not a number from 0"),
        ("detector.class_prior", 0, "detector.class_prior is 0: not a number between"),
        ("detector.box_refine", "false", 'detector.box_refine is "false": neither true nor false'),
        ("detector.two_stage", True, "its tensors do not fit the detector"),
        ("detector.query_init", "grid", "its tensors do not fit the detector"),
        ("detector.query_init", "odd", 'detector.query_init is "odd"'),
        ("backbone", "resnet50", 'backbone is "resnet50"'),
        ("backbone.name", "resnet1000000", 'x.safetensors: backbone "resnet1000000" is unknown'),
        ("backbone.name", "resnet50", "its tensors do not fit the detector"),
        ("backbone.name", 3, "backbone.name is 3"),
        ("backbone.levels", 4, "backbone.levels is 4: not 1, 2 or 3"),
        ("backbone.freeze", "much", 'backbone.freeze is "much": none of'),
        ("backbone.fingerprint", "zz", 'backbone.fingerprint is "zz"'),
        ("backbone.pretrained", ..., "backbone.pretrained is missing"),
        ("slim", "no", 'slim is "no"'),
        ("kind", "yolo", "x.safetensors: detector 'yolo': there is none of that kind"),
        ("kind", 7, "kind is 7"),
        ("format", "3", 'format is "3"'),
        ("format", True, "format is true"),
        ("format", 4, "is of format 4, which a newer mrt has written"),
        ("format", 0, "format is 0"),
        ("metadata", None, "metadata is missing"),
        ("metadata.classes", "car", 'metadata.classes is "car": not a list of different names'),
        ("metadata.classes", ["car", 3], "metadata.classes is"),
        ("metadata.classes", ["car", "car"], "metadata.classes is"),
        ("metadata.classes", ["car", "\x1b[31m"], "metadata.classes is"),
        ("metadata.classes", ["car", "\ud800"], "not a text that can be written"),
        ("metadata.classes", ["car"], "metadata.classes is .*: 1 names of a detector of 2"),
        ("metadata.network", "../x", 'metadata.network is "../x"'),
        ("metadata.config", [], r"metadata.config is \[\]"),
        ("metadata.config.data", 3, "metadata.config.data is 3"),
        ("metadata.config.data.sides", [2147483648], "metadata.config.data.sides is"),
        ("metadata.config.data.sides", "64", "metadata.config.data.sides is"),
        ("metadata.config.data.max_size", -1, "metadata.config.data.max_size is -1"),
        ("metadata.config.data.size_multiple", 0, "metadata.config.data.size_multiple is 0"),
        ("metadata.config.method", 3, "metadata.config.method is 3"),
        ("metadata.thresholds", {"car": 0.3}, "metadata.thresholds is"),
        ("metadata.thresholds.car", float("nan"), r"metadata.thresholds.car = NaN: not a finite number"),
        ("metadata.thresholds.car", "0.3", "metadata.thresholds is"),
        ("metadata.run", "adapt", 'metadata.run is "adapt"'),
        ("metadata.run.data.target", 5, "metadata.run.data.target is 5"),
        ("metadata.run.data.target.sha256", {"val": 5}, "metadata.run.data.target.sha256 is 5"),
    ],
)
def test_a_wrong_field_is_named_with_its_value(own, tmp_path, place, value, words):
    path = changed(own, tmp_path / "x.safetensors", **{place: value})
    with pytest.raises(MrtError, match=words) as error:
        load_weights(path)
    assert str(path) in error.value.message and error.value.hint


def test_a_detector_without_class_names_is_refused(own, tmp_path):
    path = changed(own, tmp_path / "x.safetensors", **{"metadata.classes": ..., "metadata.thresholds": ...})
    assert load_weights(path)[0].num_classes == 2
    for read in (load_detector, describe):
        with pytest.raises(MrtError, match=r"metadata\.classes is missing"):
            read(path)


def test_texts_that_are_no_json_are_refused(own, tmp_path):
    path = tmp_path / "x.safetensors"
    for text in (
        "",
        "{",
        "[]",
        "3",
        "null",
        "[" * 100_000,
        '{"format": 1e999}',
        f'{{"format": {"9" * 5000}}}',
    ):
        for sealed in (False, True):
            path.write_bytes(content(text, own[1], sealed))
            with pytest.raises(MrtError, match=r"x\.safetensors"):
                load_detector(path)


def test_mutated_descriptions_are_read_or_refused(own, tmp_path):
    path, counts = tmp_path / "x.safetensors", {"read": 0, "refused": 0}
    for number, text in enumerate(mutations(own[0], seed=11, number=NUMBER)):
        path.write_bytes(content(text, own[1], sealed=number % 2 == 0))
        start = time.perf_counter()
        try:
            _, facts = load_detector(path)
            counts["read"] += 1
            assert len(set(facts["classes"])) == 2
        except MrtError as error:
            counts["refused"] += 1
            assert "x.safetensors" in error.message and len(error.message) < 2000, text
        for read in (describe, settings_of, source_record):
            try:
                read(str(path))
            except MrtError as error:
                assert error.message
        assert time.perf_counter() - start < LIMIT, text
    assert min(counts.values()) > NUMBER // 20, counts


# --- checkpoints of others


def test_a_tensor_that_repeats_one_number_is_refused(tmp_path):
    torch.save({"query_embed.weight": torch.zeros(1, 1).expand(10**9, 512)}, tmp_path / "x.pth")
    assert (tmp_path / "x.pth").stat().st_size < 5000
    with pytest.raises(
        MrtError, match=r"x\.pth: query_embed\.weight of shape \(1000000000, 512\) is no plain"
    ):
        load_detector(tmp_path / "x.pth")
    torch.save({"a": torch.eye(3).to_sparse()}, tmp_path / "sparse.pth")
    with pytest.raises(MrtError, match="is no plain array"):
        read_state(tmp_path / "sparse.pth")
    torch.save({1: torch.zeros(2)}, tmp_path / "keys.pth")
    with pytest.raises(MrtError, match="1 is not a name"):
        read_state(tmp_path / "keys.pth")


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("class_embed.0.bias", torch.tensor(1.0), "class_embed.0.bias is of shape"),
        ("class_embed.0.bias", torch.zeros(50_000), "class heads of one detector"),
        ("class_embed.3.weight", torch.zeros(2, 256), "class_embed.3.weight is of shape"),
        ("query_embed.weight", torch.tensor(1.0), "query_embed.weight is of shape"),
        ("query_embed.weight", torch.zeros(300, 512, 1), "query_embed.weight is of shape"),
        ("query_embed.weight", torch.zeros(0, 512), "query_embed.weight is of shape"),
    ],
)
def test_published_sizes_that_do_not_belong_together_are_refused(tmp_path, name, value, words):
    state = official(random_state("state_dict_keys_r50.txt"))
    state = {key: tensor for key, tensor in state.items() if "backbone" not in key or "conv1" in key}
    torch.save({"model": state | {name: value}}, tmp_path / "x.pth")
    with pytest.raises(MrtError, match=words) as error:
        describe_published(tmp_path / "x.pth")
    heads = {key: torch.zeros(10**6) for key in state if key.startswith("class_embed")}
    torch.save({"model": state | heads}, tmp_path / "wide.pth")
    with pytest.raises(MrtError, match="which no published detector has"):
        describe_published(tmp_path / "wide.pth")
    assert "x.pth" in error.value.message
    if "class_embed" in name:
        with pytest.raises(MrtError, match="class heads of one detector"):
            load_published(small_detector(num_levels=4), state | {name: value})


@pytest.fixture(scope="module")
def face(tmp_path_factory):
    """A small detector in Hugging Face's layout."""
    folder = tmp_path_factory.mktemp("face") / "model"
    detector = small_detector(small_backbone(weights="checkpoint"))
    write_huggingface(folder, detector, ["a", "b", "c"], short_side=64, max_size=96, card="")
    return folder


@pytest.mark.parametrize("value", [10**9, 2**31, 10**30, -1, 0, 1.5, "8", True, [1], {}])
@pytest.mark.parametrize(
    "name",
    [
        "num_queries",
        "d_model",
        "encoder_layers",
        "decoder_layers",
        "encoder_ffn_dim",
        "encoder_attention_heads",
        "encoder_n_points",
        "num_feature_levels",
    ],
)
def test_sizes_in_a_config_that_the_weights_do_not_have_are_refused(face, tmp_path, name, value):
    if (name, value) == ("encoder_layers", 0):
        value = 77
    folder = tmp_path / "model"
    shutil.copytree(face, folder)
    config = json.loads((folder / "config.json").read_text())
    config[name] = value
    for other in ("attention_heads", "n_points", "ffn_dim"):  # these must be equal in both stacks
        if name == f"encoder_{other}":
            config[f"decoder_{other}"] = value
    (folder / "config.json").write_text(json.dumps(config))
    start = time.perf_counter()
    with pytest.raises(MrtError, match=r"config\.json") as error:
        load_huggingface(folder)
    assert time.perf_counter() - start < LIMIT and error.value.hint


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"id2label": None, "num_labels": 10**9}, "num_labels is 1000000000; it must be"),
        ({"dropout": float("nan")}, "dropout is NaN"),
        ({"dropout": 10**400}, "is no JSON file|dropout is"),
        ({"backbone": "vit_7b"}, "timm has no model|gives no feature maps"),
        ({"id2label": {"0": "a", "1": "\ud800", "2": "c"}}, "id2label is"),
        ({"id2label": {"0": "a", "1": "\x1b[31m", "2": "c"}}, "id2label is"),
        ({"num_feature_levels": 10**6}, "num_feature_levels is 1000000"),
    ],
)
def test_a_config_of_a_stranger_is_refused_in_words(face, tmp_path, changes, words):
    folder = tmp_path / "model"
    shutil.copytree(face, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    start = time.perf_counter()
    with pytest.raises(MrtError, match=words):
        load_detector(folder)
    assert time.perf_counter() - start < LIMIT


def test_mutated_configs_are_read_or_refused(face, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(face, folder)
    config, counts = json.loads((folder / "config.json").read_text()), {"read": 0, "refused": 0}
    for text in mutations(config, seed=12, number=NUMBER // 8):
        (folder / "config.json").write_text(text, encoding="utf-8")
        start = time.perf_counter()
        try:
            load_huggingface(folder)
            counts["read"] += 1
        except MrtError as error:
            counts["refused"] += 1
            assert str(folder) in error.message and len(error.message) < 2000, text
        assert time.perf_counter() - start < LIMIT, text
    assert min(counts.values()) > NUMBER // 200, counts


def test_bits_of_a_folder_s_weights_that_have_flipped_are_noticed(face, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(face, folder)
    whole = (folder / "model.safetensors").read_bytes()
    for place in (len(whole) - 1, len(whole) // 2, len(whole) // 3):
        changed_bytes = bytearray(whole)
        changed_bytes[place] ^= 1
        (folder / "model.safetensors").write_bytes(bytes(changed_bytes))
        with pytest.raises(MrtError, match=r"model\.safetensors: changed since it was written"):
            load_detector(folder)


def test_deep_json_is_refused(face, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(face, folder)
    (folder / "config.json").write_text('{"a":' * 100_000)
    with pytest.raises(MrtError):
        load_detector(folder)
    with pytest.raises(MrtError, match=r"config\.json is no JSON file: it is nested too deeply"):
        describe_huggingface(folder)
    (folder / "config.json").write_text((face / "config.json").read_text())
    for text in ('{"rescale_factor": 1' + "0" * 400 + "}", '{"size": {"shortest_edge": 1e9}}', "[" * 99_999):
        (folder / "preprocessor_config.json").write_text(text)
        with pytest.raises(MrtError, match=r"preprocessor_config\.json"):
            load_huggingface(folder)


def test_weights_of_a_folder_that_are_not_finite_are_named(face, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(face, folder)
    state = {name: value.clone() for name, value in load_file(folder / "model.safetensors").items()}
    state["model.level_embed"][0, 0] = torch.nan
    from safetensors.torch import save_file

    save_file(state, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(MrtError, match=r"model\.safetensors: model\.level_embed is not finite: 1 values"):
        load_detector(folder)


def test_the_metadata_of_an_unchanged_file_comes_back(own, tmp_path):
    assert load_detector(changed(own, tmp_path / "x.safetensors"))[1]["thresholds"] == METADATA["thresholds"]
