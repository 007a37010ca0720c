"""Rendered street scenes with exact labels.

A source domain ("clear") and targets made by physics ("foggy", "night", "rain").

Needs only the standard library, numpy and Pillow. ``generate`` writes a data set.
"""

from mrt.data.synthetic.generate import BENCHMARK, SMALL, Family, generate
from mrt.data.synthetic.render import DOMAINS
from mrt.data.synthetic.traffic import CLASSES

__all__ = ["BENCHMARK", "CLASSES", "DOMAINS", "SMALL", "Family", "generate"]
