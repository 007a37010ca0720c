"""The report's sections, in their order. Each is there in every report; what it lacks, it says."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mrt.data.card import DatasetCard
from mrt.engine.folder import provenance
from mrt.evaluate.bootstrap import LEVEL, SAMPLES, differences, estimates, intervals
from mrt.evaluate.matching import match
from mrt.report import figures, looking
from mrt.report.collect import RunData, changed_settings, find_card, flatten, preset_of, start_of
from mrt.report.page import Block, Code, Facts, Headline, Note, Section, Table
from mrt.report.study import START, Study
from mrt.report.words import LOOKING, lacking, number, span_words, told, with_interval

METRICS = ("AP50", "AP", "AP75")


def stored_or_measured(study: Study, run: RunData) -> dict[str, Any] | None:
    """The figures of a run's last network: the stored evaluation on these annotations if there is one, else this report's own."""
    sha256 = study.card.split(study.split).sha256 if study.card else None
    judged = study.last.get(run.title)
    stored = run.result(study.data, study.split, sha256)
    if stored is not None:
        return {**{key: stored[key] for key in ("network", "data", "split", "sha256", "metrics")}, "file": stored["file"]}
    if judged is None or judged.metrics is None:
        return None
    where = {"network": judged.network, "data": study.card.name, "split": study.split, "sha256": sha256}
    return {**where, "metrics": judged.metrics.to_dict(), "file": None}


def headlines(study: Study) -> list[Headline]:
    """The last network of each run, and the gain over what it started from."""
    found = []
    for run in study.runs:
        result = study.record["runs"][run.title]["result"]
        if result is None:
            reason = study.missing.get("networks") or study.missing.get("data") or "the data set has no labels"
            found.append(Headline(run.title, [("AP50", "-")], f"No figures: {reason}."))
            continue
        texts = [(name, number(result["metrics"][name])) for name in ("AP50", "AP")]
        change = study.record["change"].get(run.title, {}).get("AP50", {}).get("value")
        if change is not None:
            texts.append((f"change in AP50 against {study.record['against']}", number(change, sign=True)))
        source = f"from {result['file']}" if result["file"] else "measured for this report"
        about = f"Last {result['network']} on {result['data']}, split {result['split']}, per cent; {source}."
        about += " THE RUN IS NOT FINISHED." if run.unfinished else ""
        found.append(Headline(run.title if study.several else f"Last {result['network']}", texts, about))
    return found


def results(study: Study) -> Section:
    """Table 1 of a paper: what the runs reach, by class too."""
    section = Section("results", "Results")
    rows, strong = [], []
    entries: list[tuple[str, str, dict[str, Any] | None]] = []
    if study.record["start"]:
        entries.append((START, f"start: {Path(study.record['start']['init']).name}", study.record["start"]))
    for run in study.runs:
        result = study.record["runs"][run.title]["result"]
        entries.append((run.title, f"{run.title} (last {result['network']})" if result else run.title, result))
    for key, title, result in entries:
        if key != START:
            strong.append(len(rows))
        bounds, change = study.record["intervals"].get(key, {}), study.record["change"].get(key, {})
        numbers = [with_interval(result["metrics"][name] if result else None, bounds.get(name)) for name in METRICS]
        rows.append([title, *numbers, with_interval(change.get("AP50", {}).get("value"), change.get("AP50"), sign=True)])
    for run in study.runs:
        best = run.best_epoch()
        if best is not None:
            split = run.config.data.validation_split
            what = f"{run.title}, {best['network']} at its best epoch on {split}: picked by {run.domain} labels ‡"
            rows.append([what, *(number(best[name]) for name in METRICS), "-"])
    picked = any(run.best_epoch() for run in study.runs)
    caption = "Per cent." + (f" Change in AP50 against {study.record['against']}." if study.record["change"] else "")
    if study.card and study.split in study.card.splits:
        caption = f"{study.card.name}, split {study.split}: {describe_split(study.card, study.split)}. {caption}"
    if study.record["intervals"]:
        caption += f" [low, high]: {100 * LEVEL:g} % of {SAMPLES} draws of the images; other training seeds are not in it."
    caption += " ‡ Selected on labels, on another split: no result, and not to be compared with one." if picked else ""
    section.blocks.append(Table(caption, ["", *METRICS, "change"], rows, strong=strong))
    for run in study.runs:
        if run.unfinished:
            done = ", ".join(run.facts["finished"]) or "none"
            text = f"{run.title} is not finished: stages done: {done}; to come: {', '.join(run.unfinished)}. Its figures are not its last."
            section.blocks.append(Note(text, warning=True))
    for run in study.runs:
        stored, judged = study.record["runs"][run.title]["result"], study.last.get(run.title)
        if stored is None or stored["file"] is None or judged is None or judged.metrics is None:
            continue
        then, now = number(stored["metrics"]["AP50"]), number(judged.metrics.AP50)
        if then != now:
            again = f"mrt eval {run.folder} --split {study.split}"
            text = f"{run.title}: {stored['file']} says AP50 {then}, but its weights give {now} now. Evaluate it again: {again}"
            section.blocks.append(Note(text, warning=True))
    columns = {title: result["metrics"]["per_class"] for _, title, result in entries if result}
    if columns:
        section.blocks += _by_class(study, columns)
    elif "networks" in study.missing:
        section.blocks.append(lacking(f"figures by class: {study.missing['networks']}"))
    return section


def _by_class(study: Study, columns: Mapping[str, Mapping[str, Any]]) -> list[Block]:
    classes = study.runs[0].classes
    values = {title: [per_class.get(name, {}).get("AP50") for name in classes] for title, per_class in columns.items()}
    colours = [figures.BEFORE, figures.AFTER, *figures.COLOURS[1:6]] if study.record["start"] else figures.COLOURS
    figure = figures.bars(classes, values, "AP50 (%)", colours)
    plot = study.plot("ap50-by-class", figure, f"AP50 of each class. {told(classes, values)}", "AP50 of each class; a dash: no true boxes.")
    boxes = [str(next(iter(columns.values()))[name]["num_boxes"]) for name in classes]
    rows = [[title, *(number(value) for value in row)] for title, row in values.items()]
    return [plot, Table("AP50 of each class, per cent", ["", *classes], [["boxes", *boxes], *rows])]


def describe_split(card: DatasetCard, split: str) -> str:
    """Images, boxes, domain with its details, and the annotations' hash."""
    part = card.split(split)
    sizes = ", ".join(card.image_sizes) if len(card.image_sizes) <= 3 else f"{len(card.image_sizes)} sizes"
    details = ", ".join(f"{key} {value}" for key, value in card.details.items() if isinstance(value, (int, float, str)))
    domain = card.domain + (f" ({details})" if details else "")
    return f"{part.num_images} images of {sizes}, {part.num_boxes} boxes; {domain}; annotations sha256 {part.sha256[:12]}"


