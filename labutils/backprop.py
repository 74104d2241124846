"""Backpropagation by hand, for multilayer perceptrons: the derivation in code, without autograd.

A layer maps the activations a[l−1] of a batch to z[l] = W[l] a[l−1] + b[l] and a[l] = f(z[l]). With
δ[l] = ∂L/∂z[l], the chain rule gives, from the output back to the input::

    δ[L] = ∂L/∂a[L] ⊙ f′(z[L])                    −2 (y − ŷ) ⊙ f′(z[L]) for the squared error
    δ[l] = (W[l+1]ᵀ δ[l+1]) ⊙ f′(z[l])
    ∂L/∂W[l] = δ[l] a[l−1]ᵀ       ∂L/∂b[l] = δ[l]

Here an example is a row, as everywhere in torch, so that the products appear transposed; the loss is the mean
over the batch, and its 1/N is a factor of δ[L].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Loss = Literal["squared_error", "mse", "cross_entropy"]

_NUMBERS = 2**20  # entries of a parameter's copies that are held at once


def _gelu_derivative(layer: nn.GELU, z: Tensor, a: Tensor) -> Tensor:
    if layer.approximate == "none":  # a = z Φ(z), with the normal distribution's Φ and its density Φ′
        distribution = (1 + torch.erf(z / math.sqrt(2))) / 2
        density = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
        return distribution + z * density
    # a = z (1 + tanh u) / 2 with u = √(2/π) (z + 0.044715 z³)
    t = torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3))
    slope = math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * z.square())
    return (1 + t) / 2 + z * (1 - t.square()) * slope / 2


#: f′(z) of an activation, from the layer, z and a = f(z).
Derivative = Callable[[Any, Tensor, Tensor], Tensor]
ACTIVATIONS: dict[type[nn.Module], Derivative] = {
    nn.Identity: lambda layer, z, a: torch.ones_like(z),
    nn.Tanh: lambda layer, z, a: (1 - a) * (1 + a),  # 1 − a², without cancellation near a = ±1
    nn.Sigmoid: lambda layer, z, a: a * (1 - a),
    nn.ReLU: lambda layer, z, a: torch.sign(a),
    nn.LeakyReLU: lambda layer, z, a: torch.where(z > 0, torch.ones_like(z), layer.negative_slope),
    nn.Softplus: lambda layer, z, a: torch.where(layer.beta * z > layer.threshold, 1.0, torch.sigmoid(layer.beta * z)),
    nn.GELU: _gelu_derivative,
}
"""The derivatives f′(z) of the activations that `backpropagate` knows, as functions (layer, z, a) of z or of a = f(z),
whichever is easier; the layer holds settings such as a slope. At a kink, autograd's choice."""


