"""The recorded float64 op (tests/golden/msda_f64.npz), on every backend of this machine."""

from __future__ import annotations

import pytest
import torch
from golden import assert_close
from ops_cases import BACKENDS, use_backend

from mrt.ops import ms_deform_attn


@pytest.mark.parametrize("device, backend", BACKENDS)
def test_golden(golden, monkeypatch, device, backend):
    use_backend(monkeypatch, device, backend)
    case = golden("msda_f64")
    value, locations, weights = (
        torch.from_numpy(case[f"in/{name}"]).to(device).requires_grad_()
        for name in ("value", "sampling_locations", "attention_weights")
    )
    output = ms_deform_attn(value, case["in/spatial_shapes"].tolist(), locations, weights)
    assert_close(output, case["out/output"])
    (output * torch.from_numpy(case["in/cot"]).to(device)).sum().backward()
    assert_close(value.grad, case["grad/value"])
    assert_close(weights.grad, case["grad/attention_weights"])
    actual, expected = locations.grad.cpu().numpy(), case["grad/sampling_locations"].copy()
    # Points exactly on cell borders are left out, because their location gradient is one-sided.
    actual[0, 1, 0] = expected[0, 1, 0] = 0
    assert_close(actual, expected)
