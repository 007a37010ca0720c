"""Shares of the loss and of the gradient: what they are, and that looking changes nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from test_fixed_seed import PAPER, digest
from tiny_world import make_set, tiny_config
from torch import nn

from mrt.engine import stages
from mrt.engine.report import Watcher
from mrt.engine.shares import shares

LOOKS = ("loss_share/", "gradient_share/", "backbone_share/", "gradient_cosine/")
KINDS = {
    "demo's kind": {"teacher.box_loss": True},
    "paper's kind, in two halves, padded": {**PAPER, "engine.accumulate": 2, "teacher.threshold_start": 0.0},
    "bf16, activations computed again": {"engine.amp": "bf16", "engine.checkpointing": True},
    "normalised, steps may be skipped": {"mae.normalise": True, "engine.on_nonfinite": "skip 3"},
    "no source images": {
        "method.source_free": True,
        "domain.enabled": False,
        "teacher.threshold_start": 0.0,
        "mae.data": "target",
    },
}


class Detector(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Linear(2, 1, bias=False)
        self.head = nn.Linear(2, 1, bias=False)
        self.frozen = nn.Linear(2, 1, bias=False).requires_grad_(False)


def test_shares_of_known_gradients() -> None:
    detector = Detector()
    backbone, head = detector.backbone.weight, detector.head.weight
    terms = {
        "mine": -2 * backbone.sum() + 0 * detector.frozen.weight.sum(),  # gradient (-2, -2 | 0, 0)
        "source": 3 * head.sum(),  # (0, 0 | 3, 3)
        "target": backbone.sum() + head.sum() * 0,  # (1, 1 | 0, 0)
        "constant": torch.tensor(5.0),
    }
    found = {name: float(value) for name, value in shares(terms, detector).items()}
    lengths = {"mine": 8**0.5, "source": 18**0.5, "target": 2**0.5, "constant": 0.0}
    for name, length in lengths.items():
        assert found[f"gradient_share/{name}"] == pytest.approx(length / sum(lengths.values()))
    assert found["backbone_share/mine"] == pytest.approx(2 / 3)
    assert found["backbone_share/source"] == 0
    sizes = {name: abs(float(term.detach())) for name, term in terms.items()}
    assert found["loss_share/constant"] == pytest.approx(5 / sum(sizes.values()))
    # detection: (1, 1 | 3, 3)
    assert found["gradient_cosine/mine"] == pytest.approx(-4 / (8**0.5 * 20**0.5))
    assert found["gradient_cosine/source"] == found["gradient_cosine/target"] == 0
    assert found["gradient_cosine/constant"] == 0
    assert backbone.grad is None and head.grad is None
    sum(terms.values()).backward()  # the graph is still there
    assert backbone.grad.tolist() == [[-1.0, -1.0]]


def test_a_gradient_that_is_not_finite_has_no_share() -> None:
    detector = Detector()
    terms = {"source": torch.inf * detector.head.weight.sum(), "align": detector.backbone.weight.sum()}
    assert all(value.isfinite() for value in shares(terms, detector).values())


def lines_of(run: Path) -> list[dict]:
    lines = [json.loads(text) for text in (run / "metrics.jsonl").read_text().splitlines()]
    return [
        {key: value for key, value in line.items() if key not in ("time", "images_per_second")}
        for line in lines
    ]


def without_looks(lines: list[dict]) -> list[dict]:
    return [{key: value for key, value in line.items() if not key.startswith(LOOKS)} for line in lines]


@pytest.mark.parametrize("kind", KINDS)
def test_looking_changes_nothing(kind: str, tmp_path: Path) -> None:
    """Weights and all other numbers are the same to the last bit."""
    make_set(tmp_path / "data", "clear", seed=1)
    make_set(tmp_path / "data", "hazy", haze=0.5, seed=2)
    start = stages.pretrain_source(
        tiny_config(**{k: v for k, v in KINDS[kind].items() if k.startswith("model.")}),
        tmp_path / "start",
        data_root=tmp_path / "data",
    )
    runs = []
    for every in (0, 1):
        config = tiny_config(**KINDS[kind], **{"engine.shares_every": every})
        runs.append(
            stages.adapt(config, tmp_path / f"run-{every}", init=str(start), data_root=tmp_path / "data")
        )
    silent, looking = (lines_of(run) for run in runs)
    assert without_looks(looking) == silent == without_looks(silent)
    assert digest(runs[0]) == digest(runs[1])
    # where only one part drives, there is nothing to see
    seen = [
        line for line in looking if line["kind"] == "train" and any(key.startswith(LOOKS) for key in line)
    ]
    assert len(seen) >= 2
    for line in seen:
        for look in LOOKS[:2]:
            parts = [value for key, value in line.items() if key.startswith(look)]
            assert sum(parts) == pytest.approx(1, abs=1e-4) and min(parts) >= 0
        assert all(abs(value) <= 1.001 for key, value in line.items() if key.startswith(LOOKS[3]))
    last = {key.partition("/")[2] for key in seen[-1] if key.startswith("gradient_share/")}
    wanted = {"source", "target", "align"} if kind != "no source images" else {"target"}
    assert wanted <= last <= wanted | {"rebuild"}
    assert {"rebuild"} & {key.partition("/")[2] for line in seen for key in line}


def test_batch_norms_that_learn_are_in_the_case_of_checkpointing() -> None:
    """Else nothing would notice that recomputed activations count twice in them."""
    config = tiny_config(**KINDS["bf16, activations computed again"])
    assert config.model.weights == "none" and config.engine.checkpointing


def test_a_detector_that_does_not_learn_has_shares_of_the_loss_only() -> None:
    detector = Detector().requires_grad_(False)
    weight = torch.ones(2, requires_grad=True)
    found = shares({"source": torch.tensor(3.0), "mine": weight.sum()}, detector)
    assert {name: float(value) for name, value in found.items()} == {
        "loss_share/source": pytest.approx(0.6),
        "loss_share/mine": pytest.approx(0.4),
    }


def test_a_graph_that_can_be_gone_through_once_only_ends_the_looks(tmp_path: Path, monkeypatch) -> None:
    """Not the run; it is said once."""

    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("Trying to backward through the graph a second time\nand more")

    make_set(tmp_path, "clear", seed=1)
    make_set(tmp_path, "hazy", haze=0.5, seed=2)
    source = stages.pretrain_source(tiny_config(), tmp_path / "source", data_root=tmp_path)
    said: list[str] = []
    watcher = Watcher()
    watcher.say = said.append
    monkeypatch.setattr("mrt.engine.learner.shares", fails)
    config = tiny_config(**{"engine.shares_every": 1})
    run = stages.adapt(config, tmp_path / "run", init=str(source), data_root=tmp_path, watcher=watcher)
    told = [text for text in said if "engine.shares_every" in text]
    assert len(told) == 2 and told[0].endswith(
        "for that failed: Trying to backward through the graph a second time"
    )
    assert not any(key.startswith(LOOKS) for line in lines_of(run) for key in line)


def test_one_part_alone_is_not_looked_at(tmp_path: Path) -> None:
    make_set(tmp_path, "clear", seed=1)
    source = stages.pretrain_source(
        tiny_config(**{"engine.shares_every": 1, "engine.eval_every": 0}),
        tmp_path / "source",
        data_root=tmp_path,
    )
    assert not any(key.startswith(LOOKS) for line in lines_of(source) for key in line)
