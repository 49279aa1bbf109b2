"""What surgery adds, as data: channels replaced by offspring, whatever operator proposed them.

Channel k becomes m offspring.  Offspring i starts as a copy of k, with its passengers' entries and biases; then

    its row in the producers         theta_k + move_i
    its columns in the consumers     share_i * columns of k  (+ reads_i, for an appended one)

The shares of one parent add up to 1.  So the function is the same where all moves and reads are zero, and where shares times moves
add up to zero as well, the loss changes by 1/2 sum_i share_i move_i^T S_k move_i (growth.splitting), to second order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from growth.groups import ChannelGroup

UNIT_NORM_TOLERANCE = 1e-3
SHARES_TOLERANCE = 1e-4


@dataclass(frozen=True, slots=True)
class Offspring:
    """n channels of one group, each replaced by m >= 2: the first at the parent's position, the others appended, parent by parent.

    d is the number of weights of one channel: its rows in the group's producers, flattened and concatenated in their order, no bias.
    ``reads`` is empty, or has for each of the group's consumers [n, m - 1, outputs, columns, *kernel]: weights at which the appended
    are read besides their share.  ``statistics`` is empty, or has for each of its passengers None (the parent's stay) or running mean
    and variance of the appended, [n, m - 1, columns] each.
    """

    group: int
    parents: Tensor  # [n] int64
    moves: Tensor  # [n, m, d]
    shares: Tensor  # [n, m]
    reads: tuple[Tensor, ...] = ()
    statistics: tuple[tuple[Tensor, Tensor] | None, ...] = ()

    @property
    def added(self) -> int:
        """Channels that the group gains for each parent."""
        return self.moves.shape[1] - 1

    def take(self, rows: Tensor) -> Offspring:
        """Those of some of the parents, by position among ``parents``."""

        def taken(tensor: Tensor) -> Tensor:
            return tensor[rows.to(tensor.device)]

        return replace(
            self, parents=taken(self.parents), moves=taken(self.moves), shares=taken(self.shares), reads=tuple(map(taken, self.reads)),
            statistics=tuple(None if known is None else (taken(known[0]), taken(known[1])) for known in self.statistics),
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Split:
    """Channels of one group to split in two: ``channels`` [n] int64, each once; ``directions`` [n, d] unit rows."""

    group: int
    channels: Tensor
    directions: Tensor


def theta(model: nn.Module, group: ChannelGroup) -> Tensor:
    """The rows of a group's channels, [C, d]."""
    return torch.cat([model.get_parameter(f"{name}.weight").detach().flatten(1) for name in group.producers], 1)


def apart(model: nn.Module, group: ChannelGroup, split: Split, step: float) -> Offspring:
    """Parent and offspring moved ``step`` times the parent's norm along the direction and against it, each read by half."""
    rows = theta(model, group)
    rows = rows[split.channels.to(rows.device)]
    move = step * rows.norm(dim=1, keepdim=True) * split.directions.to(rows)
    return Offspring(split.group, split.channels, torch.stack([move, -move], 1), rows.new_full((len(rows), 2), 0.5))


def doubled(model: nn.Module, group: ChannelGroup, number: int, parents: Tensor) -> Offspring:
    """These channels of group ``number`` and an exact copy of each, both read by half."""
    rows = theta(model, group)
    return Offspring(number, parents, rows.new_zeros(len(parents), 2, rows.shape[1]), rows.new_full((len(parents), 2), 0.5))


def nobody(model: nn.Module, group: ChannelGroup, number: int) -> Offspring:
    """No offspring of group ``number``, for where one Offspring per group is asked for."""
    rows = theta(model, group)[:0]
    return Offspring(number, torch.arange(0), rows.new_zeros(0, 2, rows.shape[1]), rows.new_ones(0, 2))


def check_split(split: Split, group: ChannelGroup, fan_in: int) -> None:
    """ValueError, with value, limit and remedy."""
    where = f"split of channel group {split.group}"
    check_parents(split.channels, group.width, where)
    if split.directions.shape != (len(split.channels), fan_in):
        raise ValueError(f"{where}: directions have shape {list(split.directions.shape)}; give one row of {fan_in} weights per channel")
    if not split.directions.isfinite().all():
        raise ValueError(f"{where}: a direction holds NaN or infinity; score the channels again, or leave them out")
    norms = split.directions.norm(dim=1)
    if len(norms) and (worst := (norms - 1).abs().max().item()) > UNIT_NORM_TOLERANCE:
        raise ValueError(f"{where}: the length of a direction is {worst:.3g} away from 1; divide each by its length")


def check_offspring(offspring: Sequence[Offspring], group: ChannelGroup, fan_in: int) -> None:
    """ValueError, with value, limit and remedy, unless all these can be added to ``group`` in one go."""
    if not offspring:
        return
    where = f"offspring of channel group {offspring[0].group}"
    for one in offspring:
        check_parents(one.parents, group.width, where)
        _check_shapes(one, group, fan_in, where)
    check_parents(torch.cat([one.parents.cpu() for one in offspring]), group.width, where)


def check_parents(parents: Tensor, width: int, where: str) -> None:
    if parents.dtype != torch.int64 or parents.dim() != 1:
        raise ValueError(f"{where}: channels are {parents.dtype} of shape {list(parents.shape)}; give int64 of shape [n]")
    for channel, count in Counter(parents.tolist()).items():
        if not 0 <= channel < width:
            raise ValueError(f"{where}: channel {channel} does not exist; the group has channels 0 to {width - 1}")
        if count > 1:
            raise ValueError(f"{where}: channel {channel} comes {count} times; name it once, and call again to split it further")


def _check_shapes(one: Offspring, group: ChannelGroup, fan_in: int, where: str) -> None:
    n, m = len(one.parents), one.shares.shape[1] if one.shares.dim() == 2 else 0
    if m < 2 or one.shares.shape != (n, m) or one.moves.shape != (n, m, fan_in):
        raise ValueError(
            f"{where}: shares have shape {list(one.shares.shape)} and moves {list(one.moves.shape)}; "
            f"give [n, m] and [n, m, d] with n = {n} parents, m >= 2 and d = {fan_in} weights per channel"
        )
    tensors = [one.moves, one.shares, *one.reads, *(tensor for known in one.statistics if known is not None for tensor in known)]
    if not all(tensor.isfinite().all() for tensor in tensors):
        raise ValueError(f"{where}: a number is NaN or infinite; propose them again, or leave them out")
    if n and (worst := (one.shares.sum(1) - 1).abs().max().item()) > SHARES_TOLERANCE:
        raise ValueError(f"{where}: the shares of a channel add up to 1 {worst:+.3g}; they must add up to 1")
    for what, given, places in (("reads", one.reads, group.consumers), ("statistics", one.statistics, group.passengers)):
        if given and len(given) != len(places):
            raise ValueError(f"{where}: there are {len(given)} {what} for {len(places)} places; give one for each, or none")
