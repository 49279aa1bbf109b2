"""Every recipe is a good spec, its budget can be grown into, and the counts it states are those of the counter."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from costs.families import Network, largest_widths
from costs.model import Macs
from store.admission import seed_network
from store.images import DataShape
from store.spec import JobSpec

FOLDER = Path(__file__).parents[2] / "recipes"
RECIPES = sorted(FOLDER.glob("*.yaml"))
SHAPES = {"cifar10": DataShape(32, 3, 10), "cifar100": DataShape(32, 3, 100), "imagenet": DataShape(224, 3, 1000)}
TRAINING_IMAGES = {"cifar10": 45_000, "cifar100": 45_000, "imagenet": 1_153_050}  # a tenth is held out


def macs(network: Network) -> int:
    return int(Macs().network(network.wiring().shapes()).value)


def stated(text: str, what: str) -> float:
    """The number behind ``what`` in a recipe's comments."""
    found = re.search(rf"# {what} ([\d_.e+]+) MACs", text)
    assert found, what
    return float(found[1])


def training_macs(spec: JobSpec, seed: int) -> float:
    """Three passes for each image, every stage at its share of the budget: the most that training takes, scoring left out."""
    rounds, training = spec.growth.rounds, spec.training
    limits = [seed * (spec.budget.limit / seed) ** (number / rounds) for number in range(rounds + 1)]
    return 3 * TRAINING_IMAGES[spec.data.name] * (training.epochs_per_round * sum(limits) + training.final_epochs * limits[-1])


def test_there_is_one_for_each_data_set_and_network_of_the_paper() -> None:
    names = {path.stem for path in RECIPES}
    assert names == {"cifar10-mobilenet_v1", "cifar100-mobilenet_v1", "imagenet-mobilenet_v1", "imagenet-mobilenet_v2"}
    readme = (FOLDER / "README.md").read_text()
    assert all(f"`{name}.yaml`" in readme for name in names)
    assert "have not been run" in readme


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_counts_exactly(path: Path) -> None:
    text = path.read_text()
    spec = JobSpec.model_validate(yaml.safe_load(text))
    seed = seed_network(spec.network, SHAPES[spec.data.name])
    widest = Network(seed.family, largest_widths(seed.widths, spec.growth.max_growth), seed.image_size, 3, seed.classes)
    assert spec.budget.cost == "macs"
    assert stated(text, "Seed:") == macs(seed)
    assert stated(text, "Limit:") == spec.budget.limit
    assert macs(seed) < spec.budget.limit < macs(widest)
    assert stated(text, "Training: about") == pytest.approx(training_macs(spec, macs(seed)), rel=0.01)
    assert "Not run here." in text
    for count in (f"{macs(seed):_}", f"{int(spec.budget.limit):_}"):
        assert count in (FOLDER / "README.md").read_text()


@pytest.mark.parametrize("data", ["cifar10", "cifar100"])
def test_the_limit_on_cifar_is_the_network_of_half_the_published_widths(data: str) -> None:
    spec = JobSpec.model_validate(yaml.safe_load((FOLDER / f"{data}-mobilenet_v1.yaml").read_text()))
    half = seed_network(spec.network.model_copy(update={"widths": None, "width_multiplier": 0.5}), SHAPES[data])
    assert spec.budget.limit == macs(half)
