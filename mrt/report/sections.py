"""The report's sections, in their order. Each is there in every report; what it lacks, it says."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mrt.data.card import DatasetCard, SplitCard
from mrt.data.dataset import DetectionDataset
from mrt.engine.build import class_map_for
from mrt.engine.folder import provenance
from mrt.engine.snapshots import spread_evenly
from mrt.evaluate.bootstrap import LEVEL, SAMPLES, differences, estimates, intervals
from mrt.evaluate.coco import ImageDetections
from mrt.evaluate.errors import KINDS, split_errors
from mrt.evaluate.labels import label_quality
from mrt.evaluate.matching import match
from mrt.report import figures, networks
from mrt.report.collect import RunData, changed_settings, find_card, flatten, preset_of
from mrt.report.figures import QualityCurve
from mrt.report.page import Block, Cell, Code, Facts, Headline, Note, Section, Table
from mrt.report.study import START, Study, by_image, chosen_images, picture_of

THRESHOLD = 0.3  # score from which detections are drawn
MAX_EPOCHS = 4  # columns of pseudo labels over time
PERPLEXITY = 30
JUDGED_IMAGES = 32  # for the share that the masked autoencoder explains
METRICS = ("AP50", "AP", "AP75")
LOOKING = "† Uses target labels, to look at only: nothing was trained or chosen with them."


def number(value: float | None, sign: bool = False) -> str:
    """One decimal; a dash where there is nothing."""
    return "-" if value is None else f"{value:+.1f}" if sign else f"{value:.1f}"


def with_interval(value: float | None, bounds: Mapping[str, float | None] | None, sign: bool = False) -> str:
    """As ``mrt eval`` prints it: 38.0 [36.2, 40.7]."""
    if value is None or bounds is None or bounds["low"] is None:
        return number(value, sign)
    return f"{number(value, sign)} [{number(bounds['low'], sign)}, {number(bounds['high'], sign)}]"


def lacking(what: str) -> Note:
    return Note(f"Not shown: {what}.")


# ---- results


def stored_or_measured(study: Study, run: RunData) -> dict[str, Any] | None:
    """The figures of a run's last network: the stored evaluation on these annotations if there is one, else this report's own."""
    sha256 = study.card.split(study.split).sha256 if study.card else None
    judged = study.last.get(run.title)
    stored = run.result(study.split, sha256)
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
        entries.append((START, f"start: {study.record['start']['init']}", study.record["start"]))
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
            what = f"{run.title}: best epoch on {run.config.data.validation_split} ({best['network']}, {best['stage']} {best['epoch']})"
            rows.append([what + ", selected on target labels: no result", *(number(best[name]) for name in METRICS), "-"])
    caption = "Per cent." + (f" Change in AP50 against {study.record['against']}." if study.record["change"] else "")
    if study.card and study.split in study.card.splits:
        caption = f"{study.card.name}, split {study.split}: {describe_split(study.card, study.split)}. {caption}"
    if study.record["intervals"]:
        caption += f" [low, high]: {100 * LEVEL:g} % of {SAMPLES} draws of the images; other training seeds are not in it."
    section.blocks.append(Table(caption, ["", *METRICS, "change"], rows, strong=strong))
    for run in study.runs:
        if run.unfinished:
            done = ", ".join(run.facts["finished"]) or "none"
            text = f"{run.title} is not finished: stages done: {done}; to come: {', '.join(run.unfinished)}. Its figures are not its last."
            section.blocks.append(Note(text, warning=True))
    for run in study.runs:
        stored, judged = study.record["runs"][run.title]["result"], study.last.get(run.title)
        if stored and stored["file"] and judged and judged.metrics and abs(stored["metrics"]["AP50"] - judged.metrics.AP50) > 0.05:
            text = f"{run.title}: {stored['file']} says AP50 {number(stored['metrics']['AP50'])}, but its weights give "
            section.blocks.append(Note(f"{text}{number(judged.metrics.AP50)} now. Evaluate it again: mrt eval {run.folder}", warning=True))
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
    told = "; ".join(
        f"{title}: " + ", ".join(f"{n} {number(v)}" for n, v in zip(classes, row, strict=True)) for title, row in values.items()
    )
    figure = figures.bars(classes, values, "AP50 (%)", colours)
    plot = study.plot("ap50-by-class", figure, f"AP50 of each class. {told}", "AP50 of each class; a dash: no true boxes.")
    boxes = [str(next(iter(columns.values()))[name]["num_boxes"]) for name in classes]
    rows = [[title, *(number(value) for value in row)] for title, row in values.items()]
    return [plot, Table("AP50 of each class, per cent", ["", *classes], [["boxes", *boxes], *rows])]


def _told(names: Sequence[str], rows: Mapping[str, Sequence[float | None]]) -> str:
    """Bars in words, for who can't see them."""
    return "; ".join(f"{title}: " + ", ".join(f"{n} {number(v)}" for n, v in zip(names, row, strict=True)) for title, row in rows.items())


