"""Exact twins: channels doubled without moving them apart.  The network gets wider and gains nothing: the null control of growth.

Twins read the same weights and are read with the same share, so they see the same gradient and stay twins for as long as training
lasts; only rounding can part them.  A family is a channel of the seed with all its twins.  Each round adds to the smallest families,
and evens out the shares within each (two twins of which one is doubled again would be read with 1/2, 1/4 and 1/4, and drift apart).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from growth.groups import ChannelGraph, Place
from growth.offspring import doubled
from growth.surgery import ChannelMap, add_channels


def twin(
    model: nn.Module, graph: ChannelGraph, seed_widths: Sequence[int], history: Sequence[Sequence[int]], widths: Sequence[int]
) -> tuple[nn.Module, ChannelMap]:
    """A copy of ``model`` with ``widths``, grown by twins, and where its entries came from.

    ``history`` holds the widths after each earlier call, from ``seed_widths`` on.  ValueError for a width that is less than the
    present one, or more than twice that.
    """
    offspring, before = [], []
    for number, group in enumerate(graph.groups):
        members = families(seed_widths[number], [past[number] for past in history])
        channels = to_double(members, widths[number])
        if channels:
            offspring.append(doubled(model, group, number, torch.tensor(channels)))
        before.append(torch.tensor(members))
    wider, channel_map = add_channels(model, graph, offspring)
    for group, family in zip(graph.groups, before, strict=True):
        for place in group.consumers:
            _share_evenly(wider, place, family, channel_map)
    return wider, channel_map


def families(seed_width: int, widths: Iterable[int]) -> list[int]:
    """Of each channel, the seed's channel whose twin it is, after growing to each of ``widths`` in turn."""
    members = list(range(seed_width))
    for width in widths:
        members += [members[channel] for channel in to_double(members, width)]
    return members


def to_double(members: Sequence[int], width: int) -> list[int]:
    """Channels to double for so many channels in all: always one of the smallest family, none twice.  ValueError if that can't be."""
    if not len(members) <= width <= 2 * len(members):
        raise ValueError(f"planned width is {width}; from {len(members)}, one round of twins reaches {len(members)} to {2 * len(members)}")
    sizes, left = Counter(members), dict.fromkeys(range(len(members)))
    chosen = []
    for _ in range(width - len(members)):
        channel = min(left, key=lambda candidate: sizes[members[candidate]])
        sizes[members[channel]] += 1
        del left[channel]
        chosen.append(channel)
    return chosen


def _share_evenly(wider: nn.Module, place: Place, members: Tensor, channel_map: ChannelMap) -> None:
    """Let a consumer read all twins of a family with the same weights: the mean, which leaves their sum as it was.

    ``place`` and ``members`` are those before widening.
    """
    name = f"{place.name}.weight"
    _, columns = channel_map.sources.get(name, (None, None))
    if columns is None:
        return  # nothing that it reads was doubled
    channel, entry = torch.div(columns - place.offset, place.columns, rounding_mode="floor"), (columns - place.offset) % place.columns
    ours = ((channel >= 0) & (channel < len(members))).nonzero().flatten()
    weight = wider.get_parameter(name).detach()
    families = (members[channel[ours]] * place.columns + entry[ours]).to(weight.device)
    twins = weight[:, ours.to(weight.device)]
    sums = weight.new_zeros(len(weight), int(families.max()) + 1, *weight.shape[2:]).index_add_(1, families, twins)
    counts = torch.bincount(families).to(weight).view(1, -1, *[1] * (weight.dim() - 2))
    weight[:, ours.to(weight.device)] = (sums / counts)[:, families]
