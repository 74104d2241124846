"""Every named network of the source documents, built from one table.

A network is always an `nn.Sequential` of standard layers, so that its layers can be listed, stacked
(`labutils.training`) and differentiated by hand (`labutils.backprop`). `residual` adds one layer of our own, the block.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "softplus": nn.Softplus,
    "gelu": nn.GELU,
    "identity": nn.Identity,
}


def mlp(
    widths: Sequence[int],
    activation: str = "relu",
    *,
    output_activation: str = "identity",
    bias: bool = True,
    seed: int = 0,
) -> nn.Sequential:
    """Build a multilayer perceptron, from (N, ...) with widths[0] values an example to (N, widths[-1]).

    Args:
        widths: sizes of input, hidden layers and output, such as (784, 256, 10).
        activation: name of the hidden layers' activation, a key of `ACTIVATIONS`.
        output_activation: the same for the output; "identity" adds no layer.
        bias: whether the dense layers have a bias.
        seed: seed of the initial weights, see `initialize`.

    Raises:
        ValueError: fewer than two widths, a width below 1, or an unknown activation.

    Example:
        >>> count_parameters(mlp((1, 18, 18, 1), "tanh"))
        397
    """
    if len(widths) < 2 or min(widths) < 1:
        raise ValueError(f"widths {tuple(widths)}: give input and output size at least, each 1 or more")
    for name in (activation, output_activation):
        _check_activation(name)
    layers: list[nn.Module] = [nn.Flatten()]
    for fan_in, fan_out in pairwise(widths[:-1]):
        layers += [_unset(nn.Linear, fan_in, fan_out, bias=bias), ACTIVATIONS[activation]()]
    layers.append(_unset(nn.Linear, widths[-2], widths[-1], bias=bias))
    if output_activation != "identity":
        layers.append(ACTIVATIONS[output_activation]())
    return initialize(nn.Sequential(*layers), seed)


def cnn(
    channels: Sequence[int],
    dense: Sequence[int] = (10,),
    *,
    size: int = 32,
    activation: str = "relu",
    dense_activation: str | None = None,
    padding: int = 1,
    pool: bool = True,
    softmax: bool = False,
    seed: int = 0,
) -> nn.Sequential:
    """Build a convolutional network, from (N, channels[0], size, size) to (N, dense[-1]).

    3×3 convolutions, each with its activation and 2×2 max-pooling, then dense layers.

    Args:
        channels: channels of the image and of every convolution, such as (3, 16, 32).
        dense: sizes of the dense layers, the last one being the number of classes.
        size: height and width of the image, in pixels.
        activation: activation after every convolution, a key of `ACTIVATIONS`.
        dense_activation: activation between dense layers; None means the same as `activation`.
        padding: zero padding of the convolutions, in pixels.
        pool: whether each convolution is followed by max-pooling.
        softmax: add a softmax after the last layer (a mistake before cross-entropy; one source has it).
        seed: seed of the initial weights, see `initialize`.

    Raises:
        ValueError: no convolution, no dense layer, an unknown activation, or an image too small for the layers.

    Example:
        >>> count_parameters(cnn((3, 16), padding=0))
        36458
    """
    dense_activation = activation if dense_activation is None else dense_activation
    for name in (activation, dense_activation):
        _check_activation(name)
    if len(channels) < 2 or not dense:
        raise ValueError(f"channels {tuple(channels)}, dense {tuple(dense)}: at least one layer of each is needed")
    layers: list[nn.Module] = []
    side = size
    for fan_in, fan_out in pairwise(channels):
        layers += [_unset(nn.Conv2d, fan_in, fan_out, 3, padding=padding), ACTIVATIONS[activation]()]
        side += 2 * padding - 2
        if pool:
            layers.append(nn.MaxPool2d(2))
            side //= 2
        if side < 1:
            raise ValueError(f"size {size} is too small for {len(channels) - 1} convolutions: nothing is left to pool")
    layers.append(nn.Flatten())
    widths = (channels[-1] * side**2, *dense)
    for i, (fan_in, fan_out) in enumerate(pairwise(widths)):
        if i > 0 and dense_activation != "identity":
            layers.append(ACTIVATIONS[dense_activation]())
        layers.append(_unset(nn.Linear, fan_in, fan_out))
    if softmax:
        layers.append(nn.Softmax(dim=1))
    return initialize(nn.Sequential(*layers), seed)


class Block(nn.Module):
    """Layers that keep the shape, bypassed by a skip connection (or not), and an activation, applied to the sum.

    Source:
        He et al. (2016), Deep residual learning for image recognition, CVPR.

    Example:
        >>> block = Block(nn.Sequential(nn.Linear(3, 3)), nn.ReLU())
        >>> x = torch.ones(1, 3)
        >>> torch.equal(block(x), torch.relu(x + block.layers(x)))
        True
    """

    def __init__(self, layers: nn.Sequential, activation: nn.Module, *, skip: bool = True) -> None:
        super().__init__()
        self.layers, self.activation, self.skip = layers, activation, skip

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, ...) to the same shape."""
        return self.join(x, self.layers(x))

    def join(self, x: Tensor, h: Tensor) -> Tensor:
        """Return the block's output from its input x and what its layers made of it."""
        return self.activation(x + h if self.skip else h)

    def extra_repr(self) -> str:
        """Name the skip connection, so that networks that differ in it alone are not taken for the same."""
        return f"skip={self.skip}"


