"""labutils.backprop against autograd, central differences and the formulas of the derivation."""

from __future__ import annotations

import copy
from collections import OrderedDict
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from labutils import models
from labutils.backprop import ACTIVATIONS, backpropagate, central_differences, relative_residual

LAYERS = {
    "identity": nn.Identity(),
    "tanh": nn.Tanh(),
    "sigmoid": nn.Sigmoid(),
    "relu": nn.ReLU(),
    "relu in place": nn.ReLU(inplace=True),
    "leaky relu": nn.LeakyReLU(),
    "leaky relu in place": nn.LeakyReLU(0.3, inplace=True),
    "negative leaky relu": nn.LeakyReLU(-0.5),
    "softplus": nn.Softplus(),
    "steep softplus": nn.Softplus(beta=3, threshold=1),
    "gelu": nn.GELU(),
    "gelu tanh": nn.GELU(approximate="tanh"),
}
SMOOTH = ["identity", "tanh", "sigmoid", "softplus", "gelu", "gelu tanh"]


def reference_loss(outputs: Tensor, y: Tensor, loss: str) -> Tensor:
    if loss == "cross_entropy":
        return F.cross_entropy(outputs, y)
    if y.dtype == torch.int64:
        y = F.one_hot(y, outputs.shape[1]).to(outputs.dtype)
    if loss == "squared_error":
        return F.mse_loss(outputs, y, reduction="sum") / len(y)
    return F.mse_loss(outputs, y)


def autograd(model: nn.Module, x: Tensor, y: Tensor, loss: str) -> tuple[Tensor, dict[str, Tensor]]:
    """The same with autograd, which cannot always go back through an activation in place."""
    model = copy.deepcopy(model)
    for layer in model.modules():
        if hasattr(layer, "inplace"):
            layer.inplace = False
    parameters = dict(model.named_parameters())
    value = reference_loss(model(x), y, loss)
    return value.detach(), dict(zip(parameters, torch.autograd.grad(value, parameters.values()), strict=True))


def assert_equals_autograd(model: nn.Module, x: Tensor, y: Tensor, loss: str, tolerance: float = 1e-12) -> None:
    value, gradients = backpropagate(model, x, y, loss)
    expected_value, expected = autograd(model, x, y, loss)
    assert list(gradients) == list(expected)  # names and order
    torch.testing.assert_close(value, expected_value, rtol=tolerance, atol=0)
    for name, gradient in gradients.items():
        assert gradient.shape == expected[name].shape
        assert gradient.dtype == expected[name].dtype
        assert relative_residual(gradient, expected[name]) <= tolerance, name


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def labels(n: int, classes: int, seed: int = 0) -> Tensor:
    return torch.randint(0, classes, (n,), generator=torch.Generator().manual_seed(seed))


@st.composite
def problems(draw: st.DrawFn, activations: list[str] | None = None) -> tuple[nn.Sequential, Tensor, Tensor, str]:
    names = st.sampled_from(activations or sorted(LAYERS))
    widths = draw(st.lists(st.integers(1, 6), min_size=2, max_size=5))
    seed = draw(st.integers(0, 10**6))
    torch.manual_seed(seed)

    layers: list[nn.Module] = []
    image = draw(st.booleans())
    if image:
        layers.append(nn.Flatten())
    if draw(st.booleans()):
        layers.append(LAYERS[draw(names)])
    for fan_in, fan_out in pairwise(widths):
        layers.append(nn.Linear(fan_in, fan_out, bias=draw(st.booleans())))
        layers += [LAYERS[draw(names)] for _ in range(draw(st.integers(0, 2)))]
    if len(layers) > 1 and draw(st.booleans()):
        cut = draw(st.integers(1, len(layers) - 1))
        layers = [nn.Sequential(*layers[:cut]), nn.Sequential(nn.Sequential(), *layers[cut:])]
    model = nn.Sequential(*layers).double()

    n = draw(st.integers(1, 5))
    x = draw(st.sampled_from([0.0, 1.0, 2.0])) * noise(n, widths[0], seed=seed)
    loss = draw(st.sampled_from(["squared_error", "mse", "cross_entropy"]))
    is_target = loss != "cross_entropy" and draw(st.booleans())
    y = noise(n, widths[-1], seed=seed + 1) if is_target else labels(n, widths[-1], seed)
    return model, x[:, None, :, None] if image else x, y, loss


