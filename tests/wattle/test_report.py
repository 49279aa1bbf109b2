"""The report shows what report.json says, and says so where something is absent."""

import io
from typing import Any

from rich.console import Console

from wattle.report import cost_words, render


def text_of(renderable: Any) -> str:
    console = Console(file=io.StringIO(), width=220)
    console.print(renderable)
    return console.file.getvalue()  # type: ignore[attr-defined]  # it is the StringIO above


def test_everything_is_there(report: dict[str, Any]) -> None:
    shown = text_of(render(report, where="./out/"))
    assert "at most 2 ms (latency_ms, batch 32, 1 thread)" in shown
    assert "2.00x" in shown  # a layer that doubled
    assert "1.25 ms [1.2, 1.3]" in shown  # predicted, with interval and unit
    assert "1.3 ms [1.28, 1.31]" in shown  # measured
    assert "calibrated_sum" in shown
    assert "measured" in shown
    assert "-0.0100 ± 0.0020" in shown  # predicted change
    assert "-0.0080" in shown  # realised
    assert "0.3000 -> 0.2500" in shown  # before and after training
    assert "mean error 3.8 %" in shown
    assert "cost only" in shown
    assert "Growth did not beat the uniform control." in shown
    assert "./out/" in shown


def test_every_budget_is_shown_with_what_each_network_costs_in_it(report: dict[str, Any]) -> None:
    report["further_budgets"] = [{"cost": "params", "limit": 20_000.0, "device": "pi-4", "batch_size": 1, "threads": 1}]
    report["grown"]["further_costs"] = [{"value": 1234, "unit": "parameters", "kind": "exact", "low": None, "high": None}]
    shown = text_of(render(report))
    assert "at most 2 ms (latency_ms, batch 32, 1 thread), at most 20,000 parameters (params) on pi-4" in shown
    assert "1234 parameters" in shown


def test_verdict_is_the_reports_own(report: dict[str, Any]) -> None:
    report["verdict"]["sentence"] = "It paid: 1.3 points."
    assert "It paid: 1.3 points." in text_of(render(report))


def test_absent_figures_are_absent(report: dict[str, Any]) -> None:
    for result in (report["seed"], report["grown"], *report["controls"].values()):
        result["measured_latency"] = {"reason": "the machine was busy"}
    report["predicted_versus_measured"] = {"reason": "the machine was busy"}
    shown = text_of(render(report))
    assert "1.3 ms" not in shown
    assert "not known; the machine was busy" in shown


def test_energies_say_what_they_are_read_from(report: dict[str, Any]) -> None:
    read = {"unit": "mJ", "meter": "rapl_package", "scope": "package"}
    predicted = {"quantity": "energy_mj", "value": 5.0, "low": 4.5, "high": 5.5, "kind": "calibrated_sum", **read}
    net = {"value": 3.9, "low": 3.7, "high": 4.1}
    measured = {"value": 5.2, "low": 5.1, "high": 5.3, "kind": "measured", "net": net, "sensor_error": 0.05, **read}
    report["budget"]["cost"] = "energy_mj"
    for result in (report["seed"], report["grown"], *report["controls"].values()):
        result |= {"predicted_cost": predicted, "measured_energy": measured}
    shown = text_of(render(report))
    assert "at most 2 mJ (energy_mj, batch 32, 1 thread)" in shown
    assert "measured energy" in shown
    assert "5.2 mJ [5.1, 5.3]" in shown
    assert "Energy: meter rapl_package, scope package; all that the scope draws meanwhile (gross)" in shown
    assert "(net): 3.9 mJ [3.7, 4.1]; the sensor may be off by 5%" in shown
    report["grown"]["measured_energy"] = {"reason": "the GPU is lost"}
    assert "; not measured: the GPU is lost" in text_of(render(report))


