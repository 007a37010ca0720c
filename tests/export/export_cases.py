"""Tiny detectors with random weights, photos for them, and changed exports."""

from __future__ import annotations

import shutil
from pathlib import Path

import onnx
import torch
from model_cases import small_detector
from onnx import numpy_helper
from PIL import Image
from torch import nn

from mrt.config import load_config
from mrt.data.card import file_sha256, read_json
from mrt.data.synthetic.render import render
from mrt.export.card import EXPORT_CARD, write_card
from mrt.models.backbone import build_backbone
from mrt.models.detector import DeformableDETR
from mrt.models.weights import save_weights

CLASSES = ("car", "person", "bus")
TINY = {"num_encoder_layers": 1, "num_decoder_layers": 1}
TRACED = {"backbone": "test_efficientnet", "num_levels": 3}  # tracing takes seconds, not a minute
SIDE, MOST = 96, 160  # short side and largest size of the detectors' input
ORIENTATION = 0x0112
TURNED = 6


def random_detector(seed: int = 0, backbone: str = "resnet18", **options) -> DeformableDETR:
    """A detector with random weights also where they are initially zero: offsets, attention, box heads."""
    torch.manual_seed(seed)
    detector = small_detector(build_backbone(backbone, weights="checkpoint"), **{**TINY, **options}).eval()
    with torch.no_grad():
        for name, module in detector.named_modules():
            if hasattr(module, "running_var"):
                module.running_var.uniform_(0.5, 1.5)
                module.running_mean.normal_(std=0.1)
            if isinstance(module, (nn.LayerNorm, nn.GroupNorm)):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(std=0.1)
            if name.endswith(("sampling_offsets", "attention_weights", "layers.2")):
                nn.init.normal_(module.weight, std=0.1)
            if isinstance(module, nn.Linear) and "class_embed" in name:
                nn.init.normal_(module.weight, std=0.3)
                nn.init.normal_(module.bias, -1, 0.5)
        if detector.two_stage:
            _no_proposals_beyond_the_image(detector)
    return detector


def _no_proposals_beyond_the_image(detector: DeformableDETR) -> None:
    """Give an empty cell a low score, as training does: transformers lets such cells become queries."""
    transformer, head = detector.transformer, detector.proposal_class_embed
    empty = transformer.enc_output_norm(transformer.enc_output.bias)
    head.weight -= (head.weight @ empty + 6)[:, None] * empty / empty.square().sum()


def save_detector(path: Path, detector: DeformableDETR, classes: tuple[str, ...] = CLASSES, **facts) -> Path:
    """Write a weights file like that of a run."""
    config = load_config("own", changes={"data.sides": [SIDE], "data.max_size": MOST}).model_dump(mode="json")
    metadata = {"classes": list(classes), "network": "teacher", "config": config, **facts}
    save_weights(path, detector, metadata)
    return path


def make_photos(folder: Path, count: int = 8) -> Path:
    """Rendered streets as JPEG files of several sizes, one of them rotated by its EXIF entry."""
    folder.mkdir()
    for number in range(count):
        size = ((320, 160), (240, 180), (300, 200))[number % 3]
        picture = Image.fromarray(render(0, "clear", "photos", number, size).image)
        exif = Image.Exif()
        if number == 1:
            picture = picture.transpose(Image.Transpose.ROTATE_90)
            exif[ORIENTATION] = TURNED
        picture.save(folder / f"{number}.jpg", quality=95, exif=exif)
    return folder


def change_one_weight(path: Path, name: str) -> None:
    """Change the last number of a constant in an ONNX file."""
    model = onnx.load(path)
    (item,) = (item for item in model.graph.initializer if item.name == name)
    values = numpy_helper.to_array(item).copy()
    values.flat[-1] += 1
    item.CopyFrom(numpy_helper.from_array(values, name))
    onnx.save(model, path)


def copy_export(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to))


def sign_again(folder: Path) -> None:
    """Write the current hashes of the files to export.json."""
    write_card(folder, read_json(folder / EXPORT_CARD))
    assert all(file_sha256(folder / name) for name in read_json(folder / EXPORT_CARD)["files"])
