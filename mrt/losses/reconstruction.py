"""The masked autoencoder's loss."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor


def reconstruction_loss(
    reconstruction: Tensor,
    target: Tensor,
    mask: Tensor | None = None,
    padding: Tensor | None = None,
    over: Literal["all", "masked"] = "all",
) -> Tensor:
    """Mean squared error between the reconstructed and the real backbone map (L_mask in the paper).

    Args:
        reconstruction: (B, C, h, w).
        target: (B, C, h, w) the backbone map; no gradient flows into it.
        mask: (B, h, w) bool, True = masked; needed for ``over="masked"``.
        padding: (B, h, w) bool, True = padding; if given, padding is left out of the mean.
        over: ``"all"`` cells (published code) or only the ``"masked"`` ones (paper).

    Returns:
        A float32 scalar; 0 if the mean is over no cell.
    """
    if over not in ("all", "masked"):
        raise ValueError(f'over must be "all" or "masked", not {over!r}')
    if over == "masked" and mask is None:
        raise ValueError('over="masked" needs the mask')
    error = F.mse_loss(reconstruction.float(), target.detach().float(), reduction="none")
    counted = mask if over == "masked" else None
    if padding is not None:
        counted = ~padding if counted is None else counted & ~padding
    if counted is None:
        return error.mean()
    counted = counted[:, None].to(error.dtype)
    return (error * counted).sum() / (counted.sum().clamp(min=1) * error.shape[1])


@torch.no_grad()
def explained_variance(
    reconstruction: Tensor, target: Tensor, mask: Tensor, padding: Tensor | None = None
) -> Tensor:
    """Share of the masked cells' variance that a reconstruction explains, all channels together.

    Args:
        reconstruction, target: (B, C, h, w). mask: (B, h, w) bool, True = masked.
        padding: (B, h, w) bool, True = padding, which does not count.

    Returns:
        A float32 scalar: 1 where every cell is met, 0 where it is as good as each channel's mean over these
        cells, below 0 where it is worse; 0 where there is nothing to explain.
    """
    counted = (mask if padding is None else mask & ~padding)[:, None].float()
    number = counted.sum().clamp(min=1)
    target, reconstruction = target.float() * counted, reconstruction.float() * counted
    mean = target.sum((0, 2, 3), keepdim=True) / number
    variance = ((target - mean * counted) ** 2).sum()
    error = ((target - reconstruction) ** 2).sum()
    return torch.where(variance > 0, 1 - error / variance.clamp(min=torch.finfo(torch.float32).tiny), 0.0)
