"""S v against the full autograd Hessian of the linearised loss, written out by hand for each toy network, in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from costs.families import Family, Network, default_widths
from growth.groups import ChannelGroup, find_groups
from growth.networks import build
from growth.pointwise import POINTWISE, Pointwise, Softplus
from growth.reference import reference_product
from growth.splitting import Batch, SplittingProduct

torch.set_num_threads(1)


class Toy(nn.Module):
    """Says what each consumer reads: ``tap(path, value)`` may replace it."""

    def __init__(self) -> None:
        super().__init__()
        self.tap: Callable[[str, Tensor], Tensor] = lambda path, value: value


def conv(channels: int, out: int, kernel: int = 3, groups: int = 1, bias: bool = False) -> nn.Conv2d:
    return nn.Conv2d(channels, out, kernel, padding=kernel // 2, groups=groups, bias=bias)


class ConvNormSilu(Toy):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = conv(2, 3, bias=True), nn.BatchNorm2d(3), conv(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.silu(self.norm(self.conv(x)))
        return self.head(self.tap("head", x)).mean((2, 3))


class DepthwisePassenger(Toy):
    """Convolution, norm, SiLU, depthwise, norm, SiLU, pointwise; then the same without norms and with biases, and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = conv(2, 3), nn.BatchNorm2d(3)
        self.depthwise, self.depthwise_norm = nn.Conv2d(3, 3, 3, stride=2, padding=1, groups=3, bias=False), nn.BatchNorm2d(3)
        self.pointwise, self.second_depthwise = conv(3, 4, 1, bias=True), conv(4, 4, 3, groups=4, bias=True)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.silu(self.norm(self.conv(x)))
        x = functional.silu(self.depthwise_norm(self.depthwise(x)))
        x = functional.gelu(self.pointwise(self.tap("pointwise", x)))
        x = torch.sigmoid(self.second_depthwise(x))
        x = functional.adaptive_avg_pool2d(x, 1).flatten(1)
        return self.head(self.tap("head", x))


class ResidualStream(Toy):
    """One stream with three producers, an activation after each sum, and three consumers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third, self.head = conv(2, 3, bias=True), conv(3, 3), conv(3, 3), conv(3, 2)
        self.second_norm, self.third_norm = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.silu(self.first(x))
        x = torch.tanh(x + self.second_norm(self.second(self.tap("second", x))))
        x = functional.silu(self.third_norm(self.third(self.tap("third", x))) + x)
        return self.head(self.tap("head", x)).mean((2, 3))


class LinearStream(Toy):
    """Linear bottlenecks with identity skips: nothing bends between the stream's producers and its merge points."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.expand, self.depthwise, self.project, self.head = (
            conv(2, 3),
            conv(3, 4),
            conv(4, 4, groups=4),
            conv(4, 3),
            conv(3, 2),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        h = functional.silu(self.expand(self.tap("expand", x)))
        x = x + self.project(self.tap("project", functional.silu(self.depthwise(h))))
        return self.head(self.tap("head", x)).mean((2, 3))


class TwoProducers(Toy):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.left_norm, self.right, self.right_norm = conv(2, 3, 1), nn.BatchNorm2d(3), conv(2, 3), nn.BatchNorm2d(3)
        self.head = conv(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.silu(self.left_norm(self.left(x)) + self.right_norm(self.right(x)))
        return self.head(self.tap("head", x)).mean((2, 3))


class TanhLayers(Toy):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second, self.head = nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 4), nn.Linear(4, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.norm(self.first(x.flatten(1))))
        x = torch.tanh(self.second(self.tap("second", x)))
        return self.head(self.tap("head", x))


