"""Curvature and sensitivity against torch's own, against the products they consist of, and against the clock."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from scipy.sparse.linalg import LinearOperator
from torch import Tensor
from torch.func import functional_call, grad, jacrev, vmap

from labutils import curvature, functions, models
from tests.benchmarks import Row, seconds, side_by_side

LARGE = "269,322 parameters, 10,000 examples, float32"


def rows() -> Iterator[Row]:
    """Yield one row a comparison."""
    yield dense_hessian()
    yield many_hessians()
    yield product()
    yield from extremes()
    yield from sensitivity_of("loss")
    yield from sensitivity_of("logits")


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


def product() -> Row:
    """A Hessian-vector product of the 269,322-parameter network: torch's faster way (vhp) over ours."""
    model, x, y = _mlp()
    flat, value = _flat(model, x, y, F.cross_entropy)
    operator = curvature.hessian_operator(lambda network: F.cross_entropy(network(x), y), model)
    vector = torch.randn(len(flat), generator=torch.Generator().manual_seed(0))
    theirs = torch.autograd.functional.vhp(value, flat, vector)[1].numpy()
    assert np.allclose(operator @ vector.numpy(), theirs, atol=1e-5), "the two products differ"
    ratio = side_by_side(
        lambda: torch.autograd.functional.vhp(value, flat, vector), lambda: operator @ vector.numpy(), rounds=9
    )
    return Row("autograd.functional.vhp / Hessian-vector product", ratio, 1, True, LARGE)


def extremes() -> Iterator[Row]:
    """Both ends of the spectrum of the 269,322-parameter network: seconds, and over the products that they take."""
    model, x, y = _mlp()
    make_operator, products = curvature.hessian_operator, []

    def timed_operator(loss: curvature.Loss, network: torch.nn.Module) -> LinearOperator:
        operator = make_operator(loss, network)

        def product(vector: np.ndarray) -> np.ndarray:
            started = time.perf_counter()
            result = operator @ vector
            products.append(time.perf_counter() - started)
            return result

        return LinearOperator(operator.shape, matvec=product, dtype=operator.dtype)

    with mock.patch.object(curvature, "hessian_operator", timed_operator):
        took = seconds(lambda: curvature.extreme_eigenvalues(lambda n: F.cross_entropy(n(x), y), model))
    note = f"{LARGE}, {len(products)} products"
    yield Row("extreme eigenvalues, seconds", took, 60, False, note, "clock")
    yield Row("extreme eigenvalues / their products alone", took / sum(products), 1.3, False, note, "limit")


def sensitivity_of(what: str) -> Iterator[Row]:
    """Sensitivity of the 269,322-parameter network: seconds, torch's per-example derivatives, matrix products alone."""
    model, x, y = _mlp()
    weights = {name: p.detach() for name, p in model.named_parameters()}
    matrices = [p for p in weights.values() if p.dim() == 2]

    def ours() -> float:
        return curvature.sensitivity(model, x, y, what)

    def logits(example: Tensor) -> Tensor:
        return functional_call(model, weights, (example.unsqueeze(0),)).squeeze(0)

    def loss(example: Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(logits(example), label)

    def peer() -> float:
        # all Jacobians at once take gigabytes: a thousand at a time
        derivative = vmap(grad(loss))(x, y) if what == "loss" else vmap(jacrev(logits), chunk_size=1000)(x)
        return derivative.flatten(1).norm(dim=1).mean().item()

    def products() -> None:
        h = x
        for matrix in matrices:
            h = h @ matrix.T
        for _ in range(1 if what == "loss" else h.shape[1]):
            back = h
            for matrix in reversed(matrices):
                back = back @ matrix

    assert np.isclose(ours(), peer(), rtol=1e-5), "the two ways differ"
    took = min(seconds(ours) for _ in range(3))
    yield Row(f"sensitivity of the {what}, seconds", took, 3, False, LARGE, "clock")
    name = "vmap(grad)" if what == "loss" else "vmap(jacrev)"
    # Both consist of the same products, so they are equally fast up to how they are cut into batches.
    yield Row(f"{name} / sensitivity of the {what}", side_by_side(peer, ours, rounds=9), 0.8, True, LARGE)
    ratio = side_by_side(ours, products, rounds=9)
    yield Row(f"sensitivity of the {what} / its matrix products alone", ratio, 1.5, False, LARGE, "limit")


def _mlp(n: int = 10_000) -> tuple[torch.nn.Module, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(n, 784, generator=generator), torch.randint(0, 10, (n,), generator=generator)
    return models.build("d1-mlp"), x, y


def _flat(model: torch.nn.Module, x: Tensor, y: Tensor, loss: Callable = F.mse_loss) -> tuple:
    """Return the flattened parameters and the loss as a function of them, as torch's Hessian wants it."""
    names, shapes = zip(*[(name, p.shape) for name, p in model.named_parameters()], strict=True)
    sizes = [shape.numel() for shape in shapes]

    def value(flat: Tensor) -> Tensor:
        own = {n: p.view(s) for n, p, s in zip(names, flat.split(sizes), shapes, strict=True)}
        return loss(functional_call(model, own, (x,)), y)

    return torch.nn.utils.parameters_to_vector(model.parameters()).detach(), value
