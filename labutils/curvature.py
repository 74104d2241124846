"""Curvature: gradients and Hessians of a network's loss, exact where it is small, by products where it is large.

A Hessian is asked for as `hessian(loss, network)`, where `loss` says how the loss comes from a network:
`lambda network: F.mse_loss(network(x), y)`. Parameters are flattened in the order of `network.parameters()`.

Second derivatives amplify rounding: for eigenvalues near zero, use float64 networks and data (`network.double()`).
They are taken by all parameters, frozen ones included, which the gradient norm and the two minimizers leave out.
"""

from __future__ import annotations

import copy
import functools
import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor, nn
from torch.func import jacrev, vmap

from labutils import checkpoint as checkpoints
from labutils.stack import Stack, check_same, functional, mean_loss
from labutils.statistics import Interval, mean_interval
from labutils.training import eval_mode

Loss = Callable[[Any], Tensor]
"""How a loss () comes from a network, such as `lambda network: F.mse_loss(network(x), y)`.

The network that it gets is a copy in eval mode. A term in the weights themselves takes them from there, as
`network[0].weight` or `network.parameters()`: those of a network from outside are refused, since they do not vary.
"""

Models = nn.Module | Sequence[nn.Module]
"""One network, or several of one architecture."""

_BATCH = 1000  # examples whose gradients are taken at once
_DAMPING = 1e-2  # of Levenberg and Marquardt at first, relative to the largest diagonal entry of JᵀJ
_DENSE = 40  # parameters up to which the whole Hessian takes no more products than Lanczos
_POWER = 6  # steps of the power method that find the scale of a Hessian
_PRODUCTS = 32  # Hessian-vector products at once: more of them leave the cache
_SYMMETRIC = 1e-6  # largest difference between a Hessian and its transpose, relative to its largest entry


def gradient_norm(models: Models | Stack, x: Tensor, y: Tensor, loss: str = "mse") -> float | np.ndarray:
    """Compute the norm of the gradient of the mean loss by the parameters, ‖g‖ = (Σ_p ‖∂L/∂p‖²)^½.

    Args:
        models: a network, K networks of one architecture, or a `Stack` of them, as `on_epoch` of `training.fit` gets.
        x: examples (N, ...), all of which count, a batch of them at a time.
        y: labels (N,) or targets (N, outputs).
        loss: "mse" or "cross_entropy", as in `training.fit`.

    Returns:
        The norm; for several networks or a stack, an array (K,).

    Raises:
        ValueError: an unknown loss; labels or targets that do not fit the outputs; every parameter is frozen.

    Example:
        >>> line = nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.constant_(line.weight, 3.0)
        >>> gradient_norm(line, torch.tensor([[2.0]]), torch.tensor([[5.0]]))  # |2 (3·2 − 5) · 2|
        4.0
    """
    _check_examples(x, y)
    if not isinstance(models, Stack):
        networks = [models] if isinstance(models, nn.Module) else list(models)
        with eval_mode(*networks), Stack(networks, example=x[:2], batch_size=min(len(x), _BATCH)) as stack:
            norms = gradient_norm(stack, x, y, loss)
        return float(norms[0]) if isinstance(models, nn.Module) else norms
    total = torch.zeros_like(models.gradients)
    x, y = x.to(models.device, models.dtype), y.to(models.device)
    for xb, yb in zip(x.split(_BATCH), y.split(_BATCH), strict=True):
        models.backward(xb, yb, loss)
        total += models.gradients * (len(xb) / len(x))
    return torch.linalg.vector_norm(total, dim=1, dtype=torch.float64).cpu().numpy()