def describe_split(card: DatasetCard, split: str) -> str:
    """Images, boxes, domain with its details, and the annotations' hash."""
    part = card.split(split)
    sizes = ", ".join(card.image_sizes) if len(card.image_sizes) <= 3 else f"{len(card.image_sizes)} sizes"
    details = ", ".join(f"{key} {value}" for key, value in card.details.items() if isinstance(value, (int, float, str)))
    domain = card.domain + (f" ({details})" if details else "")
    return f"{part.num_images} images of {sizes}, {part.num_boxes} boxes; {domain}; annotations sha256 {part.sha256[:12]}"


# ---- curves


def curves(study: Study) -> Section:
    """Losses, AP50 and thresholds over the epochs; of several runs, their curves together."""
    section = Section("curves", "Training")
    if study.several:
        figure = figures.overlay(study.runs)
        if figure is not None:
            names = ", ".join(run.title for run in study.runs)
            caption = "The runs' curves together. Epochs count all stages; faint: as logged, strong: running mean. " + LOOKING
            section.blocks.append(
                study.plot("curves", figure, f"Losses, pseudo labels, thresholds and AP50 over the epochs: {names}", caption)
            )
    for run in study.runs:
        prefix = f"{slug(run.title)}-" if study.several else ""
        blocks: list[Block] = []
        figure = figures.losses(run)
        if figure is not None:
            caption = "Losses by part, unweighted, and the weighted sum that is trained on. Epochs count all stages."
            blocks.append(study.plot(f"{prefix}losses", figure, _alt_of_curves(run, "Losses"), caption))
        figure = figures.average_precision(run)
        if figure is not None:
            caption = f"AP50 on {run.config.data.validation_split} images while training. {LOOKING}"
            blocks.append(study.plot(f"{prefix}ap50", figure, _alt_of_curves(run, "AP50 of teacher and student"), caption))
        elif not run.config.engine.eval_every:
            blocks.append(lacking("AP50 over the epochs: the run measured nothing while it trained (engine.eval_every = 0)"))
        figure = figures.thresholds(run)
        if figure is not None:
            last = [line["thresholds"] for line in run.of("epoch") if line.get("thresholds")][-1]
            told = ", ".join(f"{name} {value:.2f}" for name, value in last.items())
            caption = "The score above which the teacher's detections of a class become pseudo labels, after each epoch of teaching."
            blocks.append(study.plot(f"{prefix}thresholds", figure, f"Thresholds by class; at the end {told}", caption))
        if blocks and study.several:
            blocks.insert(0, Note(f"{run.title}:"))
        section.blocks += blocks if not study.several else []
    if not section.blocks:
        section.blocks.append(lacking("the runs have logged nothing yet"))
    return section


def _alt_of_curves(run: RunData, what: str) -> str:
    stages = ", ".join(f"{span.title} from epoch {span.begin:g} to {span.begin + span.epochs:g}" for span in run.spans)
    again = f"; selective retraining after epoch {', '.join(f'{epoch:g}' for epoch in run.retrained)}" if run.retrained else ""
    return f"{what} over the epochs: {stages}{again}"


def slug(text: str) -> str:
    """A name for files and anchors."""
    return "-".join("".join(letter if letter.isalnum() else " " for letter in text.lower()).split()) or "run"


# ---- pseudo labels


