"""Admission: can this spec be carried out here and now?  Checked at submission, again when a worker starts the job.

``store.spec`` refuses what is wrong in itself.  Here is what only the disk and the store know: are there such images, does the device
have prices for this network, does the budget cover the seed.  Everything that is wrong is found before anything is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from costs.families import MAX_WIDTH, Network, default_widths, largest_widths
from costs.model import EXACT, Budget, Cost, CostModel, CostName, Macs, Parameters, estimated
from costs.power import at_declared_power
from costs.shapes import LayerShape, Wiring
from costs.table import CostTable, NoCost, Setting, TableCost
from store import devices, images
from store.database import Database
from store.images import DataShape
from store.problems import InvalidSpec, Problem
from store.settings import Settings
from store.spec import BudgetSpec, JobSpec, NetworkSpec, ProfileSpec
from store.views import Device, UnknownDevice

__all__ = ["Admission", "InvalidSpec", "Problem", "ProfileAdmission", "admit", "admit_profile", "cost_model", "seed_network", "setting_of"]

LoadTable = Callable[[Database, str], CostTable]  # by device name, UnknownDevice if there is none; the server passes one that remembers


@dataclass(frozen=True, slots=True)
class Admission:
    """A job that can run: its spec with thread counts filled in, its seed network, its budgets, what the seed costs in the first, and what
    the user should know all the same."""

    spec: JobSpec
    data: DataShape
    network: Network
    wiring: Wiring
    budgets: tuple[Budget, ...]
    seed_cost: Cost
    setting: Setting
    warnings: tuple[str, ...]

    @property
    def cost_model(self) -> CostModel:
        """Of the first budget."""
        return self.budgets[0].cost_model


@dataclass(frozen=True, slots=True)
class ProfileAdmission:
    """A profile that can be measured: the network whose layer shapes are needed."""

    network: Network
    wiring: Wiring
    setting: Setting
    warnings: tuple[str, ...]


def admit(spec: JobSpec, db: Database, settings: Settings, load_table: LoadTable = devices.load_table) -> Admission:
    """Everything the job needs, or InvalidSpec with every problem found."""
    problems: list[Problem] = []
    spec = _with_threads(spec, db)
    shape, network = _seed(spec, settings, problems)
    fields = ("budget", *(f"further_budgets.{number}" for number in range(len(spec.further_budgets))))
    asked = list(zip(fields, spec.budgets, strict=True))
    models = [_cost_model(field, budget, db, load_table, problems) for field, budget in asked]
    if problems or shape is None or network is None:
        raise InvalidSpec(problems)
    most, budgets = (
        spec.growth.max_growth,
        tuple(Budget(model, one.limit) for model, one in zip(models, spec.budgets, strict=True) if model),
    )
    seed_costs = [_priced_seed(*one, network, most, each.cost_model, problems) for one, each in zip(asked, budgets, strict=True)]
    if problems:
        raise InvalidSpec(problems)
    wiring, known = _wiring(network), [cost for cost in seed_costs if cost]
    warnings = [
        warning
        for one, each, cost in zip(spec.budgets, budgets, known, strict=True)
        for warning in (
            *_device_warnings(one, db),
            *calibration_warnings(one.device, wiring, each.cost_model, profile_command(one, network, most, _meter(each.cost_model))),
            *_power_warnings(one, each.cost_model),
            *_interval_warnings(cost, one.limit),
        )
    ]
    warnings += _growth_warnings(most, network, budgets)
    return Admission(spec, shape, network, wiring, budgets, known[0], setting_of(spec.budget), tuple(dict.fromkeys(warnings)))


def admit_profile(spec: ProfileSpec, db: Database) -> ProfileAdmission:
    """What is to be measured, or InvalidSpec with every problem found."""
    problems: list[Problem] = []
    network = None
    try:
        network = seed_network(spec.network, DataShape(spec.image_size, spec.in_channels, spec.classes))
    except InvalidSpec as error:
        problems += error.problems
    device = None
    try:
        device = devices.device(db, spec.device)
    except UnknownDevice:
        problems.append(_unknown_device("device", spec.device, db))
    else:
        problems += _too_many_threads(spec, device)
    if problems or network is None or device is None:
        raise InvalidSpec(problems)
    warnings = (device.waits_for,) if device.waits_for else ()
    return ProfileAdmission(network, _wiring(network), Setting(spec.batch_size, spec.threads or device.threads), warnings)


def _too_many_threads(spec: ProfileSpec, device: Device) -> list[Problem]:
    cores = device.fingerprint.get("cores")
    if spec.threads is None or not isinstance(cores, int) or spec.threads <= cores:
        return []
    remedy = f"give 1 to {cores}, or leave it out"
    message = f"threads is {spec.threads}; {device.name} has {cores} cores: {remedy}"
    return [Problem("threads", spec.threads, f"at most {cores}", remedy, message)]


def seed_network(spec: NetworkSpec, data: DataShape) -> Network:
    """The seed for images of this shape.  InvalidSpec when the widths do not fit the family."""
    widths = spec.widths if spec.widths is not None else default_widths(spec.family, spec.width_multiplier or 1.0)
    network = Network(spec.family, widths, data.image_size, data.in_channels, data.classes, spec.activation, spec.norm)
    try:
        _wiring(network)
    except ValueError as error:
        if spec.widths is None:
            limit, remedy = f"widths up to {MAX_WIDTH}", "choose a smaller width_multiplier"
            raise InvalidSpec([Problem("network.width_multiplier", spec.width_multiplier, limit, remedy, f"{error}; {remedy}")]) from error
        count = "1 to 16" if spec.family == "plain" else str(len(default_widths(spec.family)))
        remedy = f"give {count} widths for {spec.family}, or a width_multiplier instead"
        raise InvalidSpec([Problem("network.widths", len(spec.widths), f"{count} widths", remedy, str(error))]) from error
    return network


def with_watts(table: CostTable, declared_watts: float | None) -> CostTable:
    """The table; where watts are declared and no meter has measured energy, with its times as energies."""
    if declared_watts is None or table.measures("energy_mj"):
        return table
    return at_declared_power(table, declared_watts)


def cost_model(cost: CostName, table: CostTable, setting: Setting) -> CostModel:
    """The model that prices ``cost``: exact counts, or the device's table."""
    if cost == "macs":
        return Macs()
    if cost == "params":
        return Parameters()
    return TableCost(table, cost, setting)


