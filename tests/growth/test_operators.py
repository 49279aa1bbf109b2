"""Every operator keeps the contract: fitting proposals, the function kept at step 0, the loss changing as predicted, state carried."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import SGD, Adam, Optimizer

from growth.groups import find_groups
from growth.offspring import Offspring, theta
from growth.operators import OPERATORS, Candidates, Evidence
from growth.operators.firefly import Firefly
from growth.operators.law import changes
from growth.optimizer import carry
from growth.scorers import SCORERS
from growth.splitting import Batch
from growth.surgery import ChannelMap, Split, add_channels, widen

torch.set_num_threads(1)
CLASSES = 3


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Net(nn.Module):
    """conv-BN-SiLU, a depthwise passenger, a residual sum of two producers, a flatten, linear layers with and without a norm, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.expand, self.expand_norm = nn.Conv2d(4, 5, 1), nn.BatchNorm2d(5)
        self.depthwise, self.depthwise_norm = nn.Conv2d(5, 5, 3, padding=1, groups=5), nn.BatchNorm2d(5)
        self.project = nn.Conv2d(5, 4, 1)
        self.hidden, self.hidden_norm = nn.Linear(4 * 4, 6), nn.BatchNorm1d(6)
        self.plain, self.head = nn.Linear(6, 5), nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.silu(self.stem_norm(self.stem(x)))
        y = functional.silu(self.expand_norm(self.expand(x)))
        y = functional.silu(self.depthwise_norm(self.depthwise(y)))
        x = functional.silu(x + self.project(y))
        x = torch.flatten(functional.adaptive_avg_pool2d(x, 2), 1)
        return self.head(torch.tanh(self.plain(torch.tanh(self.hidden_norm(self.hidden(x))))))


class Gated(nn.Module):
    """A squeeze-and-excitation gate behind a concatenation of two groups, one of which bends behind its norm."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.left_norm, self.right = nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Conv2d(2, 2, 1)
        self.squeeze, self.excite = nn.Conv2d(5, 2, 1), nn.Conv2d(2, 5, 1)
        self.both_norm, self.head = nn.BatchNorm2d(5), nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([functional.silu(self.left_norm(self.left(x))), torch.tanh(self.right(x))], 1)
        x = functional.silu(self.both_norm(x))
        gate = torch.sigmoid(self.excite(functional.silu(self.squeeze(functional.adaptive_avg_pool2d(x, 1)))))
        return self.head(torch.flatten(functional.adaptive_avg_pool2d(gate * x, 1), 1))


@cache
def evidence(kind: type[nn.Module] = Net) -> Evidence:
    """In float64, with settled norms and scores by the default scorer."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = kind().double()
    generator = seeded(1)
    batches: list[Batch] = [
        (torch.randn(n, 2, 6, 6, generator=generator).double(), torch.randint(CLASSES, (n,), generator=generator)) for n in (12, 8)
    ]
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5, generator=generator)
                module.bias.uniform_(-0.5, 0.5, generator=generator)
        for _ in range(20):
            model.train()(batches[0][0])
        model.head.weight.mul_(3)
    graph = find_groups(model.eval(), batches[0][0][:1])
    scores = SCORERS["splitting"](model, graph, batches, functional.cross_entropy, seeded(2))
    return Evidence(model, graph, batches, functional.cross_entropy, scores)


@cache
def proposals(name: str, step: float) -> list[Candidates]:
    seen = evidence() if OPERATORS[name].uses_scores else replace(evidence(), scores=())
    return OPERATORS[name].propose(seen, step, seeded(3))


def together(name: str, step: float) -> list[list[Candidates]]:
    """Sets of candidates that can be added in one go: in each group those of one width."""
    found: dict[tuple[str, int], list[Candidates]] = {}
    for candidates in proposals(name, step):
        found.setdefault((candidates.operator, candidates.offspring.added), []).append(candidates)
    return list(found.values())


def loss(model: nn.Module) -> float:
    """Mean over all scoring images, in eval mode."""
    images, classes = (torch.cat(parts) for parts in zip(*evidence().batches, strict=True))
    with torch.no_grad():
        return float(functional.cross_entropy(model(images), classes))


