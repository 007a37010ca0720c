"""Matching, and the detection, domain and reconstruction losses: functions of tensors, without weights."""

from mrt.losses.criterion import Judged, Judging, Loss, Piece, SetCriterion
from mrt.losses.detection import DetectionLoss, Share, class_agnostic, count_boxes
from mrt.losses.domain import DOMAIN_WEIGHTS, SOURCE, TARGET, domain_loss
from mrt.losses.matcher import HungarianMatcher, Matches, Matching, matched_confidences
from mrt.losses.reconstruction import explained_variance, reconstruction_loss

__all__ = [
    "DOMAIN_WEIGHTS",
    "DetectionLoss",
    "HungarianMatcher",
    "Judged",
    "Judging",
    "Loss",
    "Matches",
    "Matching",
    "Piece",
    "SOURCE",
    "SetCriterion",
    "Share",
    "TARGET",
    "class_agnostic",
    "count_boxes",
    "domain_loss",
    "explained_variance",
    "matched_confidences",
    "reconstruction_loss",
]
