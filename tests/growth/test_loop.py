"""The growth loop: same seed same run, stopping anywhere changes nothing, every round within its limit, roll-back, honest reasons."""

import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from costs.families import Network
from costs.model import Budget, Macs, Parameters
from growth import rounds
from growth.checkpoint import CheckpointError, read
from growth.config import GrowthConfig
from growth.events import Event, Finished, Proposal, Round, Scored, Step
from growth.loop import Growth
from growth.networks import build
from growth.notebook import grow
from growth.operators import OPERATORS
from growth.rounds import shares
from growth.scorers import SCORERS, GroupScore
from growth.scorers.at_random import AtRandom
from growth.selection import fits
from growth.splitting import SplittingProduct
from growth.surgery import add_channels
from growth.training import EXPLODED, Data, Learner, NotANumber, evaluate_batches, fetch, seeded

SEED = Network("plain", (4, 4), 8, 1, 3)
SEED_MACS = Macs().network(SEED.wiring().shapes()).value
CONFIG = GrowthConfig(
    limit=3 * SEED_MACS, rounds=3, steps_per_round=3, final_steps=3, batch_size=16, scoring_samples=32, fresh_samples=16,
    learning_rate=0.05, split_step=0.3, fill=False,
)  # fmt: skip


def images(count: int, seed: int) -> TensorDataset:
    """Noisy versions of one pattern per class."""
    patterns = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(7))
    generator = torch.Generator().manual_seed(seed)
    classes = torch.randint(3, (count,), generator=generator)
    return TensorDataset(patterns[classes] + 0.3 * torch.randn(count, 1, 8, 8, generator=generator), classes)


def relabelled(data: TensorDataset) -> TensorDataset:
    """The same images with wrong classes: whoever learns does worse on them."""
    x, y = data.tensors
    return TensorDataset(x, (y + 1) % 3)


def noise(count: int, seed: int) -> TensorDataset:
    """Nothing to learn."""
    generator = torch.Generator().manual_seed(seed)
    return TensorDataset(torch.randn(count, 1, 8, 8, generator=generator), torch.randint(3, (count,), generator=generator))


DATA = Data(images(70, 0), images(24, 1), images(24, 2))
MISLEADING = replace(DATA, selection=relabelled(images(24, 1)))
NOISE = Data(noise(140, 3), noise(24, 4), noise(24, 5))  # an ordinary case: nothing in it looks like a gain by chance


def start(**changes: Any) -> Growth:
    return Growth.start(SEED, DATA, Macs(), replace(CONFIG, **changes))


def comparable(event: Event) -> Event:
    """An event without what may differ: how long it took."""
    return replace(event, seconds=0.0) if isinstance(event, Scored) else event


