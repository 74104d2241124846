"""labutils.statistics against scipy's own intervals, closed forms and a coverage simulation."""

from dataclasses import FrozenInstanceError
from math import inf, sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from labutils.statistics import Interval, mean_interval, share_interval

numbers = hnp.arrays(np.float64, st.integers(2, 30), elements=st.floats(-1e6, 1e6, allow_subnormal=False))


@given(values=numbers, confidence=st.floats(0.5, 0.999))
def test_mean_interval_equals_scipys_one_sample_t(values, confidence):
    if values.std() < 1e-6 * max(1.0, np.abs(values).max()):
        return  # scipy warns of cancellation there; identical values have their own test
    ours = mean_interval(values, confidence)
    reference = stats.ttest_1samp(values, 0.0).confidence_interval(confidence)
    scale = np.abs(values).max()
    assert ours.mean == pytest.approx(values.mean())
    assert ours.low == pytest.approx(reference.low, rel=1e-9, abs=1e-9 * scale)
    assert ours.high == pytest.approx(reference.high, rel=1e-9, abs=1e-9 * scale)
    assert ours.n == values.size
    assert ours.confidence == confidence


def test_mean_interval_of_two_values_in_closed_form():
    # With one degree of freedom t is Cauchy: the quantile at 1 - a/2 is tan(pi (1 - a) / 2).
    ours = mean_interval([0.0, 2.0], 0.9)
    half = np.tan(np.pi * 0.9 / 2) * sqrt(2.0) / sqrt(2.0)
    assert ours.mean == 1.0
    assert (ours.low, ours.high) == pytest.approx((1 - half, 1 + half))


@given(values=numbers, shift=st.floats(-1e3, 1e3), scale=st.floats(0.1, 10))
def test_mean_interval_moves_and_scales_with_its_values(values, shift, scale):
    plain, moved = mean_interval(values), mean_interval(scale * values + shift)
    size = 1e-9 * (1 + scale * np.abs(values).max() + abs(shift))
    for end in ("mean", "low", "high"):
        assert getattr(moved, end) == pytest.approx(scale * getattr(plain, end) + shift, rel=1e-9, abs=size)


def test_identical_values_give_an_interval_of_no_width():
    assert mean_interval([3.0] * 5) == Interval(3.0, 3.0, 3.0, 5, 0.95)


def test_a_single_value_says_nothing_about_the_spread():
    assert mean_interval([3.0]) == Interval(3.0, -inf, inf, 1, 0.95)


def test_float32_is_averaged_in_double_precision():
    values = np.full(1001, 0.1, dtype=np.float32)
    assert mean_interval(values).mean == pytest.approx(float(np.float32(0.1)), rel=1e-12)


def test_mean_interval_covers_as_often_as_it_says():
    rng = np.random.default_rng(0)
    intervals = [mean_interval(rng.normal(2.0, 3.0, size=5), 0.8) for _ in range(2000)]
    covered = sum(i.low <= 2.0 <= i.high for i in intervals)
    assert stats.binomtest(covered, 2000, 0.8).pvalue > 1e-4


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


@pytest.mark.parametrize("n", [1, 3, 6])
def test_share_interval_of_unanimous_outcomes_in_closed_form(n):
    assert share_interval([True] * n).low == pytest.approx(0.025 ** (1 / n))
    assert share_interval([False] * n).high == pytest.approx(1 - 0.025 ** (1 / n))


def test_six_agreeing_outcomes_are_the_fewest_that_leave_out_one_half():
    assert share_interval([True] * 5).low < 0.5 < share_interval([True] * 6).low


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_share_interval_covers_at_least_as_often_as_it_says(share):
    n = 12  # exactly, by summing over all outcomes
    coverage = 0.0
    for hits in range(n + 1):
        interval = share_interval(np.arange(n) < hits)
        coverage += stats.binom.pmf(hits, n, share) * (interval.low <= share <= interval.high)
    assert coverage >= 0.95


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(bad):
    with pytest.raises(ValueError, match=r"1 of 3 values are NaN or infinite.*diverged"):
        mean_interval([1.0, bad, 2.0])


@pytest.mark.parametrize("function", [mean_interval, share_interval])
def test_bad_shapes_are_refused(function):
    with pytest.raises(ValueError, match="empty"):
        function(np.array([], dtype=bool))
    with pytest.raises(ValueError, match=r"one-dimensional.*\(2, 2\)"):
        function(np.ones((2, 2), dtype=bool))
    with pytest.raises(ValueError, match=r"one-dimensional.*\(\)"):
        function(np.True_)


@pytest.mark.parametrize("function", [mean_interval, share_interval])
@pytest.mark.parametrize("confidence", [0.0, 1.0, 95, -0.1, np.nan])
def test_bad_confidence_is_refused(function, confidence):
    with pytest.raises(ValueError, match="between 0 and 1"):
        function(np.array([True, False]), confidence)


@pytest.mark.parametrize("values", [[1, 0, 1], [0.5, 0.2]])
def test_outcomes_must_be_booleans(values):
    with pytest.raises(TypeError, match="must be booleans"):
        share_interval(values)


@pytest.mark.parametrize(
    ("interval", "text"),
    [
        (Interval(0.4193, 0.3127, 0.5259, 8, 0.95), "0.42 [0.31, 0.53], n = 8"),
        (Interval(0.99871, 0.99849, 0.99893, 5, 0.95), "0.99871 [0.99849, 0.99893], n = 5"),
        (Interval(1523.4, 1210.2, 1836.6, 4, 0.95), "1523 [1210, 1837], n = 4"),
        (Interval(-0.001, -0.4, 0.398, 4, 0.95), "0.00 [-0.40, 0.40], n = 4"),
        (Interval(3.0, 3.0, 3.0, 5, 0.95), "3 [3, 3], n = 5"),
        (Interval(2.0, -inf, inf, 1, 0.95), "2 [-inf, inf], n = 1"),
        (Interval(4.21e-8, 3.1e-8, 5.3e-8, 3, 0.95), "4.21e-08 [3.1e-08, 5.3e-08], n = 3"),
    ],
)
def test_an_interval_prints_the_digits_that_it_knows(interval, text):
    assert str(interval) == text


def test_an_interval_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        mean_interval([1.0, 2.0]).mean = 5.0
