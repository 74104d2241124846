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
`pwcca`              yes    yes    of X and Y  of Y
`gradient_cka`       no     yes    yes         no
===================  =====  =====  ==========  ====================================

What keeps it fast: products of features (p × q) wherever they are cheaper than those of examples (n × n); everything
that concerns one layer alone (centering, norms, principal directions) happens once for each layer, not once a pair.
What keeps it right in float32: centering before anything is multiplied, sums in float64, and float64 throughout where
large numbers cancel (debiased estimates, kernels other than the linear, canonical directions).

Images (n, C, H, W) are examples by default, flattened to C·H·W features each. `images="pool"` averages over the
positions first, and `images="positions"` makes every position of every image an example with C features: another
question, which only fits layers of equal height and width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import combinations, pairwise, permutations
from math import sqrt
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from labutils.statistics import Interval, mean_interval, pair_effects

Images = Literal["flatten", "pool", "positions"]
Layers = Mapping[str, Any]
"""Representations by layer name; for gradient CKA pairs of a representation and its gradient."""

_IMAGES = ("flatten", "pool", "positions")
_STRIP = 256  # features, or examples, whose products with all others are computed at once
_LONGEST = 1 << 15  # products summed in float32 before float64 takes over
_BLOCK_BYTES = 128 << 20  # of kernel values held at once, over all layers together


