"""labutils.statistics against scipy's own intervals and tests, closed forms and coverage simulations."""

from itertools import permutations
from math import inf, sqrt

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from labutils.statistics import (
    INTERVALS,
    Interval,
    correlation_interval,
    fraction_interval,
    mean_interval,
    pair_effects,
    pearson_table,
    rank_correlation,
    ratio_interval,
    seeds_needed,
    share_interval,
)

numbers = hnp.arrays(np.float64, st.integers(2, 30), elements=st.floats(-1e6, 1e6, allow_subnormal=False))


@given(values=numbers)
def test_mean_interval_equals_scipys_one_sample_t(values):
    if values.std() < 1e-6 * max(1.0, np.abs(values).max()):
        return  # scipy warns of cancellation there; identical values have their own test
    ours = mean_interval(values)
    reference = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    scale = np.abs(values).max()
    assert ours.mean == pytest.approx(values.mean())
    assert ours.low == pytest.approx(reference.low, rel=1e-9, abs=1e-9 * scale)
    assert ours.high == pytest.approx(reference.high, rel=1e-9, abs=1e-9 * scale)
    assert (ours.n, ours.confidence) == (values.size, 0.95)


@pytest.mark.parametrize("kind", ["mean", "correlation", "ratio"])
@pytest.mark.parametrize("value", [0.1, 0.7, 1.0])  # three times 0.1 has the mean 0.10000000000000002
def test_identical_values_give_an_interval_of_no_width(kind, value):
    assert INTERVALS[kind]([value] * 3) == Interval(value, value, value, 3)


def test_a_single_value_says_nothing_about_the_spread():
    assert mean_interval([3.0]) == Interval(3.0, -inf, inf, 1)
    assert correlation_interval([0.3]) == Interval(pytest.approx(0.3), -1, 1, 1)
    assert ratio_interval([3.0]) == Interval(pytest.approx(3.0), 0, inf, 1)


def test_float32_is_averaged_in_double_precision():
    values = np.full(1001, 0.1, dtype=np.float32)
    assert mean_interval(values).mean == pytest.approx(float(np.float32(0.1)), rel=1e-12)


@pytest.mark.parametrize("values", [[0.99, 0.96, 0.999], [0.0, 0.2, 0.1], [1.3, -0.2, 0.4], [0.5, 0.5, 0.5]])
def test_fraction_interval_is_the_possible_part_of_the_t_interval(values):
    ours, usual = fraction_interval(values), mean_interval(values)
    assert (ours.mean, ours.n) == (usual.mean, usual.n)
    assert (ours.low, ours.high) == (max(usual.low, 0), min(usual.high, 1))


@given(n=st.integers(1, 60), data=st.data())
def test_share_interval_solves_the_clopper_pearson_equations(n, data):
    hits = data.draw(st.integers(0, n))
    ours = share_interval(np.arange(n) < hits)
    assert ours.mean == pytest.approx(hits / n)
    # The ends are the shares that make this many hits, or more (fewer), just improbable.
    if hits == 0:
        assert ours.low == 0.0
    else:
        assert stats.binom.sf(hits - 1, n, ours.low) == pytest.approx(0.025, rel=1e-6)
    if hits == n:
        assert ours.high == 1.0
    else:
        assert stats.binom.cdf(hits, n, ours.high) == pytest.approx(0.025, rel=1e-6)


def test_six_agreeing_outcomes_are_the_fewest_that_leave_out_one_half():
    assert share_interval([True] * 5).low < 0.5 < share_interval([True] * 6).low


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_tensors_are_values_too(dtype):
    values = torch.tensor([0.25, 0.5, 0.75], dtype=dtype, requires_grad=True)
    for kind in ("mean", "correlation", "ratio"):
        assert INTERVALS[kind](values) == INTERVALS[kind](list(values)) == INTERVALS[kind]([0.25, 0.5, 0.75])
    assert share_interval(values > 0.3) == share_interval([False, True, True])
    assert seeds_needed(values, 0.4) == seeds_needed([0.25, 0.5, 0.75], 0.4)


