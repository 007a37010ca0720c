"""The wheel in an empty environment, without a compiler and without the checkout.

``make soak`` builds dist/ and runs this; it takes some minutes. pip installs torch, so it needs a package
index (or a local one in its settings).
"""

from __future__ import annotations

import bisect
import os
import platform
import re
import shutil
import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image, ImageChops

pytestmark = pytest.mark.soak

ROOT = Path(__file__).resolve().parents[2]
KERNELS = "mrt/_C.abi3.so"
COMPILERS = ("cc", "c++", "gcc", "g++", "clang", "clang++", "nvcc", "ninja", "make")


@pytest.fixture(scope="session")
def wheel() -> Path:
    """The wheel in dist/, which must be made from the current files."""
    found = list((ROOT / "dist").glob("mrt_detection-*.whl"))
    assert len(found) == 1, f"dist/ has {len(found)} wheels of mrt: run make wheel"
    with zipfile.ZipFile(found[0]) as archive:
        for name in archive.namelist():
            source = ROOT / re.sub("^mrt_cli/", "cli/", name)
            if name.startswith("mrt") and ".dist-info/" not in name and not name.endswith(("/", ".so")):
                same = source.is_file() and source.read_bytes() == archive.read(name)
                assert same, f"{name} has changed since: run make wheel"
    return found[0]


@pytest.fixture(scope="session")
def sdist() -> Path:
    found = list((ROOT / "dist").glob("mrt_detection-*.tar.gz"))
    assert len(found) == 1, f"dist/ has {len(found)} sdists of mrt: run make wheel"
    return found[0]


@pytest.fixture(scope="session")
def kernels(wheel, tmp_path_factory) -> Path:
    """The shared library, extracted from the wheel."""
    return Path(zipfile.ZipFile(wheel).extract(KERNELS, tmp_path_factory.mktemp("unpacked")))


class Home:
    """A virtual environment with the wheel and its dependencies, without a compiler on the PATH."""

    def __init__(self, place: Path) -> None:
        self.place, self.bin = place, place / "env" / "bin"
        hidden = ("MRT_", "PYTHON", "VIRTUAL_ENV", "CONDA", "ATEN_", "XDG_CONFIG_HOME")
        self.variables = {key: value for key, value in os.environ.items() if not key.startswith(hidden)}
        self.variables |= {"PATH": str(self.bin), "HOME": str(place)}
        self.variables |= {"CC": "no-such-compiler", "CXX": "no-such-compiler"}

    def run(self, *words: object, code: int = 0, **variables: str) -> str:
        """Run a program of the environment in an empty folder; returns what it printed, both streams."""
        (self.place / "work").mkdir(exist_ok=True)
        command = [str(self.bin / str(words[0])), *map(str, words[1:])]
        settings = {**self.variables, **variables}
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        done = subprocess.run(command, cwd=self.place / "work", env=settings, check=False, **streams)
        assert done.returncode == code, f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout}"
        return done.stdout


@pytest.fixture(scope="session")
def home(wheel, tmp_path_factory):
    place = tmp_path_factory.mktemp("home")
    home = Home(place)
    subprocess.run([sys.executable, "-m", "venv", place / "env"], check=True)
    assert not [name for name in COMPILERS if shutil.which(name, path=home.variables["PATH"])]
    command = [sys.executable, "-m", "pip", "cache", "dir"]
    cache = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    command = ["python", "-m", "pip", "install", "--only-binary=:all:", f"{wheel}[demo]"]
    told = home.run(*command, PIP_CACHE_DIR=cache)
    assert "Building wheel" not in told
    yield home
    shutil.rmtree(place)  # gigabytes


def test_its_name_and_what_it_claims(wheel):
    assert re.fullmatch(r"mrt_detection-[0-9.]+-cp310-abi3-manylinux_2_\d+_\w+\.whl", wheel.name)
    with zipfile.ZipFile(wheel) as archive:
        libraries = [name for name in archive.namelist() if name.endswith(".so")]
        assert libraries == [KERNELS]  # none of torch's
        binary = archive.read(KERNELS)
        # The binary names files, but no folders of this machine.
        assert b"torch/csrc/stable/" in binary and b"/torch/csrc/stable/" not in binary
        for name in archive.namelist():
            content = archive.read(name)
            assert not [place for place in (ROOT, sys.prefix) if os.fsencode(place) in content], name


