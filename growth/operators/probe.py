"""A model widened by new channels, to try out how they are read: the loss, and its slopes at their outgoing weights and at their rows.

``Reads`` are weights in the layout of ``Offspring.reads``: by group, by consumer, [n, 1, outputs, columns, *kernel].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from growth import distributed
from growth.groups import ChannelGraph, ChannelGroup, find_groups
from growth.offspring import Offspring
from growth.operators.base import Evidence
from growth.operators.newborn import appended
from growth.operators.stride import mean_loss
from growth.splitting import Batch
from growth.surgery import ChannelMap, add_channels
from growth.tracing import evaluating

Reads = list[tuple[Tensor, ...]]


@dataclass(frozen=True, slots=True)
class Slopes:
    """Of the mean loss: at the outgoing weights, and at the rows of the new channels, by group [n, d]."""

    reads: Reads
    rows: list[Tensor]


@dataclass(frozen=True, slots=True)
class _Reader:
    """Where a consumer reads the new channels of a group."""

    name: str  # of its weight
    outputs: int  # those that were there before
    entries: slice
    channels: int
    columns: int  # entries of a channel

    def block(self, weight: Tensor) -> Tensor:
        """That part of a tensor laid out like the weight, a view in the layout of reads."""
        part = weight[: self.outputs, self.entries]
        return part.view(self.outputs, self.channels, self.columns, *weight.shape[2:]).movedim(1, 0).unsqueeze(1)


class Probe:
    """One Offspring per group in order, each adding one channel per parent, and the scoring images to try them on."""

    def __init__(self, evidence: Evidence, births: Sequence[Offspring]) -> None:
        self._batches, self._loss = evidence.batches, evidence.loss
        self._wider, channel_map = add_channels(evidence.model, evidence.graph, births)
        graph = find_groups(self._wider, evidence.batches[0][0][:2])
        self._readers = _readers(evidence.model, evidence.graph, graph)
        self._rows = [_rows(old, self._wider, channel_map) for old in evidence.graph.groups]
        self._weights = {name: self._wider.get_parameter(name).requires_grad_() for name in self._names()}

    def loss(self, reads: Reads, scale: float) -> float:
        """With the new channels read by ``scale`` times ``reads``."""
        self._put(reads, scale)
        return mean_loss(self._wider, self._batches, self._loss)

    def slopes(self, reads: Reads, scale: float) -> Slopes:
        """At ``scale`` times ``reads``, on the scoring images, which processes share out."""
        self._put(reads, scale)
        share = self._gradients(distributed.mine(self._batches), sum(len(images) for images, _ in self._batches))
        return self._slopes(dict(zip(share, distributed.total(list(share.values())), strict=True)))

    def slopes_on(self, batch: Batch, reads: Reads, scale: float) -> Slopes:
        """The same on one batch of other images, in this process alone."""
        self._put(reads, scale)
        return self._slopes(self._gradients([batch], len(batch[0])))

    def _gradients(self, batches: Sequence[Batch], samples: int) -> dict[str, Tensor]:
        """By weight, the part of these batches in the mean over ``samples`` images."""
        totals = {name: torch.zeros_like(weight) for name, weight in self._weights.items()}
        with torch.enable_grad(), evaluating(self._wider):
            for images, target in batches:
                loss = self._loss(self._wider(images), target)
                gradients = torch.autograd.grad(loss, list(self._weights.values()))
                for total, gradient in zip(totals.values(), gradients, strict=True):
                    total.add_(gradient, alpha=len(images) / samples)
        return totals

    def _slopes(self, totals: Mapping[str, Tensor]) -> Slopes:
        rows = [
            torch.cat([totals[name][width:].index_select(1, columns.to(totals[name].device)).flatten(1) for name, columns in parts], 1)
            for width, parts in self._rows
        ]
        return Slopes([tuple(reader.block(totals[reader.name]) for reader in readers) for readers in self._readers], rows)

    def _names(self) -> list[str]:
        read = [reader.name for readers in self._readers for reader in readers]
        return list(dict.fromkeys(read + [name for _, parts in self._rows for name, _ in parts]))

    @torch.no_grad()
    def _put(self, reads: Reads, scale: float) -> None:
        for readers, group in zip(self._readers, reads, strict=True):
            for reader, read in zip(readers, group, strict=True):
                reader.block(self._weights[reader.name]).copy_(scale * read)


def outgoing(model: nn.Module, graph: ChannelGraph) -> Reads:
    """How the present channels are read, in the layout of reads with n = C."""
    found = []
    for group in graph.groups:
        parts = []
        for place in group.consumers:
            weight = model.get_parameter(f"{place.name}.weight").detach()
            entries = appended(place, 0, group.width)
            parts.append(_Reader(f"{place.name}.weight", len(weight), entries, group.width, place.columns).block(weight))
        found.append(tuple(parts))
    return found


def _readers(model: nn.Module, before: ChannelGraph, after: ChannelGraph) -> list[list[_Reader]]:
    return [
        [
            _Reader(
                f"{place.name}.weight", len(model.get_parameter(f"{place.name}.weight")),
                appended(place, old.width, new.width), new.width - old.width, place.columns,
            )
            for place in new.consumers
        ]
        for old, new in zip(before.groups, after.groups, strict=True)
    ]  # fmt: skip


def _rows(old: ChannelGroup, wider: nn.Module, channel_map: ChannelMap) -> tuple[int, list[tuple[str, Tensor]]]:
    """The group's width, and for each of its producers' weights which columns were there before."""
    parts = []
    for name in (f"{producer}.weight" for producer in old.producers):
        columns = channel_map.sources[name][1]
        if columns is None:
            columns = torch.arange(wider.get_parameter(name).shape[1])
        parts.append((name, torch.from_numpy(np.unique(columns.numpy(), return_index=True)[1])))  # the first copy of each
    return old.width, parts