def output(model: nn.Module, train: bool = False) -> Tensor:
    with torch.no_grad():
        return copy.deepcopy(model).train(train)(evidence().batches[0][0])


def added(offspring: list[Offspring]) -> tuple[nn.Module, ChannelMap]:
    return add_channels(evidence().model, evidence().graph, offspring)


def test_the_network_has_what_the_contract_names() -> None:
    graph = evidence().graph
    assert [group.producers for group in graph.groups] == [("stem", "project"), ("expand",), ("hidden",), ("plain",)]
    assert [place.columns for place in graph.groups[0].consumers] == [1, 4]
    assert len(graph.groups[1].passengers) == 3


@pytest.mark.parametrize("name", OPERATORS)
def test_proposals_fit_and_have_finite_gains(name: str) -> None:
    model, graph = evidence().model, evidence().graph
    found = proposals(name, 0.3)
    assert {candidates.offspring.group for candidates in found} == ({3} if name == "gradmax" else {0, 1, 2, 3})
    for candidates in found:
        offspring = candidates.offspring
        n, m, d = len(offspring.parents), 1 + offspring.added, theta(model, graph.groups[offspring.group]).shape[1]
        assert candidates.operator
        assert offspring.added >= 1
        assert offspring.moves.shape == (n, m, d)
        assert offspring.shares.shape == (n, m)
        assert offspring.moves.dtype == offspring.shares.dtype == torch.float64
        torch.testing.assert_close(offspring.shares.sum(1), torch.ones(n, dtype=torch.float64))
        displacement = (offspring.shares.unsqueeze(2) * offspring.moves).sum(1)
        torch.testing.assert_close(displacement, torch.zeros(n, d, dtype=torch.float64), rtol=0, atol=1e-12)
        if candidates.gain is not None:
            assert candidates.gain.shape == (n,)
            assert candidates.gain.dtype == torch.float64
            assert candidates.gain.device.type == "cpu"
            assert candidates.gain.isfinite().all()
    assert min(OPERATORS[name].passes(9)) >= 0
    assert OPERATORS[name].adds == max(candidates.offspring.added for candidates in found)
    assert all((candidates.gain is not None) == OPERATORS[name].claims_gain for candidates in found)


@pytest.mark.parametrize("name", OPERATORS)
def test_function_is_kept_at_step_zero(name: str) -> None:
    """In train mode as well, but for new rows: they are not read, so it holds for them too."""
    for together_ in together(name, 0.0):
        wider, _ = added([candidates.offspring for candidates in together_])
        assert sum(p.numel() for p in wider.parameters()) > sum(p.numel() for p in evidence().model.parameters())
        for train in (False, True):
            assert (output(wider, train) - output(evidence().model, train)).abs().max() < 1e-10


@pytest.mark.parametrize("name", OPERATORS)
def test_loss_changes_as_predicted_at_small_steps(name: str) -> None:
    """Realised over predicted change within 1 %, with all channels of all groups grown at once; nothing predicted, nothing changed."""
    for together_ in together(name, 1e-3):
        wider, _ = added([candidates.offspring for candidates in together_])
        realised = loss(wider) - loss(evidence().model)
        gains = [candidates.gain for candidates in together_ if candidates.gain is not None]
        predicted = -float(torch.cat(gains).sum()) if gains else 0.0
        if predicted == 0:
            assert abs(realised) < 1e-12
        else:
            assert realised / predicted == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("name", OPERATORS)
def test_same_generator_same_proposals_and_an_untouched_model(name: str) -> None:
    state = copy.deepcopy(evidence().model.state_dict())
    again = OPERATORS[name].propose(evidence(), 0.3, seeded(3))
    for one, other in zip(proposals(name, 0.3), again, strict=True):
        assert torch.equal(one.offspring.moves, other.offspring.moves)
        assert torch.equal(one.offspring.shares, other.offspring.shares)
        assert all(map(torch.equal, one.offspring.reads, other.offspring.reads))
        assert (one.gain is None and other.gain is None) or torch.equal(one.gain, other.gain)
    assert all(torch.equal(state[key], value) for key, value in evidence().model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in evidence().model.modules())
    assert all(parameter.grad is None for parameter in evidence().model.parameters())


