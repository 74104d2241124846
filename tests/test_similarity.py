"""labutils.similarity against dense float64 references written from the definitions, kernels and all.

The references form n × n matrices and use numpy's SVD and scipy; labutils mostly does neither.
"""

from __future__ import annotations

import functools
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import subspace_angles
from scipy.spatial.distance import pdist, squareform
from scipy.stats import ortho_group

from labutils import kernels, similarity
from labutils.similarity import (
    MinibatchCKA,
    cca,
    cka,
    gradient_cka,
    layer_matching_accuracy,
    procrustes,
    pwcca,
    similarity_matrix,
    svcca,
    target_alignment,
)

# --- References ---------------------------------------------------------------------------------------------------


def hsic(k: np.ndarray, l: np.ndarray, debiased: bool) -> float:  # noqa: E741
    n = len(k)
    if not debiased:
        h = np.eye(n) - 1 / n
        return np.trace(k @ h @ l @ h) / (n - 1) ** 2
    k, l = k - np.diag(np.diag(k)), l - np.diag(np.diag(l))  # noqa: E741
    one = np.ones(n)
    rest = (one @ k @ one) * (one @ l @ one) / ((n - 1) * (n - 2)) - 2 / (n - 2) * (one @ k @ l @ one)
    return (np.trace(k @ l) + rest) / (n * (n - 3))


def aligned(k: np.ndarray, l: np.ndarray, debiased: bool = False) -> float:  # noqa: E741
    return hsic(k, l, debiased) / np.sqrt(hsic(k, k, debiased) * hsic(l, l, debiased))


def centered(x: np.ndarray) -> np.ndarray:
    return x - x.mean(0)


def dense_cka(
    x: np.ndarray, y: np.ndarray, kernel: str = "linear", sigma: float = 0.5, debiased: bool = False
) -> float:
    def gram(z: np.ndarray) -> np.ndarray:
        if kernel == "linear":
            return centered(z) @ centered(z).T
        d2 = squareform(pdist(z)) ** 2  # with the zeros of the diagonal, as in Kornblith et al.'s code
        return np.exp(-d2 / (2 * sigma**2 * np.median(d2)))

    return aligned(gram(x), gram(y), debiased)


def directions(x: np.ndarray, variance: float | None = None) -> np.ndarray:
    u, s, _ = np.linalg.svd(centered(x), full_matrices=False)
    keep = s > 1e-9 * s[0]
    if variance is not None:
        shares = np.cumsum(s**2) / np.sum(s**2)
        keep = np.arange(len(s)) <= np.argmax(shares >= variance - 1e-12)
    return u[:, keep]


def dense_cca(x: np.ndarray, y: np.ndarray, variance: float | None = None) -> float:
    return np.cos(subspace_angles(directions(x, variance), directions(y, variance))).mean()


def dense_svcca(x: np.ndarray, y: np.ndarray, variance: float = 0.99) -> float:
    return dense_cca(x, y, variance)


def dense_pwcca(x: np.ndarray, y: np.ndarray) -> float:
    # By whitening covariances and an eigenvalue problem, as in textbooks; needs full rank.
    x, y = centered(x), centered(y)
    sxx, syy, sxy = x.T @ x, y.T @ y, x.T @ y
    values, a = np.linalg.eig(np.linalg.solve(sxx, sxy) @ np.linalg.solve(syy, sxy.T))
    order = np.argsort(-values.real)[: min(x.shape[1], y.shape[1])]
    h = x @ a.real[:, order]
    h /= np.linalg.norm(h, axis=0)
    weights = np.abs(h.T @ x).sum(1)
    return (weights * np.sqrt(np.clip(values.real[order], 0, 1))).sum() / weights.sum()


def dense_procrustes(x: np.ndarray, y: np.ndarray) -> float:
    x, y = (centered(z) / np.linalg.norm(centered(z)) for z in (x, y))
    return np.linalg.norm(x.T @ y, "nuc")


def dense_gradient_cka(x: np.ndarray, gx: np.ndarray, y: np.ndarray, gy: np.ndarray, debiased: bool = False) -> float:
    products = [np.einsum("ni,nj->nij", a, g).reshape(len(a), -1) for a, g in ((x, gx), (y, gy))]
    return aligned(*(p @ p.T for p in products), debiased)


MEASURES = {
    "cka": (cka, dense_cka, {}),
    "cka debiased": (cka, dense_cka, {"debiased": True}),
    "cka rbf": (cka, dense_cka, {"kernel": "rbf"}),
    "cka rbf 0.8 debiased": (cka, dense_cka, {"kernel": "rbf", "sigma": 0.8, "debiased": True}),
    "cca": (cca, dense_cca, {}),
    "svcca": (svcca, dense_svcca, {}),
    "svcca 0.8": (svcca, dense_svcca, {"variance": 0.8}),
    "pwcca": (pwcca, dense_pwcca, {}),
    "procrustes": (procrustes, dense_procrustes, {}),
}
every_measure = pytest.mark.parametrize("name", MEASURES)