def residual(
    channels: Sequence[int],
    classes: int = 10,
    *,
    size: int = 32,
    skip: bool = True,
    activation: str = "relu",
    seed: int = 0,
) -> nn.Sequential:
    """Build a small residual network without normalization, from (N, channels[0], size, size) to (N, classes).

    Each stage is a 3×3 convolution, an activation and a `Block` of two 3×3 convolutions; 2×2 max-pooling between the
    stages, one dense layer after the last. The convolutions' weights are √6 times as wide as PyTorch's own, so that
    their variance is 2 / fan_in (He et al. 2015): the plain network would otherwise hardly begin to learn.

    Args:
        channels: channels of the image and of every stage, such as (3, 16, 32).
        classes: number of outputs.
        size: height and width of the image, in pixels.
        skip: whether the blocks have skip connections. The same seed gives the same weights either way.
        activation, seed: as for `cnn`.

    Raises:
        ValueError: no stage, an unknown activation, or an image too small for the stages.

    Example:
        >>> count_parameters(residual((1, 4, 8), size=16)), count_parameters(residual((1, 4, 8), size=16, skip=False))
        (6930, 6930)
    """
    _check_activation(activation)
    if len(channels) < 2:
        raise ValueError(f"channels {tuple(channels)}: those of the image and of one stage are needed at least")
    side = size // 2 ** (len(channels) - 2)
    if side < 1:
        raise ValueError(f"size {size} is too small for {len(channels) - 1} stages: nothing is left to pool")
    act = ACTIVATIONS[activation]
    layers: list[nn.Module] = []
    for fan_in, width in pairwise(channels):
        if layers:
            layers.append(nn.MaxPool2d(2))
        first, second = (_unset(nn.Conv2d, width, width, 3, padding=1) for _ in range(2))
        block = Block(nn.Sequential(first, act(), second), act(), skip=skip)
        layers += [_unset(nn.Conv2d, fan_in, width, 3, padding=1), act(), block]
    layers += [nn.Flatten(), _unset(nn.Linear, channels[-1] * side**2, classes)]
    model = initialize(nn.Sequential(*layers), seed)
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, nn.Conv2d):
                layer.weight.mul_(6**0.5)
    return model


def initialize(model: nn.Module, seed: int) -> nn.Module:
    """Draw fresh weights and biases from U(−1/√fan_in, 1/√fan_in), PyTorch's own rule, in place; return the model.

    The same seed gives the same weights, whatever ran before.

    Raises:
        ValueError: a layer other than `nn.Linear` and `nn.Conv2d` has parameters.

    Example:
        >>> a, b = mlp((2, 3, 1), seed=1), mlp((2, 3, 1), seed=1)
        >>> torch.equal(a[1].weight, b[1].weight)
        True
    """
    generator = torch.Generator().manual_seed(seed)
    for name, layer in model.named_modules():
        own = list(layer.parameters(recurse=False))
        if not own:
            continue
        if not isinstance(layer, (nn.Linear, nn.Conv2d)):
            raise ValueError(f"layer {name!r} is a {type(layer).__name__}; only Linear and Conv2d can be initialized")
        bound = layer.weight[0].numel() ** -0.5
        with torch.no_grad():
            for parameter in own:
                # Drawn on the CPU in float32, then converted: a seed means the same on every device and type.
                draw = torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator)
                parameter.copy_(draw)
    return model


def count_parameters(model: nn.Module) -> int:
    """Return the number of trainable numbers in a network.

    Example:
        >>> count_parameters(nn.Linear(3, 2))
        8
    """
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def names() -> list[str]:
    """Return the names that `build` knows, in the order of the source documents.

    Example:
        >>> "d1-shallow" in names()
        True
    """
    return list(_NETWORKS)


