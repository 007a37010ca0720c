"""Results of running a run's networks again: detections before and after, features, rebuilt maps."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mrt.config import Config
from mrt.data.card import DatasetCard
from mrt.data.dataset import DetectionDataset, SampleKey
from mrt.data.loader import Batch, build_loader, collate
from mrt.data.transforms import denormalise
from mrt.engine import checkpoint, data, store
from mrt.engine.data import evaluation_transform
from mrt.engine.inference import predictor
from mrt.engine.load import load_detector
from mrt.engine.report import Watcher
from mrt.engine.snapshots import spread_evenly
from mrt.errors import MrtError
from mrt.evaluate.coco import ImageDetections, Metrics, collect, score
from mrt.models.detector import DeformableDETR
from mrt.models.interface import DetectorOutput
from mrt.models.mae import MaskedAutoencoder, random_masks
from mrt.parts.rebuild import build_mae, load_autoencoder
from mrt.report.collect import RunData
from mrt.report.figures import Rebuilt

NEIGHBOURS = 10  # of each point, to measure how mixed two domains are
PLACES = ("backbone (C5)", "encoder", "decoder")


@dataclass
class Judged:
    """A detector's detections on the report's images, and its metrics there (None without labels).

    Attributes:
        vectors: of some of these images, in their order, as :func:`features` gives them: seen in the same
            pass.
    """

    network: str
    detector: DeformableDETR
    detections: list[ImageDetections]
    metrics: Metrics | None
    vectors: dict[str, np.ndarray]


def evaluation_set(run: RunData, card: DatasetCard, split: str) -> DetectionDataset:
    """The images that a run is evaluated on, with its own settings; ignored objects are kept separate."""
    if split not in card.splits:
        raise MrtError(
            f"{card.name}: has no split {split!r}",
            f"choose one of its splits with --split: {', '.join(card.splits)}",
        )
    return data.evaluation_set(run.config, card, split, run.classes)


def judge(
    where: str | Path,
    which: str,
    dataset: DetectionDataset,
    config: Config,
    device: torch.device,
    watcher: Watcher,
    points: int,
) -> Judged:
    """Run a detector on the images, once.

    Args:
        points: of so many images, spread evenly, the vectors are kept.

    Raises:
        MrtError: there are no such weights, or their classes are not the run's.
    """
    detector, facts = load_detector(where, which=which, device=device)
    if list(facts["classes"]) != list(dataset.classes):
        raise MrtError(
            f"{where}: its classes are {', '.join(facts['classes'])}; "
            f"the run's are {', '.join(dataset.classes)}"
        )
    loader = build_loader(dataset, batch_size=config.engine.eval_batch_size)
    name = f"{Path(where).name} ({facts['network']})"
    watcher.begin(f"{name} on {dataset.card.name} {dataset.split}", len(dataset))
    done = 0

    def progress(images: int, _total: int) -> None:
        nonlocal done
        watcher.advance(images - done)
        done = images

    batches = (batch.to(device) for batch in loader)
    wanted = set(spread_evenly(len(dataset), points))
    kept: list[dict[str, Tensor]] = []
    begin = 0

    def keep(_: nn.Module, inputs: tuple[Any, ...], output: DetectorOutput) -> None:
        nonlocal begin
        rows = [row for row in range(len(inputs[0])) if begin + row in wanted]
        begin += len(inputs[0])
        if rows:
            kept.append({place: found[rows] for place, found in vectors_of(output, inputs[1]).items()})

    handle = detector.register_forward_hook(keep)
    try:
        detections = collect(predictor(detector, device), batches, len(dataset), progress)
    finally:
        handle.remove()
    watcher.end()
    metrics = score(detections, dataset) if dataset.labelled else None
    return Judged(facts["network"], detector, detections, metrics, _joined(kept))


def views(config: Config, card: DatasetCard, split: str, classes: list[str], count: int) -> list[Batch]:
    """``count`` images spread over a split, without labels, in batches as for evaluation."""
    transform = evaluation_transform(config)
    dataset = DetectionDataset(card, split, classes=classes, transform=transform, labelled=False)
    indices = spread_evenly(len(dataset), count)
    size = config.engine.eval_batch_size
    return [
        collate([dataset[SampleKey(i, "report")] for i in indices[k : k + size]])
        for k in range(0, len(indices), size)
    ]


@torch.inference_mode()
def features(
    detector: DeformableDETR, batches: Sequence[Batch], device: torch.device, watcher: Watcher
) -> dict[str, np.ndarray]:
    """One vector per image at each of :data:`PLACES`: (images, channels), float32."""
    found = []
    for batch in batches:
        mask = None if batch.mask is None else batch.mask.to(device)
        found.append(vectors_of(detector(batch.images.to(device), mask), mask))
        watcher.advance(len(batch))
    return _joined(found)


def vectors_of(output: DetectorOutput, mask: Tensor | None) -> dict[str, Tensor]:
    """One vector per image at each of :data:`PLACES`, the inputs of the discriminators: (B, channels).

    C5 and the encoder's output are averaged over the cells that are not padding, the decoder's queries with
    their best scores as weights.

    Args:
        mask: (B, H, W), True = padding; None where there is none.
    """
    last = output.features.maps[-1]
    seen = last.new_ones(last[:, :1].shape)
    if mask is not None:
        seen = 1 - nn.functional.interpolate(mask[:, None].float(), size=last.shape[-2:])
    cells = torch.cat([~item.flatten(1) for item in output.features.masks], dim=1)[..., None]
    weights = output.logits[-1].sigmoid().amax(-1, keepdim=True)
    return {
        PLACES[0]: (last * seen).sum((2, 3)) / seen.sum((2, 3)).clamp(min=1),
        PLACES[1]: (output.memory * cells).sum(1) / cells.sum(1).clamp(min=1),
        PLACES[2]: (output.queries * weights).sum(1) / weights.sum(1).clamp(min=1e-6),
    }


def _joined(parts: Sequence[dict[str, Tensor]]) -> dict[str, np.ndarray]:
    return (
        {place: torch.cat([part[place] for part in parts]).float().cpu().numpy() for place in parts[0]}
        if parts
        else {}
    )


def embed(
    source: np.ndarray, target: np.ndarray, perplexity: float, seed: int
) -> tuple[np.ndarray, np.ndarray, float]:
    """t-SNE of both domains together.

    Returns:
        Points (n, 2), which of them are of the target (n,), and the mixing: of each point's nearest
        neighbours (in the space of the features, not of the picture), the share that is of the other domain;
        one half if the domains cannot be distinguished.
    """
    from sklearn.manifold import TSNE
    from sklearn.neighbors import NearestNeighbors
    from threadpoolctl import threadpool_limits

    points = np.concatenate([source, target]).astype(np.float64)
    of_target = np.arange(len(points)) >= len(source)
    neighbours = min(NEIGHBOURS, len(points) - 1)
    search = NearestNeighbors(n_neighbors=neighbours + 1).fit(points)
    near = search.kneighbors(points, return_distance=False)[:, 1:]
    mixing = float((of_target[near] != of_target[:, None]).mean())
    centred = points - points.mean(0)
    centred /= max(float(centred.std()), 1e-12)
    perplexity = min(perplexity, (len(points) - 1) / 3)
    with threadpool_limits(1):  # so few points give several threads nothing but waiting
        picture = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(centred)
    return picture, of_target, mixing


@dataclass
class Autoencoder:
    """A detector and its masked-autoencoder branch, and a description of where they come from."""

    detector: DeformableDETR
    mae: MaskedAutoencoder
    about: str


def find_autoencoders(run: RunData, device: torch.device) -> list[Autoencoder]:
    """The branches that a run has stored, each with the encoder of the same time; empty if it trained none.

    - The last student of the checkpoint and its branch, which was not trained after ``mae.decay_epoch``.
    - The end of stage 2: ``mae.safetensors``, with the backbone and encoder that selective retraining resets
      to; or the run of stage 2 itself, if it is this one or the one that teaching started from.
    """
    if run.config.mae.use == "none" or run.facts["command"] != "adapt":
        return []
    state: dict[str, Any] = {}
    with suppress(MrtError):
        state = checkpoint.upgrade(store.read(run.folder / "checkpoints" / "last.pt")[0])
    found = []
    student = state.get("student", {})
    if any(key.startswith("mae.") for key in student):
        detector, mae = _empty(run)
        for prefix, module in (("detector.", detector), ("mae.", mae)):
            own = {key: value for key, value in student.items() if key.startswith(prefix)}
            module.load_state_dict({key.removeprefix(prefix): value for key, value in own.items()})
        found.append(Autoencoder(detector, mae, "the last student and its branch (checkpoints/last.pt)"))
    reinit = state.get("parts", {}).get("retrain", {}).get("weights", {})
    whole = all(any(part in key for key in reinit) for part in ("backbone.", "encoder.", "input_proj."))
    if run.config.retrain.source == "mae" and whole:
        detector, mae = _empty(run)
        if load_autoencoder(run.folder, mae):
            detector.load_state_dict(reinit, strict=False)
            about = "the end of stage 2 (mae.safetensors, and the encoder that retraining goes back to)"
            found.append(Autoencoder(detector, mae, about))
    second = run.folder if run.facts["finished"] == ["mae"] else Path(run.facts.get("init") or "")
    files = ("student.safetensors", "mae.safetensors")
    if not found and run.facts["finished"] and all((second / name).is_file() for name in files):
        detector, mae = load_detector(second, which="student")[0], build_mae(run.config, _empty(run)[0])
        if load_autoencoder(second, mae):
            about = f"the run of stage 2 ({second.name}: {', '.join(files)})"
            found.append(Autoencoder(detector, mae, about))
    for item in found:
        item.detector.to(device).eval()
        item.mae.to(device).eval()
    return found


def _empty(run: RunData) -> tuple[DeformableDETR, MaskedAutoencoder]:
    """A detector and a branch with the run's shapes, whose weights will be replaced."""
    detector, _ = load_detector(run.folder, device="cpu")
    return detector, build_mae(run.config, detector)