@torch.no_grad()
def backpropagate(
    model: nn.Module, x: Tensor, y: Tensor, loss: Loss = "squared_error"
) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute the loss of a batch and its gradient by every weight and bias, without autograd.

    Args:
        model: an `nn.Sequential` (nested ones too) of `nn.Linear`, `nn.Flatten` and the activations in
            `ACTIVATIONS`. Nothing in it changes, `.grad` included.
        x: inputs (N, features), or (N, ...) where the model flattens first; of the model's dtype.
        y: targets (N, outputs), or labels (N,) int64, which the squared errors take as one-hot targets.
        loss: "squared_error", summed over the outputs as in the formulas above; "mse", its mean over the outputs; or
            "cross_entropy" of a softmax over the outputs, with labels. Each is averaged over the batch.

    Returns:
        The loss, a tensor of shape (), and {parameter name: gradient}, named and ordered as in
        `model.named_parameters()`. A parameter used several times has the sum of its gradients.

    Raises:
        ValueError: a layer that is not supported or does not fit its input (the message names it), or x and y
            that do not fit the model or the loss.

    Example:
        >>> model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Identity())
        >>> _ = nn.init.constant_(model[0].weight, 3.0)
        >>> loss, gradients = backpropagate(model, torch.tensor([[2.0]]), torch.tensor([[5.0]]))
        >>> loss.item(), gradients["0.weight"].item()  # (3·2 − 5)² and 2 (3·2 − 5) · 2
        (1.0, 4.0)
    """
    # Forward: keep every layer's input and output.
    steps: list[tuple[nn.Module, Tensor, Tensor]] = []
    names: dict[nn.Parameter, str] = {}
    a = x
    for name, layer in _layers(model):
        below, a = a, _forward(name, layer, a)
        steps.append((layer, below, a))
        for key, p in layer._parameters.items():
            if p is not None:
                names.setdefault(p, f"{name}.{key}" if name else key)
    value, delta = _loss_and_slope(a, y, loss)

    # Backward: on the way, delta is ∂L/∂ of the output of the layer at hand.
    first = next((i for i, (layer, _, _) in enumerate(steps) if isinstance(layer, nn.Linear)), len(steps))
    gradients: dict[nn.Parameter, Tensor] = {}
    for i in range(len(steps) - 1, first - 1, -1):
        layer, below, above = steps[i]
        if isinstance(layer, nn.Linear):
            _accumulate(gradients, layer.weight, delta.T @ below)  # δ[l] a[l−1]ᵀ
            if layer.bias is not None:
                _accumulate(gradients, layer.bias, delta.sum(0))  # δ[l]
            if i > first:  # nobody asks for ∂L/∂x
                delta = delta @ layer.weight  # W[l]ᵀ δ[l]
        elif type(layer) in ACTIVATIONS:
            delta *= ACTIVATIONS[type(layer)](layer, below, above)  # ⊙ f′(z[l])
    return value, {name: gradients[p] for p, name in names.items()}


@torch.no_grad()
def central_differences(
    model: nn.Module, x: Tensor, y: Tensor, loss: Loss = "squared_error", eps: float = 1e-4
) -> dict[str, Tensor]:
    """Approximate the gradient by every weight and bias: (L(θ + ε) − L(θ − ε)) / 2ε, one weight at a time.

    The error has a part that shrinks with ε (truncation, ~ε²) and one that grows (rounding, ~1/ε times the precision of
    the dtype): about 1e-5 is best in float64; float32 is too coarse to check a gradient with.

    Args:
        model: any network that `torch.func.vmap` can take.
        x: inputs, as the model takes them.
        y: targets or labels, see `backpropagate`.
        loss: "squared_error", "mse" or "cross_entropy", see `backpropagate`.
        eps: the step ε > 0.

    Returns:
        {parameter name: gradient}, as `backpropagate`.

    Raises:
        ValueError: ε is not positive, or y does not fit the outputs or the loss.

    Example:
        >>> model = nn.Sequential(nn.Linear(1, 1, bias=False)).double()
        >>> _ = nn.init.constant_(model[0].weight, 3.0)
        >>> x, y = torch.tensor([[2.0]]).double(), torch.tensor([[5.0]]).double()
        >>> round(central_differences(model, x, y)["0.weight"].item(), 6)
        4.0
    """
    if not eps > 0:
        raise ValueError(f"eps is {eps}; the step must be positive, such as 1e-4")
    parameters = dict(model.named_parameters())
    gradients = {}
    for name, p in parameters.items():
        entries = torch.arange(p.numel(), device=p.device)

        def slope(entry: Tensor, name: str = name, p: Tensor = p, entries: Tensor = entries) -> Tensor:
            losses = []
            for step in (eps, -eps):
                moved = torch.where((entries == entry).view_as(p), p + step, p)
                outputs = torch.func.functional_call(model, parameters | {name: moved}, (x,))
                losses.append(_loss_and_slope(outputs, y, loss)[0])
            return (losses[0] - losses[1]) / (2 * eps)

        at_once = max(1, _NUMBERS // p.numel())
        gradients[name] = torch.func.vmap(slope, chunk_size=at_once)(entries).view(p.shape)
    return gradients


def relative_residual(a: Tensor, b: Tensor) -> float:
    """‖a − b‖ / (‖a‖ + ‖b‖) of tensors of one shape: 0 for equal ones, 1 for opposite ones, whatever their scale.

    It is 0 if both are zero, and inf if one holds NaN or infinite values, so that no check of a gradient passes.

    Raises:
        ValueError: the shapes differ.

    Example:
        >>> relative_residual(torch.tensor([3.0]), torch.tensor([1.0]))
        0.5
    """
    if a.shape != b.shape:
        raise ValueError(
            f"shapes {tuple(a.shape)} and {tuple(b.shape)} differ; compare gradients of the same parameter"
        )
    if a.numel() == 0:
        return 0.0
    a, b = a.double(), b.double()
    largest = max(a.abs().max().item(), b.abs().max().item())
    if not (a.isfinite().all() and b.isfinite().all()):
        return math.inf
    if largest == 0:
        return 0.0
    scale = 2.0 ** math.frexp(largest)[1]  # squares of very small or large numbers would leave the range
    a, b = a / scale, b / scale
    return ((a - b).norm() / (a.norm() + b.norm())).item()


def _layers(module: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Every layer with its name in the model, in the order of execution; nested Sequentials dissolve."""
    if type(module).forward is not nn.Sequential.forward:
        yield name, module
    else:
        for key, child in module._modules.items():  # named_children leaves out what comes a second time
            yield from _layers(child, f"{name}.{key}" if name else key)


