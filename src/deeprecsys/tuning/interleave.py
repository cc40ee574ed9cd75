"""Capacities and their ratios, measured turn by turn, so that a drifting machine does not decide.

In each round every policy runs twice on the same fresh seed, a little below and a little above
where its capacity is thought to be. The shares of queries over the target, of all rounds
together, say where it is, and how steeply the share rises there (`analysis/crossing.py`); the next
round goes there. A run begins with as many queries waiting as the last one at that end of the same
policy left behind, so that all of them are one long run, and not many that start empty. Rounds
are replications: intervals are the jackknife's over them, for a ratio on the same rounds of
both. What only led here, the search and the first rounds, does not count.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from deeprecsys.analysis.crossing import Crossing, crossing, pseudo_values
from deeprecsys.analysis.metrics import is_significant, ratio_interval
from deeprecsys.core import SLA, FloatArray, IntArray, Policy
from deeprecsys.tuning.capacity import DISTURBED, Capacity, Interrupted, Probe, Run, saturation_rate

# At least, and at most in computed and in real time.
LEAST_ROUNDS, MOST_ROUNDS, MOST_LIVE = 7, 12, 60
# From so many an interval can be given, however wide.
_FEWEST = 3
_FITTED = 2  # level and slope
# Enough when every ratio is known to this, up or down.
PRECISION = 0.03
# Rounds move a rate by no more than this at a time: beyond it one slope does not hold.
_LARGEST_STEP, _LOGITS = 0.15, 2.0
_APART = 0.8
# How far below and above: about one logit, a share of 2 % against 13 %.
_NEAREST, _FARTHEST = 0.005, 0.10
# The first round leads; later ones count if they lie within so many logits of the answer.
_LEADING, _CLOSE = 1, 3.5
_SLOPE = 20.0
_LEAST_SPARE = 0.03
# A run lasts so many times as long as what happens in it is correlated.
_SPANS, _LONGEST_S, _SHORTEST_S = 10.0, 60.0, 0.5
_MARGIN = 0.9  # of the time left: a run ends when its last query is answered
# A lane with more over than this is overloaded: what waits at its end is no steady state.
_OVERLOADED = 0.6


@dataclass(frozen=True, slots=True)
class Ratio:
    """Capacity of one policy over another's, with a 95 % interval over `rounds` rounds."""

    ratio: float
    interval: tuple[float, float]
    rounds: int

    @property
    def significant(self) -> bool:
        return is_significant(self.interval)

    def to_dict(self) -> dict[str, Any]:
        return {
            "ratio": self.ratio,
            "interval": list(self.interval),
            "significant": self.significant,
            "rounds": self.rounds,
        }


@dataclass(frozen=True, slots=True)
class Round:
    """Both runs of a policy in one round, [2] each: log rate, share over, queries, their worth."""

    log_rate: FloatArray
    over: FloatArray
    queries: FloatArray
    effective: FloatArray

    @classmethod
    def of(cls, runs: Sequence[Run]) -> Round:
        return cls(
            np.log([run.rate_qps for run in runs]),
            np.array([run.over for run in runs]),
            np.array([float(run.summary.queries) for run in runs]),
            np.array([max(run.summary.effective_queries, 1.0) for run in runs]),
        )


