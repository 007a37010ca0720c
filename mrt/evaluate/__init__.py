"""Evaluation of detections against labels: COCO metrics, confidence intervals, kinds of errors, pictures."""

from mrt.callable import make_callable

make_callable(__name__)
