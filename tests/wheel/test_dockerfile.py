"""The Dockerfile: hadolint where it is installed, and what an image needs in any case."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "Dockerfile").read_text()
NAMES = shutil.which("hadolint"), str(Path(sys.executable).with_name("hadolint"))
HADOLINT = next((name for name in NAMES if name and Path(name).exists()), None)


def stages() -> dict[str, list[str]]:
    """The instructions of each stage, continued lines joined, without comments."""
    lines = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", TEXT, flags=re.MULTILINE)).splitlines()
    found: dict[str, list[str]] = {}
    name = ""
    for line in filter(None, lines):
        if line.startswith("FROM "):
            name = line.rpartition(" AS ")[2]
        found.setdefault(name, []).append(line)
    return found


@pytest.mark.skipif(HADOLINT is None, reason="hadolint is not installed")
def test_hadolint_finds_nothing():
    done = subprocess.run([HADOLINT, "--no-color", str(ROOT / "Dockerfile")], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_each_target_runs_mrt_for_a_user_without_rights(target):
    build, final = stages()[f"{target}-build"], stages()[target]
    assert 'ENTRYPOINT ["mrt"]' in final and "WORKDIR /mrt" in final
    users = [line.split()[1] for line in final if line.startswith("USER ")]
    assert users and users[-1].isdecimal() and int(users[-1]) > 0
    assert f"COPY --from={target}-build /opt/mrt /opt/mrt" in final
    assert not any(line.startswith(("COPY . ", "ADD ")) for line in final), "no sources in the image"
    assert any(f"MRT_BUILD={target}" in line for line in build)
    for line in [*build, *final]:
        assert "apt-get install" not in line or (
            "--no-install-recommends" in line and "rm -rf /var/lib/apt/lists/*" in line
        )


def test_extras_are_those_of_the_package():
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    asked = set(re.findall(r'ARG EXTRAS="([^"]*)"', TEXT))
    assert len(asked) == 1 and set(asked.pop().split(",")) <= set(known)


def test_what_is_sent_to_the_builder_is_what_the_package_is_built_from():
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    lines = [line for line in lines if line and not line.startswith("#")]
    assert lines[0] == "*", "everything else stays outside"
    sent = {line[1:] for line in lines if line.startswith("!")}
    assert all((ROOT / name).exists() for name in sent)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {"setup.py", "pyproject.toml", "mrt", "cli", "csrc", "LICENSE", project["readme"]} <= sent
