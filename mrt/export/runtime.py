"""Exported programs as detectors: ONNX files by onnxruntime, ``torch.export`` archives by PyTorch."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mrt.errors import MrtError
from mrt.export.card import AGAIN, check_file, read_card
from mrt.export.program import INPUT, OUTPUTS
from mrt.ops import fallback_reason
from mrt.predict.detector import Detector, Thresholds
from mrt.predict.network import Preprocessing

ONNX, GRAPH = "onnx", "torch-export"
SILENT = 4  # onnxruntime's level of messages: failures are reported by our own errors


def load_program(folder: Path, device: str = "auto") -> Detector:
    """A detector out of a folder that ``mrt export`` wrote in one of the program formats.

    Args:
        device: "auto" (a GPU where both the machine and the runtime have one), "cpu", "cuda" or "cuda:1".

    Raises:
        MrtError: no such folder, a file that is missing, damaged or of another version, a package that is not
            installed, or a device that is not there.
    """
    folder = Path(folder)
    card = read_card(folder)
    path = check_file(folder, card, card["file"])
    makers: Mapping[str, Callable[..., Any]] = {ONNX: OnnxNetwork, GRAPH: GraphNetwork}
    if card["format"] not in makers:
        raise MrtError(
            f"{folder}: holds no program but weights ({card['format']})",
            f"mrt.load({str(folder)!r}) reads them, too",
        )
    if card["format"] == GRAPH and not card.get("portable"):
        _require_kernels(folder)
    network = makers[card["format"]](path, device)
    sizes = card["preprocessing"]
    fixed = tuple(sizes["fixed"]) if sizes["fixed"] else None
    values = {name: float(value) for name, value in card["thresholds"]["values"].items()}
    thresholds = Thresholds(values, str(card["thresholds"].get("origin")))
    which = (card.get("source") or {}).get("network") or "student"
    facts = {"network": which, "file": str(path), "classes": card["classes"]}
    preprocessing = Preprocessing(sizes["short_side"], sizes["max_size"], fixed, sizes.get("multiple", 1))
    return Detector(network, card["classes"], preprocessing, thresholds, facts)


class OnnxNetwork:
    """A program in an ONNX file.

    Args:
        path: of the file.
        device: "auto", "cpu", "cuda" or "cuda:1".

    Raises:
        MrtError: onnxruntime is not installed, has no CUDA although ``device`` asks for it, or cannot read
            the file.
    """

    def __init__(self, path: Path, device: str = "auto") -> None:
        try:
            import onnxruntime
        except ImportError:
            raise MrtError(
                "the package onnxruntime is not installed, which runs ONNX files", "pip install onnxruntime"
            ) from None
        self.path = path
        options = onnxruntime.SessionOptions()
        options.log_severity_level = SILENT
        self.providers = _providers(onnxruntime.get_available_providers(), device)
        try:
            self.session = onnxruntime.InferenceSession(str(path), options, providers=self.providers)
        except Exception as error:  # onnxruntime's errors have no common class
            raise MrtError(f"{path}: onnxruntime cannot read it: {_reason(error)}", AGAIN) from None

    def __call__(self, images: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        try:
            return tuple(self.session.run(list(OUTPUTS), {INPUT: images.float().numpy()}))
        except Exception as error:
            raise _failed(self.path, images, error) from None

    def tensors(self) -> dict[str, Tensor]:
        """The file's constants by name; needs the package onnx."""
        import onnx

        constants = onnx.load(self.path).graph.initializer
        arrays = {item.name: onnx.numpy_helper.to_array(item) for item in constants}
        return {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}


def _providers(available: list[str], device: str) -> list[Any]:
    kind, _, number = str(device).partition(":")
    if kind not in ("auto", "cpu", "cuda"):
        raise MrtError(
            f"device {device!r}: onnxruntime is asked for cpu or cuda here",
            "choose auto, cpu, cuda or cuda:NUMBER",
        )
    there = "CUDAExecutionProvider" in available
    if kind == "cuda" and not there:
        raise MrtError(
            f"device {device!r}: this onnxruntime has no CUDA",
            "pip install onnxruntime-gpu, or take the device cpu",
        )
    if kind == "cpu" or not there:
        return ["CPUExecutionProvider"]
    return [("CUDAExecutionProvider", {"device_id": int(number or 0)}), "CPUExecutionProvider"]


class GraphNetwork:
    """A program in an archive of ``torch.export``.

    Args:
        path: of the file.
        device: "auto", "cpu", "cuda" or "cuda:1".

    Raises:
        MrtError: the file cannot be read, or the device is not there.
    """

    def __init__(self, path: Path, device: str = "auto") -> None:
        from mrt.api import choose_device

        self.path, self.device = path, choose_device(device)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                graph = torch.export.load(path)
                if self.device.type != "cpu":
                    from torch.export.passes import move_to_device_pass

                    graph = move_to_device_pass(graph, str(self.device))
                self.module = graph.module()
        except Exception as error:  # an archive can be broken in any way
            raise MrtError(f"{path}: PyTorch cannot read it: {_reason(error)}", AGAIN) from None

    def tensors(self) -> dict[str, Tensor]:
        """The program's weights by name."""
        return dict(self.module.state_dict())

    def __call__(self, images: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        try:
            with torch.inference_mode():
                return tuple(part.cpu().numpy() for part in self.module(images.to(self.device).float()))
        except (RuntimeError, AssertionError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            raise _failed(self.path, images, error) from None


def kernels_there() -> bool:
    """Whether the op that programs with kernels call is installed; they ignore ``MRT_OPS_BACKEND``."""
    return hasattr(torch.ops.mrt, "ms_deform_attn_fused")


def _require_kernels(folder: Path) -> None:
    if not kernels_there():
        raise MrtError(
            f"{folder}: its program calls mrt's compiled op, which is not here: {fallback_reason('cpu')}",
            "build mrt with a C++ compiler at hand, or export the detector with --portable",
        )


def _failed(path: Path, images: Tensor, error: Exception) -> MrtError:
    height, width = images.shape[-2:]
    return MrtError(
        f"{path}: the program failed on {len(images)} images of {width}x{height} pixels: {_reason(error)}",
        "A program for any size needs some 65 pixels a side, and a two-stage one at least as many cells as "
        "it has queries; one for a fixed size takes no other.",
    )


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    return text if len(text) <= 300 else text[:297] + "..."
