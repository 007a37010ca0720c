"""The networks of the built-in parts by themselves: what measures and judges a step builds them without a
stage.
"""

from mrt.parts.align import build_discriminators
from mrt.parts.rebuild import build_mae

__all__ = ["build_discriminators", "build_mae"]