@pytest.mark.parametrize("function", [mean_interval, share_interval])
def test_bad_shapes_are_refused(function):
    with pytest.raises(ValueError, match="empty"):
        function(np.array([], dtype=bool))
    with pytest.raises(ValueError, match=r"one-dimensional.*\(2, 2\)"):
        function(np.ones((2, 2), dtype=bool))
    with pytest.raises(ValueError, match=r"one-dimensional.*\(\)"):
        function(np.True_)


@pytest.mark.parametrize("values", [[1, 0, 1], [0.5, 0.2]])
def test_outcomes_must_be_booleans(values):
    with pytest.raises(TypeError, match="must be booleans"):
        share_interval(values)


@pytest.mark.parametrize(
    ("interval", "text"),
    [
        (Interval(0.4193, 0.3127, 0.5259, 8), "0.42 [0.31, 0.53], n = 8"),
        (Interval(0.99871, 0.99849, 0.99893, 5), "0.99871 [0.99849, 0.99893], n = 5"),
        (Interval(1523.4, 1210.2, 1836.6, 4), "1523 [1210, 1837], n = 4"),
        (Interval(-0.001, -0.4, 0.398, 4), "0.00 [-0.40, 0.40], n = 4"),
        (Interval(3.0, 3.0, 3.0, 5), "3 [3, 3], n = 5"),
        (Interval(2.0, -inf, inf, 1), "2 [-inf, inf], n = 1"),
        (Interval(999.7, 999.7, 999.7, 3), "1,000 [1,000, 1,000], n = 3"),
        (Interval(4.21e-8, 3.1e-8, 5.3e-8, 3), "4.21×10⁻⁸ [3.1×10⁻⁸, 5.3×10⁻⁸], n = 3"),
    ],
)
def test_an_interval_prints_the_digits_that_it_knows(interval, text):
    assert str(interval) == text


# --- Correlations and ratios, one a seed --------------------------------------------------------------------------


@given(r=hnp.arrays(np.float64, st.integers(2, 20), elements=st.floats(-0.99, 0.99)))
def test_correlation_interval_is_students_on_fishers_z(r):
    z, ours = mean_interval(np.arctanh(r)), correlation_interval(r)
    expected = tuple(np.tanh([z.low, z.mean, z.high]))
    assert (ours.low, ours.mean, ours.high) == pytest.approx(expected, rel=1e-6, abs=1e-12)
    mirrored = correlation_interval(-r)
    assert (-mirrored.high, -mirrored.low) == pytest.approx((ours.low, ours.high))


@given(r=hnp.arrays(np.float64, st.integers(1, 20), elements=st.floats(-1, 1) | st.sampled_from([-1.0, 1.0])))
def test_correlation_interval_never_leaves_its_range(r):
    ours = correlation_interval(r)
    assert -1 <= ours.low <= ours.mean <= ours.high <= 1


def test_where_a_correlation_is_one_they_are_taken_as_they_are():
    values = [0.8, 1.0, 1.0, 1.0]  # Fisher's z of 1 is infinite
    students = mean_interval(values)
    assert correlation_interval(values) == Interval(students.mean, students.low, 1.0, 4)
    assert correlation_interval([-v for v in values]) == Interval(-students.mean, -1.0, -students.low, 4)
    assert correlation_interval([1.0, 0.9, 1.0]).low > 0  # ranks of three settings: no doubt that they rise
    assert correlation_interval([1 + 1e-15] * 3) == Interval(1.0, 1.0, 1.0, 3)
    assert seeds_needed([1.0, 0.5, -0.5], 0.0, "correlation") == seeds_needed([1.0, 0.5, -0.5], 0.0, "mean")


