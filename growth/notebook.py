"""Growing a model of one's own, outside the service: a model and its data loader in, an iterator of rounds out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, Subset

from costs.model import Budget, CostModel
from growth.config import GrowthConfig
from growth.events import Finished, Round
from growth.loop import Growth
from growth.training import Data, Samples, seeded, size

HELD_OUT = 0.1


class Rounds(Iterator[Round]):
    """The rounds of one run, as they happen.  ``model`` is the network so far; after the last round it is trained to the end.

    ``finished`` (loss and accuracy on the validation data, cost, compute) is there once the iteration is over.
    """

    def __init__(self, growth: Growth) -> None:
        self.growth = growth
        self.finished: Finished | None = None
        self._events = growth.events()

    @property
    def model(self) -> nn.Module:
        return self.growth.model

    def __next__(self) -> Round:
        for event in self._events:
            if isinstance(event, Round):
                return event
            if isinstance(event, Finished):
                self.finished = event
        raise StopIteration


def grow(
    model: nn.Module, loader: DataLoader[Any], cost_model: CostModel, config: GrowthConfig, validation: DataLoader[Any] | None = None,
    further: Sequence[Budget] = (),
) -> Rounds:  # fmt: skip
    """Grow ``model``, any module that ``find_groups`` can follow.

        rounds = grow(model, loader, Macs(), GrowthConfig(limit=2_000_000))
        for round in rounds:
            print(round.widths_after, round.predicted_change, round.loss_before, round.loss_after)
        rounds.model

    ``further`` budgets are kept to beside the config's limit.

    Of the loaders only the data sets are used, map-style ones of (image, class): batch size and order are the config's, which makes a
    run repeatable.  Rounds are judged on ``validation``, or without it on a tenth of the training data that is held out.  ``model`` is
    the seed and is trained in place until its first split.  TypeError for a data set without a length; TraceError for a model that
    can't be followed; ValueError for a config that model or data don't allow.
    """
    train = _map_style(loader)
    held_out = None if validation is None else _map_style(validation)
    if held_out is None:
        train, held_out = _hold_out(train, config.seed)
    growth = Growth(model, None, Data(train, held_out, held_out), cost_model, config, further)
    growth.check()
    return Rounds(growth)


def _map_style(loader: DataLoader[Any]) -> Samples:
    if isinstance(loader.dataset, IterableDataset):
        raise TypeError("the loader's data set is iterable; growing draws samples by number: give a map-style data set")
    return loader.dataset


def _hold_out(samples: Samples, seed: int) -> tuple[Samples, Samples]:
    order = torch.randperm(size(samples), generator=seeded(seed, "held out")).tolist()
    count = max(1, round(HELD_OUT * len(order)))
    return Subset(samples, order[count:]), Subset(samples, order[:count])
