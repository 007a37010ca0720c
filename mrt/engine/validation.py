"""Evaluation while a run trains: student and teacher on the validation split of the domain that matters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mrt.domains import SOURCE, TARGET
from mrt.engine import labels
from mrt.engine.data import evaluation_set
from mrt.engine.inference import measure
from mrt.engine.learner import Learner
from mrt.engine.prepare import Workshop
from mrt.errors import Unstable
from mrt.evaluate.coco import NotFinite


def validation(shop: Workshop) -> Callable[[Learner], dict[str, Any]] | None:
    """A function that measures student and teacher, in one pass over the images; none where there are no
    labels to measure with. It raises RunFailed where a network's output is not finite.
    """
    config, split, watcher = shop.config, shop.config.data.validation_split, shop.watcher
    card = shop.cards[TARGET if TARGET in shop.cards else SOURCE]
    nothing = f"{card.name} has no box of the detector's classes in split {split!r}"
    if config.engine.eval_every == 0:
        wanted = (
            TARGET in shop.cards and card.labelled and split in card.splits
        )  # somebody may measure on it afterwards
        if wanted and not labels.has_boxes(card, split, shop.classes, labels.class_map_for(config, card)):
            watcher.say(f"{nothing}: mrt eval will find nothing to measure with")
        return None
    if not card.labelled or split not in card.splits:
        why = "no labels" if not card.labelled else f"no split {split!r}"
        watcher.say(f"{card.name} has {why}: nothing is measured during training")
        return None
    dataset = evaluation_set(config, card, split, shop.classes)
    shop.tell(dataset.left_out())
    if not any(dataset.boxes_per_class().values()):
        watcher.say(f"{nothing}: nothing is measured during training")
        return None
    shop.tell(labels.missing_classes(dataset, labels.MEASURE))

    def evaluate(learner: Learner) -> dict[str, Any]:
        networks = {"student": learner.student.detector}
        if learner.teacher is not None:
            networks["teacher"] = learner.teacher.module
        training = {name: network.training for name, network in networks.items()}
        try:
            measured = measure(
                *(networks, dataset, config.engine.eval_batch_size, shop.world, watcher),
                *(config.engine.workers, config.engine.timeout),
            )
        except NotFinite as error:
            raise Unstable(f"{error.message}: training has diverged") from None
        found = {}
        for name, metrics in measured.items():
            networks[name].train(training[name])
            found[name] = metrics.to_dict()
            watcher.measured(name, found[name])
            for part in learner.method:
                found[name] |= part.measured(name, metrics, dataset)
            watcher.say(f"{name} on {card.name} {split}: AP50 {metrics.AP50:.1f}")
        return found

    return evaluate
