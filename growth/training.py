"""Training: one step, the schedule, the order of the data, evaluation.

Nothing here draws from a global random generator, and nothing depends on history: the batch of a step is a function of the seed and
the step's number, and so is the learning rate.  That is what makes a resumed run equal to an undisturbed one.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD
from torch.utils.data import Dataset, TensorDataset

from growth.config import GrowthConfig, Schedule
from growth.fitting import NORMS

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

    @classmethod
    def of(cls, model: nn.Module, config: GrowthConfig) -> Learner:
        """A model with a new SGD optimizer."""
        optimizer = SGD(model.parameters(), lr=config.learning_rate, momentum=config.momentum, weight_decay=config.weight_decay)
        return cls(model, optimizer)

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

    def step(self, batch: Batch, learning_rate: float, number: int, highest: float = math.inf, penalty: float = 0.0) -> tuple[float, float]:
        """One step of gradient descent; the batch's loss and accuracy before it.

        ``penalty`` is the strength of an L1 penalty on the scales of norms; the loss leaves it out.  NotANumber, and no step, if the loss
        is not finite or above ``highest``.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.model.train()
        images, classes = batch
        scores = self.model(images)  # [B, classes]
        loss = cross_entropy(scores, classes)
        value = loss.item()
        if not math.isfinite(value) or value > highest:
            raise NotANumber(
                f"the training loss is {value} at step {number} (learning rate {learning_rate:.3g}); "
                "lower the learning rate or the split step"
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        if penalty:
            penalise(self.model, penalty)
        self.optimizer.step()
        return value, (scores.detach().argmax(1) == classes).float().mean().item()


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
    return torch.stack([image for image, _ in samples]), torch.tensor([int(label) for _, label in samples])


def batches(dataset: Samples, indices: Sequence[int] | Tensor, batch_size: int) -> Iterator[Batch]:
    """The samples at ``indices``, in order, ``batch_size`` at a time."""
    for start in range(0, len(indices), batch_size):
        yield fetch(dataset, indices[start : start + batch_size])


def evaluate(model: nn.Module, dataset: Samples, batch_size: int) -> Evaluation:
    """Loss and accuracy on a whole data set.  NotANumber if the loss is not finite."""
    return evaluate_batches(model, batches(dataset, range(size(dataset)), batch_size))


@torch.no_grad()
def evaluate_batches(model: nn.Module, data: Iterator[Batch] | Sequence[Batch]) -> Evaluation:
    """Loss and accuracy on these batches, in eval mode; the model's mode is put back."""
    was_training = model.training
    model.eval()
    loss, right, samples = 0.0, 0, 0
    for images, classes in data:
        scores = model(images)  # [B, classes]
        loss += cross_entropy(scores, classes, reduction="sum").item()
        right += int((scores.argmax(1) == classes).sum())
        samples += len(classes)
    model.train(was_training)
    if not math.isfinite(loss):
        raise NotANumber(f"the loss on {samples} held-out images is {loss}; lower the learning rate or the split step")
    return Evaluation(loss / samples, right / samples, samples)


@torch.no_grad()
def settle_norms(model: nn.Module, data: Sequence[Batch]) -> None:
    """Set the running statistics of all batch norms to their plain mean over these batches; the model's mode is put back.

    While the learning rate is high the running statistics lag behind the weights, and a loss in eval mode says little: 20 nats were
    seen where 0.9 was the truth.  Training itself never reads them.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d) and module.track_running_stats]
    modes, momenta = {module: module.training for module in model.modules()}, [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.train()
        norm.reset_running_stats()
        norm.momentum = None  # the cumulative mean
    for images, classes in data:
        if len(classes) > 1:  # one image may be one value per channel, which has no variance
            model(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    for module, training in modes.items():
        module.training = training


def size(dataset: Samples) -> int:
    """Number of samples.  TypeError for a data set without a length."""
    return len(dataset)  # type: ignore[arg-type]  # torch's Dataset does not declare __len__
