"""Fog, night, rain and the sensor: the physics that each claims, and which things count as seen."""

from __future__ import annotations

import numpy as np
import pytest

from mrt.data.synthetic.camera import FAR, Camera
from mrt.data.synthetic.labels import visible_pixels
from mrt.data.synthetic.lamps import glow, lamps_of, shine
from mrt.data.synthetic.night import unseen_at_night
from mrt.data.synthetic.paint import Thing
from mrt.data.synthetic.palettes import FIXED
from mrt.data.synthetic.rain import add_rain, unseen_through_drops
from mrt.data.synthetic.render import render
from mrt.data.synthetic.traffic import shape
from mrt.data.synthetic.weather import add_fog, exposed, sensor, to_linear, to_srgb

SIZE = (160, 80)


@pytest.fixture
def cam():
    return Camera(width=160, height=80, focal=150.0, centre=80.0, horizon=36.0, x=0.0, height_m=1.5, yaw=0.0)


def test_srgb_curve_and_back():
    values = np.linspace(0, 1, 256)
    exact = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    np.testing.assert_allclose(to_linear(values), exact, atol=4e-4)
    np.testing.assert_allclose(to_srgb(to_linear(values)), values, atol=2e-3)


def test_the_order_of_colours_in_memory_changes_nothing():
    rng = np.random.default_rng(1)
    triples = rng.random((90, 150, 3), np.float32)
    planes = np.ascontiguousarray(triples.transpose(2, 0, 1)).transpose(1, 2, 0)
    np.testing.assert_array_equal(to_srgb(planes), to_srgb(triples))
    np.testing.assert_array_equal(to_linear(planes[10:30]), to_linear(triples[10:30]))
    for metering in (None, 0.44):
        first, second = (
            sensor(image, np.random.default_rng(2), metering=metering) for image in (triples, planes)
        )
        np.testing.assert_array_equal(first, second)


def test_exposure_saturates_as_film_does():
    light = np.concatenate([np.geomspace(1e-5, 60, 4000), [0.0, 1e4]]).astype(np.float32)
    scaled = 1 - np.exp(-1.7 * light.astype(float))
    exact = np.where(scaled <= 0.0031308, 12.92 * scaled, 1.055 * scaled ** (1 / 2.4) - 0.055)
    # Where the curve is steepest, half a step of the table is 2e-4 of the range; white is reached 4e-4 of
    # linear light too early.
    np.testing.assert_allclose(exposed(light.copy(), 1.7), exact, atol=3e-4)


def test_fog_follows_koschmieders_law_in_linear_light():
    rng = np.random.default_rng(0)
    h, w, beta = 40, 80, 0.1
    image = np.full((h, w, 3), 0.2, np.float32)
    depth = np.tile(np.linspace(0.01, 80, w, dtype=np.float32), (h, 1))
    foggy, optical = add_fog(image, depth, beta, rng)
    ratio = optical / (beta * depth)
    assert ratio.min() >= 0.7 - 1e-5 and ratio.max() <= 1.3 + 1e-5
    t = np.exp(-optical)
    airlight, _ = add_fog(image, np.full_like(depth, 1e6), beta, np.random.default_rng(0))
    expected = t[..., None] * to_linear(image) + (1 - t[..., None]) * to_linear(airlight)
    np.testing.assert_allclose(to_linear(foggy), expected, atol=3e-3)


def test_a_fog_of_several_betas_draws_each():
    seen = {render(0, "foggy", "train", index, (96, 48), (0.05, 0.2)).beta for index in range(12)}
    assert seen == {0.05, 0.2}


def test_thicker_fog_leaves_fewer_labels_of_the_same_scenes():
    counts, ignored = [], []
    for beta in (0.02, 0.1, 0.3):
        scenes = [render(0, "foggy", "train", index, SIZE, (beta,)) for index in range(10)]
        counts.append(sum(not a.ignored for s in scenes for a in s.annotations))
        ignored.append(sum(a.ignored for s in scenes for a in s.annotations))
    assert counts[0] > counts[1] > counts[2] > 0
    assert ignored[0] < ignored[1] < ignored[2]


def test_labelled_things_stand_within_the_visibility():
    for index in range(8):
        scene = render(1, "foggy", "train", index, SIZE, (0.15,))
        for a in scene.annotations:
            x, y, w, h = a.box
            if not a.ignored:
                assert scene.depth[y : y + h, x : x + w].min() < 3 / (0.7 * 0.15)


def test_noise_comes_after_the_weather():
    flat = np.full((60, 120, 3), 0.7, np.float32)
    noisy = sensor(flat, np.random.default_rng(3), noise=(0.02, 0.02)).astype(float) / 255
    middle = noisy[25:35, 50:70]
    assert 0.012 < middle.std(axis=(0, 1)).mean() < 0.03
    scene = render(0, "foggy", "train", 0, SIZE, (5.0,))  # nothing but fog: the noise is still there
    top = scene.image[:8, 60:100].astype(float)
    assert np.abs(np.diff(top, axis=1)).mean() > 0.5