def test_what_the_job_used_itself(report: dict[str, Any]) -> None:
    time = {"value": 61.5, "unit": "s", "kind": "measured"}
    energy = {"value": 1234.0, "unit": "J", "kind": "measured", "meter": "rapl_package", "scope": "package", "note": "gross"}
    co2 = {"value": 0.1, "unit": "g", "kind": "estimated:stated_factor", "grams_per_kwh": 300.0, "source": "a label", "scope": "package"}
    span = {"time": time, "energy": energy}
    report["used"] = {"phases": {"training": span}, "total": {**span, "co2": co2}, "attempts": 1, "missing": ["attempt 1 was killed"]}
    shown = text_of(render(report))
    for part in ("61.5 s", "1234 J", "rapl_package, scope package; gross", "0.1 g (estimated:stated_factor)", "at 300 g/kWh: a label"):
        assert part in shown
    assert "Missing: attempt 1 was killed" in shown
    report["used"]["total"] |= {"energy": {"reason": "no meter"}, "co2": {"reason": "no factor is stated"}}
    shown = text_of(render(report))
    assert "Energy of the job: not known; no meter" in shown
    assert "CO2: not known; no factor is stated" in shown


def test_rolled_back_round_says_why(report: dict[str, Any]) -> None:
    report["rounds"][0] |= {"rolled_back": True, "reason": "loss rose"}
    assert "rolled back: loss rose" in text_of(render(report))


def test_round_without_a_split_says_why(report: dict[str, Any]) -> None:
    report["rounds"][0] |= {"channels_added": [0, 0], "reason": "no channel has a negative index"}
    assert "nothing added: no channel has a negative index" in text_of(render(report))


def test_a_gain_that_may_be_chance_has_no_change_at_its_split(report: dict[str, Any]) -> None:
    report["rounds"][0] |= {"channels_added": [0, 0], "outcome": "no_reliable_gain", "reason": "no reliable gain", "change_at_growth": None}
    shown = text_of(render(report))
    assert "-0.0080" not in shown
    assert "nothing added: no reliable gain" in shown


def test_a_cost_is_never_shown_without_its_unit() -> None:
    assert cost_words({"value": 154_512, "unit": "MACs", "kind": "exact", "low": None, "high": None}) == "154,512 MACs"
    assert cost_words(None) == "–"


def of_seeds(report: dict[str, Any]) -> dict[str, Any]:
    """The report as a job with three seeds writes it."""
    spread = {"test_loss": {"mean": 0.21, "sd": 0.0123, "values": []}, "test_accuracy": {"mean": 0.958, "sd": 0.004, "values": []}}
    pair = {"differences": [-0.01, -0.03, 0.0], "mean": -0.0133, "sd": 0.0153, "low": -0.0513, "high": 0.0247, "confidence": 0.95}
    return {
        **report,
        "seeds": [0, 1, 2],
        "retrained": {**report["grown"], "test_loss": 0.17},
        "arms": dict.fromkeys(("grown", "retrained", "uniform", "cost_only"), spread),
        "paired": {"grown": {"uniform": pair, "cost_only": {**pair, "low": 0.001}}, "retrained": {"uniform": {**pair, "high": -0.001}}},
        "delivered": {"run": "retrained", "why": "training.final is retrain"},
    }


def test_seeds_are_shown_with_scatter_and_intervals(report: dict[str, Any]) -> None:
    shown = text_of(render(of_seeds(report)))
    assert "accuracy and loss: mean ± sd over 3 seeds" in " ".join(shown.split())
    assert shown.count("0.2100 ± 0.0123") == 4
    assert "0.9580 ± 0.0040" in shown
    assert "[-0.0513, +0.0247]" in shown
    assert "-0.0100 -0.0300 +0.0000" in shown
    assert [line.strip().split("  ")[-1].strip() for line in shown.splitlines() if "[-0.0513" in line or "[+0.0010" in line] == [
        "no clear difference", "worse", "better",
    ]  # fmt: skip
    assert "network.safetensors holds the retrained network: training.final is retrain" in shown


def test_one_seed_shows_no_scatter(report: dict[str, Any]) -> None:
    spread = {name: {"mean": 0.2, "sd": None, "values": [0.2], "reason": "one seed"} for name in ("test_loss", "test_accuracy")}
    report |= {"seeds": [0], "arms": dict.fromkeys(("grown", "uniform", "cost_only"), spread), "paired": {"grown": {"uniform": {}}}}
    shown = text_of(render(report))
    assert "Paired" not in shown
    assert "±" not in shown.partition("Growth rounds")[0]