def final(growth: Growth, folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    growth.save(folder / "final.safetensors")
    return read(folder / "final.safetensors")


def assert_same(one: tuple[dict[str, Tensor], dict[str, Any]], other: tuple[dict[str, Tensor], dict[str, Any]]) -> None:
    assert one[1] == other[1]
    assert one[0].keys() == other[0].keys()
    for name, tensor in one[0].items():
        assert torch.equal(tensor, other[0][name]), name


@pytest.mark.parametrize(
    ("data", "changes", "explodes_above", "outcome"),
    [
        (DATA, {"steps_per_round": 4}, EXPLODED, ("grown", False)),
        (MISLEADING, {"scorer": "random", "compute_limit_macs": 12_000_000}, EXPLODED, ("grown", True)),
        (DATA, {"rounds": 3, "compute_limit_macs": 9_000_000}, EXPLODED, ("grown", False)),
        (NOISE, {}, EXPLODED, ("no_reliable_gain", False)),
        (NOISE, {"fill": True}, EXPLODED, ("filled", False)),
        (DATA, {"scorer": "random", "compute_limit_macs": 12_000_000}, 0.5, ("grown", True)),
    ],
    ids=["splits kept", "splits rolled back", "compute for one round of three", "no reliable gain", "filled", "diverged in the round"],
)
def test_a_run_stopped_at_any_yield_goes_on_as_if_it_had_not(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    data: Data,
    changes: dict[str, Any],
    explodes_above: float,
    outcome: tuple[str, bool],
) -> None:
    """Saved at every yield, in one run; each checkpoint is resumed in a new object and run to the end: no number differs."""
    monkeypatch.setattr("growth.loop.EXPLODED", explodes_above)
    growth = Growth.start(SEED, data, Macs(), replace(CONFIG, **{"rounds": 2, **changes}))
    growth.save(tmp_path / "0")
    events: list[Event] = []
    for event in growth.events():
        events.append(event)
        growth.save(tmp_path / str(len(events)))
    expected = final(growth, tmp_path)
    assert outcome in [(event.outcome, event.rolled_back) for event in events if isinstance(event, Round)]
    for number in range(len(events)):
        resumed = Growth.resume(tmp_path / str(number), data, Macs())
        rest = list(resumed.events())
        assert [comparable(event) for event in rest] == [comparable(event) for event in events[number:]]
        assert_same(final(resumed, tmp_path), expected)


@pytest.mark.parametrize("operator", OPERATORS)
def test_a_run_stopped_in_an_operators_round_goes_on_as_if_it_had_not(operator: str, tmp_path: Path) -> None:
    """Saved before, in and after its round, with a line search; the resumed run equals the undisturbed one bit for bit."""
    network = replace(SEED, norm=operator != "gradmax")
    config = replace(CONFIG, operators=(operator,), step_rule="line_search", rounds=1, limit=8 * SEED_MACS, learning_rate=0.05)
    growth = Growth.start(network, DATA, Macs(), config)
    events, saved = [], [tmp_path / "0"]
    growth.save(saved[0])
    for event in growth.events():
        events.append(event)
        saved.append(tmp_path / str(len(events)))
        growth.save(saved[-1])
    (closed,) = growth.rounds
    assert (closed.outcome, list(closed.added_by)) == ("grown", [operator])
    assert closed.added_by[operator] == sum(closed.channels_added)
    expected = final(growth, tmp_path)
    for number in range(CONFIG.steps_per_round - 1, len(events)):
        resumed = Growth.resume(saved[number], DATA, Macs())
        assert [comparable(event) for event in resumed.events()] == [comparable(event) for event in events[number:]]
        assert_same(final(resumed, tmp_path), expected)


def test_every_round_keeps_to_its_share_of_all_budgets_and_to_the_rounding(tmp_path: Path) -> None:
    """Also when resumed; a seed beyond any of the budgets is refused."""
    params, config = Parameters(), replace(CONFIG, multiple_of=2, limit=8 * SEED_MACS, scorer="random")
    start_params = params.network(SEED.wiring().shapes()).value
    further = [Budget(params, 2.5 * start_params)]
    growth = Growth.start(SEED, DATA, Macs(), config, further)
    events = growth.events()
    next(event for event in events if isinstance(event, Round))
    growth.save(tmp_path / "half")
    list(events)
    for taken in growth.rounds:
        allowed = shares(SEED.wiring(), growth.budgets, taken.number, config.rounds)
        assert fits(SEED.wiring(), taken.widths_after, allowed)
        assert all(width % 2 == 0 for width in taken.widths_after)
    assert growth.network.widths != SEED.widths
    assert_same(final(finished(Growth.resume(tmp_path / "half", DATA, Macs(), further)), tmp_path), final(growth, tmp_path))
    with pytest.raises(ValueError, match=f"the seed costs {start_params:.6g} parameters, more than the limit of 9"):
        Growth.start(SEED, DATA, Macs(), config, [Budget(params, 9)])


def finished(growth: Growth) -> Growth:
    list(growth.events())
    return growth


EXECUTIONS: list[dict[str, Any]] = [{"distillation": 0.5}, {"precision": "bfloat16"}, {"memory_format": "channels_last"}]


@pytest.mark.parametrize("changes", EXECUTIONS, ids=lambda changes: next(iter(changes)))
def test_whatever_the_training_a_resumed_run_is_the_undisturbed_one(changes: dict[str, Any], tmp_path: Path) -> None:
    """Stopped in the middle of a round's training."""
    growth = start(rounds=1, steps_per_round=4, **changes)
    plain = start(rounds=1, steps_per_round=4)
    events = growth.events()
    for event in events:
        if isinstance(event, Step) and event.step == 6:
            break
    growth.save(tmp_path / "half")
    rest = list(events)
    resumed = Growth.resume(tmp_path / "half", DATA, Macs())
    assert list(resumed.events()) == rest
    assert_same(final(resumed, tmp_path), final(growth, tmp_path))
    list(plain.events())
    assert growth.rounds[0].outcome == plain.rounds[0].outcome == "grown"
    assert growth.rounds[0].loss_after == pytest.approx(plain.rounds[0].loss_after, rel=0.1)
    taught = 16 * 4 * Macs().network(SEED.wiring().shapes()).value if "distillation" in changes else 0
    assert growth.charged_macs - plain.charged_macs == taught or growth.network.widths != plain.network.widths


def test_a_student_learns_from_its_parent_as_much_as_it_is_told_to() -> None:
    """The gradient is that of (1 - d) CE(classes) + d CE(parent's probabilities)."""
    images_, classes = fetch(DATA.train, range(16))
    student, teacher = (build(SEED, seeded(number, "weights")) for number in (0, 1))
    learner = Learner.of(student, replace(CONFIG, distillation=0.3, momentum=0.0, weight_decay=0.0))
    before = student.classifier.weight.detach().clone()
    learner.step((images_, classes), 0.1, 1, teacher=teacher)
    again = build(SEED, seeded(0, "weights"))
    with torch.no_grad():
        soft = teacher.eval()(images_).softmax(1)
    scores = again(images_)
    loss = 0.7 * functional.cross_entropy(scores, classes) + 0.3 * functional.cross_entropy(scores, soft)
    (slope,) = torch.autograd.grad(loss, again.classifier.weight)
    torch.testing.assert_close(student.classifier.weight.detach(), before - 0.1 * slope)


@pytest.mark.slow
def test_compiled_training_trains_alike() -> None:
    compiled, plain = start(rounds=1, compiled=True), start(rounds=1)
    for one, other in zip(compiled.events(), plain.events(), strict=True):
        if isinstance(one, Step) and isinstance(other, Step):
            assert one.loss == pytest.approx(other.loss, rel=1e-3, abs=1e-3)


def test_the_same_seed_gives_the_same_run_and_leaves_the_global_generator_alone(tmp_path: Path) -> None:
    before = torch.random.get_rng_state()
    results = []
    for seed in (0, 0, 1):
        growth = start(seed=seed, rounds=1)
        list(growth.events())
        results.append(final(growth, tmp_path))
    assert_same(results[0], results[1])
    assert not torch.equal(results[0][0]["model.classifier.weight"], results[2][0]["model.classifier.weight"])
    assert torch.equal(before, torch.random.get_rng_state())


def test_resuming_with_other_data_is_refused(tmp_path: Path) -> None:
    start().save(tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"the data has \[60, 24\] training and selection images, the checkpoint's \[70, 24\]"):
        Growth.resume(tmp_path / "run", Data(images(60, 0), images(24, 1), images(24, 2)), Macs())


def test_events_tell_the_run_in_order() -> None:
    growth = start()
    events = list(growth.events())
    steps = [event for event in events if isinstance(event, Step)]
    assert [step.step for step in steps] == list(range(1, 16))
    assert {step.total_steps for step in steps} == {15}
    assert [step.round for step in steps] == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3 + [4] * 3
    kinds = [type(event) for event in events if not isinstance(event, Step)]
    assert kinds == [Scored, Round, Scored, Round, Scored, Round, Finished]
    assert events[-1].charged_macs == growth.charged_macs  # type: ignore[union-attr]


@pytest.mark.parametrize("scorer", SCORERS)
@pytest.mark.parametrize("cost_model", [Macs(), Parameters()], ids=["macs", "params"])
def test_rounds_stay_within_their_share_of_the_budget(scorer: str, cost_model: Macs | Parameters) -> None:
    seed_cost = cost_model.network(SEED.wiring().shapes()).value
    growth = Growth.start(SEED, DATA, cost_model, replace(CONFIG, scorer=scorer, limit=4 * seed_cost, rounds=2, steps_per_round=1))
    closed = [event for event in growth.events() if isinstance(event, Round)]
    assert [round_.limit for round_ in closed] == pytest.approx([2 * seed_cost, 4 * seed_cost])
    for round_ in closed:
        tried = [width + count for width, count in zip(round_.widths_before, round_.channels_added, strict=True)]
        assert cost_model.network(SEED.wiring().shapes(tried)).value <= round_.limit
        assert round_.widths_after == (round_.widths_before if round_.rolled_back else tuple(tried))
        assert round_.cost_after == cost_model.network(SEED.wiring().shapes(round_.widths_after))
        assert math.isfinite(round_.predicted_change)
        assert round_.predicted_error >= 0
        assert round_.channels_gaining <= round_.channels_scored == sum(round_.widths_before)
    assert growth.network.widths == closed[-1].widths_after
    assert growth.model(torch.zeros(1, 1, 8, 8)).shape == (1, 3)


def test_a_round_that_makes_things_worse_is_rolled_back_to_its_parent() -> None:
    growth = Growth.start(SEED, MISLEADING, Macs(), replace(CONFIG, rounds=1, schedule="cosine"))
    for event in growth.events():
        if isinstance(event, Step) and event.round == 0:
            parent = {name: tensor.clone() for name, tensor in growth.learner.tensors().items() if ".running_" not in name}
        if isinstance(event, Round):
            assert event.rolled_back
            assert sum(event.channels_added) > 0
            assert event.loss_after > event.loss_before
            assert event.reason.endswith(f"rolled back: the loss rose from {event.loss_before:.6g} to {event.loss_after:.6g}")
            assert event.widths_after == event.widths_before == growth.network.widths
            restored = growth.learner.tensors()
            assert all(torch.equal(tensor, restored[name]) for name, tensor in parent.items() if "num_batches" not in name)


class Content(AtRandom):
    """Would rather have no channel split."""

    def __call__(self, *args: Any) -> list[GroupScore]:
        return [replace(score, index=score.index.abs()) for score in AtRandom.__call__(self, *args)]


def first_round(growth: Growth) -> Round:
    return next(event for event in growth.events() if isinstance(event, Round))


def test_a_round_without_negative_index_splits_nothing_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SCORERS, "content", Content())
    closed = first_round(start(scorer="content", rounds=1))
    assert (closed.outcome, closed.reason) == ("no_gain", "nothing that could be added is predicted to lower the loss")
    assert (closed.channels_added, closed.predicted_change, closed.change_at_growth) == ((0, 0), 0, None)
    assert not closed.rolled_back  # a loss that rises without a split is not the split's fault


