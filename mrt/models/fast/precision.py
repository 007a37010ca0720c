"""Precision under autocast: tokens stay in the 16 bits that matrix products take and return.

Autocast by itself converts the input of every norm to float32. Residual sums then are float32, too, and every
product that follows makes a 16-bit copy of its input. That doubles the memory, and takes half of the time
that an encoder spends outside of its products.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mrt.ops.transforms import under_autocast


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """The dtype in which autocast computes matrix products of ``x``; None if it is off or ignores ``x``."""
    if x.dtype == torch.float64 or not under_autocast(x):
        return None
    return torch.get_autocast_dtype(x.device.type)


def as_products_take_it(x: Tensor) -> Tensor:
    """``x`` in autocast's dtype for matrix products, so that linear layers need no copies; else as it is."""
    return x.to(autocast_dtype(x) or x.dtype)


class LayerNorm(nn.LayerNorm):
    """Layer norm that returns 16-bit tokens in 16 bits under autocast; its statistics are float32."""

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype != autocast_dtype(x):
            return super().forward(x)
        weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
        with torch.autocast(x.device.type, enabled=False):
            return F.layer_norm(x, self.normalized_shape, weight, bias, self.eps)
