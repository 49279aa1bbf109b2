"""Checkpoint files: what goes in comes out, damage is noticed, and a crash leaves a whole file.  (Resuming runs: test_loop.py.)"""

import os
from dataclasses import asdict
from pathlib import Path

import pytest
import safetensors.torch
import torch

from costs.families import Network
from growth import checkpoint
from growth.checkpoint import CheckpointError, load_network, read, save_network, write
from growth.networks import build
from growth.preprocessing import Preprocessing

TENSORS = {
    "weight": torch.randn(3, 4, dtype=torch.float32),
    "transposed": torch.arange(6.0).reshape(2, 3).t(),
    "double": torch.tensor([1 / 3], dtype=torch.float64),
    "half": torch.tensor([1.5], dtype=torch.bfloat16),
    "count": torch.tensor(7),
    "empty": torch.zeros(0, 2),
}
STATE = {"step": 3, "loss": 0.1 + 0.2, "name": "größe", "rounds": [{"widths": [1, 2]}], "nothing": None}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.safetensors"


def test_what_goes_in_comes_out_bit_for_bit(path: Path) -> None:
    write(path, TENSORS, STATE)
    tensors, state = read(path)
    assert state == STATE
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor)


def test_the_same_state_gives_the_same_bytes(path: Path) -> None:
    write(path, TENSORS, STATE)
    first = path.read_bytes()
    write(path, TENSORS, STATE)
    assert path.read_bytes() == first


@pytest.mark.parametrize("position", [0.3, 0.6, 0.999])
def test_a_flipped_bit_is_noticed(path: Path, position: float) -> None:
    write(path, TENSORS, STATE)
    content = bytearray(path.read_bytes())
    content[int(position * len(content))] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged"):
        read(path)


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_a_cut_file_is_noticed(path: Path, keep: int) -> None:
    write(path, TENSORS, STATE)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match="damaged"):
        read(path)


def test_other_formats_are_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    safetensors.torch.save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="format none of ours"):
        read(path)
    monkeypatch.setattr(checkpoint, "FORMAT", 999)
    write(path, TENSORS, STATE)
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="format 999; this version reads format 1"):
        read(path)


def test_a_missing_file_is_no_damage(path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read(path)


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(path, TENSORS, STATE)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write(path, TENSORS, {"step": 4})
    monkeypatch.undo()
    assert read(path)[1] == STATE
    assert os.listdir(path.parent) == [path.name]


def test_a_number_that_is_none_is_not_written(path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write(path, {}, {"loss": float("nan")})
    assert not path.exists()


def test_a_network_file_builds_its_network_again(path: Path) -> None:
    network = Network("plain", (4, 5), 8, 1, 3)
    model = build(network, torch.Generator().manual_seed(0)).eval()
    preprocessing = Preprocessing(8, (0.1,), (0.3,), ("one", "two", "three"))
    save_network(path, network, model, preprocessing)
    loaded = load_network(path)
    assert (loaded.network, loaded.preprocessing) == (network, preprocessing)
    assert not loaded.model.training
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(model(x), loaded.model(x))


@pytest.mark.parametrize(
    ("state", "missing"),
    [({"network": asdict(Network("plain", (4, 5), 8, 1, 3))}, "no preprocessing"), ({}, "no network and no preprocessing")],
)
def test_a_file_without_what_is_needed_to_use_the_network_is_refused(path: Path, state: dict[str, object], missing: str) -> None:
    write(path, {}, state)
    with pytest.raises(CheckpointError, match=f"holds {missing}; give the network"):
        load_network(path)
