"""Training: one step, the schedule, the order of the data, evaluation.

Nothing here draws from a global random generator, and nothing depends on history: the batch of a step is a function of the seed and
the step's number, and so is the learning rate.  That is what makes a resumed run equal to an undisturbed one.

On several processes (``growth.distributed``) each has a copy of the model and takes its share of every batch; after a step all copies
are equal again, bit for bit.  Batch norms in train mode see a process's own images only.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD
from torch.utils.data import Dataset, TensorDataset

from growth import distributed
from growth.config import GrowthConfig, Schedule
from growth.fitting import NORMS
from growth.tracing import evaluating

Batch = tuple[Tensor, Tensor]  # images [B, C, H, W], classes [B]
Samples = Dataset[tuple[Tensor, int]]  # map-style: has __len__ and __getitem__
PEAK = 0.3  # part of a one-cycle schedule before its peak
WARM_START = 1 / 25  # learning rate at the start of a one-cycle schedule, in units of the peak
EXPLODED = 1e4  # nats; after a large split a loss of 700 was seen to come down within an epoch, so that is no divergence yet


class NotANumber(FloatingPointError):  # noqa: N818 - named for what happened, like the job's cause
    """A loss is infinite, not a number, or so high that it soon will be."""


@dataclass(frozen=True, slots=True)
class Data:
    """Three disjoint map-style data sets of (image [C, H, W], class).

    ``selection`` judges rounds (roll-back, loss before and after); ``test`` is read only for reports.
    """

    train: Samples
    selection: Samples
    test: Samples


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Mean cross-entropy (nats) and share of right answers over ``samples`` images, in eval mode."""

    loss: float
    accuracy: float
    samples: int


