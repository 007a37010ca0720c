from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import mrt, refused
from mrt_cli import demo
from mrt_cli.console import clock, figure


def settings(command: str, *more: object) -> dict:
    """The settings that --dry-run prints."""
    result = mrt(command, *more, "--dry-run")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.mark.parametrize(
    ("words", "preset", "source", "target"),
    [
        ("adapt --target foggy", "city2foggy", "cityscapes", "foggy"),
        ("adapt --target cityscapes", "sim2city", "sim10k", "cityscapes"),
        ("adapt --target bdd100k", "city2bdd", "cityscapes", "bdd100k"),
        ("adapt --target synthetic-foggy", "small", "synthetic-clear", "synthetic-foggy"),
        ("adapt --target synthetic-night", "small", "synthetic-clear", "synthetic-night"),
        ("adapt --target synth-foggy", "synth2foggy", "synth-clear", "synth-foggy"),
        ("adapt --target synth-rain", "synth2rain", "synth-clear", "synth-rain"),
        ("pretrain-source --source synth-clear", "synth2foggy", "synth-clear", "synth-foggy"),
        ("adapt --target foggy --source synthetic-clear", "city2foggy", "synthetic-clear", "foggy"),
        ("adapt --target mars --source venus --preset city2foggy", "city2foggy", "venus", "mars"),
        ("adapt --preset sim2city", "sim2city", "sim10k", "cityscapes"),
        ("pretrain-source", "city2foggy", "cityscapes", "foggy"),
        ("pretrain-source --source sim10k", "sim2city", "sim10k", "cityscapes"),
        ("pretrain-source --source synthetic-clear", "small", "synthetic-clear", "synthetic-foggy"),
        ("adapt --source mine --target camera", "own", "mine", "camera"),
        ("pretrain-source --source mine", "own", "mine", "target"),
    ],
)
def test_data_sets_choose_the_preset(words, preset, source, target, somewhere):
    found = settings(words)
    assert (found["preset"], found["data"]["source"], found["data"]["target"]) == (preset, source, target)
    assert not list(somewhere.iterdir())


def test_options_and_set_reach_the_settings():
    command = "adapt --target foggy --seed 7 --device cpu --amp bf16 --init hf:a/b"
    found = settings(f"{command} --set mae.mask_ratio=0.5 teach.epochs=3 --set retrain.every=0")
    assert (found["seed"], found["init"]) == (7, "hf:a/b")
    assert (found["engine"]["device"], found["engine"]["amp"]) == ("cpu", "bf16")
    assert (found["mae"]["mask_ratio"], found["teach"]["epochs"], found["retrain"]["every"]) == (0.5, 3, 0)


def test_a_dry_run_looks_at_the_weights_it_would_start_from():
    assert "no run folder" in refused("adapt --target foggy --init a/b --dry-run")
    message = refused("adapt --target foggy --init small-source --dry-run")
    assert "small-source: is of another network" in message
    assert "--set model.backbone=tf_efficientnet_lite0" in message
    assert settings("adapt --target synthetic-foggy --init small-source")["init"] == "small-source"


def test_what_was_not_said_is_said():
    result = mrt("adapt --source mine --target camera")
    assert "Not said, so taken: preset own (settings for your own data), method limited," in result.stdout
    assert result.exit_code == 2 and "No data set 'mine'" in result.stderr


def test_an_ablation_lists_its_grid():
    result = mrt("ablate --mask-ratio 0.5 0.8 --axis teach.epochs 1 2 --seeds 0 1 --dry-run")
    assert result.exit_code == 0 and result.output.count("to run") == 8
    assert "8 trials of preset small" in result.output
    same = mrt("ablate --mask-ratio 0.5 0.50 --dry-run")
    assert "1 trials" in same.output
    compared = mrt("ablate --baselines --dry-run").output
    for word in ("4 trials", "fair source-only", "oracle: target labels", "oracle: source + target labels"):
        assert word in compared


def test_every_study_of_the_paper_is_offered():
    from mrt_cli.ablate import STUDIES as OFFERED

    from mrt.ablate import STUDIES

    assert OFFERED.split(", ") == list(STUDIES)


@pytest.mark.parametrize(
    ("method", "dynamic", "use", "every"),
    [
        ("teacher", False, "none", 0),
        ("+dt", True, "none", 0),
        ("+mae", True, "branch", 0),
        ("+retrain", True, "none", 40),
        ("mrt", True, "branch", 40),
    ],
)
def test_a_method_is_a_set_of_settings(method, dynamic, use, every):
    command = f"adapt --target foggy --method {method}"
    found = settings(command)
    parts = (found["teacher"]["dynamic"], found["mae"]["use"], found["retrain"]["every"])
    assert parts == (dynamic, use, every)
    assert found["domain"]["enabled"] and found["teacher"]["pseudo_labels"]
    assert settings(f"{command} --set retrain.every=7")["retrain"]["every"] == 7


