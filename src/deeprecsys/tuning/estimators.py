"""What rounds of runs say of a policy's capacity: by a simulated twin, or by the shares alone.

A live run is short: at the edge of its capacity a machine of two cores would have to be watched
for minutes until the share of queries over the target is known to a few percent, and most of that
scatter is the arrivals', which are known. `ByTwin` takes it away: the same arrivals and sizes are
given to a simulation of the system, and the one thing that is estimated is how much slower than it
the machine was. `ByShares` is for systems that say nothing of themselves, a remote server's
client, and for simulations: it fits where the share over the target crosses what is allowed.

Called by `interleave.py`, one estimator a contestant. Knows systems only as `core.System`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol, Self

import numpy as np
from scipy import special

from deeprecsys.analysis.crossing import Crossing, crossing
from deeprecsys.core import SLA, FloatArray, IntArray, Policy, Records, Schedule, System
from deeprecsys.tuning.capacity import Probe, Run, behind, over_share, saturation_rate, waiting
from deeprecsys.workload import Workload

# ByShares: how far below and above, about one logit, a share of 2 % against 13 %.
_APART, _NEAREST, _FARTHEST = 0.8, 0.005, 0.10
_SLOPE = 20.0
_LEAST_SPARE = 0.03
_CLOSE, _LOGITS = 3.5, 2.0  # in logits: rounds that count; the largest step
# A run with more over than this is overloaded: what waits at its end is no steady state.
_OVERLOADED = 0.6
# ByTwin: how much slower, in logs, it may be; a step of the table, and of the twin's capacities.
_SLOWER, _STEP, _KNOTS = 0.9, 0.03, 0.16
_SURE = 0.5  # of the slope of a twin that is believed, one standard deviation of its logarithm
_EITHER = 0.02  # of its capacity, in log rates: where the twin's long runs are
_BLOCK_QUERIES, _LEAST_BLOCKS, _MOST_BLOCKS = 100_000, 8, 40
_TABLE = np.arange(-_SLOWER, _SLOWER + _STEP / 2, _STEP)
_NOBODY = np.zeros(0, np.int64)
_TWIN_SEED, _TRIES, _TWIN_ERROR = 77_000, 16, 0.002


class Round:
    """The runs of a policy in one round: log rate, queries, and how many independent ones they
    are worth, [runs] each."""

    __slots__ = ("effective", "log_rate", "over", "queries", "twin")

    def __init__(self, runs: Sequence[Run], twin: FloatArray | None = None) -> None:
        self.log_rate = np.log([run.rate_qps for run in runs])
        self.over = np.array([run.over for run in runs])
        self.queries = np.array([float(run.summary.queries) for run in runs])
        self.effective = np.array([max(run.summary.effective_queries, 1.0) for run in runs])
        self.twin = twin


class Estimator(Protocol):
    """runs: of a round. fitted: parameters that rounds share. near: in log rates, what still says
    something of the capacity. leading: first rounds that only lead there."""

    runs: int
    fitted: int
    leading: int

    @property
    def near(self) -> float: ...
    @property
    def most_step(self) -> float: ...
    @property
    def error(self) -> float:
        """Of the log capacity, one standard deviation, that rounds do not show."""
        ...

    def again(self) -> Self:
        """For the same policy, with nothing said yet."""
        ...

    def ahead(self, rate_qps: float) -> Sequence[tuple[float, IntArray | None]]:
        """Of each run of the next round: its rate, and sizes of queries that wait already."""
        ...

    def round(self, runs: Sequence[Run]) -> Round: ...

    def move(self, rounds: Sequence[Round]) -> float:
        """The log rate to try next."""
        ...

    def log_rate(self, rounds: Sequence[Round]) -> float:
        """The log capacity."""
        ...

    def reach(self, rounds: Sequence[Round], log_reach: float) -> float:
        """How far an interval reaches up and down, in logs, where the rounds' scatter alone would
        have it reach `log_reach`."""
        ...


def estimator_of(policy: Policy, rate_qps: float, probe: Probe) -> Estimator:
    """What suits the system: by its twin, where it has one."""
    facts = probe.system.facts().of(policy)
    if facts.twin is not None:
        return ByTwin(Twin(facts.twin, policy, probe.workload, probe.sla, rate_qps))
    if facts.service_s is None:
        return ByShares(probe.sla, _SLOPE)
    # The slope of a queue that falls off exponentially: the wait's constant is inverse to what is
    # spare, so d log(share) / d log(rate) is log(share) over the spare part.
    spare = max(1 - rate_qps / saturation_rate(probe, policy), _LEAST_SPARE)
    return ByShares(probe.sla, -math.log(_allowed(probe.sla)) / spare)


def _allowed(sla: SLA) -> float:
    """The share of queries that may be over the target."""
    return 1 - sla.percentile / 100


@dataclass(slots=True)
class ByShares:
    """Two runs a round, a little below and a little above; the shares of queries over the target
    say where the capacity is and how steeply they rise there (`analysis/crossing.py`).

    A run begins with as many queries waiting as the last one at that end left behind, so that all
    of them are one long run, and not many that start empty. slope: d logit(share over) / d log
    rate, as expected before the rounds.
    """

    sla: SLA
    expected: float
    runs: int = 2
    fitted: int = 2
    leading: int = 1
    slope: float = field(init=False)
    waiting: list[IntArray] = field(init=False)

    def __post_init__(self) -> None:
        self.slope = self.expected
        self.waiting = [_NOBODY] * 2

    @property
    def near(self) -> float:
        return _CLOSE / self.expected

    @property
    def most_step(self) -> float:
        return _LOGITS / self.expected

    @property
    def error(self) -> float:
        return 0.0

    def again(self) -> ByShares:
        one = ByShares(self.sla, self.expected)
        one.waiting = list(self.waiting)
        return one

    def ahead(self, rate_qps: float) -> list[tuple[float, IntArray | None]]:
        apart = min(max(_APART / self.slope, _NEAREST), _FARTHEST)
        low, high = self.waiting
        return [(rate_qps * math.exp(-apart), low), (rate_qps * math.exp(apart), high)]

    def round(self, runs: Sequence[Run]) -> Round:
        self.waiting = [run.waiting[: None if run.over < _OVERLOADED else 0] for run in runs]
        return Round(runs)

    def move(self, rounds: Sequence[Round]) -> float:
        where, self.slope, _ = self._crossing(rounds)
        return where

    def log_rate(self, rounds: Sequence[Round]) -> float:
        return self._crossing(rounds).log_rate

    def reach(self, rounds: Sequence[Round], log_reach: float) -> float:
        return log_reach * math.exp(self._crossing(rounds).doubt / 2)  # too steep is too sure

    def _crossing(self, rounds: Sequence[Round]) -> Crossing:
        queries = np.concatenate([r.queries for r in rounds])
        worth = sum(r.effective.sum() for r in rounds) / queries.sum()
        return crossing(
            np.concatenate([r.log_rate for r in rounds]),
            np.concatenate([r.over for r in rounds]),
            queries * worth,
            _allowed(self.sla),
            self.expected,
        )


class Curve(NamedTuple):
    """The share over the target of a system that has run for ever, near its capacity.

    log_rate: of the capacity. slope: d logit(share) / d log(rate) there. error: of log_rate, one
    standard deviation.
    """

    log_rate: float
    slope: float
    error: float

    def over(self, log_rate: FloatArray, sla: SLA) -> FloatArray:
        logit = special.logit(_allowed(sla)) + self.slope * (log_rate - self.log_rate)
        return np.asarray(special.expit(logit))


def left_over(records: Records, over: float) -> IntArray:
    """Sizes of the queries that the next run begins with; nobody after an overload."""
    return waiting(records) if over < _OVERLOADED else _NOBODY


class Twin:
    """A simulation of a system under one policy, made slower by any factor.

    A machine on which all takes e times as long is the same machine on a clock that runs e times
    as slowly: arrivals e times as dense, a target e times as tight. rate_qps: near its capacity.
    """

    def __init__(
        self, system: System, policy: Policy, workload: Workload, sla: SLA, rate_qps: float
    ) -> None:
        self._system, self._policy, self.sla = system, policy, sla
        self._workload, self._near = workload, math.log(rate_qps)
        self._curves: dict[int, Curve] = {}

    def run(self, schedule: Schedule, slower: float, waiting: IntArray) -> tuple[float, IntArray]:
        """Share over the target on a schedule, if all takes exp(slower) times as long, and sizes
        of the queries left behind; begun with such queries."""
        factor = math.exp(slower)
        faster = behind(waiting, replace(schedule, arrival_s=schedule.arrival_s / factor))
        records = self._system.run(faster, self._policy)[len(waiting) :]
        over = over_share(records, replace(self.sla, latency_s=self.sla.latency_s / factor))
        return over, left_over(records, over)

    def curve(self, slower: float) -> Curve:
        """Of very long runs at two factors near this one, and between them on a line."""
        at = slower / _KNOTS
        low = math.floor(at)
        ends = np.array([self._knot(low), self._knot(low + 1)])
        return Curve(*(ends[0] + (at - low) * (ends[1] - ends[0])).tolist())

    @property
    def error(self) -> float:
        """The largest of a curve that was asked for; 0 before one was."""
        return max((curve.error for curve in self._curves.values()), default=0.0)

    def _knot(self, number: int) -> Curve:
        if number not in self._curves:
            near = min(self._curves, key=lambda k: abs(k - number), default=None)
            if near is not None:
                self._near = self._curves[near].log_rate - (number - near) * _KNOTS
            self._curves[number] = self._searched(number * _KNOTS)
        return self._curves[number]

    def _searched(self, slower: float) -> Curve:
        """Steps until the target lies between two rates, halves, and long runs at either side."""
        low, high, step, rate = -math.inf, math.inf, 2 * _EITHER, self._near
        for _ in range(_TRIES):
            if self._share(rate, slower, 0) <= _allowed(self.sla):
                low = rate
            else:
                high = rate
            if high - low <= 2 * _EITHER:
                break
            if math.isinf(high - low):
                rate, step = (rate - step if math.isinf(low) else rate + step), 2 * step
            else:
                rate = (low + high) / 2
        return self._settled(rate, slower)

    def _settled(self, log_rate: float, slower: float) -> Curve:
        """Blocks of a run at two rates, until the capacity between them is known well."""
        ends = log_rate + _EITHER * np.array([-1.0, 1.0])
        shares: list[list[float]] = []
        found = Curve(log_rate, _SLOPE, math.inf)
        while len(shares) < _MOST_BLOCKS:
            shares.append([self._share(rate, slower, 1 + len(shares)) for rate in ends])
            if len(shares) < _LEAST_BLOCKS:
                continue
            found = _fitted(ends, np.array(shares), self.sla)
            if found.error < _TWIN_ERROR:
                break
        return found

    def _share(self, log_rate: float, slower: float, block: int) -> float:
        workload = self._workload.reseed(_TWIN_SEED + block)
        schedule = workload.schedule(math.exp(log_rate), queries=_BLOCK_QUERIES)
        return self.run(schedule, slower, _NOBODY)[0]


def _fitted(log_rates: FloatArray, shares: FloatArray, sla: SLA) -> Curve:
    """Through the mean shares [blocks, 2] at two rates; the error from how blocks vary."""
    blocks, least = len(shares), 0.5 / (_BLOCK_QUERIES * len(shares))
    mean = np.clip(shares.mean(axis=0), least, 1 - least)
    logits = special.logit(mean)
    slope = max(float((logits[1] - logits[0]) / (log_rates[1] - log_rates[0])), 1.0)
    where = float(log_rates.mean() + (special.logit(_allowed(sla)) - logits.mean()) / slope)
    errors = shares.std(axis=0, ddof=1) / math.sqrt(blocks) / (mean * (1 - mean))
    return Curve(where, slope, float(errors.mean() / slope))


@dataclass(slots=True)
class ByTwin:
    """One run a round, begun with the queries that the last one left behind, so that all of them
    are one long run. A twin is given the same arrivals and sizes, begun with what it left behind
    itself, and is made slower until as many of its queries are over the target as were seen.

    What arrivals did to the shares, for which the twin's long-run share is known, is taken out of
    them (a control variate: Lavenberg and Welch, Management Science 27, 1981), as far as the
    system's ups and downs follow the twin's. What the twin does not know (service times that
    vary, a neighbour, a stall) makes the answer less sure, and not wrong.
    """

    twin: Twin
    runs: int = 1
    fitted: int = 2
    leading: int = 1
    near: float = 0.20
    most_step: float = math.inf
    waiting: IntArray = field(default_factory=lambda: _NOBODY)
    twins_waiting: list[IntArray] = field(default_factory=lambda: [_NOBODY] * len(_TABLE))

    def again(self) -> ByTwin:
        return ByTwin(self.twin, waiting=self.waiting, twins_waiting=self.twins_waiting)

    def ahead(self, rate_qps: float) -> list[tuple[float, IntArray | None]]:
        return [(rate_qps, self.waiting)]

    def round(self, runs: Sequence[Run]) -> Round:
        (run,) = runs
        assert run.records is not None, "a live run keeps its records"
        schedule = Schedule(run.records.arrival_s, run.records.size)
        twins = [
            self.twin.run(schedule, slower, waiting)
            for slower, waiting in zip(_TABLE, self.twins_waiting, strict=True)
        ]
        self.waiting, self.twins_waiting = left_over(run.records, run.over), [w for _, w in twins]
        return Round(runs, np.array([over for over, _ in twins]))

    def move(self, rounds: Sequence[Round]) -> float:
        return self.log_rate(rounds)

    def log_rate(self, rounds: Sequence[Round]) -> float:
        return self._crossing(rounds).log_rate

    def reach(self, rounds: Sequence[Round], log_reach: float) -> float:
        """A slope that is wrong by a half is as wrong about what lies beyond the rounds' rates."""
        found = self._crossing(rounds)
        queries = np.array([r.queries[0] for r in rounds])
        centre = float(np.average([r.log_rate[0] for r in rounds], weights=queries))
        beyond = 2 * found.doubt * abs(found.log_rate - centre)
        # Thrice, as few blocks tell the twin's own error, and all rounds share it.
        return math.hypot(log_reach * math.exp(found.doubt / 2), 3 * self.error, beyond)

    @property
    def error(self) -> float:
        """Of the log capacity, one standard deviation: the twin's own."""
        return self.twin.error

    def _crossing(self, rounds: Sequence[Round]) -> Crossing:
        queries = np.array([r.queries[0] for r in rounds])
        over = np.array([r.over[0] for r in rounds])
        log_rates = np.array([r.log_rate[0] for r in rounds])
        twins = np.array([r.twin for r in rounds])
        slower = _slower(float(queries @ over), queries @ twins)
        curve = self.twin.curve(slower)
        expected = np.array([np.interp(slower, _TABLE, twin) for twin in twins])
        believed = _follows(over, expected, queries)
        luck = believed * (expected - curve.over(log_rates, self.twin.sla))
        # What is left when luck is taken out is hardly correlated.
        worth = sum(r.effective.sum() for r in rounds) / queries.sum()
        worth += (1 - worth) * believed
        doubt = _SURE + (1 - believed)
        return crossing(log_rates, over - luck, queries * worth,
                        _allowed(self.twin.sla), curve.slope, doubt)  # fmt: skip


def _slower(seen: float, twins: FloatArray) -> float:
    """Where in the table the twin has as many queries over the target as were seen to be; where it
    has them in several places, their middle."""
    rising = np.maximum.accumulate(twins)
    ends = [np.interp(seen + more, rising, _TABLE) for more in (-0.5, 0.5)]
    return float(sum(ends)) / 2


def _follows(over: FloatArray, expected: FloatArray, queries: FloatArray) -> float:
    """How much of the twin's ups and downs the system's follow, 0 to 1; 1 of a single round."""
    apart = expected - np.average(expected, weights=queries)
    spread = float(queries @ apart**2)
    return min(max(float(queries @ (apart * over)) / spread, 0.0), 1.0) if spread > 0 else 1.0
