"""The report's sections, in their order. Every report has all of them; a section says what is missing."""

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
from mrt.plain import quoted
from mrt.report import figures, looking
from mrt.report.collect import RunData, changed_settings, find_card, flatten, network_of, preset_of, start_of
from mrt.report.page import Block, Code, Facts, Headline, Note, Section, Table
from mrt.report.study import START, Study
from mrt.report.trust import without_labels
from mrt.report.words import EXPLAINED, LOOKING, lacking, number, span_words, told, with_interval

METRICS = ("AP50", "AP", "AP75")


def stored_or_measured(study: Study, run: RunData) -> dict[str, Any] | None:
    """Metrics of a run's last network: a stored evaluation on these annotations, else this report's own."""
    sha256 = study.card.split(study.split).sha256 if study.card else None
    judged = study.last.get(run.title)
    stored = run.result(study.data, study.split, sha256)
    if stored is not None:
        return {key: stored[key] for key in ("network", "data", "split", "sha256", "metrics", "file")}
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
            missing = study.missing.get("networks") or study.missing.get("data")
            reason = f"No figures: {missing or 'the data set has no labels'}."
            found.append(Headline(run.title, [("AP50", "-")], reason))
            continue
        texts = [(name, number(result["metrics"][name])) for name in ("AP50", "AP")]
        change = study.record["change"].get(run.title, {}).get("AP50", {})
        if change.get("value") is not None:
            gain = with_interval(change["value"], change, sign=True)
            texts.append((f"change in AP50 against {study.record['against']}", gain))
        source = f"from {result['file']}" if result["file"] else "measured for this report"
        last = f"Last {network_of(run, result['network'])}"
        about = f"{last} on {result['data']}, split {result['split']}, per cent; {source}."
        if change.get("low") is not None:
            about += f" [low, high]: {100 * LEVEL:g} % of {SAMPLES} draws of the images lie in it."
        about += " THE RUN IS NOT FINISHED." if run.unfinished else ""
        found.append(Headline(run.title if study.several else last, texts, about))
    return found


def results(study: Study) -> Section:
    """The main results of the runs, as in Table 1 of a paper, also by class."""
    section = Section("results", "Results")
    rows, strong = [], []
    entries: list[tuple[str, str, dict[str, Any] | None]] = []
    if study.record["start"]:
        entries.append((START, f"start: {Path(study.record['start']['init']).name}", study.record["start"]))
    for run in study.runs:
        result = study.record["runs"][run.title]["result"]
        title = f"{run.title} (last {network_of(run, result['network'])})" if result else run.title
        entries.append((run.title, title, result))
    for key, title, result in entries:
        if key != START:
            strong.append(len(rows))
        bounds, change = study.record["intervals"].get(key, {}), study.record["change"].get(key, {})
        values = result["metrics"] if result else {}
        numbers = [with_interval(values.get(name), bounds.get(name)) for name in METRICS]
        gain = with_interval(change.get("AP50", {}).get("value"), change.get("AP50"), sign=True)
        rows.append([title, *numbers, gain])
    for run in study.runs:
        best = run.best_epoch()
        if best is not None:
            what = f"{best['network']} at its best epoch on {run.config.data.validation_split}"
            title = f"{run.title}, {what}: picked by {run.domain} labels ‡"
            rows.append([title, *(number(best.get(name)) for name in METRICS), "-"])
    caption = "Per cent."
    if study.record["change"]:
        caption += f" Change in AP50 against {study.record['against']}."
    if study.card and study.split in study.card.splits:
        about = describe_split(study.card, study.split)
        caption = f"{study.card.name}, split {study.split}: {about}. {caption}"
    if study.record["intervals"]:
        caption += f" [low, high]: {100 * LEVEL:g} % of {SAMPLES} draws of the images; "
        caption += "other training seeds are not in it."
    if any(run.best_epoch() for run in study.runs):
        caption += " ‡ Selected on labels, on another split: no result, and not to be compared with one."
    section.blocks.append(Table(caption, ["", *METRICS, "change"], rows, strong=strong))
    for run in study.runs:
        if run.unfinished:
            done = ", ".join(run.facts["finished"]) or "none"
            text = (
                f"{run.title} is not finished: stages done: {done}; to come: {', '.join(run.unfinished)}. "
                "Its figures are not its last."
            )
            section.blocks.append(Note(text, warning=True))
    for run in study.runs:
        stored, judged = study.record["runs"][run.title]["result"], study.last.get(run.title)
        if stored is None or stored["file"] is None or judged is None or judged.metrics is None:
            continue
        then, now = number(stored["metrics"]["AP50"]), number(judged.metrics.AP50)
        if then != now:
            again = f"mrt eval {quoted(run.folder)} --split {study.split}"
            text = (
                f"{run.title}: {stored['file']} says AP50 {then}, but its weights give {now} now. "
                f"Evaluate it again: {again}"
            )
            section.blocks.append(Note(text, warning=True))
    columns = {title: result["metrics"]["per_class"] for _, title, result in entries if result}
    if columns:
        section.blocks += _by_class(study, columns)
    elif "networks" in study.missing:
        section.blocks.append(lacking(f"figures by class: {study.missing['networks']}"))
    return section


