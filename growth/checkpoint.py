"""Checkpoints: one safetensors file with all tensors, and the rest as JSON in its header.  No pickle.

Written so that a file under its final name is always whole: to a temporary file in the same folder, flushed to the disk, renamed, the
folder flushed too.  A digest over tensors and state catches what the container format does not: flipped bits.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from costs.families import Network
from growth.classifier import Classifier
from growth.networks import build
from growth.preprocessing import Preprocessing

FORMAT = 1
_KEY = "wattle"  # one key: the container keeps several in no fixed order, and equal content should give equal bytes


class CheckpointError(ValueError):
    """A checkpoint can't be read: damaged, of another format, or not of this run."""


def write(path: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Write tensors and JSON state to ``path``, whole or not at all."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(state, allow_nan=False)
    header = {"format": FORMAT, "sha256": _digest(tensors, text), "state": text}
    _replace(path, safetensors.torch.save(tensors, {_KEY: json.dumps(header)}))


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and state of a checkpoint.  CheckpointError if it is damaged or of another format."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            header = json.loads((file.metadata() or {}).get(_KEY, "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (safetensors.SafetensorError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} is damaged, or none of Wattle's files ({error}); use another one") from error
    if header.get("format") != FORMAT:
        found = header.get("format", "none of ours")
        raise CheckpointError(f"{path} has checkpoint format {found}; this version reads format {FORMAT}: use the version that wrote it")
    if header["sha256"] != _digest(tensors, header["state"]):
        raise CheckpointError(f"{path} is damaged: its content does not match its digest; use an earlier checkpoint")
    return tensors, json.loads(header["state"])


def save_network(path: Path, network: Network, model: nn.Module, preprocessing: Preprocessing) -> None:
    """Weights, with network and preprocessing as data beside them: enough to use it on a new image.  ValueError if they don't fit."""
    whole = Classifier(network, model, preprocessing)  # which refuses parts that don't fit together
    write(path, model.state_dict(), {"network": asdict(whole.network), "preprocessing": asdict(whole.preprocessing)})


def load_network(path: str | Path) -> Classifier:
    """A network that ``save_network`` wrote, in eval mode.  CheckpointError if the file lacks what is needed to use it."""
    tensors, state = read(Path(path))
    if missing := {"network", "preprocessing"} - state.keys():
        what = " and no ".join(sorted(missing))
        raise CheckpointError(f"{path} holds no {what}; give the network.safetensors of a job that this version ran")
    network = network_from(state["network"])
    model = build(network, torch.Generator())  # its weights are replaced at once: leave the global generator alone
    model.load_state_dict(tensors, strict=True)
    return Classifier(network, model.eval(), preprocessing_from(state["preprocessing"]))


def network_from(data: Mapping[str, Any]) -> Network:
    """A network from its JSON form."""
    return Network(**{**data, "widths": tuple(data["widths"])})


def preprocessing_from(data: Mapping[str, Any]) -> Preprocessing:
    """A preprocessing from its JSON form."""
    return Preprocessing(data["image_size"], *(tuple(data[name]) for name in ("mean", "std", "class_names")))


def _digest(tensors: Mapping[str, Tensor], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\n{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _replace(path: Path, content: bytes) -> None:
    """Put ``content`` under ``path`` so that a crash at any moment leaves the old file or the new one."""
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