def build(name: str, *, seed: int = 0, **options: Any) -> nn.Sequential:
    """Build a named network of the source documents, freshly initialized.

    Args:
        name: one of `names()`.
        seed: seed of the initial weights.
        **options: overrides of the table's settings, such as softmax=True for "cifar-1".

    Raises:
        ValueError: unknown name (the message lists the known ones).
        TypeError: an option that `mlp` or `cnn` does not have.

    Example:
        >>> count_parameters(build("d2-fit-1"))
        574
    """
    if name not in _NETWORKS:
        raise ValueError(f"unknown network {name!r}; there are {', '.join(_NETWORKS)}")
    builder, settings = _NETWORKS[name]
    return builder(**{**settings, **options}, seed=seed)


def _check_activation(name: str) -> None:
    if name not in ACTIVATIONS:
        raise ValueError(f"unknown activation {name!r}; there are {', '.join(ACTIVATIONS)}")


def _unset(layer: type[nn.Module], *sizes: int, **options: Any) -> nn.Module:
    """Make a layer without drawing from the global generator; `initialize` sets its weights."""
    return nn.utils.skip_init(layer, *sizes, **options)


def _mlp(widths: Sequence[int], activation: str) -> tuple[Callable[..., nn.Sequential], dict[str, Any]]:
    return mlp, {"widths": tuple(widths), "activation": activation}


def _cnn(*channels: int, **settings: Any) -> tuple[Callable[..., nn.Sequential], dict[str, Any]]:
    return cnn, {"channels": channels, **settings}


_MNIST_CONV = {"size": 28, "padding": 0, "pool": False, "activation": "sigmoid"}

_NETWORKS: dict[str, tuple[Callable[..., nn.Sequential], dict[str, Any]]] = {
    # D0: readout learning rates
    "d0-two-layer": _mlp((784, 2000, 2), "relu"),
    # D1: function fitting, MNIST, optimization paths, generalization
    "d1-shallow": _mlp((1, 18, 18, 1), "tanh"),
    "d1-deep": _mlp((1, 8, 8, 8, 8, 8, 8, 1), "tanh"),
    "d1-cnn-shallow": _cnn(1, 6, dense=(10,), **_MNIST_CONV),
    "d1-cnn-deep": _cnn(1, 6, dense=(36, 10), **_MNIST_CONV),
    "d1-path": _mlp((784, 250, 75, 36, 10), "tanh"),
    "d1-mlp": _mlp((784, 256, 256, 10), "tanh"),
    # D2: function fitting; the assignment's trio lacks the Linear(1, 1) that the report's networks begin with
    "d2-fit-0": _mlp((1, 1, 5, 10, 10, 10, 10, 10, 5, 1), "leaky_relu"),
    "d2-fit-1": _mlp((1, 1, 10, 18, 15, 4, 1), "leaky_relu"),
    "d2-fit-2": _mlp((1, 1, 190, 1), "leaky_relu"),
    "fit-0": _mlp((1, 5, 10, 10, 10, 10, 10, 5, 1), "leaky_relu"),
    "fit-1": _mlp((1, 10, 18, 15, 4, 1), "leaky_relu"),
    "fit-2": _mlp((1, 190, 1), "leaky_relu"),
    "d2-mnist": _mlp((1024, 128, 128, 10), "relu"),
    # D2: CIFAR-10
    "cifar-1": _cnn(3, 16, padding=0),
    "cifar-2": _cnn(3, 16, 32, 64, 32, 16),
    "cifar-7": _cnn(3, 32, 64, dense=(100, 10), dense_activation="identity"),
    "cifar-21": _cnn(3, 8, 10, 20, 25, 16),
    "cifar-22": _cnn(3, 16, 10, 20, 25, 16),
    "cifar-23": _cnn(3, 16, 10, 32, 20, 16),
    "cifar-24": _cnn(3, 16, 25, 20, 25, 16),
    "cifar-25": _cnn(3, 16, 64, 20, 24, 16),
    "cifar-26": _cnn(3, 16, 128, 20, 30, 16),
    "cifar-27": _cnn(3, 16, 128, 20, 64, 16),
    "cifar-28": _cnn(3, 16, 128, 20, 100, 16),
    "cifar-29": _cnn(3, 16, 128, 20, 128, 16),
    "cifar-30": _cnn(3, 16, 128, 32, 128, 32),
    "cifar-31": _cnn(3, 16, 256, 128, 64, 32),
    # D4: airplane or bird
    "d4-mlp": _mlp((3072, 512, 128, 32, 2), "relu"),
}