def curves(study: Study) -> Section:
    """Losses, AP50 and thresholds over the epochs; of several runs, their curves together."""
    section = Section("curves", "Training")
    section.blocks += _overlaid(study) if study.several else _curves_of(study, study.runs[0])
    if not section.blocks:
        section.blocks.append(lacking("the runs have logged nothing yet"))
    return section


def _overlaid(study: Study) -> list[Block]:
    figure = figures.overlay(study.runs)
    if figure is None:
        return []
    names = ", ".join(run.title for run in study.runs)
    caption = f"The runs' curves together. Epochs count all stages. {LOOKING}"
    return [study.plot("curves", figure, f"Losses, pseudo labels, thresholds and AP50 over the epochs: {names}", caption)]


def _curves_of(study: Study, run: RunData) -> list[Block]:
    blocks: list[Block] = []
    figure = figures.losses(run)
    if figure is not None:
        caption = "Losses by part, unweighted (discriminators: mean of both domains), and their weighted sum. Epochs count all stages."
        blocks.append(study.plot("losses", figure, span_words(run, "Losses"), caption))
    figure = figures.average_precision(run)
    if figure is not None:
        caption = f"AP50 on {run.config.data.validation_split} images while training. {LOOKING}"
        blocks.append(study.plot("ap50", figure, span_words(run, "AP50 of teacher and student"), caption))
    elif blocks:
        off = " (engine.eval_every = 0)" if not run.config.engine.eval_every else ""
        blocks.append(lacking(f"AP50 over the epochs: the run measured nothing while it trained{off}"))
    figure = figures.thresholds(run)
    if figure is not None:
        last = [line["thresholds"] for line in run.of("epoch") if line.get("thresholds")][-1]
        last_values = ", ".join(f"{name} {value:.2f}" for name, value in last.items())
        caption = "The score above which the teacher's detections of a class become pseudo labels, after each epoch of teaching."
        blocks.append(study.plot("thresholds", figure, f"Thresholds by class; at the end {last_values}", caption))
    return blocks


