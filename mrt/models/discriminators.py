"""Domain discriminators behind a gradient reversal layer.

They learn to tell source from target features; the reversed gradient trains the detector to prevent that.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mrt.models.interface import DetectorOutput


class _Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, eta: float) -> Tensor:
        ctx.eta = eta
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * -ctx.eta, None


def gradient_reversal(x: Tensor, eta: float = 1.0) -> Tensor:
    """Identity in the forward pass; multiplies the gradient by ``-eta`` in the backward pass.

    Source: Ganin and Lempitsky, ICML 2015.
    """
    return _Reverse.apply(x, eta)


class ConvDiscriminator(nn.Module):
    """Three 3x3 convolutions with ReLU between: (B, channels, h, w) -> (B, h, w, 2), logits per cell."""

    def __init__(self, channels: int, hidden_dim: int) -> None:
        super().__init__()
        sizes = (channels, hidden_dim, hidden_dim, 2)
        self.layers = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(sizes))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers[2](F.relu(self.layers[1](F.relu(self.layers[0](x))))).permute(0, 2, 3, 1)


class LinearDiscriminator(nn.Module):
    """Three linear layers with ReLU between: (..., d) -> (..., 2)."""

    def __init__(self, hidden_dim: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(hidden_dim, size) for size in (hidden_dim, hidden_dim, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers[2](F.relu(self.layers[1](F.relu(self.layers[0](x)))))


class Discriminators(nn.Module):
    """The three discriminators of the adversarial alignment.

    Args:
        hidden_dim: the transformer's channels d.
        num_levels: its feature levels.
        backbone_channels: channels of the backbone's last map.
        eta: strength of the gradient reversal; may be changed between steps.
    """

    def __init__(self, hidden_dim: int, num_levels: int, backbone_channels: int, eta: float = 1.0) -> None:
        super().__init__()
        self.eta = eta
        self.backbone = ConvDiscriminator(backbone_channels, hidden_dim)
        self.encoder = nn.ModuleList(ConvDiscriminator(hidden_dim, hidden_dim) for _ in range(num_levels))
        self.decoder = LinearDiscriminator(hidden_dim)

    def compile_regions(self) -> list[nn.Module]:
        """The convolutional discriminators."""
        return [self.backbone, *self.encoder]

    def forward(self, output: DetectorOutput) -> dict[str, Tensor]:
        """Two-way logits (source, target) of each discriminator.

        They are {"backbone": (B, h, w, 2), "encoder": (B, S, 2), "decoder": (B, Q, 2)}.

        Padding cells are included, as in the published code.
        """
        spatial_shapes = output.features.shapes
        memory = gradient_reversal(output.memory, self.eta).split([h * w for h, w in spatial_shapes], dim=1)
        maps = [
            part.transpose(1, 2).unflatten(2, shape)
            for part, shape in zip(memory, spatial_shapes, strict=True)
        ]
        of_levels = [level(x).flatten(1, 2) for level, x in zip(self.encoder, maps, strict=True)]
        return {
            "backbone": self.backbone(gradient_reversal(output.features.maps[-1], self.eta)),
            "encoder": torch.cat(of_levels, dim=1),
            "decoder": self.decoder(gradient_reversal(output.queries, self.eta)),
        }