def test_rounds_without_room_say_so() -> None:
    tight, capped = first_round(start(limit=SEED_MACS, rounds=1)), first_round(start(max_growth=1.1, rounds=1))
    assert (tight.outcome, tight.reason) == ("budget", f"nothing that gains fits the round's limit of {SEED_MACS:.6g} MACs")
    assert (capped.outcome, capped.reason) == ("widest", "every group that would gain is as wide as max_growth allows")


def outcomes(make: Callable[[int, int], TensorDataset], scorer: str) -> list[Round]:
    """The rounds of several runs on data sets of their own."""
    found: list[Round] = []
    for seed in range(6):
        data = Data(make(400, 10 * seed), make(24, 10 * seed + 1), make(24, 10 * seed + 2))
        config = replace(CONFIG, rounds=2, seed=seed, steps_per_round=20, scoring_samples=64, fresh_samples=64, scorer=scorer)
        found += [event for event in Growth.start(SEED, data, Macs(), config).events() if isinstance(event, Round)]
    return found


def test_where_there_is_nothing_to_learn_rounds_mostly_split_nothing_and_say_why() -> None:
    closed = outcomes(noise, "splitting")
    doubtful = [round_ for round_ in closed if round_.outcome == "no_reliable_gain"]
    assert len(doubtful) >= 0.75 * len(closed)
    for round_ in doubtful:
        assert round_.channels_gaining > 0  # the ranking found some to try, on every sample
        assert round_.predicted_change + 2 * round_.predicted_error >= 0
        assert round_.fresh_images == 64 + 64 + 128 + 80  # all that scoring left over
        assert re.fullmatch(r"no reliable gain: predicted \S+ ± \S+ nats on 80 fresh images", round_.reason)
        assert (sum(round_.channels_added), round_.change_at_growth, round_.rolled_back) == (0, None, False)
        assert round_.widths_after == round_.widths_before


