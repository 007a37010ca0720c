"""BDD100K by both generations of labels, with filters, from zip archives and folders."""

from __future__ import annotations

import json
import pickle

import pytest
from trees import bdd_frame, objects, pack, write_image, write_text

from mrt.data.convert import bdd100k
from mrt.data.convert.recipe import prepare
from mrt.errors import MrtError

LANE = {
    "category": "lane",
    "attributes": {},
    "poly2d": [{"vertices": [[1, 2], [3, 4]], "types": "LL", "closed": False}],
    "id": 7,
}
AREA = LANE | {"category": "area/drivable"}
TRAIN_2018 = [
    bdd_frame(
        "a.jpg", [("car", 1.5, 2.25, 11.5, 12.25), ("motor", 0, 0, 4, 5), ("traffic light", 1, 1, 2, 2)]
    ),
    bdd_frame("b.jpg", [("person", 3, 4, 9, 10)], timeofday="night", weather="rainy"),
    bdd_frame("c.jpg", [("bike", 5, 5, 25, 15), ("train", 1, 1, 9, 9)], weather="overcast"),
    bdd_frame("d.jpg", []),
]
TRAIN_2018[0]["labels"] += [LANE, AREA]
VAL_2018 = [
    bdd_frame("v.jpg", [("rider", 2, 3, 12, 23)]),
    bdd_frame("w.jpg", [("bus", 2, 3, 4, 5)], timeofday="dawn/dusk"),
]
TRAIN_2020 = [
    bdd_frame(
        "a.jpg", [("motorcycle", 0, 0, 4, 5), ("pedestrian", 1, 1, 3, 9, True), ("other vehicle", 1, 1, 5, 5)]
    ),
    bdd_frame("c.jpg", [("bicycle", 5, 5, 25, 15), ("trailer", 1, 1, 9, 9)]),
    bdd_frame("d.jpg", None),
]
DAYTIME_2018 = {
    "a.jpg": [("car", 1.5, 2.25, 10, 10), ("motorcycle", 0, 0, 4, 5)],
    "c.jpg": [("bicycle", 5, 5, 20, 10)],
    "d.jpg": [],
}


def labels_2018(folder, train=TRAIN_2018, val=VAL_2018):
    for split, frames in (("train", train), ("val", val)):
        if frames is not None:
            write_text(folder / "labels" / f"bdd100k_labels_images_{split}.json", json.dumps(frames))


def labels_2020(folder, train=TRAIN_2020, name="det_20/det_{}.json"):
    write_text(folder / "labels" / name.format("train"), json.dumps(train))


def labels_per_image(folder, frames=TRAIN_2018, split="train", below="labels/100k"):
    """Label files as in bdd100k_labels.zip.

    A file for each image, named without a suffix, in which lanes are lists of points.
    """
    for frame in frames:
        found = [dict(label) for label in frame.get("labels", ())]
        for label in found:
            if label["category"] in ("lane", "area/drivable"):
                label["poly2d"] = [[1.0, 2.0, "L"], [3.0, 4.0, "L"]]
        content = {
            "name": frame["name"].removesuffix(".jpg"),
            "frames": [
                {
                    "timestamp": 10000,
                    "objects": [
                        label | {"category": label["category"].replace("lane", "lane/road curb")}
                        for label in found
                    ],
                }
            ],
            "attributes": frame["attributes"],
        }
        write_text(folder / below / split / f"{content['name']}.json", json.dumps(content))


@pytest.fixture
def raw(tmp_path):
    """bdd100k/images/100k with four train and two val images, and no labels yet."""
    folder = tmp_path / "raw" / "bdd100k"
    for split, names in (("train", "abcd"), ("val", "vw"), ("test", "t")):
        for name in names:
            write_image(folder / "images" / "100k" / split / f"{name}.jpg")
    for name in "bx":  # the segmentation frames, another download: some with the same names
        write_image(folder / "images" / "10k" / "train" / f"{name}.jpg")
    return folder


@pytest.fixture
def convert(tmp_path):
    def run(*places, **options):
        root = tmp_path / "data"
        return prepare(bdd100k.recipe(list(places), root, **options), root, "bdd", overwrite=True, workers=1)

    return run


