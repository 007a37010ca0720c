"""From a user's options to a checked experiment.

It has roots, preset, configuration, run folder and starting weights. The command line and the Python
functions of :mod:`mrt.api` both use this package, so that both do the same. It does not import torch.

    places    where data and runs are, what they are called, and whether they are there
    settings  the settings of a new run, or of one that goes on
    taken     what is taken because it was not said
    plan      the run as a whole: settings, folder, starting weights, and how to train it
"""

from __future__ import annotations

from mrt.experiment.places import (
    SHIPPED,
    detectors,
    find_roots,
    find_run,
    require_data,
    require_detector,
    require_labels,
    require_named,
    require_new,
    require_run,
    root_words,
    run_folder,
    run_names,
)
from mrt.experiment.plan import (
    Experiment,
    plan_adaptation,
    plan_pretraining,
)
from mrt.experiment.settings import (
    OWN,
    choose_preset,
    configure,
    default_name,
    resolve,
    resolve_started,
)

__all__ = [
    "Experiment",
    "OWN",
    "SHIPPED",
    "choose_preset",
    "configure",
    "default_name",
    "detectors",
    "find_roots",
    "find_run",
    "plan_adaptation",
    "plan_pretraining",
    "require_data",
    "require_detector",
    "require_labels",
    "require_named",
    "require_new",
    "require_run",
    "resolve",
    "resolve_started",
    "root_words",
    "run_folder",
    "run_names",
]
