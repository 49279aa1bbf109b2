"""Sizes between seed and limit, equal compute for each, and a sentence that follows from the losses."""

from __future__ import annotations

from itertools import pairwise

import pytest

from costs.families import Network
from costs.model import Budget, Macs
from growth.config import GrowthConfig
from growth.frontier import advice, point, probe_config, sizes

SEED = Network("plain", (4, 4), 8, 1, 3)


def macs(network: Network) -> float:
    return Macs().network(network.wiring().shapes()).value


def test_sizes_go_from_the_seed_to_the_limit_and_train_on_equal_compute() -> None:
    config = GrowthConfig(limit=8 * macs(SEED), steps_per_round=120, batch_size=16)
    found = sizes(SEED, [Budget(Macs(), config.limit)], config)
    assert found[0] == SEED
    assert len(found) == 4
    assert all(macs(one) < macs(other) <= config.limit for one, other in pairwise(found))
    for network in found:
        probe = probe_config(network, SEED, 1000, config)
        assert (probe.rounds, probe.steps_per_round) == (0, 0)
        spent = probe.final_steps * macs(network)
        assert 120 * macs(SEED) - macs(network) < spent <= 120 * macs(SEED)


def test_a_limit_at_the_seed_leaves_one_size() -> None:
    assert sizes(SEED, [Budget(Macs(), macs(SEED))], GrowthConfig(limit=macs(SEED))) == [SEED]


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ((0.3, 0.4, 0.5), "no wider network does better on the seed's compute (loss 0.3)"),
        ((0.4, 0.3, 0.5), "the seed is behind, its loss is 0.4 where widths [6, 6] (1.9 times its MACs) come to 0.3"),
    ],
)
def test_the_advice_follows_from_the_losses(losses: tuple[float, ...], expected: str) -> None:
    networks = [Network("plain", (width, width), 8, 1, 3) for width in (4, 6, 8)]
    assert expected in advice([point(network, 10, loss) for network, loss in zip(networks, losses, strict=True)])
