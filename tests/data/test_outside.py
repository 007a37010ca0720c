"""Labels from outside: whose images and classes they mean, and what is wrong with them."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
from tiny_world import make_set

from mrt.data.dataset import DetectionDataset, SampleKey
from mrt.data.loader import collate
from mrt.data.outside import read_labels
from mrt.data.registry import find_dataset, labels_digest
from mrt.data.transforms import Transform
from mrt.errors import MrtError

CLASSES = ["red", "green"]


@pytest.fixture
def world(tmp_path) -> Path:
    """An unlabelled target of eight images; the truth lies apart, in another set."""
    make_set(tmp_path, "truth", haze=0.5)
    make_set(tmp_path, "hazy", haze=0.5, labelled=False)
    return tmp_path


def truth(world: Path) -> dict:
    return json.loads((world / "truth" / "train.json").read_text())


def write(world: Path, content: object, name: str = "labels.json") -> str:
    (world / name).write_text(json.dumps(content))
    return str(world / name)


def read(world: Path, where: str, **how):
    return read_labels(where, find_dataset("hazy", world), "train", CLASSES, data_root=world, **how)


def test_a_set_a_coco_file_and_a_list_of_results_say_the_same(world):
    coco = truth(world)
    results = [
        {**{key: a[key] for key in ("image_id", "category_id", "bbox")}, "score": 1.0}
        for a in coco["annotations"]
    ]
    # the results' ids mean the target's own file, which has no annotations but the images and categories
    everywhere = [
        read(world, "truth"),
        read(world, write(world, coco)),
        read(world, write(world, results, "r.json")),
    ]
    for found in everywhere:
        assert found.images.keys() == {image["id"] for image in coco["images"]}
        assert found.boxes() == len(coco["annotations"]) and not found.notes
        one = found.images[1]
        expected = [a for a in coco["annotations"] if a["image_id"] == 1]
        x, y, w, h = expected[0]["bbox"]
        assert one.boxes[0].tolist() == [x, y, x + w, y + h]
        assert one.labels.tolist() == [a["category_id"] - 1 for a in expected] and one.scores.eq(1).all()


def test_a_digest_is_of_all_that_is_read(world):
    results = [{"image_id": 1, "category_id": 1, "bbox": [1, 1, 5, 5]}]
    alone = labels_digest(write(world, results, "r.json"), "train", world)
    write(world, {"images": [], "categories": []}, "images.json")
    with_images = labels_digest(write(world, results, "r.json"), "train", world)
    write(world, {"images": [{"id": 1, "file_name": "2.png"}], "categories": []}, "images.json")
    assert len({alone, with_images, labels_digest(str(world / "r.json"), "train", world)}) == 3
    coco = write(world, truth(world))
    before = labels_digest(coco, "train", world)
    (world / "images.json").unlink()
    assert labels_digest(coco, "train", world) == before, "an object has its own list of images"
    assert labels_digest("truth", "val", world) != before


def test_the_targets_own_labels_are_told_of(world):
    shutil.copy(world / "truth" / "train.json", world / "hazy" / "train.json")
    assert "the target set's own labels; so the result is an oracle's" in read(world, "hazy").notes[0]


def test_results_beside_their_own_list_of_images_mean_that(world):
    """As mrt predict --save json writes them: ids of its own, in other folders."""
    coco = truth(world)
    about = {
        "images": [
            {**image, "id": image["id"] + 100, "file_name": f"deep/{image['file_name']}"}
            for image in coco["images"]
        ],
        "categories": [{"id": 7, "name": "Green"}, {"id": 9, "name": "red"}],
    }
    results = [
        {
            "image_id": a["image_id"] + 100,
            "category_id": 9 if a["category_id"] == 1 else 7,
            "bbox": a["bbox"],
            "score": 0.5,
        }
        for a in coco["annotations"]
    ]
    write(world, about, "images.json")
    found = read(world, write(world, results, "results.json"))
    plain = read(world, "truth")
    for number, given in plain.images.items():
        assert torch.equal(found.images[number].boxes, given.boxes)
        assert torch.equal(found.images[number].labels, given.labels)


def test_boxes_of_the_same_picture_at_another_size_are_scaled_and_cut(world):
    coco = truth(world)
    for image in coco["images"]:
        image["width"], image["height"] = str(2 * image["width"]), 2 * image["height"]
    for annotation in coco["annotations"]:
        annotation["bbox"] = [2 * value for value in annotation["bbox"]]
    coco["annotations"].append({"image_id": 1, "category_id": 1, "bbox": [120, 10, 40, 20], "score": 0.9})
    found, plain = read(world, write(world, coco)), read(world, "truth")
    assert torch.equal(found.images[1].boxes[:-1], plain.images[1].boxes)
    assert found.images[1].boxes[-1].tolist() == [60, 5, 64, 15]


def test_what_is_left_out_is_told(world):
    coco = truth(world)
    coco["images"] = [*coco["images"][:6], {"id": 99, "file_name": "elsewhere.png"}]
    coco["annotations"] = [a for a in coco["annotations"] if a["image_id"] <= 6]
    total = len(coco["annotations"])
    coco["categories"].append({"id": 3, "name": "unicorn"})
    coco["categories"][0]["name"] = "Red "
    coco["images"][0].update(width=None, height=None)
    more = (
        (3, [1, 1, 5, 5], 1),
        (1, [70, 1, 5, 5], 1),
        (1, [1, 1, 5, 5], 0.1),
        (1, [1, 1, float("nan"), 5], 1),
    )
    coco["annotations"] += [{"image_id": 1, "category_id": c, "bbox": b, "score": s} for c, b, s in more]
    coco["annotations"] += [{"image_id": 1, "category_id": 2, "bbox": [0, 0, 9, 9], "iscrowd": 1}]
    found = read(world, write(world, coco), lowest=0.3)
    assert found.boxes() == total and len(found.images[1].ignore_boxes) == 1 and 7 not in found.images
    said = "\n".join(found.notes)
    for words in (
        "says nothing of 2 of the 8 images of hazy train",
        "1 of its 7 images are not in hazy train",
        "of classes that the detector does not have: unicorn (1)",
        "no area inside the image (1)",
        "score below 0.3 (1)",
        "not finite (1)",
        "crowds and ignored objects, neither object nor background: 1",
    ):
        assert words in said


def test_a_class_map_renames(world):
    coco = truth(world)
    for category, name in zip(coco["categories"], ("rouge", "vert"), strict=True):
        category["name"] = name
    file = write(world, coco)
    with pytest.raises(MrtError, match=r"none of its classes \(rouge, vert\).*data.class_map.THEIRS=OURS"):
        raise_with_hint(lambda: read(world, file))
    with pytest.raises(MrtError, match="is a class neither of"):
        read(world, file, class_map={"roug": "red"})
    with pytest.raises(MrtError, match="'rouge' -> 'blue': no class of the detector"):
        read(world, file, class_map={"rouge": "blue"})
    found = read(world, file, class_map={"rouge": "red", "vert": "green"})
    assert found.boxes() == len(coco["annotations"])


def raise_with_hint(call) -> None:
    try:
        call()
    except MrtError as error:
        raise MrtError(f"{error.message} {error.hint}") from None


def entry(**changes) -> dict:
    return {"image_id": 1, "category_id": 1, "bbox": [1, 1, 5, 5], **changes}


@pytest.mark.parametrize(
    "content, words",
    [
        ({"boxes": []}, "images = None: not labels without a list of images"),
        ("text", "neither a COCO object .* nor a list of COCO results"),
        ([entry(score=87)], "score = 87.*from 0 to 1: divide per cent by 100"),
        ([entry(score=None)], "score = None.*a number from 0 to 1, or none at all"),
        ([entry(bbox=[1, 2, 3])], r"bbox = \[1, 2, 3\].*four numbers"),
        ([entry(bbox=None, id=7)], "annotation 7: bbox = None"),
        ([{"image_id": 1}], "category_id = None"),
        ([7], "entry = 7.*an object with image_id"),
        ([entry(image_id=[1])], r"image_id = \[1\]"),
        ([entry(image_id=True)], "image_id = True"),
        ([entry(image_id="1")], "annotation of image '1': no image has this id"),
        ([entry(image_id=1000)], "annotation of image 1000: no image has this id"),
        ([entry(category_id=40)], "category_id = 40: no category has this id"),
        ([entry(score=0.1)], "no label is left .*score below 0.3.*lower teacher.labels_score"),
        ([entry(iscrowd=1)], r"no label is left .*crowds and ignored objects.*: 1.*look into the file"),
        ([entry(bbox=[0.1, 0.2, 0.3, 0.4])], "all boxes lie between 0 and 1.*in pixels of the image"),
        ([], r"no label is left for 'hazy', split 'train' \(of 0 annotations\).*look into the file"),
    ],
)
def test_what_is_no_label_file_is_said_in_one_line(world, content, words):
    file = write(world, content)
    with pytest.raises(MrtError, match=words) as told:
        raise_with_hint(lambda: read(world, file, lowest=0.3))
    assert file in told.value.message


def test_a_table_is_no_label_file_and_its_cure_is_said(world):
    (world / "labels.csv").write_text("a,b")
    with pytest.raises(MrtError, match=r"(?s)not valid JSON.*mrt prepare-data custom"):
        raise_with_hint(lambda: read(world, str(world / "labels.csv")))


def test_paths_may_begin_elsewhere_but_must_not_be_ambiguous(world):
    own = json.loads((world / "hazy" / "train.json").read_text())
    for image in own["images"]:
        image["file_name"] = f"{'ab'[image['id'] % 2]}/{(image['id'] - 1) // 2}.png"
    (world / "hazy" / "train.json").write_text(json.dumps(own))
    coco = truth(world)
    for image, ours in zip(coco["images"], own["images"], strict=True):
        image["file_name"] = f"/elsewhere/x/{ours['file_name']}"
    found = read(world, write(world, coco))
    assert found.boxes() == len(coco["annotations"]) and not found.notes
    for image in coco["images"]:
        image["file_name"] = Path(image["file_name"]).name
    with pytest.raises(MrtError, match=r"none of its 8 images .*; '0\.png' could be 2 of them"):
        read(world, write(world, coco))
    coco["images"] = [dict(image, file_name=own["images"][0]["file_name"]) for image in coco["images"][:2]]
    coco["annotations"] = []
    with pytest.raises(MrtError, match=r"are both the target's 'b/0\.png'"):
        read(world, write(world, coco))


def changed(world: Path, change) -> dict:
    coco = copy.deepcopy(truth(world))
    change(coco)
    return coco


@pytest.mark.parametrize(
    "change, words",
    [
        (
            lambda coco: [image.update(file_name=f"x{image['id']}.png") for image in coco["images"]],
            "none of its 8 images",
        ),
        (lambda coco: coco["images"][0].update(width=48), "is 48x48 there and 64x48"),
        (lambda coco: coco["images"][0].update(width="wide"), "is widex48 there"),
        (lambda coco: coco["images"].append({"id": 3}), "images: .* has no id or no file_name"),
        (lambda coco: coco["categories"].append({"name": "x"}), "categories: .* has no id or no name"),
        (lambda coco: coco["categories"].append({"name": "x", "id": {}}), "has no id or no name"),
        (lambda coco: coco["images"].append({"id": [3], "file_name": "x.png"}), "has no id or no file_name"),
        (lambda coco: coco["categories"].append("x"), "categories: x has no id"),
        (lambda coco: coco["categories"][1].update(id=1), r"the id 1 is given twice \(red, green\)"),
        (lambda coco: coco["images"][1].update(id=1), r"the id 1 is given twice \(1\.png, 2\.png\)"),
        (lambda coco: coco["categories"].clear(), "categories is empty"),
    ],
)
def test_what_is_wrong_in_a_coco_file_is_said_in_one_line(world, change, words):
    with pytest.raises(MrtError, match=words):
        read(world, write(world, changed(world, change)))


@pytest.mark.parametrize(
    "where, words",
    [
        ("nothing.json", "no such file"),
        ("nothing", "neither a file nor a prepared set"),
        ("truth/train.json", "no such file"),
    ],
)
def test_what_is_not_there_is_said_with_how_to_make_it(world, where, words):
    with pytest.raises(MrtError, match=rf"teacher.labels = '{where}'.*{words}.*mrt label"):
        raise_with_hint(lambda: read(world, where))


def test_a_set_without_the_split_is_refused(world):
    card = json.loads((world / "truth" / "dataset.json").read_text())
    card["splits"].pop("train")
    (world / "truth" / "dataset.json").write_text(json.dumps(card))
    with pytest.raises(MrtError, match="has no split 'train'"):
        read(world, "truth")


def test_the_images_carry_the_labels_through_every_view(world):
    """Mirrored and resized with their image; the set's own boxes stay unread."""
    shutil.copy(world / "truth" / "train.json", world / "hazy" / "train.json")  # labels that must not be read
    coco = truth(world)
    coco["images"] = coco["images"][:7]
    coco["annotations"] = [
        {**a, "score": 0.5 + 0.01 * number}
        for number, a in enumerate(coco["annotations"])
        if a["image_id"] <= 7
    ]
    given = read(world, write(world, coco))
    plain = DetectionDataset(
        find_dataset("hazy", world), "train", CLASSES, Transform("pair", [96], 128), labelled=False
    )
    dressed = plain.with_labels(given)
    assert not any(len(record.boxes) for record in plain.records)
    flips = set()
    for seed in "abcdefgh":
        sample = dressed[SampleKey(0, seed)]
        left = given.images[1].boxes[:, [0, 2]].mean(1) / 64
        flipped = not torch.allclose(sample.target["boxes"][:, 0], left, atol=1e-4)
        flips.add(flipped)
        assert torch.allclose(sample.target["boxes"][:, 0], 1 - left if flipped else left, atol=1e-4)
        assert torch.equal(sample.target["scores"], given.images[1].scores)
        assert torch.equal(sample.image, plain[SampleKey(0, seed)].image), "the same view as without them"
    assert flips == {True, False}
    batch = collate([dressed[SampleKey(index, "a")] for index in (0, 7)])
    assert [target["covered"] for target in batch.targets] == [True, False]
    assert not len(batch.targets[1]["boxes"])
    assert len(plain.with_labels(given, keep_uncovered=False)) == 7


def test_paths_that_no_system_has_are_refused(world):
    """Found by mutation: looking for the ends of a path of 20,000 letters took five seconds."""
    coco = truth(world)
    coco["images"][0]["file_name"] += "/a" * 10_000
    with pytest.raises(MrtError, match=r"images: .* has no id or no file_name"):
        read(world, write(world, coco))


def test_deep_paths_take_no_time_in_proportion_to_their_square(world):
    """As deep as may be, and many of them; the ends that count are as deep as the target's own names."""
    coco = truth(world)
    own = copy.deepcopy(coco["images"])
    for number in range(300):
        deep = {**own[0], "id": 1000 + number, "file_name": "a/" * 2000 + f"{number}.none"}
        coco["images"].append(deep)
    coco["images"][0]["file_name"] = "b/" * 2000 + own[0]["file_name"]
    found = read(world, write(world, coco))
    assert len(found.images) == len(own) and found.boxes() == len(coco["annotations"])
