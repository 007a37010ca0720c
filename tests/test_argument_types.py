"""What Python callers give, held against annotations."""

from __future__ import annotations

import inspect
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mrt
from mrt.arguments import checked
from mrt.errors import MrtError


@checked
def call(
    text: str = "",
    *,
    whole: int = 0,
    number: float | Mapping[str, float] | None = None,
    yes: bool = False,
    words: Sequence[str] | None = None,
    names: Collection[str] = (),
    place: Path | str = "",
    anything: Any = None,
    device: str | torch.device = "cpu",
    **more: int,
) -> str:
    """Says what it got."""
    return f"{text} {whole}"


FIT = [
    {"whole": np.int64(3)},
    {"whole": torch.tensor(3)},
    {"whole": np.array(3)},
    {"number": 1},
    {"number": np.float32(0.5)},
    {"number": torch.tensor(0.5)},
    {"number": {"car": 0.5}},
    {"number": float("nan")},  # a number, if not one that fits: not looked at here
    {"yes": True},
    {"words": ["a"]},
    {"words": ("a",)},
    {"names": {"a"}},
    {"names": {"a": 1}.keys()},
    {"place": "a"},
    {"place": Path("a")},
    {"anything": object()},
    {"device": torch.device("cpu")},
]


@pytest.mark.parametrize("given", FIT, ids=str)
def test_what_fits_is_passed_on(given):
    assert call("a", **given) == f"a {int(given.get('whole', 0))}"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"text": 5}, "text = 5: is a int\ngive a text"),
        ({"whole": 2.0}, "whole = 2.0: is a float\ngive a whole number"),
        ({"whole": True}, "whole = True: is a bool"),
        ({"whole": None}, "whole = None"),
        ({"whole": np.array([3])}, "whole = array([3])"),
        ({"number": "0.5"}, "give a number or a mapping, such as a dict, from a text to a number or None"),
        ({"number": True}, "number = True"),
        ({"number": [0.5]}, "number = [0.5]: is a list"),
        ({"number": {"car": "0.5"}}, "number = {'car': '0.5'}"),
        ({"number": {2: 0.5}}, "number = {2: 0.5}"),
        ({"number": torch.tensor([0.5])}, "number = tensor([0.5000])"),
        ({"yes": "no"}, "yes = 'no': is a str\ngive True or False"),
        ({"words": "car"}, "words = 'car': is a str\ngive a list with a text each or None"),
        ({"words": [2]}, "words = [2]: is a list"),
        ({"names": {"a": 1}}, "names = {'a': 1}: is a dict"),
        ({"place": 5}, "give a path or a text"),
        ({"device": 0}, "give a text or a device"),
        ({"text": b"x" * 200}, "xxx...: is a bytes"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_named(given, message):
    with pytest.raises(MrtError, match=re.escape(message)):
        call(**given)


def test_other_mistakes_stay_pythons_own_and_the_signature_stays():
    with pytest.raises(TypeError, match=r"call\(\) takes from 0 to 1 positional"):
        call("a", 1)
    assert next(iter(inspect.signature(call).parameters)) == "text" and call.__doc__ == "Says what it got."


def test_names_may_be_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("target", "source", "init"):
        with pytest.raises(MrtError, match=r"^(?!.*is a PosixPath)"):
            mrt.adapt(**{"preset": "small", name: Path("nothing/there")})
    with pytest.raises(MrtError, match="No data set 'nothing'"):
        mrt.evaluate("small-source", Path("nothing"))


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("load", {"where": 5}, "where = 5"),
        ("load", {"where": "small-source", "device": None}, "device = None"),
        ("load", {"where": "small-source", "which": "best"}, "which = 'best': no network of a run"),
        ("load", {"where": "small-source", "run_root": 5}, "run_root = 5"),
        ("adapt", {"target": 5}, "target = 5: is a int\ngive a text or a path or None"),
        ("adapt", {"settings": [1]}, "settings = [1]"),
        ("adapt", {"settings": {1: 2}}, "settings = {1: 2}"),
        ("adapt", {"stage": "teach"}, "stage = 'teach': is a str\ngive a list with a text each"),
        ("adapt", {"class_map": "x"}, "class_map = 'x'"),
        ("adapt", {"resume": "yes"}, "resume = 'yes'"),
        ("adapt", {"watcher": 5}, "give a Watcher or None"),
        ("pretrain_source", {"preset": 5}, "preset = 5"),
        ("evaluate", {"where": "small-source", "data": ["a"]}, "data = ['a']"),
        ("evaluate", {"where": "small-source", "data": "a", "which": "best"}, "which = 'best'"),
        ("export", {"where": "small-source", "format": None}, "format = None"),
        ("export", {"where": "small-source", "format": "onnx", "out": 5}, "out = 5"),
        ("export", {"where": "small-source", "format": "onnx", "size": "64x64"}, "size = '64x64'"),
        ("export", {"where": "small-source", "format": "onnx", "size": (64,)}, "size = (64,)"),
    ],
    ids=str,
)
def test_the_functions_of_mrt_name_the_argument(name, given, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MrtError, match=re.escape(message)):
        getattr(mrt, name)(**given)
    assert not list(tmp_path.iterdir())