@lru_cache(maxsize=64)
def _wiring(network: Network) -> Wiring:
    return network.wiring()


@lru_cache(maxsize=128)
def _shapes(network: Network, widths: tuple[int, ...]) -> tuple[LayerShape, ...]:
    """Half of what admission computes, and most submissions are of networks that were submitted before."""
    return _wiring(network).shapes(widths)


def _seed(spec: JobSpec, settings: Settings, problems: list[Problem]) -> tuple[DataShape | None, Network | None]:
    """Images and seed network.  Where the images are wrong, the network is still checked, as if they had two classes."""
    shape = None
    try:
        shape = images.describe(spec.data, settings)
    except InvalidSpec as error:
        problems += error.problems
    try:
        return shape, seed_network(spec.network, shape or DataShape(spec.data.image_size or 32, 3, 2))
    except InvalidSpec as error:
        problems += error.problems
    return shape, None


def _cost_model(field: str, budget: BudgetSpec, db: Database, load_table: LoadTable, problems: list[Problem]) -> CostModel | None:
    """The model that prices the budget's quantity; None, with a problem, where the device can't be asked for it."""
    if budget.cost in EXACT:
        return cost_model(budget.cost, CostTable(budget.device), setting_of(budget))
    try:
        table = load_table(db, budget.device)
    except UnknownDevice:
        problems.append(_unknown_device(f"{field}.device", budget.device, db))
        return None
    if budget.cost == "energy_mj" and budget.declared_watts is None and not table.measures("energy_mj"):
        problems.append(_no_energy(field, budget))
        return None
    return cost_model(budget.cost, with_watts(table, budget.declared_watts), setting_of(budget))


def _no_energy(field: str, budget: BudgetSpec) -> Problem:
    remedy = (
        "measure it with a meter that works there (`wattle doctor` lists them): wattle profile --meter METER; without one allow an "
        f"estimate (power_model): set {field}.declared_watts to what the device draws under load; or limit latency_ms, macs or params"
    )
    message = f"{budget.device} has no energy entries: no meter has measured its energy; {remedy}"
    return Problem(f"{field}.cost", budget.cost, ["latency_ms", "macs", "params"], remedy, message)


def _priced_seed(
    field: str, budget: BudgetSpec, network: Network, max_growth: float, model: CostModel, problems: list[Problem]
) -> Cost | None:  # fmt: skip
    """The seed's cost; None, with a problem, when it has no price, or one above the limit."""
    try:
        seed = model.network(_shapes(network, network.widths))
    except NoCost as error:
        remedy, reason = profile_command(budget, network, max_growth, _meter(model)), str(error).partition("; run `")[0]
        message = f"the seed can't be priced: {reason}; run: {remedy}"
        problems.append(Problem(f"{field}.device", budget.device, None, remedy, message))
        return None
    if seed.value > budget.limit:
        cost = f"{_rounded_up(seed.value)} {seed.unit}"
        remedy = f"set {field}.limit above {cost}, or start from a smaller seed"
        message = f"the budget of {budget.limit:.12g} {seed.unit} does not cover the seed, which costs {cost} ({seed.kind}); {remedy}"
        problems.append(Problem(f"{field}.limit", budget.limit, f"at least {cost}", remedy, message))
        return None
    return seed


