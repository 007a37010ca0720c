"""Every format: it is written completely or not at all, and detects the same."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from export_cases import CLASSES, change_one_weight, copy_export, random_detector, save_detector, sign_again
from PIL import Image

import mrt
from mrt.data.images import read_picture
from mrt.engine.load import source_record
from mrt.errors import MrtError
from mrt.export import card as cards
from mrt.export import export_detector, write
from mrt.export.parity import ParityFailed, Tolerance, compare
from mrt.export.program import Program
from mrt.models.backbone import build_backbone
from mrt.models.detector import DeformableDETR
from mrt.models.postprocess import top_pairs
from mrt.models.published import describe_published
from mrt.models.transformer import DeformableTransformer
from mrt.predict.network import Preprocessing, pixels_to_input

PAGE = Path(__file__).parent.parent.parent / "docs" / "export.md"
LOOSE = {"atol": 0.02}  # pixels; the differences found are far smaller


def card_of(folder: Path) -> dict:
    return json.loads((folder / "export.json").read_text())


def pictures(photos: Path) -> list[Image.Image]:
    return [read_picture(path) for path in sorted(photos.iterdir())]


def same(first, second) -> None:
    assert first.names == second.names
    np.testing.assert_allclose(first.scores, second.scores, atol=1e-4)
    np.testing.assert_allclose(first.boxes, second.boxes, **LOOSE)


# --- weights


def test_safetensors_keep_what_the_source_told(photos, tmp_path):
    """So that exported weights can be adapted without source images, as the run's own can."""
    folder = export_detector("small-source", "safetensors", images=photos)
    assert source_record(str(folder)) == source_record("small-source") != {}


def test_safetensors_hold_everything(two_stage, photos, tmp_path):
    thresholds = dict(zip(CLASSES, (0.31, 0.42, 0.53), strict=True))
    detector = random_detector(box_refine=True)
    source = save_detector(tmp_path / "x.safetensors", detector, thresholds=thresholds)
    folder = export_detector(source, "safetensors", images=photos)
    assert folder == Path("exports/x-safetensors")
    assert sorted(path.name for path in folder.iterdir()) == ["export.json", "model.safetensors"]
    again = mrt.load(folder)
    assert again.classes == CLASSES and again.thresholds.values == pytest.approx(thresholds)
    mine, theirs = (item.predict(photos / "0.jpg", threshold=0) for item in (again, mrt.load(source)))
    assert np.array_equal(mine.boxes, theirs.boxes)
    card = card_of(folder)
    assert card["source"]["network"] == "teacher" and card["preprocessing"]["short_side"] == 96
    (check,) = card["parity"]["checks"]
    assert check["same"] and check["images"] == 8 and check["score"] == check["box"] == 0
    assert card["parity"]["tolerance"] == Tolerance()._asdict()
    assert str(tmp_path) not in (folder / "export.json").read_text()


def test_huggingface_is_run_by_transformers_and_has_a_model_card(photos, tmp_path):
    pytest.importorskip("transformers")
    run = tmp_path / "runs" / "my-run"
    run.mkdir(parents=True)
    save_detector(run / "teacher.safetensors", random_detector(box_refine=True, num_decoder_layers=2))
    clear = {"name": "clear", "domain": "clear", "sha256": {"train": "ab" * 32}, "details": {"seed": 0}}
    foggy = {"name": "foggy", "domain": "fog", "sha256": {"train": "cd" * 32}, "details": {"beta": 0.02}}
    facts = {"command": "adapt", "data": {"source": clear, "target": foggy}, "finished": ["mae"]}
    facts["classes"] = list(CLASSES)
    facts["environment"] = {"mrt": "0.1.0", "commit": "abcdef1"}
    (run / "run.json").write_text(json.dumps(facts))
    record = {"network": "teacher", "data": "foggy", "domain": "fog", "split": "val", "sha256": "ef" * 32}
    record |= {"last": True, "metrics": {"AP50": 41.26, "AP": 20.5, "AP75": 18.0, "per_class": {}}}
    record["intervals"] = {"figures": {"AP50": {"low": 39.0, "high": 43.5}}}
    (run / "eval-foggy-val-teacher.json").write_text(json.dumps([record]))
    (run / "eval-broken.json").write_text("[")
    folder = export_detector("my-run", "huggingface", images=photos)
    names = [check["name"] for check in card_of(folder)["parity"]["checks"]]
    assert names == ["huggingface", "huggingface, run by transformers"]
    text = (folder / "README.md").read_text()
    for word in ("# my-run", "car, person, bus", "commit abcdef1", "Apache-2.0"):
        assert word in text
    assert "| target | foggy | fog | beta 0.02 | train `cdcdcdcdcdcd` |" in text
    assert "| foggy, val | fog | 41.3 [39.0, 43.5] | 20.5 | 18.0 | `efefefefefef` |" in text
    assert "Left out, for it is damaged: eval-broken.json: " in text
    assert (folder / "preprocessor_config.json").is_file()
    assert len(mrt.load(folder).predict(photos / "0.jpg", threshold=0)) > 10


