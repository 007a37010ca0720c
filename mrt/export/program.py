"""A detector as one function from pixels to candidates, and its graph, from which programs are written."""

from __future__ import annotations

import copy
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from mrt.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from mrt.errors import MrtError
from mrt.models.detector import DeformableDETR
from mrt.models.fast.carried_norms import fold_carried_norms
from mrt.models.fast.same_conv import SameConv2d
from mrt.models.postprocess import top_pairs
from mrt.ops import without_kernels
from mrt.predict.network import CANDIDATES

INPUT, OUTPUTS = "images", ("scores", "labels", "boxes")

# The tracer takes relations that happen to hold for the example as general. So these sides give different
# numbers of cells on every level, and this batch size divides none of them.
EXAMPLE_BATCH, EXAMPLE_SIZE = 3, (517, 709)


class Program(nn.Module):
    """A network from pixels to candidates.

    Its input ``images`` is (B, 3, H, W) float32, RGB from 0 to 255, in the network's input size. Its outputs
    are ``scores`` (B, K), decreasing; ``labels`` (B, K) int64; ``boxes`` (B, K, 4), x0, y0, x1, y1 as shares
    of the image, not clipped. K is the number of (query, class) pairs, at most
    :data:`mrt.predict.network.CANDIDATES`.

    Args:
        detector: is copied; frozen batch norms of the copy are folded into its convolutions.
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
    """As :class:`mrt.models.fast.same_conv.SameConv2d`, in a form that can be traced for images of any size.

    Sides of even length are padded by one cell less at their start. The output is cut to the length that it
    has anyway, so that later shapes are simple expressions of the image's shape.
    """

    def __init__(self, conv: SameConv2d) -> None:
        super().__init__()
        self.conv = nn.Conv2d(conv.in_channels, conv.out_channels, conv.kernel_size, 2, groups=conv.groups)
        self.margin = conv.padding[0]
        self.conv.weight, self.conv.bias = conv.weight, conv.bias

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        # Pad by one row and column too many, and always cut. Otherwise "nothing to cut" would be a special
        # case, and the program would only accept odd sides.
        padded = F.pad(x, (self.margin + 1, self.margin) * 2)[..., 2 - height % 2 :, 2 - width % 2 :]
        return self.conv(padded)[..., : (height + 1) // 2, : (width + 1) // 2]


def _row_by_row(decoder: nn.Module, arguments: tuple) -> tuple:
    """Copies queries and their positions: as halves of one tensor, their strides would fix the batch size."""
    queries, position, *rest = arguments
    return queries.contiguous(), position.contiguous(), *rest


def trace(program: Program, size: tuple[int, int] | None = None, *, kernels: bool) -> ExportedProgram:
    """The program's graph, for any number of images.

    Args:
        size: (height, width) that images will have; None: any.
        kernels: use mrt's own op, which must then be installed to load the graph; False: only PyTorch's
            operators.

    Raises:
        MrtError: this network cannot be traced.
    """
    example = torch.zeros(EXAMPLE_BATCH, 3, *(size or EXAMPLE_SIZE))
    dimensions = {0: Dim.DYNAMIC} if size else {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}
    with torch.no_grad(), nullcontext() if kernels else without_kernels():
        try:
            return torch.export.export(program, (example,), dynamic_shapes={INPUT: dimensions}, strict=False)
        except (RuntimeError, ValueError, torch._dynamo.exc.TorchDynamoException) as error:
            lines = (line.strip() for line in str(error).splitlines() if line.strip())
            what = f"this detector cannot be traced: {next(lines, type(error).__name__)}"
            hint = "Something in it may be tied to the image's size: give one, --size WIDTHxHEIGHT."
            raise MrtError(what, None if size else hint) from error
