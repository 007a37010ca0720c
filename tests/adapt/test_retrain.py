from __future__ import annotations

import pytest
import torch
from torch import nn

from mrt.adapt import kept_words, reinit_state, restore
from mrt.errors import MrtError


class Detector(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.BatchNorm2d(2)
        self.transformer = nn.ModuleDict(
            {"encoder": nn.Linear(2, 2), "decoder": nn.Linear(2, 2), "mae_decoder": nn.Linear(2, 2)}
        )
        self.class_embed = nn.Linear(2, 3)
        self.domain_pred_dec = nn.Linear(2, 2)


@pytest.mark.parametrize(
    ("parts", "keep"),
    [
        ("none", None),
        ("all", ()),
        ("E+D", ("backbone",)),
        ("B+D", ("encoder",)),
        ("B+E", ("decoder",)),
        ("e+b", ("decoder",)),
        ("encoder+backbone", ("decoder",)),
        ("B", ("encoder", "decoder")),
        ("B+E+D", ()),
    ],
)
def test_parts_of_the_papers_table(parts: str, keep: tuple | None) -> None:
    assert kept_words(parts) == keep


@pytest.mark.parametrize("parts", ["", "B+X", "B+B", "BE", "head"])
def test_unknown_parts(parts: str) -> None:
    with pytest.raises(MrtError, match="B\\+E"):
        kept_words(parts)


def test_restore_brings_back_values_and_keeps_the_tensors() -> None:
    student = Detector()
    saved = reinit_state(student, "B+E")
    start = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    optimiser = torch.optim.AdamW(student.parameters(), lr=0.1)
    sum(parameter.sum() for parameter in student.parameters()).backward()
    optimiser.step()
    trained = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    names = restore(student, saved)
    assert {
        "backbone.weight",
        "backbone.running_mean",
        "transformer.encoder.weight",
        "class_embed.bias",
    } <= set(names)
    for name, tensor in student.state_dict().items():
        assert torch.equal(tensor, start[name] if name in names else trained[name])
    assert not any("decoder" in name or "domain" in name for name in names)
    assert optimiser.param_groups[0]["params"][0] is student.backbone.weight
    assert restore(student, saved) == names  # as often as wanted


def test_a_whole_state_goes_back_but_for_what_is_kept() -> None:
    student = Detector()
    whole = {name: torch.ones_like(tensor) for name, tensor in student.state_dict().items()}
    names = restore(student, whole, keep=("encoder",))
    assert "backbone.weight" in names and "transformer.decoder.weight" in names
    assert not any(word in name for name in names for word in ("encoder", "mae", "domain"))


def test_what_was_asked_for_goes_back_whatever_its_name() -> None:
    """A detector of one's own may call a layer of its backbone "cross_domain" or "mae_stem"."""
    student = nn.ModuleDict({"mae_stem": nn.Linear(2, 2), "cross_domain": nn.Linear(2, 2)})
    assert restore(student, {"mae_stem.bias": torch.ones(2), "cross_domain.bias": torch.ones(2)}) == [
        "mae_stem.bias",
        "cross_domain.bias",
    ]
    assert student["mae_stem"].bias.tolist() == student["cross_domain"].bias.tolist() == [1.0, 1.0]


def test_none_restores_nothing() -> None:
    student = Detector()
    assert restore(student, reinit_state(student, "none")) == []


def test_state_of_another_detector() -> None:
    student, saved = Detector(), reinit_state(Detector())
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    for name, tensor, words in [
        ("class_embed.bias", torch.zeros(9), r"\(9,\)"),
        ("neck.weight", torch.zeros(1), "nothing of that name"),
    ]:
        with pytest.raises(MrtError, match=words):
            restore(student, {**saved, name: tensor})
    assert all(torch.equal(tensor, before[name]) for name, tensor in student.state_dict().items())