def hessian(loss: Loss, models: Models) -> Tensor:
    """Compute the exact Hessian (P, P) of a loss by all parameters of a network; (K, P, P) for K of one architecture.

    The gradient is differentiated once more, for many directions at a time. Of each pair of equal blocks only the one
    of the later layers is computed: it needs the shorter way through the network. The matrix is exactly symmetric.

    Raises:
        ValueError: networks that differ; a loss that is not one number, does not depend on the network it is given, or
            uses another one.

    Example:
        >>> line = nn.Linear(1, 1, bias=False)
        >>> hessian(lambda network: network(torch.tensor([[3.0]])).square().mean(), line)
        tensor([[18.]])
    """
    many = not isinstance(models, nn.Module)
    parameters, _, gradients = _Family(models if many else [models]).differentiate(loss)
    k, sizes = len(parameters[0]), [p[0].numel() for p in parameters]
    upper = parameters[0].new_zeros(k, sum(sizes), sum(sizes))
    starts, row = np.cumsum([0, *sizes]).tolist(), 0
    for i, (gradient, size) in enumerate(zip(gradients, sizes, strict=True)):
        rest = parameters[i:]
        basis = torch.eye(size, dtype=gradient.dtype, device=gradient.device)
        for vectors in basis.view(size, 1, *gradient.shape[1:]).split(max(1, _PRODUCTS // k)):
            vectors = vectors.expand(-1, *gradient.shape)
            if gradient.requires_grad:  # not so where it is constant, as for a loss linear in the parameter
                products = torch.autograd.grad(
                    gradient, rest, vectors, retain_graph=True, is_grads_batched=True, allow_unused=True
                )
                for start, p, product in zip(starts[i:-1], rest, products, strict=True):
                    if product is not None:  # as where the two parameters do not meet
                        block = product.flatten(2).transpose(0, 1)
                        upper[:, row : row + len(vectors), start : start + p[0].numel()] = block
            row += len(vectors)
    matrix = upper.triu() + upper.triu(1).mT
    return matrix if many else matrix[0]


def gauss_newton(models: Models, x: Tensor) -> Tensor:
    """Compute the Gauss–Newton matrix (P, P), or (K, P, P), of the mean squared error: 2 JᵀJ / (N · outputs).

    J holds the derivatives of all outputs by all parameters. The Hessian is this plus the residuals times the second
    derivatives of the outputs; JᵀJ alone has no negative eigenvalues.

    Source:
        Nocedal and Wright (2006), Numerical Optimization, section 10.3.

    Example:
        >>> gauss_newton(nn.Linear(1, 1, bias=False), torch.tensor([[3.0]]))
        tensor([[18.]])
    """
    many = not isinstance(models, nn.Module)
    family = _Family(models if many else [models])
    j = family.jacobian(family.flatten(family.parameters), x)
    matrix = 2 / j.shape[1] * (j.mT @ j)
    return matrix if many else matrix[0]


def eigenvalues(matrix: Tensor) -> np.ndarray:
    """Compute the eigenvalues (P,) of a Hessian (P, P), or (K, P) of many (K, P, P), in ascending order and float64.

    Raises:
        ValueError: a matrix that is not square, not real, not symmetric, or holds a value that is not finite.

    Example:
        >>> eigenvalues(torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
        array([-1.,  1.])
    """
    if matrix.dim() < 2 or matrix.shape[-1] != matrix.shape[-2] or matrix.numel() == 0 or matrix.is_complex():
        raise ValueError(
            f"a matrix {tuple(matrix.shape)} {matrix.dtype}: it must be square and real, (P, P) or (K, P, P)"
        )
    if not matrix.isfinite().all():
        bad = int((~matrix.isfinite()).sum())
        raise ValueError(f"{bad} entries of the matrix are NaN or infinite: did the training diverge?")
    matrix = matrix.double()
    skew, scale = (matrix - matrix.mT).abs().amax((-2, -1)), matrix.abs().amax((-2, -1))
    if (skew > _SYMMETRIC * scale).any():  # each by its own scale
        worst = (skew / scale).nan_to_num(0).argmax()
        raise ValueError(
            f"the matrix differs from its transpose by up to {skew.flatten()[worst]:.3g} (largest entry"
            f" {scale.flatten()[worst]:.3g}): a Hessian is symmetric, and another matrix's eigenvalues need not be real"
        )
    return torch.linalg.eigvalsh(matrix).cpu().numpy()


class SpectrumShares(NamedTuple):
    """Shares of a spectrum's eigenvalues by their sign; they add up to 1.

    Attributes:
        positive: share above the tolerance, the *minimal ratio*: 1 at a minimum without flat directions.
        zero: share within the tolerance.
        negative: share below: directions in which the loss falls.
    """

    positive: float | np.ndarray
    zero: float | np.ndarray
    negative: float | np.ndarray


def spectrum_shares(eigenvalues: ArrayLike, rtol: float = 1e-10) -> SpectrumShares:
    """Count the positive, zero and negative eigenvalues, with a tolerance relative to the largest eigenvalue.

    Args:
        eigenvalues: (P,), or (K, P) for K spectra.
        rtol: an eigenvalue within rtol times the spectrum's largest ``|λ|`` counts as zero, as rounding makes a tiny
            number of a flat direction's; 1e-4 does for float32.

    Returns:
        The three shares, each a number, or an array (K,).

    Raises:
        ValueError: no eigenvalues, some that are not finite, or a tolerance outside [0, 1).

    Example:
        >>> spectrum_shares([4.0, 1.0, 1e-15, -2.0])
        SpectrumShares(positive=0.5, zero=0.25, negative=0.25)
    """
    values = np.asarray(eigenvalues, dtype=np.float64)
    if values.ndim not in (1, 2) or values.size == 0:
        raise ValueError(f"eigenvalues of shape {values.shape}: (P,) or (K, P) are needed, with P ≥ 1")
    if not np.isfinite(values).all():
        raise ValueError(f"{np.count_nonzero(~np.isfinite(values))} eigenvalues are NaN or infinite")
    if not 0 <= rtol < 1:
        raise ValueError(f"rtol = {rtol}: a share of the largest |λ| is needed, such as 1e-10")
    tolerance = rtol * np.abs(values).max(axis=-1, keepdims=True)
    shares = ((values > tolerance).mean(-1), (np.abs(values) <= tolerance).mean(-1), (values < -tolerance).mean(-1))
    return SpectrumShares(*(float(share) if values.ndim == 1 else share for share in shares))


def hessian_operator(loss: Loss, model: nn.Module) -> LinearOperator:
    """Return the Hessian of a network too large for a matrix, as a (P, P) operator that multiplies numpy vectors.

    One product costs about as much as two gradients: the gradient's own graph is built once, of the present weights,
    and differentiated again in the direction of each vector.

    Source:
        Pearlmutter (1994), Neural Computation 6, 147-160.

    Example:
        >>> line = nn.Linear(1, 1, bias=False)
        >>> operator = hessian_operator(lambda network: network(torch.tensor([[3.0]])).square().sum(), line)
        >>> operator @ np.array([2.0])
        array([36.])
    """
    parameters, _, gradients = _Family([model]).differentiate(loss)
    flat = torch.cat([g.flatten() for g in gradients])

    def product(vector: np.ndarray) -> np.ndarray:
        if not flat.requires_grad:
            return np.zeros(len(flat))
        v = torch.as_tensor(np.ravel(vector)).to(flat)
        products = torch.autograd.grad(flat, parameters, v, retain_graph=True, materialize_grads=True)
        return torch.cat([p.flatten() for p in products]).double().cpu().numpy()

    return LinearOperator((len(flat), len(flat)), matvec=product, rmatvec=product, dtype=np.float64)


class Extremes(NamedTuple):
    """Both ends of a spectrum: the least eigenvalues (k,) and the greatest (k,), each ascending."""

    lowest: np.ndarray
    highest: np.ndarray


def extreme_eigenvalues(loss: Loss, model: nn.Module, k: int = 1, *, tol: float = 1e-3, seed: int = 0) -> Extremes:
    """Compute the extreme eigenvalues of a network's Hessian without the matrix, by the Lanczos method.

    Args:
        loss: how the loss comes from a network, see `Loss`.
        model: a network with P parameters.
        k: eigenvalues at each end, below P.
        tol: error that is allowed, relative to the largest ``|λ|``.
        seed: seed of the vector to begin with.

    Raises:
        ValueError: k is not between 1 and P − 1, the Hessian is not finite, or a loss that `hessian` refuses.
        scipy.sparse.linalg.ArpackNoConvergence: the eigenvalues did not settle.

    Example:
        >>> bowl = nn.Linear(3, 1, bias=False)
        >>> scale = torch.tensor([[1.0, 2.0, 3.0]])
        >>> ends = extreme_eigenvalues(lambda network: (network(torch.eye(3)) * scale.T).square().sum(), bowl)
        >>> ends.lowest.round(3), ends.highest.round(3)
        (array([2.]), array([18.]))
    """
    operator = hessian_operator(loss, model)
    p = operator.shape[0]
    if not 1 <= k < p:
        raise ValueError(f"k = {k}: a network of {p} parameters has 1 to {p - 1} eigenvalues to ask for")
    vector = np.random.default_rng(seed).standard_normal(p)
    size = 1.0
    for _ in range(_POWER):  # steps of the power method, from below to the largest |λ|
        vector = operator @ (vector / size)
        size = float(np.linalg.norm(vector))
        if not math.isfinite(size):
            raise ValueError("the Hessian has values that are NaN or infinite: did the training diverge?")
        if size == 0:
            return Extremes(np.zeros(k), np.zeros(k))
    if p <= max(2 * k, _DENSE):
        dense = operator @ np.eye(p)
        found = np.linalg.eigvalsh((dense + dense.T) / 2)
    else:
        # Lanczos finds both ends at once. Moved up by twice the largest |λ|, no eigenvalue is near 0, and ARPACK's
        # tolerance, which is relative to each of them, becomes one relative to the largest |λ|.
        moved = LinearOperator((p, p), lambda v: operator @ np.ravel(v) + 2 * size * np.ravel(v), dtype=np.float64)
        ends = eigsh(moved, 2 * k, which="BE", v0=vector, tol=tol / 3, return_eigenvectors=False)
        found = np.sort(ends) - 2 * size
    return Extremes(found[:k], found[-k:])


def hessian_trace(loss: Loss, model: nn.Module, samples: int = 30, *, seed: int = 0) -> Interval:
    """Estimate the sum of the Hessian's eigenvalues from products with 2 or more random signs, E[vᵀHv] = tr H.

    Returns:
        The estimate with its 95 % interval, which narrows with the square root of the samples.

    Source:
        Hutchinson (1990), Communications in Statistics 19, 433-450.

    Example:
        >>> line = nn.Linear(1, 1, bias=False)
        >>> hessian_trace(lambda network: network(torch.tensor([[3.0]])).square().sum(), line).mean
        18.0
    """
    if samples < 2:
        raise ValueError(f"samples = {samples}: 2 or more are needed for an interval")
    operator = hessian_operator(loss, model)
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=(samples, operator.shape[0]))
    return mean_interval([v @ (operator @ v) for v in signs])


def sensitivity(model: nn.Module, x: Tensor, y: Tensor, of: str = "loss") -> float:
    """Compute how much a network's loss, or its output, changes with its input, averaged over examples.

    It is the mean over examples of the Frobenius norm of the derivative by the input: of the example's loss, a
    vector, or of its outputs, the Jacobian. The network is in eval mode, and no example must depend on another.

    Args:
        model: a network with outputs (N, outputs).
        x: examples (N, ...).
        y: labels (N,), for cross-entropy, or targets (N, outputs), for the squared error averaged over outputs.
        of: "loss"; "logits", the outputs as the network gives them; or "probabilities", their softmax, which the
            notebooks take as a classifier's output. A network that ends in an `nn.Softmax` gives these already.

    Returns:
        The mean norm, per unit of the (normalized) input.

    Raises:
        ValueError: unknown `of`, or labels or targets that do not fit the examples or the outputs.

    Source:
        Novak et al. (2018), Sensitivity and generalization in neural networks: the norm of the input-output Jacobian.

    Example:
        >>> line = nn.Linear(2, 1, bias=False)
        >>> _ = line.weight.data.copy_(torch.tensor([[3.0, 4.0]]))
        >>> sensitivity(line, torch.zeros(5, 2), torch.zeros(5, 1), of="logits")
        5.0
    """
    if of not in ("loss", "logits", "probabilities"):
        raise ValueError(f"of = {of!r}: sensitivity of 'loss', 'logits' or 'probabilities'")
    _check_examples(x, y)
    normalized = isinstance(list(model.modules())[-1], nn.Softmax)
    total = 0.0
    with eval_mode(model), torch.enable_grad():
        for xb, yb in zip(x.to(next(model.parameters(), x)).split(_BATCH), y.split(_BATCH), strict=True):
            xb = xb.detach().requires_grad_()
            outputs = model(xb)
            # The sum over examples gives each example its own gradient: none depends on another's input.
            if of == "loss":
                yb = yb.to(outputs if yb.is_floating_point() else outputs.device)
                values = [mean_loss(outputs, yb, "mse" if yb.is_floating_point() else "cross_entropy") * len(xb)]
            else:
                shown = outputs.softmax(1) if of == "probabilities" and not normalized else outputs
                values = [column.sum() for column in shown.flatten(1).unbind(1)]
            gradients = (torch.autograd.grad(value, xb, retain_graph=len(values) > 1)[0] for value in values)
            squares = sum(torch.linalg.vector_norm(each.flatten(1), dim=1).double().square() for each in gradients)
            total += squares.sqrt().sum().item()
    return total / len(x)


def sharpness(loss: Loss, model: nn.Module, rho: float = 0.05, *, steps: int = 20) -> float:
    """Compute how far the loss rises, at worst, when every weight may change in proportion to its size.

    The maximum of ``L(θ + |θ| ⊙ u) − L(θ)`` over ‖u‖ ≤ ρ, searched by some steps of projected gradient ascent: a lower
    bound. Rescaling a layer and its successor leaves it the same. Where the gradient is 0, the ascent starts in a
    fixed direction.

    Returns:
        The rise, 0 or more, in units of the loss; infinite if the ascent meets a loss that is not finite.

    Raises:
        ValueError: a radius that is not positive, or no steps; a loss that is not finite, or that `hessian` refuses.

    Source:
        Kwon et al. (2021), ASAM, definition 2, here with the squared norm.

    Example:
        >>> line = nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.constant_(line.weight, 2.0)
        >>> round(sharpness(lambda network: network(torch.ones(1, 1)).square().sum(), line, rho=0.5), 4)  # 3² − 2²
        5.0
    """
    if not rho > 0 or steps < 1:
        raise ValueError(f"rho = {rho}, steps = {steps}: both must be positive")
    family = _Family([model])
    _, values, gradients = family.differentiate(loss)
    base = highest = values.item()
    if not math.isfinite(base):
        raise ValueError(f"the loss is {base}: did the training diverge?")
    weights = family.flatten(family.parameters)[0]
    slope = weights.abs() * torch.cat([g.detach().flatten() for g in gradients])
    if not slope.any():
        generator = torch.Generator().manual_seed(0)
        slope = weights.abs() * torch.randn(len(weights), generator=generator).to(weights)
    u = torch.zeros_like(weights)
    for _ in range(steps):
        # Steps as long as the radius turn on the border as the power method does, but half as far.
        u = u + rho * slope / slope.norm().clamp_min(torch.finfo(slope.dtype).tiny)
        u = (u * (rho / u.norm()).clamp_max(1.0)).requires_grad_()
        (value,) = family.losses(loss, family.unflatten((weights + weights.abs() * u).unsqueeze(0)))
        if not value.isfinite():
            return math.inf
        highest = max(highest, value.item())
        (slope,) = torch.autograd.grad(value, u)
        u = u.detach()
    return highest - base


def minimize_gradient(
    loss: Loss,
    models: Sequence[nn.Module],
    *,
    steps: int,
    lr: float = 1e-3,
    checkpoint: str | Path | None = None,
) -> np.ndarray:
    """Train networks on the squared norm of their gradient, ½ ‖∇L‖², instead of the loss: double backpropagation.

    Its gradient is H ∇L, so that it leads to the nearest point of zero gradient, minimum or saddle.

    Args:
        loss: how the loss comes from a network, see `Loss`.
        models: K networks of one architecture; their weights change in place.
        steps: steps of Adam.
        lr: its learning rate at first, which falls to zero along a half cosine.
        checkpoint: file to continue from, and to save to, see `training.fit`.

    Returns:
        ‖∇L‖ of each network (K, steps + 1), before each step and at the end.

    Raises:
        ValueError: no networks, no steps, or a learning rate that is not positive; a loss that `hessian` refuses; a
            checkpoint of another computation.

    Example:
        >>> line = nn.Linear(1, 1, bias=False).double()
        >>> norms = minimize_gradient(lambda network: network(torch.ones(1, 1).double()).square().sum(), [line],
        ...     steps=200, lr=0.1)
        >>> norms.shape, bool(norms[0, -1] < 1e-3)
        ((1, 201), True)
    """
    if not models or steps < 1 or not lr > 0:
        raise ValueError(f"{len(models)} models, steps = {steps}, lr = {lr}: all must be positive")
    family = _Family(models)
    started = family.differentiate(loss)
    kept = nn.ParameterList(family.parameters)
    parameters, trained = list(kept), [p for p, free in zip(kept, family.trainable, strict=True) if free]
    optimizer = torch.optim.Adam(trained, lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    at = checkpoints.Values(step=0, norms=torch.empty(len(models), steps + 1, dtype=torch.float64))

    def settings() -> dict[str, Any]:
        # A function has no bytes to compare, so its values and gradients stand for it and for its data.
        bound = {"steps": steps, "lr": lr, "initial_weights": started[0], "loss": [loss, *started[1:]]}
        return {"computation": "curvature.minimize_gradient"} | bound | family.described()

    state = {"at": at, "parameters": kept, "optimizer": optimizer, "schedule": schedule}
    with checkpoints.bind(checkpoint, state, settings) as saved:
        for step in range(at.step, steps + 1):
            saved.keep()
            values = family.losses(loss, parameters)
            gradients = torch.autograd.grad(values.sum(), trained, create_graph=True, materialize_grads=True)
            squares = sum(g.flatten(1).square().sum(1) for g in gradients)
            norms = squares.detach().sqrt()
            at.norms[:, step] = norms
            resting = ~(norms > 0)  # at a point of zero gradient, or diverged
            if step == steps or resting.all():
                at.norms[:, step:] = at.norms[:, step : step + 1]
                break
            rested = [p.detach()[resting] for p in trained] if resting.any() else []
            for p, g in zip(trained, torch.autograd.grad(squares.sum() / 2, trained), strict=True):
                p.grad = g
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                for p, old in zip(trained, rested, strict=False):
                    p[resting] = old
            at.step = step + 1
        at.step = steps + 1
        saved.keep(now=True)
    family.write_back(parameters)
    return at.norms.numpy()


def levenberg_marquardt(
    models: Sequence[nn.Module],
    x: Tensor,
    y: Tensor,
    *,
    steps: int = 100,
    checkpoint: str | Path | None = None,
) -> np.ndarray:
    """Train networks on the mean squared error by the Levenberg–Marquardt method, all of them at once.

    Each step solves (JᵀJ + μI) δ = −Jᵀr with the derivatives J of the residuals r: Gauss–Newton, damped. A step that
    lowers the loss is taken, and μ falls to a third; another one is not, and μ is tripled.

    Args:
        models: K networks of one architecture; their weights change in place.
        x: examples (N, ...).
        y: targets (N, outputs).
        steps: steps that are tried.
        checkpoint: file to continue from, and to save to, see `training.fit`.

    Returns:
        ‖∇L‖ of each network (K, steps + 1), before each step and at the end.

    Raises:
        ValueError: no networks, no steps, or targets that do not fit; a checkpoint of another computation.

    Source:
        Marquardt (1963), SIAM Journal 11, 431-441; Nocedal and Wright (2006), section 10.3.

    Example:
        >>> line = nn.Linear(1, 1).double()
        >>> x = torch.linspace(-1, 1, 5).double().unsqueeze(1)
        >>> norms = levenberg_marquardt([line], x, 2 * x + 1, steps=20)
        >>> bool(norms[0, -1] < 1e-9), round(line.weight.item(), 6)
        (True, 2.0)
    """
    if not models or steps < 1:
        raise ValueError(f"{len(models)} models, steps = {steps}: both must be positive")
    _check_examples(x, y)
    family = _Family(models)
    weights = family.flatten(family.parameters)
    free = family.flatten([torch.full_like(p[:1], t) for p, t in zip(family.parameters, family.trainable, strict=True)])
    at = checkpoints.Values(step=0, weights=weights, norms=torch.empty(len(models), steps + 1, dtype=torch.float64))
    at.r, at.j = family.residuals(at.weights, x, y), family.jacobian(at.weights, x)
    at.j[~at.r.isfinite().all(1)] = 0  # such a network cannot move, and the others do not wait for it
    at.j *= free
    largest = at.j.square().sum(1).amax(1)  # the diagonal of JᵀJ
    largest = torch.where(largest > 0, largest, 1.0)
    at.mu = _DAMPING * largest

    def settings() -> dict[str, Any]:
        bound = {"steps": steps, "initial_weights": weights, "buffers": family.buffers, "data": [x, y]}
        return {"computation": "curvature.levenberg_marquardt"} | bound | family.described()

    with checkpoints.bind(checkpoint, {"at": at}, settings) as saved:
        for step in range(at.step, steps + 1):
            saved.keep()
            slope = (at.j.mT @ at.r.unsqueeze(2)).squeeze(2)
            norm = slope.norm(dim=1) * 2 / at.r.shape[1]
            at.norms[:, step] = norm
            if step == steps or not (norm > 0).any():
                at.norms[:, step:] = at.norms[:, step : step + 1]
                break
            candidate = at.weights - _damped_least_squares(at.j, at.r, at.mu)
            new = family.residuals(candidate, x, y)
            better = (new.square().sum(1) < at.r.square().sum(1)) & (norm > 0)
            at.weights = torch.where(better.unsqueeze(1), candidate, at.weights)
            at.r = torch.where(better.unsqueeze(1), new, at.r)
            at.mu = torch.where(better, at.mu / 3, at.mu * 3).clamp(1e-14 * largest, 1e14 * largest)
            if better.any():  # where the step was refused, J is still the right one
                at.j[better] = family.jacobian(at.weights, x, better) * free
            at.step = step + 1
        at.step, at.j = steps + 1, None
        saved.keep(now=True)
    family.write_back(family.unflatten(at.weights))
    return at.norms.numpy()


class _Applied(nn.Module):
    """A network, whose call applies a function to it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, function: Loss) -> Tensor:
        return function(self.network)


class _Family:
    """K networks of one architecture, as one network that takes the parameters (K, ...) and the buffers of each.

    That one is a copy in eval mode: a parameter that a loss finds elsewhere is none of its own.
    """

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        check_same(networks)
        settings = [[_settings(layer) for layer in network.modules()] for network in networks]
        if any(each != settings[0] for each in settings):  # one network computes for all
            raise ValueError("networks whose layers have other settings (attributes) must be taken one by one")
        self.networks, model = list(networks), _Applied(copy.deepcopy(networks[0]).eval())
        self.parameters, self.buffers = (
            [torch.stack([t.detach() for t in each]) for each in zip(*groups, strict=True)]
            for groups in ([n.parameters() for n in networks], [n.buffers() for n in networks])
        )
        self.trainable = [p.requires_grad for p in networks[0].parameters()]
        self._own, self._call = list(model.parameters()), functional(model)
        self._names = [name for name, _ in (*model.named_parameters(), *model.named_buffers())]

    def described(self) -> dict[str, Any]:
        """Return what a checkpoint is bound to, besides the weights."""
        first = self.networks[0]
        return {"networks": [repr(first), *map(type, first.modules())], "trainable": self.trainable}

    def apply(self, function: Loss, parameters: Sequence[Tensor], buffers: Sequence[Tensor]) -> Tensor:
        """Apply a function to the network with the parameters and buffers of one of the K."""
        return self._call(dict(zip(self._names, (*parameters, *buffers), strict=True)), function)

    @staticmethod
    def flatten(parameters: Sequence[Tensor]) -> Tensor:
        """Put parameters (K, ...) into one tensor (K, P)."""
        return torch.cat([p.flatten(1) for p in parameters], dim=1)

    def unflatten(self, weights: Tensor) -> list[Tensor]:
        """Cut weights (K, P) into parameters (K, ...)."""
        parts = weights.split([p[0].numel() for p in self.parameters], dim=1)
        return [part.reshape(-1, *p.shape[1:]) for part, p in zip(parts, self.parameters, strict=True)]

    def losses(self, loss: Loss, parameters: Sequence[Tensor]) -> Tensor:
        """Return the losses (K,) that the networks would have with parameters (K, ...)."""
        value = functools.partial(self.apply, functools.partial(_one_number, loss))
        if len(self.networks) == 1:  # without vmap, which not every layer can take
            return value([p[0] for p in parameters], [b[0] for b in self.buffers]).unsqueeze(0)
        return vmap(value)(list(parameters), self.buffers)

    def differentiate(self, loss: Loss) -> tuple[list[Tensor], Tensor, list[Tensor]]:
        """Return the parameters (K, ...) as leaves of a new graph, with losses (K,) and gradients (K, ...) in it."""
        leaves = [p.clone().requires_grad_() for p in self.parameters]
        values = self.losses(loss, leaves)
        used = _leaves(values)
        if any(id(p) in used for p in (*self._own, *(p for network in self.networks for p in network.parameters()))):
            raise ValueError(
                "the loss uses a network from outside: take all parameters from the network that it is given, and"
                " detach() what is meant as a constant"
            )
        if not any(id(p) in used for p in leaves):
            raise ValueError("the loss does not depend on the network that it is given: does it use one from outside?")
        gradients = torch.autograd.grad(values.sum(), leaves, create_graph=True, materialize_grads=True)
        return leaves, values, list(gradients)

    def residuals(self, weights: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """Return outputs less targets (K, N · outputs) with weights (K, P)."""

        def differences(network: nn.Module) -> Tensor:
            outputs = network(x)
            if outputs.shape != y.shape or not y.is_floating_point():
                raise ValueError(f"targets must be {tuple(outputs.shape)}, as outputs; y is {tuple(y.shape)} {y.dtype}")
            return (outputs - y).flatten()

        return vmap(functools.partial(self.apply, differences))(self.unflatten(weights), self.buffers)

    def jacobian(self, weights: Tensor, x: Tensor, chosen: Tensor | slice = slice(None)) -> Tensor:
        """Return the derivatives (k, N · outputs, P) of the outputs by weights (K, P), for chosen networks."""

        def outputs(flat: Tensor, buffers: list[Tensor], example: Tensor) -> Tensor:
            parameters = [p[0] for p in self.unflatten(flat.unsqueeze(0))]
            return self.apply(lambda network: network(example.unsqueeze(0)).flatten(), parameters, buffers)

        each = vmap(vmap(jacrev(outputs), (None, None, 0)), (0, 0, None))
        return each(weights[chosen], [b[chosen] for b in self.buffers], x).flatten(1, 2)

    def write_back(self, parameters: Sequence[Tensor]) -> None:
        """Copy parameters (K, ...) into the networks."""
        with torch.no_grad():
            for k, network in enumerate(self.networks):
                for p, new in zip(network.parameters(), parameters, strict=True):
                    p.copy_(new[k])


def _settings(layer: nn.Module) -> dict[str, Any]:
    plain = {name: value for name, value in vars(layer).items() if type(value) in (bool, int, float, str)}
    return plain | {"training": None}


def _leaves(tensor: Tensor) -> set[int]:
    """Return the ids of all tensors that a tensor was computed from and that require gradients."""
    nodes, found = [tensor.grad_fn], {tensor.grad_fn}
    while nodes:
        new = {node for node, _ in getattr(nodes.pop(), "next_functions", ())} - found
        nodes, found = [*nodes, *new], found | new
    return {id(node.variable) for node in found if hasattr(node, "variable")}


def _one_number(loss: Loss, network: nn.Module) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Using a target size", category=UserWarning)
        try:
            value = loss(network)
        except UserWarning as warning:
            raise ValueError(f"targets that do not fit the outputs in the loss: {warning}") from None
    if value.dim() != 0:
        raise ValueError(f"the loss must be one number, such as a mean; it has the shape {tuple(value.shape)}")
    return value


def _damped_least_squares(j: Tensor, r: Tensor, mu: Tensor) -> Tensor:
    """Solve (JᵀJ + μI) δ = Jᵀr for δ (K, P), given J (K, R, P), r (K, R) and μ (K,)."""
    r, mu = r.unsqueeze(2), mu.view(-1, 1, 1)
    if j.shape[1] < j.shape[2]:  # the same from the smaller matrix, as Jᵀ (JJᵀ + μI)⁻¹ r
        gram = j @ j.mT
        return (j.mT @ torch.linalg.solve(gram + mu * torch.eye(len(gram[0])).to(j), r)).squeeze(2)
    gram = j.mT @ j
    return torch.linalg.solve(gram + mu * torch.eye(len(gram[0])).to(j), j.mT @ r).squeeze(2)


def _check_examples(x: Tensor, y: Tensor) -> None:
    if len(x) != len(y) or len(x) == 0:
        raise ValueError(f"{len(x)} examples and {len(y)} labels or targets: equal numbers are needed, 1 or more")
