"""Domain adaptive object detection with MRT, the Masked Retraining Teacher-student (ICCV 2023)."""

__version__ = "0.1.0"