def cka(
    x: ArrayLike | Tensor,
    y: ArrayLike | Tensor,
    kernel: Literal["linear", "rbf"] = "linear",
    sigma: float = 0.5,
    debiased: bool = False,
    *,
    images: Images = "flatten",
) -> float:
    """Return the centered kernel alignment of two representations.

    The usual, biased estimate grows with p/n: even independent representations come out near 1 where n < p. The
    debiased one has mean 0 for independent representations whatever n, and so may be negative.

    Args:
        x: (n, ...) the first representation, n ≥ 2; n ≥ 4 for the debiased estimate.
        y: (n, ...) the second one, of the same examples in the same order; its width may differ.
        kernel: "linear", or "rbf": exp(−d²/2s²) of the distance d between examples.
        sigma: for "rbf", s in multiples of the median distance between two different examples.
        debiased: whether to use the debiased estimate of HSIC.
        images: what an example of (n, C, H, W) is, see the module's docstring.

    Returns:
        The similarity, from 0 to 1 (debiased: up to 1).

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


def cca(x: ArrayLike | Tensor, y: ArrayLike | Tensor, *, images: Images = "flatten") -> float:
    """Return the mean canonical correlation of two representations.

    Directions without variance (dead or redundant units) are dropped. The number of correlations is the smaller of the
    two ranks. Where a rank reaches n − 1, as it does if n ≤ p, canonical directions can fit anything, and the result
    is 1 whatever the data.

    Args:
        x: (n, ...) the first representation.
        y: (n, ...) the second one, of the same examples.
        images: see the module's docstring.

    Returns:
        The similarity, from 0 to 1.

    Raises:
        ValueError: as `cka`.

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-1.0, -1.0], [0.0, 0.5]])
        >>> round(cca(x, x @ torch.tensor([[1.0, 2.0], [0.0, 1.0]])), 6)
        1.0
    """
    return _of_two(x, y, "cca", images=images)


def svcca(x: ArrayLike | Tensor, y: ArrayLike | Tensor, variance: float = 0.99, *, images: Images = "flatten") -> float:
    """Return the mean canonical correlation of two representations' leading principal directions.

    Args:
        x: (n, ...) the first representation.
        y: (n, ...) the second one, of the same examples.
        variance: share of the variance, above 0 and up to 1; of each representation the fewest principal directions
            that explain so much are kept.
        images: see the module's docstring.

    Returns:
        The similarity, from 0 to 1.

    Raises:
        ValueError: as `cka`; a variance out of range.

    Source:
        Raghu et al. (2017), arXiv 1706.05806.

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-1.0, -1.0], [0.0, 0.5]])
        >>> round(svcca(x, 2 * x + 1), 6)
        1.0
    """
    return _of_two(x, y, "svcca", variance=variance, images=images)


def pwcca(x: ArrayLike | Tensor, y: ArrayLike | Tensor, *, images: Images = "flatten") -> float:
    """Return the projection-weighted mean canonical correlation; not symmetric.

    A canonical variable h of X counts as much as X depends on it: with the weight ``Σⱼ |⟨h, xⱼ⟩|`` over the columns
    of X.

    Args:
        x: (n, ...) the representation that sets the weights.
        y: (n, ...) the other one, of the same examples.
        images: see the module's docstring.

    Returns:
        The similarity, from 0 to 1.

    Raises:
        ValueError: as `cka`.

    Source:
        Morcos et al. (2018), arXiv 1806.05759, equation 3.

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-1.0, -1.0], [0.0, 0.5]])
        >>> round(pwcca(x, x + 1), 6)
        1.0
    """
    return _of_two(x, y, "pwcca", images=images)


def procrustes(x: ArrayLike | Tensor, y: ArrayLike | Tensor, *, images: Images = "flatten") -> float:
    """Return the orthogonal Procrustes similarity ‖XᵀY‖_*, both scaled to unit Frobenius norm.

    It is 1 − d²/2, with d² = 2 − 2‖XᵀY‖_* the squared Procrustes distance: what is left between X and Y after the best
    rotation.

    Args:
        x: (n, ...) the first representation.
        y: (n, ...) the second one, of the same examples.
        images: see the module's docstring.

    Returns:
        The similarity, from 0 to 1.

    Raises:
        ValueError: as `cka`.

    Source:
        Ding et al. (2021), arXiv 2108.01661.

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-1.0, -1.0], [0.0, 0.5]])
        >>> round(procrustes(x, x.flip(1)), 6)
        1.0
    """
    return _of_two(x, y, "procrustes", images=images)


def gradient_cka(
    x: ArrayLike | Tensor,
    gx: ArrayLike | Tensor,
    y: ArrayLike | Tensor,
    gy: ArrayLike | Tensor,
    *,
    debiased: bool = False,
) -> float:
    """Return the CKA of two layers with gradient flow: what they compute together with how the loss depends on it.

    With a layer's outputs X and the gradients G of each example's loss with respect to these outputs, both flattened
    for each example and not centered, the kernel is K = (XXᵀ) ∘ (GGᵀ): the Gram matrix of the products xᵢ ⊗ gᵢ. With
    a dense layer's *input* as X, xᵢ ⊗ gᵢ would be the gradient for its weights. HSIC centers the kernels.

    Args:
        x: (n, ...) outputs of the first layer, as from `representations.extract`.
        gx: the same shape: gradients, as from `representations.extract_gradients`.
        y: (n, ...) outputs of the second layer, for the same examples.
        gy: their gradients.
        debiased: whether to use the debiased estimate of HSIC, see `cka`.

    Returns:
        The similarity, from 0 to 1 (debiased: up to 1).

    Raises:
        ValueError: as `cka`; a gradient whose shape is not that of its representation.

    Source:
        Tang et al. (2020), arXiv 2003.11498.

    Example:
        >>> x = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 7.0]])
        >>> g = torch.tensor([[1.0, 0.0], [0.5, 1.0], [0.0, 1.0]])
        >>> round(gradient_cka(x, g, x, 2 * g), 6)
        1.0
    """
    return _of_two((x, gx), (y, gy), "gradient_cka", debiased=debiased)


def target_alignment(x: ArrayLike | Tensor, y: ArrayLike | Tensor, *, images: Images = "flatten") -> float:
    """Return the centered alignment of a representation's kernel XXᵀ with that of the labels: CKA(XXᵀ, YYᵀ), Y one-hot.

    With Y one-hot, no product with it is needed: XᵀY holds the sum of X over each class.

    Args:
        x: (n, ...) representation.
        y: (n,) labels, whole numbers of any kind, two classes or more.
        images: see the module's docstring; "positions" does not apply.

    Returns:
        The alignment, from 0 to 1.

    Raises:
        ValueError: as `cka`; labels that are not (n,) whole numbers, or all of one class.

    Source:
        Cortes et al. (2012), JMLR 13, 795-828; Canatar and Pehlevan (2022).

    Example:
        >>> target_alignment([[1.0], [1.0], [-1.0], [-1.0]], [3, 3, 8, 8])
        1.0
    """
    if images == "positions":
        raise ValueError("images='positions' does not apply: labels belong to images, not to positions")
    features = _Features.of(x, "x", images)
    labels = _tensor(y).to(features.x.device)
    if labels.is_floating_point() or labels.is_complex() or labels.dim() != 1:
        raise ValueError(f"y must be labels (n,), whole numbers, got shape {tuple(labels.shape)} {labels.dtype}")
    if len(labels) != features.n:
        raise ValueError(f"x has {features.n} examples, y has {len(labels)} labels")
    _, index, counts = labels.unique(return_inverse=True, return_counts=True)
    if len(counts) < 2:
        raise ValueError("y has one class only: alignment with constant labels is undefined")
    sums = features.x.new_zeros(len(counts), features.x.shape[1]).index_add_(0, index, features.x)
    share = counts.double() / features.n
    # ‖YᵀHY‖²_F / n² for one-hot Y: the entries are n_c δ − n_c n_d / n.
    label_norm = features.n * sqrt((share @ share - 2 * (share**3).sum() + (share @ share) ** 2).item())
    return min(_sum_of_squares(sums) / (sqrt(_gram_norm2(features.x)) * label_norm), 1.0)


class MinibatchCKA:
    """Linear CKA of all layer pairs of two networks, a batch at a time: memory does not grow with n.

    Sums the debiased HSIC over batches, for each pair of layers and for each layer with itself, and divides once in
    the end. Each batch counts in proportion to its size, so that a ragged last batch counts for what it is; with
    batches of one size this is the estimate of Nguyen et al. Debiased HSIC needs 4 examples: a smaller batch is left
    out, and counted in `skipped`.

    Args:
        images: what an example of (n, C, H, W) is, see the module's docstring.

    Attributes:
        layers: names of the first and of the second network's layers, in the order of `matrix()`'s rows and columns.
        examples: examples that counted so far.
        batches: batches that counted.
        skipped: batches that were left out, with fewer than 4 examples.

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

    def __init__(self, *, images: Images = "flatten") -> None:
        self.images: Images = images
        self.layers: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
        self.examples = self.batches = self.skipped = 0
        self._sums: tuple[Tensor, Tensor, Tensor] | None = None

    def update(self, a: Layers, b: Layers) -> None:
        """Add a batch.

        Args:
            a: representations (m, ...) of the first network's layers by name, as from `representations.extract`.
            b: those of the second network, of the same examples; may be the same object as `a`.

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
        matrices = [
            (f"{name!r} of {which}", _matrix(value, f"{name!r} of {which}", self.images))
            for which, layers in labeled
            for name, value in layers.items()
        ]
        m = _common_n([(label, len(x)) for label, x in matrices])
        if m < 4:
            for label, x in matrices:
                _check_finite(x, label)
            self.layers = names
            self.skipped += 1
            return
        # U-centering (Székely and Rizzo): with rows and columns that sum to 0, HSIC is a plain inner product.
        dtype = torch.float64 if any(x.dtype == torch.float64 for _, x in matrices) else torch.float32
        grams = torch.empty(len(matrices), m, m, dtype=dtype, device=matrices[0][1].device)
        for gram, (label, x) in zip(grams, matrices, strict=True):
            centered, mean = _center(x.to(dtype), label)
            size, offset = (torch.linalg.vector_norm(part).item() for part in (centered, mean))
            if size > 10 * torch.finfo(x.dtype).eps * sqrt(m) * offset:
                torch.mm(centered, centered.T, out=gram)
            else:  # constant in this batch: what is left is rounding
                gram.zero_()
        grams.diagonal(dim1=1, dim2=2).zero_()
        rows = grams.sum(2) / (m - 2)
        rows -= rows.sum(1, keepdim=True) / (2 * (m - 1))
        grams -= rows[:, :, None]
        grams -= rows[:, None, :]
        grams.diagonal(dim1=1, dim2=2).zero_()
        flat = grams.flatten(1)
        first, second = flat[: len(a)], flat[-len(b) :]
        weight = 1.0 / (m - 3)  # m, the batch's weight, over m (m − 3)
        own = torch.stack([_inner(row[None], row[None])[0, 0] for row in flat])
        new = tuple(weight * part for part in (_inner(first, second), own[: len(a)], own[-len(b) :]))
        if not all(part.isfinite().all() for part in new):
            raise ValueError("the squares of a layer's inner products leave the range of float32: scale it down")
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
                if value <= 0:
                    raise ValueError(f"layer {name!r} of {which} is constant in every batch: its CKA is undefined")
        return _at_most_one((cross / (first[:, None] * second).sqrt()).cpu().numpy())


def similarity_matrix(a: Layers, b: Layers, measure: str = "cka", **options: Any) -> np.ndarray:
    """Return the similarity of every layer of one network with every layer of another.

    Args:
        a: representations (n, ...) of the first network's layers by name, as from `representations.extract`; for
            "gradient_cka" pairs (representation, gradient).
        b: those of the second network, of the same examples.
        measure: "cka", "cca", "svcca", "pwcca", "procrustes" or "gradient_cka".
        **options: options of that function, such as debiased=True.

    Returns:
        (layers of a, layers of b), float64, in the order of the dictionaries.

    Raises:
        ValueError: as the function itself; the message names the layer.
        TypeError: an option that the measure does not have.

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
        similarity: (K, K, L, L) similarity of each layer (third index) of each network (first) with each layer of each
            other network; NaN for a network with itself. Symmetric measures are symmetric, others are S + Sᵀ over two.
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
    def mean_similarity(self) -> np.ndarray:
        """(L, L) mean over all ordered pairs of different networks."""
        return np.nanmean(self.similarity, axis=(0, 1))


