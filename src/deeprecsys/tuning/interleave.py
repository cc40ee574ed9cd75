"""Capacities and their ratios, measured turn by turn, so that a drifting machine does not decide.

In each round every policy runs on the same fresh seed, near where its capacity is thought to be.
What the rounds say together of the capacity is an estimator's (`estimators.py`), and the next
round goes there. Rounds are replications: intervals are the jackknife's over them, for a ratio on
the same rounds of both. What only led here, the search and the first rounds, does not count.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from deeprecsys.analysis.crossing import pseudo_values
from deeprecsys.analysis.metrics import is_significant, ratio_interval
from deeprecsys.core import FloatArray, Policy
from deeprecsys.tuning.capacity import DISTURBED, Capacity, Interrupted, Probe, Run
from deeprecsys.tuning.estimators import Estimator, Round, estimator_of

# At least, and at most in computed and in real time.
LEAST_ROUNDS, MOST_ROUNDS, MOST_LIVE = 7, 12, 60
# From so many an interval can be given, however wide.
_FEWEST = 3
# Enough when every ratio is known to this, up or down.
PRECISION = 0.03
# Rounds move a rate by no more than this at a time.
_LARGEST_STEP = 0.15
# A run lasts so many times as long as what happens in it is correlated.
_SPANS, _LONGEST_S, _SHORTEST_S = 10.0, 60.0, 0.5
_MARGIN = 0.9  # of the time left: a run ends when its last query is answered
# A run with more over than this is overloaded: what waits at its end is no steady state.
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


@dataclass(slots=True)
class Contestant:
    """A policy, where its capacity is thought to be, and what each of its rounds said.

    rounds: None where others used the cores.
    """

    policy: Policy
    rate_qps: float
    estimator: Estimator
    rounds: list[Round | None] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    leading: int = field(init=False)

    def __post_init__(self) -> None:
        self.leading = self.estimator.leading

    @classmethod
    def at(cls, policy: Policy, rate_qps: float, probe: Probe) -> Contestant:
        """Begins at a rate, with the estimator that suits what the system says of itself."""
        return cls(policy, rate_qps, estimator_of(policy, rate_qps, probe))

    def again(self) -> Contestant:
        """From where it is, with nothing said yet."""
        one = Contestant(self.policy, self.rate_qps, self.estimator.again())
        one.leading = 0
        return one

    @property
    def correlation_s(self) -> float:
        """Seconds of run that are worth one independent query, as far as was seen."""
        seen = [r for r in self.rounds if r is not None]
        if not seen:
            return 0.0
        worth = sum(r.effective.sum() for r in seen)
        return float(sum(r.queries.sum() for r in seen) / worth / self.rate_qps)

    def take(self, runs: Sequence[Run]) -> None:
        """One round's runs, in the order of its rates; then moves to where all of them point."""
        said = self.estimator.round(runs)
        if any(run.disturbance >= DISTURBED for run in runs):
            self.rounds.append(None)
            return
        self.rounds.append(said)
        used = self._counted() or [len(self.rounds) - 1]
        log_rate = self.estimator.move(self._chosen(used))
        if runs[0].over > _OVERLOADED:  # far beyond it: what was served is nearer
            log_rate = min(log_rate, math.log(max(runs[0].held_qps, 1e-9)))
        step = (log_rate - math.log(self.rate_qps)) * len(used) / (len(used) + 2)
        most = min(_LARGEST_STEP, self.estimator.most_step)
        self.rate_qps *= math.exp(min(max(step, -most), most))

    def _counted(self) -> list[int]:
        """Rounds near enough to where it is thought to be now; by their rates, not their shares."""
        now, near = math.log(self.rate_qps), self.estimator.near
        return [
            i
            for i, r in enumerate(self.rounds)
            if i >= self.leading and r is not None and abs(r.log_rate.mean() - now) < near
        ]

    def judged(self) -> list[int]:
        """Rounds that say what it can do: those near, or all where they are too few, as after a
        machine has slowed down. What chose it says nothing."""
        near = self._counted()
        if len(near) >= _FEWEST:
            return near
        return [i for i, r in enumerate(self.rounds) if i >= self.leading and r is not None]

    def _chosen(self, rounds: Sequence[int]) -> list[Round]:
        return [r for i in rounds if (r := self.rounds[i]) is not None]

    def log_rates(self, rounds: list[int]) -> FloatArray:
        """The jackknife's values of the log capacity, one for each of these rounds."""
        return pseudo_values(
            lambda part: self.estimator.log_rate(self._chosen([rounds[i] for i in part])),
            len(rounds),
        )

    def interval(self) -> tuple[float, float, float] | None:
        """(rate, low, high), or None with fewer than `_FEWEST` rounds."""
        counted = self.judged()
        if len(counted) < _FEWEST:
            return None
        rate, _, hi = ratio_interval(self.log_rates(counted), fitted=self.estimator.fitted)
        reach = self.estimator.reach(self._chosen(counted), math.log(hi / rate))
        return rate, rate * math.exp(-reach), rate * math.exp(reach)

    def settled(self) -> bool:
        """Is its own capacity known to `PRECISION`?"""
        found = self.interval()
        if found is None or len(self._counted()) < LEAST_ROUNDS:
            return False
        return found[2] / found[1] <= (1 + PRECISION) ** 2

    def capacity(self, before: Capacity) -> Capacity:
        """The rounds' own word of the capacity, with an interval over them; `before` if they are
        too few (or, if that says nothing, their word, undecided). Their runs come on top of the
        ones before."""
        runs = (*before.runs, *self.runs)
        found = self.interval()
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
        round_s = sum(s * one.estimator.runs for s, one in zip(lasts_s, contestants, strict=True))
        if probe.clock() + round_s > until:
            break
        for i in range(len(contestants))[:: 1 if number % 2 else -1]:
            _play(probe, contestants[i], lasts_s[i], turn + number)
        ratios = [ratio_of(contestants[0], other) for other in contestants[1:]]
        if all(map(_precise, ratios)) and contestants[0].settled():
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
    leading = max(one.leading for one in contestants)
    runs = sum(one.estimator.runs for one in contestants)
    left = max(LEAST_ROUNDS + leading - turn, 1) * runs
    most_s = min(_MARGIN * (until - probe.clock()) / left, _LONGEST_S)
    longest = max(one.correlation_s for one in contestants)
    return [
        max(min(max(duration_s(one.rate_qps), _SPANS * longest), most_s), _SHORTEST_S)
        for one in contestants
    ]


