"""Other compilers: they take the CPU sources, and their kernels are right. setup.py does without one part.

Compilers that are not installed are skipped. On Debian and Ubuntu: g++-11, clang, g++-aarch64-linux-gnu, and
qemu-user to run what the last one makes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
INCLUDE = Path(torch.__file__).parent / "include"
FLAGS = ["-std=c++20", "-O0", "-fPIC", "-ffp-contract=fast", "-Wno-psabi"]  # optimised, a minute more
FLAGS += ["-ffunction-sections"]  # so that the linker drops what would call torch's libraries
FLAGS += ["-DTORCH_TARGET_VERSION=0x020b000000000000ULL", f"-I{INCLUDE}", f"-I{ROOT / 'csrc'}"]
COMPILERS = ("g++-11", "clang++", "aarch64-linux-gnu-g++")
headers = pytest.mark.skipif(
    not (INCLUDE / "torch/csrc/stable/tensor.h").exists(), reason="this torch came without headers"
)


def compiled(compiler: str, source: str, *flags: str) -> None:
    command = [compiler, *FLAGS, *flags, str(ROOT / source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{source}:\n{done.stderr}"


@headers
@pytest.mark.parametrize("compiler", COMPILERS)
def test_a_compiler_takes_the_host_code(compiler):
    """Syntax and types only. The kernels are compiled in the test below."""
    if shutil.which(compiler) is None:
        pytest.skip(f"no {compiler}")
    for source in ("csrc/cpu/ms_deform_attn.cpp", "csrc/register.cpp"):
        compiled(compiler, source, "-fsyntax-only", "-DMRT_WITH_CPU", "-DMRT_WITH_CUDA")


@headers
@pytest.mark.parametrize("compiler", COMPILERS)
def test_a_compilers_kernels_are_right(tmp_path, compiler):
    """Every instruction set against plain loops in double: see kernels_alone.cpp."""
    emulator = ["qemu-aarch64"] if compiler.startswith("aarch64") else []
    if any(shutil.which(program) is None for program in (compiler, *emulator)):
        pytest.skip(f"no {' or no '.join((compiler, *emulator))}")
    sources = ["tests/ops/kernels_alone.cpp", "csrc/cpu/baseline.cpp"]
    if not emulator:
        sources += ["csrc/cpu/avx2.cpp", "csrc/cpu/avx512.cpp"]
    objects = [tmp_path / f"{Path(source).stem}.o" for source in sources]
    for source, target in zip(sources, objects, strict=True):
        compiled(compiler, source, "-c", "-o", str(target))
    program = tmp_path / "alone"
    subprocess.run([compiler, "-static", "-Wl,--gc-sections", *objects, "-o", program], check=True)
    done = subprocess.run([*emulator, program], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "ok baseline" in done.stdout, done.stdout + done.stderr


# Stands in for the C++ compiler, the linker and nvcc: writes empty files, and fails for sources of REFUSED.
STAND_IN = """\
#!{python}
import os, subprocess, sys
words = sys.argv[1:]
if "-o" not in words:
    if "--version" in words and sys.argv[0].endswith("nvcc"):
        print("Cuda compilation tools, release {release}, V{release}.1")
        sys.exit()
    sys.exit(subprocess.call(["c++", *words]))
for word in os.environ["REFUSED"].split():
    if "-c" in words and any(word in source and source.endswith((".cpp", ".cu")) for source in words):
        print(word + "/a.cpp:1:2: error: too old for " + word, file=sys.stderr)
        sys.exit(1)
if "-c" not in words:
    with open(os.environ["LINKED"], "w") as log:
        log.write(" ".join(words))
elif any(word.endswith("register.cpp") for word in words):
    with open(os.environ["FLAGS"], "w") as log:
        log.write(" ".join(words))
open(words[words.index("-o") + 1], "w").close()
"""


@pytest.mark.skipif(torch.version.cuda is None, reason="needs a torch with CUDA")
@pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler")
@pytest.mark.parametrize(
    "build, refused, parts, said",
    [
        ("auto", "", {"cpu", "cuda"}, "kernels for CPU and CUDA are built\n"),
        (
            "auto",
            "csrc/cpu",
            {"cuda"},
            "kernels for CUDA are built; not for CPU, on the slower PyTorch path: ",
        ),
        (
            "auto",
            "csrc/cuda",
            {"cpu"},
            "kernels for CPU are built; not for CUDA, on the slower PyTorch path: ",
        ),
        (
            "cuda",
            "csrc/cpu",
            {"cuda"},
            "kernels for CUDA are built; not for CPU, on the slower PyTorch path: ",
        ),
        ("auto", "csrc/cpu csrc/cuda", set(), "kernels for CUDA could not be built: "),
    ],
)
def test_one_part_of_the_build_does_not_take_the_other_along(tmp_path, build, refused, parts, said):
    for name in ("csrc", "mrt/__init__.py", "setup.py"):
        source, target = ROOT / name, tmp_path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if source.is_dir() else shutil.copy)(source, target)
    cuda = tmp_path / "toolkit"
    for name in ("bin/nvcc", "bin/compiler", "include/cuda_runtime.h"):
        path = cuda / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(STAND_IN.format(python=sys.executable, release=torch.version.cuda))
        path.chmod(0o755)
    compiler = str(cuda / "bin/compiler")
    variables = {key: value for key, value in os.environ.items() if not key.startswith("NVCC_")}
    variables |= {"CXX": compiler, "CC": compiler, "LDSHARED": compiler, "LDCXXSHARED": compiler}
    variables |= {"MRT_BUILD": build, "CUDA_HOME": str(cuda), "TORCH_CUDA_ARCH_LIST": "8.0;9.0+PTX"}
    variables |= {"TORCH_DONT_CHECK_COMPILER_ABI": "1", "REFUSED": refused}
    variables |= {"LINKED": str(tmp_path / "linked"), "FLAGS": str(tmp_path / "flags")}
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"mrt build: {said}" in done.stderr, done.stderr
    summary = [line for line in done.stderr.splitlines() if line.startswith("mrt build:")]
    assert all(f"error: too old for {word}" in "".join(summary) for word in refused.split())
    assert len(list(tmp_path.glob("mrt/_C*"))) == (1 if parts else 0)
    if parts:
        linked = (tmp_path / "linked").read_text()
        assert {part for part in ("cpu", "cuda") if f"csrc/{part}/" in linked} == parts
        flags = (tmp_path / "flags").read_text().split()
        assert {part for part in ("cpu", "cuda") if f"-DMRT_WITH_{part.upper()}" in flags} == parts
        assert ("-DMRT_CUDA_CODE=sm_80,compute_90,sm_90" in flags) == ("cuda" in parts)
