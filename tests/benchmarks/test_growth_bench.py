"""The growth experiments: tasks that repeat and keep their splits apart, results that resume, statistics, widths, the page."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from scipy import stats as scipy_stats

from benchmarks.growth import page, tasks
from benchmarks.growth.arms import ARMS, Runs, Setting
from benchmarks.growth.factorial import arms_of
from benchmarks.growth.landscape import KNOWN, Fit, _draws, _limit
from benchmarks.growth.nets import PYRAMID, macs, small, times
from benchmarks.growth.records import Clock, OutOfTime, Results
from benchmarks.growth.shaped import Shaped
from benchmarks.growth.stats import difference, paired
from benchmarks.growth.toward import NAME, even_path, register
from costs.model import Budget, Macs
from growth.config import GrowthConfig
from growth.controls import WIDTH_RULES
from growth.groups import find_groups
from growth.loop import Growth
from growth.networks import build
from growth.scorers import SCORERS, GroupScore
from growth.training import Data, fetch, size

FRESH = Clock.minutes(10)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("name", tasks.TASKS)
def test_a_task_repeats_and_its_splits_share_no_image(name: str) -> None:
    tasks.load.cache_clear()
    first = tasks.load(name)
    tasks.load.cache_clear()
    again = tasks.load(name)
    seen: set[bytes] = set()
    for part, same in zip((first.train, first.selection, first.test), (again.train, again.selection, again.test), strict=True):
        images, classes = fetch(part, range(size(part)))
        assert torch.equal(images, fetch(same, range(size(same)))[0])
        assert set(classes.tolist()) == set(range(tasks.TASKS[name].classes))
        ours = {image.numpy().tobytes() for image in images}
        assert len(ours) == len(images)
        assert not ours & seen
        seen |= ours


def test_no_writer_of_a_digit_is_in_two_parts() -> None:
    originals = [{image.numpy().tobytes() for image in tasks._originals(part)[0]} for part in tasks.PARTS]
    assert not originals[0] & originals[1]
    assert not (originals[0] | originals[1]) & originals[2]


def test_tuning_never_sees_the_test_images() -> None:
    data = tasks.load("patterns")
    assert tasks.without_test(data).test is data.selection


def test_the_wiring_of_the_small_network_is_the_one_that_is_traced() -> None:
    network = small(PYRAMID, 10)
    graph = find_groups(build(network, torch.Generator().manual_seed(0)), torch.randn(2, 1, 16, 16))
    assert graph.wiring.shapes() == network.wiring().shapes()
    assert [macs(times(network, factor)) for factor in (1, 2, 4)] == [42424, 113008, 338656]


def test_results_resume_where_a_stopped_run_was(tmp_path: Path) -> None:
    results = Results(tmp_path / "part.jsonl", FRESH)
    assert results.once({"arm": "a", "seed": 0}, lambda: {"loss": 1.5})["loss"] == 1.5
    with results.path.open("a") as file:
        file.write('{"arm": "b", "se')  # a crash
    again = Results(tmp_path / "part.jsonl", FRESH)
    assert again.once({"arm": "a", "seed": 0}, lambda: pytest.fail("done already"))["loss"] == 1.5
    again.once({"arm": "b", "seed": 0}, lambda: {"loss": 2.0})
    assert [row["arm"] for row in again.all()] == ["a", "b"]
    late = Results(tmp_path / "part.jsonl", Clock.minutes(-1))
    assert late.once({"arm": "b"}, lambda: {})["loss"] == 2.0
    with pytest.raises(OutOfTime):
        late.once({"arm": "c"}, lambda: {})


def test_differences_are_scipys_paired_intervals() -> None:
    this, that = {0: 1.0, 1: 1.3, 2: 0.9, 5: 1.1, 7: 9.0}, {0: 1.2, 1: 1.25, 2: 1.3, 5: 1.4}
    found = paired(this, that)
    assert found is not None
    test = scipy_stats.ttest_rel([this[seed] for seed in that], list(that.values()))
    interval = test.confidence_interval(0.95)
    assert found.n == 4
    assert found.mean - found.half_width == pytest.approx(interval.low)
    assert found.mean + found.half_width == pytest.approx(interval.high)
    assert found.verdict == ("better" if interval.high < 0 else "undecided")
    assert paired({0: 1.0}, {1: 1.0}) is None
    assert difference([-0.5]).verdict == "undecided"


def test_a_path_to_given_widths_takes_no_more_than_its_share_and_growth_follows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SCORERS, NAME, SCORERS["random"])  # so that what is registered below is forgotten again
    setting, data = Setting("digits", "constant"), _few()
    seed = setting.seed_network
    path = even_path(seed.widths, setting.expert.widths, 3)
    assert path[-1] == setting.expert.widths
    low, high = macs(seed), macs(setting.expert)
    for number, widths in enumerate(path):
        assert macs(small(widths, 10)) <= low * (high / low) ** (number / 3) + 1
    scorer = register(seed.widths, setting.expert.widths, 3)
    config = GrowthConfig(
        limit=high, steps_per_round=1, final_steps=1, scorer=scorer, operators=("zero_output",), max_growth=5.0, learning_rate=1e-6,
        scoring_samples=16, fresh_samples=8, max_fresh_samples=16,
    )  # fmt: skip
    run = Growth.start(seed, data, setting.cost_model, config)
    for _ in run.events():
        pass
    kept = [closed for closed in run.rounds if not closed.rolled_back]
    assert run.graph.wiring.widths == (kept[-1].widths_after if kept else seed.widths)
    assert [closed.widths_after for closed in kept] == path[1 : 1 + len(kept)]


def test_arms_are_the_factorial_of_rules_and_weights() -> None:
    rules = ("energy", "uniform", "pyramid", "cost_only", "random")
    assert set(ARMS) == {f"{rule}/{weights}" for rule in rules for weights in ("inherited", "retrained")} | {
        "energy/retrained, search charged", "twins", "seed_alone"
    }  # fmt: skip
    assert set(WIDTH_RULES) <= {arm.split("/")[0] for arm in ARMS}
    assert not any(arm.startswith("pyramid") for arm in arms_of(Setting("digits", "pyramid")))


def test_every_arm_spends_what_all_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.growth.arms.EPOCHS", 30)
    monkeypatch.setattr("benchmarks.growth.arms.GROWTH_SAMPLES", 128)
    ours = {"scoring_samples": 16, "fresh_samples": 8, "max_fresh_samples": 16}
    setting, data = Setting("digits", "constant", ours=ours), _few()
    runs = Runs(setting, data, 0, {"energy/inherited": (0.01, 64), "uniform/retrained": (0.01, 64)})
    spent = {arm: runs.run(arm).values()["charged_macs"] for arm in ("energy/inherited", "uniform/retrained")}
    allowed = 30 * size(data.train) * 3 * macs(setting.expert)
    assert all(0.9 * allowed < macs <= allowed for macs in spent.values())
    assert spent["uniform/retrained"] <= spent["energy/inherited"]
    found, network_macs = runs.run("energy/inherited"), macs(runs.main.network)
    trained = runs.at("energy/retrained, search charged", 0.01, 64).values()
    in_all = found.search_macs + trained["charged_macs"]
    assert 0 < found.search_macs < spent["energy/inherited"]
    assert spent["energy/inherited"] - 4 * 3 * 64 * network_macs < in_all <= spent["energy/inherited"]


def test_the_page_says_what_the_results_say(tmp_path: Path) -> None:
    lines = [
        {"kind": "run", "setting": "s", "task": "digits", "arm": arm, "seed": seed, "test_loss": loss + 0.01 * seed, "test_accuracy": 0.5,
         "selection_loss": loss, "widths": [4, 4], "cost": 100.0, "rate": 0.3, "batch": 64, "rounds": [], "date": "2026-11-23"}
        for arm, loss in (("energy/inherited", 1.0), ("uniform/retrained", 1.2), ("cost_only/retrained", 0.9))
        for seed in range(3)
    ]  # fmt: skip
    (tmp_path / "factorial.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page.write(tmp_path, tmp_path / "page.md")
    text = (tmp_path / "page.md").read_text()
    assert "-0.200 ± 0.000" in text
    assert "better than uniform" in text
    assert "worse than cost_only" in text


def test_every_section_shows_its_results_and_its_plots_are_well_formed(tmp_path: Path) -> None:
    rounds = [{"outcome": "grown", "predicted": -0.01, "at_growth": -0.02, "rolled_back": False}]
    attempt = {"kind": "tried", "setting": "s", "task": "digits", "arm": "energy/inherited", "seed": 0}
    parts: dict[str, list[dict[str, object]]] = {
        "tried": [
            {**attempt, "variant": "splits", "selection_loss": 1.25, "widths": [4, 5], "cost": 9.0, "rounds": rounds},
            {**attempt, "variant": "firefly", "selection_loss": None, "failure": "the training loss is nan"},
        ],
        "score": [
            {"kind": "score", "seed": 0, "method": method, "directions": 0.5, "taken": 0.75, "step_equivalents": steps, "product": 0.4}
            for method, steps in (("ours, 256 images", 10.0), ("ours, 512 images", 20.0), ("rayleigh as published, 512 images", 90.0))
        ],
        "law": [
            {"kind": "law", "norm": True, "seed": 0, "operator": name, "step": step, "sets": sets}
            for step in (0.1, 1.0)
            for name, sets in (
                ("split", [{"adds": 1, "predicted": -step, "realised": -1.25 * step}]),
                ("twins", [{"adds": 1, "predicted": 0.0, "realised": 0.0}]),
                ("gradmax", []),
            )
        ],
        "tasks": [{"kind": "tasks", "task": "digits", "macs": 42, "seed": 0, "selection_loss": 1.5, "selection_accuracy": 0.5}],
    }  # fmt: skip
    for part, rows in parts.items():
        (tmp_path / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page.write(tmp_path, tmp_path / "page.md")
    text = (tmp_path / "page.md").read_text()
    for expected in (
        "| splits | energy/inherited | 1 | 1.250 | 9 | 1 of 1 | 4 5 |",
        "diverged: the training loss is nan",
        "| split, norms | 20 % | 20 % |",
        "| twins, norms | 0 | 0 |",
        "| gradmax, norms | – | – |",
        "| ours, 256 images | 10 | 0.50 | 0.75 |",
        "Not run yet.",
    ):
        assert expected in text
    drawn = sorted((tmp_path / "page").glob("*.svg"))
    assert [plot.stem for plot in drawn] == ["law", "score"]
    assert all(ElementTree.parse(plot).getroot().tag.endswith("svg") for plot in drawn)


def test_a_floor_ranks_what_the_index_does_not_and_smoothing_ranks_groups() -> None:
    score = GroupScore(torch.tensor([-4.0, 1.0, -2.0]), torch.eye(3), torch.zeros(3), torch.ones(3))
    floored = Shaped(floor=1.0)._shaped(score, torch.tensor([4.0, 0.0, 2.0]), 3.0)
    assert floored.relative_index.tolist() == [-4.0, -3.0, -3.0]
    smooth = Shaped(smooth=True)._shaped(score, torch.tensor([4.0, 0.0, 2.0]), 0.0)
    assert smooth.relative_index.tolist() == [-2.0, -2.0, -2.0]
    fading = Shaped(fading=True)._shaped(score, torch.tensor([4.0, 0.0, 2.0]), 0.0)
    assert fading.relative_index.tolist() == pytest.approx([-4.0, 0.0, -2.0 * 3 / 4])


def _few() -> Data:
    """The digits task, cut short."""
    data = tasks.load("digits")
    return Data(*(torch.utils.data.TensorDataset(*fetch(part, range(256))) for part in (data.train, data.selection, data.test)))


def test_the_landscape_is_drawn_at_one_cost() -> None:
    drawn = list(_draws(10, 12))
    assert drawn == list(_draws(10, 12))
    assert len(set(drawn)) == 12
    assert all(0.8 * _limit(10) < macs(small(widths, 10)) <= _limit(10) for widths in drawn)


def test_the_known_widths_are_those_of_the_rules() -> None:
    setting = Setting("digits", "constant")
    config = setting.config(tasks.load("digits"), 0, 0.3, 64)
    seed, budgets = setting.seed_network.wiring(), [Budget(Macs(), config.limit)]
    assert KNOWN["pyramid"] == setting.expert.widths
    assert {name: KNOWN[name] for name in ("cost_only", "uniform")} == {
        name: WIDTH_RULES[name](seed, budgets, config) for name in ("cost_only", "uniform")
    }


def test_the_fit_finds_the_best_widths_of_a_known_landscape() -> None:
    """A bowl around (6, 8, 12, 16, 24, 30)."""
    bottom, drawn = torch.tensor([6.0, 8, 12, 16, 24, 30]).log(), list(_draws(10, 60))
    losses = [float((0.1 * (torch.tensor(widths).log() - bottom).square().sum()).exp()) for widths in drawn]
    rows = [
        {"name": "drawn", "widths": " ".join(map(str, widths)), "selection_loss": loss}
        for widths, loss in zip(drawn, losses, strict=True)
    ]  # fmt: skip
    fit = Fit.of(rows)
    assert fit.explained > 0.99
    assert fit.loss(drawn) == pytest.approx(losses, rel=0.02)
    best = fit.best(10)
    assert macs(small(best, 10)) <= _limit(10)
    assert float(fit.loss([best])[0]) < min(losses)
