"""Inference speed of this project's forms of a detector and of Hugging Face's Deformable DETR.

    python -m benchmarks.inference [--sizes 480x640 800x1066] [--batch 1 8] [--threads 1]
                                   [--forms eager onnxruntime ...] [--quick]

All use the same weights and the same images. transformers itself makes the detector, with random weights
(ResNet-50, 6 + 6 layers, 300 queries, 91 classes, offsets that depend on the query), and saves it as a
folder, which transformers and mrt load. What is timed is what a user waits for: from a batch of uint8 images
of the network's input size, on the host, to the 300 best scores, labels and boxes of each image, on the host.
Hugging Face's part is its image processor without scaling, the model in inference mode with its default
attention, and ``post_process_object_detection``.

Each form runs in a process of its own, so that the runtimes' threads do not disturb each other. Forms take
turns, one batch each, round after round; a ratio is the median of the rounds' ratios to Hugging Face's eager
model, of CPU time with one thread on a CPU, else of wall time. In the first round, which is not counted
unless it alone takes longer than --seconds, the detections of every form are compared with Hugging Face's.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

HUGGING_FACE = "Hugging Face"
NEEDS = {
    HUGGING_FACE: ("transformers",),
    "eager": (),
    "bf16": (),
    "compiled": (),
    "torch-export": (),
    "onnxruntime": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("onnx", "onnxscript", "openvino"),
}
FORMS = tuple(name for name in NEEDS if name != HUGGING_FACE)
ON_A_GPU = ("eager", "bf16", "compiled", "torch-export")
VARIANTS = {
    "plain": {},
    "refine": {"with_box_refine": True},
    "two-stage": {"with_box_refine": True, "two_stage": True},
}
SIZES, BATCHES = ("480x640", "800x1066"), (1, 8)
TOP, CLASSES = 300, 91
ALLOWED = 1e-3  # of scores, and of boxes as shares of the image; 16 bits may differ by more
# uint8 images to scores, labels, boxes as shares of the image
Step = Callable[["Tensor"], tuple[np.ndarray, np.ndarray, np.ndarray]]


def make_folder(folder: Path, variant: str, seed: int = 0) -> None:
    """A detector of Hugging Face's own class with random weights, as it saves one."""
    import torch
    from transformers import (
        DeformableDetrConfig,
        DeformableDetrForObjectDetection,
        DeformableDetrImageProcessor,
    )
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.manual_seed(seed)
    config = DeformableDetrConfig(
        use_timm_backbone=True,
        backbone="resnet50",
        use_pretrained_backbone=False,
        num_labels=CLASSES,
        **VARIANTS[variant],
    )
    model = DeformableDetrForObjectDetection(config)
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if name.endswith("sampling_offsets.weight"):
                tensor.normal_(std=0.06)  # offsets of about a cell, besides the heads' own directions
            elif name.endswith("attention_weights.weight"):
                tensor.normal_(std=0.06)
            elif ".conv_encoder." in name or "backbone" in name:
                if name.endswith("running_mean"):
                    tensor.normal_(std=0.1)
                elif name.endswith("running_var") or (tensor.dim() == 1 and name.endswith("weight")):
                    tensor.uniform_(0.5, 1.0)
    model.save_pretrained(str(folder))
    DeformableDetrImageProcessor().save_pretrained(str(folder))


def write_programs(folder: Path, forms: list[str]) -> dict[str, str]:
    """Write the programs of the exported forms into ``folder``; returns form -> why it cannot take part."""
    from mrt.errors import MrtError
    from mrt.models.huggingface import load_huggingface

    missing: dict[str, str] = {}
    if importlib.util.find_spec("mrt.export.program") is None:
        not_exported = ("eager", "bf16", "compiled", HUGGING_FACE)
        return {name: "mrt.export is not here" for name in forms if name not in not_exported}
    from mrt.export.graphs import write_onnx, write_torch_export
    from mrt.export.program import Program, trace

    def attempt(names: list[str], write: Callable[[], None]) -> None:
        if names:
            try:
                write()
            except MrtError as error:
                missing.update(dict.fromkeys(names, str(error)))

    program = Program(load_huggingface(folder)[0])
    attempt(
        [name for name in forms if name == "torch-export"],
        lambda: write_torch_export(trace(program, kernels=True), folder / "model.pt2"),
    )
    attempt(
        [name for name in forms if name in ("onnxruntime", "openvino")],
        lambda: write_onnx(trace(program, kernels=False), folder / "model.onnx", 18),
    )
    return missing


