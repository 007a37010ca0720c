"""A detector as one function from pixels to candidates, and its graph: what the program formats are written from."""

from __future__ import annotations

import copy
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from mrt.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from mrt.errors import MrtError
from mrt.models.backbone import SameConv2d, fold_carried_norms
from mrt.models.detector import DeformableDETR
from mrt.models.postprocess import top_pairs
from mrt.ops import without_kernels
from mrt.predict.network import CANDIDATES

INPUT, OUTPUTS = "images", ("scores", "labels", "boxes")

# The tracer takes equations that happen to hold for the example for laws. These sides give different numbers of cells on every level, and
# this batch is no divisor of anything.
EXAMPLE_BATCH, EXAMPLE_SIZE = 3, (517, 709)


class Program(nn.Module):
    """Pixels in, candidates out.

    Calling it: ``images``, (B, 3, H, W) float32, RGB from 0 to 255, of the size that the network shall see -> ``scores`` (B, K), falling;
    ``labels`` (B, K) int64; ``boxes`` (B, K, 4), x0, y0, x1, y1 as shares of the image, not clipped. K is the number of (query, class)
    pairs, at most :data:`mrt.predict.network.CANDIDATES`.

    Args:
        detector: is copied; frozen norms of the copy are folded into its convolutions.
    """

    def __init__(self, detector: DeformableDETR) -> None:
        super().__init__()
        self.detector = copy.deepcopy(detector).cpu().eval().requires_grad_(False)
        fold_carried_norms(self.detector.backbone)
        for name, module in list(self.detector.backbone.named_modules()):
            if isinstance(module, SameConv2d):
                parent, _, leaf = name.rpartition(".")
                setattr(self.detector.backbone.get_submodule(parent), leaf, _SameConv2d(module))
        self.detector.transformer.decoder.register_forward_pre_hook(_row_by_row)
        self.candidates = min(CANDIDATES, detector.num_queries * detector.num_classes)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1) * 255)
        self.register_buffer("scale", 1 / (torch.tensor(IMAGENET_STD).view(3, 1, 1) * 255))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        output = self.detector((images - self.mean) * self.scale)
        return top_pairs(output.logits[-1], output.boxes[-1], self.candidates)


class _SameConv2d(nn.Module):
    """What :class:`mrt.models.backbone.SameConv2d` computes, with a kernel that does not depend on the image's size.

    Sides of even length are padded by a cell less on the near side. The output is cut to the length that it has anyway, so that shapes
    behind it are simple expressions of the image's.
    """

    def __init__(self, conv: SameConv2d) -> None:
        super().__init__()
        self.conv, self.margin = nn.Conv2d(conv.in_channels, conv.out_channels, conv.kernel_size, 2, groups=conv.groups), conv.padding[0]
        self.conv.weight, self.conv.bias = conv.weight, conv.bias

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        # A row and a column too many, and always cut: else "nothing to cut" would be a case of its own, and the program one for odd sides.
        padded = F.pad(x, (self.margin + 1, self.margin) * 2)[..., 2 - height % 2 :, 2 - width % 2 :]
        return self.conv(padded)[..., : (height + 1) // 2, : (width + 1) // 2]


def _row_by_row(decoder: nn.Module, arguments: tuple) -> tuple:
    """Queries and their positions as tensors of their own: as halves of one, their strides would tie the program's batch."""
    queries, position, *rest = arguments
    return queries.contiguous(), position.contiguous(), *rest


def trace(program: Program, size: tuple[int, int] | None = None, *, kernels: bool) -> ExportedProgram:
    """The program's graph, for any number of images.

    Args:
        size: (height, width) that images will have; None: any.
        kernels: with mrt's own op in it, which whoever loads the graph must have; else PyTorch's operators only.

    Raises:
        MrtError: this network cannot be traced.
    """
    example = torch.zeros(EXAMPLE_BATCH, 3, *(size or EXAMPLE_SIZE))
    dimensions = {0: Dim.DYNAMIC} if size else {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}
    with torch.no_grad(), nullcontext() if kernels else without_kernels():
        try:
            return torch.export.export(program, (example,), dynamic_shapes={INPUT: dimensions}, strict=False)
        except (RuntimeError, ValueError, torch._dynamo.exc.TorchDynamoException) as error:
            reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
            hint = None if size else "Something in it may be tied to the image's size: give one, --size WIDTHxHEIGHT."
            raise MrtError(f"this detector cannot be traced: {reason}", hint) from error
