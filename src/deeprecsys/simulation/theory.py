"""What queueing theory says of the simplest machines: the yardstick of simulations.

Formulas as in Kleinrock, Queueing Systems I (1975), sections 3.5 and 5.6.
"""

from __future__ import annotations

import math

import numpy as np


def erlang_c(workers: int, load: float) -> float:
    """Probability that a query of M/M/c waits; load: arrival rate times mean service time, < c."""
    blocked = 1.0  # Erlang's B by its recursion in the number of workers
    for k in range(1, workers + 1):
        blocked = load * blocked / (k + load * blocked)
    share = load / workers
    return blocked / (1 - share + share * blocked)


def mmc_mean_s(rate_qps: float, mean_s: float, workers: int) -> float:
    """Mean latency of M/M/c; infinity from saturation on."""
    load = rate_qps * mean_s
    if load >= workers:
        return math.inf
    return mean_s + erlang_c(workers, load) * mean_s / (workers - load)


def mmc_percentile_s(p: float, rate_qps: float, mean_s: float, workers: int) -> float:
    """The p-th percentile of the latency of M/M/c, by bisection of its tail."""
    load = rate_qps * mean_s
    if load >= workers:
        return math.inf
    waits, drain, serve = erlang_c(workers, load), (workers - load) / mean_s, 1 / mean_s

    def over(t: float) -> float:
        alone = math.exp(-serve * t)
        if math.isclose(drain, serve):
            both = (1 + serve * t) * alone
        else:
            both = (serve * math.exp(-drain * t) - drain * alone) / (serve - drain)
        return (1 - waits) * alone + waits * both

    low, high = 0.0, mean_s
    while over(high) > 1 - p / 100:
        high *= 2
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if over(middle) > 1 - p / 100 else (low, middle)
    return high


def mg1_mean_s(rate_qps: float, mean_s: float, second_moment_s2: float) -> float:
    """Mean latency of M/G/1 (Pollaczek and Khinchine); infinity from saturation on."""
    load = rate_qps * mean_s
    return mean_s + rate_qps * second_moment_s2 / (2 * (1 - load)) if load < 1 else math.inf


def two_choices_mean_s(rate_qps: float, mean_s: float, workers: int) -> float:
    """Mean latency in a large fleet of M/M/c machines, each query going to the less busy of two.

    rate_qps: of one machine. The mean-field limit (Vvedenskaya et al. 1996, Mitzenmacher 1996, for
    one worker): s_k, the share of machines with k queries or more, is at rest where
    λ(s_{k-1}² - s_k²) = min(k, c)(s_k - s_{k+1}); then Little's law.
    """
    load = rate_qps * mean_s
    levels = workers + 60
    s = np.zeros(levels + 2)
    s[0] = 1.0
    serving = np.minimum(np.arange(1, levels + 1), workers)
    step = 0.5 / (2 * load + workers)
    while True:
        change = load * (s[:-2] ** 2 - s[1:-1] ** 2) - serving * (s[1:-1] - s[2:])
        s[1:-1] += step * change
        if np.abs(change).max() < 1e-10 * load:
            return float(s[1:].sum() / rate_qps)