@dataclass(frozen=True, slots=True)
class Learner:
    """A model and its optimizer: what a roll-back restores."""

    model: nn.Module
    optimizer: SGD
    config: GrowthConfig
    _replica: nn.Module = field(init=False, repr=False)  # the model as training steps go through it

    def __post_init__(self) -> None:
        replica = distributed.replicated(self.model.to(memory_format=self._memory_format))
        object.__setattr__(self, "_replica", torch.compile(replica) if self.config.compiled else replica)

    @property
    def _memory_format(self) -> torch.memory_format:
        return torch.channels_last if self.config.memory_format == "channels_last" else torch.contiguous_format

    @classmethod
    def of(cls, model: nn.Module, config: GrowthConfig) -> Learner:
        """A model with a new SGD optimizer."""
        optimizer = SGD(model.parameters(), lr=config.learning_rate, momentum=config.momentum, weight_decay=config.weight_decay)
        return cls(model, optimizer, config)

    def tensors(self) -> dict[str, Tensor]:
        """Weights and buffers as ``model.*``, momentum as ``momentum.*``, by their names in the model."""
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        for name, parameter in self.model.named_parameters():
            if (momentum := self.optimizer.state[parameter].get("momentum_buffer")) is not None:
                tensors[f"momentum.{name}"] = momentum
        return tensors

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what ``tensors()`` gave.  RuntimeError if the names or shapes are those of another network."""
        weights = {name.removeprefix("model."): tensor for name, tensor in tensors.items() if name.startswith("model.")}
        self.model.load_state_dict(weights, strict=True)
        for name, parameter in self.model.named_parameters():
            self.optimizer.state[parameter] = {}
            if (momentum := tensors.get(f"momentum.{name}")) is not None:
                self.optimizer.state[parameter]["momentum_buffer"] = momentum.to(parameter.device).clone()

    def step(
        self,
        batch: Batch,
        learning_rate: float,
        number: int,
        highest: float = math.inf,
        teacher: nn.Module | None = None,
        penalty: float = 0.0,
    ) -> tuple[float, float]:
        """One step of gradient descent; the batch's loss and accuracy before it.  ``batch`` is this process's share of it.

        ``penalty`` is the strength of an L1 penalty on the scales of norms; the loss leaves it out.  NotANumber, and no step, if the loss
        is not finite or above ``highest``.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self._replica.train()
        images, classes = batch
        images = images.contiguous(memory_format=self._memory_format)
        with self._precision(images):
            scores = self._replica(images)  # [B, classes]
        scores = scores.float() if scores.dtype == torch.bfloat16 else scores
        loss = cross_entropy(scores, classes)
        value, accuracy = distributed.mean(loss.item(), (scores.detach().argmax(1) == classes).float().mean().item())
        if not math.isfinite(value) or value > highest:
            raise NotANumber(
                f"the training loss is {value} at step {number} (learning rate {learning_rate:.3g}); "
                "lower the learning rate or the split step"
            )
        if teacher is not None:
            loss = torch.lerp(loss, cross_entropy(scores, self._taught(teacher, images).to(scores.dtype)), self.config.distillation)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        if penalty:
            penalise(self.model, penalty)
        self.optimizer.step()
        _average_statistics(self.model)
        return value, accuracy

    def _precision(self, images: Tensor) -> torch.autocast:
        return torch.autocast(images.device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16")

    @torch.no_grad()
    def _taught(self, teacher: nn.Module, images: Tensor) -> Tensor:
        """The teacher's class probabilities, in eval mode, [B, classes]."""
        with evaluating(teacher), self._precision(images):
            scores: Tensor = teacher(images)
        return scores.float().softmax(1)


@torch.no_grad()
def penalise(model: nn.Module, strength: float) -> None:
    """Add the subgradient of ``strength`` times the sum of all |gamma| to the gradients."""
    for module in model.modules():
        if isinstance(module, NORMS) and module.weight is not None and module.weight.grad is not None:
            module.weight.grad.add_(module.weight.sign(), alpha=strength)


def learning_rate(schedule: Schedule, peak: float, progress: float) -> float:
    """The rate at ``progress`` (0 to 1) of the whole run, warm-up and decay by half cosines.

    one_cycle (Smith and Topin, arXiv 1708.07120): from peak / 25 up to the peak at 0.3, then down to 0.  cosine: from the peak to 0.
    """
    if schedule == "one_cycle" and progress < PEAK:
        return peak * (WARM_START + (1 - WARM_START) * (1 - math.cos(math.pi * progress / PEAK)) / 2)
    start = PEAK if schedule == "one_cycle" else 0.0
    return peak * (1 + math.cos(math.pi * (progress - start) / (1 - start))) / 2


def seeded(seed: int, purpose: str, number: int = 0) -> torch.Generator:
    """A generator of its own for one purpose of a run, independent of all others."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{number}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def batch_indices(samples: int, batch_size: int, seed: int, step: int) -> Tensor:
    """Which samples step ``step`` trains on: a new order in every epoch; the incomplete batch at an epoch's end is left out."""
    batch_size = min(batch_size, samples)
    epoch, batch = divmod(step, samples // batch_size)
    return _order(samples, seed, epoch)[batch * batch_size : (batch + 1) * batch_size]


@lru_cache(maxsize=2)
def _order(samples: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(samples, generator=seeded(seed, "epoch", epoch))


def fetch(dataset: Samples, indices: Sequence[int] | Tensor) -> Batch:
    """The samples at ``indices`` as one batch."""
    if isinstance(dataset, TensorDataset):
        images, classes = dataset[torch.as_tensor(indices)]
        return images, classes
    samples = [dataset[int(index)] for index in indices]
    stacked = torch.stack([image for image, _ in samples])
    return stacked, torch.tensor([int(label) for _, label in samples], device=stacked.device)


def batches(dataset: Samples, indices: Sequence[int] | Tensor, batch_size: int) -> Iterator[Batch]:
    """The samples at ``indices``, in order, ``batch_size`` at a time."""
    for start in range(0, len(indices), batch_size):
        yield fetch(dataset, indices[start : start + batch_size])


def evaluate(model: nn.Module, dataset: Samples, batch_size: int) -> Evaluation:
    """Loss and accuracy on a whole data set.  NotANumber if the loss is not finite."""
    per_rank = distributed.per_rank(batch_size)
    starts = distributed.mine(range(0, size(dataset), per_rank))
    return _evaluated(model, (fetch(dataset, range(start, min(start + per_rank, size(dataset)))) for start in starts))


def evaluate_batches(model: nn.Module, data: Sequence[Batch]) -> Evaluation:
    """Loss and accuracy on these batches, in eval mode; the model's mode is put back."""
    return _evaluated(model, distributed.mine(data))


@torch.no_grad()
def _evaluated(model: nn.Module, share: Iterable[Batch]) -> Evaluation:
    """On the shares of all processes."""
    was_training = model.training
    model.eval()
    loss, right, samples = 0.0, 0, 0
    for images, classes in share:
        scores = model(images)  # [B, classes]
        loss += cross_entropy(scores, classes, reduction="sum").item()
        right += int((scores.argmax(1) == classes).sum())
        samples += len(classes)
    model.train(was_training)
    loss, *counts = distributed.totals(loss, right, samples)
    right, samples = map(int, counts)
    if not math.isfinite(loss):
        raise NotANumber(f"the loss on {samples} held-out images is {loss}; lower the learning rate or the split step")
    return Evaluation(loss / samples, right / samples, samples)


@torch.no_grad()
def settle_norms(model: nn.Module, data: Sequence[Batch]) -> None:
    """Set the running statistics of all batch norms to their plain mean over these batches; the model's mode is put back.

    While the learning rate is high the running statistics lag behind the weights, and a loss in eval mode says little: 20 nats were
    seen where 0.9 was the truth.  Training itself never reads them.
    """
    norms = _norms(model)
    modes, momenta = {module: module.training for module in model.modules()}, [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.train()
        norm.reset_running_stats()
        norm.momentum = None  # the cumulative mean
    for images, classes in distributed.mine(data):
        if len(classes) > 1:  # one image may be one value per channel, which has no variance
            model(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    for module, training in modes.items():
        module.training = training
    _pool_statistics(norms)


_Norm = nn.BatchNorm1d | nn.BatchNorm2d


def _norms(model: nn.Module) -> list[_Norm]:
    """Those that keep statistics."""
    return [module for module in model.modules() if isinstance(module, _Norm) and module.track_running_stats]


def _statistics(norms: Sequence[_Norm]) -> list[Tensor]:
    return [statistic for norm in norms for statistic in (norm.running_mean, norm.running_var) if statistic is not None]


def _average_statistics(model: nn.Module) -> None:
    """After a step, in which each process followed its own images."""
    if distributed.ranks() > 1:
        statistics = _statistics(_norms(model))
        for statistic, sum_ in zip(statistics, distributed.total(statistics), strict=True):
            statistic.copy_(sum_ / distributed.ranks())


def _pool_statistics(norms: Sequence[_Norm]) -> None:
    """Means over the batches of each process become means over all batches."""
    if distributed.ranks() == 1:
        return
    counts = [norm.num_batches_tracked for norm in norms if norm.num_batches_tracked is not None]
    all_counts, statistics = distributed.total(counts), _statistics(norms)
    own, every = ([count for count in some for _ in range(2)] for some in (counts, all_counts))  # of mean and variance
    sums = distributed.total([statistic * count for statistic, count in zip(statistics, own, strict=True)])
    for statistic, sum_, count in zip(statistics, sums, every, strict=True):
        statistic.copy_(sum_ / count.clamp_min(1))
    for count, all_ in zip(counts, all_counts, strict=True):
        count.copy_(all_)


def size(dataset: Samples) -> int:
    """Number of samples.  TypeError for a data set without a length."""
    return len(dataset)  # type: ignore[arg-type]  # torch's Dataset does not declare __len__