@given(x=hnp.arrays(np.float64, st.integers(2, 20), elements=st.floats(1e-6, 1e6)))
def test_ratio_interval_is_students_on_logarithms(x):
    ours, logarithms = ratio_interval(x), mean_interval(np.log(x))
    expected = tuple(np.exp(np.minimum([logarithms.low, logarithms.mean, logarithms.high], 709)))
    assert (ours.low, ours.mean, min(ours.high, np.exp(709))) == pytest.approx(expected, rel=1e-6)
    assert ours.mean == pytest.approx(stats.gmean(x))
    inverse = ratio_interval(1 / x)
    assert (inverse.low * ours.high, inverse.mean * ours.mean) == pytest.approx((1, 1)) or ours.high == inf


def test_intervals_cover_as_often_as_they_say():
    rng, covered = np.random.default_rng(0), np.zeros(4)
    for _ in range(1500):
        x = rng.normal(size=(8, 50))  # eight seeds, each with the correlation of 50 pairs
        y = 0.6 * x + 0.8 * rng.normal(size=x.shape)
        observed = [np.corrcoef(*pair)[0, 1] for pair in zip(x, y, strict=True)]
        cases = (
            (mean_interval(rng.normal(2.0, 3.0, size=5)), 2.0),
            (correlation_interval(np.tanh(rng.normal(0.9, 0.4, size=6))), np.tanh(0.9)),
            (ratio_interval(np.exp(rng.normal(0.5, 2.0, size=5))), np.exp(0.5)),
            (correlation_interval(observed), 0.6),
        )
        covered += [found.low <= truth <= found.high for found, truth in cases]
    for count in covered:
        assert stats.binomtest(int(count), 1500, 0.95).pvalue > 1e-3


@pytest.mark.parametrize(
    ("function", "values", "message"),
    [
        (correlation_interval, [0.5, 1.1], "between -1 and 1, got 1.1"),
        (correlation_interval, [0.5, -inf], "between -1 and 1, got -inf"),
        (correlation_interval, [0.5, np.nan], "1 of 2 values are NaN"),
        (ratio_interval, [0.5, 0.0], "positive, got 0.0"),
        (ratio_interval, [0.5, -2.0], "positive, got -2.0"),
        (ratio_interval, [0.5, inf], "1 of 2 values are NaN or infinite"),
        (ratio_interval, [], "empty"),
        (correlation_interval, [[0.5]], "one-dimensional"),
        (mean_interval, [1.0, -inf, 2.0], "1 of 3 values are NaN or infinite.*diverged"),
        (fraction_interval, [1.0, 2.0], r"between 0 and 1, but their mean is 1\.5"),
        (pair_effects, np.diag([1.0, 1.0, np.nan])[[1, 2, 0]], "1 pairs have NaN"),
        *((pair_effects, np.zeros(shape), "3 seeds or more") for shape in ((2, 2), (3, 4), (9,), (3, 3, 3))),
    ],
)
def test_what_is_refused(function, values, message):
    with pytest.raises(ValueError, match=message):
        function(values)


# --- How many seeds -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "values", "threshold"),
    [
        ("mean", [0.1, 0.5, -0.2, 0.4], 0.0),
        ("mean", [5.0, 7.0], 2.0),
        ("correlation", [0.2, 0.6, -0.1, 0.5], 0.0),
        ("correlation", [0.2, 0.6, -0.1, 0.5], 0.5),
        ("ratio", [0.8, 1.5, 1.2], 1.0),
    ],
)
def test_seeds_needed_is_the_fewest_at_the_same_spread(kind, values, threshold):
    to_scale, back = {"mean": (np.array, np.array), "correlation": (np.arctanh, np.tanh), "ratio": (np.log, np.exp)}[
        kind
    ]
    x = to_scale(values)

    def decided(n):  # n values of the same mean and standard deviation
        alike = np.linspace(-1, 1, n)
        alike = back(x.mean() + (alike - alike.mean()) * x.std(ddof=1) / alike.std(ddof=1))
        found = INTERVALS[kind](alike)
        return not found.low <= threshold <= found.high

    wanted = seeds_needed(values, threshold, kind)
    assert decided(wanted)
    assert wanted == 2 or not decided(wanted - 1)