def test_where_there_is_a_gain_rounds_split() -> None:
    assert {round_.outcome for round_ in outcomes(images, "splitting")} == {"grown"}


def test_chance_splits_whatever_fresh_images_say() -> None:
    closed = outcomes(noise, "random")
    assert {round_.outcome for round_ in closed} == {"grown"}
    assert {round_.fresh_images for round_ in closed} == {64}
    assert any(round_.predicted_change + 2 * round_.predicted_error > 0 for round_ in closed)


def test_the_prediction_is_the_change_of_a_small_split() -> None:
    """In double precision, at a step whose fourth power is nothing, and without max pooling: its kinks are in no second derivative."""
    seed = Network("mobilenet_v1", (3,) * 14, 8, 1, 3)
    parts = (images(400, 0), images(24, 1), images(24, 2))
    data = Data(*(TensorDataset(part.tensors[0].double(), part.tensors[1]) for part in parts))
    model = build(seed, seeded(0, "weights")).double()
    growth = Growth(
        model, seed, data, Macs(), replace(CONFIG, limit=1e6, rounds=1, split_step=3e-3, scoring_samples=128, fresh_samples=128)
    )
    proposal = next(event.proposal for event in growth.events() if isinstance(event, Scored))
    assert sum(proposal.channels_added) > 10
    assert proposal.change_at_growth == pytest.approx(proposal.predicted_change, rel=1e-3)


