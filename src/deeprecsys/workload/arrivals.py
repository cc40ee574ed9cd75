"""Arrival laws: when queries come.

A law turns a rate into sorted arrival times and knows neither sizes (a trace excepted, which
brings its own) nor systems, nor any clock: times are seconds from the start of the run. Called by
`Workload.schedule`.

`poisson`, `constant` and `bursty` are drawn at one query per unit of time and divided by the rate,
so the same seed at another rate gives the same gaps, scaled. `bursty` and `daily` are the same
unit Poisson process seen through a clock that runs faster in a burst or at noon: a time change,
which keeps every law one vectorised interpolation and a longer schedule the continuation of a
shorter one. Times come in pieces, so that a day of traffic need not fit in memory.

A new law is one class with `pieces` and `describe`, one function that reads its options, and one
line in `ARRIVAL_LAWS`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from deeprecsys.core import FloatArray, IntArray, UserError
from deeprecsys.workload.options import no_options, number, numbers, parse, read_table
from deeprecsys.workload.traces import read_trace

DAY_S = 86_400.0

# No public figure for a ranking service was found; every report prints it as an assumption.
PEAK_TO_TROUGH = 2.0

# Spells (pairs of quiet and burst) of `Bursty` drawn at a time. Part of what a seed means.
_SPELLS = 256


class ArrivalLaw(Protocol):
    """When queries come, at any rate."""

    def pieces(self, rng: np.random.Generator, rate_qps: float, n: int) -> Iterator[FloatArray]:
        """[n] sorted seconds at a mean rate of `rate_qps`, the next n, and so on; n >= 1.

        Without an end, but for a trace's, whose last piece is shorter. Pieces of another length
        put together are the same times.
        """
        ...

    def describe(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Poisson:
    """Independent exponential gaps: many users who know nothing of one another."""

    def pieces(self, rng: np.random.Generator, rate_qps: float, n: int) -> Iterator[FloatArray]:
        for work in _unit_poisson(rng, n):
            yield work / rate_qps

    def describe(self) -> str:
        return "poisson: independent exponential gaps"


@dataclass(frozen=True, slots=True)
class Constant:
    """Equal gaps; the first query comes one gap after the start, as in the other laws."""

    def pieces(self, rng: np.random.Generator, rate_qps: float, n: int) -> Iterator[FloatArray]:
        for first in itertools.count(1, n):
            yield np.arange(first, first + n) / rate_qps

    def describe(self) -> str:
        return "constant: equal gaps"


@dataclass(frozen=True, slots=True)
class Bursty:
    """Two-state Markov-modulated Poisson process: quiet spells and bursts in turn.

    ratio: the rate in a burst over the rate in a quiet spell.
    share: the share of the time that is burst.
    cycle: queries that a quiet spell and the burst after it bring together, on average.

    The spells are measured in queries rather than seconds, so that another rate scales them with
    the gaps. With quiet rate q and mean rate 1, `share * ratio * q + (1 - share) * q = 1` gives q;
    the run begins in a burst with probability `share`, which makes that mean hold from the start.
    The defaults (4, 0.2, 100) are a choice, not a measurement: half of the queries come in bursts.
    """

    ratio: float = 4.0
    share: float = 0.2
    cycle: float = 100.0

    def __post_init__(self) -> None:
        if not (self.ratio >= 1 and 0 < self.share < 1 and self.cycle >= 1):
            raise UserError(
                f"bursty:{self.ratio:g},{self.share:g},{self.cycle:g}: RATIO is at least 1, "
                "SHARE lies between 0 and 1, QUERIES (a cycle) is at least 1"
            )

    def pieces(self, rng: np.random.Generator, rate_qps: float, n: int) -> Iterator[FloatArray]:
        gaps, spells = rng.spawn(2)  # so that more queries do not draw other spells
        lengths = self._spells(spells)
        clock = time = np.zeros(1)  # knots of expected queries against time
        last = 0.0
        for work in _unit_poisson(gaps, n):
            # What is behind is forgotten, but for the knot before the first query.
            passed = max(0, int(np.searchsorted(clock, work[0])) - 1)
            clock, time = clock[passed:], time[passed:]
            while clock[-1] <= work[-1]:
                queries, seconds = next(lengths)
                clock, time = _more(clock, queries), _more(time, seconds)
            seen = np.maximum(_through_clock(work, clock, time), last)
            last = float(seen[-1])
            yield seen / rate_qps

    def _spells(self, rng: np.random.Generator) -> Iterator[tuple[FloatArray, FloatArray]]:
        """Expected queries and lengths of spells, some at a time, without an end."""
        quiet_rate = 1 / (1 - self.share + self.share * self.ratio)
        burst_first = bool(rng.random() < self.share)
        in_burst = np.array([burst_first, not burst_first])
        rate = np.where(in_burst, self.ratio * quiet_rate, quiet_rate)
        mean_s = np.where(in_burst, self.share, 1 - self.share) * self.cycle
        while True:
            length = rng.standard_exponential((_SPELLS, 2)) * mean_s
            yield (length * rate).ravel(), length.ravel()

    def describe(self) -> str:
        return (
            f"bursty: two-state Markov-modulated Poisson, bursts at {self.ratio:g} times the quiet "
            f"rate for {self.share:.3g} of the time, a quiet spell and its burst bring "
            f"{self.cycle:g} queries on average (chosen, not measured)"
        )


@dataclass(frozen=True, slots=True, eq=False)
class Daily:
    """Poisson arrivals whose rate follows a day of `period_s` seconds, day after day.

    text: where the curve comes from, for reports.
    start_s: [k + 1] edges of the k pieces of a day, from 0 to `period_s`.
    relative: [k] rate of each piece; only proportions count. Over whole days the mean rate is the
    one asked for; a run shorter than a day sees its first part only.
    """

    text: str
    start_s: FloatArray
    relative: FloatArray

    @property
    def period_s(self) -> float:
        return float(self.start_s[-1])

    def pieces(self, rng: np.random.Generator, rate_qps: float, n: int) -> Iterator[FloatArray]:
        clock = _more(np.zeros(1), np.diff(self.start_s) * self.relative)
        clock *= self.period_s / clock[-1]
        last_s = 0.0
        for work in _unit_poisson(rng, n):
            day, within = np.divmod(work / rate_qps, self.period_s)
            time = day * self.period_s + np.interp(within, clock, self.start_s)
            time = np.maximum(np.maximum.accumulate(time), last_s)
            last_s = float(time[-1])
            yield time

    def describe(self) -> str:
        return (
            f"daily: Poisson with {self.text}, a day of {self.period_s:g} s; "
            "a run shorter than a day sees its first part only"
        )


@dataclass(frozen=True, slots=True, eq=False)
class Replay:
    """A recorded trace: its times, its sizes and, where it has them, its models.

    arrival_s: [n] sorted, from 0. size: [n]. model: [n] names, or None. path: for reports.
    timed: are the times the trace's own? Without, they are Poisson's, at any rate that is given.
    """

    path: str
    arrival_s: FloatArray
    size: IntArray
    model: NDArray[Any] | None = None
    timed: bool = True

    @property
    def rate_qps(self) -> float:
        """Queries over the time of the last one; infinite if all come at time 0."""
        last = float(self.arrival_s[-1])
        return len(self.arrival_s) / last if last > 0 else math.inf

    def pieces(self, rng: np.random.Generator, rate_qps: float, n: int) -> Iterator[FloatArray]:
        """The trace's own times, stretched so that the whole trace has a mean of `rate_qps`."""
        if rate_qps != self.rate_qps and math.isinf(self.rate_qps):
            raise UserError(f"{self.path}: all queries come at time 0, so no rate can be given")
        stretch = 1.0 if rate_qps == self.rate_qps else self.rate_qps / rate_qps
        for first in range(0, len(self.arrival_s), n):
            yield self.arrival_s[first : first + n] * stretch

    def describe(self) -> str:
        models = 1 if self.model is None else len(set(self.model.tolist()))
        mixed = f"; its {models} models are not told apart" if models > 1 else ""
        times = "" if self.timed else ", at Poisson times, of which it says none"
        return (
            f"replay: the {len(self.size)} queries of {self.path} with its own sizes{times}{mixed}"
        )


