"""Lines, planes and paths against numpy and plain loops, and what they promise about their inputs."""

import copy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from labutils import landscape, models, training


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def walk(*shape: int, seed: int = 0) -> Tensor:
    """Paths of random steps, as different along their directions as real ones, off the origin."""
    return randn(*shape, seed=seed).cumsum(-2) + 3 * randn(shape[-1], seed=seed + 1)


def state(*networks: nn.Module) -> list:
    """All that a function must leave alone: weights, buffers, gradients, modes."""
    return [
        (
            {name: value.clone() for name, value in network.state_dict().items()},
            [None if p.grad is None else p.grad.clone() for p in network.parameters()],
            [p.requires_grad for p in network.parameters()],
            [layer.training for layer in network.modules()],
        )
        for network in networks
    ]


def assert_unchanged(before: list, *networks: nn.Module) -> None:
    torch.testing.assert_close(state(*networks), before, rtol=0, atol=0)


def same_bits(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.numpy().tobytes() == b.numpy().tobytes()


# --- Grid and barrier ---------------------------------------------------------------------------------------------


@given(st.floats(-3, 0), st.floats(1, 3), st.integers(2, 60))
def test_a_grid_holds_both_ends_exactly_and_ascends(low: float, high: float, count: int) -> None:
    alphas = landscape.grid(low, high, count)
    assert (alphas == 0).sum() == (alphas == 1).sum() == 1
    assert (np.diff(alphas) > 1e-10).all()
    assert alphas[0] == pytest.approx(low, abs=1e-9)
    assert alphas[-1] == pytest.approx(high, abs=1e-9)
    assert count <= len(alphas) <= count + 2


@pytest.mark.parametrize(
    ("low", "high", "count"), [(0.1, 1, 5), (-1, 0.9, 5), (0, 1, 1), (float("nan"), 1, 5), (0, float("nan"), 5)]
)
def test_a_grid_must_hold_both_ends(low: float, high: float, count: int) -> None:
    with pytest.raises(ValueError, match="both ends, 0 and 1, must lie within"):
        landscape.grid(low, high, count)


def test_a_barrier_by_hand() -> None:
    alphas = [-0.5, 0, 0.25, 0.5, 1, 1.5]
    # The line from 1 to 3 is 1.5 at ¼ and 2 at ½; what lies beyond the ends does not count.
    assert landscape.barrier(alphas, [90, 1, 2, 4, 3, 90]) == 2.0
    assert landscape.barrier(alphas, [0, 1, 2, 1, 3, 0]) == 0.5
    assert landscape.barrier(alphas, [0, 1, 0.5, 0.5, 3, 0]) == 0.0
    both = landscape.barrier(alphas, [[90, 1, 2, 4, 3, 90], [0, 1, 0.5, 0.5, 3, 0]])
    np.testing.assert_array_equal(both, [2.0, 0.0])
    assert np.isnan(landscape.barrier([0, 0.5, 1], [1, float("nan"), 1]))


@pytest.mark.parametrize(
    ("alphas", "losses", "message"),
    [
        ([0, 1], [1, 2, 3], "are needed"),
        ([0, 1], 1.0, "are needed"),
        ([0, 1], np.zeros((2, 2, 2)), "are needed"),
        ([0, 0.999], [1, 2], "make them with landscape.grid"),
        ([0.001, 1], [1, 2], "make them with landscape.grid"),
    ],
)
def test_a_barrier_needs_both_ends_and_matching_shapes(alphas: list, losses: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        landscape.barrier(alphas, losses)


# --- Interpolation ------------------------------------------------------------------------------------------------


class WithBuffers(nn.Module):
    """A network with every kind of state: weights, running statistics, and a count."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(3, 4, dtype=torch.float64), nn.BatchNorm1d(4, dtype=torch.float64)
        for number, value in enumerate([*self.parameters(), self.norm.running_mean]):
            value.data = randn(*value.shape, seed=10 * seed + number)
        self.norm.running_var = randn(4, seed=seed).square()
        self.norm.num_batches_tracked.fill_(seed)
        self.register_buffer("hidden", randn(4, seed=seed + 20), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.first(x)) * self.hidden


def named(network: nn.Module) -> list[tuple[str, Tensor]]:
    return [(name, t.detach()) for name, t in (*network.named_parameters(), *network.named_buffers())]


def tensors(network: nn.Module) -> list[Tensor]:
    return [tensor for _, tensor in named(network)]


def test_the_ends_are_the_networks_bit_for_bit() -> None:
    a, b = WithBuffers(1), WithBuffers(2)
    a.first.bias.data[0], b.first.bias.data[0] = -0.0, float("inf")  # 0 · ∞ is no number, and −0 + 0 is 0
    before = state(a, b)
    first, last = landscape.interpolate(a, b, [0, 1])
    for network, expected in ((first, a), (last, b)):
        for (name, mine), value in zip(named(network), tensors(expected), strict=True):
            assert same_bits(mine, value), name
    for network in (first, last):
        for p in network.parameters():
            p.data.fill_(7.0)
    assert_unchanged(before, a, b)


@pytest.mark.parametrize("alpha", [-0.7, 0.2, 0.5, 0.9, 1.8])
def test_weights_and_buffers_lie_on_the_line(alpha: float) -> None:
    a, b = WithBuffers(1), WithBuffers(2)
    [network] = landscape.interpolate(a, b, alpha)
    for (name, mine), u, v in zip(named(network), tensors(a), tensors(b), strict=True):
        if name == "norm.num_batches_tracked":
            assert mine == (u if alpha < 0.5 else v)
        elif name == "norm.running_var":
            torch.testing.assert_close(mine, ((1 - alpha) * u + alpha * v).clamp_min(0))
        else:
            torch.testing.assert_close(mine, (1 - alpha) * u + alpha * v)
    assert network.eval()(randn(5, 3)).isfinite().all()


def test_what_is_shared_within_a_network_is_shared_on_the_line() -> None:
    a, b = (nn.Sequential(layer, nn.Tanh(), layer) for layer in (nn.Linear(3, 3), nn.Linear(3, 3)))
    [middle] = landscape.interpolate(a, b, 0.5)
    assert middle[2] is middle[0]
    torch.testing.assert_close(middle[0].weight, (a[0].weight + b[0].weight) / 2)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (models.mlp((2, 4, 1)), r"differ in 1.weight, 1.bias, 3.weight"),
        (models.mlp((2, 3, 3, 1)), r"differ in 3.weight, 3.bias, 5.weight, 5.bias"),
        (models.mlp((2, 3, 1), "tanh"), "differ in layers"),
        (models.mlp((2, 3, 1)).double(), r"differ in 1.weight"),
    ],
)
def test_a_line_needs_one_architecture(other: nn.Module, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        landscape.interpolate(models.mlp((2, 3, 1)), other, [0.5])


@pytest.mark.parametrize("alphas", [[0, float("nan")], [float("inf")], [[0, 1]]])
def test_a_line_needs_finite_positions(alphas: list) -> None:
    with pytest.raises(ValueError, match="finite positions"):
        landscape.interpolate(nn.Linear(1, 1), nn.Linear(1, 1), alphas)


# --- Matching units -----------------------------------------------------------------------------------------------


def shuffle(network: nn.Sequential, *, signs: bool = False, seed: int = 0) -> nn.Sequential:
    """Permute (and flip) the hidden units of a network, written out unit by unit as an independent reference."""
    shuffled = copy.deepcopy(network)
    generator = torch.Generator().manual_seed(seed)
    weighted = [layer for layer in shuffled if isinstance(layer, (nn.Linear, nn.Conv2d))]
    originals = copy.deepcopy(weighted)
    with torch.no_grad():
        for k in range(len(weighted) - 1):
            layer, after = weighted[k], weighted[k + 1]
            n = len(layer.weight)
            inputs = after.weight.shape[1] // n  # for each unit: 1, or the positions behind a Flatten
            source, into = copy.deepcopy(layer), copy.deepcopy(after)
            for unit, old in enumerate(torch.randperm(n, generator=generator).tolist()):
                flip = float(torch.randint(0, 2, (), generator=generator) * 2 - 1) if signs else 1.0
                layer.weight[unit], layer.bias[unit] = flip * source.weight[old], flip * source.bias[old]
                mine, theirs = (slice(u * inputs, (u + 1) * inputs) for u in (unit, old))
                after.weight[:, mine] = flip * into.weight[:, theirs]
    assert not torch.equal(originals[0].weight, weighted[0].weight)
    return shuffled


def dense(activation: str = "tanh", seed: int = 0) -> nn.Sequential:
    return models.mlp((6, 9, 7, 3), activation, seed=seed).double()


def convolutional(activation: str = "relu", seed: int = 0) -> nn.Sequential:
    return models.cnn((2, 5, 6), (8, 3), size=12, activation=activation, seed=seed).double()


def unpooled(activation: str, seed: int = 0) -> nn.Sequential:
    return models.cnn((2, 5, 6), (8, 3), size=12, activation=activation, pool=False, seed=seed).double()


def images(network: nn.Sequential, n: int = 60, seed: int = 9) -> Tensor:
    return randn(n, 2, 12, 12, seed=seed) if isinstance(network[0], nn.Conv2d) else randn(n, 6, seed=seed)


@pytest.mark.parametrize(
    ("make", "activation", "signs"),
    [
        (dense, "tanh", False),
        (dense, "tanh", True),
        (dense, "identity", True),
        (dense, "relu", False),
        (dense, "relu", True),  # no signs to flip: nothing but the order may change
        (dense, "gelu", True),
        (convolutional, "relu", False),
        (convolutional, "tanh", False),
        (unpooled, "tanh", True),
    ],
)
@pytest.mark.parametrize("seed", range(3))
def test_a_permutation_is_undone_exactly(make: Callable, activation: str, signs: bool, seed: int) -> None:
    network = make(activation, seed=seed)
    for layer in network[:-1]:
        if activation == "relu" and hasattr(layer, "bias"):
            layer.bias.data += 1  # units that never fire cannot be told apart
    flips = signs and activation in ("tanh", "identity")
    shuffled = shuffle(network, signs=flips, seed=seed)
    x = images(network)
    torch.testing.assert_close(shuffled(x), network(x), rtol=1e-10, atol=1e-12)  # the reference itself
    before = state(shuffled, network)
    matched = landscape.match_units(shuffled, network, x, signs=signs)
    assert torch.equal(parameters_to_vector(matched.parameters()), parameters_to_vector(network.parameters()))
    assert_unchanged(before, shuffled, network)


def odd_ones_out() -> dict[str, nn.Sequential]:
    """Networks whose tanh or weighted layer is followed by something that is not odd, or whose units never fire."""
    dead = dense("relu")
    dead[1].bias.data[:4] = -1e3
    return {
        "dead units": dead,
        "two activations": nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.ReLU(), nn.Linear(5, 2)),
        "flatten before": nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.ReLU(), nn.Linear(400, 2)),
        "pool": nn.Sequential(nn.Conv2d(2, 4, 3), nn.MaxPool2d(2), nn.Tanh(), nn.Flatten(), nn.Linear(100, 2)),
        "no bias": nn.Sequential(nn.Linear(6, 5, bias=False), nn.Tanh(), nn.Linear(5, 2, bias=False)),
        "softmax": models.cnn((2, 4), (3,), size=12, softmax=True),
    }


@pytest.mark.parametrize("name", odd_ones_out())
@pytest.mark.parametrize("signs", [False, True])
def test_what_a_network_computes_never_changes(name: str, signs: bool) -> None:
    network = odd_ones_out()[name].double()
    other = models.initialize(copy.deepcopy(network), seed=1)
    x = images(network)
    matched = landscape.match_units(network, other, x, signs=signs)
    torch.testing.assert_close(matched(x), network(x), rtol=1e-10, atol=1e-12)


@given(st.integers(0, 10_000), st.booleans(), st.sampled_from(["tanh", "relu", "sigmoid", "leaky_relu"]))
@settings(max_examples=25)
def test_unrelated_networks_keep_their_function_and_come_closer(seed: int, signs: bool, activation: str) -> None:
    for make in (dense, convolutional):
        a, b = make(activation, seed=2 * seed), make(activation, seed=2 * seed + 1)
        x, fresh = images(a), images(a, seed=seed)
        matched = landscape.match_units(a, b, x, signs=signs)
        torch.testing.assert_close(matched(fresh), a(fresh), rtol=1e-9, atol=1e-11)
        end = 2 if make is convolutional else 3  # the first layer's units, after their activation
        flips = signs and activation == "tanh" and make is dense  # max-pooling forbids it
        before, after = (unit_correlation(network[:end](x), b[:end](x), absolute=flips) for network in (a, matched))
        assert after >= before - 1e-9


def unit_correlation(a: Tensor, b: Tensor, *, absolute: bool) -> float:
    a, b = (units.movedim(1, -1).flatten(0, -2).detach().numpy() for units in (a, b))
    values = [np.corrcoef(a[:, k], b[:, k])[0, 1] for k in range(a.shape[1]) if a[:, k].std() and b[:, k].std()]
    return float(np.sum(np.abs(values) if absolute else values))


class Residual(nn.Sequential):
    """A sequence that does more than its layers."""

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


class Doubled(nn.Linear):
    """A layer that does more than its type says."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x) ** 2


def used_twice() -> nn.Sequential:
    layer = nn.Linear(6, 6)
    return nn.Sequential(layer, nn.Tanh(), layer, nn.Tanh(), nn.Linear(6, 2))


def shared_weight() -> nn.Sequential:
    network = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6))
    network[2].weight = network[0].weight
    return network


