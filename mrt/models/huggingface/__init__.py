"""Reading and writing folders of Hugging Face's ``DeformableDetrForObjectDetection``.

The transformers package is not needed. A folder holds ``config.json``, ``model.safetensors`` (or
``pytorch_model.bin``, whole or in shards) and ``preprocessor_config.json``, as transformers 4.57 and 5.24
write them; both use the same names. Each tensor is assigned by name. Missing or additional tensors are an
error, and so is every option that the detector here does not have.
"""

from mrt.models.huggingface.reading import (
    HuggingFaceModel,
    describe_huggingface,
    is_huggingface,
    load_huggingface,
)
from mrt.models.huggingface.writing import write_huggingface

__all__ = [
    "HuggingFaceModel",
    "describe_huggingface",
    "is_huggingface",
    "load_huggingface",
    "write_huggingface",
]
