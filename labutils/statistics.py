"""Intervals and tests for repeated seeds: one training is an anecdote.

The unit is the training seed: one value (or one yes/no outcome) a seed goes in, a 95 % interval for what would be seen
over all seeds comes out. Which interval depends on the kind of number, see `INTERVALS`. Where a value belongs to a
*pair* of seeds, `pair_effects` turns the pairs into one value a seed first.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import atanh, floor, inf, isfinite, log10, sqrt, tanh
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import special

CONFIDENCE = 0.95  # coverage of all intervals
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")

_MOST_CORRELATED = 0.999  # beyond, correlations are taken as they are: Fisher's z of 1 is infinite
_MOST_SEEDS = 10_000


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval; prints the digits that its width leaves meaning to.

    Attributes:
        mean: The estimate, in the unit of the values: a mean, a share of successes, a geometric mean.
        low: Lower end of the interval.
        high: Upper end of the interval.
        n: Number of values behind it.
        confidence: Coverage of the interval.

    Example:
        >>> print(Interval(mean=0.4193, low=0.3127, high=0.5259, n=8))
        0.42 [0.31, 0.53], n = 8
    """

    mean: float
    low: float
    high: float
    n: int
    confidence: float = CONFIDENCE

    def __str__(self) -> str:
        # Two significant digits of the half-width: digits beyond that carry no information.
        half = (self.high - self.low) / 2
        numbers = [self.mean, self.low, self.high]
        if 0 < half < inf and (decimals := 1 - floor(log10(half))) <= 6:
            mean, low, high = (f"{number:z.{max(decimals, 0)}f}" for number in numbers)
        else:
            mean, low, high = map(three_digits, numbers)
        return f"{mean} [{low}, {high}], n = {self.n}"


def three_digits(number: float) -> str:
    """Write a number with three digits, or all of those before the point, and small powers of ten as people do.

    Example:
        >>> three_digits(0.14159), three_digits(1024), three_digits(3.2e-9), three_digits(1e-5)
        ('0.142', '1,024', '3.2×10⁻⁹', '10⁻⁵')
    """
    if abs(number) >= 999.5:  # whose three digits would be 10³
        return f"{number:,.0f}"
    digits, _, exponent = f"{number:z.3g}".partition("e")
    if not exponent:
        return digits
    power = "10" + str(int(exponent)).translate(_RAISED)
    return power if digits == "1" else f"{digits}×{power}"


def mean_interval(values: ArrayLike) -> Interval:
    """Return the mean of values (n,), one a seed, with its Student t interval; from -inf to inf for a single one.

    Raises:
        ValueError: If values are empty, not one-dimensional or not finite.

    Example:
        >>> print(mean_interval([1.0, 2.0, 3.0]))
        2.0 [-0.5, 4.5], n = 3
    """
    x = _one_dimensional(as_array(values).astype(np.float64))
    if not np.isfinite(x).all():
        raise ValueError(
            f"{np.count_nonzero(~np.isfinite(x))} of {x.size} values are NaN or infinite: a mean over them is"
            " undefined; decide first what a diverged run counts as"
        )
    mean = float(x.mean())
    if x.size == 1:
        return Interval(mean, -inf, inf, 1)
    if np.ptp(x) == 0:  # the mean of equal values may differ from them by rounding
        return Interval(x[0].item(), x[0].item(), x[0].item(), x.size)
    half = _half_width(x.std(ddof=1), x.size)
    return Interval(mean, mean - half, mean + half, x.size)


def fraction_interval(values: ArrayLike) -> Interval:
    """Return the mean of fractions, such as accuracies, with the t interval as far as it is possible: within 0 to 1.

    Single values may lie outside, as those of `pair_effects` do.

    Raises:
        ValueError: As `mean_interval`, and if the mean is no fraction.

    Example:
        >>> print(fraction_interval([0.99, 0.96, 0.999]))
        0.983 [0.932, 1.000], n = 3
    """
    found = mean_interval(values)
    if not 0 <= found.mean <= 1:
        raise ValueError(f"fractions lie between 0 and 1, but their mean is {found.mean:g}")
    return replace(found, low=max(found.low, 0.0), high=min(found.high, 1.0))


def _half_width(spread: float, n: int) -> float:
    return float(special.stdtrit(n - 1, (1 + CONFIDENCE) / 2) * spread / sqrt(n))


