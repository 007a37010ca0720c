"""Builds the kernels in csrc/ into mrt/_C.abi3.so: for the CPU, and for CUDA if torch and nvcc agree.

Metadata is in pyproject.toml. If one of the two parts fails, the other is built without it; what is left out,
and why, is printed at the end, and mrt uses its PyTorch path there. The installation never fails because of
it. MRT_BUILD=auto|cpu|cuda|none selects what is built; cuda means both too, and CUDA rather than the CPU.
"""

from __future__ import annotations

import copy
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
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


@contextmanager
def overheard() -> Iterator[list[str]]:
    """The lines that compilers print meanwhile, complete afterwards; they are printed all the same."""
    lines: list[str] = []

    def listen(pipe: int, screen: int) -> None:
        with os.fdopen(pipe, "rb") as printed:
            for line in printed:
                os.write(screen, line)
                lines.append(line.decode(errors="replace").strip())

    listeners = []
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    for number in (1, 2):
        screen = os.dup(number)
        pipe, end = os.pipe()
        os.dup2(end, number)
        os.close(end)
        listeners.append((number, screen, threading.Thread(target=listen, args=(pipe, screen), daemon=True)))
        listeners[-1][2].start()
    try:
        yield lines
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        for number, screen, thread in listeners:
            os.dup2(screen, number)  # closes the pipe's end, unless a process that was started still holds it
            thread.join(timeout=10)
            if not thread.is_alive():
                os.close(screen)


def cause(error: Exception, lines: list[str]) -> str:
    """The first error that a compiler printed, in one line; if there is none, the exception's text."""
    errors = re.compile(r"\b(error( #\S+)?|fatal)\s*:", re.IGNORECASE)
    first = next(filter(errors.search, lines), "")
    return (first.replace(f"{ROOT}/", "") or " ".join(str(error).split()))[:400]


def cuda_code(flags: list[str]) -> str:
    """Which code these flags make nvcc put into the binary, as "sm_80,compute_90"; "" if that is unknown."""
    others = os.environ.get("NVCC_PREPEND_FLAGS", "") + os.environ.get("NVCC_APPEND_FLAGS", "")
    if "arch" in others or "code" in others:
        return ""
    return ",".join(code for flag in flags for code in re.findall(r",code=(\w+)", flag))


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
        from torch.utils import cpp_extension
        from torch.utils.cpp_extension import BuildExtension, CppExtension, CUDAExtension, include_paths
    except ImportError as error:
        hint = "install torch first, then use --no-build-isolation"
        say(f"no kernels, the PyTorch path it is: {error} ({hint})")
        return [], build_ext
    if not torch.cuda.is_available():  # with a GPU, torch builds for that one
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", "8.0;9.0+PTX")

    def extension(parts: tuple[str, ...]):
        with_cuda = "CUDA" in parts
        folders = ("csrc", *(f"csrc/{part.lower()}" for part in parts))
        files = [path for folder in folders for path in ROOT.glob(f"{folder}/*")]
        paths = [path for path in files if path.suffix in (".cpp", ".cu")]
        macros = [("TORCH_TARGET_VERSION", ABI), *((f"MRT_WITH_{part}", None) for part in parts)]
        flags = [*CXX_FLAGS, *without_folders(include_paths())]
        if with_cuda:
            macros.append(("USE_CUDA", None))
            # nvcc would split a macro with commas in two: this one is for the C++ compiler only.
            code = cuda_code(getattr(cpp_extension, "_get_cuda_arch_flags", list)())
            flags += [f"-DMRT_CUDA_CODE={code}"] if code else []
        return (CUDAExtension if with_cuda else CppExtension)(
            "mrt._C",
            sorted(str(path.relative_to(ROOT)) for path in paths),
            depends=[str(path) for path in ROOT.glob("csrc/**/*") if path.suffix in (".h", ".inl", ".cuh")],
            define_macros=macros,
            extra_compile_args={"cxx": flags, "nvcc": ["-O3", "-Xcompiler=-fvisibility=hidden"]},
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
            both, cpu, cuda = ("CPU", "CUDA"), ("CPU",), ("CUDA",)
            attempts = {"cpu": [cpu], "cuda": [both, cuda], "auto": [both, cpu, cuda]}[wanted]
            asked, failures = attempts[0], {}
            disagreement = cuda_disagreement(home, torch.version.cuda) if wanted == "auto" else None
            if disagreement is not None:
                attempts, failures[cuda] = [cpu], disagreement
            plain, built = self.compiler, ()
            for parts in attempts:
                self.compiler = copy.copy(plain)  # torch changes it
                failures[parts] = self.attempt(parts)
                if failures[parts] is None:
                    built = parts
                    break
            # What failed alone has its own reason; what was not tried alone is to blame for both's failure.
            left_out = {p: failures.get((p,), failures.get(both)) for p in asked if p not in built}
            if not built:
                for part, reason in left_out.items():
                    say(f"kernels for {part} could not be built: {reason}")
                return say("the PyTorch path it is: correct, but slower")
            others = [f"; not for {part}, on the slower PyTorch path: {left_out[part]}" for part in left_out]
            say(f"kernels for {' and '.join(built)} are built{''.join(others)}")

        def attempt(self, parts: tuple[str, ...]) -> str | None:
            """Build these parts into one binary; returns why that failed, or None."""
            (module,) = self.extensions
            with overheard() as lines:
                try:
                    vars(module).update(vars(extension(parts)))
                    module.optional = False  # setuptools would hide an optional one's failure
                    super().build_extensions()
                    return None
                except Exception as error:  # any failure of any compiler: the package works without kernels
                    failure = error
                finally:
                    module.optional = True
            return cause(failure, lines)

    return [extension(("CPU",))], BuildOrExplain.with_options(use_ninja=True)


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
