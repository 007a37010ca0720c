"""Completion in the shell: commands and options, and its installation."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


def run(home, *words, **more):
    settings = {"HOME": str(home), "COLUMNS": "100", **more}
    settings["_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION"] = "1"  # whichever shell runs the tests
    command = [sys.executable, "-P", "-c", "from mrt_cli.app import main; main()", *words]
    return subprocess.run(command, env={**os.environ, **settings}, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("typed", "expected"),
    [("mrt ada", ["adapt"]), ("mrt adapt --tar", ["--target"]), ("mrt prepare-data cit", ["cityscapes"])],
)
def test_words_are_completed(tmp_path, typed, expected):
    asked = {"COMP_WORDS": typed, "COMP_CWORD": str(len(typed.split()) - 1)}
    assert run(tmp_path, _MRT_COMPLETE="complete_bash", **asked).stdout.split() == expected


def test_it_installs_itself(tmp_path):
    done = run(tmp_path, "--install-completion", "bash")
    assert done.returncode == 0 and "completion installed" in done.stdout, done.stderr
    assert "_MRT_COMPLETE=complete_bash" in (tmp_path / ".bash_completions" / "mrt.sh").read_text()
    assert "mrt.sh" in (tmp_path / ".bashrc").read_text()
