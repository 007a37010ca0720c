"""One scene from its seed: street, light, things, weather, sensor, labels."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import cache

import numpy as np

from mrt.data.synthetic import labels as labelling
from mrt.data.synthetic import night, rain, surfaces, weather
from mrt.data.synthetic.camera import FAR, draw_camera
from mrt.data.synthetic.facades import facades
from mrt.data.synthetic.labels import Annotation
from mrt.data.synthetic.layout import draw_street
from mrt.data.synthetic.light import draw_light
from mrt.data.synthetic.paint import Canvas, ground_shadows, paint, rasterise
from mrt.data.synthetic.traffic import draw_things

DOMAINS = ("clear", "foggy", "night", "rain")


@dataclass(frozen=True)
class Rendering:
    """A finished picture.

    The image (H, W, 3) uint8, its annotations, depth (H, W) metres, instances (H, W) and the fog's beta (0
    without).
    """

    image: np.ndarray
    annotations: list[Annotation]
    depth: np.ndarray
    instance: np.ndarray
    beta: float


def render(
    seed: int, domain: str, split: str, index: int, size: tuple[int, int], betas: tuple[float, ...] = (0.15,)
) -> Rendering:
    """Scene ``index`` of a split.

    Every part draws from a separate random stream, keyed by (seed, domain, split, index). The result depends
    on nothing else, and no scene appears in two domains or splits.

    Args:
        size: (width, height) in pixels.
        betas: the fog's extinction per metre is one of these.
    """
    _keep_memory()
    key = [seed, DOMAINS.index(domain), zlib.crc32(split.encode()), index]
    place, look, air, chip = (np.random.default_rng([*key, stream]) for stream in range(4))
    width, height = size
    street, camera_x = draw_street(place)
    cam = draw_camera(place, width, height, camera_x)
    things = draw_things(place, street, camera_x)
    light = draw_light(look, overcast=domain in ("foggy", "rain"), night=domain == "night")

    # colours are planes in memory: numpy works much faster along long rows than along triples
    image = np.empty((3, height, width), np.float32).transpose(1, 2, 0)
    depth = np.full((height, width), FAR, np.float32)
    above = surfaces.sky(cam, light, look)
    image[: len(above)] = above
    first, floor, row_depth, sunlit = surfaces.ground(cam, street, light, look)
    shade = ground_shadows(things, cam, light)[first:]
    image[first:] = floor * (1 - 0.75 * shade * (0.5 + 0.5 * sunlit))[..., None]
    image[len(above) : first] = floor[:1]
    depth[first:] = row_depth[:, None]
    windows = np.zeros_like(depth) if domain == "night" else None
    facades(cam, street, light, image, depth, windows)

    canvas = Canvas(image, depth, np.zeros((height, width), np.int16), surfaces.noise_textures()[0])
    distance = [t.distance(cam) - 1e-3 * (t.label == 1) for t in things]
    spots = np.array([(t.x, t.z) for t in things], np.float32)
    sun = surfaces.sun_at(street, light, spots[:, 0], spots[:, 1])
    classes: dict[int, int] = {}
    covered: dict[int, int] = {}
    for k in np.argsort(distance)[::-1].tolist():
        patch = rasterise(things[k], cam, light, float(sun[k]))
        if patch is None:
            continue
        identity = k + 1
        covered[identity] = paint(canvas, patch, things[k], cam, identity)
        if things[k].label is not None:
            classes[identity] = things[k].label
    image = np.clip(image, 0, 1)
    pixels = labelling.visible_pixels(canvas.instance)
    beta, unseen, noise, metering = 0.0, set(), (0.006, 0.016), None
    if domain == "clear":
        metering = 0.44
    elif domain == "foggy":
        beta = float(betas[int(air.integers(len(betas)))])
        image, optical = weather.add_fog(image, depth, beta, air)
        unseen = labelling.hidden_by_fog(pixels, classes, optical)
    elif domain == "night":
        noise = (0.015, 0.035)
        image = night.add_night(image, depth, canvas.instance, windows, cam, street, things, air)
        unseen = night.unseen_at_night(image, pixels, classes, noise[0])
    elif domain == "rain":
        image, drops = rain.add_rain(image, depth, canvas.instance, cam, things, air)
        unseen = rain.unseen_through_drops(drops, pixels, classes)
    picture = weather.sensor(image, chip, noise=noise, metering=metering)
    annotations = labelling.annotate(pixels, height, classes, covered, unseen)
    return Rendering(picture, annotations, depth, canvas.instance, beta)


@cache
def _keep_memory() -> None:
    """Make the C library keep freed memory for the next picture; once per process.

    glibc returns free memory at the end of its heap to the system, so that up to 5,000 pages were fetched
    again for each picture, which took a tenth of the time. Its threshold follows the largest block ever
    freed, so this asks for a large block, never touches it (so it costs no memory) and frees it. With other C
    libraries this does nothing.
    """
    np.empty(31 << 20, np.uint8)
