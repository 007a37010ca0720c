"""Figures of detections against labels: COCO metrics, intervals, kinds of mistakes, pictures."""

from mrt.callable import make_callable

make_callable(__name__)