def step_of(form: str, folder: Path, threads: int, device: str) -> Step:
    """A form's whole prediction step."""
    import torch

    torch.set_num_threads(threads)
    if form == HUGGING_FACE:
        return _hugging_face(folder, device)
    if form == "onnxruntime":
        return _onnxruntime(folder / "model.onnx", threads)
    if form == "openvino":
        return _openvino(folder / "model.onnx", threads)
    if form == "torch-export":
        from mrt.export.runtime import GraphNetwork

        return GraphNetwork(folder / "model.pt2", device)
    from mrt.models.huggingface import load_huggingface
    from mrt.predict.network import TorchNetwork

    detector = load_huggingface(folder)[0].to(device)
    if form == "compiled":
        return _compiled(detector)
    return TorchNetwork(detector, "bf16" if form == "bf16" else "off")


def _hugging_face(folder: Path, device: str) -> Step:
    import torch
    from transformers import AutoImageProcessor, AutoModelForObjectDetection
    from transformers.utils import logging

    logging.disable_progress_bar()
    processor = AutoImageProcessor.from_pretrained(str(folder))
    model = AutoModelForObjectDetection.from_pretrained(str(folder)).to(device).eval()

    def step(images: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        height, width = images.shape[-2:]
        with torch.inference_mode():
            inputs = processor(images=list(images), do_resize=False, return_tensors="pt").to(device)
            found = processor.post_process_object_detection(
                model(**inputs), threshold=-1.0, target_sizes=[(height, width)] * len(images), top_k=TOP
            )
            scores, labels, boxes = (
                torch.stack([item[name] for item in found]).cpu().numpy()
                for name in ("scores", "labels", "boxes")
            )
        return scores, labels, boxes / np.array([width, height, width, height], dtype=np.float32)

    return step


def _compiled(detector: Any) -> Step:
    """The whole network through torch.compile, weights frozen into the program on a CPU."""
    import torch
    import torch._inductor.config as inductor

    from mrt.models.fast.carried_norms import fold_carried_norms
    from mrt.models.postprocess import top_pairs
    from mrt.predict.network import pixels_to_input

    inductor.freezing = next(detector.parameters()).device.type == "cpu"
    fold_carried_norms(detector.backbone)
    detector.requires_grad_(False)

    def whole(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        output = detector(pixels_to_input(images))
        return top_pairs(output.logits[-1], output.boxes[-1], TOP)

    program, device = torch.compile(whole, dynamic=False), next(detector.parameters()).device

    def step(images: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        with torch.no_grad():
            return tuple(part.cpu().numpy() for part in program(images.to(device)))

    return step


def _onnxruntime(path: Path, threads: int) -> Step:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = ["scores", "labels", "boxes"]
    return lambda images: tuple(session.run(names, {"images": images.float().numpy()}))


def _openvino(path: Path, threads: int) -> Step:
    import openvino

    settings = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    program = openvino.Core().compile_model(str(path), "CPU", settings)
    request = program.create_infer_request()

    def step(images: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        found = request.infer({"images": images.float().numpy()})
        return tuple(np.array(found[name]) for name in ("scores", "labels", "boxes"))

    return step


def make_images(size: tuple[int, int], batch: int) -> Tensor:
    """(batch, 3, height, width) uint8: noise of several scales, the same everywhere."""
    import torch
    import torch.nn.functional as F

    generator, total = torch.Generator().manual_seed(0), torch.zeros(batch, 3, *size)
    for cells in (4, 16, 64):
        noise = torch.rand(batch, 3, cells, cells, generator=generator)
        total += F.interpolate(noise, size=size, mode="bilinear")
    return (total * (255 / 3)).byte()


def work(pipe: Any, form: str, folder: str, threads: int, device: str) -> None:
    """The process of one form.

    To ("first", size, batch) it answers with seconds and detections, to "time" with wall and CPU seconds.
    """
    try:
        begin = time.perf_counter()
        step = step_of(form, Path(folder), threads, device)
        pipe.send(("ready", time.perf_counter() - begin))
        images = None
        while (order := pipe.recv()) is not None:
            if order != "time":
                images = make_images(order[1], order[2])
            wall, cpu = time.perf_counter(), time.process_time()
            found = step(images)
            seconds = time.perf_counter() - wall, time.process_time() - cpu
            pipe.send(("done", seconds, None if order == "time" else found))
    except (EOFError, KeyboardInterrupt):
        pass
    except BaseException as error:
        with suppress(OSError):
            pipe.send(("failed", f"{type(error).__name__}: {error}".splitlines()[0]))


class Worker:
    """A form in its process."""

    def __init__(self, form: str, folder: Path, threads: int, device: str) -> None:
        self.form = form
        spawn = multiprocessing.get_context("spawn")
        self.pipe, theirs = spawn.Pipe()
        arguments = (theirs, form, str(folder), threads, device)
        self.process = spawn.Process(target=work, args=arguments, daemon=True)
        self.process.start()
        theirs.close()
        self.start_up_s = self._answer()[1]

    def _answer(self) -> tuple:
        try:
            answer = self.pipe.recv()
        except EOFError:
            raise RuntimeError(f"{self.form}: its process ended") from None
        if answer[0] == "failed":
            raise RuntimeError(f"{self.form}: {answer[1]}")
        return answer

    def first(self, size: tuple[int, int], batch: int) -> tuple[tuple[float, float], tuple[np.ndarray, ...]]:
        """Look at a batch for the first time: (wall, CPU) seconds, and what was found."""
        self.pipe.send(("first", size, batch))
        return self._answer()[1:]

    def __call__(self) -> tuple[float, float]:
        """Look at it again: (wall, CPU) seconds."""
        self.pipe.send("time")
        return self._answer()[1]

    def end(self) -> None:
        """End the process."""
        with suppress(OSError):
            self.pipe.send(None)
        self.process.join(timeout=10)
        if self.process.is_alive():
            self.process.terminate()


def disagreement(mine: tuple[np.ndarray, ...], reference: tuple[np.ndarray, ...]) -> float:
    """The largest distance of a detection in ``reference`` from the nearest of its class in ``mine``.

    Distances are of scores, and of boxes as shares of the image. The last detections of an image are left out
    where rounding decides which of two is among the best.
    """
    worst = 0.0
    ours, theirs = zip(*mine, strict=True), zip(*reference, strict=True)
    for (scores, labels, boxes), (their_scores, their_labels, their_boxes) in zip(ours, theirs, strict=True):
        worst = max(worst, float(np.abs(scores - their_scores).max()))
        sure = their_scores > their_scores[-1] + ALLOWED
        for score, label, box in zip(their_scores[sure], their_labels[sure], their_boxes[sure], strict=True):
            same = labels == label
            apart = np.maximum(np.abs(scores[same] - score), np.abs(boxes[same] - box).max(1))
            worst = max(worst, float(apart.min()) if apart.size else 1.0)
    return worst


def measure(
    workers: dict[str, Worker], size: tuple[int, int], batch: int, rounds: int, seconds: float, by_cpu: bool
) -> dict[str, dict]:
    """One row per form: agreement, times, ratios. A form that fails is removed from ``workers``."""
    rows: dict[str, dict] = {}
    times: dict[str, list[tuple[float, float]]] = {}
    reference, begin = None, time.perf_counter()
    for form, worker in list(workers.items()):
        try:
            first, found = worker.first(size, batch)
        except RuntimeError as error:
            print(f"  {error}; takes no further part", flush=True)
            workers.pop(form).end()
            continue
        reference = reference or found
        times[form] = [first]
        rows[form] = {"first_s": digits(first[0]), "disagreement": digits(disagreement(found, reference))}
    if time.perf_counter() - begin < seconds or batch == 1:
        begin, times, turn = time.perf_counter(), {form: [] for form in workers}, 0
        while turn < 1 or (turn < rounds and time.perf_counter() - begin < seconds):
            for form, worker in workers.items():
                times[form].append(worker())
            turn += 1
    elif "compiled" in workers:
        times["compiled"] = [workers["compiled"]()]
    clock = "cpu" if by_cpu else "wall"
    for form, row in rows.items():
        row["rounds"] = len(times[form])
        row.update(spread([wall * 1e3 / batch for wall, _ in times[form]], "wall_ms"))
        row.update(spread([cpu * 1e3 / batch for _, cpu in times[form]], "cpu_ms"))
        row["images_per_s"] = digits(1e3 / row[f"{clock}_ms"])
        if HUGGING_FACE in rows:
            pairs = zip(times[HUGGING_FACE], times[form], strict=True)
            row.update(spread([theirs[by_cpu] / mine[by_cpu] for theirs, mine in pairs], "ratio"))
    return rows


def spread(numbers: list[float], unit: str) -> dict[str, Any]:
    """Median, least and quartiles."""
    low, middle, high = (
        statistics.quantiles(numbers, n=4, method="inclusive") if len(numbers) > 1 else numbers * 3
    )
    return {
        unit: digits(middle),
        f"{unit}_least": digits(min(numbers)),
        f"{unit}_quartiles": [digits(low), digits(high)],
    }


def digits(number: float) -> float:
    return float(f"{number:.4g}")


def table(rows: dict[str, dict], by_cpu: bool) -> str:
    """One line per form."""
    clock = "cpu" if by_cpu else "wall"
    head = f"{'':14}{'ms an image (quartiles)':>28}{'least':>8}{'wall':>8}{'images/s':>10}"
    lines = [head + f"{'times as fast':>24}{'first, s':>10}{'disagrees by':>14}"]
    for form, row in rows.items():
        low, high = row[f"{clock}_ms_quartiles"]
        text = f"{row[f'{clock}_ms']:.0f} ({low:.0f}-{high:.0f})"
        ratio = "-"
        if "ratio" in row:
            least, most = row["ratio_quartiles"]
            ratio = f"{row['ratio']:.2f} ({least:.2f}-{most:.2f})"
        lines.append(
            f"{form:14}{text:>28}{row[f'{clock}_ms_least']:8.0f}{row['wall_ms']:8.0f}"
            f"{row['images_per_s']:10.2f}{ratio:>24}{row['first_s']:10.1f}{row['disagreement']:14.1e}"
        )
    return "\n".join(lines)


def parse_size(text: str) -> tuple[int, int]:
    """ "480x640": height, width."""
    height, _, width = text.partition("x")
    try:
        return int(height), int(width)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not HEIGHTxWIDTH") from None


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """The command. Returns the report that it also writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--sizes", nargs="+", type=parse_size, metavar="HxW", help=f"default: {' '.join(SIZES)}"
    )
    parser.add_argument("--batch", nargs="+", type=int, help=f"default: {' '.join(map(str, BATCHES))}")
    parser.add_argument(
        "--forms",
        nargs="+",
        choices=FORMS,
        metavar="FORM",
        help=f"of {', '.join(FORMS)}; Hugging Face always takes part",
    )
    parser.add_argument("--variant", choices=VARIANTS, default="plain")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of every form")
    parser.add_argument("--rounds", type=int, default=7, help="at most, of each size and batch")
    parser.add_argument(
        "--seconds",
        type=float,
        default=60.0,
        help="no round begins after this time; of one image there is one at least",
    )
    parser.add_argument(
        "--quick", action="store_true", help="480x640, batch 1, without the compiled form, 2 rounds, no file"
    )
    parser.add_argument("--json", type=Path, help="file (default: benchmarks/results/inference-DEVICE.json)")
    options = parser.parse_args(arguments)
    sizes = options.sizes or [parse_size(text) for text in (SIZES[:1] if options.quick else SIZES)]
    batches = options.batch or ([1] if options.quick else list(BATCHES))
    rounds = 2 if options.quick else options.rounds
    wanted = options.forms or [name for name in FORMS if not (options.quick and name == "compiled")]
    by_cpu = options.device == "cpu" and options.threads == 1
    usual = Path(__file__).parent / "results" / f"inference-{options.device}.json"
    path = options.json or (None if options.quick else usual)
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(options.threads)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if absent := _absent(HUGGING_FACE):
        raise SystemExit(f"this benchmark compares with {HUGGING_FACE}: {absent}")
    skipped = {form: absent for form in wanted if (absent := _absent(form))}
    if options.device == "cuda":
        skipped.update({form: "measured on a CPU only" for form in wanted if form not in ON_A_GPU})
    import torch

    from benchmarks.environment import environment

    torch.set_num_threads(options.threads)
    versions = {
        name: metadata.version(name)
        for name in ("transformers", "onnxruntime", "openvino")
        if importlib.util.find_spec(name)
    }
    report: dict[str, Any] = {
        "environment": {**environment(options.device), **versions},
        "variant": options.variant,
        "clock": "CPU time" if by_cpu else "wall time",
        "skipped": skipped,
        "cases": [],
    }
    print(", ".join(f"{key} {value}" for key, value in report["environment"].items()), flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_folder(folder, options.variant)
        skipped.update(write_programs(folder, [form for form in wanted if form not in skipped]))
        workers: dict[str, Worker] = {}
        try:
            for form in (HUGGING_FACE, *(form for form in wanted if form not in skipped)):
                try:
                    workers[form] = Worker(form, folder, options.threads, options.device)
                except RuntimeError as error:
                    skipped[form] = str(error)
            if HUGGING_FACE not in workers:
                raise SystemExit(skipped[HUGGING_FACE])
            for form, why in skipped.items():
                print(f"{form} takes no part: {why}", flush=True)
            for batch in batches:
                for size in sizes:
                    rows = measure(workers, size, batch, rounds, options.seconds, by_cpu)
                    report["cases"].append(
                        {"height": size[0], "width": size[1], "batch": batch, "load": _load(), "forms": rows}
                    )
                    print(f"\n{size[0]}x{size[1]}, batch {batch}, {report['clock']}, load average {_load()}")
                    print(table(rows, by_cpu), flush=True)
                    if path is not None:  # after each case, in case a larger one does not fit into memory
                        path.parent.mkdir(parents=True, exist_ok=True)
                        path.write_text(json.dumps(report, indent=1) + "\n")
        finally:
            for worker in workers.values():
                worker.end()
    if path is not None:
        print(f"\nwritten to {path}")
    wrong = [
        f"{form} at {case['height']}x{case['width']}"
        for case in report["cases"]
        for form, row in case["forms"].items()
        if form != "bf16" and not row["disagreement"] <= ALLOWED
    ]
    if wrong:
        raise SystemExit(f"other detections than {HUGGING_FACE}'s: {', '.join(wrong)}")
    return report


def _absent(form: str) -> str:
    """A message that names the packages a form lacks; "" if none."""
    missing = [name for name in NEEDS[form] if importlib.util.find_spec(name) is None]
    return f"{', '.join(missing)} not installed (pip install {' '.join(missing)})" if missing else ""


def _load() -> float | None:
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


if __name__ == "__main__":
    main()