def share_interval(successes: ArrayLike) -> Interval:
    """Return the share of successes (n,), booleans, one a seed, with its exact (Clopper-Pearson) interval.

    It covers at least as often as it says. Six agreeing outcomes are the fewest whose interval leaves out one half.

    Raises:
        ValueError: If successes are empty or not one-dimensional.
        TypeError: If successes are not booleans.

    Source:
        Clopper and Pearson (1934), Biometrika 26, 404-413.

    Example:
        >>> print(share_interval([True] * 7 + [False]))
        0.88 [0.47, 1.00], n = 8
    """
    outcomes = _one_dimensional(as_array(successes))
    if outcomes.dtype != np.bool_:
        raise TypeError(
            f"successes must be booleans, one a seed, got {outcomes.dtype}: compare first, as in accuracy > 0.9"
        )
    share = int(outcomes.sum()) / outcomes.size
    return Interval(share, *_clopper_pearson(share, outcomes.size), outcomes.size)


def _clopper_pearson(share: float, n: int) -> tuple[float, float]:
    """Return the limits of a share of n outcomes; also between whole numbers of successes."""
    hits, tail = share * n, (1 - CONFIDENCE) / 2
    low = float(special.betaincinv(hits, n - hits + 1, tail)) if hits > 0 else 0.0
    high = float(special.betaincinv(hits + 1, n - hits, 1 - tail)) if hits < n else 1.0
    return low, high


def correlation_interval(values: ArrayLike) -> Interval:
    """Return the mean of correlations (n,), one a seed, with its interval: Student's t on Fisher's z = atanh r.

    The estimate is tanh of the mean z. Ranks of few settings may agree completely: where a correlation is beyond
    ±0.999, whose z would outweigh all others, it is the mean of the correlations themselves, with Student's t on them,
    cut at ±1. To judge one so near to 1, take `ratio_interval` of 1 − r. Values without spread on this scale have their
    median, and an interval of no width.

    Raises:
        ValueError: As `mean_interval`, and if a value is not between −1 and 1.

    Source:
        Fisher (1915, 1921).

    Example:
        >>> print(correlation_interval([0.9, 0.95, 0.99, 0.8]), correlation_interval([0.9, 0.95, 1.0, 0.8]), sep="; ")
        0.94 [0.61, 0.99], n = 4; 0.91 [0.78, 1.00], n = 4
    """
    scale = _scale_of_correlations(values)
    return _on_a_scale(_correlations(values), scale, tanh if scale is _fisher_z else lambda r: min(max(r, -1.0), 1.0))


def _on_a_scale(
    values: ArrayLike, scale: Callable[[ArrayLike], np.ndarray], back: Callable[[float], float]
) -> Interval:
    found = mean_interval(scale(values))
    with np.errstate(over="ignore"):
        low, mean, high = (float(back(part)) for part in (found.low, found.mean, found.high))
    if found.low == found.high:
        low = mean = high = float(np.median(as_array(values)))
    return Interval(mean, low, high, found.n)


def _fisher_z(values: ArrayLike) -> np.ndarray:
    return np.arctanh(_correlations(values).clip(-_MOST_CORRELATED, _MOST_CORRELATED))


def _correlations(values: ArrayLike) -> np.ndarray:
    r = as_array(values).astype(np.float64)
    if (np.abs(r) > 1 + 1e-12).any():  # what rounding may add; NaN is for mean_interval to refuse
        raise ValueError(f"correlations lie between -1 and 1, got {r[np.abs(r) > 1].flat[0]}")
    return r.clip(-1, 1)


def _scale_of_correlations(values: ArrayLike) -> Callable[[ArrayLike], np.ndarray]:
    return _correlations if (np.abs(_correlations(values)) > _MOST_CORRELATED).any() else _fisher_z


def ratio_interval(values: ArrayLike) -> Interval:
    """Return the geometric mean of positive numbers (n,) with its interval: Student's t on their logarithms.

    Raises:
        ValueError: As `mean_interval`, and if a value is not positive.

    Example:
        >>> print(ratio_interval([0.5, 1.0, 2.0]))
        1.0 [0.2, 5.6], n = 3
    """
    return _on_a_scale(values, _logarithms, np.exp)


def _logarithms(values: ArrayLike) -> np.ndarray:
    x = as_array(values).astype(np.float64)
    if (x <= 0).any():
        raise ValueError(f"ratios must be positive, got {x[x <= 0].flat[0]}: for a difference take mean_interval")
    return np.log(x)


Kind = Literal["mean", "fraction", "share", "correlation", "ratio"]
INTERVALS: dict[Kind, Callable[..., Interval]] = {
    "mean": mean_interval,
    "fraction": fraction_interval,
    "share": share_interval,
    "correlation": correlation_interval,
    "ratio": ratio_interval,
}
"""The interval for each kind of number: values, one a seed, to `Interval`."""