@pytest.mark.parametrize("packed", [False, True])
def test_the_benchmark_is_daytime_by_the_2018_labels(tmp_path, raw, convert, packed):
    places = [raw.parent]
    if packed:
        pack(raw.parent, tmp_path / "bdd100k_images_100k.zip")
        labels_2018(tmp_path / "release" / "bdd100k")
        places = [
            tmp_path / "bdd100k_images_100k.zip",
            pack(tmp_path / "release", tmp_path / "bdd100k_labels_release.zip"),
        ]
    else:
        labels_2018(raw)
    card, warnings = convert(*places)
    assert objects(card) == DAYTIME_2018
    assert objects(card, "val") == {"v.jpg": [("rider", 2, 3, 10, 20)]}
    assert card.classes == ("person", "rider", "car", "truck", "bus", "motorcycle", "bicycle")
    # neither lane nor drivable area are objects
    assert card.splits["train"].skipped == {"class not asked for": 2}
    assert (card.domain, card.image_sizes) == ("daytime", {"40x30": 4})
    assert warnings == [
        "train: 3 images instead of the official 36728",
        "val: 1 images instead of the official 5258",
    ]
    details = {
        "labels": "2018",
        "where": {"timeofday": ["daytime"]},
        "other frames": {"train": 1, "val": 1},
        "benchmark": True,
    }
    assert details.items() <= card.details.items()
    inside = "bdd100k/images/100k/train"
    assert card.images_root("train") == (places[0] / inside)


def test_images_in_one_archive_for_each_split(tmp_path, raw, convert):
    labels_2018(raw)
    for split in ("train", "val"):
        (tmp_path / split / "100k").mkdir(parents=True)
        (raw / "images" / "100k" / split).rename(tmp_path / split / "100k" / split)
        pack(tmp_path / split, tmp_path / f"100k_images_{split}.zip")
    card, _ = convert(tmp_path / "100k_images_train.zip", tmp_path / "100k_images_val.zip", raw / "labels")
    assert (objects(card), list(objects(card, "val"))) == (DAYTIME_2018, ["v.jpg"])


@pytest.mark.parametrize("name", ["det_20/det_{}.json", "detection20/det_v2_{}_release.json"])
def test_the_2020_labels_name_classes_differently_and_leave_out_empty_frames(raw, convert, name):
    labels_2020(raw, name=name)
    card, warnings = convert(raw)
    assert objects(card) == {
        "a.jpg": [("motorcycle", 0, 0, 4, 5), ("~person", 1, 1, 2, 8)],
        "c.jpg": [("bicycle", 5, 5, 20, 10)],
        "d.jpg": [],
    }
    assert card.splits["train"].skipped == {"class not asked for": 2}
    assert (card.details["labels"], card.details["benchmark"], warnings) == ("2020", False, [])
    assert list(card.splits) == ["train"]


def test_where_both_labels_are_there_it_is_2018_unless_asked(raw, convert):
    labels_2018(raw)
    labels_2020(raw)
    card, _ = convert(raw)
    assert (card.details["labels"], card.details["labels also there"]) == ("2018", ["2020"])
    assert objects(card) == DAYTIME_2018
    card, _ = convert(raw, labels="2020")
    assert ("~person", 1, 1, 2, 8) in objects(card)["a.jpg"]


@pytest.mark.parametrize("packed", [False, True])
def test_one_label_file_for_each_image_gives_the_same_as_the_list_of_2018(tmp_path, raw, convert, packed):
    labels_2018(raw)
    listed, _ = convert(raw)
    for file in (raw / "labels").iterdir():
        file.unlink()
    places = [raw]
    if packed:  # the archive has 100k at its top, as that of the images has today
        labels_per_image(tmp_path / "zip", below="100k")
        labels_per_image(tmp_path / "zip", VAL_2018, "val", below="100k")
        labels_per_image(tmp_path / "zip", [bdd_frame("t.jpg")], "test", below="100k")
        places = [raw, pack(tmp_path / "zip", tmp_path / "bdd100k_labels.zip")]
    else:
        labels_per_image(raw)
        labels_per_image(raw, VAL_2018, "val")
    card, warnings = convert(*places)
    for split in ("train", "val"):
        assert objects(card, split) == objects(listed, split)
        assert card.splits[split].skipped == listed.splits[split].skipped
    # train may have more frames
    assert (card.details["labels"], card.details["benchmark"]) == ("per-image", False)
    assert card.details["other frames"] == {"train": 1, "val": 1}
    assert "train: 3 images instead of the official 36728" in warnings


def test_which_labels_are_taken_where_there_are_several(raw, convert):
    labels_per_image(raw)
    labels_2020(raw)
    card, _ = convert(raw)
    assert (card.details["labels"], card.details["labels also there"]) == ("per-image", ["2020"])
    labels_2018(raw)
    card, _ = convert(raw)
    assert (card.details["labels"], card.details["labels also there"]) == ("2018", ["per-image", "2020"])
    card, _ = convert(raw, labels="per-image", where={"timeofday": "night"})
    assert objects(card) == {"b.jpg": [("person", 3, 4, 6, 6)]}