def layer_matching_accuracy(
    networks: Sequence[Layers], measure: str = "cka", *, exclude: Sequence[str] = (), **options: Any
) -> LayerMatching:
    """Run the sanity check of Kornblith et al.: is a layer most similar to the same layer of another training?

    For every ordered pair of networks and every layer of the first, the most similar layer of the second is looked up;
    it should be the corresponding one. A tie is no match. A measure that is not symmetric uses S + Sᵀ.

    Args:
        networks: two or more networks' representations by layer name, with the same names and of the same examples;
            for "gradient_cka" pairs (representation, gradient).
        measure: as for `similarity_matrix`.
        exclude: layers that are neither matched nor candidates, usually the logits; their similarities are reported.
        **options: options of the measure.

    Returns:
        The matches, with accuracy, interval and similarities.

    Raises:
        ValueError: fewer than two networks, different layers, an unknown layer in `exclude`, fewer than two layers
            left; and as the measure.

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
        matched[a, b] = np.diag(part) > others.max(1)
    return LayerMatching(layers, similarity, matched)


# --- Checking and centering ---------------------------------------------------------------------------------------


@dataclass
class _Features:
    """A layer's representation, centered, with what its rounding may amount to."""

    label: str
    x: Tensor  # (n, p), a copy
    noise: float  # more than rounding of the layer's values can add in any one direction

    @property
    def n(self) -> int:
        return len(self.x)

    @staticmethod
    def of(value: Any, label: str, images: str = "flatten", dtype: torch.dtype | None = None) -> _Features:
        x = _matrix(value, label, images)
        eps = torch.finfo(x.dtype).eps
        if dtype is None:
            dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        x = x.to(dtype)
        centered, mean = _center(x, label)
        if len(x) < 2:
            raise ValueError(f"{label} has {len(x)} example(s): 2 are needed at least")
        offset = sqrt(len(x)) * torch.linalg.vector_norm(mean.double()).item()
        norm = torch.linalg.vector_norm(centered).item()
        if norm < 100 * torch.finfo(dtype).eps * offset:  # the mean's own rounding matters: start from an example
            centered = (x - x[:1]).double()
            centered = centered.sub_(centered.mean(0)).to(dtype)
            norm = torch.linalg.vector_norm(centered).item()
        if not 1e-12 < norm < 1e12:  # squares of squares would leave float32's range
            norm = torch.linalg.vector_norm(centered.double()).item()
            if norm > 0:
                centered, offset, norm = (centered.double() / norm).to(dtype), offset / norm, 1.0
        noise = eps * sqrt(norm**2 + offset**2)
        if norm <= noise:
            raise ValueError(f"{label} is constant: all {len(x)} examples have the same representation")
        return _Features(label, centered, 2 * noise)