def published_detector(**options) -> DeformableDETR:
    torch.manual_seed(0)
    options = {"num_classes": 3, "num_queries": 20, **options}
    detector = DeformableDETR(build_backbone("resnet50", weights="checkpoint"), **options).eval()
    with torch.no_grad():
        heads = detector.class_embed if detector.box_refine else [detector.class_embed]
        for head in heads:
            head.weight.normal_(std=0.2)
    return detector


def test_published_layout(photos, tmp_path):
    """The detector has three of the published classes, so five columns are unused."""
    source = save_detector(tmp_path / "x.safetensors", published_detector())
    images = [photos / "0.jpg", photos / "1.jpg"]
    folder = export_detector(source, "mrt-published", tmp_path / "out", images=images)
    again = mrt.load(folder)
    assert set(CLASSES) < set(again.classes) and len(again.classes) == 8
    card = card_of(folder)
    assert card["parity"]["checks"][0]["same"] and card["columns"][:3] == ["", "person", "car"]


@pytest.mark.parametrize("different", ["bbox_embed.1.layers.0.weight", "class_embed.1.weight", None])
def test_heads_of_their_own_are_known_by_any_of_their_tensors(tmp_path, different):
    """Single tensors may be equal in all layers, such as a bias of zeros."""
    names = ("weight", "bias")
    state = {f"class_embed.{layer}.{name}": torch.zeros(4) for name in names for layer in range(2)}
    names = ("layers.0.weight", "layers.2.bias")
    state |= {f"bbox_embed.{layer}.{name}": torch.zeros(4) for name in names for layer in range(2)}
    state["backbone.intermediate_getter.conv1.weight"] = torch.zeros(1)
    if different:
        state[different] = torch.ones(4)
    torch.save({"model": state}, tmp_path / "x.pth")
    assert describe_published(tmp_path / "x.pth").arguments["box_refine"] is (different is not None)


def test_what_the_published_layout_cannot_say_is_refused(photos, tmp_path, two_stage):
    with pytest.raises(MrtError, match=r"this one differs: hidden_dim 32, .*backbone test_efficientnet"):
        export_detector(two_stage, "mrt-published", images=photos)
    with pytest.raises(MrtError, match="the published layout holds no names"):
        write._published_columns([f"thing {number}" for number in range(8)])
    assert write._published_columns(["bolt", "nut"]) == ["bolt", "nut"]
    assert not Path("exports").exists()


def test_the_small_worlds_network_cannot_be_written_for_transformers(photos):
    with pytest.raises(MrtError, match="cannot be written for transformers: hidden_dim is 96, not 256"):
        export_detector("small-source", "huggingface", images=photos)
    assert not Path("exports").exists()


# --- ONNX


