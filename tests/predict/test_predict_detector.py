"""The detector as users call it: kinds of images, results, options, and independence of the batch size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from blobs import blob_detector, picture
from PIL import Image

from mrt.data.images import read_picture, upright_rgb
from mrt.errors import MrtError
from mrt.predict.detections import Detections
from mrt.predict.detector import Options, Thresholds
from mrt.predict.network import TorchNetwork

RED, GREEN, BLUE = (20, 30, 60, 90), (80, 10, 120, 40), (100, 60, 150, 110)


@pytest.fixture
def photo() -> Image.Image:
    return picture(red=[RED], green=[GREEN], blue=[BLUE])


def test_one_image_gives_detections_in_its_pixels(photo):
    found = blob_detector().predict(photo)
    assert isinstance(found, Detections) and len(found) == 3 and found.image_size == (120, 160)
    assert found.names == ["red", "green", "blue"]
    assert found.boxes.dtype == found.scores.dtype == np.float32 and found.labels.dtype == np.int64
    np.testing.assert_allclose(found.boxes, [RED, GREEN, BLUE], atol=0.01)
    assert [name for _, _, name in found] == found.names


@pytest.mark.parametrize("scale", [1, 3])
def test_boxes_are_in_the_pixels_of_the_image_as_given_and_not_of_the_network(scale):
    big = picture((160 * scale, 120 * scale), red=[tuple(scale * n for n in RED)])
    np.testing.assert_allclose(blob_detector().predict(big).boxes, [[scale * n for n in RED]], atol=scale)


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[274] = orientation
    return exif


def test_deep_grey_pictures_are_those_of_their_files(tmp_path):
    values = np.linspace(0, 65535, 40 * 60).reshape(40, 60)
    for name, array in (
        ("deep.png", values.astype(np.uint16)),
        ("float.tif", (values / 65535).astype(np.float32)),
    ):
        Image.fromarray(array).save(tmp_path / name)
        assert np.array_equal(read_picture(tmp_path / name), upright_rgb(Image.open(tmp_path / name)))


def test_half_precision_on_a_processor_is_refused():
    with pytest.raises(MrtError, match="precision fp16: no processor computes in it"):
        TorchNetwork(torch.nn.Linear(1, 1), "fp16")


def test_every_kind_of_image_gives_the_same(photo, tmp_path):
    photo.save(tmp_path / "a.png")
    array = np.array(photo)
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    kinds = [tmp_path / "a.png", str(tmp_path / "a.png"), photo, array, tensor]
    kinds += [tensor.float() / 255, (array / 255).astype(np.float32)]
    detector = blob_detector()
    results = [detector.predict(kind) for kind in kinds]
    for found in results:
        assert np.array_equal(found.boxes, results[0].boxes)
        assert np.array_equal(found.scores, results[0].scores)
    together = detector.predict(kinds, batch=4)
    assert isinstance(together, list) and len(together) == len(kinds)
    assert len(detector.predict(torch.stack([tensor, tensor]))) == 2
    assert len(detector.predict(torch.ones(3, 50, 50, dtype=torch.bfloat16))) == 0  # white
    assert len(detector.predict(np.array(photo.convert("L")))) == 0  # grey is grey
    for name, kind in (
        ("turned.jpg", {"exif": turned(6), "quality": 100, "subsampling": 0}),
        ("turned.png", {"exif": turned(3)}),
    ):
        photo.save(tmp_path / name, **kind)
        of_file, of_picture = (
            detector.predict(what) for what in (tmp_path / name, Image.open(tmp_path / name))
        )
        assert of_picture.image_size == of_file.image_size and np.array_equal(of_picture.boxes, of_file.boxes)
        assert np.array_equal(of_picture.scores, of_file.scores)
    assert detector.predict([]) == []
    assert detector(photo).names == ["red", "green", "blue"]


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.zeros((5, 5, 4), np.uint8), "has the shape (5, 5, 4)"),
        (np.zeros((0, 5, 3), np.uint8), "has the shape"),
        (torch.zeros(5, 5, 5), "has the shape"),
        (np.full((5, 5, 3), 300), "from 300 to 300"),
        (np.full((5, 5, 3), -0.5), "from -0.5 to -0.5"),
        (torch.zeros(3, 5, 5, device="meta"), "image 0: a tensor without its values"),
        (torch.zeros(3, 5, 5).to_sparse(), "image 0: a tensor without its values"),
        (b"jpeg", "an image cannot be bytes"),
        ({"a.jpg": 1}, "cannot be a dict"),
        (7, "cannot be a int"),
        ([7], "cannot be a int"),
        ("nothing.jpg", "nothing.jpg: no such image\ncheck the path"),
        (Path("/"), "/: is a folder, not an image\ngive its images: detector.predict(sorted(Path('/')"),
        (__file__, "cannot be read as an image (in no image format that Pillow knows)\nget the file again"),
    ],
)
def test_what_is_no_image_is_said(image, words):
    with pytest.raises(MrtError) as error:
        blob_detector().predict(image)
    assert words in str(error.value)


def test_results_do_not_depend_on_the_batch_and_keep_their_order():
    photos = [picture((160 + 40 * (n % 3), 120), red=[(10 + n, 10, 40 + n, 50)]) for n in range(11)]
    alone = [blob_detector().predict(photo) for photo in photos]
    for batch in (1, 2, 4, 50):
        detector = blob_detector()
        together = detector.predict(photos, batch=batch)
        for a, b in zip(alone, together, strict=True):
            assert np.array_equal(a.boxes, b.boxes) and a.image_size == b.image_size
        assert sum(shape[0] for shape in detector.network.batches) == len(photos)
        assert max(shape[0] for shape in detector.network.batches) == min(batch, 4)  # of one size only


def test_thresholds(photo):
    detector = blob_detector()
    assert detector.predict(photo, threshold=0.5).names == ["red", "green"]
    assert detector.predict(photo, threshold=torch.tensor(0.5)).names == ["red", "green"]
    assert detector.predict(photo, threshold={"red": 0.95}).names == ["green", "blue"]
    assert detector.predict(photo, threshold=0).names == ["red", "green", "blue"]
    own = blob_detector(Thresholds({"red": 0.3, "green": 0.3, "blue": 0.4}, "the run's"))
    assert own.predict(photo).names == ["red", "green"]
    assert own.predict(photo, threshold={"green": 0.7}).names == ["red"]
    assert own.predict(photo, threshold=0.1).names == ["red", "green", "blue"]


def test_classes_top_k_and_nms():
    crowded = picture((160, 120), red=[(10, 10, 60, 60), (62, 10, 110, 60)], green=[(10, 70, 60, 110)])
    detector = blob_detector()
    assert detector.predict(crowded, classes=["green"]).names == ["green"]
    assert len(detector.predict(crowded, top_k=1)) == 1
    assert len(detector.predict(crowded, top_k=None)) == 3
    assert detector.predict(crowded, classes={"green"}).names == ["green"]
    assert len(detector.predict(crowded, nms=0.5)) == 3


def test_nms_drops_the_lower_of_two_boxes_that_overlap():
    class Twice:
        def __call__(self, images):
            boxes = np.array([[0.1, 0.1, 0.5, 0.5], [0.1, 0.1, 0.52, 0.5], [0.1, 0.1, 0.51, 0.5]], np.float32)
            return np.array([[0.9, 0.8, 0.7]], np.float32), np.array([[0, 0, 1]]), boxes[None]

    detector = blob_detector()
    detector.network = Twice()
    photo = picture()
    assert detector.predict(photo).names == ["red", "red", "green"]
    assert detector.predict(photo, nms=0.5).names == ["red", "green"]
    assert detector.predict(photo, nms=0.5, agnostic=True).names == ["red"]


def test_boxes_are_cut_to_the_image_and_empty_ones_are_dropped():
    class Beyond:
        def __call__(self, images):
            boxes = np.array([[-0.2, -0.1, 0.5, 1.2], [1.1, 0.1, 1.3, 0.5]], np.float32)
            return np.array([[0.9, 0.8]], np.float32), np.array([[0, 1]]), boxes[None]

    detector = blob_detector()
    detector.network = Beyond()
    found = detector.predict(picture())
    np.testing.assert_allclose(found.boxes, [[0, 0, 80, 120]])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"threshold": 1.5}, "between 0 and 1"),
        ({"threshold": float("nan")}, "between 0 and 1"),
        ({"threshold": "0.5"}, "threshold = '0.5': is a str"),
        ({"threshold": {"red": None}}, "threshold = {'red': None}"),
        ({"classes": "red"}, "classes = 'red': is a str\ngive a list"),
        ({"classes": [2]}, "classes = [2]"),
        ({"nms": True}, "nms = True"),
        ({"batch": 1.5}, "batch = 1.5: is a float\ngive a whole number"),
        ({"top_k": 1.5}, "top_k = 1.5"),
        ({"tile": 1.5}, "tile = 1.5"),
        ({"overlap": 1.0}, "overlap"),
        ({"agnostic": "no"}, "agnostic = 'no'"),
        ({"threshold": {"rd": 0.5}}, "did you mean 'red'"),
        ({"classes": ["cat"]}, "it detects red, green, blue"),
        ({"nms": 0}, "intersection over union"),
        ({"batch": 0}, "at least 1"),
        ({"top_k": 0}, "at least 1"),
        ({"tile": 0}, "at least 1 pixel"),
        ({"tile": 50, "overlap": 1.0}, "overlap"),
    ],
)
def test_options_that_do_not_fit_are_said_before_anything_is_read(options, words):
    with pytest.raises(MrtError) as error:
        blob_detector().predict("nothing.jpg", **options)
    assert words in str(error.value)


def test_tiles_find_what_the_whole_image_is_too_coarse_for():
    small = [(200 * n + 10, 700, 200 * n + 16, 706) for n in range(8)]
    big = picture((1600, 800), red=small, green=[(330, 340, 460, 460)])
    detector = blob_detector()
    assert "red" not in detector.predict(big).names  # six pixels become less than one
    found = detector.predict(big, tile=200)
    assert sorted(found.names) == ["green"] + ["red"] * 8
    reds = found[found.labels == 0]
    np.testing.assert_allclose(np.sort(reds.boxes[:, 0]), [box[0] for box in small], atol=2)
    np.testing.assert_allclose(found[found.labels == 1].boxes, [(330, 340, 460, 460)], atol=8)


def test_detections_convert(photo):
    found = blob_detector().predict(photo)
    coco = found.to_coco(7)
    assert coco[0] == {"image_id": 7, "category_id": 1, "bbox": [20.0, 30.0, 40.0, 60.0], "score": 0.9}
    assert len(found[:1]) == 1 and found[0].names == ["red"]
    assert found[found.scores > 0.5].names == ["red", "green"]
    drawn, plain = found.draw(), photo.resize((640, 480))
    assert drawn.size == plain.size and drawn.getpixel((80, 200)) != plain.getpixel((80, 200))
    assert repr(found) == "Detections(image: 1 red, 1 green, 1 blue)"
    assert repr(found[:0]).endswith("nothing)") and found[:0].to_coco() == []
    with pytest.raises(MrtError, match="do not know their image"):
        Detections(found.boxes, found.scores, found.labels, found.classes, found.image_size).draw()


def test_detections_for_supervision(photo):
    supervision = pytest.importorskip("supervision")
    found = blob_detector().predict(photo).to_supervision()
    assert isinstance(found, supervision.Detections)
    assert list(found.data["class_name"]) == ["red", "green", "blue"]
    np.testing.assert_allclose(found.xyxy, [RED, GREEN, BLUE], atol=0.01)
    empty = blob_detector().predict(picture()).to_supervision()
    assert len(empty) == 0


def test_a_broken_image_stops_a_list_but_not_a_stream(tmp_path):
    from mrt.predict import inputs

    (tmp_path / "bad.png").write_bytes(b"no image")
    picture(red=[RED]).save(tmp_path / "good.png")
    with pytest.raises(MrtError, match=r"bad\.png"):
        blob_detector().predict([tmp_path / "bad.png", tmp_path / "good.png"])
    sources, _ = inputs.find([tmp_path])
    results = {frame.name: result for frame, result in blob_detector().stream(sources[0].frames())}
    assert isinstance(results["bad.png"], MrtError) and results["good.png"].names == ["red"]


def test_the_reading_thread_ends_with_a_stream_that_is_not_used_up():
    import threading

    before = threading.active_count()
    detector = blob_detector()
    from mrt.predict.inputs import Frame

    stream = detector.stream(Frame(str(n), lambda: picture(red=[RED])) for n in range(10_000))
    assert next(stream)[0].name == "0"
    stream.close()
    assert threading.active_count() == before


def test_frames_before_a_break_are_given_whatever_the_batch():
    from mrt.data.video import SourceBroken
    from mrt.predict.inputs import Frame

    def frames():
        for number in range(5):
            yield Frame(str(number), lambda: picture(red=[RED]))
        raise SourceBroken("the film broke")

    seen = []
    with pytest.raises(SourceBroken):
        for frame, found in blob_detector().stream(frames(), Options(batch=8)):
            seen.append((frame.name, found.names))
    assert seen == [(str(number), ["red"]) for number in range(5)]
