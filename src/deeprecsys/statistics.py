"""Estimators for one run's latencies, which are correlated in time: percentile intervals,
warm-up, growing backlog, ratios.

Knows arrays only; `metrics.py` applies it to records. Intervals are two-sided, 95 % unless said
otherwise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import special

from deeprecsys.core import FloatArray

LEVEL = 0.95
_BATCHES = 32
_LARGEST_CORRELATION = 0.95
_BACKLOG_BLOCKS = 20
_BACKLOG_LEVEL = 0.99


def rank(p: float, n: int) -> int:
    """ceil(p n / 100), from 1 to n; exact where p n / 100 is whole but for rounding."""
    return min(n, max(1, math.ceil(round(p * n / 100, 9))))


def percentile(values: NDArray[np.floating], p: float) -> float:
    """The order statistic of rank ceil(p n / 100); NaN (no answer) sorts last, as infinity."""
    if not len(values):
        return math.nan
    filled = np.where(np.isnan(values), np.inf, values)
    return float(np.partition(filled, rank(p, len(filled)) - 1)[rank(p, len(filled)) - 1])


@dataclass(frozen=True, slots=True)
class PercentileEstimate:
    """A percentile, its interval, and how many independent values the n would be worth."""

    value: float
    interval: tuple[float, float]
    effective_n: float


def estimate_percentile(values: FloatArray, p: float, level: float = LEVEL) -> PercentileEstimate:
    """A percentile of a correlated series in order of time.

    How far the share of values over a bound strays depends on their correlation: the variance
    of that share is estimated by means of 32 batches with a first-order correction for what
    correlation remains between neighbouring batches (`_inflation`), the n divided by how much
    it exceeds an independent series', and the interval taken between the order statistics that
    the binomial (Clopper and Pearson, 1934) allows for that many. Its upper end is infinity
    where there are too few. Coverage in simulation: `tests/test_coverage.py`.
    """
    n = len(values)
    if n == 0:
        return PercentileEstimate(math.nan, (math.nan, math.inf), 0.0)
    ordered = np.sort(np.where(np.isnan(values), np.inf, values))
    value = float(ordered[rank(p, n) - 1])
    over = ~(values <= value)
    tau, freedom = _inflation(over)
    # Student's quantile over the normal's: the price of estimating the variance itself.
    price = (_student(freedom, level) / _normal(level)) ** 2
    low, high = _clopper_pearson(float(over.mean()), n / tau / price, level)
    first, last = math.floor((1 - high) * n), math.ceil((1 - low) * n)
    upper = float(ordered[last - 1]) if low > 0 and last < n else math.inf
    interval = (float(ordered[max(first, 1) - 1]), upper)
    return PercentileEstimate(value, interval, n / tau)


def warm_up(values: FloatArray) -> int:
    """How many leading values to leave out: MSER-5 (White, 1997), at most half of them.

    The cut that minimises the standard error of the mean of what remains, in groups of five.
    """
    groups = len(values) // 5
    if groups < 10:
        return 0
    means = values[: groups * 5].reshape(groups, 5).mean(axis=1)
    if not np.isfinite(means).all():
        return 0
    left = np.arange(groups, 0, -1)
    total, squares = means[::-1].cumsum()[::-1], (means**2)[::-1].cumsum()[::-1]
    error = (squares - total**2 / left) / left**2
    return 5 * int(np.argmin(error[: groups // 2]))


def backlog_grows(arrival_s: FloatArray, finish_s: FloatArray, workers: int = 1) -> bool:
    """Does the number of queries in the system grow through the run?

    Its increments over 20 blocks of time are tested against a random walk without drift
    (one-sided Student, 99 %). A stable queue's increments cancel out, so the test is
    conservative for it; growth below 1 % of the arrivals, or a few queries, is not called so.
    """
    n = len(arrival_s)
    if n < 2 * _BACKLOG_BLOCKS:
        return False
    edges = np.linspace(0.0, float(arrival_s[-1]), _BACKLOG_BLOCKS + 1)
    arrived = np.searchsorted(arrival_s, edges, side="right")
    done = np.sort(np.where(np.isnan(finish_s), np.inf, finish_s))
    inside = arrived - np.searchsorted(done, edges, side="right")
    steps = np.diff(inside).astype(float)
    if inside[-1] - inside[0] < max(0.01 * n, 10.0, 2.0 * workers):
        return False
    error = steps.std(ddof=1) / math.sqrt(len(steps))
    bound = float(special.stdtrit(len(steps) - 1, _BACKLOG_LEVEL))
    return bool(steps.mean() > bound * error)


def ratio_interval(log_ratios: FloatArray, level: float = LEVEL) -> tuple[float, float, float]:
    """(ratio, low, high): Student's interval of the mean of paired log ratios, two or more."""
    mean = float(np.mean(log_ratios))
    error = float(np.std(log_ratios, ddof=1)) / math.sqrt(len(log_ratios))
    reach = _student(len(log_ratios) - 1, level) * error
    return math.exp(mean), math.exp(mean - reach), math.exp(mean + reach)


def _inflation(over: NDArray[np.bool_]) -> tuple[float, float]:
    """(variance of the mean of `over`, in units of an independent series', degrees of freedom).

    Batch means b_1 .. b_m have, as a first-order autoregression with coefficient r, the long-run
    variance var(b) (1 + r) / (1 - r); r is corrected for its bias in short series, (1 + 4 r) / m
    (Kendall, 1954). Half of the batches' freedom is left for having estimated r.
    """
    n, share = len(over), float(over.mean())
    m = min(_BATCHES, n // 4)
    independent = share * (1 - share)
    if m < 4 or independent == 0:
        return 1.0, max(1.0, n / 2)
    size = n // m
    means = over[n - m * size :].reshape(m, size).mean(axis=1)
    means = means - means.mean()
    variance = float(means @ means) / m
    if variance == 0:
        return 1.0, m / 2
    correlation = float(means[:-1] @ means[1:]) / m / variance
    correlation = min(max(correlation + (1 + 4 * correlation) / m, 0.0), _LARGEST_CORRELATION)
    long_run = size * variance * m / (m - 1) * (1 + correlation) / (1 - correlation)
    return max(1.0, long_run / independent), m / 2


def _clopper_pearson(share: float, n: float, level: float) -> tuple[float, float]:
    """Interval of a binomial share; n need not be whole."""
    tail, hits = (1 - level) / 2, share * n
    low = float(special.betaincinv(hits, n - hits + 1, tail)) if hits > 0 else 0.0
    high = float(special.betaincinv(hits + 1, n - hits, 1 - tail)) if n > hits else 1.0
    return low, high


@lru_cache(maxsize=1024)
def _student(freedom: float, level: float) -> float:
    return float(special.stdtrit(freedom, 0.5 + level / 2))


@lru_cache(maxsize=64)
def _normal(level: float) -> float:
    return float(special.ndtri(0.5 + level / 2))