def make(n: int, p: int, q: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Two related representations with unequal variances."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, p)) * np.geomspace(1, 0.1, p)
    y = x @ rng.normal(size=(p, q)) + 0.5 * rng.normal(size=(n, q))
    return x, y


@every_measure
@pytest.mark.parametrize(("n", "p", "q"), [(60, 7, 7), (60, 12, 5), (40, 3, 11), (300, 260, 30), (30, 1, 1)])
def test_equals_the_dense_reference(name: str, n: int, p: int, q: int) -> None:
    ours, reference, options = MEASURES[name]
    x, y = make(n, p, q)
    assert ours(x, y, **options) == pytest.approx(reference(x, y, **options), rel=1e-7)


@pytest.mark.parametrize("name", [name for name in MEASURES if name != "pwcca"])
@pytest.mark.parametrize(("n", "p", "q"), [(12, 300, 300), (12, 40, 5), (20, 3, 25), (5, 9, 9)])
def test_equals_the_dense_reference_with_fewer_examples_than_features(name: str, n: int, p: int, q: int) -> None:
    ours, reference, options = MEASURES[name]
    x, y = make(n, p, q)
    assert ours(x, y, **options) == pytest.approx(reference(x, y, **options), rel=1e-6)


def test_pwcca_with_fewer_examples_than_features_is_one() -> None:
    assert pwcca(*make(12, 30, 20)) == pytest.approx(1)
    assert cca(*make(12, 30, 20)) == pytest.approx(1)


@given(
    n=st.integers(4, 30), p=st.integers(1, 35), q=st.integers(1, 35), seed=st.integers(0, 10**6), debiased=st.booleans()
)
def test_linear_cka_of_any_shape(n: int, p: int, q: int, seed: int, debiased: bool) -> None:
    x, y = make(n, p, q, seed)
    expected = dense_cka(x, y, debiased=debiased)
    assert cka(x, y, debiased=debiased) == pytest.approx(expected, rel=1e-7, abs=1e-9)


@given(n=st.integers(4, 25), p=st.integers(1, 12), q=st.integers(1, 12), seed=st.integers(0, 10**6))
def test_gradient_cka_equals_the_kernel_of_outer_products(n: int, p: int, q: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, gx, y, gy = (rng.normal(size=(n, w)) for w in (p, p, q, q))
    for debiased in (False, True):
        expected = dense_gradient_cka(x, gx, y, gy, debiased)
        assert gradient_cka(x, gx, y, gy, debiased=debiased) == pytest.approx(expected, rel=1e-6, abs=1e-8)


# --- Precision ----------------------------------------------------------------------------------------------------


@every_measure
@pytest.mark.parametrize(("n", "p", "q"), [(200, 20, 15), (15, 40, 60)])
@pytest.mark.parametrize("offset", [0, 30])
def test_float32_with_a_large_offset_is_right(name: str, n: int, p: int, q: int, offset: float) -> None:
    ours, reference, options = MEASURES[name]
    if name == "pwcca" and n < p:
        pytest.skip("the reference needs full rank")
    x, y = make(n, p, q)
    expected = reference(x, y, **options)
    shifted = [z + offset * z.std() for z in (x, y)]  # 30 standard deviations of the whole, more of most columns
    assert ours(*(z.astype(np.float32) for z in shifted), **options) == pytest.approx(expected, rel=1e-4)
    assert ours(*shifted, **options) == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("debiased", [False, True])
def test_float32_with_many_examples_and_an_offset_is_right(debiased: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(10_000, 64, generator=generator, dtype=torch.float64)
    y = x @ torch.randn(64, 48, generator=generator, dtype=torch.float64)
    expected = cka(x, y, debiased=debiased)
    assert cka((x + 30).float(), (y + 240).float(), debiased=debiased) == pytest.approx(expected, rel=1e-5)


def test_float32_through_examples_instead_of_features_is_right() -> None:
    x, y = make(300, 900, 800)
    expected = cka(x, y)
    shifted = [(z + 30 * z.std()).astype(np.float32) for z in (x, y)]
    assert cka(*shifted) == pytest.approx(expected, rel=1e-5)


def minibatch(x: torch.Tensor, y: torch.Tensor) -> float:
    running = MinibatchCKA()
    for a, b in zip(x.split(20), y.split(20), strict=True):
        running.update({"x": a}, {"y": b})
    return running.matrix()[0, 0]


SCALED = {
    **{name: functools.partial(ours, **options) for name, (ours, _, options) in MEASURES.items()},
    "minibatch": minibatch,
    "target alignment": lambda x, y: target_alignment(x, torch.arange(len(y)) % 3),
    "gradient": lambda x, y: gradient_cka(x, x.flip(1), y, y.flip(0)),
    "gradient, debiased": lambda x, y: gradient_cka(x.flip(1), x, y, y.flip(0), debiased=True),
}
FLOATS = {torch.float64: 60, torch.float32: 30, torch.bfloat16: 30, torch.float16: 3}  # and a range, in powers of ten


@pytest.mark.parametrize("name", SCALED)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize(("n", "p", "q"), [(50, 8, 6), (30, 40, 35)])
def test_the_scale_does_not_matter_in_any_precision(name: str, dtype: torch.dtype, n: int, p: int, q: int) -> None:
    x, y = (torch.from_numpy(z).to(dtype) for z in make(n, p, q))
    expected = SCALED[name](x.double(), y.double())  # of the rounded values
    near = {torch.float64: 1e-9, torch.float32: 1e-5}.get(dtype, 1e-4)
    assert SCALED[name](x, y) == pytest.approx(expected, rel=near)
    for power in (FLOATS[dtype], -FLOATS[dtype], -12 if FLOATS[dtype] > 12 else -1):
        factor = 2.0 ** round(power * np.log2(10))  # so that scaling does not round, or hardly
        for scaled in ((x * factor, y), (x, y * factor), (x * factor, y / factor)):
            loose = 5e-2 if dtype == torch.float16 else near  # the small ones of float16 have fewer digits
            assert SCALED[name](*scaled) == pytest.approx(expected, rel=loose)


@every_measure
def test_tensors_that_learn_are_taken(name: str) -> None:
    ours, _, options = MEASURES[name]
    x, y = (torch.from_numpy(z).requires_grad_() for z in make(50, 8, 6))
    assert ours(x, y, **options) == ours(x.detach(), y.detach(), **options)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("offset", "p"), [(0, 30), (8, 12), (30, 6)])
def test_canonical_directions_of_half_precision_are_kept_if_rounding_leaves_them(
    dtype: torch.dtype, offset: float, p: int
) -> None:
    x, y = make(400, p, p)
    x = x / x.std(0) + offset  # an offset of 30 is rounded to a quarter of bfloat16's spread
    rounded = torch.from_numpy(x).to(dtype)
    assert cca(rounded, y) == pytest.approx(cca(rounded.double(), y), rel=1e-9)
    assert svcca(rounded, y, 1.0) == pytest.approx(cca(rounded.double(), y), rel=1e-4)
    doubled = torch.cat([rounded, (rounded.double() @ torch.full((p, 3), 0.3, dtype=torch.float64)).to(dtype)], 1)
    z = np.hstack([y, np.random.default_rng(1).normal(size=(400, 3))])
    assert cca(doubled, z) == pytest.approx(cca(rounded, z), rel=1e-3)  # what only rounding tells apart is dropped


def test_arrays_lists_integers_and_mixed_types_are_taken() -> None:
    x, y = make(20, 4, 3)
    counts = np.round(10 * y).astype(int)
    counts.flags.writeable = False
    assert cka(x.tolist(), counts) == pytest.approx(dense_cka(x, counts.astype(float)))
    assert cka(torch.from_numpy(x).float(), y) == pytest.approx(dense_cka(x, y), rel=1e-5)


def test_inputs_are_left_alone() -> None:
    x, y = (torch.from_numpy(z).float() for z in make(20, 4, 3))
    kept = x.clone(), y.clone()
    for ours, _, options in MEASURES.values():
        ours(x, y, **options)
    target_alignment(x, torch.arange(20) % 2)
    MinibatchCKA().update({"x": x}, {"y": y})
    assert torch.equal(x, kept[0])
    assert torch.equal(y, kept[1])


# --- Invariances, from one table ----------------------------------------------------------------------------------

CHANGES = {
    "shift": lambda x, rng: x + 3 * rng.normal(size=x.shape[1]),
    "scale": lambda x, rng: -2.5 * x,
    "permutation": lambda x, rng: x[:, rng.permutation(x.shape[1])],
    "rotation": lambda x, rng: x @ ortho_group.rvs(x.shape[1], random_state=rng),
    "embedding": lambda x, rng: x @ ortho_group.rvs(x.shape[1] + 4, random_state=rng)[: x.shape[1]],
    "dead unit": lambda x, rng: np.hstack([x, np.full((len(x), 1), 7.0)]),
    "linear map": lambda x, rng: x @ (rng.normal(size=(x.shape[1],) * 2) + 3 * np.eye(x.shape[1])),
    "duplicated unit": lambda x, rng: np.hstack([x, x[:, :1]]),
}
ISOMETRIES = {"shift", "scale", "permutation", "rotation", "embedding", "dead unit"}
# Changes of the first and of the second representation that leave each measure as it is, as its docstring promises.
PROMISES = {
    "cka": (ISOMETRIES, ISOMETRIES),
    "cka debiased": (ISOMETRIES, ISOMETRIES),
    "cka rbf": (ISOMETRIES, ISOMETRIES),
    "cka rbf 0.8 debiased": (ISOMETRIES, ISOMETRIES),
    "svcca": (ISOMETRIES, ISOMETRIES),
    "svcca 0.8": (ISOMETRIES, ISOMETRIES),
    "procrustes": (ISOMETRIES, ISOMETRIES),
    "cca": (set(CHANGES), set(CHANGES)),
    "pwcca": ({"shift", "scale", "permutation", "dead unit"}, set(CHANGES)),
}


@every_measure
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("side", [0, 1])
def test_invariances(name: str, change: str, side: int) -> None:
    ours, _, options = MEASURES[name]
    pair = list(make(50, 6, 5))
    before = ours(*pair, **options)
    pair[side] = CHANGES[change](pair[side], np.random.default_rng(1))
    after = ours(*pair, **options)
    assert (after == pytest.approx(before, rel=1e-7)) == (change in PROMISES[name][side])


@every_measure
def test_a_representation_equals_itself_and_order_matters_only_to_pwcca(name: str) -> None:
    ours, _, options = MEASURES[name]
    x, y = make(50, 6, 5)
    assert ours(x, x, **options) == pytest.approx(1, abs=1e-9)
    assert (ours(x, y, **options) == pytest.approx(ours(y, x, **options), rel=1e-9)) == (name != "pwcca")
    shuffled = np.random.default_rng(0).permutation(50)
    assert ours(x[shuffled], y[shuffled], **options) == pytest.approx(ours(x, y, **options), rel=1e-9)
    assert ours(x[shuffled], y, **options) < 0.6 * ours(x, y, **options)


@every_measure
@given(n=st.integers(4, 20), p=st.integers(1, 25), q=st.integers(1, 25), seed=st.integers(0, 10**6))
def test_similarities_stay_in_range(name: str, n: int, p: int, q: int, seed: int) -> None:
    ours, _, options = MEASURES[name]
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(n, p)).astype(np.float32), rng.normal(size=(n, q)).astype(np.float32)
    value = ours(x, y, **options)
    assert (-1 if "debiased" in name else 0) <= value <= 1


def test_gradient_cka_is_invariant_to_scale_and_rotation_but_not_to_shifts() -> None:
    rng = np.random.default_rng(0)
    x, gx, y, gy = (rng.normal(size=(30, p)) for p in (5, 5, 4, 4))
    before = gradient_cka(x, gx, y, gy)
    rotation = ortho_group.rvs(5, random_state=rng)
    assert gradient_cka(3 * x @ rotation, -1e-4 * gx @ rotation, y, gy) == pytest.approx(before)
    assert gradient_cka(x + 5, gx, y, gy) != pytest.approx(before, rel=1e-3)
    assert gradient_cka(y, gy, x, gx) == pytest.approx(before)
    assert gradient_cka(x, gx, x, gx) == pytest.approx(1)


def test_dead_and_redundant_units_do_not_inflate_canonical_correlations() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(400, 5)), rng.normal(size=(400, 5))
    low_rank = (x @ rng.normal(size=(5, 30)) + 20).astype(np.float32)  # rank 5, rounded
    assert cca(low_rank, y) == pytest.approx(dense_cca(x, y), rel=1e-3)
    assert svcca(low_rank, y, 1.0) == pytest.approx(dense_cca(x, y), rel=1e-3)
    assert 0 < pwcca(low_rank, y) < 0.3


