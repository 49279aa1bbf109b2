"""Image tasks that nets of 40 k to 350 k MACs do not saturate: rendered from a seed in seconds, nothing to download.

- ``digits``: scikit-learn's digits, each writer's image in one split only, rendered anew with affine changes, clutter and noise.
- ``patterns``: a shape (coarse) filled with a grating (fine); the class is the pair, so early and late layers are needed at different
  scales.
- ``teacher``: random fields, labelled by a network with random weights and uneven widths (6 and 32 channels).
- ``textures``: filtered noise without any shape; what tells the classes apart has to come through the first layers, where a channel is
  dear.  Added when the other three were seen to want width where it is cheap, which a rule that looks at cost alone finds by itself.

Grey images of 16 pixels, standardised by the training images.  Another purpose or part draws other images: splits are disjoint.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import cast

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import TensorDataset

from benchmarks.growth.nets import IMAGE_SIZE
from costs.families import Network
from growth.networks import build
from growth.training import Batch, Data, Samples, seeded, settle_norms

PARTS = {"train": 4000, "selection": 1500, "test": 3000}
Renderer = Callable[[str, int, torch.Generator], Batch]


@dataclass(frozen=True, slots=True)
class Task:
    """``render(part, count, generator)`` gives images [count, 1, 16, 16] and classes [count] of one part."""

    classes: int
    render: Renderer


@cache
def load(name: str, seed: int = 0) -> Data:
    """The data of a task; the same seed gives the same images."""
    parts = {part: _part(name, part, count, seed) for part, count in PARTS.items()}
    mean, std = parts["train"][0].mean(), parts["train"][0].std()
    sets = [cast(Samples, TensorDataset((images - mean) / std, classes)) for images, classes in parts.values()]
    return Data(*sets)


def more(name: str, count: int, seed: int) -> Batch:
    """Further images like the training images, standardised like them: a population to score on."""
    known, (images, classes) = _part(name, "train", PARTS["train"], 0)[0], _part(name, "train", count, seed)
    return (images - known.mean()) / known.std(), classes


def without_test(data: Data) -> Data:
    """For tuning and exploring: the test images stay unread."""
    return Data(data.train, data.selection, data.selection)


def _part(name: str, part: str, count: int, seed: int) -> Batch:
    return TASKS[name].render(part, count, seeded(seed, f"{name} {part}"))


# Digits


def render_digits(part: str, count: int, generator: torch.Generator) -> Batch:
    """Turned, sheared, scaled and shifted digits over pieces of others, with noise."""
    images, labels = _originals(part)
    drawn = torch.randint(len(labels), (count,), generator=generator)
    rendered = _moved(images[drawn], generator, turn=0.45, zoom=(0.8, 1.3), shift=0.25)
    others = images[torch.randint(len(labels), (2, count), generator=generator)]
    for other in others:
        clutter = _moved(other, generator, turn=math.pi, zoom=(1.6, 2.4), shift=0.9)
        rendered = torch.maximum(rendered, 0.7 * clutter * (rendered < 0.2))
    contrast = 0.5 + 0.5 * torch.rand(count, 1, 1, 1, generator=generator)
    return contrast * rendered + 0.25 * torch.randn(rendered.shape, generator=generator), labels[drawn]


@cache
def _originals(part: str) -> Batch:
    """The digits of this part, [n, 1, 8, 8] in [0, 1]: 60, 15 and 25 % of all, the same whatever the task's seed."""
    digits = load_digits()
    order = torch.randperm(len(digits.target), generator=seeded(0, "originals"))
    starts = {"train": (0.0, 0.6), "selection": (0.6, 0.75), "test": (0.75, 1.0)}[part]
    chosen = order[slice(*(round(share * len(order)) for share in starts))]
    return torch.tensor(digits.images[chosen.numpy()]).float().unsqueeze(1) / 16, torch.tensor(digits.target[chosen.numpy()])


def _moved(images: Tensor, generator: torch.Generator, turn: float, zoom: tuple[float, float], shift: float) -> Tensor:
    """At 16 pixels, each by an affine map of its own.  ``zoom`` above 1 makes smaller."""
    count = len(images)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=generator)

    angle, scale, shear = uniform(-turn, turn), uniform(*zoom), uniform(-0.3, 0.3)
    cos, sin = angle.cos(), angle.sin()
    rows = [
        scale * cos,
        scale * (shear * cos - sin),
        uniform(-shift, shift),
        scale * sin,
        scale * (shear * sin + cos),
        uniform(-shift, shift),
    ]
    grid = functional.affine_grid(torch.stack(rows, 1).view(count, 2, 3), [count, 1, IMAGE_SIZE, IMAGE_SIZE], align_corners=False)
    return functional.grid_sample(images, grid, align_corners=False)


# Patterns

SHAPES, GRATINGS = 4, 3


