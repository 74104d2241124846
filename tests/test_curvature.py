"""Curvature against torch's own Hessian, finite differences, dense spectra and loops over examples."""

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor, nn
from torch.func import functional_call
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


def reference_hessian(loss: curvature.Loss, model: nn.Module) -> Tensor:
    """torch.autograd.functional.hessian of the flattened parameters."""
    names, shapes = zip(*[(n, p.shape) for n, p in model.named_parameters()], strict=True)
    flat = parameters_to_vector(model.parameters()).detach()

    def value(weights: Tensor) -> Tensor:
        parts = weights.split([s.numel() for s in shapes])
        own = {n: p.view(s) for n, p, s in zip(names, parts, shapes, strict=True)}
        return loss(lambda x: functional_call(model, own, (x,)))

    return torch.autograd.functional.hessian(value, flat)


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

    def loss(network: curvature.Network) -> Tensor:
        return criterion(network(x), y)

    expected = torch.stack([reference_hessian(loss, m) for m in networks])
    together = curvature.hessian(loss, networks)
    torch.testing.assert_close(together, expected, rtol=0, atol=1e-10 * expected.abs().max().item())
    alone = curvature.hessian(loss, networks[1])
    torch.testing.assert_close(alone, expected[1], rtol=0, atol=1e-10 * expected.abs().max().item())
    assert torch.equal(alone, alone.T)
    assert all(torch.equal(parameters_to_vector(m.parameters()), w) for m, w in zip(networks, before, strict=True))
    assert all(p.grad is None for m in networks for p in m.parameters())


def test_hessian_of_the_plans_sizes() -> None:
    x, y = (t.double() for t in functions.sample("sinc", 300, -1, 1))

    def loss(network: curvature.Network) -> Tensor:
        return F.mse_loss(network(x), y)

    model = models.build("fit-1").double()
    expected = reference_hessian(loss, model)
    assert (curvature.hessian(loss, model) - expected).abs().max() <= 1e-10 * expected.abs().max()
    many = [models.mlp((1, 10, 1), "tanh", seed=s).double() for s in range(100)]
    matrices = curvature.hessian(loss, many)
    assert matrices.shape == (100, 31, 31)
    expected = reference_hessian(loss, many[57])
    assert (matrices[57] - expected).abs().max() <= 1e-10 * expected.abs().max()


def test_a_loss_may_have_a_term_in_the_weights() -> None:
    x, y = points()
    model = models.mlp((3, 2)).double()

    def loss(network: curvature.Network) -> Tensor:
        return F.mse_loss(network(x), y) + sum(p.square().sum() for p in network.parameters())

    plain = curvature.hessian(lambda network: F.mse_loss(network(x), y), model)
    torch.testing.assert_close(curvature.hessian(loss, model), plain + 2 * torch.eye(8).double())
    torch.testing.assert_close(curvature.hessian(loss, [model] * 2)[1], plain + 2 * torch.eye(8).double())


def test_a_linear_loss_has_no_curvature() -> None:
    model = nn.Linear(3, 1)
    for loss in (lambda network: network(torch.ones(1, 3)).sum(), lambda network: torch.zeros(()).requires_grad_()):
        assert torch.equal(curvature.hessian(loss, model), torch.zeros(4, 4))
        assert np.array_equal(curvature.hessian_operator(loss, model) @ np.ones(4), np.zeros(4))


def test_buffers_are_each_networks_own_and_stay_as_they_are() -> None:
    networks = [nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2)).double() for _ in "ab"]
    for k, model in enumerate(networks):
        models.initialize(model[0], k), models.initialize(model[3], k)
        model[1].running_mean += k
        model[1].running_var *= 1 + k
    x, y = points()
    before = [copy.deepcopy(m.state_dict()) for m in networks]

    def loss(network: curvature.Network) -> Tensor:
        return F.mse_loss(network(x), y)

    together = curvature.hessian(loss, networks)
    curvature.gradient_norm(networks, x, y)
    curvature.sensitivity(networks[0], x, y)
    curvature.sharpness(loss, networks[0])
    for k, model in enumerate(networks):
        assert model.training
        assert all(torch.equal(value, before[k][name]) for name, value in model.state_dict().items())
        expected = reference_hessian(loss, model.eval())
        torch.testing.assert_close(together[k], expected)


def test_gauss_newton_is_the_hessian_where_residuals_vanish() -> None:
    x, _ = points()
    networks = [models.mlp((3, 4, 2), "tanh", seed=s).double() for s in range(3)]
    for k, model in enumerate(networks):
        target = model(x).detach()
        exact = curvature.hessian(lambda network, target=target: F.mse_loss(network(x), target), model)
        torch.testing.assert_close(curvature.gauss_newton(networks, x)[k], exact)
        torch.testing.assert_close(curvature.gauss_newton(model, x), exact)
    away = curvature.eigenvalues(curvature.gauss_newton(networks[0], x))
    assert away.min() > -1e-12


