"""What differs on Windows, as far as another system can show it."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
from test_imports import MODULES

from mrt import exclusive
from mrt.errors import MrtError

# Of extras: what needs them may not be there.
EXTRAS = {"av", "datumaro", "mlflow", "onnx", "onnxruntime", "onnxscript", "submitit", "supervision", "wandb"}
MISSING = ("fcntl", "termios", "resource", "pwd", "grp")  # modules that Windows has not
ATTRIBUTES = ("fork", "getuid", "geteuid", "pread", "pwrite", "sched_getaffinity", "statvfs", "wait4")


def test_no_module_needs_what_windows_has_not():
    code = f"""
import importlib, os, signal, sys
for name in {MISSING}: sys.modules[name] = None
import torch
for name in {ATTRIBUTES}:
    if hasattr(os, name): delattr(os, name)
for name in ("SIGKILL", "SIGUSR1", "SIGHUP"):
    if hasattr(signal, name): delattr(signal, name)
for name in {sorted(MODULES)}:
    if name.endswith("__main__"): continue
    try:
        importlib.import_module(name)
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in {EXTRAS}:
            print(name, error)
"""
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr[-2000:]


def test_a_file_is_held_by_one_until_it_is_closed(tmp_path):
    with (tmp_path / "a").open("w") as one, (tmp_path / "a").open("w") as other:
        assert exclusive.hold(one) and not exclusive.hold(other)
        one.close()
        assert exclusive.hold(other)


def test_windows_locks_a_byte_beyond_the_file(tmp_path, monkeypatch):
    held: dict[int, int] = {}

    def locking(descriptor, mode, length):
        place = os.lseek(descriptor, 0, os.SEEK_CUR)
        assert (mode, length, place) == (2, 1, exclusive.BEYOND)
        if held.setdefault(place, descriptor) != descriptor:
            raise PermissionError("somebody has it")

    monkeypatch.setattr(exclusive, "fcntl", None)
    monkeypatch.setattr(exclusive, "msvcrt", SimpleNamespace(locking=locking, LK_NBLCK=2))
    path = tmp_path / "a"
    path.write_bytes(b"line\n")
    with path.open("ab") as one, path.open("ab") as other:
        assert exclusive.hold(one) and not exclusive.hold(other)
        one.write(b"more\n")
        monkeypatch.setattr(exclusive.time, "sleep", lambda seconds: held.clear())
        assert exclusive.hold(other, wait=True), "it was waited for"
    assert path.read_bytes() == b"line\nmore\n", "the place to write at is as before"


def test_without_any_locks_work_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(exclusive, "fcntl", None)
    monkeypatch.setattr(exclusive, "msvcrt", None)
    with (tmp_path / "a").open("w") as one, (tmp_path / "a").open("w") as other:
        assert exclusive.hold(one) and exclusive.hold(other)


def test_two_labellers_of_one_file_are_told_apart(tmp_path):
    from mrt.labelling.progress import Progress

    with (
        Progress(tmp_path / "part.jsonl", {"a": 1}) as first,
        Progress(tmp_path / "part.jsonl", {"a": 1}) as second,
    ):
        first.add({"image": 1})
        with pytest.raises(MrtError, match="another mrt label is at work on it"):
            second.add({"image": 2})


def test_no_process_is_ended_by_the_question_whether_it_lives(monkeypatch):
    from mrt.data import staging

    monkeypatch.setattr(staging.sys, "platform", "win32")
    monkeypatch.setattr(os, "kill", lambda *_: pytest.fail("on Windows this ends the process"))
    assert staging._alive(4)