def _forward(name: str, layer: nn.Module, a: Tensor) -> Tensor:
    # Exact types: a subclass may compute something else.
    kind = type(layer)
    if kind in ACTIVATIONS:
        return layer.forward(a.clone() if getattr(layer, "inplace", False) else a)  # the backward pass needs a
    if kind is nn.Linear:
        if a.ndim != 2 or a.shape[1] != layer.in_features or a.dtype != layer.weight.dtype:
            raise ValueError(
                f"layer {name!r} (Linear) takes (N, {layer.in_features}) {layer.weight.dtype}, but its input is "
                f"{tuple(a.shape)} {a.dtype}; begin with nn.Flatten() for images, and give x the model's dtype"
            )
        return F.linear(a, layer.weight, layer.bias)  # z = a Wᵀ + b
    if kind is nn.Flatten and (layer.start_dim, layer.end_dim) == (1, -1):
        return a.flatten(1)
    raise ValueError(
        f"layer {name!r}, {kind.__name__}({layer.extra_repr()}), is not supported; backpropagate takes nn.Sequential "
        f"of Linear, Flatten() and {', '.join(activation.__name__ for activation in ACTIVATIONS)}"
    )


def _loss_and_slope(outputs: Tensor, y: Tensor, loss: Loss) -> tuple[Tensor, Tensor]:
    """L and ∂L/∂a[L] for outputs a[L] of shape (N, C)."""
    if loss not in get_args(Loss):
        raise ValueError(f"loss {loss!r} is unknown; take {', '.join(map(repr, get_args(Loss)))}")
    if outputs.ndim != 2 or len(outputs) == 0 or outputs.shape[:1] != y.shape[:1]:
        raise ValueError(
            f"outputs are {tuple(outputs.shape)} and y is {tuple(y.shape)}; needed are (N, outputs) and N targets or "
            "labels, N ≥ 1"
        )
    n, classes = outputs.shape
    labels = y.ndim == 1 and y.dtype == torch.int64
    if labels:
        low, high = (int(label) for label in y.aminmax())
        if low < 0 or high >= classes:
            raise ValueError(f"labels go from {low} to {high}, but {classes} outputs stand for 0 to {classes - 1}")

    if loss == "cross_entropy":
        if not labels:
            raise ValueError(f"cross_entropy takes labels (N,) int64; y is {tuple(y.shape)} {y.dtype}")
        log_p = F.log_softmax(outputs, 1)
        return F.nll_loss(log_p, y), (log_p.exp() - F.one_hot(y, classes)) / n

    if not labels and (y.shape != outputs.shape or not y.is_floating_point()):
        raise ValueError(
            f"{loss} takes targets {tuple(outputs.shape)} or labels ({n},) int64; y is {tuple(y.shape)} {y.dtype}"
        )
    error = outputs - (F.one_hot(y, classes) if labels else y).to(outputs.dtype)
    count = n if loss == "squared_error" else n * classes
    return error.square().sum() / count, error * (2 / count)


def _accumulate(gradients: dict[nn.Parameter, Tensor], p: nn.Parameter, gradient: Tensor) -> None:
    gradients[p] = gradients[p] + gradient if p in gradients else gradient
