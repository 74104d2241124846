"""The loss as a landscape: lines between solutions, planes through paths, and the paths themselves.

A point of the landscape is a network's weights, flattened in the order of `network.parameters()`. Nothing here changes
a network that is passed in.
"""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector
from tqdm.auto import tqdm

from labutils.data import Split
from labutils.models import ACTIVATIONS
from labutils.training import eval_mode, evaluate_weights, watched

_BLOCK = 1 << 14  # weights that are converted to float64 at once
_WEIGHTED = (nn.Linear, nn.Conv2d)
_ODD = (nn.Tanh, nn.Identity, nn.Flatten)  # f(−z) = −f(z): a unit may change its sign
_PLANE_BYTES = 64 << 20  # weights of a surface that are held at once
_ELEMENTWISE = tuple(ACTIVATIONS.values())
_PERMUTABLE = (*_WEIGHTED, *_ELEMENTWISE, nn.Flatten, nn.MaxPool2d)


def grid(low: float, high: float, count: int) -> np.ndarray:
    """Return an even grid of positions between and beyond two networks, with 0 and 1 in it exactly.

    Args:
        low: first position, at most 0.
        high: last position, at least 1.
        count: points of the even grid, 2 or more; 0 and 1 are added where it leaves them out.

    Example:
        >>> grid(-0.5, 1.5, 3)
        array([-0.5,  0. ,  0.5,  1. ,  1.5])
    """
    if not low <= 0 < 1 <= high or count < 2:
        raise ValueError(f"from {low} to {high} with {count} points: both ends, 0 and 1, must lie within, count ≥ 2")
    even = np.linspace(low, high, count)
    apart = (np.abs(even) > 1e-9) & (np.abs(even - 1) > 1e-9)
    return np.sort(np.concatenate([even[apart], [0.0, 1.0]]))