def poisson(options: str) -> Poisson:
    no_options("poisson", options)
    return Poisson()


def constant(options: str) -> Constant:
    no_options("constant", options)
    return Constant()


def bursty(options: str) -> Bursty:
    """`bursty` or `bursty:RATIO,SHARE,QUERIES`; see `Bursty`."""
    return Bursty(*numbers("bursty:RATIO,SHARE,QUERIES", options, (4.0, 0.2, 100.0)))


def daily(options: str) -> Daily:
    """`daily`, `daily:PERIOD_S` (a sinusoid from its trough) or `daily:FILE[,PERIOD_S]`.

    FILE: two columns, hour (0 to below 24, the first is 0) and relative rate until the next hour.
    PERIOD_S: how long a day lasts, by default 86,400 s; shorter days replay the curve faster.
    """
    first, _, second = options.partition(",")
    try:
        period_s = float(first or DAY_S)
    except ValueError:
        return _daily_table(first, _period(second or str(DAY_S)))
    return _daily_sinusoid(_period(str(period_s)))


def replay(options: str) -> Replay:
    """`replay:FILE`, with columns `arrival_s,size[,model]`; for its forms see `read_trace`."""
    trace = read_trace(options)
    if trace.arrival_s is not None:
        return Replay(options, trace.arrival_s, trace.size, trace.model)
    # Always the same gaps, as a trace's are.
    gaps = np.random.default_rng(0).standard_exponential(len(trace.size))
    return Replay(options, np.cumsum(gaps), trace.size, timed=False)


