"""A saved network meets an image file as it met its training images: same pixels, same logits, by the lines that the README shows."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from costs.families import Network
from growth.checkpoint import load_network, save_network
from growth.classifier import Classifier
from growth.networks import build
from growth.preprocessing import Preprocessing
from growth.training import fetch, size
from store.settings import Settings
from store.spec import DataSpec
from worker.data import load

README = Path(__file__).parents[2] / "README.md"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data", data_root=tmp_path)


def saved(path: Path, preprocessing: Preprocessing) -> Classifier:
    """An untrained network for such images, saved and loaded."""
    network = Network("plain", (4, 5), preprocessing.image_size, len(preprocessing.mean), len(preprocessing.class_names))
    save_network(path, network, build(network, torch.Generator().manual_seed(0)), preprocessing)
    return load_network(path)


def noise(*shape: int, seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def test_a_file_of_the_folder_gives_the_logits_that_training_saw(settings: Settings, tmp_path: Path) -> None:
    """Wide, tall, grey and transparent images; the test set holds two of them, in the order of the files."""
    for number, name in enumerate(("cat", "dog")):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for index, shape in enumerate([(20, 31, 3), (31, 20, 3), (17, 40), (25, 25, 4), (9, 12, 3), (12, 12, 3)]):
            noise(*shape, seed=10 * number + index).save(tmp_path / "pets" / name / f"{index}.png")
    sets, preprocessing = load(DataSpec(name="imagefolder", root="pets", image_size=12), settings, seed=0)
    grown = saved(tmp_path / "network.safetensors", preprocessing)
    files = sorted((tmp_path / "pets").rglob("*.png"))
    prepared = torch.stack([grown.preprocessing.prepare(Image.open(file)) for file in files])
    seen = [fetch(part, range(size(part))) for part in (sets.train, sets.selection, sets.test)]
    with torch.no_grad():
        for images, labels in seen:
            for image, label, logits in zip(images, labels, grown.model(images), strict=True):
                number = int((prepared == image).flatten(1).all(1).nonzero().item())
                assert files[number].parent.name == preprocessing.class_names[label]
                named = grown.classify(files[number])
                expected = dict(zip(preprocessing.class_names, logits.softmax(0).tolist(), strict=True))
                assert named == pytest.approx(expected, rel=1e-5)
                assert list(named.values()) == sorted(named.values(), reverse=True)
    assert sum(len(labels) for _, labels in seen) == len(files)


@pytest.mark.parametrize("image_size", [8, 12, 16])
def test_pixels_of_a_data_set_in_memory_are_fitted_alike(settings: Settings, image_size: int) -> None:
    """They are resized as floats, a file as whole numbers: one grey level apart at most, and half a level from writing the file."""
    sets, preprocessing = load(DataSpec(name="digits", image_size=image_size), settings, seed=0)
    plain, unscaled = load(DataSpec(name="digits"), settings, seed=0)
    pixels = fetch(plain.test, range(20))[0] * unscaled.std[0] + unscaled.mean[0]
    files = [Image.fromarray(image.mul(255).round().to(torch.uint8).numpy()) for image in pixels[:, 0]]
    prepared = torch.stack([preprocessing.prepare(file) for file in files])
    one_and_a_half_levels = 1.5 / 255 / preprocessing.std[0]
    torch.testing.assert_close(prepared, fetch(sets.test, range(20))[0], rtol=0, atol=one_and_a_half_levels)


def test_the_readme_shows_how(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    [snippet] = [block for block in re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL) if "load_network" in block]
    monkeypatch.chdir(tmp_path)
    Path("wattle-demo").mkdir()
    grown = saved(Path("wattle-demo/network.safetensors"), load(DataSpec(name="digits"), settings, seed=0)[1])
    noise(30, 20, seed=1).save("image.png")
    names: dict[str, Any] = {}
    exec(compile(snippet, "README.md", "exec"), names)
    probabilities = grown.classify("image.png")
    assert capsys.readouterr().out == f"{probabilities}\n"
    assert dict(zip("0123456789", names["logits"][0].softmax(0).tolist(), strict=True)) == pytest.approx(probabilities)


def test_a_network_that_was_trained_on_other_images_is_not_saved(tmp_path: Path) -> None:
    network = Network("plain", (4, 5), 8, 1, 3)
    with pytest.raises(ValueError, match=r"has \(8, 1, 1, 2\) .* needs \(8, 1, 1, 3\)"):
        save_network(tmp_path / "network.safetensors", network, build(network), Preprocessing(8, (0.5,), (0.2,), ("a", "b")))
    assert list(tmp_path.iterdir()) == []


def test_two_channels_are_no_image() -> None:
    with pytest.raises(ValueError, match="takes 2 channels"):
        Preprocessing(8, (0.5, 0.5), (0.2, 0.2), ("a", "b")).prepare(Image.new("RGB", (9, 9)))
