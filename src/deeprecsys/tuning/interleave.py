"""Ratios of capacities measured turn by turn, so that a drifting machine does not decide.

In each round every policy runs once, on the same seed, at its current estimate of its own
capacity; the estimate then moves by what the run's percentile says: a stochastic approximation
(Robbins and Monro, 1951) of log rate. A run at rate r with percentile p against a target T
estimates the capacity as r * (T / p) ** (1 / elasticity), the elasticity of the percentile in
the rate being fitted to the policy's earlier runs. Rounds are replications: the ratio's interval
is Student's over the rounds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from deeprecsys.analysis.metrics import is_significant, ratio_interval
from deeprecsys.core import Policy
from deeprecsys.tuning.capacity import DISTURBED, Capacity, Interrupted, Probe, Run

LEAST_ROUNDS, MOST_ROUNDS = 4, 10
# Enough when every ratio is known to this, up or down.
PRECISION = 0.03
# One run moves an estimate by no more than this: beyond it the power law does not hold.
_LARGEST_STEP = 0.15
_NEAR_SATURATION = 0.7


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

    A round whose run lies too far from the capacity to say how far (beyond `_LARGEST_STEP`)
    moves the rate and says None.
    """

    policy: Policy
    rate_qps: float
    elasticity: float
    log_rates: list[float | None] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)

    def take(self, run: Run, target_s: float) -> None:
        percentile_s = run.summary.percentile_s
        over = math.log(target_s / percentile_s) if math.isfinite(percentile_s) else -math.inf
        step = over / self.elasticity
        if run.held_qps < run.rate_qps:
            step = min(step, math.log(max(run.held_qps / run.rate_qps, 1e-9)))
        self.runs.append(run)
        if abs(step) > _LARGEST_STEP:
            self.log_rates.append(None)
            self.rate_qps = run.rate_qps * math.exp(math.copysign(_LARGEST_STEP, step))
            return
        self.log_rates.append(math.log(run.rate_qps) + step)
        said = [x for x in self.log_rates if x is not None]
        self.rate_qps = math.exp(sum(said) / len(said))

    @property
    def settled(self) -> bool:
        """Is its own capacity known to `PRECISION`?"""
        said = np.array([x for x in self.log_rates if x is not None])
        if len(said) < LEAST_ROUNDS:
            return False
        _, lo, hi = ratio_interval(said)
        return hi / lo <= (1 + PRECISION) ** 2

    def capacity(self, before: Capacity) -> Capacity:
        """The rounds' own word of the capacity, with Student's interval over them; `before` if
        they are too few (or, if that says nothing, their mean, undecided). Their runs come on top
        of the ones before."""
        said = np.array([x for x in self.log_rates if x is not None])
        runs = (*before.runs, *self.runs)
        if len(said) < LEAST_ROUNDS:
            if len(said) and before.rate_qps == 0:
                return replace(before, rate_qps=math.exp(said.mean()), runs=runs)
            return replace(before, runs=runs)
        rate, lo, hi = ratio_interval(said)
        return replace(before, rate_qps=rate, interval_qps=(lo, hi), decided=True, runs=runs)


def interleave(
    probe: Probe,
    contestants: Sequence[Contestant],
    duration_s: Callable[[float], float],
    *,
    until: float = math.inf,
) -> list[Ratio | None]:
    """Rounds until the ratios of the first contestant over each other one are known.

    None where time allowed fewer than two rounds.
    """
    ratios: list[Ratio | None] = [None] * (len(contestants) - 1)
    for turn in range(MOST_ROUNDS):
        for contestant in contestants[:: 1 if turn % 2 else -1]:
            rate = contestant.rate_qps
            lasts_s = duration_s(rate)
            if probe.clock() + lasts_s > until:
                return ratios
            try:
                run = probe(contestant.policy, rate, lasts_s, turn=100 + turn, whole=True)
            except Interrupted as end:
                contestant.runs.append(end.run)
                raise
            if run.disturbance < DISTURBED:
                contestant.take(run, probe.sla.latency_s)
            else:  # no word of this policy in this round
                contestant.log_rates.append(None)
        ratios = [ratio_of(contestants[0], other) for other in contestants[1:]]
        if all(map(_precise, ratios)) and contestants[0].settled:
            break
    return ratios


def elasticity(runs: Sequence[Run], rate_qps: float, ceiling_qps: float) -> float:
    """d log percentile / d log rate around a rate: how much a percentile says about a rate.

    20, as queues near saturation show, where the rate is near `ceiling_qps`: a fit to a handful
    of short runs there is mostly noise. Further below it curves are flatter and differ; then
    from whole earlier runs, and 4 where they cannot say.
    """
    if rate_qps > _NEAR_SATURATION * ceiling_qps:
        return 20.0
    near = [
        (math.log(r.rate_qps), math.log(r.summary.percentile_s))
        for r in runs
        if 0.85 < r.rate_qps / rate_qps < 1.15
        and math.isfinite(r.summary.percentile_s)
        and not r.stopped_early  # a run stopped early saw only the beginning of its queue
    ]
    x, y = np.array(near).T if near else (np.zeros(0), np.zeros(0))
    if len(x) < 4 or np.ptp(x) < 0.02:
        return 4.0
    return float(np.clip(np.polyfit(x, y, 1)[0], 2.0, 40.0))


def ratio_of(one: Contestant, other: Contestant) -> Ratio | None:
    """Of the rounds in which both said something; None with fewer than two of them."""
    pairs = zip(one.log_rates, other.log_rates, strict=False)
    logs = np.array([a - b for a, b in pairs if a is not None and b is not None])
    if len(logs) < 2:
        return None
    ratio, lo, hi = ratio_interval(logs)
    return Ratio(ratio, (lo, hi), len(logs))


def _precise(ratio: Ratio | None) -> bool:
    if ratio is None or ratio.rounds < LEAST_ROUNDS:
        return False
    return ratio.interval[1] / ratio.interval[0] <= (1 + PRECISION) ** 2
