"""Trials and the stages they are made of. A stage is a node; what several trials share is trained once.

A node's digest covers the settings that can change its result, the kind of device (CPU or GPU), the data it
reads and its parent's digest, and nothing else. So rows that differ in ``mae.decay`` share stage 2, rows that
differ in ``mae.mask_ratio`` share stage 1, and trials of different studies share whatever is the same in
both. Two runs of the same node give the same weights, and a stage gives the same weights as a node and within
one run of ``mrt adapt`` (tests/engine/test_stage_by_stage.py).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mrt import plugins
from mrt.ablate.curves import images_per_step
from mrt.ablate.device import device_kind, trained_on
from mrt.ablate.studies import Row, row_config
from mrt.config import AUTO, MACHINE_KEYS, Config
from mrt.data.card import DatasetCard, file_sha256
from mrt.data.registry import find_dataset
from mrt.engine.facts import is_run, read_facts, stored_settings
from mrt.errors import MrtError
from mrt.section import KINDS

STAGE_OF = {
    "source": "pretrain",
    "mae": "mae",
    "teach": "teach",
    "fair": "teach",
    "oracle-target": "teach",
    "oracle-source+target": "teach",
}


@dataclass(frozen=True)
class Node:
    """One stage of one or more trials.

    Attributes:
        kind: "given" (weights that are there), or one of :data:`STAGE_OF`.
        digest: sha256, see the module.
        config: what it is trained with. parent: whose weights it starts from.
        place: where its weights are, if somewhere else than in its folder.
    """

    kind: str
    digest: str
    config: Config
    parent: Node | None = None
    place: str | None = None

    @property
    def device(self) -> str:
        """The kind of device it is for, "cpu" or "cuda"."""
        return device_kind(self.config.engine.device)

    @property
    def chain(self) -> list[Node]:
        """The nodes from the first stage to this one."""
        return [*(self.parent.chain if self.parent else ()), self]

    @property
    def name(self) -> str:
        return f"{self.kind.replace('+', '-')}-{self.digest[:12]}"

    def folder(self, root: Path) -> Path:
        return root / "nodes" / self.name

    def weights(self, root: Path) -> str:
        """What a run that starts from it is given as ``init``."""
        return self.place or str(self.folder(root))

    def way(self, root: Path) -> list[tuple[str, int]]:
        """Folders of the chain's runs, with the images of a step; 0 for what adaptation starts from."""
        before = ("given", "source")
        return [
            (node.weights(root), 0 if node.kind in before else images_per_step(node.config, node.kind))
            for node in self.chain
        ]

    def is_trained(self, root: Path) -> bool:
        if self.place:
            return True
        folder = self.folder(root)
        return is_run(folder) and STAGE_OF[self.kind] in read_facts(folder)["finished"]


@dataclass(frozen=True)
class Trial:
    """A row with a seed: the detector at ``node`` is measured on ``split`` of ``config``'s target."""

    row: Row
    config: Config
    node: Node
    split: str
    data: Mapping[str, Any]  # the facts of the split
    results: Path | None = None  # a folder of results that are kept, and taken where they are there
    select_by: str | None = None  # a signal: its choice among the kept teachers is measured, too

    @property
    def title(self) -> str:
        return f"{self.row.name}, seed {self.config.seed}"

    @property
    def learned_from(self) -> set[str]:
        """The domains, "source" and "target", whose labels its stages learn from; none if all is trained."""
        found: set[str] = set()
        node: Node | None = self.node
        while node is not None and node.place is None:
            oracle = node.kind.startswith("oracle-")
            source = set() if node.kind == "teach" and node.config.method.source_free else {"source"}
            found |= set(node.kind.removeprefix("oracle-").split("+")) if oracle else source
            node = node.parent
        return found

    @property
    def view(self) -> dict[str, Any]:
        """The settings of the measurement, which are the row's own even where the detector is shared."""
        data = self.config.data
        keys = ("target", "class_map", "sides", "max_size")
        return {f"data.{key}": data.model_dump(mode="json")[key] for key in keys}

    @property
    def signals(self) -> list[str | None]:
        """By what its detectors are chosen that are measured: None, the last one; and ``select_by``."""
        return [None, self.select_by] if self.select_by and self.node.kind == "teach" else [None]

    def is_done(self, root: Path) -> bool:
        """Whether all of its results are there."""
        return all(self.result_file(root, by).is_file() for by in self.signals)

    def result_file(self, root: Path, by: str | None = None) -> Path:
        """Where the trial's result is, or will be: beside its run, unless only a kept one is there.

        A node has a result for every split, data set and image size that it was measured on; ``by``: that of
        the teacher that a signal takes.
        """
        file = self.node.folder(root) / self._result_name("selected" if by else "result", by)
        kept = self.kept_file(by)
        return kept if kept is not None and kept.is_file() and not file.is_file() else file

    def kept_file(self, by: str | None = None) -> Path | None:
        """Its place among the results that are kept."""
        return self.results / self._result_name(self.node.name, by) if self.results else None

    def _result_name(self, start: str, by: str | None) -> str:
        digest = _digest({"view": self.view, "split": self.split, "data": self.data})
        return f"{start}-{self.split}-{digest[:8]}{f'-by-{by}' if by else ''}.json"