@pytest.mark.parametrize(("hits", "of"), [(1, 1), (0, 1), (3, 4), (2, 3), (3, 5), (1, 5)])
def test_seeds_needed_for_a_share_is_the_fewest_at_the_same_share(hits, of):
    wanted = seeds_needed(np.arange(of) < hits, 0.5, "share")

    def decided(times):
        found = share_interval(np.arange(times * of) < times * hits)
        return not found.low <= 0.5 <= found.high

    assert decided(-(-wanted // of))
    assert not decided((wanted - 1) // of)


def test_seeds_needed_says_where_no_number_would_do():
    assert seeds_needed([1.0, 2.0, 3.0], 2.0) is None
    assert seeds_needed([1.0, 2.0, 3.0], 2.0 + 1e-9) is None
    assert seeds_needed([True, False], 0.5, "share") is None
    assert seeds_needed([1.0], 0.0) is None  # nothing is known of the spread
    assert seeds_needed([1.0] * 3, 1.0) is None
    assert seeds_needed([1.0] * 3, 0.5) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1.0, 2.0], np.nan), "threshold = nan"),
        (([1.0, 2.0], 0.0, "median"), "unknown kind 'median'; there are 'mean'"),
        (([1.0, 2.0], 0.0, "ratio"), "positive, got 0.0"),
        (([0.1, 0.2], 2.0, "correlation"), "between -1 and 1, got 2.0"),
        (([0.1, 0.2], 2.0, "fraction"), "threshold = 2.0: no fraction can lie there"),
        (([True, False], -0.5, "share"), "threshold = -0.5: no share can lie there"),
        (([1.0, np.nan], 0.0), "NaN"),
    ],
)
def test_seeds_needed_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        seeds_needed(*arguments)


# --- Pairs of seeds -----------------------------------------------------------------------------------------------


@given(k=st.integers(3, 12), seed=st.integers(0, 10**6))
def test_pair_effects_are_the_jackknifes_pseudo_values(k, seed):
    values = np.random.default_rng(seed).normal(size=(k, k))
    np.fill_diagonal(values, np.nan)

    def mean_over(kept):
        return np.mean([values[a, b] for a, b in permutations(kept, 2)])

    everyone = set(range(k))
    expected = [k * mean_over(everyone) - (k - 1) * mean_over(everyone - {i}) for i in everyone]
    np.testing.assert_allclose(pair_effects(values), expected, atol=1e-12)
    assert pair_effects(values).mean() == pytest.approx(mean_over(everyone))


def test_pair_effects_of_a_sum_over_two_seeds_are_the_seeds_own_values():
    own = np.array([1.0, 2.0, 4.0, 7.0])
    np.testing.assert_allclose(pair_effects((own[:, None] + own) / 2), own)


def test_intervals_of_pair_effects_cover_where_those_of_pairs_do_not():
    rng = np.random.default_rng(0)
    honest = naive = 0
    for _ in range(1000):
        seeds = rng.normal(size=(8, 1))
        noise = rng.normal(size=(8, 8))
        values = seeds + seeds.T + noise + noise.T  # mean 0
        interval = mean_interval(pair_effects(values))
        honest += interval.low <= 0 <= interval.high
        interval = mean_interval(values[np.triu_indices(8, 1)])
        naive += interval.low <= 0 <= interval.high
    assert honest / 1000 > 0.93
    assert naive / 1000 < 0.85


# --- Correlations -------------------------------------------------------------------------------------------------