@settings(max_examples=300)
@given(problems())
def test_equals_autograd(problem: tuple[nn.Sequential, Tensor, Tensor, str]) -> None:
    assert_equals_autograd(*problem)


@settings(max_examples=40)
@given(problems(SMOOTH))
def test_equals_central_differences(problem: tuple[nn.Sequential, Tensor, Tensor, str]) -> None:
    model, x, y, loss = problem
    x = x.clamp(-2, 2)
    _, gradients = backpropagate(model, x, y, loss)
    approximate = central_differences(model, x, y, loss, eps=1e-5)
    assert list(approximate) == list(gradients)
    for name, gradient in gradients.items():
        torch.testing.assert_close(approximate[name], gradient, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("widths", [(2, 3, 2), (576, 16, 10)], ids=str)
def test_the_formulas_of_the_document(widths: tuple[int, int, int]) -> None:
    """δ[L] = −2 (y − ŷ) ⊙ f′, δ[l] = (Wᵀ δ[l+1]) ⊙ f′, dW = δ aᵀ, db = δ; one example at a time, then the mean."""
    model = models.mlp(widths, "tanh", output_activation="tanh").double()
    x, y = noise(5, widths[0]), noise(5, widths[-1], seed=1)
    w1, b1, w2, b2 = (p.detach() for p in model.parameters())
    expected = [torch.zeros_like(p) for p in (w1, b1, w2, b2)]
    for a0, target in zip(x, y, strict=True):
        a1 = torch.tanh(w1 @ a0 + b1)
        a2 = torch.tanh(w2 @ a1 + b2)
        delta2 = -2 * (target - a2) * (1 - a2**2)
        delta1 = (w2.T @ delta2) * (1 - a1**2)
        for total, part in zip(expected, (delta1.outer(a0), delta1, delta2.outer(a1), delta2), strict=True):
            total += part / len(x)
    _, gradients = backpropagate(model, x, y)
    for gradient, reference in zip(gradients.values(), expected, strict=True):
        assert relative_residual(gradient, reference) <= 1e-14
    assert_equals_autograd(model, x, y, "squared_error")


# the table of activations


def test_every_activation_of_models_is_known() -> None:
    assert set(models.ACTIVATIONS.values()) <= set(ACTIVATIONS)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_derivatives_are_those_of_autograd_at_kinks_and_far_out_too(name: str, dtype: torch.dtype) -> None:
    layer = LAYERS[name]
    z = torch.cat([torch.linspace(-9, 9, 181), torch.tensor([-1e4, -80.0, -0.0, 0.0, 1e-30, 80.0, 1e4])]).to(dtype)
    z.requires_grad_()
    a = layer(z.clone())
    (expected,) = torch.autograd.grad(a.sum(), z)
    with torch.no_grad():
        actual = ACTIVATIONS[type(layer)](layer, z, a)
    assert actual.dtype == dtype
    torch.testing.assert_close(actual, expected, rtol=0, atol=64 * torch.finfo(dtype).eps)  # GELU cancels far out


# what stays as it is


def test_uses_no_autograd_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("autograd was used")

    monkeypatch.setattr(torch.autograd, "grad", refuse)
    monkeypatch.setattr(torch.autograd, "backward", refuse)
    monkeypatch.setattr(Tensor, "backward", refuse)
    model = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 3), nn.ReLU(inplace=True), nn.Linear(3, 2)).double()
    before = [p.detach().clone() for p in model.parameters()]
    x, y = noise(6, 4).requires_grad_(), noise(6, 2, seed=1)
    x_before, y_before = x.detach().clone(), y.clone()
    loss, gradients = backpropagate(model, x, y)
    assert not loss.requires_grad
    assert loss.shape == ()
    assert not any(gradient.requires_grad for gradient in gradients.values())
    assert all(p.grad is None and torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
    assert torch.equal(x, x_before)
    assert torch.equal(y, y_before)


def test_frozen_parameters_have_gradients_too() -> None:
    model, frozen = (models.mlp((3, 4, 2)).double() for _ in range(2))
    case = noise(5, 3), labels(5, 2), "cross_entropy"
    torch.testing.assert_close(backpropagate(frozen.requires_grad_(False), *case), backpropagate(model, *case))


# shapes of models


class Net(nn.Sequential):
    """Only names a sequence."""


def shapes() -> dict[str, nn.Sequential]:
    shared, tied = nn.Linear(3, 3), nn.Sequential(nn.Linear(3, 3, bias=False), nn.Tanh(), nn.Linear(3, 3))
    tied[2].weight = tied[0].weight
    inner = nn.Sequential(OrderedDict(first=nn.Linear(3, 3), act=nn.Tanh(), second=nn.Linear(3, 2)))
    return {
        "a layer used twice": nn.Sequential(shared, nn.Tanh(), shared, nn.Sequential(nn.Linear(3, 2), nn.Identity())),
        "tied weights": tied.append(nn.Linear(3, 2)),
        "names": nn.Sequential(OrderedDict(flat=nn.Flatten(), body=inner)),
        "a subclass": Net(nn.Linear(3, 2), nn.Sigmoid()),
    }


@pytest.mark.parametrize("name", shapes())
def test_models_of_any_shape(name: str) -> None:
    case = shapes()[name].double(), noise(4, 3), noise(4, 2, seed=1), "mse"
    assert_equals_autograd(*case)  # a parameter used twice has the sum of its gradients
    torch.testing.assert_close(central_differences(*case), backpropagate(*case)[1], rtol=1e-6, atol=1e-8)


def test_a_model_without_weights_has_no_gradients() -> None:
    loss, gradients = backpropagate(nn.Sequential(nn.Flatten(), nn.Tanh()), torch.zeros(2, 1, 3), torch.ones(2, 3))
    assert loss.item() == 3
    assert gradients == {}


@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
def test_float32_at_its_own_precision(loss: str) -> None:
    model = models.mlp((20, 16, 5))
    assert_equals_autograd(model, noise(30, 20).float(), labels(30, 5), loss, tolerance=1e-6)


# losses


def test_targets_take_the_precision_of_the_model() -> None:
    model = models.mlp((3, 2)).double()
    y = noise(5, 2, seed=1).float()
    torch.testing.assert_close(backpropagate(model, noise(5, 3), y), backpropagate(model, noise(5, 3), y.double()))


def test_cross_entropy_is_stable() -> None:
    model = nn.Sequential(nn.Linear(2, 3)).double()
    assert_equals_autograd(model, 1e6 * noise(5, 2), labels(5, 3), "cross_entropy")


# central differences


def test_central_differences_err_by_truncation_then_by_rounding() -> None:
    model = models.mlp((2, 3, 2), "tanh", output_activation="tanh").double()
    x, y = noise(1, 2), noise(1, 2, seed=1)
    exact = nn.utils.parameters_to_vector(backpropagate(model, x, y)[1].values())
    error = {}
    for exponent in (-1, -2, -5, -11, -12):
        differences = central_differences(model, x, y, eps=10.0**exponent)
        error[exponent] = relative_residual(nn.utils.parameters_to_vector(differences.values()), exact)
    assert error[-1] / error[-2] == pytest.approx(100, rel=0.1)  # ε²
    assert error[-5] < 1e-9
    assert error[-12] > error[-11] > 10 * error[-5]


def test_central_differences_of_more_weights_than_fit_a_chunk() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(2500, 2)).double()
    case = model, noise(3, 50, 50), labels(3, 2), "cross_entropy"
    torch.testing.assert_close(central_differences(*case), backpropagate(*case)[1], rtol=1e-6, atol=1e-8)