class FlattenToLinear(Toy):
    """Pooling before the activation, then several columns per channel."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.hidden, self.head = conv(2, 3, bias=True), nn.Linear(3 * 4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.silu(functional.max_pool2d(self.conv(x), 2)).flatten(1)
        x = functional.silu(self.hidden(self.tap("hidden", x)))
        return self.head(self.tap("head", x))


class PooledBeforeBend(Toy):
    """Global pooling inside the bending part of a segment, behind a fork whose branches meet again."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.depthwise, self.other, self.head = conv(2, 3), conv(3, 3, groups=3), conv(3, 3, groups=3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.silu(self.conv(x))
        x = functional.silu(torch.tanh(self.depthwise(x)) + self.other(x))
        x = torch.sigmoid(functional.adaptive_avg_pool2d(x, 1)).flatten(1)
        return self.head(self.tap("head", x))


class SqueezeExcitation(Toy):
    """A gate: its second layer is a producer of the channels that it scales, its first one a consumer of them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = conv(2, 3), nn.BatchNorm2d(3), conv(3, 2)
        self.first, self.second = nn.Conv2d(3, 2, 1), nn.Conv2d(2, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.silu(self.norm(self.conv(x)))
        gate = functional.silu(self.first(self.tap("first", functional.adaptive_avg_pool2d(x, 1))))
        x = torch.sigmoid(self.second(self.tap("second", gate))) * x
        return self.head(self.tap("head", x)).mean((2, 3))


class Concatenation(Toy):
    """A norm and an activation over two groups and the image; each consumer reads a slice of each, one of them twice."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.norm, self.head = conv(2, 3, bias=True), conv(2, 2, 1), nn.BatchNorm2d(7), conv(7, 2)
        self.second = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        left, right = functional.silu(self.left(x)), torch.tanh(self.right(x))
        twice = functional.silu(torch.cat([left, right, left], 1)).mean((2, 3))
        x = functional.silu(self.norm(torch.cat([left, x, right], 1)))
        return self.head(self.tap("head", x)).mean((2, 3)) + self.second(self.tap("second", twice))


class HiddenLayer(Toy):
    """Half a transformer block: layer norms and a residual stream whose width is fixed, a hidden width that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm, self.up, self.down = nn.Linear(6, 4), nn.LayerNorm(4), nn.Linear(4, 5), nn.Linear(5, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)  # [B, tokens, 4]
        x = x + self.down(self.tap("down", functional.gelu(self.up(self.norm(x)))))
        return self.head(functional.layer_norm(x, (4,)).mean(1))


class Crossed(Toy):
    """Differences, ratios, numbers and an input that an activation shares with another reader."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.head, self.other = conv(2, 3, bias=True), conv(2, 3, 1, bias=True), conv(3, 2), conv(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.left(x), functional.silu(self.right(x))
        x = (left * torch.sigmoid(left) - 0.5 * functional.mish(right)) / (3 + torch.tanh(right * right)) + 1 / (2 + left**2)
        return (self.head(self.tap("head", x)) + self.other(self.tap("other", left))).mean((2, 3))


TOYS: dict[type[Toy], tuple[int, ...]] = {
    SqueezeExcitation: (2, 4, 4), Concatenation: (2, 4, 4), HiddenLayer: (3, 6), Crossed: (2, 4, 4),
    ConvNormSilu: (2, 5, 5), DepthwisePassenger: (2, 6, 6), ResidualStream: (2, 4, 4), LinearStream: (2, 4, 4), TwoProducers: (2, 4, 4),
    TanhLayers: (6, 1, 1), FlattenToLinear: (2, 4, 4), PooledBeforeBend: (2, 4, 4),
}  # fmt: skip


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """Norms with statistics and parameters of their own, everything in float64."""
    generator = torch.Generator().manual_seed(seed)
    model.double()
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            for value, low in ((module.running_mean, -0.5), (module.running_var, 0.5), (module.weight, 0.5), (module.bias, -0.5)):
                assert value is not None
                value.data.copy_(torch.rand(value.shape, generator=generator).double() + low)
    return model.eval()


def batch_for(shape: tuple[int, ...], samples: int = 4, seed: int = 0, classes: int = 2) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(samples, *shape, generator=generator).double(), torch.randint(classes, (samples,), generator=generator)


