"""What is on and cannot act is said, before a run and in it."""

from __future__ import annotations

import pytest

from mrt.config import load_config

CASES = {
    "a frozen map is aligned and rebuilt": ({}, ["domain.backbone_weight", "mae.use"]),
    "the backbone learns": ({"model.freeze": "stem"}, []),
    "nothing is pretrained, so nothing is frozen": ({"model.weights": "none"}, []),
    "no discriminators": ({"domain.enabled": False}, ["mae.use"]),
    "none of the backbone": ({"domain.backbone_weight": 0}, ["mae.use"]),
    "no autoencoder": ({"mae.use": "none"}, ["domain.backbone_weight"]),
    "an autoencoder that does not count": ({"mae.weight": 0}, ["domain.backbone_weight"]),
}


@pytest.mark.parametrize("case", CASES)
def test_parts_over_a_frozen_backbone(case: str) -> None:
    changes, named = CASES[case]
    found = load_config("demo", changes=changes).warnings("mae", "teach")
    assert [text.removeprefix("Warning: ").split(" = ")[0] for text in found] == named
    assert all("(--set " in text for text in found)


def test_only_in_the_stages_that_have_the_part() -> None:
    config = load_config("demo", changes={"mae.use": "pretrain"})
    assert not config.warnings("source") and not config.warnings("fair")
    assert ["mae.use" in text for text in config.warnings("mae")] == [True]
    assert ["domain" in text for text in config.warnings("teach")] == [True]


def test_nothing_at_all_learns_from_it() -> None:
    config = load_config("demo", changes={"model.num_encoder_layers": 1})
    assert "only the encoder (of 1 layer) learns" in config.warnings("mae")[0]
