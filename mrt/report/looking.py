"""Sections that need networks or images: pseudo labels, detections, rebuilt maps, features, errors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from mrt.data.dataset import DetectionDataset
from mrt.engine.labels import class_map_for
from mrt.engine.snapshots import SNAPSHOTS, spread_evenly
from mrt.errors import MrtError
from mrt.evaluate.coco import ImageDetections
from mrt.evaluate.errors import KINDS, split_errors
from mrt.evaluate.labels import label_quality
from mrt.plain import slug
from mrt.report import figures, networks
from mrt.report.collect import RunData, find_card, network_of
from mrt.report.figures import QualityCurve
from mrt.report.page import Block, Cell, Section, Table
from mrt.report.study import Study, by_image, chosen_images, picture_of
from mrt.report.words import LOOKING, lacking, number, span_words, told

THRESHOLD = 0.3  # score from which detections are drawn
MAX_EPOCHS = 4  # columns of pseudo labels over time
PERPLEXITY = 30
LONGEST_SLUG = 60  # letters of a title in a file's name
NOTHING = ImageDetections(-1, np.zeros(0), np.zeros(0, dtype=np.int64), np.zeros((0, 4)))
JUDGED_IMAGES = 32  # for the share that the masked autoencoder explains


def pseudo_labels(study: Study) -> Section:
    """Number and quality of pseudo labels, and pictures of them over time."""
    section = Section("pseudo-labels", "Pseudo labels")
    for run in study.runs:
        taught = run.of("epoch", "teach") and run.facts["command"] == "adapt"
        if not taught or not run.config.teacher.pseudo_labels:
            outside = taught and run.config.teacher.labels is not None
            how = "was taught by labels from outside" if outside else "was not taught by pseudo labels"
            section.blocks.append(lacking(f"{run.title} {how}"))
            continue
        prefix = _prefix(study, run)
        target = _target_images(study, run)
        _require_images(run, target)
        quality = _quality(run, target)
        study.record["runs"][run.title]["pseudo_labels"] = [vars(curve) for curve in quality]
        boxes = [_boxes_per_image(study, run, domain) for domain in ("source", "target")]
        figure = figures.pseudo_labels(run, quality, *boxes)
        if figure is not None:
            fused = ", before they are fused with labels from outside" if run.config.teacher.fuses else ""
            caption = (
                f"{run.title}: the teacher's pseudo labels per target image{fused}, mean over each epoch."
            )
            if quality:
                caption += f" {LOOKING} Labels on crowds and ignored objects do not count as wrong."
            alt = span_words(run, "Number and quality of pseudo labels")
            section.blocks.append(study.plot(f"{prefix}pseudo-labels", figure, alt, caption))
        if not any(line["images"] for line in run.snapshots[:1]):
            why = "it recorded none (engine.snapshots was 0, or an earlier version trained it)"
            section.blocks.append(lacking(f"{run.title}'s labels over time: {why}"))
        elif target is None:
            why = f"the data set {run.config.data.target} is not here, or not the one it was trained on"
            section.blocks.append(lacking(f"{run.title}'s labels over time: {why}"))
        else:
            section.blocks.append(_over_time(study, run, target, prefix))
    return section


def _prefix(study: Study, run: RunData) -> str:
    """What the names of a run's figures begin with: of several runs, something that no other's do."""
    if not study.several:
        return ""
    slugs = [slug(other.title)[:LONGEST_SLUG] for other in study.runs]
    number = study.runs.index(run)
    return f"{slugs[number]}-" if slugs.count(slugs[number]) == 1 else f"{slugs[number]}-{number + 1}-"


def _boxes_per_image(study: Study, run: RunData, domain: str) -> float | None:
    """Mean number of boxes per image of the domain's training split; None if unknown."""
    card = find_card(run, domain, study.data_root)
    part = card.splits.get(getattr(run.config.data, f"{domain}_split")) if card else None
    return part.num_boxes / part.num_images if part and part.num_images and part.num_boxes else None


def _target_images(study: Study, run: RunData) -> DetectionDataset | None:
    """The target's training images with their labels, for analysis; None if changed since training."""
    split, card = run.config.data.target_split, find_card(run, "target", study.data_root)
    if card is None or split not in card.splits:
        return None
    used = run.facts["data"].get("target")
    if used is None or card.splits[split].sha256 != used["sha256"].get(split):
        return None
    return DetectionDataset(card, split, classes=run.classes, class_map=class_map_for(run.config, card))


