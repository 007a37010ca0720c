"""The colour of each class, the same in every picture and plot of mrt.

Okabe and Ito's palette for all kinds of colour vision, without black (tests/evaluate/test_colour_vision.py
looks at it as people see it who lack one kind of cones). Further classes start again with the first colour;
their names tell them apart.
"""

from __future__ import annotations

COLOURS = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
    (255, 255, 255),
)
# On white paper yellow and white cannot be seen: grey and black stand for them there.
ON_WHITE = {(240, 228, 66): (138, 138, 138), (255, 255, 255): (26, 26, 26)}


def on_white(number: int) -> str:
    """The colour of a class, by its number from 0, in a plot: "#e69f00"."""
    colour = COLOURS[number % len(COLOURS)]
    return "#{:02x}{:02x}{:02x}".format(*ON_WHITE.get(colour, colour))
