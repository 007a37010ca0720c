"""Arrays of more than 2^31 elements that need little memory, because only few of their pages are used."""

from __future__ import annotations

import contextlib
import mmap
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ops_cases import needs_native, use_backend

from mrt.ops import ms_deform_attn

ROOT = Path(__file__).resolve().parents[2]
MAP_NORESERVE = 0x4000  # not in Python's mmap before 3.13
LINUX = sys.platform == "linux" and sys.maxsize > 2**32
linux_only = pytest.mark.skipif(not LINUX, reason="needs Linux' untouched pages, and 64 bits")


def zeros(count: int) -> torch.Tensor:
    """``count`` float32 zeros that use no memory until they are written.

    Reading them always reads the same page of the operating system.
    """
    try:
        memory = mmap.mmap(-1, 4 * count, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE)
    except OSError as error:
        pytest.skip(f"no address space of {4 * count >> 30} GiB: {error}")
    with contextlib.suppress(OSError):
        memory.madvise(mmap.MADV_HUGEPAGE)  # 1 s instead of 3 s
    return torch.frombuffer(memory, dtype=torch.float32)


@needs_native
@linux_only
def test_a_value_of_more_than_2_to_the_31_elements(monkeypatch):
    """The public op, forward: the last image starts at element 2^31, and only it has nonzero values."""
    use_backend(monkeypatch, "cpu", "cpu")
    batch, height, width, heads, dim = 5, 1024, 512, 16, 64
    value = zeros(batch * height * width * heads * dim).view(batch, height * width, heads, dim)
    assert value[-1].storage_offset() == 2**31
    value[-1, 0, 0] = torch.arange(1.0, dim + 1)
    value[-1, -1, -1] = torch.arange(2.0, dim + 2)
    # Centres of the first and the last cell.
    corners = torch.tensor([[0.5 / width, 0.5 / height], [1 - 0.5 / width, 1 - 0.5 / height]])
    locations, weights = corners.expand(batch, 1, heads, 1, 2, 2), torch.ones(batch, 1, heads, 1, 2)
    output = ms_deform_attn(value, [(height, width)], locations, weights).view(batch, heads, dim)
    assert torch.equal(output[-1, 0], value[-1, 0, 0]) and torch.equal(output[-1, -1], value[-1, -1, -1])
    assert output.count_nonzero() == 2 * dim


@linux_only
@pytest.mark.soak
@pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler")
def test_offsets_past_2_to_the_32(tmp_path):
    """Forward and backward of the CPU kernels, with all their arrays: see offsets.cpp.

    The kernels are compiled here from the checkout's sources.
    """
    include = Path(torch.__file__).parent / "include"
    if not (include / "torch/csrc/stable/tensor.h").exists():
        pytest.skip("this torch came without headers")
    program = tmp_path / "offsets"
    sources = [ROOT / "tests/ops/offsets.cpp", ROOT / "csrc/cpu/baseline.cpp"]
    flags = ["-std=c++20", "-O1", "-w", "-DTORCH_TARGET_VERSION=0x020b000000000000ULL"]
    flags += [f"-I{include}", f"-I{ROOT / 'csrc'}"]
    subprocess.run(["c++", *flags, *sources, "-o", program], check=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([program], env=environment, capture_output=True, text=True, check=False)
    if done.returncode == 77:
        pytest.skip("no address space of 1.4 TiB")
    assert done.returncode == 0, done.stdout or f"exit status {done.returncode}"