@given(n=st.integers(5, 30), seed=st.integers(0, 10**6), confidence=st.floats(0.5, 0.99))
def test_pearson_table_equals_scipy(n, seed, confidence):
    rng = np.random.default_rng(seed)
    data = {"a": rng.normal(size=n), "b": rng.integers(3, size=n) + np.r_[0, 1, np.zeros(n - 2)] * 3}
    data["c"] = data["a"] + rng.normal(size=n)
    table = pearson_table(data, ["a", "b"], ["b", "c"], confidence)
    assert list(table.index) == [("a", "b"), ("a", "c"), ("b", "b"), ("b", "c")]
    for (row, column), line in table.iterrows():
        if row == column:
            assert (line.r_low, line.r, line.r_high) == (1, 1, 1)
            continue
        r = stats.pearsonr(data[row], data[column])
        interval = r.confidence_interval(confidence)
        assert (line.r, line.r_low, line.r_high) == pytest.approx((r.statistic, interval.low, interval.high), abs=1e-9)
        rho = stats.spearmanr(data[row], data[column]).statistic
        half = stats.norm.ppf((1 + confidence) / 2) * sqrt((1 + rho**2 / 2) / (n - 3))
        assert line.rho == pytest.approx(rho)
        assert (line.rho_low, line.rho_high) == pytest.approx(
            tuple(np.tanh(np.arctanh(rho) + half * np.array([-1, 1])))
        )
        assert line.n == n


def test_intervals_for_correlations_cover_as_often_as_they_say():
    rng, truths, covered = np.random.default_rng(0), {"r": 0.6, "rho": 6 / np.pi * np.arcsin(0.6 / 2)}, np.zeros(2)
    for _ in range(600):
        x = rng.normal(size=20)
        line = pearson_table({"x": x, "y": 0.6 * x + 0.8 * rng.normal(size=20)}, ["x"], ["y"]).iloc[0]
        covered += [line[f"{name}_low"] <= truth <= line[f"{name}_high"] for name, truth in truths.items()]
    assert ((covered / 600 > 0.92) & (covered / 600 < 0.98)).all()


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        ({"a": [1, 2, 3]}, {}, r"'a' must be \(n,\) with 4 values or more"),
        ({"a": [[1, 2], [3, 4]]}, {}, r"'a' must be"),
        ({"a": [1, 2, 3, np.nan]}, {}, "'a' has 1 NaN or infinite"),
        ({"a": [1, 2, 3, 4], "lr": [5, 5, 5, 5]}, {"columns": ["lr"]}, "'lr' is constant"),
        ({"a": [1, 2, 3, 4]}, {"columns": ["b"]}, "unknown variable 'b'; there are 'a'"),
        ({"a": [1, 2, 3, 4], "b": [1, 2, 3, 4, 5]}, {}, "same length"),
        ({"a": [1, 2, 3, 4]}, {"confidence": 95}, "between 0 and 1"),
    ],
)
def test_pearson_table_refuses(data, options, message):
    with pytest.raises(ValueError, match=message):
        pearson_table(data, **{"rows": ["a"], "columns": ["a"]} | options)


def test_a_constant_variable_that_is_not_asked_for_does_not_matter():
    table = pearson_table({"a": [1, 2, 3, 4], "b": [1, 3, 2, 4], "seed": [0, 0, 0, 0]}, ["a"], ["b"])
    assert table["r"].iloc[0] == pytest.approx(0.8)


def test_rank_correlation_is_scipys_within_each_seed() -> None:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"a": rng.integers(0, 6, 40), "b": rng.normal(size=40), "seed": np.repeat(range(4), 10)})
    frame.loc[3, "b"] = np.inf  # a diverged loss is the largest
    expected = [stats.spearmanr(rows.a, rows.b).statistic for _, rows in frame.groupby("seed")]
    np.testing.assert_allclose(rank_correlation(frame, "a", "b"), expected, rtol=1e-12)
    assert rank_correlation(frame.assign(a=1.0), "a", "b").tolist() == [0.0] * 4
    for broken in (frame.assign(a=np.nan), frame[::5]):
        with pytest.raises(ValueError, match="3 or more values without NaN"):
            rank_correlation(broken, "a", "b")