@dataclass(slots=True)
class Contestant:
    """A policy, where its capacity is thought to be, and what each of its rounds said.

    slope: d logit(share over) / d log rate, as far as it is known. rounds: None where others used
    the cores. waiting: sizes of the queries left over at its lower rate and its higher one.
    """

    policy: Policy
    rate_qps: float
    slope: float = _SLOPE
    rounds: list[Round | None] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    waiting: list[IntArray] = field(default_factory=lambda: [np.zeros(0, np.int64)] * 2)
    leading: int = _LEADING
    expected: float = field(init=False)  # the slope, before the rounds

    def __post_init__(self) -> None:
        self.expected = self.slope

    @classmethod
    def at(cls, policy: Policy, rate_qps: float, probe: Probe) -> Contestant:
        """Begins at a rate, with the slope that a queue has there which falls off exponentially:
        the wait's constant is inverse to what is spare, so d log(share) / d log(rate) is
        log(share) over the spare part. Where that is unknown, a slope between all."""
        if probe.system.facts().service_s is None:
            return cls(policy, rate_qps)
        spare = max(1 - rate_qps / saturation_rate(probe, policy), _LEAST_SPARE)
        return cls(policy, rate_qps, -math.log(1 - probe.sla.percentile / 100) / spare)

    def again(self) -> Contestant:
        """From where it is, with nothing said yet."""
        return replace(self, leading=0, rounds=[], runs=[], slope=self.expected)

    @property
    def rates_qps(self) -> tuple[float, float]:
        apart = min(max(_APART / self.slope, _NEAREST), _FARTHEST)
        return self.rate_qps * math.exp(-apart), self.rate_qps * math.exp(apart)

    @property
    def correlation_s(self) -> float:
        """Seconds of run that are worth one independent query, as far as was seen."""
        seen = [r for r in self.rounds if r is not None]
        if not seen:
            return 0.0
        return float(
            sum(r.queries.sum() for r in seen)
            / sum(r.effective.sum() for r in seen)
            / self.rate_qps
        )

    def take(self, runs: Sequence[Run], sla: SLA) -> None:
        """One round's two runs, the lower rate first; then moves to where all of them point."""
        for lane, run in enumerate(runs):
            self.waiting[lane] = run.waiting if run.over < _OVERLOADED else run.waiting[:0]
        if any(run.disturbance >= DISTURBED for run in runs):
            self.rounds.append(None)
            return
        self.rounds.append(Round.of(runs))
        used = self._counted() or [len(self.rounds) - 1]
        log_rate, self.slope, _ = self._crossing(used, sla)
        if runs[0].over > _OVERLOADED:  # both are far beyond it: what was served is nearer
            log_rate = min(log_rate, math.log(max(runs[0].held_qps, 1e-9)))
        step = (log_rate - math.log(self.rate_qps)) * len(used) / (len(used) + 2)
        most = min(_LARGEST_STEP, _LOGITS / self.expected)
        self.rate_qps *= math.exp(min(max(step, -most), most))

    def _counted(self) -> list[int]:
        """Rounds near enough to where it is thought to be now; by their rates, not their shares."""
        now = math.log(self.rate_qps)
        return [
            i
            for i, r in enumerate(self.rounds)
            if i >= self.leading
            and r is not None
            and abs(r.log_rate.mean() - now) * self.expected < _CLOSE
        ]

    def _crossing(self, rounds: list[int], sla: SLA) -> Crossing:
        chosen = [r for i in rounds if (r := self.rounds[i]) is not None]
        queries = np.concatenate([r.queries for r in chosen])
        worth = sum(r.effective.sum() for r in chosen) / queries.sum()
        return crossing(
            np.concatenate([r.log_rate for r in chosen]),
            np.concatenate([r.over for r in chosen]),
            queries * worth,
            1 - sla.percentile / 100,
            self.expected,
        )

    def log_rates(self, rounds: list[int], sla: SLA) -> FloatArray:
        """The jackknife's values of the log capacity, one for each of these rounds."""
        return pseudo_values(
            lambda part: self._crossing([rounds[i] for i in part], sla)[0], len(rounds)
        )

    def interval(self, sla: SLA) -> tuple[float, float, float] | None:
        """(rate, low, high), or None with fewer than `_FEWEST` rounds."""
        counted = self._counted()
        if len(counted) < _FEWEST:
            return None
        rate, lo, hi = ratio_interval(self.log_rates(counted, sla), fitted=_FITTED)
        wider = math.exp(self._crossing(counted, sla).doubt / 2)  # a slope too steep is too sure
        return rate, rate * (lo / rate) ** wider, rate * (hi / rate) ** wider

    def settled(self, sla: SLA) -> bool:
        """Is its own capacity known to `PRECISION`?"""
        found = self.interval(sla)
        if found is None or len(self._counted()) < LEAST_ROUNDS:
            return False
        return found[2] / found[1] <= (1 + PRECISION) ** 2

    def capacity(self, before: Capacity, sla: SLA) -> Capacity:
        """The rounds' own word of the capacity, with an interval over them; `before` if they are
        too few (or, if that says nothing, their word, undecided). Their runs come on top of the
        ones before."""
        runs = (*before.runs, *self.runs)
        found = self.interval(sla)
        if found is None:
            if self.rounds and before.rate_qps == 0:
                return replace(before, rate_qps=self.rate_qps, runs=runs)
            return replace(before, decided=False, runs=runs)
        rate, lo, hi = found
        excess = math.log(hi / lo) / (2 * math.log1p(DECIDED))
        spent_s = sum(run.summary.duration_s for run in self.runs)
        return replace(
            before,
            rate_qps=rate,
            interval_qps=(lo, hi),
            decided=excess <= 1,
            kind="interval",
            more_s=None if excess <= 1 else spent_s * (excess**2 - 1),
            runs=runs,
        )