def seeds_needed(values: ArrayLike, threshold: float, kind: Kind = "mean") -> int | None:
    """Return about how many seeds would decide on which side of a threshold the estimate lies, at this spread.

    It is the fewest seeds whose interval leaves out the threshold if estimate and spread stay as they are. More seeds
    will move both: with this number, the odds of a decision are about even.

    Args:
        values: One a seed, as for the kind's interval.
        threshold: The value to exceed or to stay below, in the unit of the values.
        kind: Kind of number, one of `INTERVALS`.

    Returns:
        The number of seeds, 2 or more; None if 10,000 would not do (the effect lies at the threshold), and for a
        single value, which says nothing about the spread (a share's has none to say).

    Raises:
        ValueError: As the kind's interval; an unknown kind, or a threshold that the kind cannot have.

    Example:
        >>> seeds_needed([0.1, 0.5, -0.2, 0.4], 0.0), seeds_needed([True, True, False], 0.5, "share")
        (13, 40)
    """
    if kind not in INTERVALS:
        raise ValueError(f"unknown kind {kind!r}; there are {', '.join(map(repr, INTERVALS))}")
    low, high = {"fraction": (0, 1), "share": (0, 1)}.get(kind, (-inf, inf))
    if not (isfinite(threshold) and low <= threshold <= high):
        raise ValueError(f"threshold = {threshold}: no {kind} can lie there")
    found = INTERVALS[kind](values)  # checks the values
    if kind == "share":

        def decides(n: int) -> bool:
            low, high = _clopper_pearson(found.mean, n)
            return threshold < low or threshold > high
    else:
        if found.n == 1:
            return None
        scale = (
            _scale_of_correlations(values) if kind == "correlation" else _logarithms if kind == "ratio" else as_array
        )
        x, limit = np.asarray(scale(values), dtype=np.float64), float(scale(threshold))
        distance, spread = abs(x.mean() - limit), x.std(ddof=1)

        def decides(n: int) -> bool:
            return _half_width(spread, n) < distance

    # The interval narrows as n grows.
    wanted = bisect_left(range(2, _MOST_SEEDS + 1), True, key=decides) + 2
    return wanted if wanted <= _MOST_SEEDS else None


def pair_effects(values: ArrayLike) -> np.ndarray:
    """Turn values (K, K) of ordered pairs of seeds into one value a seed, with the same mean and the right spread.

    All pairs of one seed share it, so that an interval over pairs would be far too narrow. These are the jackknife's
    pseudo-values: K times the mean over all pairs, less K − 1 times the mean over the pairs without the seed. Their t
    interval (`mean_interval`) accounts for what the pairs have in common. Single ones may lie outside the pairs' range.

    Raises:
        ValueError: If values are not a square matrix of 3 seeds or more, or not finite off the diagonal.

    Source:
        Arvesen (1969), Jackknifing U-statistics, Annals of Mathematical Statistics 40, 2076-2100.

    Example:
        >>> pair_effects([[0, 1, 1], [1, 0, 0], [1, 0, 0]]).round(6).tolist()  # the third pair fails
        [2.0, 0.0, 0.0]
    """
    v = as_array(values).astype(np.float64)
    if v.ndim != 2 or v.shape[0] != v.shape[1] or len(v) < 3:
        raise ValueError(f"values must be (seeds, seeds) of 3 seeds or more, got shape {v.shape}")
    np.fill_diagonal(v, 0.0)
    if not np.isfinite(v).all():
        raise ValueError(f"{np.count_nonzero(~np.isfinite(v))} pairs have NaN or infinite values")
    k, total = len(v), v.sum()
    without = (total - v.sum(0) - v.sum(1)) / ((k - 1) * (k - 2))
    return k * total / (k * (k - 1)) - (k - 1) * without


def rank_correlation(frame: pd.DataFrame, a: str, b: str, by: str = "seed") -> np.ndarray:
    """Compute Spearman's rank correlation of two columns within each group of rows: one value a seed.

    Args:
        frame: Long-format results, one row a training.
        a, b: Names of two columns of numbers. Infinite values count as the largest.
        by: Column that tells the groups apart.

    Returns:
        Correlations (groups,), in the order of the groups' names; 0 where one of the columns is constant.

    Raises:
        ValueError: If a group has fewer than 3 rows, or a value is NaN.

    Example:
        >>> frame = pd.DataFrame({"lr": [1, 2, 3] * 2, "loss": [5, 4, 3, 1, 3, 2], "seed": [0] * 3 + [1] * 3})
        >>> rank_correlation(frame, "lr", "loss").tolist()
        [-1.0, 0.5]
    """
    found = []
    for name, rows in frame.groupby(by):
        if len(rows) < 3 or rows[[a, b]].isna().any(axis=None):
            raise ValueError(f"{by} {name}: {a} and {b} need 3 or more values without NaN, got {len(rows)} rows")
        ranks = rows[[a, b]].rank()
        found.append(ranks[a].corr(ranks[b]) if (ranks.nunique() > 1).all() else 0.0)
    return np.array(found)


