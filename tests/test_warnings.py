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
    found = load_config("small", changes=changes).warnings("mae", "teach")
    assert [text.removeprefix("Warning: ").split(" = ")[0] for text in found] == named
    assert all("(--set " in text and "model.freeze=stem" in text for text in found)


def test_only_in_the_stages_that_have_the_part() -> None:
    config = load_config("small", changes={"mae.use": "pretrain"})
    assert not config.warnings("source") and not config.warnings("fair")
    assert ["mae.use" in text for text in config.warnings("mae")] == [True]
    assert ["domain" in text for text in config.warnings("teach")] == [True]


@pytest.mark.parametrize(
    ("freeze", "level", "warned"),
    [
        ("stride16", 1, True),
        ("stride16", 2, False),
        ("stride8", 0, True),
        ("stride8", 1, False),
        ("stem", 0, False),
    ],
)
def test_a_map_below_which_all_is_frozen(freeze: str, level: int, warned: bool) -> None:
    found = load_config("small", changes={"model.freeze": freeze, "mae.level": level}).warnings(
        "mae", "teach"
    )
    assert [f"mae.level = {level}, model.freeze = {freeze}" in text for text in found] == [True] * warned