def pseudo_labels(study: Study) -> Section:
    """How many pseudo labels there were, how good they are, and what they look like over time."""
    section = Section("pseudo-labels", "Pseudo labels")
    for run in study.runs:
        if not run.of("epoch", "teach") or not run.config.teacher.pseudo_labels or run.facts["command"] != "adapt":
            section.blocks.append(lacking(f"{run.title} was not taught by pseudo labels"))
            continue
        prefix = f"{slug(run.title)}-" if study.several else ""
        card = find_card(run, "target", study.data_root)
        target = _target_images(run, card)
        quality = _quality(run, target)
        study.record["runs"][run.title]["pseudo_labels"] = [vars(curve) for curve in quality]
        source = find_card(run, "source", study.data_root)
        boxes = [
            _boxes_per_image(item, split) for item, split in ((source, run.config.data.source_split), (card, run.config.data.target_split))
        ]
        figure = figures.pseudo_labels(run, quality, *boxes)
        if figure is not None:
            caption = (
                f"{run.title}: pseudo labels per target image as the student met them, mean over each epoch. {LOOKING} "
                "Labels on crowds and ignored objects do not count as wrong."
            )
            alt = _alt_of_curves(run, "Number and quality of pseudo labels")
            section.blocks.append(study.plot(f"{prefix}pseudo-labels", figure, alt, caption))
        if not run.snapshots:
            section.blocks.append(
                lacking(f"{run.title}'s labels over time: it recorded none (engine.snapshots was 0, or it is an old run)")
            )
        elif target is None:
            section.blocks.append(lacking(f"{run.title}'s labels over time: the data set {run.config.data.target} is not here"))
        else:
            section.blocks.append(_over_time(study, run, target, prefix))
    return section


def _boxes_per_image(card: DatasetCard | None, split: str) -> float | None:
    part: SplitCard | None = card.splits.get(split) if card else None
    return part.num_boxes / part.num_images if part and part.num_images and part.num_boxes else None


def _target_images(run: RunData, card: DatasetCard | None) -> DetectionDataset | None:
    """The target's training images with their labels, for looking."""
    split = run.config.data.target_split
    if card is None or split not in card.splits:
        return None
    return DetectionDataset(card, split, classes=run.classes, class_map=class_map_for(run.config, card))


def _recorded(run: RunData, line: Mapping[str, Any]) -> list[ImageDetections]:
    """A line of ``pseudo_labels.jsonl`` as detections."""
    return [
        ImageDetections(
            image["image_id"],
            np.array(image["scores"], dtype=float),
            np.array([run.classes.index(name) for name in image["classes"]], dtype=np.int64),
            np.array(image["boxes"], dtype=float).reshape(-1, 4),
        )
        for image in line["images"]
    ]


def _quality(run: RunData, target: DetectionDataset | None) -> list[QualityCurve]:
    begin = next(span for span in run.spans if span.name == "teach").begin
    found = []
    if target is not None and target.labelled and run.snapshots:
        judged = [label_quality(_recorded(run, line), target) for line in run.snapshots]
        where = f"{len(run.snapshots[0]['images'])} training images ({judged[0].num_boxes} boxes)"
        epochs = [begin + line["epoch"] for line in run.snapshots]
        found.append(QualityCurve(where, epochs, [item.precision for item in judged], [item.recall for item in judged]))
    measured = [line for line in run.of("eval", "teach") if "pseudo_labels" in line]
    if measured:
        labels = [line["pseudo_labels"] for line in measured]
        where = f"{run.config.data.validation_split} ({labels[0]['num_boxes']} boxes)"
        places = [run.place(line) for line in measured]
        found.append(QualityCurve(where, places, [item["precision"] for item in labels], [item["recall"] for item in labels]))
    return found


def _over_time(study: Study, run: RunData, target: DetectionDataset, prefix: str) -> Block:
    lines = run.snapshots
    picked = [lines[round(index)] for index in np.linspace(0, len(lines) - 1, min(MAX_EPOCHS, len(lines)))]
    recorded = [image["image_id"] for image in lines[0]["images"]]
    ids = [recorded[index] for index in spread_evenly(len(recorded), study.images)]
    columns = [{found.image_id: found for found in _recorded(run, line)} for line in picked]
    rows, wide = [], len(picked) + target.labelled
    for image_id in ids:
        row = []
        for line, column in zip(picked, columns, strict=True):
            labels = [run.classes[label] for label in column[image_id].labels]
            alt = f"Image {image_id} after epoch {line['epoch']} of teaching: {', '.join(labels) or 'no pseudo labels'}"
            row.append(Cell(picture_of(target, image_id, column[image_id], wide), alt))
        if target.labelled:
            row.append(Cell(picture_of(target, image_id, "truth", wide), f"Image {image_id} with its true boxes"))
        rows.append(row)
    titles = [f"after epoch {line['epoch']}" if line["epoch"] else "before teaching" for line in picked]
    titles += ["truth†"] if target.labelled else []
    return study.grid(
        f"{prefix}pseudo-labels-over-time",
        f"Pseudo labels of {len(ids)} target images over the epochs of teaching",
        f"{run.title}: the teacher's pseudo labels of the same target training images, with the thresholds of the time; "
        f"{len(ids)} of the {len(recorded)} recorded images (pseudo_labels.jsonl). {LOOKING}",
        titles,
        rows,
    )


