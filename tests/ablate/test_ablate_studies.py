from __future__ import annotations

import json
from pathlib import Path

import pytest

from mrt.ablate import (
    BASELINES,
    METHODS,
    STUDIES,
    Axis,
    choose_base,
    choose_rows,
    find_key,
    find_study,
    grid_rows,
    make_axes,
    table_name,
)
from mrt.ablate.studies import METHOD_WORDS, row_config, setting
from mrt.config import known_keys, load_config
from mrt.errors import MrtError

PAPER = json.loads((Path(__file__).parent.parent / "golden" / "paper_tables.json").read_text())


def test_a_setting_is_found_by_its_last_name_or_its_whole_key():
    assert (
        find_key("mask-ratio")
        == find_key("mask_ratio")
        == find_key("mae.mask_ratio")
        == find_key("mae.mask-ratio")
        == "mae.mask_ratio"
    )
    assert all(find_key(key) == key for key in known_keys())
    with pytest.raises(MrtError, match=r"pretrain\.epochs, mae_stage\.epochs, teach\.epochs"):
        find_key("epochs")
    with pytest.raises(MrtError, match="did you mean --decay"):
        find_key("decai")


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ([("mask-ratio", [])], "no values"),
        ([("", ["1"])], "no setting is named"),
        ([("mask-ratio", ["1"]), ("mae.mask_ratio", ["2"])], "given twice"),
        ([("seed", ["1"])], "--seeds"),
    ],
)
def test_axes_that_make_no_sense(given, word):
    with pytest.raises(MrtError, match=word):
        make_axes(given)


def test_a_grid_is_every_combination_once():
    rows = grid_rows(
        [Axis("mae.mask_ratio", ("0.5", "0.80", "0.8")), Axis("mae.decay", ("hard", "linear"))],
        "small",
        ["teach.epochs=2"],
    )
    assert [row.name for row in rows] == [
        f"mask-ratio {ratio}, decay {decay}" for ratio in (0.5, 0.8) for decay in ("hard", "linear")
    ]
    configs = [
        row_config(row, "small", ["teach.epochs=2", "mae.mask_ratio=0.1"], {"seed": 3}) for row in rows
    ]
    assert [config.mae.mask_ratio for config in configs] == [0.5, 0.5, 0.8, 0.8], "a row's own settings win"
    assert all(config.teach.epochs == 2 and config.seed == 3 for config in configs)


def test_a_variant_as_an_axis_sets_what_follows_from_it():
    paper, published = grid_rows([Axis("mae.variant", ("paper", "published"))], "small")
    assert [row_config(row, "small").mae.mse_over for row in (paper, published)] == ["masked", "all"]


def table(rows: list[dict], *keys: str) -> dict[tuple, float]:
    return {tuple(row[key] for key in keys): row["mAP"] for row in rows}


def test_every_figure_of_the_papers_tables_stands_beside_its_row():
    def figures(study: str, key: str) -> dict:
        return {row.settings[key]: row.paper for row in STUDIES[study].rows}

    assert figures("mask-ratio", "mae.mask_ratio") == {
        float(key): value for key, value in PAPER["table5a_mask_ratio"].items()
    }
    decay = PAPER["table5b_lambda_mask_decay"]
    assert figures("decay", "mae.decay") == {
        "none": decay["No decay"],
        "linear": decay["Linear"],
        "hard": decay["Hard"],
    }
    data = PAPER["table5c_mae_training_data"]
    assert figures("mae-data", "mae.data") == {
        "source": data["Source"],
        "both": data["Source & Target"],
        "target": data["Target"],
    }
    use = PAPER["table5d_mae_usage"]
    assert figures("mae-use", "mae.use") == {
        "none": use["w/o MAE"],
        "pretrain": use["Pretrain"],
        "branch": use["MAE branch"],
    }
    init = PAPER["table6b_reinit_weights"]
    assert figures("retrain-init", "retrain.source") == {
        "random": init["random"],
        "source": init["source"],
        "mae": init["source+MAE"],
    }
    parts = {
        name: (
            "backbone" in name or name == "all",
            "encoder" in name or name == "all",
            "decoder" in name or name == "all",
        )
        for name in figures("retrain-parts", "retrain.parts")
    }
    modules = table(PAPER["table6a_retrained_modules"], "backbone", "encoder", "decoder")
    assert {name: modules[part] for name, part in parts.items()} == figures(
        "retrain-parts", "retrain.parts"
    ) and len(parts) == len(modules)