def _matrix(value: Any, label: str, images: str) -> Tensor:
    """Return a representation as (n, p), floating-point, at least float32 or as it is."""
    if images not in _IMAGES:
        raise ValueError(f"unknown images {images!r}; there are {', '.join(map(repr, _IMAGES))}")
    x = _tensor(value)
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


def _tensor(value: Any) -> Tensor:
    return value.detach() if isinstance(value, Tensor) else torch.tensor(np.asarray(value))


def _center(x: Tensor, label: str) -> tuple[Tensor, Tensor]:
    """Return x without its mean, and the mean; NaN and infinite values are an error."""
    if x.numel() == 0:
        raise ValueError(f"{label} is empty: shape {tuple(x.shape)}")
    mean = x.mean(0)
    if not mean.isfinite().all():
        _check_finite(x, label)
        raise ValueError(f"{label} has values as large as {x.abs().max():.1e}: scale it down")
    return x - mean, mean


def _check_finite(x: Tensor, label: str) -> None:
    if bad := int((~x.isfinite()).sum()):
        raise ValueError(f"{label} has {bad} NaN or infinite values of {x.numel()}")


def _common_n(sizes: Iterable[tuple[str, int]]) -> int:
    (first, n), *others = sizes
    for label, count in others:
        if count != n:
            raise ValueError(f"{label} has {count} examples, {first} has {n}: the same examples are needed")
    return n