def test_central_differences_take_any_network() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(8, 3)).double()
    x, y = noise(2, 1, 4, 4), labels(2, 3)
    _, expected = autograd(model, x, y, "cross_entropy")
    torch.testing.assert_close(central_differences(model, x, y, "cross_entropy"), expected, rtol=1e-5, atol=1e-7)


# residual


def test_relative_residual() -> None:
    a = noise(3, 4)
    assert relative_residual(a, a) == 0
    assert relative_residual(a, -a) == pytest.approx(1)
    assert relative_residual(a, 2 * a) == pytest.approx(1 / 3)
    for scale in (1e-300, 1e-30, 1e30, 1e300):
        assert relative_residual(scale * a, 2 * scale * a) == pytest.approx(1 / 3)
    assert relative_residual(1e-30 * a.float(), -1e-30 * a.float()) == pytest.approx(1)
    assert relative_residual(a.bfloat16(), a.bfloat16()) == 0
    assert relative_residual(torch.ones(0), torch.ones(0)) == 0
    assert relative_residual(torch.zeros(2), torch.zeros(2)) == 0
    with pytest.raises(ValueError, match=r"\(3, 4\) and \(4, 3\) differ"):
        relative_residual(a, a.T)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_no_residual_with_nan_or_infinity_passes_a_check(bad: float) -> None:
    for a, b in (([bad, 1.0], [1.0, 1.0]), ([1.0, bad], [1.0, bad]), ([0.0, 0.0], [0.0, bad])):
        assert relative_residual(torch.tensor(a), torch.tensor(b)) == float("inf")