def test_onnx_is_of_standard_operators_with_free_dimensions(onnx_folder):
    assert sorted(path.name for path in onnx_folder.iterdir()) == ["detect.py", "export.json", "model.onnx"]
    model = onnx.load(onnx_folder / "model.onnx")
    assert {(item.domain, item.version) for item in model.opset_import} == {("", 18)}
    assert {node.domain for node in model.graph.node} == {""}
    assert "GridSample" in {node.op_type for node in model.graph.node}
    shapes = {
        value.name: [side.dim_param or side.dim_value for side in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    assert shapes == {
        "images": ["batch", 3, "height", "width"],
        "scores": ["batch", 36],
        "labels": ["batch", 36],
        "boxes": ["batch", 36, 4],
    }
    content = (onnx_folder / "model.onnx").read_bytes()
    assert b"site-packages" not in content and b".py" not in content
    parity = card_of(onnx_folder)["parity"]
    names = [check["name"] for check in parity["checks"]]
    assert names[0] == "onnx" and "batches of 2" in names[1] and parity["tensors_equal"] > 50


@pytest.mark.parametrize("program", ["onnx_folder", "graph_folder"])
def test_a_program_is_loaded_and_predicts_like_any_detector(program, photos, two_stage, one_stage, request):
    folder = request.getfixturevalue(program)
    found = mrt.load(folder)
    eager = mrt.load(two_stage if program == "onnx_folder" else one_stage)
    assert found.classes == eager.classes and found.preprocessing == eager.preprocessing
    for name in ("0.jpg", "1.jpg", "2.jpg"):
        same(found.predict(photos / name, threshold=0.05), eager.predict(photos / name, threshold=0.05))
    several = found.predict([photos / "0.jpg", photos / "3.jpg", photos / "6.jpg"], threshold=0.05, batch=3)
    same(several[2], eager.predict(photos / "6.jpg", threshold=0.05))
    with pytest.raises(MrtError, match="cannot be trained, evaluated or exported again"):
        export_detector(folder, "safetensors")


def test_images_that_are_too_small_are_told_so(onnx_folder):
    with pytest.raises(MrtError, match="failed on 1 images of 16x8 pixels"):
        mrt.load(onnx_folder).network(torch.zeros(1, 3, 8, 16, dtype=torch.uint8))


@pytest.mark.parametrize(
    "name",
    ["backbone.body.conv_stem.weight", "transformer.encoder.layers.0.norm1.bias", "class_embed.0.bias"],
)
def test_a_changed_weight_is_noticed_by_what_is_detected(onnx_folder, two_stage, photos, tmp_path, name):
    broken = copy_export(onnx_folder, tmp_path / "broken")
    change_one_weight(broken / "model.onnx", f"detector.{name}")
    sign_again(broken)
    check = compare(mrt.load(two_stage), mrt.load(broken), pictures(photos), "broken")
    assert not check.ok and check.different + check.missing > 20


def test_an_export_with_a_changed_weight_is_refused_and_leaves_nothing(
    onnx_folder, two_stage, photos, tmp_path, monkeypatch
):
    def write_broken(graph, path, opset):
        path.write_bytes((onnx_folder / "model.onnx").read_bytes())
        change_one_weight(path, "detector.class_embed.0.bias")

    monkeypatch.setattr(write, "trace", lambda *_, **__: None)
    monkeypatch.setattr(write, "write_onnx", write_broken)
    message = "does not do what the detector itself does; nothing was written"
    with pytest.raises(ParityFailed, match=message) as failure:
        export_detector(two_stage, "onnx", tmp_path / "a" / "b", images=photos)
    assert not any(check.ok for check in failure.value.checks)
    assert failure.value.tensors.different == ["detector.class_embed.0.bias"]
    assert "1 of " in str(failure.value)
    assert list(tmp_path.iterdir()) == []


def test_damaged_files_are_told(onnx_folder, tmp_path):
    folder = copy_export(onnx_folder, tmp_path / "x")
    whole = (folder / "model.onnx").read_bytes()
    (folder / "model.onnx").write_bytes(whole[:-100])
    with pytest.raises(MrtError, match="is not the file that was exported"):
        mrt.load(folder)
    sign_again(folder)
    with pytest.raises(MrtError, match="onnxruntime cannot read it"):
        mrt.load(folder)
    (folder / "model.onnx").unlink()
    with pytest.raises(MrtError, match="no such file"):
        mrt.load(folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": 2}, "version is 2, this mrt reads 1"),
        ({"classes": []}, r"classes is \[\]"),
        ({"classes": ["a", 3]}, "classes is"),
        ({"thresholds": {"values": {"car": 0.3}}}, "thresholds is"),
        ({"thresholds": {"values": {"car": 2, "person": 0.3, "bus": 0.3}}}, "thresholds is"),
        ({"preprocessing": {"short_side": "x", "max_size": 3}}, "preprocessing is"),
        ({"preprocessing": {"short_side": 2, "max_size": 3, "fixed": [1]}}, "preprocessing is"),
        ({"file": "../model.onnx"}, "file is"),
        ({"files": {"model.onnx": 3}}, "files is"),
        ({"files": None}, "files is missing"),
    ],
)
def test_a_card_that_was_changed_is_told_by_the_field(onnx_folder, tmp_path, change, words):
    folder = tmp_path / "x"
    folder.mkdir()
    (folder / "export.json").write_text(json.dumps(card_of(onnx_folder) | change))
    with pytest.raises(MrtError, match=words):
        cards.read_card(folder)
    (folder / "export.json").write_text((onnx_folder / "export.json").read_text()[:200])
    with pytest.raises(MrtError, match="not valid JSON"):
        cards.read_card(folder)


def test_the_packages_that_are_missing_are_named(onnx_folder, two_stage, photos, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MrtError, match="onnxruntime is not installed"):
        mrt.load(onnx_folder)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(MrtError, match=r"onnxscript is not installed(.|\n)*pip install"):
        export_detector(two_stage, "onnx", images=photos)


def test_a_device_that_onnxruntime_does_not_have(onnx_folder):
    from mrt.export.runtime import _providers

    assert _providers(["CPUExecutionProvider"], "auto") == ["CPUExecutionProvider"]
    both = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    assert _providers(both, "cuda:1")[0] == ("CUDAExecutionProvider", {"device_id": 1})
    assert len(_providers(both, "cpu")) == 1
    with pytest.raises(MrtError, match="this onnxruntime has no CUDA"):
        _providers(["CPUExecutionProvider"], "cuda")
    with pytest.raises(MrtError, match="cpu or cuda"):
        mrt.load(onnx_folder, device="mps")


# --- detect.py

RUN = """
import runpy, sys
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
BLOCKED = f"""
import sys
for name in ("torch", "torchvision", "mrt", "scipy", "timm"):
    sys.modules[name] = None
{RUN}
"""


def run_script(
    folder: Path, *words: object, python: str = sys.executable, code: str = BLOCKED
) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [python, "-c", code, str(folder / "detect.py"), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder)


def lines_of(done: subprocess.CompletedProcess) -> list[dict]:
    return [json.loads(line) for line in done.stdout.splitlines()]


def expect_same_lines(lines: list[dict], detector, paths: list[Path], threshold: float | None) -> None:
    for path in paths:
        mine = [line for line in lines if line["image"] == str(path)]
        found = detector.predict(path, threshold=threshold)
        assert len(mine) == len(found) > 0
        for line, (box, score, name) in zip(mine, found, strict=True):
            assert line["class"] == name and line["score"] == pytest.approx(score, abs=1e-4)
            np.testing.assert_allclose(line["box"], box, **LOOSE)


def test_the_script_finds_the_same_without_torch_and_mrt(onnx_folder, two_stage, photos, tmp_path):
    grey = tmp_path / "grey.png"
    Image.fromarray((np.arange(200 * 150).reshape(150, 200) * 2 % 65536).astype(np.uint16)).save(grey)
    paths = [photos / "0.jpg", photos / "1.jpg", photos / "2.jpg", grey]
    done = run_script(onnx_folder, *paths, "--threshold", 0.2)
    assert done.returncode == 0, done.stderr
    expect_same_lines(lines_of(done), mrt.load(two_stage), paths, 0.2)


def test_the_script_uses_each_class_own_threshold_and_passes_over_what_it_cannot_read(
    onnx_folder, two_stage, photos, tmp_path
):
    folder = copy_export(onnx_folder, tmp_path / "x")
    card = card_of(folder)
    card["thresholds"]["values"] = {"car": 0.25, "person": 0.45, "bus": 1.0}
    (folder / "export.json").write_text(json.dumps(card))
    (tmp_path / "no.jpg").write_bytes(b"no image")
    done = run_script(folder, tmp_path / "no.jpg", photos / "0.jpg")
    assert done.returncode == 1 and "no.jpg" in done.stderr and "Traceback" not in done.stderr
    found = mrt.load(two_stage).predict(photos / "0.jpg", threshold=card["thresholds"]["values"])
    assert [line["class"] for line in lines_of(done)] == found.names and len(found)
    (folder / "model.onnx").write_bytes(b"")
    assert run_script(folder, photos / "0.jpg").returncode == 2


def test_the_script_rounds_sides_to_a_multiple(onnx_folder, two_stage, photos, tmp_path):
    folder = copy_export(onnx_folder, tmp_path / "x")
    card = card_of(folder)
    card["preprocessing"] |= {"short_side": 100, "max_size": 200, "multiple": 32}
    (folder / "export.json").write_text(json.dumps(card))
    detector = mrt.load(two_stage)
    detector.preprocessing = Preprocessing(100, 200, multiple=32)
    paths = sorted(photos.iterdir())
    done = run_script(folder, *paths, "--threshold", 0.2)
    assert done.returncode == 0, done.stderr
    expect_same_lines(lines_of(done), detector, paths, 0.2)
    assert mrt.load(folder).preprocessing == detector.preprocessing
    sides = {detector.preprocessing.size(height, width) for height, width in ((150, 200), (90, 333))}
    assert sides == {(96, 128), (64, 192)}


@pytest.mark.soak
def test_the_script_in_a_fresh_environment(onnx_folder, two_stage, photos, tmp_path):
    """It needs only numpy, pillow and onnxruntime."""
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = str(tmp_path / "venv" / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "--quiet", "numpy", "pillow", "onnxruntime"], check=True)
    paths = sorted(photos.iterdir())
    nothing_else = (
        "import importlib.util as u; assert not any(u.find_spec(name) for name in ('torch', 'mrt', 'scipy'))"
    )
    done = run_script(onnx_folder, *paths, "--threshold", 0.2, python=python, code=nothing_else + RUN)
    assert done.returncode == 0, done.stderr
    expect_same_lines(lines_of(done), mrt.load(two_stage), paths, 0.2)


# --- others that read ONNX


def test_openvino_finds_the_same(onnx_folder, photos):
    openvino = pytest.importorskip("openvino")
    core = openvino.Core()
    model = core.read_model(onnx_folder / "model.onnx")
    program = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def network(images):
        found = program({"images": images.float().numpy()})
        return tuple(found[place] for place in range(3))

    ours, theirs = mrt.load(onnx_folder), mrt.load(onnx_folder)
    theirs.network = network
    check = compare(ours, theirs, pictures(photos), "openvino")
    assert check.ok and check.score < 1e-5 and check.box < 0.01


def test_the_page_runs_as_it_stands(onnx_folder, graph_folder, photos, tmp_path):
    """Runs the Python code of docs/export.md, with exports of tiny detectors in place of those it names."""
    pytest.importorskip("openvino"), pytest.importorskip("transformers")
    copy_export(onnx_folder, tmp_path / "exports" / "small-source-onnx")
    copy_export(graph_folder, tmp_path / "exports" / "small-source-torch-export")
    source = save_detector(tmp_path / "x.safetensors", random_detector(num_decoder_layers=2))
    export_detector(source, "huggingface", "out", images=[photos / "0.jpg"])
    (tmp_path / "photo.jpg").write_bytes((photos / "0.jpg").read_bytes())
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.S)
    assert len(blocks) == 4
    for block in blocks:
        names: dict = {}
        exec(compile(block, str(PAGE), "exec"), names)
        found = names["found"]["boxes"] if "found" in names else names["boxes"]
        assert found.shape[-1] == 4


# --- torch.export

ALONE = """
import sys
sys.modules["mrt"] = None
import numpy as np, torch
program = torch.export.load(sys.argv[1]).module()
images = torch.from_numpy(np.load(sys.argv[2]))
with torch.inference_mode():
    scores, labels, boxes = program(images)
np.savez(sys.argv[3], scores=scores, labels=labels, boxes=boxes)
"""


def test_a_portable_program_of_one_size_needs_torch_alone(one_stage, photos, tmp_path):
    options = {"images": photos, "size": (128, 96), "portable": True}
    folder = export_detector(one_stage, "torch-export", tmp_path / "out", **options)
    card = card_of(folder)
    assert card["portable"] and card["preprocessing"]["fixed"] == [96, 128]
    assert card["input"]["shape"] == ["batch", 3, 96, 128]
    again = mrt.load(folder)
    assert again.preprocessing.fixed == (96, 128)
    network = again.network
    images = torch.stack([again.preprocessing(picture) for picture in pictures(photos)[:3]])
    np.save(tmp_path / "images.npy", images.float().numpy())
    files = [folder / "model.pt2", tmp_path / "images.npy", tmp_path / "found.npz"]
    command = [sys.executable, "-c", ALONE, *files]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = np.load(tmp_path / "found.npz")
    for name, expected in zip(("scores", "labels", "boxes"), network(images), strict=True):
        np.testing.assert_allclose(found[name], expected, atol=1e-5)
    content = b"".join(path.read_bytes() for path in folder.iterdir())
    assert b"mrt/models" not in content and len(content) < 60e6


def test_a_program_for_images_with_fewer_places_than_queries(two_stage, photos, tmp_path):
    """All places of the maps are queries then, as in the detector itself."""
    folder = export_detector(two_stage, "torch-export", tmp_path / "out", images=photos, size=(33, 8))
    found = mrt.load(folder).predict(pictures(photos)[0], threshold=0.0)
    assert len(found)


def test_a_program_with_kernels_says_so_where_there_are_none(graph_folder, monkeypatch):
    from mrt.export import runtime

    assert not card_of(graph_folder)["portable"]
    monkeypatch.setattr(runtime, "kernels_there", lambda: False)
    with pytest.raises(MrtError, match=r"calls mrt's compiled op(.|\n)*--portable"):
        mrt.load(graph_folder)


@pytest.mark.parametrize("backbone", ["resnet18", "test_efficientnet", "tf_efficientnet_lite0"])
def test_the_program_computes_what_the_detector_does(backbone):
    """Also with convolutions that pad by TensorFlow's rules, for even and odd sides."""
    detector = random_detector(backbone=backbone)
    program = Program(detector)
    for size in ((65, 96), (96, 101)):
        images = torch.randint(0, 256, (2, 3, *size)).float()
        with torch.no_grad():
            scores, labels, boxes = program(images)
            output = detector(pixels_to_input(images))
            expected = top_pairs(output.logits[-1], output.boxes[-1], 300)
        torch.testing.assert_close(scores, expected[0], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(boxes, expected[2], atol=1e-4, rtol=1e-4)
        assert labels.dtype == torch.int64


def test_an_exported_program_places_the_same_proposals_as_the_detector(monkeypatch):
    """For any number of cells, and also if a runtime multiplies by reciprocals instead of dividing."""
    transformer = DeformableTransformer(32, 4, 1, 1, 32, 1, 2, two_stage=True)
    for cells in range(1, 1200):
        shapes, memory, ratios = ((cells, 1),), torch.zeros(1, cells, 32), torch.ones(1, 1, 2)
        with torch.no_grad():
            expected = transformer.propose(memory, shapes, ratios, None)[2]
            with monkeypatch.context() as exporting:
                exporting.setattr(torch.compiler, "is_exporting", lambda: True)
                assert torch.equal(transformer.propose(memory, shapes, ratios, None)[2], expected)
                rows = (torch.arange(cells) + 0.5) * (1 / torch.tensor(float(cells)))
                centres = torch.stack((torch.full_like(rows, 0.5), rows), -1)[None]
                exporting.setattr("mrt.models.transformer.cell_centres", lambda *_, centres=centres: centres)
                assert torch.equal(transformer.propose(memory, shapes, ratios, None)[2], expected)


# --- what all formats share


def test_nothing_is_overwritten(two_stage, photos, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(MrtError, match="holds files already"):
        export_detector(two_stage, "safetensors", tmp_path / "full", images=photos)
    (tmp_path / "file").write_text("")
    with pytest.raises(MrtError, match="is a file"):
        export_detector(two_stage, "safetensors", tmp_path / "file", images=photos)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "full"]


def test_an_empty_folder_is_taken(two_stage, photos, tmp_path):
    (tmp_path / "empty").mkdir()
    assert export_detector(two_stage, "safetensors", tmp_path / "empty", images=photos) == tmp_path / "empty"
    assert (tmp_path / "empty" / "export.json").is_file()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"format": "coreml"}, "format 'coreml' is unknown"),
        ({"format": "onnx", "opset": 11}, "opset 11: expected 18 to"),
        ({"format": "onnx", "size": (0, 5)}, "size 0x5"),
        ({"format": "onnx", "images": "nowhere"}, "nowhere: no such file or folder"),
        ({"format": "onnx", "which": "student", "where": "runs"}, "neither a run folder"),
        ({"format": "onnx", "where": "nothing"}, "no run folder, weights file"),
    ],
)
def test_bad_input(two_stage, options, words, tmp_path):
    (tmp_path / "runs").mkdir()
    with pytest.raises(MrtError, match=words):
        export_detector(options.pop("where", two_stage), options.pop("format"), **options)


