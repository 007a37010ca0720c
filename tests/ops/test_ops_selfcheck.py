"""The check of an installation passes with these kernels, detects wrong ones, and reports missing ones."""

from __future__ import annotations

import math

import pytest
import torch
from ops_cases import needs_native

from mrt.errors import MrtError
from mrt.ops import native, selfcheck


@needs_native
def test_the_kernels_pass(monkeypatch, capsys):
    monkeypatch.setattr(native, "requested", "auto")
    before = torch.get_rng_state()
    with torch.no_grad():
        found = selfcheck.selfcheck(seed=3)
    assert len(found) == 12 and all(row.ok and row.error > 0 for row in found)
    assert {row.dtype for row in found} == {torch.float32, torch.bfloat16}
    assert torch.equal(torch.get_rng_state(), before)
    assert selfcheck.main([]) == 0 and capsys.readouterr().out.count("ok") == 12


@needs_native
@pytest.mark.parametrize("wrong", [1.001, float("nan")])
def test_a_wrong_kernel_is_noticed(monkeypatch, capsys, wrong):
    kernel = native.ms_deform_attn
    monkeypatch.setattr(native, "requested", "auto")
    monkeypatch.setattr(native, "ms_deform_attn", lambda *inputs: kernel(*inputs) * wrong)
    found = selfcheck.selfcheck()
    changed = [row for row in found if row.case.startswith("ms_deform_attn,")]
    noticed = [row for row in changed if row.dtype == torch.float32 or math.isnan(wrong)]
    assert [row for row in found if not row.ok] == noticed
    assert selfcheck.main([]) == 1 and "WRONG" in capsys.readouterr().out


def test_without_kernels_there_is_nothing_to_check(monkeypatch, capsys):
    monkeypatch.setattr(native, "requested", "python")
    with pytest.raises(MrtError, match="MRT_OPS_BACKEND=python"):
        selfcheck.selfcheck()
    assert selfcheck.main(["cpu"]) == 2 and "MRT_OPS_BACKEND=python" in capsys.readouterr().err


def test_what_to_do_depends_on_whether_the_sources_are_here(monkeypatch):
    assert "make clean build" in native.build_hint()
    monkeypatch.setattr(native, "__file__", "/nowhere/site-packages/mrt/ops/native.py")
    assert "make" not in native.build_hint() and "pip install --no-build-isolation" in native.build_hint()