def toy(kind: type[Toy]) -> tuple[Toy, Batch]:
    torch.manual_seed(1)
    model = randomised(kind())
    assert isinstance(model, Toy)
    return model, batch_for(TOYS[kind])


def hessian(model: Toy, group: ChannelGroup, batch: Batch) -> Tensor:
    """[C, d, C, d]: the whole Hessian of sum over consumers of <gradient through that edge, what it reads>."""
    x, target = batch
    read: dict[str, Tensor] = {}

    def remember(path: str, value: Tensor) -> Tensor:
        read[path] = value.view_as(value)
        return read[path]

    model.tap = remember
    loss = functional.cross_entropy(model(x), target)
    edges = [consumer.name for consumer in group.consumers]
    gradients = dict(zip(edges, torch.autograd.grad(loss, [read[edge] for edge in edges]), strict=True))
    weights = [model.get_parameter(f"{producer}.weight").detach() for producer in group.producers]
    sizes = [weight[0].numel() for weight in weights]

    def linearised(theta: Tensor) -> Tensor:
        total: list[Tensor] = []

        def stop(path: str, value: Tensor) -> Tensor:
            if path in gradients:
                total.append((gradients[path] * value).sum())
            return value.detach()

        model.tap = stop
        parts = [part.reshape(weight.shape) for part, weight in zip(theta.split(sizes, 1), weights, strict=True)]
        functional_call(model, {f"{path}.weight": part for path, part in zip(group.producers, parts, strict=True)}, (x,))
        return torch.stack(total).sum()

    result = torch.autograd.functional.hessian(linearised, torch.cat([weight.flatten(1) for weight in weights], 1))
    model.tap = lambda path, value: value
    assert isinstance(result, Tensor)
    return result


def columns(product: SplittingProduct) -> list[Tensor]:
    """S itself, [C, d, d] per group."""
    matrices = [zero.new_zeros(*zero.shape, zero.shape[1]) for zero in product.zeros()]
    for group, matrix in enumerate(matrices):
        for column in range(matrix.shape[2]):
            v = product.zeros()
            v[group][:, column] = 1
            matrix[:, :, column] = product(v)[group]
    return matrices


@pytest.mark.parametrize("kind", TOYS)
def test_product_is_the_block_of_the_full_hessian(kind: type[Toy]) -> None:
    model, batch = toy(kind)
    graph = find_groups(model, batch[0])
    matrices = columns(SplittingProduct(model, graph, [batch], functional.cross_entropy))
    for group, matrix in zip(graph.groups, matrices, strict=True):
        full = hessian(model, group, batch)
        for one in range(group.width):
            assert (matrix[one] - full[one, :, one]).norm() <= 1e-9 * full.norm()
            assert all(not full[one, :, other].any() for other in range(group.width) if other != one)
    nothing = kind is LinearStream
    assert any(not matrix.any() for matrix in matrices) == nothing


@pytest.mark.parametrize("family", ["mobilenet_v1", "mobilenet_v2", "plain"])
def test_product_is_the_double_backward(family: Family) -> None:
    model = randomised(build(Network(family, default_widths(family, 0.05), 8, 3, 4), torch.Generator().manual_seed(0)))
    batch = batch_for((3, 8, 8), classes=4)
    graph = find_groups(model, batch[0])
    product = SplittingProduct(model, graph, [batch], functional.cross_entropy)
    v = [torch.randn_like(zero) for zero in product.zeros()]
    for ours, theirs in zip(product(v), reference_product(model, graph, batch, functional.cross_entropy, v), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9 * float(theirs.norm()))