def _play(probe: Probe, one: Contestant, lasts_s: float, turn: int) -> None:
    """The runs of one contestant's round."""
    runs: list[Run] = []
    for rate, ahead in one.estimator.ahead(one.rate_qps):
        try:
            run = probe(one.policy, rate, lasts_s, turn=turn, whole=True, ahead=ahead)
        except Interrupted as end:
            one.runs.append(end.run)
            raise
        one.runs.append(run)
        runs.append(run)
    one.take(runs)


def ratio_of(one: Contestant, other: Contestant) -> Ratio | None:
    """Of the rounds that count for both; None with fewer than `_FEWEST`."""
    both = sorted({*one.judged()} & {*other.judged()})
    if len(both) < _FEWEST:
        return None
    fitted = max(one.estimator.fitted, other.estimator.fitted)
    ratio, _, hi = ratio_interval(one.log_rates(both) - other.log_rates(both), fitted=fitted)
    # Twins of one machine err alike.
    reach = math.hypot(math.log(hi / ratio), one.estimator.error, other.estimator.error)
    return Ratio(ratio, (ratio * math.exp(-reach), ratio * math.exp(reach)), len(both))


def _precise(ratio: Ratio | None) -> bool:
    if ratio is None or ratio.rounds < LEAST_ROUNDS:
        return False
    return ratio.interval[1] / ratio.interval[0] <= (1 + PRECISION) ** 2