def test_svcca_cuts_by_squared_singular_values() -> None:
    # Variances 90, 9 and 1 per cent: two directions reach 99 %, although Σσ would need all three.
    base = np.linalg.qr(centered(np.random.default_rng(0).normal(size=(50, 6))))[0]
    x = base[:, :3] * np.sqrt([90, 9, 1])
    y = base[:, [0, 1, 4]] * np.sqrt([90, 9, 1])
    assert svcca(x, y, 0.99) == pytest.approx(1)
    assert svcca(x, y, 0.995) == pytest.approx(2 / 3)
    assert svcca(x, y, 0.9) == pytest.approx(1)


# --- Images -------------------------------------------------------------------------------------------------------


def test_what_an_example_of_images_is() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(10, 3, 4, 5, generator=generator), torch.randn(10, 6, 4, 5, generator=generator)
    rows = [z.permute(0, 2, 3, 1).reshape(200, -1) for z in (x, y)]
    assert cka(x, y) == pytest.approx(cka(x.flatten(1), y.flatten(1)))
    assert cka(x, y, images="pool") == pytest.approx(cka(x.mean((2, 3)), y.mean((2, 3))))
    assert cka(x, y, images="positions") == pytest.approx(cka(*rows))
    with pytest.raises(ValueError, match="y has 40 examples, x has 160"):
        cka(torch.randn(10, 3, 4, 4), torch.randn(10, 3, 2, 2), images="positions")
    with pytest.raises(ValueError, match=r"unknown images 'channels'; there are 'flatten', 'pool', 'positions'"):
        cka(x, y, images="channels")


