"""What the description in a weights file must look like before anything is built from it.

A file may come from a stranger: its sizes are compared with its own tensors first, so that no number in it
makes a network that the file cannot fill.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from mrt.errors import MrtError
from mrt.models.backbone import FREEZE, build_backbone
from mrt.models.detector import DeformableDETR
from mrt.models.interface import Detector, find_detector
from mrt.models.sealed import AS_WRITTEN, is_name, shown

NETWORKS = ("teacher", "student")
MOST_QUERIES = 100_000  # of a two-stage detector, whose number no tensor shows
MOST_CELLS = 2**31  # no size of a network is larger
MOST_PIXELS = 2**14  # of the sides that images are scaled to
Shapes = Mapping[str, tuple[int, ...]]


def wrong(path: Path, field: str, value: Any, why: str) -> MrtError:
    """The error for a field of a weights file's description."""
    return MrtError(f"{path}: {field} is {shown(value)}: {why}", AS_WRITTEN)


def is_count(value: Any, least: int = 1, most: int = MOST_CELLS) -> bool:
    """Whether a value is a whole number from ``least`` to ``most``."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def is_number(value: Any, least: float, most: float) -> bool:
    """Whether a value is a number from ``least`` to ``most``; NaN is not."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and least <= value <= most


def one_of(*names: Any) -> Callable[[Any], bool]:
    """A check for one of some values, of their type."""
    return lambda value: any(value == name and type(value) is type(name) for name in names)


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


_COUNT = (is_count, "not a whole number of at least 1")
_FLAG = (_is_flag, "neither true nor false")
Rules = dict[str, tuple[Callable[[Any], bool], str]]
_DEFORMABLE: Rules = {
    "num_classes": _COUNT,
    "hidden_dim": (lambda value: is_count(value) and value % 4 == 0, "not a positive multiple of 4"),
    "num_heads": _COUNT,
    "num_encoder_layers": (lambda value: is_count(value, least=0), "not a whole number of at least 0"),
    "num_decoder_layers": _COUNT,
    "feedforward_dim": _COUNT,
    "num_levels": _COUNT,
    "num_points": _COUNT,
    "num_queries": _COUNT,
    "dropout": (lambda value: is_number(value, 0, 1) and value < 1, "not a number from 0 to below 1"),
    "box_refine": _FLAG,
    "two_stage": _FLAG,
    "proposal_content": (one_of("position", "features"), 'neither "position" nor "features"'),
    "query_init": (one_of("learned", "grid"), 'neither "learned" nor "grid"'),
    "class_prior": (lambda value: is_number(value, 0, 1) and 0 < value < 1, "not a number between 0 and 1"),
}
_BACKBONE: Rules = {
    "name": (lambda value: isinstance(value, str) and bool(value), "not the name of a backbone"),
    "freeze": (one_of(*FREEZE), f"none of {', '.join(FREEZE)}"),
    "levels": (lambda value: is_count(value, most=3), "not 1, 2 or 3"),
    "pretrained": _FLAG,
    "fingerprint": (
        lambda value: (
            value is None or (isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None)
        ),
        "neither null nor a sha256",
    ),
}