def _require_images(run: RunData, target: DetectionDataset | None) -> None:
    """MrtError if labels were recorded of images that the set does not have."""
    there = {record.image_id for record in target.records} if target is not None else set()
    recorded = [image["image_id"] for line in run.snapshots for image in line["images"]]
    unknown = [image_id for image_id in recorded if image_id not in there] if target is not None else []
    if unknown:
        where = f"{target.card.name}, split {target.split}"
        raise MrtError(
            f"{run.folder / SNAPSHOTS}: image_id {unknown[0]!r} is none of {where}",
            "put the file back as it was, or move it away",
        )


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
        precision, recall = [item.precision for item in judged], [item.recall for item in judged]
        found.append(QualityCurve(where, epochs, precision, recall))
    measured = [line for line in run.of("eval", "teach") if "pseudo_labels" in line]
    if measured:
        labels = [line["pseudo_labels"] for line in measured]
        where = f"{run.config.data.validation_split} ({labels[0]['num_boxes']} boxes)"
        epochs = [run.place(line) for line in measured]
        precision, recall = [item["precision"] for item in labels], [item["recall"] for item in labels]
        found.append(QualityCurve(where, epochs, precision, recall))
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
            found = column.get(image_id, NOTHING)  # an image may have been unreadable then
            labels = ", ".join(run.classes[label] for label in found.labels)
            when = f"after epoch {line['epoch']} of teaching"
            alt = f"Image {image_id} {when}: {labels or 'no pseudo labels'}"
            row.append(Cell(picture_of(target, image_id, found, wide), alt))
        if target.labelled:
            alt = f"Image {image_id} with its true boxes"
            row.append(Cell(picture_of(target, image_id, "truth", wide), alt))
        rows.append(row)
    titles = [f"after epoch {line['epoch']}" if line["epoch"] else "before teaching" for line in picked]
    titles += ["truth†"] if target.labelled else []
    alt = f"Pseudo labels of {len(ids)} target images over the epochs of teaching"
    caption = (
        f"{run.title}: the teacher's pseudo labels of the same target training images, with the thresholds "
        f"of the time; {len(ids)} of the {len(recorded)} recorded images (pseudo_labels.jsonl)."
    )
    caption += f" {LOOKING}" if target.labelled else ""
    return study.grid(f"{prefix}pseudo-labels-over-time", alt, caption, titles, rows)


def pictures(study: Study) -> Section:
    """Detections on the same images before and after, and the ground truth."""
    section = Section("detections", "Detections before and after")
    if not study.last or study.dataset is None:
        section.blocks.append(lacking(study.missing.get("networks", "there are no weights yet")))
        return section
    columns = {"before: the start": study.start} if study.start else {}
    for run in study.runs:
        if run.title in study.last:
            judged = study.last[run.title]
            columns[run.title if study.several else f"after: last {network_of(run, judged.network)}"] = judged
    found = {title: by_image(judged) for title, judged in columns.items()}
    ids = chosen_images(study.dataset, study.images)
    rows, wide = [], len(found) + study.dataset.labelled
    for image_id in ids:
        row = []
        for title, detections in found.items():
            kept = detections[image_id]
            names = [study.dataset.classes[label] for label in kept.labels[kept.scores >= THRESHOLD]]
            alt = f"Image {image_id}, {title}: {', '.join(names) or 'nothing'}"
            row.append(Cell(picture_of(study.dataset, image_id, kept, wide, THRESHOLD), alt))
        if study.dataset.labelled:
            alt = f"Image {image_id} with its true boxes"
            row.append(Cell(picture_of(study.dataset, image_id, "truth", wide), alt))
        rows.append(row)
    titles = [*found, *(["ground truth"] if study.dataset.labelled else [])]
    caption = (
        f"{study.card.name} {study.split}: detections scored at least {THRESHOLD}, with their score in per "
        "cent. The images are spread evenly over the split, not picked; ignored objects are not drawn."
    )
    alt = "Detections on the same images: " + ", ".join(titles)
    section.blocks.append(study.grid("detections", alt, caption, titles, rows))
    if "start" in study.missing:
        section.blocks.append(lacking(f"detections before: {study.missing['start']}"))
    return section


def reconstructions(study: Study) -> Section:
    """Feature maps that the masked autoencoder rebuilds."""
    section = Section("reconstruction", "Masked autoencoder")
    for run in study.runs:
        card = find_card(run, "target", study.data_root)
        if study.quick or card is None:
            why = study.missing.get("networks") or study.missing.get("data", f"no data for {run.title}")
            section.blocks.append(lacking(why))
            return section
        autoencoders = networks.find_autoencoders(run, study.device)
        if not autoencoders:
            section.blocks.append(lacking(f"{run.title} trained no masked autoencoder, or did not keep it"))
            continue
        split = study.split if study.split in card.splits else run.config.data.target_split
        batches = networks.views(run.config, card, split, run.classes, max(study.images, JUDGED_IMAGES))
        ratio, seed = run.config.mae.mask_ratio, run.config.seed
        tried = [(item, *networks.rebuild(item, batches, ratio, seed, study.device)) for item in autoencoders]
        best = max(
            tried, key=lambda item: item[2] if item[2] is not None and np.isfinite(item[2]) else -np.inf
        )
        explained = {item.about: share for item, _, share in tried}
        study.record["runs"][run.title]["reconstruction"] = {
            "explained": explained,
            "mask_ratio": ratio,
            "images": len(best[1]),
        }
        rows = [best[1][index] for index in spread_evenly(len(best[1]), study.images)]
        known = {about: share for about, share in explained.items() if share is not None}
        shares = "; ".join(f"{about}: {100 * share:.0f} %" for about, share in known.items())
        caption = (
            f"{run.title}: energy (mean square over channels) of the backbone's last map"
            f"{', normalised in each channel' * run.config.mae.normalise}, what masking of "
            f"{100 * ratio:.0f} % leaves of it, and of the map that the auxiliary decoder rebuilds from "
            f"{best[0].about}. Share of the masked cells' variance that is explained, over {len(best[1])} "
            f"images: {shares}. {card.name}, split {split}; masks drawn with seed {seed}; each colour bar "
            "has its scale."
        )
        prefix = _prefix(study, run)
        alt = f"Feature energy of {len(rows)} target images: real, masked and rebuilt"
        figure = figures.reconstructions(rows)
        section.blocks.append(study.plot(f"{prefix}reconstruction", figure, alt, caption))
    return section