def pearson_table(
    data: pd.DataFrame | Mapping[str, ArrayLike],
    rows: Sequence[str],
    columns: Sequence[str],
    confidence: float = CONFIDENCE,
) -> pd.DataFrame:
    """Return Pearson's and Spearman's correlation of each row variable with each column variable, with intervals.

    The intervals are those of Fisher's z: atanh r is about normal with standard error 1/√(n − 3); for Spearman's ρ,
    √((1 + ρ²/2) / (n − 3)). They rest on independent observations: one value a training.

    Args:
        data: Numbers by variable name, each (n,), n ≥ 4.
        rows, columns: Variables to correlate with each other.
        confidence: Coverage of each single interval, between 0 and 1. Of many intervals, some miss.

    Returns:
        One line for each pair, indexed by (row, column), with the columns n, r, r_low, r_high, rho, rho_low and
        rho_high.

    Raises:
        ValueError: If a variable is unknown, not (n,) with n ≥ 4, constant, or not finite; the message names it.

    Source:
        Fisher (1915, 1921); for Spearman's ρ, Bonett and Wright (2000), Psychometrika 65, 23-28.

    Example:
        >>> table = pearson_table({"lr": [1, 2, 3, 4, 5], "loss": [9, 7, 8, 3, 2]}, ["lr"], ["loss"])
        >>> table.round(2).to_dict("records")[0]["r"]
        -0.91
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, as in 0.95, got {confidence}")
    frame = pd.DataFrame({name: _variable(name, data[name]) for name in data})
    for name in (*rows, *columns):
        if name not in frame:
            raise ValueError(f"unknown variable {name!r}; there are {', '.join(map(repr, frame))}")
        if frame[name].nunique() < 2:
            raise ValueError(f"{name!r} is constant: its correlations are undefined")
    n = len(frame)
    pearson, spearman = frame.corr(), frame.corr("spearman")
    width = float(special.ndtri((1 + confidence) / 2)) / sqrt(n - 3)
    lines = {}
    for row in rows:
        for column in columns:
            r, rho = (min(max(float(m.loc[row, column]), -1.0), 1.0) for m in (pearson, spearman))
            limits = [*_fisher(r, width), *_fisher(rho, width * sqrt(1 + rho**2 / 2))]
            lines[row, column] = [n, r, *limits[:2], rho, *limits[2:]]
    names = ["n", "r", "r_low", "r_high", "rho", "rho_low", "rho_high"]
    index = pd.MultiIndex.from_tuples(list(lines), names=["row", "column"])
    return pd.DataFrame(list(lines.values()), index, names).astype({"n": int})


def _variable(name: str, values: ArrayLike) -> np.ndarray:
    x = as_array(values).astype(np.float64)
    if x.ndim != 1 or x.size < 4:
        raise ValueError(f"{name!r} must be (n,) with 4 values or more, one a training, got shape {x.shape}")
    if not np.isfinite(x).all():
        raise ValueError(
            f"{name!r} has {np.count_nonzero(~np.isfinite(x))} NaN or infinite values: decide first what a diverged"
            " training counts as"
        )
    return x


def _fisher(r: float, width: float) -> tuple[float, float]:
    """Return tanh(atanh r ± width)."""
    if abs(r) == 1:
        return r, r
    return tanh(atanh(r) - width), tanh(atanh(r) + width)


def as_array(values: ArrayLike) -> np.ndarray:
    """Return values as a numpy array; tensors of any type and on any device, also in a list, are values like others.

    Example:
        >>> import torch
        >>> as_array([torch.tensor(0.5, dtype=torch.bfloat16), 1.0])
        array([0.5, 1. ])
    """
    if isinstance(values, list | tuple):
        return np.asarray([as_array(value) for value in values])
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        return np.asarray(values.double() if values.is_floating_point() else values)  # numpy has no bfloat16
    return np.asarray(values)


def _one_dimensional(values: np.ndarray) -> np.ndarray:
    if values.ndim != 1:
        raise ValueError(f"values must be one-dimensional, one a seed, got shape {values.shape}")
    if values.size == 0:
        raise ValueError("values are empty: an interval needs at least one seed")
    return values