def test_gradient_norm_is_autograds() -> None:
    x, y = points(2500)
    networks = [models.mlp((3, 4, 2), "tanh", seed=s).double() for s in range(3)]
    expected = []
    for model in networks:
        gradients = torch.autograd.grad(F.mse_loss(model(x), y), list(model.parameters()))
        expected.append(math.sqrt(sum(g.square().sum().item() for g in gradients)))
    np.testing.assert_allclose(curvature.gradient_norm(networks, x, y), expected, rtol=1e-12)
    assert curvature.gradient_norm(networks[1], x, y) == pytest.approx(expected[1], rel=1e-12)
    with training.Stack(networks) as stack:
        np.testing.assert_allclose(curvature.gradient_norm(stack, x, y), expected, rtol=1e-12)
    labels = torch.randint(0, 2, (2500,), generator=generator())
    gradients = torch.autograd.grad(F.cross_entropy(networks[0](x), labels), list(networks[0].parameters()))
    expected = math.sqrt(sum(g.square().sum().item() for g in gradients))
    assert curvature.gradient_norm(networks[0], x, labels, "cross_entropy") == pytest.approx(expected, rel=1e-12)


def test_gradient_norm_follows_training() -> None:
    x, y = points()
    seen = []
    model = models.mlp((3, 4, 2), "tanh").double()
    start = curvature.gradient_norm(model, x, y)
    watch = lambda _epoch, stack: seen.append(curvature.gradient_norm(stack, x, y))  # noqa: E731
    training.fit([model], (x, y), epochs=5, lr=0.05, loss="mse", on_epoch=watch)
    assert np.shape(seen) == (6, 1)
    assert seen[0][0] == pytest.approx(start)
    assert seen[-1][0] == pytest.approx(curvature.gradient_norm(model, x, y))


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


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (torch.ones(3), "must be square"),
        (torch.ones(2, 3), "must be square"),
        (torch.tensor([[1.0, math.nan], [0.0, 1.0]]), "1 entries of the matrix are NaN or infinite"),
        (torch.tensor([[1.0, 2.0], [0.0, 1.0]]), "differs from its transpose by up to 2"),
    ],
)
def test_eigenvalues_refuse(matrix: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        curvature.eigenvalues(matrix)


@pytest.mark.parametrize(
    ("values", "rtol", "message"),
    [
        ([], 1e-10, "P ≥ 1"),
        (1.0, 1e-10, r"shape \(\)"),
        ([1.0, math.nan], 1e-10, "1 eigenvalues are NaN"),
        ([1.0], -1.0, "rtol = -1"),
        ([1.0], 1.0, "rtol = 1"),
        ([1.0], math.nan, "rtol = nan"),
    ],
)
def test_spectrum_shares_refuse(values, rtol: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        curvature.spectrum_shares(values, rtol)


@pytest.mark.parametrize("case", CASES)
def test_products_and_extremes_are_the_dense_hessians(case: str) -> None:
    build, data, criterion = CASES[case]
    x, y = data()
    model = build(0).double()

    def loss(network: curvature.Network) -> Tensor:
        return criterion(network(x), y)

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


def test_trace_is_the_dense_hessians() -> None:
    x, y = points()
    model = models.mlp((3, 4, 2), "tanh").double()

    def loss(network: curvature.Network) -> Tensor:
        return F.mse_loss(network(x), y)

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
        if of == "logits":
            rows = [torch.autograd.grad(o, xi, retain_graph=True)[0] for o in outputs[0]]
            norms.append(torch.stack(rows).norm().item())
        else:
            value = F.mse_loss(outputs[0], yi) if yi.is_floating_point() else F.cross_entropy(outputs, yi.view(1))
            norms.append(torch.autograd.grad(value, xi)[0].norm().item())
    return float(np.mean(norms))


@pytest.mark.parametrize("of", ["loss", "logits"])
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

    def loss(network: curvature.Network) -> Tensor:
        return F.mse_loss(network(x), y)

    values = [curvature.sharpness(loss, model, rho) for rho in (0.01, 0.1, 0.5)]
    assert 0 < values[0] < values[1] < values[2]
    assert curvature.sharpness(loss, rescaled, 0.1) == pytest.approx(values[1], rel=1e-9)
    # No random point of the ball is worse than what the ascent found.
    weights = parameters_to_vector(model.parameters()).detach()
    u = torch.randn(500, len(weights), generator=generator(), dtype=torch.float64)
    ball = weights + weights.abs() * 0.1 * u / u.norm(dim=1, keepdim=True)
    losses, _ = training.evaluate_weights(model, ball, (x, y), loss="mse")
    assert (losses - loss(model).item()).max() <= values[1]


def test_minimize_gradient_finds_a_saddle_that_training_on_the_loss_leaves() -> None:
    # L = (w v − 1)² has a saddle at 0 and its minima on w v = 1.
    networks = [models.mlp((1, 1, 1), "identity", bias=False).double() for _ in range(2)]
    for model, (w, v) in zip(networks, [(0.2, -0.1), (1.5, 0.8)], strict=True):
        nn.init.constant_(model[1].weight, w), nn.init.constant_(model[3].weight, v)
    one = torch.ones(1, 1).double()
    norms = curvature.minimize_gradient(lambda n: F.mse_loss(n(one), one), networks, steps=2000, lr=1e-2)
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


@pytest.mark.parametrize("n", [4, 20])
def test_a_step_of_levenberg_marquardt_solves_the_damped_least_squares(n: int) -> None:
    x, y = points(n)
    model = models.mlp((3, 4, 2), "tanh").double()
    weights = parameters_to_vector(model.parameters()).detach().clone()
    outputs = [output for example in x for output in model(example[None])[0]]
    rows = [torch.autograd.grad(o, list(model.parameters()), retain_graph=True) for o in outputs]
    j = torch.stack([torch.cat([g.flatten() for g in row]) for row in rows]).numpy()
    r = (model(x) - y).detach().flatten().numpy()
    mu = 0.1 * (j**2).sum(0).max()
    augmented = np.vstack([j, np.sqrt(mu) * np.eye(len(weights))])
    expected = np.linalg.lstsq(augmented, -np.append(r, np.zeros(len(weights))))[0]
    curvature.levenberg_marquardt([model], x, y, steps=1, damping=0.1)
    step = parameters_to_vector(model.parameters()).detach() - weights
    np.testing.assert_allclose(step.numpy(), expected, rtol=1e-8, atol=1e-12)


def test_minimize_gradient_follows_the_gradient_of_half_its_square() -> None:
    # The first step of Adam is lr times the sign of the gradient of ½‖∇L‖², here by central differences.
    x, y = points()
    model = models.mlp((3, 3, 2), "tanh").double()
    weights = parameters_to_vector(model.parameters()).detach().clone()
    moved, slope = copy.deepcopy(model), torch.empty_like(weights)
    for i in range(len(weights)):
        halves = []
        for sign in (1, -1):
            step = torch.zeros_like(weights)
            step[i] = sign * 1e-5
            vector_to_parameters(weights + step, moved.parameters())
            halves.append(curvature.gradient_norm(moved, x, y) ** 2 / 2)
        slope[i] = (halves[0] - halves[1]) / 2e-5
    curvature.minimize_gradient(lambda network: F.mse_loss(network(x), y), [model], steps=1, lr=1e-4)
    step = parameters_to_vector(model.parameters()).detach() - weights
    clear = slope.abs() > 1e-5
    torch.testing.assert_close(step[clear], -1e-4 * slope.sign()[clear], rtol=1e-3, atol=0)


@pytest.mark.parametrize("method", ["gradient", "levenberg_marquardt"])
def test_a_network_rests_at_its_tolerance_while_others_move(method: str) -> None:
    x, y = points(outputs=1)
    networks = [models.mlp((3, 3, 1), "tanh", seed=s).double() for s in range(2)]
    curvature.levenberg_marquardt(networks[:1], x, y, steps=1000)
    rested = parameters_to_vector(networks[0].parameters()).detach().clone()
    moving = parameters_to_vector(networks[1].parameters()).detach().clone()
    if method == "gradient":
        loss = lambda network: F.mse_loss(network(x), y)  # noqa: E731
        norms = curvature.minimize_gradient(loss, networks, steps=5, tolerance=1e-3)
    else:
        norms = curvature.levenberg_marquardt(networks, x, y, steps=5, tolerance=1e-3)
    assert norms[0, 0] <= 1e-3
    assert torch.equal(parameters_to_vector(networks[0].parameters()), rested)
    assert not torch.equal(parameters_to_vector(networks[1].parameters()), moving)
    assert np.allclose(norms[0], norms[0, 0], rtol=1e-9)


X, Y = points()
LINE = models.mlp((3, 2)).double()


def squared(network: curvature.Network) -> Tensor:
    return F.mse_loss(network(X), Y)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: curvature.gradient_norm(LINE, X, Y[:3]), "20 examples and 3 labels"),
        (lambda: curvature.gradient_norm(LINE, X[:0], Y[:0]), "0 examples"),
        (lambda: curvature.hessian(lambda network: network(X), LINE), r"one number.*\(20, 2\)"),
        (lambda: curvature.sensitivity(LINE, X, Y, of="weights"), "of = 'weights'"),
        (lambda: curvature.sensitivity(LINE, X, Y[:3]), "20 examples and 3 labels"),
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
        (lambda: curvature.levenberg_marquardt([LINE], X, Y, damping=0), "damping = 0"),
        (lambda: curvature.levenberg_marquardt([LINE], X, Y[:2]), "20 examples and 2 labels"),
        (lambda: curvature.levenberg_marquardt([LINE], X, torch.zeros(20, dtype=torch.int64)), "targets must be"),
    ],
)
def test_bad_input_is_named(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
