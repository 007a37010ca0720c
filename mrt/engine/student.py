"""The student: every network that learns."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from mrt.domains import SOURCE, TARGET
from mrt.models.interface import Detector
from mrt.parts import NETWORKS

__all__ = ["SOURCE", "TARGET", "Student"]


class Student(nn.Module):
    """The detector and the networks that parts of the method add to it, by the names they have in
    checkpoints.

    A network that the stage has none of is None.

    Args:
        detector: what is kept in the end.
        built_in: networks of the parts that come with mrt, in the order of :data:`mrt.parts.NETWORKS`; None
            where there is none.
        more: networks by name, also those of plug-ins.
    """

    def __init__(
        self, detector: Detector, *built_in: nn.Module | None, more: Mapping[str, nn.Module] | None = None
    ) -> None:
        super().__init__()
        self.detector = detector
        given = {**dict(zip(NETWORKS, built_in, strict=False)), **(more or {})}
        for name in dict.fromkeys([*NETWORKS, *given]):
            self.register_module(name, given.get(name))

    def compile_regions(self) -> list[nn.Module]:
        """The layers that ``engine.compile`` compiles, each by itself."""
        return [region for child in self.children() for region in getattr(child, "compile_regions", list)()]

    def learning_rate_groups(self) -> dict[str, list[str]]:
        """Names of parameters that learn at a fraction of the rate, by group; all others learn at the full
        rate.
        """
        groups: dict[str, list[str]] = {}
        for name, child in self.named_children():
            for group, names in getattr(child, "learning_rate_groups", dict)().items():
                groups.setdefault(group, []).extend(f"{name}.{inner}" for inner in names)
        return groups