@torch.inference_mode()
def rebuild(
    autoencoder: Autoencoder, batches: Sequence[Batch], ratio: float, seed: int, device: torch.device
) -> tuple[list[Rebuilt], float | None]:
    """Mask and rebuild the images' maps; the masks are drawn from the seed.

    Returns:
        Per image the energies (mean square over a cell's channels), and, over all images, the share of the
        masked cells' variance (about each channel's mean) that is explained; None if nothing was masked.
    """
    generator = torch.Generator().manual_seed(seed)
    rows, real, guess = [], [], []
    for batch in batches:
        extracted = autoencoder.detector.extract(batch.images.to(device), batch.padding_mask.to(device))
        masks = [
            mask.to(device) for mask in random_masks(extracted.spatial_shapes, len(batch), ratio, generator)
        ]
        rebuilt = autoencoder.mae(autoencoder.detector, extracted, masks)
        for index, target in enumerate(batch.targets):
            height, width = target["size"]
            seen = ~rebuilt.padding[index]
            cut = (..., slice(int(seen.any(1).sum())), slice(int(seen.any(0).sum())))
            maps = rebuilt.target, rebuilt.prediction
            truth, prediction = (value[index][cut].float().cpu() for value in maps)
            mask = rebuilt.mask[index][cut].cpu()
            real.append(truth[:, mask])
            guess.append(prediction[:, mask])
            pixels = denormalise(batch.images[index, :, :height, :width]).permute(1, 2, 0).numpy()
            energies = [value.square().mean(0).numpy() for value in (truth, prediction)]
            rows.append(Rebuilt(str(target["image_id"]), pixels, energies[0], mask.numpy(), energies[1]))
    hidden, found = torch.cat(real, dim=1), torch.cat(guess, dim=1)
    variance = float((hidden - hidden.mean(1, keepdim=True)).square().sum()) if hidden.shape[1] else 0.0
    return rows, 1 - float((hidden - found).square().sum()) / variance if variance > 0 else None
