"""Where a job's images lie: training and scoring happen wherever the data set gives its images."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from growth.training import Data, Samples, size


def beside(sets: Data, device: torch.device) -> Data:
    """The data sets with their images on ``device``: all of them, or as they are read."""
    return sets if device.type == "cpu" else Data(*(_on(part, device) for part in (sets.train, sets.selection, sets.test)))


def _on(part: Samples, device: torch.device) -> Samples:
    if isinstance(part, TensorDataset):
        return cast(Samples, TensorDataset(*(tensor.to(device) for tensor in part.tensors)))
    return _ReadTo(part, device)


class _ReadTo(Dataset[tuple[Tensor, int]]):
    """A data set whose images are moved as they are read."""

    def __init__(self, part: Samples, device: torch.device) -> None:
        self._part, self._device = part, device

    def __len__(self) -> int:
        return size(self._part)

    def __getitem__(self, position: int) -> tuple[Tensor, int]:
        image, label = self._part[position]
        return image.to(self._device), label