@pytest.mark.parametrize("scorer", SCORERS)
def test_scoring_is_charged_for_at_least_the_products_it_makes(scorer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    on_batch = SplittingProduct.on_batch

    def counted(self: SplittingProduct, number: int, v: list[Tensor]) -> list[Tensor]:
        made.append(len(self.batches[number][0]))
        return on_batch(self, number, v)

    monkeypatch.setattr(SplittingProduct, "on_batch", counted)
    growth = Growth.start(SEED, NOISE, Macs(), replace(CONFIG, scorer=scorer))
    macs, proposal = growth.macs, next(event.proposal for event in growth.events() if isinstance(event, Scored))
    by_scorer = sum(made) - proposal.fresh_images  # one product with each fresh image
    charged = growth.charged_macs - macs * (3 * 3 * 16 + 32 + 24)  # training, norms settled, selection data
    if sum(proposal.channels_added):
        charged -= judging_images(proposal, NOISE) * (macs + growth.macs)
    assert by_scorer >= 0
    products = max(map(SCORERS[scorer].products, (9, 36)))
    assert charged == macs * (32 * (3 + 2 * products if products else 0) + (3 + 2) * proposal.fresh_images)
    assert charged >= macs * (2 * sum(made) + 3 * (32 * bool(by_scorer) + proposal.fresh_images))


def judging_images(proposal: Proposal, data: Data) -> int:
    """The last draw of those that were used."""
    sizes = rounds.draw_sizes(len(data.train), CONFIG)  # type: ignore[arg-type]  # it has a length
    return next(size for number, size in enumerate(sizes, 1) if sum(sizes[:number]) == proposal.fresh_images)


@pytest.mark.parametrize("data", [DATA, NOISE], ids=["split", "no reliable gain"])
def test_compute_is_charged_by_the_rules(data: Data) -> None:
    growth = Growth.start(SEED, data, Macs(), replace(CONFIG, rounds=1))
    list(growth.events())
    closed = growth.rounds[0]
    assert closed.outcome == ("grown" if data is DATA else "no_reliable_gain")
    assert closed.fresh_images == (16 + 16 if data is DATA else 16 + 16 + 32 + 44)
    tried = [width + count for width, count in zip(closed.widths_before, closed.channels_added, strict=True)]
    before, wide, after = (Macs().network(SEED.wiring().shapes(widths)).value for widths in ((4, 4), tried, closed.widths_after))
    training = 3 * 16 * (3 * before + 3 * wide + 3 * after)
    scoring = before * (32 * (3 + 2 * 5) + closed.fresh_images * 5)
    evaluations = (32 + 24) * (before + wide) + (16 * (before + wide) if data is DATA else 0)  # norms, selection data; judging images
    assert growth.charged_macs == training + scoring + evaluations


@pytest.mark.parametrize("limit", [100_000, 3_000_000, 9_000_000, 30_000_000])
def test_a_compute_limit_is_kept_and_used(limit: int) -> None:
    growth = start(compute_limit_macs=limit)
    steps = [event for event in growth.events() if isinstance(event, Step)]
    assert limit - 3 * growth.macs * CONFIG.batch_size < growth.charged_macs <= limit
    assert len(growth.rounds) == {100_000: 0, 3_000_000: 0, 9_000_000: 1, 30_000_000: 3}[limit]
    if limit > 3_000_000:  # whether or not all rounds could be paid, the rest went into a longer final stage
        assert steps[-1].total_steps == growth.step > CONFIG.growth_steps + CONFIG.final_steps
        assert steps[-1].learning_rate < 0.5 * CONFIG.learning_rate


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"limit": SEED_MACS - 1}, r"the seed costs 4620 MACs, more than the limit of 4619; raise the limit"),
        ({"scoring_samples": 60}, r"scoring_samples \+ 2 \* fresh_samples is 92, more than the 70 training images; lower them"),
        ({"scorer": "magic"}, r"scorer is 'magic'; choose one of splitting"),
        ({"operators": ("magic",)}, r"operator is 'magic'; choose from split, signed"),
        ({"operators": ()}, r"operators are \[\]; name at least one, and each once"),
        ({"operators": ("split", "split")}, r"operators are \['split', 'split'\]; name at least one, and each once"),
        ({"operators": ("split", "twins")}, r"twins claims no gain, so it can't be ranked among \['split', 'twins'\]; name it alone"),
        ({"operators": ("firefly",), "scorer": "random"}, r"firefly ranks by the loss, the scorer random by chance; use another scorer"),
        ({"operators": ("signed",), "scorer": "magic"}, r"scorer is 'magic'"),
    ],
)
def test_a_run_that_can_not_be_done_is_refused_at_once(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        start(**changes)


@torch.no_grad()
def spoil(model: nn.Module) -> None:
    """From now on every loss is NaN."""
    next(model.parameters()).fill_(math.nan)


@pytest.mark.parametrize("at", ["the split", "the first step", "the last step"])
def test_a_divergence_after_a_split_costs_the_round_and_not_the_run(at: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoiling(*args: Any) -> Any:
        wider, channel_map = add_channels(*args)
        spoil(wider)
        return wider, channel_map

    if at == "the split":
        monkeypatch.setattr("growth.loop.add_channels", spoiling)
    growth, events = start(rounds=1), []
    for event in growth.events():
        events.append(event)
        if (at == "the first step" and isinstance(event, Scored)) or (at == "the last step" and growth.step == 6 and not growth.rounds):
            spoil(growth.model)
    (closed,) = growth.rounds
    assert (closed.outcome, closed.rolled_back) == ("grown", True)
    assert sum(closed.channels_added) > 0
    assert (closed.change_at_growth is None) == (at == "the split")
    assert closed.widths_after == closed.widths_before == growth.network.widths == SEED.widths
    assert math.isfinite(closed.loss_after)
    assert re.search(
        r"added \d+ channels: \d+ by split, rolled back: .* is nan.*; lower the learning rate or the split step", closed.reason
    )
    steps = [event.step for event in events if isinstance(event, Step)]
    assert steps == list(range(1, 10))  # the parent took those that its offspring could not
    assert isinstance(events[-1], Finished)


def test_a_loss_that_explodes_after_a_split_is_a_divergence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("growth.loop.EXPLODED", 1e-6)
    closed = first_round(start())  # the seed's stage has no such limit
    assert closed.rolled_back
    assert re.search(r"rolled back: the training loss is [\d.]+ at step 4 ", closed.reason)


def test_a_diverged_step_is_charged_for_its_forward_pass() -> None:
    growth, spent, wide = start(rounds=1), 0, 0
    for event in growth.events():
        if isinstance(event, Scored):
            spoil(growth.model)
            spent, wide = growth.charged_macs, growth.macs
        if isinstance(event, Step) and event.step == 4:
            assert growth.charged_macs - spent == 16 * (wide + 3 * growth.macs)
            return
    raise AssertionError("no step was taken")


@pytest.mark.parametrize(
    ("data", "after", "step"), [(NOISE, Scored, 4), (DATA, Round, 7)], ids=["in a round without a split", "in the last stage"]
)
def test_a_divergence_that_no_split_explains_raises(data: Data, after: type[Event], step: int) -> None:
    growth = Growth.start(SEED, data, Macs(), replace(CONFIG, rounds=1))

    def go_on() -> None:
        for event in growth.events():
            if isinstance(event, after):
                spoil(growth.model)

    with pytest.raises(NotANumber, match=f"loss is nan at step {step}"):
        go_on()


def test_a_divergence_of_the_seed_raises() -> None:
    with pytest.raises(NotANumber, match="lower the learning rate"):
        list(start(learning_rate=1000.0, momentum=0.99, weight_decay=1.0, steps_per_round=100).events())


def my_model() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 3, padding=1), nn.SiLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3),
    )  # fmt: skip


