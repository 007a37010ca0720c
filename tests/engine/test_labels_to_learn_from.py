"""Sets with nothing to learn from or to measure with: refused before anything begins, or told of once."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_set import write_set
from tiny_world import CLASSES, make_set, tiny_config

from mrt.data.card import SplitCard, describe_split, read_card, write_card
from mrt.engine import labels, run, stages
from mrt.engine.inference import evaluate_detector
from mrt.engine.report import Watcher
from mrt.errors import MrtError

BOX = {"image_id": 1, "category_id": 1, "bbox": [5, 5, 20, 20]}


class Listener(Watcher):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


def made(
    root: Path,
    name: str,
    *annotations: dict,
    classes: tuple = CLASSES,
    skipped: dict | None = None,
    **card_fields,
):
    """Two grey images with a split "train"."""
    images = {number: np.full((48, 64, 3), 100, np.uint8) for number in (1, 2)}
    card = write_set(root / name, images, [dict(item) for item in annotations], classes, **card_fields)
    card = replace(card, splits={"train": replace(card.splits["train"], skipped=skipped or {})})
    write_card(card)
    return card


def relabelled(root: Path, name: str, split: str, keep) -> None:
    """Rewrite a split of :func:`make_set` with the annotations that ``keep`` wants, and its card with right
    counts.
    """
    card = read_card(root / name)
    file = card.annotations_path(split)
    coco = json.loads(file.read_text())
    coco["annotations"] = [item for item in coco["annotations"] if keep(item)]
    file.write_text(json.dumps(coco))
    splits = {
        key: describe_split(card.folder, part.annotations, part.images)[0]
        for key, part in card.splits.items()
    }
    write_card(replace(card, splits=splits))


def refusal(config, cards, domains=("source",)) -> MrtError:
    with pytest.raises(MrtError) as caught:
        labels.require_labels(config, cards, domains)
    return caught.value


def test_a_split_without_a_box_is_refused_with_its_figures(tmp_path):
    card = made(
        tmp_path,
        "clear",
        {**BOX, "iscrowd": 1},
        {**BOX, "ignore": 1},
        skipped={"box without area": 3, "no box": 4},
    )
    error = refusal(tiny_config(), {"source": card})
    assert error.message == (
        "data set 'clear', split 'train': no box to learn from: 2 images, 2 ignored boxes; "
        "left out when it was made: no box (4), box without area (3)"
    )
    assert error.hint == (
        "Ignored boxes (crowds, difficult objects) do not count.\n"
        "Name another set with --source, or mend its labels and make it again (mrt prepare-data with "
        "--overwrite)."
    )


def test_one_box_of_one_class_is_enough(tmp_path):
    card = made(tmp_path, "clear", BOX)
    labels.require_labels(tiny_config(), {"source": card}, ["source"])


def test_boxes_of_other_classes_do_not_count_and_the_setting_that_is_named_helps(tmp_path):
    card, config = (
        made(tmp_path, "clear", BOX, BOX, classes=("red", "light green")),
        tiny_config(**{"data.classes": ["light green"]}),
    )
    error = refusal(config, {"source": card})
    assert error.message == (
        "data set 'clear', split 'train': no box of light green to learn from: 2 images, 0 ignored "
        "boxes; of other classes: red (2)"
    )
    assert error.hint.startswith(
        "Train on classes that it has boxes of: --set 'data.classes=[\"red\"]'\nOr name another set"
    )
    labels.require_labels(tiny_config(**{"data.classes": ["red"]}), {"source": card}, ["source"])


def test_another_split_that_has_boxes_is_named(tmp_path):
    make_set(tmp_path, "clear")
    relabelled(tmp_path, "clear", "train", lambda item: False)
    card = read_card(tmp_path / "clear")
    hint = refusal(tiny_config(), {"source": card}).hint
    assert hint.startswith(
        f"Its split 'val' has {card.splits['val'].num_boxes} boxes: --set data.source_split=val\nOr name "
        "another set"
    )
    labels.require_labels(tiny_config(**{"data.source_split": "val"}), {"source": card}, ["source"])


def test_an_oracle_needs_the_targets_boxes_by_its_own_names(tmp_path):
    cards = {
        "source": made(tmp_path, "clear", BOX),
        "target": made(tmp_path, "hazy", BOX, classes=("rosso",)),
    }
    error = refusal(tiny_config(), cards, ["target"])
    assert error.message == (
        "data set 'hazy', split 'train': no box of red, green to learn from: 2 images, 0 ignored boxes; "
        "of other classes: rosso (1)"
    )
    assert "--set data.class_map.THEIRS=OURS" in error.hint and "with --target" in error.hint
    labels.require_labels(tiny_config(**{"data.class_map.rosso": "red"}), cards, ["target", "source"])
    cards["source"] = made(tmp_path, "empty")
    assert (
        "data set 'empty'"
        in refusal(tiny_config(**{"data.class_map.rosso": "red"}), cards, ["target", "source"]).message
    )
    labels.require_labels(tiny_config(**{"data.class_map.rosso": "red"}), cards, ["target"])


def test_unlabelled_sets_and_sets_without_classes(tmp_path):
    cards = {
        "source": made(tmp_path, "photos", classes=(), labelled=False),
        "target": made(tmp_path, "hazy", BOX),
    }
    assert (
        refusal(tiny_config(**{"data.classes": ["red"]}), cards).message
        == "data set 'photos' has no labels to train on"
    )
    assert "leave out --oracle" not in refusal(tiny_config(), cards).hint
    assert refusal(tiny_config(), cards, ["target"]).message.startswith("data set 'photos' has no classes")
    swapped = {"source": cards["target"], "target": cards["source"]}
    error = refusal(tiny_config(), swapped, ["target"])
    assert error.message == "data set 'photos' has no labels to train on" and error.hint.endswith(
        "or leave out --oracle"
    )
    labels.require_labels(tiny_config(), swapped, ["source"])


def test_a_card_without_counts_is_no_reason(tmp_path):
    """Written by hand, or older than the labels: the annotations are asked."""
    card = made(tmp_path, "clear", BOX)
    for part in (
        SplitCard("train.json", "images"),
        replace(card.splits["train"], num_boxes=0, boxes_per_class={"red": 0, "green": 0}),
    ):
        labels.require_labels(tiny_config(), {"source": replace(card, splits={"train": part})}, ["source"])
    (tmp_path / "clear" / "train.json").write_text('{"images": 1}')  # whoever reads it says what is wrong
    labels.require_labels(
        tiny_config(),
        {"source": replace(card, splits={"train": SplitCard("train.json", "images")})},
        ["source"],
    )


@pytest.mark.parametrize("unlabelled", [False, True])
def test_training_does_not_begin(tmp_path, source, monkeypatch, unlabelled):
    def fail(*_, **__):
        raise AssertionError("nothing may be built or downloaded")

    monkeypatch.setattr(run, "open_workshop", fail)
    make_set(tmp_path, "clear", labelled=not unlabelled)
    make_set(tmp_path, "hazy", labelled=False, classes=())
    if not unlabelled:
        relabelled(tmp_path, "clear", "train", lambda item: False)
    match = (
        "data set 'clear' has no labels to train on"
        if unlabelled
        else "data set 'clear', split 'train': no box to learn from: 8 images"
    )
    runs, given = tmp_path / "runs", {"init": str(source), "data_root": tmp_path}
    for call in (
        lambda: stages.pretrain_source(tiny_config(), runs / "a", data_root=tmp_path),
        lambda: stages.pretrain_source(tiny_config(), runs / "a", match_compute=True, **given),
        lambda: stages.adapt(tiny_config(), runs / "a", **given),
    ):
        with pytest.raises(MrtError, match=match):
            call()
    with pytest.raises(MrtError, match=r"data set .* to (learn|train)"):
        stages.pretrain_source(tiny_config(), runs / "a", oracle="source+target", data_root=tmp_path)
    assert not runs.exists()


def test_boxes_that_only_the_reader_finds_unusable(tmp_path):
    """A card that was counted from such a file knows of one box."""
    assert made(tmp_path, "clear", {**BOX, "bbox": [90, 90, 5, 5]}).splits["train"].num_boxes == 1
    with pytest.raises(
        MrtError,
        match=r"no box to learn from: 2 images, 0 ignored boxes; not usable: no area inside the image \(1\)",
    ):
        stages.pretrain_source(tiny_config(**{"engine.batch_size": 2}), tmp_path / "run", data_root=tmp_path)
    assert not (tmp_path / "run").exists()


def test_a_class_without_a_box_is_told_of_once(tmp_path, source):
    make_set(tmp_path, "clear", seed=1)
    make_set(tmp_path, "hazy", haze=0.5, seed=2)
    relabelled(tmp_path, "clear", "train", lambda item: item["category_id"] == 1)
    relabelled(tmp_path, "hazy", "val", lambda item: item["category_id"] == 2)
    reds, greens = (
        read_card(tmp_path / "clear").splits["train"].num_boxes,
        read_card(tmp_path / "hazy").splits["val"].num_boxes,
    )
    watcher = Listener()
    stages.adapt(
        tiny_config(**{"engine.eval_every": 1}),
        tmp_path / "run",
        init=str(source),
        data_root=tmp_path,
        watcher=watcher,
    )
    told = [line for line in watcher.said if "no box" in line]
    assert told == [
        f"clear train: no box of green to learn from; boxes there are: red ({reds})",
        f"hazy val: no box of red to measure with; boxes there are: green ({greens})",
    ]


def test_nothing_is_said_where_every_class_has_boxes(world, source, tmp_path):
    watcher = Listener()
    stages.adapt(tiny_config(), tmp_path / "run", init=str(source), data_root=world, watcher=watcher)
    assert not [line for line in watcher.said if "no box" in line]


@pytest.mark.parametrize(
    ("every", "then"),
    [(1, "nothing is measured during training"), (0, "mrt eval will find nothing to measure with")],
)
def test_a_target_that_nothing_can_be_measured_on(tmp_path, source, every, then):
    make_set(tmp_path, "clear", seed=1)
    make_set(tmp_path, "hazy", haze=0.5, seed=2)
    relabelled(tmp_path, "hazy", "val", lambda item: False)
    watcher = Listener()
    stages.adapt(
        tiny_config(**{"engine.eval_every": every}),
        tmp_path / "run",
        init=str(source),
        data_root=tmp_path,
        watcher=watcher,
    )
    told = [line for line in watcher.said if "no box" in line]
    assert told == [f"hazy has no box of the detector's classes in split 'val': {then}"]
    assert '"eval"' not in (tmp_path / "run" / "metrics.jsonl").read_text()


def test_a_target_whose_names_do_not_fit_leaves_no_folder(tmp_path, source):
    make_set(tmp_path, "clear", seed=1)
    make_set(tmp_path, "hazy", haze=0.5, seed=2, classes=("rosso", "verde"))
    with pytest.raises(MrtError, match="none of its classes"):
        stages.adapt(
            tiny_config(**{"engine.eval_every": 1}), tmp_path / "run", init=str(source), data_root=tmp_path
        )
    assert not (tmp_path / "run").exists()


def test_evaluating_without_a_box_is_one_clear_error(tmp_path, source):
    make_set(tmp_path, "hazy", haze=0.5, seed=2)
    relabelled(tmp_path, "hazy", "val", lambda item: False)
    boxes = read_card(tmp_path / "hazy").splits["train"].num_boxes
    with pytest.raises(MrtError) as caught:
        evaluate_detector(source, data="hazy", split="val", data_root=tmp_path)
    assert (
        caught.value.message
        == "data set 'hazy', split 'val': no box to measure with: 8 images, 0 ignored boxes"
    )
    assert caught.value.hint.startswith(
        f"Its split 'train' has {boxes} boxes: --split train\nOr name another set with --data"
    )

    card = made(
        tmp_path, "others", {**BOX, "category_id": 3}, {**BOX, "iscrowd": 1}, classes=("red", "green", "blue")
    )
    with pytest.raises(MrtError) as caught:
        evaluate_detector(source, data=card.name, split="train", data_root=tmp_path)
    assert caught.value.message == (
        "data set 'others', split 'train': no box of red, green to measure with: 2 images, 1 ignored "
        "boxes; of other classes: blue (1)"
    )
    assert "--map-class THEIRS=OURS" in caught.value.hint
    found = evaluate_detector(
        source,
        data="others",
        split="train",
        data_root=tmp_path,
        overrides={"data.class_map": {"blue": "green"}},
    )
    assert found.metrics.num_boxes == 1


def test_a_long_list_of_classes_is_cut(tmp_path):
    names = tuple(f"c{number}" for number in range(30))
    make = made(tmp_path, "many", BOX, classes=names)
    from mrt.data.dataset import DetectionDataset

    line = labels.missing_classes(DetectionDataset(make, "train"), labels.MEASURE)[0]
    missing = f"no box of {', '.join(names[1:21])} and 9 more to measure with"
    assert line == f"many train: {missing}; boxes there are: c0 (1)"
