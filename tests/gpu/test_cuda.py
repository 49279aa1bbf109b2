"""On a real NVIDIA GPU: replayed graphs, latencies by events, energies by NVML, a profile and a job.  Skipped, and said so, elsewhere."""

from __future__ import annotations

import gc
import json
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from costs.families import Network
from costs.model import Macs
from costs.table import Setting, TableCost
from growth.config import GrowthConfig
from growth.events import Finished
from growth.loop import Growth
from growth.networks import build
from growth.training import Data
from profiler.__main__ import main
from profiler.device import fingerprint, ready_to_measure
from profiler.energy_request import EnergyRequest
from profiler.plan import Plan
from profiler.processor import Processor, open_processor
from profiler.profile import profile_device
from profiler.timing import Work, interleave

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a real CUDA device, and torch finds none here"),
]

SMALL = Network("mobilenet_v1", (16,) * 14, 32, 3, 10)
SETTING = Setting(batch=32)


@pytest.fixture
def on() -> Processor:
    return open_processor("cuda")


def test_a_replayed_graph_computes_what_the_network_computes(on: Processor) -> None:
    model, x = build(SMALL).eval().to(on.device), torch.randn(4, 3, 32, 32, device=on.device)
    out = torch.empty(4, 10, device=on.device)
    with torch.inference_mode():
        on.ready(lambda: out.copy_(model(x)))()
        on.synchronise()
        torch.testing.assert_close(out, model(x))


def test_a_replay_keeps_the_tensors_that_it_reads(on: Processor) -> None:
    out = torch.empty(1 << 20, device=on.device)

    def reading() -> Work:
        x = torch.ones(1 << 20, device=on.device)
        return on.ready(partial(torch.mul, x, 2.0, out=out))

    work = reading()
    gc.collect()
    others = [torch.full((1 << 20,), 7.0, device=on.device) for _ in range(8)]  # where x would have lain
    work()
    on.synchronise()
    assert out.unique().tolist() == [2.0]
    assert len(others) == 8


def test_twice_the_work_takes_twice_the_time_whatever_the_process_does_meanwhile(on: Processor) -> None:
    a = torch.randn(2048, 2048, device=on.device)

    def multiply(times: int) -> Tensor:
        b = a
        for _ in range(times):
            b = b @ a
        return b

    with ready_to_measure(SETTING):
        work = {n: on.ready(lambda n=n: multiply(n)) for n in (10, 20)}
        found = interleave(work, on.meter(), 2.0).results
    assert found[20].median == pytest.approx(2 * found[10].median, rel=0.1)
    assert found[10].origin.meter == "cuda_events"


def test_a_profile_predicts_whole_networks(on: Processor) -> None:
    profile = profile_device(SMALL, "gpu", SETTING, 1.5, 30.0, on=on)
    assert profile.error_percent < 15
    assert profile.fingerprint["gpu"] == fingerprint(1, on)["gpu"]
    assert TableCost(profile.table, "latency_ms", SETTING).network(SMALL.wiring().shapes()).value > 0


def test_energy_is_that_of_the_work(on: Processor) -> None:
    """A matrix product draws more than an idle device; twice the product, twice the net energy, as far as its interval goes."""
    a = torch.randn(4096, 4096, device=on.device)
    request = EnergyRequest.by("nvml_total_energy", Plan(seconds=300.0), on)
    with ready_to_measure(SETTING):
        once, twice = on.ready(lambda: a @ a), on.ready(lambda: (a @ a) @ a)
        found = request.measure({"once": once, "twice": twice}, lambda *_: None, lambda: False)
    assert found.missing == {}
    one, two = found.results["once"].net, found.results["twice"].net
    assert two.low <= 2 * one.high
    assert two.high >= 2 * one.low


def test_the_command_profiles_a_gpu(tmp_path: Path) -> None:
    tiny = "--family plain --widths 4 4 --image-size 8 --in-channels 1 --classes 3 --max-growth 1.5 --seconds 5 --torch-device cuda"
    assert main([*tiny.split(), "--output", str(tmp_path / "table.json")]) == 0
    assert "gpu_uuid" in json.loads((tmp_path / "table.json").read_text())["fingerprint"]


def test_a_network_grows_on_the_gpu_and_goes_on_there_from_a_checkpoint(on: Processor, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    images, classes = torch.randn(512, 1, 8, 8, generator=generator), torch.randint(0, 4, (512,), generator=generator)
    part = TensorDataset(images.to(on.device), classes.to(on.device))
    sets = Data(part, part, part)  # type: ignore[arg-type]
    seed = Network("plain", (4, 4), 8, 1, 4)
    limit = 2 * Macs().network(seed.wiring().shapes()).value
    config = GrowthConfig(
        limit=limit,
        rounds=1,
        steps_per_round=20,
        final_steps=20,
        batch_size=32,
        scoring_samples=128,
        fresh_samples=64,
        max_fresh_samples=64,
    )
    growth = Growth.start(seed, sets, Macs(), config, [])
    path = tmp_path / "checkpoint.safetensors"
    events = growth.events()
    for _ in range(10):
        next(events)
    growth.save(path)
    resumed = Growth.resume(path, sets, Macs(), [])
    *_, last = resumed.events()
    assert isinstance(last, Finished)
    assert all(parameter.device.type == "cuda" for parameter in resumed.model.parameters())
    assert limit >= Macs().network(resumed.network.wiring().shapes()).value