def test_augmentation_and_averaging_of_a_source_run():
    found = settings("pretrain-source --augment strong --ema")
    assert (found["pretrain"]["augment"], found["pretrain"]["ema"]) == ("strong", True)
    assert found["mae_stage"]["augment"] == "weak"
    fair = settings("pretrain-source --augment strong --ema --match-compute")
    assert fair["mae_stage"]["augment"] == fair["teach"]["augment"] == "strong"
    assert fair["pretrain"]["augment"] == "weak"


# pydantic is not listed, because typer may import it.
HEAVY = {"torch", "torchvision", "numpy", "timm", "scipy", "PIL", "mrt.config", "mrt.engine"}


@pytest.mark.parametrize(
    "command", ["--help", "--version", "adapt --help", "ablate --help", "prepare-data synthetic --help"]
)
def test_help_imports_nothing_heavy(command):
    code = (
        "import sys\nfrom mrt_cli.app import main\nsys.argv = ['mrt', *%r]\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        "print('\\nLOADED', *sorted(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code % command.split()], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not HEAVY & set(done.stdout.rpartition("LOADED")[2].split())


def test_a_dry_run_needs_no_torch():
    code = (
        "import sys\nfrom mrt_cli.app import main\n"
        "sys.argv = ['mrt', 'adapt', '--target', 'foggy', '--dry-run']\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\nassert 'torch' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_python_m_works_and_only_the_first_process_talks():
    command = [sys.executable, "-m", "mrt_cli", "adapt", "--target", "foggy", "--dry-run"]
    assert '"preset": "city2foggy"' in subprocess.run(command, capture_output=True, text=True).stdout
    options = {"capture_output": True, "text": True, "env": os.environ | {"RANK": "1"}}
    silent = subprocess.run(command, **options)
    assert (silent.returncode, silent.stdout) == (0, "")
    failing = subprocess.run([*command, "--seed", "3", "--amp", "x"], **options)
    assert failing.returncode == 2 and failing.stderr.startswith("mrt (process 1): ")


def test_figures_and_clocks():
    assert [figure(None), figure(43.21), figure(1.0, None)] == ["-", "43.2", "1.0"]
    assert figure(43.21, 1.04) == "43.2 ± 1.0"
    assert [clock(0.4), clock(75), clock(3700)] == ["0:00", "1:15", "1:01:40"]


def test_the_demo_shows_the_recorded_oracle_as_such(capsys):
    def column(mean: float, std: float | None = None) -> dict:
        return {"AP50": {"mean": mean, "std": std}, "AP50 bus": {"mean": None, "std": None}}

    figures = {
        "columns": {demo.FAIR: column(40.0), demo.ADAPTED: column(46.5)},
        "gain": column(6.5),
        "seeds": [0],
        "sha256": "a" * 64,
        "data": "synthetic-foggy",
        "split": "test",
        "caption": "fog",
    }
    columns = {**figures["columns"], demo.ORACLE: column(60.25, 1.5)}
    record = figures | {"columns": columns, "seeds": [0, 1, 2]}
    demo.show(figures, record)
    shown = capsys.readouterr().out
    for word in ("oracle (recorded)", "60.2 ± 1.5", "over seeds 0, 1, 2", "6.5"):
        assert word in shown
    assert "other images" not in shown
    demo.show(figures, record | {"sha256": "b" * 64})
    assert "other images" in capsys.readouterr().out
    demo.show(figures, None)
    assert "record" not in capsys.readouterr().out


def test_every_option_has_its_place_in_the_help():
    """In one of the groups, which a command shows in one order; a new option has to be put into one."""
    from mrt_cli.panels import PANELS, panel_of

    for command, names in json.loads(Path(__file__).with_name("options.json").read_text()).items():
        words = command.split()[1:]
        options = [name.split(" ")[0].rstrip(".").split("/")[0] for name in names if name.startswith("--")]
        if not words or not options:  # mrt itself, and the group of prepare-data
            continue
        placed = {option: panel_of(words[0], option) for option in options}
        assert set(placed.values()) <= set(PANELS)
        shown = mrt(" ".join([*words, "--help"])).output
        titles = [title for title in re.findall(r"(?m)^╭─ (\w+) ─", shown) if title != "Arguments"]
        assert titles == [panel for panel in PANELS if panel in {*placed.values(), "Machine"}], command


def test_the_help_of_adapt_says_what_is_taken_if_nothing_is_said():
    shown = " ".join(mrt("adapt --help").output.replace("│", " ").split())
    for words in ("Default: $MRT_DATA_ROOT", "Default: auto, a GPU if there is one", "Default: made from"):
        assert words in shown


def test_the_help_has_the_first_words_of_each_command():
    """They stand in one table, so that none of the commands has to be imported for it."""
    from mrt_cli.app import COMMANDS, load

    for name, entry in COMMANDS.items():
        assert " ".join(load(name).help.split()).startswith(entry.line), name
