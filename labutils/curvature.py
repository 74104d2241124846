"""Curvature: gradients and Hessians of a network's loss, exact where it is small, by products where it is large.

A Hessian is asked for as `hessian(loss, network)`, where `loss` says how the loss comes from a network:
`lambda network: F.mse_loss(network(x), y)`. Whatever can be written so, has its curvature here. Parameters are
flattened in the order of `network.parameters()`, as in `training.Stack`.

Second derivatives amplify rounding: for eigenvalues near zero, use float64 networks and data (`network.double()`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from labutils import checkpoint as checkpoints
from labutils.statistics import Interval, mean_interval
from labutils.training import Stack, eval_mode

Network = Callable[[Tensor], Tensor]
"""What a loss gets, which maps examples (N, ...) to outputs as a network does."""

Loss = Callable[[Any], Tensor]
"""How a loss () comes from a network.

An example is `lambda network: F.mse_loss(network(x), y)`. The network is in eval mode; besides being called, it has
`parameters()`, for a term in the weights themselves.
"""

Models = nn.Module | Sequence[nn.Module]
"""One network, or several of one architecture."""

_BATCH = 1000  # examples whose gradients are taken at once
_PRODUCTS = 32  # Hessian-vector products at once: more of them leave the cache
_SYMMETRIC = 1e-6  # largest difference between a Hessian and its transpose, relative to its largest entry


def gradient_norm(models: Models | Stack, x: Tensor, y: Tensor, loss: str = "mse") -> float | np.ndarray:
    """Compute the norm of the gradient of the mean loss by all parameters, ‖g‖ = (Σ_p ‖∂L/∂p‖²)^½.

    Args:
        models: a network, K networks of one architecture, or a `Stack` of them in use, as `training.fit` hands it to
            `on_epoch`.
        x: examples (N, ...), all of which count, a batch of them at a time.
        y: labels (N,) or targets (N, outputs).
        loss: "mse" or "cross_entropy", as in `training.fit`.

    Returns:
        The norm; for several networks or a stack, an array (K,).

    Raises:
        ValueError: x and y do not hold the same number of examples.

    Example:
        >>> line = nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.constant_(line.weight, 3.0)
        >>> gradient_norm(line, torch.tensor([[2.0]]), torch.tensor([[5.0]]))  # |2 (3·2 − 5) · 2|
        4.0
    """
    _check_examples(x, y)
    if not isinstance(models, Stack):
        networks = [models] if isinstance(models, nn.Module) else list(models)
        with eval_mode(*networks), Stack(networks, example=x[:1], batch_size=min(len(x), _BATCH)) as stack:
            norms = gradient_norm(stack, x, y, loss)
        return float(norms[0]) if isinstance(models, nn.Module) else norms
    total = torch.zeros_like(models.gradients)
    for xb, yb in _batches(x.to(models.device, models.dtype), y.to(models.device)):
        models.backward(xb, yb, loss)
        total += models.gradients * (len(xb) / len(x))
    return total.norm(dim=1).double().cpu().numpy()


def hessian(loss: Loss, models: Models) -> Tensor:
    """Compute the exact Hessian of a loss by all parameters of a network, or of many networks at once.

    The gradient is differentiated once more, for many directions at a time (double backpropagation). Of each pair of
    equal blocks only the one of the later layers is computed: it needs the shorter way through the network.

    Args:
        loss: how the loss comes from a network, see `Loss`.
        models: a network with P parameters, or K of one architecture. They are not changed.

    Returns:
        The Hessian (P, P), exactly symmetric; (K, P, P) for several networks.

    Raises:
        ValueError: the loss is not one number.

    Example:
        >>> line = nn.Linear(1, 1, bias=False)
        >>> hessian(lambda network: F.mse_loss(network(torch.tensor([[3.0]])), torch.zeros(1, 1)), line)
        tensor([[18.]])
    """
    many = not isinstance(models, nn.Module)
    networks = list(models) if many else [models]
    parameters, values = _differentiable(loss, networks)
    gradients = torch.autograd.grad(values.sum(), parameters, create_graph=True, materialize_grads=True)
    k, sizes = len(networks), [p[0].numel() for p in parameters]
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
    """Compute the Gauss–Newton matrix of the mean squared error, 2 JᵀJ / (N · outputs).

    J holds the derivatives of all outputs by all parameters. The Hessian is this plus the residuals times the second
    derivatives of the outputs: the two agree where the residuals vanish. JᵀJ has no negative eigenvalues, whatever
    the point.

    Args:
        models: a network with P parameters, or K of one architecture.
        x: examples (N, ...).

    Returns:
        The matrix (P, P), or (K, P, P).

    Source:
        Nocedal and Wright (2006), Numerical Optimization, section 10.3.

    Example:
        >>> gauss_newton(nn.Linear(1, 1, bias=False), torch.tensor([[3.0]]))
        tensor([[18.]])
    """
    many = not isinstance(models, nn.Module)
    j = _jacobian(*_flat(list(models) if many else [models]), x)
    matrix = 2 / j.shape[1] * (j.mT @ j)
    return matrix if many else matrix[0]


def eigenvalues(matrix: Tensor) -> np.ndarray:
    """Compute the eigenvalues of a Hessian, or of many, in ascending order.

    Args:
        matrix: symmetric, (P, P) or (K, P, P).

    Returns:
        The eigenvalues (P,) or (K, P), float64.

    Raises:
        ValueError: a matrix that is not square, not symmetric, or holds a value that is not finite.

    Example:
        >>> eigenvalues(torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
        array([-1.,  1.])
    """
    if matrix.dim() < 2 or matrix.shape[-1] != matrix.shape[-2]:
        raise ValueError(f"a matrix of shape {tuple(matrix.shape)}: it must be square, (P, P) or (K, P, P)")
    if not matrix.isfinite().all():
        bad = int((~matrix.isfinite()).sum())
        raise ValueError(f"{bad} entries of the matrix are NaN or infinite: did the training diverge?")
    skew, scale = (matrix - matrix.mT).abs().amax().item(), matrix.abs().amax().item()
    if skew > _SYMMETRIC * scale:
        raise ValueError(
            f"the matrix differs from its transpose by up to {skew:.3g} (largest entry {scale:.3g}): a Hessian is"
            " symmetric, and eigenvalues of another matrix need not be real"
        )
    return torch.linalg.eigvalsh(matrix.double()).cpu().numpy()


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

    A flat direction has λ = 0, which rounding turns into a tiny number of either sign: without a tolerance, half of
    the flat directions would pass for positive.

    Args:
        eigenvalues: (P,), or (K, P) for K spectra.
        rtol: an eigenvalue within rtol times the spectrum's largest ``|λ|`` counts as zero. The default leaves a
            thousand times the rounding of a float64 Hessian; 1e-4 does for float32.

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
    """Return the Hessian of a network too large for a matrix, as an operator that multiplies vectors.

    One product costs about as much as two gradients (Pearlmutter 1994): the gradient's own graph is built once, and
    differentiated again in the direction of each vector.

    Args:
        loss: how the loss comes from a network, see `Loss`.
        model: a network with P parameters. Products are of its present weights, in its floating-point type.

    Returns:
        A (P, P) operator for numpy arrays, as `scipy.sparse.linalg` takes them.

    Source:
        Pearlmutter (1994), Neural Computation 6, 147-160.

    Example:
        >>> line = nn.Linear(1, 1, bias=False)
        >>> operator = hessian_operator(lambda network: network(torch.tensor([[3.0]])).square().sum(), line)
        >>> operator @ np.array([2.0])
        array([36.])
    """
    parameters, values = _differentiable(loss, [model])
    gradients = torch.autograd.grad(values.sum(), parameters, create_graph=True, materialize_grads=True)
    flat = torch.cat([g.flatten() for g in gradients])

    def product(vector: np.ndarray) -> np.ndarray:
        if not flat.requires_grad:
            return np.zeros(len(flat))
        v = torch.as_tensor(np.ravel(vector)).to(flat)
        products = torch.autograd.grad(flat, parameters, v, retain_graph=True, materialize_grads=True)
        return torch.cat([p.flatten() for p in products]).double().cpu().numpy()

    return LinearOperator((len(flat), len(flat)), matvec=product, rmatvec=product, dtype=np.float64)


class Extremes(NamedTuple):
    """Both ends of a spectrum.

    Attributes:
        lowest: (k,) the least eigenvalues, ascending.
        highest: (k,) the greatest ones, ascending.
    """

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

    Returns:
        The k lowest and the k highest eigenvalues.

    Raises:
        ValueError: k is not between 1 and P − 1, or the Hessian is not finite.
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
    start = np.random.default_rng(seed).standard_normal(p)
    if not np.isfinite(operator @ start).all():
        raise ValueError("the Hessian has values that are NaN or infinite: did the training diverge?")
    options = {"k": k, "tol": tol, "v0": start, "return_eigenvectors": False}
    largest = abs(eigsh(operator, which="LM", **(options | {"k": 1, "tol": 0.1}))[0])
    # Shifted by the largest |λ|, both ends have a size that the tolerance is relative to, even where λ is near 0.
    ends = []
    for sign in (-1, 1):
        shifted = LinearOperator(
            operator.shape, matvec=lambda v, sign=sign: sign * (operator @ v) + largest * np.ravel(v), dtype=np.float64
        )
        ends.append(np.sort(sign * (eigsh(shifted, which="LA", **options) - largest)))
    return Extremes(*ends)


def hessian_trace(loss: Loss, model: nn.Module, samples: int = 30, *, seed: int = 0) -> Interval:
    """Estimate the sum of the Hessian's eigenvalues from products with random signs, E[vᵀHv] = tr H.

    Args:
        loss: how the loss comes from a network, see `Loss`.
        model: the network.
        samples: products, 2 or more; the interval narrows with their square root.
        seed: seed of the signs.

    Returns:
        The estimate with its 95 % interval.

    Raises:
        ValueError: fewer than two samples.

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
    """Compute how much a network's loss, or its logits, change with its input, averaged over examples.

    It is the mean over examples of the Frobenius norm of the derivative by the input: of the example's loss, a
    vector, or of its logits, the Jacobian. The network is in eval mode, and no example must depend on another.

    Args:
        model: a network.
        x: examples (N, ...).
        y: labels (N,), for cross-entropy, or targets (N, outputs), for the squared error averaged over outputs.
            Logits do not need them.
        of: "loss" or "logits".

    Returns:
        The mean norm, per unit of the (normalized) input.

    Raises:
        ValueError: unknown `of`, or x and y do not hold the same number of examples.

    Source:
        Novak et al. (2018), Sensitivity and generalization in neural networks, section 3.1 (of the outputs).

    Example:
        >>> line = nn.Linear(2, 1, bias=False)
        >>> _ = line.weight.data.copy_(torch.tensor([[3.0, 4.0]]))
        >>> sensitivity(line, torch.zeros(5, 2), torch.zeros(5, 1), of="logits")
        5.0
    """
    if of not in ("loss", "logits"):
        raise ValueError(f"of = {of!r}: sensitivity of 'loss' or of 'logits'")
    _check_examples(x, y)
    total = 0.0
    with eval_mode(model), torch.enable_grad():
        for xb, yb in _batches(x, y):
            xb = xb.detach().requires_grad_()
            outputs = model(xb)
            if of == "logits":
                values = [column.sum() for column in outputs.flatten(1).unbind(1)]
            elif yb.is_floating_point():
                values = [(outputs - yb).square().flatten(1).mean(1).sum()]
            else:
                values = [F.cross_entropy(outputs, yb, reduction="sum")]
            # The sum over examples gives each example its own gradient: none depends on another's input.
            gradients = (torch.autograd.grad(value, xb, retain_graph=len(values) > 1)[0] for value in values)
            squares = sum(torch.linalg.vector_norm(each.flatten(1), dim=1).square() for each in gradients)
            total += squares.sqrt().double().sum().item()
    return total / len(x)


def sharpness(loss: Loss, model: nn.Module, rho: float = 0.05, *, steps: int = 20) -> float:
    """Compute how far the loss rises, at worst, when every weight may change in proportion to its size.

    The maximum of ``L(θ + |θ| ⊙ u) − L(θ)`` over ‖u‖ ≤ ρ, searched by projected gradient ascent. The ball is relative:
    rescaling a layer and its successor so that the network computes the same leaves the result the same.

    Args:
        loss: how the loss comes from a network, see `Loss`.
        model: the network; it is not changed.
        rho: radius ρ of the ball.
        steps: steps of the ascent.

    Returns:
        The rise, 0 or more, in units of the loss; a lower bound of the true maximum.

    Raises:
        ValueError: a radius that is not positive, or no steps.

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
    weights = parameters_to_vector(model.parameters()).detach()

    def value(flat: Tensor) -> Tensor:
        return _one_number(loss(_With.flat(model, flat)))

    base = highest = value(weights).item()
    u = torch.zeros_like(weights, requires_grad=True)
    for step in range(steps + 1):
        rise = value(weights + weights.abs() * u)
        highest = max(highest, rise.item())
        if step == steps:
            break
        (slope,) = torch.autograd.grad(rise, u)
        with torch.no_grad():
            # Steps of 2.5 ρ / steps can reach the border from anywhere, and turn on it.
            first = 1.0 if step == 0 else 2.5 / steps
            u += first * rho * slope / slope.norm().clamp_min(torch.finfo(slope.dtype).tiny)
            u *= (rho / u.norm()).clamp_max(1.0)
    return highest - base


def minimize_gradient(
    loss: Loss,
    models: Sequence[nn.Module],
    *,
    steps: int,
    lr: float = 1e-3,
    tolerance: float = 0.0,
    checkpoint: str | Path | None = None,
) -> np.ndarray:
    """Train networks on the squared norm of their gradient, ½ ‖∇L‖², instead of the loss: double backpropagation.

    Its gradient is H ∇L, so that it leads to the nearest point of zero gradient, minimum or saddle. Adam takes the
    steps, with a rate that falls to zero along a half cosine.

    Args:
        loss: how the loss comes from a network, see `Loss`.
        models: K networks of one architecture; their weights change in place.
        steps: steps of Adam.
        lr: its learning rate at first.
        tolerance: a network rests once its ‖∇L‖ is this small.
        checkpoint: file to continue from, and to save to, as in `training.fit`; None takes a file in the folder
            `LABUTILS_CHECKPOINTS`, if that is set.

    Returns:
        ‖∇L‖ of each network (K, steps + 1), before each step and at the end.

    Raises:
        ValueError: no networks, no steps, or a learning rate that is not positive; a checkpoint that is damaged or
            belongs to another computation.

    Example:
        >>> line = nn.Linear(1, 1, bias=False).double()
        >>> norms = minimize_gradient(lambda network: network(torch.ones(1, 1).double()).square().sum(), [line],
        ...     steps=200, lr=0.1)
        >>> norms.shape, bool(norms[0, -1] < 1e-3)
        ((1, 201), True)
    """
    if not models or steps < 1 or not lr > 0:
        raise ValueError(f"{len(models)} models, steps = {steps}, lr = {lr}: all must be positive")
    kept = nn.ParameterList(_differentiable(loss, models)[0])
    parameters = list(kept)
    optimizer = torch.optim.Adam(parameters, lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    at = checkpoints.Values(step=0, norms=torch.empty(len(models), steps + 1, dtype=torch.float64))

    def settings() -> dict[str, Any]:
        leaves, values = _differentiable(loss, models)
        return {
            "computation": "curvature.minimize_gradient",
            "networks": repr(models[0]),
            "initial_weights": leaves,
            # A function has no bytes to compare, so its values and gradients stand for it and for its data.
            "loss": [loss, values, torch.autograd.grad(values.sum(), leaves, materialize_grads=True)],
            "steps": steps,
            "lr": lr,
            "tolerance": tolerance,
        }

    state = {"at": at, "parameters": kept, "optimizer": optimizer, "schedule": schedule}
    with checkpoints.bind(checkpoint, state, settings) as saved:
        for step in range(at.step, steps + 1):
            saved.keep()
            values = _losses(loss, models, parameters)
            gradients = torch.autograd.grad(values.sum(), parameters, create_graph=True, materialize_grads=True)
            squares = sum(g.flatten(1).square().sum(1) for g in gradients)
            norms = squares.detach().sqrt()
            at.norms[:, step] = norms
            resting = ~(norms > tolerance)
            if step == steps or resting.all():
                at.norms[:, step:] = at.norms[:, step : step + 1]
                break
            rested = [p.detach()[resting] for p in parameters]
            for p, g in zip(parameters, torch.autograd.grad(squares.sum() / 2, parameters), strict=True):
                p.grad = g
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                for p, old in zip(parameters, rested, strict=True):
                    p[resting] = old
            at.step = step + 1
        at.step = steps + 1
        saved.keep(now=True)
    _write_back(models, parameters)
    return at.norms.numpy()


def levenberg_marquardt(
    models: Sequence[nn.Module],
    x: Tensor,
    y: Tensor,
    *,
    steps: int = 100,
    damping: float = 1e-2,
    tolerance: float = 0.0,
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
        damping: μ at first, relative to the largest diagonal entry of JᵀJ.
        tolerance: a network rests once its ‖∇L‖ is this small.
        checkpoint: file to continue from, and to save to, as in `training.fit`; None takes a file in the folder
            `LABUTILS_CHECKPOINTS`, if that is set.

    Returns:
        ‖∇L‖ of each network (K, steps + 1), before each step and at the end.

    Raises:
        ValueError: no networks, no steps, a damping that is not positive, or targets that do not fit; a checkpoint that
            is damaged or belongs to another computation.

    Source:
        Marquardt (1963), SIAM Journal 11, 431-441; Nocedal and Wright (2006), section 10.3.

    Example:
        >>> line = nn.Linear(1, 1).double()
        >>> x = torch.linspace(-1, 1, 5).double().unsqueeze(1)
        >>> norms = levenberg_marquardt([line], x, 2 * x + 1, steps=20)
        >>> bool(norms[0, -1] < 1e-9), round(line.weight.item(), 6)
        (True, 2.0)
    """
    if not models or steps < 1 or not damping > 0:
        raise ValueError(f"{len(models)} models, steps = {steps}, damping = {damping}: all must be positive")
    _check_examples(x, y)
    if not y.is_floating_point() or y.dim() != 2:
        raise ValueError(f"targets must be (N, outputs), y is {tuple(y.shape)} {y.dtype}")
    model, weights = _flat(models)

    def residuals(flat: Tensor) -> Tensor:
        return (_With.flat(model, flat)(x) - y).flatten()

    at = checkpoints.Values(step=0, weights=weights, norms=torch.empty(len(models), steps + 1, dtype=torch.float64))
    at.r, at.j = vmap(residuals)(weights), _jacobian(model, weights, x)
    largest = at.j.square().sum(1).amax(1)  # the diagonal of JᵀJ
    at.mu = damping * largest

    def settings() -> dict[str, Any]:
        return {
            "computation": "curvature.levenberg_marquardt",
            "networks": repr(model),
            "initial_weights": weights,
            "buffers": list(model.buffers()),
            "data": [x, y],
            "steps": steps,
            "damping": damping,
            "tolerance": tolerance,
        }

    with checkpoints.bind(checkpoint, {"at": at}, settings) as saved:
        for step in range(at.step, steps + 1):
            saved.keep()
            slope = (at.j.mT @ at.r.unsqueeze(2)).squeeze(2)
            norm = slope.norm(dim=1) * 2 / at.r.shape[1]
            at.norms[:, step] = norm
            if step == steps or not (norm > tolerance).any():
                at.norms[:, step:] = at.norms[:, step : step + 1]
                break
            candidate = at.weights - _damped_least_squares(at.j, at.r, at.mu)
            new = vmap(residuals)(candidate)
            better = (new.square().sum(1) < at.r.square().sum(1)) & (norm > tolerance)
            at.weights = torch.where(better.unsqueeze(1), candidate, at.weights)
            at.r = torch.where(better.unsqueeze(1), new, at.r)
            at.mu = torch.where(better, at.mu / 3, at.mu * 3).clamp(1e-14 * largest, 1e14 * largest)
            if better.any():  # where the step was refused, J is still the right one
                at.j[better] = _jacobian(model, at.weights[better], x)
            at.step = step + 1
        at.step, at.j = steps + 1, None
        saved.keep(now=True)
    for network, flat in zip(models, at.weights, strict=True):
        vector_to_parameters(flat.clone(), network.parameters())
    return at.norms.numpy()


def _differentiable(loss: Loss, networks: Sequence[nn.Module]) -> tuple[list[Tensor], Tensor]:
    """Return the parameters (K, ...) of networks as leaves of a new graph, and their losses (K,) in it."""
    each = [list(network.parameters()) for network in networks]
    parameters = [torch.stack([p.detach() for p in group]).requires_grad_() for group in zip(*each, strict=True)]
    return parameters, _losses(loss, networks, parameters)


def _losses(loss: Loss, networks: Sequence[nn.Module], parameters: Sequence[Tensor]) -> Tensor:
    """Return the losses (K,) that networks would have with stacked parameters (K, ...)."""
    first = networks[0]
    names = [name for name, _ in [*first.named_parameters(), *first.named_buffers()]]
    buffers = [torch.stack(group) for group in zip(*(network.buffers() for network in networks), strict=True)]

    def value(*own: Tensor) -> Tensor:
        return _one_number(loss(_With(first, dict(zip(names, own, strict=True)))))

    stacked = [*parameters, *buffers]
    if len(networks) == 1:  # without vmap, which not every layer can take
        return value(*(p[0] for p in stacked)).unsqueeze(0)
    return vmap(value)(*stacked)


class _With:
    """A network with other parameters, called as the network is."""

    def __init__(self, model: nn.Module, parameters: dict[str, Tensor]) -> None:
        self._model, self._parameters = model, parameters

    @classmethod
    def flat(cls, model: nn.Module, weights: Tensor) -> _With:
        """Return the network with flattened weights (P,)."""
        names, shapes = zip(*((name, p.shape) for name, p in model.named_parameters()), strict=True)
        parts = weights.split([shape.numel() for shape in shapes])
        return cls(model, {n: part.view(s) for n, part, s in zip(names, parts, shapes, strict=True)})

    def __call__(self, x: Tensor) -> Tensor:
        with eval_mode(self._model):
            return functional_call(self._model, self._parameters, (x,))

    def parameters(self) -> Iterator[Tensor]:
        """Yield the parameters, so that a loss can have a term in the weights themselves."""
        names = [name for name, _ in self._model.named_parameters()]
        return iter([self._parameters[name] for name in names])


def _one_number(value: Tensor) -> Tensor:
    if value.dim() != 0:
        raise ValueError(f"the loss must be one number, such as a mean; it has the shape {tuple(value.shape)}")
    return value


def _flat(networks: Sequence[nn.Module]) -> tuple[nn.Module, Tensor]:
    """Return one of the networks, to compute with, and all networks' weights (K, P)."""
    return networks[0], torch.stack([parameters_to_vector(n.parameters()).detach() for n in networks])


def _damped_least_squares(j: Tensor, r: Tensor, mu: Tensor) -> Tensor:
    """Solve (JᵀJ + μI) δ = Jᵀr for δ (K, P), given J (K, R, P), r (K, R) and μ (K,)."""
    r, mu = r.unsqueeze(2), mu.view(-1, 1, 1)
    if j.shape[1] < j.shape[2]:  # the same from the smaller matrix, as Jᵀ (JJᵀ + μI)⁻¹ r
        gram = j @ j.mT
        return (j.mT @ torch.linalg.solve(gram + mu * torch.eye(len(gram[0])).to(j), r)).squeeze(2)
    gram = j.mT @ j
    return torch.linalg.solve(gram + mu * torch.eye(len(gram[0])).to(j), j.mT @ r).squeeze(2)


def _jacobian(model: nn.Module, weights: Tensor, x: Tensor) -> Tensor:
    """Return the derivatives (K, N · outputs, P) of a network's outputs by its weights, for K of these."""

    def outputs(flat: Tensor, example: Tensor) -> Tensor:
        return _With.flat(model, flat)(example.unsqueeze(0)).flatten()

    return vmap(vmap(jacrev(outputs), (None, 0)), (0, None))(weights, x).flatten(1, 2)


def _write_back(networks: Sequence[nn.Module], parameters: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for k, network in enumerate(networks):
            for p, new in zip(network.parameters(), parameters, strict=True):
                p.copy_(new[k])


def _batches(x: Tensor, y: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    yield from zip(x.split(_BATCH), y.split(_BATCH), strict=True)


def _check_examples(x: Tensor, y: Tensor) -> None:
    if len(x) != len(y) or len(x) == 0:
        raise ValueError(f"{len(x)} examples and {len(y)} labels or targets: equal numbers are needed, 1 or more")
