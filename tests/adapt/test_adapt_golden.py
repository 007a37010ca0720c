"""The recorded teacher, thresholds, pseudo labels and re-initialisation lists."""

from __future__ import annotations

import pytest
import torch
from golden import GOLDEN, assert_close, load_golden
from torch import nn

from mrt.adapt import DynamicThresholds, Teacher, kept_words, pseudo_labels, reinit_state, restore


class Named(nn.Module):
    """A module whose state dict has exactly the given (dotted) names."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            owner = self
            *path, leaf = name.split(".")
            for part in path:
                if part not in owner._modules:
                    owner.add_module(part, nn.Module())
                owner = owner.get_submodule(part)
            owner.register_parameter(leaf, nn.Parameter(tensor.clone()))


@pytest.mark.parametrize(("decay", "updates"), [(0.9996, 1), (0.9, 2)])
def test_ema(decay: float, updates: int) -> None:
    """The teacher's average equals the formula and the recorded numbers.

    The recorded ``alpha0.9996_n1`` arrays equal those of ``alpha0.9_n2`` bit for bit and do not follow from
    the recorded inputs. So one update at 0.9996 is only compared with the formula in float64.
    """
    data = load_golden("ema")
    names = [key.removeprefix("teacher/") for key in data.files if key.startswith("teacher/")]
    before, student = (
        Named({name: torch.from_numpy(data[f"{side}/{name}"]) for name in names})
        for side in ("teacher", "student")
    )
    teacher = Teacher(before, decay=decay)
    for step in range(updates):
        teacher.update(student, step)
    state = teacher.module.state_dict()
    assert len(state) == len(names) == 6
    for name, tensor in state.items():
        share = decay**updates
        old, new = data[f"teacher/{name}"].astype("f8"), data[f"student/{name}"].astype("f8")
        formula = share * old + (1 - share) * new
        assert_close(tensor, formula, what=name)
        if updates == 2:
            assert_close(tensor, data[f"alpha0.9_n2/{name}"], what=name)


@pytest.mark.parametrize("setting", ["foggy", "bdd", "sim", "low"])
def test_dynamic_thresholds(setting: str) -> None:
    data = load_golden("dynamic_threshold")
    alpha, gamma, maximum, start = data[f"{setting}/params"].tolist()
    thresholds = DynamicThresholds(9, alpha=alpha, gamma=gamma, start=start, maximum=maximum)
    expected = data[f"{setting}/thresholds"]
    assert_close(thresholds.values, expected[0])
    for epoch in range(len(expected) - 1):
        for step in range(3):
            probabilities = torch.from_numpy(data[f"{setting}/ep{epoch}.it{step}/probs"])
            for image in range(2):
                query = torch.from_numpy(data[f"{setting}/ep{epoch}.it{step}/img{image}.query"])
                thresholds.record(*probabilities[image, query].max(-1))
        assert_close(thresholds.sum, data[f"{setting}/sum"][epoch])
        assert thresholds.count.tolist() == data[f"{setting}/count"][epoch].tolist()
        assert_close(thresholds.update(), expected[epoch + 1])
        assert not thresholds.count.any()


def test_pseudo_labels() -> None:
    data = load_golden("pseudo_labels")
    logits, boxes = torch.from_numpy(data["in/logits"]), torch.from_numpy(data["in/boxes"])
    found = pseudo_labels(
        logits, boxes, torch.from_numpy(data["in/thresholds"]), nms_iou=float(data["in/nms_iou"])
    )
    assert len(found) == 4
    for image, labelled in enumerate(found):
        assert labelled["labels"].tolist() == data[f"out/img{image}.labels"].tolist()
        assert_close(labelled["scores"], data[f"out/img{image}.scores"])
        assert_close(labelled["boxes"], data[f"out/img{image}.boxes"])
        assert labelled["labels"].dtype == torch.int64


@pytest.mark.parametrize(
    ("case", "parts"),
    [
        ("is_reinit", "B+E"),
        ("is_reinit/backbone+decoder", "E"),
        ("is_reinit/encoder+decoder", "B"),
        ("is_reinit/backbone", "D+E"),
        ("is_reinit/encoder", "B+D"),
    ],
)
def test_retrained_parts(case: str, parts: str) -> None:
    """The recorded flags are those of the teaching student, including the auxiliary branches.

    The last part of a case's name holds the kept words.
    """
    data = load_golden("reinit")
    student = Named({name: torch.zeros(1) for name in data["keys"]})
    expected = data["keys"][data[case]].tolist()
    saved = reinit_state(student, parts)
    assert list(saved) == expected
    assert restore(student, {name: torch.ones(1) for name in saved}) == expected
    assert [name for name, tensor in student.state_dict().items() if tensor.item()] == expected


@pytest.mark.parametrize("words", ["decoder", "backbone+encoder+decoder", "transformer", "embed"])
def test_any_kept_words(words: str) -> None:
    data = load_golden("reinit")
    student = Named({name: torch.zeros(1) for name in data["keys"]})
    whole = reinit_state(student, "all")
    key = "is_reinit" if words == "decoder" else f"is_reinit/{words}"
    before = dict(whole)
    assert restore(student, whole, keep=words.split("+")) == data["keys"][data[key]].tolist()
    assert whole == before  # the published function changes its argument; ours does not


def test_published_list_of_the_real_model() -> None:
    lines = (GOLDEN / "state_dict_keys_r50_teaching_student.txt").read_text().splitlines()
    student = Named({line.split("\t")[0]: torch.zeros(1) for line in lines if not line.startswith("#")})
    listed = [
        line for line in (GOLDEN / "reinit_keys_r50.txt").read_text().splitlines() if not line.startswith("#")
    ]
    assert set(reinit_state(student)) == set(listed) and len(listed) == 429
    assert kept_words("B+E") == ("decoder",)