def features(study: Study) -> Section:
    """t-SNE of both domains' features, at the inputs of the discriminators."""
    section = Section("features", "Features of both domains")
    run = study.subject
    cards = {domain: find_card(run, domain, study.data_root) for domain in ("source", "target")}
    if study.quick or not study.last or None in cards.values():
        why = study.missing.get("networks") or study.missing.get("data")
        section.blocks.append(lacking(why or "one of the two data sets is not here"))
        return section
    detectors = {"before": study.start} if study.start else {}
    for item in study.runs:
        if item.title in study.last:
            detectors[item.title if study.several else "after"] = study.last[item.title]
    other = "source" if study.domain == "target" else "target"  # the domain that was not looked at yet
    split = run.config.data.validation_split
    usual = getattr(run.config.data, f"{other}_split")
    splits = {study.domain: study.split, other: split if split in cards[other].splits else usual}
    batches = networks.views(run.config, cards[other], splits[other], run.classes, study.points)
    study.watcher.begin(f"features of {cards[other].name}", len(detectors) * sum(map(len, batches)))
    rows: dict[str, Any] = {}
    counts: dict[str, int] = {}
    for title, judged in detectors.items():
        seen = networks.features(judged.detector, batches, study.device, study.watcher)
        found = {study.domain: judged.vectors, other: seen}
        counts = {domain: len(vectors[networks.PLACES[0]]) for domain, vectors in found.items()}
        rows[title] = {
            place: networks.embed(found["source"][place], found["target"][place], PERPLEXITY, run.config.seed)
            for place in networks.PLACES
        }
    study.watcher.end()
    mixing = {title: {place: item[2] for place, item in places.items()} for title, places in rows.items()}
    perplexity = min(PERPLEXITY, (sum(counts.values()) - 1) / 3)
    study.record["features"] = {
        "perplexity": perplexity,
        "seed": run.config.seed,
        "images": counts,
        "mixing": mixing,
    }
    caption = (
        "t-SNE of one vector per image: the backbone's C5 and the encoder's output, averaged over the "
        "image's cells, and the decoder's queries, weighted by their best score: where the three "
        f"discriminators judge. {counts['source']} {cards['source'].name} and {counts['target']} "
        f"{cards['target'].name} images (split {splits['target']}), perplexity {perplexity:g}, seed "
        f"{run.config.seed}; every panel is an embedding of its own. Below each: of the "
        f"{networks.NEIGHBOURS} nearest neighbours in the space of the features, the share of the other "
        "domain (50 %: cannot be told apart)."
    )
    shares = []
    for title, places in mixing.items():
        shares += [f"{title} {place}: {100 * value:.0f} %" for place, value in places.items()]
    alt = "Source and target images as points, by detector and place. Neighbours of the other domain: "
    alt += "; ".join(shares)
    section.blocks.append(study.plot("features", figures.embedding(rows), alt, caption))
    return section


def errors(study: Study) -> Section:
    """The cost of each kind of error, in points of AP50."""
    section = Section("errors", "Kinds of errors")
    if not study.matches:
        section.blocks.append(lacking(study.missing.get("networks", "the data set has no labels")))
        return section
    found = {title: split_errors(item) for title, item in study.matches.items()}
    study.record["errors"] = {title: split.to_dict() for title, split in found.items()}
    values = {title: [split.gains[name] for name in KINDS] for title, split in found.items()}
    colours = [figures.BEFORE, figures.AFTER, *figures.COLOURS[1:6]] if study.start else figures.COLOURS
    alt = told(KINDS, values)
    caption = (
        "AP50 that would be won if all errors of one kind were mended "
        f"({study.card.name} {study.split}; after TIDE, Bolya et al. 2020)."
    )
    figure = figures.bars(KINDS, values, "AP50 points lost", colours, decimals=1)
    section.blocks.append(study.plot("errors", figure, alt, caption))
    rows = []
    for title, split in found.items():
        rows.append([title, *(f"{number(split.gains[name])} ({split.counts[name]})" for name in KINDS)])
    caption = "AP50 points lost to each kind of error (and how many there are)"
    section.blocks.append(Table(caption, ["", *KINDS], rows))
    return section