def environments(folder: Path) -> list[dict[str, Any] | None]:
    """What a run was trained with, as it tells: at first, then where it was resumed with other things.

    None stands for a run that does not tell; weights that are no run's folder have no entry.
    """
    facts = read_facts(folder) if is_run(folder) else None
    return [] if facts is None else [facts.get("environment"), *facts.get("resumed", ())]


def content_hash(config: Config) -> str:
    """sha256 over everything that can change a run's result.

    That is every setting but the preset's name and the machine's (workers, ...), with the starting weights'
    content for their name, and the kind of device.
    """
    values = config.model_dump(mode="json")
    values.pop("preset")
    values["init"] = _fingerprint(config.init) if config.init else None
    names = values.pop("method")["plugins"]
    values |= {"plugins": [plugins.load(name).digest for name in names]} if names else {}
    values |= {"source_free": True} if config.method.source_free else {}
    for key in MACHINE_KEYS:
        values["engine"].pop(key)
    for name, section in config.sections().items():
        for key in section.idle():
            values[name].pop(key)
    return _digest({**values, **_on(config)})


def _on(config: Config) -> dict[str, str]:
    """What the kind of device adds to a digest: nothing for a CPU."""
    kind = device_kind(config.engine.device)
    return {} if kind == "cpu" else {"device": kind}


