"""Centered representations and the kernels between their examples: the arithmetic beneath `labutils.similarity`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import isfinite, sqrt
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

Images = Literal["flatten", "pool", "positions"]
Named = list[list[tuple[str, Any]]]
"""Each network's layers, with the words for an error message."""
Rows = Callable[[int, int], Tensor]
"""Kernel values (e − s, n − s) of the examples s to e with the examples from s on."""

_STRIP = 256  # features, or examples, whose products with all others are computed at once
_BLOCK_BYTES = 128 << 20  # of kernel values held at once, over all layers together


@dataclass(frozen=True)
class Centered:
    """A layer's representation, centered and of unit norm; from `centered`.

    Attributes:
        label: the words for it in an error message.
        x: (n, p) one example a row, a copy.
        mean: (p,) what was subtracted, in the unit of x.
        norm: of the centered representation, in the unit of what was given; 0 if it is constant.
        info: limits of the floating-point type that was given.
    """

    label: str
    x: Tensor
    mean: Tensor
    norm: float
    info: torch.finfo

    @property
    def n(self) -> int:
        """Number of examples."""
        return len(self.x)

    @property
    def eps(self) -> float:
        """Relative rounding error of the arithmetic that made the values; half precision is computed in float32."""
        return min(self.info.eps, torch.finfo(torch.float32).eps)

    def noise(self) -> float:
        """Return more than rounding can add to the representation in any one direction.

        The spectral norm of independent errors is about their largest column norm plus their largest row norm.
        """
        x, mean, n, p = self.x.double(), self.mean.double(), *self.x.shape
        offset = torch.linalg.vector_norm(mean).item()
        column = (x.square().sum(0) + n * mean.square()).max().sqrt().item()
        row = x.square().sum(1).max().sqrt().item() + offset
        tiny = self.info.tiny / self.norm * (sqrt(n) + sqrt(p))  # smaller numbers are not rounded any finer
        return max(self.info.eps / 2 * (column + row + tiny), 2 * self.eps * sqrt(1 + n * offset**2))


def centered(
    networks: Named,
    images: Images = "flatten",
    *,
    exact: bool = False,
    least: int = 2,
    center: bool = True,
    constant: bool = False,
) -> list[list[Centered]]:
    """Return each network's layers as matrices of one type, centered and of unit norm.

    Args:
        networks: for each network pairs of a label and a representation (n, ...).
        images: what an example of (n, C, H, W) is, see `similarity.cka`.
        exact: whether to compute in float64; else in float32 where no representation has more digits.
        least: fewest examples.
        center: whether to subtract the mean.
        constant: whether a constant layer is taken.

    Raises:
        ValueError: representations that do not fit, with the label in the message.

    Example:
        >>> [[layer]] = centered([[("x", [[1.0], [3.0]])]])
        >>> layer.x.flatten(), round(layer.norm, 6)
        (tensor([-0.7071,  0.7071], dtype=torch.float64), 1.414214)
    """
    matrices = [[(label, _matrix(value, label, images)) for label, value in network] for network in networks]
    few_digits = all(torch.finfo(x.dtype).eps > 1e-8 for network in matrices for _, x in network)
    dtype = torch.float32 if few_digits and not exact else torch.float64
    layers = [[_center(label, x, dtype, center) for label, x in network] for network in matrices]
    first, *others = flat = [layer for network in layers for layer in network]
    for layer in others:
        if layer.n != first.n:
            raise ValueError(
                f"{layer.label} has {layer.n} examples, {first.label} has {first.n}: the same examples are needed"
            )
    if first.n < least:
        why = "debiased HSIC needs 4 at least" if least == 4 else f"{least} are needed at least"
        raise ValueError(f"{first.label} has {first.n} example(s): {why}")
    for layer in flat:
        if layer.norm == 0 and not constant:
            what = f"{layer.n} examples have the same representation" if center else "values are 0"
            raise ValueError(f"{layer.label} is constant: all {what}")
    return layers


def _center(label: str, x: Tensor, dtype: torch.dtype, center: bool) -> Centered:
    info = torch.finfo(x.dtype)
    if x.numel() == 0:
        raise ValueError(f"{label} is empty: shape {tuple(x.shape)}")
    largest = max(abs(end.item()) for end in x.aminmax())
    if not isfinite(largest):
        raise ValueError(f"{label} has {int((~x.isfinite()).sum())} NaN or infinite values of {x.numel()}")
    x = x.to(dtype) / (largest or 1.0)  # the squares of 1e-30 or 1e30 leave float32's range
    mean = x.new_zeros(x.shape[1])
    if center:
        mean = x.mean(0)
        x -= mean
        x -= x.mean(0)  # what the mean's own rounding left, which counts where it is large
    norm = sqrt(sum_of_squares(x))
    layer = Centered(label, x, mean, norm, info)
    if norm <= layer.eps * sqrt(len(x)) * torch.linalg.vector_norm(mean).item():  # all is rounding
        return replace(layer, x=x.zero_(), norm=0.0)
    return replace(layer, x=x.div_(norm), mean=mean / norm, norm=norm * largest)


def _matrix(value: Any, label: str, images: Images) -> Tensor:
    """Return a representation (n, ...) as a floating-point matrix (n, p); errors begin with the label."""
    if images not in get_args(Images):
        raise ValueError(f"unknown images {images!r}; there are {', '.join(map(repr, get_args(Images)))}")
    x = as_tensor(value)
    if x.is_complex():
        raise ValueError(f"{label} is complex; real numbers are needed")
    if not x.is_floating_point():
        x = x.double()
    if x.dim() < 2:
        raise ValueError(f"{label} has shape {tuple(x.shape)}: the examples' (n, ...) is needed; one unit is (n, 1)")
    if x.dim() == 4 and images == "pool":
        x = x.mean((2, 3))
    elif x.dim() == 4 and images == "positions":
        x = x.permute(0, 2, 3, 1).flatten(0, 2)
    return x.flatten(1)