def test_the_components_are_the_papers():
    figures = {}
    for row in STUDIES["components"].rows:
        config = row_config(row, "city2foggy")
        baseline = row.end == "teach"
        dynamic = baseline and config.teacher.dynamic
        retrain = baseline and config.retrain.every > 0
        rebuilt = row.end != "source" and config.mae.use != "none"
        figures[(baseline, dynamic, retrain, rebuilt)] = row.paper
        assert config.domain.enabled and config.teacher.pseudo_labels
    assert figures == table(PAPER["table4_components_city2foggy_mAP50"], "baseline", "DT", "retrain", "MAE")


@pytest.mark.parametrize("name", STUDIES)
def test_rows_of_a_study_differ_in_what_it_is_about_and_its_base_is_one_of_them(name):
    study = find_study(name)
    names = [row.name for row in study.rows]
    assert len(set(names)) == len(names) and study.base in names
    for preset in ("city2foggy", "sim2city", "city2bdd", "small", "synth2foggy"):
        configs = [row_config(row, preset) for row in study.rows]
        assert len(
            {(config.to_json(), row.end) for config, row in zip(configs, study.rows, strict=True)}
        ) == len(names)
    if name not in ("methods", "components", "mae-variant"):
        first = study.rows[0].settings
        varied = [key for key in first if len({row.settings[key] for row in study.rows}) > 1]
        assert len(varied) == 1 and all(row.settings.keys() == first.keys() for row in study.rows)


def test_some_rows_of_a_study_in_its_order_with_baselines_by_name():
    rows = find_study("components").rows

    def names(wanted, baselines=False):
        return [row.name for row in choose_rows(rows, wanted, baselines=baselines)]

    oracles = [row.name for row in BASELINES]
    assert names(None) == [row.name for row in rows] and names(None, True) == names(None) + oracles
    assert names(["+ DT", "source", "+ DT"]) == ["source", "+ DT"]
    assert names(["+ DT"], True) == ["+ DT", *oracles]
    assert names(["fair source-only", "+ DT"]) == ["+ DT", "fair source-only"], "without --baselines"
    with pytest.raises(MrtError, match=r"--rows '\+ DTT': no row has this name") as error:
        choose_rows(rows, ["+ DT", "+ DTT"])
    assert "+ DT; + DT + MAE" in error.value.hint and "fair source-only" in error.value.hint
    few = choose_rows(rows, ["+ DT", "+ DT + MAE"])
    assert choose_base(few, None, "teacher-student") == "+ DT", "the study's base is not among them"
    assert choose_base(rows, None, "teacher-student") == "teacher-student"


def test_the_table_of_some_rows_has_a_name_of_its_own():
    assert table_name("components", None) == "components"
    assert table_name("components", ["+ DT + MAE", "source"]) == "components-dt-mae-source"
    long = [table_name("components", [f"a row of many words {'and more ' * 9}{number}"]) for number in (1, 2)]
    assert long[0] != long[1] and all(len(name) < 70 for name in long)


def test_the_study_of_methods_has_them_all_with_fair_baselines():
    rows = find_study("methods").rows
    assert [row.name for row in rows] == [*METHODS, "fair source-only", "oracle: target labels"]
    assert METHOD_WORDS.keys() == METHODS.keys()


def test_an_unknown_study_is_named_with_the_nearest():
    with pytest.raises(MrtError, match="did you mean components"):
        find_study("component")


def test_methods_are_settings_that_exist_and_the_whole_one_is_the_preset():
    for name, settings in METHODS.items():
        config = load_config("city2foggy", changes=settings)
        assert all(setting(config, key) == value for key, value in settings.items()), name
    assert load_config("city2foggy", changes=METHODS["mrt"]) == load_config("city2foggy")
    assert [row.end for row in BASELINES] == ["fair", "oracle-target", "oracle-source+target"]
