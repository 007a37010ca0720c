"""A Hugging Face folder, run by the transformers package."""

from __future__ import annotations

import importlib.util
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mrt.errors import MrtError
from mrt.models.postprocess import top_pairs
from mrt.predict.network import CANDIDATES, pixels_to_input


class TransformersNetwork:
    """A folder's model, loaded by transformers alone, as a :class:`mrt.predict.network.Network`.

    Attributes:
        classes: names of its columns.

    Raises:
        MrtError: transformers does not support such a network, e.g. one with a single decoder layer.
    """

    def __init__(self, folder: Path, device: torch.device | str = "cpu") -> None:
        from transformers import AutoModelForObjectDetection
        from transformers.utils import logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        self.device = torch.device(device)
        try:
            model = AutoModelForObjectDetection.from_pretrained(str(folder), local_files_only=True)
        except (ValueError, RuntimeError, OSError) as error:
            version = metadata.version("transformers")
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            what = f"transformers {version} cannot load this detector: {reason}"
            raise MrtError(what, "take another format") from error
        self.model = model.to(self.device).eval()
        names = self.model.config.id2label
        self.classes = [names[column] for column in sorted(names)]

    @staticmethod
    def there() -> bool:
        """Whether transformers is installed."""
        return importlib.util.find_spec("transformers") is not None

    def __call__(self, images: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        with torch.inference_mode():
            found = self.model(pixel_values=pixels_to_input(images.to(self.device)))
            parts = top_pairs(found.logits, found.pred_boxes, CANDIDATES)
        return tuple(part.cpu().numpy() for part in parts)
