"""Similarity of representations: CKA, CCA and their relatives.

A representation is what a layer makes of n examples: an n × p matrix, a tensor or array with the examples first. Every
function here gives a *similarity*: higher means more alike, and a representation has similarity 1 with itself.
With X (n × p) and Y (n × q) centered, one example a row:

- linear CKA: ‖YᵀX‖²_F / (‖XᵀX‖_F ‖YᵀY‖_F); with other kernels, HSIC(K, L) / √(HSIC(K, K) HSIC(L, L)),
- CCA: the mean of the canonical correlations; SVCCA: that of the leading principal directions; PWCCA: weighted,
- Procrustes: the nuclear norm of XᵀY, both scaled to unit Frobenius norm.

===================  =====  =====  ==========  ====================================
unchanged under      shift  scale  rotation    invertible linear map
===================  =====  =====  ==========  ====================================
`cka`, `procrustes`  yes    yes    yes         no
`svcca`              yes    yes    yes         no (the leading directions change)
`cca`                yes    yes    yes         yes
`pwcca`              yes    yes    of Y        of Y (of X: permutations of its units)
`gradient_cka`       no     yes    yes         no
===================  =====  =====  ==========  ====================================

Products of features (p × q) are taken wherever they are cheaper than those of examples (n × n), and float64 wherever
large numbers cancel; what concerns one layer alone happens once for each layer, not once a pair.
Images (n, C, H, W) are examples, flattened to C·H·W features each; `cka` can treat them otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import combinations, pairwise, permutations
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from torch import Tensor

from labutils.kernels import (
    Centered,
    Images,
    Named,
    Rows,
    as_tensor,
    centered,
    gram_norm2,
    hsic,
    linear_rows,
    rbf_rows,
    sum_of_squares,
)
from labutils.statistics import Interval, mean_interval, pair_effects

Layers = Mapping[str, Any]
"""Representations by layer name; for gradient CKA pairs of a representation and its gradient."""

_TIE = 1e-6  # similarities that differ by no more are equal: what float32 may add


def cka(
    x: ArrayLike | Tensor,
    y: ArrayLike | Tensor,
    kernel: Literal["linear", "rbf"] = "linear",
    sigma: float = 0.5,
    debiased: bool = False,
    *,
    images: Images = "flatten",
) -> float:
    """Return the centered kernel alignment of two representations, from 0 to 1.

    The usual, biased estimate of independent representations is about d / (d + n − 1), with d the effective number of
    dimensions (Σλ)² / Σλ² of variances λ along principal directions. The debiased one has mean 0, and may be negative.

    Args:
        x, y: (n, ...) the two representations, of the same examples in the same order, n ≥ 2 (debiased: n ≥ 4); their
            widths may differ.
        kernel: "linear", or "rbf": exp(−d²/2s²) of the distance d between examples.
        sigma: for "rbf", s in multiples of the square root of the median squared distance over all n² pairs (an
            example with itself included, as in the authors' code).
        debiased: whether to use the debiased estimate of HSIC.
        images: what an example of (n, C, H, W) is: "flatten" an image; "pool" an image averaged over its positions;
            "positions" each position of each image, for layers of equal height and width.

    Raises:
        ValueError: different n, too few examples, a constant representation, NaN or infinite values, or an unknown
            option; the message says which of the two it is.

    Source:
        Kornblith et al. (2019), arXiv 1905.00414; debiased: Song et al. (2007), Székely and Rizzo (2014).

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]])
        >>> round(cka(x, 3 * x.flip(1) + 5), 6)  # rotated, scaled, shifted
        1.0
    """
    return _of_two(x, y, "cka", kernel=kernel, sigma=sigma, debiased=debiased, images=images)


def cca(x: ArrayLike | Tensor, y: ArrayLike | Tensor) -> float:
    """Return the mean canonical correlation of two representations (n, ...), from 0 to 1; raises as `cka`.

    Directions without variance are dropped, and the number of correlations is the smaller rank. Where a rank reaches
    n − 1, as it does if n ≤ p, canonical directions can fit anything: the result is 1 whatever the data.

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-1.0, -1.0], [0.0, 0.5]])
        >>> round(cca(x, x @ torch.tensor([[1.0, 2.0], [0.0, 1.0]])), 6)
        1.0
    """
    return _of_two(x, y, "cca")


def svcca(x: ArrayLike | Tensor, y: ArrayLike | Tensor, variance: float = 0.99) -> float:
    """Return the mean canonical correlation of two representations' leading principal directions, from 0 to 1.

    Of each representation the fewest principal directions are kept that explain this share of the variance, above 0 and
    up to 1. Raises as `cka`.

    Source:
        Raghu et al. (2017), arXiv 1706.05806.

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-1.0, -1.0], [0.0, 0.5]])
        >>> round(svcca(x, 2 * x + 1), 6)
        1.0
    """
    return _of_two(x, y, "svcca", variance=variance)


def pwcca(x: ArrayLike | Tensor, y: ArrayLike | Tensor) -> float:
    """Return the projection-weighted mean canonical correlation, from 0 to 1; raises as `cka`.

    A canonical variable h of X has the weight ``Σⱼ |⟨h, xⱼ⟩|`` over the columns of X, so that it is not symmetric.

    Source:
        Morcos et al. (2018), arXiv 1806.05759, equation 3.

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-1.0, -1.0], [0.0, 0.5]])
        >>> round(pwcca(x, x + 1), 6)
        1.0
    """
    return _of_two(x, y, "pwcca")


def procrustes(x: ArrayLike | Tensor, y: ArrayLike | Tensor) -> float:
    """Return the orthogonal Procrustes similarity ‖XᵀY‖_*, both scaled to unit Frobenius norm; raises as `cka`.

    It is 1 − d²/2, with d the Procrustes distance: what is left between X and Y after the best rotation.

    Source:
        Ding et al. (2021), arXiv 2108.01661.

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-1.0, -1.0], [0.0, 0.5]])
        >>> round(procrustes(x, x.flip(1)), 6)
        1.0
    """
    return _of_two(x, y, "procrustes")


def gradient_cka(
    x: ArrayLike | Tensor,
    gx: ArrayLike | Tensor,
    y: ArrayLike | Tensor,
    gy: ArrayLike | Tensor,
    *,
    debiased: bool = False,
) -> float:
    """Return the CKA of two layers with gradient flow: what they compute together with how the loss depends on it.

    With a layer's outputs X and the gradients G of each example's loss by them, flattened and not centered, the kernel
    is K = (XXᵀ) ∘ (GGᵀ): the Gram matrix of the products xᵢ ⊗ gᵢ. HSIC centers the kernels. Raises as `cka`.

    Args:
        x, gx: (n, ...) outputs of the first layer and gradients, as from `representations.extract_gradients`.
        y, gy: those of the second layer, for the same examples.
        debiased: whether to use the debiased estimate of HSIC, see `cka`.

    Source:
        Tang et al. (2020), arXiv 2003.11498.

    Example:
        >>> x = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 7.0]])
        >>> g = torch.tensor([[1.0, 0.0], [0.5, 1.0], [0.0, 1.0]])
        >>> round(gradient_cka(x, g, x, 2 * g), 6)
        1.0
    """
    return _of_two((x, gx), (y, gy), "gradient_cka", debiased=debiased)


def target_alignment(x: ArrayLike | Tensor, y: ArrayLike | Tensor) -> float:
    """Return the centered alignment of a representation (n, ...) with labels (n,): CKA(XXᵀ, YYᵀ), Y one-hot.

    Raises:
        ValueError: as `cka`; labels that are not (n,) whole numbers, or all of one class.

    Source:
        Cortes et al. (2012), JMLR 13, 795-828; Canatar and Pehlevan (2022).

    Example:
        >>> target_alignment([[1.0], [1.0], [-1.0], [-1.0]], [3, 3, 8, 8])
        1.0
    """
    x, labels = as_tensor(x), as_tensor(y)
    if labels.is_floating_point() or labels.is_complex() or labels.dim() != 1:
        raise ValueError(f"y must be labels (n,), whole numbers, got shape {tuple(labels.shape)} {labels.dtype}")
    _, index = labels.to(x.device).unique(return_inverse=True)
    return cka(x, F.one_hot(index).to(x.dtype if x.is_floating_point() else torch.float64))


class MinibatchCKA:
    """Linear CKA of all layer pairs of two networks, a batch at a time: memory does not grow with n.

    Sums the debiased HSIC over batches, for each pair of layers and for each layer with itself, and divides once in
    the end. A batch counts in proportion to its size; one of fewer than 4 examples is left out.

    Attributes:
        layers: names of the first and of the second network's layers, in the order of `matrix()`'s rows and columns.
        examples: examples that counted so far.
        batches: batches that counted.
        skipped: batches that were left out.

    Source:
        Nguyen et al. (2021), arXiv 2010.15327, equations 2 and 3.

    Example:
        >>> x = torch.randn(100, 6, generator=torch.Generator().manual_seed(0))
        >>> running = MinibatchCKA()
        >>> for batch in x.split(30):
        ...     running.update({"a": batch, "b": batch[:, :3]}, {"c": batch})
        >>> running.matrix().shape, running.batches, running.skipped
        ((2, 1), 4, 0)
    """

    def __init__(self) -> None:
        self.layers: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
        self.examples = self.batches = self.skipped = 0
        self._sums: tuple[Tensor, Tensor, Tensor] | None = None

    def update(self, a: Layers, b: Layers) -> None:
        """Add a batch of representations (m, ...) of two networks' layers by name; both may be the same object.

        Raises:
            ValueError: other layers than in earlier batches, different numbers of examples, NaN or infinite values.
                The batch then does not count.
        """
        names = tuple(a), tuple(b)
        if not (a and b):
            raise ValueError("a network without layers: give one representation at least")
        if self.layers != ((), ()) and names != self.layers:
            raise ValueError(f"this batch has the layers {names}, earlier ones had {self.layers}")
        labeled = [("a", a)] if a is b else [("a", a), ("b", b)]
        values = [(f"{name!r} of {which}", value) for which, layers in labeled for name, value in layers.items()]
        [layers] = centered([values], least=0, constant=True)
        m = layers[0].n
        if m < 4:
            self.layers = names
            self.skipped += 1
            return
        found = hsic([linear_rows(layer.x) for layer in layers], m, layers[0].x.device, debiased=True)
        scale = torch.tensor([layer.norm**2 for layer in layers], dtype=torch.float64, device=found.device)
        found *= scale[:, None] * scale / (m - 3)  # m, the batch's weight, over m (m − 3)
        own = found.diagonal()
        new = found[: len(a), -len(b) :], own[: len(a)], own[-len(b) :]
        self._sums = new if self._sums is None else tuple(s + part for s, part in zip(self._sums, new, strict=True))
        self.layers = names
        self.examples += m
        self.batches += 1

    def matrix(self) -> np.ndarray:
        """Return the CKA of all pairs so far, float64, (layers of the first, layers of the second network).

        Raises:
            ValueError: no batch of 4 examples or more so far, or a layer that was constant in all of them.
        """
        if self._sums is None:
            raise ValueError(f"no batch of 4 examples or more so far ({self.skipped} smaller ones were left out)")
        cross, first, second = self._sums
        for which, names, own in zip(("a", "b"), self.layers, (first, second), strict=True):
            for name, value in zip(names, own.tolist(), strict=True):
                if not value > 0:
                    raise ValueError(f"layer {name!r} of {which} is constant in every batch: its CKA is undefined")
        return (cross / (first[:, None] * second).sqrt()).clamp(max=1).cpu().numpy()


def similarity_matrix(a: Layers, b: Layers, measure: str = "cka", **options: Any) -> np.ndarray:
    """Return the similarity of every layer of one network with every layer of another.

    Args:
        a, b: representations (n, ...) of the two networks' layers by name, of the same examples; for "gradient_cka"
            pairs (representation, gradient).
        measure: "cka", "cca", "svcca", "pwcca", "procrustes" or "gradient_cka".
        **options: options of that function, such as debiased=True.

    Returns:
        (layers of a, layers of b), float64, in the order of the dictionaries.

    Raises:
        ValueError: as the function itself; the message names the layer.

    Example:
        >>> x = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
        >>> similarity_matrix({"1": x, "2": x[:, :3]}, {"1": 2 * x}).round(2)
        array([[1.  ],
               [0.65]])
    """
    return _similarities([a, b], ["a", "b"], measure, options, [(0, 1)])[0, 1]


@dataclass(frozen=True)
class LayerMatching:
    """How often the most similar layer of another network is the corresponding one; from `layer_matching_accuracy`.

    Attributes:
        layers: names of the L layers.
        similarity: (K, K, L, L) of each layer (third index) of each network (first) with each layer of each other
            network; NaN for a network with itself.
        matched: (K, K, M) whether a layer's most similar layer in the other network is the corresponding one, as
            numbers 0 and 1, for the M layers that were not excluded; NaN for a network with itself.
    """

    layers: tuple[str, ...]
    similarity: np.ndarray
    matched: np.ndarray

    @property
    def accuracy(self) -> float:
        """Share of correct matches over all ordered pairs of networks and all layers."""
        return float(np.nanmean(self.matched))

    @property
    def effects(self) -> np.ndarray:
        """One value a network, (K,), with the mean `accuracy`; see `statistics.pair_effects`."""
        return pair_effects(self.matched.mean(2))

    @property
    def interval(self) -> Interval:
        """The accuracy with a 95 % interval over networks, which are the independent unit, not their pairs."""
        return mean_interval(self.effects)

    @property
    def mean_table(self) -> pd.DataFrame:
        """The mean similarity (L, L) over all ordered pairs of networks, as `plotting.heatmaps` draws it."""
        table = pd.DataFrame(np.nanmean(self.similarity, axis=(0, 1)), self.layers, self.layers)
        return table.rename_axis(index="layer of one network", columns="layer of another")


def layer_matching_accuracy(
    networks: Sequence[Layers], measure: str = "cka", *, exclude: Sequence[str] = (), **options: Any
) -> LayerMatching:
    """Run the sanity check of Kornblith et al.: is a layer most similar to the same layer of another training?

    For every ordered pair of networks and every layer of the first, the most similar layer of the second should be the
    corresponding one. A tie (within 1e-6) is no match. A measure that is not symmetric uses (S + Sᵀ) / 2.

    Args:
        networks: two or more networks' representations by layer name, as for `similarity_matrix`, with the same names;
            three or more for the result's effects and interval.
        measure: as for `similarity_matrix`.
        exclude: layers that are neither matched nor candidates, usually the logits; their similarities are reported.
        **options: options of the measure.

    Raises:
        ValueError: fewer than two networks or layers to match, different layers, an unknown one; and as the measure.

    Source:
        Kornblith et al. (2019), arXiv 1905.00414, section 6.1.

    Example:
        >>> x = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
        >>> found = layer_matching_accuracy([{"1": x, "2": x.relu()}, {"1": -x, "2": 3 * x.relu()}])
        >>> found.accuracy
        1.0
    """
    networks = list(networks)
    if len(networks) < 2:
        raise ValueError(f"{len(networks)} network(s): give two at least")
    layers = tuple(networks[0])
    for k, network in enumerate(networks):
        if tuple(network) != layers:
            raise ValueError(f"networks[{k}] has the layers {tuple(network)}, networks[0] has {layers}")
    if unknown := [name for name in exclude if name not in layers]:
        raise ValueError(f"exclude: unknown layer {unknown[0]!r}; there are {', '.join(map(repr, layers))}")
    kept = [i for i, name in enumerate(layers) if name not in exclude]
    if len(kept) < 2:
        raise ValueError(f"{len(kept)} layer(s) to match: with fewer than two there is nothing to confuse")
    count, size = len(networks), len(layers)
    labels = [f"networks[{k}]" for k in range(count)]
    both = list(permutations(range(count), 2)) if measure == "pwcca" else list(combinations(range(count), 2))
    found = _similarities(networks, labels, measure, options, both)
    similarity = np.full((count, count, size, size), np.nan)
    for a, b in combinations(range(count), 2):
        similarity[a, b] = (found[a, b] + found[b, a].T) / 2 if measure == "pwcca" else found[a, b]
        similarity[b, a] = similarity[a, b].T
    matched = np.full((count, count, len(kept)), np.nan)
    for a, b in permutations(range(count), 2):
        part = similarity[a, b][np.ix_(kept, kept)]
        others = np.where(np.eye(len(kept), dtype=bool), -np.inf, part)
        matched[a, b] = np.diag(part) > others.max(1) + _TIE
    return LayerMatching(layers, similarity, matched)


# --- Measures -----------------------------------------------------------------------------------------------------

_Matrices = dict[tuple[int, int], np.ndarray]


def _of_two(x: Any, y: Any, measure: str, **options: Any) -> float:
    return float(_similarities([{"x": x}, {"y": y}], ["", ""], measure, options, [(0, 1)])[0, 1][0, 0])


def _similarities(
    networks: Sequence[Layers],
    labels: Sequence[str],
    measure: str,
    options: dict[str, Any],
    pairs: list[tuple[int, int]],
) -> _Matrices:
    """Return the similarity matrix of each pair of networks, doing what concerns one layer alone once."""
    if measure not in _MEASURES:
        raise ValueError(f"unknown measure {measure!r}; there are {', '.join(map(repr, _MEASURES))}")
    for label, network in zip(labels, networks, strict=True):
        if not network:
            raise ValueError(f"{label} has no layers: give one representation at least")
    values = [
        [(f"layer {name!r} of {label}" if label else name, value) for name, value in network.items()]
        for label, network in zip(labels, networks, strict=True)
    ]
    return _MEASURES[measure](values, pairs, **options)


def _cka(
    values: Named,
    pairs: list[tuple[int, int]],
    *,
    kernel: str = "linear",
    sigma: float = 0.5,
    debiased: bool = False,
    images: Images = "flatten",
) -> _Matrices:
    if kernel not in ("linear", "rbf"):
        raise ValueError(f"unknown kernel {kernel!r}; there are 'linear' and 'rbf'")
    if not 0 < sigma < float("inf"):
        raise ValueError(f"sigma = {sigma}: must be positive, in multiples of the median distance")
    layers = centered(values, images, exact=debiased or kernel == "rbf", least=4 if debiased else 2)
    flat = [layer for network in layers for layer in network]
    n = flat[0].n
    if kernel == "rbf":
        return _from_hsic([rbf_rows(layer, sigma) for layer in flat], layers, pairs, debiased=debiased)
    widths = [sum(layer.x.shape[1] for layer in network) for network in layers]
    products = sum(widths[a] * widths[b] for a, b in pairs) + sum(layer.x.shape[1] ** 2 for layer in flat) / 2
    if n * products > n**2 / 2 * (sum(widths) + len(flat) ** 2):
        return _from_hsic([linear_rows(layer.x) for layer in flat], layers, pairs, debiased=debiased)
    norms = [np.array([gram_norm2(layer.x) for layer in network]) for network in layers]
    cross = {(a, b): np.array([[sum_of_squares(x.x.T @ y.x) for y in layers[b]] for x in layers[a]]) for a, b in pairs}
    if debiased:  # centered features: the rows of a kernel sum to 0, so without its diagonal to minus that
        diagonals = [torch.stack([layer.x.square().sum(1) for layer in net]).cpu().numpy() for net in layers]

        def debias(inner: np.ndarray, products: np.ndarray, totals: np.ndarray) -> np.ndarray:
            return inner - n / (n - 2) * products + totals / ((n - 1) * (n - 2))

        for a, b in pairs:
            totals = diagonals[a].sum(1)[:, None] * diagonals[b].sum(1)
            cross[a, b] = debias(cross[a, b], diagonals[a] @ diagonals[b].T, totals)
        own = [debias(norm, (d * d).sum(1), d.sum(1) ** 2) for norm, d in zip(norms, diagonals, strict=True)]
        norms = [np.where(left > 1e-13 * norm, left, 0.0) for left, norm in zip(own, norms, strict=True)]  # as in hsic
    return _normalize(cross, norms, layers)


def _gradient_cka(values: Named, pairs: list[tuple[int, int]], *, debiased: bool = False) -> _Matrices:
    def gradient_rows(x: Tensor, g: Tensor) -> Rows:
        return lambda start, end: (x[start:end] @ x[start:].T) * (g[start:end] @ g[start:].T)

    features, gradients = [], []
    for network in values:
        for label, value in network:
            if not isinstance(value, (tuple, list)) or len(value) != 2:
                raise ValueError(f"{label}: gradient CKA takes a pair (representation, gradient)")
            shapes = [tuple(as_tensor(part).shape) for part in value]
            if shapes[0] != shapes[1]:
                raise ValueError(
                    f"{label} has shape {shapes[0]}, its gradient {shapes[1]}: both belong to the same outputs"
                )
        features.append([(label, value[0]) for label, value in network])
        gradients.append([(f"the gradient of {label}", value[1]) for label, value in network])
    least = 4 if debiased else 2
    layers, slopes = (centered(part, exact=True, least=least, center=False) for part in (features, gradients))
    pairs_of_layers = zip((x for net in layers for x in net), (g for net in slopes for g in net), strict=True)
    return _from_hsic([gradient_rows(x.x, g.x) for x, g in pairs_of_layers], layers, pairs, debiased=debiased)


def _from_hsic(
    kernels: list[Rows], layers: list[list[Centered]], pairs: list[tuple[int, int]], *, debiased: bool
) -> _Matrices:
    first = layers[0][0]
    found = hsic(kernels, first.n, first.x.device, debiased=debiased).cpu().numpy()
    part = [slice(start, end) for start, end in pairwise(np.cumsum([0, *map(len, layers)]))]
    return _normalize({(a, b): found[part[a], part[b]] for a, b in pairs}, [np.diag(found)[p] for p in part], layers)


def _normalize(cross: _Matrices, norms: list[np.ndarray], layers: list[list[Centered]]) -> _Matrices:
    for own, network in zip(norms, layers, strict=True):
        for value, layer in zip(own, network, strict=True):
            if not value > 0:
                raise ValueError(f"{layer.label} is constant for this kernel: no two examples differ from the others")
    return {(a, b): np.minimum(c / np.sqrt(norms[a][:, None] * norms[b]), 1.0) for (a, b), c in cross.items()}


def _cca(values: Named, pairs: list[tuple[int, int]]) -> _Matrices:
    bases = [[_directions(layer)[0] for layer in network] for network in centered(values, exact=True)]
    return {(a, b): _each(bases[a], bases[b], _mean_correlation) for a, b in pairs}


def _svcca(values: Named, pairs: list[tuple[int, int]], *, variance: float = 0.99) -> _Matrices:
    if not 0 < variance <= 1:
        raise ValueError(f"variance = {variance}: must be above 0 and up to 1, as in 0.99")
    layers = centered(values)
    bases = [_at_once(lambda layer: _leading_directions(layer, variance), network) for network in layers]
    return {(a, b): _each(bases[a], bases[b], _mean_correlation) for a, b in pairs}


def _pwcca(values: Named, pairs: list[tuple[int, int]]) -> _Matrices:
    def weighted(x: tuple[Tensor, Tensor], y: tuple[Tensor, Tensor]) -> Tensor:
        left, correlations, _ = torch.linalg.svd(x[0].T @ y[0], full_matrices=False)
        weights = (left.T @ x[1]).abs().sum(1)
        return (weights * correlations.clamp(max=1)).sum() / weights.sum()

    bases = [[_directions(layer) for layer in network] for network in centered(values, exact=True)]
    return {(a, b): _each(bases[a], bases[b], weighted) for a, b in pairs}


def _procrustes(values: Named, pairs: list[tuple[int, int]]) -> _Matrices:
    def coordinates(x: Tensor) -> Tensor:  # of one wider than long something smaller with the same products of examples
        if x.shape[0] >= x.shape[1]:
            return x
        u, s, _ = torch.linalg.svd(x.double(), full_matrices=False)
        return (u * s).to(x.dtype)

    def nuclear_norm(x: Tensor, y: Tensor) -> Tensor:
        return torch.linalg.svdvals((x.T @ y).double()).sum()

    layers = [[coordinates(layer.x) for layer in network] for network in centered(values)]
    return {(a, b): np.minimum(_each(layers[a], layers[b], nuclear_norm), 1.0) for a, b in pairs}


_MEASURES: dict[str, Callable[..., _Matrices]] = {
    "cka": _cka,
    "cca": _cca,
    "svcca": _svcca,
    "pwcca": _pwcca,
    "procrustes": _procrustes,
    "gradient_cka": _gradient_cka,
}


def _directions(layer: Centered) -> tuple[Tensor, Tensor]:
    """Return orthonormal directions among the examples (n, k), without those that rounding made, and the features in
    these coordinates (k, p)."""
    u, s, vt = torch.linalg.svd(layer.x, full_matrices=False)
    rank = max(1, int((s > max(layer.noise(), 1e-12 * s[0].item())).sum()))
    return u[:, :rank], s[:rank, None] * vt[:rank]


def _leading_directions(layer: Centered, variance: float) -> Tensor:
    """Return the fewest left singular vectors that explain the share of variance, from the smaller Gram matrix."""
    x, (n, p) = layer.x.double(), layer.x.shape
    eigenvalues, vectors = torch.linalg.eigh(x @ x.T if n < p else x.T @ x)
    eigenvalues, vectors = eigenvalues.flip(0).clamp(min=0), vectors.flip(1)
    floor = max(layer.noise() ** 2, max(n, p) * torch.finfo(torch.float64).eps * eigenvalues[0].item())
    explained = eigenvalues.cumsum(0) / eigenvalues.sum()
    count = int((explained < variance * (1 - 1e-12)).sum()) + 1
    count = max(1, min(count, int((eigenvalues > floor).sum())))
    vectors = vectors[:, :count]
    if n < p:
        return vectors.to(layer.x.dtype)
    # The directions need float64, as small eigenvalues drown beside large ones; what is projected on them does not.
    return layer.x @ (vectors / eigenvalues[:count].sqrt()).to(layer.x.dtype)


def _mean_correlation(u: Tensor, v: Tensor) -> Tensor:
    return torch.linalg.svdvals(u.T @ v).clamp(max=1).double().mean()


def _each(a: list[Any], b: list[Any], compare: Callable[[Any, Any], Tensor]) -> np.ndarray:
    values = _at_once(lambda pair: compare(*pair).item(), [(x, y) for x in a for y in b])
    return np.array(values).reshape(len(a), len(b))


def _at_once(function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    """Apply a function to items, as many at once as torch has threads: one decomposition hardly gains from several."""
    workers = min(torch.get_num_threads(), len(items))
    if workers < 2:
        return [function(item) for item in items]
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(function, items))
