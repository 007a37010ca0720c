"""The report of ``mrt doctor`` about the kernels."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from command_line import mrt, refused

from mrt.files import HOST
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


def test_doctor_looks_at_a_run(runs, tmp_path):
    shutil.copytree(runs / "demo-source", tmp_path / "run")
    result = mrt("doctor", tmp_path / "run")
    assert result.exit_code == 0 and "Nothing is wrong" in result.output
    last = tmp_path / "run" / "checkpoints" / "last.pt"
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 1
    last.write_bytes(content)
    (tmp_path / "run" / f".config.json.{HOST}abcd1234.mrt-tmp").write_text("half")
    result = mrt("doctor run --json --run-root", tmp_path)
    told = json.loads(result.stdout)
    assert result.exit_code == 1 and not told["fine"]
    (wrong,) = [one for one in told["findings"] if one["state"] == "wrong"]
    assert wrong["what"] == "checkpoints/last.pt" and "not what was written" in wrong["found"]
    assert "start the run anew" in wrong["todo"]  # one epoch: there is no checkpoint before it
    assert any(one["what"] == "unfinished files" for one in told["findings"])
    result = mrt("doctor --mend", tmp_path / "run")
    assert (
        result.exit_code == 0 and "set last.pt aside" in result.output and "removed .config" in result.output
    )
    assert not last.exists() and last.with_name("last.pt.damaged").exists()


def test_doctor_says_what_it_cannot_look_at(tmp_path):
    assert "no such folder" in refused("doctor nowhere --run-root", tmp_path)
    assert "which run" in refused("doctor --mend")
    result = mrt("doctor", tmp_path)
    assert result.exit_code == 1 and "no run's folder" in result.output


def test_doctor_tells_the_machine_as_json(monkeypatch):
    monkeypatch.setattr(selfcheck, "selfcheck", lambda device: [])
    rows = json.loads(mrt("doctor --json").stdout)
    assert {"state", "what", "found", "todo"} == set(rows[0]) and any(row["what"] == "torch" for row in rows)