# --- Labels -------------------------------------------------------------------------------------------------------


@given(n=st.integers(4, 40), p=st.integers(1, 50), classes=st.integers(2, 6), seed=st.integers(0, 10**6))
def test_target_alignment_equals_cka_with_one_hot_labels(n: int, p: int, classes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(n, p)), np.r_[[0, 1], rng.integers(classes, size=n - 2)]
    one_hot = np.eye(classes)[y]
    assert target_alignment(x, y) == pytest.approx(dense_cka(x, one_hot), rel=1e-7)
    assert target_alignment((x + 30).astype(np.float32), 10 * y - 7) == pytest.approx(dense_cka(x, one_hot), rel=1e-4)


# --- Minibatches --------------------------------------------------------------------------------------------------


def dense_minibatch(x: np.ndarray, y: np.ndarray, sizes: list[int]) -> float:
    ends = np.cumsum([0, *sizes])
    sums = np.zeros(3)
    for (start, end), size in zip(itertools.pairwise(ends), sizes, strict=True):
        if size >= 4:
            k, l = (z[start:end] @ z[start:end].T for z in (x, y))  # noqa: E741
            sums += size * np.array([hsic(k, l, True), hsic(k, k, True), hsic(l, l, True)])
    return sums[0] / np.sqrt(sums[1] * sums[2])