def interpolate(model_a: nn.Module, model_b: nn.Module, alphas: ArrayLike) -> list[nn.Module]:
    """Build the networks on the line through two others, θ(α) = (1 − α) θ_a + α θ_b.

    Floating-point buffers, such as batch normalization's means, are interpolated as well (variances are kept from
    falling below 0); others are the nearer network's.

    Args:
        model_a, model_b: the networks at α = 0 and α = 1, of one architecture.
        alphas: positions (M,), see `grid`.

    Returns:
        M new networks; bit for bit `model_a` and `model_b` where α is 0 and 1.

    Raises:
        ValueError: the networks differ in architecture, parameters or buffers, or a position is not finite.

    Example:
        >>> a, b = nn.Linear(1, 1), nn.Linear(1, 1)
        >>> middle, end = interpolate(a, b, [0.5, 1.0])
        >>> torch.equal(middle.weight, (a.weight + b.weight) / 2), torch.equal(end.bias, b.bias)
        (True, True)
    """
    alphas = np.atleast_1d(np.asarray(alphas, dtype=np.float64))
    if alphas.ndim != 1 or not np.isfinite(alphas).all():
        raise ValueError(f"alphas of shape {alphas.shape}: finite positions (M,) are needed")
    a, b = _tensors(model_a), _tensors(model_b)
    described = [{name: (value.shape, value.dtype) for name, value in each.items()} for each in (a, b)]
    if described[0] != described[1] or repr(model_a) != repr(model_b):
        names = [n for n in {**a, **b} if described[0].get(n) != described[1].get(n)]
        raise ValueError(f"the two networks differ in {', '.join(names) or 'layers'}: a line needs one architecture")
    models = [copy.deepcopy(model_a) for _ in alphas]
    for alpha, model in zip(alphas.tolist(), models, strict=True):
        for name, own in _tensors(model).items():
            if (own.is_floating_point() or own.is_complex()) and alpha not in (0, 1):
                mixed = (1 - alpha) * a[name] + alpha * b[name]
                own.copy_(mixed.clamp_min(0) if name.endswith("running_var") else mixed)
            else:
                own.copy_((a if alpha < 0.5 else b)[name])
    return models


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return all parameters and buffers by name, those too that no state_dict has."""
    return {name: tensor.detach() for name, tensor in (*model.named_parameters(), *model.named_buffers())}


def barrier(alphas: ArrayLike, losses: ArrayLike) -> float | np.ndarray:
    """Measure how high the loss rises between two solutions, above the straight line from one end to the other.

    Args:
        alphas: positions (M,), 0 and 1 among them.
        losses: losses there, (M,) or (K, M).

    Returns:
        The height, a number or (K,); 0 where the loss nowhere exceeds the line.

    Source:
        Entezari et al. (2022), The role of permutation invariance in linear mode connectivity, section 2. (Frankle et
        al., 2020, subtract the mean of the ends from the highest value: the same for ends of equal loss.)

    Example:
        >>> barrier([0, 0.5, 1], [0.1, 0.9, 0.3])
        0.7
    """
    alphas, losses = np.asarray(alphas, dtype=np.float64), np.asarray(losses, dtype=np.float64)
    if losses.ndim not in (1, 2) or losses.shape[-1:] != alphas.shape:
        raise ValueError(f"losses {losses.shape} for positions {alphas.shape}: (M,) or (K, M) and (M,) are needed")
    if not {0.0, 1.0} <= set(alphas.tolist()):
        raise ValueError("the positions must hold both ends, 0 and 1, exactly: make them with landscape.grid")
    within = (alphas >= 0) & (alphas <= 1)
    first, last = losses[..., alphas == 0][..., :1], losses[..., alphas == 1][..., :1]
    line = (1 - alphas[within]) * first + alphas[within] * last
    height = (losses[..., within] - line).max(axis=-1)
    return float(height) if losses.ndim == 1 else height


def match_units(model: nn.Module, reference: nn.Module, x: Tensor, *, signs: bool = False) -> nn.Module:
    """Permute a network's hidden units so that they match another's; what it computes stays the same.

    Units are matched by the correlation of their activations over examples, layer by layer, as a linear assignment.

    Args:
        model: an `nn.Sequential` of dense and convolutional layers, elementwise activations, max-pooling and
            `Flatten`; after the last dense layer, anything.
        reference: the network to match, of the same architecture.
        x: examples (N, ...) to compare activations on; units that are constant on them may come out in any order.
        signs: let a unit change its sign, too, where the activation is odd (tanh).

    Returns:
        A new network with permuted units.

    Raises:
        ValueError: another kind of layer, weights used twice, networks that differ, or activations that are not finite.

    Source:
        Li et al. (2016), Convergent learning, section 3; Ainsworth et al. (2023), Git Re-Basin, section 3.1.

    Example:
        >>> from labutils import models
        >>> a, b, x = models.mlp((3, 5, 2), seed=0), models.mlp((3, 5, 2), seed=1), torch.randn(50, 3)
        >>> torch.allclose(match_units(a, b, x)(x), a(x), atol=1e-6)
        True
    """
    if repr(model) != repr(reference) or type(model) is not nn.Sequential or type(reference) is not nn.Sequential:
        raise ValueError("two nn.Sequential networks of one architecture are needed")
    weighted = [i for i, layer in enumerate(model) if type(layer) in _WEIGHTED]
    for i, layer in enumerate(model[: weighted[-1] + 1] if weighted else model):
        if not _can_permute(layer):
            raise ValueError(f"layer {i}, {layer}: units cannot be permuted through it here")
    for network in (model, reference):
        own = [id(p) for i in weighted for p in network[i]._parameters.values() if p is not None]
        if len(set(own)) < len(own):
            raise ValueError("weights that are used twice cannot be permuted in one place alone")
    matched, x = copy.deepcopy(model), x.to(next(model.parameters(), x))
    with torch.no_grad(), eval_mode(matched, reference):
        for i, after in pairwise(weighted):
            between = matched[i + 1 : after]
            if type(matched[i]) is not type(matched[after]) and not any(type(m) is nn.Flatten for m in between):
                raise ValueError(f"layers {i} and {after}, {matched[after]}: a Flatten is missing between them")
            end = i + 1 + (type(matched[i + 1]) in _ELEMENTWISE)  # units are compared after their activation
            similar = _correlation(_units(matched[:end], x), _units(reference[:end], x))
            odd = all(type(layer) in _ODD for layer in between)
            mine, other = linear_sum_assignment(similar.abs() if signs and odd else similar, maximize=True)
            order = torch.as_tensor(mine)[np.argsort(other)]
            sign = torch.ones(len(order))
            if signs and odd:
                sign[similar[order, torch.arange(len(order))] < 0] = -1.0
            _permute(matched[i], matched[after], order, sign)
    return matched


class PathPCA(NamedTuple):
    """A path of weights, seen from its two (or q) main directions.

    Attributes:
        coordinates: (..., q) of every point, in units of the weights.
        explained: (q,) share of the points' variance along each direction.
        directions: (q, P), orthonormal.
        mean: (P,), the points' mean: the origin of the coordinates.
        residuals: (...) distance of every point from the plane.
    """

    coordinates: np.ndarray
    explained: np.ndarray
    directions: Tensor
    mean: Tensor
    residuals: np.ndarray

    def project(self, weights: Tensor) -> np.ndarray:
        """Return the coordinates (..., q) of other weights (..., P) in the same plane."""
        return ((weights - self.mean).double() @ self.directions.double().T).numpy()

    def place(self, coordinates: ArrayLike) -> Tensor:
        """Return the weights (..., P) at coordinates (..., q) of the plane."""
        given = torch.as_tensor(np.asarray(coordinates, dtype=np.float64)).to(self.mean.dtype)
        return self.mean + given @ self.directions


def path_pca(weights: Tensor, components: int = 2) -> PathPCA:
    """Find the directions along which a path of weights moves most: principal components of its points.

    There are far fewer points than weights, so that they come from the points' inner products, in float64.

    Args:
        weights: (C, P) points of one path, or (K, C, P) of K paths, which then share one projection.
        components: directions q, of which each has its largest weight positive.

    Raises:
        ValueError: weights of another shape or type, values that are not finite, or points that span fewer directions.

    Example:
        >>> steps = torch.arange(5.0).unsqueeze(1)
        >>> path = path_pca(steps * torch.tensor([[3.0, 4.0, 0.0]]), components=1)
        >>> (path.coordinates.ravel().round(6) + 0.0).tolist(), round(float(path.explained[0]), 6)
        ([-10.0, -5.0, 0.0, 5.0, 10.0], 1.0)
    """
    if weights.dim() not in (2, 3) or not weights.is_floating_point():
        raise ValueError(
            f"weights {tuple(weights.shape)} {weights.dtype}: (points, P) or (paths, points, P), floating-point, are"
            " needed"
        )
    points = weights.detach().flatten(0, -2)
    n = len(points)
    if not 1 <= components < n:
        raise ValueError(f"{components} directions from {n} points: at least one point more is needed")
    if not points.isfinite().all():
        raise ValueError("weights are NaN or infinite: leave out a diverged path")
    mean = torch.cat([block.double().mean(0) for block in points.split(_BLOCK, dim=1)])
    gram = torch.zeros(n, n, dtype=torch.float64, device=points.device)
    for block, center in zip(points.split(_BLOCK, dim=1), mean.split(_BLOCK), strict=True):
        centered = block.double() - center
        gram += centered @ centered.T
    values, vectors = torch.linalg.eigh(gram)
    values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
    total = gram.trace()
    if not total > 0 or values[components - 1] <= n * torch.finfo(torch.float64).eps * values[0]:
        raise ValueError(f"the points span fewer than {components} directions: did the weights move at all?")
    scores = vectors[:, :components] * values[:components].sqrt()
    blocks = zip(points.split(_BLOCK, dim=1), mean.split(_BLOCK), strict=True)
    loadings = vectors[:, :components].T / values[:components].sqrt().unsqueeze(1)
    directions = torch.cat([loadings @ (block.double() - center) for block, center in blocks], dim=1)
    largest = directions.abs().argmax(1, keepdim=True)
    sign = directions.gather(1, largest).sign()
    scores, directions = scores * sign.T, directions * sign
    residuals = (gram.diagonal() - scores.square().sum(1)).clamp_min(0).sqrt()
    return PathPCA(
        coordinates=scores.view(*weights.shape[:-1], components).cpu().numpy(),
        explained=(values[:components] / total).cpu().numpy(),
        directions=directions.to(weights.dtype),
        mean=mean.to(weights.dtype),
        residuals=residuals.view(weights.shape[:-1]).cpu().numpy(),
    )


def columns(model: nn.Module, layer: str) -> slice:
    """Find the columns of a layer's parameters, such as of "5" in an `nn.Sequential`, in flattened weights (..., P).

    Example:
        >>> columns(nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)), "2")
        slice(9, 13, None)
    """
    start, places = 0, {}
    for name, p in model.named_parameters():
        owner = name.rpartition(".")[0]
        places.setdefault(owner, []).append((start, start + p.numel()))
        start += p.numel()
    if layer not in places:
        raise ValueError(f"no layer {layer!r} with parameters; there are {', '.join(map(repr, places))}")
    return slice(places[layer][0][0], places[layer][-1][1])


def filter_normalized_directions(model: nn.Module, count: int = 2, *, seed: int = 0) -> Tensor:
    """Draw random directions (count, P) in which every filter has the size that it has in the network.

    A filter is what leads to one unit: a row of a dense layer, a channel of a convolution. Biases do not move. Without
    this, a network with large weights would look flatter than one with small weights that computes the same.

    Source:
        Li et al. (2018), Visualizing the loss landscape of neural nets, section 4.

    Example:
        >>> filter_normalized_directions(nn.Linear(3, 2)).shape
        torch.Size([2, 8])
    """
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for p in model.parameters():
        draw = torch.randn(count, *p.shape, generator=generator).to(p)
        if p.dim() < 2:
            parts.append(torch.zeros_like(draw))
            continue
        size, drawn = p.detach().flatten(1).norm(dim=1, keepdim=True), draw.flatten(2).norm(dim=2, keepdim=True)
        parts.append(draw.flatten(2) * (size / drawn))
    return torch.cat([part.flatten(1) for part in parts], dim=1)


class Surface(NamedTuple):
    """A loss surface over a grid in a plane.

    Attributes:
        a: (A,) positions along the first direction.
        b: (B,) positions along the second direction.
        loss: (B, A), as `contour` takes it.
        accuracy: (B, A), NaN for regression.
    """

    a: np.ndarray
    b: np.ndarray
    loss: np.ndarray
    accuracy: np.ndarray


def loss_surface(
    model: nn.Module,
    data: Split | tuple[Tensor, Tensor],
    directions: Tensor,
    a: ArrayLike,
    b: ArrayLike,
    *,
    origin: Tensor | None = None,
    loss: str = "cross_entropy",
    device: str | torch.device = "cpu",
) -> Surface:
    """Compute the loss on a plane, at origin + a · first direction + b · second direction.

    Args:
        model: the network; it is not changed, and its buffers are used.
        data: a part of a `Dataset`, or a pair of tensors as for `training.fit`.
        directions: (2, P), such as those of `path_pca` or `filter_normalized_directions`.
        a: positions (A,) along the first direction, 0 for the origin.
        b: positions (B,) along the second one.
        origin: weights (P,), such as the mean of `path_pca`; None takes the network's own.
        loss: "cross_entropy" or "mse".
        device: where to compute.

    Raises:
        ValueError: directions or origin do not fit the network, or positions are not finite.

    Example:
        >>> from labutils import models
        >>> model, data = models.mlp((1, 1)), (torch.ones(3, 1), torch.zeros(3, 1))
        >>> surface = loss_surface(model, data, torch.eye(2), [0, 1], [0, 1, 2], origin=torch.zeros(2), loss="mse")
        >>> surface.loss.tolist()  # (w + b)²
        [[0.0, 1.0], [1.0, 4.0], [4.0, 9.0]]
    """
    weights = parameters_to_vector(model.parameters()).detach()
    origin = weights if origin is None else origin.to(weights)
    if directions.shape != (2, len(weights)) or origin.shape != weights.shape:
        raise ValueError(
            f"directions {tuple(directions.shape)} and origin {tuple(origin.shape)} for a network of"
            f" {len(weights)} parameters: (2, {len(weights)}) and ({len(weights)},) are needed"
        )
    a, b = (np.atleast_1d(np.asarray(positions, dtype=np.float64)) for positions in (a, b))
    if a.ndim != 1 or b.ndim != 1 or not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError(f"positions of shape {a.shape} and {b.shape}: finite ones, (A,) and (B,), are needed")
    first, second = directions.to(weights)
    along = origin + torch.as_tensor(a).to(weights).unsqueeze(1) * first  # (A, P)
    across = torch.as_tensor(b).to(weights).view(-1, 1, 1) * second  # (B, 1, P)
    # A plane of a large network would not fit the memory at once.
    rows = across.split(max(1, _PLANE_BYTES // (along.numel() * along.itemsize)))
    bar = tqdm(rows, unit="part", disable=not watched(), leave=False)
    parts = [evaluate_weights(model, along + row, data, loss=loss, device=device, progress=False) for row in bar]
    losses, accuracies = (np.concatenate(values) for values in zip(*parts, strict=True))
    return Surface(a, b, losses, accuracies)


def _can_permute(layer: nn.Module) -> bool:
    """Whether a layer does just what its type says; a subclass may have another forward, a hook other weights."""
    if type(layer) is nn.Flatten:
        return (layer.start_dim, layer.end_dim) == (1, -1)
    if type(layer) in _WEIGHTED:
        return getattr(layer, "groups", 1) == 1 and isinstance(layer.weight, nn.Parameter)
    return type(layer) in _PERMUTABLE


def _units(network: nn.Module, x: Tensor) -> Tensor:
    """Return a layer's activations as (observations, units); for images, every position is an observation."""
    out = network(x)
    return out if out.dim() == 2 else out.movedim(1, -1).flatten(0, -2)


