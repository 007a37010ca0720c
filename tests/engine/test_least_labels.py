"""What the target's losses are divided by where there are few labels."""

from __future__ import annotations

import pytest
import torch
from test_plain_step import STAGES, batches_of, config, make_learner

from mrt.config import load_config
from mrt.engine.step import training_step

IMAGES = 3


def step(threshold: float, least: float, accumulate: int = 1) -> dict[str, float]:
    changes = {"engine.batch_size": IMAGES * accumulate, "engine.accumulate": accumulate}
    learner = make_learner(
        config("demo's kind", **changes, **{"teacher.least_labels": least}), STAGES["teach"]
    )
    learner.thresholds.values = torch.full_like(learner.thresholds.values, threshold)
    torch.manual_seed(1)
    (batches,) = batches_of("one size", steps=1, micro=accumulate)
    return {name: float(value) for name, value in training_step(learner, batches, 0.0, 1.0).items()}


@pytest.mark.parametrize("accumulate", [1, 2])
def test_without_labels_background_counts_as_that_many(accumulate: int) -> None:
    usual, least = step(1.0, 0.0, accumulate), step(1.0, 4.0, accumulate)
    assert usual["pseudo_labels"] == 0
    divided = usual["target/class"] / (4 * IMAGES * accumulate)  # else by one label in the whole batch
    assert least["target/class"] == pytest.approx(divided, rel=1e-5)
    assert least["source/class"] == usual["source/class"]
    assert least["grad_norm"] < usual["grad_norm"]


def test_where_there_are_more_it_does_nothing() -> None:
    usual, least = step(0.0, 0.0), step(0.0, 0.5)
    assert usual["pseudo_labels"] > 0.5 and usual == least


def test_it_counts_in_digests_only_where_it_is_set() -> None:
    usual, set_ = (load_config("small", changes={"teacher.least_labels": value}) for value in (0.0, 2.0))
    assert "least_labels" not in usual.teacher.acting("teach", usual)
    assert set_.teacher.acting("teach", set_)["least_labels"] == 2.0
    assert "least_labels" not in set_.teacher.acting("fair", set_)
