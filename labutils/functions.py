"""The one-dimensional functions that the function-fitting experiments learn."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


def sinc(x: Tensor) -> Tensor:
    """Return sin(5πx) / (5πx), with its limit 1 at x = 0.

    Example:
        >>> sinc(torch.tensor([0.0, 0.2]))[0].item()
        1.0
    """
    return torch.sinc(5 * x)


def sign_sine(x: Tensor) -> Tensor:
    """Return sgn(sin(5πx)), a square wave that is 0 at its jumps, the multiples of 0.2 up to rounding.

    Example:
        >>> sign_sine(torch.tensor([0.1, 0.2, 0.3]))
        tensor([ 1.,  0., -1.])
    """
    # sin(πt) has the sign of t's place in its period (−1, 1); the sine itself would turn the jumps into ±rounding.
    t = 5 * x
    phase = t - 2 * torch.round(t / 2)
    jump = (t - t.round()).abs() <= 4 * torch.finfo(t.dtype).eps * t.abs()
    return torch.sign(phase).masked_fill(jump, 0.0)


def quadratic(x: Tensor) -> Tensor:
    """Return x².

    Example:
        >>> quadratic(torch.tensor([1.5]))
        tensor([2.2500])
    """
    return x**2


_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sinc": sinc,
    "sign_sine": sign_sine,
    "quadratic": quadratic,
}


def sample(name: str, n: int, low: float, high: float) -> tuple[Tensor, Tensor]:
    """Sample "sinc", "sign_sine" or "quadratic" on an even grid of n ≥ 2 points from low to high, both ends included.

    Returns:
        x and y, each (n, 1) float32, ready for `training.fit`.

    Raises:
        ValueError: unknown name, fewer than two points, or an empty interval.

    Example:
        >>> x, y = sample("quadratic", 3, 0.0, 2.0)
        >>> y.flatten()
        tensor([0., 1., 4.])
    """
    if name not in _FUNCTIONS:
        raise ValueError(f"unknown function {name!r}; there are {', '.join(_FUNCTIONS)}")
    if n < 2:
        raise ValueError(f"n = {n}: a curve needs at least 2 points")
    if not low < high:
        raise ValueError(f"the interval [{low}, {high}] is empty: low must be below high")
    # In double precision, and without what the grid's own rounding adds: a square wave's jumps fall where they should.
    x = torch.linspace(low, high, n, dtype=torch.float64).unsqueeze(1)
    x = x.round(decimals=14 - math.ceil(math.log10(max(abs(low), abs(high)))))
    return x.float(), _FUNCTIONS[name](x).float()