def trained(make: type[Optimizer]) -> tuple[nn.Module, Optimizer]:
    model = copy.deepcopy(evidence().model)
    optimizer = make(model.parameters(), lr=1e-3, **({"momentum": 0.9} if make is SGD else {}))
    for images, classes in evidence().batches:
        optimizer.zero_grad()
        functional.cross_entropy(model(images), classes).backward()
        optimizer.step()
    return model, optimizer


@pytest.mark.parametrize("make", [SGD, Adam])
@pytest.mark.parametrize("name", OPERATORS)
def test_optimizer_state_is_carried(name: str, make: type[Optimizer]) -> None:
    """Old entries bit for bit.  Directed state of an appended channel is its parent's where its gradient is alike, and zero elsewhere."""
    model, optimizer = trained(make)
    for together_ in together(name, 0.1):
        wider, channel_map = add_channels(model, evidence().graph, [candidates.offspring for candidates in together_])
        carried = carry(optimizer, model, wider, channel_map)
        key = "momentum_buffer" if make is SGD else "exp_avg"
        for offspring in (candidates.offspring for candidates in together_):
            module = {0: "stem", 1: "expand", 2: "hidden", 3: "plain"}[offspring.group]
            old = optimizer.state[model.get_parameter(f"{module}.weight")]
            new = carried.state[wider.get_parameter(f"{module}.weight")]
            width, fan_in = len(old[key]), old[key].shape[1]
            assert torch.equal(new[key][:width, :fan_in], old[key])
            alike = offspring.shares[:, 1:].flatten() > 0
            parents = offspring.parents.repeat_interleave(offspring.added)
            expected = old[key][parents] * alike.view(-1, *[1] * (old[key].dim() - 1))
            assert torch.equal(new[key][width:, :fan_in], expected)
            if make is Adam:
                assert torch.equal(new["exp_avg_sq"][width:, :fan_in], old["exp_avg_sq"][parents])
        last = next(candidates.offspring for candidates in together_ if candidates.offspring.group == 3)
        old, new = optimizer.state[model.head.weight][key], carried.state[wider.head.weight][key]
        parents = last.parents.repeat_interleave(last.added)
        assert torch.equal(new[:, :5], old)
        assert torch.equal(new[:, 5:], old[:, parents] * (last.shares[:, 1:].flatten() != 0))


@pytest.mark.parametrize("step", [0.0, 1e-3])
def test_operators_mix_in_one_group(step: float) -> None:
    """Each parent by another operator, all at once: the function is kept, or the loss changes by the sum of their gains."""
    mixed: list[Candidates] = []
    for number, name in enumerate(OPERATORS):
        for candidates in together(name, step)[-1]:
            rows = (candidates.offspring.parents % len(OPERATORS) == number).nonzero().flatten()
            gain = torch.zeros(len(rows)) if candidates.gain is None else candidates.gain[rows]
            mixed.append(Candidates(name, candidates.offspring.take(rows), gain))
    wider, _ = added([candidates.offspring for candidates in mixed])
    assert wider.hidden.out_features == 6 + 1 + 3 + 1 + 1 + 1  # gradmax has nothing to offer behind a norm
    assert (output(wider) - output(evidence().model)).abs().max() < (0.1 if step else 1e-10)
    predicted = -float(torch.cat([candidates.gain for candidates in mixed]).sum())
    assert loss(wider) - loss(evidence().model) == pytest.approx(predicted, rel=0.01, abs=1e-12)


@pytest.mark.parametrize("name", OPERATORS)
def test_gates_and_concatenations_are_no_obstacle(name: str) -> None:
    """The function is kept at step 0, and the loss changes as predicted at a small one."""
    gated = evidence(Gated)
    for step in (0.0, 1e-3):
        found = OPERATORS[name].propose(gated, step, seeded(3))
        assert found
        for added_ in {candidates.offspring.added for candidates in found}:
            chosen = [candidates for candidates in found if candidates.offspring.added == added_]
            wider, _ = add_channels(gated.model, gated.graph, [candidates.offspring for candidates in chosen])
            images, classes = (torch.cat(parts) for parts in zip(*gated.batches, strict=True))
            with torch.no_grad():
                before, after = gated.model(images), wider(images)
                realised = float(functional.cross_entropy(after, classes) - functional.cross_entropy(before, classes))
            gains = [float(candidates.gain.sum()) for candidates in chosen if candidates.gain is not None]
            assert step or (after - before).abs().max() < 1e-10
            assert realised == pytest.approx(-sum(gains), rel=0.01, abs=1e-12)