# --- Products -----------------------------------------------------------------------------------------------------


def _sum_of_squares(x: Tensor) -> float:
    return float(torch.linalg.vector_norm(x).item()) ** 2


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """Return abᵀ of few long rows in float64; in float32, long sums lose digits."""
    parts = zip(a.split(_LONGEST, dim=1), b.split(_LONGEST, dim=1), strict=True)
    return sum((x @ y.T).double() for x, y in parts)


def _gram_norm2(x: Tensor) -> float:
    """Return ‖XᵀX‖²_F = ‖XXᵀ‖²_F of the smaller of the two, each product once although the matrix has it twice."""
    x = x if x.shape[0] >= x.shape[1] else x.T
    total = 0.0
    for start in range(0, x.shape[1], _STRIP):
        strip = x[:, start : start + _STRIP].T @ x[:, start:]
        total += 2 * _sum_of_squares(strip) - _sum_of_squares(strip[:, : strip.shape[0]])
    return total


@dataclass
class _Hsic:
    """What HSIC of M kernels is made of; of kernels with zero diagonals where it is to be debiased.

    Attributes:
        n: examples.
        inner: (M, M) ⟨K, L⟩.
        rows: (M, n) K1.
    """

    n: int
    inner: Tensor
    rows: Tensor

    def matrix(self, debiased: bool) -> Tensor:
        """Return HSIC (M, M), up to a factor that CKA does not see."""
        n, total = self.n, self.rows.sum(1)
        products = self.rows @ self.rows.T
        if debiased:
            return self.inner + total[:, None] * total / ((n - 1) * (n - 2)) - 2 / (n - 2) * products
        return self.inner + total[:, None] * total / n**2 - 2 / n * products


_Rows = Callable[[int, int], Tensor]
"""Kernel values (e − s, n − s) of the examples s to e with the examples from s on."""