def test_images_come_from_the_runs_own_data_or_are_rendered(world, tmp_path, monkeypatch):
    config = {"data": {"target": "hazy", "source": "clear", "validation_split": "val"}}
    found, words = write.choose_images(None, {"config": config}, world)
    assert len(found) == 8 and words == "8 images of hazy, split val"
    config["data"]["target"] = "gone"
    assert write.choose_images(None, {"config": config}, world)[1] == "8 images of clear, split val"
    found, words = write.choose_images(None, {}, world)
    assert len(found) == 8 and "rendered" in words and found[0].size == (640, 320)


def test_photos_that_cannot_be_read_are_left_out_of_the_comparison(photos, tmp_path, world):
    shutil.copytree(photos, tmp_path / "some")
    first, *others = sorted(path for path in (tmp_path / "some").rglob("*") if path.is_file())
    first.write_bytes(b"no picture")
    found, words = write.choose_images(tmp_path / "some", {}, world)
    assert len(found) == min(8, len(others)) and f"without 1 that cannot be read ({first}: " in words
    for file in others:
        file.write_bytes(b"no picture")
    with pytest.raises(MrtError, match="cannot be read as an image"):
        write.choose_images([tmp_path / "some"], {}, world)


def test_without_a_network_that_can_be_traced(two_stage, photos, monkeypatch):
    def fails(*_, **__):
        raise RuntimeError("\n  a reason\nmore")

    monkeypatch.setattr(torch.export, "export", fails)
    with pytest.raises(MrtError, match=r"cannot be traced: a reason(.|\n)*--size"):
        export_detector(two_stage, "torch-export", images=photos)
    assert not Path("exports").exists()


@pytest.mark.soak
@pytest.mark.parametrize(
    "options", [{}, {"box_refine": True, "two_stage": True}], ids=["one-stage", "two-stage"]
)
def test_the_papers_network_in_every_format(options, photos, tmp_path):
    """ResNet-50, 6 + 6 layers, 300 queries, images 800 pixels high, and random weights."""
    sizes = {"hidden_dim": 256, "num_heads": 8, "feedforward_dim": 1024, "num_points": 4, "num_levels": 4}
    layers = {"num_encoder_layers": 6, "num_decoder_layers": 6, "num_queries": 300}
    detector = random_detector(backbone="resnet50", **sizes, **layers, **options)
    config = {"data": {"sides": [800], "max_size": 1333}}
    source = save_detector(tmp_path / "x.safetensors", detector, config=config)
    folders = [tmp_path / name for name in write.FORMATS]
    found = list(write.export_formats(source, write.FORMATS, folders, images=photos))
    assert [getattr(item, "format", item) for item in found] == list(write.FORMATS)
    portable = export_detector(source, "torch-export", tmp_path / "portable", images=photos, portable=True)
    assert all(check["same"] and not check["undecided"] for check in card_of(portable)["parity"]["checks"])
