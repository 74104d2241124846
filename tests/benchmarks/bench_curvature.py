"""Curvature and sensitivity against torch's own and SciPy's ways, and against the products they consist of.

Each ratio is the other's time over ours: more is better, 1 is as fast. A limit cannot be passed: 1 would be reached by
a computation that consists of nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, jvp, vmap

from labutils import curvature, functions, models
from tests.benchmarks import Row, side_by_side

LARGE = "269,322 parameters, {:,} examples, float32"


def rows() -> Iterator[Row]:
    """Yield one row a comparison."""
    yield from dense_hessian()
    yield from many_hessians()
    yield from product()
    yield from extremes()
    yield from sensitivity_of("loss")
    yield from sensitivity_of("logits")


def dense_hessian() -> Iterator[Row]:
    """The Hessian of the 572-parameter network on 300 points in float64."""
    x, y = (t.double() for t in functions.sample("sinc", 300, -1, 1))
    model = models.build("fit-1").double()
    flat, value = _flat(model, x, y)

    def ours() -> Tensor:
        return curvature.hessian(lambda network: F.mse_loss(network(x), y), model)

    peers = {
        "torch.func.hessian": (lambda: torch.func.hessian(value)(flat), 1),
        "autograd.functional.hessian": (lambda: torch.autograd.functional.hessian(value, flat), 3),
    }
    for name, (peer, goal) in peers.items():
        expected = peer()
        error = ((ours() - expected).abs().max() / expected.abs().max()).item()
        note = f"572 parameters, 300 points, float64, largest relative difference {error:.1e}"
        yield Row(f"{name} / hessian", side_by_side(peer, ours, rounds=15), goal, True, note)


def many_hessians(k: int = 100) -> Iterator[Row]:
    """The Hessians of networks of 31 parameters: torch's own, mapped over all of them, or in a loop."""
    x, y = (t.double() for t in functions.sample("sinc", 100, -1, 1))
    networks = [models.mlp((1, 10, 1), "tanh", seed=s).double() for s in range(k)]
    stacked = torch.stack([_flat(model, x, y)[0] for model in networks])
    _, value = _flat(networks[0], x, y)
    together = vmap(torch.func.hessian(value))

    def ours() -> Tensor:
        return curvature.hessian(lambda network: F.mse_loss(network(x), y), networks)

    def loop() -> None:
        for flat in stacked:
            torch.autograd.functional.hessian(value, flat)

    assert torch.allclose(ours(), together(stacked)), "the two ways differ"
    note = f"{k} networks of 31 parameters, float64"
    yield Row("vmap(torch.func.hessian) / hessian", side_by_side(lambda: together(stacked), ours), 1, True, note)
    yield Row("loop of autograd.functional.hessian / hessian", side_by_side(loop, ours), 3, True, note)


def product() -> Iterator[Row]:
    """A Hessian-vector product of the 269,322-parameter network: torch's two ways."""
    model, x, y = _mlp()
    flat, value = _flat(model, x, y, F.cross_entropy)
    operator = curvature.hessian_operator(lambda network: F.cross_entropy(network(x), y), model)
    vector = torch.randn(len(flat), generator=torch.Generator().manual_seed(0))
    peers = {
        "autograd.functional.vhp": lambda: torch.autograd.functional.vhp(value, flat, vector)[1],
        "jvp(grad)": lambda: jvp(grad(value), (flat,), (vector,))[1],
    }
    for name, peer in peers.items():
        assert np.allclose(operator @ vector.numpy(), peer().numpy(), atol=1e-5), "the two products differ"
        ratio = side_by_side(peer, lambda: operator @ vector.numpy(), rounds=9)
        yield Row(f"{name} / Hessian-vector product", ratio, 1, True, LARGE.format(len(x)))


def extremes(n: int = 2_000) -> Iterator[Row]:
    """Both ends of the spectrum of the 269,322-parameter network: SciPy's Lanczos for each end; its products alone."""
    model, x, y = _mlp(n)
    flat, value = _flat(model, x, y, F.cross_entropy)
    start = np.random.default_rng(0).standard_normal(len(flat))

    def loss(network: nn.Module) -> Tensor:
        return F.cross_entropy(network(x), y)

    def peer() -> np.ndarray:
        def multiply(v: np.ndarray) -> np.ndarray:
            return torch.autograd.functional.vhp(value, flat, torch.as_tensor(v.ravel()).float())[1].numpy()

        operator = LinearOperator((len(flat),) * 2, matvec=multiply, dtype=np.float64)
        options = {"k": 1, "tol": 1e-3, "v0": start, "return_eigenvectors": False}
        return np.ravel([eigsh(operator, which=end, **options) for end in ("SA", "LA")])

    ends = curvature.extreme_eigenvalues(loss, model)
    theirs = peer()
    assert np.allclose(np.ravel(ends), theirs, atol=1e-3 * np.abs(theirs).max()), "the two spectra differ"
    ratio = side_by_side(peer, lambda: curvature.extreme_eigenvalues(loss, model), rounds=2)
    yield Row("eigsh of autograd.functional.vhp, each end / extreme_eigenvalues", ratio, 1, True, LARGE.format(n))

    make_operator, products = curvature.hessian_operator, []

    def timed_operator(loss: curvature.Loss, network: nn.Module) -> LinearOperator:
        operator = make_operator(loss, network)

        def multiply(vector: np.ndarray) -> np.ndarray:
            started = time.perf_counter()
            result = operator @ vector
            products.append(time.perf_counter() - started)
            return result

        return LinearOperator(operator.shape, matvec=multiply, dtype=operator.dtype)

    with mock.patch.object(curvature, "hessian_operator", timed_operator):
        started = time.perf_counter()
        curvature.extreme_eigenvalues(loss, model)
        took = time.perf_counter() - started
    note = f"{LARGE.format(n)}, {len(products)} products"
    yield Row("its products alone / extreme_eigenvalues", sum(products) / took, 0.75, True, note, "limit")


def sensitivity_of(what: str) -> Iterator[Row]:
    """Sensitivity of the 269,322-parameter network: torch's derivatives an example; the matrix products alone."""
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
    name = "vmap(grad)" if what == "loss" else "vmap(jacrev)"
    # Both consist of the same products, so they are equally fast up to how they are cut into batches.
    yield Row(
        f"{name} / sensitivity of the {what}", side_by_side(peer, ours, rounds=9), 0.8, True, LARGE.format(len(x))
    )
    ratio = side_by_side(products, ours, rounds=9)
    yield Row(
        f"its matrix products alone / sensitivity of the {what}", ratio, 0.65, True, LARGE.format(len(x)), "limit"
    )


def _mlp(n: int = 10_000) -> tuple[nn.Module, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(n, 784, generator=generator), torch.randint(0, 10, (n,), generator=generator)
    return models.build("d1-mlp"), x, y


def _flat(model: nn.Module, x: Tensor, y: Tensor, loss: Callable = F.mse_loss) -> tuple[Tensor, Callable]:
    """Return the flattened parameters and the loss as a function of them, as torch's Hessian wants it."""
    names, shapes = zip(*[(name, p.shape) for name, p in model.named_parameters()], strict=True)
    sizes = [shape.numel() for shape in shapes]

    def value(flat: Tensor) -> Tensor:
        own = {n: p.view(s) for n, p, s in zip(names, flat.split(sizes), shapes, strict=True)}
        return loss(functional_call(model, own, (x,)), y)

    return nn.utils.parameters_to_vector(model.parameters()).detach(), value