def _hsic(kernels: Sequence[_Rows], n: int, *, dtype: torch.dtype, device: Any, debiased: bool) -> _Hsic:
    """Go through M symmetric kernels, some rows of all at a time, never holding an n × n matrix of each.

    Above the diagonal only: what is below is the same.
    """
    count = len(kernels)
    inner = torch.zeros(count, count, dtype=torch.float64, device=device)
    rows = torch.zeros(count, n, dtype=torch.float64, device=device)
    height = max(16, min(n, _BLOCK_BYTES // (count * n * dtype.itemsize)))
    for start in range(0, n, height):
        end = min(start + height, n)
        strip = torch.empty(count, end - start, n - start, dtype=dtype, device=device)
        for out, kernel in zip(strip, kernels, strict=True):
            out.copy_(kernel(start, end))
        if debiased:
            strip[:, :, : end - start].diagonal(dim1=1, dim2=2).zero_()
        corner, rest = strip[:, :, : end - start].flatten(1), strip[:, :, end - start :].flatten(1)
        inner += _inner(corner, corner) + 2 * _inner(rest, rest)
        rows[:, start:end] += strip.sum(2, dtype=torch.float64)
        rows[:, end:] += strip[:, :, end - start :].sum(1, dtype=torch.float64)
    return _Hsic(n, inner, rows)


def _linear_rows(x: Tensor) -> _Rows:
    return lambda start, end: x[start:end] @ x[start:].T


def _gradient_rows(x: Tensor, g: Tensor) -> _Rows:
    return lambda start, end: (x[start:end] @ x[start:].T) * (g[start:end] @ g[start:].T)


def _rbf_rows(x: Tensor, sigma: float, label: str) -> _Rows:
    squares = x.square().sum(1)

    def distances2(start: int, end: int) -> Tensor:
        d2 = torch.addmm(squares[start:], x[start:end], x[start:].T, alpha=-2)
        d2 = d2.add_(squares[start:end, None]).clamp_(min=0)
        d2[:, : end - start].fill_diagonal_(0)
        return d2

    n, above = len(x), []
    for start in range(0, n, _STRIP):
        strip = distances2(start, min(start + _STRIP, n)).float()
        above.append(strip[torch.ones_like(strip, dtype=torch.bool).triu_(1)])
    median = float(np.median(torch.cat(above).sqrt_().cpu().numpy()))
    if median == 0:
        raise ValueError(f"{label}: the median distance between two examples is 0, so the RBF kernel has no width")
    return lambda start, end: distances2(start, end).mul_(-0.5 / (sigma * median) ** 2).exp_()


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


_Named = list[list[tuple[str, Any]]]
"""Each network's layers with the words for an error message."""


def _cka(
    values: _Named,
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
    exact = debiased or kernel == "rbf"
    layers = _features(values, images, torch.float64 if exact else None, least=4 if debiased else 2)
    flat = [layer for network in layers for layer in network]
    n = flat[0].n
    if kernel == "rbf":
        kernels = [_rbf_rows(layer.x, sigma, layer.label) for layer in flat]
        return _from_hsic(kernels, layers, pairs, debiased=debiased)
    widths = [sum(layer.x.shape[1] for layer in network) for network in layers]
    products = sum(widths[a] * widths[b] for a, b in pairs) + sum(layer.x.shape[1] ** 2 for layer in flat) / 2
    if n * products > n**2 / 2 * (sum(widths) + len(flat) ** 2):
        return _from_hsic([_linear_rows(layer.x) for layer in flat], layers, pairs, debiased=debiased)
    norms = [np.array([_gram_norm2(layer.x) for layer in network]) for network in layers]
    cross = {(a, b): np.array([[_sum_of_squares(x.x.T @ y.x) for y in layers[b]] for x in layers[a]]) for a, b in pairs}
    if debiased:  # centered features: the rows of a kernel sum to 0, so without its diagonal to minus that
        squares = [torch.stack([layer.x.square().sum(1) for layer in network]) for network in layers]
        biased = norms
        norms = [_debias(own, (s * s).sum(1), s.sum(1) ** 2, n) for own, s in zip(norms, squares, strict=True)]
        norms = [_or_zero(own, inner) for own, inner in zip(norms, biased, strict=True)]
        for a, b in pairs:
            totals = squares[a].sum(1)[:, None] * squares[b].sum(1)
            cross[a, b] = _debias(cross[a, b], squares[a] @ squares[b].T, totals, n)
    return _normalize(cross, norms, layers)


def _debias(inner: np.ndarray, diagonals: Tensor, totals: Tensor, n: int) -> np.ndarray:
    """Return debiased HSIC, up to a factor, from inner products of kernels and those of their diagonals."""
    return inner - n / (n - 2) * diagonals.cpu().numpy() + totals.cpu().numpy() / ((n - 1) * (n - 2))


def _gradient_cka(values: _Named, pairs: list[tuple[int, int]], *, debiased: bool = False) -> _Matrices:
    sizes, layers, kernels = [], [], []
    for network in values:
        layers.append([])
        for label, value in network:
            if not isinstance(value, (tuple, list)) or len(value) != 2:
                raise ValueError(f"{label}: gradient CKA takes a pair (representation, gradient)")
            pair = [_tensor(part) for part in value]
            if pair[0].shape != pair[1].shape:
                raise ValueError(
                    f"{label} has shape {tuple(pair[0].shape)}, its gradient {tuple(pair[1].shape)}: both belong to the"
                    " same outputs"
                )
            features = []
            for part, what in zip(pair, (label, f"the gradient of {label}"), strict=True):
                x = _matrix(part, what, "flatten").double()
                _check_finite(x, what)
                norm = torch.linalg.vector_norm(x).item()
                if norm == 0:
                    raise ValueError(f"{what} is constant: all values are 0")
                features.append(x * (sqrt(x.numel()) / norm))
            sizes.append((label, len(features[0])))
            layers[-1].append(_Features(label, features[0], noise=0.0))
            kernels.append(_gradient_rows(*features))
    _check_count(sizes, 4 if debiased else 2)
    return _from_hsic(kernels, layers, pairs, debiased=debiased)


def _from_hsic(
    kernels: list[_Rows], layers: list[list[_Features]], pairs: list[tuple[int, int]], *, debiased: bool
) -> _Matrices:
    x = layers[0][0].x
    dtype = torch.promote_types(x.dtype, layers[-1][-1].x.dtype)
    parts = _hsic(kernels, len(x), dtype=dtype, device=x.device, debiased=debiased)
    hsic = parts.matrix(debiased).cpu().numpy()
    ends = np.cumsum([0, *map(len, layers)])
    part = [slice(start, end) for start, end in pairwise(ends)]
    own = _or_zero(np.diag(hsic), np.diag(parts.inner.cpu().numpy()))
    return _normalize({(a, b): hsic[part[a], part[b]] for a, b in pairs}, [own[p] for p in part], layers)


def _or_zero(hsic: np.ndarray, inner: np.ndarray) -> np.ndarray:
    """Return HSIC(K, K), or 0 where no more is left of ⟨K, K⟩ than rounding leaves."""
    return np.where(hsic > 1e-13 * inner, hsic, 0.0)


def _normalize(cross: _Matrices, norms: list[np.ndarray], layers: list[list[_Features]]) -> _Matrices:
    for own, network in zip(norms, layers, strict=True):
        for value, layer in zip(own, network, strict=True):
            if not value > 0:
                raise ValueError(f"{layer.label} is constant for this kernel: no two examples differ from the others")
    return {(a, b): _at_most_one(c / np.sqrt(norms[a][:, None] * norms[b])) for (a, b), c in cross.items()}


@dataclass
class _Basis:
    """Orthonormal directions in the space of examples, and the features' coordinates in them."""

    u: Tensor  # (n, k)
    coordinates: Tensor  # (k, p)


def _cca(values: _Named, pairs: list[tuple[int, int]], *, images: Images = "flatten") -> _Matrices:
    bases = [[_full_basis(layer) for layer in network] for network in _features(values, images, torch.float64)]
    return {(a, b): _each(bases[a], bases[b], lambda x, y: _correlations(x, y).double().mean()) for a, b in pairs}


def _svcca(
    values: _Named, pairs: list[tuple[int, int]], *, variance: float = 0.99, images: Images = "flatten"
) -> _Matrices:
    if not 0 < variance <= 1:
        raise ValueError(f"variance = {variance}: must be above 0 and up to 1, as in 0.99")
    features = _features(values, images)
    bases = [_at_once(lambda layer: _leading_basis(layer, variance), network) for network in features]
    return {(a, b): _each(bases[a], bases[b], lambda x, y: _correlations(x, y).double().mean()) for a, b in pairs}


def _pwcca(values: _Named, pairs: list[tuple[int, int]], *, images: Images = "flatten") -> _Matrices:
    def weighted(x: _Basis, y: _Basis) -> Tensor:
        left, correlations, _ = torch.linalg.svd(x.u.T @ y.u, full_matrices=False)
        weights = (left.T @ x.coordinates).abs().sum(1)
        return (weights * correlations.clamp(max=1)).sum() / weights.sum()

    bases = [[_full_basis(layer) for layer in network] for network in _features(values, images, torch.float64)]
    return {(a, b): _each(bases[a], bases[b], weighted) for a, b in pairs}


def _procrustes(values: _Named, pairs: list[tuple[int, int]], *, images: Images = "flatten") -> _Matrices:
    layers = [[_unit(layer) for layer in network] for network in _features(values, images)]
    return {
        (a, b): _at_most_one(_each(layers[a], layers[b], lambda x, y: torch.linalg.svdvals((x.T @ y).double()).sum()))
        for a, b in pairs
    }


_MEASURES: dict[str, Callable[..., _Matrices]] = {
    "cka": _cka,
    "cca": _cca,
    "svcca": _svcca,
    "pwcca": _pwcca,
    "procrustes": _procrustes,
    "gradient_cka": _gradient_cka,
}


def _features(
    values: _Named, images: str, dtype: torch.dtype | None = None, *, least: int = 2
) -> list[list[_Features]]:
    """Return the networks' layers, checked, centered and of one type."""
    if dtype is None:
        values = [[(label, _tensor(value)) for label, value in network] for network in values]
        small = (torch.float32, torch.float16, torch.bfloat16)
        few_digits = all(value.dtype in small for network in values for _, value in network)
        dtype = torch.float32 if few_digits else torch.float64
    layers = [[_Features.of(value, label, images, dtype) for label, value in network] for network in values]
    _check_count([(layer.label, layer.n) for network in layers for layer in network], least)
    return layers


def _check_count(sizes: list[tuple[str, int]], least: int) -> None:
    if (n := _common_n(sizes)) < least:
        why = "debiased HSIC needs 4 at least" if least == 4 else f"{least} are needed at least"
        raise ValueError(f"{sizes[0][0]} has {n} example(s): {why}")


def _full_basis(layer: _Features) -> _Basis:
    """Return the left singular vectors of a centered representation, without the directions that rounding made."""
    u, s, vt = torch.linalg.svd(layer.x, full_matrices=False)
    rank = max(1, int((s > max(layer.noise, 1e-12 * s[0].item())).sum()))
    return _Basis(u[:, :rank], s[:rank, None] * vt[:rank])


def _leading_basis(layer: _Features, variance: float) -> _Basis:
    """Return the fewest left singular vectors that explain the share of variance, from the smaller Gram matrix."""
    x, (n, p) = layer.x.double(), layer.x.shape
    eigenvalues, vectors = torch.linalg.eigh(x @ x.T if n < p else x.T @ x)
    eigenvalues, vectors = eigenvalues.flip(0).clamp(min=0), vectors.flip(1)
    floor = max(layer.noise**2, max(n, p) * torch.finfo(torch.float64).eps * eigenvalues[0].item())
    explained = eigenvalues.cumsum(0) / eigenvalues.sum()
    count = int((explained < variance * (1 - 1e-12)).sum()) + 1
    count = max(1, min(count, int((eigenvalues > floor).sum())))
    vectors = vectors[:, :count]
    if n < p:
        return _Basis(vectors.to(layer.x.dtype), layer.x[:0])
    # The directions need float64, as small eigenvalues drown beside large ones; what is projected on them does not.
    return _Basis(layer.x @ (vectors / eigenvalues[:count].sqrt()).to(layer.x.dtype), layer.x[:0])


def _unit(layer: _Features) -> Tensor:
    """Return a representation of unit norm; of one wider than n, its coordinates, which have the same products."""
    x = layer.x / torch.linalg.vector_norm(layer.x)
    if x.shape[0] >= x.shape[1]:
        return x
    u, s, _ = torch.linalg.svd(x.double(), full_matrices=False)
    return (u * s).to(x.dtype)


def _correlations(x: _Basis, y: _Basis) -> Tensor:
    return torch.linalg.svdvals(x.u.T @ y.u).clamp(max=1)


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


def _at_most_one(values: np.ndarray) -> np.ndarray:
    return np.minimum(values, 1.0)  # what rounding adds