# ---- pictures


def pictures(study: Study) -> Section:
    """The same images before and after, and the truth."""
    section = Section("detections", "Detections before and after")
    if not study.last or study.dataset is None:
        section.blocks.append(lacking(study.missing.get("networks", "there are no weights yet")))
        return section
    columns = {"before: the start": study.start} if study.start else {}
    for run in study.runs:
        if run.title in study.last:
            columns[run.title if study.several else f"after: last {study.last[run.title].network}"] = study.last[run.title]
    found = {title: by_image(judged) for title, judged in columns.items()}
    ids = chosen_images(study.dataset, study.images)
    rows, wide = [], len(found) + study.dataset.labelled
    for image_id in ids:
        row = []
        for title, detections in found.items():
            kept = detections[image_id]
            names = [study.dataset.classes[label] for label, score in zip(kept.labels, kept.scores, strict=True) if score >= THRESHOLD]
            alt = f"Image {image_id}, {title}: {', '.join(names) or 'nothing'}"
            row.append(Cell(picture_of(study.dataset, image_id, kept, wide, THRESHOLD), alt))
        if study.dataset.labelled:
            row.append(Cell(picture_of(study.dataset, image_id, "truth", wide), f"Image {image_id} with its true boxes"))
        rows.append(row)
    titles = [*found, *(["ground truth"] if study.dataset.labelled else [])]
    caption = (
        f"{study.card.name} {study.split}: detections scored at least {THRESHOLD}, with their score in per cent. "
        "The images are spread evenly over the split, not picked."
    )
    section.blocks.append(study.grid("detections", "Detections on the same images: " + ", ".join(titles), caption, titles, rows))
    if "start" in study.missing:
        section.blocks.append(lacking(f"detections before: {study.missing['start']}"))
    return section


# ---- masked autoencoder


def reconstructions(study: Study) -> Section:
    """What the masked autoencoder rebuilds."""
    section = Section("reconstruction", "Masked autoencoder")
    for run in study.runs:
        card = find_card(run, "target", study.data_root)
        if study.quick or card is None:
            section.blocks.append(lacking(study.missing.get("networks") or study.missing.get("data", f"no data for {run.title}")))
            return section
        autoencoders = networks.find_autoencoders(run, study.device)
        if not autoencoders:
            section.blocks.append(lacking(f"{run.title} trained no masked autoencoder, or did not keep it"))
            continue
        split = study.split if study.split in card.splits else run.config.data.target_split
        batches = networks.views(run.config, card, split, run.classes, max(study.images, JUDGED_IMAGES))
        ratio, seed = run.config.mae.mask_ratio, run.config.seed
        tried = [(item, *networks.rebuild(item, batches, ratio, seed, study.device)) for item in autoencoders]
        best = max(tried, key=lambda item: -np.inf if item[2] is None else item[2])
        explained = {item.about: share for item, _, share in tried}
        study.record["runs"][run.title]["reconstruction"] = {"explained": explained, "mask_ratio": ratio, "images": len(best[1])}
        rows = [best[1][index] for index in spread_evenly(len(best[1]), study.images)]
        shares = "; ".join(f"{about}: {100 * share:.0f} %" for about, share in explained.items() if share is not None)
        caption = (
            f"{run.title}: energy (mean square over channels) of the backbone's last map, what masking of {100 * ratio:.0f} % leaves of "
            f"it, and of the map that the auxiliary decoder rebuilds from {best[0].about}. Share of the masked cells' variance that is "
            f"explained, over {len(best[1])} images: {shares}. {card.name}, split {split}; masks drawn with seed {seed}; each colour bar "
            "has its scale."
        )
        prefix = f"{slug(run.title)}-" if study.several else ""
        alt = f"Feature energy of {len(rows)} target images: real, masked and rebuilt"
        section.blocks.append(study.plot(f"{prefix}reconstruction", figures.reconstructions(rows), alt, caption))
    return section