def test_where_the_car_was_is_no_label_file(raw, convert):
    write_text(raw / "info" / "100k" / "train" / "a.json", json.dumps({"rideID": "x", "gps": []}))
    with pytest.raises(MrtError, match="holds no label file"):
        convert(raw)
    labels_per_image(raw)
    assert objects(convert(raw)[0]) == DAYTIME_2018


def test_label_files_per_image_that_cannot_be_used_are_counted(raw, convert):
    labels_per_image(raw, TRAIN_2018[:3])
    folder = raw / "labels" / "100k" / "train"
    (folder / "a.json").write_text((folder / "a.json").read_text()[:-30])
    write_text(
        folder / "gone.json",
        json.dumps({"name": "gone", "frames": [{"objects": None}], "attributes": {"timeofday": "daytime"}}),
    )
    for name in "efg":
        write_image(raw / "images" / "100k" / "train" / f"{name}.jpg")
    write_text(
        folder / "e.json",
        json.dumps({"name": "e", "frames": [{}, {}], "attributes": {"timeofday": "daytime"}}),
    )
    write_text(folder / "f.json", json.dumps({"name": "f", "labels": []}))
    write_text(
        folder / "g.json", json.dumps({"name": "g", "frames": [], "attributes": {"timeofday": "daytime"}})
    )
    card, warnings = convert(raw)
    assert objects(card) == {"c.jpg": [("bicycle", 5, 5, 20, 10)], "g.jpg": []}
    assert card.splits["train"].skipped == {
        "class not asked for": 1,
        "image missing": 1,
        "annotation cut short or unreadable": 2,
        "labels of several frames": 1,
        "labels missing": 1,
    }
    assert any("labels missing, the first is d.jpg" in line for line in warnings)
    for file in folder.iterdir():
        file.write_text("{")
    with pytest.raises(MrtError, match=r"a\.json: annotation cut short or unreadable"):
        convert(raw)


def test_all_eight_classes(raw, convert):
    labels_2018(raw)
    card, warnings = convert(raw, classes=bdd100k.CLASSES)
    assert objects(card)["c.jpg"] == [("bicycle", 5, 5, 20, 10), ("train", 1, 1, 8, 8)]
    assert (card.details["benchmark"], warnings) == (False, [])
    with pytest.raises(MrtError, match="of BDD100K these are taken: person, rider"):
        convert(raw, classes=("lane",))


@pytest.mark.parametrize(
    ("where", "train", "val", "domain"),
    [
        ({}, "abcd", "vw", "bdd100k"),
        (None, "abcd", "vw", "bdd100k"),
        ({"timeofday": "night"}, "b", None, "night"),
        ({"timeofday": {"night", "dawn/dusk"}}, "b", "w", "dawn/dusk/night"),
        ({"timeofday": "daytime", "weather": ["overcast", "rainy"]}, "c", None, "daytime+overcast/rainy"),
    ],
)
def test_frames_by_their_attributes(raw, convert, where, train, val, domain):
    labels_2018(raw)
    card, _ = convert(raw, where=where)
    found = {split: "".join(sorted(name[0] for name in objects(card, split))) for split in card.splits}
    assert found == {"train": train} | ({"val": val} if val else {})
    assert (card.domain, card.details["benchmark"]) == (domain, False)


@pytest.mark.parametrize(
    ("where", "message", "hint"),
    [
        ({"hour": "noon"}, "where hour: no frame has this attribute", "scene, timeofday, weather"),
        (
            {"timeofday": "noon"},
            "where timeofday=noon: no frame has this value",
            "daytime (4 frames), night (1 frames), dawn/dusk (1 frames)",
        ),
        ({"weather": {"clear", "fog", "hail"}}, "where weather=fog,hail: no frame", "overcast (1 frames)"),
        ({"weather": ()}, "where weather=: no frame", "clear"),
        (
            {"timeofday": "night", "weather": "clear"},
            "where timeofday, weather: no frame has all of these",
            "not together",
        ),
    ],
)
def test_a_filter_for_what_is_not_there_lists_what_is(raw, convert, where, message, hint):
    labels_2018(raw)
    with pytest.raises(MrtError) as caught:
        convert(raw, where=where)
    assert message in caught.value.message
    assert hint in caught.value.hint


@pytest.mark.parametrize("attributes", [None, [], {"timeofday": None}])
def test_a_frame_without_attributes_passes_no_filter(raw, convert, attributes):
    labels_2018(raw, [*TRAIN_2018[:3], bdd_frame("d.jpg") | {"attributes": attributes}])
    assert list(objects(convert(raw)[0])) == ["a.jpg", "c.jpg"]
    assert list(objects(convert(raw, where={})[0])) == ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]


