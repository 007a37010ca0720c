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
    shutil.copytree(runs / "small-source", tmp_path / "run")
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
    assert "nowhere: not a run folder" in refused("doctor nowhere --run-root", tmp_path)
    assert "which run" in refused("doctor --mend")
    result = mrt("doctor", tmp_path)
    assert result.exit_code == 1 and "no run's folder" in result.output


def test_doctor_tells_the_machine_as_json(monkeypatch):
    monkeypatch.setattr(selfcheck, "selfcheck", lambda device: [])
    rows = json.loads(mrt("doctor --json").stdout)
    assert {"state", "what", "found", "todo"} == set(rows[0]) and any(row["what"] == "torch" for row in rows)


def test_doctor_shows_what_this_user_needs(runs, somewhere):
    """Benchmarks that nobody asked for are not missing; the set that a run was made with is."""
    first = mrt("doctor")
    assert first.exit_code == 0 and "cityscapes" not in first.output and "missing" not in first.output
    assert "mrt prepare-data custom --raw FOLDER --name camera" in first.output
    shutil.copytree(runs / "small-source", somewhere / "runs" / "mine")
    rows = {row["what"]: row for row in json.loads(mrt("doctor --json").stdout)}
    assert (
        rows["data synthetic-clear"]["state"] == "missing"
        and "run mine" in rows["data synthetic-clear"]["found"]
    )
    assert rows["data synthetic-clear"]["todo"].startswith(
        "Make it with: mrt prepare-data synthetic --domain clear"
    )


def test_doctor_looks_at_the_machine_once(monkeypatch):
    looks = []
    monkeypatch.setattr(native, "requested", "auto")
    monkeypatch.setattr(native, "_has_kernel", lambda device_type: True)
    monkeypatch.setattr(selfcheck, "selfcheck", lambda device: looks.append(device) or [row(1e-6)])
    first, second = mrt("doctor"), mrt("doctor")
    assert len(looks) == 1 and "looking at torch" in first.output and "looking" not in second.output
    assert "agree with PyTorch" in second.output and "mrt doctor --fresh looks again" in second.output
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "looking at torch" in mrt("doctor").output and len(looks) == 2
    assert mrt("doctor --fresh").exit_code == 0 and len(looks) == 3
    monkeypatch.setattr(selfcheck, "selfcheck", lambda device: [row(1.0)])
    assert mrt("doctor --fresh").exit_code == 1
    assert mrt("doctor").exit_code == 1  # the good look of before is not believed any more


def test_a_remembered_data_root_is_marked_and_dropped_when_it_vanished(somewhere):
    from mrt import remembered

    (somewhere / "elsewhere").mkdir()
    remembered.remember(somewhere / "elsewhere")
    assert f"{somewhere / 'elsewhere'} (remembered: prepare-data put a set there)" in mrt("doctor").output
    (somewhere / "elsewhere").rmdir()
    gone = mrt("doctor").output
    assert f"{somewhere / 'elsewhere'}, remembered, has vanished: it is forgotten" in gone
    assert "elsewhere" not in mrt("doctor").output
