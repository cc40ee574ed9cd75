"""Where a share reaches its limit: on shares drawn from a known curve."""

import math

import numpy as np
import pytest
from scipy import special

from deeprecsys.analysis.crossing import crossing, pseudo_values
from deeprecsys.analysis.statistics import ratio_interval

SHARE, TRUTH = 0.05, math.log(400)


def drawn(rng, slope, rounds, worth=60):
    """Log rates, shares and weights of `rounds` pairs of runs about the truth."""
    apart = 0.8 / slope
    log_rate = TRUTH + np.tile([-apart, apart], rounds) + 0.3 / slope
    true = special.expit(special.logit(SHARE) + slope * (log_rate - TRUTH))
    return log_rate, rng.binomial(worth, true) / worth, np.full(2 * rounds, float(worth))


@pytest.mark.parametrize("slope", [4.0, 20.0, 90.0])
def test_the_crossing_is_found_without_bias_whatever_the_slope(slope):
    rng = np.random.default_rng(1)
    found = [crossing(*drawn(rng, slope, 8), SHARE, 20.0) for _ in range(100)]
    error = slope * (np.mean([one.log_rate for one in found]) - TRUTH)
    assert abs(error) < 0.15  # of a logit, whose slope makes 0.2 to 4 % of it
    assert np.median([one.slope for one in found]) == pytest.approx(slope, rel=0.35)


def test_the_jackknifes_intervals_hold_the_truth_nine_times_in_ten_or_more():
    rng, held = np.random.default_rng(2), 0
    for _ in range(60):
        x, over, weight = drawn(rng, 20.0, 8)

        def where(rounds):
            rows = np.concatenate([[2 * i, 2 * i + 1] for i in rounds])
            return crossing(x[rows], over[rows], weight[rows], SHARE, 20.0).log_rate  # noqa: B023

        _, low, high = ratio_interval(pseudo_values(where, 8), fitted=2)
        held += low <= 400 <= high
    assert held >= 51  # of 60: below 0.9 only by a chance of 7 %


def test_runs_in_which_nothing_was_over_point_upward_and_not_to_infinity():
    found = crossing(np.log([300.0, 310.0]), np.zeros(2), np.full(2, 100.0), SHARE, 20.0)
    assert 310 < math.exp(found.log_rate) < 450


def test_runs_that_differ_by_more_than_chance_say_less_of_the_slope():
    x, even = TRUTH + 0.05 * np.tile([-1.0, 1.0], 4), np.tile([0.02, 0.12], 4)
    odd = np.tile([0.02, 0.12], 4) + np.array([0, 0.2, 0, -0.1, 0.2, 0.1, 0, -0.1])
    doubts = [crossing(x, over, np.full(8, 200.0), SHARE, 20.0).doubt for over in (even, odd)]
    assert doubts[1] > doubts[0]
