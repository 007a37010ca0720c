"""Tiny detectors with weights in them that matter, photos to show them, and a changed weight."""

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
SIDE, MOST = 96, 160  # of the images that the detectors see
ORIENTATION = 0x0112
TURNED = 6


def random_detector(seed: int = 0, backbone: str = "resnet18", **options) -> DeformableDETR:
    """Nothing in it is at its start, where sampling offsets, attention and box heads would be zero."""
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
    """A weights file of ours, as a run would leave it."""
    config = load_config("own", changes={"data.sides": [SIDE], "data.max_size": MOST})
    metadata = {"classes": list(classes), "network": "teacher", "config": config.model_dump(mode="json"), **facts}
    save_weights(path, detector, metadata)
    return path


def make_photos(folder: Path, count: int = 8) -> Path:
    """Rendered streets as JPEG files of several sizes, one of them lying on its side."""
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
    """Make the last number of a constant in an ONNX file another one."""
    model = onnx.load(path)
    (item,) = (item for item in model.graph.initializer if item.name == name)
    values = numpy_helper.to_array(item).copy()
    values.flat[-1] += 1
    item.CopyFrom(numpy_helper.from_array(values, name))
    onnx.save(model, path)


def copy_export(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to))


def sign_again(folder: Path) -> None:
    """Let export.json say that the files are as they are now."""
    write_card(folder, read_json(folder / EXPORT_CARD))
    assert all(file_sha256(folder / name) for name in read_json(folder / EXPORT_CARD)["files"])
