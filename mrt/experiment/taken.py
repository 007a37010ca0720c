"""What is taken because it was not said: a source set, a method, a network, a batch that can be filled."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mrt.config import AUTO, Config, Settings
from mrt.errors import MrtError
from mrt.experiment.places import SHIPPED, require_detector, root_words
from mrt.experiment.settings import OWN

FREE = "source-free"  # the method that needs no source images


@dataclass(frozen=True)
class Taken:
    """What was taken because it was not said: settings by dotted key, a method, and words by what they are
    about.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    words: Mapping[str, str] = field(default_factory=dict)
    method: str | None = None


def take_source(target: str, init: str | None, method: str | None, roots: Settings) -> Taken:
    """Where a set of one's own is adapted from if nobody said it: the set that the starting weights learned
    from, else no images at all; without such weights the one labelled set that there is.

    Raises:
        MrtError: no such target, or nothing to choose; it says what would do.
    """
    from mrt.data.registry import find_dataset, prepared_sets

    card = find_dataset(target, roots.data_root)
    labelled = [other.name for other in prepared_sets(roots.data_root) if other.labelled]
    labelled = [name for name in labelled if name != card.name]
    command = ["mrt", "adapt", "--target", target, *(["--method", method] if method else [])]
    more = root_words(roots)
    if init is not None:
        source = _trained_on(init, roots)
        if source in labelled:
            return Taken({"data.source": source}, {"source": f"source {source}, which {init} learned from"})
        if method is None:
            return Taken({}, {"source": f"method {FREE}, for no source set was named"}, FREE)
        hint = f"without source images: {shlex.join([*command[:4], '--init', init, '--method', FREE, *more])}"
        raise MrtError(
            f"--method {method}: learns from labelled source images too, and none were named",
            f"name them with --source ({_listed(labelled)}); {hint}",
        )
    trained = [name for name in labelled if (roots.run_root / f"{OWN}-source-{name}").is_dir()]
    choices = ((trained, "of which there is a source detector"), (labelled, "the only labelled set here"))
    for names, why in choices:
        if len(names) == 1:
            return Taken({"data.source": names[0]}, {"source": f"source {names[0]}, {why}"})
    if trained:
        hint = f"there are source detectors of {_listed(trained)}; for example: "
        hint += shlex.join([*command, "--source", trained[0], *more])
    elif labelled:
        hint = f"there are {_listed(labelled)}; a source detector is trained first, for example: "
        hint += shlex.join(["mrt", "pretrain-source", "--source", labelled[0], *more])
    else:
        hint = "no labelled set is prepared; from weights alone, such as those of rendered streets: "
        hint += shlex.join([*command[:4], "--init", SHIPPED, *more])
    raise MrtError(
        f"--target {target}: no labelled set was named to adapt from, and this target has no preset",
        f"name it with --source; {hint}",
    )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "no labelled set is prepared"


def _is_here(init: str, roots: Settings) -> bool:
    """Whether weights can be looked at: no for a model on the hub, which would have to be downloaded.

    Raises:
        MrtError: there are no such weights.
    """
    from mrt.models.hub import hub_name

    if hub_name(init) is not None and not Path(init).exists():
        return False
    require_detector(init, roots.run_root)
    return True


def _trained_on(init: str, roots: Settings) -> str | None:
    """The set that weights learned from, if they say so."""
    if not _is_here(init, roots):
        return None
    from mrt.engine.load import trained_on

    return trained_on(init)


def network_of(init: str, roots: Settings) -> dict[str, Any]:
    """The settings of weights' network and of the images that it takes; none of what is not here."""
    if not _is_here(init, roots):
        return {}
    from mrt.engine.load import settings_of

    return settings_of(init)


def assumed_words(
    config: Config,
    preset: str | None,
    resume: bool,
    asked: Mapping[str, str | None],
    taken: Mapping[str, str] | None = None,
    network: str | None = None,
    fewer: str = "",
) -> str:
    """The defaults of a new run, e.g. "preset own (settings for your own data), source cityscapes".

    Args:
        asked: "source" and "target" as they were given. taken: words for what was taken in their place.
        network: the weights whose network and image sizes are taken.
        fewer: words for a batch that is smaller than the preset's.
    """
    if resume:
        return ""
    taken = dict(taken or {})
    words = []
    if not preset:
        note = " (settings for your own data)" if config.preset == OWN else ""
        words.append(f"preset {config.preset}{note}")
    for domain, name in asked.items():
        if name is None and domain not in taken:
            words.append(f"{domain} {getattr(config.data, domain)}")
    words += taken.values()
    words += [f"the network and image sizes of {network}"] if network else []
    words += [fewer] if fewer else []
    return ", ".join(words)


def batch_that_fits(
    config: Config, domains: Sequence[str], named: Collection[str], roots: Settings
) -> tuple[Config, str]:
    """The configuration of a new run with a batch that its smallest set can fill, and words for it; the same
    configuration and no words where the batch was named, or is filled, or a set is not there yet.

    Args:
        domains: what there are batches of: "source", "target", or "source+target" of both as one set.
        named: the settings that the user gave.
    """
    from mrt.data.registry import find_dataset

    engine, data = config.engine, config.data
    times = 1 if engine.accumulate == AUTO else engine.accumulate
    if "engine.batch_size" in named:
        return config, ""
    images = {}
    for domain in domains:
        names, number = {}, 0
        for part in domain.split("+"):
            name = getattr(data, part)
            try:
                split = find_dataset(name, roots.data_root).split(getattr(data, f"{part}_split"))
            except MrtError:  # told where the set is needed
                return config, ""
            names[name] = None
            number += split.num_images
        images[" and ".join(names)] = number
    fewest = min(images, key=images.__getitem__)
    number = images[fewest]
    if not number or engine.batch_size // times <= number:
        return config, ""
    size = number * times
    what = f"{fewest} has only {number} image{'' if number == 1 else 's'} to learn from"
    smaller = config.model_copy(update={"engine": engine.model_copy(update={"batch_size": size})})
    return smaller, f"engine.batch_size {size}, for {what}"
