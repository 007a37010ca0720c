from __future__ import annotations

import pytest
import torch

from mrt.adapt import DynamicThresholds
from mrt.errors import MrtError

SCORES, LABELS = torch.tensor([0.9, 0.5, 0.7]), torch.tensor([2, 0, 2])


def test_formula_and_fresh_record() -> None:
    thresholds = DynamicThresholds(3)
    thresholds.record(SCORES, LABELS)
    assert thresholds.count.tolist() == [1, 0, 2]
    expected = 0.9 * 0.3 + 0.1 * 0.5 * torch.tensor([0.5, 0.0, 0.8], dtype=torch.float64).sqrt()
    torch.testing.assert_close(thresholds.update(), expected.clamp(0.25, 0.45))
    assert not thresholds.sum.any() and not thresholds.count.any()


def test_static_thresholds_never_move() -> None:
    thresholds = DynamicThresholds(3, start=0.35, enabled=False)
    thresholds.record(SCORES, LABELS)
    assert thresholds.update().tolist() == [0.35] * 3
    assert not thresholds.count.any()


def test_two_ranks_agree_with_one_process() -> None:
    alone, ranks = DynamicThresholds(3), [DynamicThresholds(3), DynamicThresholds(3)]
    alone.record(SCORES, LABELS)
    ranks[0].record(SCORES[:1], LABELS[:1])
    ranks[1].record(SCORES[1:], LABELS[1:])
    total = torch.stack([torch.stack((rank.sum, rank.count)) for rank in ranks]).sum(0)
    expected = alone.update()
    for rank in ranks:
        torch.testing.assert_close(rank.update(all_reduce=lambda record: record.copy_(total)), expected)


def test_resumes_in_the_middle_of_an_epoch() -> None:
    whole, first, second = (DynamicThresholds(3) for _ in range(3))
    whole.record(SCORES, LABELS)
    first.record(SCORES[:2], LABELS[:2])
    state = first.state_dict()
    second.load_state_dict(state)
    second.record(SCORES[2:], LABELS[2:])
    assert state["record"].sum() == first.sum.sum() + 2  # loading does not tie the state to the run
    assert torch.equal(whole.update(), second.update())


def test_bad_input() -> None:
    with pytest.raises(MrtError, match="5 classes"):
        DynamicThresholds(3).load_state_dict(DynamicThresholds(5).state_dict())
    with pytest.raises(MrtError, match=r"0\.6"):
        DynamicThresholds(3, minimum=0.6)
    DynamicThresholds(3).record(torch.zeros(0), torch.zeros(0, dtype=torch.long))