def _correlation(a: Tensor, b: Tensor) -> Tensor:
    """Return the correlations (units of a, units of b), on the CPU; 0 where a unit is constant."""
    a, b = (units.double().cpu() - units.double().cpu().mean(0) for units in (a, b))
    a, b = (units / units.norm(dim=0).clamp_min(1e-300) for units in (a, b))
    if not (a.isfinite().all() and b.isfinite().all()):
        raise ValueError("activations are NaN or infinite: a diverged network has no units to match")
    return a.T @ b


def _permute(layer: nn.Module, after: nn.Module, order: Tensor, sign: Tensor) -> None:
    """Reorder (and flip) a layer's outputs, and the next weighted layer's inputs with them."""
    sign = sign.to(layer.weight)
    shaped = sign.view(-1, *[1] * (layer.weight.dim() - 1))
    layer.weight.copy_(layer.weight[order] * shaped)
    if layer.bias is not None:
        layer.bias.copy_(layer.bias[order] * sign)
    inputs = after.weight.shape[1]
    # Behind a Flatten, every unit (channel) has a block of inputs, one for each position.
    blocks = after.weight.view(len(after.weight), len(order), inputs // len(order), *after.weight.shape[2:])
    shaped = sign.view(-1, *[1] * (blocks.dim() - 2))
    after.weight.copy_((blocks[:, order] * shaped).view_as(after.weight))
