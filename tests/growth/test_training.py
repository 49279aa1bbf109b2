"""One training step against torch's own SGD, the schedule, the order of the data, evaluation, and losses that are no numbers."""

import copy
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import Dataset, TensorDataset

from growth.config import GrowthConfig
from growth.training import Learner, NotANumber, batch_indices, batches, evaluate, fetch, learning_rate, seeded, settle_norms


def images(count: int, seed: int = 0) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    return TensorDataset(torch.randn(count, 1, 4, 4, generator=generator), torch.randint(3, (count,), generator=generator))


def small() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.SiLU(), nn.Flatten(), nn.Linear(8, 3))


def test_steps_equal_plain_sgd() -> None:
    model, data = small(), images(8)
    reference = copy.deepcopy(model)
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    learner = Learner.of(model, GrowthConfig(limit=1, momentum=0.9, weight_decay=0.01))
    for number in range(3):
        optimizer.zero_grad()
        expected = cross_entropy(reference(data.tensors[0]), data.tensors[1])
        expected.backward()
        optimizer.step()
        loss, _ = learner.step(fetch(data, range(8)), 0.1, number)
        assert loss == expected.item()
    for ours, theirs in zip(model.state_dict().values(), reference.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_learner_comes_back_from_its_tensors() -> None:
    config, data = GrowthConfig(limit=1), images(8)
    one = Learner.of(small(), config)
    one.step(fetch(data, range(8)), 0.1, 1)
    other = Learner.of(small(), config)
    other.load({name: tensor.clone() for name, tensor in one.tensors().items()})
    for learner in (one, other):
        learner.step(fetch(data, range(8)), 0.1, 2)
    assert one.tensors().keys() == other.tensors().keys()
    assert all(torch.equal(tensor, other.tensors()[name]) for name, tensor in one.tensors().items())
    with pytest.raises(RuntimeError, match="size mismatch"):
        Learner.of(nn.Sequential(nn.Conv2d(1, 3, 3)), config).load(
            {"model.0.weight": torch.zeros(2, 1, 3, 3), "model.0.bias": torch.zeros(2)}
        )


@pytest.mark.filterwarnings("error")
def test_a_loss_that_is_no_number_stops_with_step_value_and_remedy() -> None:
    model = small()
    with torch.no_grad():
        model[0].weight.fill_(math.nan)  # type: ignore[operator, union-attr]
    learner = Learner.of(model, GrowthConfig(limit=1))
    with pytest.raises(NotANumber, match=r"loss is nan at step 7 \(learning rate 0.25\); lower the learning rate"):
        learner.step(fetch(images(4), range(4)), 0.25, 7)
    with pytest.raises(FloatingPointError, match="4 held-out images is nan"):
        evaluate(model, images(4), 2)


def test_a_loss_above_the_highest_allowed_takes_no_step() -> None:
    learner, batch = Learner.of(small(), GrowthConfig(limit=1)), fetch(images(4), range(4))
    before = copy.deepcopy(learner.model.state_dict())
    loss = cross_entropy(copy.deepcopy(learner.model)(batch[0]), batch[1]).item()
    with pytest.raises(NotANumber, match=r"loss is [\d.]+ at step 3"):
        learner.step(batch, 0.1, 3, highest=loss / 2)
    weights = {name: tensor for name, tensor in learner.model.state_dict().items() if not name.startswith("1.")}  # a norm saw the batch
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights.items())
    assert learner.step(batch, 0.1, 3, highest=2 * loss)[0] == pytest.approx(loss)


def test_one_cycle_rises_to_its_peak_at_three_tenths_and_falls_to_nothing() -> None:
    rates = [learning_rate("one_cycle", 2.0, step / 1000) for step in range(1001)]
    assert rates[0] == pytest.approx(2 / 25)
    assert max(rates) == rates[300] == 2
    assert rates[:301] == sorted(rates[:301])
    assert rates[300:] == sorted(rates[300:], reverse=True)
    assert rates[-1] == pytest.approx(0, abs=1e-12)


def test_cosine_falls_from_its_peak() -> None:
    assert [learning_rate("cosine", 2.0, progress) for progress in (0, 0.5, 1)] == pytest.approx([2, 1, 0])