def hooked() -> nn.Sequential:
    """A layer whose weight is made anew for every call, from others."""
    network = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 2))
    torch.nn.utils.spectral_norm(network[0])
    return network


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (nn.Linear(6, 2), "two nn.Sequential networks"),
        (Residual(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6)), "two nn.Sequential networks"),
        (nn.Sequential(Doubled(6, 5), nn.Tanh(), nn.Linear(5, 2)), "layer 0, Doubled"),
        (used_twice(), "used twice"),
        (shared_weight(), "used twice"),
        (hooked(), "layer 0, Linear"),
        (nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 2)), "layer 1, BatchNorm1d"),
        (nn.Sequential(nn.Linear(6, 5), nn.Softmax(1), nn.Linear(5, 2)), "layer 1, Softmax"),
        (nn.Sequential(nn.Conv2d(2, 4, 3, groups=2), nn.Flatten(), nn.Linear(400, 2)), "layer 0, Conv2d"),
        (nn.Sequential(nn.Conv2d(2, 2, 3), nn.Flatten(2), nn.Linear(100, 2)), "layer 1, Flatten"),
        (nn.Sequential(nn.Conv2d(2, 5, 3), nn.ReLU(), nn.Linear(10, 2)), "a Flatten is missing"),
    ],
)
def test_units_of_other_networks_are_refused(network: nn.Module, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        landscape.match_units(network, copy.deepcopy(network), torch.zeros(4, 2, 12, 12))


def test_units_of_two_architectures_and_of_a_diverged_network_are_refused() -> None:
    network = dense()
    with pytest.raises(ValueError, match="one architecture"):
        landscape.match_units(network, dense("relu"), randn(4, 6))
    network[1].weight.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match="NaN or infinite: a diverged network"):
        landscape.match_units(network, dense(seed=1), randn(4, 6))


