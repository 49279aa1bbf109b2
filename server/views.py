"""Every JSON shape the API sends, and the bodies it takes besides the specs of ``store.spec``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields
from datetime import datetime
from operator import attrgetter
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from costs.model import Cost, CostModel, CostName, Kind
from costs.shapes import Activation, LayerShape, Op, Unit, Wiring, check_shape
from costs.table import Calibration, CostEntry, Setting
from store.admission import Admission, ProfileAdmission
from store.problems import Problem
from store.spec import NetworkSpec, check_watts
from store.views import Artifact, Cause, Desire, Device, Job, JobKind, JobState, Round

_OF_ENTRIES = tuple(field.name for field in fields(CostEntry))
_OF_SHAPES = attrgetter(*(field.name for field in fields(LayerShape)))


class _View(BaseModel):
    model_config = ConfigDict(frozen=True)


class ProblemView(_View):
    """One thing that is wrong with a request."""

    field: str = Field(description="dotted path of the field")
    value: Any = Field(description="what was given; long values are cut")
    limit: Any = Field(description="what is allowed; null where no number or list says it")
    remedy: str = Field(description="what to do")
    message: str = Field(description="all of it in one sentence")

    @classmethod
    def of(cls, problem: Problem) -> Self:
        return cls(**asdict(problem))


class ProblemDocument(_View):
    """A problem document (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    errors: list[ProblemView] = []


class JobView(_View):
    """A job: ``state`` is what is so, ``desired`` what was asked for."""

    id: str
    kind: JobKind
    name: str
    queue: str
    state: JobState
    desired: Desire
    attempt: int
    max_attempts: int
    progress: dict[str, Any] = Field(
        description="phase, run, round, step, overall_fraction, loss, cost, ... as the worker last said; `used` when an attempt has ended"
    )
    cause: Cause | None = Field(description="why it failed, in a word")
    message: str | None = Field(description="why it failed, in a sentence")
    worker: str | None = Field(description="who works on it; null unless it runs")
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    heartbeat_at: datetime | None = Field(description="when its worker was last heard of")
    spec: dict[str, Any]
    waits_for: str | None = Field(default=None, description="what a queued job waits for, where that is known to be absent; null otherwise")

    @classmethod
    def of(cls, job: Job, waits_for: str | None = None) -> Self:
        return cls(**{name: getattr(job, name) for name in cls.model_fields.keys() - {"waits_for"}}, waits_for=waits_for)


class JobPage(_View):
    """Jobs, newest first."""

    jobs: list[JobView]
    next: str | None = Field(description="cursor of the following page; null on the last one")
    last_event: int = Field(description="events up to this one are part of what you see; follow GET /v1/events from here")


class CostView(_View):
    """A cost with its unit, kind, 95 % interval, and the meter it rests on."""

    value: float
    unit: str
    kind: Kind
    low: float | None
    high: float | None
    meter: str | None = Field(description="null for an exact count, like scope")
    scope: str | None = Field(description="what the meter covers: process, gpu, package ...; declared where watts were declared")

    @classmethod
    def of(cls, cost: Cost) -> Self:
        return cls(**asdict(cost))


class DryRun(_View):
    """What submitting this job would start from.  Nothing was created."""

    name: str
    cost: CostName
    limit: float
    unit: str
    seed_cost: CostView
    widths: list[int] = Field(description="seed widths, one per channel group")
    image_size: int
    in_channels: int
    classes: int
    samples: int | None = Field(description="labelled images, where known before loading")
    macs: int
    params: int
    warnings: list[str]

    @classmethod
    def of(cls, name: str, limit: float, admission: Admission) -> Self:
        shapes, model = admission.wiring.shapes(), admission.cost_model
        return cls(
            name=name, cost=model.name, limit=limit, unit=model.unit, seed_cost=CostView.of(admission.seed_cost),
            widths=list(admission.network.widths), **asdict(admission.data), macs=sum(shape.macs for shape in shapes),
            params=sum(shape.parameters for shape in shapes), warnings=list(admission.warnings),
        )  # fmt: skip


class ProfileDryRun(_View):
    """What this profile would measure.  Nothing was created."""

    name: str
    device: str
    widths: list[int]
    units: int = Field(description="layers of the network, each measured at several widths")
    warnings: list[str]

    @classmethod
    def of(cls, name: str, device: str, admission: ProfileAdmission) -> Self:
        wiring = admission.wiring
        return cls(name=name, device=device, widths=list(wiring.widths), units=len(wiring.units), warnings=list(admission.warnings))


class RoundView(_View):
    """A growth round.  ``payload``: outcome and why, widths and costs before and after, predicted and realised change of the loss, ..."""

    run: str
    number: int
    step: int = Field(description="training step of the run at which it was taken")
    payload: dict[str, Any]

    @classmethod
    def of(cls, growth_round: Round) -> Self:
        return cls(**asdict(growth_round))


class RoundList(_View):
    rounds: list[RoundView]


class MetricSeries(_View):
    metrics: dict[str, dict[str, list[list[int | float]]]] = Field(description="run -> metric -> [[step, value], ...]")


class ArtifactView(_View):
    name: str
    sha256: str
    size: int = Field(description="bytes")
    media_type: str
    created_at: datetime

    @classmethod
    def of(cls, artifact: Artifact) -> Self:
        return cls(size=artifact.size_bytes, **{name: getattr(artifact, name) for name in cls.model_fields if name != "size"})


class ArtifactList(_View):
    artifacts: list[ArtifactView]


class SettingView(_View):
    """How a network is executed."""

    batch_size: int
    threads: int
    dtype: str
    layout: str

    @classmethod
    def of(cls, setting: Setting) -> Self:
        return cls(batch_size=setting.batch, threads=setting.threads, dtype=setting.dtype, layout=setting.layout)


class CalibrationView(_View):
    """The factor that turns sums of layers into costs of whole networks, and its leave-one-out error."""

    quantity: CostName
    setting: SettingView
    scale: float = Field(description="on a layer's entry, for its part in a network")
    per_layer: float = Field(description="added to that for each layer, in the unit of the quantity")
    error_percent: float
    anchors: int
    meter: str
    scope: str
    kind: Kind = Field(description="of the anchors; an estimate stays one in every sum")

    @classmethod
    def of(cls, calibration: Calibration) -> Self:
        return cls(
            quantity=calibration.quantity, setting=SettingView.of(calibration.setting),
            scale=calibration.scale, per_layer=calibration.per_layer, error_percent=calibration.error_percent,
            anchors=len(calibration.anchors), meter=calibration.meter, scope=calibration.scope, kind=calibration.kind,
        )  # fmt: skip


class DeviceView(_View):
    """A device that a worker has registered, and how much of it was measured."""

    name: str
    fingerprint: dict[str, Any]
    table_version: int = Field(description="grows with every change of the cost table, or of the device under it; 0: no table yet")
    entries: int = Field(description="cost entries of layers")
    calibrations: int = Field(description="quantities and settings that whole networks were measured for")
    registered_at: datetime
    measured_at: datetime | None
    measured_fingerprint: dict[str, Any] | None = Field(description="what the device was when its table was measured")
    alive: bool = Field(description="a worker listens for its profile jobs")
    threads: int = Field(description="CPU threads of an inference, where a spec or a query does not say otherwise")
    expired: str | None = Field(description="what has changed since, so that the table may no longer hold; null: nothing")

    @classmethod
    def of(cls, device: Device) -> Self:
        return cls(**asdict(device), expired=device.expired, threads=device.threads)


class DeviceList(_View):
    devices: list[DeviceView]


class DeviceDetail(DeviceView):
    """A device with its calibrations in full."""

    calibrated: list[CalibrationView]


class ShapeQuery(BaseModel):
    """One layer shape in one setting.  A depthwise convolution has ``groups`` equal to both channel counts."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    op: Op
    in_channels: int = Field(ge=1, le=100_000)
    out_channels: int = Field(ge=1, le=100_000)
    kernel: int = Field(default=1, ge=1, le=64)
    stride: int = Field(default=1, ge=1, le=64)
    groups: int = Field(default=1, ge=1, le=100_000)
    height: int = Field(default=1, ge=1, le=4096, description="input height in pixels")
    width: int = Field(default=1, ge=1, le=4096, description="input width in pixels")
    norm: bool = Field(default=False, description="batch norm fused behind it")
    activation: Activation = "none"
    residual: bool = Field(default=False, description="residual addition fused behind it")
    cost: CostName = Field(default="latency_ms", description="quantity")
    batch_size: int = Field(default=1, ge=1, le=1024, description="images per inference")
    threads: int | None = Field(default=None, ge=1, le=256, description="CPU threads; default: the device's own")

    @model_validator(mode="after")
    def _can_be(self) -> Self:
        check_shape(self.shape())
        return self

    def shape(self) -> LayerShape:
        return LayerShape(*_OF_SHAPES(self))


def query_parameters(model: type[BaseModel], example: Mapping[str, Any]) -> list[dict[str, Any]]:
    """How OpenAPI says that the fields of a model are query parameters, with the values of an example."""
    schema = model.model_json_schema()
    required = schema.get("required", [])
    shown = {name: {"example": value} for name, value in example.items()}
    return [
        {"name": name, "in": "query", "required": name in required, "schema": each, **shown.get(name, {})}
        for name, each in schema["properties"].items()
    ]


class CostEntryView(_View):
    """One number of a cost table, with its origin."""

    device: str
    shape: LayerShape
    setting: SettingView
    quantity: CostName
    value: float
    unit: str
    kind: Kind
    low: float | None
    high: float | None
    meter: str | None = Field(description="null for an exact count, like what follows")
    repetitions: int | None
    rejected: int | None
    measured_at: str | None
    scope: str | None = Field(description="what the meter covers: process, gpu, package ...")
    net: float | None = Field(description="a measured energy without the idle power of the scope; value is gross")
    net_low: float | None
    net_high: float | None
    sensor_error: float | None = Field(description="relative error that all readings of the meter share; no interval holds it")
    expired: str | None = Field(description="what has changed on the device since, so that the number may no longer hold; null: nothing")

    @classmethod
    def of(cls, device: str, entry: CostEntry, expired: str | None) -> Self:
        values = {name: getattr(entry, name) for name in _OF_ENTRIES}  # `asdict` copies for longer than all the rest takes
        return cls(**{**values, "device": device, "setting": SettingView.of(entry.setting), "expired": expired})

    @classmethod
    def exact(cls, device: str, shape: LayerShape, setting: Setting, model: CostModel) -> Self:
        found = model.layer(shape)
        return cls(
            device=device, shape=shape, setting=SettingView.of(setting), quantity=model.name, value=found.value,
            unit=found.unit, kind=found.kind, low=None, high=None, meter=None, repetitions=None, rejected=None, measured_at=None,
            scope=None, net=None, net_low=None, net_high=None, sensor_error=None, expired=None,
        )  # fmt: skip


class ShapeQueries(BaseModel):
    """Many layer shapes at once."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    queries: tuple[ShapeQuery, ...] = Field(max_length=1000, description="at most 1000")


class CostAnswer(_View):
    """The answer to one of many queries: the entry, or why there is none and what was measured nearest."""

    entry: CostEntryView | None
    problem: ProblemView | None

    @classmethod
    def of(cls, answer: CostEntryView | Problem) -> Self:
        if isinstance(answer, Problem):
            return cls(entry=None, problem=ProblemView.of(answer))
        return cls(entry=answer, problem=None)


class CostAnswers(_View):
    """One answer for each query, in order."""

    device: str
    answers: list[CostAnswer]


class TableImport(_View):
    """What an import did, or with ``dry_run`` would do, and the device as it then is."""

    entries: int = Field(description="entries in the document; those of the same key were replaced")
    calibrations: int
    dry_run: bool
    device: DeviceView


class NetworkCostQuery(BaseModel):
    """A network to price on a device."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, str_max_length=4096)

    network: NetworkSpec
    image_size: int = Field(ge=8, le=224, description="pixels per side")
    in_channels: int = Field(default=3, ge=1, le=3)
    classes: int = Field(ge=2, le=100_000)
    cost: CostName = Field(default="latency_ms", description="quantity")
    batch_size: int = Field(default=1, ge=1, le=1024, description="images per inference")
    threads: int | None = Field(default=None, ge=1, le=256, description="CPU threads; default: the device's own")
    declared_watts: float | None = Field(
        default=None, gt=0, description="where no meter has measured energy_mj: an estimate by these watts times measured time"
    )

    @model_validator(mode="after")
    def _watts_are_for_energy(self) -> NetworkCostQuery:
        check_watts(self.cost, self.declared_watts)
        return self


class LayerCost(_View):
    """What one layer adds to the network."""

    name: str
    shape: LayerShape
    cost: CostView


class NetworkCost(_View):
    """The cost of a network: the whole, and layer by layer.  ``calibration`` is null for exact counts."""

    device: str
    cost: CostName
    setting: SettingView
    widths: list[int]
    total: CostView
    layers: list[LayerCost]
    calibration: CalibrationView | None
    warnings: list[str]

    @classmethod
    def of(
        cls, device: str, wiring: Wiring, model: CostModel, setting: Setting, calibration: Calibration | None, warnings: Iterable[str]
    ) -> Self:
        return cls(
            device=device, cost=model.name, setting=SettingView.of(setting), widths=list(wiring.widths),
            total=CostView.of(model.network(wiring.shapes())), layers=list(_layer_costs(wiring.units, model)),
            calibration=None if calibration is None else CalibrationView.of(calibration), warnings=list(warnings),
        )  # fmt: skip


def _layer_costs(units: Iterable[Unit], model: CostModel) -> Iterable[LayerCost]:
    for unit in units:
        yield LayerCost(name=unit.name, shape=unit.shape, cost=CostView.of(model.layer(unit.shape)))


class Health(_View):
    status: Literal["ok"]
    version: str


class Readiness(_View):
    """``degraded``: jobs are accepted and kept, but no worker hears of them until the broker is back."""

    status: Literal["ready", "degraded"]
    database: Literal["ok"]
    broker: Literal["ok", "down"]
    detail: str | None