@given(samples=st.integers(1, 40), batch_size=st.integers(2, 12), seed=st.integers(0, 99))
def test_every_epoch_has_each_sample_at_most_once_and_the_next_another_order(samples: int, batch_size: int, seed: int) -> None:
    per_epoch = samples // min(samples, batch_size)
    epochs = [torch.cat([batch_indices(samples, batch_size, seed, epoch * per_epoch + i) for i in range(per_epoch)]) for epoch in (0, 1)]
    for order in epochs:
        assert len(set(order.tolist())) == len(order) == per_epoch * min(samples, batch_size)
        assert set(order.tolist()) <= set(range(samples))
    again = batch_indices(samples, batch_size, seed, 0)
    assert torch.equal(again, epochs[0][: len(again)])
    if samples > 20:
        assert not torch.equal(*epochs)


def test_generators_of_different_purposes_differ_and_leave_the_global_one_alone() -> None:
    before = torch.random.get_rng_state()
    draws = {torch.rand(1, generator=seeded(*key)).item() for key in ((0, "a", 0), (0, "a", 1), (0, "b", 0), (1, "a", 0))}
    assert len(draws) == 4
    assert torch.equal(before, torch.random.get_rng_state())


def test_any_map_style_data_set_will_do() -> None:
    class Squares(Dataset[Any]):
        def __len__(self) -> int:
            return 5

        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            return torch.full((1, 2, 2), float(index) ** 2), index

    x, y = fetch(Squares(), torch.tensor([3, 1]))
    assert x.shape == (2, 1, 2, 2)
    assert x[:, 0, 0, 0].tolist() == [9, 1]
    assert (y.dtype, y.tolist()) == (torch.int64, [3, 1])
    assert [len(y) for _, y in batches(Squares(), range(5), 2)] == [2, 2, 1]


def test_evaluation_does_not_depend_on_the_batch_size_and_keeps_the_mode() -> None:
    model, data = small().train(), images(10)
    before = copy.deepcopy(model.state_dict())
    whole, parts = evaluate(model, data, 10), evaluate(model, data, 3)
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert whole.loss == pytest.approx(parts.loss)
    assert (whole.accuracy, whole.samples) == (parts.accuracy, parts.samples) == (parts.accuracy, 10)
    model.eval()
    with torch.no_grad():
        assert whole.loss == pytest.approx(cross_entropy(model(data.tensors[0]), data.tensors[1]).item())


def test_settled_norms_hold_the_mean_statistics_and_change_nothing_else() -> None:
    model, data = small(), [fetch(images(12), range(start, start + 6)) for start in (0, 6)]
    model[0].eval()
    before = copy.deepcopy(model.state_dict())
    settle_norms(model, [*data, fetch(images(12), [0])])  # a single image is left out
    inputs = [model[0](x).detach() for x, _ in data]
    norm = model[1]
    assert isinstance(norm, nn.BatchNorm2d)
    assert torch.allclose(norm.running_mean, torch.stack([x.mean((0, 2, 3)) for x in inputs]).mean(0), atol=1e-6)  # type: ignore[arg-type]
    assert torch.allclose(norm.running_var, torch.stack([x.transpose(0, 1).flatten(1).var(1) for x in inputs]).mean(0))  # type: ignore[arg-type]
    assert (norm.momentum, norm.training, model[0].training, model.training) == (0.1, True, False, True)
    for name, tensor in model.state_dict().items():
        assert name.startswith("1.running_") or name == "1.num_batches_tracked" or torch.equal(tensor, before[name])


@pytest.mark.parametrize(
    ("field", "value", "limit"),
    [("limit", 0, "1e-12 and 1e.30"), ("rounds", -1, "0 and 1000"), ("learning_rate", math.nan, "1000"), ("momentum", 1.0, "0 and 0.9999"),
     ("batch_size", 1, "2 and"), ("split_step", 0.0, "and 10"), ("fresh_samples", 1, "2 and"),
     ("max_fresh_samples", 511, "512 and")],
)  # fmt: skip
def test_a_config_out_of_range_is_refused_with_value_and_limit(field: str, value: float, limit: str) -> None:
    with pytest.raises(ValueError, match=rf"{field} is {value}; it must lie between .*{limit}"):
        GrowthConfig(**{"limit": 1, field: value})


def test_an_unknown_schedule_is_refused() -> None:
    with pytest.raises(ValueError, match="choose one_cycle or cosine"):
        GrowthConfig(limit=1, schedule="linear")  # type: ignore[arg-type]
