"""What parts give to a step, looked at before it is used: a plug-in's mistakes are said in one line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from torch import Tensor, nn

from mrt.data.loader import Batch
from mrt.domains import DOMAINS
from mrt.errors import MrtError
from mrt.losses import Loss
from mrt.parts import NETWORKS
from mrt.parts.base import Labels, Part

OF_LABELS = ("confidences", "probabilities", "weights")
TARGET_KEYS = ("boxes", "labels", "scores", *OF_LABELS, "ignore_boxes", "ignore_labels")


def checked_losses(part: Part, losses: Sequence[Loss]) -> Sequence[Loss]:
    """What a part gave as its losses; MrtError says what is wrong with them."""
    if not isinstance(losses, Sequence):
        raise MrtError(
            f"part {part.name!r}, losses(): gave {_kind(losses)}", "a list of Loss: docs/extending.md"
        )
    for loss in losses:
        if not isinstance(loss, Loss) or loss.domain not in DOMAINS:
            wrong = f"gave {loss[:2] if isinstance(loss, Loss) else _kind(loss)}"
        elif not isinstance(loss.value, Tensor) or loss.value.dim():
            wrong = f"the value of {loss.name!r} is {_kind(loss.value)}"
        else:
            continue
        what = 'Loss("source" or "target", name, a tensor with one number, its weight)'
        raise MrtError(f"part {part.name!r}, losses(): {wrong}", f"each is a {what}: docs/extending.md")
    return losses


def checked_networks(
    part: Part, networks: Mapping[str, nn.Module], before: Collection[str]
) -> Mapping[str, nn.Module]:
    """The networks of a part; MrtError for what cannot learn beside the detector under its name."""
    for name, network in networks.items() if isinstance(networks, Mapping) else [("", networks)]:
        if not name or not isinstance(network, nn.Module):
            wrong = f"gave {_kind(network)}"
        elif name == "detector" or name in before or (name in NETWORKS and part.stages):
            wrong = f"the name {name!r} is taken"
        else:
            continue
        raise MrtError(f"part {part.name!r}, networks(): {wrong}", "give networks by names of their own")
    return networks


def checked_numbers(part: Part, numbers: Mapping[str, float]) -> Mapping[str, float]:
    """What a part gave of its matches; MrtError for what is no number by name."""
    for name, value in numbers.items() if isinstance(numbers, Mapping) else [("", numbers)]:
        if not name or not (
            isinstance(value, (int, float)) or (isinstance(value, Tensor) and not value.dim())
        ):
            wrong = f"gave {_kind(value)}" + f" as {name!r}" * bool(name)
            raise MrtError(f"part {part.name!r}, judged(): {wrong}", "numbers by name: docs/extending.md")
    return numbers


def require_once(names: Sequence[str], what: str) -> None:
    """MrtError if two parts log something under one name: one would hide the other."""
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        raise MrtError(
            f"two {what} of this stage are called {twice[0]!r}", "a plug-in has to choose another name"
        )


def checked_labels(
    part: Part, batch: Mapping[str, Batch], before: Mapping[str, Labels], labels: Mapping[str, Labels]
) -> Mapping[str, Labels]:
    """What a part gave as the labels of a micro-batch; MrtError says what is wrong with them."""
    wrong = f"gave {_kind(labels)}" if not isinstance(labels, Mapping) else ""
    for domain in [] if wrong else [domain for domain in before if domain not in labels]:
        wrong = f"gave no labels for {domain!r}, which had some: return {{**labels, ...}}"
    for domain, item in labels.items() if not wrong else ():
        if domain not in batch or not isinstance(item, Labels):
            wrong = f"gave {_kind(item)} for {domain!r}"
        elif len(item.targets) != len(batch[domain].targets):
            wrong = f"gave {len(item.targets)} targets for {len(batch[domain].targets)} images of {domain!r}"
        elif item is not before.get(domain):
            wrong = wrong or _wrong_target(item.targets, [*batch[domain].targets, *_targets(before, domain)])
    if wrong:
        what = "a mapping from the batch's domains to Labels with a target for each image"
        raise MrtError(f"part {part.name!r}, label(): {wrong}", f"it has to give {what}: docs/extending.md")
    return labels


def _targets(labels: Mapping[str, Labels], domain: str) -> Sequence[Mapping]:
    return labels[domain].targets if domain in labels else ()


def _wrong_target(targets: Sequence[Mapping], before: Sequence[Mapping]) -> str:
    """What is wrong with a part's targets; "" where nothing is. No value is looked at or waited for."""
    known = {*TARGET_KEYS, *(key for target in before for key in target)}
    for target in targets:
        missing = [key for key in ("boxes", "labels") if key not in target]
        if missing:
            return f"gave a target without {missing[0]!r}"
        if target["boxes"].dim() != 2 or target["boxes"].shape[1] != 4:
            return f"gave {_kind(target['boxes'])} as 'boxes'"
        unknown = sorted(set(target) - known)
        if unknown:
            return f"gave a target with {unknown[0]!r}; a target has {', '.join(TARGET_KEYS)}"
        pairs = [(key, "labels") for key in ("boxes", *OF_LABELS)] + [("ignore_labels", "ignore_boxes")]
        for key, other in pairs:
            if key not in target:
                continue
            if not isinstance(target[key], Tensor) or len(target[key]) != len(target.get(other, ())):
                return f"gave {_kind(target[key])} as {key!r} of {len(target.get(other, ()))} {other}"
    return ""


def _kind(value: object) -> str:
    shape = f" of shape {tuple(value.shape)}" if isinstance(value, Tensor) else ""
    return f"a {type(value).__name__}{shape}"
