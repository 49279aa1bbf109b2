"""A run on several processes: the numbers of one process, the same decisions everywhere, the same bits after a stop, one fate."""

import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed as dist

from growth import distributed

PROGRAM = Path(__file__).with_name("on_ranks.py")
pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch has no gloo, which reduces between processes on CPUs")


def on_ranks(count: int, scenario: str, folder: Path) -> list[Any]:
    """What each of ``count`` processes found."""
    run = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(count),
        str(PROGRAM),
        scenario,
        str(folder),
    ]
    paths = [str(PROGRAM.parents[2]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    done = subprocess.run(run, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [torch.load(folder / f"rank{number}.pt", weights_only=True) for number in range(count)]


@pytest.fixture(scope="module")
def alike(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """Of two processes."""
    return on_ranks(2, "alike", tmp_path_factory.mktemp("alike"))


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    """The same program in this process."""
    return runpy.run_path(str(PROGRAM))


def test_two_ranks_find_what_one_process_finds_and_have_the_same_bits(alike: list[Any], alone: dict[str, Any]) -> None:
    """But for the statistics of norms and rayleigh's path, which is rank 0's."""
    first, second = (one["found"] for one in alike)
    expected = alone["found"]()
    assert first.keys() == second.keys() == expected.keys()
    for name, tensors in expected.items():
        for ours, others, theirs in zip(first[name], second[name], tensors, strict=True):
            assert torch.equal(ours, others), name
            torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}")


def test_steps_without_norms_are_those_of_one_process(alike: list[Any], alone: dict[str, Any]) -> None:
    for ours, others, theirs in zip(alike[0]["stepped"], alike[1]["stepped"], alone["stepped"](), strict=True):
        assert torch.equal(ours, others)
        torch.testing.assert_close(ours, theirs.detach(), rtol=1e-12, atol=1e-14)


def test_ranks_know_alike_whether_what_they_prepare_fits(alike: list[Any], alone: dict[str, Any]) -> None:
    """Two have room for what one has not."""
    assert [one["fits"] for one in alike] == [True, True]
    assert not alone["fitting"]()


def test_what_one_rank_meets_ends_all_with_the_same_error(alike: list[Any]) -> None:
    messages, others = (one["refused"] for one in alike)
    assert messages == others
    assert messages["step"].startswith("NotANumber: the training loss is nan at step 5")
    assert messages["product"].startswith("FloatingPointError: the loss is nan on batch 1 of the splitting product")
    assert messages["evaluation"].startswith("NotANumber: the loss on 25 held-out images is nan")


def test_a_batch_without_equal_shares_is_refused(alike: list[Any]) -> None:
    remedy = "give a multiple of 2, at least 4, or start another number of processes"
    assert alike[0]["refused"]["batch"] == f"ValueError: batch_size is 13, to be shared by 2 processes; {remedy}"
    assert alike[0]["refused"]["small batch"] == f"ValueError: batch_size is 2, to be shared by 2 processes; {remedy}"


def test_ranks_that_decide_differently_are_stopped_with_both_decisions(alike: list[Any]) -> None:
    assert alike[1]["refused"]["decision"].startswith(
        "RuntimeError: the processes disagree about the weather: rain on rank 0, sun on rank 1"
    )


@pytest.mark.parametrize("count", [2, 3])
def test_ranks_grow_alike_and_a_resumed_run_equals_the_undisturbed_one(count: int, tmp_path: Path) -> None:
    """With three, sums depend on their order: bits are equal only if no reduction depends on what came before."""
    first, *others = on_ranks(count, "grown", tmp_path)
    assert "grown" in [outcome for outcome, *_ in first["rounds"]]
    for other in others:
        assert other["rounds"] == first["rounds"]
        assert all(torch.equal(tensor, other["tensors"][name]) for name, tensor in first["tensors"].items())


def test_without_other_processes_nothing_is_done() -> None:
    tensors, model = [torch.ones(2)], torch.nn.Linear(1, 1)
    assert (distributed.ranks(), distributed.rank(), distributed.mine([1, 2, 3])) == (1, 0, [1, 2, 3])
    assert distributed.total(tensors)[0] is distributed.from_first(tensors)[0] is tensors[0]
    assert (distributed.totals(1.5, 2), distributed.per_rank(7), distributed.replicated(model)) == ((1.5, 2), 7, model)
    distributed.agree("anything", "alone")
    with pytest.raises(FloatingPointError, match="mine"), distributed.same_fate():
        raise FloatingPointError("mine")