def settings(study: Study) -> Section:
    """What is different: between the runs, or from the preset."""
    section = Section("settings", "Settings")
    if study.several:
        found = changed_settings([run.config.model_copy(update={"init": start_of(run)}) for run in study.runs])
        rows = [[key, *map(_value, values)] for key, values in found.items()]
        columns = ["setting", *(run.title for run in study.runs)]
        if rows:
            section.blocks.append(Table("Settings that differ between the runs", columns, rows, text_columns=len(columns)))
        kinds = [kind_of(run) for run in study.runs]
        if not rows:
            section.blocks.append(
                Note("All settings are the same" + ("." if len(set(kinds)) == 1 else "; the runs are of different kinds:"))
            )
        if len(set(kinds)) > 1:
            section.blocks.append(
                Table("Kinds of runs", ["run", "kind"], [[r.title, k] for r, k in zip(study.runs, kinds, strict=True)], 2)
            )
    for run in study.runs:
        preset = preset_of(run)
        if not study.several and preset is not None:
            rows = [[key, *map(_value, values)] for key, values in changed_settings([preset, run.config]).items()]
            if rows:
                section.blocks.append(
                    Table(f"Settings that differ from preset {run.config.preset}", ["setting", "preset", "this run"], rows, text_columns=3)
                )
            else:
                section.blocks.append(Note(f"All settings are those of preset {run.config.preset}."))
        title = f"All settings of {run.title} (config.json)"
        values = flatten(run.config) | {"init": start_of(run)}
        section.blocks.append(Facts(title, [(key, _value(value)) for key, value in values.items()]))
    return section


def _value(value: Any) -> str:
    return "none" if value is None else value if isinstance(value, str) else json.dumps(value)


def kind_of(run: RunData) -> str:
    """In a word or two: what trained the run."""
    if run.facts["command"] == "adapt":
        return "adaptation, stages " + ", ".join(run.facts.get("stages") or ["mae", "teach"])
    if run.facts.get("oracle"):
        return f"oracle, trained on labels of {run.facts['oracle']}"
    return "fair source-only baseline" if run.matched else "source training"


def data(study: Study) -> Section:
    """The sets' cards, and whether the annotations are still those of the training."""
    section = Section("data", "Data")
    run = study.subject
    known = dict(run.facts["data"])
    known.setdefault(study.domain, {"name": study.data, "sha256": {}})  # judged on, though not trained on
    rows, counts = [], []
    for domain, used in known.items():
        card = find_card(run, domain, study.data_root)
        if card is None:
            section.blocks.append(lacking(f"the card of {used['name']}: it is not in {study.data_root}"))
            for split, sha256 in used["sha256"].items():
                rows.append([used["name"], split, "", "-", "-", "-", "-", sha256[:12], "not here now"])
            continue
        for split, part in card.splits.items():
            then = used["sha256"].get(split)
            same = "not used in training" if then is None else "as in training" if then == part.sha256 else "CHANGED since training"
            numbers = [str(value) for value in (part.num_images, part.num_boxes, part.num_ignored, part.num_empty)]
            rows.append([card.name, split, _purpose(study, domain, split), *numbers, part.sha256[:12] or "-", same])
            counts.append([f"{card.name} {split}", *(str(part.boxes_per_class.get(name, 0)) for name in run.classes)])
        facts = {"domain": card.domain, "classes": ", ".join(card.classes), "made from": card.source, **card.details}
        facts["image sizes"] = ", ".join(f"{size} ({count})" for size, count in list(card.image_sizes.items())[:6])
        facts |= {f"left out of {split}": part.skipped for split, part in card.splits.items() if part.skipped}
        section.blocks.append(Facts(f"{card.name} (dataset.json)", [(name, _value(value)) for name, value in facts.items()], open=True))
    columns = ["set", "split", "used for", "images", "boxes", "ignored", "without boxes", "sha256 of annotations", "state"]
    section.blocks.insert(0, Table("Images and boxes; crowds and ignored objects do not count", columns, rows, text_columns=3))
    if counts:
        section.blocks.append(Table("Boxes of each class", ["set and split", *run.classes], counts))
    for other in study.runs:
        for domain, used in other.facts["data"].items():
            if known.get(domain, used)["sha256"] != used["sha256"] and run.facts["data"].get(domain):
                text = f"{other.title} was trained with other {domain} data than {run.title} ({used['name']}): compare with care."
                section.blocks.append(Note(text, warning=True))
    return section


