"""Colours of things, drawn at random from those seen on streets: 0..255 sRGB under white light."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Colour = tuple[float, float, float]


def hex_colours(codes: str) -> list[Colour]:
    """Colours from six-digit codes separated by spaces."""
    return [tuple(float(b) for b in bytes.fromhex(code)) for code in codes.split()]


CAR = hex_colours("e4e4e2 1c1c1f 5c5f64 a8acb0 223a7a a01c1e 3a5c8c 2c543c b0843c 601a28 d0c4a8 c45c24")
CAR_SHARE = (0.17, 0.16, 0.15, 0.15, 0.1, 0.09, 0.06, 0.03, 0.03, 0.03, 0.02, 0.01)
CAB = hex_colours("e0e0de 284e96 b42422 e49628 2e6e4c 464a50")
LOAD = hex_colours("e2e2dc c8ccce 3c5c96 b2342c ceac46 587658 966242")
BUS = hex_colours("cea824 ba2224 2e5ca0 368052 e2e0d6 78306e")
STRIPE = hex_colours("e4e2da 3c424c be2828 28508c e6b432")
TRAM = hex_colours("e8e4d8 e4e4e4 f0d23c ced2d6")
TRAM_BAND = hex_colours("b01e24 1c6e52 24549e 3c3e42 d6781e")
CLOTHES = hex_colours("282e46 1c1c1e 782426 405c82 beb6a8 5e6064 3c543e c8a03c 964664 e2e2e0 d26028")
TROUSERS = hex_colours("262c42 1a1a1c 5c5448 464a50 807460 343c54")
SKIN = hex_colours("e2b292 cc9470 966246 624232")
HAIR = hex_colours("2e2018 181412 6e4e2e aa8c5a 82807e")
HELMET = hex_colours("d03c2c ecece8 242428 3c64b4 e6be32")
LEAF = hex_colours("48682e 587034 3a5c32 787430")
BIN = hex_colours("3c4a3e 46484c 344668")
RED, BLUE, WHITE = (196.0, 34.0, 36.0), (36.0, 78.0, 160.0), (236.0, 236.0, 232.0)
SIGNS = [
    (RED, WHITE),
    (BLUE, (226.0, 230.0, 236.0)),
    (WHITE, RED),
    ((228.0, 186.0, 40.0), (240.0, 236.0, 220.0)),
]
FIXED: dict[str, Colour] = {
    "tyre": (24, 24, 26),
    "dark": (34, 35, 38),
    "rim": (138, 140, 144),
    "frame": (52, 54, 58),
    "tank": (150, 154, 158),
    "plate": (226, 224, 206),
    "headlamp": (246, 244, 226),
    "taillamp": (186, 22, 24),
    "display": (244, 164, 44),
    "hazard_red": (200, 34, 30),
    "hazard_white": (236, 236, 232),
    "cargo": (120, 96, 70),
    "red": (250, 60, 44),
    "amber": (250, 180, 50),
    "green": (60, 230, 110),
    "bark": (84, 66, 50),
}


def jitter(rng: np.random.Generator, colour: Sequence[float], spread: float = 12.0) -> Colour:
    """A colour (0..255) a little brighter or darker and a little off in hue."""
    noise = rng.standard_normal(4).tolist()
    red, green, blue = (
        min(250.0, max(6.0, c + spread * (noise[0] + noise[k + 1] / 3))) for k, c in enumerate(colour)
    )
    return red, green, blue


def _pick(
    rng: np.random.Generator,
    colours: list[Colour],
    spread: float = 14.0,
    share: Sequence[float] | None = None,
) -> Colour:
    index = rng.integers(len(colours)) if share is None else np.searchsorted(np.cumsum(share), rng.random())
    return jitter(rng, colours[min(int(index), len(colours) - 1)], spread)


def palette(rng: np.random.Generator, kind: str) -> dict[str, Colour]:
    """Colours for one thing of a kind: one for each slot that its model may name."""
    p = {**FIXED, "glass": jitter(rng, (52, 64, 76), 8)}
    if kind == "car":
        p["paint"] = _pick(rng, CAR, 10, CAR_SHARE)
    elif kind == "truck":
        p |= {"paint": _pick(rng, CAB), "load": _pick(rng, LOAD), "stripe": _pick(rng, STRIPE)}
    elif kind == "bus":
        p |= {"paint": _pick(rng, BUS), "paint2": _pick(rng, STRIPE)}
    elif kind == "train":
        p |= {"paint": _pick(rng, TRAM, 6), "paint2": _pick(rng, TRAM_BAND)}
    elif kind in ("bicycle", "motorcycle"):
        p |= {"paint": _pick(rng, CAR, 16), "basket": jitter(rng, (140, 110, 70))}
    elif kind == "person" or kind.startswith("rider_"):
        p |= {
            "top": _pick(rng, CLOTHES, 16),
            "trousers": _pick(rng, TROUSERS, 12),
            "skin": _pick(rng, SKIN, 6),
            "hair": _pick(rng, HAIR, 8),
        }
        p |= {"bag": _pick(rng, CLOTHES, 12), "helmet": _pick(rng, HELMET, 10)}
    elif kind in ("tree", "hedge"):
        p |= {"leaf": _pick(rng, LEAF, 10), "bark": jitter(rng, (84, 68, 52), 8)}
    else:
        face = SIGNS[int(rng.integers(4))]
        p |= {
            "metal": jitter(rng, (104, 108, 110), 10),
            "sign": face[0],
            "sign2": face[1],
            "bin": _pick(rng, BIN),
        }
        p |= {"advert": _pick(rng, CLOTHES), "advert2": _pick(rng, CLOTHES)}
    return p
