"""Second derivatives against torch's own, and the large networks against the clock of their gradients."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from labutils import curvature, functions, models
from tests.benchmarks import Row, seconds, side_by_side


def rows() -> Iterator[Row]:
    """Yield one row a comparison."""
    yield dense_hessian()
    yield many_hessians()
    yield extremes()
    yield sensitivity_of("loss")
    yield sensitivity_of("logits")


def dense_hessian() -> Row:
    """torch.autograd.functional.hessian over ours, for the 572-parameter network on 300 points in float64."""
    x, y = (t.double() for t in functions.sample("sinc", 300, -1, 1))
    model = models.build("fit-1").double()
    flat, value = _flat(model, x, y)

    def loss(network: curvature.Network) -> Tensor:
        return F.mse_loss(network(x), y)

    expected = torch.autograd.functional.hessian(value, flat)
    error = ((curvature.hessian(loss, model) - expected).abs().max() / expected.abs().max()).item()
    ratio = side_by_side(
        lambda: torch.autograd.functional.hessian(value, flat), lambda: curvature.hessian(loss, model), rounds=15
    )
    note = f"572 parameters, 300 points, float64, largest relative difference {error:.1e}"
    return Row("autograd.functional.hessian / curvature.hessian", ratio, 3, True, note)


def many_hessians(k: int = 100) -> Row:
    """A loop of torch's Hessians over one call of ours, for networks of 31 parameters."""
    x, y = (t.double() for t in functions.sample("sinc", 100, -1, 1))
    networks = [models.mlp((1, 10, 1), "tanh", seed=s).double() for s in range(k)]
    prepared = [_flat(model, x, y) for model in networks]

    def loop() -> None:
        for flat, value in prepared:
            torch.autograd.functional.hessian(value, flat)

    def together() -> None:
        curvature.hessian(lambda network: F.mse_loss(network(x), y), networks)

    ratio = side_by_side(loop, together)
    return Row("loop of torch's Hessians / one call", ratio, 3, True, f"{k} networks of 31 parameters, float64")


def extremes() -> Row:
    """Both ends of the spectrum of the 269,322-parameter network on 10,000 examples: seconds, and gradients' worth."""
    model, x, y = _mlp()

    def loss(network: curvature.Network) -> Tensor:
        return F.cross_entropy(network(x), y)

    def gradient() -> None:
        torch.autograd.grad(loss(model), list(model.parameters()))

    gradient()
    one = min(seconds(gradient) for _ in range(3))
    took = seconds(lambda: curvature.extreme_eigenvalues(loss, model))
    note = f"269,322 parameters, 10,000 examples, float32: as long as {took / one:.0f} gradients"
    return Row("extreme eigenvalues, seconds", took, 60, False, note)


def sensitivity_of(what: str) -> Row:
    """Sensitivity of the 269,322-parameter network on 10,000 examples, in seconds."""
    model, x, y = _mlp()
    curvature.sensitivity(model, x, y, what)
    took = min(seconds(lambda: curvature.sensitivity(model, x, y, what)) for _ in range(3))
    return Row(f"sensitivity of the {what}, seconds", took, 3, False, "269,322 parameters, 10,000 examples")


def _mlp(n: int = 10_000) -> tuple[torch.nn.Module, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(n, 784, generator=generator), torch.randint(0, 10, (n,), generator=generator)
    return models.build("d1-mlp"), x, y


def _flat(model: torch.nn.Module, x: Tensor, y: Tensor) -> tuple:
    """Return the flattened parameters and the loss as a function of them, as torch's Hessian wants it."""
    names, shapes = zip(*[(name, p.shape) for name, p in model.named_parameters()], strict=True)
    sizes = [shape.numel() for shape in shapes]

    def value(flat: Tensor) -> Tensor:
        own = {n: p.view(s) for n, p, s in zip(names, flat.split(sizes), shapes, strict=True)}
        return F.mse_loss(functional_call(model, own, (x,)), y)

    return torch.nn.utils.parameters_to_vector(model.parameters()).detach(), value
