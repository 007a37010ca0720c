"""What runs and results tell of the code and the machine they come from, and how a table sums that up."""

from __future__ import annotations

import csv
import io
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from mrt import ablate
from mrt.engine import folder
from mrt.engine.distributed import World
from mrt.engine.folder import provenance

HERE = {"mrt": "1", "commit": "abc", "python": "3.11", "torch": "2.9", "device": "x86_64", "op": "cpu"}
ROWS = ("one", "two", "three")


def table(trained: list[list], measured: list) -> dict:
    """A report on three rows; the environments of each row's two stages, and of its measurement."""
    metrics = {"AP50": 1.0, "AP": 1.0, "AP75": 1.0}
    results = [
        {
            "row": {"name": name, "settings": {}, "end": "teach", "paper": None, "note": ""},
            "seed": 0,
            "node": f"teach-{name}",
            "trained": {f"mae-{name}": [stages[0]], f"teach-{name}": [stages[1]]},
            "measured": environment,
            "metrics": metrics,
        }
        for name, stages, environment in zip(ROWS, trained, measured, strict=True)
    ]
    (trial, *_) = ablate.Planner(Path("nowhere"), "val").trials([ablate.Row("x")], [0], "small", [], {})
    about = {"preset": "small", "smoke": False}
    return ablate.make_report(results, [trial], title="T", subject="row", base="one", about=about)


def test_trials_of_one_environment_are_told_with_it_once():
    notes = ablate.notes(table([[HERE, HERE]] * 3, [HERE] * 3))
    words = "mrt 1, commit abc, python 3.11, torch 2.9, device x86_64, op cpu"
    assert f"trained and measured with {words}" in notes and not any("MIXED" in note for note in notes)


def test_a_mixture_is_marked_with_what_differs_and_whose_it_is():
    there = {**HERE, "commit": "def", "device": "NVIDIA H200", "op": "cuda"}
    report = table([[HERE, HERE], [HERE, there], [there, None]], [HERE, HERE, {**HERE, "commit": None}])
    notes = ablate.notes(report)
    assert "trained with mrt 1, python 3.11, torch 2.9" in notes
    assert "MIXED: trained at different commits: abc (one, two); def (two, three)" in notes
    assert "MIXED: trained on different devices: x86_64 (one, two); NVIDIA H200 (two, three)" in notes
    assert "MIXED: measured at different commits: abc (one, two); unknown (three)" in notes
    assert "measured with mrt 1, python 3.11, torch 2.9, device x86_64, op cpu" in notes
    assert "not recorded what these were trained with: three" in notes
    one, two, three = csv.DictReader(io.StringIO(ablate.to_csv(report)))
    assert (one["trained: commit"], two["trained: commit"]) == ("abc", "abc; def")
    assert three["trained: commit"] == "def; not recorded" and three["measured: commit"] == "unknown"
    assert "MIXED: trained at different commits" in ablate.to_markdown(report)


def test_a_device_that_is_named_is_the_one_on_record(monkeypatch):
    """As on a machine with a GPU, where a run is told to take the CPU."""
    plain = provenance()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "a GPU")
    monkeypatch.setattr(folder, "backend", lambda tensor: f"for {tensor.device.type}")
    found = provenance(torch.device("cpu"))
    assert (found["device_type"], found["op"]) == ("cpu", "for cpu") and found["device"] != "a GPU"
    nothing = torch.empty(0)
    monkeypatch.setattr(torch, "empty", lambda *_, device: nothing)
    assert provenance()["device"] == provenance(torch.device("cuda"))["device"] == "a GPU"
    assert provenance()["device_type"] == "cuda" and plain.keys() == found.keys()


def git(where: Path, *words: str) -> str:
    own = {key: text for key, text in os.environ.items() if not key.startswith("GIT_")}
    who = ("-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "commit.gpgsign=false")
    done = subprocess.run(
        ["git", "-C", where, *who, *words], env=own, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path):
    """``repository(name, file)``: a repository in which ``file`` is tracked; its folder and its commit."""

    def make(name: str, *files: str) -> tuple[Path, str]:
        root = tmp_path / name
        root.mkdir()
        git(root, "init", "-q")
        for file in files:
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            (root / file).write_text(name)
            git(root, "add", file)
        git(root, "commit", "-q", "-m", name)
        return root, git(root, "describe", "--always")

    return make


CHECKOUT = ("mrt/engine/folder.py", "cli/app.py", "csrc/op.cpp")


def commit_of(root: Path, monkeypatch) -> str | None:
    monkeypatch.setattr(folder, "__file__", str(root / "mrt" / "engine" / "folder.py"))
    return folder._commit()


def copy_into(place: Path) -> None:
    (place / "mrt" / "engine").mkdir(parents=True)
    shutil.copy(folder.__file__, place / "mrt" / "engine" / "folder.py")


def test_the_commit_is_that_of_mrts_own_checkout(repository, monkeypatch, tmp_path):
    root, commit = repository("mine", *CHECKOUT)
    assert commit_of(root, monkeypatch) == commit
    (root / CHECKOUT[0]).write_text("changed")
    assert commit_of(root, monkeypatch) == f"{commit}-dirty"
    git(root, "checkout", "-q", "--", ".")
    git(root, "worktree", "add", "-q", str(tmp_path / "tree"))
    assert commit_of(tmp_path / "tree", monkeypatch) == commit
    (tmp_path / "link").symlink_to(root)
    assert commit_of(tmp_path / "link", monkeypatch) == commit


def test_another_projects_commit_is_not_mrts(repository, monkeypatch):
    project, _ = repository("project", "thesis.tex")
    packages = project / ".venv" / "lib" / "site-packages"
    for place in (packages, project):
        copy_into(place)
        assert commit_of(place, monkeypatch) is None, place
    git(project, "add", "mrt")
    git(project, "commit", "-q", "-m", "a copy of mrt")
    assert commit_of(project, monkeypatch) is None


@pytest.mark.parametrize("name", ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_CEILING_DIRECTORIES"])
def test_gits_variables_do_not_mislead(repository, monkeypatch, name):
    root, commit = repository("mine", *CHECKOUT)
    other, its = repository("other", *CHECKOUT, "more")
    monkeypatch.setenv("GIT_DIR" if name == "GIT_WORK_TREE" else name, str(other / ".git"))
    if name == "GIT_WORK_TREE":
        monkeypatch.setenv(name, str(root))
    assert commit_of(root, monkeypatch) == commit != its


def test_without_git_there_is_no_commit(repository, monkeypatch):
    root, _ = repository("mine", *CHECKOUT)
    monkeypatch.setenv("PATH", str(root))
    assert commit_of(root, monkeypatch) is None


def test_a_mean_over_processes_leaves_what_it_is_given(monkeypatch):
    monkeypatch.setattr(dist, "all_reduce", lambda tensor: tensor.mul_(3))
    mine = torch.tensor([1.0, 2.0])
    assert World(0, 2, torch.device("cpu")).mean(mine).tolist() == [1.5, 3.0] and mine.tolist() == [1.0, 2.0]
    monkeypatch.undo()
    alone = World(0, 1, torch.device("cpu")).mean(mine)
    assert alone.tolist() == mine.tolist() and alone.data_ptr() != mine.data_ptr()