ARRIVAL_LAWS: dict[str, Callable[[str], ArrivalLaw]] = {
    "poisson": poisson,
    "constant": constant,
    "bursty": bursty,
    "daily": daily,
    "replay": replay,
}


def parse_arrivals(spec: str) -> ArrivalLaw:
    """The law named by "poisson", "replay:trace.csv" and so on. Raises UserError, one line."""
    return parse("arrivals", ARRIVAL_LAWS, spec)


def _unit_poisson(rng: np.random.Generator, n: int) -> Iterator[FloatArray]:
    """[n] arrival times at one query per unit of time, and the next n, without an end."""
    after = 0.0
    while True:
        gaps = rng.standard_exponential(n)
        gaps[:1] += after
        times = np.cumsum(gaps)
        after = float(times[-1])
        yield times


def _more(knots: FloatArray, steps: FloatArray) -> FloatArray:
    """Knots that go on from the last one by so many steps."""
    return np.concatenate([knots, knots[-1] + np.cumsum(steps)])


def _through_clock(work: FloatArray, clock: FloatArray, time: FloatArray) -> FloatArray:
    """When the clock shows `work`. The running maximum undoes falls in the last digit at knots."""
    return np.maximum.accumulate(np.interp(work, clock, time))


def _period(word: str) -> float:
    period_s = number("daily:PERIOD_S", word)
    if period_s <= 0:
        raise UserError(f"daily:{word}: a day must last longer than 0 s")
    return period_s


def _daily_sinusoid(period_s: float) -> Daily:
    """Rate 1 - a cos(2 pi t / period): a = (ratio - 1) / (ratio + 1) makes peak / trough = ratio.

    The pieces hold the exact integral of the curve, so the mean is exact; 1,440 of them (minutes
    of a day) keep the rate within 0.1 % of it.
    """
    edge = np.linspace(0, period_s, 1441)
    swing = (PEAK_TO_TROUGH - 1) / (PEAK_TO_TROUGH + 1)
    turn = edge / period_s
    relative = np.diff(turn - swing * np.sin(2 * np.pi * turn) / (2 * np.pi)) * 1440
    text = (
        f"a sinusoidal rate from trough to trough, daily peak-to-trough {PEAK_TO_TROUGH:g}:1 "
        "is an assumption"
    )
    return Daily(text, edge, relative)


def _daily_table(path: str, period_s: float) -> Daily:
    lines, table = read_table(path, "hour,rate")
    if table.shape[1] != 2:
        raise UserError(f"{path}: {table.shape[1]} column(s); write hour,rate on each line")
    hour, relative = table.T
    if hour[0] != 0 or hour[-1] >= 24 or (np.diff(hour) <= 0).any():
        raise UserError(f"{path}: hours must begin at 0, rise, and stay below 24")
    if (relative < 0).any():
        line = lines[int(np.argmax(relative < 0))]
        raise UserError(f"{path} line {line}: a relative rate must not be negative")
    if not relative.any():
        raise UserError(f"{path}: at least one relative rate must be above 0")
    return Daily(f"the hourly rates of {path}", np.append(hour, 24) / 24 * period_s, relative)
