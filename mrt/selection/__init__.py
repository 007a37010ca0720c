"""Choosing among trained detectors, and trusting one, without the target's labels: ``mrt select`` and
``mrt assess``.

    candidates  which detectors there are: a run's kept teachers and its last one, several runs
    looking     the images, and the forward passes of each candidate
    ranking     values, intervals, what each signal picks, and whether that is more than noise
    record      what was found, kept in the run's folder
    apply       writing the chosen weights, with a record of how they were chosen
    assess      a detector against the one it started from, and the images whose labels would tell most
    page        the page about that

No annotation file of the target is opened. Labelled source images are used where they are there.
"""

from mrt.selection.apply import apply
from mrt.selection.candidates import Candidate, find_candidates
from mrt.selection.looking import Images, images_for, measure, measure_all
from mrt.selection.ranking import ENOUGH, choose, rank
from mrt.selection.record import keep_record

__all__ = [
    "ENOUGH",
    "Candidate",
    "Images",
    "apply",
    "choose",
    "find_candidates",
    "images_for",
    "keep_record",
    "measure",
    "measure_all",
    "rank",
]