@pytest.mark.skipif(platform.machine() != "x86_64", reason="other processors have one instruction set")
def test_each_instruction_set_is_in_its_own_part_of_the_kernels(kernels):
    """The machine code uses AVX-512 and AVX2 only in their own parts, so older processors never run them."""
    used = instructions(kernels)
    for part, kind in (("avx512.cpp", "avx512"), ("avx2.cpp", "avx"), ("baseline.cpp", "plain")):
        assert used[part][kind] > 1000
    assert not used["avx2.cpp"]["avx512"]
    wide = {part for part, kinds in used.items() if kinds["avx"] or kinds["avx512"]}
    assert wide == {"avx2.cpp", "avx512.cpp"}


def instructions(library: Path) -> dict[str, Counter]:
    """The number of instructions of each kind in each source file; "WEAK" etc.: functions shared by files."""
    command = ["readelf", "--syms", "--wide", library]
    table = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    starts, file = [(0, "before the first")], ""
    for fields in map(str.split, table.partition("Symbol table '.symtab'")[2].splitlines()):
        if len(fields) >= 7 and fields[3] == "FILE":
            file = fields[7] if len(fields) > 7 else ""
        elif len(fields) >= 7 and fields[3] == "FUNC" and fields[6] != "UND":
            starts.append((int(fields[1], 16), file if fields[4] == "LOCAL" else fields[4]))
    starts.sort()
    used: dict[str, Counter] = {part: Counter() for _, part in starts}
    command = ["objdump", "-d", "--no-show-raw-insn", "--wide", library]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for address, name, operands in re.findall(r"^ +([0-9a-f]+):\t(\S+)(.*)$", listing, re.MULTILINE):
        part = starts[bisect.bisect_right(starts, (int(address, 16), "\uffff")) - 1][1]
        high = re.search(r"%zmm|%k[0-7]|%[xy]mm(1[6-9]|2\d|3[01])", operands)
        used[part]["avx512" if high else "avx" if name.startswith("v") and "mm" in operands else "plain"] += 1
    return used


def test_it_is_the_wheel_that_runs(home, kernels):
    place = home.run("python", "-c", "import mrt; print(mrt.__path__[0])").strip()
    assert Path(place).is_relative_to(home.place)
    assert (Path(place) / "_C.abi3.so").read_bytes() == kernels.read_bytes()


def test_doctor_finds_all_that_is_needed(home):
    told = home.run("mrt", "doctor")
    assert re.search(r"op on cpu +C\+\+ kernels\n", told) and "C++ kernels agree with PyTorch" in told
    assert "small-source" in told and "EfficientNet-Lite0, ImageNet" in told
    assert "make clean build" not in told and "-e ." not in told  # there is no checkout


@pytest.mark.parametrize("most", ["", "avx2", "default"])
def test_the_kernels_agree_with_pytorch_by_every_instruction_set(home, most):
    told = home.run("python", "-m", "mrt.ops.selfcheck", ATEN_CPU_CAPABILITY=most)
    assert told.count("ok") == 12 and "WRONG" not in told


def test_predict_draws_what_it_finds(home):
    few = ["--train", 0, "--val", 1, "--test", 0, "--workers", 1]
    home.run("mrt", "prepare-data", "synthetic", "--domain", "clear", *few, "--data-root", "streets")
    (rendered,) = (home.place / "work" / "streets").rglob("*.jpg")
    photo = shutil.copy(rendered, home.place / "work" / "photo.jpg")
    told = home.run("mrt", "predict", "small-source", "photo.jpg", "--out", "found")
    assert re.search(r"photo\.jpg .*[1-9]\d* \w+", told)
    written = (home.place / "work" / "found").rglob("*")
    (picture,) = (path for path in written if path.suffix in (".jpg", ".png"))
    with Image.open(picture) as drawn, Image.open(photo) as plain:
        # Small photos are enlarged to make names legible.
        assert drawn.width * plain.height == plain.width * drawn.height
        difference = ImageChops.difference(drawn.resize(plain.size), plain).convert("L")
        assert difference.getextrema()[1] > 100  # boxes and names


def test_the_sdist_builds_again(sdist, tmp_path):
    """With this environment's torch and compiler it includes the kernels, without a compiler it does not."""
    command = [sys.executable, "-m", "pip", "wheel", "-v", "--no-build-isolation", "--no-deps"]
    command += ["--no-cache-dir", "-w", tmp_path, sdist]
    for settings, said, count in (
        ({}, "kernels for CPU are built", 1),
        ({"CXX": "no-such-compiler"}, "there is no C++ compiler", 0),
    ):
        environment = {**os.environ, "MRT_BUILD": "cpu", **settings}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert said in done.stdout + done.stderr
        (made,) = tmp_path.glob("*.whl")
        assert zipfile.ZipFile(made).namelist().count(KERNELS) == count
        made.unlink()
