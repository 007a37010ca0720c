"""The choice of a backend, messages when there are no kernels, and a build without a compiler."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ops_cases import needs_native

from mrt.errors import MrtError
from mrt.ops import backend, fallback_reason, native

ROOT = Path(__file__).resolve().parents[2]

TWO_CALLS = """
import torch
from mrt.ops import backend, ms_deform_attn
locations = torch.full((1, 1, 1, 1, 1, 2), 0.5)
for _ in range(2):
    out = ms_deform_attn(torch.ones(1, 4, 1, 2), [(2, 2)], locations, torch.ones(1, 1, 1, 1, 1))
print(backend(out), out.flatten().tolist())
"""


def run_python(code: str, folder: Path, **environment: str) -> subprocess.CompletedProcess:
    variables = {key: value for key, value in os.environ.items() if key != "MRT_OPS_BACKEND"}
    variables |= {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", **environment}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, check=False)


def test_without_the_extension_the_fallback_is_announced_once(tmp_path):
    shutil.copytree(ROOT / "mrt" / "ops", tmp_path / "mrt" / "ops")
    for name in ("__init__.py", "errors.py"):
        shutil.copy(ROOT / "mrt" / name, tmp_path / "mrt" / name)
    done = run_python(TWO_CALLS, tmp_path)
    assert done.stdout.split() == ["python", "[1.0,", "1.0]"], done.stderr
    assert done.stderr.count("slower PyTorch path") == 1
    assert "mrt/_C was not built" in done.stderr and "pip install" in done.stderr


def test_a_broken_extension_gives_its_reason(tmp_path):
    shutil.copytree(ROOT / "mrt" / "ops", tmp_path / "mrt" / "ops")
    for name in ("__init__.py", "errors.py"):
        shutil.copy(ROOT / "mrt" / name, tmp_path / "mrt" / name)
    (tmp_path / "mrt" / "_C.abi3.so").write_bytes(b"not a library")
    done = run_python(TWO_CALLS, tmp_path)
    assert done.returncode == 0 and "_C.abi3.so could not be loaded" in done.stderr


def test_asking_for_the_pytorch_path_is_not_announced():
    done = run_python(TWO_CALLS, ROOT, MRT_OPS_BACKEND="python")
    assert done.stdout.startswith("python") and done.stderr == ""


def test_choice(monkeypatch):
    monkeypatch.setattr(native, "_has_kernel", lambda device_type: device_type == "cpu")
    assert [native.choose(device, "auto") for device in ("cpu", "cuda", "mps")] == ["cpu", "python", "python"]
    assert native.choose("cpu", "python") == "python"
    assert native.choose("cuda", "cpu") == "python"
    with pytest.raises(MrtError, match="MRT_OPS_BACKEND=cuda, but"):
        native.choose("cuda", "cuda")
    with pytest.raises(MrtError, match="MRT_OPS_BACKEND=gpu is not a backend"):
        native.choose("cpu", "gpu")
    monkeypatch.setattr(native, "requested", "gpu")
    monkeypatch.setattr(native, "_chosen", {})
    with pytest.raises(MrtError, match="auto, python, cpu or cuda"):
        backend(torch.zeros(1))


@needs_native
def test_reasons(monkeypatch):
    monkeypatch.setattr(native, "requested", "auto")
    assert fallback_reason("cpu") is None
    assert "without kernels for mps" in fallback_reason("mps")
    monkeypatch.setattr(native, "requested", "python")
    assert fallback_reason("cpu") == "MRT_OPS_BACKEND=python"


@pytest.mark.parametrize(
    "code, capabilities",
    [
        ("sm_80", {(8, 0), (8, 6), (8, 9)}),
        ("sm_86", {(8, 6), (8, 9)}),
        ("sm_90a", {(9, 0)}),
        ("compute_86", {(8, 6), (8, 9), (9, 0), (10, 0), (10, 3), (12, 0)}),
        ("compute_90a", {(9, 0)}),
        ("sm_100f", {(10, 0), (10, 3)}),
        ("sm_120", {(12, 0)}),
    ],
)
def test_which_gpus_run_which_code(code, capabilities):
    everything = [(7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (10, 3), (12, 0)]
    assert {capability for capability in everything if native.runs_on(code, capability)} == capabilities


class Somewhere:
    """What the choice of a backend reads of a tensor, on a device that need not exist."""

    def __init__(self, name: str):
        self.device = torch.device(name)


@pytest.fixture
def gpus(monkeypatch):
    """Two GPUs, sm_75 and sm_100, and an extension for sm_80 and newer ones."""
    monkeypatch.setattr(native, "_has_kernel", lambda device_type: device_type == "cuda")
    monkeypatch.setattr(native, "requested", "auto")
    monkeypatch.setattr(native, "cuda_code", ("sm_80", "compute_90"))
    monkeypatch.setattr(native, "_announced", False)
    for name in ("_chosen", "_verdicts"):
        monkeypatch.setattr(native, name, {})
    found = [("Old GPU", 7, 5), ("New GPU", 10, 0)]
    monkeypatch.setattr(native, "_gpu", found.__getitem__)


def test_a_gpu_without_code_takes_the_pytorch_path(gpus, capsys):
    found = [backend(Somewhere(name)) for name in ("cuda:1", "cuda:0", "cuda:0")]
    assert found == ["cuda", "python", "python"]
    said = capsys.readouterr().err
    assert said.count("slower PyTorch path") == 1
    assert "built for sm_80, compute_90, but Old GPU is sm_75" in said and "TORCH_CUDA_ARCH_LIST=7.5" in said


def test_reasons_of_a_gpu(gpus, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    assert "Old GPU" in fallback_reason("cuda") and "Old GPU" in fallback_reason("cuda:0")
    assert fallback_reason("cuda:1") is None


def test_kernels_that_were_asked_for_and_are_for_other_gpus(gpus, monkeypatch):
    monkeypatch.setattr(native, "requested", "cuda")
    assert backend(Somewhere("cuda:1")) == "cuda"
    with pytest.raises(MrtError, match="MRT_OPS_BACKEND=cuda, but the extension was built for sm_80"):
        backend(Somewhere("cuda:0"))


@pytest.mark.parametrize("unknown", ["code", "gpu"])
def test_what_is_not_known_is_left_to_cuda(gpus, monkeypatch, unknown):
    """An extension that was built before its code was recorded, and fake tensors where there is no GPU."""
    if unknown == "code":
        monkeypatch.setattr(native, "cuda_code", ())
    else:
        monkeypatch.setattr(native, "_gpu", lambda index: None)
    assert backend(Somewhere("cuda:0")) == "cuda" and fallback_reason("cuda") is None


def test_torch_compile_asks_for_the_gpu_when_it_compiles(gpus):
    """The question is answered during compilation, without a graph break."""
    devices = [torch.device("cuda", index) for index in (0, 1)]

    def shifted(tensor: torch.Tensor) -> torch.Tensor:
        for device in devices:
            tensor = tensor + (1 if native._no_code_for(device.index) is None else 10)
        return tensor

    compiled = torch.compile(shifted, fullgraph=True, backend="eager")
    assert compiled(torch.zeros(1)).item() == 11


@pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler")
@pytest.mark.parametrize("code", [("sm_80", "sm_90", "compute_90"), ()])
def test_a_binary_records_its_code(tmp_path, code):
    """As register.cpp does."""
    text = (ROOT / "csrc" / "register.cpp").read_text()
    (tmp_path / "record.cpp").write_text(text[text.index("#ifdef MRT_CUDA_CODE") :])
    macros = [f"-DMRT_CUDA_CODE={','.join(code)}"] if code else []
    flags = ["-shared", "-fPIC", "-fvisibility=hidden", *macros]
    subprocess.run(["c++", *flags, tmp_path / "record.cpp", "-o", tmp_path / "record.so"], check=True)
    assert native.code_of(tmp_path / "record.so") == code


@pytest.mark.parametrize(
    "compiler, reason",
    [
        ("no-such-compiler", "there is no C++ compiler no-such-compiler"),
        ("false", "kernels for CPU could not be built"),
        ("", "there is no C++ compiler c++"),  # an empty CXX counts as none; no c++ is on this PATH
    ],
    ids=["missing", "failing", "empty"],
)
def test_a_build_without_a_compiler_says_why_and_succeeds(tmp_path, compiler, reason):
    for name in ("csrc", "mrt/__init__.py", "setup.py"):
        source, target = ROOT / name, tmp_path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if source.is_dir() else shutil.copy)(source, target)
    environment = {**os.environ, "CXX": compiler, "CC": compiler, "MRT_BUILD": "cpu"}
    if not compiler:
        environment["PATH"] = str(tmp_path)
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert reason in done.stderr and "the PyTorch path it is" in done.stderr
    assert not list(tmp_path.glob("mrt/_C*"))
