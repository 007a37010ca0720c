"""A test of the tests: mistakes planted in the kernels' sources, each of which a test must notice.

A few of them here; all with ``make soak``.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import test_ops_cuda_emulated as emulated
import test_ops_cuda_host as host
import test_ops_nan as nan
import torch
from cuda_emulator import COMPILER, KERNELS, build_host, compile_one, link, objects_of
from test_ops_compilers import FLAGS, headers

pytestmark = pytest.mark.skipif(COMPILER is None, reason="the emulator needs g++")
F32, BF16 = torch.float32, torch.bfloat16


class Mutant(NamedTuple):
    file: str  # in csrc/cuda
    right: str  # occurs once
    wrong: str
    test: Callable[..., None]  # must fail; takes the library
    quick: bool = False  # in the usual tests, too


def decoder(dtype=F32, dim=16, levels=3):
    """The fused op for these sizes."""
    return lambda library: emulated.test_fast_decoder({"sm_90": library}, dtype, dim, levels)


def encoder(dtype=F32, dim=16):
    return lambda library: emulated.test_fast_encoder_in_16_bits({"sm_90": library}, dtype, dim, 2, True)


def nowhere(queries):
    return lambda library: emulated.test_points_that_are_nowhere(
        {"sm_90": library}, float("nan"), 32, queries
    )


def weights_outside(dim=32, deterministic=False):
    def run(library):
        return nan.test_a_weight_outside_counts_for_nothing(
            nan.on_emulator(library, deterministic), dim, 7, F32
        )

    return run


class ByHost:
    """A test of the CUDA host file, and its arguments."""

    def __init__(self, test, *arguments):
        self.test, self.arguments = test, arguments

    def __call__(self, host):
        self.test(host, *self.arguments)


ADDRESS = "at(static_cast<int>(in_.weight_step), round)"
MUTANTS = {
    "a NaN in cell 0 leaks": Mutant(
        "forward.cu", "if (somewhere) sum[i] +=", "sum[i] +=", nowhere("decoder"), True
    ),
    "corner weights of 16 bits": Mutant(
        "forward.cu",
        "const float factors[4] = {w.x, w.y, w.z, w.w};",
        "const c10::BFloat16 factors[4] = {w.x, w.y, w.z, w.w};",
        decoder(BF16),
    ),
    "dx of 16 bits": Mutant(
        "backward.cu",
        "fractions[thread] = make_float2(place.dx,",
        "fractions[thread] = make_float2(c10::BFloat16(place.dx),",
        encoder(BF16),
    ),
    "the softmax's mean is forgotten": Mutant(
        "backward.cu",
        "(along_weights[round][thread] - mean)",
        "along_weights[round][thread]",
        decoder(),
    ),
    "the gradient of a point outside is its NaN weight's": Mutant(
        "backward.cu", "inside != 0u ? mine : 0.f", "mine", weights_outside()
    ),
    "a corner outside is added to": Mutant(
        "backward.cu", "at.y |= inside & 2u ? 0u : kOff", "at.y |= inside != 0u ? 0u : kOff", decoder()
    ),
    "a tile's row is one too few": Mutant(
        "fast.cuh", "if (column >= columns) ++row, column -= columns;", "", encoder()
    ),
    "corners are read before they are written": Mutant(
        "forward.cu",
        "left * lower, right * lower);  // zero outside\n    __syncwarp();",
        "left * lower, right * lower);",
        decoder(),
    ),
    "a round's corners overwrite the last one's": Mutant(
        "forward.cu", "    __syncwarp();  // the last round's have been read\n", "", decoder()
    ),
    "bins are not emptied at first": Mutant(
        "tiles.cu",
        "  bins[thread] = make_int4(0, 0, 0, 0);\n  if (thread == 0) outside = 0;\n\n  // This",
        "  // This",
        encoder(),
    ),
    "no barrier before the sums": Mutant(
        "tiles.cu", "__syncthreads();\n    bins[thread]", "bins[thread]", encoder(), True
    ),
    "the last run of a group is not added": Mutant(
        "tiles.cu", "if (begin < end) add4<kLanes>", "if (false) add4<kLanes>", encoder()
    ),
    "a corner's row is the upper one's": Mutant(
        "tiles.cu", "cell + c % 2 + c / 2 * width", "cell + c % 2", encoder()
    ),
    "logits are read as if they were contiguous": Mutant(
        "fast.cuh",
        ADDRESS,
        "at(g_.heads * samples(g_), round)",
        ByHost(host.test_slices_of_one_product, F32, F32, 7, 32, False),
    ),
    "the second number of a pair is the first": Mutant(
        "vectors.cuh",
        "from_bits(bits >> 16, storage)",
        "from_bits(bits, storage)",
        ByHost(host.test_slices_of_one_product, BF16, BF16, 7, 32, True),
    ),
    "gradients of 16 bits are cut off, not rounded": Mutant(
        "vectors.cuh",
        "const c10::BFloat16 rounded(x);\n    std::memcpy(&bits, &rounded, sizeof(bits));",
        "std::memcpy(&bits, reinterpret_cast<const char*>(&x) + 2, sizeof(bits));",
        ByHost(host.test_slices_of_one_product, BF16, BF16, 7, 32, True),
    ),
    "misaligned tensors are read in vectors": Mutant(
        "fast.h",
        "!aligned(in.value) || ",
        "",
        lambda library: emulated.test_misaligned_tensors_are_generic({"sm_80": library}),
    ),
    "five levels are too many": Mutant(
        "fast.cuh",
        "(kFastPoints * kMostLevels + kLanes - 1) / kLanes",
        "4 * kFastPoints / kLanes",
        decoder(levels=5),
    ),
    "integer sums of 2^-20": Mutant(
        "sums.cuh",
        "const int exponent = 61 - above;",
        "const int exponent = 20 - above;",
        lambda library: emulated.test_deterministic({"sm_90": library}, F32, True, 1e-3),
    ),
    "a NaN weight outside counts in the bound": Mutant(
        "generic.cu",
        "return fabs(x) < INFINITY ? fabs(x) : 0.;",
        "return fabs(x);",
        weights_outside(24, True),
    ),
    "the generic kernel skips the last chunk's points": Mutant(
        "generic.cu",
        "if (k >= g.samples) return p;",
        "if (k + 1 >= g.samples) return p;",
        lambda library: emulated.test_generic({"sm_80": library}, F32, 33, 9, 4),
    ),
    "references without their level's height": Mutant(
        "generic.cu",
        "grad_references[2 * index + 1] = y * g.height[level];",
        "grad_references[2 * index + 1] = y * g.width[level];",
        decoder(),
    ),
    "the host forgets the current stream": Mutant(
        "ms_deform_attn.cpp",
        "const cudaStream_t stream = current_stream(value);",
        "const cudaStream_t stream = nullptr;",
        ByHost(host.test_every_dtype, F32, True),
    ),
    "the host stays on another device": Mutant(
        "ms_deform_attn.cpp",
        "grad_output_in);\n  const DeviceGuard guard(value_in.get_device_index());\n",
        "grad_output_in);\n",
        ByHost(host.test_every_dtype, F32, True),
    ),
    "references get gradients of rounded numbers": Mutant(
        "ms_deform_attn.cpp",
        "rounded && !deterministic",
        "!deterministic",
        ByHost(host.test_slices_of_one_product, BF16, BF16, 7, 32, False),
    ),
    "generic kernels write 16 bits": Mutant(
        "ms_deform_attn.cpp",
        "!deterministic && writes_16_bits(g, in, data<const V>(grad_output))",
        "!deterministic",
        ByHost(host.test_slices_of_one_product, BF16, BF16, 7, 24, True),
    ),
    "value is taken for contiguous": Mutant(
        "ms_deform_attn.cpp",
        "  const Tensor value = compact(value_in);\n  const QueryRows",
        "  const Tensor value = value_in;\n  const QueryRows",
        ByHost(host.test_strange_layouts, "value", "transposed", F32),
    ),
}
SOURCES = {
    "forward.cu": ("forward",),
    "backward.cu": ("backward",),
    "tiles.cu": ("tiles",),
    "generic.cu": ("generic",),
}
SOURCES |= {"fast.cuh": ("forward", "backward", "tiles"), "fast.h": ("forward", "backward", "tiles")}
SOURCES |= {
    "vectors.cuh": ("forward", "backward", "tiles", "generic"),
    "sums.cuh": ("generic",),
    "ms_deform_attn.cpp": (),
}


def mutated(folder: Path, mutant: Mutant, sources: Path) -> Path:
    """A copy of the sources with the mistake; returns the folder of the mutated file."""
    copy = folder / "csrc" / sources.name
    for source in (*sources.glob("*"), *sources.parent.glob("*.*")):
        target = folder / "csrc" / source.relative_to(sources.parent)
        target.parent.mkdir(parents=True, exist_ok=True)
        text = source.read_text()
        if source == sources / mutant.file:
            assert text.count(mutant.right) == 1, f"{mutant.file} has changed: {mutant.right}"
            text = text.replace(mutant.right, mutant.wrong)
        target.write_text(text)
    return copy


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if mutant.quick else pytest.mark.soak) for name, mutant in MUTANTS.items()],
)
def test_a_mistake_in_the_cuda_sources_is_noticed(libraries, emulator_folder, tmp_path, name):
    mutant = MUTANTS[name]
    kernels = mutated(tmp_path, mutant, KERNELS)
    objects = objects_of(emulator_folder)
    for stem in SOURCES[mutant.file]:
        macros = ("-DMRT_VECTOR_ATOMICS=1",) if stem in ("backward", "tiles") else ()
        objects[stem] = compile_one(kernels / f"{stem}.cu", tmp_path / f"{stem}.o", *macros, kernels=kernels)
    if isinstance(mutant.test, ByHost):
        namespace = f"mrt_mutant_{list(MUTANTS).index(name)}"
        library = build_host(tmp_path, list(objects.values()), kernels, namespace)
    else:
        library = link(tmp_path / "mutant.so", list(objects.values()))
    with pytest.raises((AssertionError, RuntimeError)) as noticed:
        mutant.test(library)
    # What the host's check of launches says is an answer; other errors would be mistakes of this file.
    assert isinstance(noticed.value, AssertionError) or "emulated: " in str(noticed.value)


CPU_MUTANTS = {
    "corners on the wrong side": ("points.inl", "counted * dx * (1 - dy)", "counted * dy * (1 - dx)"),
    "a second pass over channels overwrites the first": ("slices.inl", "if (!first_pass) {", "if (false) {"),
    "the row of zeros is not cleared": (
        "slices.inl",
        "  std::memset(rows, 0, V * kLanes<T> * sizeof(T));\n}",
        "  std::memset(rows, 0x3f, V * kLanes<T> * sizeof(T));\n}",
    ),
    "a part's map is left out": (
        "slices.inl",
        "for (int64_t part = 0; part < call.parts",
        "for (int64_t part = 1; part < call.parts",
    ),
    "the softmax's mean is forgotten": ("slices.inl", ".weight * (grad - mean)", ".weight * grad"),
    "the largest logit is not subtracted": (
        "points.inl",
        "exponential(load(attention_ + k) - largest[j])",
        "exponential(load(attention_ + k) - largest[j] * 0)",
    ),
    "16-bit numbers are cut off": ("vectors.inl", "(bits + 0x7fff + ((bits >> 16) & 1)) >> 16", "bits >> 16"),
}


def compiled(source: Path, target: Path) -> Path:
    command = [COMPILER, *FLAGS, "-c", str(source), "-o", str(target)]
    subprocess.run(command, check=True)
    return target


@pytest.fixture(scope="module")
def right(tmp_path_factory):
    """Objects without mistakes: the program and the kernels for AVX2 and AVX-512."""
    folder, cpu = tmp_path_factory.mktemp("right"), KERNELS.parent / "cpu"
    sources = [Path(__file__).with_name("kernels_alone.cpp"), cpu / "avx2.cpp", cpu / "avx512.cpp"]
    return [compiled(source, folder / f"{source.stem}.o") for source in sources]


@pytest.mark.soak
@headers
@pytest.mark.parametrize("name", CPU_MUTANTS)
def test_a_mistake_in_the_cpu_sources_is_noticed(right, tmp_path, name):
    """By kernels_alone.cpp, in the kernels for the least instruction set."""
    folder = mutated(tmp_path, Mutant(*CPU_MUTANTS[name], lambda library: None), KERNELS.parent / "cpu")
    baseline = compiled(folder / "baseline.cpp", tmp_path / "baseline.o")
    program = tmp_path / "alone"
    subprocess.run([COMPILER, "-static", "-Wl,--gc-sections", *right, baseline, "-o", program], check=True)
    done = subprocess.run([program], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "WRONG baseline" in done.stdout, done.stdout
