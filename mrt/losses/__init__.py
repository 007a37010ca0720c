"""What judges the detector: matching, detection, domain and reconstruction losses. Pure functions of tensors, no weights inside."""

from mrt.losses.detection import DetectionLoss, Share, class_agnostic, count_boxes
from mrt.losses.domain import DOMAIN_WEIGHTS, SOURCE, TARGET, domain_loss
from mrt.losses.matcher import HungarianMatcher, Matches, Matching, matched_confidences
from mrt.losses.reconstruction import reconstruction_loss

__all__ = [
    "DOMAIN_WEIGHTS",
    "DetectionLoss",
    "HungarianMatcher",
    "Matches",
    "Matching",
    "SOURCE",
    "Share",
    "TARGET",
    "class_agnostic",
    "count_boxes",
    "domain_loss",
    "matched_confidences",
    "reconstruction_loss",
]
