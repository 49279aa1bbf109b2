"""From an image to a network's input: the middle square, resized, scaled to [0, 1], standardised per channel.

Training and later use go through the same functions here, so that a network meets new images as it met those it was trained on.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

FITTING = "the shorter side is fitted, the middle is kept; bilinear, antialiased"
_MODES = {1: "L", 3: "RGB"}  # Pillow's, by channels


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """What a network expects of an image, and what its outputs are called.

    ``mean``, ``std``: per channel, of the training images, scaled to [0, 1].  ``class_names``: in the order of the network's outputs.
    """

    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_names: tuple[str, ...]

    def prepare(self, image: Image.Image) -> Tensor:
        """The network's input for an image of any size and mode, [C, image_size, image_size].  ValueError unless C is 1 or 3."""
        return self.standardise(scaled(fitted(image, self.image_size, len(self.mean))))

    def standardise(self, pixels: Tensor) -> Tensor:
        """Images in [0, 1], [..., C, H, W], with each channel's mean subtracted, divided by its standard deviation."""
        mean, std = (pixels.new_tensor(values).reshape(-1, 1, 1) for values in (self.mean, self.std))
        return (pixels - mean) / std


def fitted(image: Image.Image, image_size: int, channels: int) -> Tensor:
    """An image as uint8 [channels, image_size, image_size], fitted as ``FITTING`` says."""
    if channels not in _MODES:
        raise ValueError(f"the network takes {channels} channels, and an image has 1 or 3; make its input yourself and standardise it")
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    box = (left, top, left + side, top + side)
    square = image.convert(_MODES[channels]).resize((image_size, image_size), Image.Resampling.BILINEAR, box=box)
    return torch.from_numpy(np.array(square).reshape(image_size, image_size, channels)).permute(2, 0, 1)


def scaled(pixels: Tensor) -> Tensor:
    """Pixels as floats in [0, 1], which they may be already."""
    return pixels.float().div_(255) if pixels.dtype == torch.uint8 else pixels
