"""A network whose output is not finite is an error, not an empty picture."""

from __future__ import annotations

import numpy as np
import pytest
from blobs import blob_detector, picture

from mrt.errors import MrtError
from mrt.predict.job import run
from mrt.predict.tiles import merge


class Dying:
    """The network of the blobs, with one value of its output changed from some image on."""

    def __init__(self, network, part: int, value: float, after: int = 0) -> None:
        self.network, self.part, self.value, self.left = network, part, value, after

    def __call__(self, images):
        found = self.network(images)
        if self.left <= 0:
            found[self.part].reshape(len(images), -1)[0, 0] = self.value
        self.left -= len(images)
        return found


def dying(part=2, value=np.nan, after=0):
    detector = blob_detector()
    detector.network = Dying(detector.network, part, value, after)
    return detector


PHOTO = picture(red=[(20, 20, 60, 60)])


@pytest.mark.parametrize("options", [{}, {"nms": 0.5}, {"tile": 80}, {"threshold": 0.0, "agnostic": True}])
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("part", [0, 2])
def test_it_is_said(part, value, options):
    with pytest.raises(MrtError, match=r"its output for .* is not finite") as error:
        dying(part, value).predict(PHOTO, **options)
    assert error.value.hint


def test_tiles_of_nothing_finite_are_not_merged():
    boxes = np.array([[0, 0, 1, 1], [0, 0, np.nan, 1]], np.float32)
    with pytest.raises(ValueError, match="must be finite"):
        merge(boxes, np.array([0.5, 0.4]), np.zeros(2, int))
    with pytest.raises(ValueError, match="must be finite"):
        merge(np.nan_to_num(boxes), np.array([0.5, np.nan]), np.zeros(2, int))


def test_a_job_keeps_what_it_had(tmp_path):
    from mrt.predict.detector import Options
    from mrt.predict.inputs import find
    from mrt.predict.outputs import Csv

    for number in range(3):
        PHOTO.save(tmp_path / f"{number}.png")
    sources, _ = find([str(tmp_path)])
    with pytest.raises(MrtError, match=r"its output for 2\.png is not finite"):
        run(dying(after=2), sources, Options(), [Csv(tmp_path / "out")])
    lines = (tmp_path / "out" / "detections.csv").read_text().splitlines()
    assert [line.partition(",")[0] for line in lines] == ["file", "0.png", "1.png"]
