"""A network that is ready for use: give it an image, get the classes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import nn

from costs.families import Network
from growth.preprocessing import Preprocessing


@dataclass(frozen=True, slots=True)
class Classifier:
    """A network as data, its module, and what it expects of an image.  ValueError if they don't fit together."""

    network: Network
    model: nn.Module
    preprocessing: Preprocessing

    def __post_init__(self) -> None:
        expects = self.preprocessing
        given = (expects.image_size, len(expects.mean), len(expects.std), len(expects.class_names))
        needed = (self.network.image_size, self.network.in_channels, self.network.in_channels, self.network.classes)
        if given != needed:
            names = "image size, means, standard deviations and class names"
            raise ValueError(f"the preprocessing has {given} as {names}; the network needs {needed}: give those of its own training data")

    def classify(self, path: str | Path) -> dict[str, float]:
        """The probability of each class for an image file, the likeliest first.  The model is put into eval mode."""
        with Image.open(path) as image:
            inputs = self.preprocessing.prepare(image)  # [C, H, W]
        with torch.no_grad():
            probabilities = self.model.eval()(inputs.unsqueeze(0))[0].softmax(0)  # [classes]
        ranked = probabilities.sort(descending=True, stable=True)
        return {self.preprocessing.class_names[index]: value for value, index in zip(*(part.tolist() for part in ranked), strict=True)}
