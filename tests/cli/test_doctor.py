"""The report of ``mrt doctor`` about the kernels."""

from __future__ import annotations

import pytest
import torch
from command_line import mrt

from mrt.ops import native, selfcheck


def row(error: float) -> selfcheck.Agreement:
    return selfcheck.Agreement("ms_deform_attn, odd, float32", torch.float32, error, 1e-5)


@pytest.mark.parametrize(
    "error, code, said",
    [(2e-6, 0, "agree with PyTorch: float32 to 2e-06"), (float("nan"), 1, "1 of 2 cases differ")],
)
def test_doctor_says_whether_the_kernels_agree(monkeypatch, error, code, said):
    monkeypatch.setattr(native, "requested", "auto")
    monkeypatch.setattr(native, "_has_kernel", lambda device_type: True)
    monkeypatch.setattr(selfcheck, "selfcheck", lambda device: [row(1e-6), row(error)])
    result = mrt("doctor")
    assert result.exit_code == code and said in result.output, result.output


def test_without_kernels_doctor_says_how_to_get_them(monkeypatch):
    monkeypatch.setattr(native, "requested", "auto")
    monkeypatch.setattr(native, "_has_kernel", lambda device_type: False)
    monkeypatch.setattr(native, "load_error", "the extension mrt/_C was not built")
    monkeypatch.setattr(native, "__file__", "/nowhere/site-packages/mrt/ops/native.py")
    result = mrt("doctor")
    assert result.exit_code == 0 and "op check" not in result.output and "-e ." not in result.output
    assert "pip install --no-build-isolation" in result.output
