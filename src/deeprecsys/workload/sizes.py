"""Size laws: how many candidate items a query brings.

Every law is a finite table of sizes with their cumulative probabilities, so that its mean, its
percentiles and its largest size are exact, whatever the law, and a sample is one look-up a query.
Knows nothing of time or of models. Called by `Workload`; the tables are also what a simulator or
a report needs to reason about a law without sampling it.

A new law is one function from its options to a `SizeLaw`, and one line in `SIZE_LAWS`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from deeprecsys.core import FloatArray, IntArray, UserError
from deeprecsys.workload.options import (
    aggregated,
    no_options,
    number,
    numbers,
    parse,
    read_table,
)

# A guard against slips of the pen, not a property of any service: published ranking queries bring
# up to about a thousand candidates. It also bounds the tables of `uniform` and of wide lognormals.
MAX_SIZE = 1_000_000

# Unbounded laws are cut this many standard deviations above the middle: 1e-9 of the queries.
_TAIL_SIGMAS = 6.0
_MOST_SIZES = 100  # of a law that is written out


@dataclass(frozen=True, slots=True, eq=False)
class SizeLaw:
    """Sizes with their probabilities.

    text: what the law is, for reports.
    size: [k] int64, ascending, at least 1.
    cumulative: [k], strictly rising to 1: the share of queries of at most that size.
    """

    text: str
    size: IntArray
    cumulative: FloatArray

    def sample(self, rng: np.random.Generator, n: int) -> IntArray:
        """[n] int64 sizes; the first m of n are what a call for m would have drawn."""
        return self.size[np.searchsorted(self.cumulative, rng.random(n), side="right")]

    @property
    def probability(self) -> FloatArray:
        """[k] share of the queries that have each size."""
        return np.diff(self.cumulative, prepend=0.0)

    @property
    def mean(self) -> float:
        """Items a query, exact."""
        return float(self.size @ self.probability)

    @property
    def largest(self) -> int:
        """No sample exceeds it. For an unbounded law: where its table is cut."""
        return int(self.size[-1])

    def percentile(self, p: float) -> int:
        """The smallest size that at least p % of the queries do not exceed, 0 < p <= 100."""
        return int(self.size[np.searchsorted(self.cumulative, p / 100, side="left")])

    def share_of_largest(self, fraction: float) -> float:
        """The share of all items that the largest `fraction` of the queries bring."""
        below = np.clip(self.cumulative - (1 - fraction), 0, self.probability)
        return float(self.size @ below) / self.mean

    @property
    def ends(self) -> str:
        """From where to where, in words."""
        return f"{self.size[0]} to {self.largest}, mean {self.mean:.4g}"

    def describe(self) -> str:
        p50, p95, p99 = (self.percentile(p) for p in (50, 95, 99))
        return (
            f"{self.text}; mean {self.mean:.4g}, p50 {p50}, p95 {p95}, p99 {p99}, "
            f"largest {self.largest}"
        )


def production(options: str) -> SizeLaw:
    """MLPerf's law for DLRM: 20 equally likely sizes.

    Source: mlcommons/inference, recommendation/dlrm_v2/pytorch/tools/dist_quantile.txt, which its
    authors modelled on the production figure of the DeepRecSys paper. Coarse, and it stops at 700.
    """
    no_options("production", options)
    sizes = [100] * 2 + [200] * 12 + [300] * 2 + [400, 500, 600, 700]
    text = "production: the 20 equally likely sizes of MLPerf's DLRM, a proxy that stops at 700"
    return empirical(text, np.array(sizes))


def heavy_tail(options: str) -> SizeLaw:
    """Lognormal body, median about 70, sigma 1.1, conditioned on 1 to 1,000.

    A stand-in for studies that need the published range of 1 to 1,000; its two parameters are an
    assumption. Conditioned rather than clipped: clipping would put 0.8 % of the queries on 1,000.
    """
    no_options("heavy-tail", options)
    text = "heavy-tail: lognormal body (median 70, sigma 1.1) cut to 1..1000, an assumed shape"
    return _rounded(text, _lognormal_cdf(math.log(70), 1.1), lowest=1, highest=1000)


def lognormal(options: str) -> SizeLaw:
    """`lognormal:MU,SIGMA`; by default (5.1, 0.2), as in the authors' DeepRecSys scripts.

    Rounded to whole items, at least 1; cut at 6 sigma, or at `MAX_SIZE`.
    """
    mu, sigma = numbers("lognormal:MU,SIGMA", options, (5.1, 0.2))
    if not (0 <= mu <= math.log(MAX_SIZE) and 0 < sigma <= 10):
        raise UserError(
            f"lognormal:{mu:g},{sigma:g}: MU is the log of the median size, 0 to 13.8, "
            "and SIGMA lies above 0 and up to 10"
        )
    highest = min(mu + _TAIL_SIGMAS * sigma, math.log(MAX_SIZE))
    cut = f", cut at {MAX_SIZE}" if mu + _TAIL_SIGMAS * sigma > highest else ""
    text = f"lognormal: mu {mu:g}, sigma {sigma:g}{cut}, not heavy-tailed when sigma is small"
    # Everything below 1.5 counts as one item, so the lower edge is zero rather than one half.
    return _rounded(text, _lognormal_cdf(mu, sigma), 1, math.ceil(math.exp(highest)), edge=0.0)


def normal(options: str) -> SizeLaw:
    """`normal:MEAN,SD`, rounded to whole items and conditioned on at least 1.

    The truncation raises the mean where MEAN is not several SD above 1; `mean` has the true one.
    """
    mean, sd = numbers("normal:MEAN,SD", options, ())
    if not (1 <= mean <= MAX_SIZE and 0 < sd <= MAX_SIZE):
        raise UserError(
            f"normal:{mean:g},{sd:g}: MEAN lies between 1 and {MAX_SIZE}, SD above 0 (no spread: "
            "write fixed:N)"
        )
    text = f"normal: mean {mean:g}, sd {sd:g} before truncation at 1"
    return _rounded(
        text,
        lambda size: _normal_cdf((size - mean) / sd),
        lowest=max(1, math.floor(mean - _TAIL_SIGMAS * sd)),
        highest=min(MAX_SIZE, math.ceil(mean + _TAIL_SIGMAS * sd)),
    )


def fixed(options: str) -> SizeLaw:
    """`fixed:N`: every query has N items."""
    (size,) = numbers("fixed:N", options, ())
    return empirical(f"fixed: every query has {size:g} items", _whole("fixed:N", np.array([size])))


def uniform(options: str) -> SizeLaw:
    """`uniform:A-B`: every whole size from A to B, both included, is equally likely."""
    found = re.fullmatch(r"\s*(-?[^-]+)-(-?[^-]+)", options)
    if not found:
        raise UserError(f"uniform:A-B needs two sizes parted by a dash, not {options!r}")
    ends = np.array([number("uniform:A-B", word) for word in found.groups()])
    low, high = _whole("uniform:A-B", ends)
    if low > high:
        raise UserError(f"uniform:{low}-{high}: the first size must not exceed the second")
    return empirical(f"uniform: {low} to {high}", np.arange(low, high + 1))


def from_file(options: str) -> SizeLaw:
    """`file:PATH`: one size a line, or a table of two columns `quantile,size`.

    A row of a quantile table is a step, as in MLPerf's file: its size is given to the queries
    between the previous row's quantile and its own. The last quantile must be 1. MLPerf's rows of
    `from, to, size` are sizes, too.
    """
    lines, table = read_table(options, "one size, or quantile,size")
    if (sizes := aggregated(table)) is not None:
        table = sizes.reshape(-1, 1)
    if table.shape[1] > 2:
        raise UserError(f"{options}: {table.shape[1]} columns; write one size, or quantile,size")
    size = _whole(options, table[:, -1], lines)
    if table.shape[1] == 1:
        return empirical(f"file: the {len(size)} sizes of {options}", np.sort(size))
    _check_quantiles(options, lines, table[:, 0], size)
    return _law(f"file: the quantiles of {options}", size, table[:, 0])


def each(options: str) -> SizeLaw:
    """`each:100,200*12,700`: sizes, and how often each comes."""
    sizes, counts = list[float](), list[float]()
    for word in options.split(","):
        size, _, times = word.partition("*")
        sizes.append(number("each:SIZE*TIMES", size))
        counts.append(number("each:SIZE*TIMES", times or "1"))
    found, times_of = _whole("each:SIZE*TIMES", np.array(sizes)), np.array(counts)
    if (times_of <= 0).any():
        raise UserError("each:SIZE*TIMES: a size comes more than 0 times")
    order = np.argsort(found, kind="stable")
    cumulative = np.cumsum(times_of[order]) / times_of.sum()
    cumulative[-1] = 1.0
    text = f"each: {len(np.unique(found))} sizes, {times_of.sum():.10g} queries, counted"
    return _law(text, found[order], cumulative)


def law_of(counted: Sequence[int]) -> str:
    """Sizes that were seen as an `each:` law; without empty queries, which a law does not have.

    Of more than a hundred different sizes the text has a hundred, equally likely and the largest
    among them.
    """
    ascending = np.sort(np.array([size for size in counted if size], np.int64))
    sizes, times = np.unique(ascending, return_counts=True)
    if len(sizes) > _MOST_SIZES:
        at = np.arange(1, _MOST_SIZES + 1) * len(ascending) // _MOST_SIZES - 1
        sizes, times = np.unique(ascending[at], return_counts=True)
    pairs = zip(sizes.tolist(), times.tolist(), strict=True)
    return "each:" + ",".join(f"{n}*{k}" if k > 1 else f"{n}" for n, k in pairs)


def empirical(text: str, ascending: IntArray) -> SizeLaw:
    """Each of `ascending` [n] is equally likely."""
    n = len(ascending)
    return _law(text, ascending, np.arange(1, n + 1) / n)


SIZE_LAWS: dict[str, Callable[[str], SizeLaw]] = {
    "production": production,
    "heavy-tail": heavy_tail,
    "lognormal": lognormal,
    "normal": normal,
    "fixed": fixed,
    "uniform": uniform,
    "file": from_file,
    "each": each,
}


def parse_sizes(spec: str) -> SizeLaw:
    """The law named by "production", "uniform:1-1000" and so on. Raises UserError, one line."""
    return parse("sizes", SIZE_LAWS, spec)


def _law(text: str, ascending: IntArray, cumulative: FloatArray) -> SizeLaw:
    """Merges equal sizes (their last row has the share of all) and drops impossible ones."""
    last = np.append(np.diff(ascending) > 0, True)
    size, share = ascending[last], cumulative[last]
    possible = np.diff(share, prepend=0.0) > 0
    return SizeLaw(text, size[possible].astype(np.int64), share[possible])


def _rounded(
    text: str,
    cdf: Callable[[float], float],
    lowest: int,
    highest: int,
    edge: float | None = None,
) -> SizeLaw:
    """A continuous law rounded to whole sizes and conditioned on `lowest` to `highest`.

    Size k stands for (k - 1/2, k + 1/2]. edge: where the lowest size begins, if not half below it.
    """
    size = np.arange(lowest, highest + 1)
    below = cdf(lowest - 0.5 if edge is None else edge)
    # Rounding may make the last digits of neighbouring values fall; a share never does.
    upto = np.maximum.accumulate([cdf(k + 0.5) for k in size.tolist()]) - below
    return _law(text, size, upto / upto[-1])


def _normal_cdf(z: float) -> float:
    return 0.5 * math.erfc(-z / math.sqrt(2))


def _lognormal_cdf(mu: float, sigma: float) -> Callable[[float], float]:
    return lambda size: _normal_cdf((math.log(size) - mu) / sigma) if size > 0 else 0.0


def _whole(where: str, values: FloatArray, lines: list[int] | None = None) -> IntArray:
    """`values` as int64; UserError at the first that is no whole size of 1 to `MAX_SIZE`."""
    wrong = np.flatnonzero((values < 1) | (values > MAX_SIZE) | (values != np.floor(values)))
    if wrong.size:
        line = f" line {lines[wrong[0]]}" if lines else ""
        raise UserError(
            f"{where}{line}: a size is a whole number of 1 to {MAX_SIZE}, "
            f"not {values[wrong[0]]:.10g}"
        )
    return values.astype(np.int64)


def _check_quantiles(path: str, lines: list[int], quantile: FloatArray, size: IntArray) -> None:
    falls = (np.diff(quantile) <= 0) | (np.diff(size) < 0)
    if falls.any():
        line = lines[int(np.argmax(falls)) + 1]
        raise UserError(f"{path} line {line}: quantiles must rise and sizes must not fall")
    if quantile[0] < 0 or quantile[-1] != 1:
        raise UserError(
            f"{path}: quantiles are shares of 0 to 1 and end at 1, "
            f"not {quantile[0]:g} to {quantile[-1]:g}"
        )