# The simple ones


def test_split_is_the_split_of_before_bit_for_bit() -> None:
    """Parents up, offspring down, halves: as ``widen`` does, and with the gains by which rounds ranked."""
    scores = evidence().scores
    wider, _ = added([candidates.offspring for candidates in proposals("split", 0.3)])
    splits = [Split(number, torch.arange(len(score.index)), score.direction) for number, score in enumerate(scores)]
    expected, _ = widen(evidence().model, evidence().graph, splits, 0.3)
    assert all(torch.equal(a, b) for a, b in zip(wider.state_dict().values(), expected.state_dict().values(), strict=True))
    for candidates, score in zip(proposals("split", 0.3), scores, strict=True):
        assert torch.equal(candidates.gain, -0.5 * 0.3**2 * score.relative_index)


def test_twins_stay_twins_in_training() -> None:
    wider, _ = added([candidates.offspring for candidates in proposals("twins", 0.3)])
    images, classes = evidence().batches[0]
    optimizer = SGD(wider.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        functional.cross_entropy(wider(images), classes).backward()
        optimizer.step()
    torch.testing.assert_close(wider.hidden.weight[:6], wider.hidden.weight[6:])
    torch.testing.assert_close(wider.head.weight[:, :5], wider.head.weight[:, 5:])


@pytest.mark.parametrize("name", ["zero_output", "firefly"])
def test_statistics_of_new_channels_are_those_of_what_they_compute(name: str) -> None:
    """On one batch, through a chain of norms, with the old channels' statistics as they were."""
    one = Evidence(evidence().model, evidence().graph, evidence().batches[:1], functional.cross_entropy, evidence().scores)
    wider, _ = added([candidates.offspring for candidates in OPERATORS[name].propose(one, 0.0, seeded(3))])
    read: dict[str, Tensor] = {}
    norms = {path: module for path, module in wider.named_modules() if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)}
    for path, norm in norms.items():
        norm.register_forward_pre_hook(lambda _, inputs, path=path: read.__setitem__(path, inputs[0].transpose(0, 1).flatten(1)))
    with torch.no_grad():
        wider.eval()(one.batches[0][0])
    for path, norm in norms.items():
        width = len(norm.running_mean) // 2
        torch.testing.assert_close(norm.running_mean[width:], read[path].mean(1)[width:])
        torch.testing.assert_close(norm.running_var[width:], read[path].var(1)[width:])
        old = evidence().model.get_submodule(path)
        assert torch.equal(norm.running_mean[:width], old.running_mean)
        assert torch.equal(norm.running_var[:width], old.running_var)


def test_zero_output_draws_rows_of_the_groups_scale_and_leaves_its_gain_unknown() -> None:
    for candidates in proposals("zero_output", 0.3):
        assert candidates.gain is None
        rows = theta(evidence().model, evidence().graph.groups[candidates.offspring.group])
        new = rows + candidates.offspring.moves[:, 1]
        assert 0.5 < float(new.norm() / rows.norm()) < 2
        assert not candidates.offspring.moves[:, 0].any()


# Refusals


def test_offspring_that_do_not_fit_are_refused() -> None:
    moves, shares = torch.zeros(1, 2, 18 + 5).double(), torch.full((1, 2), 0.5).double()
    bad = {
        r"shares have shape \[1, 1\]": Offspring(0, torch.tensor([1]), moves[:, :1], shares[:, :1]),
        "d = 23 weights per channel": Offspring(0, torch.tensor([1]), moves[:, :, :4], shares),
        r"add up to 1 \+1; they must add up to 1": Offspring(0, torch.tensor([1]), moves, 2 * shares),
        "NaN or infinite": Offspring(0, torch.tensor([1]), moves / 0, shares),
        "channel 9 does not exist": Offspring(0, torch.tensor([9]), moves, shares),
        "1 reads for 2 places": Offspring(0, torch.tensor([1]), moves, shares, (torch.zeros(1),)),
        "2 statistics for 1 places": Offspring(0, torch.tensor([1]), moves, shares, (), (None, None)),
    }
    for message, offspring in bad.items():
        with pytest.raises(ValueError, match=message):
            added([offspring])
    good = Offspring(0, torch.tensor([1]), moves, shares)
    with pytest.raises(ValueError, match="channel 1 comes 2 times"):
        added([good, good])


