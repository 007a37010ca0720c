"""Folders of Hugging Face's ``DeformableDetrForObjectDetection``, in and out; the transformers package is not needed.

Names and meanings were learned from transformers 4.57 and 5.24, whose files these are: ``config.json``, ``model.safetensors`` (or
``pytorch_model.bin``, whole or in shards) and ``preprocessor_config.json``. Both versions write the same names. Each tensor is placed by
name; what a file has too many or too few of is an error, and so is every option that the detector here has no counterpart for.
"""

from mrt.models.huggingface.reading import HuggingFaceModel, describe_huggingface, is_huggingface, load_huggingface
from mrt.models.huggingface.writing import write_huggingface

__all__ = ["HuggingFaceModel", "describe_huggingface", "is_huggingface", "load_huggingface", "write_huggingface"]
