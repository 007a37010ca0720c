#!/usr/bin/env python3
"""Detect objects in photos with the ONNX program beside this file: one line of JSON for each object.

    python detect.py photo.jpg more/*.jpg --threshold 0.3

Needs numpy, pillow and onnxruntime, nothing else. Boxes are x0, y0, x1, y1 in pixels of the upright photo.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

HERE = Path(__file__).resolve().parent


def read(path: str) -> Image.Image:
    """The photo in 8-bit RGB, turned upright by its EXIF entry; of 16-bit grey the high byte."""
    with Image.open(path) as file:
        picture = ImageOps.exif_transpose(file)
        if picture.mode.startswith("I") or picture.mode == "F":
            values = np.asarray(picture)
            if values.dtype.kind == "f":
                values = (values * 255 if values.max(initial=0) <= 1 else values).clip(0, 255)
            else:
                values = (values >> 8).clip(0, 255)
            picture = Image.fromarray(values.astype(np.uint8))
        return picture.convert("RGB")


def network_size(width: int, height: int, sizes: dict) -> tuple[int, int]:
    """The network's input size (width, height): the short side as set, or less to limit the long side; both
    rounded to a multiple."""
    if sizes["fixed"]:
        return sizes["fixed"][1], sizes["fixed"][0]
    short, long = min(width, height), max(width, height)
    new_short, new_long = sizes["short_side"], int(sizes["short_side"] * long / short)
    if new_long > sizes["max_size"]:
        new_short, new_long = int(sizes["max_size"] * new_short / new_long), sizes["max_size"]
    new_short, multiple = max(new_short, 1), sizes.get("multiple", 1)
    if multiple > 1:
        most = max(sizes["max_size"] // multiple, 1)
        new_short, new_long = (
            min(max(round(side / multiple), 1), most) * multiple for side in (new_short, new_long)
        )
    return (new_short, new_long) if width <= height else (new_long, new_short)


def detect(
    session: onnxruntime.InferenceSession,
    card: dict,
    picture: Image.Image,
    threshold: float | None = None,
    top: int = 100,
) -> list[tuple[str, float, list[float]]]:
    """(class, score, [x0, y0, x1, y1]) of the objects in an RGB picture, best first.

    threshold: lowest score of all classes; None: each class's own, from export.json.
    """
    classes, own = card["classes"], card["thresholds"]["values"]
    scaled = picture.resize(network_size(*picture.size, card["preprocessing"]), Image.Resampling.BILINEAR)
    images = np.asarray(scaled, dtype=np.float32).transpose(2, 0, 1)[None]
    outputs = session.run(["scores", "labels", "boxes"], {"images": np.ascontiguousarray(images)})
    scores, labels, boxes = (part[0] for part in outputs)
    if not (np.isfinite(scores).all() and np.isfinite(boxes).all()):
        raise ValueError("the program's output is not finite (NaN or infinite scores or boxes)")
    limits = np.array([*picture.size, *picture.size], dtype=np.float32)
    boxes = np.clip(boxes * limits, 0, limits)
    lowest = np.array([own[name] if threshold is None else threshold for name in classes], dtype=np.float32)
    keep = (scores >= lowest[labels]) & (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    scores, labels, boxes = (part[keep][:top].tolist() for part in (scores, labels, boxes))
    return [(classes[k], score, box) for score, k, box in zip(scores, labels, boxes, strict=True)]


def main() -> int:
    """0: done; 1: some photos could not be read; 2: the program cannot be run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", nargs="+")
    parser.add_argument(
        "--threshold", type=float, help="lowest score; default: each class's own, from export.json"
    )
    parser.add_argument("--top", type=int, default=100, help="most objects of a photo")
    asked = parser.parse_args()
    try:
        card = json.loads((HERE / "export.json").read_text(encoding="utf-8"))
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        there = onnxruntime.get_available_providers()
        providers = [name for name in ("CUDAExecutionProvider", "CPUExecutionProvider") if name in there]
        session = onnxruntime.InferenceSession(str(HERE / card["file"]), options, providers=providers)
    except Exception as error:
        print(f"{HERE}: the program cannot be run: {error}", file=sys.stderr)
        return 2
    failed = 0
    for path in asked.photos:
        try:
            found = detect(session, card, read(path), asked.threshold, asked.top)
        except Exception as error:  # an error in one photo must not stop the others
            print(f"{path}: {error}", file=sys.stderr)
            failed += 1
            continue
        for name, score, box in found:
            line = {
                "image": path,
                "class": name,
                "score": round(score, 5),
                "box": [round(number, 2) for number in box],
            }
            print(json.dumps(line, ensure_ascii=False))
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        code = main()
        sys.stdout.flush()
    except BrokenPipeError:  # the reader has stopped, as in `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    sys.exit(code)