@pytest.mark.parametrize("validation", [None, DataLoader(images(24, 1))], ids=["held out", "given"])
def test_a_model_of_ones_own_grows(validation: DataLoader[Any] | None) -> None:
    torch.manual_seed(0)
    model = my_model()
    config = replace(CONFIG, limit=60_000, rounds=2, fresh_samples=15)
    growing = grow(model, DataLoader(DATA.train, batch_size=8), Macs(), config, validation)
    closed = list(growing)
    assert [round_.number for round_ in closed] == [1, 2]
    assert growing.finished is not None
    assert growing.finished.steps == 3 * 4
    result = evaluate_batches(growing.model, [next(iter(DataLoader(DATA.test, batch_size=24)))])
    assert math.isfinite(result.loss)
    assert growing.growth.graph.wiring.widths == closed[-1].widths_after
    with pytest.raises(ValueError, match="not built from a network family"):
        growing.growth.save(Path("nowhere"))


# Rounds that also remove


AS_DEAR = float(Macs().network(replace(SEED, widths=(12, 4)).wiring().shapes()).value)
TIGHT = replace(CONFIG, limit=AS_DEAR, rounds=1, operators=("firefly",), scoring_samples=24)


def top_heavy(**changes: Any) -> Growth:
    """As dear as its limit, with 4 of 12 channels that hardly anything reads."""
    network = replace(SEED, widths=(12, 4))
    model = build(network, seeded(0, "weights"))
    with torch.no_grad():
        model.get_parameter("blocks.1.conv.conv.weight")[:, 8:] *= 1e-3
    return Growth(model, network, DATA, Macs(), replace(TIGHT, **changes))