def _unknown_device(field: str, name: str, db: Database) -> Problem:
    known = [device.name for device in devices.all_devices(db)]
    remedy = f"start a worker on it: wattle worker --device {name}"
    message = f"no worker has registered a device {name}; known: {', '.join(known) or 'none'}; {remedy}"
    return Problem(field, name, known, remedy, message)


def _meter(model: CostModel) -> str | None:
    """The meter of the energies that the model has, where they are measured; a calibration says it, whatever the size of the table."""
    if model.name != "energy_mj" or not isinstance(model, TableCost):
        return None
    return next((each.meter for each in model.table.calibrations if each.quantity == "energy_mj" and not estimated(each.kind)), None)


def profile_command(budget: BudgetSpec, network: Network, max_growth: float, meter: str | None = None) -> str:
    """The command that measures what this job needs; with a meter, energy too."""
    widths, norm = ",".join(map(str, network.widths)), "" if network.norm else "--no-norm "
    threads = f"--threads {budget.threads} " if budget.threads else ""
    energy = f"--meter {meter} " if meter else ""
    return (
        f"wattle profile --device {budget.device} --family {network.family} --widths {widths} --activation {network.activation} {norm}"
        f"--image-size {network.image_size} --in-channels {network.in_channels} --classes {network.classes} "
        f"--max-growth {max_growth:g} --batch-size {budget.batch_size} {threads}{energy}--wait"
    )


def _device_warnings(budget: BudgetSpec, db: Database) -> tuple[str, ...]:
    """Are the prices those of the machine as it is now?"""
    if budget.cost in EXACT:
        return ()
    expired = devices.device(db, budget.device).expired
    return (expired,) if expired else ()


def calibration_warnings(device: str, wiring: Wiring, model: CostModel, command: str = "wattle profile") -> tuple[str, ...]:
    """Were whole networks like this one measured in the device's last profile with this setting?  If not, ``command`` does that."""
    if not isinstance(model, TableCost) or model.calibrated_on(wiring):
        return ()
    return (
        f"the last profile of {device} with this setting measured other networks (family, activation or image size), and its "
        f"scale is applied here: prices may be off by more than their interval says; run: {command}",
    )


def _power_warnings(budget: BudgetSpec, model: CostModel) -> tuple[str, ...]:
    """Are the declared watts used, and what does that mean?"""
    if budget.declared_watts is None:
        return ()
    if meter := _meter(model):
        return (f"{meter} has measured the energy of {budget.device}: budget.declared_watts is not used",)
    return (
        f"no meter has measured the energy of {budget.device}: it is estimated as {budget.declared_watts:g} W times measured time, which "
        "can't tell a layer that is slow from one that is hungry",
    )


def _interval_warnings(seed: Cost, limit: float) -> tuple[str, ...]:
    """Might the seed alone be over the budget, by what the prices can be off?"""
    if seed.high is None or seed.high <= limit:
        return ()
    return (
        f"the budget of {limit:.12g} {seed.unit} is held against the predicted cost; the seed's is {_rounded_up(seed.value)} {seed.unit}, "
        f"but may be up to {_rounded_up(seed.high)} {seed.unit} in truth",
    )


def _growth_warnings(most: float, network: Network, budgets: Sequence[Budget]) -> list[str]:
    """Does something other than the budgets end the growth?"""
    short, loose = [], []
    for budget in budgets:
        try:
            largest = budget.cost_model.network(_shapes(network, largest_widths(network.widths, most)))
        except NoCost as error:
            reach = str(error).partition("; run `")[0]
            short.append(f"the cost table does not reach {most:g} times the seed's widths, so growth ends where it ends: {reach}")
            continue
        if largest.value <= budget.limit:
            unit = budget.cost_model.unit
            loose.append(
                f"{budget.limit:.12g} {unit} is more than {most:g} times the seed's widths cost ({_rounded_up(largest.value)} {unit})"
            )
    if len(loose) == len(budgets):
        return [f"{' and '.join(loose)}: growth.max_growth ends the growth, not the budget"]
    return short


def _with_threads(spec: JobSpec, db: Database) -> JobSpec:
    """Where a budget names no thread count, its device's own: what is stored and reported says what was priced."""
    first, *further = (one if one.threads else one.model_copy(update={"threads": devices.threads(db, one.device)}) for one in spec.budgets)
    return spec.model_copy(update={"budget": first, "further_budgets": tuple(further)})


def setting_of(budget: BudgetSpec) -> Setting:
    """How the network is executed whose cost an admitted budget limits."""
    assert budget.threads is not None  # filled in before anything is priced
    return Setting(budget.batch_size, budget.threads)


def _rounded_up(value: float) -> str:
    """Four digits of a measurement, all digits of a count, never less than the value: a limit of this many covers it."""
    if value == int(value):
        return str(int(value))
    scale = 10.0 ** (3 - math.floor(math.log10(value)))
    return f"{math.ceil(value * scale) / scale:.12g}"
