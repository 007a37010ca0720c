"""The files of an installation and of the sdist, from setuptools without compiling: finds forgotten files."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def tracked(*folders: str) -> set[str]:
    """Files below ``folders`` that git tracks and that exist."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: nothing says which files belong")
    command = ["git", "ls-files", "-z", *folders]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return {name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()}


@pytest.fixture(scope="module")
def packaged(tmp_path_factory) -> tuple[set[str], set[str]]:
    """(files an installation would have, files of the sdist); the checkout is only read."""
    place = tmp_path_factory.mktemp("packaged")
    library = place / "lib"
    command = [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", str(place)]
    command += ["build_py", "--build-lib", str(library)]
    environment = {**os.environ, "MRT_BUILD": "none"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    installed = {path.relative_to(library).as_posix() for path in library.rglob("*") if path.is_file()}
    sources = (place / "mrt_detection.egg-info" / "SOURCES.txt").read_text(encoding="utf-8")
    return installed, set(sources.splitlines())


def test_an_installation_has_every_file_of_the_program(packaged):
    installed, _ = packaged
    wanted = {name if name.startswith("mrt/") else f"mrt_{name}" for name in tracked("mrt", "cli")}
    assert not wanted - installed, "not installed: see package_data and packages in setup.py"
    assert {name.partition("/")[0] for name in installed} == {"mrt", "mrt_cli"}
    assert {Path(name).suffix for name in installed} >= {".py", ".toml", ".json", ".safetensors", ".j2"}


def test_the_sdist_has_what_a_build_needs_and_nothing_else(packaged):
    _, sources = packaged
    wanted = tracked("mrt", "cli", "csrc")
    wanted |= {"setup.py", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"}
    assert not wanted - sources, "not in the sdist: see MANIFEST.in"
    assert not [name for name in sources if name.startswith(("tests/", "docs/", "benchmarks/"))]
    assert not [name for name in sources if name.endswith((".so", ".pyc"))]
