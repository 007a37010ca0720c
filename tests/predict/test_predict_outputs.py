"""Written files: they are complete, exact to the pixel, and other programs can read them."""

from __future__ import annotations

import csv
import json
import zipfile
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from blobs import CLASSES, blob_detector, picture
from PIL import Image

from mrt.errors import MrtError
from mrt.predict import inputs
from mrt.predict.detector import Options
from mrt.predict.inputs import MARK
from mrt.predict.job import KINDS, make_writers, run
from mrt.predict.outputs import Mark, Pictures, UniqueNames, flat_name, free_folder

av = pytest.importorskip("av")
RED, GREEN = (20, 30, 60, 90), (80, 10, 120, 40)


@pytest.fixture
def photos(tmp_path) -> Path:
    folder = tmp_path / "photos"
    (folder / "deep").mkdir(parents=True)
    picture(red=[RED], green=[GREEN]).save(folder / "a.png")
    picture(red=[RED]).save(folder / "deep" / "a.jpg", quality=95)
    picture().save(folder / "empty.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(green=[GREEN]).save(folder / "turned.jpg", exif=exif, quality=95)
    return folder


def predict(kinds, inputs_, out, **more):
    detector = blob_detector()
    sources, _ = inputs.find(inputs_)
    return run(detector, sources, Options(), make_writers(kinds, out, detector.classes, **more))


def test_every_kind_is_known_to_the_command_line():
    from mrt_cli.predict import KINDS as of_the_command

    assert tuple(KINDS) == of_the_command


def test_coco_results_and_csv(photos, tmp_path):
    tally, paths = predict(["json", "csv"], [photos], tmp_path / "out")
    assert tally.images == 4
    assert dict(tally.objects) == dict(tally.images_with) == {"red": 2, "green": 2}
    assert {path.name for path in paths} == {"results.json", "images.json", "detections.csv"}
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    listed = json.loads((tmp_path / "out" / "images.json").read_text())
    names = [image["file_name"] for image in listed["images"]]
    assert names == ["a.png", "empty.png", "turned.jpg", "deep/a.jpg"]
    assert [item["name"] for item in listed["categories"]] == list(CLASSES)
    first = results[0]
    assert (first["image_id"], first["category_id"], first["file_name"]) == (1, 1, "a.png")
    assert first["bbox"] == [20.0, 30.0, 40.0, 60.0]
    turned = next(image for image in listed["images"] if image["file_name"] == "turned.jpg")
    assert (turned["width"], turned["height"]) == (120, 160)
    rows = list(csv.DictReader((tmp_path / "out" / "detections.csv").open()))
    assert len(rows) == len(results) and float(rows[0]["x1"]) == 60
    assert rows[0]["file"] == "a.png" and rows[0]["class"] == "red"


def test_coco_results_are_read_by_pycocotools(photos, tmp_path):
    from pycocotools.coco import COCO

    predict(["json"], [photos], tmp_path / "out")
    truth = COCO()
    truth.dataset = {**json.loads((tmp_path / "out" / "images.json").read_text()), "annotations": []}
    truth.createIndex()
    found = truth.loadRes(str(tmp_path / "out" / "results.json"))
    assert len(found.getAnnIds()) == 4


def accepted(folder: Path) -> list[str | Path]:
    """Label Studio's export after an annotator has taken all predictions over; the words to read it."""
    tasks = json.loads((folder / "tasks.json").read_text(encoding="utf-8"))
    for task in tasks:
        found = task.pop("predictions")
        task |= {"predictions": [], "annotations": [{"was_cancelled": False, "result": found[0]["result"]}]}
    export = folder.parent / "project.json"
    export.write_text(json.dumps(tasks), encoding="utf-8")
    return [folder / "images", export, "--format", "label-studio"]


@pytest.mark.parametrize("kind", ["coco", "yolo", "voc", "label-studio"])
def test_labels_to_correct_come_back_through_prepare_data(kind, photos, tmp_path, somewhere):
    from mrt_cli.app import app
    from typer.testing import CliRunner

    predict([kind], [photos], tmp_path / "out")
    there = tmp_path / "out" / kind
    words = ["prepare-data", "custom", "--raw", *(accepted(there) if kind == "label-studio" else [there])]
    words += ["--name", "back", "--data-root", tmp_path / "data"]
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    coco = json.loads((tmp_path / "data" / "back" / "train.json").read_text())
    card = json.loads((tmp_path / "data" / "back" / "dataset.json").read_text())
    assert card["splits"]["train"]["num_images"] == 4 and not card["splits"]["train"]["skipped"]
    classes = {item["id"]: item["name"] for item in coco["categories"]}
    files = {image["id"]: Path(image["file_name"]).name for image in coco["images"]}
    boxes = {}
    for item in coco["annotations"]:
        boxes[files[item["image_id"]], classes[item["category_id"]]] = item["bbox"]
    np.testing.assert_allclose(boxes["a.png", "red"], [20, 30, 40, 60], atol=0.05)
    np.testing.assert_allclose(boxes["a.png", "green"], [80, 10, 40, 30], atol=0.05)
    np.testing.assert_allclose(boxes["deep_a.jpg", "red"], [20, 30, 40, 60], atol=1.1)
    x, y, w, h = boxes["turned.jpg", "green"]  # upright: turned clockwise, (x, y) -> (120 - y, x)
    np.testing.assert_allclose([x, y, w, h], [80, 80, 30, 40], atol=1.1)
    assert len(boxes) == 4


def test_label_studios_interface_has_the_classes(photos, tmp_path):
    predict(["label-studio"], [photos], tmp_path / "out")
    view = ElementTree.parse(tmp_path / "out" / "label-studio" / "labelling.xml").getroot()
    assert [label.get("value") for label in view.iter("Label")] == list(CLASSES)
    names = {view.find("Image").get("name"), view.find("RectangleLabels").get("toName")}
    assert names == {"image"} and view.find("Image").get("value") == "$image"


def test_copied_images_are_the_files_themselves_unless_exif_turns_them(photos, tmp_path):
    predict(["coco"], [photos], tmp_path / "out")
    copies = tmp_path / "out" / "coco" / "images"
    assert (copies / "a.png").read_bytes() == (photos / "a.png").read_bytes()
    assert (copies / "deep_a.jpg").read_bytes() == (photos / "deep" / "a.jpg").read_bytes()
    assert Image.open(copies / "turned.jpg").size == (120, 160)


def test_images_of_a_zip_archive_are_copied_too(photos, tmp_path):
    with zipfile.ZipFile(tmp_path / "p.zip", "w") as archive:
        for name in ("a.png", "deep/a.jpg", "turned.jpg"):
            archive.write(photos / name, name)
    predict(["coco", "pictures"], [tmp_path / "p.zip"], tmp_path / "out")
    copies = tmp_path / "out" / "coco" / "images"
    assert sorted(path.name for path in copies.iterdir()) == ["a.png", "deep_a.jpg", "turned.jpg"]
    assert (copies / "a.png").read_bytes() == (photos / "a.png").read_bytes()
    assert Image.open(copies / "turned.jpg").size == (120, 160)


def test_pictures_keep_their_names_and_are_drawn_on(photos, tmp_path):
    _, paths = predict(["pictures"], [photos], tmp_path / "out")
    names = sorted(path.relative_to(tmp_path / "out").as_posix() for path in paths)
    assert names == ["a.png", "deep/a.jpg", "empty.png", "turned.jpg"]
    drawn = Image.open(tmp_path / "out" / "a.png")
    assert drawn.size == (640, 480)  # four times as large: small pictures are enlarged to make labels legible
    plain = picture(red=[RED], green=[GREEN]).resize((640, 480))
    assert np.abs(np.asarray(drawn, int) - np.asarray(plain, int)).max() > 100


def test_pictures_with_names_as_long_as_a_disk_takes(tmp_path):
    (tmp_path / "in" / "deep").mkdir(parents=True)
    for start in ("a", "b"):
        picture(red=[RED]).save(tmp_path / "in" / "deep" / f"{start}{'x' * 250}.png")
    tally, paths = predict(["pictures", "voc"], [tmp_path / "in"], tmp_path / "out", crop=True)
    assert tally.images == 2 and not tally.broken
    pictures = [path for path in paths if path.suffix == ".png"]
    assert len({path.name for path in pictures}) == 2 and all(path.parent.name == "deep" for path in pictures)


def test_a_video_is_written_as_h264_of_the_same_length(tmp_path):
    from test_predict_inputs import make_video

    clip = make_video(tmp_path / "clip.mp4", frames=9, rate=12)
    _, paths = predict(["pictures", "csv"], [clip], tmp_path / "out")
    with av.open(str(paths[0])) as written:
        stream = written.streams.video[0]
        assert stream.codec_context.name == "h264" and float(stream.average_rate) == 12
        assert sum(1 for _ in written.decode(stream)) == 9
    rows = list(csv.DictReader((tmp_path / "out" / "detections.csv").open()))
    assert [int(row["frame"]) for row in rows] == list(range(9)) and rows[6]["seconds"] == "0.500"
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == [".mrt-predictions", "clip.mp4", "detections.csv"]


def test_frames_of_a_video_as_pictures_and_as_labels(tmp_path):
    from test_predict_inputs import make_video

    clip = make_video(tmp_path / "clip.mp4", frames=3)
    predict(["frames", "yolo"], [clip], tmp_path / "out")
    names = sorted(path.name for path in (tmp_path / "out" / "clip").iterdir())
    assert names == ["000000.jpg", "000001.jpg", "000002.jpg"]
    labels = tmp_path / "out" / "yolo" / "labels" / "train" / "clip_000002.txt"
    label, *numbers = (float(word) for word in labels.read_text().split())
    assert label == 0
    np.testing.assert_allclose(numbers, [38 / 160, 40 / 120, 40 / 160, 40 / 120], atol=0.02)


def test_names_of_deep_folders_fit_into_one():
    deep = "/".join(["a folder with a name of some forty letters"] * 8)
    names = [flat_name(f"{deep}/{name}") for name in ("a.jpg", "b.jpg")]
    assert len({*names}) == 2 and all(len(name) <= 200 and name.endswith(".jpg") for name in names)
    assert flat_name("a/b c.jpg") == "a_b c.jpg"


def test_a_folder_is_marked_with_its_first_picture(photos, tmp_path):
    folder = tmp_path / "out"
    first, second = Pictures(folder), Mark(folder)
    frame = next(inputs.find([photos])[0][0].frames())
    for writer in (first, second):
        writer.add(frame, blob_detector().predict(frame.path))
    assert (folder / MARK).is_file()


def test_crops_are_the_objects(photos, tmp_path):
    predict(["none"], [photos / "a.png"], tmp_path / "out", crop=True)
    red = Image.open(tmp_path / "out" / "crops" / "red" / "a-1.jpg")
    assert abs(red.width - 40) <= 1 and abs(red.height - 60) <= 1
    assert np.asarray(red, int)[5:-5, 5:-5].mean((0, 1))[0] > 240


def test_broken_images_are_counted_and_the_rest_is_written(photos, tmp_path):
    (photos / "bad.jpg").write_bytes(b"no image")
    tally, _ = predict(["json"], [photos], tmp_path / "out")
    assert tally.images == 4 and len(tally.broken) == 1 and "bad.jpg" in tally.broken[0]


def test_what_was_found_before_a_stop_is_written(photos, tmp_path):
    detector = blob_detector()
    sources, _ = inputs.find([photos])

    def stop(source, frame, result):
        if frame.name == "empty.png":
            raise KeyboardInterrupt

    writers = make_writers(["json"], tmp_path / "out", detector.classes)
    with pytest.raises(KeyboardInterrupt):
        run(detector, sources, Options(), writers, on_frame=stop)
    assert len(json.loads((tmp_path / "out" / "images.json").read_text())["images"]) == 2


def test_predictions_are_not_taken_for_photos_the_next_time(photos):
    predict(["pictures"], [photos], photos / "predictions")
    sources, _ = inputs.find([photos])
    assert sources[0].total == 4
    sources, _ = inputs.find([photos / "predictions"])  # unless they are asked for
    assert sources[0].total == 4


def test_a_limit_is_kept(photos, tmp_path):
    detector = blob_detector()
    sources, _ = inputs.find([photos])
    tally, _ = run(detector, sources, Options(), [], limit=2)
    assert tally.images == 2


def test_unknown_kinds_and_contradictions():
    for kinds, words in (
        (["pdf"], "unknown"),
        (["pictures", "frames"], "exclude"),
        (["none", "csv"], "exclude"),
    ):
        with pytest.raises(MrtError, match=words):
            make_writers(kinds, Path("x"), CLASSES)


def test_nothing_is_overwritten(tmp_path):
    usual = tmp_path / "predictions"
    assert free_folder(None, usual) == usual
    usual.mkdir()
    assert free_folder(None, usual) == tmp_path / "predictions-2"
    (usual / "x").write_text("")
    with pytest.raises(MrtError, match="holds files already"):
        free_folder(usual, usual)
    with pytest.raises(MrtError, match="is a file"):
        free_folder(usual / "x", usual)
    unique = UniqueNames()
    names = [unique(name) for name in ("a.jpg", "a.png", "A.jpg", "b/a.jpg")]
    assert names == ["a.jpg", "a-2.png", "A-3.jpg", "b/a.jpg"]