def test_widths_flow_from_where_they_do_not_pay_to_where_they_do() -> None:
    stuck, flowing = top_heavy(), top_heavy(shrink=True)
    for growth in (stuck, flowing):
        list(growth.events())
    assert (stuck.rounds[0].outcome, stuck.network.widths) == ("budget", (12, 4))
    (closed,) = flowing.rounds
    assert (closed.outcome, closed.rolled_back) == ("grown", False)
    assert closed.channels_added[0] < 0 < closed.channels_added[1]
    assert closed.widths_after == (12 + closed.channels_added[0], 4 + closed.channels_added[1]) == flowing.network.widths
    assert closed.cost_after.value <= TIGHT.limit
    assert closed.added_by == {"firefly": closed.channels_added[1], "removal": closed.channels_added[0]}
    assert closed.reason.endswith(f"; removed {-closed.channels_added[0]} to make room")
    assert closed.predicted_change < 0
    assert closed.change_at_growth == pytest.approx(closed.predicted_change, rel=0.5)


def test_a_flow_that_makes_things_worse_is_rolled_back_whole() -> None:
    growth = top_heavy(shrink=True)
    growth.data = replace(growth.data, selection=MISLEADING.selection)
    list(growth.events())
    assert growth.rounds[0].rolled_back
    assert growth.network.widths == (12, 4)


@pytest.mark.parametrize("stop", [3, 4, 5, 7, 9])  # before the round, at it, within, at its check, after
def test_a_run_stopped_in_a_round_that_removes_goes_on_as_if_it_had_not(stop: int, tmp_path: Path) -> None:
    whole, cut = top_heavy(shrink=True), top_heavy(shrink=True)
    list(whole.events())
    assert "removal" in whole.rounds[0].added_by
    for number, _ in enumerate(cut.events(), 1):
        if number == stop:
            cut.save(tmp_path / "cut.safetensors")
            break
    resumed = Growth.resume(tmp_path / "cut.safetensors", DATA, Macs())
    list(resumed.events())
    assert_same(final(resumed, tmp_path), final(whole, tmp_path))


def test_removals_are_charged_and_kept_within_a_compute_limit() -> None:
    free = [top_heavy(shrink=shrink) for shrink in (False, True)]
    for growth in free:
        list(growth.events())
    assert free[1].charged_macs > free[0].charged_macs
    limited = top_heavy(shrink=True, compute_limit_macs=free[1].charged_macs)
    list(limited.events())
    assert limited.charged_macs <= free[1].charged_macs


def test_shrinking_goes_only_with_what_claims_a_gain() -> None:
    for changes in ({"scorer": "random", "operators": ("split",)}, {"operators": ("twins",)}, {"step_rule": "line_search"}):
        with pytest.raises(ValueError, match="shrink weighs removals against gains"):
            start(shrink=True, **changes)
