from __future__ import annotations

from typing import Annotated

import pytest
import typer
from mrt_cli.arguments import AXES, AxisCommand, ListCommand, is_option
from typer.testing import CliRunner


@pytest.mark.parametrize("word", ["0", "-1", "-.5", "-", "a"])
def test_negative_numbers_are_values(word):
    assert not is_option(word)


@pytest.mark.parametrize("word", ["--seeds", "-h"])
def test_options_are_no_values(word):
    assert is_option(word)


def run(cls, words: str) -> dict:
    app = typer.Typer()
    seen = {}

    @app.command(cls=cls)
    def command(
        context: typer.Context,
        seeds: Annotated[list[int] | None, typer.Option()] = None,
        axis: Annotated[list[str] | None, typer.Option()] = None,
        name: str = "none",
        dry: Annotated[bool, typer.Option("--dry")] = False,
    ) -> None:
        seen.update(seeds=list(seeds or []), name=name, dry=dry, axes=context.meta.get(AXES))

    result = CliRunner().invoke(app, words.split())
    return seen | {"code": result.exit_code}


def test_a_list_option_takes_all_values_that_follow():
    assert run(ListCommand, "--seeds 0 -1 2 --name x")["seeds"] == [0, -1, 2]
    assert run(ListCommand, "--seeds 0 --dry --seeds 5")["seeds"] == [0, 5]
    assert run(ListCommand, "--seeds=3")["seeds"] == [3]


def test_a_list_option_without_a_value_and_stray_words_are_usage_errors():
    assert run(ListCommand, "--seeds")["code"] == 2
    assert run(ListCommand, "--seeds --dry")["code"] == 2
    assert run(ListCommand, "stray")["code"] == 2
    assert run(ListCommand, "--name x stray")["code"] == 2


def test_unknown_options_are_axes_in_any_order():
    seen = run(AxisCommand, "--mask-ratio 0.5 0.8 --seeds 1 2 --decay none --name n --axis a.b -1 2 --dry")
    assert seen["axes"] == [("mask-ratio", ["0.5", "0.8"]), ("decay", ["none"]), ("a.b", ["-1", "2"])]
    assert (seen["seeds"], seen["name"], seen["dry"]) == ([1, 2], "n", True)


def test_axes_may_be_written_with_an_equals_sign():
    axes = run(AxisCommand, "--mask-ratio=0.5 0.8 --axis=a.b 1")["axes"]
    assert axes == [("mask-ratio", ["0.5", "0.8"]), ("a.b", ["1"])]


def test_axes_without_values_are_kept_for_a_message():
    assert run(AxisCommand, "--mask-ratio")["axes"] == [("mask-ratio", [])]
    assert run(AxisCommand, "--axis")["axes"] == [("", [])]
    assert run(AxisCommand, "stray")["code"] == 2
