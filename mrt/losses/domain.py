"""Domain loss: discriminators distinguish source from target features; the models reverse its gradient."""

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
) -> dict[str, Tensor]:
    """Two-way cross entropy of each discriminator, averaged over its positions.

    Padding is included, as in the published code.

    Args:
        predictions: ``"backbone"`` (B, h, w, 2), ``"encoder"`` (B, S, 2), ``"decoder"`` (B, Q, 2); any subset
            of them.
        domain: the whole batch's domain, 0 source or 1 target.
        weights: of each discriminator in the sum.

    Returns:
        ``"domain"``, the weighted sum, and each unweighted part as ``"domain_<name>"``; float32 scalars.
    """
    losses = {}
    for name, logits in predictions.items():
        logits = logits.float()
        position = F.softplus(logits[..., 1 - domain] - logits[..., domain])
        losses[f"domain_{name}"] = position.mean()
    total = sum(weights[name] * losses[f"domain_{name}"] for name in predictions)
    return {"domain": total, **losses}
