"""``mrt report`` on the command line: the runs it finds, where it writes, and its errors."""

from __future__ import annotations

import json
import shutil

import pytest
from command_line import mrt, refused

from mrt.engine.facts import read_facts, write_facts


@pytest.fixture
def node(runs, somewhere):
    """A run root whose only run is an ablation's node with a result."""
    folder = somewhere / "runs" / "ablate" / "nodes" / "teach-0123456789ab"
    shutil.copytree(runs / "small-source", folder)
    (folder / "metrics.jsonl").unlink()
    facts = read_facts(folder)
    facts.pop("logs", None)  # which says that there was a log, as checkpoints do
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    write_facts(folder, facts)
    classes = facts["classes"]
    per_class = {name: {"AP": None, "AP50": 41.24, "AP75": None, "num_boxes": 1} for name in classes}
    data = {"name": "synthetic-foggy", "split": "val", "sha256": "f00"}
    metrics = {"AP": 20.0, "AP50": 41.24, "AP75": None, "per_class": per_class}
    result = {"split": "val", "data": data, "node": folder.name, "network": "teacher", "metrics": metrics}
    (folder / "result-val-01234567.json").write_text(json.dumps(result))
    return folder


def test_a_node_of_an_ablation_is_a_run_by_its_name_or_path(node, worlds, somewhere):
    folders = ["--out", somewhere / "out", "--data-root", somewhere / "nowhere"]
    for name in (node.name, f"ablate/nodes/{node.name}", node):
        result = mrt("report --quick", name, *folders)
        assert result.exit_code == 0, result.output
        page = (somewhere / "out" / "report.html").read_text()
        assert f"Report on {node.name}" in page and "the card of synthetic-clear: it is not in" in page


def test_a_nodes_result_is_what_ablate_measured(node, worlds, somewhere):
    card = json.loads((worlds / "synthetic-foggy" / "dataset.json").read_text())
    result = json.loads((node / "result-val-01234567.json").read_text())
    result["data"]["sha256"] = card["splits"]["val"]["sha256"]
    (node / "result-val-01234567.json").write_text(json.dumps(result))
    assert mrt("report", node, "--quick", "--data-root", worlds).exit_code == 0
    page = (node / "report.html").read_text()
    assert 'data-figure="AP50">41.2<' in page and "from result-val-01234567.json" in page


def test_a_report_lies_in_its_runs_folder(runs, worlds, somewhere):
    root = somewhere / "runs"
    shutil.copytree(runs / "small-source", root / "first")
    result = mrt("report", "first", "--quick", "--data-root", worlds)
    assert result.exit_code == 0 and (root / "first" / "report.html").is_file(), result.output
    assert (root / "first" / "figures" / "losses.svg").is_file()


def test_what_is_refused(runs, somewhere):
    assert "not a run folder" in refused("report", "nothing")
    assert "not a run folder" in refused("report", somewhere)
