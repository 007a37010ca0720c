"""Domain loss: three discriminators tell source features from target features; the gradient is reversed inside the models."""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor

SOURCE, TARGET = 0, 1
DOMAIN_WEIGHTS = {"backbone": 0.3, "encoder": 1.0, "decoder": 1.0}  # method.md, losses


def domain_loss(
    predictions: Mapping[str, Tensor],
    domain: int,
    weights: Mapping[str, float] = DOMAIN_WEIGHTS,
    padding: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Two-way cross entropy of each discriminator, mean over its positions.

    Args:
        predictions: ``"backbone"`` (B, h, w, 2), ``"encoder"`` (B, S, 2), ``"decoder"`` (B, Q, 2); any subset of them.
        domain: the whole batch's domain, 0 source or 1 target.
        weights: of each in the sum.
        padding: bool masks (True = padding) without the last axis, for those predictions whose padding shall not count.
            ``None`` counts padding, as the published code does.

    Returns:
        ``"domain"``, the weighted sum, and each unweighted part as ``"domain_<name>"``; float32 scalars.
    """
    losses = {}
    for name, logits in predictions.items():
        logits = logits.float()
        position = F.softplus(logits[..., 1 - domain] - logits[..., domain])
        if padding is not None and name in padding:
            counted = (~padding[name]).to(position.dtype)
            losses[f"domain_{name}"] = (position * counted).sum() / counted.sum().clamp(min=1)
        else:
            losses[f"domain_{name}"] = position.mean()
    total = sum(weights[name] * losses[f"domain_{name}"] for name in predictions)
    return {"domain": total, **losses}
