"""Weights files that are no longer what was written: single bits, truncation, numbers that are not finite."""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path
from random import Random

import pytest
import torch
from header_mutations import METADATA, small_file
from model_cases import small_detector
from safetensors import safe_open
from safetensors.torch import load_file, save, save_file

from mrt.engine.load import load_detector
from mrt.errors import MrtError
from mrt.models.digest import SHA256, TEXT, TEXT_SHA256
from mrt.models.mae import MaskedAutoencoder
from mrt.models.published import load_published, published_state
from mrt.models.sealed import FORMAT, pack, read_sealed
from mrt.models.weights import load_weights, read_header, save_weights
from mrt.parts.rebuild import FILE, load_autoencoder, save_autoencoder

SHIPPED = Path(__file__).parents[2] / "mrt" / "weights" / "small-source.safetensors"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A small weights file."""
    path = tmp_path_factory.mktemp("weights") / "student.safetensors"
    small_file(path)
    return path


def branch(**options):
    sizes = {"hidden_dim": 8, "num_heads": 2, "num_points": 1, "num_levels": 1, "feedforward_dim": 8}
    torch.manual_seed(1)
    return MaskedAutoencoder(**{**sizes, "num_layers": 1, "out_channels": 4, "image_size": (2, 3), **options})


def flipped(content: bytes, bit: int) -> bytes:
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def bits(content: bytes, number: int, seed: int) -> list[int]:
    """Half of them anywhere, half in the part before the tensors."""
    random, head = Random(seed), 8 + int.from_bytes(content[:8], "little")
    half = number // 2
    return [random.randrange(8 * len(content)) for _ in range(half)] + [
        random.randrange(8 * head) for _ in range(half)
    ]


def test_files_hold_checksums_and_are_the_same_every_time(written, tmp_path):
    small_file(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == written.read_bytes()
    with safe_open(written, framework="pt") as file:
        assert sorted(file.metadata()) == [TEXT, SHA256, TEXT_SHA256]
        assert json.loads(file.metadata()[TEXT])["format"] == FORMAT == 3


def test_every_flipped_bit_of_a_weights_file_is_noticed(written, tmp_path):
    content, header, state = written.read_bytes(), read_header(written), load_file(written)
    path, refused = tmp_path / "flipped.safetensors", 0
    for bit in bits(content, 300, seed=3):
        path.write_bytes(flipped(content, bit))
        try:
            described, tensors = read_sealed(path)
        except MrtError:
            refused += 1
            with pytest.raises(MrtError):
                load_weights(path)
        else:
            assert read_header(path) == header == {"kind": "deformable_detr", **described}
            assert set(tensors) == set(state)
            assert all(torch.equal(tensors[name], value) for name, value in state.items())
        with contextlib.suppress(MrtError):  # whoever reads the header alone never gets another
            assert read_header(path) == header
    assert refused > 295


def test_every_flipped_bit_of_an_autoencoder_is_noticed(tmp_path):
    saved = branch()
    save_autoencoder(tmp_path, saved)
    content, refused = (tmp_path / FILE).read_bytes(), 0
    for bit in bits(content, 300, seed=4):
        (tmp_path / FILE).write_bytes(flipped(content, bit))
        fresh = branch()
        for value in fresh.state_dict().values():
            value.zero_()
        try:
            assert load_autoencoder(tmp_path, fresh)
        except MrtError as error:
            assert FILE in error.message
            refused += 1
        else:
            assert all(torch.equal(a, b) for a, b in zip(*states(saved, fresh), strict=True))
    assert refused > 295


def states(*modules):
    return [list(module.state_dict().values()) for module in modules]


@pytest.mark.parametrize("kind", ["detector", "autoencoder"])
def test_truncated_files_are_refused(written, tmp_path, kind):
    if kind == "autoencoder":
        save_autoencoder(tmp_path, branch())
        content, path = (tmp_path / FILE).read_bytes(), tmp_path / FILE
    else:
        content, path = written.read_bytes(), tmp_path / "cut.safetensors"
        content = content[:20_000] + content[-20_000:]  # what is cut off is missed wherever the cut is
    for length in range(0, len(content), 100):
        path.write_bytes(content[:length])
        with pytest.raises(MrtError, match=re.escape(str(path))):
            load_autoencoder(tmp_path, branch()) if kind == "autoencoder" else load_weights(path)


def test_what_has_changed_is_said_with_what_to_do(written, tmp_path):
    content, path = written.read_bytes(), tmp_path / "x.safetensors"
    path.write_bytes(flipped(content, 8 * len(content) - 1))
    with pytest.raises(MrtError, match="changed since it was written: its tensors") as error:
        load_detector(path)
    assert "--resume" in error.value.hint
    path.write_bytes(content.replace(b"car", b"cat", 1))
    for read in (read_header, load_weights, load_detector):
        with pytest.raises(MrtError, match="changed since it was written: its class names"):
            read(path)
    for name in (TEXT, TEXT_SHA256, SHA256):
        other = name[:-1] + "_"
        path.write_bytes(content.replace(f'"{name}"'.encode(), f'"{other}"'.encode(), 1))
        with pytest.raises(MrtError, match="changed since it was written"):
            load_detector(path)


@pytest.mark.parametrize("number", [1, 2])
def test_files_of_before_without_checksums_still_load(written, tmp_path, number):
    with safe_open(written, framework="pt") as file:
        header = json.loads(file.metadata()[TEXT])
    old = {key: value for key, value in header.items() if key != "kind" or number > 1}
    path = tmp_path / "old.safetensors"
    path.write_bytes(save(load_file(written), {TEXT: json.dumps({**old, "format": number})}))
    detector, metadata = load_weights(path)
    assert metadata == METADATA and detector.kind == "deformable_detr"
    path.write_bytes(save(load_file(written), {TEXT: json.dumps(header)}))  # one of format 3 must have them
    with pytest.raises(MrtError, match="changed since it was written"):
        load_weights(path)


def test_an_autoencoder_of_before_still_loads(tmp_path):
    saved, fresh = branch(), branch()
    save_file(saved.state_dict(), tmp_path / FILE)
    for value in fresh.state_dict().values():
        value.zero_()
    assert load_autoencoder(tmp_path, fresh)
    assert all(torch.equal(a, b) for a, b in zip(*states(saved, fresh), strict=True))


def test_the_shipped_weights_are_sealed():
    described, state = read_sealed(SHIPPED)
    assert described["format"] == FORMAT and len(state) == 135


def test_a_missing_autoencoder_or_one_of_another_shape_is_none(tmp_path):
    assert not load_autoencoder(tmp_path, branch())
    save_autoencoder(tmp_path, branch())
    for other in ({"num_layers": 2}, {"image_size": (3, 3)}, {"variant": "paper"}, {"out_channels": 5}):
        assert not load_autoencoder(tmp_path, branch(**other))
    save_autoencoder(tmp_path, branch(variant="paper"))
    assert not load_autoencoder(tmp_path, branch())
    for normalised in (True, False):  # on one side only
        save_autoencoder(tmp_path, branch(normalise=normalised))
        assert not load_autoencoder(tmp_path, branch(normalise=not normalised))
        assert load_autoencoder(tmp_path, branch(normalise=normalised))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: state | {"surprise": torch.zeros(2)}, "surprise is not one of its tensors"),
        (lambda state: {k: v for k, v in state.items() if k != "output_proj.bias"}, "lacks output_proj.bias"),
        (lambda state: {k: v for k, v in state.items() if k != "query_embed.weight"}, "lacks query_embed"),
        (lambda state: state | {"statistics.mean": torch.zeros(4)}, "lacks statistics.added"),
        (
            lambda state: {k: v for k, v in state.items() if k != "layers.0.norm1.bias"},
            "lacks layers.0.norm1",
        ),
        (lambda state: {k: v.long() for k, v in state.items()}, "does not hold fractions"),
        (
            lambda state: state | {"output_proj.bias": torch.full((4,), torch.nan)},
            "output_proj.bias is not fin",
        ),
    ],
)
def test_what_is_no_autoencoder_is_refused(tmp_path, change, words):
    state = {name: value.clone() for name, value in branch().state_dict().items()}
    save_file(change(state), tmp_path / FILE)
    with pytest.raises(MrtError, match=words) as error:
        load_autoencoder(tmp_path, branch())
    assert str(tmp_path / FILE) in error.value.message and error.value.hint


def test_each_file_says_what_it_holds(written, tmp_path):
    save_autoencoder(tmp_path, branch())
    with pytest.raises(MrtError, match="holds a masked autoencoder, not a detector"):
        load_detector(tmp_path / FILE)
    (tmp_path / FILE).write_bytes(written.read_bytes())
    with pytest.raises(MrtError, match="not a masked autoencoder"):
        load_autoencoder(tmp_path, branch())
    (tmp_path / FILE).write_text("no tensors")
    with pytest.raises(MrtError, match="not a weights file"):
        load_autoencoder(tmp_path, branch())


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_our_weights_that_are_not_finite_are_named(tmp_path, value):
    detector = small_detector()
    detector.query_embed.weight.data[3, 4:6] = value
    save_weights(tmp_path / "dead.safetensors", detector, {"classes": ["a", "b", "c"]})
    with pytest.raises(
        MrtError, match=r"dead\.safetensors: query_embed\.weight is not finite: 2 values in 1 of"
    ):
        load_detector(tmp_path / "dead.safetensors")


def test_published_weights_that_are_not_finite_are_named(tmp_path):
    detector = small_detector(num_levels=4)
    state = published_state(detector, checkpoint_classes=("a", "b", "c"))
    state["transformer.level_embed"][0, 0] = torch.nan
    with pytest.raises(MrtError, match=r"transformer\.level_embed is not finite: 1 values"):
        load_published(detector, state, classes=("a", "b", "c"), checkpoint_classes=("a", "b", "c"))
    torch.save({"model": state}, tmp_path / "dead.pth")
    with pytest.raises(MrtError, match=r"dead\.pth: transformer\.level_embed is not finite"):
        load_published(detector, tmp_path / "dead.pth")
    with pytest.raises(MrtError, match=r"dead\.pth: transformer\.level_embed is not finite"):
        load_detector(tmp_path / "dead.pth")


def test_a_backbone_that_is_not_finite_is_named(tmp_path):
    import torchvision

    from mrt.models.backbone import build_backbone

    state = torchvision.models.resnet18(weights=None).state_dict()
    state["bn1.running_var"][2] = torch.inf
    torch.save(state, tmp_path / "r18.pth")
    with pytest.raises(MrtError, match=r"r18\.pth: bn1\.running_var is not finite"):
        build_backbone("resnet18", weights=str(tmp_path / "r18.pth"))


def test_numbers_that_are_not_finite_cannot_be_stored():
    described = {"format": FORMAT, "metadata": {"thresholds": {"car": float("nan")}}}
    with pytest.raises(MrtError, match=r"metadata\.thresholds\.car = NaN: not a finite number"):
        pack(described, {})