# What the law and firefly promise


def fresh_batches() -> list[Batch]:
    generator = seeded(9)
    return [(torch.randn(7, 2, 6, 6, generator=generator).double(), torch.randint(CLASSES, (7,), generator=generator)) for _ in range(3)]


def realised_changes(offspring: list[Offspring]) -> Tensor:
    """Of the loss on each fresh batch, [batches]."""
    wider, _ = added(offspring)
    with torch.no_grad():
        return torch.stack([
            functional.cross_entropy(wider(images), classes) - functional.cross_entropy(evidence().model(images), classes)
            for images, classes in fresh_batches()
        ])  # fmt: skip


@pytest.mark.parametrize("name", OPERATORS)
def test_the_law_says_of_every_candidate_what_it_does_to_fresh_images_by_itself(name: str) -> None:
    found = proposals(name, 1e-3)
    for one, predicted in zip(found, changes(evidence(), found, fresh_batches()), strict=True):
        assert predicted.shape == (3, len(one.offspring.parents))
        for row in range(len(one.offspring.parents)):
            realised = realised_changes([one.offspring.take(torch.tensor([row]))])
            tolerance = max(1e-12, 0.01 * float(realised.abs().max()))
            assert predicted[:, row] == pytest.approx(realised.numpy(), abs=tolerance)


@pytest.mark.parametrize("name", ["firefly", "gradmax"])
def test_the_law_says_of_new_channels_what_all_of_them_do_together(name: str) -> None:
    for step, tolerance in ((1e-3, 1e-3), (0.1, 0.1)):
        found = proposals(name, step)
        predicted = sum(each.sum(axis=1) for each in changes(evidence(), found, fresh_batches()))
        realised = realised_changes([one.offspring for one in found])
        assert predicted == pytest.approx(realised.numpy(), abs=tolerance * float(realised.abs().max()))


def test_the_law_sees_sets_of_several_operators_in_one_group() -> None:
    """As it sees each operator's alone."""
    names = ("split", "signed", "gradmax", "firefly")
    apart = [each for name in names for each in changes(evidence(), proposals(name, 0.1), fresh_batches())]
    together_ = changes(evidence(), [one for name in names for one in proposals(name, 0.1)], fresh_batches())
    for one, other in zip(apart, together_, strict=True):
        assert other == pytest.approx(one, rel=1e-9, abs=1e-15)


def test_gains_of_firefly_add_up_to_what_all_of_them_gain() -> None:
    for step in (1e-2, 0.3):
        wider, _ = added([candidates.offspring for candidates in proposals("firefly", step)])
        realised = loss(evidence().model) - loss(wider)
        assert realised > 0
        assert float(torch.cat([candidates.gain for candidates in proposals("firefly", step)]).sum()) == pytest.approx(realised, rel=0.05)


def test_rows_that_descend_gain_more_than_rows_that_don_t() -> None:
    def total(descents: int) -> float:
        found = [Firefly(descents=descents).propose(evidence(), 1e-3, seeded(seed)) for seed in range(5)]
        return float(torch.cat([candidates.gain for one in found for candidates in one]).sum())

    assert total(1) > 1.05 * total(0)
    assert total(3) > total(1)


def test_firefly_gains_nothing_where_nothing_can_be_gained() -> None:
    """A loss without a slope."""
    flat = replace(evidence(), loss=lambda scores, _: (scores * 0).sum())
    for candidates in Firefly().propose(flat, 0.3, seeded()):
        assert not candidates.gain.any()
        assert not any(read.any() for read in candidates.offspring.reads)