@pytest.mark.parametrize(
    ("corners", "outcome"),
    [
        ((-5.5, -1, 60, 31), (0, 0, 40, 30)),
        ((40, 1, 50, 5), "box outside the image"),
        ((10, 10, 10, 12), "box without area"),
        ((20, 10, 5, 12), "box without area"),
        ((float("nan"), 1, 5, 5), "box with a number that is not finite"),
        ((1, 1, float("inf"), 5), "box with a number that is not finite"),
        ((1, None, 5, 5), "box with a number that is not finite"),
        ((1, 1, 10**400, 5), "box with a number that is not finite"),
        (("1", 1, 5, 5), "box with a number that is not finite"),
    ],
)
def test_boxes_are_cut_to_the_image_or_counted(raw, convert, corners, outcome):
    labels_2018(raw, [bdd_frame("a.jpg", [("car", *corners)])])
    card, _ = convert(raw)
    expected = ([("car", *outcome)], {}) if isinstance(outcome, tuple) else ([], {outcome: 1})
    assert (objects(card)["a.jpg"], card.splits["train"].skipped) == expected


def test_what_cannot_be_used_is_counted(raw, convert):
    names = raw / "images" / "100k" / "train"
    (names / "b.jpg").write_bytes((names / "b.jpg").read_bytes()[:-200])
    odd = bdd_frame("d.jpg", [("ufo", 1, 1, 5, 5)])
    odd["labels"] += [
        {"category": "car", "attributes": None},
        {"category": "car", "box2d": None},
        {"id": 3},
        None,
        5,
    ]
    labels_2018(raw, [bdd_frame("a.jpg"), bdd_frame("a.jpg"), bdd_frame("b.jpg"), bdd_frame("gone.jpg"), odd])
    card, warnings = convert(raw)
    assert list(objects(card)) == ["a.jpg", "d.jpg"]
    assert card.splits["train"].skipped == {
        "image listed twice": 1,
        "image cut short or unreadable": 1,
        "image missing": 1,
        "unknown label 'ufo'": 1,
        "no box": 2,
        "object without a category": 3,
    }
    assert any("image missing, the first is gone.jpg" in line for line in warnings)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (json.dumps(TRAIN_2018)[:-60].encode(), "not valid JSON"),
        (json.dumps(TRAIN_2018).encode() + b"\xe9", "not UTF-8"),
        (b'{"images": [], "annotations": []}', "holds dict, expected a list of frames"),
        (b'[{"name": "a.jpg"}, {"url": "b.jpg"}]', "entry 1 is no frame with a 'name'"),
        (b'[{"name": ""}]', "entry 0 is no frame with a 'name'"),
        (b'[{"name": 5}]', "entry 0 is no frame with a 'name'"),
        (b"[1, 2]", "entry 0 is no frame with a 'name'"),
        (b'[{"name": "../../secret.jpg"}]', "entry 0 is named '../../secret.jpg', a path"),
        (b'[{"name": "..\\\\secret.jpg"}]', "a path"),
    ],
)
def test_a_label_file_that_cannot_be_used_is_an_error_that_names_it(tmp_path, raw, convert, content, message):
    labels_2018(raw)
    (raw / "labels" / "bdd100k_labels_images_train.json").write_bytes(content)
    with pytest.raises(MrtError) as caught:
        convert(raw)
    assert "bdd100k_labels_images_train.json" in caught.value.message
    assert message in caught.value.message
    assert not (tmp_path / "data" / "bdd").exists()


def test_missing_parts_are_named(tmp_path, raw, convert):
    with pytest.raises(MrtError, match="holds no label file"):
        convert(raw)
    labels_2018(raw)
    with pytest.raises(MrtError, match="holds no labels of 2020"):
        convert(raw, labels="2020")
    with pytest.raises(MrtError, match="holds no labels per image"):
        convert(raw, labels="per-image")
    with pytest.raises(MrtError, match="labels is '2019', expected 2018, per-image, 2020"):
        convert(raw, labels="2019")
    with pytest.raises(MrtError, match="holds no images/100k") as caught:
        convert(raw / "labels")
    assert "bdd100k_images_100k.zip" in caught.value.hint
    labels_2018(tmp_path / "other", train=None)
    for image in (raw / "images" / "100k" / "val").iterdir():
        image.unlink()
    with pytest.raises(MrtError, match="holds no split with both images and labels"):
        convert(raw / "images", tmp_path / "other" / "labels")


def test_jobs_are_small_and_can_go_to_other_processes(tmp_path, raw):
    labels_2018(raw, [TRAIN_2018[0]])
    split = bdd100k.recipe([raw], tmp_path).splits["train"]
    # no outlines of lanes, no attributes
    assert len(pickle.dumps(split.jobs[0])) < 1000 + 2 * len(str(tmp_path))
    assert pickle.loads(pickle.dumps(split.convert))(split.jobs[0]).things[0].label == "car"
