"""Watching teaching for a collapse: labels that vanish, explode or become one class, and a teacher that gets
worse. It is said while it happens, with what to change.

Nothing here needs a label of the target, only the pseudo labels of all images of the epoch that is over, and
what is seen in the snapshots' images. A run's log has both, so that a run that goes on knows what was before.
How far the student agrees with the teacher is logged, too, but is no sign of a collapse: in healthy runs it
falls to a tenth while AP50 rises (docs/log.md, 2026-11-30).

What counts as a collapse (:data:`FEW` and the others) is to be checked on runs that collapse on purpose and
healthy ones: docs/results/selection.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

FEW = 0.02  # labels per image, as a share of the source's boxes, that are as good as none
SCARCE = 0.1  # that are too few unless they grow
GROWS = 1.1  # times the epoch before
FALLEN = 0.5  # share of the run's own largest number of labels
MANY = 1.5  # labels per image, as a multiple of the source's boxes
SURGE, SURGE_MANY = 3.0, 1.0  # times the first epoch's labels, and that multiple of the source's boxes
CLASS_MANY = 3.0  # labels of one class, as a multiple of the source's boxes of it and of its first labels
CLASS_LEAST = 0.5  # labels per image of a class, below which it is not told
TAKEN, RISE = 0.85, 0.35  # a class's share of the labels; how far above its share on the source and at first
FALL = 0.05  # share of their best value by which prototypes fall when a teacher gets worse
ENOUGH = 0.05  # labels per image below which the shares of classes say nothing
NAMED = 8  # classes in a message: those whose thresholds moved most
WEAKER = "make the discriminators weaker (domain.*_weight)"
LIMIT = "give no class more labels than the source has objects of it (teacher.most_labels=0.8)"
SLOWER = "let the teacher follow more slowly (teacher.ema nearer 1)"
ADVICE = {  # what to do, by the kind of alarm
    "vanishing": (
        "lower the thresholds (teacher.threshold_start, teacher.threshold_min)",
        "begin with a source detector that finds more in the target",
        WEAKER,
    ),
    "exploding": (LIMIT, "raise teacher.threshold_min", WEAKER, SLOWER),
    "one class": (
        "use thresholds of its own for each class (teacher.dynamic=true)",
        "raise teacher.threshold_max",
    ),
    "falling": (WEAKER, SLOWER, "take an earlier teacher (engine.keep_teachers, mrt select)"),
}


def advice(kind: str, discriminators: bool = True, counted: bool = True) -> str:
    """What to do about an alarm, as a sentence; "" for a kind that is not known.

    Args:
        discriminators: whether the run has some.
        counted: whether it is known how many objects of each class the source's images have.
    """
    vain = {*(() if discriminators else (WEAKER,)), *(() if counted else (LIMIT,))}
    steps = [step for step in ADVICE.get(kind, ()) if step not in vain]
    text = ", or ".join([", ".join(steps[:-1]), steps[-1]] if steps[1:] else steps)
    return f"{text[0].upper()}{text[1:]}." if text else ""


@dataclass(frozen=True)
class Sight:
    """What is seen of one epoch.

    Attributes:
        epoch: how many are over.
        labels: pseudo labels per image by class.
        prototypes: of the teacher on the snapshots' images (:mod:`mrt.evaluate.unlabelled.prototypes`); None:
            not looked at, or it finds less than two classes.
        thresholds: by class.
    """

    epoch: int
    labels: Mapping[str, float]
    prototypes: float | None = None
    thresholds: Mapping[str, float] = field(default_factory=dict)

    @property
    def total(self) -> float:
        return sum(self.labels.values())


@dataclass(frozen=True)
class Alarm:
    """A collapse that is seen: its kind, and in words what is seen and what to do."""

    kind: str
    text: str


class Watch:
    """Looks at a stage's epochs one after the other.

    Args:
        expected: labelled source boxes per image by class; empty where that is not known: then the run is
            compared with itself alone.
        discriminators: whether the run has any, so that weaker ones are worth a try.

    Attributes:
        sights: of the epochs so far. good: number of the last epoch without an alarm (0: the beginning).
        active: kinds of what is wrong now.
    """

    def __init__(self, expected: Mapping[str, float] | None = None, discriminators: bool = True) -> None:
        self.expected = dict(expected or {})
        self.discriminators = discriminators
        self.sights: list[Sight] = []
        self.good = 0
        self.active: set[str] = set()

    def see(self, sight: Sight) -> list[Alarm]:
        """What is wrong after an epoch and was not after the one before."""
        self.sights.append(sight)
        alarms = [
            alarm for look in (self._few, self._many, self._one_class, self._falling) for alarm in look(sight)
        ]
        new = [alarm for alarm in alarms if alarm.kind not in self.active]
        self.active = {alarm.kind for alarm in alarms}
        if not alarms:
            self.good = sight.epoch
        return new

    @property
    def best(self) -> int:
        """The epoch with the largest ``prototypes`` so far, the first of equals; 0: none has a value."""
        known = [one for one in self.sights if one.prototypes is not None]
        return max(known, key=lambda one: (one.prototypes, -one.epoch)).epoch if known else 0

    def stale(self) -> int:
        """Epochs since :attr:`best`; 0 where none has a value."""
        return self.sights[-1].epoch - self.best if self.best else 0

    def replay(self, lines: Iterable[Mapping[str, Any]], epochs: int) -> None:
        """See again what a run's log has of the stage's first ``epochs`` epochs."""
        for line in lines:
            over = line.get("kind") == "epoch" and line.get("epoch", 0) <= epochs
            if over and (sight := sight_of(line)) is not None:
                self.see(sight)

    def _advice(self, kind: str) -> str:
        return advice(kind, self.discriminators, bool(self.expected))

    def _of_source(self) -> float:
        return sum(self.expected.values())

    def _few(self, now: Sight) -> Iterable[Alarm]:
        source, before = self._of_source(), self.sights[:-1]
        most = max((one.total for one in before), default=0.0)
        grows = bool(before) and now.total >= GROWS * before[-1].total
        none = now.total <= FEW * source
        scarce = source > 0 and now.total < SCARCE * source and bool(before) and not grows
        fallen = now.total < FALLEN * most and not grows
        if none or scarce or fallen:
            than = f"{most:.2f} before" if fallen else f"{source:.1f} boxes on the source"
            yield Alarm(
                "vanishing",
                f"pseudo labels vanish: {now.total:.2f} an image, {than}; thresholds {self._moved(now)}. "
                f"{self._advice('vanishing')}",
            )

    def _many(self, now: Sight) -> Iterable[Alarm]:
        source, first = self._of_source(), self.sights[0].total
        surge = now.total > SURGE * first > 0 and now.total > SURGE_MANY * source
        if (source > 0 and now.total > MANY * source) or surge:
            than = f"{first:.1f} at first" if surge else f"{source:.1f} boxes on the source"
            yield Alarm(
                "exploding",
                f"pseudo labels explode: {now.total:.1f} an image, {than}; thresholds {self._moved(now)}. "
                f"{self._advice('exploding')}",
            )
            return
        first_labels, many = self.sights[0].labels, []
        for name, count in now.labels.items():
            of_source, at_first = self.expected.get(name, 0.0), first_labels.get(name, 0.0)
            if of_source > 0 and count > CLASS_MANY * max(of_source, at_first) and count >= CLASS_LEAST:
                many.append(
                    f"{name} {count:.1f} an image, {of_source:.1f} on the source, {at_first:.1f} at first"
                )
        if many:
            yield Alarm(
                "exploding",
                f"pseudo labels of a class explode: {'; '.join(many[:NAMED])}; "
                f"thresholds {self._moved(now)}. {self._advice('exploding')}",
            )

    def _one_class(self, now: Sight) -> Iterable[Alarm]:
        if now.total < ENOUGH or len(now.labels) < 2:
            return
        name = max(now.labels, key=lambda key: now.labels[key])
        share = now.labels[name] / now.total
        first = self.sights[0]
        before = first.labels.get(name, 0.0) / first.total if first.total >= ENOUGH else 0.0
        source = self.expected.get(name, 0.0) / self._of_source() if self._of_source() else before
        if share > TAKEN and share - source > RISE and (len(self.sights) == 1 or share - before > RISE / 2):
            yield Alarm(
                "one class",
                f"one class takes over: {name} has {share:.0%} of the pseudo labels, {source:.0%} on the "
                f"source; thresholds {self._moved(now)}. {self._advice('one class')}",
            )

    def _falling(self, now: Sight) -> Iterable[Alarm]:
        best = next((one for one in self.sights if one.epoch == self.best), None)
        if best is not None and now.prototypes is not None and now.prototypes < (1 - FALL) * best.prototypes:
            yield Alarm(
                "falling",
                f"the teacher gets worse: prototypes fall to {now.prototypes:.2f} from {best.prototypes:.2f} "
                f"after epoch {best.epoch} (how far classes are apart, compared with the domains). "
                f"{self._advice('falling')}",
            )

    def _moved(self, now: Sight) -> str:
        """How the thresholds moved, in words."""
        if not now.thresholds:
            return "are not known"
        first = next((one.thresholds for one in self.sights if one.thresholds), now.thresholds)
        if len({round(value, 2) for value in (*first.values(), *now.thresholds.values())}) == 1:
            return f"stay at {next(iter(now.thresholds.values())):.2f}"
        moved = {name: (first.get(name, value), value) for name, value in now.thresholds.items()}
        most = sorted(moved, key=lambda name: -abs(moved[name][1] - moved[name][0]))[:NAMED]
        words = []
        for name in (name for name in moved if name in most):
            start, end = (f"{number:.2f}" for number in moved[name])
            words.append(f"{name} {start}" + (f" -> {end}" if end != start else ""))
        more = len(moved) - len(words)
        return ", ".join(words) + (f" and {more} more" if more else "")


def sight_of(facts: Mapping[str, Any]) -> Sight | None:
    """What the log's line of an epoch tells; None where the stage labels nothing."""
    labels = facts.get("labels_per_image")
    if not labels:
        return None
    return Sight(facts["epoch"], labels, facts.get("prototypes"), facts.get("thresholds") or {})
