from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from mrt.ablate.nodes import content_hash, stage_settings
from mrt.config import Config, Settings, flag_name, known_keys, load_config, preset_names, validate
from mrt.errors import MrtError
from mrt.section import KINDS

# docs/method.md, "Stages and presets": (epochs, lr drop) of stage 1; (epochs, lr drop, lr) of stages 2 and 3;
# ...
PUBLISHED = {
    "city2foggy": {
        "data.source": "cityscapes",
        "data.target": "foggy",
        "pretrain": (50, 40),
        "mae_stage": (40, 30, 2e-4),
        "teach": (80, 80, 2e-4),
        "retrain.every": 40,
        "mae.decay_epoch": 10,
        "teacher.threshold_max": 0.45,
        "teacher.threshold_alpha": 0.5,
        "teacher.box_loss": False,
        "data.classes": None,
    },
    "sim2city": {
        "data.source": "sim10k",
        "data.target": "cityscapes",
        "pretrain": (50, 40),
        "mae_stage": (40, 20, 2e-4),
        "teach": (20, 20, 2e-4),
        "retrain.every": 10,
        "mae.decay_epoch": 10,
        "teacher.threshold_max": 0.5,
        "teacher.threshold_alpha": 0.5,
        "teacher.box_loss": True,
        "data.classes": ("car",),
    },
    "city2bdd": {
        "data.source": "cityscapes",
        "data.target": "bdd100k",
        "pretrain": (80, 60),
        "mae_stage": (20, 20, 2e-5),
        "teach": (20, 20, 2e-5),
        "retrain.every": 10,
        "mae.decay_epoch": 5,
        "teacher.threshold_max": 0.6,
        "teacher.threshold_alpha": 0.9,
        "teacher.box_loss": True,
        "data.classes": None,
    },
}
COMMON = {
    "model.backbone": "resnet50",
    "model.hidden_dim": 256,
    "model.num_heads": 8,
    "model.num_encoder_layers": 6,
    "model.num_decoder_layers": 6,
    "model.feedforward_dim": 1024,
    "model.num_levels": 4,
    "model.num_points": 4,
    "model.num_queries": 300,
    "model.dropout": 0.1,
    "model.box_refine": False,
    "model.two_stage": False,
    "model.freeze": "stem",
    "loss.class_weight": 2.0,
    "loss.box_weight": 5.0,
    "loss.giou_weight": 2.0,
    "loss.focal_alpha": 0.25,
    "loss.focal_gamma": 2.0,
    "domain.backbone_weight": 0.3,
    "domain.encoder_weight": 1.0,
    "domain.decoder_weight": 1.0,
    "domain.reversal": 1.0,
    "mae.use": "branch",
    "mae.data": "target",
    "mae.mask_ratio": 0.8,
    "mae.layers": 2,
    "mae.level": 2,
    "mae.weight": 1.0,
    "mae.decay": "hard",
    "mae.variant": "published",
    "mae.mse_over": "all",
    "mae.valid_ratios": "padding",
    "teacher.ema": 0.9996,
    "teacher.nms_iou": 0.7,
    "teacher.dynamic": True,
    "teacher.threshold_start": 0.3,
    "teacher.threshold_min": 0.25,
    "teacher.threshold_gamma": 0.9,
    "retrain.parts": "backbone+encoder",
    "retrain.source": "mae",
    "engine.batch_size": 8,
    "engine.weight_decay": 1e-4,
    "engine.clip": 0.5,
    "engine.backbone_lr_scale": 0.1,
    "engine.sampling_lr_scale": 0.1,
    "data.source_sides": (480, 512, 544, 576, 608, 640, 672),
    "data.sides": (800,),
    "data.max_size": 1333,
    "pretrain.lr": 2e-4,
    "teach.augment": "strong",
}


def value(config: Config, key: str):
    for part in key.split("."):
        config = getattr(config, part)
    return config


@pytest.mark.parametrize("preset", PUBLISHED)
def test_the_published_presets_carry_the_methods_table(preset):
    config = load_config(preset)
    assert config.preset == preset
    for key, expected in (COMMON | PUBLISHED[preset]).items():
        found = value(config, key)
        if isinstance(expected, tuple) and key in ("pretrain", "mae_stage", "teach"):
            found = (found.epochs, found.lr_drop, found.lr)[: len(expected)]
        assert found == expected, key


def test_every_preset_loads_and_is_listed():
    assert set(PUBLISHED) | {"demo", "small"} <= set(preset_names())
    for name in preset_names():
        assert load_config(name).preset == name


def test_a_configuration_is_frozen():
    with pytest.raises(ValidationError):
        load_config("small").seed = 3
    with pytest.raises(ValidationError):
        load_config("small").mae.mask_ratio = 0.1