# ---- features


def features(study: Study) -> Section:
    """t-SNE of both domains' features, at the places where the discriminators judge."""
    section = Section("features", "Features of both domains")
    run = study.runs[0]
    cards = {domain: find_card(run, domain, study.data_root) for domain in ("source", "target")}
    if study.quick or not study.last or None in cards.values():
        section.blocks.append(lacking(study.missing.get("networks") or study.missing.get("data") or "one of the two data sets is not here"))
        return section
    split = run.config.data.validation_split
    splits = {d: split if split in card.splits else getattr(run.config.data, f"{d}_split") for d, card in cards.items()}
    batches = {d: networks.views(run.config, card, splits[d], run.classes, study.points) for d, card in cards.items()}
    detectors = {"before": study.start} if study.start else {}
    detectors |= {(item.title if study.several else "after"): study.last[item.title] for item in study.runs if item.title in study.last}
    rows: dict[str, Any] = {}
    for title, judged in detectors.items():
        found = {d: networks.features(judged.detector, batches[d], study.device) for d in batches}
        rows[title] = {
            place: networks.embed(found["source"][place], found["target"][place], PERPLEXITY, run.config.seed) for place in networks.PLACES
        }
    counts = {d: sum(len(batch) for batch in items) for d, items in batches.items()}
    mixing = {title: {place: item[2] for place, item in places.items()} for title, places in rows.items()}
    perplexity = min(PERPLEXITY, (sum(counts.values()) - 1) / 3)
    study.record["features"] = {"perplexity": perplexity, "seed": run.config.seed, "images": counts, "mixing": mixing}
    caption = (
        f"t-SNE of one vector per image: the backbone's C5 and the encoder's output, averaged over the image's cells, and the decoder's "
        f"queries, weighted by their best score: where the three discriminators judge. {counts['source']} {cards['source'].name} and "
        f"{counts['target']} {cards['target'].name} images (split {splits['target']}), perplexity {perplexity:g}, "
        f"seed {run.config.seed}; every panel is an embedding of its own. Below each: of the {networks.NEIGHBOURS} nearest neighbours in "
        "the space of the features, the share of the other domain (50 %: cannot be told apart)."
    )
    told = "; ".join(f"{title} {place}: {100 * value:.0f} %" for title, places in mixing.items() for place, value in places.items())
    alt = f"Source and target images as points, by detector and place. Neighbours of the other domain: {told}"
    section.blocks.append(study.plot("features", figures.embedding(rows), alt, caption))
    return section


# ---- errors


def errors(study: Study) -> Section:
    """What the detectors get wrong, in points of AP50."""
    section = Section("errors", "Kinds of errors")
    if not study.matches:
        section.blocks.append(lacking(study.missing.get("networks", "the data set has no labels")))
        return section
    found = {title: split_errors(item) for title, item in study.matches.items()}
    study.record["errors"] = {title: split.to_dict() for title, split in found.items()}
    values = {title: [split.gains[name] for name in KINDS] for title, split in found.items()}
    colours = [figures.BEFORE, figures.AFTER, *figures.COLOURS[1:6]] if study.start else figures.COLOURS
    alt = _told(KINDS, values)
    caption = (
        f"AP50 that would be won if all errors of one kind were mended ({study.card.name} {study.split}; after TIDE, Bolya et al. 2020)."
    )
    section.blocks.append(study.plot("errors", figures.bars(KINDS, values, "AP50 points lost", colours, decimals=1), alt, caption))
    rows = [[title, *(f"{number(split.gains[name])} ({split.counts[name]})" for name in KINDS)] for title, split in found.items()]
    section.blocks.append(Table("AP50 points lost to each kind of error (and how many there are)", ["", *KINDS], rows))
    return section


# ---- settings, data, environment


def settings(study: Study) -> Section:
    """What is different: between the runs, or from the preset."""
    section = Section("settings", "Settings")
    if study.several:
        found = changed_settings([run.config for run in study.runs])
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
        section.blocks.append(Facts(title, [(key, _value(value)) for key, value in flatten(run.config).items()]))
    return section


def _value(value: Any) -> str:
    return "none" if value is None else value if isinstance(value, str) else json.dumps(value)