def test_metering_brings_a_dark_picture_up():
    dark = np.full((40, 80, 3), 0.25, np.float32)
    plain, metered = (sensor(dark, np.random.default_rng(0), metering=m).mean() for m in (None, 0.44))
    assert metered == pytest.approx(plain * 1.5, rel=0.05)


def test_night_is_dark_with_bright_lamps():
    night = [render(0, "night", "train", index, SIZE).image for index in range(8)]
    day = [render(0, "clear", "train", index, SIZE).image for index in range(8)]
    assert np.mean(night) < 0.5 * np.mean(day)
    assert np.mean([image.max() for image in night]) > 235


def test_lamps_shine_towards_who_looks_at_them_and_are_hidden_by_what_is_nearer(cam):
    towards = Thing(shape("car", 0), FIXED, 0.0, 12.0, np.pi)
    away = Thing(shape("car", 0), FIXED, 0.0, 12.0, 0.0)
    depth = np.full((80, 160), FAR, np.float32)
    strength = {"head": 10.0, "tail": 2.0}
    white, red = (shine(lamps_of([thing]), cam, depth, strength) for thing in (towards, away))
    assert white[0].max() > 5 and white[2].max() > 4
    assert red[0].max() > 1 and red[2].max() < 0.2
    assert shine(lamps_of([towards]), cam, np.full_like(depth, 3.0), strength).max() == 0
    assert not lamps_of([Thing(shape("car", 0), FIXED, 0.0, 12.0, lamps_on=False)])


def test_glow_keeps_the_light_and_spreads_it():
    light = np.zeros((3, 41, 83), np.float32)
    light[:, 20, 40] = 16.0
    spread = glow(light, ((0.03, 1.0),))
    assert spread.shape == light.shape
    assert spread.max() < 2 and spread[:, 20, 50].min() > 0
    assert spread[0].sum() == pytest.approx(16.0, rel=0.15)


# Sigma is 8, 24 and 48 pixels: computed at a quarter, an eighth and a sixteenth of the size. Interpolating
# between the centres of 4 by 4 pixels flattens the narrow one by 1 in 20; a shift by half a pixel of its
# small picture would be off by 1 in 10 or more.
@pytest.mark.parametrize(("share", "tolerance"), [(0.01, 0.06), (0.03, 0.02), (0.06, 0.02)])
def test_glow_is_a_gaussian_of_the_given_width_wherever_the_lamp_is(share, tolerance):
    y, x = np.arange(400)[:, None] + 0.5, np.arange(800)[None, :] + 0.5
    for row, column in ((201, 401), (186, 420)):
        light = np.zeros((3, 400, 800), np.float32)
        light[:, row, column] = 1000.0
        # light is averaged over blocks of 4 by 4 pixels, so it comes from a block's centre
        squared = (y - (row // 4 * 4 + 2)) ** 2 + (x - (column // 4 * 4 + 2)) ** 2
        exact = np.exp(-squared / (2 * (share * 800) ** 2))
        exact *= 1000 / exact.sum()
        np.testing.assert_allclose(glow(light, ((share, 1.0),))[1], exact, atol=tolerance * exact.max())


def test_at_night_contrast_decides():
    display = np.full((100, 200, 3), 0.10, np.float32)
    instance = np.zeros((100, 200), np.int16)
    instance[20:60, 20:40], instance[20:60, 80:100], instance[20:60, 140:160] = 1, 2, 3
    display[instance == 1] = 0.12  # a dark coat in front of a dark wall
    display[instance == 2] = 0.20
    display[30:34, 145:150] = 0.9  # dark except for one lamp
    assert unseen_at_night(display, visible_pixels(instance), {1: 0, 2: 0, 3: 2, 9: 0}, noise=0.02) == {1}
    assert unseen_at_night(display, visible_pixels(instance), {2: 0}, noise=0.2) == {2}


def test_a_wet_road_mirrors_what_stands_on_it(cam):
    image = np.full((80, 160, 3), 0.3, np.float32)
    depth = np.full((80, 160), FAR, np.float32)
    slopes = cam.row_slopes()
    depth[slopes > 0.005] = (cam.height_m / slopes[slopes > 0.005])[:, None]
    instance = np.zeros((80, 160), np.int16)
    instance[20:42, 60:100] = 1
    depth[20:42, 60:100] = 40.0
    lit = image.copy()
    lit[20:42, 60:100] = (1.0, 0.1, 0.1)
    dim, red = (
        add_rain(picture, depth, instance, cam, [], np.random.default_rng(4))[0] for picture in (image, lit)
    )
    below, beside = (slice(43, 55), slice(65, 95)), (slice(43, 55), slice(5, 40))
    assert (red - dim)[below][..., 0].mean() > 0.05
    assert abs((red - dim)[beside]).mean() < 0.02


def test_drops_hide_what_lies_under_them():
    instance = np.zeros((10, 20), np.int16)
    instance[:, :5], instance[:, 10:15] = 1, 2
    covered = np.zeros((10, 20), np.float32)
    covered[:, :3], covered[:2, 10:15] = 0.9, 0.9
    assert unseen_through_drops(covered, visible_pixels(instance), {1: 0, 2: 0}) == {1}
    assert unseen_through_drops(np.zeros_like(covered), visible_pixels(instance), {1: 0, 2: 0}) == set()