@pytest.mark.parametrize("sizes", [[60], [20, 20, 20], [25, 25, 10], [28, 28, 4], [30, 27, 3], [29, 2, 29], [59, 1]])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_minibatch_cka_equals_the_sums_over_batches(sizes: list[int], dtype: type) -> None:
    x, y = make(60, 9, 7)
    a, b = {"1": x, "2": x[:, :4], "3": x**2}, {"1": y, "2": np.abs(y)}
    running = MinibatchCKA()
    start = 0
    for size in sizes:
        part = slice(start, start + size)
        running.update(*({k: (v[part] + 30).astype(dtype) for k, v in layers.items()} for layers in (a, b)))
        start += size
    expected = [[dense_minibatch(u, v, sizes) for v in b.values()] for u in a.values()]
    np.testing.assert_allclose(running.matrix(), expected, rtol=1e-3 if dtype == np.float32 else 1e-8, atol=1e-4)
    assert running.layers == (("1", "2", "3"), ("1", "2"))
    small = [size for size in sizes if size < 4]
    assert (running.skipped, running.batches) == (len(small), len(sizes) - len(small))
    assert running.examples == 60 - sum(small)


def test_one_network_with_itself() -> None:
    x, y = make(60, 9, 7)
    same, copied = MinibatchCKA(), MinibatchCKA()
    layers = {"x": x, "y": y}
    same.update(layers, layers)
    copied.update(layers, dict(layers))
    np.testing.assert_allclose(same.matrix(), copied.matrix())
    np.testing.assert_allclose(np.diag(same.matrix()), 1)


def test_minibatch_errors_name_the_layer_and_the_batch_does_not_count() -> None:
    x, y = make(10, 3, 2)
    bad = y.copy()
    bad[3, 1] = np.nan
    running = MinibatchCKA()
    with pytest.raises(ValueError, match="no batch of 4 examples or more so far"):
        running.matrix()
    running.update({"x": x[:3]}, {"y": y[:3]})
    with pytest.raises(ValueError, match="1 smaller ones were left out"):
        running.matrix()
    running.update({"x": x}, {"y": y})
    before = running.matrix()
    for a, b, message in [
        ({"x": x}, {"y": bad}, r"'y' of b has 1 NaN or infinite values of 20"),
        ({"x": x[:3]}, {"y": bad[1:4]}, r"'y' of b has 1 NaN"),
        ({"x": x}, {"y": y[:9]}, "'y' of b has 9 examples, 'x' of a has 10"),
        ({"x": x}, {"z": y}, "this batch has the layers"),
        ({}, {"y": y}, "without layers"),
    ]:
        with pytest.raises(ValueError, match=message):
            running.update(*({k: np.float32(v) for k, v in layers.items()} for layers in (a, b)))
        assert (running.matrix() == before).all()
        assert running.examples == 10