def _digest(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _fingerprint(init: str) -> str:
    """sha256 of the weights that an ``init`` names.

    The name itself for a model that is to be downloaded, or where there are none yet.
    """
    from mrt.engine.load import find_weights
    from mrt.models.hub import hub_name

    if hub_name(init) is not None and not Path(init).exists():
        return init
    try:
        weights = find_weights(init)
    except MrtError:
        return init
    if weights.is_dir():  # a Hugging Face model: its description counts, too
        files = [
            file for file in sorted(weights.iterdir()) if file.suffix in (".json", ".safetensors", ".bin")
        ]
        return _digest({file.name: file_sha256(file) for file in files})
    return file_sha256(weights)


def stage_settings(config: Config, kind: str) -> dict[str, Any]:
    """The settings that can change a stage's result, by section, without those that another switches off.

    Each section says which those are (:meth:`mrt.section.Section.acting`). A plug-in counts by the content of
    its file, in the stages that its parts take part in.
    """
    stage = kind if kind in KINDS else "fair"
    sections = config.sections()
    values = {name: acting for name, section in sections.items() if (acting := section.acting(stage, config))}
    rest = config.model_dump(mode="json", exclude=set(sections))
    values |= {name: value for name, value in rest.items() if stage in config.reach(name)}
    digests = []
    for plugin in map(plugins.load, config.method.plugins):
        on = [part.name for part in plugin.parts if _takes_part(part, kind, config)]
        for name in set(plugin.sections) - set(on):
            values.pop(name, None)
        if on or config.model.detector in plugin.detectors:
            digests.append(plugin.digest)
    return values | ({"plugins": digests} if digests else {})


def _takes_part(part: type, kind: str, config: Config) -> bool:
    """Whether a part of a plug-in is on in a kind of stage; baselines have none."""
    return kind in ("source", "mae", "teach") and STAGE_OF[kind] in part.stages and part().is_on(config)


def describe_data(config: Config, kind: str, data_root: Path) -> list[dict[str, Any]]:
    """The splits that a stage reads, with the sha256 of their annotations; not prepared: the name alone."""
    source_free = kind == "teach" and config.method.source_free
    used = [] if source_free else [(config.data.source, config.data.source_split)]
    found = [part() for plugin in map(plugins.load, config.method.plugins) for part in plugin.parts]
    more = [part for part in found if _takes_part(type(part), kind, config) and part.needs(config).target]
    if kind != "source" or more:
        used.append((config.data.target, config.data.target_split))
    reads = read_beside(config, kind, data_root)
    return [describe_split(name, split, data_root) for name, split in used] + ([reads] if reads else [])


def read_beside(config: Config, kind: str, data_root: Path) -> dict[str, str]:
    """What a stage reads beside the data sets: digests by setting; of what is not there yet, the setting."""
    found = {}
    for name, section in config.sections().items():
        try:
            found |= section.reads(kind, config, data_root)
        except MrtError:
            found |= {name: section.model_dump_json()}
    return found


def describe_split(name: str, split: str, data_root: Path) -> dict[str, Any]:
    """What identifies a split: names, what its card tells of it, and the sha256 of its annotations."""
    try:
        card: DatasetCard = find_dataset(name, data_root)
    except MrtError:
        return {"name": name, "split": split}
    part = card.splits.get(split)
    facts = (
        {"num_images": part.num_images, "num_boxes": part.num_boxes, "sha256": part.sha256} if part else {}
    )
    details = {"domain": card.domain, "details": card.details, "classes": list(card.classes)}
    return json.loads(json.dumps({"name": card.name, "split": split, **details, **facts}))


class Planner:
    """From rows and seeds to trials; equal nodes are one object.

    Args:
        data_root: where the data sets are.
        split: the target's split that is measured.
        shared_source: train stage 1 once, with the first seed, instead of once per seed.
        find_source: gives the folder where ``mrt pretrain-source`` would write a configuration's stage 1; a
            finished run there that is the same as a trial's stage 1 is taken for it.
        results, select_by: see :class:`Trial`.
    """

    def __init__(
        self,
        data_root: Path,
        split: str,
        shared_source: bool = False,
        find_source: Callable[[Config], Path | None] | None = None,
        results: Path | None = None,
        select_by: str | None = None,
    ) -> None:
        self.data_root, self.split, self.results = data_root, split, results
        self.select_by = select_by
        self.shared_source, self.find_source = shared_source, find_source
        self._nodes: dict[str, Node] = {}
        self._given_digests: dict[str, str] = {}

    def trials(
        self,
        rows: Sequence[Row],
        seeds: Sequence[int],
        preset: str | Path,
        overrides: Sequence[str],
        changes: Mapping[str, Any],
    ) -> list[Trial]:
        """Every row with every seed, row by row."""
        found = []
        for row in rows:
            for seed in seeds:
                config = row_config(row, preset, overrides, {**changes, "seed": seed})
                if config.engine.accumulate == AUTO:
                    raise MrtError(
                        "mrt ablate: engine.batch_size=auto would choose anew for each run, and runs of a "
                        "table are compared",
                        "give a number to all: --set engine.accumulate=2",
                    )
                data = describe_split(config.data.target, self.split, self.data_root)
                node = self.chain(config, row.end, seeds[0])
                found.append(Trial(row, config, node, self.split, data, self.results, self.select_by))
        return found

    def chain(self, config: Config, end: str, first_seed: int) -> Node:
        """The node of a configuration's stage ``end``, with all that come before it."""
        start = self._given(config) if config.init else self._source(config, first_seed)
        if end == "source":
            return start
        if end == "teach" and not config.method.source_free:
            start = self._node("mae", config, start)
        return self._node(end, config, start)

    def _given(self, config: Config) -> Node:
        if config.init not in self._given_digests:
            self._given_digests[config.init] = _fingerprint(config.init)
        digest, on = self._given_digests[config.init], _on(config)
        if on:
            digest = _digest({"weights": digest, **on})
        return self._nodes.setdefault(digest, Node("given", digest, config, place=config.init))

    def _source(self, config: Config, first_seed: int) -> Node:
        if self.shared_source:
            config = config.model_copy(update={"seed": first_seed})
        node = self._node("source", config, None)
        folder = self.find_source(config) if self.find_source and node.place is None else None
        if folder is not None and _is_that_source(folder, config, self._data(config, "source")):
            node = self._nodes[node.digest] = Node("source", node.digest, config, place=str(folder))
        return node

    def _data(self, config: Config, kind: str) -> list[dict[str, Any]]:
        return describe_data(config, kind, self.data_root)

    def _node(self, kind: str, config: Config, parent: Node | None) -> Node:
        facts = {"kind": kind, "settings": stage_settings(config, kind), "data": self._data(config, kind)}
        digest = _digest({**facts, **_on(config), "parent": parent.digest if parent else None})
        return self._nodes.setdefault(digest, Node(kind, digest, config, parent))


def _is_that_source(folder: Path, config: Config, data: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a folder holds a finished stage 1 with these settings on this data."""
    if not is_run(folder):
        return False
    try:
        facts, read = read_facts(folder), data[0]
    except MrtError:  # damaged: it is trained here, then
        return False
    if facts.get("command") != "pretrain-source" or "pretrain" not in facts.get("finished", ()):
        return False
    if any(facts.get(key) for key in ("init", "match_compute", "oracle")):
        return False
    if trained_on(folder) not in (None, device_kind(config.engine.device)):
        return False
    recorded = facts["data"].get("source", {"name": None})
    if recorded["name"] != read["name"] or recorded["sha256"].get(read["split"]) != read.get("sha256"):
        return False
    if facts.get("plugins", {}) != {name: plugins.load(name).digest for name in config.method.plugins}:
        return False
    try:
        trained = stored_settings(folder)
    except MrtError:  # such as one whose plug-in is gone, or one that was edited
        return False
    return stage_settings(trained, "source") == stage_settings(config, "source")
