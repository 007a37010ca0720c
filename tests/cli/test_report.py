"""``mrt report`` from the command line: which runs it finds, where it writes, what it refuses."""

from __future__ import annotations

import json
import shutil

import pytest
from command_line import mrt, refused


@pytest.fixture
def trial(runs, somewhere):
    """A run root whose only run is an ablation's trial with a result."""
    folder = somewhere / "runs" / "ablate" / "trials" / "0123456789abcdef"
    shutil.copytree(runs / "demo-source", folder)
    (folder / "metrics.jsonl").unlink()
    facts = json.loads((folder / "run.json").read_text())
    facts["data"]["target"] = {**facts["data"]["source"], "name": "synthetic-foggy", "sha256": {"val": "f00"}}
    (folder / "run.json").write_text(json.dumps(facts))
    metrics = {"AP": 20.0, "AP50": 41.24, "AP75": None, "per_class": {}}
    result = {"settings": {"mae.mask_ratio": 0.5}, "seed": 3, "data": {"synthetic-foggy/val": "f00"}, "metrics": metrics}
    (folder / "result-val.json").write_text(json.dumps({**result, "metrics": {**metrics, "per_class": _classes(facts)}}))
    return folder


def _classes(facts: dict) -> dict:
    return {name: {"AP": None, "AP50": 41.24, "AP75": None, "num_boxes": 1} for name in facts["classes"]}


def test_a_trial_of_an_ablation_is_a_run_by_its_name_or_path(trial, somewhere):
    for name in (trial.name, f"ablate/trials/{trial.name}", trial):
        result = mrt("report", name, "--quick", "--out", somewhere / "out")
        assert result.exit_code == 0, result.output
        page = (somewhere / "out" / "report.html").read_text()
        assert "Report on mask-ratio 0.5, seed 3" in page and 'data-figure="AP50">41.2<' in page


def test_a_report_lies_in_its_runs_folder(runs, worlds, somewhere):
    root = somewhere / "runs"
    shutil.copytree(runs / "demo-source", root / "first")
    result = mrt("report", "first", "--quick", "--data-root", worlds)
    assert result.exit_code == 0 and (root / "first" / "report.html").is_file(), result.output
    assert (root / "first" / "figures" / "losses.svg").is_file()


def test_what_is_refused(runs, somewhere):
    assert "not a run folder" in refused("report", "nothing")
    assert "not a run folder" in refused("report", somewhere)