def test_a_layer_that_is_constant_in_every_batch_is_named() -> None:
    x, y = make(10, 3, 2)
    running = MinibatchCKA()
    for value in (0.1, 0.3):
        running.update({"x": x.astype(np.float32)}, {"y": y, "dead": np.full((10, 3), value, dtype=np.float32)})
    with pytest.raises(ValueError, match="layer 'dead' of b is constant in every batch"):
        running.matrix()
    running.update({"x": x}, {"y": y, "dead": y})
    assert np.isfinite(running.matrix()).all()


# --- Matrices and matching ----------------------------------------------------------------------------------------


@every_measure
@pytest.mark.parametrize("n", [40, 8])
def test_a_matrix_holds_what_the_function_gives_for_each_pair(name: str, n: int) -> None:
    ours, _, options = MEASURES[name]
    rng = np.random.default_rng(0)
    a = {f"a{p}": rng.normal(size=(n, p)).astype(np.float32) for p in (6, 3, 11)}
    b = {f"b{p}": rng.normal(size=(n, p)).astype(np.float32) for p in (5, 9)}
    b["b5"] += a["a6"][:, :5]
    found = similarity_matrix(a, b, name.split()[0], **options)
    expected = [[ours(x, y, **options) for y in b.values()] for x in a.values()]
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_a_matrix_of_gradient_cka_takes_pairs() -> None:
    rng = np.random.default_rng(0)
    a, b = (
        {str(p): (rng.normal(size=(20, p)), rng.normal(size=(20, p))) for p in widths} for widths in ((3, 4), (5, 2))
    )
    expected = [[gradient_cka(*x, *y) for y in b.values()] for x in a.values()]
    np.testing.assert_allclose(similarity_matrix(a, b, "gradient_cka"), expected)


def test_wide_and_narrow_layers_take_different_ways_to_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = make(40, 300, 6)
    a = {"wide": x, "narrow": x[:, :4]}
    expected = [[dense_cka(u, y), dense_cka(u, x)] for u in a.values()]
    np.testing.assert_allclose(similarity_matrix(a, {"y": y, "x": x}), expected, rtol=1e-7)
    monkeypatch.setattr(kernels, "_BLOCK_BYTES", 1)  # strips of 16 examples
    monkeypatch.setattr(kernels, "_STRIP", 7)
    np.testing.assert_allclose(similarity_matrix(a, {"y": y, "x": x}), expected, rtol=1e-7)
    for options in ({"debiased": True}, {"kernel": "rbf"}, {"kernel": "rbf", "debiased": True}):
        found = similarity_matrix(a, {"y": y}, **options)
        np.testing.assert_allclose(found, [[dense_cka(u, y, **options)] for u in a.values()], rtol=1e-6)
    assert target_alignment(x[:, :30], np.arange(40) % 3) == pytest.approx(
        dense_cka(x[:, :30], np.eye(3)[np.arange(40) % 3])
    )


def networks(count: int = 4, noise: float = 0.3) -> list[dict[str, np.ndarray]]:
    """Rotated and noisy copies of three layers that differ much."""
    rng = np.random.default_rng(0)
    layers = {name: rng.normal(size=(80, 6)) * np.geomspace(1, 0.05, 6) for name in ("1", "2", "3")}
    return [
        {k: v @ ortho_group.rvs(6, random_state=rng) + noise * rng.normal(size=(80, 6)) for k, v in layers.items()}
        for _ in range(count)
    ]


@pytest.mark.parametrize("measure", ["cka", "svcca", "pwcca", "procrustes"])
def test_matching_equals_a_loop_over_all_ordered_pairs(measure: str) -> None:
    nets = networks(noise=1.5)
    found = layer_matching_accuracy(nets, measure)
    function = getattr(similarity, measure)
    hits = []
    for a, b in itertools.permutations(nets, 2):
        s = np.array([[function(x, y) + function(y, x) for y in b.values()] for x in a.values()])
        hits += (s.argmax(1) == np.arange(3)).tolist()
    assert found.accuracy == pytest.approx(np.mean(hits))
    assert found.layers == ("1", "2", "3")
    assert np.isnan(found.similarity[0, 0]).all()
    assert found.similarity[0, 1, 2, 1] == pytest.approx(
        (function(nets[0]["3"], nets[1]["2"]) + function(nets[1]["2"], nets[0]["3"])) / 2, rel=1e-6
    )
    np.testing.assert_allclose(found.mean_table, found.mean_table.T)
    assert found.mean_table.loc["3", "2"] == pytest.approx(np.nanmean(found.similarity, axis=(0, 1))[2, 1])
    assert (found.mean_table.index.name, found.mean_table.columns.name) == ("layer of one network", "layer of another")
    assert found.effects.mean() == pytest.approx(found.accuracy)
    assert found.interval.mean == pytest.approx(found.accuracy)
    assert found.interval.n == 4


