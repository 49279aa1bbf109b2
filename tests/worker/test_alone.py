"""A job without the service: in this process and on two, killed and taken up again, and refused in words."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import distributed as dist
from torch.utils.data import TensorDataset

from costs.families import Network, largest_widths
from costs.table import Calibration, CostEntry, CostTable, Setting
from growth.checkpoint import load_network, read
from growth.training import fetch, size
from profiler.sweep import plan
from worker import alone, placement

SPEC: dict[str, Any] = {
    "name": "small",
    "data": {"name": "digits"},
    "network": {"family": "plain", "widths": [3, 4]},
    "growth": {"rounds": 1, "scoring_samples": 64, "fresh_samples": 32},
    "budget": {"cost": "macs", "limit": 9000, "device": "elsewhere"},
    "training": {"epochs_per_round": 0.4, "final_epochs": 0.4},
}
LATENCY = {"cost": "latency_ms", "limit": 0.9, "device": "elsewhere"}


def written(folder: Path, **changes: Any) -> Path:
    path = folder / "spec.yaml"
    path.write_text(yaml.safe_dump({**SPEC, **changes}))
    return path


def priced(path: Path, whole_report: bool) -> Path:
    """A table in which a layer's latency is its MACs times a factor: as an artifact of a job, or as the profiler writes it."""
    wiring, setting, when = Network("plain", (3, 4), 8, 1, 10).wiring(), Setting(), "2026-01-01T00:00:00+00:00"
    entries = [
        CostEntry(shape, setting, "latency_ms", 1e-4 * (shape.macs + 1), "ms", "measured", None, None, "wall_clock", 9, 0, when)
        for shape in plan(wiring, largest_widths(wiring.widths, 4.0))
    ]
    table = CostTable("elsewhere", entries, [Calibration("latency_ms", setting, 1.0, 2.0, ())]).to_json()
    path.write_text(json.dumps({"table": table, "drift_percent": None} if whole_report else table))
    return path


def test_a_job_runs_to_its_end_and_once_more_gives_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [str(written(tmp_path)), "--output", str(tmp_path / "out")]
    assert alone.main(command) == 0
    first, story = capsys.readouterr().out, json.loads((tmp_path / "out" / "rounds.json").read_text())
    (closed,) = story["rounds"]
    assert closed["cost_after"]["value"] <= 9000
    assert f"round 1: {closed['reason']}" in first
    assert f"widths {' '.join(map(str, closed['widths_after']))}" in first
    assert load_network(tmp_path / "out" / "network.safetensors").network.widths == tuple(closed["widths_after"])
    network = (tmp_path / "out" / "network.safetensors").read_bytes()
    assert alone.main(command) == 0
    assert "small: from step 24 of 24, 1 processes on cpu" in capsys.readouterr().out
    assert (tmp_path / "out" / "network.safetensors").read_bytes() == network
    assert json.loads((tmp_path / "out" / "rounds.json").read_text()) == story


@pytest.mark.parametrize("whole_report", [False, True], ids=["artifact", "profiler"])
def test_measured_costs_come_from_a_table(whole_report: bool, tmp_path: Path) -> None:
    table = priced(tmp_path / "costs.json", whole_report)
    spec = written(tmp_path, budget=LATENCY)
    assert alone.main([str(spec), "--output", str(tmp_path / "out"), "--table", str(table)]) == 0
    cost = json.loads((tmp_path / "out" / "rounds.json").read_text())["finished"]["network_cost"]
    assert (cost["kind"], cost["unit"], cost["value"] <= 0.9) == ("calibrated_sum", "ms", True)


def test_what_can_not_be_done_is_refused_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refusal(**changes: Any) -> str:
        assert alone.main([str(written(tmp_path, **changes)), "--output", str(tmp_path / "out")]) == 1
        return capsys.readouterr().err

    assert "budget.cost is latency_ms on elsewhere, which is measured, not counted; give its cost table with --table" in refusal(
        budget=LATENCY
    )
    assert "raise the limit or start from a narrower seed" in refusal(budget={"cost": "macs", "limit": 10})
    assert "Extra inputs are not permitted" in refusal(colour="blue")
    assert not (tmp_path / "out" / "checkpoint.safetensors").exists()
    (tmp_path / "out" / "spec.json").write_text(json.dumps(SPEC))
    assert "holds a run of another spec" in refusal(seeds=2)


def test_images_are_moved_to_the_device_all_at_once_or_as_they_are_read() -> None:
    x, y, meta = torch.ones(3, 1, 2, 2), torch.tensor([0, 1, 2]), torch.device("meta")
    assert placement._on(TensorDataset(x, y), torch.device("cpu"))[:][0] is not None  # type: ignore[index]
    for part in (TensorDataset(x, y), placement._ReadTo(TensorDataset(x, y), meta)):
        moved = placement._on(part, meta)  # type: ignore[arg-type]
        assert size(moved) == 3
        assert fetch(moved, [0, 2])[0].device == meta


def two_ranks(spec: Path, output: Path) -> subprocess.Popen[str]:
    """The job on two processes, in a process group of its own, with a checkpoint at every step."""
    program = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "worker.alone"]
    paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ, "OMP_NUM_THREADS": "1", "WATTLE_CHECKPOINT_SECONDS": "0.001", "PYTHONPATH": os.pathsep.join(filter(None, paths)),
    }  # fmt: skip
    command = [sys.executable, *program, str(spec), "--output", str(output)]
    return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)


@pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch has no gloo, which reduces between processes on CPUs")
def test_two_processes_killed_in_the_middle_go_on_to_the_same_end(tmp_path: Path) -> None:
    spec = written(tmp_path, training={"epochs_per_round": 1, "final_epochs": 1})
    undisturbed, killed = two_ranks(spec, tmp_path / "undisturbed"), two_ranks(spec, tmp_path / "killed")
    checkpoint = tmp_path / "killed" / "checkpoint.safetensors"
    while killed.poll() is None and not checkpoint.exists():
        time.sleep(0.005)
    os.killpg(killed.pid, signal.SIGKILL)  # torchrun; its processes die with it, and close what is read here
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    assert 1 <= read(checkpoint)[1]["step"] < 57
    for run in (undisturbed, two_ranks(spec, tmp_path / "killed")):
        output, errors = run.communicate()
        assert run.returncode == 0, errors
        assert output.count("round 1:") == 1  # one process tells
        assert "2 processes on cpu" in output
    for name in ("network.safetensors", "rounds.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "undisturbed" / name).read_bytes()