# An interval as wide as this, up or down, says enough of a capacity to be called decided.
DECIDED = 0.05


def interleave(
    probe: Probe,
    contestants: Sequence[Contestant],
    duration_s: Callable[[float], float],
    *,
    until: float = math.inf,
    turn: int = 100,
    most_rounds: int = MOST_ROUNDS,
) -> list[Ratio | None]:
    """Rounds until the ratios of the first contestant over each other one are known.

    turn: of the first; see `Probe`. None where time allowed fewer than three rounds that count.
    """
    ratios: list[Ratio | None] = [None] * (len(contestants) - 1)
    for number in range(most_rounds):
        lasts_s = _lengths(probe, contestants, duration_s, number, until)
        if probe.clock() + sum(lasts_s) * 2 > until:
            break
        for i in range(len(contestants))[:: 1 if number % 2 else -1]:
            _play(probe, contestants[i], lasts_s[i], turn + number)
        ratios = [ratio_of(contestants[0], other, probe.sla) for other in contestants[1:]]
        if all(map(_precise, ratios)) and contestants[0].settled(probe.sla):
            break
    return ratios


def _lengths(
    probe: Probe,
    contestants: Sequence[Contestant],
    duration_s: Callable[[float], float],
    turn: int,
    until: float,
) -> list[float]:
    """Of each one's runs: long against what is correlated, short enough for the least rounds."""
    left = max(LEAST_ROUNDS + _LEADING - turn, 1) * 2 * len(contestants)
    most_s = min(_MARGIN * (until - probe.clock()) / left, _LONGEST_S)
    longest = max(one.correlation_s for one in contestants)
    return [
        max(min(max(duration_s(one.rate_qps), _SPANS * longest), most_s), _SHORTEST_S)
        for one in contestants
    ]


def _play(probe: Probe, one: Contestant, lasts_s: float, turn: int) -> None:
    """Both runs of one contestant's round."""
    runs = []
    for lane, rate in enumerate(one.rates_qps):
        ahead = one.waiting[lane]
        try:
            run = probe(one.policy, rate, lasts_s, turn=turn, whole=True, ahead=ahead)
        except Interrupted as end:
            one.runs.append(end.run)
            raise
        one.runs.append(run)
        runs.append(run)
    one.take(runs, probe.sla)


def ratio_of(one: Contestant, other: Contestant, sla: SLA) -> Ratio | None:
    """Of the rounds that count for both; None with fewer than `_FEWEST`."""
    both = sorted({*one._counted()} & {*other._counted()})
    if len(both) < _FEWEST:
        return None
    ratio, lo, hi = ratio_interval(
        one.log_rates(both, sla) - other.log_rates(both, sla), fitted=_FITTED
    )
    return Ratio(ratio, (lo, hi), len(both))


def _precise(ratio: Ratio | None) -> bool:
    if ratio is None or ratio.rounds < LEAST_ROUNDS:
        return False
    return ratio.interval[1] / ratio.interval[0] <= (1 + PRECISION) ** 2