def as_tensor(value: Any) -> Tensor:
    """Return a tensor without its gradient graph, or an array or list as a tensor.

    Example:
        >>> as_tensor([1.0, 2.0])
        tensor([1., 2.], dtype=torch.float64)
    """
    return value.detach() if isinstance(value, Tensor) else torch.from_numpy(np.array(value, order="C"))


def sum_of_squares(x: Tensor) -> float:
    """Return ‖x‖²_F. (Torch's sums are made in pairs; its norms are not, and lose digits over millions of entries.)

    Example:
        >>> sum_of_squares(torch.tensor([3.0, 4.0]))
        25.0
    """
    return float(x.square().sum().item())


def gram_norm2(x: Tensor) -> float:
    """Return ‖XᵀX‖²_F = ‖XXᵀ‖²_F of the smaller of the two, each product once although the matrix has it twice.

    Example:
        >>> gram_norm2(torch.tensor([[1.0, 2.0]]))
        25.0
    """
    x = x if x.shape[0] >= x.shape[1] else x.T
    total = 0.0
    for start in range(0, x.shape[1], _STRIP):
        strip = x[:, start : start + _STRIP].T @ x[:, start:]
        total += 2 * sum_of_squares(strip) - sum_of_squares(strip[:, : strip.shape[0]])
    return total


def hsic(kernels: Sequence[Rows], n: int, device: Any, *, debiased: bool) -> Tensor:
    """Return HSIC of M symmetric kernels of n examples with each other, up to a common factor: (M, M) float64.

    Some rows of all at a time, above the diagonal only: never an n × n matrix of each.

    Example:
        >>> x = torch.tensor([[-1.0], [0.0], [1.0]])
        >>> hsic([linear_rows(x), linear_rows(2 * x)], 3, "cpu", debiased=False)
        tensor([[ 4., 16.],
                [16., 64.]], dtype=torch.float64)
    """
    count = len(kernels)
    inner = torch.zeros(count, count, dtype=torch.float64, device=device)  # ⟨K, L⟩
    rows = torch.zeros(count, n, dtype=torch.float64, device=device)  # K1
    height = max(16, min(n, _BLOCK_BYTES // (count * n * 8)))
    for start in range(0, n, height):
        end = min(start + height, n)
        strip = torch.empty(count, end - start, n - start, dtype=torch.float64, device=device)
        for out, kernel in zip(strip, kernels, strict=True):
            out.copy_(kernel(start, end))
        if debiased:
            strip[:, :, : end - start].diagonal(dim1=1, dim2=2).zero_()
        corner, rest = strip[:, :, : end - start].flatten(1), strip[:, :, end - start :].flatten(1)
        inner += corner @ corner.T + 2 * rest @ rest.T
        rows[:, start:end] += strip.sum(2)
        rows[:, end:] += strip[:, :, end - start :].sum(1)
    total = rows.sum(1)
    weights = (1 / ((n - 1) * (n - 2)), 2 / (n - 2)) if debiased else (1 / n**2, 2 / n)
    hsic = inner + weights[0] * total[:, None] * total - weights[1] * rows @ rows.T
    own = hsic.diagonal()
    own[own <= 1e-13 * inner.diagonal()] = 0  # no more is left of ⟨K, K⟩ than rounding leaves
    return hsic


def linear_rows(x: Tensor) -> Rows:
    """Return the rows of XXᵀ.

    Example:
        >>> linear_rows(torch.tensor([[1.0], [2.0]]))(0, 1)
        tensor([[1., 2.]])
    """
    return lambda start, end: x[start:end] @ x[start:].T


def rbf_rows(layer: Centered, sigma: float) -> Rows:
    """Return the rows of exp(−d²/2s²), with s² = sigma² times the median of d² over all n² pairs of examples.

    Raises:
        ValueError: the median is 0.

    Example:
        >>> [[layer]] = centered([[("x", [[0.0], [1.0], [2.0]])]])
        >>> rbf_rows(layer, 1.0)(0, 1)  # d² is 0, 1 and 4, with the median 1
        tensor([[1.0000, 0.6065, 0.1353]], dtype=torch.float64)
    """
    x, n = layer.x, layer.n
    squares = x.square().sum(1)

    def distances2(start: int, end: int) -> Tensor:
        sizes = squares[start:end, None] + squares[start:]
        d2 = torch.addmm(sizes, x[start:end], x[start:].T, alpha=-2)
        d2[d2 < 1e-14 * sizes] = 0  # equal examples, up to rounding
        d2[:, : end - start].fill_diagonal_(0)
        return d2

    above, filled = torch.empty(n * (n - 1) // 2, dtype=x.dtype), 0
    for start in range(0, n, _STRIP):
        strip = distances2(start, min(start + _STRIP, n))
        part = strip[torch.ones_like(strip, dtype=torch.bool).triu_(1)]
        above[filled : filled + len(part)] = part
        filled += len(part)
    # Of all n² squared distances n are 0, and each other one is there twice: the median, from one half of them.
    ranks = [max(0, (rank - n) // 2) for rank in ((n * n - 1) // 2, n * n // 2)]
    distances = above.numpy()
    distances.partition(ranks)
    median = distances[ranks].mean()
    if n == 2:
        median /= 2  # of 0, 0, d², d²
    if median == 0:
        raise ValueError(f"{layer.label}: the median distance between two examples is 0: the RBF kernel has no width")
    return lambda start, end: distances2(start, end).mul_(-0.5 / (sigma**2 * median)).exp_()
