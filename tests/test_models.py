"""Every named network: its size, its shapes, its initial weights."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from labutils import models

# The counts that the source documents state (or that follow from their tables).
COUNTS = {
    "d0-two-layer": 1_574_002,
    "d1-shallow": 397, "d1-deep": 385, "d1-cnn-shallow": 40_630, "d1-cnn-deep": 146_482, "d1-path": 218_181,
    "d1-mlp": 269_322,
    "d2-fit-0": 573, "d2-fit-1": 574, "d2-fit-2": 573,
    "fit-0": 571, "fit-1": 572, "fit-2": 571,
    "d2-mnist": 149_002,
    "cifar-1": 36_458, "cifar-2": 46_842, "cifar-7": 430_102, "cifar-21": 11_085, "cifar-22": 12_029,
    "cifar-23": 13_656, "cifar-24": 16_904, "cifar-25": 29_254, "cifar-26": 52_004, "cifar-27": 63_054,
    "cifar-28": 74_754, "cifar-29": 83_854, "cifar-30": 130_122, "cifar-31": 425_194,
    "d4-mlp": 1_643_234,
}  # fmt: skip
INPUTS = {"d0": (1, 28, 28), "d1-cnn": (1, 28, 28), "d1-path": (1, 28, 28), "d1-mlp": (1, 28, 28)}
INPUTS |= {"d1-shallow": (1,), "d1-deep": (1,), "d2-fit": (1,), "fit": (1,), "d2-mnist": (1, 32, 32)}
INPUTS |= {"cifar": (3, 32, 32), "d4-mlp": (3, 32, 32)}
OUTPUTS = {"d0": 2, "d1-shallow": 1, "d1-deep": 1, "d2-fit": 1, "fit": 1, "d4-mlp": 2}


def _by_prefix(table: dict, name: str, default=None):
    return next((value for prefix, value in table.items() if name.startswith(prefix)), default)


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_count_and_output_shape_on_the_sources_input(name: str) -> None:
    model = models.build(name)
    assert models.count_parameters(model) == COUNTS[name]
    assert model(torch.zeros(2, *_by_prefix(INPUTS, name))).shape == (2, _by_prefix(OUTPUTS, name, 10))


def test_activations_are_the_documents() -> None:
    assert set(models.names()) == set(COUNTS)
    kinds = {name: {type(layer) for layer in models.build(name)} for name in COUNTS}
    for name in ("d1-shallow", "d1-deep", "d1-path", "d1-mlp"):
        assert kinds[name] == {nn.Flatten, nn.Linear, nn.Tanh}
    for name in ("d1-cnn-shallow", "d1-cnn-deep"):
        assert kinds[name] == {nn.Conv2d, nn.Sigmoid, nn.Flatten, nn.Linear}
    for name in ("d2-fit-0", "d2-fit-1", "d2-fit-2", "fit-0", "fit-1", "fit-2"):
        assert kinds[name] == {nn.Flatten, nn.Linear, nn.LeakyReLU}
    # The two dense layers of cifar-7 follow each other directly.
    assert [type(layer) for layer in models.build("cifar-7")][-2:] == [nn.Linear, nn.Linear]


def test_softmax_variant_outputs_probabilities() -> None:
    plain, softmax = models.build("cifar-1", seed=3), models.build("cifar-1", seed=3, softmax=True)
    x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(softmax(x), plain(x).softmax(1))


@given(st.integers(0, 2**40))
@settings(max_examples=20)
def test_weights_follow_the_seed_alone(seed: int) -> None:
    for build in (lambda s: models.mlp((4, 5, 2), seed=s), lambda s: models.residual((1, 2), size=4, seed=s)):
        torch.rand(3)  # what the global generator does in between is of no consequence
        before = torch.random.get_rng_state()
        first, second, other = build(seed), build(seed), build(seed + 1)
        assert torch.equal(torch.random.get_rng_state(), before)
        assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
        assert not any(torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("name", ["d1-mlp", "cifar-2"])
def test_initial_weights_have_the_built_in_distribution(name: str) -> None:
    for layer in models.build(name, seed=1).modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            bound = 1 / math.sqrt(layer.weight[0].numel())
            weight = layer.weight.detach()
            assert weight.abs().max() <= bound
            assert layer.bias.detach().abs().max() <= bound
            # A uniform distribution on ±bound has standard deviation bound/√3; six standard errors of it.
            error = 6 * bound / math.sqrt(3) / math.sqrt(weight.numel())
            assert weight.std().item() == pytest.approx(bound / math.sqrt(3), abs=error)


def test_options_override_the_table() -> None:
    assert models.build("d1-mlp", widths=(64, 16, 10))(torch.zeros(1, 8, 8)).shape == (1, 10)
    assert models.build("d1-cnn-shallow", size=16)(torch.zeros(1, 1, 16, 16)).shape == (1, 10)


def test_mlp_without_bias_and_with_output_activation() -> None:
    model = models.mlp((2, 3, 2), "tanh", output_activation="tanh", bias=False)
    assert models.count_parameters(model) == 2 * 3 + 3 * 2
    assert isinstance(model[-1], nn.Tanh)


def test_residual_network_is_its_formula() -> None:
    """A stage at a time, by hand: relu(x + conv(relu(conv(x)))), pooling between stages only."""
    model = models.residual((2, 3, 5), 4, size=8, seed=3)
    x = torch.randn(6, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    (conv1, _, block1, pool, conv2, _, block2, _, dense) = model
    h = conv1(x).relu()
    h = (h + block1.layers[2](block1.layers[0](h).relu())).relu()
    h = conv2(pool(h)).relu()
    h = (h + block2.layers[2](block2.layers[0](h).relu())).relu()
    assert h.shape == (6, 5, 4, 4)
    torch.testing.assert_close(model(x), dense(h.flatten(1)))


def test_residual_and_plain_network_differ_in_the_skip_connections_alone() -> None:
    skip, plain = (models.residual((3, 4, 6, 8), size=12, skip=s, activation="tanh", seed=1) for s in (True, False))
    assert [n for n, _ in skip.named_parameters()] == [n for n, _ in plain.named_parameters()]
    for a, b in zip(skip.parameters(), plain.parameters(), strict=True):
        assert torch.equal(a, b)
    assert repr(skip) != repr(plain)  # the engine takes networks with the same description for the same architecture
    x = torch.ones(2, 3, 12, 12)
    assert not torch.allclose(skip(x), plain(x))
    h = plain[1](plain[0](x))
    torch.testing.assert_close(plain[2](h), plain[2].layers(h).tanh())


def test_residual_weights_have_the_variance_of_he() -> None:
    first, *_, dense = models.residual((3, 100), 50, size=8)
    assert first.weight.var().item() == pytest.approx(2 / 27, rel=0.1)
    assert first.weight.abs().max() <= (6 / 27) ** 0.5
    assert first.bias.abs().max() <= 27**-0.5
    assert dense.weight.abs().max() <= 6400**-0.5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: models.build("cifar-3"), "unknown network 'cifar-3'; there are d0-two-layer"),
        (lambda: models.mlp((3,)), "input and output size"),
        (lambda: models.mlp((3, 0, 1)), "each 1 or more"),
        (lambda: models.mlp((3, 1), "sine"), "unknown activation 'sine'; there are relu"),
        (lambda: models.mlp((3, 1), output_activation="sine"), "unknown activation 'sine'"),
        (lambda: models.cnn((3,)), "at least one layer"),
        (lambda: models.cnn((3, 4), ()), "at least one layer"),
        (lambda: models.cnn((3, 4), dense_activation="sine"), "unknown activation 'sine'"),
        (lambda: models.cnn((3, 4, 4, 4), size=4), "size 4 is too small for 3 convolutions"),
        (lambda: models.residual((3,)), "of the image and of one stage"),
        (lambda: models.residual((3, 4), activation="sine"), "unknown activation 'sine'"),
        (lambda: models.residual((3, 4, 4, 4), size=3), "size 3 is too small for 3 stages"),
        (lambda: models.initialize(nn.Sequential(nn.BatchNorm1d(3)), 0), "layer '0' is a BatchNorm1d"),
    ],
)
def test_bad_input_is_named(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