def test_json_written_by_a_run_reads_back_as_the_same_configuration(tmp_path):
    config = load_config("sim2city", ["data.class_map.auto=car", "engine.amp=bf16"])
    path = tmp_path / "config.json"
    path.write_text(config.to_json())
    assert load_config(path) == config
    assert config.data.class_map == {"auto": "car"}


@pytest.mark.parametrize(
    ("text", "key", "expected"),
    [
        ("mae.mask_ratio=0.5", "mae.mask_ratio", 0.5),
        (" teach.epochs = 3", "teach.epochs", 3),
        ("model.box_refine=true", "model.box_refine", True),
        ("model.box_refine=false", "model.box_refine", False),
        ("data.sides=[600, 800]", "data.sides", (600, 800)),
        ("data.classes=['car']", "data.classes", ("car",)),
        ("data.classes=none", "data.classes", None),
        ("data.source=my-city", "data.source", "my-city"),
        ("init=/a/b=c.safetensors", "init", "/a/b=c.safetensors"),
        ("teacher.ignore_above=0.1", "teacher.ignore_above", 0.1),
        ("teach.lr=1e-3", "teach.lr", 1e-3),
        # words that are not "no value", although they read like it
        ("mae.decay=none", "mae.decay", "none"),
        ("mae.use=none", "mae.use", "none"),
        ("retrain.parts=none", "retrain.parts", "none"),
        ("model.weights=none", "model.weights", "none"),
    ],
)
def test_overrides_are_read_as_their_types(text, key, expected):
    assert value(load_config("city2foggy", [text]), key) == expected


def test_overrides_win_over_changes_and_the_last_one_wins():
    assert load_config("small", ["seed=3", "seed=4"], {"seed": 2}).seed == 4


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("mae.mask_ration=0.5", ["mae.mask_ration", "mae.mask_ratio"]),
        ("mask_ratio=0.5", ["mask_ratio", "mae.mask_ratio"]),
        ("mae.mask_ratio=1.5", ["mae.mask_ratio", "1.5", "less than 1"]),
        ("mae.mask_ratio=much", ["mae.mask_ratio", "much", "number"]),
        ("model.box_refine=maybe", ["model.box_refine", "maybe"]),
        ("teach.epochs=-1", ["teach.epochs", "-1"]),
        ("engine.amp=fp8", ["engine.amp", "fp8", "bf16"]),
        ("model.hidden_dim=100", ["100", "num_heads"]),
        ("engine.accumulate=3", ["batch_size", "accumulate"]),
        ("mae.level=9", ["mae.level", "9"]),
        ("teacher.threshold_min=0.9", ["threshold_min", "threshold_max"]),
        ("retrain.hold=40", ["retrain.hold 40", "less than retrain.every, 40"]),
        ("seed", ["seed", "key=value"]),
        ("=3", ["key=value"]),
    ],
)
def test_a_wrong_override_is_named(override, words):
    with pytest.raises(MrtError) as caught:
        load_config("city2foggy", [override])
    for word in words:
        assert word in str(caught.value)


def test_several_wrong_fields_are_one_line_each():
    with pytest.raises(MrtError) as caught:
        load_config("small", ["teach.epochs=x", "mae.mask_ratio=2"])
    assert "teach.epochs" in caught.value.message and "mae.mask_ratio" in caught.value.message
    assert len(caught.value.message.splitlines()) == 2


def test_wrong_files_and_presets_are_named(tmp_path: Path):
    with pytest.raises(MrtError, match="city2foggy"):
        load_config("city2fogy")
    with pytest.raises(MrtError, match=r"nowhere\.toml"):
        load_config(tmp_path / "nowhere.toml")
    for name, text, word in (
        ("a.toml", "seed = ", "TOML"),
        ("b.json", "{", "JSON"),
        ("c.json", "[1]", "list"),
        ("d.toml", "[mea]\nx=1", "mea"),
    ):
        path = tmp_path / name
        path.write_text(text)
        with pytest.raises(MrtError, match=word) as caught:
            load_config(path)
        assert name in str(caught.value)


def test_a_users_own_toml_is_a_preset(tmp_path: Path):
    path = tmp_path / "mine.toml"
    path.write_text("[data]\nsource = 'a'\ntarget = 'b'\n")
    config = load_config(path)
    assert (config.preset, config.data.source, config.data.target) == ("mine", "a", "b")


def test_unknown_keys_are_refused_inside_values_too():
    with pytest.raises(MrtError, match=r"unknown setting 'teach\.epoch'"):
        validate({"teach": {"epochs": 1, "epoch": 2}})


def test_roots_come_from_the_environment(monkeypatch):
    monkeypatch.delenv("MRT_DATA_ROOT", raising=False)
    assert Settings().data_root == Path("data")
    monkeypatch.setenv("MRT_DATA_ROOT", "/elsewhere")
    assert Settings().data_root == Path("/elsewhere")
    assert Settings(data_root=Path("here")).data_root == Path("here")