def check_header(header: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The description of a detector's file with "kind", each of its fields of the right type.

    Raises:
        MrtError: a field is missing or has another type; file, field and value are named.
    """
    if "holds" in header:
        raise MrtError(
            f"{path} holds a {header['holds']}, not a detector",
            f"Name the detector beside it: {path.parent / 'student.safetensors'}.",
        )
    header = {"kind": DeformableDETR.kind, **header}
    if not isinstance(header["kind"], str):
        raise wrong(path, "kind", header["kind"], "not the name of a kind of detector")
    for name in ("detector", "backbone", "metadata"):
        if not isinstance(header.get(name), dict):
            raise wrong(path, name, header.get(name), "not an object of fields")
    if not isinstance(header.get("slim"), bool):
        raise wrong(path, "slim", header.get("slim"), "neither true nor false")
    _check_fields(header["backbone"], _BACKBONE, "backbone", path, needed=tuple(_BACKBONE))
    backbone = header["backbone"]
    if (
        header["slim"] and backbone["pretrained"] and backbone["fingerprint"] is None
    ):  # else asked for in vain
        raise wrong(
            path,
            "backbone.fingerprint",
            None,
            "the file leaves its pretrained backbone out (slim), and must say which it is",
        )
    if header["kind"] == DeformableDETR.kind:
        _check_fields(header["detector"], _DEFORMABLE, "detector", path, needed=("num_classes",))
        _check_divides(header["detector"], path)
    _check_metadata(header["metadata"], header["detector"].get("num_classes"), path)
    return header


def _check_fields(
    values: Mapping[str, Any], rules: Rules, place: str, path: Path, needed: tuple[str, ...]
) -> None:
    for name in needed:
        if name not in values:
            raise wrong(path, f"{place}.{name}", None, "the description lacks it")
    for name, value in values.items():
        if name not in rules:
            raise wrong(path, f"{place}.{name}", value, "there is no such field")
        fits, why = rules[name]
        if not fits(value):
            raise wrong(path, f"{place}.{name}", value, why)


def _check_divides(sizes: Mapping[str, Any], path: Path) -> None:
    width, heads = (_size(sizes, name) for name in ("hidden_dim", "num_heads"))
    if width % heads:
        raise wrong(path, "detector.num_heads", heads, f"does not divide hidden_dim, {width}")


def _size(sizes: Mapping[str, Any], name: str) -> Any:
    """A field of the detector, or what the constructor takes where it is missing."""
    return sizes.get(name, inspect.signature(DeformableDETR.__init__).parameters[name].default)


def _check_metadata(told: Mapping[str, Any], num_classes: Any, path: Path) -> None:
    classes = told.get("classes")
    if "classes" in told:
        fine = isinstance(classes, list) and all(map(is_name, classes))
        if not fine or len(set(classes)) != len(classes) or not classes:
            raise wrong(path, "metadata.classes", classes, "not a list of different names")
        if is_count(num_classes) and len(classes) != num_classes:
            raise wrong(
                path, "metadata.classes", classes, f"{len(classes)} names of a detector of {num_classes}"
            )
    if "network" in told and told["network"] not in NETWORKS:
        raise wrong(path, "metadata.network", told["network"], f"neither {' nor '.join(NETWORKS)}")
    for name in ("config", "run"):
        if name in told and not isinstance(told[name], dict):
            raise wrong(path, f"metadata.{name}", told[name], "not an object of fields")
    _check_config(told.get("config", {}), path)
    _check_run(told.get("run", {}), path)
    scores = told.get("thresholds")
    if scores:
        names = isinstance(scores, dict) and (classes is None or set(scores) == set(classes))
        if not names or not all(is_number(score, 0, 1) for score in scores.values()):
            raise wrong(path, "metadata.thresholds", scores, "not a score from 0 to 1 for each class")


def _check_config(config: Mapping[str, Any], path: Path) -> None:
    """The parts of the settings that are read before they are checked as settings."""
    for name in ("data", "method"):
        if name in config and not isinstance(config[name], dict):
            raise wrong(path, f"metadata.config.{name}", config[name], "not a section of settings")
    data = config.get("data", {})
    sides = data.get("sides", [1])
    if (
        not isinstance(sides, list)
        or not sides
        or not all(is_count(side, most=MOST_PIXELS) for side in sides)
    ):
        raise wrong(path, "metadata.config.data.sides", sides, "not a list of sizes in pixels")
    if not is_count(data.get("max_size", 1), most=MOST_PIXELS):
        raise wrong(path, "metadata.config.data.max_size", data["max_size"], "not a size in pixels")
    if not is_count(data.get("size_multiple", 1), most=MOST_PIXELS):
        raise wrong(path, "metadata.config.data.size_multiple", data["size_multiple"], "not a size in pixels")
    for name in ("target", "source", "validation_split"):
        if not isinstance(data.get(name, ""), str):
            raise wrong(path, f"metadata.config.data.{name}", data[name], "not a name")


def _check_run(run: Mapping[str, Any], path: Path) -> None:
    """What the run that trained the weights has told of itself."""
    for name in ("data", "environment"):
        if not isinstance(run.get(name) or {}, dict):
            raise wrong(path, f"metadata.run.{name}", run[name], "not an object of fields")
    for domain, card in (run.get("data") or {}).items():
        place = f"metadata.run.data.{domain}"
        if not isinstance(card, dict):
            raise wrong(path, place, card, "not an object of fields")
        for name in ("details", "sha256"):
            if not isinstance(card.get(name) or {}, dict):
                raise wrong(path, f"{place}.{name}", card[name], "not an object of fields")
        for value in (card.get("sha256") or {}).values():
            if value is not None and not isinstance(value, str):
                raise wrong(path, f"{place}.sha256", value, "not a sha256")


def check_sizes(header: Mapping[str, Any], shapes: Shapes, path: Path) -> type[Detector]:
    """The class of a file's detector, whose sizes are those of the file's tensors.

    Args:
        header: from :func:`check_header`.
        shapes: of the file's tensors by name.

    Raises:
        MrtError: there is no such kind of detector or backbone, or a size that the tensors do not have.
    """
    try:
        kind = find_detector(header["kind"])
    except MrtError as error:
        raise MrtError(f"{path}: {error.message}", error.hint) from None
    if kind is DeformableDETR:
        _check_deformable(header["detector"], shapes, path)
    else:
        _check_other(kind, header["detector"], shapes, path)
    _check_on_meta(kind, header, shapes, path)
    return kind


def count_layers(names: Mapping[str, Any], prefix: str) -> int:
    """How many layers have a tensor whose name begins with ``prefix`` and the layer's number."""
    found = (name.removeprefix(prefix).partition(".")[0] for name in names if name.startswith(prefix))
    return len(set(found))


def _check_deformable(sizes: Mapping[str, Any], shapes: Shapes, path: Path) -> None:
    def expect(name: str, found: int, where: str) -> None:
        value = _size(sizes, name)
        if value != found:
            raise wrong(path, f"detector.{name}", value, f"the file's {where} show {found}")

    for stack in ("encoder", "decoder"):
        number = count_layers(shapes, f"transformer.{stack}.layers.")
        expect(f"num_{stack}_layers", number, f"transformer.{stack}.layers")
    level = shapes.get("transformer.level_embed", ())
    if len(level) != 2:
        raise MrtError(f"{path}: has no transformer.level_embed of two dimensions", AS_WRITTEN)
    expect("num_levels", level[0], "transformer.level_embed")
    expect("hidden_dim", level[1], "transformer.level_embed")
    head = "class_embed.0.bias" if _size(sizes, "box_refine") else "class_embed.bias"
    expect("num_classes", _rows(shapes, head), f"{head}")
    expect("feedforward_dim", _rows(shapes, "transformer.decoder.layers.0.linear1.bias"), "linear1.bias")
    heads, levels, points = (_size(sizes, name) for name in ("num_heads", "num_levels", "num_points"))
    offsets = _rows(shapes, "transformer.decoder.layers.0.cross_attn.sampling_offsets.bias")
    if 2 * heads * levels * points != offsets:
        why = f"{heads} heads and {levels} levels of as many points need {2 * heads * levels * points} rows"
        raise wrong(path, "detector.num_points", points, f"{why} of sampling_offsets.bias, not {offsets}")
    queries = _size(sizes, "num_queries")
    if not _size(sizes, "two_stage"):
        expect("num_queries", _rows(shapes, "query_embed.weight"), "query_embed.weight")
    elif queries > MOST_QUERIES:
        raise wrong(path, "detector.num_queries", queries, f"more than {MOST_QUERIES:,}")


def _rows(shapes: Shapes, name: str) -> int:
    """The first size of a tensor; 0 if there is none."""
    return (shapes.get(name) or (0,))[0]


def _check_other(kind: type[Detector], sizes: Mapping[str, Any], shapes: Shapes, path: Path) -> None:
    """A plug-in's arguments: those of its constructor, and no number larger than the file could fill."""
    try:
        inspect.signature(kind).bind(None, **sizes)
    except TypeError as error:
        raise wrong(path, "detector", sizes, f"not the arguments of a {kind.kind}: {error}") from None
    most = max(1000, sum(_cells(shape) for shape in shapes.values()))
    for name, value in sizes.items():
        limit = max(len(shapes), 1) if "layers" in name else most
        if isinstance(value, int) and abs(value) > limit:
            why = f"the file holds {len(shapes)} tensors of {most:,} numbers"
            raise wrong(path, f"detector.{name}", value, why)


def _cells(shape: tuple[int, ...]) -> int:
    number = 1
    for side in shape:
        number *= side
    return number


def _check_on_meta(kind: type[Detector], header: Mapping[str, Any], shapes: Shapes, path: Path) -> None:
    """Build the detector without memory for its weights, and compare its shapes with the file's.

    The backbone is built as it is before its norms are frozen or folded, so only its convolutions are
    compared. Neither random numbers nor files are used for it.
    """
    identity = header["backbone"]
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        try:
            backbone = build_backbone(
                identity["name"], weights="none", freeze=identity["freeze"], levels=identity["levels"]
            )
            built = kind(backbone, **header["detector"])
        except MrtError as error:
            raise MrtError(f"{path}: {error.message}", error.hint) from None
        except Exception:  # a network that can only be built with memory: its sizes were looked at above
            return
    trunk = "backbone."
    state = {name: tuple(value.shape) for name, value in built.state_dict().items()}
    kernels = {name for name, shape in state.items() if name.startswith(trunk) and len(shape) > 1}
    wanted = {name for name in state if not name.startswith(trunk)}
    if not header["slim"]:
        wanted |= kernels
    found = {name for name, shape in shapes.items() if not name.startswith(trunk) or len(shape) > 1}
    odd = sorted((found - wanted - kernels) | (wanted - found))
    odd += [name for name in sorted(found & set(state)) if state[name] != shapes[name]]
    if odd:
        raise MrtError(
            f"{path}: its tensors do not fit the detector that it describes: {odd[0]} and {len(odd) - 1} "
            "more differ",
            AS_WRITTEN,
        )
