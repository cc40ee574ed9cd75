"""At which rate does the share of queries over a target reach what a percentile allows?

Pure: rates and shares in, a log rate out. Shares, unlike a run's percentile, can be pooled over
runs: the mean of shares is the share of the whole, however short each run. Called by
`tuning/interleave.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy import special

from deeprecsys.core import FloatArray

# Slopes considered, in standard deviations of what is thought of its logarithm before it is seen.
# True ones, d logit(share) / d log(rate), run from 3 to several hundreds. Not further out: what few
# rounds of a machine that drifts would have it be, far from what a queue can do, leads far astray.
_DEVIATIONS = np.linspace(-2.0, 2.0, 17)
_STEPS = 24  # of a bisection over a logit from -30 to 30


class Crossing(NamedTuple):
    """log_rate: where the share is reached. slope: d logit(share) / d log(rate) there. doubt: the
    standard deviation of log(slope)."""

    log_rate: float
    slope: float
    doubt: float


def crossing(
    log_rate: FloatArray,
    over: FloatArray,
    weight: FloatArray,
    share: float,
    slope: float,
    doubt: float = 1.0,
) -> Crossing:
    """The log rate at which `share` is over, by logistic regression.

    log_rate, over, weight [m]: of each run, its share over the target and how many independent
    queries it is worth. slope: what is expected before it is seen; doubt: one standard deviation of
    its logarithm. Half a
    query over and half within are added, which takes most of the bias out of the logarithm of a
    small count (Haldane, Annals of Human Genetics 20, 1956). The answer is the mean over slopes,
    each weighted by its likelihood, and that as the runs scatter: they are worth less than they
    say if they differ by more than chance.
    """
    centre = float(np.average(log_rate, weights=weight))
    slopes = slope * np.exp(doubt * _DEVIATIONS)
    reach = slopes[:, None] * (log_rate - centre)  # [slopes, m]
    level = _levels(reach, over, weight)
    logit = level[:, None] + reach
    fit = (weight * (over * logit - np.logaddexp(0, logit))).sum(axis=1)
    fit = fit / _scatter(over, weight, logit[np.argmax(fit)]) - _DEVIATIONS**2 / 2
    likely = np.exp(fit - fit.max())
    likely /= likely.sum()
    where = centre + (special.logit(share) - level) / slopes
    mean = float(likely @ np.log(slopes))
    doubt = math.sqrt(max(float(likely @ np.log(slopes) ** 2) - mean**2, 0.0))
    return Crossing(float(likely @ where), math.exp(mean), doubt)


def _scatter(over: FloatArray, weight: FloatArray, logit: FloatArray) -> float:
    """Pearson's squares over what chance allows, at least 1 (McCullagh and Nelder, Generalized
    Linear Models, 1989, section 4.5)."""
    expected = special.expit(logit)
    squares = weight * (over - expected) ** 2 / np.maximum(expected * (1 - expected), 1e-12)
    return max(1.0, float(squares.sum()) / max(len(over) - 2, 1))


def _levels(reach: FloatArray, over: FloatArray, weight: FloatArray) -> FloatArray:
    """[slopes] The logit at the centre with which as many are over as were seen to be."""
    seen = float(weight @ over) + 0.5
    low, high = np.full((2, len(reach)), 30.0) * np.array([[-1.0], [1.0]])
    for _ in range(_STEPS):
        middle = (low + high) / 2
        expected = special.expit(middle[:, None] + reach) @ weight + special.expit(middle)
        low, high = np.where(expected < seen, middle, low), np.where(expected < seen, high, middle)
    return np.asarray((low + high) / 2)


def pseudo_values(estimate: Callable[[list[int]], float], n: int) -> FloatArray:
    """[n] The jackknife's: n times the estimate of all less n - 1 times that of all but one.

    `estimate` takes the numbers of the parts to use. Their spread is its error (Tukey, Annals of
    Mathematical Statistics 29, 1958). They are moved so that the estimate itself is their mean:
    what theirs takes away of a bias, it adds to the scatter many times over where parts are few.
    """
    every = list(range(n))
    whole = estimate(every)
    others = np.array([estimate(every[:i] + every[i + 1 :]) for i in every])
    return np.asarray(whole - (n - 1) * (others - others.mean()))