def _purpose(study: Study, domain: str, split: str) -> str:
    run = study.subject
    config, labels = run.config.data, (run.facts.get("oracle") or "source").split("+")
    uses = []
    if split == getattr(config, f"{domain}_split"):
        if domain in labels:
            uses.append("training, with labels")
        elif run.facts["command"] == "adapt":
            uses.append("training, images only")
    if domain == run.domain and split == config.validation_split and run.config.engine.eval_every:
        uses.append("AP50 while training")
    if domain == study.domain and split == study.split:
        uses.append("figures of this report")
    return "; ".join(uses)


def environment(study: Study) -> Section:
    """Where the numbers come from: commands, versions, devices."""
    section = Section("environment", "Environment")
    names = ["command", "started from", "started", "training took", "mrt", "commit", "python", "torch", "device", "op"]
    now = provenance()
    columns = []
    for run in study.runs:
        facts = run.facts.get("environment", {})
        times = [line["time"] for line in run.lines]
        took = f"{(max(times) - min(times)) / 60:.1f} minutes from first to last log line" if times else "-"
        start = start_of(run) or "the backbone's weights"
        known = {"command": kind_of(run), "started from": start, "started": run.facts.get("started"), "training took": took}
        columns.append([str((known | facts).get(name) or "-") for name in names])
    own = ["mrt report", "", "", "", *(str(now.get(name) or "-") for name in names[4:])]
    rows = [[name, *(column[k] for column in columns), own[k]] for k, name in enumerate(names)]
    headings = ["", *(run.title for run in study.runs), "this report"]
    section.blocks.append(Table("Provenance (run.json)", headings, rows, text_columns=len(headings)))
    for run in study.runs:
        section.blocks.append(Note(f"To train {run.title} again:"))
        section.blocks.append(Code(command_line(run)))
    return section


def command_line(run: RunData) -> str:
    """A command that trains the run again, put together from its settings."""
    words = ["mrt", run.facts["command"]]
    preset = preset_of(run)
    words += ["--preset", run.config.preset if preset is not None else str(run.folder / "config.json")]
    stages = run.facts.get("stages") or []
    words += ["--stage", *stages] if len(stages) == 1 else []
    words += ["--match-compute"] if run.matched else []
    words += ["--oracle", run.facts["oracle"]] if run.facts.get("oracle") else []
    if run.facts.get("init"):
        words += ["--init", start_of(run)]
    changed = changed_settings([preset, run.config]) if preset is not None else {}
    if "seed" in changed:
        words += ["--seed", str(run.config.seed)]
    sets = [f"{key}={_value(values[1])}" for key, values in changed.items() if key not in ("seed", "init", "preset")]
    return shlex.join([*words, *(["--set", *sets] if sets else [])])


ALL = (
    *(results, curves, looking.pseudo_labels, looking.pictures, looking.reconstructions, looking.features, looking.errors),
    *(settings, data, environment),
)


def fill_record(study: Study) -> None:
    """What the sections put their numbers into: the start's and the runs' figures."""
    study.record["split"] = study.split
    study.record["data"] = study.card.name if study.card else None
    study.record["start"] = None
    if study.start is not None and study.start.metrics is not None:
        init = str(study.runs[0].facts["init"])
        study.record["start"] = {"init": init, "network": study.start.network, "metrics": study.start.metrics.to_dict()}
    matches = {title: match(judged.detections, study.dataset) for title, judged in study.judged.items() if judged.metrics is not None}
    draws = {title: estimates(item, SAMPLES) for title, item in matches.items()}
    study.record["intervals"] = {title: intervals(item) for title, item in draws.items()}
    base = study.runs[0].title if study.several else START
    study.record["against"] = "the start" if base == START else base
    study.record["change"] = {
        title: differences(matches[base], item, draws[base], draws[title])
        for title, item in (matches.items() if base in matches else ())
        if title != base
    }
    study.matches = matches
    study.record["runs"] = {
        run.title: {"folder": str(run.folder), "result": stored_or_measured(study, run), "best_on_target_labels": run.best_epoch()}
        for run in study.runs
    }