# refusals


class OddLinear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class OddSequential(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(nn.Conv2d(1, 2, 2)), r"layer '0', Conv2d\(1, 2.*not supported.*Linear, Flatten.*Tanh"),
        (nn.Sequential(nn.Flatten(), nn.Linear(4, 4), nn.Dropout(0.5)), r"layer '2', Dropout\(p=0.5"),
        (nn.Sequential(nn.Flatten(), nn.Sequential(nn.Linear(4, 2), nn.Softmax(1))), r"layer '1.1', Softmax\(dim=1"),
        (nn.Sequential(nn.Flatten(), nn.BatchNorm1d(4)), r"layer '1', BatchNorm1d"),
        (nn.Sequential(nn.Flatten(), OddLinear(4, 2)), r"layer '1', OddLinear"),
        (nn.Sequential(nn.Flatten(), OddSequential(nn.Linear(4, 4))), r"layer '1', OddSequential"),
        (nn.Sequential(nn.Flatten(0), nn.Linear(12, 2)), r"layer '0', Flatten\(start_dim=0"),
        (nn.Sequential(nn.Linear(4, 2)), r"layer '0' \(Linear\) takes \(N, 4\).*\(3, 1, 2, 2\).*nn.Flatten"),
        (nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Linear(2, 2)), r"layer '2' \(Linear\) takes \(N, 2\)"),
        (nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).double(), r"float64, but its input is.*float32"),
        (nn.Sequential(nn.Tanh()), r"outputs are \(3, 1, 2, 2\)"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_refuses_models_it_cannot_handle(model: nn.Module, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        backpropagate(model, torch.zeros(3, 1, 2, 2), torch.zeros(3, 2))


@pytest.mark.parametrize(
    ("y", "loss", "message"),
    [
        (torch.zeros(4, 2), "cross_entropy", r"cross_entropy takes labels \(N,\) int64.*\(4, 2\) torch.float32"),
        (torch.zeros(4), "cross_entropy", r"cross_entropy takes labels \(N,\) int64"),
        (torch.zeros(4, 1, dtype=torch.int64), "cross_entropy", r"cross_entropy takes labels \(N,\) int64"),
        (torch.zeros(4, dtype=torch.int32), "cross_entropy", r"torch.int32"),
        (torch.tensor([0, 1, 2, 1]), "cross_entropy", "labels go from 0 to 2, but 2 outputs stand for 0 to 1"),
        (torch.tensor([0, 1, -1, 1]), "mse", "labels go from -1 to 1"),
        (torch.zeros(4), "mse", r"mse takes targets \(4, 2\) or labels \(4,\) int64; y is \(4,\)"),
        (torch.zeros(4, 2, dtype=torch.int64), "mse", r"mse takes targets \(4, 2\)"),
        (torch.zeros(4, 3), "mse", r"mse takes targets \(4, 2\)"),
        (torch.zeros(4, 1), "squared_error", r"squared_error takes targets \(4, 2\)"),
        (torch.zeros(3, 2), "mse", r"outputs are \(4, 2\) and y is \(3, 2\)"),
        (torch.tensor(0), "mse", r"outputs are \(4, 2\) and y is \(\)"),
        (torch.zeros(4, 2), "l1", "loss 'l1' is unknown; take 'squared_error', 'mse', 'cross_entropy'"),
    ],
    ids=lambda value: str(tuple(value.shape)) if isinstance(value, Tensor) else None,
)
def test_refuses_targets_that_do_not_fit(y: Tensor, loss: Any, message: str) -> None:
    for compute in (backpropagate, central_differences):
        with pytest.raises(ValueError, match=message):
            compute(nn.Sequential(nn.Linear(3, 2)), torch.zeros(4, 3), y, loss)


def test_refuses_an_empty_batch_and_a_step_that_is_none() -> None:
    model = nn.Sequential(nn.Linear(3, 2))
    with pytest.raises(ValueError, match="N ≥ 1"):
        backpropagate(model, torch.zeros(0, 3), torch.zeros(0, 2))
    for eps in (0, -1e-4, float("nan")):
        with pytest.raises(ValueError, match="eps is"):
            central_differences(model, torch.zeros(1, 3), torch.zeros(1, 2), eps=eps)
