"""From what a user types, a job spec file or options, to the networks that the service is asked to measure or to price."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from store.images import DataShape, describe
from store.problems import InvalidSpec
from store.settings import Settings
from store.spec import JobSpec
from wattle.client import Document, ProblemError, load_spec


def profile_of_job(path: Path) -> Document:
    """The profile spec that measures everything the job in this file can meet."""
    job, data = _job(path)
    return {
        "name": f"profile-{job.name}"[:80],
        "device": job.budget.device,
        **_network(job, data),
        "max_growth": job.growth.max_growth,
        "batch_size": job.budget.batch_size,
        "threads": job.budget.threads,
    }


def network_of_job(path: Path) -> Document:
    """The network and setting that the budget of the job in this file prices."""
    job, data = _job(path)
    asked = {"cost", "batch_size", "threads", "declared_watts"}
    return {**_network(job, data), **job.budget.model_dump(include=asked, exclude_none=True)}


def device_of_job(path: Path) -> str:
    return str((load_spec(path).get("budget") or {}).get("device", "this-host"))


def network_of_options(family: str, widths: str | None, width_multiplier: float | None, activation: str, norm: bool) -> Document:
    """A ``network`` entry of a spec; ``widths`` as typed: "8,8,16"."""
    network: Document = {"family": family, "activation": activation, "norm": norm}
    if widths is not None:
        network["widths"] = [_whole(word) for word in widths.replace(",", " ").split()]
    if width_multiplier is not None:
        network["width_multiplier"] = width_multiplier
    return network


def settings() -> Settings:
    """The settings of the service from the environment.  ProblemError names the variable that is wrong."""
    try:
        return Settings()
    except ValidationError as error:
        errors = [{**entry, "field": f"WATTLE_{entry['field'].upper()}"} for entry in _in_words(error)]
    raise ProblemError({"title": "Setting refused", "status": 422, "detail": "the environment holds a wrong setting", "errors": errors})


def _job(path: Path) -> tuple[JobSpec, DataShape]:
    """The spec, and the shape of its images as this machine sees them."""
    try:
        job = JobSpec.model_validate(load_spec(path))
        return job, describe(job.data, settings())
    except ValidationError as error:
        errors = _in_words(error)
    except InvalidSpec as error:
        errors = [{"field": p.field, "value": p.value, "limit": p.limit, "remedy": p.remedy, "message": p.message} for p in error.problems]
    raise ProblemError({"title": "Spec refused", "status": 422, "detail": f"{path} can't be used as it stands", "errors": errors})


def _in_words(error: ValidationError) -> list[Document]:
    """Pydantic's errors as entries of a problem document; a value is shown where it is short enough to be one."""
    return [
        {
            "field": ".".join(map(str, entry["loc"])),
            "value": entry["input"] if isinstance(entry["input"], str | int | float) else None,
            "message": entry["msg"].removeprefix("Value error, "),
        }
        for entry in error.errors()
    ]


def _network(job: JobSpec, data: DataShape) -> Document:
    return {
        "network": job.network.model_dump(mode="json", exclude_none=True),
        "image_size": data.image_size,
        "in_channels": data.in_channels,
        "classes": data.classes,
    }


def _whole(word: str) -> Any:
    """A whole number where it is one; anything else is left for the server to refuse by name."""
    return int(word) if word.isdecimal() else word