def render_patterns(part: str, count: int, generator: torch.Generator) -> Batch:  # noqa: ARG001  # parts differ by their generator
    """A disc, square, triangle or cross of any place, size and turn, filled with one of three fine gratings, in noise."""
    shape = torch.randint(SHAPES, (count,), generator=generator)
    grating = torch.randint(GRATINGS, (count,), generator=generator)

    def uniform(low: float, high: float) -> Tensor:
        return (low + (high - low) * torch.rand(count, generator=generator)).view(-1, 1, 1)

    axis = torch.linspace(-1, 1, IMAGE_SIZE)
    y, x = axis.view(1, -1, 1) - uniform(-0.3, 0.3), axis.view(1, 1, -1) - uniform(-0.3, 0.3)
    turn, radius = uniform(-0.5, 0.5), uniform(0.5, 0.8)
    u, v = (x * turn.cos() + y * turn.sin()) / radius, (y * turn.cos() - x * turn.sin()) / radius
    kind = shape.view(-1, 1, 1)
    inside = _inside(u, v)[torch.arange(count), kind.flatten()]
    direction = grating.view(-1, 1, 1) * math.pi / GRATINGS + uniform(-0.25, 0.25)
    wave = torch.sin(uniform(0, 2 * math.pi) + uniform(10, 14) * (x * direction.cos() + y * direction.sin()))
    images = inside * (0.6 + uniform(0.3, 0.8) * wave) + 0.4 * torch.randn(count, IMAGE_SIZE, IMAGE_SIZE, generator=generator)
    return images.unsqueeze(1), shape * GRATINGS + grating


def _inside(u: Tensor, v: Tensor) -> Tensor:
    """Masks of the four shapes, [count, shapes, 16, 16]."""
    disc, square = u.square() + v.square() < 1, torch.maximum(u.abs(), v.abs()) < 0.85
    triangle = (v < 0.8) & (v > 2.2 * u.abs() - 1.1)
    cross = (torch.minimum(u.abs(), v.abs()) < 0.33) & (torch.maximum(u.abs(), v.abs()) < 1.05)
    return torch.stack([disc, square, triangle, cross], 1).float()


# Teacher

TEACHER_CLASSES, TEACHER_WIDTHS, CLEAREST = 8, (6, 32), 3


def render_teacher(part: str, count: int, generator: torch.Generator) -> Batch:  # noqa: ARG001  # parts differ by their generator
    """Of three times as many fields those that the teacher is surest about, with the class whose standardised score is highest."""
    images = _fields(CLEAREST * count, generator)
    teacher, mean, std = _teacher()
    with torch.no_grad():
        scores = (teacher(images) - mean) / std
    best = scores.topk(2).values
    clear = (best[:, 0] - best[:, 1]).topk(count).indices
    clear = clear[torch.randperm(count, generator=generator)]
    return images[clear], scores[clear].argmax(1)


def _fields(count: int, generator: torch.Generator) -> Tensor:
    """White noise on smooth noise."""
    fine = torch.randn(count, 1, IMAGE_SIZE, IMAGE_SIZE, generator=generator)
    coarse = torch.randn(count, 1, IMAGE_SIZE // 4, IMAGE_SIZE // 4, generator=generator)
    return 0.4 * fine + functional.interpolate(coarse, scale_factor=4.0, mode="bilinear")


@cache
def _teacher() -> tuple[nn.Module, Tensor, Tensor]:
    """With settled norms, and mean and deviation of its scores; the same whatever the task's seed."""
    generator = seeded(0, "teacher weights")
    teacher = build(Network("plain", TEACHER_WIDTHS, IMAGE_SIZE, 1, TEACHER_CLASSES), generator)
    images = _fields(4000, generator)
    settle_norms(teacher, [(images, torch.zeros(len(images)))])
    with torch.no_grad():
        scores = teacher.eval()(images)
    return teacher, scores.mean(0), scores.std(0)


# Textures

TEXTURES, GRAIN = 12, 5


def render_textures(part: str, count: int, generator: torch.Generator) -> Batch:  # noqa: ARG001  # parts differ by their generator
    """White noise through the filter of the class, of any contrast, in as much white noise: classes differ in their spectrum alone."""
    texture = torch.randint(TEXTURES, (count,), generator=generator)
    white = torch.randn(1, count, IMAGE_SIZE + GRAIN - 1, IMAGE_SIZE + GRAIN - 1, generator=generator)
    filtered = functional.conv2d(white, _grains()[texture], groups=count).transpose(0, 1)  # [count, 1, 16, 16]
    contrast = 0.5 + torch.rand(count, 1, 1, 1, generator=generator)
    return contrast * filtered + torch.randn(filtered.shape, generator=generator), texture


@cache
def _grains() -> Tensor:
    """A random filter of norm one for each class, [classes, 1, 5, 5]; the same whatever the task's seed."""
    drawn = torch.randn(TEXTURES, GRAIN * GRAIN, generator=seeded(0, "grains"))
    return functional.normalize(drawn).view(TEXTURES, 1, GRAIN, GRAIN)


TASKS = {
    "digits": Task(10, render_digits),
    "patterns": Task(SHAPES * GRATINGS, render_patterns),
    "teacher": Task(TEACHER_CLASSES, render_teacher),
    "textures": Task(TEXTURES, render_textures),
}
