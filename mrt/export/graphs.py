"""Traced programs as files: PyTorch's own archive, and ONNX. Neither contains paths of this machine."""

from __future__ import annotations

import logging
import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.export import ExportedProgram

from mrt.errors import MrtError
from mrt.export.program import INPUT, OUTPUTS

if TYPE_CHECKING:
    import onnx

OPSETS = range(18, 24)  # the exporter writes 18; others are converted from it
INSTALL = 'pip install "mrt-detection[export]"'


def write_torch_export(graph: ExportedProgram, path: Path) -> None:
    """A ``.pt2`` archive for ``torch.export.load``."""
    for module in graph.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)  # file names of this machine
    graph.example_inputs = None  # megabytes of zeros
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        torch.export.save(graph, path)


def require_onnx(opset: int) -> None:
    """MrtError if ONNX files cannot be written here, or not with that operator set."""
    if opset not in OPSETS:
        raise MrtError(f"opset {opset}: expected {OPSETS[0]} to {OPSETS[-1]}", "18 is understood by most")
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        what = f"the package {error.name} is not installed, which writes ONNX files"
        raise MrtError(what, INSTALL) from None


def write_onnx(graph: ExportedProgram, path: Path, opset: int) -> None:
    """An ONNX file of standard operators; its free dimensions are called batch, height and width.

    Args:
        graph: traced without kernels.
        opset: one of :data:`OPSETS`.

    Raises:
        MrtError: the exporter refuses the program, or its packages are missing.
    """
    require_onnx(opset)
    import onnx

    quiet = logging.getLogger("onnxscript")
    level = quiet.level
    quiet.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            written = torch.onnx.export(
                graph,
                dynamo=True,
                opset_version=opset,
                input_names=[INPUT],
                output_names=list(OUTPUTS),
                verbose=False,
            )
        model = written.model_proto
    except (torch.onnx.OnnxExporterError, RuntimeError, ValueError) as error:
        raise MrtError(
            f"this detector cannot be written as ONNX: {_first_line(error)}",
            "Give one size: --size WIDTHxHEIGHT.",
        ) from error
    finally:
        quiet.setLevel(level)
    found = model.opset_import[0].version
    if found != opset:
        raise MrtError(f"opset {opset}: the exporter could only write {found}", f"--opset {found}")
    _tidy(model)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString(deterministic=True))


def _tidy(model: onnx.ModelProto) -> None:
    """Name the free dimensions, and remove stack traces and the shapes of intermediate results."""
    names: dict[str, str] = {}
    dimensions = model.graph.input[0].type.tensor_type.shape.dim
    for dimension, name in zip(dimensions, ("batch", "", "height", "width"), strict=True):
        if dimension.dim_param:
            names[dimension.dim_param] = name

    def renamed(text: str) -> str:
        return re.sub(r"\w+", lambda found: names.get(found[0], found[0]), text)

    graph = model.graph
    for value in (*graph.input, *graph.output):
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param:
                dimension.dim_param = renamed(dimension.dim_param)
    del graph.value_info[:]
    for item in (model, graph, *graph.node, *graph.initializer, *graph.input, *graph.output):
        item.doc_string = ""
        del item.metadata_props[:]


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