def kind_of(run: RunData) -> str:
    """In a word or two: what trained the run."""
    if run.facts["command"] == "adapt":
        return "adaptation, stages " + ", ".join(run.facts.get("stages") or ["mae", "teach"])
    if run.facts.get("oracle"):
        return f"oracle, trained on labels of {run.facts['oracle']}"
    return "fair source-only baseline" if run.facts.get("match_adapt") else "source training"


def data(study: Study) -> Section:
    """The sets' cards, and whether the annotations are still those of the training."""
    section = Section("data", "Data")
    first = study.runs[0]
    rows, counts = [], []
    for domain, used in first.facts["data"].items():
        card = find_card(first, domain, study.data_root)
        if card is None:
            section.blocks.append(lacking(f"the card of {used['name']}: it is not in {study.data_root}"))
            for split, sha256 in used["sha256"].items():
                rows.append([used["name"], split, "", "-", "-", "-", "-", sha256[:12], "not here now"])
            continue
        for split, part in card.splits.items():
            same = "as in training" if used["sha256"].get(split) == part.sha256 else "CHANGED since training"
            numbers = [str(value) for value in (part.num_images, part.num_boxes, part.num_ignored, part.num_empty)]
            rows.append([card.name, split, _purpose(study, domain, split), *numbers, part.sha256[:12] or "-", same])
            counts.append([f"{card.name} {split}", *(str(part.boxes_per_class.get(name, 0)) for name in card.classes)])
        facts = {"domain": card.domain, "classes": ", ".join(card.classes), "made from": card.source, **card.details}
        facts["image sizes"] = ", ".join(f"{size} ({count})" for size, count in list(card.image_sizes.items())[:6])
        facts |= {f"left out of {split}": part.skipped for split, part in card.splits.items() if part.skipped}
        section.blocks.append(Facts(f"{card.name} (dataset.json)", [(name, _value(value)) for name, value in facts.items()], open=True))
    columns = ["set", "split", "used for", "images", "boxes", "ignored", "without boxes", "sha256 of annotations", "state"]
    section.blocks.insert(0, Table("Images and boxes; crowds and ignored objects do not count", columns, rows, text_columns=3))
    if counts:
        section.blocks.append(Table("Boxes of each class", ["set and split", *first.classes], counts))
    for other in study.runs[1:]:
        for domain, used in other.facts["data"].items():
            if first.facts["data"].get(domain, used)["sha256"] != used["sha256"]:
                text = f"{other.title} was trained with other {domain} data than {first.title} ({used['name']}): compare with care."
                section.blocks.append(Note(text, warning=True))
    return section


def _purpose(study: Study, domain: str, split: str) -> str:
    run = study.runs[0]
    config, labels = run.config.data, (run.facts.get("oracle") or "source").split("+")
    uses = []
    if split == getattr(config, f"{domain}_split"):
        if domain in labels:
            uses.append("training, with labels")
        elif run.facts["command"] == "adapt":
            uses.append("training, images only")
    if domain == run.domain and split == config.validation_split and run.config.engine.eval_every:
        uses.append("AP50 while training")
    if domain == run.domain and split == study.split:
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
        start = run.facts.get("init") or "the backbone's weights"
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
    words += ["--match-adapt"] if run.facts.get("match_adapt") else []
    words += ["--oracle", run.facts["oracle"]] if run.facts.get("oracle") else []
    if run.facts.get("init"):
        words += ["--init", run.facts["init"]]
    changed = changed_settings([preset, run.config]) if preset is not None else {}
    if "seed" in changed:
        words += ["--seed", str(run.config.seed)]
    sets = [f"{key}={_value(values[1])}" for key, values in changed.items() if key not in ("seed", "init", "preset")]
    return shlex.join([*words, *(["--set", *sets] if sets else [])])


ALL = (results, curves, pseudo_labels, pictures, reconstructions, features, errors, settings, data, environment)


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
    first = next(iter(matches), None)
    study.record["against"] = "the start" if first == START else first
    study.record["intervals"] = {title: intervals(item) for title, item in draws.items()}
    study.record["change"] = {
        title: differences(matches[first], matches[title], draws[first], draws[title]) for title in matches if title != first
    }
    study.matches = matches
    study.record["runs"] = {
        run.title: {"folder": str(run.folder), "result": stored_or_measured(study, run), "best_on_target_labels": run.best_epoch()}
        for run in study.runs
    }
