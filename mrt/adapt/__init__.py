"""What MRT adds to a detector, with one idea of the paper per file.

The ideas are the teacher, dynamic thresholds, pseudo labels and selective retraining.
"""

from mrt.adapt.pseudo_labels import PendingLabels, pseudo_labels
from mrt.adapt.retrain import kept_words, reinit_state, restore
from mrt.adapt.teacher import Teacher
from mrt.adapt.thresholds import DynamicThresholds
from mrt.callable import make_callable

__all__ = [
    "DynamicThresholds",
    "PendingLabels",
    "Teacher",
    "kept_words",
    "pseudo_labels",
    "reinit_state",
    "restore",
]

make_callable(__name__)
