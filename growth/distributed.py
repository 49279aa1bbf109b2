"""One run on several processes, the ranks that ``torchrun`` starts: each works on its share of the images, and all know the sum.

Every function is the identity on a single process.  Ranks run the same program in the same order, and whatever a decision rests on is
reduced across them first; a reduction gives all ranks the same bits.  So they decide alike without talking about it, and ``agree``
holds them to that.  Nothing here may depend on the clock, and a rank that can fail alone does so inside ``same_fate``: otherwise
the others would wait for it in their next reduction.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

_T = TypeVar("_T")


@contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """Inside, this process is one of those that ``torchrun`` started, if it did; NCCL reduces what lies on GPUs, gloo the rest."""
    if "WORLD_SIZE" not in os.environ:
        yield
        return
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    finally:
        # Replicas hold the group in reference cycles.  Its threads must have ended before the interpreter does: one that still frees a
        # tensor then takes the process down (pytorch/pytorch#179291).
        gc.collect()
        dist.destroy_process_group()


def ranks() -> int:
    """How many processes share the run."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this is, from 0."""
    return dist.get_rank() if ranks() > 1 else 0


def mine(items: Sequence[_T]) -> Sequence[_T]:
    """This rank's share: every so-manieth item, none if there are fewer items than ranks."""
    return items[rank() :: ranks()]


def per_rank(batch_size: int) -> int:
    """How many images one rank takes of a batch of so many, wherever shares need not be equal."""
    return max(1, batch_size // ranks())


def check_batch(batch_size: int) -> None:
    """ValueError unless a training batch has equal shares for all ranks, large enough for a batch norm."""
    if ranks() > 1 and (batch_size % ranks() or batch_size < 2 * ranks()):
        raise ValueError(
            f"batch_size is {batch_size}, to be shared by {ranks()} processes; give a multiple of {ranks()}, at least {2 * ranks()}, "
            "or start another number of processes"
        )


def total(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Each tensor summed over the ranks; they are of one type and device."""
    if ranks() == 1 or not tensors:
        return list(tensors)
    flat = torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
    dist.all_reduce(flat)
    parts = torch.split(flat, [tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


def totals(*numbers: float) -> tuple[float, ...]:
    """Each number summed over the ranks."""
    if ranks() == 1:
        return numbers
    return tuple(total([torch.tensor(numbers, dtype=torch.float64)])[0].tolist())


def mean(*numbers: float) -> tuple[float, ...]:
    """Each number's mean over the ranks."""
    return tuple(number / ranks() for number in totals(*numbers))


def from_first(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Rank 0's tensors on all ranks: for what each works out by itself, where a GPU may not give the same bits twice."""
    if ranks() == 1:
        return list(tensors)
    sent = [tensor.detach().clone(memory_format=torch.contiguous_format) for tensor in tensors]
    for tensor in sent:
        dist.broadcast(tensor, 0)
    return sent


def of_first(value: _T) -> _T:
    """Rank 0's value on all ranks, for what a clock may have had a say in."""
    return _gathered(value)[0]


def replicated(model: nn.Module) -> nn.Module:
    """What training steps go through: ``model``, with gradients averaged over the ranks whenever there are several.

    Looking for unused parameters keeps DistributedDataParallel from regrouping gradients after its first step.  Sums over three ranks
    and more are rounded by where in a group a gradient lies, and a resumed run would differ from an undisturbed one.
    (torch warns once that it found none.)
    """
    if ranks() == 1:
        return model
    return DistributedDataParallel(model, find_unused_parameters=True)


@contextmanager
def same_fate() -> Iterator[None]:
    """Inside, where no rank waits for another, a FloatingPointError of one is raised on all, with the message of the first of them."""
    message = None
    try:
        yield
    except FloatingPointError as error:
        if ranks() == 1:
            raise
        message = str(error)
    if first := next(filter(None, _gathered(message)), None):
        raise FloatingPointError(first)


def agree(what: str, digest: str) -> None:
    """RuntimeError, with all values, unless every rank comes with the same one.  Nobody goes on before all have come."""
    digests = _gathered(digest)
    if len(set(digests)) > 1:
        found = ", ".join(f"{value} on rank {number}" for number, value in enumerate(digests))
        raise RuntimeError(
            f"the processes disagree about {what}: {found}; give all of them the same spec, data and torch, and the same kind of device"
        )


def _gathered(value: _T) -> list[_T]:
    """Of all ranks, in order."""
    if ranks() == 1:
        return [value]
    found: list[_T] = [value] * ranks()
    dist.all_gather_object(found, value)
    return found
