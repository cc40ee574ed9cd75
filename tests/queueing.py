"""Many simulated queues at once, and what theory says of them: the yardstick of the tests.

A step of the loop is one query of every run; the arrays run over the runs. Knows no package code.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


def poisson_arrivals(
    rng: np.random.Generator, *, rate_qps: float, queries: int, runs: int
) -> FloatArray:
    """Arrival times [queries, runs] of Poisson streams that start at time zero."""
    return rng.exponential(1 / rate_qps, (queries, runs)).cumsum(axis=0)


def first_come_first_served(arrival_s: FloatArray, service_s: FloatArray) -> FloatArray:
    """Finish times [queries, runs] on two workers (the recursion of Kiefer and Wolfowitz, 1955).

    Only the times at which the two workers become free are kept: the query at the head of the
    queue takes the earlier one.
    """
    finish_s = np.empty_like(arrival_s)
    early = np.zeros(arrival_s.shape[1])
    late = np.zeros(arrival_s.shape[1])
    for t, (arrival, service) in enumerate(zip(arrival_s, service_s, strict=True)):
        done = np.maximum(arrival, early, out=finish_s[t])
        done += service
        early, late = np.minimum(done, late), np.maximum(done, late)
    return finish_s


def latencies_of_mm2(
    rng: np.random.Generator, *, load: float, queries: int, runs: int, leave_out: int = 0
) -> FloatArray:
    """Latencies [runs, queries] of M/M/2 with a mean service of 1 s, from an empty start.

    `leave_out` queries before the first of those are simulated too and dropped.
    """
    shape = (leave_out + queries, runs)
    arrival_s = poisson_arrivals(rng, rate_qps=2 * load, queries=shape[0], runs=runs)
    finish_s = first_come_first_served(arrival_s, rng.exponential(1.0, shape))
    return np.ascontiguousarray((finish_s - arrival_s)[leave_out:].T)


def mm2_share_over(latency_s: float, load: float) -> float:
    """P(latency > t) in M/M/2, mean service 1 s: service plus the wait of Erlang's C formula.

    A query waits with probability C = 2 load^2 / (1 + load), then exponentially with rate
    r = 2 (1 - load) (Kleinrock, Queueing Systems I, 1975, section 3.5).
    """
    waits, r = 2 * load**2 / (1 + load), 2 * (1 - load)
    alone = math.exp(-latency_s)
    if math.isclose(r, 1.0):
        both = (1 + latency_s) * alone
    else:
        both = (math.exp(-r * latency_s) - r * alone) / (1 - r)
    return (1 - waits) * alone + waits * both


def mm2_percentile(p: float, load: float) -> float:
    """The p-th percentile of the latency in M/M/2, mean service 1 s, by bisection."""
    low, high = 0.0, 1000.0
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if mm2_share_over(middle, load) > 1 - p / 100 else (low, middle)
    return high
