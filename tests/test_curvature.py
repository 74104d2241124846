"""Curvature against plain autograd, row by row; finite differences, dense spectra and loops over examples."""

import copy
import math
from collections.abc import Callable, Iterable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from labutils import curvature, functions, models, training


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(n: int = 6) -> tuple[Tensor, Tensor]:
    x = torch.randn(n, 2, 8, 8, generator=generator(), dtype=torch.float64)
    return x, torch.randint(0, 3, (n,), generator=generator(1))


def points(n: int = 20, features: int = 3, outputs: int = 2) -> tuple[Tensor, Tensor]:
    x = torch.randn(n, features, generator=generator(), dtype=torch.float64)
    return x, torch.randn(n, outputs, generator=generator(1), dtype=torch.float64)


def mse(x: Tensor, y: Tensor) -> curvature.Loss:
    return lambda network: F.mse_loss(network(x), y)


def flat(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([t.detach().flatten() for t in tensors])


def derivatives(values: Tensor, parameters: list[Tensor]) -> Tensor:
    """The derivative of every value by all parameters (values, P), one row at a time."""
    rows = [torch.autograd.grad(v, parameters, retain_graph=True, materialize_grads=True) for v in values.flatten()]
    return torch.stack([flat(row) for row in rows])


def reference_hessian(loss: curvature.Loss, model: nn.Module) -> Tensor:
    """The derivative of the gradient, through a copy of the network itself."""
    own = copy.deepcopy(model).eval().requires_grad_()
    parameters = list(own.parameters())
    gradients = torch.autograd.grad(loss(own), parameters, create_graph=True)
    return derivatives(torch.cat([g.flatten() for g in gradients]), parameters)


CASES = {
    "tanh, squared error": (lambda s: models.mlp((3, 4, 5, 2), "tanh", seed=s), points, F.mse_loss),
    "relu, squared error": (lambda s: models.mlp((3, 7, 2), "relu", seed=s), points, F.mse_loss),
    "leaky, no bias": (lambda s: models.mlp((3, 4, 2), "leaky_relu", bias=False, seed=s), points, F.mse_loss),
    "gelu": (lambda s: models.mlp((3, 4, 2), "gelu", seed=s), points, F.mse_loss),
    "softplus": (lambda s: models.mlp((3, 4, 2), "softplus", seed=s), points, F.mse_loss),
    "sigmoid, cross-entropy": (
        lambda s: models.mlp((128, 3, 3), "sigmoid", seed=s), images, F.cross_entropy
    ),
    "convolutions, pooling": (
        lambda s: models.cnn((2, 3, 4), (3,), size=8, activation="tanh", seed=s), images, F.cross_entropy
    ),
    "convolution, softmax": (
        lambda s: models.cnn((2, 3), (3,), size=8, padding=0, softmax=True, seed=s), images, F.cross_entropy
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_hessian_equals_torchs(case: str) -> None:
    build, data, criterion = CASES[case]
    x, y = data()
    networks = [build(s).double() for s in range(3)]
    before = [parameters_to_vector(m.parameters()).clone() for m in networks]
    loss = lambda network: criterion(network(x), y)  # noqa: E731
    expected = torch.stack([reference_hessian(loss, m) for m in networks])
    together = curvature.hessian(loss, networks)
    torch.testing.assert_close(together, expected, rtol=0, atol=1e-10 * expected.abs().max().item())
    alone = curvature.hessian(loss, networks[1])
    torch.testing.assert_close(alone, expected[1], rtol=0, atol=1e-10 * expected.abs().max().item())
    assert torch.equal(alone, alone.T)
    assert all(torch.equal(parameters_to_vector(m.parameters()), w) for m, w in zip(networks, before, strict=True))
    assert all(p.grad is None for m in networks for p in m.parameters())


def test_hessians_of_more_networks_than_products_fit_at_once() -> None:
    x, y = (t.double() for t in functions.sample("sinc", 100, -1, 1))
    loss = mse(x, y)
    many = [models.mlp((1, 10, 1), "tanh", seed=s).double() for s in range(100)]
    matrices = curvature.hessian(loss, many)
    assert matrices.shape == (100, 31, 31)
    expected = reference_hessian(loss, many[57])
    assert (matrices[57] - expected).abs().max() <= 1e-10 * expected.abs().max()


def test_a_loss_may_have_a_term_in_the_weights() -> None:
    x, y = points()
    model = models.mlp((3, 2)).double()

    def loss(network: nn.Module) -> Tensor:
        return F.mse_loss(network(x), y) + sum(p.square().sum() for p in network.parameters())

    plain = curvature.hessian(mse(x, y), model)
    twins = [model, copy.deepcopy(model)]
    torch.testing.assert_close(curvature.hessian(loss, model), plain + 2 * torch.eye(8).double())
    torch.testing.assert_close(curvature.hessian(loss, twins)[1], plain + 2 * torch.eye(8).double())

    def named(network: nn.Sequential) -> Tensor:
        return F.mse_loss(network(x), y) + network[1].weight.square().sum()

    ridge = torch.diag(torch.tensor([2.0] * 6 + [0.0] * 2).double())
    torch.testing.assert_close(curvature.hessian(named, model), plain + ridge)
    torch.testing.assert_close(curvature.hessian(named, twins)[1], plain + ridge)


def test_a_linear_loss_has_no_curvature() -> None:
    model, loss = nn.Linear(30, 2), lambda network: network(torch.ones(1, 30)).sum()
    assert torch.equal(curvature.hessian(loss, model), torch.zeros(62, 62))
    assert np.array_equal(curvature.hessian_operator(loss, model) @ np.ones(62), np.zeros(62))
    assert not np.any(curvature.extreme_eigenvalues(loss, model))


class Residual(nn.Sequential):
    """A sequence that is bypassed: not what its layers make of the input."""

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


class Scaled(nn.Module):
    """A factor that `state_dict` leaves out, and one that it holds."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.register_buffer("hidden", torch.tensor(1.0 + seed), persistent=False)
        self.register_buffer("shown", torch.tensor(2.0 - seed))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.hidden + self.shown


def layer_twice(seed: int) -> nn.Sequential:
    layer = nn.Linear(3, 3)
    return nn.Sequential(layer, nn.Tanh(), layer, nn.Linear(3, 2))


def weight_twice(seed: int) -> nn.Sequential:
    network = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2))
    network[2].weight = network[0].weight
    return network


def normalized(seed: int) -> nn.Sequential:
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2))
    network[1].running_mean += seed
    network[1].running_var *= 1 + seed
    return network


def frozen(seed: int) -> nn.Sequential:
    network = models.mlp((3, 4, 2), "tanh")
    network[1].weight.requires_grad_(False)
    return network


AWKWARD: dict[str, Callable[[int], nn.Sequential]] = {
    "a layer used twice": layer_twice,
    "a weight used twice": weight_twice,
    "batch normalization": normalized,
    "buffers": lambda seed: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), Scaled(seed), nn.Tanh(), nn.Linear(4, 2)),
    "a forward of its own": lambda seed: nn.Sequential(Residual(nn.Linear(3, 3), nn.Tanh()), nn.Linear(3, 2)),
    "a frozen weight": frozen,
}


def awkward(case: str, k: int = 3) -> list[nn.Sequential]:
    networks = [AWKWARD[case](seed).double() for seed in range(k)]
    for seed, network in enumerate(networks):
        for i, p in enumerate(network.parameters()):
            p.data = torch.randn(p.shape, generator=generator(10 * seed + i), dtype=torch.float64) / 2
    return networks


def content(network: nn.Module) -> list[tuple]:
    """All that a network is made of: the very objects, their types and values, and the modes."""
    held = [(name, tensor) for layer in network.modules() for name, tensor in vars(layer)["_parameters"].items()]
    held += list(network.named_buffers())
    modes = [(id(layer), layer.training) for layer in network.modules()]
    return [(name, id(t), type(t), t.requires_grad, t.detach().numpy().tobytes()) for name, t in held] + modes


@pytest.mark.parametrize("case", AWKWARD)
def test_every_network_counts_as_it_is_and_stays_as_it_is(case: str) -> None:
    x, y = points()
    networks = awkward(case)
    before, outputs = [content(m) for m in networks], [m(x).detach() for m in networks]
    if case == "batch normalization":  # which that call has changed
        before = [content(m) for m in networks]
    loss = mse(x, y)
    hessians, products = curvature.hessian(loss, networks), curvature.gauss_newton(networks, x)
    norms, sharpness = curvature.gradient_norm(networks, x, y), [curvature.sharpness(loss, m, 0.3) for m in networks]
    sensitivities = [curvature.sensitivity(m, x, y) for m in networks]
    ends = [curvature.extreme_eigenvalues(loss, m, tol=1e-8) for m in networks]
    assert [content(m) for m in networks] == before
    for k, network in enumerate(networks):
        if case != "batch normalization":
            assert torch.equal(network(x), outputs[k])
        own = copy.deepcopy(network).eval()
        expected = reference_hessian(loss, own)
        torch.testing.assert_close(hessians[k], expected)
        spectrum = np.linalg.eigvalsh(expected)
        np.testing.assert_allclose(np.ravel(ends[k]), spectrum[[0, -1]], atol=1e-6 * np.abs(spectrum).max())
        trainable = [p for p in own.parameters() if p.requires_grad]
        slope = derivatives(loss(own), trainable)
        assert norms[k] == pytest.approx(slope.norm().item(), rel=1e-12)
        assert sensitivities[k] == pytest.approx(loop_over_examples(own, x, y, "loss"), rel=1e-12)
        weights = flat(own.parameters())
        j = derivatives(own.requires_grad_()(x), list(own.parameters()))
        torch.testing.assert_close(products[k], 2 / len(j) * j.T @ j)
        u = torch.randn(200, len(weights), generator=generator(), dtype=torch.float64)
        ball = weights + weights.abs() * 0.3 * u / u.norm(dim=1, keepdim=True)
        rises = []
        for point in ball:
            vector_to_parameters(point, own.parameters())
            rises.append((loss(own) - F.mse_loss(copy.deepcopy(network).eval()(x), y)).item())
        assert sharpness[k] >= max(rises), "a random point of the ball is worse than what the ascent found"


@pytest.mark.parametrize("case", AWKWARD)
@pytest.mark.parametrize("n", [3, 20])
def test_a_step_of_levenberg_marquardt_solves_the_damped_least_squares(case: str, n: int) -> None:
    x, y = points(n)
    networks = awkward(case)
    before = [copy.deepcopy(m).eval() for m in networks]
    curvature.levenberg_marquardt(networks, x, y, steps=1)
    for old, new in zip(before, networks, strict=True):
        free = [p for p in old.parameters() if p.requires_grad]
        j = derivatives(old(x), free).numpy()
        r = (old(x) - y).detach().flatten().numpy()
        augmented = np.vstack([j, np.sqrt(0.01 * (j**2).sum(0).max()) * np.eye(j.shape[1])])
        expected = np.linalg.lstsq(augmented, -np.append(r, np.zeros(j.shape[1])))[0]
        trial = copy.deepcopy(old)
        free = [p for p in trial.parameters() if p.requires_grad]
        vector_to_parameters(parameters_to_vector(free).detach() + torch.from_numpy(expected), free)
        if F.mse_loss(trial(x), y) >= F.mse_loss(old(x), y):  # a step that does not lower the loss is not taken
            expected = np.zeros_like(expected)
        steps = [(q - p).detach() for p, q in zip(old.parameters(), new.parameters(), strict=True)]
        moved = [step for step, p in zip(steps, old.parameters(), strict=True) if p.requires_grad]
        np.testing.assert_allclose(flat(moved), expected, rtol=1e-8, atol=1e-12)
        assert not any(step.any() for step, p in zip(steps, old.parameters(), strict=True) if not p.requires_grad)
        old.load_state_dict(new.state_dict())
        assert torch.equal(old(x), new.eval()(x)), "what was shared is shared"


@pytest.mark.parametrize("case", AWKWARD)
def test_minimize_gradient_follows_the_gradient_of_half_its_square(case: str) -> None:
    # The first step of Adam is lr times the sign of the gradient of ½‖∇L‖², here H ∇L from the dense Hessian.
    x, y = points()
    networks = awkward(case)
    before = copy.deepcopy(networks)
    loss = mse(x, y)
    norms = curvature.minimize_gradient(loss, networks, steps=1, lr=1e-4)
    for old, new, norm in zip(before, networks, norms, strict=True):
        own = copy.deepcopy(old).eval()
        free = flat([torch.full_like(p, p.requires_grad) for p in own.parameters()])
        gradient = free * derivatives(loss(own.requires_grad_()), list(own.parameters()))[0]
        assert norm[0] == pytest.approx(gradient.norm().item(), rel=1e-12)
        slope = free * (reference_hessian(loss, old) @ gradient)
        step = flat(new.parameters()) - flat(old.parameters())
        clear = slope.abs() > 1e-5
        torch.testing.assert_close(step[clear], -1e-4 * slope.sign()[clear], rtol=1e-3, atol=0)
        assert not step[free == 0].any()


def test_a_loss_must_use_the_network_that_it_is_given() -> None:
    x, y = points()
    networks = [models.mlp((3, 4, 2), "tanh", seed=s).double() for s in range(2)]
    target, nothing = networks[0](x), torch.zeros(()).double().requires_grad_()
    wrong = [
        ("outside", lambda network: F.mse_loss(networks[1](x), y)),
        ("outside", lambda network: F.mse_loss(network(x), y) + networks[0][1].weight.square().sum()),
        ("outside", lambda network: F.mse_loss(network(x), target)),
        ("does not depend", lambda network: F.mse_loss(target.detach(), y)),
        ("does not depend", lambda network: nothing * 1),
    ]
    for message, loss in wrong:
        with pytest.raises(ValueError, match=message):
            curvature.hessian(loss, networks)
    for call in (curvature.hessian, curvature.hessian_operator, curvature.extreme_eigenvalues, curvature.sharpness):
        with pytest.raises(ValueError, match="outside"):
            call(wrong[1][1], networks[0])
    with pytest.raises(ValueError, match="outside"):
        curvature.minimize_gradient(wrong[1][1], networks, steps=1)
    # Meant as a constant, the network's own outputs are targets like any other.
    constant = target.detach()
    torch.testing.assert_close(
        curvature.hessian(lambda network: F.mse_loss(network(x), constant), networks[0]),
        curvature.gauss_newton(networks[0], x),
    )


def test_gauss_newton_is_the_hessian_where_residuals_vanish() -> None:
    x, _ = points()
    networks = [models.mlp((3, 4, 2), "tanh", seed=s).double() for s in range(3)]
    for k, model in enumerate(networks):
        target = model(x).detach()
        exact = curvature.hessian(mse(x, target), model)
        torch.testing.assert_close(curvature.gauss_newton(networks, x)[k], exact)
        torch.testing.assert_close(curvature.gauss_newton(model, x), exact)
    away = curvature.eigenvalues(curvature.gauss_newton(networks[0], x))
    assert away.min() > -1e-12


def test_hessian_of_one_layer_of_relus_is_gauss_newton_and_its_gradient() -> None:
    """Second derivatives by w and v, and by b and v, are (∂L/∂w)/v and (∂L/∂b)/v; all others are of JᵀJ."""
    x, y = functions.sample("sinc", 30, -1, 1)
    x, y, h = x.double(), y.double(), 6
    for seed in range(4):
        model = models.mlp((1, h, 1), "relu", seed=seed).double()
        [gradient], expected = (
            derivatives(mse(x, y)(model), list(model.parameters())),
            curvature.gauss_newton(model, x),
        )
        w, b, v = torch.arange(3 * h).split(h)
        for place in (w, b):
            expected[place, v] += gradient[place] / model[3].weight.detach()[0]
            expected[v, place] = expected[place, v]
        torch.testing.assert_close(curvature.hessian(mse(x, y), model), expected)


def test_gradient_norm_is_autograds() -> None:
    x, y = points(2500)
    networks = [models.mlp((3, 4, 2), "tanh", seed=s).double() for s in range(3)]
    expected = [derivatives(F.mse_loss(model(x), y), list(model.parameters())).norm().item() for model in networks]
    np.testing.assert_allclose(curvature.gradient_norm(networks, x, y), expected, rtol=1e-12)
    assert curvature.gradient_norm(networks[1], x, y) == pytest.approx(expected[1], rel=1e-12)
    with training.Stack(networks) as stack:
        np.testing.assert_allclose(curvature.gradient_norm(stack, x, y), expected, rtol=1e-12)
    labels = torch.randint(0, 2, (2500,), generator=generator())
    gradients = torch.autograd.grad(F.cross_entropy(networks[0](x), labels), list(networks[0].parameters()))
    found = curvature.gradient_norm(networks[0], x, labels, "cross_entropy")
    assert found == pytest.approx(flat(gradients).norm().item(), rel=1e-12)


@given(
    hnp.arrays(np.int64, st.integers(1, 12), elements=st.integers(-3, 3)),
    st.floats(1e-3, 1e3),
    st.integers(0, 2**32 - 1),
)
def test_spectrum_shares_of_constructed_spectra(whole: np.ndarray, scale: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    noise = 1e-14 * np.abs(whole).max() * rng.uniform(-1, 1, len(whole))
    shares = curvature.spectrum_shares(rng.permutation(scale * (whole + noise)))
    expected = [np.mean(whole > 0), np.mean(whole == 0), np.mean(whole < 0)]
    np.testing.assert_allclose(shares, expected)
    # The same from a matrix with these eigenvalues, behind a random rotation.
    q, _ = np.linalg.qr(rng.standard_normal((len(whole), len(whole))))
    matrix = torch.from_numpy(scale * (q * whole) @ q.T)
    found = curvature.eigenvalues(matrix)
    np.testing.assert_allclose(found, scale * np.sort(whole), atol=1e-12 * scale)
    np.testing.assert_allclose(curvature.spectrum_shares(found), expected)


def test_spectrum_shares_of_many_and_of_nothing_but_zeros() -> None:
    shares = curvature.spectrum_shares([[1.0, 2.0, -3.0], [0.0, 0.0, 0.0]])
    np.testing.assert_allclose(shares.positive, [2 / 3, 0])
    np.testing.assert_allclose(shares.zero, [0, 1])
    np.testing.assert_allclose(shares.negative, [1 / 3, 0])
    assert curvature.spectrum_shares([1.0, 1e-3, -1e-3], rtol=1e-2) == (pytest.approx(1 / 3), pytest.approx(2 / 3), 0)
    assert curvature.spectrum_shares([1.0, 1e-300], rtol=0).positive == 1


@pytest.mark.parametrize("case", CASES)
def test_products_and_extremes_are_the_dense_hessians(case: str) -> None:
    build, data, criterion = CASES[case]
    x, y = data()
    model = build(0).double()
    loss = lambda network: criterion(network(x), y)  # noqa: E731
    dense = curvature.hessian(loss, model).numpy()
    vectors = np.random.default_rng(0).standard_normal((3, len(dense)))
    operator = curvature.hessian_operator(loss, model)
    for v in vectors:
        np.testing.assert_allclose(operator @ v, dense @ v, atol=1e-12 * np.abs(dense).max() * len(dense))
    spectrum = np.linalg.eigvalsh(dense)
    largest = np.abs(spectrum).max()
    ends = curvature.extreme_eigenvalues(loss, model, 2, tol=1e-8)
    np.testing.assert_allclose(ends.lowest, spectrum[:2], atol=1e-6 * largest)
    np.testing.assert_allclose(ends.highest, spectrum[-2:], atol=1e-6 * largest)


@pytest.mark.parametrize("factor", [1.0, -2.5, 1e-20, 1e20])
@pytest.mark.parametrize("size", [2, 41, 100])
def test_extremes_of_multiples_of_the_identity_and_of_few_parameters(size: int, factor: float) -> None:
    model = nn.Linear(size, 1, bias=False).double()
    for k in {1, min(3, size - 1)}:
        ends = curvature.extreme_eigenvalues(lambda network: factor * network.weight.square().sum() / 2, model, k)
        np.testing.assert_allclose(ends, np.full((2, k), factor), rtol=1e-3)
    scale = torch.linspace(-1, 3, size).double()
    ends = curvature.extreme_eigenvalues(lambda network: (scale * network.weight.square()).sum() / 2, model, tol=1e-6)
    np.testing.assert_allclose(np.ravel(ends), [-1, 3], rtol=1e-5)


def test_trace_is_the_dense_hessians() -> None:
    x, y = points()
    model = models.mlp((3, 4, 2), "tanh").double()
    loss = mse(x, y)
    exact = curvature.hessian(loss, model).trace().item()
    estimates = [curvature.hessian_trace(loss, model, 40, seed=s) for s in range(20)]
    assert np.mean([e.mean for e in estimates]) == pytest.approx(exact, rel=0.05)
    assert sum(e.low <= exact <= e.high for e in estimates) >= 16  # of 19 expected; P(< 16) = 0.3 %
    assert curvature.hessian_trace(loss, model, 5, seed=3) == curvature.hessian_trace(loss, model, 5, seed=3)


def loop_over_examples(model: nn.Module, x: Tensor, y: Tensor, of: str) -> float:
    norms = []
    for xi, yi in zip(x, y, strict=True):
        xi = xi.unsqueeze(0).requires_grad_()
        outputs = model(xi)
        if of != "loss":
            shown = (
                outputs if of == "logits" or isinstance(model[-1], nn.Softmax) else outputs.exp() / outputs.exp().sum()
            )
            rows = [torch.autograd.grad(o, xi, retain_graph=True)[0] for o in shown[0]]
            norms.append(torch.stack(rows).norm().item())
        else:
            value = F.mse_loss(outputs[0], yi) if yi.is_floating_point() else F.cross_entropy(outputs, yi.view(1))
            norms.append(torch.autograd.grad(value, xi)[0].norm().item())
    return float(np.mean(norms))


@pytest.mark.parametrize("of", ["loss", "logits", "probabilities"])
@pytest.mark.parametrize("case", CASES)
def test_sensitivity_is_a_loop_over_examples(case: str, of: str, monkeypatch) -> None:
    build, data, _ = CASES[case]
    x, y = data()
    model = build(0).double()
    expected = loop_over_examples(model, x, y, of)
    assert curvature.sensitivity(model, x, y, of) == pytest.approx(expected, rel=1e-12)
    monkeypatch.setattr(curvature, "_BATCH", 4)
    with torch.no_grad():
        assert curvature.sensitivity(model, x, y, of) == pytest.approx(expected, rel=1e-12)
    assert not x.requires_grad
    assert curvature.sensitivity(model.float(), x.float(), y if y.dtype == torch.int64 else y.float(), of) == (
        pytest.approx(expected, rel=1e-5)
    )


def test_sharpness_of_a_quadratic_is_known() -> None:
    # L = Σ w²/2 over n = 4 weights of 1: the worst u is the same for all, ρ/√n.
    model = nn.Linear(4, 1, bias=False).double()
    nn.init.ones_(model.weight)
    loss = lambda network: network(torch.eye(4).double()).square().sum() / 2  # noqa: E731
    exact = ((1 + 0.3 / 2) ** 2 - 1) * 2
    assert curvature.sharpness(loss, model, 0.3) == pytest.approx(exact, rel=1e-6)
    assert torch.equal(model.weight, torch.ones(1, 4).double())


def test_sharpness_does_not_change_under_rescaling_and_grows_with_the_ball() -> None:
    x, y = points()
    model = models.mlp((3, 6, 2), "relu", bias=False).double()
    rescaled = copy.deepcopy(model)
    with torch.no_grad():
        rescaled[1].weight *= 10
        rescaled[3].weight /= 10
    loss = mse(x, y)
    values = [curvature.sharpness(loss, model, rho) for rho in (0.01, 0.1, 0.5)]
    assert 0 < values[0] < values[1] < values[2]
    assert curvature.sharpness(loss, rescaled, 0.1) == pytest.approx(values[1], rel=1e-9)


@pytest.mark.parametrize("rho", [1e-4, 0.05])
def test_sharpness_at_an_exact_minimum_is_the_steepest_curvature(rho: float) -> None:
    x, _ = points()
    model = models.mlp((3, 4, 2), "tanh").double()
    y = model(x).detach()
    weights = parameters_to_vector(model.parameters()).detach()
    scaled = weights.abs()[:, None] * reference_hessian(mse(x, y), model) * weights.abs()
    exact = rho**2 / 2 * torch.linalg.eigvalsh(scaled)[-1].item()  # to the second order
    found = curvature.sharpness(mse(x, y), model, rho, steps=60)
    assert found == pytest.approx(exact, rel=0.02)


def test_sharpness_meets_losses_that_are_not_finite() -> None:
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.ones_(model.weight)
    assert curvature.sharpness(lambda network: -network.weight.sum().sub(0.5).log(), model, rho=1.0) == math.inf
    nn.init.zeros_(model.weight)
    assert curvature.sharpness(lambda network: network.weight.square().sum(), model) == 0  # 0 in proportion stays 0
    with pytest.raises(ValueError, match="the loss is nan: did the training diverge"):
        curvature.sharpness(lambda network: (network.weight / 0 * 0).sum(), model)


def test_minimize_gradient_finds_a_saddle_that_training_on_the_loss_leaves() -> None:
    # L = (w v − 1)² has a saddle at 0 and its minima on w v = 1.
    networks = [models.mlp((1, 1, 1), "identity", bias=False).double() for _ in range(2)]
    for model, (w, v) in zip(networks, [(0.2, -0.1), (1.5, 0.8)], strict=True):
        nn.init.constant_(model[1].weight, w), nn.init.constant_(model[3].weight, v)
    one = torch.ones(1, 1).double()
    norms = curvature.minimize_gradient(lambda n: F.mse_loss(n(one), one), networks, steps=600, lr=2e-2)
    ends = np.array([[model[1].weight.item(), model[3].weight.item()] for model in networks])
    np.testing.assert_allclose(ends[0], 0, atol=1e-6)
    assert ends[1].prod() == pytest.approx(1)
    assert (norms[:, -1] < 1e-6).all()
    np.testing.assert_allclose(norms[:, -1], curvature.gradient_norm(networks, one, one), atol=1e-9)


def test_levenberg_marquardt_recovers_a_teacher() -> None:
    x = torch.linspace(-2, 2, 30, dtype=torch.float64).unsqueeze(1)
    teacher = models.mlp((1, 3, 1), "tanh", seed=7).double()
    y = teacher(x).detach()
    networks = [copy.deepcopy(teacher) for _ in range(5)]
    for k, model in enumerate(networks):
        for p in model.parameters():
            p.data += 0.1 * torch.randn(p.shape, generator=generator(k), dtype=torch.float64)
    start = curvature.gradient_norm(networks, x, y)
    before, _ = training.evaluate(networks, (x, y), loss="mse")
    norms = curvature.levenberg_marquardt(networks, x, y, steps=100)
    after, _ = training.evaluate(networks, (x, y), loss="mse")
    np.testing.assert_allclose(norms[:, 0], start)
    np.testing.assert_allclose(norms[:, -1], curvature.gradient_norm(networks, x, y), atol=1e-13)
    assert (norms[:, -1] < 1e-4 * start).all()
    assert (after < 1e-8 * before).all()


@pytest.mark.parametrize("method", ["gradient", "levenberg_marquardt"])
def test_networks_that_cannot_move_do_not_stop_the_others(method: str) -> None:
    x, y = points()

    def train(networks: list[nn.Module]) -> np.ndarray:
        if method == "gradient":
            return curvature.minimize_gradient(mse(x, y), networks, steps=5)
        return curvature.levenberg_marquardt(networks, x, y, steps=5)

    networks = [models.mlp((3, 4, 2), "relu", bias=False, seed=s).double() for s in range(3)]
    networks[0][1].weight.data.fill_(math.nan)
    for p in networks[1].parameters():
        p.data.fill_(0.0)
    alone, before = copy.deepcopy(networks[2]), copy.deepcopy(networks)
    norms = train(networks)
    np.testing.assert_array_equal(norms[:2], [[math.nan] * 6, [0.0] * 6])
    np.testing.assert_allclose(norms[2:], train([alone]))
    assert torch.equal(flat(networks[1].parameters()), flat(before[1].parameters()))


class Powered(nn.Linear):
    """A layer whose setting its name does not show."""

    def __init__(self, power: int) -> None:
        super().__init__(3, 2, dtype=torch.float64)
        self.power = power

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) ** self.power


X, Y = points()
LINE = models.mlp((3, 2)).double()
SKEW = torch.tensor([[1.0, 2.0], [0.0, 1.0]])
squared = mse(X, Y)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: curvature.gradient_norm(LINE, X, Y[:3]), "20 examples and 3 labels"),
        (lambda: curvature.gradient_norm(LINE, X[:0], Y[:0]), "0 examples"),
        (lambda: curvature.gradient_norm(LINE, X, Y.argmax(1), "ce"), "unknown loss 'ce'"),
        (lambda: curvature.gradient_norm(LINE, X, Y[:, :1]), r"outputs .*20, 2\).*y is \(20, 1\)"),
        (lambda: curvature.gradient_norm(LINE, X, Y[:, 0]), r"y is \(20,\)"),
        (lambda: curvature.hessian(lambda network: network(X), LINE), r"one number.*\(20, 2\)"),
        (lambda: curvature.hessian(lambda network: F.mse_loss(network(X), Y[:, :1]), LINE), "do not fit the outputs"),
        (lambda: curvature.hessian(squared, [LINE, models.mlp((3, 1)).double()]), r"models\[1\] differs"),
        (lambda: curvature.hessian(squared, [models.mlp((3, 4, 2), a).double() for a in ("relu", "tanh")]), "differs"),
        (lambda: curvature.gauss_newton([LINE, models.mlp((3, 1)).double()], X), r"models\[1\] differs"),
        (lambda: curvature.hessian(squared, [Powered(2), Powered(3)]), "must be taken one by one"),
        (lambda: curvature.hessian(squared, []), "no models"),
        (lambda: curvature.eigenvalues(torch.ones(3)), "must be square"),
        (lambda: curvature.eigenvalues(torch.ones(2, 3)), "must be square"),
        (lambda: curvature.eigenvalues(torch.ones(0, 0)), "must be square"),
        (lambda: curvature.eigenvalues(torch.eye(2) * 1j), "must be square and real"),
        (lambda: curvature.eigenvalues(torch.tensor([[1.0, math.nan], [0.0, 1.0]])), "1 entries of the matrix are NaN"),
        (lambda: curvature.eigenvalues(torch.stack([1e9 * torch.eye(2), SKEW])), "by up to 2 .largest entry 2"),
        (lambda: curvature.spectrum_shares([]), "P ≥ 1"),
        (lambda: curvature.spectrum_shares(1.0), r"shape \(\)"),
        (lambda: curvature.spectrum_shares([1.0, math.nan]), "1 eigenvalues are NaN"),
        (lambda: curvature.spectrum_shares([1.0], -1.0), "rtol = -1"),
        (lambda: curvature.spectrum_shares([1.0], 1.0), "rtol = 1"),
        (lambda: curvature.spectrum_shares([1.0], math.nan), "rtol = nan"),
        (lambda: curvature.sensitivity(LINE, X, Y, of="weights"), "of = 'weights'"),
        (lambda: curvature.sensitivity(LINE, X, Y[:3]), "20 examples and 3 labels"),
        (lambda: curvature.sensitivity(LINE, X, Y[:, :1]), r"y is \(20, 1\)"),
        (lambda: curvature.sensitivity(LINE, X, Y[:, 0]), r"y is \(20,\)"),
        (lambda: curvature.sharpness(squared, LINE, rho=0.0), "rho = 0"),
        (lambda: curvature.sharpness(squared, LINE, steps=0), "steps = 0"),
        (lambda: curvature.extreme_eigenvalues(squared, LINE, 0), "k = 0"),
        (lambda: curvature.extreme_eigenvalues(squared, LINE, 8), "k = 8: a network of 8 parameters"),
        (
            lambda: curvature.extreme_eigenvalues(lambda n: n(X).sum().sqrt() * math.nan, LINE),
            "did the training diverge",
        ),
        (lambda: curvature.hessian_trace(squared, LINE, 1), "samples = 1"),
        (lambda: curvature.minimize_gradient(squared, [], steps=1), "0 models"),
        (lambda: curvature.minimize_gradient(squared, [LINE], steps=0), "steps = 0"),
        (lambda: curvature.minimize_gradient(squared, [LINE], steps=1, lr=0), "lr = 0"),
        (lambda: curvature.levenberg_marquardt([], X, Y), "0 models"),
        (lambda: curvature.levenberg_marquardt([LINE], X, Y, steps=0), "steps = 0"),
        (lambda: curvature.levenberg_marquardt([LINE], X, Y[:2]), "20 examples and 2 labels"),
        (lambda: curvature.levenberg_marquardt([LINE], X, torch.zeros(20, dtype=torch.int64)), "targets must be"),
        (lambda: curvature.levenberg_marquardt([LINE], X, Y[:, :1]), r"targets must be \(20, 2\)"),
        (lambda: curvature.levenberg_marquardt([LINE, LINE], X, Y), "given twice"),
    ],
)
def test_bad_input_is_named(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
