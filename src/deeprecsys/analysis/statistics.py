"""Estimators for one run's latencies, which are correlated in time: percentile intervals,
warm-up, growing backlog, ratios.

Refuses to know records, targets and policies: arrays in, numbers out; times in seconds.
`metrics.py` and `streaming.py` apply it to records. Intervals are two-sided and 95 %
unless said otherwise. A value that is infinite is a query without an answer: over every bound.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

from deeprecsys.core import FloatArray

LEVEL = 0.95
# Chosen by experiment (tests/test_coverage.py): fewer batches estimate the variance less surely,
# more leave a correlation between neighbours that a first-order model no longer describes.
_BATCHES = 32
_LARGEST_CORRELATION = 0.95
# The correlation is looked for at these percentiles too: see `_effective_n`.
_BUSY_PERCENTILES = (75.0, 90.0)
_LEAST_FREEDOM = 1.5
# Degrees of freedom for each effective value on the rarer side of a bound: roughly the busy
# periods that were seen. An upper end takes half as many: see `ends`.
_FREEDOM, _CAUTIOUS = 0.5, 0.25
_MORE = 1.1  # the step in which a long enough run is looked for
_STRETCHES = 16
BACKLOG_BLOCKS = 20
# Of 97.5 and 99 %: at load 1.05 and 10 s (3,100 queries) it finds 69 % instead of 52 % of the
# overloads, and still calls only 1 % of the runs at load 0.98 overloaded.
_BACKLOG_LEVEL = 0.975
_LEAST_BACKLOG_SHARE = 0.01
_LEAST_BACKLOG = 10


@dataclass(frozen=True, slots=True)
class PercentileEstimate:
    """A percentile, its interval, and how many independent values the n are worth."""

    value: float
    interval: tuple[float, float]
    effective_n: float


def rank(p: float, n: int) -> int:
    """ceil(p n / 100), from 1 to n; rounding of p n / 100 never lifts it by one."""
    return min(n, max(1, math.ceil(round(p * n / 100, 9))))


def percentile(values: NDArray[np.floating], p: float) -> float:
    """The order statistic of rank ceil(p n / 100); NaN (no answer) sorts last, as infinity."""
    if not len(values):
        return math.nan
    at = rank(p, len(values)) - 1
    return float(np.partition(unanswered_last(values), at)[at])


def unanswered_last(values: NDArray[np.floating]) -> FloatArray:
    """The values, with infinity for NaN."""
    return np.where(np.isnan(values), np.inf, values)


def estimate_percentile(values: FloatArray, p: float, level: float = LEVEL) -> PercentileEstimate:
    """A percentile of a correlated series [n] in order of time.

    The n count as `_effective_n` independent ones; the interval lies between the order
    statistics that the binomial law (Clopper and Pearson, Biometrika 26, 1934) allows for that
    many. Where there are too few, its ends are 0 and infinity (values are latencies). Coverage
    by simulation: tests/test_coverage.py.
    """
    n = len(values)
    if n == 0:
        return PercentileEstimate(math.nan, (math.nan, math.inf), 0.0)
    filled = unanswered_last(values)
    ordered = np.sort(filled)
    at = rank(p, n)
    value = float(ordered[at - 1])
    over = filled > value if math.isfinite(value) else np.isinf(filled)
    effective = _effective_n(filled, over, p)
    first, last = ends(n, effective, p, level)
    lower = float(ordered[first - 1]) if first > 0 else 0.0
    upper = float(ordered[last - 1]) if last is not None else math.inf
    return PercentileEstimate(value, (lower, upper), effective)


def ends(n: int, effective: float, p: float, level: float = LEVEL) -> tuple[int, int | None]:
    """Ranks of those of n values between which the p-th percentile lies; 0 and None where it may
    lie below or above them all.

    Whether there is an upper end is decided by luck where half of the runs have one: those that
    saw few busy periods, which are the runs that miss. So the end itself is put more cautiously
    than that decision, at most at the largest value. (Bursty arrivals, load 0.8, 32,000 queries:
    a third of the runs has an upper end, and p95 lies below it in 95 % of those, not in 86 %.)
    """
    share, rare = 1 - rank(p, n) / n, min(p, 100 - p) / 100
    low, high = share_interval(share, effective, rare, level)
    first = math.floor((1 - high) * n)
    if math.ceil((1 - low) * n) >= n:
        return first, None
    cautious, _ = share_interval(share, effective, rare, level, _CAUTIOUS)
    return first, min(n, math.ceil((1 - cautious) * n))


def enough(effective_share: float, p: float, level: float = LEVEL) -> float:
    """Values from which the interval of the p-th percentile ends below the largest, where each is
    worth `effective_share` of an independent one."""
    share, rare, n = 1 - p / 100, min(p, 100 - p) / 100, 10.0
    while share_interval(share, n * effective_share, rare, level, _CAUTIOUS)[0] * n < 1:
        n *= _MORE
    return n


def judged_at(p: float) -> tuple[float, ...]:
    """The percentiles whose correlation says what the values are worth at p: see `_effective_n`."""
    return (p, *(q for q in _BUSY_PERCENTILES if q != p))


def share_over(
    values: FloatArray, bound: float, p: float, level: float = LEVEL
) -> tuple[float, float, float]:
    """(low, high, effective n): interval of the share of a series that is over a bound.

    The same question as whether the p-th percentile is over the bound, without a sort: for
    runs in progress, where it is asked many times.
    """
    filled = unanswered_last(values)
    over = filled > bound
    effective = _effective_n(filled, over, p)
    share = float(over.mean())
    rare = max(min(p, 100 - p) / 100, share)
    return *share_interval(share, effective, rare, level), effective


def warm_up(values: FloatArray) -> int:
    """How many leading values to leave out: MSER-5, at most half of them, if they stand out.

    The cut that minimises the standard error of the mean of what remains, in groups of five
    (White, "An effective truncation heuristic for bias reduction in simulation output",
    Simulation 69(6), 1997). Values must be finite.
    """
    groups = len(values) // 5
    if groups < 10:
        return 0
    means = values[: groups * 5].reshape(groups, 5).mean(axis=1)
    means = means - means.mean()
    left = np.arange(groups, 0, -1)
    total, squares = means[::-1].cumsum()[::-1], (means**2)[::-1].cumsum()[::-1]
    error = (squares - total**2 / left) / left**2
    cut = 5 * int(np.argmin(error[: groups // 2 + 1]))
    return cut if _stands_out(values, cut) else 0


def _stands_out(values: FloatArray, cut: int) -> bool:
    """Is the mean before the cut farther out than twice any stretch after it?

    MSER alone also cuts off busy periods that happen to come early: in a third of the M/M/2 runs
    at load 0.8 and 5,000 queries, which lowers their p95 by 4 % and the coverage of its interval
    from 93 to 86 %. With this, 4 % of them are cut; a cold start is still found.
    Stretches are as long as the cut, or a sixteenth of the rest.
    """
    if cut == 0:
        return False
    rest = values[cut:]
    length = min(cut, len(rest) // _STRETCHES)
    if length == 0:
        return False
    means = rest[: len(rest) // length * length].reshape(-1, length).mean(axis=1)
    middle = float(np.median(means))
    farthest = float(np.abs(means - middle).max())
    return abs(float(values[:cut].mean()) - middle) > 2 * farthest


def backlog_grows(arrival_s: FloatArray, finish_s: FloatArray, workers: int = 1) -> bool:
    """Does the number of queries in the system grow through the run?

    Increments over 20 blocks of time, from the first arrival to the last, against a random walk
    without drift (one-sided Student test). In a stable queue what came in goes out, so its
    increments cancel and the test is conservative. Growth of less than 1 % of the arrivals, ten
    queries, or two a worker never counts: a system that starts empty has to fill.
    `arrival_s` [n] sorted; `finish_s` [n], NaN or infinity for queries that never left.
    """
    inside = _inside(arrival_s, finish_s)
    if inside is None:
        return False
    return grows(inside, len(arrival_s), workers, np.histogram(arrival_s, BACKLOG_BLOCKS)[0])


def backlog_growth(arrival_s: FloatArray, finish_s: FloatArray, workers: int = 1) -> float:
    """Share of the arrivals that the backlog grew by: the line of least squares through it.

    The estimate beside `backlog_grows`' test, which in a run of a minute cannot tell 3 % too
    much from chance. 0 where the backlog shrinks or hardly grows, as defined there.
    """
    inside = _inside(arrival_s, finish_s)
    return 0.0 if inside is None else growth(inside, len(arrival_s), workers)


def grows(inside: FloatArray, n: int, workers: int, arrived: NDArray[Any]) -> bool:
    """`backlog_grows` of n queries, from how many were in the system at the edges of intervals of
    equal length, and how many arrived in each."""
    if not _worth_a_test(inside, n, workers):
        return False
    steps = np.diff(inside)
    error = _lasting(arrived) * steps.std(ddof=1) / math.sqrt(len(steps))
    return bool(steps.mean() > _student(len(steps) - 1, _BACKLOG_LEVEL) * error)


def _lasting(arrived: NDArray[Any]) -> float:
    """How much bursts that outlast a block lengthen a walk: by the first-order correlation of
    the arrivals of neighbouring blocks, as in `inflation`."""
    counts = arrived - arrived.mean()
    squares = float(counts @ counts)
    if squares == 0:
        return 1.0
    r = float(counts[:-1] @ counts[1:]) / squares
    r = min(max(r + (1 + 4 * r) / len(counts), 0.0), _LARGEST_CORRELATION)
    return math.sqrt((1 + r) / (1 - r))


def growth(inside: FloatArray, n: int, workers: int = 1) -> float:
    """`backlog_growth` of n queries, from how many were in the system at equal intervals."""
    if not _worth_a_test(inside, n, workers):
        return 0.0
    slope = float(np.polyfit(np.arange(len(inside)), inside, 1)[0])
    return min(1.0, max(0.0, slope * (len(inside) - 1) / n))


def _worth_a_test(inside: FloatArray, n: int, workers: int) -> bool:
    least = max(_LEAST_BACKLOG_SHARE * n, _LEAST_BACKLOG, 2 * workers)
    return n >= 2 * BACKLOG_BLOCKS and bool(inside[-1] - inside[0] >= least)


def _inside(arrival_s: FloatArray, finish_s: FloatArray) -> FloatArray | None:
    """Queries in the system at the edges of 20 blocks of time; None if there are too few."""
    n = len(arrival_s)
    if n < 2 * BACKLOG_BLOCKS:
        return None
    edges = np.linspace(arrival_s[0], arrival_s[-1], BACKLOG_BLOCKS + 1)
    arrived = np.searchsorted(arrival_s, edges, side="right")
    # NaN and infinity sort after the last edge: still inside.
    left = np.bincount(np.searchsorted(edges, finish_s), minlength=len(edges))[: len(edges)]
    return np.asarray((arrived - left.cumsum()).astype(np.float64))


def ratio_interval(
    log_ratios: FloatArray, level: float = LEVEL, fitted: int = 1
) -> tuple[float, float, float]:
    """(ratio, low, high): Student's interval of the mean of paired log ratios, exponentiated.

    fitted: parameters that the values share, each a degree of freedom less. Without one left
    they say nothing of their own error: the interval is (0, infinity).
    """
    logs = np.asarray(log_ratios, dtype=np.float64)
    if not len(logs):
        return math.nan, 0.0, math.inf
    mean = float(logs.mean())
    if len(logs) <= fitted:
        return math.exp(mean), 0.0, math.inf
    error = float(logs.std(ddof=1)) / math.sqrt(len(logs))
    reach = _student(len(logs) - fitted, 0.5 + level / 2) * error
    return math.exp(mean), math.exp(mean - reach), math.exp(mean + reach)


def is_significant(interval: tuple[float, float]) -> bool:
    """Does an interval of a ratio exclude 1?"""
    return not interval[0] <= 1.0 <= interval[1]


def _effective_n(filled: FloatArray, over: NDArray[np.bool_], p: float) -> float:
    """n over the inflation of the variance of the share over a bound, by correlation.

    A lucky run has few busy periods, hence a low percentile and, at that percentile, little
    correlation to be seen: the interval misses from below. The busy periods show already at a
    lower percentile, with many more queries to judge by, so the larger of the two counts.
    (M/M/2, load 0.8, 2,000 queries: without it the 95 % interval covers in 91 % of the runs.)
    """
    seen = [over, *(filled > percentile(filled, q) for q in judged_at(p)[1:])]
    return len(filled) / max(map(_inflation, seen))


def _inflation(over: NDArray[np.bool_]) -> float:
    """Variance of the mean of `over` [n], in units of an independent series'; at least 1."""
    n = len(over)
    m = min(_BATCHES, n // 4)
    if m < 4:
        return 1.0
    size = n // m
    means = over[n - m * size :].reshape(m, size).mean(axis=1)
    return inflation(means, size, float(over.mean()))


def inflation(shares: FloatArray, size: float, share: float) -> float:
    """The same, from the shares [m] of consecutive batches of `size` and that of all of them.

    Batch means b_1 .. b_m have, as a first-order autoregression with coefficient r, the long-run
    variance var(b) (1 + r) / (1 - r); r is corrected for its bias in short series, (1 + 4 r) / m
    (Kendall, Biometrika 41, 1954).
    """
    m, independent = len(shares), share * (1 - share)
    if m < 4 or independent == 0:
        return 1.0
    means = shares - shares.mean()
    squares = float(means @ means)
    if squares == 0:
        return 1.0
    r = float(means[:-1] @ means[1:]) / squares
    r = min(max(r + (1 + 4 * r) / m, 0.0), _LARGEST_CORRELATION)
    return max(1.0, size * squares / (m - 1) * (1 + r) / (1 - r) / independent)


def share_interval(
    share: float, effective: float, rare: float, level: float = LEVEL, freedom: float = _FREEDOM
) -> tuple[float, float]:
    """Interval of a share out of so many effective values, their number itself an estimate.

    rare: the share on the rarer side of the bound. freedom: degrees of it for each effective value
    there; in all at most one less than the batches. Student's quantile over the normal's, squared,
    is the price in values.
    """
    freedom = min(max(freedom * rare * effective, _LEAST_FREEDOM), _BATCHES - 1.0)
    price = (_student(freedom, 0.5 + level / 2) / _normal(0.5 + level / 2)) ** 2
    return _clopper_pearson(share, effective / price, level)


def _clopper_pearson(share: float, n: float, level: float) -> tuple[float, float]:
    """Interval of a binomial share; n need not be whole."""
    tail, hits = (1 - level) / 2, share * n
    low = float(special.betaincinv(hits, n - hits + 1, tail)) if hits > 0 else 0.0
    high = float(special.betaincinv(hits + 1, n - hits, 1 - tail)) if hits < n else 1.0
    return low, high


@lru_cache(maxsize=1024)
def _student(freedom: float, probability: float) -> float:
    return float(special.stdtrit(freedom, probability))


@lru_cache(maxsize=64)
def _normal(probability: float) -> float:
    return float(special.ndtri(probability))
