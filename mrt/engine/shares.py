"""Which part of the method drives: shares of the loss and of the gradient, now and then, to log.

The sum that a step goes down is made of the detection losses of each domain and of what the parts add. Their
sizes say little: a loss of 5 whose gradient is small moves nothing. So the gradient of each is taken by
itself, with respect to the detector's weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from mrt.domains import DOMAINS

LOSS, GRADIENT, BACKBONE, COSINE = "loss_share", "gradient_share", "backbone_share", "gradient_cosine"
LOOKED_AT = tuple(f"{kind}/" for kind in (LOSS, GRADIENT, BACKBONE, COSINE))  # how their names begin
TINY = torch.finfo(torch.float32).tiny

Gradient = list[Tensor]  # one for each weight


def shares(terms: Mapping[str, Tensor], detector: nn.Module) -> dict[str, Tensor]:
    """How the summands of a loss compare. The graph stays as it is, and so does every ``.grad``.

    Up to three gradients of the size of the detector's weights are held at a time.

    Args:
        terms: weighted, by name; the detection losses are called as their domain is.
        detector: with respect to whose weights gradients are taken.

    Returns:
        Scalars on the device, by "kind/term". Shares add up to 1 over the terms:

        - ``loss_share``: of the terms' sizes;
        - ``gradient_share``: of the lengths of their gradients; ``backbone_share``: the same for the
          backbone's weights alone, where any of them learns;
        - ``gradient_cosine``: of the angle between a term's gradient and that of the detection losses (for
          one of these: of the other); above 0 they agree, below 0 the term pulls against detection.

        Of a detector without weights that learn there is only ``loss_share``.

    Raises:
        RuntimeError: a graph that cannot be gone through twice, or no memory.
    """
    found = _shares(LOSS, {name: term.detach().float().abs() for name, term in terms.items()})
    learns = {name: weight for name, weight in detector.named_parameters() if weight.requires_grad}
    if not learns:
        return found
    with _statistics_rest(detector):
        return found | _gradients(terms, learns)


def _gradients(terms: Mapping[str, Tensor], learns: Mapping[str, Tensor]) -> dict[str, Tensor]:
    weights, of_backbone = list(learns.values()), [name.startswith("backbone.") for name in learns]
    lengths, in_backbone, cosines = {}, {}, {}
    detections: dict[str, Gradient] = {}
    for name, term in sorted(terms.items(), key=lambda item: item[0] not in DOMAINS):  # detection first
        gradient = _gradient(term, weights)
        lengths[name] = _length(gradient)
        if any(of_backbone):
            mine = [value for value, inside in zip(gradient, of_backbone, strict=True) if inside]
            in_backbone[name] = _length(mine)
        if name in DOMAINS:
            detections[name] = gradient
        elif detections:
            cosines[name] = _cosine(gradient, list(detections.values()))
    for name, gradient in detections.items():
        others = [other for domain, other in detections.items() if domain != name]
        if others:
            cosines[name] = _cosine(gradient, others)
    found = _shares(GRADIENT, lengths) | (_shares(BACKBONE, in_backbone) if in_backbone else {})
    return found | {f"{COSINE}/{name}": value for name, value in cosines.items()}


@contextmanager
def _statistics_rest(network: nn.Module) -> Iterator[None]:
    """While inside, batch norms that learn do not count what goes through them: activations that are computed
    again for a gradient (``engine.checkpointing``) have been counted.
    """
    norms = [item for item in network.modules() if isinstance(item, nn.modules.batchnorm._BatchNorm)]
    before = [(norm, norm.momentum, norm.num_batches_tracked) for norm in norms if norm.training]
    counts = [None if count is None else count.clone() for _, _, count in before]
    for norm, _, _ in before:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for (norm, momentum, count), kept in zip(before, counts, strict=True):
            norm.momentum = momentum
            if count is not None:
                count.copy_(kept)


def _gradient(term: Tensor, weights: Sequence[Tensor]) -> Gradient:
    """With respect to each weight; zeros where the term does not depend on it."""
    if not term.requires_grad:
        return [torch.zeros_like(weight) for weight in weights]
    return list(torch.autograd.grad(term, weights, retain_graph=True, materialize_grads=True))


def _length(gradient: Gradient) -> Tensor:
    return torch.stack(torch._foreach_norm(gradient)).float().norm()


def _product(one: Gradient, other: Gradient) -> Tensor:
    return torch.stack([(a * b).sum() for a, b in zip(one, other, strict=True)]).sum()


def _cosine(gradient: Gradient, others: Sequence[Gradient]) -> Tensor:
    """Between a gradient and the sum of others; 0 where one of them is zero."""
    product = torch.stack([_product(gradient, other) for other in others]).sum()
    squares = torch.stack([_product(one, other) for one in others for other in others]).sum()
    return _finite(product / (_length(gradient) * squares.clamp(min=0).sqrt()).clamp(min=TINY))


def _shares(kind: str, sizes: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each size as a share of their sum."""
    values = torch.stack(list(sizes.values()))
    values = _finite(values / values.sum().clamp(min=TINY))
    return dict(zip([f"{kind}/{name}" for name in sizes], values.unbind(), strict=True))


def _finite(value: Tensor) -> Tensor:
    """What is not finite (fp16's first gradients) is no share; the step itself says what is wrong."""
    return value.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
