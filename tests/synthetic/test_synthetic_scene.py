"""The world of the synthetic scenes: camera, shapes, occlusion, and labels from the instance picture."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from mrt.data.synthetic import CLASSES, DOMAINS
from mrt.data.synthetic.camera import FAR, Camera, draw_camera
from mrt.data.synthetic.geometry import Sketch
from mrt.data.synthetic.labels import annotate, hidden_by_fog, visible_pixels
from mrt.data.synthetic.light import draw_light
from mrt.data.synthetic.paint import Canvas, Thing, paint, rasterise
from mrt.data.synthetic.palettes import FIXED
from mrt.data.synthetic.render import render
from mrt.data.synthetic.surfaces import noise_textures, texture, wrapped
from mrt.data.synthetic.traffic import MODELS, SHAPES, shape

SMALL = (160, 80)


@pytest.fixture
def cam():
    return Camera(width=160, height=80, focal=150.0, centre=80.0, horizon=36.0, x=1.5, height_m=1.5, yaw=0.1)


def cube(size: float = 1.0):
    s = Sketch()
    s.part().box(-size / 2, size / 2, 0, size, -size / 2, size / 2, "rim")
    return s.done()


def paint_one(cam: Camera, thing: Thing, canvas: Canvas, identity: int) -> int:
    light = draw_light(np.random.default_rng(0), overcast=True)
    return paint(canvas, rasterise(thing, cam, light, 1.0), thing, cam, identity)


def blank(cam: Camera) -> Canvas:
    shape_ = (cam.height, cam.width)
    return Canvas(
        np.zeros((*shape_, 3), np.float32),
        np.full(shape_, FAR, np.float32),
        np.zeros(shape_, np.int16),
        noise_textures()[0],
    )


def test_a_pixels_ray_leads_back_to_the_point_it_shows(cam):
    points = np.array([(0.0, 0.0, 12.0), (4.0, 2.5, 20.0), (-6.0, 1.0, 33.0)])
    seen = cam.to_camera(points)
    columns, rows = cam.project(seen)
    dx, dz = cam.column_rays(columns)
    np.testing.assert_allclose(cam.x + seen[:, 2] * dx, points[:, 0], atol=1e-9)
    np.testing.assert_allclose(seen[:, 2] * dz, points[:, 2], atol=1e-9)
    np.testing.assert_allclose(
        cam.height_m - seen[:, 2] * (rows - cam.horizon) / cam.focal, points[:, 1], atol=1e-9
    )


def test_twice_as_far_is_half_as_large(cam):
    sizes = []
    for z in (10.0, 20.0):
        canvas = blank(cam)
        paint_one(cam, Thing(cube(2.0), FIXED, 2.5, z), canvas, 1)
        rows = np.flatnonzero((canvas.instance == 1).any(1))
        sizes.append(rows[-1] - rows[0] + 1)
        assert canvas.depth[canvas.instance == 1].min() == pytest.approx(z - 1, abs=0.4)
    assert sizes[0] / sizes[1] == pytest.approx(2.0, rel=0.2)


@pytest.mark.parametrize("near_first", [True, False])
def test_the_nearer_thing_hides_the_farther_in_either_order(cam, near_first):
    canvas = blank(cam)
    near, far = Thing(cube(1.0), FIXED, 2.5, 8.0), Thing(cube(3.0), FIXED, 3.4, 16.0)
    alone = {1: blank(cam), 2: blank(cam)}
    order = [(near, 1), (far, 2)] if near_first else [(far, 2), (near, 1)]
    for thing, identity in order:
        covered = paint_one(cam, thing, canvas, identity)
        assert covered == paint_one(cam, thing, alone[identity], identity)
    assert (canvas.instance == 1).sum() == (alone[1].instance == 1).sum()
    assert 0 < (canvas.instance == 2).sum() < (alone[2].instance == 2).sum()


def test_things_behind_or_beside_the_camera_are_skipped(cam):
    light = draw_light(np.random.default_rng(0), overcast=True)
    for x, z in ((1.5, -5.0), (40.0, 10.0), (-40.0, 10.0)):
        assert rasterise(Thing(cube(), FIXED, x, z), cam, light, 1.0) is None


def test_a_thing_that_reaches_behind_the_camera_is_cut_at_the_near_plane(cam):
    canvas = blank(cam)
    paint_one(
        cam,
        Thing(
            shape("train", 0),
            {**FIXED, "glass": (50, 60, 70), "paint": (200, 0, 0), "paint2": (0, 0, 200)},
            -1.5,
            4.0,
        ),
        canvas,
        1,
    )
    assert np.isfinite(canvas.image).all()
    assert (canvas.instance == 1).sum() > 100


@pytest.mark.parametrize("kind", [*MODELS, "rider_bicycle", "rider_motorcycle"])
def test_shapes_stand_on_the_ground_at_real_sizes(kind):
    lengths = {
        "car": (3.5, 5.4),
        "truck": (6.3, 10.2),
        "bus": (9.3, 13),
        "train": (12, 31),
        "motorcycle": (1.6, 2.4),
        "bicycle": (1.6, 2.1),
    }
    for number in range(SHAPES):
        x0, x1, z0, z1, height = shape(kind, number).extent
        assert shape(kind, number).vertices[:, 1].min() > -0.1
        low, high = lengths.get(kind, (0.0, 12.0))
        assert low <= z1 - z0 <= high
        if kind in ("truck", "bus", "train"):
            assert 2.3 <= x1 - x0 <= 3.3 and 2.5 <= height <= 5.6
        if kind == "person":
            assert 1.1 <= height <= 1.95


def test_a_box_holds_exactly_the_visible_pixels():
    for index in range(6):
        scene = render(3, "clear", "train", index, SMALL)
        boxes = {}
        for identity in np.unique(scene.instance[scene.instance > 0]).tolist():
            ys, xs = np.nonzero(scene.instance == identity)
            box = (int(xs.min()), int(ys.min()), int(np.ptp(xs)) + 1, int(np.ptp(ys)) + 1)
            boxes[box] = boxes.get(box, 0) + len(ys)
        for a in scene.annotations:
            assert a.box in boxes and a.area <= boxes[a.box]
            x, y, w, h = a.box
            assert 0 <= x < x + w <= SMALL[0] and 0 <= y < y + h <= SMALL[1]


def test_what_is_hidden_or_tiny_is_ignored():
    instance = np.zeros((100, 200), np.int16)
    instance[10:40, 10:40] = 1
    instance[10:40, 60:70] = 2
    instance[50:53, 10:13] = 3
    instance[60, 60:63] = 4
    instance[70:90, 100:130] = 5
    instance[70:90, 150:180] = 6
    found = annotate(
        visible_pixels(instance),
        100,
        {1: 2, 2: 0, 3: 0, 4: 0, 5: 4},
        {1: 900, 2: 1200, 3: 9, 4: 3, 5: 600, 6: 600},
        {5},
    )
    assert [(a.label, a.box, a.area, a.ignored) for a in found] == [
        (2, (10, 10, 30, 30), 900, False),
        (0, (60, 10, 10, 30), 300, True),  # 25 % visible
        (0, (10, 50, 3, 3), 9, True),  # too small
        (4, (100, 70, 30, 20), 600, True),  # hidden by the weather
    ]  # 4 has too few pixels for an annotation, 6 is not a labelled thing


def test_fog_hides_what_stands_beyond_three_over_beta():
    instance = np.zeros((10, 30), np.int16)
    instance[:, :10], instance[:, 10:20] = 1, 2
    beta = 0.15
    depth = np.where(instance == 1, 3 / beta - 0.5, 3 / beta + 0.5)
    assert hidden_by_fog(visible_pixels(instance), {1: 0, 2: 0, 7: 0}, beta * depth) == {2}


def test_a_quick_remainder_is_numpys_to_the_last_bit():
    rng = np.random.default_rng(8)
    for period in (0.75, 9, 1.0, 0.3, rng.uniform(2.9, 3.5, 700).astype(np.float32)):
        multiples = np.arange(700)[None] * period * 1.0
        x = np.concatenate([rng.uniform(-20, 900, (300, 700)), multiples]).astype(np.float32)
        np.testing.assert_array_equal(wrapped(x, period), x % period)


def test_a_texture_repeats_in_all_directions():
    tile = np.arange(8 * 16, dtype=np.float32).reshape(8, 16)
    rows, columns = np.arange(-20, 20, dtype=np.int32)[:, None], np.arange(-40, 40, dtype=np.int32)[None, :]
    np.testing.assert_array_equal(texture(tile, rows, columns), tile[rows % 8, columns % 16])


@pytest.fixture(scope="module")
def many():
    return [render(11, "clear", "train", index, SMALL) for index in range(120)]


def test_class_frequencies_have_a_long_tail_whose_end_is_still_useful(many):
    labels = [[a.label for a in scene.annotations if not a.ignored] for scene in many]
    boxes = Counter(CLASSES[label] for image in labels for label in image)
    images = Counter(CLASSES[label] for image in labels for label in set(image))
    assert 6 <= sum(boxes.values()) / len(many) <= 11
    assert boxes.most_common(2)[0][0] == "car" and boxes.most_common(8)[-1][0] == "train"
    assert boxes["car"] > 10 * boxes["train"]
    shares = {name: images[name] / len(many) for name in CLASSES}
    assert shares["train"] >= 0.08 and shares["motorcycle"] >= 0.15
    assert min(shares[name] for name in ("person", "rider", "truck", "bus", "bicycle")) >= 0.2


def test_pictures_are_neither_dark_nor_washed_out(many):
    means = np.array([scene.image.mean() for scene in many]) / 255
    spread = np.array([scene.image.std() for scene in many]) / 255
    assert 0.3 < means.mean() < 0.6 and spread.min() > 0.08


@pytest.mark.parametrize("domain", DOMAINS)
def test_a_scene_depends_on_its_key_alone(domain):
    first = render(5, domain, "val", 2, SMALL)
    render(5, domain, "val", 3, SMALL)
    again = render(5, domain, "val", 2, SMALL)
    np.testing.assert_array_equal(first.image, again.image)
    assert first.annotations == again.annotations
    assert first.image.dtype == np.uint8 and first.image.shape == (SMALL[1], SMALL[0], 3)


def test_no_domain_or_split_shows_the_scenes_of_another():
    maps = [render(5, domain, split, 0, SMALL).instance for domain in DOMAINS for split in ("train", "test")]
    for i, a in enumerate(maps):
        for b in maps[:i]:
            assert (a != b).mean() > 0.02


def test_the_same_scene_at_another_size_has_the_same_things():
    small, large = (render(9, "clear", "train", 4, size) for size in ((256, 128), (512, 256)))
    count = [Counter(a.label for a in scene.annotations if not a.ignored) for scene in (small, large)]
    assert sum((count[0] - count[1]).values()) + sum((count[1] - count[0]).values()) <= 2


def test_views_vary(cam):
    rng = np.random.default_rng(0)
    cameras = [draw_camera(rng, 256, 128, 0.0) for _ in range(50)]
    assert np.std([c.yaw for c in cameras]) > 0.03
    assert min(c.height_m for c in cameras) >= 1.3 and max(c.height_m for c in cameras) <= 1.75
