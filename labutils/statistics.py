"""Intervals for repeated seeds: one training is an anecdote.

The unit is the training seed: one value (or one yes/no outcome) a seed goes in, an interval for what would be
seen over all seeds comes out. Claims and the bands of figures rest on these two functions.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import floor, inf, isfinite, log10, sqrt

import numpy as np
from numpy.typing import ArrayLike
from scipy import special, stats


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval.

    Attributes:
        mean: The estimate (a mean, or a share of successes), in the unit of the values.
        low: Lower end of the interval.
        high: Upper end of the interval.
        n: Number of values behind it.
        confidence: Coverage of the interval, between 0 and 1.

    Example:
        >>> print(Interval(mean=0.4193, low=0.3127, high=0.5259, n=8, confidence=0.95))
        0.42 [0.31, 0.53], n = 8
    """

    mean: float
    low: float
    high: float
    n: int
    confidence: float

    def __str__(self) -> str:
        # Two significant digits of the half-width: digits beyond that carry no information.
        half = (self.high - self.low) / 2
        form = "z.3g"
        if 0 < half < inf and (decimals := 1 - floor(log10(half))) <= 6:
            form = f"z.{max(decimals, 0)}f"
        return f"{self.mean:{form}} [{self.low:{form}}, {self.high:{form}}], n = {self.n}"


def mean_interval(values: ArrayLike, confidence: float = 0.95) -> Interval:
    """Return the mean with its Student t confidence interval.

    Exact for independent normal values; by the central limit theorem good for others, unless few and very
    skewed.

    Args:
        values: Numbers, shape (n,), one a seed.
        confidence: Coverage, between 0 and 1.

    Returns:
        The mean and its interval. A single value says nothing about the spread, so n = 1 gives the interval
        from -inf to inf.

    Raises:
        ValueError: If values are empty, not one-dimensional or not finite, or confidence is not between 0
            and 1.

    Example:
        >>> print(mean_interval([1.0, 2.0, 3.0]))
        2.0 [-0.5, 4.5], n = 3
    """
    _check_confidence(confidence)
    x = _one_dimensional(np.asarray(values, dtype=np.float64))
    if not np.isfinite(x).all():
        raise ValueError(
            f"{np.count_nonzero(~np.isfinite(x))} of {x.size} values are NaN or infinite: a mean over them is"
            " undefined; decide first what a diverged run counts as"
        )
    mean = float(x.mean())
    if x.size == 1:
        return Interval(mean, -inf, inf, 1, confidence)
    half = float(special.stdtrit(x.size - 1, (1 + confidence) / 2) * x.std(ddof=1) / sqrt(x.size))
    return Interval(mean, mean - half, mean + half, x.size, confidence)


def share_interval(successes: ArrayLike, confidence: float = 0.95) -> Interval:
    """Return the share of successes with its exact (Clopper-Pearson) confidence interval.

    It holds for every n, and covers at least as often as it says. At 95 %, six agreeing outcomes are the
    fewest whose interval leaves out one half.

    Args:
        successes: Booleans, shape (n,), one a seed.
        confidence: Coverage, between 0 and 1.

    Returns:
        The share, between 0 and 1, and its interval.

    Raises:
        ValueError: If successes are empty or not one-dimensional, or confidence is not between 0 and 1.
        TypeError: If successes are not booleans.

    Source:
        Clopper and Pearson (1934), Biometrika 26, 404-413.

    Example:
        >>> print(share_interval([True] * 7 + [False]))
        0.88 [0.47, 1.00], n = 8
    """
    _check_confidence(confidence)
    outcomes = _one_dimensional(np.asarray(successes))
    if outcomes.dtype != np.bool_:
        raise TypeError(
            f"successes must be booleans, one a seed, got {outcomes.dtype}: compare first, as in accuracy > 0.9"
        )
    hits = int(outcomes.sum())
    exact = stats.binomtest(hits, outcomes.size).proportion_ci(confidence, method="exact")
    return Interval(hits / outcomes.size, float(exact.low), float(exact.high), outcomes.size, confidence)


def _one_dimensional(values: np.ndarray) -> np.ndarray:
    if values.ndim != 1:
        raise ValueError(f"values must be one-dimensional, one a seed, got shape {values.shape}")
    if values.size == 0:
        raise ValueError("values are empty: an interval needs at least one seed")
    return values


def _check_confidence(confidence: float) -> None:
    if not (isfinite(confidence) and 0 < confidence < 1):
        raise ValueError(f"confidence must lie between 0 and 1, as in 0.95, got {confidence}")