def test_matching_finds_rotated_copies_and_leaves_out_what_it_is_told_to() -> None:
    nets = networks()
    assert layer_matching_accuracy(nets).accuracy == 1
    for net in nets:
        net["logits"] = nets[0]["1"]  # more like the first layer than the others' own
    assert layer_matching_accuracy(nets).accuracy < 1
    found = layer_matching_accuracy(nets, exclude=["logits"])
    assert found.accuracy == 1
    assert found.similarity.shape == (4, 4, 4, 4)
    assert found.matched.shape == (4, 4, 3)


def test_a_tie_is_no_match() -> None:
    rng = np.random.default_rng(0)
    nets = [{str(i): rng.normal(size=(5, 30)) for i in range(3)} for _ in range(3)]
    assert np.allclose(similarity_matrix(nets[0], nets[1], "cca"), 1)
    same = [{"1": nets[0]["0"], "2": nets[0]["0"]}] * 3
    assert layer_matching_accuracy(same).accuracy == 0


# --- Degenerate input ---------------------------------------------------------------------------------------------

NETWORKS, ONES = networks(3), np.ones((10, 2))
FINE = np.random.default_rng(0).normal(size=(10, 4))
HOLE = np.where(np.arange(40).reshape(10, 4) == 5, np.nan, FINE)
BAD = {
    "different n": (FINE[:9], "y has 9 examples, x has 10"),
    "NaN": (HOLE, r"y has 1 NaN or infinite values of 40"),
    "infinite": (np.where(np.isnan(HOLE), -np.inf, HOLE), "y has 1 NaN or infinite"),
    "constant": (np.full((10, 4), 0.1), "y is constant"),
    "constant in float32": (np.full((10, 4), 0.1, dtype=np.float32), "y is constant"),
    "zero": (np.zeros((10, 4)), "y is constant"),
    "one-dimensional": (FINE[:, 0], r"y has shape \(10,\)"),
    "no features": (FINE[:, :0], r"y is empty: shape \(10, 0\)"),
    "complex": (FINE + 1j, "y is complex"),
}


@every_measure
@pytest.mark.parametrize("case", BAD)
def test_degenerate_input_is_an_error_that_names_it(name: str, case: str) -> None:
    ours, _, options = MEASURES[name]
    bad, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        ours(FINE, bad, **options)
    first = "y has 10 examples, x has 9" if case == "different n" else message.replace("y ", "x ", 1)
    with pytest.raises(ValueError, match=first):
        ours(bad, FINE, **options)


@pytest.mark.parametrize("case", BAD)
def test_a_matrix_names_layer_and_network(case: str) -> None:
    bad, message = BAD[case]
    message = message.replace("x ", "layer 'ok' of a ").replace("y ", "layer 'relu3' of b ", 1)
    for measure in ("cka", "svcca", "procrustes"):
        with pytest.raises(ValueError, match=message):
            similarity_matrix({"ok": FINE}, {"ok": FINE, "relu3": bad}, measure)
    with pytest.raises(ValueError, match=r"layer 'relu3' of networks\[1\]"):
        layer_matching_accuracy([{"ok": FINE, "relu3": FINE}, {"ok": FINE, "relu3": bad}])


@every_measure
def test_too_few_examples(name: str) -> None:
    ours, _, options = MEASURES[name]
    x = np.random.default_rng(0).normal(size=(3, 2))
    with pytest.raises(ValueError, match=r"x has 1 example\(s\)"):
        ours(x[:1], x[:1], **options)
    with pytest.raises(ValueError, match="x is empty"):
        ours(x[:0], x[:0], **options)
    if options.get("debiased"):
        with pytest.raises(ValueError, match=r"x has 3 example\(s\): debiased HSIC needs 4"):
            ours(x, x, **options)
    else:
        assert ours(x[:2], x[:2] + 1, **options) == pytest.approx(1)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("offset", [0, 1e3])
