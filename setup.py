"""Builds the kernels in csrc/ into mrt/_C.abi3.so: for CUDA if torch and nvcc agree, else for the CPU.

Metadata is in pyproject.toml. If the build fails, it prints the reason, and mrt uses its PyTorch path; the
installation never fails because of it. MRT_BUILD=auto|cpu|cuda|none selects what is built.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
ABI = "0x020b000000000000ULL"  # the oldest torch that can load the binary: 2.11
CXX_FLAGS = ["-O3", "-g0", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"]
CXX_FLAGS += ["-fvisibility=hidden", "-Wno-psabi"]


def say(message: str) -> None:
    print(f"mrt build: {message}", file=sys.stderr, flush=True)


def without_folders(headers: list[str]) -> list[str]:
    """Compiler flags that keep folders of the building machine out of file names in the binary.

    Names become relative to this folder or torch's headers. The compiler applies the last flag that matches,
    and torch's headers may be below ROOT, so they come last.
    """
    return [f"-ffile-prefix-map={folder}/=" for folder in (ROOT, *headers)]


def cuda_home() -> str | None:
    """A toolkit with both compiler and headers; nvcc on the PATH may be a wrapper in another place."""
    for home in (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"):
        if home and Path(home, "bin/nvcc").exists() and Path(home, "include/cuda_runtime.h").exists():
            return home
    return None


def cuda_disagreement(home: str | None, torch_cuda: str | None) -> str | None:
    """Why CUDA kernels cannot be built, or None if they can."""
    if torch_cuda is None:
        return "this torch was built without CUDA"
    if home is None:
        return "no CUDA toolkit was found (set CUDA_HOME to one that has bin/nvcc and include/cuda_runtime.h)"
    command = [f"{home}/bin/nvcc", "--version"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    release = re.search(r"release (\d+)\.(\d+)", answer)
    if release is None:
        return f"{home}/bin/nvcc does not state its release"
    if release[1] != torch_cuda.split(".")[0]:
        return f"nvcc is release {release[1]}.{release[2]}, torch was built with CUDA {torch_cuda}"
    return None


def extensions() -> tuple[list, type[build_ext]]:
    """The extension to build (none, C++ or C++ and CUDA) and the command that builds it."""
    wanted = os.environ.get("MRT_BUILD", "auto")
    if wanted not in ("auto", "cpu", "cuda", "none"):
        raise SystemExit(f"MRT_BUILD={wanted}: choose auto, cpu, cuda or none")
    if wanted == "none":
        return [], build_ext
    home = cuda_home()
    if home is not None:
        os.environ["CUDA_HOME"] = home  # read when cpp_extension is imported
    if not os.environ.get("CXX", "c++").strip():
        del os.environ["CXX"]
    try:
        import torch
        from torch.utils.cpp_extension import BuildExtension, CppExtension, CUDAExtension, include_paths
    except ImportError as error:
        hint = "install torch first, then use --no-build-isolation"
        say(f"no kernels, the PyTorch path it is: {error} ({hint})")
        return [], build_ext
    if not torch.cuda.is_available():  # with a GPU, torch builds for that one
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", "8.0;9.0+PTX")

    def extension(with_cuda: bool):
        folders = ("csrc", "csrc/cpu", "csrc/cuda") if with_cuda else ("csrc", "csrc/cpu")
        files = [path for folder in folders for path in ROOT.glob(f"{folder}/*")]
        paths = [path for path in files if path.suffix in (".cpp", ".cu")]
        macros = [("TORCH_TARGET_VERSION", ABI)]
        macros += [("MRT_WITH_CUDA", None), ("USE_CUDA", None)] if with_cuda else []
        return (CUDAExtension if with_cuda else CppExtension)(
            "mrt._C",
            sorted(str(path.relative_to(ROOT)) for path in paths),
            depends=[str(path) for path in ROOT.glob("csrc/**/*") if path.suffix in (".h", ".inl", ".cuh")],
            define_macros=macros,
            extra_compile_args={
                "cxx": [*CXX_FLAGS, *without_folders(include_paths())],
                "nvcc": ["-O3", "-Xcompiler=-fvisibility=hidden"],
            },
            py_limited_api=True,
            optional=True,
        )

    class BuildOrExplain(BuildExtension):
        def build_extensions(self) -> None:
            compiler = os.environ.get("CXX", "c++").split()[0]
            if shutil.which(compiler) is None:
                return say(
                    f"there is no C++ compiler {compiler} (install g++, or set CXX); the PyTorch path it is: "
                    "correct, but slower"
                )
            attempts = {"cpu": [False], "cuda": [True], "auto": [True, False]}[wanted]  # with CUDA?
            reason = cuda_disagreement(home, torch.version.cuda) if wanted == "auto" else None
            if reason is not None:
                say(f"without CUDA kernels: {reason}")
                attempts = [False]
            for with_cuda in attempts:
                device = "CPU and CUDA" if with_cuda else "CPU"
                try:
                    vars(self.extensions[0]).update(vars(extension(with_cuda)))
                    super().build_extensions()
                    return say(f"kernels for {device} are built")
                except Exception as error:  # any failure of any compiler: the package works without kernels
                    say(f"kernels for {device} could not be built: {error}")
            say("the PyTorch path it is: correct, but slower")

    return [extension(False)], BuildOrExplain.with_options(use_ninja=True)


version = re.search(r'__version__ = "(.+)"', (ROOT / "mrt/__init__.py").read_text())[1]
modules, command = extensions()
packages = [*find_packages(include=["mrt", "mrt.*"]), "mrt_cli"]
packages += [f"mrt_cli.{name}" for name in find_packages("cli")]
files = ["presets/*.toml", "presets/*.json", "weights/*.safetensors", "report/templates/*.j2"]
setup(
    version=version,
    packages=packages,
    package_dir={"mrt_cli": "cli"},
    package_data={"mrt": files},
    ext_modules=modules,
    cmdclass={"build_ext": command},
    # The tag is the lowest version for the binary: it calls no function of Python, and the oldest torch that
    # can load it needs Python 3.10. The Python files need requires-python of pyproject.toml; pip checks both.
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
