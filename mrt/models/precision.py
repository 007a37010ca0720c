"""What a network computes in under autocast: tokens stay in the 16 bits that matrix products give and take.

Left to itself, autocast raises the input of every norm to float32, the residual sums with it, and every product after it makes a 16-bit
copy: twice the bytes, and half of an encoder's work between its products.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mrt.ops.transforms import under_autocast


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """What matrix products of ``x`` are computed in under the autocast that is on; None where none is, or it leaves ``x`` alone."""
    if x.dtype == torch.float64 or not under_autocast(x):
        return None
    return torch.get_autocast_dtype(x.device.type)


def as_products_take_it(x: Tensor) -> Tensor:
    """Under autocast, ``x`` in the dtype that linear layers would each make a copy in; else as it is."""
    return x.to(autocast_dtype(x) or x.dtype)


class LayerNorm(nn.LayerNorm):
    """Layer norm that gives 16-bit tokens back as such under autocast. Mean and variance are computed in float32 all the same."""

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype != autocast_dtype(x):
            return super().forward(x)
        with torch.autocast(x.device.type, enabled=False):
            return F.layer_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)