def test_every_key_is_known_and_has_a_flag():
    keys = known_keys()
    assert {"seed", "mae.mask_ratio", "retrain.parts", "teach.epochs"} <= set(keys) and len(keys) == len(
        set(keys)
    )
    assert flag_name("mae.mask_ratio") == "mask-ratio"
    dumped = json.loads(load_config("small").to_json())
    assert {
        f"{name}.{inner}" for name, part in dumped.items() if isinstance(part, dict) for inner in part
    } <= set(keys)


def write(folder: Path, text: str) -> Path:
    path = folder / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("stage", ["pretrain", "mae_stage", "teach"])
def test_a_part_of_a_section_keeps_the_papers_values_for_the_rest(tmp_path, stage):
    """A stage without ``augment`` became weak, with a rate that drops at epoch 40."""
    paper = getattr(Config(), stage)
    by_file = load_config(write(tmp_path, f"[{stage}]\nepochs = 7\n"))
    by_set = load_config(write(tmp_path, "seed = 0\n"), [f"{stage}.epochs=7"])
    for config in (by_file, by_set):
        assert getattr(config, stage) == paper.model_copy(update={"epochs": 7})
    assert (paper.augment, paper.lr_drop) == {
        "pretrain": ("weak", 40),
        "mae_stage": ("weak", 30),
        "teach": ("strong", 80),
    }[stage]


def test_every_section_may_be_given_in_part(tmp_path):
    whole = Config()
    for name, section in whole.sections().items():
        for key, value in section.model_dump(mode="json").items():
            if isinstance(value, bool | int | float) and key != "variant":
                given = load_config(write(tmp_path, "seed = 0\n"), [f"{name}.{key}={json.dumps(value)}"])
                assert given.model_copy(update={"preset": "custom"}) == whole, f"{name}.{key}"


@pytest.mark.parametrize(
    ("level", "levels", "words"),
    [
        (3, 4, "the backbone has 3 maps to rebuild; take 0 to 2"),
        (2, 1, None),
        (1, 1, "looks at the coarsest 1 of the backbone's 3 maps; take 2 "),
        (0, 2, "take 1 to 2"),
        (0, 3, None),
    ],
)
def test_a_level_that_cannot_be_rebuilt_is_refused_where_it_is_rebuilt(level, levels, words):
    settings = [f"mae.level={level}", f"model.num_levels={levels}"]
    if words is None:
        assert load_config("small", settings).mae.level == level
    else:
        with pytest.raises(MrtError, match=re.escape(words)) as error:
            load_config("small", settings)
        assert f"mae.level = {level}" in error.value.message
    assert load_config("small", [*settings, "mae.use=none"]).mae.level == level, "nothing is rebuilt"


def test_settings_of_before_are_read(tmp_path):
    """Schema 1 had no number, and a setting "ema" that did nothing in stages 2 and 3."""
    config = load_config("small", ["teach.epochs=9"])
    values = json.loads(config.to_json())
    assert values.pop("schema") == 2
    for stage in ("mae_stage", "teach"):
        values[stage]["ema"] = False
    path = tmp_path / "config.json"
    path.write_text(json.dumps(values))
    assert load_config(path) == config
    path.write_text(json.dumps({**values, "schema": 2}))
    with pytest.raises(MrtError, match=r"unknown setting 'mae_stage\.ema'"):
        load_config(path)


def test_an_inert_setting_changes_no_digest():
    """lr_drop belongs to its schedule; the small world's runs of before said 40 for stages 2 and 3."""
    now, before = load_config("small"), load_config("small", ["mae_stage.lr_drop=40", "teach.lr_drop=40"])
    assert content_hash(now) == content_hash(before)
    assert all(stage_settings(now, kind) == stage_settings(before, kind) for kind in KINDS)
    paper = load_config("city2foggy", ["teach.lr_drop=40"])
    assert content_hash(paper) != content_hash(load_config("city2foggy"))
    assert stage_settings(paper, "teach") != stage_settings(load_config("city2foggy"), "teach")


def test_settings_that_came_later_leave_digests_as_they_were():
    """Unset they do not count; set they do, in the stages that have the part."""
    plain, normalised = (load_config("small", changes={"mae.normalise": value}) for value in (False, True))
    for kind in ("mae", "teach"):
        assert "normalise" not in plain.mae.acting(kind, plain)
        assert normalised.mae.acting(kind, normalised)["normalise"] is True
    off = load_config("small", changes={"mae.normalise": True, "mae.use": "none"})
    assert not off.mae.acting("mae", off)
    looks = load_config("small", changes={"engine.shares_every": 7, "engine.keep_teachers": 3})
    assert looks.engine.acting("teach", looks) == plain.engine.acting("teach", plain)
