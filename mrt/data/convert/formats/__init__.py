"""Label formats by name.

``PAIRED``: formats with a label file for each image (:mod:`mrt.data.convert.sheets`). Those whose files list
many images are in :mod:`mrt.data.convert.bridge`.
"""

from __future__ import annotations

from mrt.data.convert.formats import bdd, dota, kitti, labelme, supervisely, visdrone
from mrt.data.convert.sheets import Format

PAIRED: dict[str, Format] = {
    found.FORMAT.name: found.FORMAT for found in (kitti, visdrone, labelme, bdd, dota, supervisely)
}
