"""The job spec: what a user submits, as YAML or JSON.  Pure data, bounded, unknown keys refused.

``JobSpec`` asks for a growth job, ``ProfileSpec`` for a cost table.  What can only be checked against the store or a disk (does the
device have a table, is there such a folder, does the budget cover the seed) is in ``store.admission``.
"""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from costs.families import MAX_WIDTH, MIN_WIDTH, Family
from costs.model import EXACT, CostName
from costs.plugins import Kind, installed

DataName = Literal["digits", "mnist5k", "imagefolder", "cifar10", "cifar100", "imagenet", "synthetic"]
SCORERS = ("splitting", "rayleigh", "exact", "random")
OPERATORS = ("split", "signed", "twins", "zero_output", "firefly", "gradmax")
NO_GAIN_CLAIMED = ("twins", "zero_output")
ControlName = Literal["uniform", "cost_only", "random", "twins", "seed_alone", "slimming"]
MeterName = Literal["nvml_total_energy", "nvml_power", "rapl_package", "rapl_dram", "ina3221"]
CounterName = Literal["nvml_total_energy", "rapl_package", "rapl_dram"]  # meters that count by themselves between two looks
FinalName = Literal["inherit", "retrain", "both"]
Name = Annotated[str, Field(min_length=1, max_length=80, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]


def _one_of(kind: Kind, own: tuple[str, ...]) -> AfterValidator:
    """Ours, or of a package that is installed here."""

    def check(name: str) -> str:
        if name in own:  # what is installed is read from disk: 3 ms, three times what the rest of a submission takes
            return name
        others = installed(kind)
        if name not in others:
            known = ", ".join((*own, *others))
            raise ValueError(f"{name!r} is none of the {kind}; choose from {known}, or install the package that brings it")
        return name

    return AfterValidator(check)


ScorerName = Annotated[str, _one_of("scorers", SCORERS)]
OperatorName = Annotated[str, _one_of("operators", OPERATORS)]


class _Spec(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, str_max_length=4096)


class DataSpec(_Spec):
    """Which images."""

    name: DataName = Field(description="data set")
    root: str | None = Field(default=None, description="folder of the data, relative to the data root (WATTLE_DATA_ROOT) or inside it")
    image_size: int | None = Field(default=None, ge=8, le=224, description="pixels per side after resizing; default: the data set's own")
    classes: int | None = Field(default=None, ge=2, le=1000, description="number of classes, for synthetic data only")
    samples: int | None = Field(default=None, ge=64, le=1_000_000, description="number of images, for synthetic data only")

    @model_validator(mode="after")
    def _fields_fit_name(self) -> DataSpec:
        if self.name != "synthetic" and (self.classes is not None or self.samples is not None):
            raise ValueError(f"classes and samples are for synthetic data; {self.name} brings its own: leave them out")
        if self.name == "imagefolder" and self.root is None:
            raise ValueError("root is missing; imagefolder needs the folder that holds one sub-folder per class")
        return self


class NetworkSpec(_Spec):
    """The seed network: a family, and either all widths or a multiplier of the published ones."""

    family: Family = Field(description="network family")
    widths: tuple[Annotated[int, Field(ge=MIN_WIDTH, le=MAX_WIDTH)], ...] | None = Field(
        default=None, max_length=64, description="one width per channel group"
    )
    width_multiplier: float | None = Field(default=None, gt=0, le=4, description="factor on the family's published widths")
    activation: Literal["silu", "relu"] = Field(default="silu", description="activation function")
    norm: bool = Field(default=True, description="a batch norm behind every convolution (gradmax needs groups without)")

    @model_validator(mode="after")
    def _one_of(self) -> NetworkSpec:
        if (self.widths is None) == (self.width_multiplier is None):
            raise ValueError("give either widths or width_multiplier")
        return self


class GrowthSpec(_Spec):
    """How the network grows."""

    scorer: ScorerName = Field(
        default="splitting", description=f"how channels are scored: {', '.join(SCORERS)}, or one of an installed package"
    )
    operators: tuple[OperatorName, ...] = Field(
        default=("split",),
        min_length=1,
        max_length=16,
        description=f"how channels are added: {', '.join(OPERATORS)}, or of an installed package; one ranking chooses among all that these "
        "propose. twins and zero_output claim no gain: "
        "name them alone, and they fill the widths that splits would be given",
    )
    rounds: int = Field(default=3, ge=1, le=50, description="growth rounds")
    moments: tuple[Annotated[float, Field(gt=0, lt=1)], ...] | None = Field(
        default=None,
        description="when each round opens, as rising shares of the compute that training is planned to take, which stays what the epochs "
        "say; default: after equal numbers of epochs",
    )
    split_step: float = Field(
        default=0.1, gt=0, le=2, description="distance of an offspring from its parent, in units of the parent's norm"
    )
    fill: bool = Field(
        default=True,
        description="a round's room that no reliable gain asks for goes to the most channels that fit, which add nothing at first",
    )
    step_rule: Literal["fixed", "line_search", "gauss_newton"] = Field(
        default="fixed",
        description="take split_step as it is, or scale it in every round to where the loss falls most: by trying, or by a model",
    )
    shrink: bool = Field(
        default=False, description="a round also removes channels where what they free is worth more elsewhere; needs step_rule fixed"
    )
    softplus_beta: float = Field(
        default=3.0, gt=0, le=100, description="sharpness of the softplus whose curvature stands in for ReLU's (SiLU needs none)"
    )
    max_growth: float = Field(default=4.0, gt=1, le=64, description="no channel group grows beyond this multiple of its seed width")
    multiple_of: int = Field(
        default=1,
        ge=1,
        le=256,
        description="a width that grows or shrinks becomes a multiple of this (the control slimming goes channel by channel)",
    )
    scoring_samples: int = Field(
        default=512, ge=16, le=1_000_000, description="at most so many training images are used to find splitting directions"
    )
    fresh_samples: int = Field(
        default=256, ge=16, le=1_000_000, description="at most so many other images rank channels first, and as many again judge the best"
    )
    max_fresh_samples: int = Field(
        default=2048,
        ge=32,
        le=1_000_000,
        description="while the gain is not reliable the fresh images are doubled, up to so many in all; then nothing is added",
    )

    seed_advice: bool = Field(
        default=False,
        description="first train the seed and wider networks, each with the compute of the seed's stage, and report which is ahead",
    )

    @model_validator(mode="after")
    def _operators_go_together(self) -> GrowthSpec:
        if len(set(self.operators)) != len(self.operators):
            raise ValueError("an operator is named twice; name each once")
        silent = [name for name in self.operators if name in NO_GAIN_CLAIMED]
        if silent and len(self.operators) > 1:
            raise ValueError(f"{silent[0]} claims no gain, so it can't be ranked among others; name it alone")
        if self.scorer == "random" and set(self.operators) - {"split", *NO_GAIN_CLAIMED}:
            raise ValueError("the scorer random ranks by chance, and these operators by the loss; use another scorer, or split alone")
        if self.shrink and (silent or self.scorer == "random" or self.step_rule != "fixed"):
            raise ValueError("shrink weighs removals against gains; use step_rule fixed, and a scorer and operators that claim a gain")
        return self

    @model_validator(mode="after")
    def _one_moment_for_each_round(self) -> GrowthSpec:
        if self.moments is not None and (len(self.moments) != self.rounds or list(self.moments) != sorted(set(self.moments))):
            raise ValueError(f"moments are {list(self.moments)}; give {self.rounds} rising shares of the compute, one for each round")
        return self

    @model_validator(mode="after")
    def _two_fresh_samples(self) -> GrowthSpec:
        if self.max_fresh_samples < 2 * self.fresh_samples:
            raise ValueError(
                f"max_fresh_samples is {self.max_fresh_samples}, less than twice fresh_samples ({self.fresh_samples}): "
                "one half ranks channels, the other judges them; raise max_fresh_samples or lower fresh_samples"
            )
        return self


def check_watts(cost: CostName, declared_watts: float | None) -> None:
    """ValueError where watts are declared and it is not energy that is asked for."""
    if declared_watts is not None and cost != "energy_mj":
        raise ValueError(f"declared_watts estimates energy, and {cost} is asked for; ask for energy_mj, or leave it out")


class BudgetSpec(_Spec):
    """What the grown network may cost."""

    cost: CostName = Field(description="quantity that is limited")
    limit: float = Field(gt=0, description="largest allowed value, in the unit of the quantity (ms, mJ, MACs, parameters)")
    device: Name = Field(default="this-host", description="device whose cost table prices latency and energy")
    batch_size: int = Field(default=1, ge=1, le=1024, description="images per inference for which latency or energy is limited")
    threads: int | None = Field(default=None, ge=1, le=256, description="CPU threads of the inference; default: the device's own")
    declared_watts: float | None = Field(
        default=None,
        gt=0,
        description="allows an estimate of energy_mj where the device has no measured energy: these watts, drawn under load, times "
        "measured time (power_model)",
    )

    @model_validator(mode="after")
    def _watts_are_for_energy(self) -> BudgetSpec:
        check_watts(self.cost, self.declared_watts)
        return self


_EXACT_SETTING = {"device": "this-host", "batch_size": 1, "threads": None}  # counts are the same in every setting


class TrainingSpec(_Spec):
    """How networks are trained; one learning-rate schedule spans the whole job."""

    epochs_per_round: float = Field(default=4, gt=0, le=1000, description="epochs of the seed, and again after each growth round")
    final_epochs: float = Field(default=8, gt=0, le=10_000, description="epochs after the last round")
    batch_size: int = Field(default=64, ge=2, le=8192, description="images per training step")
    learning_rate: float = Field(default=0.2, gt=0, le=100, description="peak learning rate of SGD")
    momentum: float = Field(default=0.9, ge=0, lt=1, description="momentum of SGD")
    weight_decay: float = Field(default=1e-4, ge=0, le=1, description="weight decay of SGD")
    schedule: Literal["one_cycle", "cosine"] = Field(default="one_cycle", description="learning-rate schedule over the whole job")
    seed: int = Field(default=0, ge=0, lt=2**31, description="seed of everything random, the split of the data included")
    final: FinalName = Field(
        default="inherit",
        description="deliver the grown network's own weights; or its widths trained from scratch with the compute of the whole grown run; "
        "or the better of both by the loss on the selection images",
    )
    distillation: float = Field(
        default=0, ge=0, le=1, description="part of the loss that holds a grown network to its parent's answers until its round is over"
    )
    precision: Literal["float32", "bfloat16"] = Field(default="float32", description="of training steps; weights stay in float32")
    memory_format: Literal["contiguous", "channels_last"] = Field(default="contiguous", description="of images and weights in training")
    compiled: bool = Field(default=False, description="compile training steps with torch.compile, anew after every growth: for long jobs")
    threads: int = Field(default=1, ge=1, le=256, description="CPU threads for training; part of what makes a run repeatable")


class AccountingSpec(_Spec):
    """How the time and energy that the job itself uses are accounted for; what is left out is the worker's setting."""

    meter: CounterName | None = Field(
        default=None,
        description="energy counter of the machine that does the work; neither here nor at the worker: rapl_package, on a GPU "
        "nvml_total_energy, if it works",
    )
    declared_watts: float | None = Field(
        default=None, gt=0, description="what that machine draws at work: allows an estimate of energy (power_model) where no meter works"
    )
    co2_grams_per_kwh: float | None = Field(default=None, ge=0, description="grams of CO2 per kWh of its electricity; never assumed")
    co2_source: str | None = Field(default=None, min_length=1, max_length=400, description="where that factor is from, in words")

    @model_validator(mode="after")
    def _factor_has_a_source(self) -> AccountingSpec:
        if (self.co2_grams_per_kwh is None) != (self.co2_source is None):
            raise ValueError("co2_grams_per_kwh and co2_source go together; give both, or leave both out")
        return self


class JobSpec(_Spec):
    """A growth job."""

    name: Name = Field(description="name shown in lists")
    data: DataSpec
    network: NetworkSpec
    growth: GrowthSpec = GrowthSpec()
    budget: BudgetSpec
    further_budgets: tuple[BudgetSpec, ...] = Field(
        default=(),
        max_length=8,
        description="what else the grown network may cost: other quantities, or other devices; it keeps to all of them, and so does every "
        "control",
    )
    training: TrainingSpec = TrainingSpec()
    controls: tuple[ControlName, ...] = Field(
        default=("uniform", "cost_only", "random"),
        max_length=len(get_args(ControlName)),
        description="baselines to run with the same budget and the same compute as the grown network",
    )
    seeds: int = Field(
        default=1,
        ge=1,
        le=20,
        description="how often the whole comparison is run, with training.seed and the seeds that follow it; the split of the data stays "
        "that of training.seed. Two or more give the verdict an interval",
    )
    accounting: AccountingSpec = AccountingSpec()

    @model_validator(mode="after")
    def _controls_once(self) -> JobSpec:
        if len(set(self.controls)) != len(self.controls):
            raise ValueError("a control is named twice; name each once")
        return self

    @property
    def budgets(self) -> tuple[BudgetSpec, ...]:
        """All of them, the first one first."""
        return (self.budget, *self.further_budgets)

    @model_validator(mode="after")
    def _budgets_once(self) -> JobSpec:
        unlimited = [
            budget.model_copy(update={"limit": 0.0, **(_EXACT_SETTING if budget.cost in EXACT else {})}) for budget in self.budgets
        ]
        if twice := [budget for budget, count in Counter(unlimited).items() if count > 1]:
            raise ValueError(f"{twice[0].cost} is limited twice in the same setting; keep the lower limit")
        return self

    @model_validator(mode="after")
    def _norms_to_slim_by(self) -> JobSpec:
        if "slimming" in self.controls and not self.network.norm:
            raise ValueError("the control slimming prunes by the scales of batch norms; give the network norms, or leave this control out")
        return self


class ProfileSpec(_Spec):
    """A request to measure a device for every layer shape that growing a network can meet."""

    name: Name = Field(default="profile", description="name shown in lists")
    device: Name = Field(default="this-host", description="device to measure")
    network: NetworkSpec
    image_size: int = Field(ge=8, le=224, description="pixels per side")
    in_channels: int = Field(ge=1, le=3, description="image channels")
    classes: int = Field(ge=2, le=100_000, description="number of classes")
    max_growth: float = Field(default=4.0, gt=1, le=64, description="measure widths up to this multiple of the seed's")
    batch_size: int = Field(default=1, ge=1, le=1024, description="images per inference")
    threads: int | None = Field(default=None, ge=1, le=256, description="CPU threads; default: the device's own")
    seconds: float = Field(default=60, gt=0, le=86_400, description="time budget for measuring latency")
    meter: MeterName | None = Field(
        default=None, description="also measure energy, with this meter of the device; `wattle doctor` says which work there"
    )
    energy_seconds: float = Field(default=900, gt=0, le=86_400, description="time budget for measuring energy, beside that for latency")
    accounting: AccountingSpec = AccountingSpec()