def _by_class(study: Study, columns: Mapping[str, Mapping[str, Any]]) -> list[Block]:
    classes, colours = study.runs[0].classes, figures.COLOURS
    if study.record["start"]:
        colours = [figures.BEFORE, figures.AFTER, *figures.COLOURS[1:6]]
    values = {}
    for title, per_class in columns.items():
        values[title] = [per_class.get(name, {}).get("AP50") for name in classes]
    figure = figures.bars(classes, values, "AP50 (%)", colours)
    alt = f"AP50 of each class. {told(classes, values)}"
    plot = study.plot("ap50-by-class", figure, alt, "AP50 of each class; a dash: no true boxes.")
    counted = next(iter(columns.values()))
    boxes = [str(counted.get(name, {}).get("num_boxes", "-")) for name in classes]
    rows = [[title, *(number(value) for value in row)] for title, row in values.items()]
    return [plot, Table("AP50 of each class, per cent", ["", *classes], [["boxes", *boxes], *rows])]


def describe_split(card: DatasetCard, split: str) -> str:
    """Images, boxes, domain with its details, and the annotations' hash."""
    part = card.split(split)
    sizes = ", ".join(card.image_sizes) if len(card.image_sizes) <= 3 else f"{len(card.image_sizes)} sizes"
    details = ", ".join(
        f"{key} {value}" for key, value in card.details.items() if isinstance(value, (int, float, str))
    )
    domain = card.domain + (f" ({details})" if details else "")
    return (
        f"{part.num_images} images of {sizes}, {part.num_boxes} boxes; {domain}; "
        f"annotations sha256 {part.sha256[:12]}"
    )


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
    measured = any(run.domain == "target" and run.of("eval") for run in study.runs)
    caption = f"The runs' curves together. Epochs count all stages.{f' {LOOKING}' * measured}"
    alt = f"Losses, pseudo labels, thresholds and AP50 over the epochs: {names}"
    return [study.plot("curves", figure, alt, caption)]


def _curves_of(study: Study, run: RunData) -> list[Block]:
    blocks: list[Block] = []
    figure = figures.losses(run)
    if figure is not None:
        caption = (
            "Losses by part, unweighted (discriminators: mean of both domains), and their weighted sum. "
            "Epochs count all stages."
        )
        blocks.append(study.plot("losses", figure, span_words(run, "Losses"), caption))
    figure = figures.average_precision(run)
    if figure is not None:
        caption = f"AP50 on {run.domain} {run.config.data.validation_split} images while training."
        caption += f" {LOOKING}" if run.domain == "target" else ""
        blocks.append(study.plot("ap50", figure, span_words(run, "AP50 of teacher and student"), caption))
    elif blocks:
        off = " (engine.eval_every = 0)" if not run.config.engine.eval_every else ""
        blocks.append(lacking(f"AP50 over the epochs: the run measured nothing while it trained{off}"))
    figure = figures.thresholds(run)
    if figure is not None:
        last = [line["thresholds"] for line in run.of("epoch") if line.get("thresholds")][-1]
        last_values = ", ".join(f"{name} {value:.2f}" for name, value in last.items())
        caption = (
            "The score above which the teacher's detections of a class become pseudo labels, "
            "after each epoch of teaching."
        )
        alt = f"Thresholds by class; at the end {last_values}"
        blocks.append(study.plot("thresholds", figure, alt, caption))
    return blocks


def settings(study: Study) -> Section:
    """Settings that differ between the runs, or from the preset; then all settings."""
    section = Section("settings", "Settings")
    if study.several:
        configs = [run.config.model_copy(update={"init": start_of(run)}) for run in study.runs]
        rows = [[key, *map(_value, values)] for key, values in changed_settings(configs).items()]
        columns = ["setting", *(run.title for run in study.runs)]
        if rows:
            title = "Settings that differ between the runs"
            section.blocks.append(Table(title, columns, rows, text_columns=len(columns)))
        kinds = [kind_of(run) for run in study.runs]
        if not rows:
            end = "." if len(set(kinds)) == 1 else "; the runs are of different kinds:"
            section.blocks.append(Note(f"All settings are the same{end}"))
        if len(set(kinds)) > 1:
            rows = [[run.title, kind] for run, kind in zip(study.runs, kinds, strict=True)]
            section.blocks.append(Table("Kinds of runs", ["run", "kind"], rows, 2))
    for run in study.runs:
        preset = preset_of(run)
        if not study.several and preset is not None:
            changed = changed_settings([preset, run.config])
            rows = [[key, *map(_value, values)] for key, values in changed.items()]
            if rows:
                title = f"Settings that differ from preset {run.config.preset}"
                columns = ["setting", "preset", "this run"]
                section.blocks.append(Table(title, columns, rows, text_columns=3))
            else:
                section.blocks.append(Note(f"All settings are those of preset {run.config.preset}."))
        title = f"All settings of {run.title} (config.json)"
        values = flatten(run.config) | {"init": start_of(run)}
        section.blocks.append(Facts(title, [(key, _value(value)) for key, value in values.items()]))
    return section