@pytest.mark.parametrize("activation", [nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.Hardswish, nn.Hardsigmoid, nn.SiLU])
def test_double_backward_has_the_same_curvature_as_the_closed_form(activation: type[nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-ins at kinks included, which autograd knows nothing of."""
    layers = (conv(2, 3, bias=True), nn.BatchNorm2d(3), activation(), conv(3, 3, groups=3), activation(), nn.MaxPool2d(2))
    torch.manual_seed(0)
    model = randomised(nn.Sequential(*layers, nn.Conv2d(3, 4, 1), nn.Flatten(), activation(), nn.Linear(36, 2)))
    batch = (6 * batch_for((2, 6, 6))[0], torch.arange(4) % 2)
    graph = find_groups(model, batch[0])
    product = SplittingProduct(model, graph, [batch], functional.cross_entropy)
    v = directions(product)
    expected = product(v)
    assert all(part.any() for part in expected)
    monkeypatch.setattr("growth.segments.closed", lambda graph: set())
    opened = SplittingProduct(model, graph, [batch], functional.cross_entropy, keep_bytes=0)
    assert not opened.segments
    for ours, theirs in zip(opened(v), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


@given(seed=st.integers(0, 10**6), scale=st.floats(-4, 4), kind=st.sampled_from(list(TOYS)))
@settings(max_examples=20, deadline=None)
def test_product_is_linear_and_symmetric(seed: int, scale: float, kind: type[Toy]) -> None:
    model, batch = toy(kind)
    product = SplittingProduct(model, find_groups(model, batch[0]), [batch], functional.cross_entropy)
    generator = torch.Generator().manual_seed(seed)
    u, v = ([torch.randn(zero.shape, generator=generator).double() for zero in product.zeros()] for _ in range(2))
    images = zip(u, v, product(u), product(v), product([a + scale * b for a, b in zip(u, v, strict=True)]), strict=True)
    for one, other, image, other_image, sum_image in images:
        torch.testing.assert_close((other * image).sum(1), (one * other_image).sum(1), rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(sum_image, image + scale * other_image, rtol=1e-9, atol=1e-12)


def mobilenet(dtype: torch.dtype = torch.float64) -> tuple[nn.Module, list[Batch]]:
    model = randomised(build(Network("mobilenet_v1", default_widths("mobilenet_v1", 0.1), 16, 3, 4), torch.Generator().manual_seed(0)))
    batches = [batch_for((3, 16, 16), samples, seed, 4) for samples, seed in ((5, 0), (3, 1))]
    return model.to(dtype), [(x.to(dtype), target) for x, target in batches]


def directions(product: SplittingProduct) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(zero.shape, generator=generator, dtype=torch.float64).to(zero) for zero in product.zeros()]


def test_unequal_batches_count_by_their_samples_and_need_not_be_kept() -> None:
    model, batches = mobilenet()
    graph = find_groups(model, batches[0][0])
    joined = (torch.cat([x for x, _ in batches]), torch.cat([target for _, target in batches]))
    product = SplittingProduct(model, graph, batches, functional.cross_entropy)
    v = directions(product)
    expected = SplittingProduct(model, graph, [joined], functional.cross_entropy)(v)
    forgetful = SplittingProduct(model, graph, batches, functional.cross_entropy, keep_bytes=0)
    for one, again, whole, anew in zip(product(v), product(v), expected, forgetful(v), strict=True):
        torch.testing.assert_close(one, whole, rtol=1e-9, atol=1e-12)
        assert torch.equal(one, again)
        assert torch.equal(one, anew)


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_float32_in_either_memory_format(memory_format: torch.memory_format) -> None:
    (model, batches), (single, single_batches) = mobilenet(), mobilenet(torch.float32)
    graph = find_groups(model, batches[0][0])
    exact = SplittingProduct(model, graph, batches, functional.cross_entropy)
    single = single.to(memory_format=memory_format)  # type: ignore[call-overload]  # torch leaves memory_format out
    single_batches = [(x.to(memory_format=memory_format), target) for x, target in single_batches]
    product = SplittingProduct(single, graph, single_batches, functional.cross_entropy)
    for ours, theirs in zip(product(directions(product)), exact(directions(exact)), strict=True):
        assert (ours - theirs).norm() < 1e-5 * theirs.norm()


def test_model_is_only_read() -> None:
    model, batches = mobilenet()
    model.train()
    parameters = list(model.parameters())
    parameters[0].requires_grad_(False)
    flags, before = [p.requires_grad for p in parameters], {name: value.clone() for name, value in model.state_dict().items()}
    attributes = [set(vars(module)) for module in model.modules()]
    product = SplittingProduct(model, find_groups(model, batches[0][0]), batches, functional.cross_entropy)
    product(directions(product))
    assert [p.requires_grad for p in parameters] == flags
    assert all(p.grad is None for p in parameters)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [set(vars(module)) for module in model.modules()] == attributes
    assert all(module.training and not module._forward_hooks for module in model.modules())
    assert not batches[0][0].requires_grad


def test_works_where_gradients_are_off() -> None:
    model, batches = mobilenet()
    graph = find_groups(model, batches[0][0])
    product = SplittingProduct(model, graph, batches, functional.cross_entropy)
    v = directions(product)
    with torch.no_grad():
        off = SplittingProduct(model, graph, batches, functional.cross_entropy)(v)
    assert all(torch.equal(a, b) for a, b in zip(product(v), off, strict=True))


def test_what_is_not_finite_is_named() -> None:
    model, batches = mobilenet()
    graph = find_groups(model, batches[0][0])
    product = SplittingProduct(model, graph, batches, functional.cross_entropy)
    v = directions(product)
    v[2][0, 0] = torch.nan
    with pytest.raises(FloatingPointError, match=r"group 2 \(blocks.1.pointwise.conv\) is not finite on batch 0"):
        product(v)
    with pytest.raises(FloatingPointError, match="the loss is nan on batch 0"):
        SplittingProduct(model, graph, batches, lambda scores, target: scores.sum() * torch.nan)(directions(product))
    root_at_zero = SplittingProduct(model, graph, batches, lambda scores, target: (scores * 0).abs().sum().sqrt())
    with pytest.raises(FloatingPointError, match="group 0"):  # a finite loss whose gradient is not
        root_at_zero(directions(product))


def test_bad_calls_say_what_is_wrong() -> None:
    model, batches = mobilenet()
    graph = find_groups(model, batches[0][0])
    with pytest.raises(ValueError, match="no batches"):
        SplittingProduct(model, graph, [], functional.cross_entropy)
    product = SplittingProduct(model, graph, batches, functional.cross_entropy)
    with pytest.raises(ValueError, match="directions have shapes"):
        product(product.zeros()[1:])
    wider = build(Network("mobilenet_v1", default_widths("mobilenet_v1", 0.2), 16, 3, 4))
    with pytest.raises(ValueError, match="call find_groups again"):
        SplittingProduct(wider, graph, batches, functional.cross_entropy)
    with pytest.raises(ValueError, match="beta is 0"):
        Softplus(beta=0)


def test_zero_direction_gives_zero() -> None:
    model, batches = mobilenet()
    product = SplittingProduct(model, find_groups(model, batches[0][0]), batches, functional.cross_entropy)
    assert not any(image.any() for image in product(product.zeros()))


class Cube(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x**3 / 6


@pytest.fixture
def cube() -> Iterator[type[Cube]]:
    POINTWISE[Cube] = Pointwise("cube", lambda y: y**3 / 6, lambda y: (y**2 / 2, y.clone()))
    yield Cube
    del POINTWISE[Cube]


def test_own_pointwise_function(cube: type[Cube]) -> None:
    model = randomised(nn.Sequential(nn.Linear(3, 4), cube(), nn.Linear(4, 2)))
    batch = batch_for((3,))
    graph = find_groups(model, batch[0])
    product = SplittingProduct(model, graph, [batch], functional.cross_entropy)
    v = directions(product)
    (theirs,) = reference_product(model, graph, batch, functional.cross_entropy, v)
    torch.testing.assert_close(product(v)[0], theirs, rtol=1e-9, atol=1e-12)
