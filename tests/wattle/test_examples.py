"""Every example is a good spec, and its network fits its family."""

from pathlib import Path

import pytest
import yaml

from costs.families import Network, default_widths
from costs.model import Macs
from store.spec import JobSpec

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.yaml"))


def test_there_is_one_for_each_way_in() -> None:
    specs = [JobSpec.model_validate(yaml.safe_load(path.read_text())) for path in EXAMPLES]
    assert {"latency_ms", "macs"} <= {spec.budget.cost for spec in specs}
    assert {"digits", "imagefolder"} <= {spec.data.name for spec in specs}
    assert {"mobilenet_v1", "mobilenet_v2"} <= {spec.network.family for spec in specs}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_is_admissible(path: Path) -> None:
    spec = JobSpec.model_validate(yaml.safe_load(path.read_text()))
    widths = spec.network.widths or default_widths(spec.network.family, spec.network.width_multiplier or 1.0)
    channels = 3 if spec.data.name == "imagefolder" else 1
    network = Network(spec.network.family, widths, spec.data.image_size or 8, channels, 10, spec.network.activation)
    wiring = network.wiring()
    if spec.budget.cost == "macs":
        seed = Macs().network(wiring.shapes()).value
        most = Macs().network(wiring.shapes([int(width * spec.growth.max_growth) for width in widths])).value
        assert 1.3 * seed < spec.budget.limit < most