def _value(value: Any) -> str:
    return "none" if value is None else value if isinstance(value, str) else json.dumps(value)


def kind_of(run: RunData) -> str:
    """The kind of training, in a few words."""
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
    known.setdefault(study.domain, {"name": study.data, "sha256": {}})  # evaluated on, if not trained on
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
            state = "as in training" if then == part.sha256 else "CHANGED since training"
            if then is None:
                state = "not used in training"
            numbers = map(str, (part.num_images, part.num_boxes, part.num_ignored, part.num_empty))
            purpose = _purpose(study, domain, split)
            rows.append([card.name, split, purpose, *numbers, part.sha256[:12] or "-", state])
            boxes = [str(part.boxes_per_class.get(name, 0)) for name in run.classes]
            counts.append([f"{card.name} {split}", *boxes])
        facts = {"domain": card.domain, "classes": ", ".join(card.classes), "made from": card.source}
        facts |= card.details
        sizes = list(card.image_sizes.items())[:6]
        facts["image sizes"] = ", ".join(f"{size} ({count})" for size, count in sizes)
        facts |= {f"left out of {split}": part.skipped for split, part in card.splits.items() if part.skipped}
        listed = [(name, _value(value)) for name, value in facts.items()]
        section.blocks.append(Facts(f"{card.name} (dataset.json)", listed, open=True))
    columns = ["set", "split", "used for", "images", "boxes", "ignored", "without boxes"]
    columns += ["sha256 of annotations", "state"]
    caption = "Images and boxes; crowds and ignored objects do not count"
    section.blocks.insert(0, Table(caption, columns, rows, text_columns=3))
    if counts:
        section.blocks.append(Table("Boxes of each class", ["set and split", *run.classes], counts))
    for other in study.runs:
        for domain, used in other.facts["data"].items():
            if known.get(domain, used)["sha256"] != used["sha256"] and run.facts["data"].get(domain):
                text = (
                    f"{other.title} was trained with other {domain} data than {run.title} "
                    f"({used['name']}): compare with care."
                )
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
    of_runs = ["command", "started from", "started", "training took"]
    names = [*of_runs, "mrt", "commit", "python", "torch", "device", "op"]
    now = provenance()
    columns = []
    for run in study.runs:
        facts = run.facts.get("environment") or {}
        times = [line["time"] for line in run.lines if "time" in line]
        took = f"{(max(times) - min(times)) / 60:.1f} minutes from first to last log line" if times else "-"
        start = start_of(run) or "the backbone's weights"
        known = dict(zip(of_runs, (kind_of(run), start, run.facts.get("started"), took), strict=True))
        columns.append([str((known | facts).get(name) or "-") for name in names])
    own = ["mrt report", "", "", "", *(str(now.get(name) or "-") for name in names[len(of_runs) :])]
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
    others = {key: values[1] for key, values in changed.items() if key not in ("seed", "init", "preset")}
    sets = [f"{key}={_value(value)}" for key, value in others.items()]
    return shlex.join([*words, *(["--set", *sets] if sets else [])])


def explained(_: Study) -> Section:
    """What the words and abbreviations of a report mean."""
    return Section("words", "Words and abbreviations", [Facts("What they mean", EXPLAINED, open=True)])


ALL = (
    *(results, curves, looking.pseudo_labels, without_labels, looking.pictures),
    *(looking.reconstructions, looking.features, looking.errors),
    *(settings, data, environment, explained),
)


def fill_record(study: Study) -> None:
    """Fill ``study.record`` with the metrics of the start and the runs, which the sections use and extend."""
    study.record["split"] = study.split
    study.record["data"] = study.card.name if study.card else None
    study.record["start"] = None
    if study.start is not None and study.start.metrics is not None:
        init, metrics = str(study.runs[0].facts["init"]), study.start.metrics.to_dict()
        study.record["start"] = {"init": init, "network": study.start.network, "metrics": metrics}
    matches = {
        title: match(judged.detections, study.dataset)
        for title, judged in study.judged.items()
        if judged.metrics is not None
    }
    draws = {title: estimates(item, SAMPLES) for title, item in matches.items()}
    study.record["intervals"] = {title: intervals(item) for title, item in draws.items()}
    base = study.runs[0].title if study.several else START
    study.record["against"] = "the start" if base == START else base
    study.record["change"] = {}
    for title, item in matches.items():
        if base in matches and title != base:
            change = differences(matches[base], item, draws[base], draws[title])
            study.record["change"][title] = change
    study.matches = matches
    study.record["runs"] = {
        run.title: {
            "folder": str(run.folder),
            "result": stored_or_measured(study, run),
            "best_on_target_labels": run.best_epoch(),
        }
        for run in study.runs
    }
