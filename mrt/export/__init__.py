"""Export of detectors for use elsewhere: weights in other layouts and whole programs.

Each is checked to detect the same before it is reported as written.
"""

from mrt.callable import make_callable
from mrt.export.write import FORMATS, export_detector

__all__ = ["FORMATS", "export_detector"]

make_callable(__name__)