def test_rbf_kernels_of_repeated_examples(dtype: type, offset: float) -> None:
    x, y = make(60, 7, 5)
    for same in (30, 40):  # pairs of equal examples, and those of one with itself: 26 and 45 % of all
        repeated = x.astype(dtype) + dtype(offset)
        repeated[:same] = repeated[0]
        expected = dense_cka(repeated.astype(float) - repeated[0], y, "rbf")
        assert cka(repeated, y, "rbf") == pytest.approx(expected, rel=1e-6)
    repeated[:43] = repeated[0]  # 52 %
    with pytest.raises(ValueError, match="x: the median distance between two examples is 0"):
        cka(repeated, y, "rbf")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: cka(FINE, FINE, kernel="cosine"), "unknown kernel 'cosine'"),
        (lambda: cka(FINE, FINE, "rbf", sigma=0), "sigma = 0"),
        (lambda: svcca(FINE, FINE, variance=0), "variance = 0"),
        (lambda: svcca(FINE, FINE, variance=99), "variance = 99"),
        (lambda: similarity_matrix({"1": FINE}, {"1": FINE}, "cosine"), "unknown measure 'cosine'; there are 'cka'"),
        (lambda: similarity_matrix({}, {"1": FINE}), "a has no layers"),
        (lambda: target_alignment(FINE, [0, 1, 0]), "y has 3 examples, x has 10"),
        (lambda: target_alignment(FINE, [1] * 10), "y is constant"),
        (lambda: target_alignment(FINE, [0.0, 1.0] * 5), "whole numbers"),
        (lambda: target_alignment(FINE, [[1, 0], [0, 1]] * 5), r"got shape \(10, 2\)"),
        (lambda: cka(np.eye(8), FINE[:8], debiased=True), "x is constant for this kernel"),  # all equally far apart
        (lambda: cka(np.eye(8), FINE[:8], "rbf", debiased=True), "x is constant for this kernel"),
        (lambda: layer_matching_accuracy(NETWORKS[:1]), "give two at least"),
        (lambda: layer_matching_accuracy([NETWORKS[0], {"1": FINE}]), r"networks\[1\] has the layers"),
        (lambda: layer_matching_accuracy(NETWORKS, exclude=["4"]), "unknown layer '4'"),
        (lambda: layer_matching_accuracy(NETWORKS, exclude=["1", "2"]), "nothing to confuse"),
        (lambda: layer_matching_accuracy(NETWORKS[:2]).interval, "3 seeds"),
        (lambda: gradient_cka(FINE, FINE[:, :3], FINE, FINE), r"x has shape \(10, 4\), its gradient \(10, 3\)"),
        (lambda: gradient_cka(FINE, FINE, FINE, 0 * FINE), "the gradient of y is constant: all values are 0"),
        (lambda: gradient_cka(FINE, FINE, FINE, HOLE), "the gradient of y has 1 NaN"),
        (lambda: gradient_cka(FINE, FINE, FINE[:9], FINE[:9]), "y has 9 examples, x has 10"),
        (lambda: gradient_cka(*[FINE[:3]] * 4, debiased=True), r"x has 3 example\(s\): debiased"),
        (lambda: gradient_cka(*[FINE[:1]] * 4), r"x has 1 example\(s\)"),
        (lambda: gradient_cka(ONES, ONES, FINE, FINE), "x is constant for this kernel"),
        (lambda: similarity_matrix({"1": FINE}, {"1": (FINE,) * 2}, "gradient_cka"), "layer '1' of a: .* takes a pair"),
    ],
)
def test_what_cannot_be_compared(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_an_option_of_another_measure_is_refused() -> None:
    with pytest.raises(TypeError, match="debiased"):
        similarity_matrix({"1": FINE}, {"1": FINE}, "svcca", debiased=True)


# --- Digits -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1000, 500), (4000, 1000)])
def test_many_float32_values_lose_no_digits(shape: tuple[int, int]) -> None:
    """Sums of millions of squares: one after another, they would be off by 1e-5 to 3e-4."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator).relu()
    y = x + 0.3 * torch.randn(shape, generator=generator)
    assert cka(x, x) == pytest.approx(1, abs=1e-6)
    assert cka(x, y) == pytest.approx(cka(x.double(), y.double()), abs=1e-6)
    assert procrustes(x[:, :64], y[:, :64]) == pytest.approx(
        procrustes(x[:, :64].double(), y[:, :64].double()), abs=1e-6
    )


def test_layers_that_are_equally_similar_are_no_match() -> None:
    """The second layer is the first with every unit twice: neither is the more similar one."""
    generator = torch.Generator().manual_seed(0)
    layers = [torch.randn(3000, 200, generator=generator) for _ in range(2)]
    networks = [{"1": x, "2": x.repeat(1, 2)} for x in layers]
    for measure in ("cka", "procrustes"):
        assert layer_matching_accuracy(networks, measure).accuracy == 0


def test_an_array_may_run_backward() -> None:
    x = np.random.default_rng(0).normal(size=(9, 4))
    assert cka(x[::-1], x[::-1].copy()) == pytest.approx(1)


def test_what_stands_for_a_tensor_keeps_its_shape() -> None:
    for value, shape in ((5.0, ()), ([1.0, 2.0], (2,)), (np.zeros((3, 2))[:, ::-1], (3, 2))):
        assert kernels.as_tensor(value).shape == shape
    value = np.arange(3.0)
    kernels.as_tensor(value).add_(1)
    np.testing.assert_array_equal(value, [0, 1, 2])