# --- Paths --------------------------------------------------------------------------------------------------------


def aligned(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return a with the signs of its columns turned to b's: a component has no sign of its own."""
    return a * np.sign((a * b).sum(0))


@pytest.mark.parametrize(("n", "p", "q"), [(11, 500, 2), (5, 40_000, 3), (30, 8, 2), (2, 3, 1)])
def test_a_path_agrees_with_the_singular_value_decomposition(n: int, p: int, q: int) -> None:
    points = walk(n, p)
    path = landscape.path_pca(points, q)
    centered = (points - points.mean(0)).numpy()
    u, s, vt = np.linalg.svd(centered, full_matrices=False)
    extent = s[0]
    np.testing.assert_allclose(path.coordinates, aligned(u[:, :q] * s[:q], path.coordinates), atol=1e-10 * extent)
    np.testing.assert_allclose(path.explained, s[:q] ** 2 / (s**2).sum(), rtol=1e-10)
    np.testing.assert_allclose(path.directions.T, aligned(vt[:q].T, path.directions.T.numpy()), atol=1e-9)
    assert (path.directions.gather(1, path.directions.abs().argmax(1, keepdim=True)) > 0).all(), "a definite sign"
    np.testing.assert_allclose(path.mean, points.mean(0), rtol=1e-12, atol=1e-14)
    rest = centered - (u[:, :q] * s[:q]) @ vt[:q]
    np.testing.assert_allclose(path.residuals, np.linalg.norm(rest, axis=1), atol=1e-6 * extent)


def test_several_paths_share_one_projection() -> None:
    paths = walk(3, 6, 200)
    joint, flat = landscape.path_pca(paths), landscape.path_pca(paths.flatten(0, 1))
    assert joint.coordinates.shape == (3, 6, 2)
    assert joint.residuals.shape == (3, 6)
    np.testing.assert_array_equal(joint.coordinates.reshape(18, 2), flat.coordinates)
    np.testing.assert_array_equal(joint.residuals.ravel(), flat.residuals)
    np.testing.assert_allclose(joint.coordinates.mean((0, 1)), 0, atol=1e-12)
    alone = landscape.path_pca(paths[0])
    assert alone.explained.sum() > landscape.path_pca(paths).explained.sum()


def test_projecting_and_placing_are_inverse_and_the_residual_is_the_distance() -> None:
    paths = walk(3, 6, 200)
    path = landscape.path_pca(paths, 3)
    np.testing.assert_allclose(path.project(paths), path.coordinates, atol=1e-10)
    placed = path.place(path.coordinates)
    assert placed.shape == paths.shape
    np.testing.assert_allclose((paths - placed).norm(dim=-1), path.residuals, atol=1e-6)
    chosen = np.array([[1.0, -2.0, 3.0], [0.0, 0.0, 0.0]])
    np.testing.assert_allclose(path.project(path.place(chosen)), chosen, atol=1e-10)
    torch.testing.assert_close(path.place(chosen[1]), path.mean)


def test_single_precision_is_enough_for_small_steps_far_from_the_origin() -> None:
    exact = 1e-3 * walk(11, 5000) + 10 * randn(5000, seed=5)
    single = exact.float()
    path, reference = landscape.path_pca(single), landscape.path_pca(single.double())
    assert path.directions.dtype == path.mean.dtype == torch.float32
    np.testing.assert_allclose(path.coordinates, reference.coordinates, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(path.explained, reference.explained, rtol=1e-9)


MEMORY = """
import re, torch
from pathlib import Path
from labutils import landscape

def peak():  # unlike ru_maxrss, not inherited from the process that started this one
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

weights = torch.randn(80, 218_181, generator=torch.Generator().manual_seed(0))
start = peak()
path = landscape.path_pca(weights)
assert path.coordinates.shape == (*weights.shape[:-1], 2)
print(start, peak())
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak memory where Linux keeps it")
def test_memory_stays_below_one_gigabyte() -> None:
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    start, peak = map(int, done.stdout.split())
    assert start > 1e8, "torch alone takes more: the number would be wrong"
    assert peak < 1e9, "the whole process, with torch and the points themselves"
    assert peak - start < 3e8


@pytest.mark.parametrize(
    ("weights", "components", "message"),
    [
        (torch.zeros(5), 2, "are needed"),
        (torch.zeros(2, 2, 2, 2), 2, "are needed"),
        (torch.arange(12).view(4, 3), 2, "floating-point"),
        (walk(2, 9), 2, "2 directions from 2 points: at least one point more"),
        (walk(5, 9), 0, "0 directions"),
        (torch.full((5, 9), float("nan")), 2, "NaN or infinite: leave out a diverged path"),
        (torch.full((5, 9), float("inf")), 2, "NaN or infinite"),
        (torch.ones(5, 9), 1, "did the weights move at all"),
        (torch.arange(5.0, dtype=torch.float64).view(5, 1) * torch.ones(9), 2, "span fewer than 2"),
    ],
)
def test_bad_paths_are_refused(weights: Tensor, components: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        landscape.path_pca(weights, components)


# --- Columns ------------------------------------------------------------------------------------------------------


def test_columns_are_where_checkpoints_have_the_layer() -> None:
    network = models.build("cifar-21")
    flat = parameters_to_vector(network.parameters())
    covered = 0
    for number, layer in enumerate(network):
        if not list(layer.parameters()):
            continue
        place = landscape.columns(network, str(number))
        assert torch.equal(flat[place], parameters_to_vector(layer.parameters()))
        covered += place.stop - place.start
    assert covered == models.count_parameters(network)
    nested = nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.Tanh(), nn.Linear(3, 1, bias=False)))
    assert landscape.columns(nested, "1.1") == slice(9, 12)


@pytest.mark.parametrize("layer", ["1", "7", "", "weight"])
def test_columns_of_a_layer_without_parameters_are_refused(layer: str) -> None:
    with pytest.raises(ValueError, match=f"no layer '{layer}' with parameters; there are '0', '2'"):
        landscape.columns(nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)), layer)


# --- Directions and surfaces --------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [dense, convolutional])
def test_every_filter_of_a_direction_has_the_networks_size(make: Callable) -> None:
    network = make()
    before = state(network)
    directions = landscape.filter_normalized_directions(network, 3, seed=1)
    assert directions.shape == (3, models.count_parameters(network))
    assert directions.dtype == torch.float64
    for direction in directions:
        moved = copy.deepcopy(network)
        vector_to_parameters(direction, moved.parameters())
        for mine, own in zip(moved.parameters(), network.parameters(), strict=True):
            if own.dim() == 1:
                assert not mine.any(), "biases stay"
                continue
            for unit, theirs in zip(mine, own, strict=True):  # one filter at a time
                assert unit.norm().item() == pytest.approx(theirs.norm().item(), rel=1e-10)
    cosine = F.cosine_similarity(directions[0], directions[1], dim=0).item()
    assert abs(cosine) < 0.5, "directions are drawn independently"
    assert_unchanged(before, network)


def test_directions_depend_on_their_seed_alone() -> None:
    network = dense()
    torch.manual_seed(0)
    first = landscape.filter_normalized_directions(network, seed=4)
    torch.manual_seed(1)
    assert torch.equal(landscape.filter_normalized_directions(network, seed=4), first)
    assert not torch.equal(landscape.filter_normalized_directions(network, seed=5), first)


def test_rescaled_networks_see_the_same_surface() -> None:
    """What the normalization is for: ReLU units times c, and what follows them over c, compute the same."""
    network = models.mlp((6, 9, 3), bias=False).double()
    rescaled = copy.deepcopy(network)
    rescaled[1].weight.data *= 8.0
    rescaled[3].weight.data /= 8.0
    data, steps = (randn(30, 6), torch.arange(30) % 3), [-1.0, -0.3, 0.0, 0.4, 1.0]
    surfaces = [
        landscape.loss_surface(model, data, landscape.filter_normalized_directions(model), steps, steps)
        for model in (network, rescaled)
    ]
    np.testing.assert_allclose(surfaces[0].loss, surfaces[1].loss, rtol=1e-10)


def plain_surface(model: nn.Module, x: Tensor, y: Tensor, origin: Tensor, directions: Tensor, a, b) -> np.ndarray:
    """Loss (B, A) as everyone writes it."""
    copied, losses = copy.deepcopy(model).eval(), np.empty((len(b), len(a)))
    for row, v in enumerate(b):
        for column, u in enumerate(a):
            vector_to_parameters(origin + u * directions[0] + v * directions[1], copied.parameters())
            with torch.no_grad():
                losses[row, column] = F.cross_entropy(copied(x), y)
    return losses


@pytest.mark.parametrize("make", [dense, convolutional])
@pytest.mark.parametrize("at", ["own weights", "elsewhere"])
@pytest.mark.parametrize("bytes_", [1, 1 << 26])
def test_a_surface_equals_a_plain_loop(make: Callable, at: str, bytes_: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(landscape, "_PLANE_BYTES", bytes_)  # row by row, and all at once
    network = make().train()
    x = images(network, 20)
    y = torch.arange(20) % 3
    size = models.count_parameters(network)
    directions, elsewhere = 0.3 * randn(2, size, seed=3), randn(size, seed=4)
    origin = None if at == "own weights" else elsewhere
    before = state(network)
    a, b = [-1.0, 0.0, 0.5, 2.0], [0.0, 1.0, 3.0]
    surface = landscape.loss_surface(network, (x, y), directions, a, b, origin=origin)
    assert_unchanged(before, network)
    start = parameters_to_vector(network.parameters()).detach() if origin is None else origin
    np.testing.assert_allclose(surface.loss, plain_surface(network, x, y, start, directions, a, b), rtol=1e-9)
    np.testing.assert_array_equal(surface.a, a)
    np.testing.assert_array_equal(surface.b, b)
    assert surface.loss.shape == surface.accuracy.shape == (3, 4)
    if origin is None:
        loss, accuracy = training.evaluate(network, (x, y))
        assert surface.loss[0, 1] == pytest.approx(loss[0], rel=1e-12)
        assert surface.accuracy[0, 1] == accuracy[0]


def test_a_surface_uses_the_networks_buffers() -> None:
    network = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)).double().train()
    network[1].running_mean, network[1].running_var = randn(4), randn(4, seed=1).square() + 0.5
    x, y, directions = randn(20, 6), torch.arange(20) % 3, randn(2, 51, seed=2)
    before = state(network)
    surface = landscape.loss_surface(network, (x, y), directions, [0.0, 1.0], [0.0, 1.0])
    start = parameters_to_vector(network.parameters()).detach()
    expected = plain_surface(network, x, y, start, directions, [0.0, 1.0], [0.0, 1.0])
    np.testing.assert_allclose(surface.loss, expected, rtol=1e-9)
    assert_unchanged(before, network)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"directions": torch.zeros(3, 2)}, r"\(2, 2\) and \(2,\) are needed"),
        ({"directions": torch.zeros(2, 5)}, r"directions \(2, 5\)"),
        ({"origin": torch.zeros(3)}, r"origin \(3,\) for a network of 2 parameters"),
        ({"a": [0.0, float("nan")]}, "finite ones"),
        ({"b": [float("inf")]}, "finite ones"),
        ({"a": [[0.0]]}, "finite ones"),
        ({"loss": "hinge"}, "unknown loss 'hinge'"),
    ],
)
def test_bad_planes_are_refused(change: dict, message: str) -> None:
    given_ = {"directions": torch.eye(2), "a": [0.0, 1.0], "b": [0.0], "loss": "mse"} | change
    with pytest.raises(ValueError, match=message):
        landscape.loss_surface(models.mlp((1, 1)), (torch.ones(3, 1), torch.zeros(3, 1)), **given_)
